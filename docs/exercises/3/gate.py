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
    raise NotImplementedError("two softmaxes; which dimension of (B, nh, T, hs) does the gate belong to?")
