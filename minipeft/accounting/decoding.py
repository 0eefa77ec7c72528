"""Cost of a method at inference: memory beside the weights, and FLOPs per token."""

from typing import NamedTuple

from ..checks import at_least_one
from ..config import GPTConfig
from ..formulas.terms import Cost, Size, Term, minimum, total
from .gradients import gradient_flow
from .matmuls import Product, block_matmuls, pass_terms, prefix_matmuls
from .parameters import Declared, declared


class Inference(NamedTuple):
    """Bytes and floating-point operations: see `inference`."""

    cache_bytes: int
    shared_bytes: int
    token_flops: int
    extra_token_flops: int
    prefill_flops: int


def inference(c: GPTConfig, method: str, batch_size: int, seq_len: int,
              **hyperparameters) -> Inference:
    """generate() after T = seq_len real tokens in each of B rows, in float32, MLPs folded.

        cache_bytes        4·2·L·B·n_kv·hs·S   keys and values of every row; S = P + T with a prompt
        shared_bytes       4·2·n·n_kv·hs·P     keys and values once for all rows: a prefix's (n = L; of a single
                                               row they are in the cache, unless it has a bias), or
                                               those of LLaMA-Adapter's n layers; a bias: 4·L·n_kv·P more
        token_flops        one more token of one row: 2·in·out of every linear, 4·nh·hs·(S + 1) of
                           attention in each layer (with a window at most 4·nh·hs·(P + window), P of a
                           prompt), the head's 2·V·C, and of the method
                               prefix 4·n·nh·hs·P in n layers (prompt the same, as P is part of S)
                               hooks: their matmuls (of lora 2·r·(in + out) each; 0 once merged)
        extra_token_flops  the part of token_flops that the bare base does not have
        prefill_flops      the context of all rows: B·S positions through the blocks, attention as the
                           full rectangle, the head for each row's last position, and once the keys
                           and values of hidden vectors

    So a prompt and a prefix of one length cost the same per token, P / 6C of the linears' 24·L·C²
    in GPT-2's shape, but a prompt's keys and values lie in the cache of every row. The cache holds
    every position, in layers with a window too.
    """
    at_least_one("batch_size", batch_size), at_least_one("seq_len", seq_len)
    terms = decoding_terms(c, declared(c, method, hyperparameters), batch_size, seq_len)
    return Inference(**{name: total(of) for name, of in terms.items()})


def decoding_terms(c: GPTConfig, d: Declared, B: Size, T: Size) -> dict[str, list[Term]]:
    """The terms of every part of `inference`, of declared sizes, which may be symbols."""
    once = d.cost(c, 1)
    S = T + once.prompt
    head = 2 * c.vocab_size * c.n_embd
    token = pass_terms(_blocks(c, once, 1, S + 1, once.prompt), "forward")
    bare = pass_terms(_blocks(c, Cost(), 1, T + 1, 0), "forward")
    cost = d.cost(c, B * S)
    prefill = pass_terms(prefix_matmuls(c, cost) + _blocks(c, cost, B * S, S), "forward")
    prefix, copied = [], 0
    if once.prefix:
        shared = once.prefix.rows
        if not (once.prefix.own_softmax or once.prefix.bias):
            shared = shared * minimum(1, B - 1)  # a single row has it in the cache
            copied = once.prefix.rows - shared
        prefix = [Term("keys and values, once", 4 * 2 * shared * c.kv, once.prefix.layers)]
        if once.prefix.bias:
            prefix.append(Term("bias of the keys, once", 4 * once.prefix.rows * c.n_kv,
                               once.prefix.layers))
    return {"cache_bytes": [Term("keys and values of every row", 4 * 2 * B * c.kv * (S + copied), c.n_layer)],
            "shared_bytes": prefix,
            "token_flops": [*token, Term("head", head)],
            "extra_token_flops": difference(token, bare),
            "prefill_flops": [*prefill, Term("head", B * head)]}


def difference(terms: list[Term], without: list[Term]) -> list[Term]:
    """The terms less the others, name by name."""
    found: dict[str, Size] = {}
    for sign, every in ((1, terms), (-1, without)):
        for what, formula, times in every:
            found[what] = found.get(what, 0) + sign * formula * times
    return [Term(what, formula) for what, formula in found.items()]


def _blocks(c: GPTConfig, cost: Cost, rows: Size, keys: Size,
            prompt: Size | None = None) -> list[Product]:
    """prompt: virtual tokens in the cache, before a single token; None: no cache."""
    in_window = None
    if c.sliding_window is not None and prompt is not None:
        in_window = minimum(keys, prompt + c.sliding_window)
    return block_matmuls(c, cost, gradient_flow(c, cost, False), rows, keys, in_window=in_window)
