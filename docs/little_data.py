#!/usr/bin/env python3
"""Who overfits when there is little to learn from? A prefix and full fine-tuning on the same few examples.

python docs/little_data.py --out docs/results/little-data.json        some ten minutes on a CPU

For every task, number of examples and seed both methods get the same examples, the same batches of them and the same number of steps,
each at its default learning rate. What is told is the share of 200 held-out inputs that are answered exactly, and the gap: loss on the
held-out examples less loss on those that were learnt. 95 % intervals are Student's t over the seeds, of each figure and of the paired
difference between the methods.
"""

import argparse
import contextlib
import io
import random
import shlex
import statistics
import sys
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from minipeft import GPT, adapt
from minipeft.bench.measure import card, card_line
from minipeft.checkpoint import write_json
from minipeft.console import Parser, run
from minipeft.data import NANO
from minipeft.data.batches import TaskData, draw, encode
from minipeft.data.tasks import find_task
from minipeft.data.tokenizer import ByteTokenizer
from minipeft.evaluation import batches, evaluate
from minipeft.training import train

METHODS = ("prefix", "full")
TASKS = ("reverse", "parity")
SIZES = (10, 30, 100)
SEEDS = 5
STEPS, BATCH, HELD_OUT = 300, 16, 200
STUDENT = {3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}  # 97.5 % quantile of t with n - 1 degrees of freedom


def arguments(argv) -> argparse.Namespace:
    p = Parser(__doc__)
    p.add_argument("--tasks", nargs="+", default=list(TASKS), metavar="TASK", help="as train.py calls them")
    p.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), metavar="N", help="examples to learn from")
    p.add_argument("--seeds", type=int, default=SEEDS, choices=list(STUDENT), help="of examples, batches and initial values")
    p.add_argument("--out", metavar="FILE", help="write the result as JSON")
    return p.parse_args(argv)


def tune(method: str, task: str, size: int, seed: int) -> dict:
    """One run: exact match on held-out examples, and the losses on these and on those that were learnt."""
    torch.manual_seed(seed)
    tokenizer, kind = ByteTokenizer(), find_task(task)
    learnt, held_out = draw(kind.example, f"little {seed}", size), TaskData(kind, 0, 1, HELD_OUT).held_out

    def batch(step: int):
        return encode(random.Random(f"{seed} {step}").choices(learnt, k=BATCH), tokenizer)

    model = adapt(GPT.from_pretrained(NANO), method)
    with contextlib.redirect_stderr(io.StringIO()):  # one bar is enough
        train(model, batch, STEPS)
    (loss, exact), (own, _) = (evaluate(model, batches(examples, tokenizer)) for examples in (held_out, learnt))
    return {"method": method, "task": task, "size": size, "seed": seed, "exact_match": exact, "loss": loss, "loss_on_learnt": own}


def gap(r: dict) -> float:
    """Nats by which the held-out loss is above that of what was learnt."""
    return r["loss"] - r["loss_on_learnt"]


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half of its 95 % interval."""
    return statistics.mean(values), STUDENT[len(values)] * statistics.stdev(values) / len(values) ** 0.5


def summary(runs: list[dict]) -> list[dict]:
    """For each task and size both methods' figures, and over the pairs, prefix less full, of exact match ("ahead") and gap ("wider")."""
    cells = []
    for task, size in dict.fromkeys((r["task"], r["size"]) for r in runs):
        by = {m: [r for r in runs if (r["task"], r["size"], r["method"]) == (task, size, m)] for m in METHODS}
        cell = {"task": task, "size": size}
        for method, its in by.items():
            cell[method] = {
                "exact_match": interval([r["exact_match"] for r in its]),
                "gap": interval([gap(r) for r in its]),
            }
        pairs = list(zip(*by.values(), strict=True))
        cell["ahead"] = interval([a["exact_match"] - b["exact_match"] for a, b in pairs])
        cell["wider"] = interval([gap(a) - gap(b) for a, b in pairs])
        cells.append(cell)
    return cells


def table(result: dict) -> str:
    head = "| task | examples | " + " | ".join(f"`{m}` exact match | gap in nats" for m in METHODS)
    lines = [f"{head} | `prefix` ahead by | its gap wider by |", "|---|---|" + "---|" * (2 * len(METHODS) + 2)]
    for cell in result["cells"]:
        figures = [f"{x:.2f} ± {half:.2f}" for m in METHODS for x, half in cell[m].values()]
        differences = [f"{x:+.2f} ± {half:.2f}" for x, half in (cell["ahead"], cell["wider"])]
        lines.append(f"| {cell['task']} | {cell['size']:,} | {' | '.join(figures + differences)} |")
    return "\n".join(lines)


def main(argv=None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = arguments(argv)
    grid = [(m, t, n, s) for t in args.tasks for n in args.sizes for s in range(args.seeds) for m in METHODS]
    runs = [tune(*cell) for cell in tqdm(grid, unit="run", dynamic_ncols=True)]
    command = shlex.join(["python", "docs/little_data.py", *argv])
    result = {
        "command": command,
        "card": card(torch.device("cpu")),
        "steps": STEPS,
        "batch_size": BATCH,
        "cells": summary(runs),
        "runs": runs,
    }
    print(card_line(result["card"]), table(result), sep="\n")
    if args.out:
        write_json(Path(args.out), result)


if __name__ == "__main__":
    sys.exit(run("docs/little_data.py", main))
