"""Figures for the sentences of the page, each with the condition that makes its sentence true."""

from dataclasses import replace

from docs.tools.comparison import summary
from docs.tools.comparison.summary import Interval, Point, beyond_chance, plus_minus
from docs.tools.comparison.tables import cost_rows, of_budget, pareto_front
from minipeft import Error
from minipeft.bench.quality.lines import Lines
from minipeft.bench.quality.studies import BUDGETS, STUDIES
from minipeft.methods import WHOLE

GOOD = 0.9  # exact match from which a method is said to do a task
LITTLE = 0.05  # of exact match
AXES = {"methods": ("row", "task"), "budget": ("row", "task", "budget"),
        "scale": ("row", "task", "base"), "length": ("row", "task", "tokens"),
        "start": ("row", "task", "start"), "projection": ("row", "lr"), "real": ("row", "examples")}
CELLS_OF = {"time": "methods", "cost": "methods"}  # sections on another study's cells and costs


class Facts:
    """Functions of the template page.md.jinja.

    A point's address is its study and its place on the study's axes: "scale/prefix/reverse/tiny". A
    figure is returned as text. If it does not meet its condition it is marked, and `checked` stops.
    """

    def __init__(self, lines: Lines, costs: dict | None):
        self.lines, self.costs = lines, costs
        self.found = {study: summary.points(lines, study) for study in STUDIES}
        self.points = {self._address(study, p): p for study in AXES for p in self.found[study]}
        self.marked: list[str] = []
        self.reports = 0

    def _address(self, study: str, p: Point) -> str:
        budget = next((b for b in BUDGETS if study == "budget" and of_budget([p], b)), None)
        place = [budget if axis == "budget" else summary.value_of(p, axis) for axis in AXES[study]]
        return "/".join([study, *(f"{x:g}" if isinstance(x, float) else str(x) for x in place)])

    def runs(self, study: str) -> tuple[list[Point], list]:
        """The points of a section and the runs that they should have; none without their costs."""
        name = CELLS_OF.get(study, study)
        found = [] if study in CELLS_OF and not self.costs else self.found[name]
        return found, [cell for cell, _ in STUDIES[name]()]

    def is_there(self, study: str) -> bool:
        """At least half of the points have been run: some belong to other studies as well."""
        found, cells = self.runs(study)
        return 2 * len(found) >= len({replace(cell, seed=0).key for cell in cells})

    def is_complete(self, study: str) -> bool:
        found, cells = self.runs(study)
        return sum(len(p.runs) for p in found) == len(cells)

    def checked(self, page: str) -> str:
        """The page. Raises Error if a figure is marked, with its sentence."""
        if self.marked:
            sentence = next(line for line in page.splitlines() if "⟦" in line)
            raise Error(f"this no longer follows from the lines: {sentence}; {self.marked[0]}")
        return page

    def figure(self, text: str, holds: bool, condition: str) -> str:
        if holds:
            return text
        self.marked.append(f"{text} should be {condition}")
        return f"⟦{text}⟧"

    # Scores

    def score(self, address: str) -> float:
        return self.points[address].mean()[0]

    def mean(self, address: str, name: str = "score", digits: int = 2) -> str:
        return plus_minus(self.points[address].mean(name), digits)

    def good(self, address: str) -> str:
        return self.figure(self.mean(address), self.score(address) >= GOOD, f"{GOOD} or more")

    def enough(self, address: str) -> str:
        """The score with the fewest virtual tokens that reach GOOD."""
        fewer, _, n = address.rpartition("/")
        first = next((p for p in self._below(fewer) if self.score(p) >= GOOD), None)
        return self.figure(self.mean(address), first == address, f"the first of {GOOD} or more")

    def next_best(self, address: str, good: int) -> str:
        """The best score below GOOD, which exactly `good` methods reach."""
        scores = {a: self.score(a) for a in [address, *self._rivals(address)]}
        order = sorted(scores, key=scores.get, reverse=True)
        holds = order[good] == address and scores[address] < GOOD <= scores[order[good - 1]]
        return self.figure(self.mean(address), holds, f"the best after {good} with {GOOD} or more")

    def highest(self, address: str, digits: int = 2) -> str:
        """The score of the best method at its place."""
        holds = self.score(address) >= self.score(self.rival(address))
        return self.figure(self.mean(address, digits=digits), holds, "the highest")

    def top(self, start: str, limit: float = GOOD) -> str:
        """The highest score of the addresses that start so; below the limit."""
        best = max(self._below(start), key=self.score)
        return self.figure(self.mean(best), self.score(best) < limit, f"below {limit}")

    def failing(self, address: str, n: int) -> str:
        """The score of a point of which n seeds stay below GOOD."""
        failed = sum(score < GOOD for score in self.points[address].values("score").values())
        return self.figure(self.mean(address), failed == n, f"of {n} seeds below {GOOD}")

    def best_rate(self, address: str) -> str:
        """The score at the best learning rate of a form."""
        holds = address == max(self._below(address.rpartition("/")[0]), key=self.score)
        return self.figure(self.mean(address), holds, "the best learning rate's")

    def near(self, start: str) -> int:
        """Learning rates within 0.1 of the best score."""
        scores = [self.score(a) for a in self._below(start)]
        return sum(score > max(scores) - 0.1 for score in scores)

    def diverged(self, start: str) -> int:
        its = [self.points[a] for a in self._below(start)]
        return sum("failed" in line for p in its for line in p.runs.values())

    def _below(self, start: str) -> list[str]:
        return [a for a in self.points if a.startswith(f"{start}/")]

    def _rivals(self, address: str) -> list[str]:
        """Addresses that differ in the method alone."""
        def place(a: str) -> list[str]:
            study, _, *rest = a.split("/")
            return [study, *rest]

        return [a for a in self.points if a != address and place(a) == place(address)]

    def rival(self, address: str) -> str:
        """The best of the other methods."""
        return max(self._rivals(address), key=self.score)

    # Differences

    def diff(self, a: str, b: str, name: str = "score", offset: float = 0) -> Interval:
        mean, half = self.points[a].less(self.points[b], name)
        return mean + offset, half

    def over(self, address: str, bound: float) -> Interval:
        mean, half = self.points[address].mean()
        return mean - bound, half

    def ahead(self, a: str, b: str, name: str = "score", digits: int = 2) -> str:
        """a minus b, above zero beyond chance."""
        d = self.diff(a, b, name)
        return self.figure(plus_minus(d, digits), beyond_chance(d) > 0, "above zero beyond chance")

    def level(self, a: str, b: str, name: str = "score", digits: int = 2) -> str:
        """a minus b, zero within chance."""
        d = self.diff(a, b, name)
        return self.figure(plus_minus(d, digits, "+"), beyond_chance(d) == 0, "zero within chance")

    def diffs(self, a: str, b: str, name: str = "score", offset: float = 0, label: str = "{}",
              skip: tuple = ()) -> dict[str, Interval]:
        """{label: a minus b} of all points whose address is `a` with something for its *, which
        also stands for the * of `b`."""
        before, _, after = a.partition("*")
        found = {}
        for address in self.points:
            if address.startswith(before) and address.endswith(after):
                star = address[len(before):len(address) - len(after)]
                other = b.replace("*", star)
                if other in self.points and star.split("/")[0] not in skip:
                    found[label.format(label_of(star))] = self.diff(address, other, name, offset)
        return found

    def narrowing(self, row: str, task: str, first: str = "tiny", last: str = "medium") -> Interval:
        """The gap of a row to full fine-tuning on one base minus that on another."""
        full, its, last_full, its_last = (
            self.points[f"scale/{r}/{task}/{base}"].values("score")
            for base in (first, last) for r in (WHOLE, row))
        return summary.interval([full[seed] - its[seed] - (last_full[seed] - its_last[seed])
                                 for seed in full])

    # Time and cost

    def seconds(self, row: str, task: str, place: int, of: int) -> str:
        """Training time until GOOD is reached, the place-th of `of` rows that reach it."""
        step = {r["row"]: r["step_ms"]["median"] / 1000 for r in self.costs["rows"]}
        reached = {}
        for r in step:
            curve = self.points[f"methods/{r}/{task}"].curve()
            if steps := [at for at, (mean, _) in curve if mean >= GOOD]:
                reached[r] = step[r] * steps[0]
        order = sorted(reached, key=reached.get)
        text = f"{reached[row]:.1f}" if row in reached else "no time"
        return self.figure(text, len(order) == of and order[place - 1] == row,
                           f"number {place} of {of} to reach {GOOD}")

    def step(self, row: str, place: int) -> str:
        """Time of a step relative to full fine-tuning, at this place among the others, from 0."""
        step = {r["row"]: r["step_ms"]["median"] for r in self.costs["rows"]}
        full = step.pop(WHOLE)
        holds = sorted(step, key=step.get)[place] == row
        return self.figure(f"{step[row] / full:.2f}", holds, f"at place {place} of all")

    def front(self, row: str, *costs: str) -> str:
        """The mean score of a row on the Pareto fronts of these costs and no others."""
        rows = cost_rows(self.lines, self.costs)
        names = ("trained", "stored_bytes", "step_ms", "saved_mb")
        on = {name for name in names if row in pareto_front(rows, name)}
        text = plus_minus(next(r.score for r in rows if r.row == row))
        return self.figure(text, on == set(costs), f"on the Pareto fronts of {', '.join(costs)}")

    # What was reported elsewhere

    def report(self, source: str, says: str, differences: list[dict[str, Interval]], verdict: str,
               why: str = "-", note: str = "", word: str = "", digits: int = 2) -> str:
        """A row of the table. The report wants every difference above zero. Raises Error if the
        verdict does not follow from them. word: the verdict, where it follows from something else.
        """
        its = {label: d for some in differences for label, d in some.items()}
        follows = word or verdict_of([beyond_chance(d) for d in its.values()])
        measured = [f"{label}: {plus_minus(d, digits, '+')}" for label, d in its.items()]
        measured = "; ".join(measured) + note
        if follows != verdict:
            raise Error(f"this verdict no longer follows from the lines: {says}: {verdict}; "
                        f"{measured} should be called {follows}")
        self.reports += 1
        return f"| {source} | {says} | {measured} | **{verdict}** | {why} |"

    def little(self, differences: list[dict[str, Interval]]) -> str:
        """The verdict on "gains little"."""
        its = [d for some in differences for d in some.values()]
        more = any(beyond_chance(d) > 0 and d[0] >= LITTLE for d in its)
        return "contradicted" if more else "reproduced"


def label_of(place: str) -> str:
    """reverse/tiny -> `reverse`, tiny; a number of examples or tokens stays."""
    first, *rest = place.split("/")
    return ", ".join([first if first.isdigit() else f"`{first}`", *rest])


def verdict_of(signs: list[int]) -> str:
    """The verdict on differences that a report wants above zero, by their signs beyond chance."""
    if all(s > 0 for s in signs):
        return "reproduced"
    if any(s > 0 for s in signs):
        return "reproduced in part"
    return "contradicted" if any(s < 0 for s in signs) else "inconclusive"
