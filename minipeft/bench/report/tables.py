"""The lines as tables, one or two a study."""

import html
from typing import NamedTuple

from ...accounting import count
from ...config import EMBEDDED, Error
from ...data.tasks import find_task
from ..measure import aligned
from ..quality.cell import Cell
from ..quality.grid import Lines, chosen
from ..quality.real import LONGEST, SCORED
from ..quality.studies import BUDGETS, RATES, STUDIES, largest, row
from ..quality.studies import sweep as sweep_of
from ..quality.summary import Interval, Point, interval, points


class Table(NamedTuple):
    """Cells of text under headings; the first column stands left, the others right."""

    title: str
    head: list[str]
    rows: list[list[str]]

    def text(self) -> str:
        return "\n".join([self.title, *(line.rstrip() for line in aligned([self.head, *self.rows]))])

    def markdown(self) -> str:
        lines = [self.head, ["---"] + ["---:"] * (len(self.head) - 1), *self.rows]
        return "\n".join([f"*{self.title}*", "", *(f"| {' | '.join(line)} |" for line in lines)])

    def html(self) -> str:
        def cells(line: list[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in line) + "</tr>"

        body = "".join(cells(line, "td") for line in self.rows)
        return f"<table><caption>{html.escape(self.title)}</caption><thead>{cells(self.head, 'th')}</thead><tbody>{body}</tbody></table>"


def shown(x: Interval, digits: int = 2, sign: str = "") -> str:
    """mean ± half, or the mean alone where there is one value."""
    mean, half = x
    return f"{mean:{sign}.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")


def size(cell: Cell) -> str:
    """A method's size in a few letters: P 8, r 4 …"""
    letters = {"num_virtual_tokens": "P", "r": "r", "bottleneck_size": "m", "adapter_len": "K"}
    return ", ".join(f"{letters[name]} {value}" for name, value in cell.size.items() if name in letters) or "-"


def task(name: str) -> str:
    """A task and its kind."""
    return f"{name} ({find_task(name).kind})"


def of(found: list[Point], **wanted) -> list[Point]:
    """The points whose cell, or row, has these values."""
    return [p for p in found if all((p.row if name == "row" else getattr(p.cell, name)) == value for name, value in wanted.items())]


def tokens(p: Point) -> int:
    """Virtual tokens of a prompt or prefix."""
    return p.cell.size["num_virtual_tokens"]


def values(found: list[Point], name: str) -> list:
    """What the points have under this name, each once."""
    return list(dict.fromkeys(p.row if name == "row" else getattr(p.cell, name) for p in found))


def seeds(found: list[Point]) -> str:
    """How many seeds the points have."""
    n = sorted({len(p.runs) for p in found})
    return f"{n[0]} seeds" if len(n) == 1 else f"{n[0]} to {n[-1]} seeds"


def grid(title: str, found: list[Point], across: str, what: str = "score", digits: int = 2) -> Table:
    """A line for every row of the study, a column for every value of `across`."""
    columns, rows = values(found, across), []
    for name in values(found, "row"):
        its = [of(found, **{"row": name, across: column}) for column in columns]
        rows.append([name, *(shown(ps[0].mean(what), digits) if ps and ps[0].values(what) else "-" for ps in its)])
    return Table(title, ["method", *(task(c) if across == "task" else str(c) for c in columns)], rows)


def methods(lines: Lines) -> list[Table]:
    found = points(lines, "methods")
    if not found:
        return []
    base = found[0].cell.base
    tasks, rows = values(found, "task"), []
    for name in values(found, "row"):
        its = of(found, row=name)
        trained = "0" if name == "hard-prompt" else f"{count(EMBEDDED[base], its[0].cell.method, **its[0].cell.size).trained:,}"
        scores = [shown(ps[0].mean()) if (ps := of(its, task=t)) else "-" for t in tasks]
        rows.append([name, size(its[0].cell), trained, *scores])
    head = ["method", "size", "trained", *map(task, tasks)]
    n = seeds(found)
    return [
        Table(f"Exact match on held-out examples, base {base}, mean ± 95 % over {n}", head, rows),
        grid(f"Loss on them, nats per token, {n}", found, "task", "loss"),
        sweep(lines, "methods"),
    ]


def sweep_losses(lines: Lines, like: Cell) -> dict[float, "float | None"]:
    """{rate: loss on dev} of the sweep that chose the rate of this cell; None: training came apart."""
    return {c.lr: lines[c.key]["loss"] for c in sweep_of(like) if c.key in lines}


