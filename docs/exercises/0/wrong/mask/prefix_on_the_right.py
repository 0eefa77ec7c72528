# the virtual tokens are on the right
"""Mask: which keys may a query attend to, when P virtual tokens stand before the text?"""

import torch
from torch import Tensor


def open_mask(P: int, T: int) -> Tensor:
    """Boolean mask (T, P + T): True = this query may attend to that key.

    Row i is the real token i. Columns 0 … P-1 are the virtual tokens, column P + j is the real token j.
    Every query sees all virtual tokens, and the real ones up to and including itself.
    """
    return torch.ones(T, P + T, dtype=torch.bool).tril(P).roll(-P, dims=1)
