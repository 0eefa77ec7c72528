#!/usr/bin/env python3
"""Fill the README's marked places from the result files in docs/results and from closed forms, so that no figure is typed by hand.

python docs/tables.py

README.zh-CN.md has the same places. Those with words to translate are written by hand there, and tests/test_readme.py compares
their numbers.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import claims  # noqa: E402

import train  # noqa: E402
from minipeft import METHODS  # noqa: E402
from minipeft.bench import attention, bases, cost, params, peers, serving  # noqa: E402
from minipeft.bench.quality import grid  # noqa: E402
from minipeft.bench.quality.summary import beyond_chance, points  # noqa: E402
from minipeft.bench.report.tables import shown  # noqa: E402
from minipeft.data import NANO  # noqa: E402
from minipeft.data.tasks import find_task  # noqa: E402
from minipeft.files.atomic import write_text  # noqa: E402
from minipeft.runtime.console import shown_as  # noqa: E402

RESULTS = ROOT / "docs" / "results"
TASKS = ("reverse", "reverse+increment", "differences", "parity")


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def fenced(text: str) -> str:
    return f"```text\n{text}\n```"


def run_block(name: str) -> str:
    result = read(RESULTS / f"{name}.json")
    return fenced("\n".join([*result["head"], train.report(result)]))


def article() -> str:
    """What `python bench.py params --model t5-xxl --method prompt --num-virtual-tokens 5` prints."""
    return fenced(params.table(params.run(params.Settings("t5-xxl", "prompt", {"num_virtual_tokens": 5}, 1000, 8, 128))))


def findings() -> str:
    """The main figure, and three sentences to repeat; what the lines no longer bear out stops the command."""
    lines = grid.read(RESULTS / "quality.jsonl")
    it = {(p.row, p.cell.task): p for p in points(lines, "methods")}
    few = {p.row: p for p in points(lines, "data") if (p.cell.task, p.cell.examples) == ("reverse", 10)}
    steady = max((p for p in points(lines, "projection") if p.row == "prefix"), key=lambda p: p.mean()[0])
    real = {p.row: p for p in points(lines, "real") if p.cell.examples == 50}
    P = steady.cell.size["num_virtual_tokens"]
    trained = max(run["trained"] for key, p in it.items() if key[0] == "prefix" for run in p.runs.values())

    def listed(of: dict, what: str = "score") -> str:
        return ", ".join(f"{row.replace('lora', 'LoRA')} {shown(p.mean(what))}" for row, p in of.items())

    def scores(task: str, *rows: str) -> str:
        return listed({row: it[row, task] for row in rows})

    def ahead(a, b) -> bool:
        return beyond_chance(a.less(b)) > 0

    assert all(it[row, "reverse"].mean()[0] > 0.9 for row in ("prompt", "prefix", "lora"))
    assert all(ahead(it["lora", "reverse+increment"], it[row, "reverse+increment"]) for row in ("prompt", "prefix"))
    assert all(ahead(it["prefix", "parity"], it[row, "parity"]) for row in ("prompt", "hidden prefix")) and steady.mean()[0] > 0.99
    assert all(ahead(few["prompt"], few[row]) for row in ("prefix", "lora", "full"))
    assert all(beyond_chance(real["full"].less(real[row], "loss")) > 0 for row in ("prompt", "prefix"))
    return "\n".join(
        [
            "![exact match of every method on four tasks](docs/results/figures/quality-methods.png)",
            "",
            "- **To choose among what a base knows a prompt is enough; to teach it more it is not.** A known skill, no instruction given:",
            f"  {scores('reverse', 'prompt', 'prefix', 'lora')} exact match, with {trained:,} trained parameters each. Two skills in",
            f"  a row, never seen together: {scores('reverse+increment', 'prompt', 'prefix', 'lora')}.",
            f"- **A prefix is more than a long prompt.** A new map of digits: {scores('parity', 'prefix', 'prompt', 'hidden prefix')},",
            f"  at equal parameters; with {P} tokens at a gentler rate the prefix has {shown(steady.mean())}.",
            "  It learns by keys and values that no input gives.",
            "- **With few examples the prompt wins, where the base has the skill.** From 10 examples: " + listed(few) + ".",
            "  SmolLM2-135M, from 50 descriptions of restaurants: prompt and prefix, which start from a wording, have less loss on",
            f"  new ones than full fine-tuning ({listed(real, 'loss')}).",
            "",
            "Means over 5 seeds, ± 95 %; a base of 0.2 million parameters where none is named, and every method the best of three rates.",
            "[The comparison](docs/results/comparison.md) has all studies, what they cost, and what papers reported beside it.",
        ]
    )


def scores_table() -> str:
    rows = [
        "| method | trained | " + " | ".join(f"{task} ({find_task(task).kind})" for task in TASKS) + " |",
        "|---|---|" + "---|" * len(TASKS),
    ]
    for method in METHODS:
        results = [read(RESULTS / f"train-{method}-{task}.json") for task in TASKS]
        cells = ["{:.2f} → {:.2f}".format(*r["exact_match"]) for r in results]
        rows.append(f"| `{method}` | {results[0]['trained']:,} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def wordings() -> str:
    """What a hard prompt was chosen from, and what the search found, on the default task."""
    rows = ["| hard prompt | exact match | loss |", "|---|---|---|"]
    cell = "| `{wording}` | {exact_match:.3f} | {loss:.3f} |"
    chosen = read(RESULTS / "train-hard-prompt-reverse.json")["wordings"]
    rows += [cell.format(**w) for w in chosen[:5]] + [f"| … {len(chosen) - 6} more, the worst of them: | | |", cell.format(**chosen[-1])]
    texts = {w["wording"] for w in chosen}
    found = [w for w in read(RESULTS / "search-reverse.json")["wordings"] if w["wording"] not in texts]
    return "\n".join(rows + ["| found by the search: " + cell.format(**w)[2:] for w in found])


def climb() -> str:
    return fenced(train.climb_table([read(RESULTS / f"climb-{rung}.json") for rung in train.LADDER]))


def short_attention() -> str:
    """fused over sdpa at the short shapes, forward and backward."""
    rows = [r for r in read(RESULTS / "attention-short.json")["rows"] if r["backend"] == "fused"]
    return "\n".join(
        ["| dtype | B | heads | T | P | hs | fused × sdpa |", "|---|---|---|---|---|---|---|"]
        + ["| {dtype} | {B} | {nh} | {T} | {P} | {hs} | {against_sdpa:.2f} |".format(**r) for r in rows]
    )


def skills_table() -> str:
    skills = read(NANO / "scores.json")["skills"]
    rows = ["| | " + " | ".join(skills) + " |", "|---|" + "---|" * len(skills)]
    for kind in ("told", "not told"):
        rows.append(f"| {kind} | " + " | ".join(f"{score[kind]:.3f}" for score in skills.values()) + " |")
    return "\n".join(rows)


def e2e_table() -> str:
    """The methods on SmolLM2 and E2E, and what they write."""
    result = read(RESULTS / "e2e-smollm2.json")
    rows = [
        "| method | rate | trained | adapter | BLEU | chrF | loss | minutes | peak memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for method, r in result["runs"].items():
        rate = min(result["probes"][method], key=result["probes"][method].get) if method in result["probes"] else "-"
        minutes = f"{r['seconds'] / 60:.1f}" if r["seconds"] else "-"
        size = f"{r['kb'][0]:,.0f} KB" if r["kb"][0] < 1e4 else f"{r['kb'][0] / 1000:,.0f} MB"
        scores = "{bleu:.1f} | {chrf:.1f}".format(**r["answers"])
        peak = f"{r['peak_bytes'] / 1e9:.1f} GB"
        rows.append(f"| `{method}` | {rate} | {r['trained']:,} | {size} | {scores} | {r['loss'][1]:.3f} | {minutes} | {peak} |")
    words, tuned = result["runs"]["hard-prompt"], [r for r in result["runs"].values() if r["trained"]]
    larger = [m for m, losses in result["probes"].items() if min(losses, key=losses.get) == max(losses, key=float)]
    smallest = min(tuned, key=lambda r: r["kb"][0])
    gain = min(r["answers"]["bleu"] for r in tuned) - words["answers"]["bleu"]
    rows += [
        "",
        f"The hard prompt is the best of {len(result['wordings'])} wordings by its loss on the dev pairs. Prompt and prefix start from",
        "it and have its length, the others start from the bare base. Every trained method took the better of two learning rates by the",
        f"loss on the dev pairs after one epoch ({', '.join(larger)}: the larger, so that still larger ones may do better), then",
        f"{result['epochs']} epochs. From words to anything trained BLEU goes up by {gain:.0f} or more; the smallest file that does it has",
        f"{smallest['kb'][0]:,.0f} KB.",
    ]
    rows += ["", "What they write:", ""]
    for i, sample in enumerate(result["samples"]["full"]):
        rows += [f"- `{sample['input']}`"] + [f"  - {method}: {shown_as(s[i]['answer'])}" for method, s in result["samples"].items()]
    return "\n".join(rows)


def profile_table() -> str:
    """Where the steps of the nano shape go, and how much of PEFT's whole step our products alone are."""
    rows = read(RESULTS / "profile-nano.json")["rows"]
    lines = ["| method | | products | fused attention | the rest |", "|---|---|---|---|---|"]
    lines += ["| `{method}` | {rival} | {products:.1f} ms | {attention:.1f} ms | {rest:.1f} ms |".format(**r) for r in rows]
    shares = []
    for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
        shares.append(f"{ours['products'] / (theirs['products'] + theirs['attention'] + theirs['rest']):.2f}")
    return "\n".join([*lines, "", f"minipeft's products alone are {', '.join(shares)} of PEFT's whole eager step."])


