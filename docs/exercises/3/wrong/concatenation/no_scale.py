# the scores are not divided by √hs
"""Attention with a prefix, the textbook way: concatenate its keys and values to those of the text."""

import math

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor) -> Tensor:
    """o = softmax(q [Pk ; K]ᵀ / √hs + mask) [Pv ; V]

    q, k, v               (B, nh, T, hs)
    prefix_k, prefix_v    (1, nh, P, hs): one prefix for all rows of the batch
    returns               (B, nh, T, hs)

    Every query sees the whole prefix, and the text up to and including its own position.
    """
    B, _, T, hs = q.shape
    k = torch.cat([prefix_k.expand(B, -1, -1, -1), k], dim=2)  # (B, nh, P + T, hs)
    v = torch.cat([prefix_v.expand(B, -1, -1, -1), v], dim=2)
    scores = q @ k.mT  # (B, nh, T, P + T)
    mask = torch.ones(T, k.size(2), dtype=torch.bool).tril(k.size(2) - T)
    return scores.masked_fill(~mask, -math.inf).softmax(dim=-1) @ v
