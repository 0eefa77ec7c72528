# one softmax over both
"""A gate that starts at zero: LLaMA-Adapter's attention (2303.16199)."""

import torch
from torch import Tensor


def gated_attention(q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor, gate: Tensor) -> Tensor:
    """o = softmax(q Kᵀ / √hs + causal mask) V  +  g · softmax(q Pkᵀ / √hs) Pv

    q, k, v               (B, nh, T, hs)
    prefix_k, prefix_v    (1, nh, P, hs)
    gate                  (nh,): one number a head
    returns               (B, nh, T, hs)

    The prefix has a softmax of its own, so at gate 0 the output is the base's, exactly.
    """
    T, scale = q.size(2), q.size(-1) ** 0.5
    mask = torch.ones(T, T, dtype=torch.bool).tril()
    scores = torch.cat([q @ prefix_k.mT, (q @ k.mT).masked_fill(~mask, -torch.inf)], dim=-1) / scale
    weights, P = scores.softmax(dim=-1), prefix_k.size(2)
    on_text, on_prefix = weights[..., P:] @ v, weights[..., :P] @ prefix_v
    return on_text + gate.view(-1, 1, 1) * on_prefix
