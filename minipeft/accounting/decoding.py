"""What a method costs at inference: memory beside the weights, and operations for each token."""

from typing import NamedTuple

from ..config import GPTConfig, at_least_one
from .matmuls import Product, block_products, prefix_products
from .parameters import settings, virtual_tokens


class Inference(NamedTuple):
    """Bytes and floating-point operations: see `inference`."""

    cache_bytes: int
    shared_bytes: int
    token_flops: int
    extra_token_flops: int
    prefill_flops: int


def inference(c: GPTConfig, method: str, batch_size: int, seq_len: int, **hyperparameters) -> Inference:
    """generate() after a context of T = seq_len real tokens in each of B rows, float32; a prefix's MLP is folded away.

        cache_bytes      4 · 2·L·B·n_kv·hs·S         keys and values of the positions read: S = P + T with a prompt, soft or hard, else T
        shared_bytes     4 · 2·L·n_kv·hs·P           keys and values that stand beside the cache, once for all rows: a prefix's, and
                                                     (in its n layers) LLaMA-Adapter's
        token_flops      one more token, one row:    2·in·out of every linear of L blocks, 4·C·(S + 1) of attention to the cache and
                                                     itself, L times, and the head's 2·V·C
                                                     + prefix 4·L·C·P, prompt the same (its P are in S), llama-adapter 4·n·C·K,
                                                     lora 2·r·(in + out) of every edited linear (merged into the base: 0),
                                                     adapter 2·2·C·m at every place
        extra_token_flops    how many of these the bare base does not have
        prefill_flops    the context of all rows, once: B·S positions through the blocks, attention as the whole rectangle, the
                         head for each row's last position alone; and the keys and values made of hidden vectors, once

    So a prompt and a prefix of one length cost the same per token, but a prompt lies in the cache of every row. The products of a
    token hardly feel either (4·L·C·P beside 24·L·C² in GPT-2's shape, a share of P / 6C). Raises Error as `count`
    does, or for a size that is none.
    """
    at_least_one("batch_size", batch_size), at_least_one("seq_len", seq_len)
    h = settings(c, method, hyperparameters)
    B, T, P, kv = batch_size, seq_len, virtual_tokens(h), c.n_kv * c.head_size
    S = P + T if method in ("prompt", "hard-prompt") else T
    n = h.get("adapter_layers", c.n_layer) if method in ("prefix", "llama-adapter") else 0
    before = P if method == "prefix" else 0
    token = _forward(block_products(c, method, h, 1, before + S + 1)) + 2 * c.vocab_size * c.n_embd
    bare = _forward(block_products(c, "full", {}, 1, T + 1)) + 2 * c.vocab_size * c.n_embd
    read = _forward(prefix_products(c, method, h) + block_products(c, method, h, B * S, before + S)) + 2 * B * c.vocab_size * c.n_embd
    return Inference(4 * 2 * c.n_layer * B * kv * S, 4 * 2 * n * kv * P, token, token - bare, read)


def _forward(every: list[Product]) -> int:
    return sum(p.size * p.forward for p in every)
