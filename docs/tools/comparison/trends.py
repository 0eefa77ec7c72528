"""Published trends, each as differences measured here, and the rule that gives its verdict."""

from collections.abc import Callable, Container
from typing import NamedTuple

from docs.tools.comparison.facts import Facts
from docs.tools.comparison.summary import GOOD, Interval, plus_minus
from docs.tools.comparison.tables import BLEU_TASK
from minipeft.bench.quality.real import BATCH, STEPS, TASKS
from minipeft.bench.quality.studies import REAL_EXAMPLES, REAL_FEW
from minipeft.data.sentences import SENTENCES

AGREES, CONTRADICTED, INCONCLUSIVE = "agrees", "contradicted", "inconclusive"
RULE = (
    "Each report is put as differences that it wants above a margin: above 0 where it says *ahead*; above minus a "
    "margin, which its row names, where it says *on a par* or *gains little*. **Agrees**: the 95 % interval of the "
    "difference, paired by seed, lies above the margin. **Contradicted**: it lies below. **Inconclusive**: the margin "
    "is inside, or the difference from it is zero in the digits shown. A row with several settings agrees if all do, "
    "is contradicted if some contradict and none agrees, and is inconclusive if none does either; otherwise the row "
    "says how many agree. The papers' tasks and models are others and larger: a verdict is about the trend at the "
    "size measured here.")


def verdict(difference: Interval, margin: float = 0.0, digits: int = 2) -> str:
    """The rule for one setting. A single seed has no interval, so it is inconclusive."""
    mean, half = difference
    if half is None or abs(mean - margin) <= half or not round(mean - margin, digits):
        return INCONCLUSIVE
    return AGREES if mean > margin else CONTRADICTED


def together(verdicts: list[str]) -> str:
    """The rule for several settings."""
    agree = verdicts.count(AGREES)
    if verdicts and agree == len(verdicts):
        return AGREES
    if agree:
        return f"{AGREES} in {agree} of {len(verdicts)}"
    return CONTRADICTED if CONTRADICTED in verdicts else INCONCLUSIVE


def prompt_behind_full(facts: Facts) -> str:
    """The verdict on prompt tuning's gap on small models, by held-out loss on the real model's tasks."""
    return together([verdict(d) for d in facts.diffs("real/prompt/*", "real/full/*", "loss").values()])


Differences = Callable[[Facts], dict[str, Interval]]  # by setting


class Trend(NamedTuple):
    study: str  # whose lines it takes
    source: str
    says: str
    differences: Differences
    comment: str
    margin: float = 0.0
    digits: int = 2


def table(facts: Facts) -> str:
    """The trends whose studies are complete, as rows of a Markdown table."""
    rows = ["| reported by | what | measured here | verdict | to bear in mind |", "|---|---|---|---|---|"]
    return "\n".join(rows + [row(t, t.differences(facts)) for t in shown(facts)])


def shown(facts: Facts) -> list[Trend]:
    return [t for t in TRENDS if facts.is_complete(t.study)]


def row(t: Trend, differences: dict[str, Interval]) -> str:
    word = together([verdict(d, t.margin, t.digits) for d in differences.values()])
    measured = "; ".join(f"{label}: {plus_minus(d, t.digits, '+')}" for label, d in differences.items())
    return f"| {t.source} | {t.says} | {measured} | **{word}** | {t.comment} |"


LESTER = "[Lester et al. 2021](https://arxiv.org/abs/2104.08691)"
LI = "[Li & Liang 2021](https://arxiv.org/abs/2101.00190)"  # sections and figures as numbered there
ARTICLE = "[Raschka 2023](https://magazine.sebastianraschka.com/p/understanding-parameter-efficient)"
PETROV = "[Petrov et al. 2024](https://arxiv.org/abs/2310.19698)"
HU = "[Hu et al. 2021](https://arxiv.org/abs/2106.09685), tables 2 to 4"
SU = "[Su et al. 2022](https://arxiv.org/abs/2111.06719)"
DING = "[Ding et al. 2023](https://www.nature.com/articles/s42256-023-00626-4)"
LIU = "[Liu et al. 2022](https://arxiv.org/abs/2110.07602) (P-tuning v2)"
BIDERMAN = "[Biderman et al. 2024](https://arxiv.org/abs/2405.09673)"
CHATGLM = "[ChatGLM-6B #594](https://github.com/zai-org/ChatGLM-6B/issues/594)"
PEFT = ("[PEFT's benchmark](https://github.com/huggingface/peft/tree/main/method_comparison/MetaMathQA), "
        "MetaMathQA, Llama-3.2-3B, July 2026, one seed")
