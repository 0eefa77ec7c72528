"""What papers and users reported, and whether it is seen here. A verdict follows from intervals over seeds; the likely reason for a
difference is an opinion, and says what differs: size, task, or optimiser."""

from collections.abc import Callable
from typing import NamedTuple

from ..quality.grid import Lines
from ..quality.summary import Interval, Point, beyond_chance, interval, points
from .tables import of, shown, start_name, values

REPRODUCED, CONTRADICTED, INCONCLUSIVE, PARTLY = "reproduced", "contradicted", "inconclusive", "reproduced in part"


class Trend(NamedTuple):
    source: str
    says: str
    measured: str
    verdict: str
    why: str  # the likely reason, where it is not reproduced


def verdict(signs: list[int]) -> str:
    """Of comparisons that the trend wants to be 1: all are, some are and none is -1, none is, or some are and others are -1."""
    if all(s > 0 for s in signs):
        return REPRODUCED
    if any(s > 0 for s in signs):
        return PARTLY
    return CONTRADICTED if any(s < 0 for s in signs) else INCONCLUSIVE


def told(differences: dict[str, Interval]) -> str:
    return "; ".join(f"{name}: {shown(d, sign='+')}" for name, d in differences.items())


def trend(source: str, says: str, differences: dict[str, Interval], why: dict[str, str], note: str = "") -> Trend:
    """A trend that wants every one of these differences to be above zero. why: the likely reason for a verdict, where one was thought of."""
    word = verdict([beyond_chance(d) for d in differences.values()])
    return Trend(source, says, told(differences) + note, word, "" if word == REPRODUCED else why.get(word, ""))


def all_trends(lines: Lines) -> list[Trend]:
    """Those whose studies are run."""
    return [found for make in TRENDS for found in make(lines)]


def by_row(found: list[Point], **wanted) -> dict[str, Point]:
    return {p.row: p for p in of(found, **wanted)}


def of_tasks(lines: Lines) -> list[Trend]:
    found = points(lines, "methods")
    its = {t: by_row(found, task=t) for t in values(found, "task")}
    if len(its) < 4:
        return []
    base = "https://arxiv.org/abs/2310.19698"
    select, new = its["reverse"], {t: rows for t, rows in its.items() if t != "reverse"}
    least = {r: minus(select[r].mean(), 0.9) for r in ("prompt", "prefix", "hidden prefix")}
    lora = {f"{r}, `{t}`": rows["lora"].less(rows[r]) for t, rows in new.items() for r in ("prompt", "prefix")}
    equal = {f"`{t}`": rows["lora"].less(rows["full"]) for t, rows in its.items()}
    return [
        trend(
            f"[Petrov et al. 2024]({base})",
            "prompts and prefixes elicit a skill the base has; here: exact match less 0.9",
            least,
            {
                INCONCLUSIVE: "300 steps of 16 examples are few: all three are still rising when training ends",
                PARTLY: "300 steps of 16 examples are few: those below 0.9 are still rising when training ends",
                CONTRADICTED: "300 steps of 16 examples are few: their curves are still rising when training ends",
            },
        ),
        trend(
            f"[Petrov et al. 2024]({base})",
            "what is new to the base they fail to learn, where LoRA with as many parameters succeeds; here: LoRA ahead by",
            lora,
            {
                PARTLY: "where LoRA is not ahead it has not learnt the task either in 300 steps",
                INCONCLUSIVE: "LoRA has not learnt the tasks either in 300 steps",
                CONTRADICTED: "a map of single digits needs no new attention between the real tokens, which is what prefixes cannot make",
            },
            note=f". A prefix does learn `parity`, a map of single digits, to {its['parity']['prefix'].mean()[0]:.2f}",
        ),
        trend(
            "[Hu et al. 2021](https://arxiv.org/abs/2106.09685), tables 2 to 4",
            "LoRA is on a par with full fine-tuning; here: ahead by (0.02 behind counts as a par)",
            {name: (d[0] + 0.02, d[1]) for name, d in equal.items()},
            {
                PARTLY: "the hardest task needs more steps at rank 4; more rank or steps are what they had",
                INCONCLUSIVE: "the differences are within chance",
                CONTRADICTED: "rank 4 on one matrix a block, and 300 steps: both are less than theirs",
            },
        ),
    ]


