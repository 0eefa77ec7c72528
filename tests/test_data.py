"""Tasks, files, and the tensors made of them."""

import json
import os
import sys
from collections import Counter
from random import Random

import pytest
import torch

import train
from minipeft import GPT, Error, GPTConfig, __main__
from minipeft.data import NANO, files
from minipeft.data.batches import FileData, TaskData, draw, encode, question, references, thinned
from minipeft.data.encoding import Encoded, collate, tokenize
from minipeft.data.files import read_examples
from minipeft.data.fitting import fit
from minipeft.data.tasks import NOVEL, SKILLS, Example, find_task, skill_example
from minipeft.data.template import Template
from minipeft.data.tokenizer import ByteTokenizer, FileTokenizer, tokenizer_for
from minipeft.training import evaluation, opening

TOKENIZER = ByteTokenizer()
PLAIN = Template()
CHAT_MARKS = ["<|im_start|>", "<|im_end|>"]
WORDS = [
    "the cat sat on the mat",
    "a cat and a hat",
    "über the naïve hat, 提示 £30",
    "name[Blue Spice], eatType[coffee shop]",
]
ANSWERS = {
    "copy": "58213764",
    "reverse": "46731285",
    "sort": "12345678",
    "descending": "87654321",
    "increment": "69324875",
    "swap": "85127346",
    "rotate": "82137645",
    "complement": "41786235",
    "parity": "10011100",
    "running-max": "58888888",
    "differences": "53492498",
}


def inputs(records: list[Encoded]) -> set[str]:
    return {r.example.input for r in records}


def fitted_examples(examples, tokenizer, block_size, num_virtual_tokens, template=PLAIN) -> tuple[list[Example], int]:
    """fit() on examples, checked: the records it returns are those of tokenising its examples."""
    records = [tokenize(e, tokenizer, template) for e in examples]
    fitted, cut = fit(records, tokenizer, block_size, num_virtual_tokens, template)
    assert fitted == [tokenize(r.example, tokenizer, template) for r in fitted]
    return [r.example for r in fitted], cut


