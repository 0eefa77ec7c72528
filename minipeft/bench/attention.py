"""Attention with a prefix, backend against backend: time, floor, bytes kept for backward, and what the prefix adds.

The physics: causal attention over T positions needs T·(T + 1)/2 pairs of query and key, a prefix T·P more; every pair costs 4·hs
floating-point operations forward (its score, its share of the output) and 8·hs backward. Divided by the rate at which this machine
multiplies large matrices, measured in the same run, that is the floor. Backends are interleaved call by call, each checked first
against the textbook in float64, forward and all gradients; the figure to quote is the ratio to SDPA.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from ..attention import faster, prefix_attention
from ..compiling import can_compile
from ..config import Error
from ..runtime.profiling import card, saved_bytes
from .measure import MatrixRate, card_line, columns, geometric_mean, milliseconds, spread

BACKENDS = ("reference", "sdpa", "fused")


@dataclass(frozen=True)
class Shape:
    B: int
    nh: int
    T: int
    P: int
    hs: int

    def forward_flops(self) -> int:
        """Scores and outputs of all pairs that see each other."""
        return 4 * self.hs * self.B * self.nh * (self.T * (self.T + 1) // 2 + self.T * self.P)


GRID = (
    Shape(4, 12, 128, 20, 64),
    Shape(4, 12, 512, 0, 64),
    Shape(4, 12, 512, 20, 64),
    Shape(4, 12, 512, 128, 64),
    Shape(8, 12, 256, 64, 64),
    Shape(8, 4, 128, 8, 32),
    Shape(4, 6, 256, 20, 128),
)


@dataclass(frozen=True)
class Settings:
    shapes: tuple[Shape, ...]
    dtypes: tuple[str, ...]
    repeats: int
    seed: int
    device: str


def inputs(shape: Shape, dtype: torch.dtype, s: Settings) -> tuple[list[Tensor], Tensor]:
    """q, k, v as the model makes them (three views of one projection), a prefix shared by the batch, and a gradient from above."""
    g = torch.Generator().manual_seed(s.seed)
    B, nh, T, P, hs = shape.B, shape.nh, shape.T, shape.P, shape.hs
    qkv = torch.randn(B, T, 3, nh, hs, generator=g).to(s.device, dtype).permute(2, 0, 3, 1, 4)
    prefix = torch.randn(2, 1, nh, P, hs, generator=g).to(s.device, dtype)
    upstream = torch.randn(B, T, nh, hs, generator=g).to(s.device, dtype).transpose(1, 2)
    return [x.requires_grad_() for x in (*qkv, *prefix)], upstream


def forward_backward(given: list[Tensor], upstream: Tensor, backend: str) -> tuple[Tensor, ...]:
    out = prefix_attention(*given, backend=backend)
    used = given if given[3].size(2) else given[:3]
    return out.detach(), *torch.autograd.grad(out, used, upstream)


def relative_error(got: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> float:
    """The largest of |a - b| / |b| over output and gradients, as norms."""
    return max(float((a.cpu().double() - b).norm() / b.norm()) for a, b in zip(got, exact, strict=True))


class Work:
    """One backend at one shape: checked, then ready to be timed."""

    def __init__(self, shape: Shape, dtype: torch.dtype, backend: str, given: list[Tensor], upstream: Tensor, exact, s: Settings):
        self.given, self.upstream, self.backend = given, upstream, backend
        self.forward_ms, self.both_ms = [], []
        device = torch.device(s.device)
        first = milliseconds(self.both, device) / 1000
        error = relative_error(self.both(), exact)
        if not error <= (1e-5 if dtype == torch.float32 else 2e-2):
            raise Error(f"{backend} attention is wrong at {shape}: relative error {error:.1e}")
        self.row = {"dtype": str(dtype)[6:], **asdict(shape), "backend": backend, "error": error, "first_call_s": first}
        self.row["saved_bytes"] = saved_bytes(lambda: prefix_attention(*given, backend=backend), [])
        self.row["auto"] = backend == faster(given[0], compiling=True)

    def both(self) -> tuple[Tensor, ...]:
        return forward_backward(self.given, self.upstream, self.backend)

    @torch.no_grad()
    def forward(self) -> Tensor:
        return prefix_attention(*self.given, backend=self.backend)


def works(shape: Shape, dtype: torch.dtype, s: Settings) -> list[Work]:
    """Every backend at this shape. Raises Error for one that is wrong."""
    given, upstream = inputs(shape, dtype, s)
    exact = forward_backward([x.detach().cpu().double().requires_grad_() for x in given], upstream.cpu().double(), "reference")
    return [Work(shape, dtype, backend, given, upstream, exact, s) for backend in BACKENDS]


def measure(shapes: list[Shape], dtype: torch.dtype, rate: MatrixRate, s: Settings, bar: tqdm) -> list[dict]:
    """The rows of these shapes, their calls interleaved."""
    device = torch.device(s.device)
    everything = [works(shape, dtype, s) for shape in shapes]
    for _ in range(s.repeats):
        rate()
        for work in (w for ws in everything for w in ws):
            work.forward_ms.append(milliseconds(work.forward, device))
            work.both_ms.append(milliseconds(work.both, device))
        bar.update(len(shapes))
    for ws in everything:
        for work in ws:
            work.row["forward_ms"], work.row["ms"] = spread(work.forward_ms), spread(work.both_ms)
        sdpa = ws[BACKENDS.index("sdpa")].row
        for work in ws:
            work.row["forward_against_sdpa"] = work.row["forward_ms"]["median"] / sdpa["forward_ms"]["median"]
            work.row["against_sdpa"] = work.row["ms"]["median"] / sdpa["ms"]["median"]
    return [work.row for ws in everything for work in ws]


def families(shapes: tuple[Shape, ...]) -> list[list[Shape]]:
    """Shapes that differ in the prefix alone, together: they are timed in turn, since `growth` compares them."""
    found: dict[tuple, list[Shape]] = {}
    for x in dict.fromkeys(shapes):
        found.setdefault((x.B, x.nh, x.T, x.hs), []).append(x)
    return list(found.values())


def run(s: Settings) -> dict:
    """{"card", "settings", "rate", "rows", "mean_against_sdpa", "growth"}, ready for JSON."""
    device = torch.device(s.device)
    can_compile(device.type)
    rows, rates = [], {}
    with tqdm(total=len(s.shapes) * len(s.dtypes) * s.repeats, unit="round", desc="attention", dynamic_ncols=True) as bar:
        for name in s.dtypes:
            dtype = getattr(torch, name)
            rate = MatrixRate(dtype, device)
            for shapes in families(s.shapes):
                rows += measure(shapes, dtype, rate, s, bar)
            rates[name] = rate.value
    for row in rows:
        shape = Shape(*(row[x] for x in ("B", "nh", "T", "P", "hs")))
        row["against_floor"] = row["ms"]["median"] / 1000 * rates[row["dtype"]] / (3 * shape.forward_flops())
    fused = [r for r in rows if r["backend"] == "fused"]
    means = {name: geometric_mean([r["against_sdpa"] for r in fused if r["dtype"] == name]) for name in s.dtypes}
    return {
        "card": card(device),
        "settings": asdict(s),
        "rate": rates,
        "rows": rows,
        "mean_against_sdpa": means,
        "growth": growth(fused),
    }


def growth(fused: list[dict]) -> list[dict]:
    """What the prefix costs the fused kernel: time at P over time at P = 0, beside the same ratio of floating-point operations."""
    found = []
    same = ("dtype", "B", "nh", "T", "hs")
    for row in (r for r in fused if r["P"]):
        for bare in (r for r in fused if r["P"] == 0 and all(r[x] == row[x] for x in same)):
            flops = [Shape(*(r[x] for x in ("B", "nh", "T", "P", "hs"))).forward_flops() for r in (row, bare)]
            ratio = {"time": row["ms"]["median"] / bare["ms"]["median"], "flops": flops[0] / flops[1]}
            found.append({x: row[x] for x in (*same, "P")} | ratio)
    return found


def table(result: dict) -> str:
    """The result as aligned text."""
    lines = [
        card_line(result["card"]),
        "large matrix products: " + ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in result["rate"].items()),
        "",
    ]
    cells = {  # heading: cell of a row
        "dtype": lambda r: r["dtype"],
        "backend": lambda r: r["backend"] + (" *" if r["auto"] else ""),
        **{x: lambda r, x=x: str(r[x]) for x in ("B", "nh", "T", "P", "hs")},
        "error": lambda r: f"{r['error']:.0e}",
        "forward ms": lambda r: f"{r['forward_ms']['median']:,.2f}",
        "× sdpa": lambda r: f"{r['forward_against_sdpa']:.2f}",
        "fwd+bwd ms (p10–p90)": lambda r: "{median:,.1f} ({p10:,.1f}–{p90:,.1f})".format(**r["ms"]),
        "× sdpa ": lambda r: f"{r['against_sdpa']:.2f}",
        "× floor": lambda r: f"{r['against_floor']:.1f}",
        "kept MB": lambda r: f"{r['saved_bytes'] / 1e6:,.1f}",
        "first s": lambda r: f"{r['first_call_s']:.1f}",
    }
    lines += columns(cells, result["rows"])
    lines += ["* what auto takes in a compiled model", ""]
    lines += [f"fused against sdpa, geometric mean in {name}: {mean:.2f}" for name, mean in result["mean_against_sdpa"].items()]
    lines += [
        "{dtype}, B {B}, T {T}, hs {hs}: fused takes {time:.2f} × the time with a prefix of {P} as without, "
        "for {flops:.2f} × the operations".format(**g)
        for g in result["growth"]
    ]
    return "\n".join(lines)
