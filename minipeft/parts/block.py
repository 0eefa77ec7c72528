"""Parts of a block that hold no matrix: norms, the activation, rotary positions."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..config import GPTConfig, RopeScaling
from ..fused import accumulate

Rope = tuple[Tensor, Tensor] | None  # a layer's cosines and sines; None: it has no rotation


class RMSNorm1p(nn.RMSNorm):
    """x / rms(x) · (1 + w), in float32 or above, w starting at zero (Gemma)."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(accumulate(x), self.normalized_shape, 1 + accumulate(self.weight), self.eps).to(x.dtype)


def norm(config: GPTConfig, size: int | None = None) -> nn.Module:
    """The config's norm of vectors of this size (None: C)."""
    kind = {"layer": nn.LayerNorm, "rms": nn.RMSNorm, "rms1p": RMSNorm1p}[config.norm]
    return kind(size or config.n_embd, eps=config.layer_norm_epsilon)


def gelu(x: Tensor) -> Tensor:
    """GPT-2's form of GELU (1606.08415 §2): x/2 · (1 + tanh y) = x · sigmoid(2y), y = sqrt(2/pi) (x
    + 0.044715 x³). Compiled code takes the sigmoid, which costs half of the tanh; eagerly torch's
    one operator is faster."""
    if torch.compiler.is_compiling():
        return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return F.gelu(x, approximate="tanh")


def layer_tables(c: GPTConfig, positions: Tensor, dtype: torch.dtype) -> list[Rope]:
    """rotary_tables of these positions a layer; layers with the same wavelengths share theirs."""
    layers = [c.rope(i) for i in range(c.n_layer)]
    tables = {rope: rotary_tables(positions, c.head_size, rope[0], dtype, rope[1]) for rope in set(layers) - {None}}
    return [tables.get(rope) for rope in layers]


def rotary_tables(positions: Tensor, head_size: int, theta: float, dtype: torch.dtype,
                  scaling: RopeScaling | None = None) -> tuple[Tensor, Tensor]:
    """Cosine and sine per position (T,) or (B, T) -> two tensors (1|B, 1, T, hs) (RoPE §3.2.2)."""
    channel = torch.arange(0, head_size, 2, device=positions.device, dtype=dtype)
    frequency = theta ** (-channel / head_size)  # (hs/2,)
    if scaling is not None:  # keep what turns fast, slow down what turns slowly
        turns = scaling.original * frequency / (2 * math.pi)  # within the positions first trained on
        keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        slowed, same = torch.full_like(keep, 1 / scaling.factor), torch.ones_like(keep)
        frequency = frequency * torch.lerp(slowed, same, keep.clamp(0, 1))
    angle = positions.to(dtype)[..., None] * frequency  # (1|B, T, hs/2)
    angle = torch.cat([angle, angle], dim=-1).view(-1, 1, positions.size(-1), head_size)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate channels i and i + hs/2 of x (B, nh, T, hs) by their position (Llama's pairs)."""
    cos, sin = rope
    y = x.to(cos.dtype)  # once, not in every operation below
    a, b = y.chunk(2, dim=-1)
    return (y * cos + torch.cat([-b, a], dim=-1) * sin).to(x.dtype)
