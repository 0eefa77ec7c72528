# the last norm is missing
"""Soft prompt: concatenate it before the embeddings, and drop its outputs."""

import torch
from torch import Tensor

from minipeft import GPT


def logits_with_prompt(base: GPT, idx: Tensor, prompt: Tensor) -> Tensor:
    """idx (B, T) int64, prompt (1, P, C) -> logits of the real tokens (B, T, V).

    x = [prompt ; wte(idx)], then positions for all P + T rows, the blocks, the last norm, the head.

    Parts of the base:  base.wte(idx) -> (B, T, C)      base.add_positions(x) -> x, ropes: one a layer, all the same
                        block(x, rope) for block in base.h
                        base.ln_f(x)                    base.head (V, C)
    """
    B, T = idx.shape
    x = torch.cat([prompt.expand(B, -1, -1), base.wte(idx)], dim=1)  # (B, P + T, C)
    x, (rope, *_) = base.add_positions(x)
    for block in base.h:
        x = block(x, rope)
    return x[:, -T:] @ base.head.T
