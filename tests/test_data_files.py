"""Examples from JSON, JSONL, CSV and TSV: read in full, or refused in one line."""

import json
import os

import pytest
from folders import lines

from minipeft import Error
from minipeft.data import files
from minipeft.data.files import read_examples
from minipeft.data.tasks import Example
from minipeft.data.tokenizer import FileTokenizer


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "bom.jsonl").write_bytes(b'\xef\xbb\xbf{"input": "a", "target": "b"}')
    assert read_examples(tmp_path / "bom.jsonl") == [Example("a", "b")]


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


def test_cells_are_as_long_as_the_lines_of_other_formats(tmp_path):
    (tmp_path / "a.csv").write_text(f"input,target\n{'x' * 150_000},b\n")
    assert read_examples(tmp_path / "a.csv") == [Example("x" * 150_000, "b")]


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


def test_what_is_left_out_of_messages_is_said(tmp_path, capfd):
    user, answer = {"role": "user", "content": "a", "name": "Ann"}, {"role": "assistant", "content": "b"}
    called = answer | {"tool_calls": [{"id": 1}], "reasoning_content": ""}
    rows = [{"messages": [user, called, user, called], "name": "x"}, {"messages": [user | {"name": None}, called]}]
    path = lines(tmp_path / "a.jsonl", *rows, {"messages": [user | {"name": ""}, answer]})
    read_examples(path)
    assert capfd.readouterr().err == f'note: {path}: of 3 examples, left out: "tool_calls" (in 2), "name" (in 1)\n'
    shared = {"conversations": [{"from": "human", "value": "a", "role": "user"}, {"from": "gpt", "value": "b"}]}
    for row, name in ((shared, "role"), ({"prompt": [user], "completion": [answer]}, "name")):
        read_examples(lines(path, row))
        assert capfd.readouterr().err == f'note: {path}: of 1 examples, left out: "{name}" (in 1)\n'


@pytest.mark.parametrize("name", ["data.jsonl", "data.csv", "tokenizer.json"])
def test_a_pipe_in_place_of_a_file_is_not_opened(name, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(Error, match=f"{name} cannot be read: it is not a regular file"):
        FileTokenizer(tmp_path, 300) if name == "tokenizer.json" else read_examples(tmp_path / name)


REFUSED_JSON = [  # content, message
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
    (b'{"question": "a", "answer": "b"}',
     'line 1 has neither .*"target", nor .* "messages", .* nor "text" .--columns names others.: '
     'there is "question", "answer"'),
    (b'{"text": "a"}\n{"input": "a", "target": "b"}',
     'line 2 holds "input", "target", but the lines before it "text"'),
    (b'{"text": ""}', "line 1 has an empty text"),
    (b'{"text": ["a"]}', 'line 1: "text" must be a string, not an array'),
    (b'\n{"messages": {"role": "user"}}', 'line 2: "messages" must be a list'),
    (b'{"messages": []}', "line 1: messages must end with .*, not with nothing"),
    (b'{"messages": [{"role": "assistant", "content": "b"}]}',
     "line 1: messages must end with .*, not with 'assistant'"),
    (b'{"messages": [{"role": "user"}]}', 'line 1 has no "content": there is "role"'),
    (b'{"messages": [{"role": "user", "content": ["a"]}]}', 'line 1: "content" must be a string, not an array'),
    (b'{"messages": [{"role": "a", "content": "\\ud800"}, {"role": "user", "content": "a"}, '
     b'{"role": "assistant", "content": "b"}]}',
     "line 1 holds half a surrogate"),
    (b'{"text": "a"}\n{"text": ' + b"9" * 5000 + b"}", "line 2 is not JSON: a number of too many digits"),
]
REFUSED = [  # name, content, message
    *(("a.jsonl", *case) for case in REFUSED_JSON),
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
    ("a.csv", 'input,target\n"' + f"{'x' * 1000}\n" * 1100 + '",b\n', "line 2 is not CSV .field larger than"),
    ("a.tsv", 'input\ttarget\na\tb\n"a\tb"\tc\n', "line 3 has 3 of the 2 columns .*: a TSV has no quoting"),
    ("a.tsv", 'input\ttarget\nc\t"a\nb"\n', "line 3 has 1 of the 2 columns .*: a TSV has no quoting"),
    ("a.tsv", 'input\ttarget\nc\t"say ""a"""\n', r'line 2 holds .*say .* quoted as in a CSV: a TSV has no quoting'),
    ("a.txt", "input,target\na,b\n", "must be .jsonl, .json, .csv or .tsv"),
    ("a.csv", "[]," * 400_000, "line 1 has 1,200,000 characters, over 1,048,576"),
    ("a.jsonl", '{"a": [' + "[]," * 400_000, "line 1 begins an object of over 1,048,576"),
    ("a.jsonl", '{"text": "' + "a" * 1_200_000, "line 1 begins an object of over 1,048,576"),
    ("a.json", '[\n{"text": "' + "a" * 1_200_000 + '"}]', "line 2 begins an object of over 1,048,576"),
    ("a.json", '[\n{"text": "a"},\n{"text": "' + "a" * 1_048_565 + '"}]', "line 3 begins an object of over"),
]


@pytest.mark.parametrize("name, content, message", REFUSED, ids=[message for *_, message in REFUSED])
def test_files_that_cannot_be_read_are_refused_in_one_line(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(Error, match=message) as e:
        read_examples(path)
    assert str(path) in str(e.value) and "\n" not in str(e.value)
