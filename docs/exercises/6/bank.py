"""A bank that mixes tasks: every row of a batch with a prefix of its own, or with none."""

import torch
from torch import Tensor


def gather(prefixes: dict[str, Tensor], tasks: list[str | None]) -> tuple[Tensor, Tensor, Tensor]:
    """prefixes: name -> (L, 2, 1, nh, its P, hs); tasks: one name, or None, for each of B rows

    -> keys and values, each (L, B, nh, P, hs), P the longest of these rows; shorter ones are padded at their end
       length (B,) int64: how many of the P positions a row has. Padding gets no attention by this, not by its zeros
    """
    raise NotImplementedError("the length of each row, zeros of the shape (L, 2, B, nh, P, hs), and a copy a row")
