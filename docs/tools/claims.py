"""The article's claims, the command that tries each, and what came out; a table for
docs/tools/tables.py.

Every figure is read from a result file. Every verdict stands on a condition on them, and on the
strongest evidence there is: a study over five seeds before a single run. Where a new result no
longer bears a verdict out, `verdict` stops and the row has to be rewritten.
"""

import math
from typing import NamedTuple

from docs.tools.comparison import trends
from docs.tools.comparison.summary import Interval, Point, beyond_chance
from docs.tools.comparison.tables import BLEU_TASK
from docs.tools.comparison.trends import AGREES, CONTRADICTED, INCONCLUSIVE
from docs.tools.results import RESULTS, facts, found_by_search, plus_minus, quality, read, seeds_above
from minipeft import PRESETS
from minipeft.accounting import base_parameters, count
from minipeft.accounting.shapes import SHAPES
from minipeft.bench.quality import grid
from minipeft.bench.quality.real import TASKS
from minipeft.data.tasks import SKILLS

T5 = SHAPES["t5-xxl"]
CONDITIONS = "agrees, with conditions"
REAL = "python bench.py quality --study real --smollm2 FOLDER --e2e FOLDER"
WITHDRAWN = "withdrawn: learning rates were swept on endless data"


class Claim(NamedTuple):
    says: str
    command: str
    measured: str
    verdict: str


def verdict(word: str, holds: bool) -> str:
    assert holds, f"the results no longer say: {word}"
    return word


def table() -> str:
    rows = ["| the article says | tried by | measured here | verdict |", "|---|---|---|---|"]
    return "\n".join(
        rows + [f"| {c.says} | `{c.command}` | {c.measured} | {c.verdict} |" for c in claims()]
    )


def claims() -> list[Claim]:
    return [*of_learning(), *of_size(), *of_prefixes(), *of_use()]


def methods() -> dict[tuple[str, str], Point]:
    """(method, task) -> its five seeds, at equal trained parameters."""
    return {(p.row, p.cell.task): p for p in quality("methods")}


def real(a: str, b: str, name: str = "score") -> dict[str, Interval]:
    """Row a less row b on each task of the real model, paired over five seeds."""
    return facts().diffs(f"real/{a}/*", f"real/{b}/*", name)


def of_learning() -> list[Claim]:
    wordings = read("train-hard-prompt-reverse")["wordings"]
    good = [w["wording"].removesuffix(": ") for w in wordings if w["exact_match"] > 0.9]
    n, named = len(good), len({*good} & {*SKILLS["reverse"].wordings})
    found = max(found_by_search(), key=lambda w: w["exact_match"])
    prompt = methods()["prompt", "reverse"]
    step, before = prompt.curve()[0]
    assert step == 0
    return [
        Claim(
            "Hard prompts need tries: nobody can tell beforehand which wording works",
            "python train.py --method hard-prompt",
            f"of {len(wordings)} wordings {n} reach an exact match above 0.9, the {named} by which pretraining called "
            f"the skill; a search over tokens found another, `{found['wording'].removesuffix(': ')}`, with "
            f"{found['exact_match']:.3f}",
            verdict(f"{CONDITIONS}: of wordings that people write those that the base has seen; a search finds others",
                    0 < n == named < len(wordings) / 4 and found["exact_match"] > 0.9),
        ),
        Claim(
            "A soft prompt is learnt by backpropagation while the model is frozen",
            "python bench.py quality --study methods",
            f"`reverse`: exact match {before[0]:.2f} → {plus_minus(prompt.mean())}, five seeds; "
            "the base stays the same bit for bit",
            verdict(AGREES, seeds_above(prompt) == 5),
        ),
    ]


