"""The lines as figures, one a study: 8 inches wide, an interval on every point, one colour a method everywhere."""

import math
from collections.abc import Callable

from ...accounting import base_parameters, count
from ...config import EMBEDDED
from ..drawing import COLOURS, figure
from ..quality.grid import Lines
from ..quality.real import SCORED
from ..quality.studies import BUDGETS, largest, method_of
from ..quality.summary import Interval, points
from .tables import best, cost_rows, of, start_name, sweep_losses, task, tokens, values

MARKERS = {"full": "s", "hard-prompt": "P", "prompt": "o", "prefix": "D", "lora": "^", "adapter": "v", "llama-adapter": "X"}
EXACT = "exact match on held-out examples"


def look(row: str) -> dict:
    """Colour, marker and line of a row: its method's; a hidden prefix and one by an MLP are drawn hollow, their lines dashed or dotted."""
    method = method_of(row)
    plain = row in COLOURS
    return {
        "color": COLOURS[method],
        "marker": MARKERS[method],
        "markerfacecolor": COLOURS[method] if plain else "white",
        "linestyle": "-" if plain else ("--" if row == "hidden prefix" else ":"),
        "label": row,
        "markersize": 6,
        "linewidth": 1.8,
    }


def bars(its: list[Interval], share: bool = True) -> list[list[float]]:
    """The lengths of the intervals, below and above; of a share, no more than lies between 0 and 1."""
    low, high = (0.0, 1.0) if share else (-math.inf, math.inf)
    return [[mean - max(low, mean - (half or 0)) for mean, half in its], [min(high, mean + (half or 0)) - mean for mean, half in its]]


def line(axes, xs: list[float], its: list[Interval], row: str, share: bool = True, **other) -> None:
    """Points joined by a line, each with its interval."""
    axes.errorbar(xs, [m for m, _ in its], bars(its, share), capsize=3, elinewidth=1.2, **(look(row) | other))


def legend(fig, axes, columns: int = 4) -> None:
    """One legend for all panels, under them, every entry once."""
    entries = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    fig.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=min(columns, len(entries)), fontsize=11)