def lines(path, *rows):
    """A JSONL file of these rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_skill_and_novel_task_by_hand():
    assert {
        name: (SKILLS[name].apply if name in SKILLS else NOVEL[name])("58213764") for name in [*SKILLS, *NOVEL]
    } == ANSWERS


def test_the_three_kinds():
    assert find_task("sort").kind == "select" and find_task("parity").kind == "novel"
    both = find_task("reverse+increment")
    e = both.example(Random(0))
    assert both.kind == "compose" and e.target == SKILLS["increment"].apply(SKILLS["reverse"].apply(e.input))


@pytest.mark.parametrize("name", ["magic", "sort+sort", "sort+magic", "+", ""])
def test_an_unknown_task_is_refused_with_the_list(name):
    with pytest.raises(Error, match="reverse.*compose.*parity"):
        find_task(name)


def test_the_pretraining_mixture_tells_most_of_the_time_and_holds_every_skill():
    examples = draw(find_task("skills").example, "x", 4000)
    told = [e for e in examples if ": " in e.input]
    assert 0.77 < len(told) / 4000 < 0.83
    assert {e.input.split(": ")[0] for e in told} == {w for s in SKILLS.values() for w in s.wordings}
    assert len({w for s in SKILLS.values() for w in s.wordings}) == sum(len(s.wordings) for s in SKILLS.values())
    assert skill_example(Random(3), "sort", instructed=False).input.isdigit()


def test_questions_about_a_table_are_answered_in_it():
    data = TaskData(find_task("lookup"), TOKENIZER, 1, 64)
    assert len({r.length for r in data.batch(0)}) == 1 and len({len(r.prompt) for r in data.batch(0)}) > 10
    for r in data.batch(0) + data.held_out:
        table, arrow, asked = (r.example.input + r.example.target).partition(" -> ")
        facts = {fact[0]: fact[1] for fact in table.split()}
        assert len(facts) == len(table.split()) and all(facts[q[0]] == q[1] for q in asked.split())
    assert {(len(r.prompt), len(r.completion)) for r in data.held_out} == {(4 * 32 + 4, 1)}


def test_only_the_answer_and_its_end_are_supervised():
    idx, targets = encode([Example("ab", "c"), Example("a", "xyz")], TOKENIZER)
    text = b"ab -> c"
    assert idx[0].tolist() == [*text, 256] and targets[0].tolist() == [-100] * 5 + [ord("c"), 256, -100]
    assert bytes(idx[1].tolist()) == b"a -> xyz" and targets[1].tolist() == [-100] * 4 + [*b"xyz", 256]


def test_bytes_round_trip_and_broken_ones_show():
    assert TOKENIZER.decode(TOKENIZER.encode("£30 – naïve 提示") + [256]) == "£30 – naïve 提示"
    assert TOKENIZER.decode([65, 0xE6, 66]) == "A�B"


def test_long_inputs_are_cut_from_the_left_and_counted_and_long_targets_refused():
    long, short = Example("x" * 40 + "end", "answer"), Example("in", "out")
    fitted, cut = fitted_examples([long, short], TOKENIZER, block_size=32, num_virtual_tokens=10)
    assert cut == 1 and fitted[1] == short and fitted[0].input == "x" * 9 + "end"
    assert encode(fitted, TOKENIZER)[0].size(1) == 22  # with the 10 virtual ones, exactly the block size
    with pytest.raises(Error, match="10 virtual tokens and 34 of .* do not fit the block size of 32"):
        fitted_examples([Example("in", "y" * 30)], TOKENIZER, block_size=32, num_virtual_tokens=10)


def test_task_batches_depend_on_seed_and_step_and_leave_the_held_out_apart():
    a, b = (TaskData(find_task("sort"), TOKENIZER, seed, 16) for seed in (1, 2))
    assert a.batch(3) == a.batch(3) and a.batch(3) != a.batch(4) and a.batch(3) != b.batch(3)
    assert a.held_out == b.held_out and len(a.held_out) == 500
    assert not inputs(a.held_out) & {i for step in range(50) for i in inputs(a.batch(step))}


def test_a_file_is_split_and_every_epoch_passes_over_it_once(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(f'{{"input": "q{i}", "target": "a{i}"}}\n\n' for i in range(40)))
    data = FileData(path, TOKENIZER, PLAIN, seed=0, batch_size=10, block_size=64, num_virtual_tokens=8)
    assert [r.example.input for r in data.held_out] == ["q36", "q37", "q38", "q39"] and data.steps_per_epoch == 4
    epochs = [[r.example.input for step in range(4 * n, 4 * n + 4) for r in data.batch(step)] for n in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(f"q{i}" for i in range(36)) and epochs[0] != epochs[1]
    assert data.batch(2) == FileData(path, TOKENIZER, PLAIN, 0, 10, 64, 8).batch(
        2
    )  # not a matter of what was asked before
    assert sorted(len(data.batch(step)) for step in range(4)) == [6, 10, 10, 10]


def test_batches_of_about_one_length_hold_little_padding_and_differ_every_epoch(tmp_path):
    rng = Random(0)
    rows = [{"input": f"{i} " + "x" * rng.randrange(100), "target": "y" * rng.randrange(1, 100)} for i in range(1000)]
    path = lines(tmp_path / "data.jsonl", *rows)
    data = FileData(path, TOKENIZER, PLAIN, 0, 8, 512, 0)

    def padding(batches: list[list[Encoded]]) -> float:
        rows = [[r.length for r in batch] for batch in batches]
        return 1 - sum(map(sum, rows)) / sum(max(row) * len(row) for row in rows)

    first, second = (
        [data.batch(step) for step in range(n, n + data.steps_per_epoch)] for n in (0, data.steps_per_epoch)
    )
    order = [data.examples[i] for i in range(900)]
    assert padding([order[i : i + 8] for i in range(0, 900, 8)]) > 0.3 and padding(first) < 0.1
    assert sorted(r for b in first for r in b) == sorted(data.examples)
    assert not {frozenset(r.example for r in b) for b in first} & {frozenset(r.example for r in b) for b in second}
    longest = [max(r.length for r in b) for b in first]
    descents = sum(b < a for a, b in zip(longest, longest[1:], strict=False))
    assert descents > len(first) / 4  # the batches themselves come in any order, not window by window


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "holds no examples"),
        (b"\n \n", "holds no examples"),
        (b'{"input": "a", "target": "b"}\n{"input": \n', "line 2 is not JSON"),
        (b'{"input": "a", "target": "b"}\n\n{"input": "a"}\n', 'line 3 has no "target": there is "input"'),
        (b'["a", "b"]\n', "line 1 must be a JSON object, not a string"),
        (b'{"text": "a"}\n[1]', "line 2 must be a JSON object, not an array"),
        (b'{"text": "a"}\n\nnull\n', "line 3 must be a JSON object, not null"),
        (b'{"input": "a", "target": 3}\n', 'line 1: "target" must be a string, not a number'),
        (b'{"input": "a",\n "target": null}\n', 'line 1: "target" must be a string, not null'),
        (b'{"input": "a", "target": [1]}\n', 'line 1: "target" must be a string, not an array'),
        (b'{"input": "a", "target": {}}\n', 'line 1: "target" must be a string, not an object'),
        (b'{"input": "a", "target": true}\n', 'line 1: "target" must be a string, not true or false'),
        (b'{"text": "a"}\n{\n "text"\n: \n}', "line 2 is not JSON: Expecting value, in line 5"),
        (b'{"text": "a"}\n{"text": "b\n"}', "line 2 is not JSON: Invalid control character"),
        (b'{"text": "a"}\n{"text": "b', "line 2 is not JSON: Unterminated string"),
        (b'{"text": "a"},\n{"text": "b"}', "line 1 is not JSON: Expecting value"),
        (b'[{"text": "a"}\n{"text": "b"}]', "line 2 is not JSON: a comma is missing between two objects"),
        (b'[{"text": "a"},\n{"text": "b"},\n', "line 3: the array is not closed, so the file may be torn"),
        (b'[{"text": "a"}]\n{"text": "b"}', "line 2: something follows the end of the array"),
        (b'[{"text": "a"}, {"text": null}]', 'line 1: "text" must be a string, not null'),
        (b"[]", "holds no examples"),
        (b'[{"text": "a"},\n]', "line 2 is not JSON: Expecting value"),
        (b'[,{"text": "a"}]', "line 1 is not JSON: Expecting value"),
        (b'{"input": "a", "target": ""}\n', "line 1 has an empty target"),
        (b'{"input": "\xff", "target": "b"}\n', "not UTF-8"),
        (b"[" * 100000, "line 1 is not JSON"),
        (b'{"input": "a", "target": "b"}\n{"input": "\\ud800", "target": "b"}\n', "line 2 holds half a surrogate"),
        (
            b'{"question": "a", "answer": "b"}',
            'line 1 has neither .*"target", nor .* "messages", .* nor "text" .--columns names others.: '
            'there is "question", "answer"',
        ),
        (
            b'{"text": "a"}\n{"input": "a", "target": "b"}',
            'line 2 holds "input", "target", but the lines before it "text"',
        ),
        (b'{"text": ""}', "line 1 has an empty text"),
        (b'{"text": ["a"]}', 'line 1: "text" must be a string, not an array'),
        (b'\n{"messages": {"role": "user"}}', 'line 2: "messages" must be a list'),
        (b'{"messages": []}', "line 1: messages must end with .*, not with nothing"),
        (
            b'{"messages": [{"role": "assistant", "content": "b"}]}',
            "line 1: messages must end with .*, not with 'assistant'",
        ),
        (b'{"messages": [{"role": "user"}]}', 'line 1 has no "content": there is "role"'),
        (b'{"messages": [{"role": "user", "content": ["a"]}]}', 'line 1: "content" must be a string, not an array'),
        (
            b'{"messages": [{"role": "a", "content": "\\ud800"}, {"role": "user", "content": "a"}, '
            b'{"role": "assistant", "content": "b"}]}',
            "line 1 holds half a surrogate",
        ),
    ],
)
def test_files_that_cannot_be_read_are_refused_in_one_line(content, message, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(Error, match=message) as e:
        read_examples(path)
    assert str(path) in str(e.value) and "\n" not in str(e.value)


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "bom.jsonl").write_bytes(b'\xef\xbb\xbf{"input": "a", "target": "b"}')
    assert read_examples(tmp_path / "bom.jsonl") == [Example("a", "b")]


def test_a_missing_file_and_a_single_example(tmp_path):
    with pytest.raises(Error, match="no such file"):
        read_examples(tmp_path / "nowhere.jsonl")
    one = lines(tmp_path / "one.jsonl", {"input": "a", "target": "b"})
    with pytest.raises(Error, match="at least two"):
        FileData(one, TOKENIZER, PLAIN, 0, 1, 64, 8)
    assert torch.is_tensor(encode(read_examples(one), TOKENIZER)[0])
    with pytest.raises(Error, match="at least two"):
        FileData(one, TOKENIZER, PLAIN, 0, 1, 64, 8, test=one)  # nothing to choose by
    assert FileData(one, TOKENIZER, PLAIN, 0, 1, 64, 8, dev=one).batch(7) == [tokenize(Example("a", "b"), TOKENIZER)]


def test_the_three_kinds_of_line_and_names_of_your_own(tmp_path):
    said = [("system", "Be brief."), ("user", "1+1?"), ("assistant", "2"), ("user", "2+2?"), ("assistant", "4")]
    chat = lines(tmp_path / "chat.jsonl", {"messages": [{"role": role, "content": content} for role, content in said]})
    assert read_examples(chat) == [Example("2+2?", "4", tuple(said[:3]))]
    assert read_examples(lines(tmp_path / "text.json", {"text": "once"})) == [Example(None, "once")]
    other = lines(tmp_path / "other.jsonl", {"question": "q", "answer": "a", "text": "no matter"})
    assert read_examples(other, ("question", "answer")) == [Example("q", "a")]
    with pytest.raises(Error, match='line 1 has no "reply"'):
        read_examples(other, ("question", "reply"))


def test_tables_keep_quotes_commas_and_line_breaks_and_count_lines(tmp_path):
    table = tmp_path / "e2e.csv"
    table.write_bytes('\ufeffid,mr,ref\r\n1,"name[A], area[x]","It is ""A"",\r\nby £"\r\n\r\n2,b,c\r\n'.encode())
    assert read_examples(table) == [Example("name[A], area[x]", 'It is "A",\r\nby £'), Example("b", "c")]
    assert read_examples(table, ("ref", "id"))[1] == Example("c", "2")
    tabs = tmp_path / "own.TSV"
    tabs.write_text('target\tinput\nb, c\ta\n"x, y\tz\nits end"\t"w"\n""\t5" x\n')
    assert read_examples(tabs) == [
        Example("a", "b, c"), Example("z", '"x, y'), Example('"w"', 'its end"'), Example('5" x', '""')
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t"])
def test_a_csv_is_divided_as_its_header_is(delimiter, tmp_path):
    table = tmp_path / "a.csv"
    text = '\r\n"id"/input/"target"\r\n1/"a,;|\t""b"""/"c\r\nd"\r\n2/5" e/f\r\n'
    table.write_bytes(text.replace("/", delimiter).encode())
    assert read_examples(table) == [Example('a,;|\t"b"', "c\r\nd"), Example('5" e', "f")]
    assert read_examples(table, ("target", "id")) == [Example("c\r\nd", "1"), Example("f", "2")]


