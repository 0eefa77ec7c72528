"""bench.py quality: cells of a study differ in one thing, a run is reproducible, a stopped grid loses no line."""

import json
import math
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import pairwise

import pytest
import torch
from forked import context

from minipeft import GPT, METHODS, Error, accounting, adapt
from minipeft.accounting.shapes import EMBEDDED
from minipeft.bench import measure
from minipeft.bench.quality import again, forgetting, grid, part, real, studies
from minipeft.bench.quality import cell as cells
from minipeft.bench.quality.lines import Cell
from minipeft.data import BASES
from minipeft.data.batches import TaskData, draw, length
from minipeft.data.encoding import tokenize
from minipeft.data.tasks import INSTRUCTIONS, find_task
from minipeft.data.tokenizer import ByteTokenizer
from minipeft.documents import match
from minipeft.runtime import console, profiling
from minipeft.training.evaluation import batches, evaluate
from minipeft.training.prompt_search import choose_wording

MADE_HERE = [name for name in studies.STUDIES if name not in studies.REAL]
TINY = Cell("tiny", "parity", "prompt", {"num_virtual_tokens": 4}, lr=0.1, steps=8, batch_size=4)


# What is compared


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

    longest = max(
        length(
            e,
            ByteTokenizer(),
        )
        for e in draw(find_task("reverse").example, "any", 9)
    )
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


# The data


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


# A run


def without_times(result: dict) -> dict:
    return {k: v for k, v in result.items() if k not in ("seconds", "card")}


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
    line = json.loads(json.dumps(grid.work(replace(TINY, lr=1e30), {}, "cpu"), allow_nan=False))
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


def test_a_study_of_starts_runs_the_sweep_of_the_soft_prompt_that_a_prefix_starts_from(tmp_path, ran):
    prefix = replace(TINY, method="prefix", lr=None)
    wanted = [(replace(prefix, start=studies.PROMPT_RUNG), prefix)]
    grid.fill(tmp_path / "lines.jsonl", wanted, 1, {}, "cpu")
    assert [c.method for c in ran] == ["prompt"] * 5 + ["prefix"] * 6
    assert grid.planned(grid.read(tmp_path / "lines.jsonl"), wanted) == []


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
    some = part(pairs, {"tasks": ["topics"], "methods": ["prefix", "lora with wording"]})
    assert {(c.task, studies.row(c)) for c, _ in some} == {("topics", "prefix"), ("topics", "lora with wording")}
    assert part(pairs, {"tasks": None, "methods": None}) == pairs
    assert {c.examples for c, _ in part(studies.real_data(), {"examples": [50, 1000]})} == {50, 1000}
    with pytest.raises(Error, match="^--methods prefixes: the study has adapter, full, "):
        part(pairs, {"methods": ["prefixes"]})
    with pytest.raises(Error, match="^--examples 7: the study has 50, 200, 1000$"):
        part(studies.real_data(), {"examples": [7]})
    with pytest.raises(Error, match=r"^no cell of the study has the tasks \['e2e'\], the methods \['adapter'\]$"):
        part([p for p in pairs if "e2e" != p[0].task or p[0].method != "adapter"],
             {"tasks": ["e2e"], "methods": ["adapter"], "examples": None})


# A grid


@pytest.fixture
def ran(monkeypatch):
    """The cells that were run, in order. Nothing is trained: the loss is the learning rate; the lowest fails."""
    called, lowest = [], studies.ROWS["prompt"][2][0]

    def work(c: Cell, folders, device) -> dict:
        called.append(c)
        return {"cell": json.loads(c.key), "score": 0.5, "loss": None if c.lr == lowest else c.lr}

    monkeypatch.setattr(grid, "work", work)
    monkeypatch.setattr(grid, "pool", lambda processes: ThreadPoolExecutor(1))
    return called


def asked_for() -> list[tuple[Cell, Cell]]:
    prompt, prefix = (replace(TINY, method=m, lr=None) for m in ("prompt", "prefix"))
    return studies.seeded([(prompt, prompt), (replace(prefix, start=studies.PROMPT_RUNG), prefix)], range(2))


