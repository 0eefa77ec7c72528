"""The result files of docs/results, and a few numbers read off them."""

import json
from pathlib import Path

from minipeft.accounting import count
from minipeft.bench.quality import grid
from minipeft.bench.quality.summary import Point, points
from minipeft.config import EMBEDDED

RESULTS = Path(__file__).resolve().parent.parent / "results"


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def quality(study: str) -> list[Point]:
    """The points of a study of bench.py quality: a setting each, with its runs over the seeds."""
    return points(grid.read(RESULTS / "quality.jsonl"), study)


def trained(p: Point) -> int:
    """The parameters that a point trains."""
    if p.cell.method == "hard-prompt":
        return 0
    return count(EMBEDDED[p.cell.base], p.cell.method, **p.cell.size).trained


def seeds_above(p: Point, score: float = 0.9) -> int:
    return sum(x > score for x in p.values("score").values())


def plus_minus(x: tuple, digits: int = 2, sign: str = "") -> str:
    """The mean of an interval and half its width: 0.75 ± 0.40."""
    mean, half = x
    return f"{mean:{sign}.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")
