"""Cost of every method, beside full fine-tuning: parameters, bytes, time of a step.

Methods are interleaved step by step in one process, so a machine that slows down slows all of them:
quote the ratios. Peak memory is measured in a new process per row. minipeft/accounting explains why
memory shrinks far and time little, however few parameters are trained.
"""

import argparse
import copy
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..accounting import count, step_flops
from ..accounting.parameters import declared, methods_that_fit
from ..accounting.shapes import PRESETS
from ..attach import Adapted
from ..attention import faster
from ..checks import Error, shown
from ..methods import METHODS, WHOLE
from ..model import GPT
from ..runtime.compiling import can_compile
from ..runtime.console import Parser
from ..runtime.profiling import card, saved_bytes, synchronize
from . import flags
from .attention import attention_of, forward_backward
from .measure import MS, MatmulRate, cell, columns, header, if_trained, milliseconds, peak_bytes, size_text, time_all


@dataclass(frozen=True, kw_only=True)
class CostSettings(flags.WorkSettings):
    methods: tuple[str, ...]
    num_virtual_tokens: tuple[int, ...]
    dtype: str
    compile: bool


def add_flags(p: Parser) -> None:
    flags.add_base_flags(p, "nano")
    add = p.add_argument_group("methods").add_argument
    add("--methods", nargs="+", metavar="METHOD",
        help=f"to compare with {WHOLE}, which always runs (default: all that the base can have)")
    add("--num-virtual-tokens", type=int, nargs="+", default=[8, 32, 128], metavar="P",
        help="lengths of the methods that have virtual tokens (one that trains nothing: the shortest)")
    flags.add_batch_flags(p, 8, 128)
    add = flags.add_machine_flags(p, 20, "timed steps of each method").add_argument
    add("--dtype", default="float32", choices=flags.DTYPES, help="of the matmuls, by autocast")
    add("--compile", action=argparse.BooleanOptionalAction, default=False,
        help="torch.compile the blocks; its seconds have a column")


def settings(args: argparse.Namespace) -> CostSettings:
    config = PRESETS[args.preset]
    args.methods = args.methods or [m for m in methods_that_fit(config) if METHODS[m].freezes_base]
    return flags.from_flags(CostSettings, args, config)


def rows_of(s: CostSettings) -> list[tuple[str, dict]]:
    """(method, hyper-parameters) of every row: full; methods with virtual tokens at every length,
    or the shortest if they train nothing; others at their default size. Raises Error if one does
    not fit the base."""
    if min(s.num_virtual_tokens) < 1:
        raise Error(f"num_virtual_tokens must be 1 or more, not {min(s.num_virtual_tokens)}")
    rows: list[tuple[str, dict]] = [(WHOLE, {})]
    lengths = list(dict.fromkeys(s.num_virtual_tokens))
    for method in dict.fromkeys(s.methods):
        m = declared(s.config, method, {}).method
        if "num_virtual_tokens" in m.sizes():
            rows += [(method, {"num_virtual_tokens": P}) for P in (lengths if m.trains() else [min(lengths)])]
        elif m.freezes_base:
            default = m.with_defaults(s.config, {})
            size = next((name for name in default if m.hyperparameters[name].symbol), None)
            rows.append((method, {} if size is None else {size: default[size]}))
    flags.check_fits(longest_prefix(rows), s.seq_len, s.config)
    return rows


def longest_prefix(rows: list[tuple[str, dict]]) -> int:
    return max(h.get("num_virtual_tokens", 0) for _, h in rows)