def test_arrays_and_objects_over_several_lines_are_read_with_their_lines(tmp_path, monkeypatch):
    path, rows = tmp_path / "data.json", [{"input": f"[{i}", "target": "]},\n" * (i % 7)} for i in range(1, 90)]
    want = [Example(row["input"], row["target"]) for row in rows if row["target"]]
    rows = [row for row in rows if row["target"]]
    texts = [json.dumps(rows), json.dumps(rows, indent=2), "".join(json.dumps(row, indent=1) for row in rows),
             "\n".join(map(json.dumps, rows)), " " * 999 + json.dumps(rows).replace("}, {", "}\n\n,{") + "\n" * 999]
    for size in (300, 1 << 20):
        monkeypatch.setattr(files, "MAX_LINE", size)  # the file is read in parts of this size
        for text in texts:
            path.write_text(text)
            assert read_examples(path) == want
            path.write_text(text.replace('"input": "[80"', '"input": 80'))
            line = text[: text.index('"input": "[80"')].rstrip("{ \n").count("\n") + 1
            line += text.startswith("[\n") or " ,{" in text or text == texts[3]
            with pytest.raises(Error, match=f'line {line}: "input" must be a string, not a number'):
                read_examples(path)


FORMS = [
    ({"mr": "a", "ref": "b"}, Example("a", "b")),
    ({"instruction": "a", "output": "b"}, Example("a", "b")),
    ({"instruction": "a", "input": "", "output": "b"}, Example("a", "b")),
    ({"instruction": "a", "input": None, "output": "b"}, Example("a", "b")),
    ({"instruction": "a", "input": "x", "output": "b", "text": ""}, Example("a\nx", "b")),
    ({"prompt": "a", "completion": "b"}, Example("a", "b")),
    ({"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
     Example("a", "b")),
    ({"conversations": [{"from": who, "value": text} for who, text in
                        (("system", "s"), ("human", "x"), ("gpt", "y"), ("human", "a"), ("gpt", "b"))]},
     Example("a", "b", (("system", "s"), ("user", "x"), ("assistant", "y")))),
    ({"conversations": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, Example("a", "b")),
]


@pytest.mark.parametrize("row, want", FORMS)
def test_the_forms_that_published_data_have_are_read_in_full(row, want, tmp_path, capfd):
    assert read_examples(lines(tmp_path / "a.jsonl", row, row)) == [want, want]
    (tmp_path / "a.json").write_text(json.dumps([row]))
    assert read_examples(tmp_path / "a.json") == [want]
    if all(isinstance(value, str | None) for value in row.values()):
        (tmp_path / "a.csv").write_text("{}\n{}\n".format(",".join(row), ",".join(v or "" for v in row.values())))
        assert read_examples(tmp_path / "a.csv") == [want]
    assert capfd.readouterr().err == ""


def test_what_is_left_out_is_said(tmp_path, capfd):
    rows = [{"instruction": "a", "input": i, "output": "b", "id": 7} for i in ("x", "", "y")]
    path = lines(tmp_path / "a.jsonl", *rows)
    assert {e.input for e in read_examples(path, ("instruction", "output"))} == {"a"}
    assert capfd.readouterr().err == f'note: {path}: of 3 examples, left out: "id" (in 3), "input" (in 2)\n'
    assert [e.input for e in read_examples(path)] == ["a\nx", "a", "a\ny"]
    assert capfd.readouterr().err == f'note: {path}: of 3 examples, left out: "id" (in 3)\n'


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", "", "holds no examples"),
        ("a.csv", "input,target\n", "holds no examples"),
        ("a.csv", "input:target\na:b\n", 'line 1 has neither "input", "target", nor .* there is "input:target"'),
        ("a.csv", "mr,reply\na,b\n", 'line 1 has no column "ref": there is "mr", "reply"'),
        ("a.csv", "input,target,target\na,b,c\n", 'line 1 has more than one column "target"'),
        ("a.csv", 'input,target\n"a\n1",b\n\nc\n', 'line 5 has 1 of the 2 columns "input", "target"'),
        ("a.csv", "input,target\na,b, and more\n", "line 2 has 3 of the 2 columns"),
        ("a.csv", "input,target\na,b\na,\n", "line 3 has an empty target"),
        ("a.csv", 'input,target\na,b\n"a,b\nc,d\n', "line 3 is not CSV .unexpected end.*: a cell that begins"),
        ("a.csv", 'input,target\na,b\n"a" c,b\n', "line 3 is not CSV .*a quote inside it is written twice"),
        ("a.csv", '"input" x,target\na,b\n', "line 1 is not CSV"),
        ("a.csv", f"input,{'x' * 200_000}\na,b\n", "line 1 is not CSV .field larger than"),
        ("a.tsv", 'input\ttarget\na\tb\n"a\tb"\tc\n', "line 3 has 3 of the 2 columns .*: a TSV has no quoting"),
        ("a.tsv", 'input\ttarget\nc\t"a\nb"\n', "line 3 has 1 of the 2 columns .*: a TSV has no quoting"),
        ("a.tsv", 'input\ttarget\nc\t"say ""a"""\n', r'line 2 holds .*say .* quoted as in a CSV: a TSV has no quoting'),
        ("a.txt", "input,target\na,b\n", "must be .jsonl, .json, .csv or .tsv"),
    ],
)
def test_tables_that_cannot_be_read_are_refused_in_one_line(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(Error, match=message) as e:
        read_examples(tmp_path / name)
    assert str(tmp_path / name) in str(e.value) and "\n" not in str(e.value)


def test_what_is_asked_several_times_stays_on_one_side_and_is_scored_once(tmp_path):
    rows = [{"input": f"q{i % 20}", "target": f"a{i}"} for i in range(60)]
    data = FileData(lines(tmp_path / "data.jsonl", *rows), TOKENIZER, PLAIN, 0, 8, 64, 8)
    assert inputs(data.held_out) == {"q18", "q19"} and len(data.held_out) == 6 and len(data.examples) == 54
    assert not inputs(data.held_out) & inputs(data.examples)
    once = references([r.example for r in data.held_out])
    assert [(e.input, known) for e, known in once] == [("q18", ["a18", "a38", "a58"]), ("q19", ["a19", "a39", "a59"])]
    turns = (("user", "hi"),)
    assert len(references([Example("q", "a"), Example("q", "b", turns), Example(None, "c"), Example(None, "d")])) == 4
    two = lines(tmp_path / "two.jsonl", *[{"input": f"q{i // 10}", "target": f"a{i}"} for i in range(20)])
    assert inputs(FileData(two, TOKENIZER, PLAIN, 0, 8, 64, 8).held_out) == {"q1"}  # more than a tenth, but whole
    same = lines(tmp_path / "same.jsonl", *[{"input": "q", "target": t} for t in "abc"])
    with pytest.raises(Error, match="holds one input: at least two"):
        FileData(same, TOKENIZER, PLAIN, 0, 8, 64, 8)


def test_files_to_choose_by_and_to_report_on_and_a_limit(tmp_path):
    train, dev, test = (
        lines(tmp_path / f"{n}.jsonl", *[{"input": f"{n}{i}", "target": "a"} for i in range(30)])
        for n in ("a", "b", "c")
    )
    args = (TOKENIZER, PLAIN, 0, 8, 64, 8)
    both, one, other = (
        FileData(train, *args, dev=dev, test=test),
        FileData(train, *args, dev=dev),
        FileData(train, *args, test=test),
    )
    assert [r[0].example.input for r in (both.examples, both.validation(99), both.held_out)] == [
        "a0",
        "b0",
        "c0",
    ] and len(both.examples) == 30
    assert one.held_out == one.validation(99) == both.validation(99) and other.held_out == both.held_out
    neither = FileData(
        train, *args
    )  # without dev a tenth is set apart: for validation beside a test file, else held out
    assert [r.example.input for r in other.validation(99)] == ["a27", "a28", "a29"]
    assert other.validation(99) == neither.held_out
    assert other.examples == neither.examples == neither.validation(99) == both.examples[:27]
    assert both.validation(5) == thinned(both.validation(99), 5) and len({both.digest, one.digest, other.digest}) == 3
    few, same, another = (FileData(train, TOKENIZER, PLAIN, seed, 8, 64, 8, limit=5) for seed in (0, 0, 1))
    assert few.examples == same.examples != another.examples and len(inputs(few.examples)) == 5
    assert few.held_out == another.held_out == neither.held_out and few.batch(0) != few.batch(1)
    assert len(FileData(train, *args, dev=dev, test=test, limit=99).examples) == 30
    assert len(FileData(train, *args, test=test, limit=99).examples) == 27
    with pytest.raises(Error, match="at least 1, not 0"):
        FileData(train, *args, limit=0)


def test_templates_put_the_input_and_what_was_said_before_into_words():
    e = Example("2+2? {x}", "4", (("system", "Be brief."), ("user", "{1}")))
    plain = Template("Q{0}: {input}\nA:")
    assert TOKENIZER.decode(question(e, TOKENIZER, plain)) == "system: Be brief.\nuser: {1}\nQ{0}: 2+2? {x}\nA:"
    assert Template("chat").fill(e) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{1}<|im_end|>\n"
        "<|im_start|>user\n2+2? {x}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert TOKENIZER.decode(question(Example("a", "b"), TOKENIZER)) == "a -> "
    for wrong in ("no place", "{input} {input}", ""):
        with pytest.raises(Error, match="with {input} in it once, not"):
            Template(wrong)
    assert plain.stops(TOKENIZER) == [256]
    with pytest.raises(Error, match=r"needs a base whose tokenizer has <\|im_start\|>"):
        Template("chat").stops(TOKENIZER)


def test_a_text_of_its_own_is_learnt_from_its_first_letter_and_a_piece_does_not_end():
    idx, targets = encode(
        [Example(None, "abc"), Example(None, "ab", ends=False), Example("", "x")], TOKENIZER, Template("{input}")
    )
    assert idx.tolist() == [[256, *b"abc"], [256, *b"a", 256, 256], [256, *b"x", 256, 256]]
    assert targets.tolist() == [[*b"abc", 256], [*b"ab", -100, -100], [*b"x", 256, -100, -100]]


def test_long_texts_become_pieces_and_nothing_is_lost():
    text = Example(None, "äb" * 50 + "c")
    fitted, cut = fitted_examples([text, Example(None, "short")], TOKENIZER, block_size=30, num_virtual_tokens=10)
    assert cut == 1 and fitted[-1] == Example(None, "short") and "".join(e.target for e in fitted[:-1]) == text.target
    assert [e.ends for e in fitted[:-1]] == [False] * (len(fitted) - 2) + [True] and len(fitted) == 10
    assert all(encode([e], TOKENIZER)[0].size(1) <= 20 for e in fitted)
    with pytest.raises(Error, match="29 virtual tokens and 3 of .* do not fit the block size of 30"):
        fitted_examples([text], TOKENIZER, block_size=30, num_virtual_tokens=29)


def test_turns_go_before_the_input_is_cut_and_characters_stay_whole():
    turns = tuple(("user", c * 9) for c in "abc")
    fitted, cut = fitted_examples([Example("input", "out", turns)], TOKENIZER, block_size=64, num_virtual_tokens=20)
    assert cut == 1 and fitted == [
        Example("input", "out", turns[1:])
    ]  # 2·16 of turns, 9 of input and arrow, 3 of the target: 44
    fitted, cut = fitted_examples(
        [Example("ä" * 50, "out", turns)],
        TOKENIZER,
        block_size=64,
        num_virtual_tokens=20,
        template=Template("say {input}."),
    )
    assert (
        cut == 1
        and fitted == [Example("ä" * 18, "out")]
        and TOKENIZER.decode(question(fitted[0], TOKENIZER)) == "ä" * 18 + " -> "
    )


def test_what_is_asked_several_times_is_cut_alike():
    several = [Example("x" * 30, "y"), Example("x" * 30, "y" * 10), Example("x" * 30, "yy")]
    fitted, cut = fitted_examples(several, TOKENIZER, block_size=32, num_virtual_tokens=0)
    assert cut == 3 and len(references(fitted)) == 1 and len(fitted[0].input) == 32 - 4 - 10


@pytest.fixture
def folder(tmp_path):
    """A base's folder with a small byte-level BPE that knows the chat's marks."""
    tokenizers = pytest.importorskip("tokenizers")
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>", *CHAT_MARKS], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(WORDS * 3, trainer)
    bpe.enable_truncation(4)  # what somebody's batches needed once, and must not cut our text
    bpe.enable_padding(length=20)
    bpe.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"eos_token_id": 2}')
    return tmp_path


