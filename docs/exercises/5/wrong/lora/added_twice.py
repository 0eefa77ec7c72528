# the change is added twice
"""LoRA: forward, merge, unmerge (2106.09685 §4.1)."""

import torch
from torch import Tensor, nn


class LoRALinear(nn.Module):
    """y = W x + (α/r) · B A x, with W (out, in) frozen, A (r, in) and B (out, r) trained.

    Step 0 must be the base exactly, and yet one of A and B must get a gradient at once.
    """

    def __init__(self, W: Tensor, r: int, alpha: float):
        super().__init__()
        self.W, self.r, self.alpha, self.merged = W.clone(), r, alpha, False
        self.A = nn.Parameter(0.1 * torch.randn(r, W.size(1), dtype=W.dtype))
        self.B = nn.Parameter(torch.zeros(W.size(0), r, dtype=W.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in) -> (…, out). After merge() W does all of it."""
        y = x @ self.W.T
        return y + self.alpha / self.r * (x @ self.A.T) @ self.B.T

    def merge(self) -> None:
        """Add the change to W."""
        self.original, self.merged = self.W, True
        self.W = self.W + self.alpha / self.r * (self.B @ self.A).detach()

    def unmerge(self) -> None:
        """Give W back as it was, bit for bit: adding and then subtracting rounds twice."""
        self.W, self.merged = self.original, False
