#!/usr/bin/env python3
"""Fill the marked places of README.md and of the pages in docs/: tables from result files, excerpts
from the code.

python docs/tools/tables.py          (python docs/tools/refresh.py does this and everything else that is generated)

A place is what stands between `<!-- name -->` and `<!-- /name -->`, with a name of BLOCKS. On the
Chinese pages, chinese.py translates the words around the numbers.
"""

import json
import re
import shlex
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from statistics import geometric_mean

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import train
from docs.tools import (
    advice,
    chinese,
    claims,
    compatibility,
    document_tables,
    excerpts,
    peers_tables,
    processes,
    quantised_tables,
    tree,
    versions,
)
from docs.tools.comparison.summary import Point, beyond_chance
from docs.tools.comparison.tables import LETTERS
from docs.tools.comparison.trends import prompt_against_full
from docs.tools.markdown import fenced, name, paragraph, points_list, ratio, spread, table
from docs.tools.results import RESULTS, facts, plus_minus, quality, read, seeds_above, trained, version
from minipeft import METHODS, PRESETS, accounting
from minipeft.bench import params
from minipeft.data import NANO
from minipeft.data.tasks import find_task
from minipeft.files.atomic import write_text
from minipeft.runtime.console import printable

TASKS = ("reverse", "reverse+increment", "parity", "differences")
NEW = TASKS[1:]
FORGOTTEN = "parity"  # the task of README's column on forgetting
TRAINS = {
    "full": "every weight", "prompt": "P vectors before the token embeddings",
    "prefix": "P keys and P values in every attention",
    "lora": "a low-rank change of a matrix in every attention",
    "adapter": "a small network after attention and MLP of every block"}
COUNTS = {0: "none", 1: "one", 2: "two", 3: "three", 4: "four", 5: "all five"}


PRESET_NAMES = {"gpt2": "GPT-2", "nano": "nano"}


def size(row: dict) -> str:
    """The size of a row of bench.py's table, in the letters of the pages: P 8, r 8, m 8, K 10."""
    return next((f"{letter} {row[key]}" for key, letter in LETTERS.items() if key in row), "-")


def bench_rows(result: dict) -> list[dict]:
    """The rows of a result of bench.py; what is counted, not measured, as the code of today counts it."""
    config, rows = PRESETS[result["settings"]["preset"]], []
    base = accounting.base_parameters(config)
    for r in result["rows"]:
        sizes = {name: r[name] for name in METHODS[r["method"]].sizes() if name in r}
        trained = accounting.count(config, r["method"], **sizes).trained
        together = base + trained * METHODS[r["method"]].freezes_base
        rows.append(r | {"trained": trained, "percent": 100 * trained / together,
                         "adapter_bytes": accounting.adapter_bytes(config, r["method"], **sizes)})
    return rows


def setup(result: dict) -> str:
    """One line: shape, batch, and the machine of a result of bench.py."""
    s, card = result["settings"], result["card"]
    run = "compiled" if s["compile"] else "eager"
    return (
        f"{PRESET_NAMES[s['preset']]}'s shape, batch {s['batch_size']} × {s['seq_len']} tokens, "
        f"{s['dtype']}, {run}, "
        f"{card['cores']} CPU cores ({card['device']}), torch {version(card, 'torch')}"
    )


# README


def summary() -> str:
    """The five methods of the first screen."""
    bench = read("bench-gpt2")
    cost = {(r["method"], size(r)): r for r in bench_rows(bench)}
    scores = {(p.row, p.cell.task): p for p in quality("methods")}
    rows = []
    for method, at in (("full", "-"), ("prompt", "P 8"), ("prefix", "P 8"), ("lora", "r 8"), ("adapter", "m 8")):
        r = cost[method, at]
        passed = [f"{seeds_above(scores[method, task])} of 5" for task in ("reverse", "parity")]
        costs = [f"{r['trained']:,}", f"{r['step_against_full']:.2f}"]
        rows.append([f"**{name(method)}**", TRAINS[method], *costs, *passed])
    s = bench["settings"]
    assert s["compile"]
    head = ["method", "trains", "parameters on GPT-2", "step × full", "known skill", "new skill"]
    tuned = [scores[m, "parity"] for m in ("prompt", "prefix", "lora", "adapter")]
    sizes = "P {} and {}, rank {}, width {}".format(*(next(iter(p.cell.size.values())) for p in tuned))
    return "\n".join([table(head, rows, left=2), "", paragraph(
        "*Parameters and step: GPT-2's shape (124M), P 8, LoRA rank 8, adapter width 8; batch",
        f"{s['batch_size']} × {s['seq_len']}, compiled, {bench['card']['cores']} CPU cores. Skills, known `reverse`",
        "and new `parity`: seeds with over 0.9 exact match; base of 0.2M parameters, at most",
        f"{max(map(trained, tuned)):,} trained ({sizes}; full: all).*")])


