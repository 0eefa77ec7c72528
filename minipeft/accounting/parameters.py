"""How many parameters a base has, a method trains, and an adapter stores."""

import inspect
from typing import NamedTuple

from ..config import Error, GPTConfig, at_least_one, linears, linears_named
from ..files.huggingface import base_size
from ..methods.llama_adapter import top_layers
from ..methods.lora import lora_targets
from .shapes import T5Shape


class Count(NamedTuple):
    """Whole numbers of one task: see `count`."""

    trained: int  # parameters that receive a gradient
    stored: int  # numbers the saved file holds, once per task




def base_parameters(c: GPTConfig | T5Shape) -> int:
    """V·C, once more for a head of its own + block_size·C (learned positions only) + L · a block + a norm.

    A block: its linears (config.linears) with their biases, and two norms; a norm has 2C ("layer") or C ("rms").
    GPT-2: V·C + block_size·C + L·(12·C² + 13·C) + 2·C.
    T5 v1.1: 2·V·C + 2·buckets·nh + L·(12·C·nh·hs + 6·C·M + 5·C) + 2·C: in a layer of encoder and decoder together three attentions of
    four matrices C × nh·hs, two MLPs of three matrices C × M, and five norms.
    """
    if isinstance(c, T5Shape):
        layer = 12 * c.n_embd * c.n_head * c.head_size + 6 * c.n_embd * c.n_inner + 5 * c.n_embd
        return 2 * c.vocab_size * c.n_embd + 2 * c.position_buckets * c.n_head + c.n_layer * layer + 2 * c.n_embd
    return base_size(c)


def _full(c: GPTConfig | T5Shape) -> Count:
    return Count(base_parameters(c), base_parameters(c))


def _prompt(c: GPTConfig | T5Shape, num_virtual_tokens: int = 8) -> Count:
    """P·C."""
    return Count(num_virtual_tokens * c.n_embd, num_virtual_tokens * c.n_embd)


def _prefix(
    c: GPTConfig,
    num_virtual_tokens: int = 8,
    space: str = "kv",
    prefix_projection: bool = False,
    encoder_hidden_size: int | None = None,
) -> Count:
    """Stored: P·W with W = 2·L·n_kv·hs (space "kv"; 2·L·C where heads are not grouped) or L·C ("hidden").

    Trained through the MLP: P·C + (C + 1)·m + (m + 1)·W.
    """
    if space not in ("kv", "hidden"):
        raise Error(f"space of a prefix must be 'kv' or 'hidden', not {space!r}")
    W = c.n_layer * (2 * c.n_kv * c.head_size if space == "kv" else c.n_embd)
    stored = num_virtual_tokens * W
    if not prefix_projection:
        return Count(stored, stored)
    m = c.n_embd if encoder_hidden_size is None else encoder_hidden_size
    return Count(num_virtual_tokens * c.n_embd + (c.n_embd + 1) * m + (m + 1) * W, stored)


def _hard_prompt(c: GPTConfig | T5Shape, num_virtual_tokens: int = 8) -> Count:
    """Nothing is trained; P token ids are stored."""
    return Count(0, num_virtual_tokens)


def _lora(c: GPTConfig, r: int = 8, target_modules: tuple[str, ...] | None = None) -> Count:
    """L · r · (in + out), summed over the edited linears of a block."""
    places = linears_named(c, lora_targets(c) if target_modules is None else target_modules)
    if r > (most := min(min(linears(c)[place]) for place in places)):
        raise Error(f"r {r} is larger than a matrix of {', '.join(places)} has ranks: {most}")
    n = c.n_layer * sum(r * sum(linears(c)[place]) for place in places)
    return Count(n, n)




def _adapter(c: GPTConfig, bottleneck_size: int = 8, placement: str = "houlsby") -> Count:
    """L · (2·C·m + m + C) for each place: two with "houlsby", one with "pfeiffer"."""
    if placement not in ("houlsby", "pfeiffer"):
        raise Error(f"placement must be 'houlsby' or 'pfeiffer', not {placement!r}")
    n = c.n_layer * (2 if placement == "houlsby" else 1) * (2 * c.n_embd * bottleneck_size + bottleneck_size + c.n_embd)
    return Count(n, n)


def _llama_adapter(c: GPTConfig, adapter_len: int = 10, adapter_layers: int | None = None, gate: str = "head") -> Count:
    """n · (K·C + nh), or n · (K·C + 1) with gate "layer"; by default n is 30 of 32 layers."""
    if gate not in ("head", "layer"):
        raise Error(f"gate must be 'head' or 'layer', not {gate!r}")
    n = top_layers(c) if adapter_layers is None else adapter_layers
    if n > c.n_layer:
        raise Error(f"adapter_layers {n} is more than the base's {c.n_layer} layers")
    each = adapter_len * c.n_embd + (c.n_head if gate == "head" else 1)
    return Count(n * each, n * each)




_COUNTS = {
    "full": _full,
    "hard-prompt": _hard_prompt,
    "prompt": _prompt,
    "prefix": _prefix,
    "lora": _lora,
    "adapter": _adapter,
    "llama-adapter": _llama_adapter,
}
ENCODER_DECODER = ("full", "hard-prompt", "prompt")  # what means the same on a T5Shape
_SIZES = ("num_virtual_tokens", "encoder_hidden_size", "r", "bottleneck_size", "adapter_len", "adapter_layers")  # whole numbers


def depends_on(method: str) -> list[str]:
    """The hyper-parameters that the counts of this method depend on."""
    return list(_defaults(method))


def _defaults(method: str) -> dict:
    return {name: p.default for name, p in list(inspect.signature(_COUNTS[method]).parameters.items())[1:]}


def count(config: GPTConfig | T5Shape, method: str, **hyperparameters) -> Count:
    """Parameters trained and stored by a method with these hyper-parameters (their defaults are the method's).

    Raises Error for an unknown method or hyper-parameter, a size that is none, or what an encoder-decoder gives no meaning to.
    """
    if method not in _COUNTS:
        raise Error(f"method must be one of {', '.join(_COUNTS)}, not {method!r}")
    known = _defaults(method)
    for name, value in hyperparameters.items():
        if name not in known:
            raise Error(f"what {method!r} costs depends on {', '.join(known) or 'the shape alone'}, not on {name!r}")
        if name in _SIZES and not (value is None and known[name] is None):  # None: what follows from the shape
            at_least_one(name, value)
    if isinstance(config, T5Shape) and method not in ENCODER_DECODER:
        raise Error(f"{method!r} is made of a GPT's blocks: on an encoder-decoder {', '.join(ENCODER_DECODER)} are counted")
    return _COUNTS[method](config, **hyperparameters)


def settings(c: GPTConfig | T5Shape, method: str, hyperparameters: dict) -> dict:
    """All hyper-parameters that the counts of this method depend on, with what is not given as it is on a base of this shape; lora:
    also "places", the linears that target_modules name.

    Raises Error as `count` does.
    """
    count(c, method, **hyperparameters)
    h = _defaults(method) | {name: value for name, value in hyperparameters.items() if value is not None}
    if method == "lora":
        h["target_modules"] = h["target_modules"] or lora_targets(c)
        h["places"] = linears_named(c, h["target_modules"])
    if method == "prefix":
        h["encoder_hidden_size"] = h["encoder_hidden_size"] or c.n_embd
    if method == "llama-adapter":
        h["adapter_layers"] = h["adapter_layers"] or top_layers(c)
    return h


def virtual_tokens(h: dict) -> int:
    """P, or LLaMA-Adapter's K; 0 where there are none."""
    return h.get("num_virtual_tokens") or h.get("adapter_len", 0)
