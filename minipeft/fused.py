"""The fused kernel of prefix attention: two halves, each a plain product, merged by their log-sum-exps.

Softmax over [prefix ; context] is a mix of two softmaxes (He et al. 2022, 2110.04366 eq. 6; Hydragen 2402.05099 for the sharing):

    o = (1 - λ)·attn(q, K, V) + λ·attn(q, Pk, Pv),     λ = exp(lse_P - lse),   lse = logaddexp(lse_K, lse_P)

so that every weight of either half is exp(score - lse), and the halves never have to lie in one tensor:

    prefix half    one product with all queries of the batch: Pk is neither copied for each row nor concatenated to K
    causal half    blocks of queries against the keys at or before them: above the diagonal only the blocks on it cost anything

Backward needs no more than the merged o and lse (FlashAttention-2, 2307.08691 §2.3), so nothing of size T × (P + T) is ever kept:

    W = exp(S - lse),   D = rowsum(dO ∘ O),   dS = W ∘ (dO Vᵀ - D),   dq = dS K,   dK = dSᵀ q,   dV = Wᵀ dO

With a gate the prefix half keeps a softmax of its own (lse_P instead of lse), times g, and O is the causal half's. All of it is
plain PyTorch: torch.compile makes kernels of it (C++ with OpenMP on a CPU, Triton on a GPU), and without a compiler it runs as it stands.

    N = n_kv·B key heads of the batch     G = nh / n_kv query heads a key head
"""

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .compiling import compiled


def fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    gate: Tensor | None,
    through_compile: bool,
    prefix_length: Tensor | None = None,
    length: Tensor | None = None,
) -> Tensor:
    """What `attention.prefix_attention` describes. through_compile: by kernels compiled for each set of shapes.

    Rows of different lengths, which only inference has, go without the backward pass below: autograd's own serves them.
    """
    k, v, prefix_k, prefix_v = (x.to(q.dtype) for x in (k, v, prefix_k, prefix_v))
    if prefix_length is not None or length is not None:
        return (compiled(halves) if through_compile else halves)(q, k, v, prefix_k, prefix_v, gate, prefix_length, length)[0]
    return _FusedAttention.apply(q, k, v, prefix_k, prefix_v, gate, through_compile)


class _FusedAttention(torch.autograd.Function):
    """The types of products are chosen here, so autocast is off in both passes."""

    @staticmethod
    def forward(ctx, q, k, v, prefix_k, prefix_v, gate, through_compile):
        ctx.run_backward = compiled(halves_backward) if through_compile else halves_backward
        run = compiled(halves) if through_compile else halves
        with torch.autocast(q.device.type, enabled=False):
            o, lse, causal_o, lse_prefix = run(q, k, v, prefix_k, prefix_v, gate)
        ctx.save_for_backward(q, k, v, prefix_k, prefix_v, gate, o if causal_o is None else causal_o, lse, lse_prefix)
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx, do):
        context, prefix = any(ctx.needs_input_grad[:3]), any(ctx.needs_input_grad[3:6])
        with torch.autocast(do.device.type, enabled=False):
            return *ctx.run_backward(do, *ctx.saved_tensors, context, prefix), None


def halves(q, k, v, prefix_k, prefix_v, gate, prefix_length=None, length=None):
    """-> o (B, nh, Tq, hs), lse (N, G, Tq, 1); and with a gate, which keeps the halves apart, the causal half's share of o
    (B, nh, Tq, hs) and the prefix's own lse (N, G, Tq, 1), else None and None."""
    B, n_kv = q.size(0), k.size(1)
    scale = 1 / math.sqrt(q.size(-1))
    qf = fold(q, n_kv)
    o, m, total = causal_forward(qf, fold(k, n_kv).squeeze(1), fold(v, n_kv).squeeze(1), scale, length)
    lse = m + total.log()
    causal_o = lse_prefix = None
    if not prefix_k.size(2):
        return unfold((o / total).to(q.dtype), B), lse, None, None
    scores = wide(torch.bmm(prefix_rows(qf, prefix_k), heads(prefix_k).transpose(1, 2))) * scale  # (n_kv·Bp, rows, P)
    if prefix_length is not None:
        missing = torch.arange(prefix_k.size(2), device=q.device) >= prefix_length.view(B, 1, 1)  # (B, 1, P)
        scores = scores.view(n_kv, B, -1, prefix_k.size(2)).masked_fill(missing, -math.inf).view_as(scores)
    weights, m_prefix, total_prefix = weigh(scores)
    on_prefix = torch.bmm(weights.to(q.dtype), heads(prefix_v)).view_as(qf)
    m_prefix = m_prefix.view_as(m)
    alone = m_prefix + total_prefix.view_as(m).log()
    if gate is None:
        lse = torch.logaddexp(lse, alone)
        o = (m - lse).exp() * o + (m_prefix - lse).exp() * on_prefix  # (N, G, Tq, hs)
    else:
        o, lse_prefix = (m - lse).exp() * o, alone
        causal_o = unfold(o.to(q.dtype), B)
        o = o + per_row(gate, lse) * (m_prefix - alone).exp() * on_prefix
    return unfold(o.to(q.dtype), B), lse, causal_o, lse_prefix


