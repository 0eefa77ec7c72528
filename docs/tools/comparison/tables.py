"""The lines of `bench.py quality` as tables."""

import math
from typing import NamedTuple

from docs.tools.comparison import summary
from docs.tools.comparison.summary import Interval, Point, by, distinct, plus_minus, points, select
from minipeft import Error
from minipeft.accounting import count
from minipeft.accounting.shapes import EMBEDDED
from minipeft.bench.measure import aligned
from minipeft.bench.quality.grid import chosen, sweep_losses
from minipeft.bench.quality.lines import Cell, Lines
from minipeft.bench.quality.real import SCORED, SENTENCES_SCORED
from minipeft.bench.quality.studies import AGAINST, BUDGETS, STUDIES, largest, row, sweep
from minipeft.data.tasks import find_task
from minipeft.methods import METHODS, WHOLE

APART = 0.05  # of exact match
BLEU_TASK = "e2e"  # the others are scored by exact match
MEDIANS = f"; in brackets the median, where it is more than {APART} from the mean"
LETTERS = {name: spec.symbol for method in METHODS.values() for name, spec in method.hyperparameters.items()
           if spec.symbol}


class Table(NamedTuple):
    """Cells of text under headings; the first column is aligned left, the others right."""

    title: str
    head: list[str]
    rows: list[list[str]]

    def text(self) -> str:
        lines = aligned([self.head, *self.rows])
        return "\n".join([self.title, *(line.rstrip() for line in lines)])

    def markdown(self) -> str:
        lines = [self.head, ["---"] + ["---:"] * (len(self.head) - 1), *self.rows]
        return "\n".join([f"*{self.title}*", "", *(f"| {' | '.join(line)} |" for line in lines)])


def size(cell: Cell) -> str:
    """A method's size in short: P 8, r 4 …"""
    sizes = (f"{LETTERS[name]} {value}" for name, value in cell.size.items() if name in LETTERS)
    return ", ".join(sizes) or "-"


def task(name: str) -> str:
    """A task and its kind."""
    return f"{name} ({find_task(name).kind})"


def seeds(found: list[Point]) -> str:
    """The number of seeds of the points."""
    n = sorted({len(p.runs) for p in found})
    return f"{n[0]} seeds" if len(n) == 1 else f"{n[0]} to {n[-1]} seeds"


def digits_of(task: str) -> int:
    """Decimal places of a task's scores."""
    return 1 if task == BLEU_TASK else 2


def score(p: Point | None, name: str = "score", digits: int = 2) -> str:
    """A point's mean and interval, and the median of an exact match that MEDIANS names; a dash where there is none."""
    if p is None or not p.values(name):
        return "-"
    text, median, diverged = plus_minus(p.mean(name), digits), p.median(name), len(p.runs) - len(p.finished)
    text += f", {diverged} diverged" * bool(diverged)
    apart = name == "score" and p.cell.task != BLEU_TASK and abs(median - p.mean(name)[0]) > APART
    return f"{text} ({median:.{digits}f})" if apart else text


def by_row(title: str, found: list[Point], across: str, name="score", digits: int = 2) -> Table:
    """A row for every method, a column for every value of `across`."""
    its, columns = by(found, "row", across), distinct(found, across)
    rows = [[r, *(score(its.get((r, c)), name, digits) for c in columns)]
            for r in distinct(found, "row")]
    head = [task(c) if across == "task" else str(c) for c in columns]
    return Table(title, ["method", *head], rows)


