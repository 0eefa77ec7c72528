"""Inputs of a GPT beside token ids: prompt (slot 1), prefix (slot 2), hooks, key-value cache."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import Error


class Prefix(NamedTuple):
    """Prefix keys and values for the top n layers, with an optional gate, bias and per-row lengths.

    A gated prefix has its own softmax and takes no positions. Any other takes one position a key,
    unless `positions` says how many: those of the longer text that it stands for, or 0.
    """

    k: Tensor  # (n, 1|B, n_kv, P, hs), n <= L
    v: Tensor  # (n, 1|B, n_kv, P, hs)
    gate: Tensor | None = None  # (n, nh)
    length: Tensor | None = None  # (B,) int64: how many of the P keys each row has; None: all
    bias: Tensor | None = None  # (n, 1|B, n_kv, P): β, added to the scores of each key (2602.16284)
    positions: "int | Tensor | None" = None  # that the prefix takes, (B,) int64 where rows differ; None: `length`, or P

    @classmethod
    def of(cls, prefix: Tensor) -> "Prefix":
        """Split keys and values (L, 2, 1|B, n_kv, P, hs) of every layer."""
        if prefix.dim() != 6 or prefix.size(1) != 2:
            raise Error(f"prefix {tuple(prefix.shape)} must be (L, 2, 1|B, n_kv, P, hs)")
        return cls(prefix[:, 0], prefix[:, 1])

    def layers(self, L: int) -> "list[Prefix | None]":
        """One Prefix per layer, without the first dimension; None below the top n layers."""
        gates, biases = ([None] * len(self.k) if x is None else x for x in (self.gate, self.bias))
        top = [Prefix(k, v, gate, self.length, bias)
               for k, v, gate, bias in zip(self.k, self.v, gates, biases, strict=True)]
        return [None] * (L - len(top)) + top

    @property
    def taken(self) -> "int | Tensor":
        """Positions before the first real token: an int, or (B,) int64 where rows differ."""
        if self.gate is not None:
            return 0
        if self.positions is not None:
            return self.positions
        return self.k.size(3) if self.length is None else self.length

    @property
    def most_taken(self) -> int:
        """`taken`, of the row that has most; of a prefix with lengths alone, P."""
        if self.positions is None:
            return self.k.size(3) if self.gate is None else 0
        return self.taken if isinstance(self.taken, int) else int(self.taken.max())


class SoftTokens(NamedTuple):
    """A prompt whose vectors stand in the text, where idx has the ids V … V+P-1, which no word has.

    A sliding window hides them as it hides words, unlike a prompt in front of the text.
    """

    vectors: Tensor  # (P, C)
    V: int

    def embed(self, embed_words: Callable[[Tensor], Tensor], idx: Tensor) -> Tensor:
        """Embeddings of idx (B, T, C), the vectors in their places. Raises Error unless every row
        of idx has them once, in order and one after the other."""
        B, P, soft = len(idx), len(self.vectors), idx >= self.V
        x = embed_words(idx.masked_fill(soft, 0))  # any word's where a vector comes
        if (soft.sum(1) == P).all():
            places = soft.nonzero()[:, 1].view(B, P)
            in_order = idx[soft].view(B, P) == self.V + torch.arange(P, device=idx.device)
            if in_order.all() and (places[:, -1] - places[:, 0] == P - 1).all():
                vectors = self.vectors.to(x.dtype)
                return torch.stack([torch.cat([row[:first], vectors, row[first + P :]])
                                    for row, first in zip(x, places[:, 0].tolist(), strict=True)])
        raise Error(f"every row of idx must hold the {P} ids {self.V} … {self.V + P - 1} of the soft tokens once, "
                    "in order: {soft} of a template stands for them")


class Slots(NamedTuple):
    """Prompt, prefix and hooks of a method, as arguments of the model: base(idx, *slots)."""

    prompt: "Tensor | SoftTokens | None" = None  # (1|B, P, C), or in the text
    prefix: "Tensor | Prefix | None" = None  # (L, 2, 1|B, n_kv, P, hs)
    hooks: list[dict] | None = None  # per layer {place: f(x, y) -> y', or several in a tuple}


class KVCache(NamedTuple):
    """Keys and values of the positions already processed, in buffers with room for S."""

    k: Tensor  # (L, B, n_kv, S, hs)
    v: Tensor  # (L, B, n_kv, S, hs)
    read: int = 0  # positions in use, the most of any row
    length: Tensor | None = None  # (B,) int64: positions in use in each row; None: `read` in all
    virtual: int = 0  # the leading ones, of virtual tokens: a sliding window never hides them
    shift: int = 0  # positions that a prefix in the cache takes, minus its keys

    def layers(self) -> "list[KVCache]":
        """One KVCache per layer, without the first dimension."""
        return [self._replace(k=k, v=v) for k, v in zip(self.k, self.v, strict=True)]

    def after(self, T: int) -> "KVCache":
        """The same buffers, T positions later."""
        return self._replace(read=self.read + T, length=None if self.length is None else self.length + T)

    def extended(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Append one layer's k, v (B, n_kv, T, hs) -> all keys, all values, row lengths."""
        T, read = k.size(2), self.read
        for buffer, new in ((self.k, k), (self.v, v)):
            if self.length is None:
                buffer[:, :, read : read + T] = new
            else:
                rows, columns = torch.arange(len(k), device=k.device)[:, None], torch.arange(T, device=k.device)
                buffer[rows, :, self.length[:, None] + columns] = new.transpose(1, 2).to(buffer.dtype)
        return self.k[:, :, : read + T], self.v[:, :, : read + T], self.after(T).length
