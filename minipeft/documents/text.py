"""The text itself as a prefix: n tokens are n keys and values in every layer, exactly (ladder.py).

    prefill(base, tokens)   one forward pass through the blocks; nothing is trained and nothing is lost

Layers with a sliding window would lose sight of the text, and of a prefix they never do: there the
two agree as long as text and question fit the window.

It is the reference of the other ways: KL(base behind the text ‖ base behind a prefix) is 0 for it,
to rounding. And it is what they start from: `rows` keeps P of the n keys and values, which still
take the text's n positions.
"""

import torch
from torch import Tensor

from ..checks import Error, check_base, described
from ..model import GPT
from ..slots import KVCache, Prefix


@torch.no_grad()
def prefill(base: GPT, tokens: Tensor) -> Prefix:
    """tokens (n,) int64 -> keys and values, each (L, 1, n_kv, n, hs).

    Raises Error for an empty text, one that fills the block size, or one not shorter than the base's sliding window.
    """
    check_base(base)
    if not isinstance(tokens, Tensor) or tokens.dim() != 1 or tokens.dtype != torch.int64:
        raise Error(f"a document must be token ids (n,) int64, not {described(tokens)}")
    c, n = base.config, len(tokens)
    if not n:
        raise Error("the document is empty: it needs at least one token")
    if n >= c.block_size:
        raise Error(f"the document has {n:,} tokens, and the base's block size is {c.block_size:,}: "
                    f"at most {c.block_size - 1:,} leave room for a question (shorten it, or divide it into several)")
    if any(c.window(i) is not None for i in range(c.n_layer)) and n >= c.sliding_window:
        raise Error(f"the document has {n:,} tokens, but layers of this base see {c.sliding_window:,} back: a prefix, "
                    "which every token sees, would be more than the document")
    weight = base.wte.weight
    k, v = weight.new_zeros(2, c.n_layer, 1, c.n_kv, n, c.head_size)
    base.hidden(tokens[None].to(weight.device), cache=KVCache(k, v))
    return Prefix(k, v)


def rows(prefix: Prefix, keep: Tensor) -> Prefix:
    """The prefix with some of its rows alone, in the positions of all of them.

    keep: (P,) int64, the same in every head; or (L, n_kv, P), each head's own. Raises Error for rows
    not there, and for a prefix with a gate, lengths, or one of its own for each row of a batch.
    """
    if not isinstance(prefix, Prefix) or prefix.gate is not None or prefix.length is not None or prefix.k.size(1) != 1:
        raise Error("the prefix must be a Prefix of one row, without a gate or lengths, as prefill and match return it")
    L, _, n_kv, n, hs = prefix.k.shape
    if not isinstance(keep, Tensor) or keep.dtype != torch.int64 or keep.shape[:-1] not in ((), (L, n_kv)):
        raise Error(f"the rows to keep must be (P,) int64, or {(L, n_kv, 'P')}, not {described(keep)}")
    if not keep.numel() or not 0 <= int(keep.min()) <= int(keep.max()) < n:
        raise Error(f"the rows to keep must be of 0 … {n - 1}, and at least one")
    index = keep.expand(L, n_kv, -1)[:, None, :, :, None].expand(-1, -1, -1, -1, hs)
    bias = None if prefix.bias is None else prefix.bias.gather(3, index[..., 0])
    return Prefix(prefix.k.gather(3, index), prefix.v.gather(3, index), bias=bias,
                  positions=prefix.most_taken)
