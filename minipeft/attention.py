"""Causal attention with a prefix: the second of the two slots through which a frozen GPT is tuned.

Each query sees all P prefix positions of its row and every real position up to its own:

    o = softmax(q [Pk ; K]ᵀ / sqrt(hs) + mask) [Pv ; V]             prefix tuning (Li & Liang 2021, 2101.00190)

A bias β on each prefix key lets one stand for many, as exp β keys, or for none, at β = -inf:

    o = softmax([q Pkᵀ / sqrt(hs) + β ; q Kᵀ / sqrt(hs) + mask]) [Pv ; V]    attention matching (2602.16284, eq. 2)

With a gate g per head the prefix has a softmax of its own:

    o = softmax(q Kᵀ / sqrt(hs) + mask) V + g · softmax(q Pkᵀ / sqrt(hs)) Pv     LLaMA-Adapter (2303.16199, eq. 4–6)
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import Error, check_attention, shown
from .fused import Window, causal_mask, fused_attention
from .runtime.compiling import can_compile


def prefix_attention(q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor | None = None, prefix_v: Tensor | None = None,
                     gate: Tensor | None = None, backend: str = "auto",
                     prefix_length: Tensor | None = None, length: Tensor | None = None,
                     window: Window | None = None, prefix_bias: Tensor | None = None) -> Tensor:
    """Causal attention over [prefix ; context]; see the equations at the top of this file.

    q         (B, nh, Tq, hs): the queries of the last Tq positions, Tq <= Tk
    k, v      (B, n_kv, Tk, hs): query head i uses key head i // (nh / n_kv)  (grouped heads, 2305.13245)
    prefix_k, prefix_v   (1|B, n_kv, P, hs): one prefix for the batch or one per row, cast to q's dtype; None: no prefix
    gate      (nh,) or None
    backend   "reference"  the textbook in float32 or above: the specification
              "sdpa"       torch's scaled_dot_product_attention; it copies: the prefix is concatenated to K and V
              "fused"      our kernel through torch.compile; "split": the same code eagerly
              "flash"      torch's flash operator for CPUs on each part, merged; for inference
                           None of these three concatenates, nor repeats a shared prefix for each row
              "auto"       the one that measured faster; "auto-any-length": in a graph for any T
    prefix_length   (B,) int64: row b has the first prefix_length[b] of the P prefix positions. Not with a gate
    length    (B,) int64: row b has the first length[b] of the Tk positions, and its queries are the last Tq of those
    window    a query sees the last window.size of the keys at or before it, of the first window.virtual
              all, and the prefix
    prefix_bias     (1|B, n_kv, P) as the prefix, β; -inf: that key is not there. Not with a gate
    returns   (B, nh, Tq, hs) in q's dtype

    Raises Error for shapes that do not fit together, an unknown backend, or one that cannot run
    here: "fused" and "split" in float16; "flash" on a GPU or while gradients are recorded.
    """
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise Error(f"attention backend must be one of {', '.join(BACKENDS)}, not {shown(backend)}")
    if (prefix_k is None) != (prefix_v is None) or not all(isinstance(x, Tensor) and x.dim() == 4 for x in (q, k, v)):
        raise Error("q, k and v must be tensors of 4 dimensions, and prefix_k and prefix_v go together")
    if prefix_k is None:
        prefix_k, prefix_v = (x.new_empty(1, x.size(1), 0, x.size(3)) for x in (k, v))
    check_attention(q, k, v, prefix_k, prefix_v, gate, prefix_length, length, window, prefix_bias)
    if not q.numel():  # nothing attends
        return q.clone()
    k, v, window = _in_window(k, v, q.size(2), length, window)
    if (prefix_bias is not None and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
            and bool((prefix_bias == -math.inf).all())):  # the base, bit for bit
        prefix_k, prefix_v, prefix_bias, prefix_length = prefix_k[:, :, :0], prefix_v[:, :, :0], None, None
    return BACKENDS[backend](q, k, v, prefix_k, prefix_v, gate, prefix_length, length, window, prefix_bias)


def _in_window(k: Tensor, v: Tensor, Tq: int, length: Tensor | None, window: Window | None):
    """Keys and values that a query still sees; the window, or None where it then hides none."""
    if window is not None and length is None:
        first = k.size(2) - Tq + 1 - window.size  # the first that the first query sees
        if first > window.virtual:
            k, v = (torch.cat([x[:, :, : window.virtual], x[:, :, first:]], dim=2) if window.virtual else
                    x[:, :, first:] for x in (k, v))
    if window is not None and k.size(2) - window.virtual <= window.size:
        window = None
    return k, v, window


def _mask(Tq: int, Tk: int, P: int, device, prefix_length, length, window) -> Tensor:
    """causal_mask over [prefix ; context]: (Tq, P + Tk), ragged batches (B, 1, Tq, P + Tk)."""
    shift = 0 if length is None else (length - Tk).view(-1, 1, 1, 1)
    mask = causal_mask((Tk - Tq, Tk), (-P, Tk), device, shift, window)
    if prefix_length is None:
        return mask
    return mask & F.pad(_prefix_mask(P, prefix_length), (0, Tk), value=True)


def _prefix_mask(P: int, prefix_length: Tensor) -> Tensor:
    """(B, 1, 1, P): True for the first prefix_length[b] positions of row b's prefix."""
    return torch.arange(P, device=prefix_length.device) < prefix_length.view(-1, 1, 1, 1)


