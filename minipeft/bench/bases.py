"""python bench.py bases: pretrain the bases that ship with the package, all alike, from 34 thousand parameters to 1.9 million.

Every size of minipeft.config.EMBEDDED sees the same examples of the same skills in the same order, for as many steps at the same
peak learning rate; only its shape differs. One run of train.py each, so that every folder's scores.json has the command that makes
it again. What is there already is left as it is where it is finished, and gone on with where it was stopped.
"""

import os
import subprocess
import sys
from pathlib import Path

from ..config import EMBEDDED, Error
from ..files.atomic import read_json
from .measure import columns

TRAIN = Path(__file__).parents[2] / "train.py"
RECIPE = ["--method", "full", "--task", "skills", "--steps", "3500", "--lr", "2e-3", "--seed", "1"]


def run(sizes: list[str], out: Path) -> dict:
    """Pretrain what out/SIZE does not hold yet; returns {"rows": one a size}. Raises Error when a run fails."""
    rows = []
    for size in sizes:
        scores = out / size / "scores.json"
        if not scores.exists():
            command = [sys.executable, str(TRAIN), "--base", f"scratch:{size}", *RECIPE, "--out", os.path.relpath(out / size)]
            if (out / size / "training_state").is_dir():
                command.append("--resume")
            print(f"{size}: {' '.join(command[1:])}", file=sys.stderr)
            if subprocess.run(command).returncode:
                raise Error(f"pretraining {size} failed, as the line above says")
        result = read_json(scores)
        told = [skill["told"] for skill in result["skills"].values()]
        told_not = [skill["not told"] for skill in result["skills"].values()]
        rows.append(
            {
                "size": size,
                "parameters": result["trained"],
                "told": sum(told) / len(told),
                "worst_told": min(told),
                "not_told": sum(told_not) / len(told_not),
                "seconds": result["seconds"],
                "card": result["card"],
            }
        )
    return {"recipe": RECIPE, "rows": rows}


def table(result: dict) -> str:
    """Shape and exact match of every base, over all skills."""

    def shape(r: dict) -> str:
        c = EMBEDDED[r["size"]]
        return f"L {c.n_layer}, C {c.n_embd}, nh {c.n_head}"

    cells = {
        "base": lambda r: r["size"],
        "shape": shape,
        "parameters": lambda r: f"{r['parameters']:,}",
        "told": lambda r: f"{r['told']:.3f}",
        "worst skill told": lambda r: f"{r['worst_told']:.3f}",
        "not told": lambda r: f"{r['not_told']:.3f}",
        "minutes": lambda r: f"{r['seconds'] / 60:.1f}",
    }
    return "\n".join(columns(cells, result["rows"]))
