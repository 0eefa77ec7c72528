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
    raise NotImplementedError("concatenate, score, scale, mask, softmax over the keys, weigh the values")