def findings() -> str:
    """Findings, a sentence each; a sentence that the results no longer bear out stops the command."""
    it = {(p.row, p.cell.task): p for p in quality("methods")}
    above = {key: seeds_above(p) for key, p in it.items()}
    bench = {(r["method"], size(r)): r for r in bench_rows(read("bench-gpt2"))}
    prefix, full = bench["prefix", "P 8"], bench["full", "-"]
    signs = [beyond_chance(d) for d in claims.real("prompt", "full", "loss").values()]
    budget = max(trained(it[row, "parity"]) for row in ("prompt", "prefix"))

    assert above["prompt", "reverse"] == 5 and all(above["prompt", task] == 0 for task in NEW)
    assert (
        above["prefix", "parity"] >= 1
        and above["hidden prefix", "parity"] == above["prompt", "parity"] == 0)
    assert trained(it["prompt", "parity"]) == trained(it["prefix", "parity"]) == budget
    assert 0.5 < prefix["step_against_full"] < 0.7
    seeds, share = COUNTS[above["prefix", "parity"]], prefix["step_against_full"]
    peak = prefix["peak_bytes"] / full["peak_bytes"]
    return points_list(
        f"**A prompt can select a known skill; it taught none of {COUNTS[len(NEW)]} new ones**: every one of five "
        "seeds passes the known skill, and not one a new skill.",
        f"**A prefix is more than a long prompt**: with the same {budget:,} parameters it learns `parity`, a new map "
        f"of digits, in {seeds} seeds of five, a soft prompt in none; it can use keys and values that no input could "
        "produce.",
        "**Time shrinks far less than parameters**: on GPT-2's shape a prefix trains "
        f"{prefix['percent']:.2f} % of the parameters, and"
        f" a step still takes {share:.2f} of the time and {peak:.2f} of the peak memory of full "
        "fine-tuning.",
        f'**{prompt_against_full(facts()).capitalize()} at 135M parameters: "prompt tuning reaches full '
        f'fine-tuning"**: on {signs.count(1)} of {len(signs)} tasks with 200 examples its loss is higher beyond chance'
        f"{f', on {signs.count(-1)} lower' * (-1 in signs)} (five seeds). The article says it of large models; none "
        "was tried.",
        claims.little_data(),
    )


def run_block(result_name: str) -> str:
    """A run's printed lines, with the folder that its command writes today."""
    result = read(result_name)
    out = train.arguments(shlex.split(result["command"])[2:]).out
    return fenced("\n".join([*result["head"], train.report({**result, "out": out.as_posix()})]))


def costs() -> str:
    """README's cost table: GPT-2's shape, the shortest and the longest of each method that the article names."""
    bench = read("bench-gpt2")
    rows = [
        cost_row(r) for r in bench_rows(bench) if r["method"] in (*TRAINS, "llama-adapter") and size(r) != "P 32"
    ]
    head = [
        "method", "size", "trained", "adapter file", "saved for backward", "peak memory",
        "step × full", "forward × full"]
    return "\n".join(
        [
            table(head, rows),
            "",
            paragraph(
                f"*`{bench['command'].split(' --out')[0]}`, {bench['card']['cores']} CPU cores. "
                "Size: virtual tokens P, rank r,",
                "bottleneck width m, prompts K. Adapter file: safetensors. Saved for backward: "
                "tensors that autograd holds for it.*",
            ),
        ]
    )


PARAMETER_MATH = {  # method: formula of its trained parameters, and sizes
    ("soft prompt", "prompt"): ("P·C", dict(num_virtual_tokens=8)),
    ("hidden prefix", "prefix"): ("L·P·C", dict(num_virtual_tokens=8, space="hidden")),
    ("prefix", "prefix"): ("2·L·P·n_kv·hs", dict(num_virtual_tokens=8)),
    ("LLaMA-Adapter", "llama-adapter"): ("n·(P·C + nh)", dict(adapter_len=8)),
    ("LoRA", "lora"): ("r·(in + out)", dict(r=8)),
    ("bottleneck adapter", "adapter"): ("2·L·(2·C·m + m + C)", dict(bottleneck_size=8)),
    ("full fine-tuning", "full"): ("all", {})}