class Contestant:
    """A model with one method, its optimizer, and its batch."""

    def __init__(self, s: CostSettings, method: str, hyperparameters: dict, base: GPT):
        self.device, self.dtype = torch.device(s.device), getattr(torch, s.dtype)
        self.trains = METHODS[method].trains()
        self.model = Adapted(base, METHODS[method].example(base, **hyperparameters))
        if self.trains:
            self.optimizer = torch.optim.AdamW(self.model.trainable_parameters(), lr=1e-4,
                                               fused=True)
        self.model.compile_blocks(s.compile)
        g = torch.Generator().manual_seed(s.seed)
        tokens = torch.randint(s.config.vocab_size, (s.batch_size, s.seq_len + 1), generator=g).to(self.device)
        self.idx, self.targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def forward_loss(self) -> Tensor:
        with self.autocast():
            return self.model.loss(self.idx, self.targets)

    def train_step(self) -> None:
        """One optimizer step, if the method trains something."""
        if self.trains:
            self.optimizer.zero_grad(set_to_none=True)
            self.forward_loss().backward()
            self.optimizer.step()

    def sums(self) -> dict[str, float]:
        """The sum of each trained tensor, which a step changes."""
        return {name: float(p.detach().sum(dtype=torch.float64))
                for name, p in self.model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def inference(self) -> Tensor:
        with self.autocast():
            return self.model(self.idx)

    def optimizer_bytes(self) -> int:
        states = self.optimizer.state.values() if self.trains else ()
        return sum(t.nbytes for state in states for t in state.values() if isinstance(t, Tensor))

    def stored_bytes(self) -> int:
        """Bytes on disk for one task: the adapter folder as written, or (full) every weight."""
        if not self.model.method.freezes_base:
            return sum(p.nbytes for p in self.model.trainable_parameters())
        with tempfile.TemporaryDirectory() as folder:
            self.model.save(folder)
            return sum(f.stat().st_size for f in Path(folder).iterdir())


def train_two_steps(s: CostSettings, method: str, hyperparameters: dict) -> None:
    """The work of the peak-memory process. Eager: a compiler's own memory is not the method's."""
    torch.manual_seed(s.seed)
    eager, base = replace(s, compile=False), GPT(s.config).to(s.device)
    contestant = Contestant(eager, method, hyperparameters, base)
    contestant.train_step()
    contestant.train_step()
    synchronize(contestant.device)


def check_attention(s: CostSettings, rows: list[tuple[str, dict]] | None = None) -> dict[str, float]:
    """Errors of the attention that the model runs, and of its gradients, on two rows of the bench's
    shape and dtype: the largest difference to the textbook in float64, over its largest value.
    Raises Error if one is above rounding.
    """
    c, dtype, device = s.config, getattr(torch, s.dtype), torch.device(s.device)
    P, B = longest_prefix(rows or rows_of(s)), min(2, s.batch_size)
    g = torch.Generator().manual_seed(s.seed)
    sizes = [(B, c.n_head, s.seq_len), *[(B, c.n_kv, s.seq_len)] * 2, *[(1, c.n_kv, P)] * 2]
    given = [torch.randn(*size, c.head_size, generator=g).to(dtype) for size in sizes]
    upstream = torch.randn(given[0].shape, generator=g).to(dtype)

    def results(backend: str, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        inputs = [x.to(device, dtype).requires_grad_() for x in given]
        tensors = forward_backward(inputs, upstream.to(device, dtype), attention_of(backend))
        return [x.to("cpu", torch.float64) for x in tensors]

    backend = faster(given[0].to(device), compiling=True) if s.compile else "auto"
    exact = results("reference", torch.device("cpu"), torch.float64)
    names = ("output", "dq", "dk", "dv", "dprefix_k", "dprefix_v")[: len(exact)]
    errors = {name: float((a - b).abs().max()) / (float(b.abs().max()) or 1.0)  # one key: its gradient is 0
              for name, a, b in zip(names, results(backend, device, dtype), exact, strict=True)}
    bound = 1e-4 if dtype == torch.float32 else 5e-2
    if not all(e <= bound for e in errors.values()):
        raise Error(f"attention is wrong: relative errors {errors} exceed {bound:g}")
    return errors


def run(s: CostSettings, rows: list[tuple[str, dict]] | None = None) -> dict:
    """{"card", "settings", "attention", "rate", "rows"}, ready for JSON.

    rows: (method, hyper-parameters), instead of those of the settings.
    """
    rows, device = rows or rows_of(s), torch.device(s.device)
    errors = check_attention(s, rows)
    rate = MatmulRate(getattr(torch, s.dtype), device)
    s = replace(s, compile=s.compile and can_compile(device.type))
    with tqdm(total=len(rows) * (2 + s.steps), unit="step", desc="peak memory", dynamic_ncols=True) as bar:
        peaks = []
        for method, h in rows:
            peaks.append(peak_bytes(device, train_two_steps, s, method, h) if METHODS[method].trains() else None)
            bar.update()
        torch.manual_seed(s.seed)
        frozen = GPT(s.config).to(device)
        contestants = [Contestant(s, m, h, copy.deepcopy(frozen) if m == WHOLE else frozen) for m, h in rows]
        saved, first = [], []
        bar.set_description("warm-up")
        for c in contestants:
            before = c.sums()
            first.append(milliseconds(c.train_step, device) + milliseconds(c.inference, device))  # compiles
            c.train_step()
            if still := [name for name, x in c.sums().items() if x == before[name]]:
                raise Error(f"{c.model.method.name}: two training steps leave {shown(still)} unchanged")
            saved.append(saved_bytes(c.forward_loss, c.model.parameters()) if c.trains else None)
            bar.update()
        bar.set_description("interleaved steps")
        calls = [[c.train_step, c.inference] for c in contestants]
        times = time_all(calls, s.steps, device, bar, rate)

    results = []
    full_step, full_forward = (ms["median"] for ms in times[0])
    for i, (method, h) in enumerate(rows):
        c, (step, forward) = contestants[i], times[i]
        trained = sum(p.numel() for p in c.model.trainable_parameters())
        needed = step_flops(s.config, method, s.batch_size, s.seq_len, **h) if c.trains else None
        timed = (step["median"] if c.trains else 0) + forward["median"]
        results.append({
            "method": method, **h, "trained": trained,
            "stored": count(s.config, method, **h).stored,
            "percent": 100 * trained / sum(p.numel() for p in c.model.parameters()),  # as PEFT prints it
            "adapter_bytes": c.stored_bytes(), "optimizer_bytes": c.optimizer_bytes(),
            "saved_bytes": saved[i], "peak_bytes": peaks[i],
            "step_ms": step if c.trains else None,
            "tokens_per_s": 1000 * s.batch_size * s.seq_len / step["median"] if c.trains else None,
            "step_against_full": step["median"] / full_step if c.trains else None,
            "step_against_floor": step["median"] / 1000 * rate.value / needed if c.trains else None,
            "forward_ms": forward, "forward_against_full": forward["median"] / full_forward,
            "compile_s": max(0.0, first[i] - timed) / 1000 if s.compile else None,
        })
    return {"card": card(device), "settings": asdict(s), "attention": errors, "rate": rate.value,
            "rows": results}


def table(result: dict) -> str:
    """The result as aligned text: the machine, the setting, one row per method."""
    s = result["settings"]
    setting = (f", {s['config']['position']} positions; B {s['batch_size']}, T {s['seq_len']}, "
               f"{s['dtype']}, {'compiled' if s['compile'] else 'eager'}, {s['steps']} steps, "
               f"seed {s['seed']}")
    errors = ", ".join(f"{name} {error:.0e}" for name, error in result["attention"].items())
    lines = [*header(result, setting),
             f"attention against the float64 textbook, relative error: {errors}",
             f"large matmuls: {result['rate'] / 1e9:,.0f} GFLOP/s", ""]
    cells = {  # heading: cell of a row
        "method": cell("method", "{}"),
        "size": size_text,
        "trained": cell("trained", "{:,}"),
        "stored": cell("stored", "{:,}"),
        "trained %": cell("percent", "{:.3f}"),
        "adapter KB": cell("adapter_bytes", "{:,.1f}", 1e3),
        "optimizer MB": if_trained(cell("optimizer_bytes", "{:,.2f}", 1e6)),
        "saved MB": cell("saved_bytes", "{:,.1f}", 1e6),
        "peak MB": if_trained(cell("peak_bytes", "{:,.0f}", 1e6, missing="?")),
        "step ms (p10–p90)": cell("step_ms", MS),
        "tokens/s": cell("tokens_per_s", "{:,.0f}"),
        "× full": cell("step_against_full", "{:.2f}"),
        "× floor": cell("step_against_floor", "{:.2f}"),
        "forward ms": cell("forward_ms", "{0[median]:,.1f}"),
        "× full ": cell("forward_against_full", "{:.2f}"),
        "compile s": cell("compile_s", "{:.1f}"),
    }
    return "\n".join(lines + columns(cells, result["rows"]))
