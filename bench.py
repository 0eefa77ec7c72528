#!/usr/bin/env python3
"""Measure the cost of tuning. Without a measurement: every method against full fine-tuning, on a
small GPT with random weights.

    python bench.py                               the nano shape, under 3 minutes on 2 cores
    python bench.py --preset gpt2 --batch-size 4 --steps 5       the 124M shape
    python bench.py --methods prefix --num-virtual-tokens 1 16 256
    python bench.py --compile --out result.json

    python bench.py attention        the attention kernel against torch's
    python bench.py peers            a training step here and in peft + transformers
    python bench.py peers --generate                             generation, here and there
    python bench.py peers --job FILE.jsonl --base FOLDER         a whole job, here and there
    python bench.py matmul           torch's products against oneDNN's
    python bench.py quantised        a training step on a base in int8 and NF4: its bytes and its time
    python bench.py serving          many tasks in one batch, and long prefixes shared by it
    python bench.py document         a text as a prefix of fewer rows: what is kept, at what cost
    python bench.py params           the same costs by closed forms, on a shape of any size
    python bench.py quality          the quality of every method, on equal terms (--quick: short)
    python bench.py report           tables, figures and a page of these results
    python bench.py bases            pretrain the bases that ship with the package

Each has its own --help. Columns of the table: parameters trained, stored for one task, trained in %
of all parameters; the adapter on disk; optimizer state; bytes saved for backward; peak memory of a
training process; a training step of B·T real tokens, also as a ratio to full fine-tuning's and to
the time of its matmuls alone (floor); a forward pass without gradients. The same as one JSON
document: by --out, and as the last line of stdout where that is a pipe or a file.
"""

import json
import shlex
import sys
from pathlib import Path

from docs.tools import bases, comparison
from minipeft.bench import (
    attention,
    cost,
    document,
    flags,
    matmul,
    params,
    peers,
    peers_generation,
    peers_job,
    quality,
    quantised,
    serving,
)
from minipeft.checks import Error, did_you_mean
from minipeft.files.atomic import write_json
from minipeft.runtime.console import Parser, run

MEASUREMENTS = {"attention": attention, "bases": bases, "document": document, "matmul": matmul, "params": params,
                "peers": peers, "quantised": quantised, "serving": serving}
PEERS = {"--generate": peers_generation, "--job": peers_job}  # flags that make another measurement of `peers`
STUDIES = {"quality": lambda argv: quality.run(argv, comparison.tables_of), "report": comparison.run}


def measure(module, argv: list[str], description: str) -> tuple[dict, str, str | None]:
    """Run one measurement -> its result, its table, and the path of --out."""
    p = Parser(description)
    module.add_flags(p)
    args = flags.parse(p, argv)
    result = module.run(module.settings(args))
    return result, module.table(result), args.out


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    name, known = argv[0] if argv else "", [*MEASUREMENTS, *STUDIES]
    if not name.startswith("-") and name not in ("", *known):
        raise Error(f"there is no measurement {name!r}: there are {', '.join(known)}{did_you_mean(name, known)}")
    if name in STUDIES:
        result, table, out = STUDIES[name](argv[1:])
    elif name in MEASUREMENTS:
        given = {word.partition("=")[0] for word in argv} if name == "peers" else set()
        module = next((PEERS[flag] for flag in PEERS if flag in given), MEASUREMENTS[name])
        result, table, out = measure(module, argv[1:], module.__doc__)
    else:
        result, table, out = measure(cost, argv, __doc__)
    result = {"command": shlex.join(["python", "bench.py", *argv]), **result}
    print(table)
    if not sys.stdout.isatty():
        print(json.dumps(result))
    if out:
        write_json(Path(out), result)


if __name__ == "__main__":
    sys.exit(run("bench.py", main))