def minus(x: Interval, level: float) -> Interval:
    return x[0] - level, x[1]


def of_speed(lines: Lines) -> list[Trend]:
    its = by_row(points(lines, "methods"), task="reverse")
    if "prompt" not in its or "full" not in its:
        return []
    full, prompt = mean_of_curve(its["full"]), mean_of_curve(its["prompt"])
    return [
        trend(
            "[Su et al. 2022](https://arxiv.org/abs/2111.06719)",
            "prompt tuning needs many more steps than fine-tuning; here, on `reverse`: mean of the training curve, full ahead by",
            {"`reverse`": difference(full, prompt)},
            {},
            note=f" (full {shown(interval(list(full.values())))}, prompt {shown(interval(list(prompt.values())))})",
        )
    ]


def mean_of_curve(p: Point) -> dict[int, float]:
    """Of every seed, the mean of the looks."""
    return {seed: sum(score for _, score, _ in line["curve"]) / len(line["curve"]) for seed, line in p.runs.items()}


def difference(a: dict[int, float], b: dict[int, float]) -> Interval:
    return interval([a[seed] - b[seed] for seed in a if seed in b])


def of_scale(lines: Lines) -> list[Trend]:
    found = points(lines, "scale")
    its = {(p.row, p.cell.base, p.cell.task): p for p in found}
    bases, tasks = values(found, "base"), values(found, "task")
    if len(bases) < 2:
        return []
    trends = []
    gap = {r: {t: {b: its["full", b, t].less(its[r, b, t]) for b in bases} for t in tasks} for r in ("prompt", "prefix")}

    def closes(r: str) -> dict[str, Interval]:
        small, large = bases[0], bases[-1]
        return {f"`{t}`": difference(gaps(its, r, small, t), gaps(its, r, large, t)) for t in tasks}

    def series(r: str) -> str:
        return "; gaps from the smallest to the largest base: " + ", ".join(
            f"`{t}` {' → '.join(f'{gap[r][t][b][0]:.2f}' for b in bases)}" for t in tasks
        )

    why = {
        PARTLY: "where no size learns the task by a prompt there is no gap to close: it is a composition, not a choice between known skills",
        INCONCLUSIVE: "34 thousand to 1.9 million parameters are far below where the paper sees the gap close, billions",
        CONTRADICTED: "the smallest base hardly knows the skills, so that full fine-tuning fails there too and leaves less of a gap; "
        "all sizes here are far below the paper's",
    }
    source = "[Lester et al. 2021](https://arxiv.org/abs/2104.08691), figure 1"
    trends.append(
        trend(
            source,
            "the gap of prompt tuning to full fine-tuning closes as the base grows; here: it narrows by",
            closes("prompt"),
            why,
            series("prompt"),
        )
    )
    ahead = {f"`{t}` {b}": its["prefix", b, t].less(its["prompt", b, t]) for t in tasks for b in bases}
    trends.append(
        trend(
            "[Liu et al. 2022](https://arxiv.org/abs/2110.07602) (P-tuning v2)",
            "on small models prompts in every layer are ahead of one at the input; here, with 16 virtual tokens: prefix ahead by",
            ahead,
            {
                PARTLY: "a known skill is a choice that a prompt makes as well, and what neither learns cannot tell them apart",
                INCONCLUSIVE: "the differences are within chance",
                CONTRADICTED: "the tasks ask for a choice of known skills, which a prompt makes as well",
            },
        )
    )
    return trends


def gaps(its: dict, r: str, base: str, t: str) -> dict[int, float]:
    full, own = its["full", base, t].values("score"), its[r, base, t].values("score")
    return {seed: full[seed] - own[seed] for seed in full if seed in own}


