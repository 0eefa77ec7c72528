#!/usr/bin/env python3
"""Every measurement of bench.py that a GPU can run; meant for ten minutes, and not run on one yet.

python docs/tools/on_a_gpu.py FOLDER

First the default tests, then attention, steps, peers, generation and serving, each a process of its own with
--device cuda and its JSON document in FOLDER. What fails is named at the end, and the exit code is 1.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import torch

from minipeft.checks import Error
from minipeft.runtime import console

BENCH = {
    "attention": "attention",
    "bench-gpt2": "--preset gpt2 --batch-size 16 --seq-len 512 --steps 10 --compile",
    "peers-gpt2": "peers --batch-size 16 --seq-len 512 --steps 10 --dtype bfloat16",
    "generation": "peers --generate --dtype bfloat16",
    "serving": "serving",
}


def main(argv: list[str] | None = None) -> None:
    p = console.Parser(__doc__)
    p.add_argument("folder", type=Path, help="of the JSON documents")
    folder = p.parse_args(argv).folder.resolve()
    if not torch.cuda.is_available():
        raise Error("torch finds no GPU here: torch.cuda.is_available() is False")
    folder.mkdir(parents=True, exist_ok=True)
    commands = {"tests": [sys.executable, "-m", "pytest", "-q"]}
    for name, flags in BENCH.items():
        out = str(folder / f"{name}.json")
        commands[name] = [sys.executable, "bench.py", *flags.split(), "--device", "cuda", "--out", out]
    failed = [name for name, command in commands.items() if subprocess.run(command, cwd=ROOT).returncode]
    if failed:
        raise Error(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    raise SystemExit(console.run("on_a_gpu.py", main))
