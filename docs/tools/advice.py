"""Prompt or prefix, and what to use when: the advice of docs/comparison.md, with its numbers from the result files."""

from collections.abc import Iterable

from docs.tools.comparison.facts import Facts, joined
from docs.tools.comparison.summary import beyond_chance
from docs.tools.comparison.tables import BLEU_TASK, digits_of
from docs.tools.markdown import points_list, table
from docs.tools.results import facts, read
from minipeft.accounting import base_parameters
from minipeft.accounting.shapes import EMBEDDED, PRESETS
from minipeft.bench.quality.cell import DEV
from minipeft.bench.quality.real import BASE as REAL
from minipeft.bench.quality.real import CHANGED, SCORED, SENTENCES_SCORED, TASKS
from minipeft.bench.quality.studies import AGAINST, BASE, LENGTHS, REAL_EXAMPLES, TOKENS
from minipeft.data.sentences import SENTENCES
from minipeft.data.tasks import INSTRUCTIONS

ROWS = ("prompt", "prefix", "lora", "full")
REAL_ROWS = {
    "prompt": "soft prompt, from a wording", "prefix": "prefix, from a wording",
    "prefix from noise": "prefix, from noise", "lora": "LoRA",
    "lora with wording": "LoRA, the wording in front (forgets: without it)",
    "full": "full fine-tuning",
    "hard-prompt": "the wording alone, untrained"}
WORDED = ("hard-prompt", "prefix from noise", "lora with wording")  # with and without the wording


def what_to_use() -> str:
    """A point for each choice, and their limits; points on studies that are not run yet are left out."""
    f = facts()
    points, tables = [*choices(f)], []
    if f.is_complete("real") and all(f"real/{row}/{task}" in f.points for row in WORDED for task in SENTENCES):
        points.append(on_real_tasks(f))
        if f.is_complete("real_prefix"):
            points.append(against_lora(f))
        if f.is_complete("real_data"):
            points.append(with_most(f))
        tables.append(real_table(f))
    if f.is_complete("data"):
        scores = [f.mean(f"data/{row}/reverse/10") for row in ROWS]
        points.append("**With 10 examples of a known skill**, prompt, prefix, LoRA and full fine-tuning score "
                      f"{', '.join(scores[:3])} and {scores[3]}.")
    if f.is_complete("forgetting"):
        points.append(forgotten(f))
    return "\n\n".join([points_list(*points, limits(f)), *tables])


def choices(f: Facts) -> list[str]:
    rows = read("bench-gpt2")["rows"]
    bench = {(r["method"], r.get("num_virtual_tokens")): r for r in rows}
    lora = next(r for r in rows if r["method"] == "lora")

    def score(row: str, task: str) -> str:
        return f.mean(f"methods/{row}/{task}")

    def times(method: str, tokens: int) -> str:
        return f"{bench[method, tokens]['step_against_full']:.2f}"

    return [
        f"**A wording, if one does it**: the best of {len(INSTRUCTIONS)} instructions scores "
        f"{score('hard-prompt', 'reverse')} on a known skill and trains nothing.",
        f"**A soft prompt to select a known skill with the smallest file**: {f.mean('length/prompt/reverse/8')} on "
        f"`reverse` with 8 virtual tokens, but on the new `parity` at most {f.mean(f.best('length/prompt/parity'))}, "
        f"with {min(LENGTHS)} to {max(LENGTHS)}. Every block computes its vectors too: a step on GPT-2's shape costs "
        f"{times('prompt', 8)} of full fine-tuning's with 8 virtual tokens and {times('prompt', 128)} with 128.",
        "**A prefix where a prompt falls short and the base must stay as it is, many tasks in one batch**: with 8 "
        f"virtual tokens {score('prefix', 'parity')} on `parity`, where a prompt of as many parameters has "
        f"{score('prompt', 'parity')}. A step costs {times('prefix', 8)} with 8 virtual tokens and "
        f"{times('prefix', 128)} with 128; it has {bench['prefix', 8]['stored'] // bench['prompt', 8]['stored']} "
        "times the parameters of a prompt of the same length. Start it from words that say the task. Try noise as well "
        f"for something new: with {TOKENS['num_virtual_tokens']} virtual tokens `parity` is learnt to "
        f"{f.mean('start/prefix/parity/noise')} from noise, to "
        f"{f.mean('start/prefix/parity/the best wording')} from the wording of another skill.",
        f"**LoRA to teach something new**: {score('lora', 'reverse+increment')} on two skills in a row where the "
        f"prefix has {score('prefix', 'reverse+increment')}; a step costs {lora['step_against_full']:.2f}, and "
        "merged into the weights it costs nothing in use, for one task at a time.",
        f"**Full fine-tuning if a whole model a task can be stored**: {score('full', 'differences')} on "
        f"`differences`, where LoRA of rank {f.points['methods/lora/differences'].cell.size['r']} has "
        f"{score('lora', 'differences')} after as many steps.",
    ]


