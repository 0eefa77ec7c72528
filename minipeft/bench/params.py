"""What a method trains, stores and costs on a base of any shape, by the closed forms of `minipeft.accounting` alone.

Nothing is built and nothing measured, so 65 billion parameters take no longer than a million. For one method: the derivation line by
line, each formula in symbols, then with numbers put in, then the result. For all of them: a table. The formulas stand here to be read;
the results are the ledger's, and a test works out every line that is printed.

Columns: parameters trained, stored for one task, and stored in % of the base; the adapter on the disk, and the disk for many tasks (the
base and their adapters; full: as many bases); what a training process holds, and of that what is kept for the backward pass; the
products of a step, and as a ratio to full fine-tuning's; what one of two processes hands over in a step; at inference the products of
one more token, and how many of them the method adds.
"""

import math
import re
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path

from .. import accounting
from ..accounting.parameters import ENCODER_DECODER, depends_on, settings
from ..accounting.shapes import SHAPES, T5Shape
from ..config import PRESETS, Error, GPTConfig, at_least_one, shown
from ..files.huggingface import base_config
from ..methods import METHODS
from .measure import columns

Shape = GPTConfig | T5Shape


@dataclass(frozen=True)
class Settings:
    """One question to the ledger: a method on a base, or (None) all of them."""

    model: str  # a preset or a Hugging Face folder
    method: str | None
    sizes: dict  # hyper-parameters that were given; the others are the methods' defaults
    tasks: int
    batch_size: int
    seq_len: int


def shape_of(model: str) -> Shape:
    """The shape of a preset, or of a Hugging Face folder, of which only config.json is read. Raises Error when it is neither."""
    if model in PRESETS or model in SHAPES:
        return (PRESETS | SHAPES)[model]
    if not Path(model).is_dir():
        raise Error(f"--model must be a Hugging Face folder or one of {', '.join([*PRESETS, *SHAPES])}, not {shown(model)}")
    return base_config(Path(model))[0]


MEANING = {
    "L": "layers",
    "C": "channels",
    "nh": "heads",
    "hs": "channels of a head",
    "kv": "channels of the keys, and of the values",
    "M": "width of the MLP",
    "V": "vocabulary",
    "N": "positions",
    "buckets": "relative distances",
    "P": "virtual tokens",
    "m": "width of the method's own layer",
    "r": "rank",
    "K": "prompts a layer",
    "n": "layers that have them",
}


def symbols(c: Shape, h: dict) -> dict[str, int]:
    """The value of every symbol; h: all hyper-parameters of the method."""
    if isinstance(c, T5Shape):
        own = {"hs": c.head_size, "M": c.n_inner, "buckets": c.position_buckets}
    else:
        own = {"kv": c.n_kv * c.head_size, "M": c.inner, "N": c.block_size}
    names = {
        "num_virtual_tokens": "P",
        "encoder_hidden_size": "m",
        "bottleneck_size": "m",
        "r": "r",
        "adapter_len": "K",
        "adapter_layers": "n",
    }
    sizes = {"L": c.n_layer, "C": c.n_embd, "nh": c.n_head, "V": c.vocab_size}
    return sizes | own | {short: h[name] for name, short in names.items() if name in h}


def base_formula(c: Shape) -> str:
    """accounting.base_parameters in symbols."""
    if isinstance(c, T5Shape):
        return "2·V·C + 2·buckets·nh + L·(12·C·nh·hs + 6·C·M + 5·C) + 2·C"
    tables = ("V·C" if c.tied else "2·V·C") + (" + N·C" if c.position == "learned" else "")
    weights = f"2·C·(C + kv) + {2 if c.mlp == 'gelu' else 3}·C·M"
    biases = {"none": "", "qkv": " + C + 2·kv", "all": f" + 3·C + 2·kv + {'M' if c.mlp == 'gelu' else '2·M'}"}[c.bias]
    norms, last = ("4·C", "2·C") if c.norm == "layer" else ("2·C", "C")
    return f"{tables} + L·({weights}{biases} + {norms}) + {last}"


# what a linear reads + what it puts out; those of the MLP go either way
_SIDES = {"attn.c_attn": "C + C + 2·kv", "attn.k_proj": "C + kv", "attn.v_proj": "C + kv", "mlp": "C + M"}
_SIDES |= dict.fromkeys(("attn.c_proj", "attn.q_proj", "attn.o_proj"), "C + C")