def faults() -> str:
    """What was provoked, how often, and what came of it."""
    rows = ["| provoked | times | what came of it | command |", "|---|---|---|---|"]

    def row(name: str, what: str, times: int, outcome: str) -> None:
        rows.append(f"| {what} | {times:,} | {outcome} | `python -m tests.faults {name}` |")

    for name, what in (
        ("kill", "`kill -9` at a random moment, then `--resume`"),
        ("terminate", "SIGTERM (exit code 143), then `--resume`"),
    ):
        r = read(RESULTS / f"faults-{name}.json")
        where = ", ".join(f"{n} {place}" for place, n in r["stopped"].items())
        row(name, what, r["times"], f"{r['identical']} end bit for bit like the uninterrupted run ({where})")
    r = read(RESULTS / "faults-disk.json")
    line = f"exit code {r['exit_code']}, one line; states untouched: {yes(r['states_untouched'])}"
    row("disk", "a full disk while a state is written", 1, f"{line}; resumed, bit for bit the same: {yes(r['resumed_identical'])}")
    r = read(RESULTS / "faults-files.json")["counts"][-1]
    outcome = f"{r['right']:,} read as what they hold, {r['refused']:,} refused in one line, {r.get('failed', 0)} anything else"
    row("files", "damaged and forged files: bit flips, truncations, claimed terabytes, malicious pickles …", r["tried"], outcome)
    r = read(RESULTS / "faults-processes.json")["rows"]
    slowest, same = max(x["seconds"] for x in r), sum(x["by_two"] == "identical" for x in r)
    outcome = f"the job ends within {slowest:.1f} s; {same} of {len(r)} resumed, bit for bit the same"
    row("processes", "one of two processes killed", len(r), outcome)
    r = read(RESULTS / "soak.json")
    first, last = r["quarters"][1], r["quarters"][-1]
    ratio = last["resident_mb"] / first["resident_mb"]
    outcome = f"memory, last quarter over second: {ratio:.4f}; handles {first['handles']} and {last['handles']}"
    row("soak", "steps of tuning, saving, loading, generating, detaching", r["settings"]["steps"], outcome)
    return "\n".join(rows)