def sweep_table(lines: Lines, study: str) -> Table:
    """Validation loss at every learning rate of a study's sweeps, which other studies may share."""
    rows = []
    for _, like in STUDIES[study]():
        try:
            best = chosen(lines, like)
        except Error:  # not run, or diverged at every learning rate
            continue
        losses = {lr: "diverged" if loss is None else f"{loss:.3f}"
                  for lr, loss in sweep_losses(lines, like).items()}
        marks = [f"{lr:g}: {loss}{' ←' if lr == best else ''}" for lr, loss in losses.items()]
        examples = next((c.examples for c in sweep(like)), None)
        of = like.task if examples is None else f"{like.task}, {examples:,} examples"
        line = [row(like), size(like), like.base, of, *marks]
        if marks and line not in rows:  # cells of other seeds or amounts of data share a sweep
            rows.append(line)
    names = list(dict.fromkeys(r[0] for r in rows))
    n = max((len(r) for r in rows), default=4)
    head = ["method", "size", "base", "task", *["learning rate: loss"] * (n - 4)]
    rows = [r + [""] * (n - len(r)) for r in rows]
    title = "The sweep: validation loss at every learning rate; ← the one chosen"
    return Table(title, head, sorted(rows, key=lambda r: names.index(r[0])))


def methods(lines: Lines) -> list[Table]:
    found, rows = points(lines, "methods"), []
    its, tasks = by(found, "row", "task"), distinct(found, "task")
    for r in distinct(found, "row"):
        c = select(found, row=r)[0].cell
        trained = count(EMBEDDED[c.base], c.method, **c.size).trained
        rows.append([r, size(c), f"{trained:,}", *(score(its.get((r, t))) for t in tasks)])
    head = ["method", "size", "trained", *map(task, tasks)]
    title = f"Exact match on held-out examples, base small, mean ± 95 % over {seeds(found)}{MEDIANS}"
    losses = by_row(f"Held-out loss, nats per token, {seeds(found)}", found, "task", "loss")
    return [Table(title, head, rows), losses, sweep_table(lines, "methods")]


def budget(lines: Lines) -> list[Table]:
    found, rows = points(lines, "budget"), []
    for t in distinct(found, "task"):
        for r in distinct(found, "row"):
            its = [of_budget(select(found, row=r, task=t), b) for b in BUDGETS]
            rows.append([r, task(t), *(f"{size(p.cell)}: {score(p)}" if p else "-" for p in its)])
    head = ["method", "task", *(f"at most {b:,}" for b in BUDGETS)]
    return [Table(f"Exact match at equal trained parameters, {seeds(found)}{MEDIANS}", head, rows)]


def of_budget(found: list[Point], budget: int) -> Point | None:
    """The point with the largest size within a budget."""
    return next((p for p in found if p.cell.size == largest(p.row, budget)), None)


def scale(lines: Lines) -> list[Table]:
    found, rows = points(lines, "scale"), []
    methods = distinct(found, "row")
    frozen = [r for r in methods if r != WHOLE]
    for t in distinct(found, "task"):
        for base in distinct(found, "base"):
            its = by(select(found, task=t, base=base), "row")
            scores = [score(its.get(r)) for r in methods]
            gaps = [plus_minus(its[WHOLE].less(its[r])) if {r, WHOLE} <= its.keys() else "-" for r in frozen]
            parameters = f"{count(EMBEDDED[base], WHOLE).trained:,}"
            rows.append([base, parameters, task(t), *scores, *gaps])
    head = ["base", "parameters", "task", *methods, *(f"{WHOLE} − {r}" for r in frozen)]
    title = f"Exact match by the size of the base, {seeds(found)}; differences paired by seed{MEDIANS}"
    return [Table(title, head, rows), sweep_table(lines, "scale")]


def length(lines: Lines) -> list[Table]:
    found, tables = points(lines, "length"), []
    its, lengths = by(found, "row", "task", "tokens"), sorted(distinct(found, "tokens"))
    columns = [(r, t) for r in distinct(found, "row") for t in distinct(found, "task")]
    for name, title in (("score", "Exact match"), ("loss", "Held-out loss, nats per token,")):
        rows = [[str(P), *(score(its.get((r, t, P)), name) for r, t in columns)] for P in lengths]
        head = ["virtual tokens", *(f"{r}, {t}" for r, t in columns)]
        tables.append(Table(f"{title} by length, {seeds(found)}{MEDIANS if name == 'score' else ''}", head, rows))
    return [*tables, sweep_table(lines, "length")]


