"""Parameters and costs of every method on a base of any shape, by closed forms.

Nothing is built or measured, so 65 billion parameters take no longer than a million. For one
method: a derivation, each formula in symbols, then with values, then its result. Else a table of
all methods that the base can have. The formulas are the ledger's own closed forms, run on symbols;
a test evaluates every printed line.

Columns: parameters trained, stored for one task, stored in % of the base; the adapter on disk, and
many tasks on disk (one base and their adapters; full: as many bases); memory to train, and its
activations; FLOPs of a step, and their ratio to full fine-tuning's; bytes that each of two
processes hands to collectives in a step; FLOPs of one more token at inference, and the method's
part of them.
"""

import argparse
import math
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path

from .. import accounting
from ..accounting.base_weights import BYTES
from ..accounting.parameters import declared_of_any, depends_on, elements, methods_that_fit
from ..accounting.shapes import PRESETS, SHAPES, T5Shape
from ..checks import Error, at_least_one, did_you_mean, shown
from ..config import GPTConfig
from ..files.huggingface import read_base_config
from ..formulas import symbols
from ..methods import METHODS, WHOLE
from ..parts.quantised import QUANTISED
from ..runtime.console import Parser, local_path
from ..training.flags import ALL_FLAGS, METHOD_FLAGS, Flag, add_method_flags
from . import flags
from .measure import cell, columns, if_trained, size_text

AnyShape = GPTConfig | T5Shape
BATCH_SIZE, SEQ_LEN = 8, 128  # of the training step that is counted
SIZE_FLAGS = {name: methods for name in ALL_FLAGS  # hyper-parameter -> the methods whose cost depends on it
              if (methods := [method for method in METHODS if name in depends_on(method)])}


@dataclass(frozen=True)
class ParamsSettings:
    model: str  # a preset or a Hugging Face folder
    method: str | None  # None: all of them
    sizes: dict  # hyper-parameters that were given
    tasks: int
    batch_size: int
    seq_len: int
    base_dtype: str = "float32"


def add_flags(p: Parser) -> None:
    add = p.add_argument_group("question").add_argument
    add("--model", default="gpt2", metavar="MODEL", type=local_path,
        help=f"a Hugging Face folder (its config.json is read), or {', '.join([*PRESETS, *SHAPES])}")
    add("--method", help=f"derive one of {', '.join(METHODS)} line by line, instead of the table")
    add("--tasks", type=int, default=1000, metavar="N", help="tasks to store")
    flags.add_batch_flags(p, BATCH_SIZE, SEQ_LEN)
    add("--base-dtype", default="float32", choices=list(BYTES), metavar="TYPE",
        help=f"of a frozen base in the memory to train: {', '.join(BYTES)}")
    groups: dict[str, dict[str, Flag]] = {}
    for name, methods in SIZE_FLAGS.items():
        helps = dict.fromkeys(METHOD_FLAGS[method][name].settings["help"] for method in methods
                              if name in METHOD_FLAGS[method])
        flag = Flag(name, ALL_FLAGS[name].settings | {"help": "; ".join(helps)})  # defaults may differ
        groups.setdefault(", ".join(methods), {})[name] = flag
    for methods, named in groups.items():
        add_method_flags(p.add_argument_group(methods), named)


def settings(args: argparse.Namespace) -> ParamsSettings:
    if args.method not in (None, *METHODS):
        raise Error(f"--method must be one of {', '.join(METHODS)}, not {args.method!r}"
                    f"{did_you_mean(args.method, METHODS)}")
    sizes = {name: value for name in SIZE_FLAGS if (value := getattr(args, name)) is not None}
    return ParamsSettings(args.model, args.method, sizes, args.tasks, args.batch_size, args.seq_len,
                          args.base_dtype)


def shape_of(model: str) -> AnyShape:
    """The shape of a preset or of a Hugging Face folder (config.json). Raises Error for others."""
    known = PRESETS | SHAPES
    if model in known:
        return known[model]
    if not Path(model).is_dir():
        raise Error(f"--model must be a Hugging Face folder or one of {', '.join(known)}, "
                    f"not {shown(model)}")
    return read_base_config(Path(model))[0]


