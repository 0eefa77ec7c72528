"""Closed forms: how many parameters a base has, a method trains, and an adapter stores."""

import inspect
from typing import NamedTuple

from .config import Error, GPTConfig


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
    n = c.n_layer * sum(r * c.n_embd * sum(LINEAR_SHAPES[place]) for place in targeted(target_modules))
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
    return Count(n * (adapter_len * c.n_embd + c.n_head), n * (adapter_len * c.n_embd + c.n_head))


def top_layers(c: GPTConfig) -> int:
    """How many layers LLaMA-Adapter takes by default: the paper's share, 30 of 32 (2303.16199 §4.1)."""
    return max(1, round(c.n_layer * 30 / 32))


LINEAR_SHAPES = {"attn.c_attn": (1, 3), "attn.c_proj": (1, 1), "mlp.c_fc": (1, 4), "mlp.c_proj": (4, 1)}  # of a block: in, out, in C


def targeted(target_modules: "str | tuple[str, ...]") -> list[str]:
    """The linears of a block that these names mean, each a whole name or its end after a dot.

    Raises Error for a name that means none, with those there are.
    """
    names = (target_modules,) if isinstance(target_modules, str) else tuple(target_modules)
    if not names:
        raise Error(f"no target module given: there are {', '.join(LINEAR_SHAPES)}")
    for name in names:
        if not any(place == name or place.endswith(f".{name}") for place in LINEAR_SHAPES):
            raise Error(f"target module {name!r} matches nothing: there are {', '.join(LINEAR_SHAPES)} (or their ends, such as c_proj)")
    return [place for place in LINEAR_SHAPES if any(place == name or place.endswith(f".{name}") for name in names)]


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
        prefix     4 · C · B·T·P                  (llama-adapter: in its layers)
        edits      2 · B·T · parameters           lora, adapter: each number meets each position once
        head       2 · B·T·supervised · V·C

    Backward: each product of a weight once more for the gradient of its input, and (full, edits) once more for its own; attention and
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
        makes = method == "llama-adapter" or hyperparameters.get("space", "kv") == "hidden"
        make = n * 2 * P * 2 * C**2 if makes else 0  # keys and values of the hidden vectors
        spared = (L - n) * (linear + 2 * attention) + linear * 3 // 12 + 2 * attention + prefix // 2
        return both + 3 * n * prefix + 2 * make - spared
    if method in ("lora", "adapter"):
        edits = 2 * batch_size * T * (trained // L)  # in one block; biases are counted with the weights they stand beside
        if method == "lora":
            r, place = hyperparameters.get("r", 8), targeted(hyperparameters.get("target_modules", ("c_attn",)))[0]
            entry = 2 * batch_size * T * r * C * LINEAR_SHAPES[place][0]
            before = list(LINEAR_SHAPES).index(place) + 1  # its own weight's input gradient is spared, too
        else:
            entry = 2 * batch_size * T * hyperparameters.get("bottleneck_size", 8) * C
            before = 2 if hyperparameters.get("placement", "houlsby") == "houlsby" else 4
        sizes = [into * out for into, out in LINEAR_SHAPES.values()]
        spared = sum(sizes[:before]) * linear // 12 + (2 * attention if before > 1 else 0) + entry
        return both + 3 * L * edits - spared
    return both
