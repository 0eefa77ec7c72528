"""bench.py quality on a real model: training and held-out pairs of a cell, its start, and what is refused."""

import importlib.util
import sys
from dataclasses import replace

import pytest
import torch
from folders import real_base

from minipeft import GPT, Error, adapt
from minipeft.bench import measure
from minipeft.bench.quality import cell as cells
from minipeft.bench.quality import forgetting, real, studies
from minipeft.data.encoding import tokenize
from minipeft.data.template import Template
from minipeft.data.tokenizer import tokenizer_for
from minipeft.documents import match
from minipeft.training.evaluation import batches, evaluate

pytest.importorskip("tokenizers")
pytest.importorskip("sacrebleu")
METHODS = ("prompt", "prefix", "lora", "full")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny Llama, and E2E's files with three pairs of each MR: 20 for training and validation, 6 held out."""
    e2e = tmp_path_factory.mktemp("e2e")
    for name, numbers in (("devset.csv", range(20)), ("testset_w_refs.csv", range(20, 26))):
        rows = [f'"name[Zizzi {n}], food[Thai]","{say} Zizzi {n} serves Thai food."'
                for n in numbers for say in ("The", "Here", "At")]
        (e2e / name).write_text("\n".join(["mr,ref", *rows, f'"{"long " * 60}","It is."', ""]))
    return {"smollm2": str(real_base(tmp_path_factory.mktemp("base"))), "e2e": str(e2e)}


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(real, "SCORED", 4)
    monkeypatch.setattr(real, "SENTENCES_SCORED", 4)
    for name, value in (("PARAGRAPHS", 2), ("SHORTEST", 30), ("LONGEST", 60)):  # which fit into 128 tokens
        monkeypatch.setattr(forgetting, name, value)


def cell(name="lora", examples=16, **changed):
    return replace(real.cell(name, examples), **{"lr": 3e-3, "steps": 4, "scored_on": "dev", **changed})


def scores(result: dict) -> dict:
    return {name: value for name, value in result.items() if name not in ("seconds", "peak_bytes")}


def test_a_cell_gives_the_same_every_time_and_its_seed_matters(folders):
    held_out = cell(scored_on="held-out")
    result = cells.run(held_out, folders)
    torch.rand(1)  # whatever was drawn before
    assert scores(cells.run(held_out, folders)) == scores(result)
    assert cells.run(replace(held_out, seed=1), folders)["loss"] != result["loss"]
    assert {"score", "chrf", "loss", "loss_on_learnt", "seconds", "trained", "stored_bytes", "peak_bytes", "curve",
            "known"} == set(result)


def test_methods_see_the_same_pairs_the_fewer_among_the_more_and_none_of_an_mr_that_is_scored(folders, monkeypatch):
    seen, scored = [], []
    collate, batches_of = real.collate, real.batches

    def collated(records, fill):
        seen.append([r.example for r in records])
        return collate(records, fill)

    monkeypatch.setattr(real, "collate", collated)
    monkeypatch.setattr(real, "batches", lambda examples, *rest: scored.append(examples) or batches_of(examples, *rest))

    def pairs(*changed, **rest) -> list:
        seen.clear()
        cells.run(cell(*changed, **rest), folders)
        return [*seen]

    def flat(of) -> set:
        return {e for batch in of for e in batch}

    more = pairs()
    assert all(pairs(name) == more for name in METHODS)
    assert [len(batch) for batch in more] == [4] * 4 and len(flat(more)) == 16  # an epoch
    fewer = flat(pairs(examples=8))
    assert len(fewer) == 8 and fewer < flat(more) and fewer != flat(pairs(examples=8, seed=1))
    everything = flat(pairs(examples=48, steps=12))  # all that are learnt from: the long pair does not fit
    assert len(everything) == 48
    dev = scored[0]
    assert all(its == dev for its in scored) and len(dev) == 4
    cells.run(cell(scored_on="held-out"), folders)
    test, learnt = scored[-2:]
    assert learnt != test and len(learnt) == 4 and set(learnt) <= flat(more) and len({e.input for e in test}) == 4
    inputs = [{e.input for e in its} for its in (everything, dev, test)]
    assert len(set.union(*inputs)) == sum(map(len, inputs))


def test_prompt_and_prefix_start_as_the_wording_and_the_others_as_the_base(folders, monkeypatch):
    dev = []
    batches_of = real.batches
    monkeypatch.setattr(real, "batches", lambda examples, *rest: dev.append(examples) or batches_of(examples, *rest))
    losses = {name: cells.run(cell(name, steps=0), folders)["loss"] for name in METHODS}
    base = GPT.from_pretrained(folders["smollm2"])
    tokenizer = tokenizer_for(300, folders["smollm2"])
    its = batches(dev[0], tokenizer, Template("{input}<|im_end|>\n<|im_start|>assistant\n"))
    bare = evaluate(base, its)[0]
    tokens = torch.tensor(tokenizer.encode(real.WORDING))[:46]  # which are more here than of SmolLM2's
    worded = evaluate(adapt(base, "hard-prompt", tokens=tokens), its)[0]
    assert abs(bare - worded) > 1e-3
    assert losses == pytest.approx({"prompt": worded, "prefix": worded, "lora": bare, "full": bare}, abs=1e-5)
    assert cells.run(cell("full", lr=1e-2, steps=40), folders)["loss"] < 0.8 * bare