def parameter_math() -> str:
    """Formulas of trained parameters and their values on two shapes, in the sizes of PARAMETER_MATH."""
    shapes = {name: PRESETS[name] for name in ("gpt2", "llama-3.2-1b")}
    rows = []
    for (label, method), (formula, sizes) in PARAMETER_MATH.items():
        counts = [accounting.count(c, method, **sizes).trained for c in shapes.values()]
        totals = [accounting.base_parameters(c) for c in shapes.values()]
        cells = [cell for n, total in zip(counts, totals, strict=True) for cell in (f"{n:,}", f"{100 * n / total:.3f}")]
        rows.append([label, formula, *cells])
    head = ["method", "trained parameters", "GPT-2", "%", "Llama-3.2-1B", "%"]
    return table(head, rows, left=2)


def megabytes(n: float | None) -> str:
    return "-" if n is None else f"{n / 1e6:,.0f} MB"


def file_size(n: int) -> str:
    return f"{n / 1e6:,.0f} MB" if n >= 1e7 else f"{n / 1e3:,.0f} KB"


def cost_row(r: dict) -> list[str]:
    sizes = [
        f"{r['trained']:,}", file_size(r["adapter_bytes"]), megabytes(r["saved_bytes"]),
        megabytes(r["peak_bytes"])]
    return [
        name(r["method"]), size(r), *sizes, ratio(r["step_against_full"]),
        ratio(r["forward_against_full"])]


def results() -> str:
    """The main table of results: every method on four tasks, means over five seeds."""
    found = quality("methods")
    scores = {(p.row, p.cell.task): p for p in found}
    rows, cell = dict.fromkeys(p.row for p in found), found[0].cell
    forgets = all(scores[row, FORGOTTEN].values("forgetting") for row in rows)
    lines = [[name(row), size((p := scores[row, TASKS[0]]).cell.size), f"{trained(p):,}",
              *(plus_minus(scores[row, task].mean()) for task in TASKS),
              *[plus_minus(scores[row, FORGOTTEN].mean("forgetting")) for _ in range(forgets)]] for row in rows]
    caption = [
        f"*Exact match, mean ± 95 % over five seeds: base `{cell.base}` (0.2M parameters), {cell.steps} steps of",
        f"{cell.batch_size} examples, the best of five learning rates for each row and task (`python bench.py quality",
        "--study methods`)."]
    if forgets:
        caption += [f"Forgets: loss on all eight known skills, told, after training on `{FORGOTTEN}` less before,",
                    "nats per token."]
    head = ["method", "size", "trained", *TASKS, *["forgets"] * forgets]
    return "\n".join([table(head, lines), "", paragraph(*caption) + "*"])


def differing() -> dict:
    """The three settings in which the two results of a prefix differ: default run, and study."""
    study = {p.cell.task: p for p in quality("methods") if p.row == "prefix"}
    run = {task: read(f"train-prefix-{task}") for task in TASKS}
    lr = METHODS["prefix"].learning_rate
    return {"study": study, "run": run, "lr": lr}


def two_tables() -> str:
    """On why single runs at the defaults score higher than README's table, which is of the study."""
    d = differing()

    def gain(task: str, study: Point, run: dict) -> str:
        return f"{run['exact_match'][1]:.2f} instead of {study.mean()[0]:.2f} on `{task}`"

    prefix = [gain(task, d["study"][task], d["run"][task]) for task in ("parity", "reverse+increment")]
    study = {(p.row, p.cell.task): p for p in quality("methods")}
    lora = gain("differences", study["lora", "differences"], read("train-lora-differences"))
    adapter = gain("reverse", study["adapter", "reverse"], read("train-adapter-reverse"))
    cell = d["study"]["parity"].cell
    assert {d["study"][t].cell.lr for t in ("parity", "reverse+increment")} == {cell.lr}
    return paragraph(
        f"These score higher than README's table: a prefix (P 8) reaches {prefix[0]} and {prefix[1]}.",
        f"Three settings differ: a base of 0.8M parameters, not 0.2M; 64 examples a step, not {cell.batch_size};",
        f"a learning rate of {d['lr']:g}, not the {cell.lr:g} that the sweep chose. (And it is one seed, not five.)",
        f"So it is with LoRA (r 8): {lora}; and with the bottleneck adapter (m 8): {adapter}.")


# Pages


