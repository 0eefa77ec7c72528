# ln_2 was taken
"""Hidden prefix to prefix: the keys and values that a block makes of vectors at its input."""

from torch import Tensor

from minipeft.model import Block


def keys_and_values(block: Block, hidden: Tensor, nh: int) -> tuple[Tensor, Tensor]:
    """hidden (1, P, C), at the input of this block -> keys and values, each (1, nh, P, hs).

    A block of GPT-2 normalises its input by block.ln_1. Then block.attn.c_attn makes queries, keys and
    values in one go: (1, P, 3C), in this order. Head h has the channels h·hs … (h + 1)·hs - 1 of each.
    """
    _, k, v = block.attn.c_attn(block.ln_2(hidden)).chunk(3, dim=-1)  # (1, P, C) each
    k, v = (x.view(1, hidden.size(1), nh, -1).transpose(1, 2) for x in (k, v))
    return k, v
