"""What papers and users reported, and whether it is seen here. A verdict follows from intervals over seeds."""

from collections.abc import Callable
from typing import NamedTuple

from ..quality.grid import Lines
from ..quality.summary import Interval, beyond_chance, interval, points
from .tables import of, shown, start_name, tokens, values

REPRODUCED, PARTLY, CONTRADICTED, INCONCLUSIVE = "reproduced", "reproduced in part", "contradicted", "inconclusive"
LITTLE = 0.05  # of exact match
ENOUGH = 0.5  # exact match from which on a task counts as learnt by some

LESTER = "[Lester et al. 2021](https://arxiv.org/abs/2104.08691)"
LI = "[Li & Liang 2021](https://arxiv.org/abs/2101.00190)"
PETROV = "[Petrov et al. 2024](https://arxiv.org/abs/2310.19698)"

# The likely reason where a trend is not reproduced, by its name, for the verdict it has on the committed lines: an opinion. Other lines may
# bring verdicts that nobody has thought about yet.
WHY = {
    "new": (
        PARTLY,
        "300 steps are few for LoRA on `differences`, where one seed of five is on its way; and a map of single digits asks for no "
        "new attention between the real tokens, which is what a prefix cannot give",
    ),
    "lora": (
        PARTLY,
        "on `differences`, rank 4 on one matrix a block and 300 steps of 16 examples: the README's table has LoRA learn it with twice the "
        "rank, a larger base and four times the examples",
    ),
    "closes": (
        PARTLY,
        "it closes where the task is a choice among what the base knows (on nano one seed of five fails); a composition no prompt learns "
        "on any of these sizes, all far below the paper's",
    ),
    "deep": (
        PARTLY,
        "where both choose the known skill, or neither learns the composition, nothing tells them apart; on the composition a prefix gains "
        "as the base grows, and a prompt does not",
    ),
    "peak": (
        INCONCLUSIVE,
        "examples are new in every batch, so there is nothing to overfit with; the paper's peak is at 10 for tables and 200 for summaries, "
        "and 128 tokens may be too few for this task's",
    ),
    "vocabulary": (PARTLY, "a start only helps where the task can be learnt: `parity` no prompt learns"),
    "words": (
        PARTLY,
        "the best wording names a skill: a good start for that skill, and a poor one for something new. `parity` is learnt from noise, "
        "and not from a wording, a trained prompt, or tokens, from which the rate that suits noise goes astray",
    ),
    "mlp": (INCONCLUSIVE, "each form has a sweep of its own here; at one rate for both, 0.01, the MLP looks far better"),
    "unstable": (
        INCONCLUSIVE,
        "the MLP moves the window of good rates to a tenth and does not widen it; who tries both forms at the MLP's rate sees the direct "
        "one stand still, and at a rate too high for either its loss swings",
    ),
    "few": (
        CONTRADICTED,
        "the paper's prefix starts from words and is made by an MLP, on GPT-2 medium; this one starts from noise, and its rate was chosen "
        "with new examples in every batch. What is ahead with few examples is the soft prompt, a fraction of its size",
    ),
    "e2e": (
        PARTLY,
        "the BLEU of 50 answers scatters from seed to seed, so that only with 200 examples it is beyond chance; the means are ahead with "
        "every number. The prefix starts from a wording, as full fine-tuning does not",
    ),
    "few e2e": (
        PARTLY,
        "the steps are as many for every number of examples: with 200 and more a run sees them hardly more than once, and full "
        "fine-tuning has nothing to overfit with",
    ),
    "overfits": (
        PARTLY,
        "with tens of examples full fine-tuning is the surer of its wrong answers, from 100 on both gaps are next to nothing",
    ),
}


class Trend(NamedTuple):
    source: str
    says: str
    measured: str
    verdict: str
    why: str


def verdict(signs: list[int]) -> str:
    """Of comparisons that a trend wants to be 1: all are; some are; none is and some are -1; all are 0."""
    if all(s > 0 for s in signs):
        return REPRODUCED
    if any(s > 0 for s in signs):
        return PARTLY
    return CONTRADICTED if any(s < 0 for s in signs) else INCONCLUSIVE


def trend(name: str, source: str, says: str, differences: dict[str, Interval], note: str = "", word: str = "", digits: int = 2) -> Trend:
    """A trend that wants every one of these differences to be above zero; word: its verdict, where that follows otherwise."""
    word = word or verdict([beyond_chance(d) for d in differences.values()])
    measured = "; ".join(f"{of_what}: {shown(d, digits, '+')}" for of_what, d in differences.items())
    thought_of, why = WHY.get(name, ("", ""))
    return Trend(source, says, measured + note, word, why if word == thought_of else "")


def all_trends(lines: Lines) -> list[Trend]:
    """Those whose studies are run."""
    return [found for make in TRENDS for found in make(lines)]