def weigh(scores):
    """Softmax not yet divided by its total: the weights exp(S - m), the maxima m and the totals, over the last dimension.
    Where there is nothing to see, all weights are 0."""
    m = scores.amax(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).min)
    weights = (scores - m).exp()
    return weights, m, weights.sum(-1, keepdim=True)


def causal_forward(q, k, v, scale, length=None):
    """q (N, G, Tq, hs), k, v (N, Tk, hs) -> exp(S - m) V (N, G, Tq, hs), and of every row m and the total (N, G, Tq, 1)."""
    N, G, Tq, hs = q.shape
    before = k.size(1) - Tq  # keys that every query sees
    parts = []
    for a, b in blocks(Tq, q.dtype):
        seen = before + b
        scores = torch.bmm(q[:, :, a:b].reshape(N, -1, hs), k[:, :seen].transpose(1, 2))
        scores = wide(scores).view(N, G, b - a, seen) * scale
        if length is not None or Tq > 1:  # a single query, the last, sees every key
            late = 0 if length is None else (length - k.size(1)).repeat(N // len(length)).view(N, 1, 1, 1)
            scores = scores.masked_fill(~visible(before + a, before + b, 0, seen, q.device, late), -math.inf)
        weights, m, total = weigh(scores)
        parts.append((torch.bmm(weights.to(q.dtype).view(N, -1, seen), v[:, :seen]).view(N, G, b - a, hs), m, total))
    o, m, total = (torch.cat(x, dim=2) for x in zip(*parts, strict=True))
    return wide(o), m, total


def halves_backward(do, q, k, v, prefix_k, prefix_v, gate, o, lse, lse_prefix, context: bool, prefix: bool):
    """-> the gradients of q, k, v (where `context`) and of prefix_k, prefix_v, gate (where `prefix`), else None.

    o: the output, or with a gate the causal half's share of it. This works with half of q, which is exact, and doubles the scale:
    torch.compile, which sees both passes at once, would otherwise find the same products in them, and keep the scores from forward
    to backward.
    """
    B, n_kv, P = q.size(0), k.size(1), prefix_k.size(2)
    scale = 2 / math.sqrt(q.size(-1))
    half_q, dof = fold(q, n_kv) * 0.5, fold(do, n_kv)
    D = (wide(dof) * wide(fold(o, n_kv))).sum(-1, keepdim=True)  # (N, G, Tq, 1)
    dq = dk = dv = dpk = dpv = dgate = None
    if P:
        shared, dshared = prefix_rows(half_q, prefix_k), prefix_rows(dof, prefix_k)
        pk, pv = heads(prefix_k), heads(prefix_v)
        scores = wide(torch.bmm(shared, pk.transpose(1, 2))) * scale  # (n_kv·Bp, rows, P)
        weights = (scores - prefix_rows(lse if gate is None else lse_prefix, prefix_k)).exp()
        dweights = wide(torch.bmm(dshared, pv.transpose(1, 2)))
        if gate is None:
            dscores = weights * (dweights - prefix_rows(D, prefix_k))
        else:  # dO · what the prefix would add ungated, row by row
            row = (weights * dweights).sum(-1, keepdim=True)
            weights = weights * prefix_rows(per_row(gate, lse), prefix_k)
            dscores = weights * (dweights - row)
            dgate = row.view(n_kv, B, -1, q.size(2)).sum((1, 3)).view_as(gate).to(gate.dtype)
        dscores = (dscores * scale).to(q.dtype)
        if prefix:
            dpk = unfold(torch.bmm(dscores.transpose(1, 2), shared), prefix_k.size(0))
            dpv = unfold(torch.bmm(weights.to(q.dtype).transpose(1, 2), dshared), prefix_k.size(0))
    if context:
        kf, vf = fold(k, n_kv).squeeze(1), fold(v, n_kv).squeeze(1)
        twice_dq, dk, dv = causal_backward(dof, half_q, kf, vf, D, lse, scale)
        if P:
            twice_dq = twice_dq + torch.bmm(dscores, pk).view_as(twice_dq)
        dq, dk, dv = (unfold(x.to(q.dtype), B) for x in (0.5 * twice_dq, dk, dv))
    return dq, dk, dv, dpk, dpv, dgate if prefix else None


def causal_backward(do, half_q, k, v, D, lse, scale):
    """Blocks of keys against the queries at or after them -> twice dq (N, G, Tq, hs), dk, dv (N, Tk, hs)."""
    N, G, Tq, hs = half_q.shape
    before = k.size(1) - Tq
    spans = blocks(Tq, half_q.dtype)
    dqs, dks, dvs = [[] for _ in spans], [], []
    for j, (a, b) in enumerate(spans):
        first, last = (before + a if a else 0), before + b  # the first block takes the keys that every query sees
        late_q, late_do = (x[:, :, a:].reshape(N, -1, hs) for x in (half_q, do))
        keys, values = k[:, first:last], v[:, first:last]
        scores = wide(torch.bmm(late_q, keys.transpose(1, 2))).view(N, G, Tq - a, -1) * scale
        seen = visible(before + a, before + Tq, first, last, k.device)
        weights = torch.where(seen, (scores - lse[:, :, a:]).exp(), 0.0)
        dweights = wide(torch.bmm(late_do, values.transpose(1, 2))).view_as(weights)
        dscores = (weights * (dweights - D[:, :, a:]) * scale).to(k.dtype).view(N, -1, last - first)
        dks.append(torch.bmm(dscores.transpose(1, 2), late_q))
        dvs.append(torch.bmm(weights.to(k.dtype).view(N, -1, last - first).transpose(1, 2), late_do))
        late_dq = wide(torch.bmm(dscores, keys).view(N, G, Tq - a, hs))
        for i, (c, d) in enumerate(spans[j:], start=j):
            dqs[i].append(late_dq[:, :, c - a : d - a])
    twice_dq = torch.cat([sum(parts) for parts in dqs], dim=2)
    return twice_dq, torch.cat(dks, dim=1), torch.cat(dvs, dim=1)


def blocks(T: int, dtype: torch.dtype) -> list[tuple[int, int]]:
    """The spans that T positions are worked on in: short ones waste less above the diagonal, long ones make faster products.
    The sizes are those that measured fastest on a CPU."""
    size = 128 if dtype.itemsize == 2 else 96 if T > 128 else 64
    return [(a, min(T, a + size)) for a in range(0, T, size)]


def visible(first_query: int, last_query: int, first_key: int, last_key: int, device, late=0) -> Tensor:
    """bool (queries, keys): which of these keys lie at or before which of these queries; late (N, 1, 1, 1): by how many
    positions each row's queries lie behind that, then (N, 1, queries, keys)."""
    query = torch.arange(first_query, last_query, device=device)[:, None] + late
    return torch.arange(first_key, last_key, device=device) <= query


def wide(x: Tensor) -> Tensor:
    """The type that scores are weighed and sums are kept in: float32 or above."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def fold(x: Tensor, n_kv: int) -> Tensor:
    """(B, n_kv·G, T, W) -> (N, G, T, W): key head first, so that all the batch's rows of one head lie together."""
    B, _, T, W = x.shape
    return x.view(B, n_kv, -1, T, W).transpose(0, 1).reshape(n_kv * B, -1, T, W)


def unfold(x: Tensor, B: int) -> Tensor:
    """(N, G, T, W) or (N, T, W) -> (B, n_kv·G, T, W)."""
    T, W = x.shape[-2:]
    return x.reshape(x.size(0) // B, B, -1, T, W).transpose(0, 1).reshape(B, -1, T, W)


def heads(prefix: Tensor) -> Tensor:
    """(Bp, n_kv, P, hs) -> (n_kv·Bp, P, hs)."""
    return prefix.transpose(0, 1).flatten(0, 1)


def prefix_rows(x: Tensor, prefix: Tensor) -> Tensor:
    """(N, G, T, W) -> (n_kv·Bp, rows, W): all rows that look at the same prefix, which are the whole batch's when Bp is 1."""
    return x.reshape(prefix.size(1) * prefix.size(0), -1, x.size(-1))


def per_row(gate: Tensor, lse: Tensor) -> Tensor:
    """gate (n_kv·G,) -> the gate of every row of lse (N, G, Tq, 1)."""
    N, G, Tq, _ = lse.shape
    n_kv = gate.numel() // G
    return gate.to(lse.dtype).view(n_kv, 1, G, 1, 1).expand(n_kv, N // n_kv, G, Tq, 1).reshape(N, G, Tq, 1)
