"""The fused kernel of prefix attention: two parts, merged by their log-sum-exps.

Softmax over [prefix ; context] is a mix of two softmaxes (He et al. 2022, 2110.04366 eq. 6):

    o = (1 - λ)·attn(q, K, V) + λ·attn(q, Pk, Pv),    λ = exp(lse_P - lse),   lse = logaddexp(lse_K, lse_P)

Every attention weight is exp(score - lse), so the two parts never have to lie in one tensor:

    prefix part    one matmul with all queries of the batch: a shared Pk is neither repeated for each
                   row nor concatenated to K (Hydragen, 2402.05099)
    causal part    spans of queries against the keys at or before them, so that masked scores are
                   computed only within a span

Backward needs no more than the merged o and lse (FlashAttention-2, 2307.08691 §2.3), so nothing of
size T × (P + T) is saved:

    S = q Kᵀ / sqrt(hs),   W = exp(S - lse),   D = rowsum(dO ∘ O),   dS = W ∘ (dO Vᵀ - D) / sqrt(hs)
    dq = dS K,   dK = dSᵀ q,   dV = Wᵀ dO

With a gate the prefix part keeps its own softmax (lse_P instead of lse), times g, and in D, O is
the causal part's output. A bias β adds to the prefix part's scores; dβ sums W ∘ (dO Vᵀ - D) over
the queries. torch.compile makes kernels of this plain PyTorch; without a compiler it runs as it is.

    N = n_kv·B key heads of the batch     G = nh / n_kv query heads per key head
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import Error
from .runtime.compiling import compiled


class Window(NamedTuple):
    """Sliding window (Mistral, 2310.06825 §2): a query sees `size` keys, its own and those before
    it. A prefix, and the first `virtual` keys of the context, which are a soft prompt's, stay
    visible to every query."""

    size: int
    virtual: int = 0


def causal_mask(queries: tuple[int, int], keys: tuple[int, int], device=None, shift: "int | Tensor" = 0,
                window: Window | None = None) -> Tensor:
    """Boolean attention mask (Tq, Tk): True = the query may attend to that key.

    queries, keys: (first, stop) positions in the context; a prefix's keys are (-P, 0). shift: added
    to the queries' positions, (N, 1, 1, 1) for rows of different lengths -> mask (N, 1, Tq, Tk).
    """
    query = torch.arange(*queries, device=device)[:, None] + shift
    key = torch.arange(*keys, device=device)
    if window is None:
        return key <= query
    return (key <= query) & ((key > query - window.size) | (key < window.virtual))


def fused_attention(q, k, v, prefix_k, prefix_v, gate, prefix_length=None, length=None,
                    window: Window | None = None, prefix_bias=None, through_compile: bool = False,
                    whole: bool = False) -> Tensor:
    """Split attention with the custom backward below; ragged batches use autograd's. Raises Error for float16.

    through_compile: compiled once per set of shapes. whole: all queries in one span, so that one graph serves any T."""
    if q.dtype == torch.float16:
        raise Error("the fused kernel's sums would overflow float16: use bfloat16, float32 or float64, "
                    "or backend='sdpa'")
    k, v, prefix_k, prefix_v = (x.to(q.dtype) for x in (k, v, prefix_k, prefix_v))
    if prefix_length is not None or length is not None or not torch.is_grad_enabled():
        run = compiled(split_attention) if through_compile else split_attention
        with torch.autocast(q.device.type, enabled=False):
            return run(q, k, v, prefix_k, prefix_v, gate, prefix_length, length, whole, window, prefix_bias)[0]
    return _FusedAttention.apply(q, k, v, prefix_k, prefix_v, gate, prefix_bias, through_compile, whole, window)


class _FusedAttention(torch.autograd.Function):
    # The passes choose the dtypes of their matmuls, so autocast is off.
    @staticmethod
    def forward(ctx, q, k, v, prefix_k, prefix_v, gate, prefix_bias, through_compile, whole, window):
        ctx.whole, ctx.window = whole, window
        choose = compiled if through_compile else (lambda function: function)
        ctx.run_backward = choose(split_attention_backward)
        with torch.autocast(q.device.type, enabled=False):
            o, lse, causal_o, lse_prefix = choose(split_attention)(
                q, k, v, prefix_k, prefix_v, gate, whole=whole, window=window, prefix_bias=prefix_bias)
        o_for_D = o if causal_o is None else causal_o
        ctx.save_for_backward(q, k, v, prefix_k, prefix_v, gate, prefix_bias, o_for_D, lse, lse_prefix)
        return o

    @staticmethod
    def backward(ctx, do):
        if torch.is_grad_enabled():  # create_graph: what follows has no derivatives of its own
            raise Error("the fused kernel has first derivatives only: for create_graph=True take backend='reference'")
        context, prefix = any(ctx.needs_input_grad[:3]), any(ctx.needs_input_grad[3:7])
        with torch.autocast(do.device.type, enabled=False):
            return *ctx.run_backward(do, *ctx.saved_tensors, context, prefix, ctx.whole, ctx.window), None, None, None


def split_attention(q, k, v, prefix_k, prefix_v, gate, prefix_length=None, length=None, whole=False, window=None,
                    prefix_bias=None):
    """-> o (B, nh, Tq, hs), lse (N, G, Tq, 1), and with a gate the causal part of o (B, nh, Tq, hs)
    and the prefix's own lse (N, G, Tq, 1), else None and None."""
    B, n_kv = q.size(0), k.size(1)
    scale = 1 / math.sqrt(q.size(-1))
    qf = to_heads_first(q, n_kv)
    kf, vf = (to_heads_first(x, n_kv).squeeze(1) for x in (k, v))
    o, m, total = causal_part(qf, kf, vf, scale, length, whole, window)  # unnormalised: attn(q, K, V) = o / total
    lse_context = m + total.log()
    if not prefix_k.size(2):
        return from_heads_first((o / total).to(q.dtype), B), lse_context, None, None
    pk, pv = (to_heads_first(x, n_kv).squeeze(1) for x in (prefix_k, prefix_v))  # (n_kv·Bp, P, hs)
    scores = prefix_scores(rows_per_prefix(qf, prefix_k), pk, scale, prefix_bias)
    if prefix_length is not None:  # scores: (n_kv·Bp, rows, P)
        missing = torch.arange(prefix_k.size(2), device=q.device) >= prefix_length.view(B, 1, 1)
        scores = scores.view(n_kv, B, -1, prefix_k.size(2)).masked_fill(missing, -math.inf).view_as(scores)
    weights, m_prefix, total_prefix = unnormalised_softmax(scores)
    on_prefix = torch.bmm(weights.to(q.dtype), pv).view_as(qf)
    m_prefix = m_prefix.view_as(m)
    total_prefix = total_prefix.view_as(m)
    if prefix_bias is not None or prefix_length is not None:  # where no key is left: log 0, without its gradient
        empty = total_prefix == 0
        m_prefix, total_prefix = m_prefix.masked_fill(empty, -math.inf), total_prefix.masked_fill(empty, 1)
    lse_prefix = m_prefix + total_prefix.log()
    if gate is None:
        lse = torch.logaddexp(lse_context, lse_prefix)  # λ = exp(lse_prefix - lse), spread over the two factors
        o = (m - lse).exp() * o + (m_prefix - lse).exp() * on_prefix  # (N, G, Tq, hs)
        return from_heads_first(o.to(q.dtype), B), lse, None, None
    o = (m - lse_context).exp() * o
    causal_o = from_heads_first(o.to(q.dtype), B)
    o = o + gate_per_row(gate, lse_context) * (m_prefix - lse_prefix).exp() * on_prefix
    return from_heads_first(o.to(q.dtype), B), lse_context, causal_o, lse_prefix