def side_by_side() -> str:
    """The prefix's two results beside the settings in which they differ."""
    d = differing()
    study = d["study"]["parity"]
    rows = [
        ["base", "`nano`, 826,240 parameters", f"`{study.cell.base}`, 216,512 parameters"],
        ["examples a step", "64", str(study.cell.batch_size)],
        [
            "learning rate", f"{d['lr']:g}, the default",
            f"{study.cell.lr:g} on both, the best of a sweep with one seed"],
        ["seeds", "1", str(len(study.runs))],
    ]
    for task in ("parity", "reverse+increment"):
        rows.append(
            [
                f"exact match on `{task}`", f"{d['run'][task]['exact_match'][1]:.2f}",
                plus_minus(d["study"][task].mean())])
    head = ["prefix, P 8, 300 steps", "`python train.py`", "`bench.py quality --study methods`"]
    above = {p.cell.lr: seeds_above(p) for p in quality("projection") if p.row == "prefix"}
    assert above[d["lr"]] > above[study.cell.lr]
    text = paragraph(
        "Of the three, only the learning rate was varied alone, with 16 virtual tokens on "
        "`parity`: exact match is above 0.9 in",
        f"{COUNTS[above[d['lr']]]} seeds of five at {d['lr']:g}, and in "
        f"{COUNTS[above[study.cell.lr]]} at {study.cell.lr:g}, which a sweep",
        "over one seed prefers.",
    )
    return "\n".join([table(head, rows, left=3), "", text])


def scores_table() -> str:
    """One run of `train.py` for every method and task, at its defaults; methods that have been run."""
    rows = []
    for method in (m for m in METHODS if (RESULTS / f"train-{m}-{TASKS[0]}.json").exists()):
        of_tasks = [read(f"train-{method}-{task}") for task in TASKS]
        cells = ["{:.2f} → {:.2f}".format(*r["exact_match"]) for r in of_tasks]
        rows.append([f"`{method}`", f"{of_tasks[0]['trained']:,}", *cells])
    return table(
        ["method", "trained", *(f"{task} ({find_task(task).kind})" for task in TASKS)], rows
    )


def wordings() -> str:
    """The wordings that a hard prompt was chosen from, and what the search found, on the default task."""
    chosen = read("train-hard-prompt-reverse")["wordings"]
    known = {w["wording"] for w in chosen}
    found = [w for w in read("search-reverse")["wordings"] if w["wording"] not in known]

    def row(w: dict, before: str = "") -> list[str]:
        return [f"{before}`{w['wording']}`", f"{w['exact_match']:.3f}", f"{w['loss']:.3f}"]

    rows = [
        *map(row, chosen[:5]), [f"… {len(chosen) - 6} more, the worst of them:", "", ""],
        row(chosen[-1])]
    return table(
        ["hard prompt", "exact match", "loss"],
        rows + [row(w, "found by the search: ") for w in found])


def climb() -> str:
    return fenced(train.climb_table([read(f"climb-{level}") for level in train.LADDER]))


def bases_table() -> str:
    rows = []
    for r in read("bases")["rows"]:
        scores = ("-" if r[key] is None else f"{r[key]:.3f}" for key in ("told", "worst_told", "not_told"))
        rows.append([f"`{r['size']}`", f"{r['parameters']:,}", *scores, f"{r['seconds'] / 60:.0f}"])
    return table(
        ["base", "parameters", "with instruction", "worst skill", "without", "minutes"], rows
    )


def skills_table() -> str:
    skills = json.loads((NANO / "scores.json").read_text(encoding="utf-8"))["skills"]
    kinds = {"told": "with instruction", "not told": "without"}
    rows = [
        [f"`{skill}`", *(f"{score[kind]:.3f}" for kind in kinds)] for skill, score in skills.items()
    ]
    return table(["skill", *kinds.values()], rows)


def cost_sizes(result_name: str) -> str:
    rows = []
    for r in bench_rows(read(result_name)):
        sizes = [f"{r['trained']:,}", f"{r['percent']:.3f}", f"{r['adapter_bytes'] / 1e3:,.1f}"]
        memory = [
            f"{r[key] / 1e6:,.{d}f}" if r[key] else "-"
            for key, d in (("optimizer_bytes", 2), ("saved_bytes", 1), ("peak_bytes", 0))
        ]
        rows.append([name(r["method"]), size(r), *sizes, *memory])
    return table(
        [
            "method", "size", "trained", "% of both", "adapter KB", "optimizer MB", "saved MB",
            "peak MB"],
        rows,
    )