def derivation(s: ParamsSettings, c: AnyShape) -> dict:
    """From the shape to the cost of many tasks: {"hyperparameters", "symbols": {name: value},
    "steps": [{"name", "formula", "numbers", "value", "unit"}]}."""
    d, shape = declared_of_any(c, s.method, s.sizes), symbols.SymbolicShape(c)
    sizes, values = symbols.symbols_of(d.method, d.sizes)
    values |= shape.values()
    full, each = not d.method.freezes_base, d.shapes.each
    base = symbols.by_layers(accounting.base_parameters(shape))
    trained = stored = symbols.symbol("base")
    if not full:
        shapes = d.method.shapes(shape, **sizes)
        trained, stored = (symbols.factored(elements(shape, shapes, tensors))
                           for tensors in (shapes.trained, shapes.stored))
    steps, known = [], dict(values)

    def step(name: str, formula, unit: str, symbol: str = "") -> None:
        """Print a formula with its value, which `symbol` stands for from then on."""
        value = symbols.value(formula, known)
        steps.append({"name": name, "formula": symbols.text(formula), "numbers": symbols.numbers(formula, known),
                      "value": value, "unit": unit})
        known.update({symbol: value} if symbol else {})

    step("base", base, "parameters", "base")
    step("trained", trained, "parameters", "trained")
    step("stored for one task", stored, "token ids" if each == 8 else "parameters", "stored")
    b, one, n = (symbols.symbol(name) for name in ("base", "stored", "tasks"))
    known["tasks"] = s.tasks
    if not full:
        if known["trained"] > known["stored"]:
            step("trained over stored", symbols.symbol("trained") / one, "times")
        step("of the base", 100 * one / b, "%")
        step("fewer", b / one, "times")
        step("orders of magnitude", symbols.log10(b / one), "")
    step(f"{s.tasks:,} whole models", n * b * 4, "bytes")
    if not full:
        step(f"added by {s.tasks:,} tasks", n * one * each, "bytes")
        step(f"one base and {s.tasks:,} tasks", b * 4 + n * one * each, "bytes")
    if isinstance(c, GPTConfig) and d.shapes.trained:
        cost, of_full = training_cost(s, c, s.method, s.sizes), training_cost(s, c, WHOLE, {})
        known |= cost
        for part, title, formula, unit in (
                ("memory", "memory to train", accounting.TrainBytes._fields, "bytes"),
                ("step", "a training step", accounting.Flops._fields, "FLOPs")):
            known[WHOLE] = of_full[part]
            step(title, sum(map(symbols.symbol, formula)), unit, part)
            if not full:
                step("beside full fine-tuning", symbols.symbol(part) / symbols.symbol(WHOLE),
                     "times")
    used = {str(x) for formula in (base, trained, stored) for x in formula.free_symbols}
    return {"hyperparameters": d.sizes, "symbols": {x: values[x] for x in symbols.GLOSSARY if x in used & set(values)},
            "steps": steps}


def training_cost(s: ParamsSettings, c: GPTConfig, method: str, h: dict) -> dict[str, int]:
    """Bytes and FLOPs of a training step by the ledger's names, and their sums: memory and step."""
    held = memory_to_train(s, c, method, h)
    work = accounting.flops(c, method, s.batch_size, s.seq_len, **h)
    return held._asdict() | work._asdict() | {"memory": sum(held), "step": sum(work)}


def memory_to_train(s: ParamsSettings, c: GPTConfig, method: str, h: dict) -> accounting.TrainBytes:
    """accounting.train_bytes with a frozen base in s.base_dtype; full fine-tuning's is float32."""
    dtype = s.base_dtype if METHODS[method].freezes_base else "float32"
    quantised = dtype if dtype in QUANTISED else None
    return accounting.train_bytes(c, method, s.batch_size, s.seq_len, base_bytes=BYTES[dtype],
                                  quantised=quantised, **h)


def sizes_of(s: ParamsSettings, method: str) -> dict:
    """The given hyper-parameters that a method's cost depends on."""
    return {name: value for name, value in s.sizes.items() if name in depends_on(method)}


def rows_of(s: ParamsSettings, c: AnyShape) -> list[dict]:
    """Every method's ledger; for an encoder-decoder only parameters."""
    base, rows = accounting.base_parameters(c), []
    for method in methods_that_fit(c):
        h = sizes_of(s, method)
        row = {"method": method} | METHODS[method].with_defaults(c, h)
        row |= accounting.count(c, method, **h)._asdict()
        if isinstance(c, GPTConfig):
            row |= accounting.ledger(c, method, s.batch_size, s.seq_len, **h)
            row |= {f"train_{part}": n for part, n in memory_to_train(s, c, method, h)._asdict().items()}
            row["tasks_bytes"] = accounting.storage_bytes(c, method, s.tasks, **h)
        rows.append(row | {"percent": 100 * row["stored"] / base})
    return rows