def of_tasks(lines: Lines) -> list[Trend]:
    found = points(lines, "methods")
    its = {t: {p.row: p for p in of(found, task=t)} for t in values(found, "task")}
    if len(its) < 4:
        return []
    select, more = its["reverse"], {t: rows for t, rows in its.items() if t != "reverse"}
    return [
        trend(
            "elicit",
            PETROV,
            "prompts and prefixes elicit a skill that the base has; here: exact match above 0.9 by",
            {r: (mean - 0.9, half) for r in ("prompt", "prefix", "hidden prefix") for mean, half in [select[r].mean()]},
        ),
        trend(
            "new",
            PETROV,
            "what is new to the base they fail to learn, where LoRA with as many parameters succeeds; here: LoRA ahead by",
            {f"{r}, `{t}`": rows["lora"].less(rows[r]) for t, rows in more.items() for r in ("prompt", "prefix")},
            note=f". A prefix does learn `parity`, a map of single digits, to {its['parity']['prefix'].mean()[0]:.2f}",
        ),
        trend(
            "lora",
            "[Hu et al. 2021](https://arxiv.org/abs/2106.09685), tables 2 to 4",
            "LoRA is on a par with full fine-tuning; here: ahead of 0.02 below it by",
            {f"`{t}`": (mean + 0.02, half) for t, rows in its.items() for mean, half in [rows["lora"].less(rows["full"])]},
        ),
        trend(
            "slow",
            "[Su et al. 2022](https://arxiv.org/abs/2111.06719)",
            "prompt tuning needs many more steps than fine-tuning; here, mean of the training curve: full ahead by",
            {"`reverse`": select["full"].less(select["prompt"], "curve")},
            note=f" ({shown(select['full'].mean('curve'))} and {shown(select['prompt'].mean('curve'))})",
        ),
    ]


def difference(a: dict[int, float], b: dict[int, float]) -> Interval:
    """a less b, over the seeds of both."""
    return interval([a[seed] - b[seed] for seed in a if seed in b])


def of_scale(lines: Lines) -> list[Trend]:
    found = points(lines, "scale")
    its = {(p.row, p.cell.base, p.cell.task): p for p in found}
    bases, tasks = values(found, "base"), values(found, "task")
    if len(its) < 3 * len(bases) * len(tasks) or len(bases) < 4:
        return []

    def gap(base: str, t: str) -> dict[int, float]:
        full, own = its["full", base, t].values("score"), its["prompt", base, t].values("score")
        return {seed: full[seed] - own[seed] for seed in full if seed in own}

    means = {t: [its["full", b, t].less(its["prompt", b, t])[0] for b in bases] for t in tasks}
    series = [f"`{t}` {' → '.join(f'{mean:.2f}' for mean in its_means)}" for t, its_means in means.items()]
    return [
        trend(
            "closes",
            f"{LESTER}, figure 1",
            "the gap of prompt tuning to full fine-tuning closes as the base grows; here, from the smallest to the largest: it narrows by",
            {f"`{t}`": difference(gap(bases[0], t), gap(bases[-1], t)) for t in tasks},
            note=f" ({', '.join(series)})",
        ),
        trend(
            "deep",
            "[Liu et al. 2022](https://arxiv.org/abs/2110.07602) (P-tuning v2)",
            "on small models prompts in every layer are ahead of one at the input; here, 16 virtual tokens each: prefix ahead by",
            {f"`{t}`, {b}": its["prefix", b, t].less(its["prompt", b, t]) for t in tasks for b in bases},
        ),
    ]


def of_length(lines: Lines) -> list[Trend]:
    its = {(p.row, p.cell.task, tokens(p)): p for p in points(lines, "length")}
    tasks, lengths = list(dict.fromkeys(t for _, t, _ in its)), sorted({P for _, _, P in its})
    if len(its) < 2 * len(tasks) * len(lengths) or len(lengths) < 8:
        return []
    past, peaks, longest = {}, {}, lengths[-1]
    for t in tasks:
        best = min(lengths[:-1], key=lambda P: its["prefix", t, P].mean("loss")[0])
        peaks[f"`{t}`, {longest} tokens above {best}"] = its["prefix", t, longest].less(its["prefix", t, best], "loss")
        past |= {f"`{t}`, {P}": its["prompt", t, P].less(its["prompt", t, 16]) for P in lengths if P > 16}
    more = any(beyond_chance(d) > 0 and d[0] >= LITTLE for d in past.values())
    one = {f"`{t}`": its["prompt", t, 16].less(its["prompt", t, 1]) for t in tasks if its["prompt", t, 16].mean()[0] > ENOUGH}
    return [
        trend(
            "peak",
            f"{LI}, figure 4",
            "a longer prefix is better up to a peak, past which it gets worse; here: the longest's loss above the best shorter one's by",
            peaks,
            digits=4,
        ),
        trend(
            "past",
            f"{LESTER}, figure 3(a)",
            f"past 20 tokens a prompt gains little; here (little: less than {LITTLE}, or not beyond chance): ahead of 16 tokens by",
            past,
            word=CONTRADICTED if more else REPRODUCED,
        ),
        trend(
            "one", f"{LESTER}, figure 3(a)", "but on the largest models one token is too few; here, on a small one: 16 ahead of 1 by", one
        ),
    ]