def cost_times(result_name: str) -> str:
    rows = []
    for r in read(result_name)["rows"]:
        step = spread(r["step_ms"]) if r["step_ms"] else "-"
        ratios = [ratio(r["step_against_full"]), ratio(r["step_against_floor"])]
        compiled = f"{r['compile_s']:.1f}" if r["compile_s"] else "-"
        forward = [f"{r['forward_ms']['median']:,.1f}", ratio(r["forward_against_full"])]
        rows.append([name(r["method"]), size(r), step, *ratios, *forward, compiled])
    return table(
        [
            "method", "size", "step ms (p10–p90)", "× full", "× floor", "forward ms", "× full",
            "compile s"],
        rows,
    )


def bench_block(result_name: str) -> str:
    result = read(result_name)
    head = paragraph(
        f"*`{result['command'].split(' --out')[0]}`: {setup(result)}, "
        f"{result['settings']['steps']} steps; large matmuls run at",
        f"{result['rate'] / 1e9:.0f} GFLOP/s.*",
    )
    return "\n\n".join([head, cost_sizes(result_name), cost_times(result_name)])


def article() -> str:
    """The output of `python bench.py params --model t5-xxl --method prompt --num-virtual-tokens 5`."""
    settings = params.ParamsSettings("t5-xxl", "prompt", {"num_virtual_tokens": 5}, 1000, 8, 128)
    return fenced(params.table(params.run(settings)))


def shape(r: dict) -> str:
    return f"{r['B']} × {r['nh']} × {r['T']}, P {r['P']}, hs {r['hs']}"


def by_shape(result_name: str) -> dict[tuple[str, str], dict[str, dict]]:
    """{(dtype, shape): {backend: its row}}."""
    by: dict[tuple[str, str], dict[str, dict]] = {}
    for r in read(result_name)["rows"]:
        by.setdefault((r["dtype"], shape(r)), {})[r["backend"]] = r
    return by


def best_sdpa(its: dict[str, dict], times: str) -> float:
    """Milliseconds of the fastest SDPA of one shape: eager, or compiled where that was measured."""
    return min(r[times]["median"] for backend, r in its.items() if backend.startswith("sdpa"))


def against_sdpa(its: dict[str, dict], backend: str, times: str = "ms") -> float:
    return its[backend][times]["median"] / best_sdpa(its, times)


def attention_table() -> str:
    """Each shape in one line: textbook and fused kernel against torch's operator."""
    result, rows, ratios = read("attention"), [], {}
    for (dtype, its_shape), its in by_shape("attention").items():
        times = [
            ratio(against_sdpa(its, "reference")), ratio(against_sdpa(its, "fused", "forward_ms")),
            ratio(against_sdpa(its, "fused"))]
        saved = [f"{its[x]['saved_bytes'] / 1e6:.1f}" for x in ("sdpa", "fused")]
        rows.append([dtype, its_shape, f"{best_sdpa(its, 'ms'):.1f}", *times, *saved])
        ratios.setdefault(dtype, []).append(against_sdpa(its, "fused"))
    head = [
        "dtype", "B × nh × T, P, hs", "sdpa ms", "textbook ×", "fused forward ×", "fused ×",
        "sdpa saved MB", "fused saved MB"]
    means = ", ".join(f"{geometric_mean(its):.2f} in {dtype}" for dtype, its in ratios.items())
    errors = {
        dtype: max(r["error"] for r in result["rows"] if r["dtype"] == dtype) for dtype in ratios}
    worst = ", ".join(f"{error:.0e} in {dtype}" for dtype, error in errors.items())
    growth = "; ".join(
        f"{g['time']:.2f} × the time for {g['flops']:.2f} × the operations with P {g['P']} in "
        f"{g['dtype']}"
        for g in result["growth"]
    )
    text = paragraph(
        f"Geometric mean of *fused ×*: {means}. Largest relative error of any backend against "
        f"float64: {worst}. The fused kernel with a",
        f"prefix against without, at 4 × 12 × 512: {growth}.",
    )
    return "\n".join([table(head, rows, left=2), "", text])


def short_attention() -> str:
    """Fused over sdpa at the short shapes, forward and backward."""
    return table(
        ["dtype", "B × nh × T, P, hs", "fused ×"],
        [[*key, ratio(against_sdpa(its, "fused"))] for key, its in by_shape("attention-short").items()], left=2)