def panels(n: int, height: float, columns: int = 2, **subplots):
    """n panels in rows of `columns` -> (figure, list of axes)."""
    rows = -(-n // columns)
    fig, axes = figure(rows, columns, height=height, squeeze=False, **subplots)
    axes = list(axes.flat)
    for spare in axes[n:]:
        spare.remove()
    return fig, axes[:n]


ORDER = ("full", "lora", "adapter", "llama-adapter", "prefix", "hidden prefix", "prompt", "hard-prompt")  # from above


def methods(lines: Lines, costs: dict | None):
    """A mark a method and task, and a small dot a seed."""
    found = points(lines, "methods")
    tasks, rows = values(found, "task"), ORDER[::-1]
    fig, axes = panels(len(tasks), 4.1, columns=len(tasks), sharey=True)
    for ax, t in zip(axes, tasks, strict=True):
        for p in of(found, task=t):
            y, style = rows.index(p.row), look(p.row)
            ax.errorbar([p.mean()[0]], [y], xerr=bars([p.mean()]), capsize=3, **(style | {"linestyle": "none", "markersize": 9}))
            scores = list(p.values("score").values())
            ax.plot(scores, [y - 0.32] * len(scores), "o", color=style["color"], markersize=3, alpha=0.6)
        name, _, kind = task(t).partition(" ")
        ax.set_title(f"{kind[1:-1]}:\n{name}", fontsize=12)
        ax.set_xlim(-0.08, 1.08)
        ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        ax.set_ylim(-0.7, len(rows) - 0.4)
    axes[0].set_yticks(range(len(rows)), rows)
    fig.supxlabel(f"{EXACT}; bars: 95 % over seeds, dots: seeds", fontsize=12)
    return fig


def sweeps(lines: Lines, costs: dict | None):
    """What every method's three rates reach on dev: not an answer, but that all were asked alike."""
    found = points(lines, "methods")
    tasks = values(found, "task")
    fig, axes = panels(len(tasks), 6.6)
    for ax, t in zip(axes, tasks, strict=True):
        for p in of(found, task=t):
            if p.cell.lr is None:
                continue
            losses = [x for x in sorted(sweep_losses(lines, p.cell).items()) if x[1] is not None]
            ax.plot(*zip(*losses, strict=True), **look(p.row))
            ax.plot([p.cell.lr], [dict(losses)[p.cell.lr]], "o", markersize=13, markerfacecolor="none", color=COLOURS[p.cell.method])
        ax.set(title=task(t), xscale="log", yscale="log", xlabel="peak learning rate", ylabel="loss on dev, nats/token")
    legend(fig, axes)
    return fig


def budget(lines: Lines, costs: dict | None):
    found = points(lines, "budget")
    tasks = values(found, "task")
    fig, axes = panels(len(tasks), 4.6, sharey=True)
    for ax, t in zip(axes, tasks, strict=True):
        for row in values(found, "row"):
            its = {b: p for b in BUDGETS for p in of(found, task=t, row=row) if p.cell.size == largest(row, b)}
            xs = [count(EMBEDDED[p.cell.base], p.cell.method, **p.cell.size).trained for p in its.values()]
            line(ax, xs, [p.mean() for p in its.values()], row)
        ax.set(title=task(t), xscale="log", xlabel="trained parameters", ylim=(-0.05, 1.08))
        ax.set_xticks(BUDGETS, [f"{b:,}" for b in BUDGETS])
        ax.minorticks_off()
    axes[0].set_ylabel(EXACT)
    legend(fig, axes, 3)
    return fig


def time(lines: Lines, costs: dict | None):
    """The curves of the first study over the seconds of their steps."""
    found = [p for p in points(lines, "methods") if p.row != "hard-prompt"]
    seconds = {r["row"]: r["step_ms"]["median"] / 1000 for r in costs["rows"]} if costs else {}
    tasks = values(found, "task")
    fig, axes = panels(len(tasks), 7.0, sharey=True)
    for ax, t in zip(axes, tasks, strict=True):
        for p in of(found, task=t):
            xs = [step * seconds[p.row] for step, _ in p.curve()]
            means = [m for _, (m, _) in p.curve()]
            style = look(p.row)
            ax.plot(xs, means, **(style | {"markersize": 4}))
            low, high = zip(*((max(0, m - (h or 0)), min(1, m + (h or 0))) for _, (m, h) in p.curve()), strict=True)
            ax.fill_between(xs, low, high, color=style["color"], alpha=0.13, linewidth=0)
        ax.set(title=task(t), xlabel="seconds of training, one CPU core", ylim=(-0.05, 1.05))
    for ax in axes[::2]:
        ax.set_ylabel("exact match")
    legend(fig, axes)
    return fig


def scale(lines: Lines, costs: dict | None):
    found = points(lines, "scale")
    tasks = values(found, "task")
    fig, axes = panels(2 * len(tasks), 7.0, sharex=True)
    for column, t in enumerate(tasks):
        its = {(p.row, p.cell.base): p for p in of(found, task=t)}
        bases = [b for b in EMBEDDED if ("full", b) in its]
        xs = [base_parameters(EMBEDDED[b]) for b in bases]
        above, below = axes[column], axes[len(tasks) + column]
        for row in values(found, "row"):
            line(above, xs, [its[row, b].mean() for b in bases], row)
            if row != "full":
                line(below, xs, [its["full", b].less(its[row, b]) for b in bases], row, share=False)
        above.set(title=task(t), ylim=(-0.05, 1.08))
        below.axhline(0, color=COLOURS["full"], linewidth=1)
        below.set(xscale="log", xlabel="parameters of the base")
        below.set_xticks(xs, [f"{x / 1e6:.2g} M" if x > 1e6 else f"{x / 1e3:.0f} k" for x in xs])
        below.minorticks_off()
    axes[0].set_ylabel("exact match")
    axes[len(tasks)].set_ylabel("full fine-tuning ahead by")
    legend(fig, axes)
    return fig


def length(lines: Lines, costs: dict | None):
    found = points(lines, "length")
    tasks = values(found, "task")
    fig, axes = panels(2 * len(tasks), 7.0, sharex=True)
    for column, t in enumerate(tasks):
        for ax, what in ((axes[column], "score"), (axes[len(tasks) + column], "loss")):
            for row in values(found, "row"):
                its = sorted(of(found, task=t, row=row), key=tokens)
                line(ax, list(map(tokens, its)), [p.mean(what) for p in its], row, share=what == "score")
            ax.set_xscale("log", base=2)
            lengths = sorted(set(map(tokens, found)))
            ax.set_xticks(lengths, [str(n) for n in lengths])
        axes[column].set(title=task(t), ylim=(-0.05, 1.08))
        axes[len(tasks) + column].set(yscale="log", xlabel="virtual tokens")
    axes[0].set_ylabel("exact match")
    axes[len(tasks)].set_ylabel("loss, nats/token")
    legend(fig, axes)
    return fig


def start(lines: Lines, costs: dict | None):
    """Half-way (hollow) and at the end (filled), for every start."""
    found = points(lines, "start")
    tasks, rows = values(found, "task"), ("prompt", "prefix")
    fig, axes = panels(len(tasks), 4.6, sharey=True)
    names = [f"{r} from {n}" for r in rows for n in dict.fromkeys(start_name(p.cell) for p in of(found, row=r))][::-1]
    for ax, t in zip(axes, tasks, strict=True):
        for p in of(found, task=t):
            y, style = names.index(f"{p.row} from {start_name(p.cell)}"), look(p.row) | {"linestyle": "none", "capsize": 3}
            for score, fill, label in ((p.mean("half-way"), "white", "half-way"), (p.mean(), style["color"], "at the end")):
                offset = 0.14 if label == "half-way" else -0.14
                ax.errorbar(
                    [score[0]], [y + offset], xerr=bars([score]), **(style | {"markerfacecolor": fill, "label": f"{p.row}, {label}"})
                )
        ax.set(title=task(t), xlim=(-0.06, 1.06), xlabel="exact match")
    axes[0].set_yticks(range(len(names)), names)
    legend(fig, axes)
    return fig


def projection(lines: Lines, costs: dict | None):
    found = points(lines, "projection")
    fig, ax = figure(height=4.2)
    for row in values(found, "row"):
        its = of(found, row=row)
        line(ax, [p.cell.lr for p in its], [p.mean() for p in its], row, label="learnt directly" if row == "prefix" else row)
        for p in its:  # every seed
            scores = list(p.values("score").values())
            ax.plot([p.cell.lr] * len(scores), scores, ".", color=COLOURS["prefix"], alpha=0.35, markersize=5)
    ax.set(title=task(found[0].cell.task), xscale="log", xlabel="peak learning rate", ylabel=EXACT, ylim=(-0.05, 1.08))
    ax.legend()
    return fig


def data(lines: Lines, costs: dict | None):
    found = points(lines, "data")
    tasks = values(found, "task")
    fig, axes = panels(2 * len(tasks), 7.0, sharex=True)
    for column, t in enumerate(tasks):
        for row in values(found, "row"):
            its = of(found, task=t, row=row)
            xs = [p.cell.examples for p in its]
            line(axes[column], xs, [p.mean() for p in its], row)
            line(axes[len(tasks) + column], xs, [p.mean("gap") for p in its], row, share=False)
        axes[column].set(title=task(t), ylim=(-0.05, 1.08))
        axes[len(tasks) + column].set(xscale="log", xlabel="examples to learn from", yscale="symlog")
    axes[0].set_ylabel("exact match")
    axes[len(tasks)].set_ylabel("held-out − learnt loss, nats/token")
    legend(fig, axes)
    return fig


def real(lines: Lines, costs: dict | None):
    """BLEU, held-out loss, and by how much that is above the loss on what was learnt; methods side by side at every number of examples."""
    found = points(lines, "real")
    ticks, rows = values(found, "examples"), values(found, "row")
    whats = {"score": f"BLEU of\n{SCORED} answers", "loss": "loss on test pairs,\nnats/token", "gap": "the same less that\non learnt pairs"}
    fig, axes = panels(len(whats), 4.0, columns=len(whats))
    for ax, (what, label) in zip(axes, whats.items(), strict=True):
        for i, row in enumerate(rows):
            its, aside = of(found, row=row), 1.1 ** (i - (len(rows) - 1) / 2)
            line(ax, [aside * p.cell.examples for p in its], [p.mean(what) for p in its], row, share=False)
        ax.set(xscale="log", xlabel="examples", title=label)
        ax.set_xticks(ticks, [str(n) for n in ticks])
        ax.minorticks_off()
    legend(fig, axes)
    return fig


def cost(lines: Lines, costs: dict | None):
    """The mean score over the tasks of the first study against four costs; what nothing else beats in both is ringed."""
    rows = cost_rows(lines, costs)
    whats = {
        "trained": "trained parameters",
        "stored_bytes": "stored for a task, bytes",
        "step_ms": "a training step, ms",
        "kept_mb": "kept for the backward pass, MB",
    }
    fig, axes = panels(len(whats), 7.2, sharey=True)
    for ax, (what, label) in zip(axes, whats.items(), strict=True):
        for r in rows:
            mean, _ = r["score"]
            ax.errorbar([r[what]], [mean], yerr=bars([r["score"]]), capsize=3, **(look(r["row"]) | {"linestyle": "none", "markersize": 8}))
            if r["row"] in best(rows, what):
                ax.plot([r[what]], [mean], "o", markersize=16, markerfacecolor="none", color="#777777", label="nothing is better in both")
        ax.set(xlabel=label, xscale="log" if what in ("trained", "stored_bytes") else "linear", ylim=(-0.03, 1.05))
    for ax in axes[::2]:
        ax.set_ylabel("exact match, mean of all tasks")
    legend(fig, axes)
    return fig


Figure = Callable[[Lines, "dict | None"], object]
FIGURES: dict[str, Figure] = {
    "methods": methods,
    "budget": budget,
    "time": time,
    "scale": scale,
    "length": length,
    "start": start,
    "projection": projection,
    "data": data,
    "real": real,
    "cost": cost,
    "sweeps": sweeps,
}
