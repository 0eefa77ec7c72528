"""Tables of single runs: train.py at its defaults, bases, wordings, and SmolLM2 on E2E.

tables.py fills them in.
"""

import json
import shlex

import train
from docs.tools.markdown import fenced, name, paragraph, table
from docs.tools.results import RESULTS, found_by_search, read
from docs.tools.study_tables import TASKS
from minipeft import METHODS
from minipeft.data import NANO
from minipeft.data.tasks import find_task
from minipeft.runtime.console import printable


def run_block(result_name: str) -> str:
    """A run's printed lines, with the folder that its command writes today."""
    result = read(result_name)
    out = train.arguments(shlex.split(result["command"])[2:]).out
    return fenced("\n".join([*result["head"], train.report({**result, "out": out.as_posix()})]))


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

    def row(w: dict, before: str = "") -> list[str]:
        return [f"{before}`{w['wording']}`", f"{w['exact_match']:.3f}", f"{w['loss']:.3f}"]

    rows = [
        *map(row, chosen[:5]), [f"… {len(chosen) - 5} more, the worst of them:", "", ""],
        row(chosen[-1])]
    return table(
        ["hard prompt", "exact match", "loss"],
        rows + [row(w, "found by the search: ") for w in found_by_search()])


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
                f"rates by its validation loss after one epoch, then {result['epochs']} epochs.",
                f"The larger learning rate was better for {', '.join(larger)}, so still larger ones may do better."
                if larger else "",
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


BLOCKS = {"train-prefix-reverse": lambda: run_block("train-prefix-reverse"), "scores": scores_table,
          "wordings": wordings, "climb": climb, "bases": bases_table, "skills": skills_table, "e2e": e2e_table,
          "e2e-samples": e2e_samples}
