#!/usr/bin/env python3
"""Threads that spin or sleep while they wait, alone and beside a busy process: time, and where it goes.

python docs/tools/waiting.py --base SmolLM2-135M --out docs/results/waiting.json

The works: a training step of a prefix on nano and on the base, a generation with it, and both passes of attention at
one shape. Each of four new processes does all of them, and for attention is profiled too.
"""

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[2]))

from minipeft import GPT, adapt, generate
from minipeft.bench import attention
from minipeft.bench.measure import busy_processes, in_new_process, milliseconds
from minipeft.files.atomic import write_json
from minipeft.methods.prefix_tuning import PrefixTuning
from minipeft.runtime.profiling import card
from minipeft.runtime.waiting import WAYS, new_processes_wait

SHAPE = attention.Shape.parse("4x12x512x20x64")
NEW_TOKENS = 24


def training_step(folder: str, B: int, T: int, P: int) -> Callable[[], None]:
    model = adapt(GPT.from_pretrained(folder), PrefixTuning.name, num_virtual_tokens=P)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-3)
    idx = torch.randint(model.base.config.vocab_size, (B, T + 1), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        model.loss(idx[:, :-1], idx[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def generation(folder: str) -> Callable[[], object]:
    model = adapt(GPT.from_pretrained(folder), PrefixTuning.name, num_virtual_tokens=20)
    return lambda: generate(model, torch.arange(16)[None], NEW_TOKENS)


def typical(work: Callable, times: int) -> float:
    """Median milliseconds of a call, after two calls."""
    return median([milliseconds(work, torch.device("cpu")) for _ in range(times + 2)][2:])


def operators(work: Callable, times: int = 10) -> list[dict]:
    """The operators that take longest in a call: how many calls of each, and their milliseconds."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(times):
            work()
    longest = sorted(profiler.key_averages(), key=lambda e: -e.self_cpu_time_total)[:4]
    return [{"name": "compiled passes" if "CompiledFxGraph" in e.key else e.key, "calls": e.count / times,
             "ms": e.self_cpu_time_total / 1000 / times} for e in longest]


def measured(base: str) -> dict:
    """Milliseconds of every work, and the operators of attention by backend."""
    works = {"nano": (training_step("nano", 32, 24, 8), 40), "step": (training_step(base, 8, 48, 20), 8),
             "generation": (generation(base), 4)}
    s = attention.AttentionSettings((SHAPE,), ("float32",), 1, 0, "cpu")
    backends = {row["backend"]: calls[1] for row, calls in attention.works(SHAPE, torch.float32, s)}
    kept = {name: backends[name] for name in ("sdpa", "fused")}
    works |= {name: (call, 20) for name, call in kept.items()}
    return {"ms": {name: typical(*work) for name, work in works.items()},
            "operators": {name: operators(call) for name, call in kept.items()}}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--base", required=True, metavar="FOLDER")
    p.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    args = p.parse_args()
    rows = []
    for beside in (0, 1):
        for way in WAYS:
            with busy_processes(beside), new_processes_wait(way):
                rows.append({"beside": beside, "waiting": way, **in_new_process(measured, args.base)})
            print(rows[-1])
    write_json(args.out, {"command": shlex.join(["python", *sys.argv]), "card": card(torch.device("cpu")),
                          "rows": rows})


if __name__ == "__main__":
    main()
