"""Parameters and costs of every method on a base of any shape, by closed forms (minipeft.accounting).

Nothing is built or measured, so 65 billion parameters take no longer than a million. For one method:
a derivation, each formula in symbols, then with values, then its result. For all methods: a table.
The formulas here are for reading, the results are the ledger's; a test evaluates every printed line.

Columns: parameters trained, stored for one task, stored in % of the base; the adapter on disk, and
many tasks on disk (one base and their adapters; full: as many bases); memory to train, and its
activations; FLOPs of a step, and their ratio to full fine-tuning's; bytes that one of two processes
sends in a step; FLOPs of one more token at inference, and the method's part of them.
"""

import argparse
import math
import re
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path

from .. import accounting
from ..accounting.parameters import ENCODER_DECODER, depends_on, with_defaults
from ..accounting.shapes import PRESETS, SHAPES, T5Shape
from ..checks import Error, at_least_one, shown
from ..config import GPTConfig
from ..files.huggingface import read_base_config
from ..methods import METHODS
from ..runtime.console import Parser
from ..training.flags import add_method_flags
from . import flags
from .measure import cell, columns, if_trained, size_text

AnyShape = GPTConfig | T5Shape
SIZE_FLAGS = {name: [method for method in METHODS if name in depends_on(method)]
              for method in METHODS for name in depends_on(method)}  # hyper-parameter -> its methods

@dataclass(frozen=True)
class ParamsSettings:
    model: str  # a preset or a Hugging Face folder
    method: str | None  # None: all of them
    sizes: dict  # hyper-parameters that were given
    tasks: int
    batch_size: int
    seq_len: int


def add_flags(p: Parser) -> None:
    add = p.add_argument_group("question").add_argument
    add("--model", default="gpt2", metavar="MODEL", help="a Hugging Face folder (its config.json is "
        f"read), or {', '.join([*PRESETS, *SHAPES])}")
    add("--method", help=f"derive one of {', '.join(METHODS)} line by line, instead of the table")
    add("--tasks", type=int, default=1000, metavar="N", help="tasks to store")
    flags.add_batch_flags(p, 8, 128)
    groups = {}
    for name, methods in SIZE_FLAGS.items():
        groups.setdefault(", ".join(methods), []).append(name)
    for methods, names in groups.items():
        add_method_flags(p.add_argument_group(methods), names)


def settings(args: argparse.Namespace) -> ParamsSettings:
    if args.method not in (None, *METHODS):
        raise Error(f"--method must be one of {', '.join(METHODS)}, not {args.method!r}")
    sizes = {name: value for name in SIZE_FLAGS if (value := getattr(args, name)) is not None}
    return ParamsSettings(args.model, args.method, sizes, args.tasks, args.batch_size, args.seq_len)


def shape_of(model: str) -> AnyShape:
    """The shape of a preset, or of a Hugging Face folder (its config.json). Raises Error for others."""
    known = PRESETS | SHAPES
    if model in known:
        return known[model]
    if not Path(model).is_dir():
        raise Error(f"--model must be a Hugging Face folder or one of {', '.join(known)}, "
                    f"not {shown(model)}")
    return read_base_config(Path(model))[0]


MEANING = {
    "L": "layers", "C": "channels", "nh": "heads", "hs": "head size",
    "kv": "channels of the keys, and of the values", "M": "width of the MLP", "V": "vocabulary",
    "N": "positions", "buckets": "relative distances", "P": "virtual tokens",
    "m": "width of the method's layer", "r": "rank", "K": "prompts per layer",
    "n": "layers with prompts",
}


def symbols(c: AnyShape, h: dict) -> dict[str, int]:
    """{symbol: value}; h: all hyper-parameters of the method."""
    if isinstance(c, T5Shape):
        more = {"hs": c.head_size, "M": c.n_inner, "buckets": c.position_buckets}
    else:
        more = {"kv": c.n_kv * c.head_size, "M": c.inner, "N": c.block_size}
    letters = {"num_virtual_tokens": "P", "encoder_hidden_size": "m", "bottleneck_size": "m",
               "r": "r", "adapter_len": "K", "adapter_layers": "n"}
    sizes = {"L": c.n_layer, "C": c.n_embd, "nh": c.n_head, "V": c.vocab_size}
    return sizes | more | {letter: h[name] for name, letter in letters.items() if name in h}


def base_formula(c: AnyShape) -> str:
    """accounting.base_parameters in symbols."""
    if isinstance(c, T5Shape):
        return "2·V·C + 2·buckets·nh + L·(12·C·nh·hs + 6·C·M + 5·C) + 2·C"
    gelu = c.mlp == "gelu"
    tables = ("V·C" if c.tied else "2·V·C") + (" + N·C" if c.position == "learned" else "")
    weights = f"2·C·(C + kv) + {2 if gelu else 3}·C·M"
    all_biases = f" + 3·C + 2·kv + {'M' if gelu else '2·M'}"
    biases = {"none": "", "qkv": " + C + 2·kv", "all": all_biases}[c.bias]
    norms, last = ("4·C", "2·C") if c.norm == "layer" else ("2·C", "C")
    return f"{tables} + L·({weights}{biases} + {norms}) + {last}"


