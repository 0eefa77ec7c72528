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


def causal_mask(Tq: int, Tk: int, P: int, device=None, prefix_length=None, length=None) -> Tensor:
    """Who sees whom: bool (Tq, P + Tk), True where a query may look; with lengths of its own for every row (B, 1, Tq, P + Tk).

    The Tq queries are the last Tq of Tk positions; the P prefix positions come before them all and everyone sees them.
    """
    query = torch.arange(Tk - Tq, Tk, device=device).view(Tq, 1)
    key = torch.arange(-P, Tk, device=device).view(1, P + Tk)
    if length is not None:
        query = query + (length - Tk).view(-1, 1, 1, 1)
    seen = key <= query
    if prefix_length is not None:
        seen = seen & ((key >= 0) | (key + P < prefix_length.view(-1, 1, 1, 1)))
    return seen


def prefix_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor | None = None,
    prefix_v: Tensor | None = None,
    gate: Tensor | None = None,
    backend: str = "auto",
    prefix_length: Tensor | None = None,
    length: Tensor | None = None,
) -> Tensor:
    """Causal attention over [prefix ; context]; see the equations at the top of this file.

    q         (B, nh, Tq, hs): the queries of the last Tq positions, Tq <= Tk
    k, v      (B, n_kv, Tk, hs): n_kv divides nh; head i reads key head i // (nh / n_kv)  (grouped heads, 2305.13245)
    prefix_k, prefix_v   (1|B, n_kv, P, hs): one prefix for the batch or one a row, cast to q's dtype; P = 0 and None: no prefix
    gate      (nh,) or None
    backend   "reference": the textbook in float32 or above, the specification; "sdpa": torch's scaled_dot_product_attention;
              "fused": our own kernel through torch.compile; "halves": the same run eagerly; "auto": the one that measured
              faster, and in inference the halves where concatenating would copy a cache or a shared prefix
    prefix_length   (B,) int64: of the P prefix positions, row b has the first prefix_length[b]; None: all. Not with a gate
    length    (B,) int64: of the Tk positions, row b has the first length[b], and its queries are the last Tq of those; None: all
    returns   (B, nh, Tq, hs) in q's dtype

    Raises Error for shapes that do not fit together or an unknown backend.
    """
    if backend not in BACKENDS:
        raise Error(f"attention backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    if (prefix_k is None) != (prefix_v is None) or {q.dim(), k.dim(), v.dim()} != {4}:
        raise Error("q, k and v must have 4 dimensions, and prefix_k and prefix_v go together")
    if prefix_k is None:
        prefix_k, prefix_v = (x.new_empty(1, x.size(1), 0, x.size(3)) for x in (k, v))
    _check_shapes(q, k, v, prefix_k, prefix_v, gate, prefix_length, length)
    return BACKENDS[backend](q, k, v, prefix_k, prefix_v, gate, prefix_length, length)


def _check_shapes(q, k, v, prefix_k, prefix_v, gate, prefix_length, length) -> None:
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
    for name, x in (("prefix_length", prefix_length), ("length", length)):
        if x is not None and (x.shape != (B,) or x.dtype != torch.int64):
            raise Error(f"{name} must be ({B},) int64: one number a row, not {tuple(x.shape)} {x.dtype}")
    if gate is not None and prefix_length is not None:
        raise Error("a gated prefix has one length for all rows: without a key its softmax would have nothing to sum to 1")


def _reference(q, k, v, prefix_k, prefix_v, gate, prefix_length, length):
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
    scores = scores.masked_fill(~causal_mask(Tq, Tk, P, q.device, prefix_length, length), -math.inf)
    if gate is None:
        weights = scores.softmax(dim=-1)
    else:
        on_prefix = gate.to(dtype).view(nh, 1, 1) * scores[..., :P].softmax(dim=-1)
        weights = torch.cat([on_prefix, scores[..., P:].softmax(dim=-1)], dim=-1)
    return (weights @ values).to(q.dtype)


def _sdpa(q, k, v, prefix_k, prefix_v, gate, prefix_length, length):
    """The same through torch's fused operators: the prefix is concatenated, or (gated) attended to on its own."""
    B, nh, Tq, hs = q.shape
    Tk, P = k.size(2), prefix_k.size(2)
    grouped = k.size(1) != nh
    prefix_k, prefix_v = (x.to(q.dtype).expand(B, -1, -1, -1) for x in (prefix_k, prefix_v))
    if gate is None and P:
        k, v = torch.cat([prefix_k, k], dim=2), torch.cat([prefix_v, v], dim=2)  # (B, n_kv, P+Tk, hs)
    if prefix_length is None and length is None and (k.size(2) == Tq or Tq == 1):  # the plain square or row: no mask in memory
        o = F.scaled_dot_product_attention(q, k, v, is_causal=Tq > 1, enable_gqa=grouped)
    else:
        mask = causal_mask(Tq, Tk, k.size(2) - Tk, q.device, prefix_length, length)
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
    if gate is not None and P:
        on_prefix = F.scaled_dot_product_attention(q, prefix_k, prefix_v, enable_gqa=grouped)
        o = o + gate.to(q.dtype).view(nh, 1, 1) * on_prefix
    return o


def _fused(q, k, v, prefix_k, prefix_v, gate, prefix_length, length):
    """The kernel of fused.py: on its own compiled where that works; within a compiled model it is part of that."""
    if q.dtype == torch.float16:
        raise Error("the fused kernel's sums would leave float16's range: use bfloat16, float32 or float64, or backend='sdpa'")
    through_compile = not torch.compiler.is_compiling() and can_compile(q.device.type)
    return fused_attention(q, k, v, prefix_k, prefix_v, gate, through_compile, prefix_length, length)


def _halves(q, k, v, prefix_k, prefix_v, gate, prefix_length, length):
    """The same kernel run eagerly, for inference: a prefix shared by the batch is never copied, nor concatenated to a cache."""
    return fused_attention(q, k, v, prefix_k, prefix_v, gate, False, prefix_length, length)


def _auto(q, k, v, prefix_k, prefix_v, gate, prefix_length, length):
    choose = BACKENDS["halves" if apart(q, k, prefix_k) else faster(q, torch.compiler.is_compiling())]
    return choose(q, k, v, prefix_k, prefix_v, gate, prefix_length, length)


def apart(q: Tensor, k: Tensor, prefix_k: Tensor) -> bool:
    """Whether inference keeps the prefix apart: with a cache of keys and values, or as long as the text and shared by the rows.

    Concatenating it would copy the cache at every token, or the prefix for every row (see `bench.py serving`).
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not prefix_k.size(2) or q.dtype == torch.float16:
        return False
    return q.size(2) < k.size(2) or (prefix_k.size(0) < q.size(0) and prefix_k.size(2) >= k.size(2))


def faster(q: Tensor, compiling: bool) -> str:
    """The backend for these queries in training, as `bench.py attention` found it.

    On a CPU fused, as part of a compiled model, unless there are few queries: then its many small products lose to one operator,
    in float32 below some hundred. Not eagerly: its own compilation would take seconds for every new length. On a GPU nothing was
    measured, so sdpa.
    """
    enough = {torch.bfloat16: 16, torch.float32: 128, torch.float64: 128}.get(q.dtype, math.inf)
    return "fused" if compiling and q.device.type == "cpu" and q.size(2) >= enough else "sdpa"


BACKENDS = {"auto": _auto, "reference": _reference, "sdpa": _sdpa, "fused": _fused, "halves": _halves}
