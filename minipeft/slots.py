"""What enters the attention blocks from outside: a prefix (slot 2), and in generation a cache of what was read before."""

from typing import NamedTuple

import torch
from torch import Tensor

from .config import Error


class Prefix(NamedTuple):
    """What slot 2 takes when keys and values of every layer do not say it all.

    A gated prefix has its own softmax: it stands beside the sequence, not before it, and takes no positions.
    """

    k: Tensor  # (n, 1|B, n_kv, P, hs) of the top n layers, n <= L
    v: Tensor  # (n, 1|B, n_kv, P, hs)
    gate: Tensor | None = None  # (n, nh)
    length: Tensor | None = None  # (B,) int64: how many of the P positions each row has; None: all of them

    @classmethod
    def of(cls, prefix: Tensor) -> "Prefix":
        """Keys and values (L, 2, 1|B, n_kv, P, hs) taken apart."""
        if prefix.dim() != 6 or prefix.size(1) != 2:
            raise Error(f"prefix {tuple(prefix.shape)} must be (L, 2, 1|B, n_kv, P, hs)")
        return cls(prefix[:, 0], prefix[:, 1])

    def layers(self, L: int) -> "list[Prefix | None]":
        """Every layer's own part, without the first dimension."""
        gates = self.gate if self.gate is not None else [None] * len(self.k)
        parts = [Prefix(k, v, gate, self.length) for k, v, gate in zip(self.k, self.v, gates, strict=True)]
        return [None] * (L - len(parts)) + parts


class KVCache(NamedTuple):
    """Keys and values of the positions read so far, in buffers with room for S; what is read next is written behind them."""

    k: Tensor  # (L, B, n_kv, S, hs)
    v: Tensor  # (L, B, n_kv, S, hs)
    read: int = 0  # positions in use
    length: Tensor | None = None  # (B,) int64: positions in use in each row, where rows differ; `read` is the longest's

    def layers(self, L: int) -> "list[KVCache]":
        return [KVCache(k, v, self.read, self.length) for k, v in zip(self.k, self.v, strict=True)]

    def after(self, T: int) -> "KVCache":
        """The same buffers, T positions later."""
        return self._replace(read=self.read + T, length=None if self.length is None else self.length + T)

    def extended(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of one layer: write k, v (B, n_kv, T, hs) behind what is there; returns all keys, all values, and each row's length."""
        T, read = k.size(2), self.read
        for buffer, new in ((self.k, k), (self.v, v)):
            if self.length is None:
                buffer[:, :, read : read + T] = new
            else:
                rows, places = torch.arange(len(k), device=k.device)[:, None], torch.arange(T, device=k.device)
                buffer[rows, :, self.length[:, None] + places] = new.transpose(1, 2).to(buffer.dtype)
        return self.k[:, :, : read + T], self.v[:, :, : read + T], self.after(T).length