def unnormalised_softmax(scores):
    """exp(S - m), maxima m, sums over the last dimension; 0 where all scores are -inf."""
    m = scores.amax(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).min)
    weights = (scores - m).exp()
    return weights, m, weights.sum(-1, keepdim=True)


def causal_part(q, k, v, scale, length=None, whole=False, window=None):
    """q (N, G, Tq, hs), k, v (N, Tk, hs) -> exp(S - m) V (N, G, Tq, hs), m and sums (N, G, Tq, 1)."""
    N, G, Tq, hs = q.shape
    before = k.size(1) - Tq  # keys that every query sees
    parts = []
    for a, b in query_spans(Tq, q.dtype, whole):
        first, stop, virtual = 0, before + b, 0  # the keys that the queries see
        if window is not None and length is None and before + a + 1 - window.size > window.virtual:
            first, virtual = before + a + 1 - window.size, window.virtual
        keys, values = (torch.cat([x[:, :virtual], x[:, first:stop]], dim=1) if virtual else x[:, first:stop]
                        for x in (k, v))
        scores = torch.bmm(q[:, :, a:b].reshape(N, -1, hs), keys.transpose(1, 2))
        scores = accumulate(scores).view(N, G, b - a, -1) * scale
        if length is not None or Tq > 1:  # a single query, the last, sees every key
            shift = 0 if length is None else (length - k.size(1)).repeat(N // len(length)).view(N, 1, 1, 1)
            mask = causal_mask((before + a, stop), (first, stop), q.device, shift, window)
            scores = scores.masked_fill(~F.pad(mask, (virtual, 0), value=True), -math.inf)
        weights, m, total = unnormalised_softmax(scores)
        o = torch.bmm(weights.to(q.dtype).flatten(1, 2), values).view(N, G, b - a, hs)
        parts.append((o, m, total))
    o, m, total = (torch.cat(x, dim=2) for x in zip(*parts, strict=True))
    return accumulate(o), m, total


def split_attention_backward(do, q, k, v, prefix_k, prefix_v, gate, prefix_bias, o, lse, lse_prefix, context: bool,
                             prefix: bool, whole: bool = False, window: Window | None = None):
    """-> the gradients of q, k, v (where `context`) and of prefix_k, prefix_v, gate, prefix_bias
    (where `prefix`), else None.

    o: the output, or with a gate its causal part. Half of q (exact) and twice the scale keep
    torch.compile, which sees both passes, from finding equal matmuls and saving the scores.
    """
    B, n_kv, P = q.size(0), k.size(1), prefix_k.size(2)
    scale = 2 / math.sqrt(q.size(-1))
    half_q, dof = to_heads_first(q, n_kv) * 0.5, to_heads_first(do, n_kv)
    D = (accumulate(dof) * accumulate(to_heads_first(o, n_kv))).sum(-1, keepdim=True)  # (N, G, Tq, 1)
    dq = dk = dv = dpk = dpv = dgate = dbias = None
    if P:
        q_rows, do_rows = rows_per_prefix(half_q, prefix_k), rows_per_prefix(dof, prefix_k)
        pk, pv = (to_heads_first(x, n_kv).squeeze(1) for x in (prefix_k, prefix_v))
        scores = prefix_scores(q_rows, pk, scale, prefix_bias)  # (n_kv·Bp, rows, P)
        weights = (scores - rows_per_prefix(lse if gate is None else lse_prefix, prefix_k)).exp()
        dweights = accumulate(torch.bmm(do_rows, pv.transpose(1, 2)))
        if gate is None:
            dscores = weights * (dweights - rows_per_prefix(D, prefix_k))
        else:  # row: dO · the ungated output of the prefix part
            row = (weights * dweights).sum(-1, keepdim=True)
            weights = weights * rows_per_prefix(gate_per_row(gate, lse), prefix_k)
            dscores = weights * (dweights - row)
            dgate = row.view(n_kv, B, -1, q.size(2)).sum((1, 3)).view_as(gate).to(gate.dtype)
        if prefix_bias is not None:
            dbias = dscores.sum(1).view(n_kv, -1, P).transpose(0, 1).to(prefix_bias.dtype)
        dscores = (dscores * scale).to(q.dtype)
        if prefix:
            dpk = from_heads_first(torch.bmm(dscores.transpose(1, 2), q_rows), prefix_k.size(0))
            dpv = from_heads_first(torch.bmm(weights.to(q.dtype).transpose(1, 2), do_rows), prefix_k.size(0))
    if context:
        kf, vf = (to_heads_first(x, n_kv).squeeze(1) for x in (k, v))
        twice_dq, dk, dv = causal_backward(dof, half_q, kf, vf, D, lse, scale, whole, window)
        if P:
            twice_dq = twice_dq + torch.bmm(dscores, pk).view_as(twice_dq)
        dq, dk, dv = (from_heads_first(x.to(q.dtype), B) for x in (0.5 * twice_dq, dk, dv))
    return dq, dk, dv, dpk, dpv, *((dgate, dbias) if prefix else (None, None))


def causal_backward(do, half_q, k, v, D, lse, scale, whole=False, window=None):
    """Blocks of keys, and queries that see them -> twice dq (N, G, Tq, hs), dk, dv (N, Tk, hs)."""
    N, G, Tq, hs = half_q.shape
    before = k.size(1) - Tq
    spans = query_spans(Tq, half_q.dtype, whole)
    dqs, dks, dvs = [[] for _ in spans], [], []
    for j, (a, b) in enumerate(spans):
        first, last = (before + a if a else 0), before + b  # block 0 also takes the keys that every query sees
        later = spans[j:]  # of queries: at or after these keys, and within the window
        if window is not None and first >= window.virtual:
            later = [(c, d) for c, d in later if before + c < last - 1 + window.size]
        e = later[-1][1]
        later_q, later_do = (x[:, :, a:e].reshape(N, -1, hs) for x in (half_q, do))
        keys, values = k[:, first:last], v[:, first:last]
        scores = accumulate(torch.bmm(later_q, keys.transpose(1, 2))).view(N, G, e - a, -1) * scale
        mask = causal_mask((before + a, before + e), (first, last), k.device, window=window)
        weights = torch.where(mask, (scores - lse[:, :, a:e]).exp(), 0.0)
        dweights = accumulate(torch.bmm(later_do, values.transpose(1, 2))).view_as(weights)
        dscores = (weights * (dweights - D[:, :, a:e]) * scale).to(k.dtype).view(N, -1, last - first)
        dks.append(torch.bmm(dscores.transpose(1, 2), later_q))
        dvs.append(torch.bmm(weights.to(k.dtype).view(N, -1, last - first).transpose(1, 2), later_do))
        later_dq = accumulate(torch.bmm(dscores, keys).view(N, G, e - a, hs))
        for i, (c, d) in enumerate(later, start=j):
            dqs[i].append(later_dq[:, :, c - a : d - a])
    twice_dq = torch.cat([sum(parts) for parts in dqs], dim=2)
    return twice_dq, torch.cat(dks, dim=1), torch.cat(dvs, dim=1)


def query_spans(T: int, dtype: torch.dtype, whole: bool = False) -> list[tuple[int, int]]:
    """Spans (start, stop) of T queries; whole: one. Short ones mask fewer scores, long ones make
    faster matmuls (tuned on a CPU)."""
    if whole:
        return [(0, T)]
    size = 128 if dtype.itemsize == 2 else 96 if T > 128 else 64
    return [(a, min(T, a + size)) for a in range(0, T, size)]


def accumulate(x: Tensor) -> Tensor:
    """x in the accumulation dtype, float32 or above, for softmax and sums."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def to_heads_first(x: Tensor, n_kv: int) -> Tensor:
    """(B, n_kv·G, T, W) -> (N, G, T, W): all the batch's rows of one key head lie together."""
    B, _, T, W = x.shape
    return x.view(B, n_kv, -1, T, W).transpose(0, 1).reshape(n_kv * B, -1, T, W)


def from_heads_first(x: Tensor, B: int) -> Tensor:
    """(N, G, T, W) or (N, T, W) -> (B, n_kv·G, T, W)."""
    T, W = x.shape[-2:]
    return x.reshape(x.size(0) // B, B, -1, T, W).transpose(0, 1).reshape(B, -1, T, W)


def rows_per_prefix(x: Tensor, prefix: Tensor) -> Tensor:
    """(N, G, T, W) -> (n_kv·Bp, rows, W): the rows that attend to one prefix; all if Bp is 1."""
    return x.reshape(prefix.size(1) * prefix.size(0), -1, x.size(-1))


def prefix_scores(q_rows: Tensor, pk: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """q Pkᵀ · scale + β (n_kv·Bp, rows, P), accumulation dtype; bias (Bp, n_kv, P) or None."""
    scores = accumulate(torch.bmm(q_rows, pk.transpose(1, 2))) * scale
    if bias is None:
        return scores
    return scores + accumulate(bias).transpose(0, 1).reshape(-1, 1, bias.size(2))


def gate_per_row(gate: Tensor, lse: Tensor) -> Tensor:
    """gate (n_kv·G,) -> the gate of every row of lse (N, G, Tq, 1)."""
    N, G, Tq, _ = lse.shape
    n_kv = gate.numel() // G
    return gate.to(lse.dtype).view(n_kv, 1, G, 1, 1).expand(n_kv, N // n_kv, G, Tq, 1).reshape(N, G, Tq, 1)
