"""Attention with a prefix, backend by backend: time, floor, bytes saved for backward, and the cost of the prefix.

Causal attention over T positions needs T·(T + 1)/2 pairs of query and key, a prefix T·P more. Each
pair costs 4·hs FLOPs forward (its score, its part of the output) and 8·hs backward. The floor is these
FLOPs at the rate of large matmuls, measured in the same run. Backends are interleaved call by call.
Each is checked first against the textbook in float64, forward and all gradients. Quote the ratio to
SDPA.
"""

import argparse
import functools
from dataclasses import asdict, astuple, dataclass
from statistics import geometric_mean

import torch
from torch import Tensor
from tqdm import tqdm

from ..attention import faster, prefix_attention
from ..checks import Error
from ..runtime.compiling import can_compile
from ..runtime.console import Parser
from ..runtime.profiling import card, saved_bytes
from . import flags
from .measure import MS, MatmulRate, card_line, cell, columns, milliseconds, time_all

BACKENDS = ("reference", "sdpa", "fused")


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
        if text.count("x") != 4 or len(sizes) != 5 or 0 in sizes[:3] + sizes[4:]:
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


def add_flags(p: Parser) -> None:
    add = p.add_argument_group("what to measure").add_argument
    add("--shapes", nargs="+", default=list(GRID), metavar="BxHxTxPxS",
        help="batch, heads, tokens, prefix length, head size")
    add("--dtype", nargs="+", default=list(flags.DTYPES), choices=flags.DTYPES, help="of all tensors")
    flags.add_machine_flags(p, 15, "timed calls of each backend")


def settings(args: argparse.Namespace) -> AttentionSettings:
    shapes = tuple(map(Shape.parse, args.shapes))
    return AttentionSettings(shapes, tuple(dict.fromkeys(args.dtype)), args.steps, args.seed, args.device)


def works(shape: Shape, dtype: torch.dtype, s: AttentionSettings) -> list[tuple[dict, list]]:
    """Every backend's row and calls (forward; both passes), on q, k, v as the model makes them (views
    of one projection) and a prefix shared by the batch. Raises Error if one is wrong."""
    g = torch.Generator().manual_seed(s.seed)
    B, nh, T, P, hs = astuple(shape)
    qkv = torch.randn(B, T, 3, nh, hs, generator=g).to(s.device, dtype).permute(2, 0, 3, 1, 4)
    prefix = torch.randn(2, 1, nh, P, hs, generator=g).to(s.device, dtype)
    upstream = torch.randn(B, T, nh, hs, generator=g).to(s.device, dtype).transpose(1, 2)
    given = [x.requires_grad_() for x in (*qkv, *prefix)]
    exact_inputs = [x.detach().cpu().double().requires_grad_() for x in given]
    exact = forward_backward(exact_inputs, upstream.cpu().double(), "reference")
    found = []
    for backend in BACKENDS:
        forward = functools.partial(prefix_attention, *given, backend=backend)
        both = functools.partial(forward_backward, given, upstream, backend)
        first = milliseconds(both, torch.device(s.device)) / 1000
        errors = [float((a.cpu().double() - b).norm()) / (float(b.norm()) or 1.0)  # one key: its gradient is 0
                  for a, b in zip(both(), exact, strict=True)]
        bound = 1e-5 if dtype == torch.float32 else 2e-2
        if not all(e <= bound for e in errors):  # max() would pass over NaN
            raise Error(f"{backend} attention is wrong at {shape}: relative errors {errors} exceed {bound:g}")
        row = {"dtype": str(dtype)[6:], **asdict(shape), "backend": backend, "error": max(errors),
               "first_call_s": first, "saved_bytes": saved_bytes(forward, []),
               "auto": backend == faster(given[0], compiling=True)}
        found.append((row, [torch.no_grad()(forward), both]))
    return found


def forward_backward(given: list[Tensor], upstream: Tensor, backend: str) -> tuple[Tensor, ...]:
    out = prefix_attention(*given, backend=backend)
    used = given if given[3].size(2) else given[:3]
    return out.detach(), *torch.autograd.grad(out, used, upstream)


