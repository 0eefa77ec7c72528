"""One key for many: mass and output of a prefix with a bias on its keys (2602.16284)."""

import torch
from torch import Tensor


def mass_and_output(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of queries to a prefix alone -> its log-mass log m (T,) and output o (T, hs).

    q (T, hs), keys and values (n, hs), bias (n,): a β for each key, added to its scores

        m = Σ_j exp(q·k_j / √hs + β_j)          o = Σ_j exp(q·k_j / √hs + β_j) v_j / m

    The logarithm of m, because m itself may overflow. β = -inf: that key is not there.
    """
    scores = q @ keys.T / q.size(-1) ** 0.5 + bias  # (T, n)
    return scores.logsumexp(dim=-1), scores.softmax(dim=-1) @ values


def counted(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """n rows, some of them equal -> keys (P, hs), values (P, hs) and bias (P,) of the P different ones.

    Every query must take the same mass and output from the P rows as from the n (whose bias is 0).
    Rows are equal where key and value are: torch.unique(rows, dim=0, return_counts=True).
    """
    rows, counts = torch.unique(torch.cat([keys, values], dim=1), dim=0, return_counts=True)
    k, v = rows.chunk(2, dim=1)
    return k, v, counts.to(k.dtype).log()
