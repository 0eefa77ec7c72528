#!/usr/bin/env python3
"""Measure what tuning costs. Without arguments: every method against full fine-tuning on a small GPT with random weights.

    python bench.py                                              the nano shape, under 3 minutes on 2 cores
    python bench.py --preset gpt2 --batch-size 4 --steps 5       the 124M shape
    python bench.py --methods prefix --num-virtual-tokens 1 16 256
    python bench.py --compile --out result.json

Columns: parameters trained, stored for one task, and trained in % of the base; the adapter on the disk; the optimizer's state;
what autograd saves for backward; peak memory of a training process; a training step and a forward pass without gradients
(B·T real tokens each), both also as a ratio to full fine-tuning's. The last line of stdout is one JSON document.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

import torch

from minipeft import METHODS, PRESETS, Error
from minipeft.bench import cost
from minipeft.checkpoint import write_json
from minipeft.console import Parser, device, run, seed


def arguments(argv) -> argparse.Namespace:
    p = Parser(__doc__)
    add = p.add_argument
    add("--preset", default="nano", help=f"shape of the base: one of {', '.join(PRESETS)}")
    methods = [m for m in METHODS if m != "full"]
    add("--methods", nargs="+", default=methods, metavar="METHOD", help="which to set against full, which always runs as the yardstick")
    add("--num-virtual-tokens", type=int, nargs="+", default=[8, 32, 128], metavar="P", help="lengths of prompt and prefix")
    add("--batch-size", type=int, default=8, metavar="B", help="sequences a step")
    add("--seq-len", type=int, default=128, metavar="T", help="real tokens a sequence")
    add("--steps", type=int, default=20, help="timed steps of each method")
    add("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the products, by autocast")
    add(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="torch.compile every method; its seconds have a column",
    )
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1 …")
    add("--seed", type=seed, default=0, help="of weights and tokens")
    add("--out", metavar="FILE.json", help="write the JSON document there too")
    args = p.parse_args(argv)
    if args.preset not in PRESETS:
        raise Error(f"--preset must be one of {', '.join(PRESETS)}, not {args.preset!r}")
    if args.out and Path(args.out).is_dir():
        raise Error(f"--out {args.out} is a folder: the JSON document needs a file's name")
    for name in ("batch_size", "seq_len", "steps"):
        if getattr(args, name) < 1:
            raise Error(f"--{name.replace('_', '-')} must be at least 1, not {getattr(args, name)}")
    return args


def main(argv=None) -> None:
    args = arguments(argv)
    settings = cost.Settings(
        preset=args.preset,
        config=PRESETS[args.preset],
        methods=tuple(args.methods),
        num_virtual_tokens=tuple(args.num_virtual_tokens),
        batch_size=args.batch_size,
        seq_len=args.seq_len,
        steps=args.steps,
        seed=args.seed,
        device=str(device(args.device)),
        dtype=args.dtype,
        compile=args.compile,
    )
    result = {"command": shlex.join(["python", "bench.py", *(sys.argv[1:] if argv is None else argv)]), **cost.run(settings)}
    print(cost.table(result))
    print(json.dumps(result))
    if args.out:
        write_json(Path(args.out), result)


if __name__ == "__main__":
    sys.exit(run("bench.py", main))