def _bias_mask(mask: Tensor, prefix_bias: Tensor, nh: int, dtype: torch.dtype) -> Tensor:
    """Boolean -> additive mask (1|B, nh, Tq, P + Tk): β for prefix keys, 0, or -inf."""
    bias = prefix_bias.to(dtype).repeat_interleave(nh // prefix_bias.size(1), dim=1).unsqueeze(2)
    bias = F.pad(bias, (0, mask.size(-1) - bias.size(-1)))  # (1|B, nh, 1, P + Tk)
    return torch.where(mask, bias, -math.inf)


def _reference(q, k, v, prefix_k, prefix_v, gate, prefix_length, length, window, prefix_bias):
    """The specification: every matmul and softmax written out, in float32 or above."""
    B, nh, Tq, hs = q.shape
    Tk, P = k.size(2), prefix_k.size(2)
    dtype = torch.promote_types(q.dtype, torch.float32)

    def per_query_head(x):  # (1|B, n_kv, S, hs) -> (B, nh, S, hs)
        return x.to(dtype).expand(B, -1, -1, -1).repeat_interleave(nh // k.size(1), dim=1)

    keys = torch.cat([per_query_head(prefix_k), per_query_head(k)], dim=2)  # (B, nh, P+Tk, hs)
    values = torch.cat([per_query_head(prefix_v), per_query_head(v)], dim=2)  # (B, nh, P+Tk, hs)
    scores = q.to(dtype) @ keys.transpose(-2, -1) / math.sqrt(hs)  # (B, nh, Tq, P+Tk)
    if prefix_bias is not None:
        scores = scores + F.pad(per_query_head(prefix_bias.unsqueeze(-1)).transpose(-2, -1), (0, Tk))
    scores = scores.masked_fill(~_mask(Tq, Tk, P, q.device, prefix_length, length, window), -math.inf)
    if gate is None:
        weights = scores.softmax(dim=-1)
    else:
        on_prefix = gate.to(dtype).view(nh, 1, 1) * scores[..., :P].softmax(dim=-1)
        weights = torch.cat([on_prefix, scores[..., P:].softmax(dim=-1)], dim=-1)
    return (weights @ values).to(q.dtype)


def _sdpa(q, k, v, prefix_k, prefix_v, gate, prefix_length, length, window, prefix_bias):
    """torch's operator: the prefix is concatenated to K and V; a gated one is attended to alone."""
    B, nh, Tq, hs = q.shape
    Tk, P = k.size(2), prefix_k.size(2)
    grouped = k.size(1) != nh
    k, v = k.to(q.dtype), v.to(q.dtype)
    prefix_k, prefix_v = (x.to(q.dtype).expand(B, -1, -1, -1) for x in (prefix_k, prefix_v))
    if gate is None and P:
        k, v = torch.cat([prefix_k, k], dim=2), torch.cat([prefix_v, v], dim=2)  # (B, n_kv, P+Tk, hs)
    masked = prefix_length is not None or length is not None or window is not None
    if prefix_bias is not None and P:
        mask = _bias_mask(_mask(Tq, Tk, P, q.device, prefix_length, length, window), prefix_bias, nh, q.dtype)
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
    elif not masked and Tq == 1:  # a row or a plain square needs no mask in memory
        o = F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)
    elif not masked and k.size(2) == Tq:
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    else:
        mask = _mask(Tq, Tk, k.size(2) - Tk, q.device, prefix_length, length, window)
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
    if gate is not None and P:
        on_prefix = F.scaled_dot_product_attention(q, prefix_k, prefix_v, enable_gqa=grouped)
        o = o + gate.to(q.dtype).view(nh, 1, 1) * on_prefix
    return o


def _fused(q, *rest, whole=False):
    """fused.py's kernel, compiled where that works; in a compiled model it is part of that graph."""
    through_compile = not torch.compiler.is_compiling() and can_compile(q.device.type)
    return fused_attention(q, *rest, through_compile=through_compile, whole=whole)


def _flash(q, k, v, prefix_k, prefix_v, gate, prefix_length, length, window, prefix_bias):
    """torch's flash operator for CPUs, once a part: prefix, earlier positions, the queries' own.

    It returns a part's log-sum-exp too, by which the outputs are merged (fused.py). Queries of all
    rows go to a shared prefix together, which is read once (Hydragen). A pass has one parallel
    region for each part: at the end of every one, threads wait for each other.
    """
    if q.device.type != "cpu" or torch.is_grad_enabled():
        raise Error("the flash backend is for inference on a CPU, under torch.no_grad()")
    prefix_k, prefix_v, k, v = (x.to(q.dtype) for x in (prefix_k, prefix_v, k, v))

    def part(q, keys, values, causal=False, mask=None):  # -> o (B, nh, Tq, hs), lse (B, nh, Tq)
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, -math.inf)
        operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default  # reads other strides wrong
        q, keys, values = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, keys, values))
        return operator(q, keys, values, 0.0, causal, attn_mask=mask)

    (B, nh, Tq, hs), before = q.shape, k.size(2) - q.size(2)
    if length is not None or window is not None:
        o, lse = part(q, k, v, mask=_mask(Tq, k.size(2), 0, q.device, None, length, window))
    elif Tq == 1 or not before:
        o, lse = part(q, k, v, causal=Tq > 1)
    else:
        own = part(q, k[:, :, before:], v[:, :, before:], causal=True)
        o, lse = _merged(part(q, k[:, :, :before], v[:, :, :before]), own)
    if not prefix_k.size(2):
        return o
    mask = empty = None
    if prefix_length is not None:
        mask = _prefix_mask(prefix_k.size(2), prefix_length)
        empty = (prefix_length == 0).view(-1, 1, 1)  # rows without a prefix give it no attention
    if prefix_bias is not None:
        everywhere = torch.ones(1, prefix_k.size(2), dtype=torch.bool, device=q.device)
        wide = torch.promote_types(q.dtype, torch.float32)  # q's dtype may be too coarse for β
        mask = _bias_mask(everywhere if mask is None else mask, prefix_bias, nh, wide)  # (1|B, nh, 1, P)
        empty = (mask == -math.inf).all(-1)  # (1|B, nh, 1)
    if len(prefix_k) == 1 and prefix_length is None:  # one prefix for all rows is read once
        rows = q.transpose(0, 1).reshape(1, nh, B * Tq, hs)
        prefix_o, prefix_lse = part(rows, prefix_k, prefix_v, mask=mask)
        prefix_o = prefix_o.view(nh, B, Tq, hs).transpose(0, 1)
        prefix_lse = prefix_lse.view(nh, B, Tq).transpose(0, 1)
    else:
        prefix_k, prefix_v = (x.expand(B, -1, -1, -1) for x in (prefix_k, prefix_v))
        prefix_o, prefix_lse = part(q, prefix_k, prefix_v, mask=mask)
    if empty is not None:
        prefix_o, prefix_lse = prefix_o.masked_fill(empty[..., None], 0), prefix_lse.masked_fill(empty, -math.inf)
    if gate is not None:
        return o + gate.to(o.dtype).view(-1, 1, 1) * prefix_o
    return _merged((o, lse), (prefix_o, prefix_lse))[0]