def on_real_tasks(f: Facts) -> str:
    bare = f.points["real/prefix/topics"].mean("known loss before")[0]

    def less(other: str, tasks: Iterable[str], name: str = "score") -> str:
        digits = {task: digits_of(task) if name == "score" else 2 for task in tasks}
        return joined(f"{f.less(f'real/prefix/{task}', f'real/{other}/{task}', name, digits[task])} (`{task}`"
                      f"{', BLEU' * (digits[task] == 1)})" for task in tasks)

    return ("**On SmolLM2-135M-Instruct with 200 examples, each seen once**: the table below. A prefix started from a "
            f"wording, less one from noise: {less('prefix from noise', TASKS)}. While a method is on, the loss on "
            f"other English, {bare:.2f} nats per token for the base, rises (*forgets*); the prefix's rise less LoRA's: "
            f"{less('lora', TASKS, 'forgetting')}. Switched off, all but full fine-tuning leave the base as it was.")


def against_lora(f: Facts) -> str:
    """A prefix less LoRA, from noise and with one thing changed at a time, on tasks with all rows."""
    tasks = [t for t in TASKS if all(f"real_prefix/{row}/{t}" in f.points for row in CHANGED)]
    others = [row for row in CHANGED if row.startswith("prefix") and "steps" not in row]

    def less(row: str, other: str = AGAINST) -> str:
        return joined(f"{f.less(f'real_prefix/{row}/{t}', f'real_prefix/{other}/{t}', digits=digits_of(t))} "
                      f"(`{t}`{', BLEU' * (t == BLEU_TASK)})" for t in tasks)

    behind = {t: sum(beyond_chance(f.diff(f"real_prefix/{row}/{t}", f"real_prefix/{AGAINST}/{t}")) < 0
                     for row in others) for t in tasks}
    return ("**A prefix less LoRA there, in exact match or BLEU**: started from noise of the embeddings' size (PEFT's "
            f"has unit variance) {less('prefix from noise')}; from a wording {less('prefix')}; from noise with twice "
            f"the steps for both {less('prefix from noise, twice the steps', 'lora, twice the steps')}. With one of "
            f"{len(others)} changes to noise (8 or 64 virtual tokens, no positions for them, the MLP) it is behind "
            f"beyond chance in {joined(f'{n} of {len(others)} cases on `{t}`' for t, n in behind.items())}.")


def with_most(f: Facts) -> str:
    """Scores with the most training examples, on each task that has as many."""
    most = max(p.cell.examples for p in f.found["real_data"])
    tasks = [t for t in TASKS if f"real_data/prefix/{t}/{most}" in f.points]

    def on(task: str) -> str:
        at, digits = f"real_data/{{}}/{task}/{most}".format, digits_of(task)
        scores, unit = joined(f.mean(at(row), digits=digits) for row in ROWS), " (BLEU)" * (task == BLEU_TASK)
        return (f"{scores} on `{task}`{unit}, "
                f"the prefix less LoRA {f.less(at('prefix'), at('lora'), digits=digits)}, "
                f"less full {f.less(at('prefix'), at('full'), digits=digits)}")

    return (f"**With {most:,} examples there, each seen once**, prompt, prefix, LoRA and full fine-tuning score "
            f"{'; '.join(map(on, tasks))}.")


def real_table(f: Facts) -> str:
    """Scores on the real tasks, and what is forgotten while the method is on."""
    def cell(row: str, task: str, name: str, digits: int = 2) -> str:
        return f.mean(at, name, digits) if (at := f"real/{row}/{task}") in f.points else "-"

    rows = [[called, *(cell(row, t, "score", digits_of(t)) for t in TASKS),
             *(cell(row, t, "forgetting") for t in TASKS)] for row, called in REAL_ROWS.items()]
    head = [f"{REAL_EXAMPLES} examples, SmolLM2-135M", "`e2e`, BLEU", "`topics`", "`amounts`",
            *(f"forgets, `{t}`" for t in TASKS)]
    return table(head, rows)


def forgotten(f: Facts) -> str:
    kept = [f.mean(f"forgetting/{row}/parity", "remembered") for row in ROWS]
    before = f.points["forgetting/prefix/parity"].mean("known before")[0]
    return ("**What is forgotten while it is on**: tuned on `parity`, the base answers the skills that it knew, told, "
            f"with {', '.join(kept[:3])} and {kept[3]} exact match by prompt, prefix, LoRA and full fine-tuning, where "
            f"it had {before:.2f}. Switched off, all but full fine-tuning leave it as it was.")


def limits(f: Facts) -> str:
    step = {r["row"]: r["step_ms"]["median"] for r in read("quality-costs")["rows"]}
    of_full = {row: f"{step[row] / step['full']:.2f}" for row in ("prompt", "prefix")}
    tokens = {row: f.points[f"methods/{row}/parity"].cell.size["num_virtual_tokens"] for row in of_full}
    small, real = (base_parameters(c) / 1e6 for c in (EMBEDDED[BASE], PRESETS[REAL]))
    return (f"**Limits**: learning rates chosen on {DEV} further examples, for SmolLM2 {SCORED} or {SENTENCES_SCORED}; "
            f"bases of {small:.1f} and {real:.0f} million parameters, short texts, "
            f"{len(f.points['methods/lora/parity'].runs)} seeds; steps on 2 CPU cores. At equal parameters a prompt of "
            f"{tokens['prompt']} tokens takes {of_full['prompt']} of full fine-tuning's step, a prefix of "
            f"{tokens['prefix']} takes {of_full['prefix']}.")


BLOCKS = {"what-to-use": what_to_use}