def test_answers_are_measured_against_all_references_of_their_mr(folders, monkeypatch):
    def answer(model, examples, *_, **__):
        return [e.target.replace("Here", "At") for e in examples]

    monkeypatch.setattr(real, "complete_examples", answer)
    assert cells.run(cell(scored_on="held-out"), folders)["score"] == pytest.approx(100)
    monkeypatch.setattr(real, "complete_examples", None)  # where a rate is chosen nothing is answered
    cells.run(cell(), folders)


def test_sentences_are_scored_by_exact_match_and_a_wording_is_the_same_as_a_start_and_as_a_text(folders, monkeypatch):
    short = {task: its._replace(wording="<|im_start|>user\n") for task, its in real.TASKS.items()}
    monkeypatch.setattr(real, "TASKS", short)

    def run(name: str, task: str, **changed) -> dict:
        size = {} if name in METHODS[:2] else real.cell(name, 8, task).size  # as long as the wording is here
        return cells.run(replace(real.cell(name, 8, task), size=size, **{"lr": 3e-3, **changed}), folders)

    for task in ("topics", "amounts"):
        result = run("lora", task, steps=2)
        assert result["score"] in (0, 0.25, 0.5, 0.75, 1) and result["known"]["off"] == result["known"]["before"]
        rows = ("full", "prompt", "prefix", "lora with wording", "full with wording")
        bare, *worded = [run(name, task, steps=0)["loss"] for name in rows]
        worded.append(run("hard-prompt", task, lr=None)["loss"])
        assert worded == pytest.approx([worded[0]] * 5, abs=1e-5) and abs(worded[0] - bare) > 1e-4
        assert all(studies.row(real.cell(name, 8, task)) == name for name in real.ROWS)


def test_peak_memory_is_left_open_where_the_system_does_not_tell(folders, monkeypatch):
    monkeypatch.setattr(measure, "resident_peak", lambda: None)
    assert cells.run(cell(), folders)["peak_bytes"] is None


def test_a_prefix_from_examples_starts_with_the_rows_that_are_matched_to_the_first_of_them(folders, monkeypatch):
    monkeypatch.setattr(real, "MATCHED", {"match": 1})  # of more there is no room
    asked = replace(real.cell("prefix from examples", 40, "topics"), lr=3e-3, steps=0, seed=6)  # the first is short
    base, template = GPT.from_pretrained(folders["smollm2"]), Template(real.TEMPLATE)
    training, _, test = real.sentences(asked)
    tokenizer = tokenizer_for(300, folders["smollm2"])
    records = [tokenize(e, tokenizer, template) for e in training[:1]]
    text = torch.tensor([token for r in records for token in (*r.prompt, *r.completion)])
    rows = match(base, text, asked.size["num_virtual_tokens"])
    model = adapt(base, "prefix", **asked.size, init=rows._replace(bias=None))
    wanted = evaluate(model, batches([e for e, _ in test], tokenizer, template))[0]
    assert cells.run(asked, folders)["loss"] == pytest.approx(wanted, abs=1e-5)
    assert abs(cells.run(replace(asked, start="random"), folders)["loss"] - wanted) > 1e-4


def test_a_changed_prefix_trains_what_its_change_says(folders):
    c = GPT.from_pretrained(folders["smollm2"]).config
    row, P, m = 2 * c.n_layer * c.kv, 22, c.n_embd
    for name, trained in (("prefix of 8 from noise", 8 * row), ("prefix from noise, no positions", P * row),
                          ("prefix from noise, by an MLP", P * m + (m + 1) * m + (m + 1) * row)):
        result = cells.run(replace(real.cell(name, 8, "topics"), lr=1e-2, steps=2, scored_on="dev"), folders)
        stored = (8 if " 8 " in name else P) * row * 4  # the MLP is folded away
        assert result["trained"] == trained and stored < result["stored_bytes"] < stored + 2000


def missing(monkeypatch, name: str) -> None:
    """As if the package were not installed."""
    found = importlib.util.find_spec
    without = lambda asked, *rest: None if asked == name else found(asked, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", without)
    monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("package", ["sacrebleu", "safetensors", "tokenizers"])
def test_a_package_that_is_missing_is_named(package, folders, monkeypatch):
    pytest.importorskip("safetensors")
    missing(monkeypatch, package)
    with pytest.raises(Error, match=f"pip install {package}$"):
        cells.run(cell(), folders)


def test_what_is_missing_in_or_of_the_folders_is_refused(folders, tmp_path):
    def refused(given: dict, message: str, **changed):
        with pytest.raises(Error, match=message) as e:
            cells.run(cell(**changed), given)
        assert "\n" not in str(e.value)

    for name in folders:
        refused({other: path for other, path in folders.items() if other != name}, f"need --{name} FOLDER$")
    refused(folders | {"e2e": str(tmp_path)}, "no data at .*devset.csv: there is no such file")
    refused(folders | {"smollm2": str(tmp_path)}, "holds no config.json")
    refused(folders, "devset.csv has 48 of the 500 pairs of at most 64 tokens that are needed: ", examples=500)
