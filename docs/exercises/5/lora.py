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
        raise NotImplementedError("self.A and self.B, two nn.Parameter: one random, one zero")

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in) -> (…, out). After merge() W does all of it."""
        raise NotImplementedError("the equation for rows x: x @ W.T, and the low-rank part unless merged")

    def merge(self) -> None:
        """Add the change to W."""
        raise NotImplementedError("W + (α/r) · B A, and something for the way back")

    def unmerge(self) -> None:
        """Give W back as it was, bit for bit: adding and then subtracting rounds twice."""
        raise NotImplementedError("the W from before")