def test_a_grid_runs_what_is_not_there_and_nothing_twice(tmp_path, ran):
    path = tmp_path / "made" / "lines.jsonl"
    lines = grid.fill(path, asked_for(), 1, {}, "cpu")
    assert len(ran) == len({c.key for c in ran}) == 14 == len(lines)
    assert [c.scored_on for c in ran] == 10 * ["dev"] + 4 * ["held-out"]
    best, started = studies.ROWS["prompt"][2][1], [c.start for c in ran[10:] if c.start]
    assert {c.lr for c in ran[10:]} == {best} and started == 2 * [{"rung": "prompt", "lr": best}]
    whole = path.read_bytes()
    second = whole.index(b"\n") + 1
    for torn, missing in ((whole[:-20], 1), (whole[:-1], 1), (whole[: second + 4], 13), (b"", 14), (whole, 0)):
        ran.clear()
        path.write_bytes(torn)
        assert grid.fill(path, asked_for(), 1, {}, "cpu") == lines and len(ran) == missing
        kept = torn[: torn.rfind(b"\n") + 1]
        assert path.read_bytes()[: len(kept)] == kept and grid.read(path) == lines


def test_a_line_that_is_none_is_named_in_one_line(tmp_path, ran):
    path = tmp_path / "lines.jsonl"
    grid.fill(path, asked_for(), 1, {}, "cpu")
    before = path.read_bytes().split(b"\n")
    unscored = before[0].replace(b'"score"', b'"x"')
    for garbage in (b"{", b"[]", b"\xff", b"{}", b'{"cell": {"base": "tiny"}}', b"[" * 10**5, unscored):
        path.write_bytes(b"\n".join([*before[:2], garbage, *before[2:]]))
        with pytest.raises(Error) as refused:
            grid.fill(path, asked_for(), 1, {}, "cpu")
        assert str(refused.value).startswith(f"{path}, line 3, is no line of `bench.py quality`: ")
        assert "\n" not in str(refused.value)
        assert garbage in path.read_bytes()
    path.write_bytes(b'{"another": "file"}')  # whose end is no line that was torn
    with pytest.raises(Error, match="line 1, is no line"):
        grid.fill(path, asked_for(), 1, {}, "cpu")
    assert path.read_bytes() == b'{"another": "file"}'
    with pytest.raises(Error, match=r"cannot be read \(IsADirectoryError\)"):
        grid.fill(tmp_path, asked_for(), 1, {}, "cpu")


def test_of_two_machines_it_names_what_rounds_differently():
    card = {"device": "AMD EPYC", "device_type": "cpu", "threads": 1, "cores": 2, "platform": "P", "python": "3",
            "torch": "2", "commit": "c"}
    avx2, avx512 = card | {"instructions": "AVX2"}, card | {"instructions": "AVX512"}
    line, variables = measure.card_line(avx2), "ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2"
    assert again.machines(avx2, avx2) == f"then on {line}; now on {line}" and "AMD EPYC with AVX2" in line
    for then, its in ((card, "not recorded"), (avx2, "AVX2")):  # lines from before it was noted do not say
        assert again.machines(then, avx512).endswith(
            f"; other vector instructions: {its} then, AVX512 now, `{variables}` in front of the command takes AVX2")
    # a CPU without AVX512 cannot use it
    assert again.machines(avx512, avx2).endswith("; other vector instructions: AVX512 then, AVX2 now")
    onednn = avx512 | {"matmul": "oneDNN"}
    assert again.machines(avx512, onednn).endswith("; other matmul library: torch then, oneDNN now, "
                                                   "`MINIPEFT_MATMUL=torch` in front of the command takes torch's")
    assert again.machines(avx2, onednn).endswith(f"`{variables}` in front of the command takes AVX2")  # and torch's
    assert "AVX512, float32 products by oneDNN" in measure.card_line(onednn)
    intel = avx2 | {"device": "Virtual CPU", "vendor": "Intel"}
    assert again.machines(avx2, intel).endswith("commit c; other CPU vendor: AMD then, Intel now")
    assert "Virtual CPU (Intel) with AVX2" in measure.card_line(intel)
    assert "ATEN" not in again.machines(avx2, intel | {"instructions": "AVX512"})  # it would not help
    assert again.machines(avx2, avx2 | {"torch": "3"}).endswith("; other torch: 2 then, 3 now")
    gpu = card | {"device": "G", "device_type": "cuda"}
    assert again.machines(avx2, gpu).endswith("; other device: AMD EPYC then, G now")
    assert again.machines(gpu, gpu | {"device": "H"}).endswith("; other device: G then, H now")