def with_bos(folder, after: bool = False):
    """The same tokenizer, but its own post-processor puts <|endoftext|> before every text, and perhaps after it."""
    from tokenizers import Tokenizer, processors

    bpe = Tokenizer.from_file(str(folder / "tokenizer.json"))
    single = "<|endoftext|> $A <|im_end|>" if after else "<|endoftext|> $A"
    bpe.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<|endoftext|>", 0), ("<|im_end|>", 2)]
    )
    bpe.save(str(folder / "tokenizer.json"))


def test_a_tokenizer_file_is_read_as_transformers_reads_it(folder):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    ours = tokenizer_for(320, folder)
    assert isinstance(ours, FileTokenizer) and (ours.vocab_size, ours.end, ours.stops, ours.begin) == (320, 2, [2], [])
    for text in [*WORDS, "", " two  spaces\n", Template("chat").fill(Example("the cat", "sat", (("system", "hat"),)))]:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False)
        assert ours.decode([*ids, 2]) == theirs.decode(ids, skip_special_tokens=True)
    assert (
        ours.encode("<|im_start|>user") == [1, *ours.encode("user")]
        and ours.decode([1, *ours.encode("user"), 2, 310]) == "user"
    )
    with pytest.raises(Error, match="half a surrogate pair"):
        ours.encode("a\ud800")


