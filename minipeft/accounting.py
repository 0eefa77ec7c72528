"""Closed forms: how many parameters a base has, a method trains, and an adapter stores."""

import inspect
from typing import NamedTuple

from .config import Error, GPTConfig, T5Shape, at_least_one, linears, linears_named


class Count(NamedTuple):
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
    tables = c.vocab_size * c.n_embd * (1 if c.tied else 2) + (c.block_size * c.n_embd if c.position == "learned" else 0)
    norm = (2 if c.norm == "layer" else 1) * c.n_embd
    block = 2 * norm
    for place, (into, out) in linears(c).items():
        block += into * out + (out if c.bias == "all" or (c.bias == "qkv" and place in READ_FIRST) else 0)
    return tables + c.n_layer * block + norm


READ_FIRST = ("attn.c_attn", "attn.q_proj", "attn.k_proj", "attn.v_proj")  # linears that make queries, keys and values


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


def lora_targets(c: GPTConfig) -> tuple[str, ...]:
    """What LoRA edits by default: the attention's input projection; where that is three matrices, the two that the paper edits."""
    return ("c_attn",) if c.projections == "joined" else ("q_proj", "v_proj")


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
ENCODER_DECODER = ("full", "hard-prompt", "prompt")  # what means the same on a T5Shape
_SIZES = ("num_virtual_tokens", "encoder_hidden_size", "r", "bottleneck_size", "adapter_len", "adapter_layers")  # whole numbers


def depends_on(method: str) -> list[str]:
    """The hyper-parameters that the counts of this method depend on."""
    return list(inspect.signature(_COUNTS[method]).parameters)[1:]


def count(config: GPTConfig | T5Shape, method: str, **hyperparameters) -> Count:
    """Parameters trained and stored by a method with these hyper-parameters (their defaults are the method's).

    Raises Error for an unknown method or hyper-parameter, a size that is none, or what an encoder-decoder gives no meaning to.
    """
    if method not in _COUNTS:
        raise Error(f"method must be one of {', '.join(_COUNTS)}, not {method!r}")
    known = depends_on(method)
    for name, value in hyperparameters.items():
        if name not in known:
            raise Error(f"what {method!r} costs depends on {', '.join(known) or 'the shape alone'}, not on {name!r}")
        if name in _SIZES and value is not None:
            at_least_one(name, value)
    if isinstance(config, T5Shape) and method not in ENCODER_DECODER:
        raise Error(f"{method!r} is made of a GPT's blocks: on an encoder-decoder {', '.join(ENCODER_DECODER)} are counted")
    return _COUNTS[method](config, **hyperparameters)


def step_flops(c: GPTConfig, method: str, batch_size: int, seq_len: int, supervised: float = 1.0, **hyperparameters) -> int:
    """Floating-point operations of the matrix products that a training step cannot do without (2·m·n·k for each, nothing twice).

    B·S positions in the blocks (S = P + T for a prompt, else T), of which B·T·supervised meet the head. Forward:

        linear     2 · B·S · 12·C²                each block's weights (12·C² in GPT-2's shape)
        attention  4 · C · B·S·(S + 1)/2          scores and outputs of the pairs that see each other
        prefix     4 · C · B·T·P                  (llama-adapter: in its layers); and what makes it: the projection of hidden
                                                  vectors to keys and values, the MLP
        edits      2 · B·T · weights              lora, adapter: each number meets each position once
        head       2 · B·T·supervised · V·C

    Backward: each product of a weight once more for the gradient of its input, and (full, edits, MLP) once more for its own; attention and
    prefix twice over. What lies before the first trained number needs no gradient, so it is spared: under a prefix of keys and values,
    in the first block that has one, the projection, the causal products and the gradient of the query; before an edit, what leads there.

    Raises Error for hard-prompt, which trains nothing.
    """
    trained = count(c, method, **hyperparameters).trained  # raises Error for what the method does not know
    if method == "hard-prompt":
        raise Error("hard-prompt has no training step: nothing is trained")
    L, C, kv, T = c.n_layer, c.n_embd, c.n_kv * c.head_size, seq_len
    P = 0 if method == "full" else hyperparameters.get("num_virtual_tokens", 8)
    S = T + P if method == "prompt" else T
    sizes = {place: 2 * batch_size * S * into * out for place, (into, out) in linears(c).items()}
    linear = sum(sizes.values())
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
        make = n * 2 * P * C * 2 * kv if hidden else 0  # keys and values of the hidden vectors
        if hyperparameters.get("prefix_projection"):
            m = hyperparameters.get("encoder_hidden_size") or C
            make_mlp = 2 * P * m * (C + L * (C if hidden else 2 * kv))
        else:
            make_mlp = 0
        spared = (L - n) * (linear + 2 * attention) + _up_to(sizes, 1) + 2 * attention + prefix // 2
        return both + 3 * n * prefix + 2 * make + 3 * make_mlp - spared
    if method in ("lora", "adapter"):
        if method == "lora":
            edits = 2 * batch_size * T * (trained // L)  # in one block
            targets = linears_named(c, hyperparameters.get("target_modules") or lora_targets(c))
            stage = _stage(targets[0])
            first = [place for place in targets if _stage(place) == stage]  # those that read the same, which has no gradient
            entry = 2 * batch_size * T * hyperparameters.get("r", 8) * sum(linears(c)[place][0] for place in first)
            if stage == 1 and c.projections == "apart":  # without q or k: no gradient of the scores; each has its own product
                untouched = [name for name in "qkv" if f"attn.{name}_proj" not in first]
                entry += attention // 2 * (len(untouched) + ({"q", "k"} <= set(untouched)))
        else:
            m, both_places = hyperparameters.get("bottleneck_size", 8), hyperparameters.get("placement", "houlsby") == "houlsby"
            edits = 2 * batch_size * T * (2 if both_places else 1) * 2 * C * m  # biases take part in no product
            entry = 2 * batch_size * T * m * C
            stage = 2 if both_places else 4
        spared = _up_to(sizes, stage) + (2 * attention if stage > 1 else 0) + entry
        return both + 3 * L * edits - spared
    return both


def _stage(place: str) -> int:
    """Which of a block's four steps a linear belongs to: what attention reads, what it puts out, what the MLP reads, what it puts out."""
    if place in READ_FIRST:
        return 1
    return {"attn.c_proj": 2, "attn.o_proj": 2, "mlp.c_proj": 4, "mlp.down_proj": 4}.get(place, 3)


def _up_to(sizes: dict[str, int], stage: int) -> int:
    return sum(size for place, size in sizes.items() if _stage(place) <= stage)
