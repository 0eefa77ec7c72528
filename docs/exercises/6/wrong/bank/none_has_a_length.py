# a row without a task has no prefix
"""A bank that mixes tasks: every row of a batch with a prefix of its own, or with none."""

import torch
from torch import Tensor


def gather(prefixes: dict[str, Tensor], tasks: list[str | None]) -> tuple[Tensor, Tensor, Tensor]:
    """prefixes: name -> (L, 2, 1, nh, its P, hs); tasks: one name, or None, for each of B rows

    -> keys and values, each (L, B, nh, P, hs), P the longest of these rows; shorter ones are padded at their end
       length (B,) int64: how many of the P positions a row has. Padding gets no attention by this, not by its zeros
    """
    own = [None if task is None else prefixes[task] for task in tasks]
    length = torch.tensor([5 if x is None else x.size(4) for x in own])
    L, _, _, nh, _, hs = next(iter(prefixes.values())).shape
    padded = next(iter(prefixes.values())).new_zeros(L, 2, len(tasks), nh, int(length.max()), hs)
    for row, x in enumerate(own):
        if x is not None:
            padded[:, :, row, :, : x.size(4)] = x[:, :, 0]
    return padded[:, 0], padded[:, 1], length
