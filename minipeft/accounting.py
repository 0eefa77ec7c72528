"""Closed forms: how many parameters a base has, a method trains, and an adapter stores."""

import inspect
from typing import NamedTuple

from .config import LINEARS, Error, GPTConfig, linears_named


class Count(NamedTuple):
    trained: int  # parameters that receive a gradient
    stored: int  # numbers the saved file holds, once per task


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


def _hard_prompt(c: GPTConfig, num_virtual_tokens: int = 8) -> Count:
    """Nothing is trained; P token ids are stored."""
    return Count(0, num_virtual_tokens)


def _lora(c: GPTConfig, r: int = 8, target_modules: tuple[str, ...] = ("c_attn",)) -> Count:
    """L · r · (in + out), summed over the edited linears of a block."""
    places = linears_named(target_modules)
    if r > (most := c.n_embd * min(min(LINEARS[place]) for place in places)):
        raise Error(f"r {r} is larger than a matrix of {', '.join(places)} has ranks: {most}")
    n = c.n_layer * sum(r * c.n_embd * sum(LINEARS[place]) for place in places)
    return Count(n, n)


def _adapter(c: GPTConfig, bottleneck_size: int = 8, placement: str = "houlsby") -> Count:
    """L · (2·C·m + m + C) for each place: two with "houlsby", one with "pfeiffer"."""
    if placement not in ("houlsby", "pfeiffer"):
        raise Error(f"placement must be 'houlsby' or 'pfeiffer', not {placement!r}")
    n = c.n_layer * (2 if placement == "houlsby" else 1) * (2 * c.n_embd * bottleneck_size + bottleneck_size + c.n_embd)
    return Count(n, n)


def _llama_adapter(c: GPTConfig, adapter_len: int = 10, adapter_layers: int | None = None) -> Count:
    """n · (K·C + nh); by default n is 30 of 32 layers."""
    n = top_layers(c) if adapter_layers is None else adapter_layers
    if n > c.n_layer:
        raise Error(f"adapter_layers {n} is more than the base's {c.n_layer} layers")
    return Count(n * (adapter_len * c.n_embd + c.n_head), n * (adapter_len * c.n_embd + c.n_head))


def top_layers(c: GPTConfig) -> int:
    """How many layers LLaMA-Adapter takes by default: the paper's share, 30 of 32 (2303.16199 §4.1)."""
    return max(1, round(c.n_layer * 30 / 32))


_COUNTS = {
    "full": _full,
    "hard-prompt": _hard_prompt,
    "prompt": _prompt,
    "prefix": _prefix,
    "lora": _lora,
    "adapter": _adapter,
    "llama-adapter": _llama_adapter,
}


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
        prefix     4 · C · B·T·P                  (llama-adapter: in its layers); and what makes it: the projection of hidden
                                                  vectors to keys and values, the MLP
        edits      2 · B·T · parameters           lora, adapter: each number meets each position once
        head       2 · B·T·supervised · V·C

    Backward: each product of a weight once more for the gradient of its input, and (full, edits, MLP) once more for its own; attention and
    prefix twice over. What lies before the first trained number needs no gradient, so it is spared: under a prefix of keys and values,
    in the first block that has one, the projection, the causal products and the gradient of the query; before an edit, what leads there.

    Raises Error for hard-prompt, which trains nothing.
    """
    trained = count(c, method, **hyperparameters).trained  # raises Error for what the method does not know
    if method == "hard-prompt":
        raise Error("hard-prompt has no training step: nothing is trained")
    L, C, T = c.n_layer, c.n_embd, seq_len
    P = 0 if method == "full" else hyperparameters.get("num_virtual_tokens", 8)
    S = T + P if method == "prompt" else T
    linear = 2 * batch_size * S * 12 * C**2
    attention = 4 * C * batch_size * (S * (S + 1) // 2)
    head = round(2 * batch_size * T * supervised * c.vocab_size * C)
    both = 2 * (L * linear + head) + 3 * L * attention  # forward, and backward to the input
    if method == "full":
        return both + L * linear + head
    if method in ("prefix", "llama-adapter"):
        n = L if method == "prefix" else hyperparameters.get("adapter_layers") or top_layers(c)
        P = P if method == "prefix" else hyperparameters.get("adapter_len", 10)
        prefix = 4 * C * batch_size * T * P
        hidden = method == "llama-adapter" or hyperparameters.get("space", "kv") == "hidden"
        make = n * 2 * P * 2 * C**2 if hidden else 0  # keys and values of the hidden vectors
        if hyperparameters.get("prefix_projection"):
            m = hyperparameters.get("encoder_hidden_size") or C
            make_mlp = 2 * P * m * (C + L * (1 if hidden else 2) * C)
        else:
            make_mlp = 0
        spared = (L - n) * (linear + 2 * attention) + linear * 3 // 12 + 2 * attention + prefix // 2
        return both + 3 * n * prefix + 2 * make + 3 * make_mlp - spared
    if method in ("lora", "adapter"):
        edits = 2 * batch_size * T * (trained // L)  # in one block; biases are counted with the weights they stand beside
        if method == "lora":
            r, place = hyperparameters.get("r", 8), linears_named(hyperparameters.get("target_modules", ("c_attn",)))[0]
            entry = 2 * batch_size * T * r * C * LINEARS[place][0]
            before = list(LINEARS).index(place) + 1  # its own weight's input gradient is spared, too
        else:
            entry = 2 * batch_size * T * hyperparameters.get("bottleneck_size", 8) * C
            before = 2 if hyperparameters.get("placement", "houlsby") == "houlsby" else 4
        sizes = [into * out for into, out in LINEARS.values()]
        spared = sum(sizes[:before]) * linear // 12 + (2 * attention if before > 1 else 0) + entry
        return both + 3 * L * edits - spared
    return both
