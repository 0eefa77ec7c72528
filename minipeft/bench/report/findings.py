"""One honest sentence a question, put together from the lines: whatever they say, the words follow."""

from collections.abc import Callable

from ...data.tasks import find_task
from ..quality.grid import Lines
from ..quality.studies import BUDGETS, largest
from ..quality.summary import Interval, Point, beyond_chance, points
from .tables import best, cost_rows, of, shown, start_name, tokens, values

GOOD = 0.9  # exact match from which on a method is said to do a task


def against(difference: Interval, whom: str) -> str:
    """A paired difference to someone, in words."""
    mean, half = difference
    if not (sign := beyond_chance(difference)):
        return f"not told apart from {whom} ({shown(difference, sign='+')})"
    return f"{'ahead of' if sign > 0 else 'behind'} {whom} by {shown((abs(mean), half))}"


def listed(names: list[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]])) or "none"


def sentence(parts: list[str]) -> str:
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def methods(lines: Lines, costs: dict | None) -> str:
    found, parts = points(lines, "methods"), []
    for t in values(found, "task"):
        its = sorted(of(found, task=t), key=lambda p: -p.mean()[0])
        able, rest = [p.row for p in its if p.mean()[0] >= GOOD], [p for p in its if p.mean()[0] < GOOD]
        text = f"{find_task(t).kind}, `{t}`: {GOOD} or more by {listed(able)}"
        parts.append(text + (f", next {rest[0].row} {shown(rest[0].mean())}" if rest else ""))
    return sentence(parts)


def budget(lines: Lines, costs: dict | None) -> str:
    found, parts = points(lines, "budget"), []
    for t in values(found, "task"):
        ranked = []
        for b in BUDGETS:
            its = [p for p in of(found, task=t) if p.cell.size == largest(p.row, b)]
            ranked.append((b, sorted(its, key=lambda p: -p.mean()[0])))
        ranked = [(b, its) for b, its in ranked if len(its) > 1]
        firsts = [f"{b:,}: {its[0].row} {its[0].mean()[0]:.2f}, {against(its[0].less(its[1]), its[1].row)}" for b, its in ranked]
        parts.append(f"`{t}` with at most {'; '.join(firsts)}")
    return "; ".join(parts) + "."


def time(lines: Lines, costs: dict | None) -> str:
    if not costs:
        return ""
    step = {r["row"]: r["step_ms"]["median"] for r in costs["rows"]}
    found, parts = [p for p in points(lines, "methods") if p.row in step], []
    for t in values(found, "task"):
        reached = []
        for p in of(found, task=t):
            at = next((s for s, (mean, _) in p.curve() if mean >= GOOD), None)
            if at is not None:
                reached.append((at * step[p.row] / 1000, p.row))
        text = listed([f"{row} after {seconds:.1f} s" for seconds, row in sorted(reached)])
        parts.append(f"`{t}`: {text if reached else 'nothing'} {'reach' if len(reached) != 1 else 'reaches'} {GOOD}")
    others = sorted((seconds / step["full"], row) for row, seconds in step.items() if row != "full")
    (least, fast), (most, slow) = others[0], others[-1]
    range_of = f"with about as many trained parameters, a step takes from {least:.2f} ({fast}) to {most:.2f} ({slow}) of full fine-tuning's"
    return f"{'; '.join(parts)}; {range_of}."


def scale(lines: Lines, costs: dict | None) -> str:
    found, parts = points(lines, "scale"), []
    for t in values(found, "task"):
        its = {(p.row, p.cell.base): p for p in of(found, task=t)}
        bases = [b for b in values(found, "base") if ("full", b) in its]
        gaps = {r: [f"{its['full', b].less(its[r, b])[0]:.2f}" for b in bases if (r, b) in its] for r in ("prompt", "prefix")}
        parts.append(f"on `{t}` by {', '.join(gaps['prompt'])} of a prompt and {', '.join(gaps['prefix'])} of a prefix")
    return f"From the smallest base to the largest full fine-tuning is ahead {'; '.join(parts)}."


def length(lines: Lines, costs: dict | None) -> str:
    found, parts = points(lines, "length"), []
    for t in values(found, "task"):
        for r in values(found, "row"):
            its = sorted(of(found, task=t, row=r), key=tokens)
            scores = {tokens(p): p.mean()[0] for p in its}
            enough = next((P for P, score in scores.items() if score >= GOOD), None)
            top = max(its, key=lambda p: (p.mean()[0], -tokens(p)))
            text = f"with {enough} tokens" if enough else f"with no length (best {max(scores.values()):.2f})"
            text = f"{r} on `{t}`: {GOOD} {text}, {scores[min(scores)]:.2f} with {min(scores)}"
            if beyond_chance(its[-1].less(top)) < 0:
                text += f", and {max(scores)} are {against(its[-1].less(top), str(tokens(top)))}"
            parts.append(text)
    return sentence(parts)