def yes(x: bool) -> str:
    return "yes" if x else "NO"


def processes() -> str:
    """What a step of two processes sends, on the nano shape."""
    lines = {r["method"]: r["traffic"] for r in read(RESULTS / "faults-processes.json")["rows"]}
    return fenced("\n".join(f"{method:<7} {line}" for method, line in lines.items()))


BLOCKS = {
    "findings": findings,
    "bases": lambda: fenced(bases.table(read(RESULTS / "bases.json"))),
    "claims": claims.table,
    "faults": faults,
    "processes": processes,
    "train-prefix-reverse": lambda: run_block("train-prefix-reverse"),
    "scores": scores_table,
    "wordings": wordings,
    "climb": climb,
    "serving": lambda: fenced(serving.table(read(RESULTS / "serving.json"))),
    "bench-nano": lambda: fenced(cost.table(read(RESULTS / "bench-nano.json"))),
    "bench-gpt2": lambda: fenced(cost.table(read(RESULTS / "bench-gpt2.json"))),
    "article": article,
    "attention": lambda: fenced(attention.table(read(RESULTS / "attention.json"))),
    "attention-short": short_attention,
    "peers-gpt2-float32": lambda: fenced(peers.table(read(RESULTS / "peers-gpt2-float32.json"))),
    "peers-gpt2-bfloat16": lambda: fenced(peers.table(read(RESULTS / "peers-gpt2-bfloat16.json"))),
    "peers-nano": lambda: fenced(peers.table(read(RESULTS / "peers-nano.json"))),
    "profile-nano": profile_table,
    "skills": skills_table,
    "e2e": e2e_table,
}


PROSE = ("findings", "claims", "faults", "wordings", "profile-nano", "skills", "e2e")  # those with words to translate
PAGES = {
    "README.md": BLOCKS,
    "README.zh-CN.md": {name: block for name, block in BLOCKS.items() if name not in PROSE},
}


def filled(page: str, blocks: dict[str, Callable[[], str]]) -> str:
    """The page with everything between `<!-- name -->` and `<!-- /name -->` made anew, for the names in blocks."""
    for name, block in blocks.items():
        place = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text = block()
        page, n = place.subn(lambda m, text=text: f"{m[1]}{text}\n{m[2]}", page)
        assert n == 1, f"the page has {n} places for {name}"
    return page


if __name__ == "__main__":
    for name, blocks in PAGES.items():
        write_text(ROOT / name, filled((ROOT / name).read_text(encoding="utf-8"), blocks))
