"""Cost of a method at inference: memory beside the weights, and FLOPs per token."""

from typing import NamedTuple

from ..checks import at_least_one
from ..config import GPTConfig
from .matmuls import Product, block_matmuls, hidden_matmuls
from .parameters import virtual_tokens, with_defaults


class Inference(NamedTuple):
    """Bytes and floating-point operations: see `inference`."""

    cache_bytes: int
    shared_bytes: int
    token_flops: int
    extra_token_flops: int
    prefill_flops: int


def inference(c: GPTConfig, method: str, batch_size: int, seq_len: int, **hyperparameters) -> Inference:
    """generate() after T = seq_len real tokens in each of B rows, in float32, a prefix's MLP folded.

        cache_bytes        4·2·L·B·n_kv·hs·S   keys and values of every row; S = P + T with a prompt
        shared_bytes       4·2·n·n_kv·hs·P     keys and values once for all rows: a prefix's (n = L),
                                               or those of LLaMA-Adapter's n layers
        token_flops        one more token of one row: 2·in·out of every linear, 4·C·(S + 1) of
                           attention in each layer, the head's 2·V·C, and of the method
                               prefix 4·L·C·P (prompt the same, as P is part of S)
                               llama-adapter 4·n·C·K; adapter 2·2·C·m at every place
                               lora 2·r·(in + out) of every target linear (0 once merged)
        extra_token_flops  the part of token_flops that the bare base does not have
        prefill_flops      the context of all rows: B·S positions through the blocks, attention as the
                           full rectangle, the head for each row's last position, and once the keys
                           and values of hidden vectors

    So a prompt and a prefix of one length cost the same per token, P / 6C of the linears' 24·L·C² in
    GPT-2's shape, but a prompt's keys and values lie in the cache of every row.
    """
    at_least_one("batch_size", batch_size), at_least_one("seq_len", seq_len)
    h = with_defaults(c, method, hyperparameters)
    B, T, P, kv = batch_size, seq_len, virtual_tokens(h), c.n_kv * c.head_size
    S = P + T if method in ("prompt", "hard-prompt") else T
    n = h.get("adapter_layers", c.n_layer) if method in ("prefix", "llama-adapter") else 0
    head = 2 * c.vocab_size * c.n_embd
    token = head + _forward(block_matmuls(c, method, h, 1, S + 1))
    bare = head + _forward(block_matmuls(c, "full", {}, 1, T + 1))
    prefill = B * head + _forward(hidden_matmuls(c, method, h) + block_matmuls(c, method, h, B * S, S))
    return Inference(4 * 2 * c.n_layer * B * kv * S, 4 * 2 * n * kv * P, token, token - bare, prefill)


def _forward(matmuls: list[Product]) -> int:
    return sum(p.size * p.forward for p in matmuls)
