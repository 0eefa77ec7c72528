"""The MLP folded away: a prefix trained through a two-layer MLP is stored as plain keys and values."""

import torch
from torch import Tensor


def fold(e: Tensor, W1: Tensor, b1: Tensor, W2: Tensor, b2: Tensor, L: int, nh: int) -> Tensor:
    """The prefix (L, 2, 1, nh, P, hs) that this MLP makes, after which the MLP can be thrown away.

        row of virtual token p = W2 tanh(W1 e_p + b1) + b2              (Li & Liang, 2101.00190 §4.3, and their code)

    e (P, C), W1 (m, C), b1 (m,), W2 (W, m), b2 (W,), W = 2·L·C. The W channels of a row are in the order
    layer, key then value, head, channel (PEFT's order). Nothing that is returned needs a gradient.
    """
    with torch.no_grad():
        rows = torch.tanh(e @ W1.T + b1) @ W2.T + b2  # (P, W)
    return rows.view(len(e), L, 2, nh, -1).permute(1, 2, 3, 0, 4).unsqueeze(2)
