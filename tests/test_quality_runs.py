"""bench.py quality: the examples and the start of a run are those of its cell, and it is reproducible."""

import json
from dataclasses import replace

import pytest
import torch
from tiny_cell import TINY, without_times

from minipeft import GPT, Error, accounting, adapt
from minipeft.accounting.shapes import EMBEDDED
from minipeft.bench.quality import cell as cells
from minipeft.bench.quality import forgetting, grid, studies
from minipeft.bench.quality.lines import Cell
from minipeft.data import BASES
from minipeft.data.batches import TaskData, draw
from minipeft.data.encoding import tokenize
from minipeft.data.tasks import INSTRUCTIONS, find_task
from minipeft.data.tokenizer import ByteTokenizer
from minipeft.documents import match
from minipeft.training.evaluation import batches, evaluate
from minipeft.training.prompt_search import choose_wording


@pytest.fixture
def taken(monkeypatch):
    """taken(cell): the batches that a run of this cell trains on, as examples; nothing is trained or scored."""
    found, steps = [], []
    for module in (cells, forgetting):
        monkeypatch.setattr(module, "evaluate", lambda model, given: (0.0, 0.0))
    monkeypatch.setattr(cells, "encode", lambda examples, tokenizer: examples)

    def train(model, batch, n, lr):
        steps.append(n)
        found.extend(batch(step) for step in range(n))

    monkeypatch.setattr(cells, "train", train)

    def run(c: Cell) -> list:
        found.clear(), steps.clear()
        cells.run(c)
        run.steps = [*steps]
        return [*found]

    return run


def test_of_a_seed_all_methods_see_the_same_batches_and_they_are_those_of_train_py(taken):
    for seed in (0, 3):
        data = TaskData(find_task("reverse+increment"), ByteTokenizer(), seed, 16)
        of_train = [[record.example for record in data.batch(step)] for step in range(5)]
        for c, _ in studies.methods(tasks=("reverse+increment",), seeds=(seed,)):
            if c.method != "hard-prompt":
                assert taken(replace(c, base="tiny", lr=0.1, steps=5)) == of_train
    assert taken(replace(TINY, seed=1)) != taken(replace(TINY, seed=2))


def test_no_run_trains_on_what_it_is_scored_on(taken):
    task = find_task("parity")
    held_out = {e.input for e in draw(task.example, "held-out", cells.HELD_OUT)}
    for seed in (*studies.SEEDS, studies.SWEPT_WITH):
        learnt = {e.input for batch in taken(replace(TINY, seed=seed, steps=300, batch_size=16)) for e in batch}
        assert len(learnt) > 4790 and not learnt & held_out
        assert not learnt & {e.input for e in draw(task.example, f"{seed}/development", cells.DEV)}


def test_of_few_examples_no_others_are_seen_and_more_of_them_hold_the_fewer(taken):
    seen = [{e for batch in taken(replace(TINY, steps=100, examples=n)) for e in batch} for n in (5, 20, 60)]
    assert [len(s) for s in seen] == [5, 20, 60] and seen[0] < seen[1] < seen[2]
    assert taken(replace(TINY, examples=5)) == taken(replace(TINY, method="lora", size={"r": 2}, examples=5))


def test_a_rung_below_takes_half_of_the_steps_and_the_prefix_goes_on_with_the_next_batches(taken):
    prefix = replace(TINY, method="prefix", steps=9)
    climbed = taken(replace(prefix, start={"rung": "prompt", "lr": 0.1}))
    assert taken.steps == [4, 5] and climbed == taken(prefix)


@pytest.mark.slow
def test_a_run_is_the_same_to_the_last_bit_and_evaluations_change_nothing(monkeypatch):
    monkeypatch.setattr(cells, "HELD_OUT", 100)
    for c in (TINY, replace(TINY, method="prefix", examples=6)):
        first = without_times(cells.run(c))
        cells.run(replace(TINY, method="lora", size={"r": 2}, seed=5, steps=2))
        assert without_times(cells.run(c)) == first
        assert [step for step, *_ in first["curve"]] == [*range(8)] and first["curve"][0][2] > first["curve"][-1][2] > 0
        with monkeypatch.context() as patch:
            patch.setattr(cells, "EVALUATIONS", 1)
            assert without_times(cells.run(c)) == first | {"curve": first["curve"][:1]}
    assert 0 < first["loss_on_learnt"] != first["loss"]
    assert first["trained"] == accounting.count(EMBEDDED["tiny"], "prefix", num_virtual_tokens=4).trained


