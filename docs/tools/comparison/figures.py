"""Figures of the studies: 8 inches wide, an interval on every point, one colour per method."""

import math
from collections.abc import Callable

from docs.tools.comparison.summary import Interval, Point, by, distinct, points, select, value_of
from docs.tools.comparison.tables import BLEU_TASK, cost_rows, of_budget, pareto_front, task
from docs.tools.drawing import COLOURS, MARKERS, figure
from minipeft.accounting import base_parameters
from minipeft.accounting.shapes import EMBEDDED
from minipeft.bench.quality.grid import sweep_losses
from minipeft.bench.quality.lines import Lines
from minipeft.bench.quality.studies import AGAINST, BUDGETS, method_of
from minipeft.methods import WHOLE

EXACT = "exact match on held-out examples"
OVER_SEEDS = "bars: 95 % over seeds"
CUT = f"{OVER_SEEDS}, cut at 0 and 1"  # of a share
SHARE = (-0.05, 1.08)  # limits of an axis of exact match
SPREAD = 0.3  # of exact match: from here on the seeds of a mean are drawn too
DOTS = f"dots: seeds, where they are more than {SPREAD} apart"


def style(row: str, **other) -> dict:
    """Colour, marker and line of a row: its method's; other forms of a prefix are drawn hollow."""
    color = COLOURS[method_of(row)]
    line = {"hidden prefix": "--", "prefix by an MLP": ":", "prefix from noise": ":"}.get(row, "-")
    return {"color": color, "marker": MARKERS[method_of(row)], "linestyle": line, "label": row,
            "markerfacecolor": color if row in COLOURS else "white", "markersize": 6,
            "linewidth": 1.8, "capsize": 3} | other


def bars(its: list[Interval], share: bool = True) -> list[list[float]]:
    """Lengths of the intervals below and above their means; of a share only what lies in 0 … 1."""
    low, high = (0.0, 1.0) if share else (-math.inf, math.inf)
    return [[mean - max(low, mean - (half or 0)) for mean, half in its],
            [min(high, mean + (half or 0)) - mean for mean, half in its]]


def draw_line(ax, xs: list[float], its: list[Interval], row: str, share=True, **other) -> None:
    """Means joined by a line, with their intervals."""
    look = style(row, elinewidth=1.2, **other)
    ax.errorbar(xs, [mean for mean, _ in its], bars(its, share), **look)


def draw_rows(ax, found: list[Point], x: Callable[[Point], float], name: str = "score") -> None:
    """A line for every row of these points."""
    for row in distinct(found, "row"):
        its = sorted(select(found, row=row), key=x)
        share = name == "score" and its[0].cell.task != BLEU_TASK
        draw_line(ax, list(map(x, its)), [p.mean(name) for p in its], row, share)
        for p in its if share else ():
            draw_seeds(ax, x(p), p)


def draw_seeds(ax, x: float, p: Point) -> None:
    """A dot for every seed of an exact match whose seeds are far apart."""
    scores = list(p.values("score").values())
    if max(scores) - min(scores) > SPREAD:
        ax.plot([x] * len(scores), scores, "o", color=style(p.row)["color"], markersize=3, alpha=0.6)


def legend(fig, axes, columns: int = 4, note: str | None = None) -> None:
    """One legend for all panels, below them, under a note."""
    entries = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    fig.legend(entries.values(), entries.keys(), loc="outside lower center",
               ncols=min(columns, len(entries)), fontsize=11, title=note)


