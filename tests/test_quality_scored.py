"""bench.py quality: what is scored, at which rates, on which text, and what is measured beside it."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from test_quality_real import cell, few, folders  # noqa: F401 (fixtures)
from tiny_cell import TINY

from minipeft.bench import cost
from minipeft.bench.quality import cell as cells
from minipeft.bench.quality import costs, forgetting, real, studies
from minipeft.data.batches import draw, encode
from minipeft.data.sentences import SENTENCES, distinct
from minipeft.data.tasks import find_task
from minipeft.data.tokenizer import ByteTokenizer


@pytest.fixture
def trained(monkeypatch):
    """(steps, rate) of every training; nothing is trained or evaluated."""
    found = []
    for module in (cells, forgetting):
        monkeypatch.setattr(module, "evaluate", lambda model, given: (0.0, 0.0))
    monkeypatch.setattr(cells, "train", lambda model, batch, steps, lr: found.append((steps, lr)))
    return found


def test_a_rate_is_chosen_by_the_validation_set_a_result_is_of_the_held_out_and_a_gap_of_the_learnt(
        trained, monkeypatch):
    scored, example = [], find_task("parity").example
    monkeypatch.setattr(cells, "batches", lambda examples, tokenizer: scored.append(examples))
    learnt = draw(example, "0/few", 6)
    for scored_on, its in (("dev", draw(example, "0/development", 200)), ("held-out", draw(example, "held-out", 500))):
        scored.clear()
        cells.run(replace(TINY, scored_on=scored_on, examples=6))
        assert scored == [its[:96], its, learnt]


def test_a_prompt_below_a_prefix_is_trained_at_its_own_rate(trained):
    cells.run(replace(TINY, method="prefix", start={"rung": "prompt", "lr": 0.3}, lr=0.1))
    assert trained == [(4, 0.3), (4, 0.1)]


def test_a_cell_has_one_thread(trained):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        cells.run(TINY)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)



def test_answers_of_e2e_are_asked_for_in_the_cells_template_and_scored_by_bleu(folders, few, monkeypatch):  # noqa: F811
    words = "<|im_start|>user\n"
    monkeypatch.setattr(real, "TASKS", {"e2e": real.TASKS["e2e"]._replace(wording=words)})
    asked = []

    def answer(model, examples, tokenizer, template, n, batch_size):
        asked.append((template.text, n))
        return [e.target for e in examples]

    monkeypatch.setattr(real, "complete_examples", answer)
    monkeypatch.setattr(real, "text_scores", lambda answers, known: {"bleu": 12.0, "chrf": 34.0})
    for name in ("lora", "lora with wording"):
        result = cells.run(cell(name, scored_on="held-out", steps=0), folders)
        assert (result["score"], result["chrf"]) == (12, 34)
    assert asked == [(real.TEMPLATE, 40), (words + real.TEMPLATE, 40)]


def test_held_out_sentences_are_those_of_patterns_of_their_own():
    for task, example in SENTENCES.items():
        training, dev, test = real.sentences(real.cell("lora", 30, task))
        known = partial(example, held_out=False)
        assert dev == distinct(known, "development", len(dev))
        assert training == distinct(known, "0/few", 30, without=dev)
        assert [e for e, _ in test] == distinct(partial(example, held_out=True), "held-out", len(test))


def test_a_peak_is_of_its_own_cell(folders, few, monkeypatch):  # noqa: F811
    events = []
    monkeypatch.setattr(real, "restart_peak", lambda device: events.append("restart"))
    monkeypatch.setattr(real, "train", lambda *a: events.append("train"))
    monkeypatch.setattr(real, "peak_above", lambda *a: events.append("read") or 7)
    assert cells.run(cell(), folders)["peak_bytes"] == 7 and events == ["restart", "train", "read"]


def test_costs_are_of_the_batches_of_the_cells_and_each_in_its_place(tmp_path, monkeypatch):
    asked = []

    def run(settings, sizes):
        asked.append((settings, sizes))
        rows = [{"saved_bytes": i, "peak_bytes": -i, "step_ms": {"median": i / 2}} for i in range(len(sizes))]
        return {"card": {}, "rows": rows}

    monkeypatch.setattr(cost, "run", run)
    costs.measure(tmp_path / "quality.jsonl", "cpu")
    (settings, sizes), = asked
    example = find_task("reverse").example
    idx, _ = encode(draw(example, "any", TINY.batch_size), ByteTokenizer())
    assert (settings.batch_size, settings.seq_len) == (studies.cell("full", "reverse", {}).batch_size, idx.size(1))
    names = [*studies.GROWS, "full"]
    assert sizes == [(studies.method_of(r), studies.largest(r, studies.BUDGET)) for r in names]
    written = json.loads((tmp_path / "quality-costs.json").read_text())["rows"]
    assert [(r["row"], r["kept_bytes"], r["peak_bytes"], r["step_ms"]) for r in written] == [
        (name, i, -i, {"median": i / 2}) for i, name in enumerate(names)]