@pytest.mark.parametrize("after", [False, True])
def test_every_text_begins_with_what_the_file_says(folder, after):
    with_bos(folder, after)
    tokenizer = tokenizer_for(300, folder)
    assert tokenizer.begin == [0] and tokenizer.encode("the cat")[0] != 0
    assert question(Example("the", "cat"), tokenizer) == [0, *tokenizer.encode("the -> ")]
    assert question(Example(None, "the cat"), tokenizer) == [0]


def test_a_begin_mark_outside_the_vocabulary_is_refused(folder):
    """The one id that could be there: the tokens' own ids are held to the base's vocabulary."""
    with_bos(folder)
    path = folder / "tokenizer.json"
    held = json.loads(path.read_text())
    held["post_processor"]["special_tokens"]["<|endoftext|>"]["ids"] = [300]
    path.write_text(json.dumps(held))
    with pytest.raises(Error, match="begins texts with the id 300, and the model has 300"):
        tokenizer_for(300, folder)


def test_question_and_answer_are_tokenised_apart(folder):
    tokenizer = tokenizer_for(300, folder)
    assert len(tokenizer.encode("the")) < len(
        tokenizer.encode("t") + tokenizer.encode("he")
    )  # together they would merge
    idx, targets = encode([Example("t", "he")], tokenizer, Template("{input}"))
    row = [*tokenizer.encode("t"), *tokenizer.encode("he"), 2]
    assert idx.tolist() == [row[:-1]] and targets.tolist() == [row[1:]]


def test_cut_inputs_fit_when_they_are_tokenised_again(folder):
    with_bos(folder)
    tokenizer, template = tokenizer_for(300, folder), Template("chat")
    long = [Example(" ".join(Random(i).choices(WORDS, k=9)), "the hat", (("system", "cat"),)) for i in range(20)]
    for block_size in (44, 45, 46, 70):
        fitted, cut = fitted_examples(long, tokenizer, block_size, 8, template)
        lengths = [encode([e], tokenizer, template)[0].size(1) for e in fitted]
        assert cut == 20 and block_size - 8 - 3 <= max(lengths) <= block_size - 8
        for e, whole in zip(fitted, long, strict=True):
            assert e.input and whole.input.endswith(e.input) and not e.turns and e.target == whole.target
    text = Example(None, " ".join(WORDS * 5))
    pieces, cut = fitted_examples([text], tokenizer, 30, 8, template)
    assert cut == 1 and len(pieces) > 3 and "".join(e.target for e in pieces) == text.target
    assert all(encode([e], tokenizer, template)[0].size(1) <= 22 for e in pieces)


@pytest.mark.parametrize(
    "files, end, stops",
    [
        ({"generation_config.json": {"eos_token_id": [2, 0]}}, 2, [2, 0]),  # goes before config.json
        ({"generation_config.json": {}, "config.json": {"eos_token_id": 0}}, 0, [0]),
        ({"config.json": {"eos_token_id": None}, "tokenizer_config.json": {"eos_token": "<|im_end|>"}}, 2, [2]),
        ({"config.json": {}, "tokenizer_config.json": {"eos_token": {"content": "<|endoftext|>"}}}, 0, [0]),
    ],
)
def test_the_end_of_an_answer_is_what_the_folder_says(folder, files, end, stops):
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    tokenizer = tokenizer_for(300, folder)
    assert tokenizer.end == end and tokenizer.stops == stops


