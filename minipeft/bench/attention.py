"""Attention with a prefix by backend: time, floor, bytes saved for backward, cost of the prefix.

Causal attention over T positions needs T·(T + 1)/2 pairs of query and key, a prefix T·P more. Each
pair costs 4·hs FLOPs forward (its score, its part of the output) and 8·hs backward. The floor is
these FLOPs at the rate of large matmuls, measured in the same run. Backends are interleaved call by
call. Each is checked first against the textbook in float64, forward and all gradients.

SDPA, torch's operator, runs eagerly and through torch.compile, its concatenation and mask included.
Quote the ratio to the faster of the two at that shape (× best sdpa). --beside N measures everything
twice more next to N busy processes: a kernel of many short parallel regions waits at the end of
each for a thread that another process keeps from running. New processes do that, one whose waiting
threads sleep, as minipeft chooses beside others (runtime/waiting.py), and one whose waiting threads
spin.
"""

import argparse
import functools
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass
from statistics import geometric_mean

import torch
from torch import Tensor
from tqdm import tqdm

from ..attention import faster, prefix_attention
from ..checks import SIZE_LIMIT, Error
from ..runtime.compiling import can_compile, compiled
from ..runtime.console import Parser
from ..runtime.profiling import card, saved_bytes
from ..runtime.waiting import WAYS, new_processes_wait
from . import flags
from .measure import MS, MatmulRate, busy_processes, card_line, cell, columns, in_new_process, milliseconds, time_all

OWN = ("fused",)  # backends of minipeft.attention that are compared with SDPA
SDPA = ("sdpa", "sdpa compiled")
MEASURED = ("reference", *SDPA, *OWN)  # of the table: a backend, or a backend through torch.compile


