#!/usr/bin/env python3
"""Versions of torch and Python that the tests were run with: the table of docs/versions.md.

python docs/tools/versions.py --run

runs the tests with this Python, and appends a line to docs/results/versions.jsonl: versions, extras
installed, tests passed, failed and skipped. The last run of the same versions counts. The exit code
is pytest's. Without --run the table is printed.
"""

import importlib.metadata
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from docs.tools.results import RESULTS
from minipeft.runtime import console
from minipeft.runtime.profiling import card

LINES = RESULTS / "versions.jsonl"
FROM_TORCH = {"jinja2"}  # the extra that torch itself needs


def extras() -> dict[str, str | None]:
    """Versions of the packages in requirements-extra.txt; None where one is not installed."""
    found = {}
    for name in re.findall(r"^[A-Za-z][\w-]*", (ROOT / "requirements-extra.txt").read_text(encoding="utf-8"), re.M):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def run() -> int:
    """Run the tests with this Python, and append what came of them. Returns pytest's exit code."""
    command = [sys.executable, "-m", "pytest", "-q", "-ra"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8") as tests:
        for last in tests.stdout:
            print(last, end="", flush=True)
    counts = Counter({outcome: int(n) for n, outcome in re.findall(r"(\d+) (passed|failed|error|skipped)", last)})
    line = {"passed": counts["passed"], "failed": counts["failed"] + counts["error"], "skipped": counts["skipped"],
            "card": card(torch.device("cpu")), "extras": extras()}
    with LINES.open("a", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(line) + "\n")
    return tests.returncode


def results() -> dict[tuple[str, str, str], dict]:
    """{(Python, extras, torch): the line of its last run}."""
    found = {}
    for line in map(json.loads, LINES.read_text(encoding="utf-8").splitlines()):
        installed = {name for name, version in line["extras"].items() if version} - FROM_TORCH
        wanted = line["extras"].keys() - FROM_TORCH
        share = "none" if not installed else "all" if installed == wanted else f"{len(installed)} of {len(wanted)}"
        found[line["card"]["python"], share, line["card"]["torch"]] = line
    return found


def table() -> str:
    """Tests passed, failed and skipped: a line for each Python, a column for each torch."""
    found = results()
    rows = sorted({key[:2] for key in found}, key=lambda row: (_order(row[0]), row[1]))
    columns = sorted({key[2] for key in found}, key=_order)
    lines = [["`python`", "extras", *(f"`torch {torch}`" for torch in columns)], ["---"] * 2 + ["---:"] * len(columns)]
    for row in rows:
        lines.append([*row, *(_cell(found.get((*row, torch))) for torch in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _order(version: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", version)]


def _cell(line: dict | None) -> str:
    return " / ".join(f"{line[outcome]:,}" for outcome in ("passed", "failed", "skipped")) if line else "not run"


BLOCKS = {"versions": table}


def main(argv: list[str] | None = None) -> None:
    p = console.Parser(__doc__)
    p.add_argument("--run", action="store_true", help="run the tests with this Python")
    if p.parse_args(argv).run:
        sys.exit(run())
    print(table())


if __name__ == "__main__":
    raise SystemExit(console.run("versions.py", main))
