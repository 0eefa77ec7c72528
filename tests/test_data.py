"""Tasks, files, and the tensors made of them."""

from random import Random

import pytest
import torch

from minipeft import Error
from minipeft.data.batches import FileData, TaskData, draw, encode, fit
from minipeft.data.jsonl import read_jsonl
from minipeft.data.tasks import NOVEL, SKILLS, Example, find_task, skill_example
from minipeft.data.tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer()
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


def test_every_skill_and_novel_task_by_hand():
    assert {name: (SKILLS[name].apply if name in SKILLS else NOVEL[name])("58213764") for name in [*SKILLS, *NOVEL]} == ANSWERS


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
    assert skill_example(Random(3), "sort", told=False).input.isdigit()


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
    fitted, cut = fit([long, short], TOKENIZER, block_size=32, virtual=10)
    assert cut == 1 and fitted[1] == short and fitted[0].input == "x" * 9 + "end"
    assert encode(fitted, TOKENIZER)[0].size(1) == 22  # with the 10 virtual ones, exactly the block size
    with pytest.raises(Error, match="10 virtual tokens and 34 of .* do not fit the block size of 32"):
        fit([Example("in", "y" * 30)], TOKENIZER, block_size=32, virtual=10)


def test_task_batches_depend_on_seed_and_step_and_leave_the_held_out_apart():
    a, b = (TaskData(find_task("sort"), seed, 16) for seed in (1, 2))
    assert a.batch(3) == a.batch(3) and a.batch(3) != a.batch(4) and a.batch(3) != b.batch(3)
    assert a.held_out == b.held_out and len(a.held_out) == 500
    assert not {e.input for e in a.held_out} & {e.input for step in range(50) for e in a.batch(step)}


def test_a_file_is_split_and_every_epoch_passes_over_it_once(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(f'{{"input": "q{i}", "target": "a{i}"}}\n\n' for i in range(40)))
    data = FileData(path, TOKENIZER, seed=0, batch_size=9, block_size=64, virtual=8)
    assert [e.input for e in data.held_out] == ["q36", "q37", "q38", "q39"]
    epochs = [[e.input for step in range(4 * n, 4 * n + 4) for e in data.batch(step)] for n in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(f"q{i}" for i in range(36)) and epochs[0] != epochs[1]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "holds no examples"),
        (b"\n \n", "holds no examples"),
        (b'{"input": "a", "target": "b"}\n{"input": \n', "line 2 is not JSON"),
        (b'{"input": "a", "target": "b"}\n\n{"input": "a"}\n', "line 3 must be"),
        (b'["a", "b"]\n', "line 1 must be"),
        (b'{"input": "a", "target": 3}\n', "line 1 must be"),
        (b'{"input": "a", "target": ""}\n', "line 1 has an empty target"),
        (b'{"input": "\xff", "target": "b"}\n', "not UTF-8"),
        (b"[" * 100000, "line 1 is not JSON"),
        (b'{"input": "a", "target": "b"}\n{"input": "\\ud800", "target": "b"}\n', "line 2 holds half a surrogate"),
    ],
)
def test_files_that_cannot_be_read_are_refused_in_one_line(content, message, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(Error, match=message) as e:
        read_jsonl(path)
    assert str(path) in str(e.value) and "\n" not in str(e.value)


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "bom.jsonl").write_bytes(b'\xef\xbb\xbf{"input": "a", "target": "b"}')
    assert read_jsonl(tmp_path / "bom.jsonl") == [Example("a", "b")]


def test_a_missing_file_and_a_single_example(tmp_path):
    with pytest.raises(Error, match="no such file"):
        read_jsonl(tmp_path / "nowhere.jsonl")
    (tmp_path / "one.jsonl").write_text('{"input": "a", "target": "b"}')
    with pytest.raises(Error, match="at least two"):
        FileData(tmp_path / "one.jsonl", TOKENIZER, 0, 1, 64, 8)
    assert torch.is_tensor(encode(read_jsonl(tmp_path / "one.jsonl"), TOKENIZER)[0])


def test_buckets_round_the_length_up_and_change_nothing_that_counts():
    tokenizer = ByteTokenizer()
    examples = [Example("12", "21"), Example("1234", "4321")]
    idx, targets = encode(examples, tokenizer)
    wide_idx, wide_targets = encode(examples, tokenizer, bucket=32, longest=100)
    T = idx.size(1)
    assert wide_idx.shape == (2, 32) and encode(examples, tokenizer, bucket=32, longest=20)[0].shape == (2, 20)
    assert encode(examples, tokenizer, bucket=32, longest=T - 5)[0].shape == (2, T)  # what must fit always does
    assert torch.equal(wide_idx[:, :T], idx) and torch.equal(wide_targets[:, :T], targets)
    assert (wide_targets[:, T:] == -100).all()
