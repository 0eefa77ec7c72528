# the biases are missing
"""Bottleneck adapter: a small network after a part of a block (1902.00751 §2.1)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """y ← y + W_up gelu(W_down y + b_down) + b_up          W_down (m, C), W_up (C, m)

    Parameters: self.down (m, C), self.b_down (m,), self.up (C, m), self.b_up (C,). Step 0 is y exactly.
    """

    def __init__(self, C: int, m: int):
        super().__init__()
        self.down, self.b_down = nn.Parameter(0.1 * torch.randn(m, C)), nn.Parameter(torch.zeros(m))
        self.up, self.b_up = nn.Parameter(torch.zeros(C, m)), nn.Parameter(torch.zeros(C))

    def forward(self, y: Tensor) -> Tensor:
        """y (B, T, C), the output of attention or of the MLP -> (B, T, C)."""
        return y + F.linear(F.gelu(F.linear(y, self.down)), self.up)
