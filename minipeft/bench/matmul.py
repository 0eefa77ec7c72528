"""Products with the weights of a base: torch's own library, and oneDNN.

Rows as in training (forward x Wᵀ, and the gradient dx = dy W) and as in generation, where a few
rows meet weights that come from memory, read as they are or from a copy in oneDNN's order. Both
libraries are first compared with float64, and interleaved call by call. The last line says which
one minipeft takes here (runtime/matmul.py); MINIPEFT_MATMUL=torch or onednn in front of a command
overrides it. torch itself uses oneDNN for weights of bfloat16.
"""

import argparse
import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..accounting.shapes import PRESETS
from ..checks import Error
from ..config import linears
from ..runtime import matmul
from ..runtime.console import Parser
from ..runtime.profiling import card
from . import flags
from .measure import card_line, cell, columns, time_all

BOUND = {"float32": 1e-4, "bfloat16": 5e-2}  # of an entry, whose standard deviation is 1
TAKES = {"onednn": "oneDNN for float32, and for bfloat16 with copies in generation",
         "auto": "torch for float32, oneDNN for bfloat16 with copies in generation", "torch": "torch for all"}
FROM_MEMORY = 2**28  # bytes of weights used in turn, more than a CPU's caches hold


@dataclass(frozen=True, kw_only=True)
class MatmulSettings(flags.WorkSettings):
    batch_sizes: tuple[int, ...]


def add_flags(p: Parser) -> None:
    flags.add_base_flags(p, "smollm2-135m")
    group = flags.add_batch_flags(p, 8, 60)
    group.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8], metavar="B",
                       help="rows in generation")
    flags.add_machine_flags(p, 10, "timed calls of each")


def settings(args: argparse.Namespace) -> MatmulSettings:
    """Raises Error where oneDNN is missing, or for batches without rows."""
    if not matmul.HAS_ONEDNN or args.device != "cpu":
        raise Error("bench.py matmul compares two libraries for CPUs: it needs --device cpu and a torch with oneDNN")
    if min(args.batch_sizes) < 1:
        raise Error(f"--batch-sizes must be at least 1, not {min(args.batch_sizes)}")
    return flags.from_flags(MatmulSettings, args, PRESETS[args.preset])


def works(dtype: str, weights: list[Tensor], rows: int,
          training: bool) -> tuple[dict, list[Callable]]:
    """A row of the table, and its calls: torch and oneDNN; in training forward and dx, else each
    weight in turn as it is and, as the third, reordered."""
    N, K = weights[0].shape
    x, dy = (torch.randn(rows, size).to(weights[0].dtype) for size in (K, N))
    row = {"dtype": dtype, "work": "training" if training else "generation", "rows": rows, "K": K, "N": N}
    check(x, weights[0], BOUND[dtype])

    def both(multiply: Callable[[Tensor, Tensor], Tensor], weight: Tensor) -> None:
        multiply(x, weight)
        multiply(dy, weight.t())

    if training:
        return row, [functools.partial(both, multiply, weights[0]) for multiply in (F.linear, matmul.onednn)]
    copies = [matmul.reordered(w, rows) for w in weights]
    return row, [lambda: [F.linear(x, w) for w in weights], lambda: [matmul.onednn(x, w) for w in weights],
                 lambda: [matmul.onednn(x, w) for w in copies]]


def check(x: Tensor, weight: Tensor, bound: float) -> None:
    """Raise Error unless every way of multiplying agrees with float64, relative to an entry."""
    exact = F.linear(x.double(), weight.double())
    for y in (F.linear(x, weight), matmul.onednn(x, weight),
              matmul.onednn(x, matmul.reordered(weight, len(x)))):
        error = float((y - exact).abs().max() / exact.std())
        if not error <= bound:
            raise Error(f"a product {tuple(x.shape)} by {tuple(weight.shape)} is wrong by {error:.1e} of its size")


@torch.no_grad()
def run(s: MatmulSettings) -> dict:
    """{"card", "settings", "library", "rows"}, ready for JSON."""
    torch.manual_seed(s.seed)
    shapes = dict.fromkeys([*linears(s.config).values(), (s.config.n_embd, s.config.vocab_size)])
    groups, rows = [], []
    for dtype in flags.DTYPES:
        for K, N in shapes:
            one = torch.empty(N, K, dtype=getattr(torch, dtype))
            weights = [torch.randn_like(one) for _ in range(max(2, FROM_MEMORY // one.nbytes))]
            for M, training in [(s.batch_size * s.seq_len, True),
                                *((B, False) for B in s.batch_sizes)]:
                row, calls = works(dtype, weights, M, training)
                rows.append(row | {"calls": 1 if training else len(weights)})
                groups.append(calls)
    with tqdm(total=len(groups) * s.steps, unit="product", desc="matmul", dynamic_ncols=True) as bar:
        times = time_all(groups, s.steps, torch.device("cpu"), bar)
    for row, found in zip(rows, times, strict=True):
        for name, ms in zip(("torch", "onednn", "reordered"), found, strict=False):
            row[f"{name}_ms"] = ms["median"] / row["calls"]
            row[f"{name}_ratio"] = ms["median"] / found[0]["median"]
    return {"card": card(torch.device("cpu")), "settings": asdict(s), "library": matmul.LIBRARY,
            "rows": rows}


def table(result: dict) -> str:
    """The result as aligned text."""
    cells = {  # heading: cell of a row
        "dtype": cell("dtype", "{}"), "": cell("work", "{}"),
        **{x: cell(x, "{:,}") for x in ("rows", "K", "N")},
        "torch ms": cell("torch_ms", "{:.3f}"), "onednn ms": cell("onednn_ms", "{:.3f}"),
        "× torch": cell("onednn_ratio", "{:.2f}"),
        "reordered ms": cell("reordered_ms", "{:.3f}"), "× torch ": cell("reordered_ratio", "{:.2f}"),
    }
    return "\n".join([card_line(result["card"]), f"{result['settings']['preset']}: training forward and dx", "",
                      *columns(cells, result["rows"]), f"minipeft takes here: {TAKES[result['library']]}"])