FORGETS = "[#3419](https://github.com/huggingface/peft/pull/3419)"  # mends how that benchmark measures forgetting
SMALL = "a base of 0.2 million parameters, on digits"
FEWEST = f"SmolLM2-135M-Instruct, {REAL_FEW[0]} examples, each seen about {STEPS * BATCH // REAL_FEW[0]} times"
ON_REAL = f"SmolLM2-135M-Instruct, {REAL_EXAMPLES} examples, {STEPS} steps of {BATCH}: each is seen once"


def ahead(study: str, a: str, b: str, name: str = "score", skip: Container[str] = ()) -> Differences:
    """Row a less row b, on every task of a study."""
    return lambda f: f.diffs(f"{study}/{a}/*", f"{study}/{b}/*", name, skip=skip)


def on_e2e(a: str, b: str, name: str = "score") -> Differences:
    """Row a less row b on E2E, whose score is BLEU."""
    return ahead("real", a, b, name, skip=SENTENCES)


def exact(a: str, b: str) -> Differences:
    """Row a less row b on the real model's tasks with exact match."""
    return ahead("real", a, b, skip=(BLEU_TASK,))


def with_fewest(a: str, b: str, name: str) -> Differences:
    """Row a less row b with the fewest examples, on every task of the real model."""
    return lambda f: {f"`{task}`": f.diff(*(f"real_data/{row}/{task}/{REAL_FEW[0]}" for row in (a, b)), name)
                      for task in TASKS if f"real_data/{a}/{task}/{REAL_FEW[0]}" in f.points}


def also(*several: tuple[str, Differences]) -> Differences:
    """Differences of several pairs of rows, each with its label in front."""
    return lambda f: {f"{label}, {place}": d for label, its in several for place, d in its(f).items()}