def of_start(lines: Lines) -> list[Trend]:
    found = points(lines, "start")
    its = {(p.row, p.cell.task, start_name(p.cell)): p for p in found}
    if len(its) < 18:
        return []

    def ahead(r: str, name: str) -> dict[str, Interval]:
        pairs = {t: (its[r, t, name], its[r, t, "noise"]) for t in values(found, "task")}
        halves = {f"`{t}`, half-way": a.less(b, "half-way") for t, (a, b) in pairs.items()}
        return halves | {f"`{t}`, at the end": a.less(b) for t, (a, b) in pairs.items()}

    return [
        trend(
            "vocabulary",
            f"{LESTER}, figure 3(b)",
            "on small models a prompt started from the vocabulary is ahead of one from noise; here: ahead by",
            ahead("prompt", "tokens of the vocabulary"),
        ),
        trend(
            "words",
            f"{LI}, figure 5",
            "a prefix started from what words do to the base is ahead of one from noise; here, from its best wording: ahead by",
            ahead("prefix", "the best wording"),
        ),
    ]


def of_projection(lines: Lines) -> list[Trend]:
    found = points(lines, "projection")
    forms = {r: of(found, row=r) for r in values(found, "row")}
    if len(forms) < 2 or len({len(its) for its in forms.values()}) > 1:
        return []
    best = {r: max(its, key=lambda p: p.mean()[0]) for r, its in forms.items()}
    near = {r: sum(p.mean()[0] > best[r].mean()[0] - 0.1 for p in its) for r, its in forms.items()}
    lost = {r: sum("failed" in line for p in its for line in p.runs.values()) for r, its in forms.items()}
    direct, mlp, rates = "prefix", "prefix by an MLP", len(forms["prefix"])
    wider = near[mlp] - near[direct]
    return [
        trend(
            "mlp",
            f"{LI}, §4.3",
            "learnt directly a prefix ends somewhat lower than by the MLP; here, each at its best rate: the MLP ahead by",
            {f"`{best[mlp].cell.task}`": best[mlp].less(best[direct])},
            note=f" (rates {best[mlp].cell.lr:g} and {best[direct].cell.lr:g})",
        ),
        trend(
            "unstable",
            f"{LI}, §4.3; [ChatGLM-6B #594](https://github.com/zai-org/ChatGLM-6B/issues/594)",
            "without the MLP training is unstable or does not converge; here: rates within 0.1 of the form's best score",
            {},
            note=f"{near[mlp]} of {rates} with the MLP, {near[direct]} without; runs that came apart: {lost[mlp]} and {lost[direct]}",
            word=REPRODUCED if wider > 0 else INCONCLUSIVE if wider == 0 else CONTRADICTED,
        ),
    ]


def of_data(lines: Lines) -> list[Trend]:
    found = points(lines, "data")
    its = {(p.row, p.cell.task, p.cell.examples): p for p in found}
    tasks, few = values(found, "task"), [n for n in values(found, "examples") if n <= 300]
    if len(its) < 8 * len(values(found, "examples")) or not few:
        return []

    ahead = {f"`{t}`, {n}": its["prefix", t, n].less(its["full", t, n]) for t in tasks for n in few}
    return [
        trend("few", f"{LI}, figure 3", "with little data a prefix is ahead of full fine-tuning; here: ahead by", ahead),
        trend(
            "overfits",
            f"{LI}, §6.3",
            "and overfits less; here: its gap of held-out and learnt loss narrower by (nats per token)",
            {f"`{t}`, {n}": its["full", t, n].less(its["prefix", t, n], "gap") for t in tasks for n in few},
        ),
    ]


def of_real(lines: Lines) -> list[Trend]:
    found = points(lines, "real")
    its = {(p.row, p.cell.examples): p for p in found}
    both = {n: (its["prefix", n], its["full", n]) for n in values(found, "examples") if ("prefix", n) in its and ("full", n) in its}
    if not both:
        return []
    return [
        trend(
            "e2e",
            f"{LI}, table 1",
            "on E2E a prefix is on a par with full fine-tuning or ahead; here, BLEU: ahead of 1 below it by",
            {f"{n} examples": (mean + 1, half) for n, (a, b) in both.items() for mean, half in [a.less(b)]},
        ),
        trend(
            "few e2e",
            f"{LI}, figure 3",
            "with little data a prefix is ahead of full fine-tuning; here, on E2E: its held-out loss lower by (nats per token)",
            {f"{n} examples": b.less(a, "loss") for n, (a, b) in both.items()},
        ),
        trend(
            "overfits e2e",
            f"{LI}, §6.3",
            "and overfits less; here, on E2E: its gap of held-out and learnt loss narrower by (nats per token)",
            {f"{n} examples": b.less(a, "gap") for n, (a, b) in both.items()},
        ),
    ]


TRENDS: list[Callable[[Lines], list[Trend]]] = [of_tasks, of_scale, of_length, of_start, of_projection, of_data, of_real]