def method_formulas(c: Shape, method: str, h: dict) -> tuple[str, str]:
    """What is trained and stored, in symbols; h: all hyper-parameters of the method."""
    if method == "hard-prompt":
        return "0", "P"
    if method == "prefix":
        row = "2·L·kv" if h["space"] == "kv" else "L·C"
        return f"P·C + (C + 1)·m + (m + 1)·{row}" if h["prefix_projection"] else f"P·{row}", f"P·{row}"
    if method == "full":
        both = "base"
    elif method == "prompt":
        both = "P·C"
    elif method == "lora":
        both = f"L·r·({' + '.join(_SIDES['mlp' if place.startswith('mlp') else place] for place in h['places'])})"
    elif method == "adapter":
        both = f"{2 if h['placement'] == 'houlsby' else 1}·L·(2·C·m + m + C)"
    else:
        both = f"n·(K·C + {'nh' if h['gate'] == 'head' else 1})"
    return both, both


def derivation(s: Settings, c: Shape) -> dict:
    """{"symbols": {name: value}, "steps": [{"name", "formula", "numbers", "value", "unit"}]}, from the shape to the cost of many tasks."""
    h = settings(c, s.method, s.sizes)
    base, (trained, stored) = accounting.base_parameters(c), accounting.count(c, s.method, **s.sizes)
    each = 8 if s.method == "hard-prompt" else 4  # bytes of a token id, and of a number in float32
    values = symbols(c, h)
    known = values | {"base": base, "trained": trained, "stored": stored, "tasks": s.tasks}
    steps = []

    def step(name: str, formula: str, value: float, unit: str) -> None:
        numbers = re.sub(r"[A-Za-z]+(?![A-Za-z0-9])", lambda m: f"{known[m[0]]:,}", formula)  # all but the name of log10
        steps.append({"name": name, "formula": formula, "numbers": numbers, "value": value, "unit": unit})

    step("base", base_formula(c), base, "parameters")
    formulas = method_formulas(c, s.method, h)
    step("trained", formulas[0], trained, "parameters")
    step("stored for one task", formulas[1], stored, "token ids" if each == 8 else "parameters")
    if s.method != "full":
        if trained > stored:
            step("the part that is kept", "trained / stored", trained / stored, "times as many are trained")
        step("of the base", "100·stored / base", 100 * stored / base, "%")
        step("fewer", "base / stored", base / stored, "times")
        step("orders of magnitude", "log10(base / stored)", math.log10(base / stored), "")
    step(f"{s.tasks:,} whole models", "tasks·base·4", s.tasks * base * 4, "bytes")
    if s.method != "full":
        step(f"what {s.tasks:,} tasks add", f"tasks·stored·{each}", s.tasks * stored * each, "bytes")
        step(f"one base and {s.tasks:,} tasks", f"base·4 + tasks·stored·{each}", base * 4 + s.tasks * stored * each, "bytes")
    if isinstance(c, GPTConfig) and s.method != "hard-prompt":
        cost, full = (trained_cost(s, c, method, h) for method, h in ((s.method, s.sizes), ("full", {})))
        known |= cost | {"full": full["memory"]}
        step("memory to train", "weights + gradients + optimizer + activations", cost["memory"], "bytes")
        if s.method != "full":
            step("beside full fine-tuning", "memory / full", cost["memory"] / full["memory"], "times")
        known |= {"full": full["step"]}
        step("a training step", "forward + backward", cost["step"], "FLOPs")
        if s.method != "full":
            step("beside full fine-tuning", "step / full", cost["step"] / full["step"], "times")
    used = set(re.findall(r"[A-Za-z]+", " ".join((base_formula(c), *formulas))))
    return {"hyperparameters": h, "symbols": {name: values[name] for name in MEANING if name in used}, "steps": steps}


def trained_cost(s: Settings, c: GPTConfig, method: str, h: dict) -> dict[str, int]:
    """The ledger's bytes and operations of a training step by their names, and the sums: memory and step."""
    held, work = accounting.train_bytes(c, method, s.batch_size, s.seq_len, **h), accounting.flops(c, method, s.batch_size, s.seq_len, **h)
    return held._asdict() | work._asdict() | {"memory": sum(held), "step": sum(work)}


def rows_of(s: Settings, c: Shape) -> list[dict]:
    """Every method's ledger; of an encoder-decoder its parameters alone."""
    base, rows = accounting.base_parameters(c), []
    for method in ENCODER_DECODER if isinstance(c, T5Shape) else METHODS:
        h = {name: value for name, value in s.sizes.items() if name in depends_on(method)}
        row = {"method": method, **settings(c, method, h), **accounting.count(c, method, **h)._asdict()}
        if isinstance(c, GPTConfig):
            row |= accounting.ledger(c, method, s.batch_size, s.seq_len, **h)
            row["tasks_bytes"] = accounting.storage_bytes(c, method, s.tasks, **h)
        rows.append(row | {"percent": 100 * row["stored"] / base})
    return rows