@pytest.mark.slow
def test_a_run_starts_from_what_its_cell_says(monkeypatch):
    monkeypatch.setattr(cells, "HELD_OUT", 100)
    monkeypatch.setattr(cells, "DEV", 20)
    tokenizer, task = ByteTokenizer(), find_task("reverse")
    evaluated = batches(draw(task.example, "held-out", 500)[: cells.EVALUATED], tokenizer)

    def begins(start, method="prefix", **size) -> tuple[float, dict]:
        result = cells.run(replace(TINY, task="reverse", method=method, size=size, start=start, steps=2))
        return result["curve"][0][2], result

    def with_tokens(tokens: torch.Tensor, method="prefix") -> float:
        model = adapt(GPT.from_pretrained(BASES["tiny"]), method, init=tokens)
        return round(evaluate(model, evaluated)[0], 4)

    base = GPT.from_pretrained(BASES["tiny"])
    development = batches(draw(task.example, "0/development", 20), tokenizer)
    candidates = [torch.tensor(tokenizer.encode(text)) for text in INSTRUCTIONS]
    scores, best = choose_wording(base, candidates, development, tokenizer)
    text = torch.tensor(tokenizer.encode("last to first: "))
    for method in ("prompt", "prefix"):
        assert begins({"text": "last to first: "}, method)[0] == with_tokens(text, method)
        found, result = begins({"rung": "hard-prompt"}, method)
        assert (found, result["wording"]) == (with_tokens(best, method), scores[0]["wording"])
        as_long = accounting.count(base.config, method, num_virtual_tokens=len(best))
        assert result["trained"] == as_long.trained
    starts = ("random", "vocab", {"rung": "prompt", "lr": 0.1})
    noise, vocab, rung = (begins(start, num_virtual_tokens=16)[0] for start in starts)
    first = [tokenize(e, tokenizer) for e in draw(task.example, "0/0", 2)]
    rows = match(base, torch.tensor([id for r in first for id in (*r.prompt, *r.completion)]), 16)
    matched, _ = begins({"match": 2}, num_virtual_tokens=16)
    assert matched == with_tokens(rows._replace(bias=None)) != with_tokens(torch.stack([rows.k, rows.v], 1))
    assert len({noise, vocab, rung, matched, with_tokens(text), with_tokens(best)}) == 6
    hard = replace(TINY, task="reverse", method="hard-prompt", size={}, lr=None)
    assert cells.run(hard)["wording"] == scores[0]["wording"]


def test_a_rate_that_breaks_training_is_a_result():
    line = json.loads(json.dumps(grid.run_cell(replace(TINY, lr=1e30), {}, "cpu"), allow_nan=False))
    assert line["failed"].startswith("training diverged at step ") and (line["score"], line["loss"]) == (0, None)
    with pytest.raises(Error, match="task must be one of"):  # what is wrong with a cell is none
        cells.run(replace(TINY, task="magic"))


@pytest.mark.parametrize("row", [r for r in studies.ROWS if r != "hard-prompt"])
def test_what_is_known_is_as_before_once_the_adapter_is_off(row, monkeypatch):
    monkeypatch.setattr(cells, "HELD_OUT", 8)
    size = {grows: 2} if (grows := studies.ROWS[row][0]) else {}
    c = replace(TINY, method=studies.method_of(row), size=studies.ROWS[row][1] | size, steps=2, lr=0.1)
    known = cells.run(c)["known"]
    base, told = GPT.from_pretrained(BASES["tiny"]), forgetting.skills(ByteTokenizer())
    losses = [torch.nn.functional.cross_entropy(base(idx).double().flatten(0, 1), targets.flatten(), reduction="sum")
              for idx, targets in told]  # the textbook's, in float64
    supervised = sum(int((targets != -100).sum()) for _, targets in told)
    assert known["before"][0] == pytest.approx(float(sum(losses).detach()) / supervised, abs=1e-5)
    assert known["after"][0] != known["before"][0]
    assert known["off"] == known["after" if row == "full" else "before"]  # full fine-tuning changed the base itself
