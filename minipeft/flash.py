"""Prefix attention from torch's flash operator for CPUs: one call for each part, merged.

A query's keys lie in up to three parts: the prefix, the positions before all queries (a cache), and
the queries' own positions, which alone need a causal mask. Each part is one call of the operator,
which returns its output o_i and its log-sum-exp lse_i:

    o = Σ exp(lse_i - lse) o_i,     lse = log Σ exp(lse_i)

Nothing is concatenated, a shared prefix is not repeated for each row, and a pass has one parallel
region for each part: on a busy machine, threads wait for each other at every end of one. Backward
calls the operator's own backward for each part, with the merged o and lse: no more is needed
(fused.py). With a gate the prefix keeps its own softmax, and the gate merges.
"""

import math

import torch
from torch import Tensor

from .checks import Error

flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def flash_attention(q, k, v, prefix_k, prefix_v, gate, prefix_mask=None, mask=None) -> Tensor:
    """Arguments and result of attention.prefix_attention, on a CPU.

    prefix_mask (B, 1, 1, P), mask (B, 1, Tq, Tk): of rows of different lengths, True = the query may
    attend to that key. They occur only in inference, so they skip the backward pass below.
    """
    k, v, prefix_k, prefix_v = (x.to(q.dtype) for x in (k, v, prefix_k, prefix_v))
    with torch.autocast(q.device.type, enabled=False):
        if prefix_mask is not None or mask is not None or not torch.is_grad_enabled():
            return forward(q, k, v, prefix_k, prefix_v, gate, prefix_mask, mask)[0]
        return _FlashAttention.apply(q, k, v, prefix_k, prefix_v, gate)


class _FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, prefix_k, prefix_v, gate):
        o, *saved = forward(q, k, v, prefix_k, prefix_v, gate)
        ctx.save_for_backward(q, k, v, prefix_k, prefix_v, gate, *saved)
        return o

    @staticmethod
    def backward(ctx, do):
        if torch.is_grad_enabled():
            raise Error("the flash kernel has first derivatives only: for create_graph=True take backend='reference'")
        with torch.autocast(do.device.type, enabled=False):
            return backward(do, *ctx.saved_tensors, any(ctx.needs_input_grad[:3]), any(ctx.needs_input_grad[3:]))


def forward(q, k, v, prefix_k, prefix_v, gate, prefix_mask=None, mask=None):
    """-> the output (B, nh, Tq, hs); o and lse (B, nh, Tq) of all keys, or with a gate of the context alone;
    with a gate o and lse of the prefix alone, else None and None."""
    o, lse = merge([call(q, *part) for part in context_parts(q, k, v, mask)])
    if not prefix_k.size(2):
        return o, o, lse, None, None
    on_prefix = prefix_o, prefix_lse = call(q, *prefix_part(q, prefix_k, prefix_v), prefix_mask)
    if prefix_mask is not None:  # a row without a prefix: its share of the attention is 0
        on_prefix = prefix_o.nan_to_num(), prefix_lse.masked_fill(~prefix_mask.any(-1), -math.inf)
    if gate is None:
        o, lse = merge([(o, lse), on_prefix])
        return o, o, lse, None, None
    return o + gate.to(o.dtype).view(-1, 1, 1) * prefix_o, o, lse, prefix_o, prefix_lse


def backward(do, q, k, v, prefix_k, prefix_v, gate, o, lse, prefix_o, prefix_lse, context: bool, prefix: bool):
    """-> the gradients of q, k, v (where `context`) and of prefix_k, prefix_v, gate (where `prefix`), else None."""
    dq = dk = dv = dpk = dpv = dgate = None
    if context:
        found = [flash_backward(do, q, *part[:2], o, lse, 0.0, part[2]) for part in context_parts(q, k, v)]
        dq = sum(x[0] for x in found)
        dk, dv = (torch.cat([x[i] for x in found], dim=2) if len(found) > 1 else found[0][i] for i in (1, 2))
    if prefix_k.size(2):
        if gate is not None:
            o, lse, dgate = prefix_o, prefix_lse, (do * prefix_o).sum((0, 2, 3)).view_as(gate).to(gate.dtype)
            do = do * gate.to(do.dtype).view(-1, 1, 1)
        part_k, part_v, causal = prefix_part(q, prefix_k, prefix_v)
        part_dq, dpk, dpv = flash_backward(do, q, part_k, part_v, o, lse, 0.0, causal)
        dq = dq + part_dq if context else None
        dpk, dpv = (x.sum_to_size(prefix_k.shape) if prefix else None for x in (dpk, dpv))
    return dq, dk, dv, dpk, dpv, dgate if prefix else None


def context_parts(q, k, v, mask=None) -> list[tuple]:
    """Keys, values, causal or not, and a mask, of the positions before all queries and of the queries' own."""
    before = k.size(2) - q.size(2)
    if mask is not None or q.size(2) == 1 or not before:
        return [(k, v, mask is None and q.size(2) > 1, mask)]
    return [(k[:, :, :before], v[:, :, :before], False, None), (k[:, :, before:], v[:, :, before:], True, None)]


def prefix_part(q, prefix_k, prefix_v) -> tuple:
    """A prefix's keys and values for every row, a shared one not copied; not causal."""
    B = q.size(0)
    return prefix_k.expand(B, -1, -1, -1), prefix_v.expand(B, -1, -1, -1), False


def call(q, k, v, causal, mask=None) -> tuple[Tensor, Tensor]:
    """The operator on one part -> o (B, nh, Tq, hs), lse (B, nh, Tq)."""
    if mask is not None:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, -math.inf)
    return flash(q, k, v, 0.0, causal, attn_mask=mask)


def merge(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Outputs and log-sum-exps of the parts -> those of all keys together."""
    (o, lse), *others = parts
    for other, other_lse in others:
        share = torch.sigmoid(other_lse - lse).unsqueeze(-1)  # of the attention, λ in fused.py
        wide = torch.lerp(o.to(lse.dtype), other.to(lse.dtype), share)
        o, lse = wide.to(o.dtype), torch.logaddexp(lse, other_lse)
    return o, lse
