"""One key for many: mass and output of a prefix with a bias on its keys (2602.16284)."""

import torch
from torch import Tensor


def mass_and_output(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of queries to a prefix alone -> its log-mass log m (T,) and output o (T, hs).

    q (T, hs), keys and values (n, hs), bias (n,): a β for each key, added to its scores

        m = Σ_j exp(q·k_j / √hs + β_j)          o = Σ_j exp(q·k_j / √hs + β_j) v_j / m

    The logarithm of m, because m itself may overflow. β = -inf: that key is not there.
    """
    raise NotImplementedError("scores with their bias; then their log-sum-exp, and their softmax times the values")


def counted(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """n rows, some of them equal -> keys (P, hs), values (P, hs) and bias (P,) of the P different ones.

    Every query must take the same mass and output from the P rows as from the n (whose bias is 0).
    Rows are equal where key and value are: torch.unique(rows, dim=0, return_counts=True).
    """
    raise NotImplementedError("which β makes one key weigh as much as c equal ones?")
