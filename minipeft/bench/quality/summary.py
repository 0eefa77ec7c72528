"""From lines to points: the runs of a cell over its seeds, their mean and its 95 % interval, and differences seed by seed."""

import statistics
from dataclasses import dataclass, replace

from ...config import Error
from .cell import Cell
from .grid import Lines, rated
from .studies import STUDIES, row

STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # 97.5 % quantiles of t with 1, 2 … degrees of freedom

Interval = tuple[float, "float | None"]  # a mean, and half of its 95 % interval: none with one value


def interval(values: list[float]) -> Interval:
    """Mean, and half of its 95 % interval by Student's t. Raises Error for no values, or more than STUDENT has quantiles for."""
    if not 1 <= len(values) <= len(STUDENT) + 1:
        raise Error(f"an interval needs 1 to {len(STUDENT) + 1} values, not {len(values)}")
    if len(values) == 1:
        return values[0], None
    return statistics.mean(values), STUDENT[len(values) - 2] * statistics.stdev(values) / len(values) ** 0.5


@dataclass(frozen=True)
class Point:
    """A cell over its seeds."""

    cell: Cell  # of the first seed
    runs: dict[int, dict]  # seed -> line

    @property
    def row(self) -> str:
        return row(self.cell)

    def values(self, what: str) -> dict[int, float]:
        """Of every seed that has it: "score" (BLEU of E2E, exact match elsewhere), "loss", "gap" (nats by which the loss on what is
        held out is above that on what was learnt), "curve" (the mean score of the looks), "half-way" (that of the look nearest to half of
        the steps) …"""
        if what == "gap":
            learnt = self.values("loss_on_learnt")
            return {seed: value - learnt[seed] for seed, value in self.values("loss").items() if seed in learnt}
        if what == "curve":
            return {seed: statistics.mean(score for _, score, _ in line["curve"]) for seed, line in self.runs.items()}
        if what == "half-way":
            before = self.cell.steps // 2 if self.cell.start and "lr" in self.cell.start else 0  # steps of the soft prompt below it
            half = self.cell.steps / 2 - before
            return {seed: min(line["curve"], key=lambda look: abs(look[0] - half))[1] for seed, line in self.runs.items()}
        return {seed: line[what] for seed, line in self.runs.items() if line.get(what) is not None}

    def mean(self, what: str = "score") -> Interval:
        return interval(list(self.values(what).values()))

    def less(self, other: "Point", what: str = "score") -> Interval:
        """By how much it is above the other one, over the seeds that both have."""
        mine, its = self.values(what), other.values(what)
        return interval([mine[seed] - its[seed] for seed in mine if seed in its])

    def curve(self) -> list[tuple[int, Interval]]:
        """(step, score) of the looks of all seeds, and of the end."""
        looks = [line["curve"] for line in self.runs.values()]
        steps = [(at[0][0], interval([score for _, score, _ in at])) for at in zip(*looks, strict=True)]
        return [*steps, (self.cell.steps, self.mean())]


def points(lines: Lines, study: str) -> list[Point]:
    """What there is of a study, in its order."""
    groups: dict[str, tuple[Cell, dict]] = {}
    for cell, like in STUDIES[study]():
        try:
            cell = rated(lines, cell, like)
        except Error:  # its sweep is not run
            continue
        if line := lines.get(cell.key):
            groups.setdefault(replace(cell, seed=0).key, (cell, {}))[1][cell.seed] = line
    return [Point(cell, runs) for cell, runs in groups.values()]


def beyond_chance(difference: Interval) -> int:
    """1 or -1 where the interval of a difference lies on one side of zero, else 0."""
    mean, half = difference
    if half is None or abs(mean) <= half:
        return 0
    return 1 if mean > 0 else -1
