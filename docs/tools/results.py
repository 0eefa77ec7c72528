"""The result files of docs/results, and a few numbers read off them."""

import functools
import json
from pathlib import Path

from docs.tools.comparison.facts import Facts
from docs.tools.comparison.summary import Point, plus_minus, points
from minipeft.accounting import count
from minipeft.accounting.shapes import EMBEDDED
from minipeft.bench.quality import grid

__all__ = ["RESULTS", "facts", "found_by_search", "plus_minus", "quality", "read", "seeds_above", "trained"]
RESULTS = Path(__file__).resolve().parent.parent / "results"


def version(card: dict, library: str) -> str:
    """Of a card, without the name of the build: 2.14.1 for 2.14.1+cpu."""
    return card[library].partition("+")[0]


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def found_by_search() -> list[dict]:
    """The hard prompts that the search over tokens found, without those that were given."""
    known = {w["wording"] for w in read("train-hard-prompt-reverse")["wordings"]}
    return [w for w in read("search-reverse")["wordings"] if w["wording"] not in known]


@functools.cache
def facts() -> Facts:
    """The facts of the comparison, without its costs."""
    return Facts(grid.read(RESULTS / "quality.jsonl"), None)


@functools.cache
def quality(study: str) -> list[Point]:
    """The points of a study of bench.py quality: a setting each, with its runs over the seeds."""
    return points(grid.read(RESULTS / "quality.jsonl"), study)


def trained(p: Point) -> int:
    """The parameters that a point trains."""
    return count(EMBEDDED[p.cell.base], p.cell.method, **p.cell.size).trained


def seeds_above(p: Point, score: float = 0.9) -> int:
    return sum(x > score for x in p.values("score").values())