def start(lines: Lines) -> list[Table]:
    found = points(lines, "start")
    rows = [[p.row, p.cell.task, summary.value_of(p, "start"), plus_minus(p.curve()[0][1]),
             score(p, "half-way"), score(p), score(p, "loss", 3)] for p in found]
    head = ["method", "task", "starts from", "before", "half-way", "at the end", "loss at the end"]
    return [Table(f"Exact match by the start, {seeds(found)}{MEDIANS}", head, rows)]


def projection(lines: Lines) -> list[Table]:
    found, rows = points(lines, "projection"), []
    for p in found:
        scores = list(p.values("score").values())
        diverged = sum("failed" in line for line in p.runs.values())
        extremes = f"{min(scores):.2f} … {max(scores):.2f}"
        rows.append([p.row, f"{p.cell.lr:g}", score(p), extremes, str(diverged)])
    head = ["form", "learning rate", "exact match", "worst … best seed", "diverged"]
    title = f"A prefix trained directly and through the MLP, {task('parity')}, {seeds(found)}{MEDIANS}"
    return [Table(title, head, rows)]


def data(lines: Lines) -> list[Table]:
    found, tables = points(lines, "data"), []
    gap = "Gap: held-out minus training loss, nats per token"
    for t in distinct(found, "task"):
        its = select(found, task=t)
        title = f"Exact match by training examples, {task(t)}, {seeds(its)}{MEDIANS}"
        tables.append(by_row(title, its, "examples"))
        tables.append(by_row(f"Held-out loss, nats per token, {task(t)}", its, "examples", "loss"))
        tables.append(by_row(f"{gap}, {task(t)}", its, "examples", "gap"))
    return [*tables, sweep_table(lines, "data")]


def real(lines: Lines) -> list[Table]:
    """A table for each task."""
    found, tables = points(lines, "real"), []
    for t in distinct(found, "task"):
        its = select(found, task=t)
        c, measure, n = its[0].cell, *(("BLEU", SCORED) if t == BLEU_TASK else ("exact match", SENTENCES_SCORED))
        rows = []
        for p in its:
            peak, line = max(p.values("peak_bytes").values(), default=0), next(iter(p.finished.values()), {})
            seconds = min(p.values("seconds").values(), default=None)  # what else the machine does slows the others
            rows.append([p.row, score(p, digits=digits_of(t)), score(p, "loss", 3), score(p, "gap", 3),
                         score(p, "forgetting", 3), score(p, "off", 3), "-" if seconds is None else f"{seconds:.0f}",
                         f"{peak / 1e9:.2f}" if peak else "-", f"{line['trained']:,}" if line else "-",
                         f"{line['stored_bytes'] / 1000:,.0f}" if line else "-"])
        head = ["method", measure, "loss", "gap", "forgetting", "adapter off", "seconds", "peak GB", "trained",
                "stored KB"]
        title = f"`{t}`: {measure} on {n} held-out texts, {c.base}, {seeds(its)}{MEDIANS if t != BLEU_TASK else ''}"
        tables.append(Table(title, head, rows))
    return [*tables, sweep_table(lines, "real")] if tables else []


def real_data(lines: Lines) -> list[Table]:
    """Score, loss, gap and forgetting by training examples, of each task."""
    found, tables = points(lines, "real_data"), []
    for t in distinct(found, "task"):
        its, n = select(found, task=t), digits_of(t)
        if len(distinct(its, "examples")) < 2:  # those of the study before
            continue
        measure = f"`{t}`: {'BLEU' if t == BLEU_TASK else 'exact match'} by training examples, {seeds(its)}"
        for title, name, digits in ((measure, "score", n), ("Held-out loss", "loss", 2),
                                    ("Gap: held-out minus training loss", "gap", 2), ("Forgetting", "forgetting", 2)):
            unit = "" if name == "score" else f", nats per token, `{t}`"
            tables.append(by_row(title + unit, its, "examples", name, digits))
    return [*tables, sweep_table(lines, "real_data")] if tables else []


