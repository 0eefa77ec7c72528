"""Figures and phrases for the sentences of the page, each read off the lines.

Most phrases follow from a rule, whatever the lines are. A figure of a hand-written sentence has the condition that
makes the sentence true: where it does not hold, the figure is marked, and `checked` stops.
"""

import contextlib
import statistics
from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import replace

from docs.tools.comparison import summary
from docs.tools.comparison.summary import GOOD, Interval, Point, beyond_chance, plus_minus
from docs.tools.comparison.tables import cost_rows, digits_of, of_budget, pareto_front
from docs.tools.markdown import name as name_of
from minipeft import Error
from minipeft.bench.quality.again import kind
from minipeft.bench.quality.grid import chosen, sweep_cells, sweep_losses
from minipeft.bench.quality.lines import Cell, Lines
from minipeft.bench.quality.studies import BUDGETS, FEW, MAIN_ROWS, REAL, STUDIES, TEXTS, sweep
from minipeft.data import BASES
from minipeft.files.atomic import read_json
from minipeft.methods import METHODS, WHOLE

AXES = {"methods": ("row", "task"), "budget": ("row", "task", "budget"),
        "scale": ("row", "task", "base"), "length": ("row", "task", "tokens"),
        "start": ("row", "task", "start"), "projection": ("row", "lr"), "data": ("row", "task", "examples"),
        "real": ("row", "task"), "real_data": ("row", "task", "examples"), "real_prefix": ("row", "task"),
        "forgetting": ("row", "task")}
CELLS_OF = {"time": "methods", "cost": "methods"}  # sections on another study's cells and costs
WITH_ARTICLE = ("prompt", "prefix", "hidden prefix", "adapter", "hard-prompt", "prefix from noise",
                "prefix from examples")
LITTLE = 300  # examples, at most, that are called few
LEVEL = 0.01  # nats per token: validation losses that are said to be alike
FITTED = 0.1  # nats per token: training loss below which the examples are said to be fitted