@dataclass(frozen=True)
class Shape:
    B: int
    nh: int
    T: int
    P: int
    hs: int

    @classmethod
    def parse(cls, text: str) -> "Shape":
        """Read BxHxTxPxS. Raises Error."""
        sizes = [int(x) for x in text.split("x") if x.isdecimal()]
        if text.count("x") != 4 or len(sizes) != 5 or 0 in sizes[:3] + sizes[4:] or max(sizes) >= SIZE_LIMIT:
            raise Error(f"--shapes {text!r} must be five whole numbers BxHxTxPxS, "
                        "such as 4x12x128x20x64; only P may be 0")
        return cls(*sizes)

    @classmethod
    def of(cls, row: dict) -> "Shape":
        return cls(*(row[x] for x in ("B", "nh", "T", "P", "hs")))

    def forward_flops(self) -> int:
        return 4 * self.hs * self.B * self.nh * (self.T * (self.T + 1) // 2 + self.T * self.P)


GRID = ("4x12x128x20x64", "4x12x512x0x64", "4x12x512x20x64", "4x12x512x128x64", "8x12x256x64x64",
        "8x4x128x8x32", "4x6x256x20x128")


@dataclass(frozen=True)
class AttentionSettings:
    shapes: tuple[Shape, ...]
    dtypes: tuple[str, ...]
    repeats: int
    seed: int
    device: str
    beside: int = 0


def add_flags(p: Parser) -> None:
    add = p.add_argument_group("what to measure").add_argument
    add("--shapes", nargs="+", default=list(GRID), metavar="BxHxTxPxS",
        help="batch, heads, tokens, prefix length, head size")
    add("--dtype", nargs="+", default=list(flags.DTYPES), choices=flags.DTYPES,
        help="of all tensors")
    add = flags.add_machine_flags(p, 15, "timed calls of each backend").add_argument
    add("--beside", type=int, default=0, metavar="N",
        help="measure again next to N processes that each keep a core busy")


def settings(args: argparse.Namespace) -> AttentionSettings:
    if args.beside < 0:
        raise Error(f"--beside must be 0 or more, not {args.beside}")
    shapes = tuple(map(Shape.parse, args.shapes))
    dtypes = tuple(dict.fromkeys(args.dtype))
    return AttentionSettings(shapes, dtypes, args.steps, args.seed, args.device, args.beside)


@functools.cache
def attention_of(row: str) -> Callable[..., Tensor]:
    """The attention of a row: prefix_attention by a backend, or that through torch.compile."""
    def attention(*tensors: Tensor) -> Tensor:
        return prefix_attention(*tensors, backend=row.removesuffix(" compiled"))

    return compiled(attention) if row.endswith(" compiled") else attention


def works(shape: Shape, dtype: torch.dtype, s: AttentionSettings) -> list[tuple[dict, list]]:
    """Every backend's row and calls (forward; both passes), on q, k, v as the model makes them
    (views of one projection) and a prefix shared by the batch. Raises Error if one is wrong."""
    g = torch.Generator().manual_seed(s.seed)
    B, nh, T, P, hs = astuple(shape)
    qkv = torch.randn(B, T, 3, nh, hs, generator=g).to(s.device, dtype).permute(2, 0, 3, 1, 4)
    prefix = torch.randn(2, 1, nh, P, hs, generator=g).to(s.device, dtype)
    upstream = torch.randn(B, T, nh, hs, generator=g).to(s.device, dtype).transpose(1, 2)
    given = [x.requires_grad_() for x in (*qkv, *prefix)]
    exact_inputs = [x.detach().cpu().double().requires_grad_() for x in given]
    exact = forward_backward(exact_inputs, upstream.cpu().double(), attention_of("reference"))
    chosen = faster(given[0], compiling=True)
    if chosen == "sdpa" and can_compile(torch.device(s.device).type):
        chosen = "sdpa compiled"  # in a compiled model it is
    found = []
    for name in MEASURED:
        if name.endswith(" compiled") and not can_compile(torch.device(s.device).type):
            continue
        forward = functools.partial(attention_of(name), *given)
        both = functools.partial(forward_backward, given, upstream, attention_of(name))
        inference = torch.no_grad()(forward)
        first = sum(milliseconds(work, torch.device(s.device)) for work in (both, inference)) / 1000
        errors = [float((a.cpu().double() - b).norm()) / (float(b.norm()) or 1.0)  # one key: its gradient is 0
                  for a, b in zip(both(), exact, strict=True)]
        bound = 1e-5 if dtype == torch.float32 else 2e-2
        if not all(e <= bound for e in errors):  # max() would pass over NaN
            raise Error(f"{name} attention is wrong at {shape}: relative errors {errors} exceed {bound:g}")
        row = {"dtype": str(dtype)[6:], **asdict(shape), "backend": name, "error": max(errors),
               "first_call_s": first, "saved_bytes": saved_bytes(forward, []),
               "auto": name == chosen}
        found.append((row, [inference, both]))
    return found


def forward_backward(given: list[Tensor], upstream: Tensor,
                     attention: Callable[..., Tensor]) -> tuple[Tensor, ...]:
    out = attention(*given)
    used = given if given[3].size(2) else given[:3]
    return out.detach(), *torch.autograd.grad(out, used, upstream)


def measure(shapes: list[Shape], dtype: torch.dtype, rate: MatmulRate, s: AttentionSettings,
            bar: tqdm) -> list[dict]:
    """The rows of these shapes, their calls interleaved."""
    device, by_shape = torch.device(s.device), [works(shape, dtype, s) for shape in shapes]
    calls = [[call for _, pair in backends for call in pair] for backends in by_shape]
    times = time_all(calls, s.repeats, device, bar, rate)
    for backends, ms in zip(by_shape, times, strict=True):
        rows = [row for row, _ in backends]
        for row, forward, both in zip(rows, ms[::2], ms[1::2], strict=True):
            row |= {"forward_ms": forward, "ms": both}
        for name in ("forward_ms", "ms"):
            best = min(row[name]["median"] for row in rows if row["backend"] in SDPA)
            for row in rows:
                row[name.replace("ms", "against_best_sdpa")] = row[name]["median"] / best
    return [row for backends in by_shape for row, _ in backends]


def families(shapes: tuple[Shape, ...]) -> list[list[Shape]]:
    """Shapes grouped by all but P; `growth` compares a group, so it is timed together."""
    found: dict[tuple, list[Shape]] = {}
    for x in dict.fromkeys(shapes):
        found.setdefault((x.B, x.nh, x.T, x.hs), []).append(x)
    return list(found.values())


def run(s: AttentionSettings) -> dict:
    """{"card", "settings", "rate", "rows", "ratios", "growth", "beside", "beside_spinning"}, ready
    for JSON; the last two: rate, rows and ratios next to busy processes, with waiting threads that
    sleep and that spin, or None."""
    alone, beside = measure_all(s, "attention"), dict.fromkeys(WAYS)
    if s.beside:
        with busy_processes(s.beside):
            for way in beside:
                with new_processes_wait(way):
                    beside[way] = in_new_process(measure_all, s, f"beside {s.beside}, {way}")
    fused = [r for r in alone["rows"] if r["backend"] == "fused"]
    return {"card": card(torch.device(s.device)), "settings": asdict(s), **alone, "growth": growth(fused),
            "beside": beside["sleep"], "beside_spinning": beside["spin"]}


def measure_all(s: AttentionSettings, title: str) -> dict:
    """{"rate", "rows", "ratios"} of all shapes and dtypes."""
    rows, rates = [], {}
    with tqdm(total=len(s.shapes) * len(s.dtypes) * s.repeats, unit="round", desc=title, dynamic_ncols=True) as bar:
        for name in s.dtypes:
            rate = MatmulRate(getattr(torch, name), torch.device(s.device))
            for shapes in families(s.shapes):
                rows += measure(shapes, getattr(torch, name), rate, s, bar)
            rates[name] = rate.value
    for row in rows:
        flops = 3 * Shape.of(row).forward_flops()
        row["against_floor"] = row["ms"]["median"] / 1000 * rates[row["dtype"]] / flops
    return {"rate": rates, "rows": rows, "ratios": ratios(rows)}


def ratios(rows: list[dict]) -> list[dict]:
    """Geometric mean and worst ratio to the best SDPA: our backends, auto's choices; by dtype."""
    found = []
    for dtype in dict.fromkeys(r["dtype"] for r in rows):
        for backend in (*OWN, "auto"):
            mine = [r for r in rows if r["dtype"] == dtype and backend in (r["backend"], r["auto"] and "auto")]
            values = {x: [r[f"{x}against_best_sdpa"] for r in mine] for x in ("forward_", "")}
            found.append({"dtype": dtype, "backend": backend,
                          **{f"{x}mean": geometric_mean(its) for x, its in values.items()},
                          **{f"{x}worst": max(its) for x, its in values.items()}})
    return found


def growth(fused: list[dict]) -> list[dict]:
    """Cost of the prefix in the fused kernel: time over time at P = 0, and this ratio of FLOPs."""
    found, same = [], ("dtype", "B", "nh", "T", "hs")
    for row in (r for r in fused if r["P"]):
        for bare in (r for r in fused if r["P"] == 0 and all(r[x] == row[x] for x in same)):
            time = row["ms"]["median"] / bare["ms"]["median"]
            flops = Shape.of(row).forward_flops() / Shape.of(bare).forward_flops()
            found.append({x: row[x] for x in (*same, "P")} | {"time": time, "flops": flops})
    return found


def table(result: dict) -> str:
    """The result as aligned text: alone, then beside busy processes."""
    lines = [card_line(result["card"]), *part(result)]
    lines += ["{dtype}, B {B}, T {T}, hs {hs}: fused takes {time:.2f} × the time with a prefix of {P} as "
              "without, for {flops:.2f} × the FLOPs".format(**g) for g in result["growth"]]
    n = result["settings"]["beside"]
    for key, threads in (("beside", "sleep"), ("beside_spinning", "spin")):
        if result[key]:
            lines += ["", f"beside {n} busy process{'es' if n > 1 else ''}, waiting threads {threads}:",
                      *part(result[key])]
    return "\n".join(lines)


def part(measured: dict) -> list[str]:
    """The table of `measure_all`, and its means."""
    cells = {  # heading: cell of a row
        "dtype": cell("dtype", "{}"),
        "backend": lambda r: r["backend"] + (" *" if r["auto"] else ""),
        **{x: cell(x, "{}") for x in ("B", "nh", "T", "P", "hs")},
        "error": cell("error", "{:.0e}"),
        "forward ms": cell("forward_ms", "{0[median]:,.2f}"),
        "× best sdpa": cell("forward_against_best_sdpa", "{:.2f}"),
        "fwd+bwd ms (p10–p90)": cell("ms", MS),
        "× best sdpa ": cell("against_best_sdpa", "{:.2f}"),
        "× floor": cell("against_floor", "{:.1f}"),
        "saved MB": cell("saved_bytes", "{:,.1f}", 1e6),
        "first s": cell("first_call_s", "{:.1f}"),
    }
    rates = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in measured["rate"].items())
    lines = [f"large matmuls: {rates}", "", *columns(cells, measured["rows"]),
             "* the choice of auto in a compiled model", ""]
    return lines + [
        "{backend} against the best sdpa in {dtype}, geometric mean (worst): forward {forward_mean:.2f} "
        "({forward_worst:.2f}), forward+backward {mean:.2f} ({worst:.2f})".format(**r) for r in measured["ratios"]]