def run(s: Settings) -> dict:
    """The answer, ready for JSON. Raises Error for what cannot be counted."""
    c = shape_of(s.model)
    for name in ("tasks", "batch_size", "seq_len"):
        at_least_one(name, getattr(s, name))
    P = settings(c, s.method, s.sizes).get("num_virtual_tokens", 0) if s.method else s.sizes.get("num_virtual_tokens", 0)
    if isinstance(c, GPTConfig) and P + s.seq_len > c.block_size:
        raise Error(f"{P} virtual + {s.seq_len} real tokens do not fit the block size of {c.block_size}")
    answer = derivation(s, c) if s.method else {"rows": rows_of(s, c)}
    return {"settings": asdict(s), "shape": asdict(c), "base_parameters": accounting.base_parameters(c), **answer}


def in_units(n: float) -> str:
    """Bytes as a person says them."""
    scale = min(4, max(0, int(math.log10(max(n, 1)) // 3)))
    return f"{n / 1000**scale:,.{1 if scale else 0}f} {('bytes', 'KB', 'MB', 'GB', 'TB')[scale]}"


def rounded(x: float) -> str:
    """To three digits, or whole; without an exponent."""
    return f"{x:,.{max(0, 2 - math.floor(math.log10(x)))}f}"


def lines(result: dict) -> list[str]:
    """A derivation as text."""
    s = result["settings"]
    meaning = MEANING | ({"L": "layers of the encoder, and of the decoder"} if "buckets" in result["symbols"] else {})
    told = "; ".join(f"{name}\0{value:,}\0{meaning[name].replace(' ', chr(0))}" for name, value in result["symbols"].items())
    batch = f"; B {s['batch_size']}, T {s['seq_len']}" if any(x["unit"] == "FLOPs" for x in result["steps"]) else ""
    text = [f"{s['method']} on {s['model']}, float32{batch}", *(line.replace("\0", " ") for line in textwrap.wrap(told, 110)), ""]
    for x in result["steps"]:
        value = f"{x['value']:,}" if isinstance(x["value"], int) else rounded(x["value"])
        value += f" {x['unit']}".rstrip() + (f" = {in_units(x['value'])}" if x["unit"] == "bytes" else "")
        text.append(f"{x['name']:<26}{x['formula']}")
        text += [f"{'':<24}= {line}" for line in (x["numbers"], value) if line.split()[0] != x["formula"] and line != f"{x['value']:,}"]
    return text


def table(result: dict) -> str:
    """The answer as text."""
    if "steps" in result:
        return "\n".join(lines(result))
    s, rows = result["settings"], result["rows"]
    full = next(r for r in rows if r["method"] == "full")
    short = {"num_virtual_tokens": "P", "r": "r", "bottleneck_size": "m", "adapter_len": "K"}

    def together(r: dict, part: str) -> int:
        return sum(value for name, value in r.items() if name in PARTS[part])

    cells = {
        "method": lambda r: r["method"],
        "size": lambda r: next((f"{letter} {r[name]}" for name, letter in short.items() if name in r), "-"),
        "trained": lambda r: f"{r['trained']:,}",
        "stored": lambda r: f"{r['stored']:,}",
        "% of base": lambda r: rounded(r["percent"]),
    }
    about = f"{s['model']}: {result['base_parameters']:,} parameters"
    if "adapter_bytes" in full:
        about += f"; B {s['batch_size']}, T {s['seq_len']}, float32"
        cells |= {
            "on disk": lambda r: in_units(r["adapter_bytes"]),
            f"{s['tasks']:,} tasks": lambda r: in_units(r["tasks_bytes"]),
            "to train": lambda r: in_units(together(r, "memory")) if r["trained"] else "-",
            "activations": lambda r: in_units(r["train_activations"]) if r["trained"] else "-",
            "step GFLOP": lambda r: f"{together(r, 'step') / 1e9:,.1f}" if r["trained"] else "-",
            "× full": lambda r: f"{together(r, 'step') / together(full, 'step'):.2f}" if r["trained"] else "-",
            "sent": lambda r: in_units(r["wire_2"]) if r["trained"] else "-",
            "token MFLOP": lambda r: f"{r['inference_token_flops'] / 1e6:,.1f}",
            "more": lambda r: f"{r['inference_extra_token_flops'] / 1e6:,.2f}",
        }
    return "\n".join([about, "", *columns(cells, rows)])


PARTS = {  # of the ledger, what is told as one number
    "memory": ("train_weights", "train_gradients", "train_optimizer", "train_activations"),
    "step": ("flops_forward", "flops_backward"),
}