class Facts:
    """Functions of the template page.md.jinja.

    A point's address is its study and its place on the study's axes: "scale/prefix/reverse/tiny".
    """

    def __init__(self, lines: Lines, costs: dict | None):
        self.lines, self.costs = lines, costs
        self.found = {study: summary.points(lines, study) for study in STUDIES}
        self.points = {self._address(study, p): p for study in AXES for p in self.found[study]}
        self.marked: list[str] = []

    def _address(self, study: str, p: Point) -> str:
        budget = next((b for b in BUDGETS if study == "budget" and of_budget([p], b)), None)
        place = [budget if axis == "budget" else summary.value_of(p, axis) for axis in AXES[study]]
        return "/".join([study, *(f"{x:g}" if isinstance(x, float) else str(x) for x in place)])

    def runs(self, study: str) -> tuple[list[Point], list]:
        """The points of a section and the runs that they should have; none without their costs."""
        name = CELLS_OF.get(study, study)
        found = [] if study in CELLS_OF and not self.costs else self.found[name]
        cells = [cell for cell, _ in STUDIES[name]()]
        if study in REAL:  # points other than the first study's main ones count once they are begun
            first = {cell.key for cell, _ in STUDIES[REAL[0]]()}
            begun = {replace(p.cell, seed=0, lr=None).key for p in found}
            cells = [cell for cell in cells if study == REAL[0] and summary.row(cell) in MAIN_ROWS
                     or replace(cell, seed=0).key in begun]
            if study != REAL[0] and begun <= first:  # which it shares
                found = []
        return found, cells

    def is_there(self, study: str) -> bool:
        """At least half of the points have been run: some belong to other studies as well."""
        found, cells = self.runs(study)
        return bool(found) and 2 * len(found) >= len({replace(cell, seed=0).key for cell in cells})

    def is_complete(self, study: str) -> bool:
        found, cells = self.runs(study)
        return bool(found) and sum(len(p.runs) for p in found) == len(cells)

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

    def top(self, start: str, limit: float = GOOD) -> str:
        """The highest score of the addresses that start so; below the limit."""
        best = max(self._below(start), key=self.score)
        return self.figure(self.mean(best), self.score(best) < limit, f"below {limit}")

    def failing(self, address: str, n: int) -> str:
        """The score of a point of which n seeds stay below GOOD."""
        failed = sum(score < GOOD for score in self.points[address].values("score").values())
        return self.figure(self.mean(address), failed == n, f"of {n} seeds below {GOOD}")

    def best(self, start: str) -> str:
        """The address with the highest score of those that start so."""
        return max(self._below(start), key=self.score)

    def worst(self, start: str) -> float:
        """The worst seed at the best address of those that start so."""
        return min(self.points[self.best(start)].values("score").values())

    def near(self, start: str) -> int:
        """Learning rates within 0.1 of the best score."""
        scores = [self.score(a) for a in self._below(start)]
        return sum(score > max(scores) - 0.1 for score in scores)

    def moved(self, a: str, b: str) -> float:
        """The best learning rate of one form over that of another, rounded."""
        return round(self.points[self.best(a)].cell.lr / self.points[self.best(b)].cell.lr, 2)

    def _below(self, start: str) -> list[str]:
        return [a for a in self.points if a.startswith(f"{start}/")]

    # Phrases that follow from a rule

    def called(self, address: str, name: str = "score", digits: int = 2) -> str:
        """The method of an address with its mean: LoRA (0.99 ± 0.01)."""
        return f"{method(address.split('/')[1])} ({self.mean(address, name, digits)})"

    def at(self, study: str, *place) -> list[str]:
        """The addresses of all methods at a place, the highest score first."""
        end = "/".join(map(str, place))
        found = [a for a in self.points if a.split("/")[0] == study and "/".join(a.split("/")[2:]) == end]
        return sorted(found, key=self.score, reverse=True)

    def passing(self, study: str, *place) -> str:
        """Methods with GOOD or more, and the next one."""
        order = self.at(study, *place)
        good = [a for a in order if self.score(a) >= GOOD]
        below = order[len(good):]
        text = f"{joined(self.called(a) for a in good)} score {GOOD} or more" if len(good) > 1 else (
            f"{self.called(good[0])} alone scores {GOOD} or more" if good else f"no method scores {GOOD} or more")
        return text + (f"; {'the next is' if good else 'the best is'} {self.called(below[0])}" if below else "")

    def leader(self, study: str, *place, digits: int = 2) -> str:
        """The method with the highest mean, and its lead over the next."""
        first, second, *_ = self.at(study, *place)
        d = self.diff(first, second)
        lead = "ahead of" if beyond_chance(d) > 0 else "not beyond chance ahead of"
        return f"{self.called(first, digits=digits)}, {lead} {method(second.split('/')[1])} by {plus_minus(d, digits)}"

    def behind(self, study: str, *place) -> str:
        """The methods that are behind the leader beyond chance."""
        first, *others = self.at(study, *place)
        return joined(method(a.split("/")[1]) for a in others if beyond_chance(self.diff(first, a)) > 0) or "none"

    def forgets(self, study: str, task: str) -> str:
        """The methods that forget least and most, LoRA beside a prefix, and what a wording alone changes."""
        its = sorted((a for a in self.at(study, task) if self.points[a].values("forgetting")
                      and "with wording" not in a),  # which it was measured without
                     key=lambda a: self.points[a].mean("forgetting")[0])
        trained = [a for a in its if METHODS[self.points[a].cell.method].trains()]
        less = self.diff(f"{study}/prefix/{task}", f"{study}/lora/{task}", "forgetting")
        least, most = (f"{method(a.split('/')[1])} ({self.mean(a, 'forgetting')}, with a score of "
                       f"{self.score(a):.{digits_of(task)}f})" for a in (trained[0], trained[-1]))
        untrained = [a for a in its if a not in trained]
        alone = f"; a wording alone, untrained: {self.mean(untrained[0], 'forgetting')}" if untrained else ""
        return (f"{least} forgets least and {most} most (nats per token); the prefix less LoRA: "
                f"{plus_minus(less, 2, '+')}{alone}")

    def off(self, study: str) -> str:
        """The largest change that is left with the adapter off, of the methods that freeze the base: none."""
        frozen = [p for p in self.found[study] if METHODS[p.cell.method].freezes_base]
        left = max((abs(x) for p in frozen for x in p.values("off").values()), default=0.0)
        return self.figure(f"{left:g}", left == 0, "0")

    def sweeps(self) -> list[tuple[Cell, list[float]]]:
        """A cell and the learning rates of every sweep that has been run, each once, though studies share some."""
        likes = {like.key: like for pairs in STUDIES.values() for _, like in pairs() if like is not None}
        found = {tuple(c.key for c in sweep_cells(self.lines, like)): like for like in likes.values() if sweep(like)}
        return [(like, [*sweep_losses(self.lines, like)]) for cells, like in found.items() if cells]

    def edges(self) -> str:
        """The number of sweeps, and of those whose best learning rate lies at an edge."""
        best = []
        for like, rates in self.sweeps():
            with contextlib.suppress(Error):  # diverged at every learning rate
                best.append(chosen(self.lines, like) in (rates[0], rates[-1]))
        return f"{sum(best)} of {len(best)}"

    def level_sweeps(self, study: str) -> str:
        """A sentence on sweeps of which 3 learning rates or more are as good as the best; "" for none."""
        found = {}
        for like in {like.key: like for _, like in STUDIES[study]() if like is not None}.values():
            losses = [loss for loss in sweep_losses(self.lines, like).values() if loss is not None]
            level = sum(loss < min(losses) + LEVEL for loss in losses)
            if level >= 3:
                place = f"`{like.task}`, {like.examples:,} examples: {level} of {len(losses)}"
                found[f"{method(summary.row(like))} ({place})"] = None
        return "" if not found else (f"Three learning rates or more come within {LEVEL} nats of the best, so that the "
                                     f"validation set hardly chooses between them: {joined(found)}. (On `topics` and "
                                     "`amounts` it has the patterns of the training examples.)")

    def effort(self) -> str:
        """The mean number of runs a sweep, of the methods of the tables."""
        runs: dict[str, list[int]] = {}
        for like, rates in self.sweeps():
            runs.setdefault(summary.row(like), []).append(len(rates))
        return joined(f"{method(row)} {statistics.mean(n):.1f}" for row, n in runs.items())

    def enough(self, start: str) -> str:
        """The fewest virtual tokens with which GOOD is reached."""
        first = next((a for a in self._below(start) if self.score(a) >= GOOD), None)
        if first is None:
            return f"reaches {GOOD} with none of the lengths (at best {self.mean(self.best(start))})"
        return f"needs {first.rpartition('/')[2]} virtual tokens for {GOOD} or more ({self.mean(first)})"

    def beyond(self, differences: dict[str, Interval], above: str, below: str) -> str:
        """Where differences are beyond chance: "narrower with 100 and 300, wider nowhere"."""
        def where(sign: int) -> str:
            return joined(label for label, d in differences.items() if beyond_chance(d) == sign) or "nowhere"

        return f"{above}: {where(1)}; {below}: {where(-1)}"

    def listed(self, differences: dict[str, Interval]) -> str:
        return ", ".join(f"{plus_minus(d, 2, '+')} ({label})" for label, d in differences.items())

    def amounts(self, study: str, row: str, task: str) -> list[int]:
        """The numbers of examples that a row has been run with."""
        return [self.points[a].cell.examples for a in self._below(f"{study}/{row}/{task}")]

    def other_vendors(self, study: str) -> str:
        """A sentence on what ran on another vendor's CPU than most, rows where only some did; "" if nothing did."""
        places: dict[str, dict[str, dict[str, None]]] = {}
        runs: Counter[str] = Counter()
        for p in self.found[study]:
            place = f"`{p.cell.task}`" + (f" with {p.cell.examples:,} examples" if p.cell.examples else "")
            for line in p.runs.values():
                vendor = kind(line["card"]).get("CPU vendor") or line["card"]["device"]
                places.setdefault(place, {}).setdefault(vendor, {})[method(summary.row(p.cell))] = None
                runs[vendor] += 1
        said, (most, *others) = "", [vendor for vendor, _ in runs.most_common()]
        for vendor in others:
            its = joined(place + ("" if len(of) == 1 else f" ({', '.join(of[vendor])})")
                         for place, of in places.items() if vendor in of)
            said += f" On CPUs of {vendor} ran {its}, on those of {most} the others: scores may differ by rounding."
        return said

    def little(self, a: str, b: str, name: str = "score") -> dict[str, Interval]:
        """Row a less row b with at most LITTLE examples, on every task; of gaps, where both fit their examples."""
        its = {f"`{t}`, {n}": (f"data/{a}/{t}/{n}", f"data/{b}/{t}/{n}") for t in TEXTS for n in FEW if n <= LITTLE}
        return {label: self.diff(*pair, name) for label, pair in its.items()
                if name != "gap" or all(self.points[p].mean("loss_on_learnt")[0] < FITTED for p in pair)}

    def first_edition(self, row: str, task: str, n: int) -> str:
        """Validation loss with n examples at the learning rate for endless data, and at that for n."""
        few = self.points[f"data/{row}/{task}/{n}"].cell
        losses = sweep_losses(self.lines, few)
        try:
            endless, best = chosen(self.lines, replace(few, examples=None)), chosen(self.lines, few)
        except Error:  # the sweep on endless data is another study's, and not run
            return f"{method(row)} (its sweep on endless data is not run)"
        before = losses.get(endless)
        return (f"{method(row)} {before:.2f} at {endless:g}" if before is not None else
                f"{method(row)} not tried at {endless:g}") + f", {losses[best]:.2f} at {best:g}"

    # Differences

    def diff(self, a: str, b: str, name: str = "score") -> Interval:
        return self.points[a].less(self.points[b], name)

    def less(self, a: str, b: str, name: str = "score", digits: int = 2) -> str:
        """a minus b."""
        return plus_minus(self.diff(a, b, name), digits, "+")

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

    def diffs(self, a: str, b: str, name: str = "score", label: str = "{}",
              skip: Container[str] = ()) -> dict[str, Interval]:
        """{label: a minus b} of all points whose address is `a` with something for its *, which
        also stands for the * of `b`."""
        before, _, after = a.partition("*")
        found = {}
        for address in self.points:
            if address.startswith(before) and address.endswith(after):
                star = address[len(before):len(address) - len(after)]
                other = b.replace("*", star)
                if other in self.points and star.split("/")[0] not in skip:
                    found[label.format(label_of(star))] = self.diff(address, other, name)
        return found

    def told(self, base: str) -> str:
        """Exact match on `reverse`, with its instruction, of a base as it is shipped."""
        return f"{read_json(BASES[base] / 'scores.json')['skills']['reverse']['told']:.2f}"

    def narrowing(self, row: str, task: str, first: str = "small", last: str = "medium") -> Interval:
        """The gap of a row to full fine-tuning on one base minus that on another."""
        full, its, last_full, its_last = (
            self.points[f"scale/{r}/{task}/{base}"].values("score")
            for base in (first, last) for r in (WHOLE, row))
        return summary.interval([full[seed] - its[seed] - (last_full[seed] - its_last[seed])
                                 for seed in full])

    def narrows(self, row: str, task: str) -> str:
        """narrowing(), above zero beyond chance."""
        d = self.narrowing(row, task)
        return self.figure(plus_minus(d), beyond_chance(d) > 0, "above zero beyond chance")

    # Time and cost

    def reached(self, task: str) -> str:
        """Methods that reach GOOD on a task with the seconds of training it takes, the fastest first."""
        step = {r["row"]: r["step_ms"]["median"] / 1000 for r in self.costs["rows"]}
        times = {}
        for r in step:
            curve = self.points[f"methods/{r}/{task}"].curve()
            if steps := [at for at, (mean, _) in curve if mean >= GOOD]:
                times[r] = step[r] * steps[0]
        order = sorted(times, key=times.get)
        return joined(f"{method(r)} after {times[r]:.1f} seconds" for r in order) or "no method"

    def steps(self) -> str:
        """The shortest and the longest step beside full fine-tuning's."""
        step = {r["row"]: r["step_ms"]["median"] for r in self.costs["rows"]}
        full = step.pop(WHOLE)
        low, *_, high = sorted(step, key=step.get)
        return f"{step[low] / full:.2f} ({method(low)}) to {step[high] / full:.2f} ({method(high)})"

    def fronts(self) -> str:
        """For each cost, the methods that no other one beats."""
        rows = cost_rows(self.lines, self.costs)
        scores = {r.row: plus_minus(r.score) for r in rows}
        costs = {"trained": "trained parameters", "stored_bytes": "stored bytes", "step_ms": "step time",
                 "saved_mb": "memory saved for backward"}
        return "; ".join(
            f"by {label} {joined(f'{method(r)} ({scores[r]})' for r in pareto_front(rows, name))}"
            for name, label in costs.items())


def label_of(place: str) -> str:
    """reverse/tiny -> `reverse`, tiny; a number of examples or tokens stays."""
    first, *rest = place.split("/")
    return ", ".join([first if first.isdigit() else f"`{first}`", *rest])


def method(row: str) -> str:
    """A row of the tables in a sentence: the prefix, LoRA, …"""
    article = "the " * (row in WITH_ARTICLE)
    return article + {"prompt": "prompt", "lora with wording": "LoRA with the wording", "full with wording":
                      "full fine-tuning with the wording"}.get(row, name_of(row))


def joined(words: Iterable[str]) -> str:
    """a, b and c; "" for none."""
    *others, last = [*words] or [""]
    return f"{', '.join(others)} and {last}" if others else last