@pytest.mark.parametrize("system, cpuinfo, processor, expected", [
    ("Linux", "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n", "",
     ("AMD EPYC", "AMD", "family 25, model 17")),
    ("Linux", "vendor_id\t: GenuineIntel\nmodel name\t: Virtual: CPU\n", "", ("Virtual: CPU", "Intel", "")),
    ("Linux", "CPU implementer\t: 0x41\n", "", ("aarch64", "0x41", "")),
    ("Windows", None, "Intel64 Family 6, GenuineIntel", ("Intel64 Family 6, GenuineIntel", "Intel", "")),
    ("macOS", None, "arm", ("arm", "Apple", "")),
])
def test_the_card_names_vendor_and_generation_of_the_cpu(system, cpuinfo, processor, expected, monkeypatch):
    def read_text(path, **_):
        if cpuinfo is None:
            raise FileNotFoundError(path)
        return cpuinfo

    monkeypatch.setattr(profiling.Path, "read_text", read_text)
    monkeypatch.setattr(profiling.platform, "processor", lambda: processor)
    monkeypatch.setattr(profiling.platform, "machine", lambda: "aarch64")
    card = profiling.card(torch.device("cpu"))
    assert (card["device"], card["vendor"], card["generation"]) == expected
    assert card["instructions"] == torch.backends.cpu.get_cpu_capability()


def test_scores_of_another_kind_of_cpu_are_compared_by_a_tolerance(tmp_path, monkeypatch):
    card = {"device": "C", "device_type": "cpu", "vendor": "A", "instructions": "I", "torch": "2", "threads": 1,
            "cores": 2, "platform": "P", "python": "3", "commit": "c"}
    line = {"cell": json.loads(TINY.key), "score": 0.5, "loss": 1.0, "trained": 8, "card": card}
    path, other = tmp_path / "lines.jsonl", {"card": card | {"vendor": "B"}}
    path.write_text(json.dumps(line) + "\n", encoding="utf-8")
    for change, same, close, verdict in (
        ({}, True, False, ": the same"),
        ({"known": {"off": [1.0, 0.0]}}, True, False, ": the same"),  # which older lines lack
        ({"wording": "another"}, False, False, ": not the same (wording;"),
        ({"score": 0.52}, False, False, ": not the same (score; then on"),  # exactly, on the same kind
        (other, True, True, ": the same"),
        (other | {"score": 0.55, "loss": 1.5}, False, True, "now: score within 0.05, but not the same (score, loss;"),
        (other | {"score": 0.56}, False, False, "now: not the same (score;"),
        (other | {"trained": 9}, False, False, "now: not the same (trained;"),  # no rounding does that
    ):
        monkeypatch.setattr(again, "work", lambda *_, change=change: line | change)
        result = again.run(path, 1, {}, "cpu")
        assert (result["same"], result["close"]) == (same, close) and verdict in again.table(result)


def test_what_a_real_model_forgets_is_compared_on_the_text_of_one_python(tmp_path, monkeypatch):
    of = replace(real.cell("prompt", 8, "topics"), lr=0.1)
    line = {"cell": json.loads(of.key), "score": 0.5, "loss": 1.0, "known": {"before": [1.0, 0.1]},
            "card": {"device": "AMD X", "device_type": "cpu", "torch": "2", "python": "3.11.7"}}
    (tmp_path / "lines.jsonl").write_text(json.dumps(line) + "\n")
    for python, same in (("3.11.7", False), ("3.12.1", True)):
        now = line | {"known": {"before": [2.0, 0.1]}, "card": line["card"] | {"python": python}}
        monkeypatch.setattr(again, "work", lambda *_, now=now: now)
        assert again.run(tmp_path / "lines.jsonl", 1, {}, "cpu")["same"] == same


