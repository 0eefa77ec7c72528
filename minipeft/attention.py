"""Causal attention with a prefix: the second of the two slots through which a frozen GPT is tuned.

Each query sees all P prefix positions and every real position up to its own:

    o = softmax(q [Pk ; K]ᵀ / sqrt(hs) + mask) [Pv ; V]                  prefix tuning (Li & Liang 2021, 2101.00190)

With a gate g the prefix has a softmax of its own, and g says, head by head, how much of it is added:

    o = softmax(q Kᵀ / sqrt(hs) + mask) V + g · softmax(q Pkᵀ / sqrt(hs)) Pv      LLaMA-Adapter (2303.16199, eq. 4–6)
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .compiling import can_compile
from .config import Error
from .fused import fused_attention


def causal_mask(Tq: int, Tk: int, P: int, device=None) -> Tensor:
    """Who sees whom: bool (Tq, P + Tk), True where a query may look.

    The Tq queries are the last Tq of Tk positions; the P prefix positions come before them all and everyone sees them.
    """
    query = torch.arange(Tk - Tq, Tk, device=device).view(Tq, 1)
    key = torch.arange(-P, Tk, device=device).view(1, P + Tk)
    return key <= query


def prefix_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor | None = None,
    prefix_v: Tensor | None = None,
    gate: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Causal attention over [prefix ; context]; see the equations at the top of this file.

    q         (B, nh, Tq, hs): the queries of the last Tq positions, Tq <= Tk
    k, v      (B, n_kv, Tk, hs): n_kv divides nh; head i reads key head i // (nh / n_kv)  (grouped heads, 2305.13245)
    prefix_k, prefix_v   (1|B, n_kv, P, hs): one prefix for the batch or one a row, cast to q's dtype; P = 0 and None: no prefix
    gate      (nh,) or None
    backend   "reference": the textbook in float32 or above, the specification; "sdpa": torch's scaled_dot_product_attention;
              "fused": our own kernel through torch.compile; "auto": fused or sdpa, whichever measured faster
    returns   (B, nh, Tq, hs) in q's dtype

    Raises Error for shapes that do not fit together or an unknown backend.
    """
    if backend not in BACKENDS:
        raise Error(f"attention backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    if (prefix_k is None) != (prefix_v is None) or {q.dim(), k.dim(), v.dim()} != {4}:
        raise Error("q, k and v must have 4 dimensions, and prefix_k and prefix_v go together")
    if prefix_k is None:
        prefix_k, prefix_v = (x.new_empty(1, x.size(1), 0, x.size(3)) for x in (k, v))
    _check_shapes(q, k, v, prefix_k, prefix_v, gate)
    return BACKENDS[backend](q, k, v, prefix_k, prefix_v, gate)


def _check_shapes(q, k, v, prefix_k, prefix_v, gate) -> None:
    (B, nh, Tq, hs), (_, n_kv, Tk, _), P = q.shape, k.shape, prefix_k.size(-2)
    if k.shape != v.shape or k.shape != (B, n_kv, Tk, hs):
        raise Error(f"k {tuple(k.shape)} and v {tuple(v.shape)} must both be (B, n_kv, Tk, hs) with q's B {B} and hs {hs}")
    if nh % n_kv:
        raise Error(f"{nh} query heads do not divide into groups over {n_kv} key heads")
    if Tq > Tk:
        raise Error(f"queries are the last Tq of Tk positions, but Tq {Tq} > Tk {Tk}")
    if prefix_k.shape != prefix_v.shape or prefix_k.shape not in ((1, n_kv, P, hs), (B, n_kv, P, hs)):
        raise Error(
            f"prefix_k {tuple(prefix_k.shape)} and prefix_v {tuple(prefix_v.shape)} must both be (1|B, n_kv, P, hs) "
            f"with B {B}, n_kv {n_kv}, hs {hs}"
        )
    if gate is not None and gate.shape != (nh,):
        raise Error(f"gate {tuple(gate.shape)} must hold one number a head: ({nh},)")


def _reference(q, k, v, prefix_k, prefix_v, gate):
    """The specification: every product and softmax written out, in float32 or above."""
    B, nh, Tq, hs = q.shape
    Tk, P = k.size(2), prefix_k.size(2)
    dtype = torch.promote_types(q.dtype, torch.float32)
    group = nh // k.size(1)

    def spread(x):  # (1|B, n_kv, S, hs) -> (B, nh, S, hs)
        return x.to(dtype).expand(B, -1, -1, -1).repeat_interleave(group, dim=1)

    keys = torch.cat([spread(prefix_k), spread(k)], dim=2)  # (B, nh, P+Tk, hs)
    values = torch.cat([spread(prefix_v), spread(v)], dim=2)  # (B, nh, P+Tk, hs)
    scores = q.to(dtype) @ keys.transpose(-2, -1) / math.sqrt(hs)  # (B, nh, Tq, P+Tk)
    scores = scores.masked_fill(~causal_mask(Tq, Tk, P, q.device), -math.inf)
    if gate is None:
        weights = scores.softmax(dim=-1)
    else:
        on_prefix = gate.to(dtype).view(nh, 1, 1) * scores[..., :P].softmax(dim=-1)
        weights = torch.cat([on_prefix, scores[..., P:].softmax(dim=-1)], dim=-1)
    return (weights @ values).to(q.dtype)


def _sdpa(q, k, v, prefix_k, prefix_v, gate):
    """The same through torch's fused operators: the prefix is concatenated, or (gated) attended to on its own."""
    B, nh, Tq, hs = q.shape
    Tk, P = k.size(2), prefix_k.size(2)
    grouped = k.size(1) != nh
    prefix_k, prefix_v = (x.to(q.dtype).expand(B, -1, -1, -1) for x in (prefix_k, prefix_v))
    if gate is None and P:
        k, v = torch.cat([prefix_k, k], dim=2), torch.cat([prefix_v, v], dim=2)  # (B, n_kv, P+Tk, hs)
    if k.size(2) == Tq:  # the plain causal square needs no mask in memory
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    else:
        mask = causal_mask(Tq, Tk, k.size(2) - Tk, q.device)
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
    if gate is not None and P:
        on_prefix = F.scaled_dot_product_attention(q, prefix_k, prefix_v, enable_gqa=grouped)
        o = o + gate.to(q.dtype).view(nh, 1, 1) * on_prefix
    return o


def _fused(q, k, v, prefix_k, prefix_v, gate):
    """The kernel of fused.py: on its own compiled where that works; within a compiled model it is part of that."""
    if q.dtype == torch.float16:
        raise Error("the fused kernel's sums would leave float16's range: use bfloat16, float32 or float64, or backend='sdpa'")
    through_compile = not torch.compiler.is_compiling() and can_compile(q.device.type)
    return fused_attention(q, k, v, prefix_k, prefix_v, gate, through_compile)


def _auto(q, k, v, prefix_k, prefix_v, gate):
    return BACKENDS[faster(q, torch.compiler.is_compiling())](q, k, v, prefix_k, prefix_v, gate)


def faster(q: Tensor, compiling: bool) -> str:
    """The backend for these queries, as `bench.py attention` found it.

    On a CPU fused, as part of a compiled model, unless there are few queries: then its many small products lose to one operator,
    in float32 below some hundred. Not eagerly: its own compilation would take seconds for every new length. On a GPU nothing was
    measured, so sdpa.
    """
    enough = {torch.bfloat16: 16, torch.float32: 128, torch.float64: 128}.get(q.dtype, math.inf)
    return "fused" if compiling and q.device.type == "cpu" and q.size(2) >= enough else "sdpa"


BACKENDS = {"auto": _auto, "reference": _reference, "sdpa": _sdpa, "fused": _fused}
