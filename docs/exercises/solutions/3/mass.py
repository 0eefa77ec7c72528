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
    L, P, T = len(base.h), prefix.size(4), idx.size(1)
    mask = torch.ones(T, P + T, dtype=torch.bool).tril(P)
    x, (rope, *_) = base.add_positions(base.wte(idx), first=P)
    found = []
    for block, own in zip(base.h, Prefix.of(prefix).layers(L), strict=True):
        q, k, _ = block.attn.qkv(block.ln_1(x), rope)
        scores = q @ torch.cat([own.k, k], dim=2).mT / math.sqrt(q.size(-1))  # (1, nh, T, P + T)
        weights = scores.masked_fill(~mask, -math.inf).softmax(dim=-1)
        found.append(weights[0, :, :, :P].sum(dim=-1))
        x = block(x, rope, prefix=own)
    return torch.stack(found)