def run(s: ParamsSettings) -> dict:
    """The derivation or the table's rows, for JSON. Raises Error for sizes that do not fit."""
    c = shape_of(s.model)
    for name in ("tasks", "batch_size", "seq_len"):
        at_least_one(name, getattr(s, name))
    if s.base_dtype != "float32" and not isinstance(c, GPTConfig):
        raise Error(f"--base-dtype {s.base_dtype} needs a GPT's blocks: of {s.model} only parameters are counted")
    h = declared_of_any(c, s.method, s.sizes).sizes if s.method else s.sizes
    if not isinstance(c, GPTConfig) and (s.batch_size, s.seq_len) != (BATCH_SIZE, SEQ_LEN):
        raise Error(f"--batch-size and --seq-len are of a GPT's step: of {s.model} only parameters are counted")
    if s.method and s.base_dtype != "float32" and not METHODS[s.method].trains():
        raise Error(f"--base-dtype {s.base_dtype} is of the memory to train, and {s.method} trains nothing")
    if s.method and s.base_dtype != "float32" and not METHODS[s.method].freezes_base:
        raise Error(f"--base-dtype {s.base_dtype} is for a frozen base: {s.method} trains every weight, in float32")
    if isinstance(c, GPTConfig):
        every = [h] if s.method else [METHODS[name].with_defaults(c, sizes_of(s, name)) for name in methods_that_fit(c)]
        flags.check_fits(max(sizes.get("num_virtual_tokens") or 0 for sizes in every), s.seq_len, c)
    left_out = [method for method in METHODS if method not in methods_that_fit(c)]
    answer = derivation(s, c) if s.method else {"rows": rows_of(s, c), "left_out": left_out}
    weights = accounting.base_weight_bytes(c, s.base_dtype) if isinstance(c, GPTConfig) else None
    return {"settings": asdict(s), "shape": asdict(c), "base_parameters": accounting.base_parameters(c),
            "base_weight_bytes": weights, **answer}


def in_units(n: float) -> str:
    """Bytes in the largest fitting unit."""
    names, scale = ("bytes", "KB", "MB", "GB", "TB"), 0
    while scale < len(names) - 1 and n / 1000**scale >= (999.95 if scale else 1000):  # shown as 1,000
        scale += 1
    return f"{n / 1000**scale:,.{1 if scale else 0}f} {names[scale]}"


def rounded(x: float) -> str:
    """At least three significant digits, without an exponent."""
    return f"{x:,.{max(0, 2 - math.floor(math.log10(abs(x)))) if x else 0}f}"


def lines(result: dict) -> list[str]:
    """A derivation as text."""
    s, steps, values = result["settings"], result["steps"], result["symbols"]
    meaning = dict(symbols.GLOSSARY)
    for name, spec in METHODS[s["method"]].hyperparameters.items():
        if spec.symbol and name in result["hyperparameters"]:
            meaning[spec.symbol] = spec.help.partition(" (")[0]
    if "buckets" in values:
        meaning["L"] = "layers of the encoder, and of the decoder"
    # \0 for a space inside an entry, where no line may break
    entries = (f"{name} {value:,} {meaning[name]}".replace(" ", "\0") for name, value in values.items())
    legend = (line.replace("\0", " ") for line in textwrap.wrap("; ".join(entries), 110))
    is_trained = any(x["unit"] == "FLOPs" for x in steps)
    batch = f"; B {s['batch_size']}, T {s['seq_len']}" if is_trained else ""
    dtype = s["base_dtype"]
    dtype = dtype if dtype == "float32" else f"memory with the base in {dtype}, files in float32"
    text = [f"{s['method']} on {s['model']}, {dtype}{batch}", *legend, ""]
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
    full = next(r for r in rows if not METHODS[r["method"]].freezes_base)

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
        about += f"; B {s['batch_size']}, T {s['seq_len']}, "
        about += "float32" if s["base_dtype"] == "float32" else (
            f"memory with the base in {s['base_dtype']} ({in_units(result['base_weight_bytes'])}), files in float32")
        cells |= {
            "on disk": lambda r: in_units(r["adapter_bytes"]),
            f"{s['tasks']:,} tasks": lambda r: in_units(r["tasks_bytes"]),
            "to train": if_trained(lambda r: in_units(memory(r))),
            "activations": if_trained(lambda r: in_units(r["train_activations"])),
            "step GFLOP": if_trained(lambda r: f"{step(r) / 1e9:,.1f}"),
            "× full": if_trained(lambda r: f"{step(r) / step(full):.2f}"),
            "to collectives": if_trained(lambda r: in_units(r["wire_2"])),
            "token MFLOP": cell("inference_token_flops", "{:,.1f}", 1e6),
            "more": cell("inference_extra_token_flops", "{:,.2f}", 1e6),
        }
    left_out = ", ".join(result["left_out"])
    without = [f"left out, not possible on this base (--method says why): {left_out}"] if left_out else []
    return "\n".join([about, *without, "", *columns(cells, rows)])