def sweep(lines: Lines, study: str) -> Table:
    """The study's sweeps: the loss on dev at every learning rate, the chosen one marked. Other studies may share them."""
    rows = []
    for _, like in STUDIES[study]():
        try:
            taken = chosen(lines, like)
        except Error:  # it is not run, or came apart at every rate
            continue
        losses = sweep_losses(lines, like)
        marks = [f"{lr:g}: {'apart' if loss is None else f'{loss:.3f}'}{' ←' if lr == taken else ''}" for lr, loss in losses.items()]
        line = [row(like), size(like), like.base, like.task, *marks]
        if marks and line not in rows:  # words have none, and cells of other data or seeds the same
            rows.append(line)
    names = list(dict.fromkeys(r[0] for r in rows))
    head = ["method", "size", "base", "task", *["rate: loss"] * len(RATES["full"])]
    title = "The sweep: loss on dev at every learning rate; ← the one that was taken"
    return Table(title, head, sorted(rows, key=lambda r: names.index(r[0])))


def budget(lines: Lines) -> list[Table]:
    found, rows = points(lines, "budget"), []
    for t in values(found, "task"):
        for name in values(found, "row"):
            cells = []
            for b in BUDGETS:
                its = [p for p in of(found, row=name, task=t) if p.cell.size == largest(name, b)]
                cells += [f"{size(its[0].cell)}: {shown(its[0].mean())}" if its else "-"]
            rows.append([name, task(t), *cells])
    head = ["method", "task", *(f"at most {b:,}" for b in BUDGETS)]
    return [Table(f"Exact match at equal trained parameters, {seeds(found)}", head, rows)] if rows else []


def scale(lines: Lines) -> list[Table]:
    found, rows = points(lines, "scale"), []
    for t in values(found, "task"):
        for base in values(found, "base"):
            its = {p.row: p for p in of(found, task=t, base=base)}
            if "full" not in its:
                continue
            scores = [shown(its[r].mean()) if r in its else "-" for r in ("prompt", "prefix", "full")]
            gaps = [shown(its["full"].less(its[r])) if r in its else "-" for r in ("prompt", "prefix")]
            rows.append([base, f"{count(EMBEDDED[base], 'full').trained:,}", task(t), *scores, *gaps])
    head = ["base", "parameters", "task", "prompt", "prefix", "full", "full − prompt", "full − prefix"]
    title = f"Exact match by the size of the base, {seeds(found)}; differences seed by seed"
    return [Table(title, head, rows), sweep(lines, "scale")] if rows else []


def length(lines: Lines) -> list[Table]:
    found, tables = points(lines, "length"), []
    for what, title in (("score", "Exact match"), ("loss", "Loss, nats per token,")):
        rows = []
        for P in sorted(set(map(tokens, found))):
            its = [p for p in found if tokens(p) == P]
            columns = [of(its, row=r, task=t) for r in values(found, "row") for t in values(found, "task")]
            rows.append([str(P), *(shown(ps[0].mean(what)) if ps else "-" for ps in columns)])
        head = ["virtual tokens", *(f"{r}, {t}" for r in values(found, "row") for t in values(found, "task"))]
        tables.append(Table(f"{title} by length, {seeds(found)}", head, rows)) if rows else None
    return [*tables, sweep(lines, "length")] if tables else []


def start_name(cell: Cell) -> str:
    """What a cell starts from, in words."""
    if isinstance(cell.start, dict):
        return {"text": "a text", "hard-prompt": "the best wording", "prompt": "a trained soft prompt"}[cell.start.get("rung", "text")]
    return {"random": "noise", "vocab": "tokens of the vocabulary"}[cell.start]


def start(lines: Lines) -> list[Table]:
    rows, found = [], points(lines, "start")
    for p in found:
        rows.append(
            [
                p.row,
                p.cell.task,
                start_name(p.cell),
                shown(p.curve()[0][1]),
                shown(p.mean("half-way")),
                shown(p.mean()),
                shown(p.mean("loss"), 3),
            ]
        )
    head = ["method", "task", "starts from", "before", "half-way", "at the end", "loss at the end"]
    return [Table(f"Exact match by what it starts from, {seeds(found)}", head, rows)] if rows else []