def measure(shapes: list[Shape], dtype: torch.dtype, rate: MatmulRate, s: AttentionSettings,
            bar: tqdm) -> list[dict]:
    """The rows of these shapes, their calls interleaved."""
    device, by_shape = torch.device(s.device), [works(shape, dtype, s) for shape in shapes]
    calls = [[call for _, pair in backends for call in pair] for backends in by_shape]
    times, sdpa = time_all(calls, s.repeats, device, bar, rate), 2 * BACKENDS.index("sdpa")
    for backends, ms in zip(by_shape, times, strict=True):
        for (row, _), forward, both in zip(backends, ms[::2], ms[1::2], strict=True):
            row |= {"forward_ms": forward, "ms": both,
                    "forward_against_sdpa": forward["median"] / ms[sdpa]["median"],
                    "against_sdpa": both["median"] / ms[sdpa + 1]["median"]}
    return [row for backends in by_shape for row, _ in backends]


def families(shapes: tuple[Shape, ...]) -> list[list[Shape]]:
    """Shapes grouped by all but P. A group is timed together, since `growth` compares its members."""
    found: dict[tuple, list[Shape]] = {}
    for x in dict.fromkeys(shapes):
        found.setdefault((x.B, x.nh, x.T, x.hs), []).append(x)
    return list(found.values())


def run(s: AttentionSettings) -> dict:
    """{"card", "settings", "rate", "rows", "mean_against_sdpa", "growth"}, ready for JSON."""
    device = torch.device(s.device)
    can_compile(device.type)
    rows, rates = [], {}
    total = len(s.shapes) * len(s.dtypes) * s.repeats
    with tqdm(total=total, unit="round", desc="attention", dynamic_ncols=True) as bar:
        for name in s.dtypes:
            rate = MatmulRate(getattr(torch, name), device)
            for shapes in families(s.shapes):
                rows += measure(shapes, getattr(torch, name), rate, s, bar)
            rates[name] = rate.value
    for row in rows:
        flops = 3 * Shape.of(row).forward_flops()
        row["against_floor"] = row["ms"]["median"] / 1000 * rates[row["dtype"]] / flops
    fused = [r for r in rows if r["backend"] == "fused"]
    means = {name: geometric_mean(r["against_sdpa"] for r in fused if r["dtype"] == name) for name in s.dtypes}
    return {"card": card(device), "settings": asdict(s), "rate": rates, "rows": rows,
            "mean_against_sdpa": means, "growth": growth(fused)}


def growth(fused: list[dict]) -> list[dict]:
    """Cost of the prefix in the fused kernel: time at P over time at P = 0, and the same ratio of FLOPs."""
    found, same = [], ("dtype", "B", "nh", "T", "hs")
    for row in (r for r in fused if r["P"]):
        for bare in (r for r in fused if r["P"] == 0 and all(r[x] == row[x] for x in same)):
            time = row["ms"]["median"] / bare["ms"]["median"]
            flops = Shape.of(row).forward_flops() / Shape.of(bare).forward_flops()
            found.append({x: row[x] for x in (*same, "P")} | {"time": time, "flops": flops})
    return found


def table(result: dict) -> str:
    """The result as aligned text."""
    rates = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in result["rate"].items())
    cells = {  # heading: cell of a row
        "dtype": cell("dtype", "{}"),
        "backend": lambda r: r["backend"] + (" *" if r["auto"] else ""),
        **{x: cell(x, "{}") for x in ("B", "nh", "T", "P", "hs")},
        "error": cell("error", "{:.0e}"),
        "forward ms": cell("forward_ms", "{0[median]:,.2f}"),
        "× sdpa": cell("forward_against_sdpa", "{:.2f}"),
        "fwd+bwd ms (p10–p90)": cell("ms", MS),
        "× sdpa ": cell("against_sdpa", "{:.2f}"),
        "× floor": cell("against_floor", "{:.1f}"),
        "saved MB": cell("saved_bytes", "{:,.1f}", 1e6),
        "first s": cell("first_call_s", "{:.1f}"),
    }
    lines = [card_line(result["card"]), f"large matmuls: {rates}", "",
             *columns(cells, result["rows"]), "* the choice of auto in a compiled model", ""]
    lines += [f"fused against sdpa, geometric mean in {name}: {mean:.2f}"
              for name, mean in result["mean_against_sdpa"].items()]
    lines += ["{dtype}, B {B}, T {T}, hs {hs}: fused takes {time:.2f} × the time with a prefix of {P} as "
              "without, for {flops:.2f} × the FLOPs".format(**g) for g in result["growth"]]
    return "\n".join(lines)