# in + out channels of a linear, in symbols; of the MLP's: C + M
_IN_OUT = {"attn.c_attn": "C + C + 2·kv", "attn.k_proj": "C + kv", "attn.v_proj": "C + kv",
           "attn.c_proj": "C + C", "attn.q_proj": "C + C", "attn.o_proj": "C + C"}


def method_formulas(c: AnyShape, method: str, h: dict) -> tuple[str, str]:
    """Formulas of trained and stored parameters; h: all hyper-parameters of the method."""
    if method == "hard-prompt":
        return "0", "P"
    if method == "prefix":
        row = "2·L·kv" if h["space"] == "kv" else "L·C"
        mlp = f"P·C + (C + 1)·m + (m + 1)·{row}"
        return mlp if h["prefix_projection"] else f"P·{row}", f"P·{row}"
    if method == "lora":
        both = f"L·r·({' + '.join(_IN_OUT.get(place, 'C + M') for place in h['places'])})"
    elif method == "adapter":
        both = f"{2 if h['placement'] == 'houlsby' else 1}·L·(2·C·m + m + C)"
    elif method == "llama-adapter":
        both = f"n·(K·C + {'nh' if h['gate'] == 'head' else 1})"
    else:
        both = {"full": "base", "prompt": "P·C"}[method]
    return both, both


def derivation(s: ParamsSettings, c: AnyShape) -> dict:
    """From the shape to the cost of many tasks: {"hyperparameters", "symbols": {name: value},
    "steps": [{"name", "formula", "numbers", "value", "unit"}]}."""
    h = with_defaults(c, s.method, s.sizes)
    base = accounting.base_parameters(c)
    trained, stored = accounting.count(c, s.method, **s.sizes)
    each = 8 if s.method == "hard-prompt" else 4  # bytes of a token id, and of a float32
    values = symbols(c, h)
    known = values | {"base": base, "trained": trained, "stored": stored, "tasks": s.tasks}
    steps = []

    def step(name: str, formula: str, value: float, unit: str) -> None:
        # every symbol, but not the name of log10
        numbers = re.sub(r"[A-Za-z]+(?![A-Za-z0-9])", lambda m: f"{known[m[0]]:,}", formula)
        steps.append({"name": name, "formula": formula, "numbers": numbers, "value": value,
                      "unit": unit})

    step("base", base_formula(c), base, "parameters")
    formulas = method_formulas(c, s.method, h)
    step("trained", formulas[0], trained, "parameters")
    step("stored for one task", formulas[1], stored, "token ids" if each == 8 else "parameters")
    if s.method != "full":
        if trained > stored:
            step("trained over stored", "trained / stored", trained / stored, "times")
        step("of the base", "100·stored / base", 100 * stored / base, "%")
        step("fewer", "base / stored", base / stored, "times")
        step("orders of magnitude", "log10(base / stored)", math.log10(base / stored), "")
    step(f"{s.tasks:,} whole models", "tasks·base·4", s.tasks * base * 4, "bytes")
    if s.method != "full":
        added = s.tasks * stored * each
        step(f"added by {s.tasks:,} tasks", f"tasks·stored·{each}", added, "bytes")
        step(f"one base and {s.tasks:,} tasks", f"base·4 + tasks·stored·{each}", base * 4 + added,
             "bytes")
    if isinstance(c, GPTConfig) and s.method != "hard-prompt":
        cost, full = training_cost(s, c, s.method, s.sizes), training_cost(s, c, "full", {})
        for part, title, formula, unit in (
                ("memory", "memory to train", "weights + gradients + optimizer + activations", "bytes"),
                ("step", "a training step", "forward + backward", "FLOPs")):
            known |= cost | {"full": full[part]}
            step(title, formula, cost[part], unit)
            if s.method != "full":
                step("beside full fine-tuning", f"{part} / full", cost[part] / full[part], "times")
    used = set(re.findall(r"[A-Za-z]+", " ".join((base_formula(c), *formulas))))
    shown_symbols = {name: values[name] for name in MEANING if name in used}
    return {"hyperparameters": h, "symbols": shown_symbols, "steps": steps}


def training_cost(s: ParamsSettings, c: GPTConfig, method: str, h: dict) -> dict[str, int]:
    """Bytes and FLOPs of a training step by the ledger's names, and their sums: memory and step."""
    held = accounting.train_bytes(c, method, s.batch_size, s.seq_len, **h)
    work = accounting.flops(c, method, s.batch_size, s.seq_len, **h)
    return held._asdict() | work._asdict() | {"memory": sum(held), "step": sum(work)}