@pytest.mark.parametrize(
    "files, message",
    [
        ({"config.json": "{}"}, "does not say what ends an answer"),
        ({"config.json": '{"eos_token_id": 300}'}, "eos_token_id must be an id below 300 .*, not 300"),
        ({"config.json": '{"eos_token_id": "</s>"}'}, "eos_token_id must be an id below 300"),
        ({"config.json": "{}", "tokenizer_config.json": '{"eos_token": "</s>"}'}, "its eos_token '</s>' is no token"),
        ({"generation_config.json": "{"}, "generation_config.json is not a readable JSON file"),
        ({"tokenizer.json": '{"version": "1.0", '}, "tokenizer.json is torn or no tokenizer"),
        ({"tokenizer.json": "{}"}, "tokenizer.json is torn or no tokenizer"),
    ],
)
def test_folders_that_are_no_tokenizer_are_refused_in_one_line(folder, files, message):
    for name, content in files.items():
        (folder / name).write_text(content)
    with pytest.raises(Error, match=message) as e:
        tokenizer_for(300, folder)
    assert str(folder) in str(e.value) and "\n" not in str(e.value)


def test_a_tokenizer_of_another_vocabulary_is_refused_with_both_numbers(folder):
    for rows in (300, 300 + 1025, 300 + 2385, 8 * 300):  # embeddings rounded up, to multiples of thousands too
        assert tokenizer_for(rows, folder).vocab_size == rows
    with pytest.raises(Error, match="tokenizer.json has 300 ids and the model 299: it must be the model's own"):
        tokenizer_for(299, folder)


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer.model"])
def test_a_tokenizer_of_an_older_kind_is_named(name, tmp_path):
    (tmp_path / name).write_text("{}")
    with pytest.raises(Error, match=f"has {name} and no tokenizer.json: save the tokenizer anew with transformers"):
        tokenizer_for(300, tmp_path)


def test_a_missing_package_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(Error, match="pip install tokenizers$"):
        tokenizer_for(300, folder)


def test_without_a_file_text_is_bytes(tmp_path):
    for folder in (None, "nano", NANO, tmp_path):
        assert isinstance(tokenizer_for(257, folder), ByteTokenizer)
        with pytest.raises(Error, match="has 97 ids and no tokenizer.json.* needs 257"):
            tokenizer_for(97, folder)
    assert TOKENIZER.begin == [] and TOKENIZER.stops == [TOKENIZER.end]


def test_a_chat_in_a_file_becomes_batches(folder):
    said = [("system", "the hat"), ("user", "cat"), ("assistant", "mat")]
    row = {"messages": [{"role": role, "content": content} for role, content in said]}
    path = lines(folder / "chat.jsonl", *[row] * 3)
    tokenizer = tokenizer_for(300, folder)
    data = FileData(path, tokenizer, Template("chat"), 0, 2, 64, 0, dev=path)
    idx, targets = collate(data.batch(0), tokenizer.end)
    written = "<|im_start|>system\nthe hat<|im_end|>\n<|im_start|>user\ncat<|im_end|>\n<|im_start|>assistant\nmat"
    assert idx[0].tolist() == tokenizer.encode(written.removesuffix("mat")) + tokenizer.encode("mat")
    assert targets[0][targets[0] >= 0].tolist() == [*tokenizer.encode("mat"), 2]
    with pytest.raises(Error, match="chat template needs"):
        FileData(path, TOKENIZER, Template("chat"), 0, 2, 64, 0, test=path)


def test_marks_that_a_text_holds_already_are_not_added_again(folder, capfd):
    with_bos(folder)
    t = tokenizer_for(300, folder)
    a, b, x, y = (t.encode(text) for text in ("hat", "cat", "hat -> ", " hat"))
    assert (t.begin, t.stops) == ([0], [2])
    for template in ("{input} -> ", "<|endoftext|>{input} -> "):
        assert question(Example("hat", "cat"), t, Template(template)) == [0, *x]
    assert question(Example("<|endoftext|>hat", "cat"), t) == [0, *x]
    assert question(Example("hat", "x"), t, Template("<|endoftext|><|endoftext|>{input}")) == [0, 0, *a]  # as written
    for target in ("cat", "cat<|im_end|>", "cat<|im_end|>\n", "cat<|im_end|> <|im_end|>", "<|endoftext|>cat"):
        r = tokenize(Example("hat", target), t)
        assert (list(r.completion), r.example.target, r.new_tokens) == ([*b, 2], "cat", len(b))
        assert r == tokenize(r.example, t)
        text = tokenize(Example(None, target), t)
        assert (list(text.prompt), list(text.completion)) == ([0], [*b, 2])
    piece = tokenize(Example(None, "cat<|im_end|>", ends=False), t)
    assert list(piece.completion) == [*b, 2]  # of a longer text, which goes on
    assert list(tokenize(Example("hat", "cat<|im_end|> hat"), t).completion) == [*b, 2, *y, 2]
    assert opening.token_ids(t, "<|endoftext|>hat").tolist() == opening.token_ids(t, "hat").tolist() == [0, *a]
    assert capfd.readouterr().err == ""


def test_marks_in_the_middle_are_said_and_kept(folder, capfd):
    with_bos(folder)
    t = tokenizer_for(300, folder)
    rows = [{"input": "hat", "target": "cat<|im_end|>"}, {"input": "<|endoftext|>cat", "target": "hat"}]
    inner = [{"input": "a<|im_end|>", "target": "cat"}, {"input": "b", "target": "cat<|endoftext|>b"}]
    path = lines(folder / "a.jsonl", *rows, *inner)
    for template, n in (("{input} -> ", 2), ("Say {input}: ", 3), ("Say <|endoftext|>{input}: ", 4)):
        data = FileData(path, t, Template(template), 0, 4, 64, 0, dev=lines(folder / "dev.jsonl", rows[0], rows[0]))
        n, total = n + 2 * (n == 4), len(data.examples) + len(data.held_out)
        said = capfd.readouterr().err
        assert said.startswith(f"note: {path}: {n} of {total} examples hold <|endoftext|> or <|im_end|>, ")
        assert said.count("\n") == 1
    FileData(lines(path, *rows), t, PLAIN, 0, 4, 64, 0)
    assert capfd.readouterr().err == ""