def projection(lines: Lines) -> list[Table]:
    rows, found = [], points(lines, "projection")
    for p in found:
        scores = list(p.values("score").values())
        lost = sum("failed" in line for line in p.runs.values())
        rows.append([p.row, f"{p.cell.lr:g}", shown(p.mean()), f"{min(scores):.2f} … {max(scores):.2f}", str(lost)])
    head = ["form", "learning rate", "exact match", "worst … best seed", "came apart"]
    return [Table(f"A prefix learnt directly and by the MLP, {task(found[0].cell.task)}, {seeds(found)}", head, rows)] if rows else []


def data(lines: Lines) -> list[Table]:
    found, tables = points(lines, "data"), []
    for t in values(found, "task"):
        its = of(found, task=t)
        tables += [
            grid(f"Exact match by examples to learn from, {task(t)}, {seeds(its)}", its, "examples"),
            grid(f"Gap: held-out loss above the loss on what was learnt, nats per token, {task(t)}", its, "examples", "gap"),
        ]
    return tables


def real(lines: Lines) -> list[Table]:
    found = points(lines, "real")
    if not found:
        return []
    of_all = found[0].cell  # what is the same for all
    work = f"{of_all.steps} steps of {of_all.batch_size} pairs of at most {LONGEST} tokens; prompt and prefix start from a wording"
    return [
        grid(
            f"BLEU of the answers to {SCORED} test MRs by examples to learn from, {of_all.base}, {work}, {seeds(found)}",
            found,
            "examples",
            digits=1,
        ),
        grid("Loss on test pairs, nats per token", found, "examples", "loss", 3),
        grid("Gap: that loss above the loss on what was learnt, nats per token", found, "examples", "gap", 3),
        sweep(lines, "real"),
    ]


def cost_rows(lines: Lines, costs: dict | None) -> list[dict]:
    """Of every row of the first study that trains: its mean score over the tasks (an interval over seeds), and what it costs."""
    found, rows = points(lines, "methods"), []
    measured = {r["row"]: r for r in (costs or {"rows": []})["rows"]}
    for name in values(found, "row"):
        its = of(found, row=name)
        if name not in measured:
            continue
        by_seed = [p.values("score") for p in its]
        seeds = set.intersection(*map(set, by_seed))
        any_line = next(iter(its[0].runs.values()))
        rows.append(
            {
                "row": name,
                "size": size(its[0].cell),
                "score": interval([sum(scores[seed] for scores in by_seed) / len(by_seed) for seed in sorted(seeds)]),
                "trained": any_line["trained"],
                "stored_bytes": any_line["stored_bytes"],
                "step_ms": measured[name]["step_ms"]["median"],
                "kept_mb": measured[name]["kept_bytes"] / 1e6,
                "peak_bytes": measured[name]["peak_bytes"],
            }
        )
    return rows


def best(rows: list[dict], what: str) -> list[str]:
    """The Pareto front: rows for which no other one costs as little or less and scores more, or costs less and scores as much."""

    def beats(a: dict, b: dict) -> bool:
        return a[what] <= b[what] and a["score"][0] >= b["score"][0] and (a[what], a["score"][0]) != (b[what], b["score"][0])

    return [r["row"] for r in rows if not any(beats(other, r) for other in rows)]


def cost(lines: Lines, costs: dict | None) -> list[Table]:
    rows = cost_rows(lines, costs)
    full = next((r["step_ms"] for r in rows if r["row"] == "full"), None)
    cells = [
        [
            r["row"],
            r["size"],
            shown(r["score"]),
            f"{r['trained']:,}",
            f"{r['stored_bytes'] / 1000:,.1f}",
            f"{r['step_ms']:.1f}",
            f"{r['step_ms'] / full:.2f}" if full else "-",
            f"{r['kept_mb']:.2f}",
            f"{r['peak_bytes'] / 1e6:.0f}" if r["peak_bytes"] else "-",
        ]
        for r in rows
    ]
    head = ["method", "size", "score", "trained", "stored KB", "step ms", "× full", "kept MB", "peak MB"]
    return (
        [Table("Score (mean exact match of all tasks of the first study) beside cost; steps interleaved, one thread", head, cells)]
        if rows
        else []
    )


TABLES = {
    "methods": methods,
    "budget": budget,
    "scale": scale,
    "length": length,
    "start": start,
    "projection": projection,
    "data": data,
    "real": real,
}
