"""Tasks, batches and splits of examples, templates, and what is cut to fit."""

from collections import Counter
from random import Random

import pytest
import torch
from folders import PLAIN, fitted_examples, lines

import train
from minipeft import Error
from minipeft.data.batches import Epochs, FileData, TaskData, draw, encode, references, thinned
from minipeft.data.encoding import Encoded, question, tokenize
from minipeft.data.files import read_examples
from minipeft.data.tasks import NOVEL, SKILLS, Example, find_task, skill_example
from minipeft.data.template import Template
from minipeft.data.tokenizer import ByteTokenizer
from minipeft.training import opening

TOKENIZER = ByteTokenizer()
ANSWERS = {
    "copy": "58213764", "reverse": "46731285", "sort": "12345678", "descending": "87654321",
    "increment": "69324875", "swap": "85127346", "rotate": "82137645", "complement": "41786235",
    "parity": "10011100", "running-max": "58888888", "differences": "53492498"}


def inputs(records: list[Encoded]) -> set[str]:
    return {r.example.input for r in records}


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
    assert {(len(r.prompt), len(r.completion)) for r in data.held_out} == {(4 * 16 + 4, 1)}


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
    with pytest.raises(Error, match="10 virtual tokens and 34 of .* do not fit in 32 tokens .--max-length"):
        fitted_examples([Example("in", "y" * 30)], TOKENIZER, block_size=32, num_virtual_tokens=10)


def test_task_batches_depend_on_seed_and_step_and_leave_the_held_out_apart():
    a, b = (TaskData(find_task("sort"), TOKENIZER, seed, 16) for seed in (1, 2))
    assert a.batch(3) == a.batch(3) and a.batch(3) != a.batch(4) and a.batch(3) != b.batch(3)
    assert a.held_out == b.held_out and len(a.held_out) == 500
    assert not inputs(a.held_out) & {i for step in range(50) for i in inputs(a.batch(step))}
    chosen_by = inputs(a.validation(200))
    assert len(chosen_by) > 150 and len(chosen_by & inputs(a.held_out)) < 5


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
    many = [*range(30), *["joke"] * 70]  # frequent ones are trained on
    often = lines(tmp_path / "often.jsonl", *[{"input": f"q{i}", "target": f"a{n}"} for n, i in enumerate(many)])
    assert inputs(FileData(often, TOKENIZER, PLAIN, 0, 8, 64, 8).held_out) == {f"q{i}" for i in range(20, 30)}
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
    with pytest.raises(Error, match="29 virtual tokens and 3 of .* do not fit in 30 tokens"):
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


def test_thinning_is_even():
    examples = [Example(str(i), "a") for i in range(10)]
    assert [e.input for e in thinned(examples, 4)] == ["0", "3", "6", "9"] and thinned(examples, 10) == thinned(
        examples, 99
    ) == examples


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


def test_a_text_of_twice_the_length_is_divided_in_twice_the_time():
    read = []
    for size in (4000, 8000):
        tokenizer = CountingTokenizer()
        pieces, _ = fitted_examples([Example(None, "ab c" * (size // 4))], tokenizer, 51, 10)
        assert len(pieces) == size // 40
        read.append(sum(len(text) * n for text, n in tokenizer.calls.items()))
    assert read[1] < 2.1 * read[0]


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


def test_a_seed_has_an_order_of_its_own():
    orders = [[Epochs([5] * 40, 8, seed).batch(step) for step in range(5)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