def rows_of(s: ParamsSettings, c: AnyShape) -> list[dict]:
    """Every method's ledger; for an encoder-decoder only parameters."""
    base, rows = accounting.base_parameters(c), []
    for method in ENCODER_DECODER if isinstance(c, T5Shape) else METHODS:
        h = {name: value for name, value in s.sizes.items() if name in depends_on(method)}
        row = {"method": method} | with_defaults(c, method, h)
        row |= accounting.count(c, method, **h)._asdict()
        if isinstance(c, GPTConfig):
            row |= accounting.ledger(c, method, s.batch_size, s.seq_len, **h)
            row["tasks_bytes"] = accounting.storage_bytes(c, method, s.tasks, **h)
        rows.append(row | {"percent": 100 * row["stored"] / base})
    return rows


def run(s: ParamsSettings) -> dict:
    """The derivation or the table's rows, ready for JSON. Raises Error for sizes that do not fit."""
    c = shape_of(s.model)
    for name in ("tasks", "batch_size", "seq_len"):
        at_least_one(name, getattr(s, name))
    h = with_defaults(c, s.method, s.sizes) if s.method else s.sizes
    if isinstance(c, GPTConfig):
        flags.check_fits(h.get("num_virtual_tokens", 0), s.seq_len, c)
    answer = derivation(s, c) if s.method else {"rows": rows_of(s, c)}
    return {"settings": asdict(s), "shape": asdict(c),
            "base_parameters": accounting.base_parameters(c), **answer}


def in_units(n: float) -> str:
    """Bytes in the largest fitting unit."""
    scale = min(4, max(0, int(math.log10(max(n, 1)) // 3)))
    return f"{n / 1000**scale:,.{1 if scale else 0}f} {('bytes', 'KB', 'MB', 'GB', 'TB')[scale]}"


def rounded(x: float) -> str:
    """At least three significant digits, without an exponent."""
    return f"{x:,.{max(0, 2 - math.floor(math.log10(x)))}f}"


def lines(result: dict) -> list[str]:
    """A derivation as text."""
    s, steps, symbols = result["settings"], result["steps"], result["symbols"]
    meaning = dict(MEANING)
    if "buckets" in symbols:
        meaning["L"] = "layers of the encoder, and of the decoder"
    # \0 for a space inside an entry, where no line may break
    entries = (f"{name} {value:,} {meaning[name]}".replace(" ", "\0") for name, value in symbols.items())
    legend = (line.replace("\0", " ") for line in textwrap.wrap("; ".join(entries), 110))
    is_trained = any(x["unit"] == "FLOPs" for x in steps)
    batch = f"; B {s['batch_size']}, T {s['seq_len']}" if is_trained else ""
    text = [f"{s['method']} on {s['model']}, float32{batch}", *legend, ""]
    for x in steps:
        number = f"{x['value']:,}" if isinstance(x["value"], int) else rounded(x["value"])
        value = f"{number} {x['unit']}".rstrip()
        if x["unit"] == "bytes":
            value += f" = {in_units(x['value'])}"
        text.append(f"{x['name']:<26}{x['formula']}")
        text += [f"{'':<24}= {line}" for line in (x["numbers"], value)
                 if line.split()[0] != x["formula"] and line != f"{x['value']:,}"]
    return text


def table(result: dict) -> str:
    """The result as aligned text."""
    if "steps" in result:
        return "\n".join(lines(result))
    s, rows = result["settings"], result["rows"]
    full = next(r for r in rows if r["method"] == "full")

    def memory(r: dict) -> int:
        return sum(r[f"train_{part}"] for part in accounting.TrainBytes._fields)

    def step(r: dict) -> int:
        return r["flops_forward"] + r["flops_backward"]

    cells = {  # heading: cell of a row
        "method": cell("method", "{}"),
        "size": size_text,
        "trained": cell("trained", "{:,}"),
        "stored": cell("stored", "{:,}"),
        "% of base": lambda r: rounded(r["percent"]),
    }
    about = f"{s['model']}: {result['base_parameters']:,} parameters"
    if "adapter_bytes" in full:
        about += f"; B {s['batch_size']}, T {s['seq_len']}, float32"
        cells |= {
            "on disk": lambda r: in_units(r["adapter_bytes"]),
            f"{s['tasks']:,} tasks": lambda r: in_units(r["tasks_bytes"]),
            "to train": if_trained(lambda r: in_units(memory(r))),
            "activations": if_trained(lambda r: in_units(r["train_activations"])),
            "step GFLOP": if_trained(lambda r: f"{step(r) / 1e9:,.1f}"),
            "× full": if_trained(lambda r: f"{step(r) / step(full):.2f}"),
            "sent": if_trained(lambda r: in_units(r["wire_2"])),
            "token MFLOP": cell("inference_token_flops", "{:,.1f}", 1e6),
            "more": cell("inference_extra_token_flops", "{:,.2f}", 1e6),
        }
    return "\n".join([about, "", *columns(cells, rows)])