def test_a_chat_ends_and_stops_with_the_mark_of_its_turns(folder):
    (folder / "config.json").write_text('{"eos_token_id": 0}')
    t, chat = tokenizer_for(300, folder), Template("chat")
    assert t.chat is None and t.stops == [0] and chat.stops(t) == [2, 0] and PLAIN.stops(t) == [0]
    turns = (("user", "cat"), ("assistant", "hat"))
    for target in ("mat", "mat<|im_end|>", "mat<|endoftext|>"):
        idx, targets = encode([Example("a", target, turns)], t, chat)
        assert idx[0].tolist().count(2) == 3 and targets[0][-1].item() == 2 and 0 not in targets[0].tolist()


def test_answers_of_a_chat_stop_at_its_mark_here_and_in_a_saved_base(folder, monkeypatch, capsys):
    base = GPT(GPTConfig(block_size=64, vocab_size=300, n_layer=1, n_head=2, n_embd=8))
    base.save_pretrained(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": 0}')
    t, chat = tokenizer_for(300, folder), Template("chat")
    said = torch.tensor([[*t.encode("cat"), 2, *t.encode("hat"), 0]])
    monkeypatch.setattr(evaluation, "generate", lambda model, idx, n, **_: torch.cat([idx, said], dim=1))
    assert evaluation.answer(base, [Example("a", "b")], t, chat) == ["cat"]
    assert evaluation.answer(base, [Example("a", "b")], t) == ["cathat"]
    flags = ["--method", "full", "--base", str(folder), "--data", "x.csv", "--template", "chat"]
    _, tokenizer = opening.open_base(train.arguments(flags))
    (folder / "out").mkdir()
    tokenizer.save(folder / "out")
    assert tokenizer_for(300, folder / "out").stops == [2, 0]
    seen = []
    monkeypatch.setattr(__main__, "stream", lambda *a: seen.append(a[-1]) or iter(said.T))
    __main__.main(["generate", "--base", str(folder), "--prompt", "a", "--template", "chat"])
    assert seen == [[2, 0]] and capsys.readouterr().out == "cathat\n"


LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns must alternate') }}{% endif %}\n"
    "    {%- if m.role == 'user' %}{{ '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% else %}\n  {% generation %}\n{{ ' ' + m.content + ' ' + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)
SYSTEM = (
    "{% for m in messages %}\n    {% if loop.first and m.role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n"
    "{% endif %}\n{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + '<|im_end|>' + '\n' }}\n{% endfor %}\n"
    "{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def with_chat_template(folder, source, file=False):
    """The folder with this chat template, in the file of newer or of older folders."""
    config = {"bos_token": "<|endoftext|>", "eos_token": {"content": "<|im_end|>"}}
    (folder / "config.json").write_text('{"eos_token_id": 0}')
    if file:
        (folder / "chat_template.jinja").write_text(source)
        source = "not this one"
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": source}))
    return tokenizer_for(300, folder)


@pytest.mark.parametrize("file", [False, True])
@pytest.mark.parametrize("source", [LLAMA, SYSTEM])
def test_the_folders_chat_template_is_what_transformers_makes_of_it(source, file, folder):
    transformers = pytest.importorskip("transformers")
    with_bos(folder)
    t, chat = with_chat_template(folder, source, file), Template("chat")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<|endoftext|>", eos_token="<|im_end|>"
    )
    for turns in ((), (("user", "the cat"), ("assistant", "the mat"))):
        messages = [{"role": role, "content": text} for role, text in (*turns, ("user", " a hat"))]
        text = theirs.apply_chat_template(messages, chat_template=source, tokenize=False, add_generation_prompt=True)
        ids = theirs.encode(text, add_special_tokens=False)
        r = tokenize(Example(" a hat", "sat", turns), t, chat)
        assert list(r.prompt) == ids and ids.count(0) == (source == LLAMA)
        assert list(r.completion) == [*t.encode("sat"), 2]
    assert chat.stops(t) == [2, 0]


@pytest.mark.parametrize(
    "source, message",
    [
        ("{% for", "TemplateSyntaxError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ raise_exception('no system turn') }}", "given user, assistant: TemplateError: no system turn"),
        ("{{ messages[9].role.x }}", "UndefinedError"),
        ("{% include 'other' %}", "TypeError"),
        (7, "chat_template must be a text, not 7"),
    ],
)
def test_a_chat_template_that_fails_is_refused_in_one_line(source, message, folder):
    t = with_chat_template(folder, source)
    with pytest.raises(Error, match=message) as e:
        Template("chat").stops(t)
    assert str(folder / "tokenizer_config.json") in str(e.value) and "\n" not in str(e.value)
    assert question(Example("a", "b"), t)  # only a chat needs it


def test_several_chat_templates_by_name_none_and_a_missing_package(folder, monkeypatch):
    named = [{"name": "tool_use", "template": "{{ x.y.z }}"}, {"name": "default", "template": SYSTEM}]
    t = with_chat_template(folder, named)
    assert "Be kind." in t.decode(question(Example("a", "b"), t, Template("chat")))
    assert with_chat_template(folder, named[:1]).chat is with_chat_template(folder, None).chat is None
    t = with_chat_template(folder, "{% for m in messages %}{{ m.content }}\n{% endfor %}")
    assert Template("chat").stops(t) == [0]  # no mark follows an answer
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(Error, match="tokenizer_config.json needs: pip install jinja2$"):
        Template("chat").stops(with_chat_template(folder, SYSTEM))


def test_a_conversation_is_cut_to_turns_that_the_folders_template_takes(folder):
    t, chat = with_chat_template(folder, LLAMA), Template("chat")
    turns = tuple(("user", "the cat") if i % 2 == 0 else ("assistant", "the mat") for i in range(6))
    e = Example("a hat", "sat", turns)
    room = len(question(e._replace(turns=turns[1:][1:]), t, chat)) + len(t.encode("sat"))
    fitted, cut = fitted_examples([e], t, room, 0, chat)
    assert cut == 1 and fitted == [e._replace(turns=turns[2:])]
    fitted, _ = fitted_examples([e], t, room - 1, 0, chat)
    assert fitted == [e._replace(turns=turns[4:])]


def test_thinning_is_even():
    examples = [Example(str(i), "a") for i in range(10)]
    assert [e.input for e in thinned(examples, 4)] == ["0", "3", "6", "9"] and thinned(examples, 10) == thinned(
        examples, 99
    ) == examples


def test_a_saved_base_takes_its_own_tokenizer_over_an_older_one(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(name)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "generation_config.json").write_text('{"top_p": 0.9}')
    for name, end in (("a", 3), ("b", 4)):
        tokenizer = FileTokenizer.__new__(FileTokenizer)
        tokenizer.folder, tokenizer.stops = tmp_path / name, [end]
        tokenizer.save(tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "b"
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"top_p": 0.9, "eos_token_id": [4]}


def changed_tokenizer(folder, change):
    value = json.loads((folder / "tokenizer.json").read_text())
    change(value)
    (folder / "tokenizer.json").write_text(json.dumps(value))


GROWS = [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}] * 10


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(normalizer={"type": "Sequence", "normalizers": GROWS}), "may make .* characters or more of one"),
        (dict(decoder={"type": "Sequence", "decoders": GROWS}), "may make .* characters or more of one"),
        (
            dict(normalizer={"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 40}),
            "may make .* characters or more of one",
        ),
        (
            dict(
                pre_tokenizer={
                    "type": "Split",
                    "pattern": {"Regex": "a{1,999}{1,999}"},
                    "behavior": "Isolated",
                    "invert": False,
                }
            ),
            "may make .* characters or more of one",
        ),
        (
            dict(normalizer={"type": "Replace", "pattern": {"Regex": ""}, "content": "x"}),
            "tokenizer.json cannot encode .*PanicException",
        ),
        (dict(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}), "torn or no tokenizer"),
    ],
)
def test_a_tokenizer_that_never_ends_or_falls_over_is_refused(change, message, folder, capfd):
    changed_tokenizer(folder, lambda t: t.update(change))
    with pytest.raises(Error, match=message) as e:
        FileTokenizer(folder, 300)
    assert len(str(e.value).splitlines()) == 1 and capfd.readouterr().err == ""  # the library's own page is not shown