def _merged(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Outputs and log-sum-exps of two sets of keys -> those of both together."""
    (o, lse), (other_o, other_lse) = one, other
    share = torch.sigmoid(other_lse - lse).unsqueeze(-1)  # of the attention, λ in fused.py
    return o.to(lse.dtype).lerp(other_o.to(lse.dtype), share).to(o.dtype), torch.logaddexp(lse, other_lse)


def _auto(q, k, v, prefix_k, prefix_v, gate, prefix_length, length, window, prefix_bias):
    backend = faster(q, torch.compiler.is_compiling())
    if prefix_bias is not None and backend == "sdpa" and q.dtype != torch.float16:
        backend = "split"  # sdpa saves all attention weights if its mask needs a gradient
    if should_split_in_inference(q, k, prefix_k):
        backend = "flash" if q.device.type == "cpu" else backend if q.dtype == torch.float16 else "split"
    return BACKENDS[backend](q, k, v, prefix_k, prefix_v, gate, prefix_length, length, window, prefix_bias)


def _auto_any_length(q, k, v, prefix_k, prefix_v, gate, prefix_length, length, window, prefix_bias):
    """In a graph for any T, so without spans: each number of them would be compiled anew."""
    compiling = torch.compiler.is_compiling()
    one_span = q.dtype == torch.bfloat16 and q.size(2) <= 1024 and faster(q, compiling) == "fused"
    if prefix_bias is not None and compiling and q.dtype != torch.float16:
        one_span = True  # as in _auto: sdpa saves all attention weights
    if one_span:  # all scores of a layer lie in memory for a moment
        return _fused(q, k, v, prefix_k, prefix_v, gate, prefix_length, length, window, prefix_bias, whole=True)
    backend = _sdpa if compiling else _auto
    return backend(q, k, v, prefix_k, prefix_v, gate, prefix_length, length, window, prefix_bias)


def should_split_in_inference(q: Tensor, k: Tensor, prefix_k: Tensor) -> bool:
    """True in inference where concatenating costs more (`bench.py serving`): beside a key-value
    cache, and for a shared prefix as long as the text."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not prefix_k.size(2):
        return False
    return q.size(2) < k.size(2) or (prefix_k.size(0) < q.size(0) and prefix_k.size(2) >= k.size(2))


def faster(q: Tensor, compiling: bool) -> str:
    """The faster backend for these queries, measured on a CPU by `bench.py attention`.

    Compiled "fused", unless few queries make its many small matmuls lose to one operator. Eagerly
    "sdpa": compiling the kernel alone would take seconds for every new length. GPUs, not measured:
    "sdpa".
    """
    enough = {torch.bfloat16: 16, torch.float32: 128, torch.float64: 128}.get(q.dtype, math.inf)
    return "fused" if compiling and q.device.type == "cpu" and q.size(2) >= enough else "sdpa"


BACKENDS = {"auto": _auto, "auto-any-length": _auto_any_length, "reference": _reference, "sdpa": _sdpa,
            "flash": _flash, "fused": _fused, "split": fused_attention}  # split: the kernel run eagerly
