"""Closed forms: how many parameters a base has, a method trains, and an adapter stores."""

import inspect
from typing import NamedTuple

from .config import Error, GPTConfig


class Count(NamedTuple):
    trained: int  # parameters that receive a gradient
    stored: int  # parameters the saved file holds, once per task


def base_parameters(c: GPTConfig) -> int:
    """V·C + block_size·C (learned positions only) + L·(12·C² + 13·C) + 2·C; the tied head adds none.

    A block: attention C·3C + 3C and C·C + C, MLP C·4C + 4C and 4C·C + C, two LayerNorms of 2C.
    """
    positions = c.block_size * c.n_embd if c.position == "learned" else 0
    return c.vocab_size * c.n_embd + positions + c.n_layer * (12 * c.n_embd**2 + 13 * c.n_embd) + 2 * c.n_embd


def _full(c: GPTConfig) -> Count:
    return Count(base_parameters(c), base_parameters(c))


def _prompt(c: GPTConfig, num_virtual_tokens: int = 8) -> Count:
    """P·C."""
    return Count(num_virtual_tokens * c.n_embd, num_virtual_tokens * c.n_embd)


def _prefix(
    c: GPTConfig,
    num_virtual_tokens: int = 8,
    space: str = "kv",
    prefix_projection: bool = False,
    encoder_hidden_size: int | None = None,
) -> Count:
    """Stored: P·W with W = 2·L·C (space "kv") or L·C ("hidden"). Trained through the MLP: P·C + (C + 1)·m + (m + 1)·W."""
    if space not in ("kv", "hidden"):
        raise Error(f"space of a prefix must be 'kv' or 'hidden', not {space!r}")
    W = (2 if space == "kv" else 1) * c.n_layer * c.n_embd
    stored = num_virtual_tokens * W
    if not prefix_projection:
        return Count(stored, stored)
    m = c.n_embd if encoder_hidden_size is None else encoder_hidden_size
    return Count(num_virtual_tokens * c.n_embd + (c.n_embd + 1) * m + (m + 1) * W, stored)


_COUNTS = {"full": _full, "prompt": _prompt, "prefix": _prefix}


def count(config: GPTConfig, method: str, **hyperparameters) -> Count:
    """Parameters trained and stored by a method with these hyper-parameters (their defaults are the method's).

    Raises Error for an unknown method or hyper-parameter, or a size below 1.
    """
    if method not in _COUNTS:
        raise Error(f"method must be one of {', '.join(_COUNTS)}, not {method!r}")
    known = list(inspect.signature(_COUNTS[method]).parameters)[1:]
    for name, value in hyperparameters.items():
        if name not in known:
            raise Error(f"what {method!r} costs depends on {', '.join(known) or 'the shape alone'}, not on {name!r}")
        if type(value) is int and value < 1:
            raise Error(f"{name} must be at least 1, not {value}")
    return _COUNTS[method](config, **hyperparameters)


def step_flops(c: GPTConfig, method: str, batch_size: int, seq_len: int, supervised: float = 1.0, **hyperparameters) -> int:
    """Floating-point operations of the matrix products that a training step cannot do without (2·m·n·k for each, nothing twice).

    B·S positions in the blocks (S = P + T for a prompt, else T), of which B·T·supervised meet the head. Forward:

        linear     2 · B·S · 12·C²                each block's four weights
        attention  4 · C · B·S·(S + 1)/2          scores and outputs of the pairs that see each other
        prefix     4 · C · B·T·P
        head       2 · B·T·supervised · V·C

    Backward: each product of a weight once more for the gradient of its input, and (full) once more for its own; attention twice
    over. Nothing of the first block's input needs a gradient under a prefix of keys and values: there its projection, the causal
    products and the gradient of the query are spared.
    """
    count(c, method, **hyperparameters)  # raises Error for what the method does not know
    L, C, T = c.n_layer, c.n_embd, seq_len
    P = hyperparameters.get("num_virtual_tokens", 8) if method != "full" else 0
    S = T + P if method == "prompt" else T
    linear = 2 * batch_size * S * 12 * C**2
    attention = 4 * C * batch_size * (S * (S + 1) // 2)
    prefix = 4 * C * batch_size * T * P if method == "prefix" else 0
    head = round(2 * batch_size * T * supervised * c.vocab_size * C)
    forward = L * (linear + attention + prefix) + head
    backward = L * (linear + 2 * attention + 2 * prefix) + head
    if method == "full":
        return forward + backward + L * linear + head
    if method == "prefix":
        hidden = hyperparameters.get("space", "kv") == "hidden"
        make = L * 2 * P * 2 * C**2 if hidden else 0  # keys and values of the hidden vectors
        return forward + backward + 2 * make - (linear * 3 // 12 + 2 * attention + prefix // 2)
    return forward + backward
