"""Pretrain the bases that ship with the package, from 34 thousand to 1.9 million parameters.

All but `lookup` see the same examples of the same skills in the same order, for the same steps at the
same peak learning rate; only the shape differs. `lookup` sees tables of facts and questions about them.
Each is one run of train.py, and the folder's scores.json
holds the command that repeats it. A finished base stays as it is; a stopped one continues.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from minipeft.accounting.shapes import EMBEDDED
from minipeft.bench.measure import cell, columns
from minipeft.checks import Error
from minipeft.data import BASES
from minipeft.files.atomic import read_json
from minipeft.methods import WHOLE
from minipeft.runtime.console import Parser

TRAIN = Path(__file__).parents[2] / "train.py"
RECIPE = ["--method", WHOLE, "--task", "skills", "--steps", "3500", "--lr", "2e-3", "--seed", "1"]
RECIPES = dict.fromkeys(EMBEDDED, RECIPE) | {
    "lookup": ["--method", WHOLE, "--task", "lookup", "--batch-size", "32", "--steps", "2500", "--lr", "1.5e-3",
               "--seed", "1"]}


class BasesSettings(NamedTuple):
    sizes: list[str]
    folder: Path


def add_flags(p: Parser) -> None:
    add = p.add_argument_group("bases").add_argument
    add("--sizes", nargs="+", choices=list(EMBEDDED), default=list(EMBEDDED), help="bases to pretrain")
    add("--folder", metavar="FOLDER", type=Path, default=BASES["nano"].parent, help="where SIZE/ goes")


def settings(args: argparse.Namespace) -> BasesSettings:
    return BasesSettings(list(dict.fromkeys(args.sizes)), args.folder)


def run(s: BasesSettings) -> dict:
    """Pretrain the bases that folder/SIZE does not hold yet; returns {"recipes", "rows": one per size}.

    Raises Error if a run fails.
    """
    rows = []
    for size in s.sizes:
        folder = s.folder / size
        if not (folder / "scores.json").exists():
            command = [sys.executable, str(TRAIN), "--base", f"scratch:{size}", *RECIPES[size],
                       "--out", os.path.relpath(folder)]
            if (folder / "training_state").is_dir():
                command.append("--resume")
            print(f"{size}: {' '.join(command[1:])}", file=sys.stderr)
            if subprocess.run(command).returncode:
                raise Error(f"pretraining {size} failed, as the line above says")
        result = read_json(folder / "scores.json")
        rows.append({"size": size, "parameters": result["trained"], **scores(result),
                     "seconds": result["seconds"], "card": result["card"]})
    return {"recipes": RECIPES, "rows": rows}


def scores(result: dict) -> dict[str, float | None]:
    """Exact match of a run, over all skills; of a base without skills, on its held-out examples."""
    if not result["skills"]:
        return {"told": result["exact_match"][1], "worst_told": None, "not_told": None}
    told, not_told = ([skill[name] for skill in result["skills"].values()] for name in ("told", "not told"))
    return {"told": sum(told) / len(told), "worst_told": min(told), "not_told": sum(not_told) / len(not_told)}


def table(result: dict) -> str:
    """Shape and exact match of every base, over all skills, with and without the skill's instruction;
    of `lookup`, on questions about tables."""

    def shape(r: dict) -> str:
        c = EMBEDDED[r["size"]]
        return f"L {c.n_layer}, C {c.n_embd}, nh {c.n_head}"

    cells = {
        "base": lambda r: r["size"],
        "shape": shape,
        "parameters": lambda r: f"{r['parameters']:,}",
        "instructed": cell("told", "{:.3f}"),
        "worst skill": cell("worst_told", "{:.3f}"),
        "not instructed": cell("not_told", "{:.3f}"),
        "minutes": lambda r: f"{r['seconds'] / 60:.1f}",
    }
    return "\n".join(columns(cells, result["rows"]))