def of_length(lines: Lines) -> list[Trend]:
    found = points(lines, "length")
    its = {(p.row, p.cell.task, p.cell.size["num_virtual_tokens"]): p for p in found}
    tasks, lengths = values(found, "task"), sorted({P for _, _, P in its})
    if len(lengths) < 3:
        return []
    top, longest = {}, lengths[-1]
    for t in tasks:
        scores = {P: its["prefix", t, P].mean("loss")[0] for P in lengths if ("prefix", t, P) in its}
        top[t] = min(scores, key=scores.get)
    peak = {
        f"`{t}`, {top[t]} tokens over {longest}": its["prefix", t, longest].less(its["prefix", t, top[t]], "loss")
        for t in tasks
        if top[t] != longest
    }
    little = {f"`{t}`": its["prompt", t, longest].less(its["prompt", t, 16]) for t in tasks}
    one = {f"`{t}`": its["prompt", t, 1].less(its["prompt", t, 16]) for t in tasks}
    trends = [
        trend(
            "[Li & Liang 2021](https://arxiv.org/abs/2101.00190), figure 4",
            "a longer prefix is better up to a peak, past which it gets worse; here, the longest one's loss above the best one's",
            peak or {f"the longest, {longest}, is the best": (0.0, None)},
            {
                PARTLY: "how much a task has to be told differs; the rate was chosen at 16 tokens for all lengths",
                INCONCLUSIVE: "up to 128 tokens more is better or as good: examples are new in every batch, so there is nothing to overfit",
                CONTRADICTED: "examples are new in every batch, so there is nothing to overfit",
            },
        ),
        Trend(
            "[Lester et al. 2021](https://arxiv.org/abs/2104.08691), figure 3(a)",
            f"past 20 tokens a prompt gains little; here, 16 to {longest} tokens gain",
            told(little),
            (
                word := REPRODUCED
                if all(abs(d[0]) + (d[1] or 0) < 0.05 for d in little.values())
                else verdict([-beyond_chance(d) for d in little.values()])
            ),
            ""
            if word == REPRODUCED
            else "on this small base more tokens still help where the skill is known; where it is not, no length does",
        ),
        Trend(
            "[Lester et al. 2021](https://arxiv.org/abs/2104.08691), figure 3(a)",
            "one token suffices on the largest model (11 billion), and not on smaller ones; here, on a small one, 1 token is ahead of 16 by",
            told(one),
            (word := verdict([-beyond_chance(d) for d in one.values()])),
            "" if word == REPRODUCED else "a task that no prompt learns cannot tell lengths apart",
        ),
    ]
    return trends