def test_two_grids_do_not_write_to_one_file(tmp_path, ran, monkeypatch):
    path, work = tmp_path / "lines.jsonl", grid.work

    def second(*its):
        before = path.read_bytes()
        with pytest.raises(Error, match="lines.jsonl is in use: another grid writes to it$"):
            grid.fill(path, [], 1, {}, "cpu")
        assert path.read_bytes().startswith(before)  # the first goes on with its own
        return work(*its)

    monkeypatch.setattr(grid, "work", second)
    grid.fill(path, asked_for(), 1, {}, "cpu")
    assert [p.name for p in tmp_path.iterdir()] == ["lines.jsonl"]
    (tmp_path / "file").touch()
    with pytest.raises(Error, match="cannot be written to: "):
        grid.fill(tmp_path / "file" / "lines.jsonl", [], 1, {}, "cpu")


def test_a_rate_is_chosen_by_the_loss_on_dev_examples_or_refused():
    like = replace(TINY, method="lora", lr=None)
    swept = studies.sweep(like)
    lines = {c.key: {"loss": loss} for c, loss in zip(swept, (2.0, 1.0, None, 3.0, None), strict=True)}
    assert grid.chosen(lines, like) == swept[1].lr
    lines[swept[1].key] = {"loss": None}
    assert grid.chosen(lines, like) == swept[0].lr
    lines |= {c.key: {"loss": None} for c in swept}
    with pytest.raises(Error, match=r"no learning rate of \[0.002, 0.006, 0.02, 0.06, 0.2\] trains lora on parity"):
        grid.chosen(lines, like)
    with pytest.raises(Error, match="the sweep of lora on parity is not run"):
        grid.chosen({swept[0].key: {"loss": 1.0}}, like)
    assert grid.chosen({}, replace(like, method="hard-prompt")) is None


def test_a_sweep_goes_on_beyond_the_edge_where_its_best_lies_until_it_is_inside(monkeypatch, tmp_path):
    def run(cell, folders, device):
        return {"cell": json.loads(cell.key), "score": 0.0, "loss": loss_at(cell.lr), "card": {}}

    def loss_at(lr):  # lowest at `best`
        return abs(math.log(lr / best))

    like = replace(TINY, method="lora", lr=None, examples=10)
    first = list(studies.ROWS["lora"][2])  # 2e-3 … 0.2
    monkeypatch.setattr(grid, "done", lambda workers, cells, *rest: [run(c, *rest) for c in cells])
    for best, rates in ((2e-2, first), (6e-4, [2e-4, 6e-4, *first]), (0.2, [*first, 0.6]),
                        (1e-9, [2e-5, 6e-5, 2e-4, 6e-4, *first])):
        path = tmp_path / f"{best}.jsonl"
        lines = grid.fill(path, [(replace(like, seed=0), like)], 1, {}, "cpu")
        losses = grid.sweep_losses(lines, like)
        assert list(losses) == pytest.approx(rates) and grid.chosen(lines, like) == min(losses, key=losses.get)
        assert len(lines) == len(rates) + 1 and grid.next_of_sweep(lines, like) == []
        assert [c.examples for c in grid.sweep_cells(lines, like)] == [10] * len(rates)


ENDLESS = [replace(TINY, steps=10**8, seed=seed) for seed in range(8)]  # more than the workers take at once


@pytest.fixture
def forked(monkeypatch):
    """Workers that start in a moment, and begin cells in the order they are given."""
    start = context()
    monkeypatch.setattr(grid.multiprocessing, "get_context", lambda name: start)
    monkeypatch.setattr(grid, "seconds", lambda c: 1)  # equally long, so they start in their order
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs with it ignored
    yield
    signal.signal(signal.SIGINT, before)