def real_prefix(lines: Lines) -> list[Table]:
    """Scores of a prefix and LoRA, and what each is less the other."""
    found = points(lines, "real_prefix")
    its, tasks, rows = by(found, "row", "task"), distinct(found, "task"), []
    for r in distinct(found, "row"):
        line = [r]
        for t in tasks:
            p, other = its.get((r, t)), its.get((AGAINST, t))
            line += [score(p, digits=digits_of(t)),
                     plus_minus(p.less(other), digits_of(t), "+") if p and other and p is not other else "-"]
        rows.append(line)
    head = ["method", *(text for t in tasks for text in (t, f"less {AGAINST}"))]
    title = f"A prefix and LoRA, one thing changed at a time, {seeds(found)}; e2e: BLEU, others: exact match{MEDIANS}"
    return [Table(title, head, rows), sweep_table(lines, "real_prefix")] if found else []


def forgetting(lines: Lines, found: list[Point] | None = None) -> list[Table]:
    """Score beside what is forgotten, of the points whose lines have it (None: those of the study)."""
    found = [p for p in found or points(lines, "forgetting") if p.values("forgetting")]
    rows = [[p.cell.task, p.row, score(p), score(p, "forgetting"), score(p, "remembered"), score(p, "off")]
            for t in distinct(found, "task") for p in select(found, task=t)]
    before = found[0].mean("known before")[0] if found else 0.0
    head = ["task", "method", "score", "forgetting", "skills told", "adapter off"]
    title = (f"Exact match on the task, {seeds(found)}{MEDIANS}; forgetting: loss on examples of all eight skills, "
             "told, after training less before, nats per token; exact match on them after training (before: "
             f"{before:.2f}); forgetting that is left with the adapter off" if found else "")
    return [Table(title, head, rows)] if found else []


class Cost(NamedTuple):
    """Mean score of a row of the first study over its tasks, and its costs."""

    row: str
    size: str
    score: Interval
    trained: int
    stored_bytes: int
    step_ms: float
    saved_mb: float
    peak_bytes: int | None


def cost_rows(lines: Lines, costs: dict | None) -> list[Cost]:
    found, rows = points(lines, "methods"), []
    for r in costs["rows"] if costs else ():
        if its := select(found, row=r["row"]):
            by_seed, line = [p.values("score") for p in its], next(iter(its[0].runs.values()))
            common = sorted(set.intersection(*map(set, by_seed)))
            mean = summary.interval([sum(scores[seed] for scores in by_seed) / len(its)
                                     for seed in common])
            rows.append(Cost(r["row"], size(its[0].cell), mean, line["trained"],
                             line["stored_bytes"], r["step_ms"]["median"], r["kept_bytes"] / 1e6,
                             r["peak_bytes"]))
    return rows


def pareto_front(rows: list[Cost], name: str) -> list[str]:
    """Rows that no other one beats: costing at most as much and scoring at least as much."""
    places = {r.row: (getattr(r, name), -r.score[0]) for r in rows}
    return [row for row, (x, y) in places.items()
            if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in places.values())]


def cost(lines: Lines, costs: dict | None) -> Table:
    rows = cost_rows(lines, costs)
    full = next((r.step_ms for r in rows if r.row == WHOLE), math.nan)
    text = [[r.row, r.size, plus_minus(r.score), f"{r.trained:,}", f"{r.stored_bytes / 1000:,.1f}",
             f"{r.step_ms:.1f}", f"{r.step_ms / full:.2f}", f"{r.saved_mb:.2f}",
             f"{r.peak_bytes / 1e6:.0f}" if r.peak_bytes else "-"] for r in rows]
    head = ["method", "size", "score", "trained", "stored KB", "step ms", "× full", "saved MB",
            "peak MB"]
    title = ("Score (mean exact match of all tasks of the first study) beside cost; steps "
             "interleaved, one thread; saved: for the backward pass")
    return Table(title, head, text)


TABLES = {study.__name__: study for study in
          (methods, budget, scale, length, start, projection, data, real, real_data, real_prefix, forgetting)}