def test_a_tokenizer_that_is_none_by_its_size_is_not_read(folder):
    os.truncate(folder / "tokenizer.json", 10**9)  # takes no room on the disk
    with pytest.raises(Error, match="has 1,000,000,000 bytes: no tokenizer here needs more than 67,108,864"):
        FileTokenizer(folder, 300)


def test_what_a_tokenizer_draws_in_training_is_left_out(folder):
    want = FileTokenizer(folder, 300).encode(" ".join(WORDS))
    changed_tokenizer(folder, lambda t: t["model"].update(dropout=0.5))
    ours = FileTokenizer(folder, 300)
    assert all(ours.encode(" ".join(WORDS)) == want for _ in range(5))


def test_a_tokenizer_with_one_id_for_several_tokens_is_refused(folder):
    changed_tokenizer(folder, lambda t: t["model"]["vocab"].update({"!": t["model"]["vocab"]["#"]}))
    with pytest.raises(Error, match="gives one id to several tokens"):
        FileTokenizer(folder, 300)


@pytest.mark.parametrize("name", ["data.jsonl", "data.csv", "tokenizer.json"])
def test_a_pipe_in_place_of_a_file_is_not_opened(name, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(Error, match=f"{name} cannot be read: it is not a regular file"):
        FileTokenizer(tmp_path, 300) if name == "tokenizer.json" else read_examples(tmp_path / name)


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("data.csv", "[]," * 400_000, "line 1 has 1,200,000 characters, over 1,048,576"),
        ("data.jsonl", '{"a": [' + "[]," * 400_000, "line 1 begins an object of over 1,048,576"),
        ("data.jsonl", '{"text": "' + "a" * 1_200_000, "line 1 begins an object of over 1,048,576"),
        ("data.json", '[\n{"text": "' + "a" * 1_200_000 + '"}]', "line 2 begins an object of over 1,048,576"),
        ("data.json", '[\n{"text": "a"},\n{"text": "' + "a" * 1_048_565 + '"}]', "line 3 begins an object of over"),
    ],
)
def test_a_line_or_an_object_without_end_is_refused(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(Error, match=message):
        read_examples(tmp_path / name)


def test_a_number_of_too_many_digits_is_refused(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"text": "a"}\n{"text": ' + "9" * 5000 + "}")
    with pytest.raises(Error, match="line 2 is not JSON: a number of too many digits"):
        read_examples(tmp_path / "data.jsonl")


class CountingTokenizer(ByteTokenizer):
    """Counts how often each text is encoded."""

    def __init__(self):
        self.calls = Counter()

    def encode(self, text):
        self.calls[text] += 1
        return super().encode(text)


def pairs_of(path, name: str, n: int, long: int = 0):
    """n inputs with two targets each; the first `long` of the inputs are longer than 200 characters."""
    rows = [
        {"input": f"{name}{i}" + "w" * 200 * (i < long), "target": f"{name}{i} is {say}"}
        for i in range(n)
        for say in "ab"
    ]
    return lines(path / f"{name}.jsonl", *rows)


def test_a_run_tokenises_each_distinct_text_once(tmp_path, monkeypatch):
    """Two epochs, with evaluations, validation in every tenth of the run, and written answers."""
    pytest.importorskip("sacrebleu")
    tokenizer = CountingTokenizer()
    monkeypatch.setattr(opening, "tokenizer_for", lambda *_: tokenizer)
    sizes = {"data": 12, "dev": 4, "test": 5}
    files = [text for name, n in sizes.items() for text in (f"--{name}", pairs_of(tmp_path, name, n))]
    flags = [*files, "--epochs", 2, "--keep-best", "--answers", 2, "--out", tmp_path / "out"]
    train.main([str(flag) for flag in flags])
    texts = [f"{name}{i} {end}" for name, n in sizes.items() for i in range(n) for end in ("-> ", "is a", "is b")]
    assert tokenizer.calls == dict.fromkeys(texts, 1)


def test_only_examples_that_are_too_long_are_tokenised_again(tmp_path):
    tokenizer = CountingTokenizer()
    data = FileData(pairs_of(tmp_path, "long", 30, long=2), tokenizer, PLAIN, 0, 8, 64, 8)
    assert data.cut == 4
    fitting = {f"long{i} {end}" for i in range(2, 30) for end in ("-> ", "is a", "is b")}
    data.fit(20)
    assert {tokenizer.calls[text] for text in fitting} == {1} and max(tokenizer.calls.values()) > 1


def test_data_fitted_to_another_number_of_virtual_tokens_is_as_if_read_for_it(tmp_path):
    path = pairs_of(tmp_path, "long", 30, long=3)
    data, other = (FileData(path, TOKENIZER, PLAIN, 0, 8, 64, P) for P in (30, 8))
    assert data.digest != other.digest
    data.fit(8)
    assert (data.digest, data.cut, data.batch(5), data.longest) == (
        other.digest,
        other.cut,
        other.batch(5),
        other.longest,
    )