def ended(path, wanted: list[Cell], processes: int, when, do) -> int:
    """The exit code of a grid to which something is done once it is so far."""
    over, late = threading.Event(), []

    def disturb():
        deadline = time.monotonic() + 600
        while not when() and time.monotonic() < deadline:
            time.sleep(0.02)
        do()
        if not over.wait(60):
            late.extend(multiprocessing.active_children())
            for process in late:
                process.kill()

    thread = threading.Thread(target=disturb)
    thread.start()
    code = console.run("bench.py", lambda: grid.fill(path, [(c, None) for c in wanted], processes, {}, "cpu"))
    over.set()
    thread.join()
    assert not late and not multiprocessing.active_children()
    return code


def lines_are(path, n: int):
    return lambda: path.exists() and path.read_bytes().count(b"\n") == n


def messages(err: str) -> list[str]:
    """The lines of stderr without the progress bar."""
    return [line for line in err.splitlines() if line.strip() and "%|" not in line]


@pytest.mark.slow
def test_a_grid_that_is_stopped_keeps_its_lines_which_are_those_of_this_process(tmp_path, forked, capfd):
    path, two = tmp_path / "lines.jsonl", [TINY, replace(TINY, method="prefix")]
    for number, code, line in ((signal.SIGTERM, 143, "stopped by SIGTERM"), (signal.SIGINT, 130, "interrupted")):
        path.unlink(missing_ok=True)
        stop = lambda number=number: os.kill(os.getpid(), number)  # noqa: E731
        assert ended(path, [*two, *ENDLESS], 2, lines_are(path, 2), stop) == code
        assert messages(capfd.readouterr().err) == [f"bench.py: {line}"]
        written = grid.read(path)
        assert written.keys() == {c.key for c in two}
    for c in two:
        assert without_times(written[c.key]) == without_times(grid.work(c, {}, "cpu"))

    for number, c in enumerate(map(Cell.of, written.values()), 1):
        result = again.run(path, number, {}, "cpu")
        table = again.table(result)
        assert result["same"] and f"{c.method} on parity" in table and table.endswith(": the same")
    changed = [replace_score(line) for line in path.read_text().splitlines()]
    path.write_text("\n".join(["", *changed, ""]))  # numbers are those of the file's lines
    result = again.run(path, 2, {}, "cpu")
    assert (result["same"], result["differs"]) == (False, ["score"])
    assert "not the same (score; then on" in again.table(result)
    for number in (0, 1, 4, -1):
        with pytest.raises(Error, match=f"has 2 lines: there is no line {number}"):
            again.run(path, number, {}, "cpu")
    with pytest.raises(Error, match="there is no file"):
        again.run(tmp_path / "nowhere.jsonl", 1, {}, "cpu")


def replace_score(line: str) -> str:
    return json.dumps(json.loads(line) | {"score": 0.123})


def sleep() -> None:
    lonely.end.send("begun")
    time.sleep(600)


def lonely(of: str, end) -> None:
    """A grid of one long cell, or a measurement, in a process of its own. The worker, forked, holds the end of the
    pipe as well."""
    lonely.end, start = end, multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda name: start
    if of == "measurement":
        measure.in_new_process(sleep)
    with grid.pool(1) as workers:
        workers.submit(sleep)
        end.recv()


@pytest.mark.parametrize("of", ["grid", "measurement"])
def test_when_a_grid_or_a_measurement_is_killed_its_workers_end_too(of):
    ours, theirs = context().Pipe()
    process = context().Process(target=lonely, args=(of, theirs))
    process.start()
    theirs.close()
    assert ours.recv() == "begun"
    process.kill()
    process.join()
    with pytest.raises(EOFError):  # nobody holds the other end
        assert ours.poll(30)
        ours.recv()


def test_a_worker_that_is_killed_is_one_line(tmp_path, forked, capfd):
    """And it ends the grid at once: the other workers start no further cells."""
    path = tmp_path / "lines.jsonl"
    is_begun = lines_are(path, 1)

    def kill_one():
        multiprocessing.active_children()[0].kill()

    assert ended(path, [replace(TINY, steps=1), *ENDLESS], 2, is_begun, kill_one) == 2
    (line,) = messages(capfd.readouterr().err)
    assert line.startswith("bench.py: a process was ended from outside, most likely because memory ran out: ")