def start(lines: Lines, costs: dict | None) -> str:
    found, parts = points(lines, "start"), []
    for t in values(found, "task"):
        for r in values(found, "row"):
            its = sorted(of(found, task=t, row=r), key=lambda p: -p.mean("half-way")[0])
            noise = next(p for p in its if p.cell.start == "random")
            if max(p.mean()[0] for p in its) < GOOD / 2:
                parts.append(f"no start makes a {r} learn `{t}`")
                continue
            half, of_noise = (p.mean("half-way")[0] for p in (its[0], noise))
            ahead, behind = ([p for p in its if beyond_chance(p.less(noise)) == sign] for sign in (1, -1))
            parts.append(
                f"{r} on `{t}`: half-way {start_name(its[0].cell)} leads with {half:.2f} (noise {of_noise:.2f}), "
                f"at the end ahead of noise: {listed([f'{start_name(p.cell)} ({p.less(noise)[0]:+.2f})' for p in ahead])}, "
                f"behind: {listed([f'{start_name(p.cell)} ({p.less(noise)[0]:+.2f})' for p in behind])}"
            )
    return sentence(parts)


def projection(lines: Lines, costs: dict | None) -> str:
    found, parts = points(lines, "projection"), []
    for r in values(found, "row"):
        its = of(found, row=r)
        top = max(its, key=lambda p: p.mean()[0])
        near = [p for p in its if p.mean()[0] > top.mean()[0] - 0.1]
        name = "A prefix learnt directly" if r == "prefix" else "by an MLP"
        parts.append(f"{name}: best {shown(top.mean())} at rate {top.cell.lr:g}, within 0.1 of it at {len(near)} of {len(its)} rates")
    tops = [max(of(found, row=r), key=lambda p: p.mean()[0]) for r in values(found, "row")]
    if len(tops) > 1:
        parts.append(f"at the best rate of each the MLP is {against(tops[1].less(tops[0]), 'the direct form')}")
    return "; ".join(parts) + "."


def data(lines: Lines, costs: dict | None) -> str:
    found, parts = points(lines, "data"), []
    for t in values(found, "task"):
        its = {(p.row, p.cell.examples): p for p in of(found, task=t)}
        sizes = values(found, "examples")
        for r in ("prompt", "prefix"):
            pairs = [(n, its[r, n].less(its["full", n])) for n in sizes if (r, n) in its and ("full", n) in its]
            ahead = [f"{n:,} ({d[0]:+.2f})" for n, d in pairs if beyond_chance(d) > 0]
            behind = [f"{n:,} ({d[0]:+.2f})" for n, d in pairs if beyond_chance(d) < 0]
            parts.append(f"a {r} on `{t}` is ahead of full fine-tuning with {listed(ahead)}, behind with {listed(behind)}")
    return f"Of the numbers of examples, {'; '.join(parts)}."


def real(lines: Lines, costs: dict | None) -> str:
    def placed(its: list[Point], what: str, digits: int, sign: int) -> str:
        """The first, and of the others who is behind it beyond chance; sign: 1 where more is better, -1 where less is."""
        first, *rest = sorted(its, key=lambda p: -sign * p.mean(what)[0])
        differences = [(p.row, first.less(p, what)) for p in rest]
        behind = [f"{row} by {abs(mean):.{digits}f}" for row, (mean, half) in differences if beyond_chance((sign * mean, half)) > 0]
        return f"{first.row} {shown(first.mean(what), digits)} (ahead of {listed(behind)})"

    found, parts = points(lines, "real"), []
    for n in values(found, "examples"):
        its = of(found, examples=n)
        parts.append(f"with {n} examples by BLEU {placed(its, 'score', 1, 1)}, by loss {placed(its, 'loss', 2, -1)}")
    return sentence(parts)


def cost(lines: Lines, costs: dict | None) -> str:
    rows = cost_rows(lines, costs)
    if not rows:
        return ""
    names = {
        "trained": "trained parameters",
        "stored_bytes": "stored bytes",
        "step_ms": "time of a step",
        "kept_mb": "memory kept for backward",
    }
    score = {r["row"]: r["score"][0] for r in rows}
    fronts = [f"by {name}: {listed([f'{r} ({score[r]:.2f})' for r in best(rows, what)])}" for what, name in names.items()]
    return f"Nothing else costs as little and scores as much (mean exact match of the tasks), {'; '.join(fronts)}."


Sentence = Callable[[Lines, "dict | None"], str]
FINDINGS: dict[str, Sentence] = {
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
}
