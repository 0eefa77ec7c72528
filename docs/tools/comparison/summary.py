"""Runs of a cell over its seeds: means with 95 % intervals, paired differences between cells."""

import functools
import statistics
from dataclasses import dataclass, replace

from minipeft import METHODS, Error
from minipeft.bench.quality.grid import with_learning_rate
from minipeft.bench.quality.lines import Cell, Lines
from minipeft.bench.quality.studies import STUDIES, row

GOOD = 0.9  # exact match from which a method is said to do a task
Interval = tuple[float, "float | None"]  # mean, half of its 95 % interval (None: a single value)
ON_KNOWN = {  # of what the base was pretrained on, with the adapter on: {"before", "after", "off"}: [loss, exact match]
    "forgetting": lambda known: known["after"][0] - known["before"][0],
    "known loss": lambda known: known["after"][0],
    "known loss before": lambda known: known["before"][0],
    "remembered": lambda known: known["after"][1],
    "known before": lambda known: known["before"][1],
    "off": lambda known: known["off"][0] - known["before"][0],
}


def interval(values: list[float]) -> Interval:
    """Mean and half of its 95 % interval by Student's t. Raises Error without values or scipy."""
    if not values:
        raise Error("an interval needs at least 1 value")
    if len(values) == 1:
        return values[0], None
    n = len(values)
    return statistics.mean(values), student_quantile(n - 1) * statistics.stdev(values) / n**0.5


@functools.cache
def student_quantile(degrees_of_freedom: int) -> float:
    """97.5 % quantile of Student's t. Raises Error when scipy is missing."""
    try:
        from scipy.stats import t
    except ImportError:
        raise Error("intervals over seeds need: pip install scipy") from None
    return float(t.ppf(0.975, degrees_of_freedom))


def plus_minus(x: Interval, digits: int = 2, sign: str = "") -> str:
    """mean ± half of the interval, or the mean alone for a single value."""
    mean, half = round(x[0], digits) + 0.0, x[1]  # no -0.00
    return f"{mean:{sign}.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")


def beyond_chance(difference: Interval) -> int:
    """1 or -1 when the interval of a difference lies above or below zero, else 0."""
    mean, half = difference
    if half is None or abs(mean) <= half:
        return 0
    return 1 if mean > 0 else -1


@dataclass(frozen=True)
class Point:
    """A cell over its seeds."""

    cell: Cell  # of the first seed
    runs: dict[int, dict]  # seed -> line

    @property
    def row(self) -> str:
        return row(self.cell)

    @property
    def finished(self) -> dict[int, dict]:
        """The runs whose training did not diverge."""
        return {seed: line for seed, line in self.runs.items() if "failed" not in line}

    def values(self, name: str) -> dict[int, float]:
        """{seed: value} of a field of the lines: "score" (BLEU on E2E, else exact match), "loss" …

        Also "gap": held-out loss minus training loss; "curve": mean score of the evaluations;
        "steps": until the score is GOOD, or all where it never is;
        "half-way": score of the evaluation nearest to half of the steps; and those of ON_KNOWN.
        """
        if name in ON_KNOWN:
            return {seed: ON_KNOWN[name](line["known"]) for seed, line in self.runs.items() if "known" in line}
        if name == "gap":
            training = self.values("loss_on_learnt")
            losses = self.values("loss")
            return {seed: losses[seed] - loss for seed, loss in training.items()}
        if name == "curve":
            return {seed: statistics.mean(score for _, score, _ in line["curve"])
                    for seed, line in self.finished.items()}
        if name == "steps":
            return {seed: next((step for step, score, _ in line["curve"] if score >= GOOD), self.cell.steps)
                    for seed, line in self.finished.items()}
        if name == "half-way":  # of all steps, those of a soft prompt below included
            has_prompt = self.cell.start and "lr" in self.cell.start
            half = self.cell.steps / 2 - (self.cell.steps // 2 if has_prompt else 0)
            return {seed: min(line["curve"], key=lambda at: abs(at[0] - half))[1]
                    for seed, line in self.finished.items()}
        return {seed: line[name] for seed, line in self.runs.items() if line.get(name) is not None}

    def mean(self, name: str = "score") -> Interval:
        return interval(list(self.values(name).values()))

    def median(self, name: str = "score") -> float:
        return statistics.median(self.values(name).values())

    def less(self, other: "Point", name: str = "score") -> Interval:
        """This point minus the other, paired by seed."""
        mine, its = self.values(name), other.values(name)
        return interval([mine[seed] - its[seed] for seed in mine if seed in its])

    def curve(self) -> list[tuple[int, Interval]]:
        """(step, score) of every evaluation, and of the end."""
        evaluations = zip(*(line["curve"] for line in self.finished.values()), strict=True)
        steps = [(at[0][0], interval([score for _, score, _ in at])) for at in evaluations]
        return [*steps, (self.cell.steps, self.mean())]


def points(lines: Lines, study: str) -> list[Point]:
    """The points of a study that have been run, in the study's order."""
    groups: dict[str, Point] = {}
    for cell, like in STUDIES[study]():
        try:
            cell = with_learning_rate(lines, cell, like)
        except Error:  # its sweep has not been run
            continue
        line = lines.get(cell.key)
        if line and (study != "forgetting" or "known" in line or "failed" in line):
            groups.setdefault(replace(cell, seed=0).key, Point(cell, {})).runs[cell.seed] = line
    return list(groups.values())


def select(found: list[Point], **wanted) -> list[Point]:
    """The points whose row, or field of the cell, has these values."""
    return [p for p in found if all(value_of(p, name) == value for name, value in wanted.items())]


def distinct(found: list[Point], name: str) -> list:
    """The values that the points have of `row` or a field of the cell, each once."""
    return list(dict.fromkeys(value_of(p, name) for p in found))


def by(found: list[Point], *names: str) -> dict:
    """{(value, …): point} by these names; {value: point} by a single one."""
    keys = [tuple(value_of(p, name) for name in names) for p in found]
    return {key if len(names) > 1 else key[0]: p for key, p in zip(keys, found, strict=True)}


def value_of(p: Point, name: str):
    """`row`, `tokens` (virtual tokens), `start` (in words) or a field of the cell."""
    if name == "row":
        return p.row
    if name == "tokens":
        return p.cell.size["num_virtual_tokens"]
    if name == "start":
        if isinstance(start := p.cell.start, dict):
            if "rung" not in start:
                return "a text" if "text" in start else "matched examples"
            return "a trained soft prompt" if METHODS[start["rung"]].trains() else "the best wording"
        return {"random": "noise", "vocab": "vocabulary embeddings", None: None}[start]
    return getattr(p.cell, name)
