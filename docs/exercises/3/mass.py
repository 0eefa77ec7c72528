"""The share λ of its attention that each head of a real model gives to a prefix (its mass, relative to all)."""

import math

import torch
from torch import Tensor

from minipeft import GPT
from minipeft.slots import Prefix


def mass(base: GPT, idx: Tensor, prefix: Tensor) -> Tensor:
    """idx (1, T), prefix (L, 2, 1, nh, P, hs) -> λ of every layer, head and token, (L, nh, T).

    λ is the sum of a query's attention weights on the P virtual tokens, all P + (own position + 1) keys counted.

    Parts of the base:  base.add_positions(x, first=…) -> x, ropes: one for each layer, all the same here
                        block.attn.qkv(block.ln_1(x), rope) -> q, k, v, each (1, nh, T, hs), positions included
                        block(x, rope, prefix=own), where own = Prefix.of(prefix).layers(L)[layer]; own.k (1, nh, P, hs)
    """
    raise NotImplementedError("go through the blocks; in each, weights over [prefix ; text], summed over the prefix")