def busy_attention() -> str:
    """Ratios of auto to the faster sdpa, alone and beside a busy process."""
    result, rows = read("attention-beside"), []
    parts = {"alone, spin": result, "beside one, sleep": result["beside"]}
    for where, part in parts.items():
        for r in part["ratios"]:
            if r["backend"] == "auto":
                cells = [f"{r[mean]:.2f} ({r[worst]:.2f})"
                         for mean, worst in (("forward_mean", "forward_worst"), ("mean", "worst"))]
                rows.append([r["dtype"], where, *cells])
    rows.sort(key=lambda row: row[0], reverse=True)
    return table(["dtype", "measured", "forward ×", "forward and backward ×"], rows, left=2)


WORKS = {
    "nano": "training step, nano, eager", "step": "training step, SmolLM2-135M, eager",
    "generation": "generation with SmolLM2-135M", "sdpa": "attention, `sdpa`, both passes",
    "fused": "attention, `fused`, both passes"}
WAITING = {(0, "spin"): "alone, spin", (0, "sleep"): "alone, sleep", (1, "spin"): "beside one, spin",
           (1, "sleep"): "beside one, sleep"}


def waiting_table() -> str:
    """Threads that spin and that sleep while they wait, alone and beside a busy process; and attention's operators."""
    by = {WAITING[r["beside"], r["waiting"]]: r for r in read("waiting")["rows"]}
    rows = [[name, *(f"{r['ms'][work]:,.0f}" for r in by.values())] for work, name in WORKS.items()]
    for backend in ("sdpa", "fused"):
        longest = next(iter(by.values()))["operators"][backend][0]
        name, calls = longest["name"].removeprefix("aten::").strip("_"), longest["calls"]
        times = [next(o["ms"] for o in r["operators"][backend] if o["name"] == longest["name"]) for r in by.values()]
        rows.append([f"of `{backend}`: {calls:.0f} × `{name}`", *(f"{ms:,.0f}" for ms in times)])
    return table(["milliseconds", *by], rows, left=1)


SERVED = {
    "base": "the base", "prefix tasks": "prefixes, mixed", "lora tasks": "LoRA, mixed",
    "full copies": "full copies"}
SERVED |= {"shared": "one prefix, shared", "copied": "one prefix, copied for each row"}


def serving_table() -> str:
    result = read("serving")
    rows = []
    for r in result["rows"]:
        throughput = [f"{r['tokens_per_s']:,.0f}", ratio(r["against_base"])]
        memory = f"{r['extra_bytes'] / 1e6:,.0f}"
        rows.append(
            [
                SERVED[r["kind"]], r["n"] or "-", f"{r['P']:,}" if r["P"] else "-",
                spread(r["step_ms"]), f"{r['floor_ms']:,.1f}", *throughput, memory])
    s = result["settings"]
    left_out = "; ".join(
        f"{SERVED[r['kind']]}, {r['n'] or format(r['P'], ',')}: {r['bytes_needed'] / 1e9:.1f} GB"
        for r in result["left_out"]
    )
    head = [
        "served", "tasks", "P", "ms a token (p10–p90)", "floor ms", "tokens/s", "× base",
        "above base MB"]
    return "\n".join(
        [
            paragraph(
                f"*`{result['command'].split(' --out')[0]}`: {PRESET_NAMES[s['preset']]}'s shape, "
                f"batch {s['batch_size']}, prompts of {s['seq_len']}",
                f"tokens, {s['steps']} tokens timed; {result['card']['cores']} CPU cores, torch "
                f"{version(result['card'], 'torch')}.*",
            ),
            "",
            table(head, rows),
            "",
            paragraph(
                serving_ratios(result),
                f"Not measured, because of the memory it would take: {left_out}.")])


def serving_ratios(result: dict) -> str:
    base, *shared = (r for r in result["rows"] if r["kind"] == "base" or (r["kind"] == "shared" and r["P"] > 1000))
    ms = {(r["P"], key): r[key] for r in shared for key in ("step_ms", "floor_ms")}
    cost = 100 * (1 - base["step_ms"]["median"] / ms[1024, "step_ms"]["median"])
    least = 100 * (1 - base["floor_ms"] / ms[1024, "floor_ms"])
    long = ms[16384, "step_ms"]["median"] / ms[1024, "step_ms"]["median"]
    at = {(r["of"], r["to"], r["what"]): r["value"] for r in result["ratios"]}
    mixed = [at[f"64 {kind} tasks mixed", "one", "throughput"] for kind in ("prefix", "lora")]
    copies = at["8 prefix tasks mixed", "8 full copies", "throughput"]
    speed, memory = (
        at["a shared prefix of 1,024", "copies of it", what]
        for what in ("speed of the attention alone", "extra memory"))
    return (
        f"64 tasks mixed have {mixed[0]:.2f} (prefixes) and {mixed[1]:.2f} (LoRA) of the "
        f"throughput of one; 8 prefixes mixed have {copies:.1f} × "
        f"that of 8 full copies. The attention alone over a shared prefix of 1,024 is {speed:.1f} "
        f"× as fast as over copies, with {memory:.2f} of "
        f"their extra memory. A shared prefix of 1,024 costs {cost:.0f} % of the base's throughput; at the speed of "
        f"large matmuls, the floor, it would be {least:.0f} %. One of 16,384 takes {long:.1f} × the time of one of "
        f"1,024, by the floors {ms[16384, 'floor_ms'] / ms[1024, 'floor_ms']:.1f} ×.")