def panels(n: int, height: float, columns: int = 2, **subplots):
    """n panels in rows of `columns` -> (figure, list of axes)."""
    fig, axes = figure(-(-n // columns), columns, height=height, squeeze=False, **subplots)
    axes = list(axes.flat)
    for spare in axes[n:]:
        spare.remove()
    return fig, axes[:n]


def ticks(ax, values: list, labels: list[str]) -> None:
    ax.set_xticks(values, labels)
    ax.minorticks_off()


def methods(lines: Lines, costs: dict | None):
    """A marker per method and task, a small dot per seed."""
    found = points(lines, "methods")
    tasks, rows = distinct(found, "task"), distinct(found, "row")[::-1]  # the first row on top
    fig, axes = panels(len(tasks), 4.1, columns=len(tasks), sharey=True)
    for ax, t in zip(axes, tasks, strict=True):
        for p in select(found, task=t):
            y, scores = rows.index(p.row), list(p.values("score").values())
            ax.errorbar([p.mean()[0]], [y], xerr=bars([p.mean()]),
                        **style(p.row, linestyle="none", markersize=9))
            ax.plot(scores, [y - 0.32] * len(scores), "o", color=style(p.row)["color"],
                    markersize=3, alpha=0.6)
        name, _, kind = task(t).partition(" ")
        ax.set_title(f"{kind[1:-1]}:\n{name}", fontsize=12)
        ax.set(xlim=(-0.08, 1.08), ylim=(-0.7, len(rows) - 0.4))
        ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes[0].set_yticks(range(len(rows)), rows)
    fig.supxlabel(f"{EXACT}\n{CUT}; dots: seeds", fontsize=12)
    return fig


def sweeps(lines: Lines, costs: dict | None):
    """Validation loss of every learning rate; the chosen one is ringed."""
    found = [p for p in points(lines, "methods") if p.cell.lr is not None]
    tasks = distinct(found, "task")
    fig, axes = panels(len(tasks), 6.6)
    for ax, t in zip(axes, tasks, strict=True):
        for p in select(found, task=t):
            losses = sweep_losses(lines, p.cell)
            losses = {lr: loss for lr, loss in losses.items() if loss is not None}
            ax.errorbar(list(losses), list(losses.values()), **style(p.row))
            ax.plot([p.cell.lr], [losses[p.cell.lr]], "o", markersize=13, markerfacecolor="none",
                    color=style(p.row)["color"])
        ax.set(title=task(t), xscale="log", yscale="log", xlabel="peak learning rate",
               ylabel="validation loss, nats/token")
    legend(fig, axes)
    return fig


def budget(lines: Lines, costs: dict | None):
    found = points(lines, "budget")
    found = [p for b in BUDGETS for p in found if p == of_budget([p], b)]
    tasks = distinct(found, "task")
    fig, axes = panels(len(tasks), 4.6, sharey=True)
    for ax, t in zip(axes, tasks, strict=True):
        draw_rows(ax, select(found, task=t), lambda p: next(iter(p.runs.values()))["trained"])
        ax.set(title=task(t), xscale="log", xlabel="trained parameters", ylim=SHARE)
        ticks(ax, BUDGETS, [f"{b:,}" for b in BUDGETS])
    axes[0].set_ylabel(EXACT)
    legend(fig, axes, 3, f"{CUT}\n{DOTS}")
    return fig


def time(lines: Lines, costs: dict | None):
    """The training curves of the first study over the seconds of their steps."""
    seconds = {r["row"]: r["step_ms"]["median"] / 1000 for r in costs["rows"]}
    found = [p for p in points(lines, "methods") if p.row in seconds]
    tasks = distinct(found, "task")
    fig, axes = panels(len(tasks), 7.0, sharey=True)
    for ax, t in zip(axes, tasks, strict=True):
        for p in select(found, task=t):
            steps, its = zip(*p.curve(), strict=True)
            xs, (below, above) = [step * seconds[p.row] for step in steps], bars(its)
            means = [mean for mean, _ in its]
            ax.errorbar(xs, means, **style(p.row, markersize=4))
            ax.fill_between(xs, [m - b for m, b in zip(means, below, strict=True)],
                            [m + a for m, a in zip(means, above, strict=True)],
                            color=style(p.row)["color"], alpha=0.13, linewidth=0)
        ax.set(title=task(t), xlabel="seconds of training, one CPU core", ylim=(-0.05, 1.05))
    for ax in axes[::2]:
        ax.set_ylabel("exact match")
    legend(fig, axes, note=CUT.replace("bars", "bands"))
    return fig


def scale(lines: Lines, costs: dict | None):
    """Scores above, their distance to full fine-tuning below."""
    found = points(lines, "scale")
    tasks = distinct(found, "task")
    fig, axes = panels(2 * len(tasks), 7.0, sharex=True)
    for t, above, below in zip(tasks, axes, axes[len(tasks):], strict=False):
        its = by(select(found, task=t), "row", "base")
        bases = [b for b in EMBEDDED if (WHOLE, b) in its]
        xs = [base_parameters(EMBEDDED[b]) for b in bases]
        draw_rows(above, select(found, task=t), lambda p: base_parameters(EMBEDDED[p.cell.base]))
        for row in (r for r in distinct(found, "row") if r != WHOLE):
            at = [(x, its[WHOLE, b].less(its[row, b])) for x, b in zip(xs, bases, strict=True) if (row, b) in its]
            draw_line(below, [x for x, _ in at], [gap for _, gap in at], row, share=False)
        above.set(title=task(t), ylim=SHARE)
        below.axhline(0, color=COLOURS[WHOLE], linewidth=1)
        below.set(xscale="log", xlabel="parameters of the base")
        ticks(below, xs, [f"{x / 1e6:.2g} M" if x > 1e6 else f"{x / 1e3:.0f} k" for x in xs])
    axes[0].set_ylabel("exact match")
    axes[len(tasks)].set_ylabel("full fine-tuning ahead by")
    legend(fig, axes, note=f"{CUT} in the upper row\n{DOTS}")
    return fig


def length(lines: Lines, costs: dict | None):
    """Exact match above, loss below."""
    found = points(lines, "length")
    tasks, lengths = distinct(found, "task"), sorted(distinct(found, "tokens"))
    fig, axes = panels(2 * len(tasks), 7.0, sharex=True)
    for t, above, below in zip(tasks, axes, axes[len(tasks):], strict=False):
        for ax, name in ((above, "score"), (below, "loss")):
            draw_rows(ax, select(found, task=t), lambda p: value_of(p, "tokens"), name)
            ax.set_xscale("log", base=2)
            ticks(ax, lengths, list(map(str, lengths)))
        above.set(title=task(t), ylim=SHARE)
        below.set(yscale="log", xlabel="virtual tokens")
    axes[0].set_ylabel("exact match")
    axes[len(tasks)].set_ylabel("loss, nats/token")
    legend(fig, axes, note=f"{CUT} in the upper row, at 0 in the lower\n{DOTS}")
    return fig


def start(lines: Lines, costs: dict | None):
    """Half-way (hollow) and at the end (filled), for every start."""
    found = points(lines, "start")
    names = list(dict.fromkeys((p.row, value_of(p, "start")) for r in distinct(found, "row")
                               for p in select(found, row=r)))[::-1]
    tasks = distinct(found, "task")
    fig, axes = panels(len(tasks), 4.6, sharey=True)
    for ax, t in zip(axes, tasks, strict=True):
        for p in select(found, task=t):
            y = names.index((p.row, value_of(p, "start")))
            for name, label, at in (("half-way", "half-way", y + 0.14),
                                    ("score", "at the end", y - 0.14)):
                look = style(p.row, linestyle="none", label=f"{p.row}, {label}")
                if name == "half-way":
                    look["markerfacecolor"] = "white"
                ax.errorbar([p.mean(name)[0]], [at], xerr=bars([p.mean(name)]), **look)
        ax.set(title=task(t), xlim=(-0.06, 1.06), xlabel="exact match")
    axes[0].set_yticks(range(len(names)), [f"{row} from {start}" for row, start in names])
    legend(fig, axes, note=CUT)
    return fig


def projection(lines: Lines, costs: dict | None):
    found = points(lines, "projection")
    fig, ax = figure(height=4.2)
    for row in distinct(found, "row"):
        its = select(found, row=row)
        label = "trained directly" if row in COLOURS else row
        draw_line(ax, [p.cell.lr for p in its], [p.mean() for p in its], row, label=label)
        for p in its:  # every seed
            scores = list(p.values("score").values())
            ax.plot([p.cell.lr] * len(scores), scores, ".", color=style(row)["color"], alpha=0.35,
                    markersize=5)
    ax.set(title=task(found[0].cell.task), xscale="log", xlabel="peak learning rate",
           ylabel=EXACT, ylim=SHARE)
    legend(fig, [ax], note=CUT)
    return fig


def data(lines: Lines, costs: dict | None):
    """Exact match above, the gap of held-out and training loss below."""
    found = points(lines, "data")
    tasks, examples = distinct(found, "task"), sorted(distinct(found, "examples"))
    fig, axes = panels(2 * len(tasks), 7.0, sharex=True)
    for t, above, below in zip(tasks, axes, axes[len(tasks):], strict=False):
        for ax, name in ((above, "score"), (below, "gap")):
            draw_rows(ax, select(found, task=t), lambda p: p.cell.examples, name)
            ax.set_xscale("log")
            ticks(ax, examples, [f"{n:,}" for n in examples])
        above.set(title=task(t), ylim=SHARE)
        below.set(xlabel="training examples")
        below.axhline(0, color=COLOURS[WHOLE], linewidth=1)
    axes[0].set_ylabel("exact match")
    axes[len(tasks)].set_ylabel("held-out less training\nloss, nats/token")
    legend(fig, axes, note=f"{CUT} in the upper row\n{DOTS}")
    return fig


def side_by_side(found: list[Point], title: Callable[[str], str]):
    """Score and forgetting of every method, a row of panels a task; a dot for each seed."""
    tasks, rows = distinct(found, "task"), distinct(found, "row")[::-1]  # the first row on top
    fig, axes = panels(2 * len(tasks), 0.9 + len(tasks) * (0.7 + 0.28 * len(rows)), sharey=True)
    for i, t in enumerate(tasks):
        score, change, is_share = *axes[2 * i:2 * i + 2], t != BLEU_TASK
        for ax, name in ((score, "score"), (change, "forgetting")):
            for p in (p for p in select(found, task=t) if p.values(name)):
                y, values = rows.index(p.row), list(p.values(name).values())
                ax.errorbar([p.mean(name)[0]], [y], xerr=bars([p.mean(name)], name == "score" and is_share),
                            **style(p.row, linestyle="none", markersize=8))
                ax.plot(values, [y - 0.3] * len(values), "o", color=style(p.row)["color"], markersize=3, alpha=0.6)
            ax.set(title=title(t), ylim=(-0.7, len(rows) - 0.4))
        score.set(xlabel="exact match" if is_share else "BLEU", **({"xlim": (-0.08, 1.08)} if is_share else {}))
        change.set_xlabel("forgetting, nats/token")
        change.axvline(0, color=COLOURS[WHOLE], linewidth=1)
        score.set_yticks(range(len(rows)), rows)
    fig.supxlabel(f"{CUT} for exact match; dots: seeds", fontsize=12)
    return fig


def real(lines: Lines, costs: dict | None):
    return side_by_side(points(lines, "real"), str)


def real_data(lines: Lines, costs: dict | None):
    """The score above, what is forgotten below."""
    found = points(lines, "real_data")
    tasks, examples = distinct(found, "task"), sorted(distinct(found, "examples"))
    fig, axes = panels(2 * len(tasks), 7.0, columns=len(tasks), sharex=True)
    for t, above, below in zip(tasks, axes, axes[len(tasks):], strict=False):
        draw_rows(above, select(found, task=t), lambda p: p.cell.examples)
        draw_rows(below, select(found, task=t), lambda p: p.cell.examples, "forgetting")
        above.set(title=f"{t}: {'BLEU' if t == BLEU_TASK else 'exact match'}", xscale="log",
                  **({} if t == BLEU_TASK else {"ylim": SHARE}))
        ticks(above, examples, [f"{n:,}" for n in examples])
        below.set(xlabel="training examples")
    axes[len(tasks)].set_ylabel("forgetting, nats/token")
    legend(fig, axes, note=f"{CUT} for exact match\n{DOTS}")
    return fig


def real_prefix(lines: Lines, costs: dict | None):
    """The score of each row less LoRA's, paired by seed; a dot for each seed."""
    found = points(lines, "real_prefix")
    its, rows = by(found, "row", "task"), [r for r in distinct(found, "row") if r != AGAINST][::-1]
    tasks = [t for t in distinct(found, "task") if (AGAINST, t) in its]
    fig, axes = panels(len(tasks), 1.2 + 0.4 * len(rows), columns=len(tasks), sharey=True)
    for ax, t in zip(axes, tasks, strict=True):
        for y, r in enumerate(rows):
            if p := its.get((r, t)):
                d, other = p.less(its[AGAINST, t]), its[AGAINST, t].values("score")
                ax.errorbar([d[0]], [y], xerr=bars([d], share=False), **style(r, linestyle="none", markersize=8))
                paired = [x - other[seed] for seed, x in p.values("score").items() if seed in other]
                ax.plot(paired, [y - 0.3] * len(paired), "o", color=style(r)["color"], markersize=3, alpha=0.6)
        ax.axvline(0, color=COLOURS[AGAINST], linewidth=1)
        ax.set(title=t, xlabel="BLEU" if t == BLEU_TASK else "exact match", ylim=(-0.7, len(rows) - 0.4))
    axes[0].set_yticks(range(len(rows)), rows)
    fig.supxlabel(f"less {AGAINST} (the line); {OVER_SEEDS}; dots: seeds", fontsize=12)
    return fig


def forgetting(lines: Lines, costs: dict | None):
    return side_by_side(points(lines, "forgetting"), task)


def cost(lines: Lines, costs: dict | None):
    """Mean score over the first study's tasks against four costs; the Pareto front is ringed."""
    rows = cost_rows(lines, costs)
    labels = {"trained": "trained parameters", "stored_bytes": "stored for a task, bytes",
              "step_ms": "a training step, ms", "saved_mb": "saved for the backward pass, MB"}
    fig, axes = panels(len(labels), 7.2, sharey=True)
    for ax, (name, label) in zip(axes, labels.items(), strict=True):
        front = pareto_front(rows, name)
        for r in rows:
            x, y = [getattr(r, name)], [r.score[0]]
            ax.errorbar(x, y, yerr=bars([r.score]), **style(r.row, linestyle="none", markersize=8))
            if r.row in front:
                ax.plot(x, y, "o", markersize=16, markerfacecolor="none", color="#777777",
                        label="nothing is better in both")
        scale = "log" if name in ("trained", "stored_bytes") else "linear"
        ax.set(xlabel=label, xscale=scale, ylim=(-0.03, 1.05))
    for ax in axes[::2]:
        ax.set_ylabel("exact match, mean of all tasks")
    legend(fig, axes, note=CUT)
    return fig
