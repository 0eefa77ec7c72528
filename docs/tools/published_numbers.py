#!/usr/bin/env python3
"""Write docs/published-numbers.md: numbers that papers and model cards printed, beside those of the closed forms.

python docs/tools/published_numbers.py
"""

import math
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from minipeft import PRESETS, GPTConfig
from minipeft.accounting import base_parameters, count
from minipeft.accounting.shapes import SHAPES, T5Shape
from minipeft.files.atomic import write_text
from minipeft.files.huggingface import block_tensors

PAGE = ROOT / "docs" / "published-numbers.md"


def encoder(L: int, C: int) -> GPTConfig:
    """L blocks of C channels with separate queries and values, to count what a method adds to an encoder.

    BERT's and RoBERTa's blocks are GPT-2's; L attentions of an encoder-decoder have the same form. Its total means
    nothing.
    """
    return replace(PRESETS["gpt2"], n_layer=L, n_embd=C, n_head=C // 64, projections="apart")


BASES = {  # beside the presets: shapes that the papers name
    **PRESETS,
    **SHAPES,
    "GPT-3 Small": replace(PRESETS["gpt2"], block_size=2048),
    "GPT-3 175B": GPTConfig(50257, 2048, n_layer=96, n_head=96, n_embd=12288),
    "opt-6.7b": GPTConfig(50272, 2050, n_layer=32, n_head=32, n_embd=4096),
    "qwen2.5-3b": replace(
        PRESETS["qwen2.5-0.5b"], n_layer=36, n_head=16, n_embd=2048, n_inner=11008
    ),
    "mt0-large": T5Shape(n_layer=24, n_head=16, n_embd=1024, n_inner=2816, vocab_size=250112),
    "bloomz-560m": encoder(24, 1024),
    "BERT-base": encoder(12, 768),
    "BERT-large": encoder(24, 1024),
    "RoBERTa-base": encoder(12, 768),
    "RoBERTa-large": encoder(24, 1024),
    "DeBERTa-v2-XXL": encoder(48, 1536),
    "BART-large": encoder(24, 1024),
    "t5-large's decoder": encoder(24, 1024),
    "BART-large's 36 attentions": encoder(
        36, 1024
    ),  # 12 of the encoder; 12 of the decoder to itself, and 12 to the encoder
    "mt0-large's 72 attentions": encoder(72, 1024),
    "whisper-large-v2's 96 attentions": encoder(96, 1280),
}
for name in ("gpt2-medium", "gpt2-large", "GPT-3 175B", "opt-6.7b"):
    BASES[f"{name}, q and v apart"] = replace(BASES[name], projections="apart")
NO_GPT = {
    "BART-large": 406_291_456,
    "RoBERTa-base": 124_645_632,
}  # totals of transformers' models of these sizes


class Row(NamedTuple):
    where: str  # table or section
    printed: str  # as it stands there; several numbers with " / " between them
    what: str  # which of MEASURES each of these is, in the same way
    base: str  # of BASES
    method: str = "full"
    h: dict = {}
    reason: str = ""  # why ours is not equal


def stored(row: Row) -> int:
    return count(BASES[row.base], row.method, **row.h).stored


def trained(row: Row) -> int:
    return count(BASES[row.base], row.method, **row.h).trained


def total(row: Row) -> int:
    name = row.base.split("'")[0]  # of the whole model, where the method is added to a part
    return NO_GPT.get(name) or base_parameters(BASES[name])


def blocks(row: Row) -> int:
    """Parameters of the blocks, without embeddings and last norm."""
    c = BASES[row.base]
    return c.n_layer * sum(map(math.prod, block_tensors(c).values()))


MEASURES: dict[str, Callable[[Row], float]] = {
    "parameters": total,
    "without embeddings": lambda row: (
        total(row) - BASES[row.base].vocab_size * BASES[row.base].n_embd
    ),
    "two blocks": lambda row: 2 * blocks(row) // BASES[row.base].n_layer,
    "trained": trained,
    "stored": stored,
    "base and method": lambda row: total(row) + trained(row),
    "trained, % of both": lambda row: 100 * trained(row) / (total(row) + trained(row)),
    "trained, % of the base": lambda row: 100 * trained(row) / total(row),
    "stored, % of the base": lambda row: 100 * stored(row) / total(row),
    "stored, % of the blocks": lambda row: 100 * stored(row) / blocks(row),
    "9 tasks, in blocks": lambda row: 1 + 9 * stored(row) / blocks(row),
    "orders of magnitude": lambda row: math.floor(math.log10(total(row) / stored(row))),
    "bytes of the base, 2 each": lambda row: 2 * total(row),
    "bytes stored, 2 each": lambda row: 2 * stored(row),
    "bytes stored, 4 each": lambda row: 4 * stored(row),
    "bytes of base and 100 tasks, 2 each": lambda row: 2 * total(row) + 200 * stored(row),
    "bytes of 100 bases, 2 each": lambda row: 200 * total(row),
}
UNITS = {
    "K": 1e3,
    "M": 1e6,
    "G": 1e9,
    "B": 1e9,
    "MB": 1e6,
    "GB": 1e9,
    "TB": 1e12,
    "%": 1,
    "×": 1,
    "": 1,
}


def as_printed(value: float, printed: str) -> str:
    """The value rounded to the digits of the printed number; trailing zeros of "250K" are no digits."""
    number, unit = re.fullmatch(r"([\d,.]+)([A-Z%×]*)", printed).groups()
    value = value / UNITS[unit]
    if "." in number:
        return f"{value:,.{len(number.split('.')[1])}f}{unit}"
    zeros = len(number) - len(number.rstrip("0")) if unit else 0
    whole = f"{round(value / 10**zeros) * 10**zeros:,}"
    return (whole if "," in number else whole.replace(",", "")) + unit


def exact(value: float, printed: str) -> str:
    """Our number: whole where it is a count, with two digits more than was printed where it is a share."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.{min(len(printed.partition('.')[2].rstrip('%×')) + 2, 17)}f}{printed[-1]}"


def compared(row: Row) -> tuple[list[str], bool]:
    """Our numbers, and whether all of them are what was printed, to the digits printed."""
    printed, values = (
        row.printed.split(" / "),
        [MEASURES[what](row) for what in row.what.split(" / ")],
    )
    equal = all(as_printed(v, p) == p for v, p in zip(values, printed, strict=True))
    return [exact(v, p) for v, p in zip(values, printed, strict=True)], equal


def number(what: str, base: str, method: str, h: dict) -> float:
    """Another number, for a reason."""
    return MEASURES[what](Row("", "", what, base, method, h))


# Lester et al. 2021, table 4, as printed: trainable and total parameters, percent trainable, by length.
LESTER = """
t5-small 1     512 76,961,664 0.00067%
t5-small 5     2,560 76,963,712 0.00333%
t5-small 20    10,420 76,971,572 0.01330%
t5-small 50    25,600 76,986,752 0.03325%
t5-small 100   51,200 77,012,352 0.06648%
t5-small 150   76,800 77,037,952 0.09969%
t5-base 1      768 247,578,624 0.00031%
t5-base 5      3,840 247,581,696 0.00155%
t5-base 20     15,360 247,593,216 0.00620%
t5-base 50     38,400 247,616,256 0.01551%
t5-base 100    76,800 247,654,656 0.03101%
t5-base 150    115,200 247,693,056 0.04651%
t5-large 1     1,024 783,151,104 0.00013%
t5-large 5     5,120 783,155,200 0.00065%
t5-large 20    20,480 783,170,560 0.00262%
t5-large 50    51,200 783,201,280 0.00654%
t5-large 100   102,400 783,252,480 0.01907%
t5-large 150   153,600 783,303,680 0.01961%
t5-xl 1        2,048 2,849,759,232 0.00007%
t5-xl 5        10,240 2,849,767,424 0.00036%
t5-xl 20       40,960 2,849,798,144 0.00143%
t5-xl 50       102,400 2,849,859,584 0.00359%
t5-xl 100      204,800 2,849,961,984 0.00718%
t5-xl 150      307,200 2,850,064,384 0.01078%
t5-xxl 1       4,096 11,135,336,448 0.00004%
t5-xxl 5       20,480 11,135,352,832 0.00018%
t5-xxl 20      81,920 11,135,414,272 0.00074%
t5-xxl 50      204,800 11,137,380,352 0.00184%
t5-xxl 100     409,600 11,135,741,952 0.00368%
t5-xxl 150     614,400 11,135,946,752 0.00552%
"""
MISPRINTS = {
    ("t5-small", 20): "Misprint: 10,420 for 20 · 512; the total and the share were made from it.",
    ("t5-large", 100): "Misprint: 0.01907 for 0.01307; the two counts are right.",
    ("t5-xl", 20): "The share is cut off here, where the others are rounded.",
    ("t5-xl", 100): "The share is cut off here, too.",
    (
        "t5-xxl",
        50,
    ): "Misprint: the total has ten times the prompt added; count and share are right.",
}


def lester() -> list[Row]:
    rows = []
    for line in LESTER.split("\n")[1:-1]:
        base, P, *printed = line.split()
        what, h = "trained / base and method / trained, % of both", dict(num_virtual_tokens=int(P))
        rows.append(
            Row(
                "table 4",
                " / ".join(printed),
                what,
                base,
                "prompt",
                h,
                MISPRINTS.get((base, int(P)), ""),
            )
        )
    return rows


def tokens(P: int, **h) -> dict:
    return dict(num_virtual_tokens=P, **h)


MLP = tokens(5, prefix_projection=True, encoder_hidden_size=512)  # m: that of the released code
QV, QKVO, ON_MLP = (
    ("q_proj", "v_proj"),
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("c_fc", "mlp.c_proj"),
)
GPT3 = "GPT-3 175B, q and v apart"
BOTH = "trained / trained, % of the base"
THIRTY = dict(adapter_len=10, adapter_layers=30)

learnt, kept = (
    number("trained", "gpt2-medium", "prefix", MLP),
    number("stored", "gpt2-medium", "prefix", MLP),
)
own_head = base_parameters(replace(BASES["GPT-3 175B"], tied=False)) / 1e9
hidden = number("stored", "GPT-3 175B", "prefix", tokens(16, space="hidden"))
r16 = number("stored", "DeBERTa-v2-XXL", "lora", dict(r=16))
in_mib = number("bytes stored, 2 each", GPT3, "lora", dict(r=4, target_modules=QV)) / 2**20
llama_mib = number("bytes stored, 4 each", "llama-7b", "llama-adapter", THIRTY) / 2**20
mixed = number("stored, % of the base", "BART-large", "lora", dict(r=102, target_modules=ON_MLP))
mixed += number("stored, % of the base", "BART-large's 36 attentions", "prefix", tokens(30))

OLD_COUNT = 'The note in github.com/openai/gpt-2: "our original parameter counts were wrong due to an error".'
CUT = "The digits are cut off, not rounded."
SOURCES: dict[str, list[Row]] = {
    "GPT-2 (Radford et al. 2019, *Language Models are Unsupervised Multitask Learners*; and github.com/openai/gpt-2)": [
        Row("table 2", "117M", "parameters", "gpt2", reason=OLD_COUNT),
        Row("table 2", "345M", "parameters", "gpt2-medium", reason=OLD_COUNT),
        Row("table 2", "762M", "parameters", "gpt2-large", reason=OLD_COUNT),
        Row("table 2", "1542M", "parameters", "gpt2-xl", reason=OLD_COUNT),
        Row("names of the released models", "124M", "parameters", "gpt2"),
        Row("names of the released models", "355M", "parameters", "gpt2-medium"),
        Row("names of the released models", "774M", "parameters", "gpt2-large"),
        Row("names of the released models", "1558M", "parameters", "gpt2-xl"),
    ],
    "GPT-3 (Brown et al. 2020, 2005.14165)": [
        Row("table 2.1, Small", "125M", "parameters", "GPT-3 Small"),
        Row(
            "table 2.1, 175B",
            "175.0B",
            "parameters",
            "GPT-3 175B",
            reason=f"The table's own dimensions give less. A head of its own would give {own_head:.1f}B.",
        ),
    ],
    "LLaMA (Touvron et al. 2023, 2302.13971)": [
        Row("table 2", "6.7B", "parameters", "llama-7b"),
        Row("table 2", "13.0B", "parameters", "llama-13b"),
        Row("table 2", "32.5B", "parameters", "llama-30b"),
        Row("table 2", "65.2B", "parameters", "llama-65b", reason=CUT),
    ],
    "Model cards on huggingface.co": [
        Row("meta-llama/Llama-3.2-1B", "1.23B", "parameters", "llama-3.2-1b", reason=CUT),
        Row("HuggingFaceTB/SmolLM2-135M, its name", "135M", "parameters", "smollm2-135m"),
        Row("TinyLlama/TinyLlama-1.1B-Chat-v1.0, its name", "1.1B", "parameters", "tinyllama-1.1b"),
        Row(
            "Qwen/Qwen2.5-0.5B", "0.49B / 0.36B", "parameters / without embeddings", "qwen2.5-0.5b"
        ),
        Row("Qwen/Qwen3-0.6B", "0.6B / 0.44B", "parameters / without embeddings", "qwen3-0.6b"),
        Row("Qwen/Qwen2.5-3B", "3.09B / 2.77B", "parameters / without embeddings", "qwen2.5-3b"),
    ],
    "Prompt tuning (Lester et al. 2021, 2104.08691)": [
        Row("figure 2", "11B / 20,480", "parameters / stored", "t5-xxl", "prompt", tokens(5)),
        Row(
            'figure 2: "over five orders of magnitude"',
            "5",
            "orders of magnitude",
            "t5-xxl",
            "prompt",
            tokens(5),
        ),
        *lester(),
    ],
    "Prefix tuning (Li & Liang 2021, 2101.00190)": [
        Row("table 1, PREFIX", "0.1%", "stored, % of the base", "gpt2-medium", "prefix", tokens(5)),
        Row(
            'abstract: "learning only 0.1% of the parameters"',
            "0.1%",
            "trained, % of the base",
            "gpt2-medium",
            "prefix",
            MLP,
            reason="0.1 % is what is stored. What is trained is the MLP that makes it (§4.3; width of the released "
            f"code): {learnt:,} numbers, {learnt / kept:.0f} times as many.",
        ),
        Row("§6.1, footnote, E2E and WebNLG", "250K", "stored", "gpt2-medium", "prefix", tokens(5)),
        Row("§6.1, footnote, DART", "500K", "stored", "gpt2-medium", "prefix", tokens(10)),
        Row(
            "§6.1, footnote",
            "345M",
            "parameters",
            "gpt2-medium",
            reason="The old count of GPT-2's paper.",
        ),
    ],
    "Adapters (Houlsby et al. 2019, 1902.00751)": [
        Row(
            "table 1, adapters (64)",
            "2.1%",
            "stored, % of the blocks",
            "BERT-large",
            "adapter",
            dict(bottleneck_size=64),
        ),
        Row(
            "table 1, adapters (64)",
            "1.2×",
            "9 tasks, in blocks",
            "BERT-large",
            "adapter",
            dict(bottleneck_size=64),
        ),
        Row("§3.4, size 64", "2M", "stored", "BERT-base", "adapter", dict(bottleneck_size=64)),
    ],
    "LoRA (Hu et al. 2021, 2106.09685)": [
        Row("table 2, LoRA", "0.3M", "stored", "RoBERTa-base", "lora", dict(r=8)),
        Row("table 2, LoRA", "0.8M", "stored", "RoBERTa-large", "lora", dict(r=8)),
        Row(
            "table 2, adapter P",
            "3.0M",
            "stored",
            "RoBERTa-large",
            "adapter",
            dict(bottleneck_size=64, placement="pfeiffer"),
            reason='Rounded to whole millions ("3M" in table 9).',
        ),
        Row(
            "table 2, adapter P",
            "0.8M",
            "stored",
            "RoBERTa-large",
            "adapter",
            dict(bottleneck_size=16, placement="pfeiffer"),
        ),
        Row(
            "table 2, adapter H",
            "6.0M",
            "stored",
            "RoBERTa-large",
            "adapter",
            dict(bottleneck_size=64),
            reason='Rounded to whole millions ("6M" in table 9).',
        ),
        Row(
            "table 2, adapter H",
            "0.8M",
            "stored",
            "RoBERTa-large",
            "adapter",
            dict(bottleneck_size=8),
        ),
        Row(
            "table 2, LoRA, r as in table 10",
            "4.7M",
            "stored",
            "DeBERTa-v2-XXL",
            "lora",
            dict(r=8),
            reason=f"Table 10 gives r = 8, the released scripts 16, and 16 is what was counted: {r16:,}.",
        ),
        Row(
            "table 3, fine-tuning",
            "354.92M",
            "parameters",
            "gpt2-medium",
            reason="0.1M more than the released model has; its larger sister's 774.03M is right.",
        ),
        Row("table 3, fine-tuning", "774.03M", "parameters", "gpt2-large"),
        Row("table 3, fine-tuning the top 2 blocks", "25.19M", "two blocks", "gpt2-medium"),
        Row(
            "table 3, LoRA, r as in table 11",
            "0.35M",
            "stored",
            "gpt2-medium, q and v apart",
            "lora",
            dict(r=4),
            reason="The paper's formula, 2 · matrices · C · r, gives ours. r was chosen to match the prefix "
            "(appendix H.2), whose 0.35M this is.",
        ),
        Row(
            "table 3, LoRA, r as in table 11",
            "0.77M",
            "stored",
            "gpt2-large, q and v apart",
            "lora",
            dict(r=4),
            reason="As in the row above: the table has the prefix's number.",
        ),
        Row(
            'table 3, prefix ("PreLayer", from Li & Liang)',
            "0.35M",
            "stored",
            "gpt2-medium",
            "prefix",
            tokens(5),
            reason="Li & Liang's own number for E2E is 250K.",
        ),
        Row(
            "table 4, fine-tuning",
            "175,255.8M",
            "parameters",
            "GPT-3 175B",
            reason=f"As for 175.0B above: with a head of its own it would be {own_head:.1f}B.",
        ),
        Row(
            'table 4, prompt ("PreEmbed"), 256 + 8 tokens',
            "3.2M",
            "stored",
            "GPT-3 175B",
            "prompt",
            tokens(264),
        ),
        Row(
            'table 4, prefix ("PreLayer"), 8 + 8 tokens',
            "20.2M",
            "stored",
            "GPT-3 175B",
            "prefix",
            tokens(16),
            reason="The formula of its §5.1, L · C · tokens, has one vector a block where a prefix has a key and a "
            "value; it gives "
            f'{hidden:,}, our space "hidden". '
            "What the rest of the printed number is, the paper does not say.",
        ),
        Row(
            "table 15, PreEmbed, 64 + 8 tokens",
            "0.9M",
            "stored",
            "GPT-3 175B",
            "prompt",
            tokens(72),
        ),
        Row(
            "table 15, PreEmbed, 128 + 8 tokens",
            "1.7M",
            "stored",
            "GPT-3 175B",
            "prompt",
            tokens(136),
        ),
        Row(
            "table 15, PreEmbed, 512 + 8 tokens",
            "6.4M",
            "stored",
            "GPT-3 175B",
            "prompt",
            tokens(520),
        ),
        Row(
            "table 15, PreEmbed, 32 + 8 tokens",
            "0.4M",
            "stored",
            "GPT-3 175B",
            "prompt",
            tokens(40),
            reason="The 8 tokens after the input were left out, or the digits cut off.",
        ),
        Row(
            "table 15, adapter H, r = 1",
            "7.1M",
            "stored",
            "GPT-3 175B",
            "adapter",
            dict(bottleneck_size=1),
        ),
        Row(
            "table 15, adapter H, r = 4",
            "21.2M",
            "stored",
            "GPT-3 175B",
            "adapter",
            dict(bottleneck_size=4),
        ),
        Row(
            "table 15, adapter H, r = 8",
            "40.1M",
            "stored",
            "GPT-3 175B",
            "adapter",
            dict(bottleneck_size=8),
        ),
        Row(
            "table 15, adapter H, r = 16",
            "77.9M",
            "stored",
            "GPT-3 175B",
            "adapter",
            dict(bottleneck_size=16),
        ),
        Row(
            "table 15, adapter H, r = 64",
            "304.4M",
            "stored",
            "GPT-3 175B",
            "adapter",
            dict(bottleneck_size=64),
        ),
        Row(
            "table 15, LoRA on v",
            "4.7M",
            "stored",
            GPT3,
            "lora",
            dict(r=2, target_modules=("v_proj",)),
        ),
        Row(
            "table 15, LoRA on q and v",
            "4.7M",
            "stored",
            GPT3,
            "lora",
            dict(r=1, target_modules=QV),
        ),
        Row(
            "table 15, LoRA on q and v",
            "18.8M",
            "stored",
            GPT3,
            "lora",
            dict(r=4, target_modules=QV),
            reason=CUT,
        ),
        Row(
            "table 15, LoRA on q and v",
            "37.7M",
            "stored",
            GPT3,
            "lora",
            dict(r=8, target_modules=QV),
        ),
        Row(
            "table 15, LoRA on q, k, v and o",
            "37.7M",
            "stored",
            GPT3,
            "lora",
            dict(r=4, target_modules=QKVO),
        ),
        Row(
            "table 15, LoRA on q and v",
            "301.9M",
            "stored",
            GPT3,
            "lora",
            dict(r=64, target_modules=QV),
            reason=CUT,
        ),
        Row(
            "table 15, LoRA on q, k, v and o",
            "603.8M",
            "stored",
            GPT3,
            "lora",
            dict(r=64, target_modules=QKVO),
            reason=CUT,
        ),
        Row("§4.2, the whole checkpoint", "350GB", "bytes of the base, 2 each", "GPT-3 175B"),
        Row(
            "§4.2, LoRA's checkpoint",
            "35MB",
            "bytes stored, 2 each",
            GPT3,
            "lora",
            dict(r=4, target_modules=QV),
            reason=f"It is the sentence's 350GB / 10,000, both rounded. Ours is {in_mib:.0f} MiB.",
        ),
        Row(
            "§4.2, footnote, one whole model and 100 LoRAs",
            "354GB",
            "bytes of base and 100 tasks, 2 each",
            GPT3,
            "lora",
            dict(r=4, target_modules=QV),
            reason="The sum of the two rounded numbers.",
        ),
        Row("§4.2, footnote, 100 whole models", "35TB", "bytes of 100 bases, 2 each", "GPT-3 175B"),
    ],
    "Towards a unified view (He et al. 2022, 2110.04366)": [
        Row(
            "table 6, prefix, l = 200",
            "3.6%",
            "stored, % of the base",
            "BART-large's 36 attentions",
            "prefix",
            tokens(200),
        ),
        Row(
            "table 4, prefix, l = 30",
            "0.1%",
            "stored, % of the base",
            "BART-large's 36 attentions",
            "prefix",
            tokens(30),
            reason="l = 200 is 3.6 % in the same table, and 30 has 30/200 of that.",
        ),
        Row(
            "table 3, sequential adapter after the MLP, r = 200",
            "2.4%",
            "stored, % of the base",
            "BART-large",
            "adapter",
            dict(bottleneck_size=200, placement="pfeiffer"),
        ),
        Row(
            "table 6, Pfeiffer adapter, r = 600",
            "7.2%",
            "stored, % of the base",
            "BART-large",
            "adapter",
            dict(bottleneck_size=600, placement="pfeiffer"),
            reason=CUT,
        ),
        Row(
            "table 6, LoRA on the MLP, r = 102",
            "7.2%",
            "stored, % of the base",
            "BART-large",
            "lora",
            dict(r=102, target_modules=ON_MLP),
            reason=f"The same LoRA with a prefix of 30 is 6.7 % in the same table, and that is right: {mixed:.2f} %.",
        ),
    ],
    "LLaMA-Adapter (Zhang et al. 2023, 2303.16199)": [
        Row("table 1, LLaMA-Adapter", "1.2M", "stored", "llama-7b", "llama-adapter", THIRTY),
        Row(
            "table 1, LLaMA-Adapter, storage",
            "4.7M",
            "bytes stored, 4 each",
            "llama-7b",
            "llama-adapter",
            THIRTY,
            reason=f"{llama_mib:.1f} units of 2^20 bytes; the row of Alpaca-LoRA counts in units of 10^6, "
            "as does the text (4.9M).",
        ),
        Row(
            "text beside table 1, storage",
            "4.9M",
            "bytes stored, 4 each",
            "llama-7b",
            "llama-adapter",
            THIRTY,
        ),
        Row("table 1, Alpaca-LoRA", "4.2M", "stored", "llama-7b", "lora", dict(r=8)),
        Row(
            "table 1, Alpaca-LoRA, storage",
            "16.8M",
            "bytes stored, 4 each",
            "llama-7b",
            "lora",
            dict(r=8),
        ),
        Row("table 1, Alpaca, storage", "13G", "bytes of the base, 2 each", "llama-7b"),
    ],
    "AdapterHub, blog on adapter-transformers 3.1 (2022): the summary it prints of methods on RoBERTa-base": [
        Row(
            "pfeiffer",
            "894,528 / 0.718%",
            BOTH,
            "RoBERTa-base",
            "adapter",
            dict(bottleneck_size=48, placement="pfeiffer"),
        ),
        Row(
            "houlsby",
            "1,789,056 / 1.435%",
            BOTH,
            "RoBERTa-base",
            "adapter",
            dict(bottleneck_size=48),
        ),
        Row(
            "prefix_tuning", "9,872,384 / 7.920%", BOTH, "RoBERTa-base", "prefix", MLP | tokens(30)
        ),
        Row("prefix_tuning_flat", "552,960 / 0.444%", BOTH, "RoBERTa-base", "prefix", tokens(30)),
        Row("lora", "294,912 / 0.237%", BOTH, "RoBERTa-base", "lora", dict(r=8)),
    ],
    "What PEFT printed (`print_trainable_parameters`)": [
        Row(
            "README of huggingface/peft",
            "3,686,400 / 3,089,625,088 / 0.1193%",
            "trained / base and method / trained, % of both",
            "qwen2.5-3b",
            "lora",
            dict(r=16),
        ),
        Row(
            "quicktour, bigscience/mt0-large",
            "2,359,296 / 1,231,940,608 / 0.19151053100118282%",
            "trained / base and method / trained, % of both",
            "mt0-large's 72 attentions",
            "lora",
            dict(r=8),
        ),
        Row(
            "int8 example, facebook/opt-6.7b",
            "8,388,608 / 6,666,862,592 / 0.12582542214183376%",
            "trained / base and method / trained, % of both",
            "opt-6.7b, q and v apart",
            "lora",
            dict(r=16),
        ),
        Row(
            "Alpaca-LoRA's training log, LLaMA 7B",
            "4,194,304 / 6,742,609,920 / 0.06220594176090199%",
            "trained / base and method / trained, % of both",
            "llama-7b",
            "lora",
            dict(r=8),
        ),
        Row(
            "prompt-based methods, prompt tuning, bloomz-560m",
            "8,192",
            "trained",
            "bloomz-560m",
            "prompt",
            tokens(8),
        ),
        Row(
            "prompt-based methods, prefix tuning, bloomz-560m",
            "983,040",
            "trained",
            "bloomz-560m",
            "prefix",
            tokens(20),
        ),
        Row(
            "seq2seq prefix tuning, t5-large",
            "983,040",
            "trained",
            "t5-large's decoder",
            "prefix",
            tokens(20),
        ),
        Row(
            "int8 speech recognition, whisper-large-v2",
            "15,728,640",
            "trained",
            "whisper-large-v2's 96 attentions",
            "lora",
            dict(r=32),
        ),
    ],
}

SHORT = {
    "num_virtual_tokens": "P",
    "encoder_hidden_size": "m",
    "bottleneck_size": "m",
    "adapter_len": "K",
    "adapter_layers": "n",
}


def configuration(row: Row) -> str:
    """The base, the method, and its sizes."""
    text = [row.base]
    if row.method != "full":
        text.append(f"`{row.method}`")
    for name, value in row.h.items():
        value = "+".join(value) if isinstance(value, tuple) else value
        text.append(
            "through the MLP" if name == "prefix_projection" else f"{SHORT.get(name, name)} {value}"
        )
    return ", ".join(text)


def section(source: str, rows: list[Row]) -> str:
    lines = [
        f"## {source}",
        "",
        "| where | configuration | what | printed | ours | equal |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        ours, equal = compared(row)
        verdict = "yes" if equal else f"no. {row.reason}"
        lines.append(
            f"| {row.where} | {configuration(row)} | {row.what} | {row.printed} | {' / '.join(ours)} | {verdict} |"
        )
    return "\n".join(lines)


def page() -> str:
    rows = [row for rows in SOURCES.values() for row in rows]
    equal = sum(compared(row)[1] for row in rows)
    unequal = len(rows) - equal
    head = f"""# Published numbers, counted again

Numbers that papers, model cards and libraries printed, beside the counts of `minipeft.accounting` for the same
configuration: {len(rows)} rows, of which {equal} agree to every digit printed; the other {unequal} say why they do
not. The printed numbers are typed, all others computed, by `python docs/tools/published_numbers.py`.

Our numbers are rounded to the digits that were printed: 250K has two digits, 0.35M two decimals, 20,480 all of them.
Encoders (BERT, RoBERTa, DeBERTa) have GPT-2's blocks, so the methods are counted on those. An encoder-decoder (BART,
mT0, Whisper) has three attentions for each pair of encoder and decoder layers, so a prefix or LoRA is counted on that
many blocks.
"""
    return "\n".join([head, *(section(source, rows) + "\n" for source, rows in SOURCES.items())])


def files() -> dict[Path, str]:
    """The file that this tool writes, and its text."""
    return {PAGE: page()}


if __name__ == "__main__":
    write_text(PAGE, page())
