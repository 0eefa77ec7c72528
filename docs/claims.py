"""What the article on lightweight fine-tuning claims, the command that tries each claim, and what came out; rows for docs/tables.py.

Every answer is put together from the result files, and every verdict stands on a condition on them: where a new result no longer bears
a verdict out, `verdict` stops, and the sentence has to be written anew.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

from minipeft import PRESETS
from minipeft.accounting import base_parameters, count
from minipeft.bench.quality import grid
from minipeft.bench.quality.summary import beyond_chance, points
from minipeft.config import SHAPES

RESULTS = Path(__file__).parent / "results"
T5 = SHAPES["t5-xxl"]
AGREES, CONDITIONS, DISAGREES = "agrees", "agrees, with conditions", "disagrees"


class Claim(NamedTuple):
    says: str
    command: str
    measured: str
    verdict: str


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def exact(method: str, task: str) -> float:
    """Held-out exact match after training."""
    return read(f"train-{method}-{task}")["exact_match"][1]


def verdict(word: str, holds: bool) -> str:
    assert holds, f"the results no longer say: {word}"
    return word


def table() -> str:
    rows = ["| the article says | tried by | measured here | verdict |", "|---|---|---|---|"]
    return "\n".join(rows + [f"| {c.says} | `{c.command}` | {c.measured} | {c.verdict} |" for c in claims()])


def claims() -> list[Claim]:
    return [*of_learning(), *of_size(), *of_prefixes(), *of_use()]


def of_learning() -> list[Claim]:
    wordings = read("train-hard-prompt-reverse")["wordings"]
    good = sum(w["exact_match"] > 0.9 for w in wordings)
    soft = read("train-prompt-reverse")
    before, after = soft["exact_match"]
    return [
        Claim(
            "Hard prompts need tries: which wording works cannot be told beforehand",
            "python train.py --method hard-prompt",
            f"of {len(wordings)} wordings {good} answer more than 0.9 of the examples exactly, the worst {wordings[-1]['exact_match']:.2f}",
            verdict(AGREES, 0 < good < len(wordings) / 4),
        ),
        Claim(
            "A soft prompt is learnt by backpropagation, the model frozen",
            "python train.py --method prompt",
            f"exact match {before:.2f} → {after:.2f} by {soft['trained']:,} trained numbers; the base's tensors are bit for bit as before",
            verdict(AGREES, before < 0.1 and after > 0.9),
        ),
    ]


def of_size() -> list[Claim]:
    e2e = read("e2e-smollm2")["runs"]
    bleu = {m: r["answers"]["bleu"] for m, r in e2e.items()}
    small, full = (exact(m, "reverse+increment") for m in ("prompt", "full"))
    of_select = [exact(m, "reverse") for m in ("prompt", "full")]
    numbers, base = count(T5, "prompt", num_virtual_tokens=5).stored, base_parameters(T5)
    share = e2e["prefix"]["trained"] / base_parameters(PRESETS["smollm2-135m"])
    medium = PRESETS["gpt2-medium"]  # Li & Liang's, with the 5 virtual tokens of their table 1 and the MLP of their code (2101.00190 §4.3)
    paper = count(medium, "prefix", num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=512)
    kept, trained = (n / base_parameters(medium) for n in (paper.stored, paper.trained))
    params = "python bench.py params --model t5-xxl --method prompt --num-virtual-tokens 5"
    return [
        Claim(
            "On small models prompt tuning is worse than full fine-tuning",
            "python train.py --method prompt --task reverse+increment",
            f"two skills in a row, 0.8 M parameters: {small:.2f} against {full:.2f}; "
            f"a single known skill: {of_select[0]:.2f} and {of_select[1]:.2f}",
            verdict(f"{CONDITIONS}: where more is asked than a choice of what it knows", full - small > 0.3 and min(of_select) > 0.9),
        ),
        Claim(
            "On large models it reaches full fine-tuning",
            "python docs/e2e.py --base SMOLLM2_FOLDER --e2e E2E_FOLDER",
            f"SmolLM2-135M on E2E: BLEU {bleu['prompt']:.1f} against {bleu['full']:.1f}",
            verdict(
                f"{CONDITIONS}: one task, one seed; 135 M is small yet, and size itself was not varied", bleu["prompt"] > bleu["full"] - 1
            ),
        ),
        Claim(
            "5 virtual tokens of T5-XXL are 5 × 4096 = 20,480 parameters a task",
            params,
            f"{numbers:,} of {base:,}",
            verdict(AGREES, numbers == 20_480),
        ),
        Claim(
            "That is five orders of magnitude fewer",
            params,
            f"{base / numbers:,.0f} times fewer, {math.log10(base / numbers):.2f} orders of magnitude",
            verdict(AGREES, 5 <= math.log10(base / numbers) < 6),
        ),
        Claim(
            "Prefix tuning trains 0.1 % of the parameters and is comparable to full fine-tuning",
            "python docs/e2e.py --base SMOLLM2_FOLDER --e2e E2E_FOLDER",
            f"BLEU {bleu['prefix']:.1f} against {bleu['full']:.1f}, with {100 * share:.1f} % of the parameters. "
            f"The paper's own prefix is {100 * kept:.2f} % as stored and {100 * trained:.0f} % as trained, its MLP included",
            verdict(f"{CONDITIONS}: comparable, at four times the share", bleu["prefix"] > bleu["full"] - 1 and 0.0035 < share < 0.0045),
        ),
    ]


def of_prefixes() -> list[Claim]:
    through, direct = (read(f"train-prefix{name}-parity") for name in ("-projection", ""))
    bench = {(r["method"], r.get("num_virtual_tokens")): r for r in read("bench-nano")["rows"]}
    prompt, prefix = bench["prompt", 8], bench["prefix", 8]
    times = prefix["stored"] // prompt["stored"]
    parity = [exact(m, "parity") for m in ("prompt", "prefix")]
    two = [exact(m, "reverse+increment") for m in ("prompt", "prefix")]
    return [
        Claim(
            "A prefix enters every block, produced by a two-layer MLP with a nonlinearity",
            "python train.py --prefix-projection --task parity",
            f"exact match {through['exact_match'][0]:.2f} → {through['exact_match'][1]:.2f} with {through['trained']:,} trained numbers, "
            f"folded into {direct['trained']:,}; learnt directly, these alone: {direct['exact_match'][1]:.2f}",
            projection_verdict(through["exact_match"][1], direct["exact_match"][1]),
        ),
        Claim(
            "With little data a prefix overfits less than full fine-tuning",
            "python bench.py quality --study data",
            *little_data(grid.read(RESULTS / "quality.jsonl")),
        ),
        Claim(
            "A prompt is lighter than a prefix",
            "python bench.py",
            f"P·C against 2·L·P·C numbers: {prompt['stored']:,} and {prefix['stored']:,} of the nano shape with 8 virtual tokens",
            verdict(AGREES, times == 2 * PRESETS["nano"].n_layer),
        ),
        Claim(
            "A prefix is stronger, and costs more",
            "python train.py --task parity",
            f"a new mapping: {parity[1]:.2f} against {parity[0]:.2f}; two skills in a row: {two[1]:.2f} against {two[0]:.2f}. "
            f"{times} times the numbers, but a step of {prefix['step_against_full']:.2f} of full fine-tuning's, "
            f"where the prompt's is {prompt['step_against_full']:.2f}",
            verdict(
                f"{CONDITIONS}: it costs storage, not time",
                parity[1] - parity[0] > 0.5 and two[1] > two[0] and prefix["step_against_full"] < prompt["step_against_full"],
            ),
        ),
    ]


def projection_verdict(through: float, direct: float) -> str:
    if through > direct - 0.05:
        return verdict(AGREES, through > 0.9)
    return CONDITIONS + ": it works, and directly it works better here"


def little_data(lines: dict) -> tuple[str, str]:
    """What was seen with at most 300 examples, and the verdict: by the differences, seed by seed, whose 95 % interval leaves zero out."""
    found = {(p.row, p.cell.task, p.cell.examples): p for p in points(lines, "data") if p.cell.examples <= 300}
    cells = list(dict.fromkeys(key[1:] for key in found))
    gap = {cell: found[("prefix", *cell)].less(found[("full", *cell)], "gap") for cell in cells}
    exact = {cell: found[("prefix", *cell)].less(found[("full", *cell)]) for cell in cells}

    def named(differences: dict, sign: int) -> str:
        certain = {cell: d for cell, d in differences.items() if beyond_chance(d) == sign}
        return ", ".join(f"{task} {n:,} ({mean:+.2f} ± {half:.2f})" for (task, n), (mean, half) in certain.items()) or "none"

    narrower, wider, ahead, behind = named(gap, -1), named(gap, 1), named(exact, 1), named(exact, -1)
    sizes = sorted({n for _, n in cells})
    text = (
        f"{sizes[0]} to {sizes[-1]} examples, {len(found[('prefix', *cells[0])].runs)} seeds. "
        f"Gap of held-out and learnt loss, prefix less full, beyond chance narrower: {narrower}; wider: {wider}. "
        f"Exact match ahead: {ahead}; behind: {behind}"
    )
    good, bad = sum(beyond_chance(d) < 0 for d in gap.values()), sum(beyond_chance(d) > 0 for d in gap.values())
    if good and bad:
        return text, "inconclusive: it depends on task and size"
    if good:
        return text, AGREES if 2 * good > len(cells) else f"{CONDITIONS}: not with every task and size"
    return text, f"{DISAGREES} here: a small base, digits" if bad else "inconclusive: no difference beyond chance"


def of_use() -> list[Claim]:
    mixed = {r["of"]: r["value"] for r in read("serving")["ratios"] if r["what"] == "throughput"}
    scores = {m: exact(m, "differences") for m in ("prompt", "prefix", "lora", "adapter", "llama-adapter")}
    return [
        Claim(
            "One model serves many tasks: each input gets its task's prompt at inference",
            "python bench.py serving",
            f"64 prefix tasks mixed in one batch: {mixed['64 prefix tasks mixed']:.2f} of the throughput of one",
            verdict(AGREES, mixed["64 prefix tasks mixed"] > 0.9),
        ),
        Claim(
            "No benchmark sets prompt and prefix tuning side by side",
            "python bench.py quality",
            f"{len(grid.read(RESULTS / 'quality.jsonl')):,} runs do, one thing varied at a time: "
            "[the comparison](docs/results/comparison.md)",
            "no longer so",
        ),
        Claim(
            "Adapters, LLaMA-Adapter and LoRA are further options",
            "python train.py --method lora --task differences",
            "on what a prompt cannot learn: " + ", ".join(f"`{m}` {score:.2f}" for m, score in scores.items()),
            verdict(f"{AGREES}; LoRA alone learns this one", scores.pop("lora") > 0.9 and max(scores.values()) < 0.2),
        ),
    ]