def of_size() -> list[Claim]:
    it, ahead = methods(), real("prefix", "full")
    small = {
        task: [it[m, task].mean()[0] for m in ("prompt", "full")]
        for task in ("reverse", "reverse+increment", "parity")}
    numbers, base = count(T5, "prompt", num_virtual_tokens=5).stored, base_parameters(T5)
    smollm2 = PRESETS["smollm2-135m"]
    trained_share = [count(smollm2, "prefix", num_virtual_tokens=task.num_virtual_tokens).trained
                     / base_parameters(smollm2) for task in TASKS.values()]
    comparable = [trends.verdict(d, *((-1.0, 1) if BLEU_TASK in task else (-0.02, 2))) for task, d in ahead.items()]
    medium = PRESETS[
        "gpt2-medium"
    ]  # Li & Liang's, with the 5 virtual tokens of their table 1 and the MLP of their code
    paper = count(
        medium, "prefix", num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=512
    )
    stored, trained = (n / base_parameters(medium) for n in (paper.stored, paper.trained))
    params = "python bench.py params --model t5-xxl --method prompt --num-virtual-tokens 5"
    return [
        Claim(
            "On small models prompt tuning is worse than full fine-tuning",
            "python bench.py quality --study methods",
            "0.2M parameters, prompt against full: "
            + ", ".join(
                f"`{task}` {prompt:.2f} against {full:.2f}"
                for task, (prompt, full) in small.items()
            ),
            verdict(
                f"{CONDITIONS}: equal on a known skill, far worse on a new one",
                min(small.pop("reverse")) > 0.9
                and all(full - prompt > 0.9 for prompt, full in small.values()))),
        Claim(
            "On large models prompt tuning reaches full fine-tuning",
            REAL,
            "SmolLM2-135M-Instruct, 200 examples seen once, held-out loss of prompt minus full: "
            f"{facts().listed(real('prompt', 'full', 'loss'))}",
            f"not tried: 135M parameters is small, and there it is behind: {trends.prompt_behind_full(facts())}",
        ),
        Claim(
            "5 virtual tokens of T5-XXL are 5 × 4096 = 20,480 parameters a task", params,
            f"{numbers:,} of {base:,}", verdict(AGREES, numbers == 20_480)),
        Claim(
            "That is five orders of magnitude fewer",
            params,
            f"{base / numbers:,.0f} times fewer, {math.log10(base / numbers):.2f} orders of "
            "magnitude",
            verdict(AGREES, 5 <= math.log10(base / numbers) < 6),
        ),
        Claim(
            "Prefix tuning trains 0.1 % of the parameters and is comparable to full fine-tuning",
            REAL,
            "SmolLM2-135M-Instruct, 200 examples seen once, prefix minus full (BLEU on `e2e`, else exact match): "
            f"{facts().listed(ahead)}; "
            f"{100 * min(trained_share):.1f} to {100 * max(trained_share):.1f} % of the parameters. The paper's own "
            f"prefix is {100 * stored:.2f} % as stored and {100 * trained:.0f} % as trained, with its MLP",
            verdict(
                f"{trends.together(comparable)}, at two to four times the share",
                0.0015 < min(trained_share) < max(trained_share) < 0.0045)),
    ]


def of_prefixes() -> list[Claim]:
    forms = {}
    for p in quality("projection"):
        forms[p.row] = max(forms.get(p.row, p), p, key=lambda its: its.mean()[0])
    direct, mlp = forms["prefix"], forms["prefix by an MLP"]
    bench = {(r["method"], r.get("num_virtual_tokens")): r for r in read("bench-nano")["rows"]}
    prompt, prefix = bench["prompt", 8], bench["prefix", 8]
    times = prefix["stored"] // prompt["stored"]
    it = methods()
    parity = it["prefix", "parity"].less(it["prompt", "parity"])
    return [
        Claim(
            "A prefix enters every block, made by a two-layer MLP with a nonlinearity",
            "python bench.py quality --study projection",
            "`parity`, the best of six learning rates, five seeds: with the MLP "
            f"{plus_minus(mlp.mean())}, without {plus_minus(direct.mean())}",
            verdict(
                f"{CONDITIONS}: it works, and without the MLP it works as well",
                not beyond_chance(mlp.less(direct)) and mlp.mean()[0] > 0.9)),
        overfitting(),
        Claim(
            "A prompt is lighter than a prefix",
            "python bench.py",
            f"P·C against 2·L·P·C parameters: {prompt['stored']:,} and {prefix['stored']:,} on the "
            "nano shape with 8 virtual tokens",
            verdict(AGREES, times == 2 * PRESETS["nano"].n_layer),
        ),
        Claim(
            "A prefix is stronger, and costs more",
            "python bench.py quality --study methods",
            f"`parity`, 4,096 parameters each: prefix ahead of prompt by {plus_minus(parity)}. "
            f"With equal P it has {times} times the parameters, "
            f"yet a step of {prefix['step_against_full']:.2f} of full fine-tuning's, where the "
            f"prompt's is {prompt['step_against_full']:.2f}",
            verdict(
                f"{CONDITIONS}: it costs storage, not time", beyond_chance(parity) > 0
                and prefix["step_against_full"] < prompt["step_against_full"]),
        ),
    ]