def e2e_table() -> str:
    """The methods on SmolLM2 and E2E."""
    result = read("e2e-smollm2")
    rows = []
    for method, r in result["runs"].items():
        lr = (
            min(result["probes"][method], key=result["probes"][method].get)
            if method in result["probes"] else "-")
        minutes = f"{r['seconds'] / 60:.1f}" if r["seconds"] else "-"
        scores = [
            f"{r['answers']['bleu']:.1f}", f"{r['answers']['chrf']:.1f}", f"{r['loss'][1]:.3f}"]
        rows.append(
            [
                name(method), lr, f"{r['trained']:,}", *scores, minutes,
                f"{r['peak_bytes'] / 1e9:.1f} GB"])
    head = ["method", "learning rate", "trained", "BLEU", "chrF", "loss", "minutes", "peak memory"]
    larger = [
        name(m) for m, losses in result["probes"].items()
        if min(losses, key=losses.get) == max(losses, key=float)]
    return "\n".join(
        [
            table(head, rows),
            "",
            paragraph(
                f"The hard prompt is the best of {len(result['wordings'])} wordings by its loss on "
                "the validation pairs. Prompt and prefix",
                "start from it and have its length; the others start from the bare base. Each "
                "trained method took the better of two learning",
                f"rates by its validation loss after one epoch, then {result['epochs']} epochs. "
                "The larger learning rate was better for",
                f"{', '.join(larger)}, so still larger ones may do better.",
            ),
        ]
    )


def e2e_samples() -> str:
    """One test input and the answers to it."""
    samples = read("e2e-smollm2")["samples"]
    lines = [f"- `{samples['full'][1]['input']}`"]
    return "\n".join(
        lines
        + [f"  - {name(method)}: {printable(its[1]['answer'])}" for method, its in samples.items()])


def hyperparameters() -> str:
    """Every argument of adapt(), as the methods declare it."""
    rows = []
    for key, method in METHODS.items():
        hints, its = typing.get_type_hints(method.__init__), []
        for argument, p in method.arguments().items():
            spec = method.hyperparameters[argument]
            help_, _, follows = spec.help.removesuffix(")").partition(" (default: ")
            default = "required" if p.default is p.empty else follows or f"`{p.default!r}`".replace("'", '"')
            its.append([f"`{argument}`", spec.symbol or "-", kinds(hints[argument]), default, help_])
        names = [[name(key), f"`{key}`"]] + [["", ""]] * len(its)
        rows += [first + row for first, row in zip(names, its or [["-"] * 5], strict=False)]
    head = ["method", "name in code", "hyper-parameter", "symbol", "type", "default", "meaning"]
    return table(head, rows, left=len(head))


def kinds(hint) -> str:
    """A type as a reader would say it: its options, or the names of its classes."""
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f'`"{option}"`' for option in typing.get_args(hint))
    classes = [typing.get_origin(x) or x for x in typing.get_args(hint) or [hint]]
    return ", ".join(f"`{x.__name__}`" for x in classes if x not in (type(None), tuple))


def yes(x: bool) -> str:
    return "yes" if x else "NO"


