"""bench.py quality: the cells of a study differ in its axes and in nothing else."""

import json
import math
from dataclasses import asdict, replace
from itertools import pairwise

import pytest
from tiny_cell import TINY

from minipeft import GPT, METHODS, Error, accounting, adapt
from minipeft.accounting.shapes import EMBEDDED
from minipeft.bench.quality import filter_cells, real, studies
from minipeft.bench.quality.lines import Cell
from minipeft.data.batches import draw
from minipeft.data.encoding import tokenize
from minipeft.data.tasks import find_task
from minipeft.data.tokenizer import ByteTokenizer

MADE_HERE = [name for name in studies.STUDIES if name not in studies.REAL]


@pytest.mark.parametrize("name", studies.GROWS)
def test_a_size_is_the_largest_within_its_budget(name):
    base, (grows, _, _), method = GPT(EMBEDDED[studies.BASE]), studies.ROWS[name], studies.method_of(name)

    def trained(size: dict) -> int:
        model = adapt(base, method, **size)
        n = sum(p.numel() for p in model.trainable_parameters())
        model.detach()
        assert n == accounting.count(base.config, method, **size).trained
        return n

    for budget in studies.BUDGETS:
        size = studies.largest(name, budget)
        assert trained(size) <= budget < trained(size | {grows: size[grows] + 1})
    with pytest.raises(Error, match=f"no size of {name} trains as few as 3 parameters of tiny"):
        studies.largest(name, 3, "tiny")


AXES = {  # a study is every combination of these, once; what is on no axis is the same in all of its cells
    "methods": ["task", "method size", "seed"],
    "budget": ["task", "method size", "seed"],
    "scale": ["base", "task", "method size", "seed"],
    "length": ["task", "method", "size", "seed"],
    "start": ["task method start size", "seed"],
    "projection": ["size", "lr", "seed"],
    "data": ["task", "method size", "examples", "seed"],
    "forgetting": ["task", "method size", "seed"],
}


@pytest.mark.parametrize("name", MADE_HERE)
def test_what_a_study_compares_differs_in_nothing_but_its_axes(name):
    pairs = studies.STUDIES[name]()
    places = [tuple(json.dumps([asdict(c)[f] for f in axis.split()]) for axis in AXES[name]) for c, _ in pairs]
    assert len(set(places)) == len(places) == math.prod(len(set(along)) for along in zip(*places, strict=True))
    on_axes = set(" ".join(AXES[name]).split())
    assert all(len({json.dumps(asdict(c)[f]) for c, _ in pairs}) == 1 for f in asdict(TINY).keys() - on_axes)
    assert {c.seed for c, _ in pairs} == {0, 1, 2, 3, 4}

    longest = max(tokenize(e, ByteTokenizer()).length for e in draw(find_task("reverse").example, "any", 9))
    for c, like in pairs:
        assert c.size.get("num_virtual_tokens", 0) + longest <= EMBEDDED[c.base].block_size
        assert Cell.of(json.loads(json.dumps({"cell": json.loads(c.key)}))) == c
        if name == "projection":
            assert like is None and c.lr in studies.PROJECTION_LEARNING_RATES
            continue
        assert replace(like, size=c.size, start=c.start, seed=c.seed) == c and studies.row(like) == studies.row(c)
        swept = studies.sweep(like)
        assert len({s.lr for s in swept}) == len(swept) == (0 if c.method == "hard-prompt" else 5)
        for s in swept:  # on other data than any cell that is compared, in the setting of `like`
            assert s.seed not in studies.SEEDS and s.scored_on == "dev"
            assert replace(s, lr=None, seed=0, scored_on="held-out") == replace(like, seed=0, start=None)


def test_sizes_within_a_study_are_those_that_its_question_names():
    def sizes(name: str, **these) -> dict:
        found = [c for c, _ in studies.STUDIES[name]() if all(getattr(c, f) == v for f, v in these.items())]
        return {r: [c.size for c in found if studies.row(c) == r] for r in map(studies.row, found)}

    assert set(sizes("methods")) == {*studies.GROWS, "full", "hard-prompt"}
    assert set(map(studies.method_of, sizes("methods"))) == set(map(studies.method_of, studies.ROWS)) <= set(METHODS)
    for r, found in sizes("budget").items():
        grows, rest, _ = studies.ROWS[r]
        assert len({s[grows] for s in found}) == 3 and all(s == {grows: s[grows], **rest} for s in found)
    tokens = {"num_virtual_tokens": 16}
    for r, found in (sizes("scale") | sizes("data")).items():
        assert all(s == found[0] for s in found) and found[0] in ({}, tokens, studies.largest(r, 4096))
    for found in sizes("length").values():
        assert [s["num_virtual_tokens"] for s in found[::5]] == 2 * [1, 2, 4, 8, 16, 32, 64, 128]
    by_mlp = tokens | {"prefix_projection": True}
    assert sizes("projection") == {"prefix": 30 * [tokens], "prefix by an MLP": 30 * [by_mlp]}
    without_text = ("random", "vocab", studies.PROMPT_RUNG, studies.MATCHED)
    assert all(c.size == (tokens if c.start in without_text else {}) for c, _ in studies.start())
    rates = [its for *_, its in studies.ROWS.values()] + [r.rates for r in real.ALL_ROWS.values()]
    assert {len(its) for its in rates if its} == {5}
    assert all(2.9 < high / low < 3.5 for its in rates for low, high in pairwise(its))


def test_what_may_close_the_distance_to_lora_is_changed_one_at_a_time():
    for task in real.TASKS:
        before = {method: asdict(real.cell(name, 200, task))
                  for method, name in (("prefix", "prefix from noise"), ("lora", "lora"))}
        for row in real.CHANGED:
            changed = asdict(real.cell(row, 200, task))
            size, its = changed.pop("size"), dict(before[changed["method"]])
            differs = [k for k in size if size[k] != its["size"].get(k)] + [k for k in changed if changed[k] != its[k]]
            assert len(differs) == 1 and studies.row(real.cell(row, 200, task)) == row


def test_a_run_of_many_examples_of_text_sees_each_once_and_others_have_the_steps_of_the_first_study():
    assert {(c.examples, c.steps) for c, _ in studies.real_data()} == {(50, 50), (200, 50), (1000, 250)}
    first = {c.key for c, _ in studies.real()}
    assert all(c.key in first for c, _ in studies.real_data() if c.examples == 200)


def test_a_part_of_a_study_is_named_by_tasks_and_rows():
    pairs = studies.real()
    some = filter_cells(pairs, {"tasks": ["topics"], "methods": ["prefix", "lora with wording"]})
    assert {(c.task, studies.row(c)) for c, _ in some} == {("topics", "prefix"), ("topics", "lora with wording")}
    assert filter_cells(pairs, {"tasks": None, "methods": None}) == pairs
    assert {c.examples for c, _ in filter_cells(studies.real_data(), {"examples": [50, 1000]})} == {50, 1000}
    with pytest.raises(Error, match="^--methods prefixes: the study has adapter, full, "):
        filter_cells(pairs, {"methods": ["prefixes"]})
    with pytest.raises(Error, match="^--examples 7: the study has 50, 200, 1000$"):
        filter_cells(studies.real_data(), {"examples": [7]})
    with pytest.raises(Error, match=r"^no cell of the study has the tasks \['e2e'\], the methods \['adapter'\]$"):
        filter_cells([p for p in pairs if "e2e" != p[0].task or p[0].method != "adapter"],
             {"tasks": ["e2e"], "methods": ["adapter"], "examples": None})