def overfitting() -> Claim:
    """The claim on little data, by the rule of the comparison; withdrawn while its study is not complete."""
    measured = "to be measured anew, with learning rates swept for every number of examples"
    verdict_of_it = WITHDRAWN
    if facts().is_complete("data"):
        words = little_data_verdicts()
        verdict_of_it = trends.together(words)
        measured = ("10 to 300 examples, two tasks, learning rates swept for each: where both fit their training "
                    f"examples, the gap is narrower beyond chance in {words.count(AGREES)} of {len(words)} settings, "
                    f"wider in {words.count(CONTRADICTED)}")
    return Claim(
        "With little data a prefix overfits less than full fine-tuning",
        "python bench.py quality --study data", measured, verdict_of_it)


def little_data_verdicts() -> list[str]:
    return [trends.verdict(d) for d in facts().little("full", "prefix", "gap").values()]


def little_data() -> str:
    """README's finding on little data."""
    if not facts().is_complete("data"):
        return ('**Withdrawn: "with little data a prefix overfits less than full fine-tuning"**: reported here with '
                "learning rates that were not chosen for little data.")
    words = little_data_verdicts()
    whole = {verdict: verdict.capitalize() for verdict in (AGREES, CONTRADICTED, INCONCLUSIVE)}
    word = whole.get(trends.together(words), "Corrected")
    return (f'**{word}: "with little data a prefix overfits less than full fine-tuning"**: with learning rates swept '
            f"for 10 to 300 examples, its gap of held-out and training loss is narrower beyond chance in "
            f"{words.count(AGREES)} of the {len(words)} settings in which both fit their training examples, wider in "
            f"{words.count(CONTRADICTED)}.")


def of_use() -> list[Claim]:
    mixed = {r["of"]: r["value"] for r in read("serving")["ratios"] if r["what"] == "throughput"}
    it = methods()
    rows = ("prompt", "prefix", "lora", "adapter", "llama-adapter")
    scores = {m: it[m, "reverse+increment"].mean()[0] for m in rows}
    runs = len(grid.read(RESULTS / "quality.jsonl"))
    return [
        Claim(
            "One model serves many tasks: each input gets its task's prompt at inference",
            "python bench.py serving",
            f"64 prefix tasks mixed in one batch: {mixed['64 prefix tasks mixed']:.2f} of the "
            "throughput of one",
            verdict(AGREES, mixed["64 prefix tasks mixed"] > 0.9),
        ),
        Claim(
            "No benchmark sets prompt and prefix tuning side by side", "python bench.py quality",
            f"{runs:,} runs do, one thing varied at a time: [the comparison](comparison.md)",
            "no longer so"),
        Claim(
            "Adapters, LLaMA-Adapter and LoRA are further options",
            "python bench.py quality --study methods",
            "`reverse+increment`, which a prompt cannot learn: "
            + ", ".join(f"`{m}` {score:.2f}" for m, score in scores.items()),
            verdict(
                f"{AGREES} for LoRA; the other two do not learn it here",
                scores.pop("lora") > 0.9 and max(scores.values()) < 0.2))]