def of_start(lines: Lines) -> list[Trend]:
    found = points(lines, "start")
    its = {(p.row, p.cell.task, start_name(p.cell)): p for p in found}
    tasks = values(found, "task")
    if not found:
        return []

    def half(p: Point) -> dict[int, float]:
        return {seed: line["curve"][len(line["curve"]) // 2][1] for seed, line in p.runs.items()}

    def ahead(r: str, name: str) -> dict[str, Interval]:
        pairs = {t: (its[r, t, name], its[r, t, "noise"]) for t in tasks}
        halves = {f"`{t}` half-way": difference(half(a), half(b)) for t, (a, b) in pairs.items()}
        return halves | {f"`{t}` at the end": a.less(b) for t, (a, b) in pairs.items()}

    why = {
        PARTLY: "a good start saves steps; once both are trained long enough it no longer shows, and what the base cannot be told it cannot start",
        INCONCLUSIVE: "the vocabulary here is bytes, whose embeddings mean little by themselves",
        CONTRADICTED: "the vocabulary here is bytes, whose embeddings mean little by themselves, and noise has the spread of the embeddings",
    }
    return [
        trend(
            "[Lester et al. 2021](https://arxiv.org/abs/2104.08691), figure 3(b)",
            "on small models a prompt started from the vocabulary is ahead of noise; here: ahead by",
            ahead("prompt", "tokens of the vocabulary"),
            why,
        ),
        trend(
            "[Li & Liang 2021](https://arxiv.org/abs/2101.00190), figure 5",
            "a prefix started from the activations of words is ahead of noise; here, from a text about the task: ahead by",
            ahead("prefix", "a text"),
            why,
        ),
    ]


def of_projection(lines: Lines) -> list[Trend]:
    found = points(lines, "projection")
    forms = {r: of(found, row=r) for r in values(found, "row")}
    if len(forms) < 2:
        return []
    tops = {r: max(its, key=lambda p: p.mean()[0]) for r, its in forms.items()}
    near = {r: sum(p.mean()[0] > tops[r].mean()[0] - 0.1 for p in its) for r, its in forms.items()}
    direct, mlp = tops["prefix"], tops["prefix by an MLP"]
    rates = len(forms["prefix"])
    wider = near["prefix by an MLP"] - near["prefix"]
    lost = {r: sum("failed" in line for p in its for line in p.runs.values()) for r, its in forms.items()}
    return [
        trend(
            "[Li & Liang 2021](https://arxiv.org/abs/2101.00190), §4.3",
            "a prefix learnt directly ends somewhat lower than one made by the MLP; here, each at its best rate: the MLP ahead by",
            {f"`{direct.cell.task}`": mlp.less(direct)},
            {
                INCONCLUSIVE: "the direct form has a rate of its own here, ten times the MLP's; with one rate for both the MLP looks better",
                CONTRADICTED: "the direct form has a rate of its own here; with the rate that suits the MLP it looks far worse than it is",
                PARTLY: "",
            },
            note=f" (rates {mlp.cell.lr:g} and {direct.cell.lr:g})",
        ),
        Trend(
            "[Li & Liang 2021](https://arxiv.org/abs/2101.00190), §4.3; [ChatGLM-6B #594](https://github.com/zai-org/ChatGLM-6B/issues/594)",
            "without the MLP training is unstable: it depends on the rate, or does not converge at all",
            f"within 0.1 of its best score: the MLP at {near['prefix by an MLP']} of {rates} rates, the direct form at {near['prefix']}; "
            f"runs that came apart: {lost['prefix by an MLP']} and {lost['prefix']} of {rates * len(direct.runs)}",
            (word := REPRODUCED if wider > 0 else INCONCLUSIVE if wider == 0 else CONTRADICTED),
            ""
            if word == REPRODUCED
            else "each form has rates that suit it: the direct one wants larger ones. At a small rate it hardly moves, which looks like not converging",
        ),
    ]


def of_data(lines: Lines) -> list[Trend]:
    found = points(lines, "data")
    its = {(p.row, p.cell.task, p.cell.examples): p for p in found}
    few = [n for n in values(found, "examples") if n <= 300]
    if not few:
        return []
    tasks = values(found, "task")
    ahead = {f"`{t}` {n}": its["prefix", t, n].less(its["full", t, n]) for t in tasks for n in few}
    narrower = {f"`{t}` {n}": its["full", t, n].less(its["prefix", t, n], "gap") for t in tasks for n in few}
    return [
        trend(
            "[Li & Liang 2021](https://arxiv.org/abs/2101.00190), figure 3",
            "with little data a prefix is ahead of full fine-tuning; here: exact match ahead by",
            ahead,
            {
                PARTLY: "where the base has the skill a prefix only has to name it, and few examples do; what is new takes more than that",
                INCONCLUSIVE: "the base is small, and so is what full fine-tuning can overfit with",
                CONTRADICTED: "the base is small, and full fine-tuning's rate was chosen by a sweep of the same size as the prefix's",
            },
        ),
        trend(
            "[Li & Liang 2021](https://arxiv.org/abs/2101.00190), §6.3",
            "and overfits less; here: its gap of held-out and learnt loss is narrower by (nats)",
            narrower,
            {
                PARTLY: "a prefix of 8,192 numbers fits tens of examples by heart as well, and then is as sure of wrong answers",
                INCONCLUSIVE: "the gaps differ less than the seeds do",
                CONTRADICTED: "a prefix of 8,192 numbers fits tens of examples by heart as well, and its larger rate makes it surer of wrong answers",
            },
        ),
    ]


def of_real(lines: Lines) -> list[Trend]:
    found = points(lines, "real")
    its = {(p.row, p.cell.examples): p for p in found}
    sizes = values(found, "examples")
    if not sizes:
        return []
    return [
        trend(
            "[Li & Liang 2021](https://arxiv.org/abs/2101.00190), table 1 and figure 3",
            "on E2E a prefix is comparable to or ahead of full fine-tuning; here: BLEU ahead by",
            {f"{n} examples": its["prefix", n].less(its["full", n]) for n in sizes if ("prefix", n) in its and ("full", n) in its},
            {
                PARTLY: "few steps on 135 million parameters: with more data full fine-tuning uses what it can change",
                INCONCLUSIVE: "the differences are within chance: comparable, not ahead",
                CONTRADICTED: "few steps on 135 million parameters, where the paper trained GPT-2 medium and large for five epochs of 42,000 pairs",
            },
        )
    ]


TRENDS: list[Callable[[Lines], list[Trend]]] = [of_tasks, of_speed, of_scale, of_length, of_start, of_projection, of_data, of_real]
