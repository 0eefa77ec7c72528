"""Parameters: of a base, trained by a method, stored by an adapter."""

import inspect
from typing import NamedTuple

from ..checks import Error, at_least_one, one_of
from ..config import GPTConfig, linears
from ..files.huggingface import count_parameters
from ..files.peft import linears_named
from ..methods.llama_adapter import top_layers
from ..methods.lora import lora_targets
from .shapes import T5Shape


class Count(NamedTuple):
    """Parameters of one task."""

    trained: int  # elements that receive a gradient
    stored: int  # elements of the saved file (a hard prompt: token ids)


def base_parameters(c: GPTConfig | T5Shape) -> int:
    """Parameters of a base.

        V·C              token embeddings; once more for a head that is not tied
        block_size·C     position embeddings, if learned
        L · block        the linears of a block (config.linears) with their biases, and two norms
        2·C or C         a norm: "layer" or "rms"; ln_f, and two in every block

    GPT-2: V·C + block_size·C + L·(12·C² + 13·C) + 2·C.
    T5 v1.1: 2·V·C + 2·buckets·nh + L·(12·C·nh·hs + 6·C·M + 5·C) + 2·C. Here a layer is one of the
    encoder and one of the decoder: three attentions of four C × nh·hs matrices, two MLPs of three
    C × M matrices, five norms.
    """
    if isinstance(c, T5Shape):
        C, V, M = c.n_embd, c.vocab_size, c.n_inner
        layer = 12 * C * c.n_head * c.head_size + 6 * C * M + 5 * C
        return 2 * V * C + 2 * c.position_buckets * c.n_head + c.n_layer * layer + 2 * C
    return count_parameters(c)


def _full(c: GPTConfig | T5Shape) -> Count:
    return Count(base_parameters(c), base_parameters(c))


def _hard_prompt(c: GPTConfig | T5Shape, num_virtual_tokens: int = 8) -> Count:
    """Trained: nothing. Stored: P token ids."""
    return Count(0, num_virtual_tokens)


def _prompt(c: GPTConfig | T5Shape, num_virtual_tokens: int = 8) -> Count:
    """P·C."""
    return Count(num_virtual_tokens * c.n_embd, num_virtual_tokens * c.n_embd)


def _prefix(c: GPTConfig, num_virtual_tokens: int = 8, space: str = "kv",
            prefix_projection: bool = False, encoder_hidden_size: int | None = None) -> Count:
    """Stored: P·W with W = 2·L·n_kv·hs (space "kv") or L·C ("hidden").

    Trained: the same, or P·C + (C + 1)·m + (m + 1)·W through an MLP of width m.
    """
    one_of("space of a prefix", space, ("kv", "hidden"))
    W = c.n_layer * (2 * c.n_kv * c.head_size if space == "kv" else c.n_embd)
    stored = num_virtual_tokens * W
    if not prefix_projection:
        return Count(stored, stored)
    C, m = c.n_embd, c.n_embd if encoder_hidden_size is None else encoder_hidden_size
    return Count(num_virtual_tokens * C + (C + 1) * m + (m + 1) * W, stored)


def _lora(c: GPTConfig, r: int = 8, target_modules: tuple[str, ...] | None = None) -> Count:
    """L · r · (in + out), summed over the target linears of a block."""
    places = linears_named(c, lora_targets(c) if target_modules is None else target_modules)
    if r > (most := min(min(linears(c)[place]) for place in places)):
        raise Error(f"r {r} is above the largest possible rank of {', '.join(places)}: {most}")
    n = c.n_layer * sum(r * sum(linears(c)[place]) for place in places)
    return Count(n, n)


def _adapter(c: GPTConfig, bottleneck_size: int = 8, placement: str = "houlsby") -> Count:
    """L · (2·C·m + m + C) for each place: two with "houlsby", one with "pfeiffer"."""
    one_of("placement", placement, ("houlsby", "pfeiffer"))
    places = c.n_layer * (2 if placement == "houlsby" else 1)
    n = places * (2 * c.n_embd * bottleneck_size + bottleneck_size + c.n_embd)
    return Count(n, n)


def _llama_adapter(c: GPTConfig, adapter_len: int = 10, adapter_layers: int | None = None,
                   gate: str = "head") -> Count:
    """n · (K·C + nh), or n · (K·C + 1) with gate "layer"; by default n is 30 of 32 layers."""
    one_of("gate", gate, ("head", "layer"))
    n = top_layers(c) if adapter_layers is None else adapter_layers
    if n > c.n_layer:
        raise Error(f"adapter_layers {n} is more than the base's {c.n_layer} layers")
    each = adapter_len * c.n_embd + (c.n_head if gate == "head" else 1)
    return Count(n * each, n * each)


_COUNTS = {"full": _full, "hard-prompt": _hard_prompt, "prompt": _prompt, "prefix": _prefix,
           "lora": _lora, "adapter": _adapter, "llama-adapter": _llama_adapter}
_DEFAULTS = {method: {p.name: p.default for p in inspect.signature(f).parameters.values()
                      if p.name != "c"} for method, f in _COUNTS.items()}
ENCODER_DECODER = ("full", "hard-prompt", "prompt")  # methods whose count holds for a T5Shape too
_WHOLE_NUMBERS = ("num_virtual_tokens", "encoder_hidden_size", "r", "bottleneck_size", "adapter_len",
                  "adapter_layers")


def depends_on(method: str) -> list[str]:
    """The hyper-parameters that a method's count depends on."""
    return list(_DEFAULTS[method])


def count(config: GPTConfig | T5Shape, method: str, **hyperparameters: object) -> Count:
    """Parameters trained and stored by a method; hyper-parameters default to the method's own.

    Raises Error for an unknown method or hyper-parameter, a size below 1, or a method that is not
    defined on an encoder-decoder.
    """
    if method not in _COUNTS:
        raise Error(f"method must be one of {', '.join(_COUNTS)}, not {method!r}")
    known = _DEFAULTS[method]
    for name, value in hyperparameters.items():
        if name not in known:
            allowed = ", ".join(known) or "the shape alone"
            raise Error(f"the cost of {method!r} depends on {allowed}, not on {name!r}")
        if name in _WHOLE_NUMBERS and not (value is None and known[name] is None):
            at_least_one(name, value)
    if isinstance(config, T5Shape) and method not in ENCODER_DECODER:
        raise Error(f"{method!r} needs a GPT's blocks: an encoder-decoder can be counted with "
                    f"{', '.join(ENCODER_DECODER)}")
    return _COUNTS[method](config, **hyperparameters)


def with_defaults(c: GPTConfig | T5Shape, method: str, hyperparameters: dict) -> dict:
    """All hyper-parameters of `count`, defaults filled in for this shape.

    lora: also "places", the linears that target_modules name. Raises Error as `count` does.
    """
    count(c, method, **hyperparameters)
    h = _DEFAULTS[method] | {k: v for k, v in hyperparameters.items() if v is not None}
    if method == "lora":
        h["target_modules"] = h["target_modules"] or lora_targets(c)
        h["places"] = linears_named(c, h["target_modules"])
    if method == "prefix":
        h["encoder_hidden_size"] = h["encoder_hidden_size"] or c.n_embd
    if method == "llama-adapter":
        h["adapter_layers"] = h["adapter_layers"] or top_layers(c)
    return h


def virtual_tokens(h: dict) -> int:
    """P, or K of LLaMA-Adapter; 0 for methods without virtual tokens."""
    return h.get("num_virtual_tokens") or h.get("adapter_len", 0)
