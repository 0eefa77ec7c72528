"""Linear layers, x Wᵀ + b, by the library that is faster on this CPU: torch's MKL or oneDNN.

torch computes float32 matmuls with MKL. On AMD's CPUs with AVX-512 it takes longer than oneDNN, on
some twice as long (`bench.py matmul`), so there forward and both gradients go to oneDNN. Everywhere
else, for small matmuls, and where torch's own operators must be seen (torch.func, FlopCounterMode
and other modes), this is F.linear. The choice depends on the model of the CPU, not on a
measurement: a resumed run rounds as before. MINIPEFT_MATMUL=torch or onednn overrides it.

In inference a weight is read once for each token, so reading it is what takes the time. `packed`
lays weights out in oneDNN's own order for that, a copy for as long as it is used.
"""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from .devices import cpu
from .memory import available_memory

LEAST = 2**21  # multiplications and additions below which the call costs more than it saves
_packed: dict[int, tuple[int, Tensor]] = {}  # id of a weight -> its version, and the copy of it
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
OPERATOR = torch.ops.mkldnn._linear_pointwise.default if HAS_ONEDNN else None


def matmul_dtype(x: Tensor) -> torch.dtype:
    """Dtype of x's matmuls: autocast's where that is on, else its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _choose() -> str:
    wanted, known = os.environ.get("MINIPEFT_MATMUL") or "auto", ("auto", "torch", "onednn")
    if wanted not in known:
        print(f"MINIPEFT_MATMUL must be one of {', '.join(known)}, not {wanted!r}: taking auto",
              file=sys.stderr)
    if not HAS_ONEDNN:
        return "torch"
    if wanted in ("torch", "onednn"):
        return wanted
    return "onednn" if cpu()[1] == "AMD" and torch.backends.cpu.get_cpu_capability() == "AVX512" else "auto"


LIBRARY = _choose()  # "onednn": for float32 and bfloat16; "auto": for packed bfloat16; "torch": for neither


class Linear(nn.Linear):
    """nn.Linear by the faster library."""

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight, self.bias)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (…, K), weight (N, K), bias (N,) -> (…, N), as F.linear, with all derivatives."""
    eager = not torch.compiler.is_compiling()
    if eager and (copy := _copy_of(weight, x)) is not None:
        return _multiply(x, copy, bias)
    if _pays(x, weight) and not (eager and _watched()):
        return _Linear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


@contextlib.contextmanager
def packed(weights: Iterable[Tensor], rows: int) -> Iterator[None]:
    """Products of these weights with few rows, without gradients, read a copy in oneDNN's order,
    where that is faster and the copies take at most half of the memory left. A weight that changes
    meanwhile is read itself (unless through .data, which its version does not count)."""
    faster = [torch.float32] if LIBRARY == "onednn" else []
    if LIBRARY != "torch" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        faster.append(torch.bfloat16)
    weights = [w for w in weights if w.dtype in faster and _is_plain(w) and id(w) not in _packed]
    weights = [w for w in weights if not w.is_inference()]  # those have no version
    left = available_memory(torch.device("cpu")) if weights else None
    if left is not None and 2 * sum(w.nbytes for w in weights) > left:
        weights = []
    try:
        for w in weights:
            _packed[id(w)] = w._version, reordered(w, rows)
        yield
    finally:
        for w in weights:
            _packed.pop(id(w), None)


def reordered(weight: Tensor, rows: int) -> Tensor:
    """A copy in oneDNN's own order, for products with so many rows."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
        return _multiply(x, weight, bias)

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        rows = dy.reshape(-1, dy.size(-1))
        dx = product(dy, weight.t()) if ctx.needs_input_grad[0] else None
        dweight = product(rows.t(), x.reshape(-1, x.size(-1)).t()) if ctx.needs_input_grad[1] else None
        return dx, dweight, rows.sum(0) if ctx.needs_input_grad[2] else None


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return (_opaque if torch.compiler.is_compiling() else onednn)(x, weight, bias)


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """product by oneDNN, without derivatives; the weight may be `reordered`."""
    bias = None if bias is None else bias.contiguous()  # the operator ignores its strides
    return OPERATOR(x, weight, bias, "none", [], "")


# torch.compile takes that operator for weights that are constants only: here is one that it does not look into
_opaque = torch.library.custom_op("minipeft::product", onednn, mutates_args=())
_opaque.register_fake(lambda x, weight, bias=None: x.new_empty(*x.shape[:-1], weight.size(0)))


def _pays(x: Tensor, weight: Tensor) -> bool:
    if LIBRARY != "onednn" or not x.dtype == weight.dtype == torch.float32 or x.numel() * weight.size(0) < LEAST:
        return False
    return _is_plain(x) and _is_plain(weight) and not torch.is_autocast_enabled("cpu")


def _is_plain(x: Tensor) -> bool:
    return type(x) in (Tensor, nn.Parameter) and x.device.type == "cpu"


def _watched() -> bool:
    """True under forward-mode derivatives, torch.func and dispatch modes: they know F.linear."""
    transformed = forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
    return transformed or torch._C._len_torch_dispatch_stack() > 0


def _copy_of(weight: Tensor, x: Tensor) -> Tensor | None:
    """The copy of `weight` that `packed` made, where it is valid."""
    if not _packed or torch.is_grad_enabled() or x.dtype != weight.dtype:
        return None
    version, copy = _packed.get(id(weight), (None, None))
    if copy is None:  # an inference tensor, say, which has no version
        return None
    same = version == weight._version and copy.dtype == weight.dtype  # .to() counts no version
    return copy if same and not torch.is_autocast_enabled("cpu") else None
