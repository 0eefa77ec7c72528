"""A training step on one frozen base in float32, bfloat16, int8 and NF4: its bytes and its time.

A base with random weights of the preset's shape is written to a folder, in bfloat16. For each dtype
a new process opens it and trains two steps: the rise of its resident memory above the process
before loading stands beside the ledger's sum, and the bytes of the weights and of what autograd
saves for backward beside its parts. Then steps on all of them are interleaved in this process,
eager and (--compile) compiled. Quote the ratios to bfloat16.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from .. import accounting
from ..accounting.base_weights import BYTES, base_weight_bytes
from ..accounting.shapes import PRESETS
from ..attach import Adapted, adapt
from ..checks import Error, one_of
from ..config import GPTConfig, linears
from ..files.huggingface import base_tensors, write_base
from ..methods import METHODS
from ..model import GPT
from ..parts.quantised import QUANTISED
from ..parts.quantised_base import BASE_DTYPES, dtype_named
from ..runtime.compiling import can_compile
from ..runtime.console import Parser
from ..runtime.memory import resident_peak
from ..runtime.profiling import card, saved_bytes
from . import flags
from .measure import (
    MS,
    cell,
    columns,
    header,
    in_new_process,
    milliseconds,
    peak_above,
    restart_peak,
    time_all,
)

FIRST = GPTConfig(vocab_size=64, block_size=64, n_layer=1, n_head=2, n_embd=64)  # loads the libraries' code
KNOWN = [name for name, method in METHODS.items() if method.trains() and "num_virtual_tokens" in method.sizes()]


@dataclass(frozen=True, kw_only=True)
class QuantisedSettings(flags.WorkSettings):
    method: str
    num_virtual_tokens: int
    base_dtypes: tuple[str, ...]
    compile: bool


def add_flags(p: Parser) -> None:
    flags.add_base_flags(p, "gpt2")
    add = p.add_argument_group("what is compared").add_argument
    add("--base-dtypes", nargs="+", default=list(BASE_DTYPES), choices=BASE_DTYPES, metavar="TYPE",
        help=f"of the frozen base: {', '.join(BASE_DTYPES)} (default: all)")
    add("--method", default="prefix", help=f"one of {', '.join(KNOWN)}")
    add("--num-virtual-tokens", type=int, default=20, metavar="P", help="its length")
    flags.add_batch_flags(p, 4, 128)
    add = flags.add_machine_flags(p, 5, "timed steps of each").add_argument
    add("--compile", action=argparse.BooleanOptionalAction, default=False,
        help="time compiled blocks, too")


def settings(args: argparse.Namespace) -> QuantisedSettings:
    config, P = PRESETS[args.preset], args.num_virtual_tokens
    one_of("--method", args.method, KNOWN)
    if P < 1:
        raise Error(f"--num-virtual-tokens must be at least 1, not {P}")
    flags.check_fits(P, args.seq_len, config)
    return flags.from_flags(QuantisedSettings, args, config)


def write_random_base(config: GPTConfig, folder: str, seed: int) -> None:
    """A Hugging Face folder in bfloat16, initialised as GPT-2: matrices N(0, 0.02²), norms 1."""
    g = torch.Generator().manual_seed(seed)
    tensors = {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in base_tensors(config).items()}
    for name, t in tensors.items():
        if t.dim() == 2:
            t.normal_(std=0.02, generator=g)
        else:
            t.fill_(float(name.endswith("weight")))
    write_base(config, tensors, folder)


class Step:
    """A training step of the method on the base of a folder."""

    def __init__(self, s: QuantisedSettings, folder: str | Path, base_dtype: str,
                 config: GPTConfig):
        torch.manual_seed(s.seed)
        base = GPT.from_pretrained(folder, dtype_named(base_dtype)).to(s.device)
        self.model: Adapted = adapt(base, s.method, num_virtual_tokens=s.num_virtual_tokens)
        self.optimizer = torch.optim.AdamW(self.model.trainable_parameters(), lr=1e-4)
        shape = s.batch_size, s.seq_len + 1
        tokens = torch.randint(config.vocab_size, shape,
                               generator=torch.Generator().manual_seed(s.seed))
        self.idx, self.targets = (t.contiguous().to(s.device) for t in (tokens[:, :-1], tokens[:, 1:]))

    def loss(self) -> Tensor:
        return self.model.loss(self.idx, self.targets)

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        self.optimizer.step()

    def compiled(self, on: bool) -> Callable[[], None]:
        """This step with compiled or eager blocks."""

        def step() -> None:
            self.model.compile_blocks(on)
            self()

        return step


def measured_bytes(s: QuantisedSettings, first: str, folder: str, base_dtype: str) -> dict:
    """Bytes of two steps on the base of `folder`, in a new process: weights, saved for backward,
    and the peak above the process before loading, which has done the same on the small base of
    `first`."""
    device = torch.device(s.device)
    half = FIRST.block_size // 2
    small = replace(s, num_virtual_tokens=min(s.num_virtual_tokens, half),
                    seq_len=min(s.seq_len, half))
    Step(small, first, base_dtype, FIRST)()
    restart_peak(device)
    before = resident_peak()
    step = Step(s, folder, base_dtype, s.config)
    step(), step()
    peak = peak_above(before, device)
    base = step.model.base
    matrices = {f"h.{i}.{name}." for i in range(s.config.n_layer) for name in linears(s.config)}
    in_matrices = sum(p.nbytes for name, p in base.named_parameters()
                      if any(name.startswith(m) for m in matrices) and not name.endswith(".bias"))
    return {"weight_bytes": sum(p.nbytes for p in base.parameters()), "matrix_bytes": in_matrices,
            "saved_bytes": saved_bytes(step.loss, step.model.parameters()), "peak_bytes": peak}


def ledger(s: QuantisedSettings, base_dtype: str) -> dict:
    """The same bytes by closed forms."""
    quantised = base_dtype if base_dtype in QUANTISED else None
    said = accounting.train_bytes(s.config, s.method, s.batch_size, s.seq_len, base_bytes=BYTES[base_dtype],
                                  quantised=quantised, num_virtual_tokens=s.num_virtual_tokens)
    return {"ledger_weight_bytes": base_weight_bytes(s.config, base_dtype), "ledger_saved_bytes": said.activations,
            "ledger_bytes": sum(said)}


def run(s: QuantisedSettings) -> dict:
    """{"card", "settings", "rows"}, ready for JSON."""
    device, rows = torch.device(s.device), []
    elements = s.config.n_layer * sum(n_in * n_out for n_in, n_out in linears(s.config).values())
    can = s.compile and can_compile(device.type)
    with tempfile.TemporaryDirectory() as folder, tqdm(total=len(s.base_dtypes) * (1 + s.steps), unit="step",
                                                       desc="memory", dynamic_ncols=True) as bar:
        first, whole = (str(Path(folder, name)) for name in ("first", "base"))
        in_new_process(write_random_base, FIRST, first, s.seed)
        in_new_process(write_random_base, s.config, whole, s.seed)
        for base_dtype in s.base_dtypes:
            found = in_new_process(measured_bytes, s, first, whole, base_dtype)
            rows.append({"base_dtype": base_dtype, **found, **ledger(s, base_dtype),
                         "bits": 8 * found["matrix_bytes"] / elements})
            bar.update()
        bar.set_description("warm-up")
        steps = [Step(s, whole, base_dtype, s.config) for base_dtype in s.base_dtypes]
    works = [[step.compiled(on) for on in ((False, True) if can else (False,))] for step in steps]
    for work in works:
        for step in work:
            milliseconds(step, device)
    with tqdm(total=len(works) * s.steps, unit="step", desc="interleaved steps", dynamic_ncols=True) as bar:
        times = time_all(works, s.steps, device, bar)
    like = rows[s.base_dtypes.index("bfloat16")] if "bfloat16" in s.base_dtypes else None
    for row, (eager, *compiled) in zip(rows, times, strict=True):
        row |= {"eager_ms": eager, "compiled_ms": compiled[0] if compiled else None}
    for row in rows:
        for how in ("eager", "compiled"):
            both = like and row[f"{how}_ms"]
            row[f"{how}_ratio"] = row[f"{how}_ms"]["median"] / like[f"{how}_ms"]["median"] if both else None
    return {"card": card(device), "settings": asdict(s), "rows": rows}


def table(result: dict) -> str:
    """The result as aligned text."""
    s = result["settings"]
    setting = (f"; {s['method']}, P {s['num_virtual_tokens']}; B {s['batch_size']}, T {s['seq_len']}, {s['steps']} "
               f"steps, seed {s['seed']}")
    mb = {"scale": 1e6, "missing": "?"}
    cells = {  # heading: cell of a row
        "base in": cell("base_dtype", "{}"),
        "bits a weight": cell("bits", "{:.3f}"),
        "base MB": cell("weight_bytes", "{:,.1f}", 1e6), "ledger": cell("ledger_weight_bytes", "{:,.1f}", 1e6),
        "saved MB": cell("saved_bytes", "{:,.1f}", 1e6), "ledger ": cell("ledger_saved_bytes", "{:,.1f}", 1e6),
        "peak MB": cell("peak_bytes", "{:,.0f}", **mb), "ledger  ": cell("ledger_bytes", "{:,.0f}", 1e6),
        "× ledger": lambda r: "?" if r["peak_bytes"] is None else f"{r['peak_bytes'] / r['ledger_bytes']:.2f}",
        "eager ms": cell("eager_ms", MS), "× bfloat16": cell("eager_ratio", "{:.2f}"),
        "compiled ms": cell("compiled_ms", MS), "× bfloat16 ": cell("compiled_ratio", "{:.2f}"),
    }
    return "\n".join([*header(result, setting), "", *columns(cells, result["rows"])])