def faults() -> str:
    """The provoked faults, how often, and the outcome."""
    rows = []

    def row(fault: str, provoked: str, times: int, outcome: str) -> None:
        rows.append([provoked, f"{times:,}", outcome, f"`python -m tests.faults {fault}`"])

    for fault, provoked in (
        ("kill", "`kill -9` at a random moment, then `--resume`"),
        ("terminate", "SIGTERM (exit code 143), then `--resume`")):
        r = read(f"faults-{fault}")
        writing = r["stopped"].get("while a state was written", 0)
        outcome = f"{r['identical']} end bit for bit like the uninterrupted run"
        row(
            fault, provoked, r["times"],
            outcome + f" ({writing} stopped while a checkpoint was written)" * bool(writing))
    r = read("faults-disk")
    outcome = f"exit code {r['exit_code']}, one line; checkpoints untouched: {yes(r['states_untouched'])}; "
    row(
        "disk", "full disk while a checkpoint is written", 1,
        outcome + f"resumed, bit for bit the same: {yes(r['resumed_identical'])}")
    r = read("faults-files")["counts"][-1]
    outcome = f"{r['right']:,} read correctly, {r['refused']:,} refused in one line, {r.get('failed', 0)} anything else"
    row(
        "files",
        "damaged and forged files: bit flips, truncations, claimed terabytes, malicious pickles …",
        r["tried"], outcome)
    r = read("faults-processes")["rows"]
    slowest, same = max(x["seconds"] for x in r), sum(x["by_two"] == "identical" for x in r)
    outcome = (
        f"the job ends within {slowest:.1f} s; {same} of {len(r)} resumed, bit for bit the same"
    )
    row("processes", "one of two processes killed", len(r), outcome)
    r = read("soak")
    first, last = r["quarters"][1], r["quarters"][-1]
    growth = last["resident_mb"] / first["resident_mb"]
    outcome = f"memory, last quarter over second: {growth:.4f}; handles {first['handles']} and {last['handles']}"
    row(
        "soak", "steps of tuning, saving, loading, generating, detaching", r["settings"]["steps"],
        outcome)
    return table(["provoked", "times", "outcome", "command"], rows, left=4)


def sent_by_two() -> str:
    """The lines that a run of two processes prints on the nano shape."""
    lines = {r["method"]: r["traffic"] for r in read("faults-processes")["rows"]}
    return fenced("\n".join(f"{method:<7} {line}" for method, line in lines.items()))


BLOCKS: dict[str, Callable[[], str]] = {
    "summary": summary, "findings": findings,
    "train-prefix-reverse": lambda: run_block("train-prefix-reverse"), "costs": costs,
    "parameter-math": parameter_math, "results": results, "two-tables": two_tables, "side-by-side": side_by_side,
    "claims": claims.table, "scores": scores_table, "wordings": wordings, "climb": climb,
    "bases": bases_table, "skills": skills_table, "bench-nano": lambda: bench_block("bench-nano"),
    "bench-gpt2": lambda: bench_block("bench-gpt2"), "article": article,
    "attention": attention_table, "attention-short": short_attention,
    "attention-beside": busy_attention, "waiting": waiting_table,
    "serving": serving_table, "e2e": e2e_table, "e2e-samples": e2e_samples, "tree": tree.tree,
    "faults": faults, "hyperparameters": hyperparameters, "processes": sent_by_two,
    **compatibility.BLOCKS, **versions.BLOCKS, **peers_tables.BLOCKS, **document_tables.BLOCKS,
    **quantised_tables.BLOCKS, **advice.BLOCKS,
    "traffic-gpt2": lambda: processes.table("gpt2"),
    "traffic-llama-3.2-1b": lambda: processes.table("llama-3.2-1b"),
    **{block: lambda block=block: excerpts.excerpt(block) for block in excerpts.EXCERPTS}}
PLACE = re.compile(r"(<!-- ([\w.+-]+) -->\n)(.*?)(<!-- /\2 -->)", re.DOTALL)


def pages() -> list[Path]:
    """README and the pages of docs/, in both languages."""
    found = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
    return (
        found + sorted((ROOT / "docs").glob("*.md"))
        + sorted((ROOT / "docs" / "zh-CN").glob("*.md")))


def is_chinese(page: Path) -> bool:
    return "zh-CN" in page.as_posix().removeprefix(ROOT.as_posix())


def filled(page: Path) -> str:
    """The page's text with every place made anew; a place that BLOCKS does not name stays as it is."""

    def made(m: re.Match) -> str:
        if m[2] not in BLOCKS:
            return m[0]
        text = BLOCKS[m[2]]()
        if is_chinese(page):
            text = chinese.translated(text)
        return f"{m[1]}{text}\n{m[4]}"

    return PLACE.sub(made, page.read_text(encoding="utf-8"))


def files() -> dict[Path, str]:
    """Every page that this tool fills, and its text."""
    return {
        page: filled(page) for page in pages() if PLACE.search(page.read_text(encoding="utf-8"))
    }


if __name__ == "__main__":
    for path, text in files().items():
        write_text(path, text)