TRENDS = [
    Trend("methods", PETROV, "prompts and prefixes elicit a skill that the base has; here: exact match above 0.9 by",
          lambda f: {row: f.over(f"methods/{row}/reverse", 0.9) for row in ("prompt", "prefix", "hidden prefix")},
          SMALL),
    Trend("methods", PETROV, "they fail to learn what is new to the base, where LoRA with as many parameters "
          "succeeds; here: LoRA ahead by",
          also(("prompt", ahead("methods", "lora", "prompt", skip=("reverse",))),
               ("prefix", ahead("methods", "lora", "prefix", skip=("reverse",)))),
          "300 steps are few for LoRA on `differences`; `parity` maps single digits, so it needs no new attention "
          "among the real tokens, which a prefix cannot give"),
    Trend("methods", HU, "LoRA is on a par with full fine-tuning; here: LoRA less full, margin −0.02",
          ahead("methods", "lora", "full"),
          "on `differences`: rank 4 on one matrix per block and 300 steps of 16 examples; LoRA does learn it with "
          "twice the rank, a larger base and four times the examples (docs/results/train-lora-differences.json)",
          margin=-0.02),
    Trend("methods", BIDERMAN, "LoRA learns less than full fine-tuning; here: full ahead by",
          ahead("methods", "full", "lora"), "the paper's tasks are code and mathematics on 7 billion parameters"),
    Trend("methods", SU, "prompt tuning needs many more steps than fine-tuning; here, steps until exact match is "
          f"{GOOD}: the prompt more by",
          lambda f: {"`reverse`": f.diff("methods/prompt/reverse", "methods/full/reverse", "steps")},
          f"{SMALL}; steps are those of evaluations; no other task here is learnt by a prompt", digits=0),
    Trend("methods", DING, "fine-tuning converges before LoRA; here, mean of the training curve: full ahead by",
          ahead("methods", "full", "lora", "curve"), "the paper has T5 on over 100 tasks"),
    Trend("methods", DING, "LoRA converges before a prefix; here, mean of the training curve: LoRA ahead by",
          ahead("methods", "lora", "prefix", "curve"), "as many trained parameters each here"),
    Trend("methods", DING, "a bottleneck adapter converges before a prefix; here, mean of the training curve: the "
          "adapter ahead by", ahead("methods", "adapter", "prefix", "curve"),
          "width 7 behind each block here, one learning rate a task"),
    Trend("methods", DING, "prompt tuning lags behind prefix tuning in most cases; here: prefix ahead by",
          ahead("methods", "prefix", "prompt"), "4,096 trained parameters each: 64 virtual tokens against 8"),
    Trend("scale", f"{LESTER}, figure 1", "the gap of prompt tuning to full fine-tuning closes as the base grows; "
          "here, from the smallest base that knows the skill to the largest: it narrows by",
          lambda f: {f"`{task}`": f.narrowing("prompt", task) for task in ("reverse", "reverse+increment")},
          "a prompt selects the skill on the first already, so no gap is left to close there, and none learns the "
          "composition; all are far smaller than the paper's. `tiny`, which does not know the skill well, is left out"),
    Trend("scale", LIU, "on small models prompts in every layer are ahead of one at the input; here, 16 virtual "
          "tokens each: prefix ahead by", ahead("scale", "prefix", "prompt"),
          "where both select the known skill, or neither learns the composition, there is no difference to find"),
    Trend("real", f"{LESTER}, figure 1", "on small models prompt tuning is behind full fine-tuning, which it reaches "
          "on large ones; here at 135M parameters: its held-out loss higher by (nats per token)",
          ahead("real", "prompt", "full", "loss"),
          f"{ON_REAL}, and more steps may favour the prompt; no large model was tried"),
    Trend("length", f"{LI}, figure 4", "a longer prefix is better up to a peak, past which it gets worse; here: the "
          "longest's loss above that of half its length by",
          lambda f: {f"`{task}`, 128 tokens above 64": f.diff(f"length/prefix/{task}/128", f"length/prefix/{task}/64",
                                                              "loss") for task in ("reverse", "parity")},
          "examples are new in every batch, so there is nothing to overfit; the paper's peak is at 10 for tables and "
          "200 for summaries, and no length past 128 was tried here", digits=4),
    Trend("length", f"{LESTER}, figure 3(a)", "past 20 tokens a prompt gains little; here: 16 tokens less the longer "
          "prompt, margin −0.05",
          lambda f: {f"`{task}`, {n}": f.diff(f"length/prompt/{task}/16", f"length/prompt/{task}/{n}")
                     for task in ("reverse", "parity") for n in (32, 64, 128)},
          "no prompt learns `parity`, so a longer one cannot gain there", margin=-0.05),
    Trend("length", f"{LESTER}, figure 3(a)", "one token is too few, except on the largest models; here, on a small "
          "one: 16 ahead of 1 by",
          lambda f: {"`reverse`": f.diff("length/prompt/reverse/16", "length/prompt/reverse/1")}, SMALL),
    Trend("start", f"{LESTER}, figure 3(b)", "on small models a prompt started from the vocabulary is ahead of one "
          "from noise; here: ahead by",
          lambda f: f.diffs("start/prompt/*/vocabulary embeddings", "start/prompt/*/noise", "half-way",
                            label="{}, half-way")
          | f.diffs("start/prompt/*/vocabulary embeddings", "start/prompt/*/noise", label="{}, at the end"),
          "a start helps only where the task can be learnt: no prompt learns `parity`. The learning rate was chosen "
          "for the vocabulary"),
    Trend("start", f"{LI}, figure 5", "with little data a prefix started from the activations of words is ahead of "
          "one from noise; here with endless data, from its best wording: ahead by",
          lambda f: f.diffs("start/prefix/*/the best wording", "start/prefix/*/noise", "half-way",
                            label="{}, half-way")
          | f.diffs("start/prefix/*/the best wording", "start/prefix/*/noise", label="{}, at the end"),
          "the best wording names a skill: a good start for that skill and a poor one for something new. The learning "
          "rate was chosen for noise"),
    Trend("projection", f"{LI}, §4.3", "trained directly a prefix ends somewhat lower than through the MLP; here, "
          "each at its best learning rate: the MLP ahead by",
          lambda f: {"`parity`": f.diff(f.best("projection/prefix by an MLP"), f.best("projection/prefix"))},
          "each form at the best of six learning rates, by these scores; at one for both, the MLP can look far better"),
    Trend("projection", f"{LI}, §4.3; {CHATGLM}", "without the MLP training is unstable or does not converge; here, "
          "each at its best learning rate: worst seed of the MLP ahead of the worst of the direct form by",
          lambda f: {"`parity`": (f.worst("projection/prefix by an MLP") - f.worst("projection/prefix"), None)},
          "one number a form, so no interval: each form has a learning rate at which every seed learns"),
    Trend("data", f"{LI}, figure 3", "with little data a prefix is ahead of full fine-tuning; here, exact match: "
          "ahead by", lambda f: f.little("prefix", "full"),
          "learning rates swept with as many examples; the prefix starts from noise here, in the paper from words; its "
          "tasks are tables and summaries on GPT-2 and BART"),
    Trend("data", ARTICLE, "with little data a prefix overfits less; here: its gap of held-out and "
          "training loss narrower by (nats per token)", lambda f: f.little("full", "prefix", "gap"),
          "settings where both fit their training examples; the first edition said so, with learning rates that were "
          "swept on endless data"),
    Trend("real", f"{LI}, table 1", "on E2E a prefix is on a par with full fine-tuning or ahead; here, BLEU: prefix "
          "less full, margin −1",
          on_e2e("prefix", "full"), f"{ON_REAL}; the prefix starts from a wording, full fine-tuning from the bare base",
          margin=-1.0, digits=1),
    Trend("real", f"{LI}, §7.2", "a prompt at the input alone is behind a prefix on E2E; here, BLEU: prefix ahead by",
          on_e2e("prefix", "prompt"), "both start from the same wording here", digits=1),
    Trend("real", f"{LI}, figure 3", "with little data a prefix is ahead of full fine-tuning; here: its held-out "
          "loss lower by (nats per token)",
          ahead("real", "full", "prefix", "loss"), ON_REAL),
    Trend("real_data", f"{LI}, figure 3", "with little data a prefix is ahead of full fine-tuning; here: its held-out "
          "loss lower by (nats per token)", with_fewest("full", "prefix", "loss"), FEWEST),
    Trend("real", PEFT, "a prefix scores above a prompt (0.416 and 0.34); here, exact match: prefix ahead by",
          exact("prefix", "prompt"), ON_REAL),
    Trend("real", PEFT, "LoRA scores above a prefix (0.478 and 0.416); here, exact match: LoRA ahead by",
          exact("lora", "prefix"), f"{ON_REAL}; the prefix starts from a wording, LoRA from the bare base"),
    Trend("real", PEFT, "the same, the prefix started from noise; here, exact match: LoRA ahead by",
          exact("lora", "prefix from noise"), f"{ON_REAL}; noise of the embeddings' size, PEFT's has unit variance"),
    Trend("real", PEFT, "LoRA is on a par with full fine-tuning (0.478 and 0.472); here, exact match: LoRA less "
          "full, margin −0.02", exact("lora", "full"), ON_REAL, margin=-0.02),
    Trend("real", f"{PEFT}, {FORGETS}", "a prefix forgets more than LoRA (loss on other text up by 0.198 and 0.050 "
          "nats); here: more by", ahead("real", "prefix", "lora", "forgetting"), ON_REAL),
    Trend("real", f"{PEFT}, {FORGETS}", "a prompt forgets more than LoRA (0.15 and 0.050); here: more by",
          ahead("real", "prompt", "lora", "forgetting"), ON_REAL),
    Trend("real", PEFT, "LoRA forgets more than full fine-tuning (0.050 and 0.030); here: more by",
          ahead("real", "lora", "full", "forgetting"), ON_REAL),
    Trend("real", BIDERMAN, "LoRA forgets less than full fine-tuning; here: full more by",
          ahead("real", "full", "lora", "forgetting"), f"{ON_REAL}; this report and PEFT's want opposite signs"),
    Trend("forgetting", f"{PEFT}, {FORGETS}", "a prefix forgets more than LoRA; here, loss on the skills told: more "
          "by", ahead("forgetting", "prefix", "lora", "forgetting"), SMALL),
    Trend("forgetting", BIDERMAN, "LoRA forgets less than full fine-tuning; here, loss on the skills told: full more "
          "by", ahead("forgetting", "full", "lora", "forgetting"), SMALL),
]
