"""The ladder: hard prompt → soft prompt → hidden prefix → prefix, each containing the one before.

    hard prompt      tokens of the vocabulary                      P choices of V
    soft prompt      any vectors before the token embeddings       P·C parameters   Lester et al. 2021, 2104.08691
    hidden prefix    any vectors before the input of every block   L·P·C            as the article draws it
    prefix           any keys and values in every attention        2·L·P·n_kv·hs    Li & Liang 2021, 2101.00190

(2·L·P·C where n_kv·hs is C, without grouped heads.) Converting up keeps the logits, to rounding:
attention is causal, so virtual tokens never see the real ones and pass through the blocks in the
same way whatever follows; real tokens see them only through keys and values. So the states of a
soft prompt at every block's input are a hidden prefix, and the keys and values that each block
computes from a hidden prefix are a prefix. In general there is no way down: one prompt fixes the
keys and values of all blocks.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .checks import Error, check_base, check_shape, described
from .model import GPT

Hooks = list[dict[str, Callable[..., Tensor]]] | None  # for each block: f(input, output) by name


def prompt_from_tokens(base: GPT, tokens: Tensor) -> Tensor:
    """Hard → soft: tokens (P,) int64 -> embeddings (1, P, C). Raises Error for unknown ids."""
    check_base(base)
    if not isinstance(tokens, Tensor) or tokens.dim() != 1 or tokens.dtype != torch.int64:
        raise Error(f"tokens must be (P,) int64, not {described(tokens)}")
    V = base.config.vocab_size
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < V:
        raise Error(f"token ids must lie in 0 … {V - 1}, but they span {int(tokens.min())} … {int(tokens.max())}")
    return base.embed(tokens.to(base.wte.weight.device)).unsqueeze(0)


def hidden_from_prompt(base: GPT, prompt: Tensor, hooks: Hooks = None) -> Tensor:
    """Soft → hidden: prompt (1, P, C) -> its states at every block's input (L, 1, P, C).

    hooks: as in GPT.hidden, for a prompt that was tuned with them; the next step needs them too.
    """
    check_base(base)
    _check_virtual(base, "soft prompt", prompt, (1, "P", base.config.n_embd))
    x, ropes = base.add_positions(prompt.to(base.wte.weight.dtype))
    inputs = []
    for block, rope, block_hooks in zip(base.h, ropes, hooks or [None] * len(base.h), strict=True):
        inputs.append(x)
        x = block(x, rope, hooks=block_hooks, virtual=x.size(1))
    return torch.stack(inputs)


def prefix_from_hidden(base: GPT, hidden: Tensor, hooks: Hooks = None) -> Tensor:
    """Hidden → prefix: (L, 1, P, C) -> (L, 2, 1, n_kv, P, hs), by each ln_1 and its projections."""
    check_base(base)
    _check_virtual(base, "hidden prefix", hidden, (base.config.n_layer, 1, "P", base.config.n_embd))
    hidden = hidden.to(base.wte.weight.dtype)
    _, ropes = base.add_positions(hidden[0])
    layers = []
    for block, x, rope, block_hooks in zip(base.h, hidden, ropes, hooks or [None] * len(base.h), strict=True):
        _, k, v = block.attn.qkv(block.ln_1(x), rope, block_hooks)  # (1, n_kv, P, hs)
        layers.append(torch.stack([k, v]))
    return torch.stack(layers)


def prefix_from_prompt(base: GPT, prompt: Tensor, hooks: Hooks = None) -> Tensor:
    """Soft → prefix in one step: (1, P, C) -> (L, 2, 1, n_kv, P, hs)."""
    return prefix_from_hidden(base, hidden_from_prompt(base, prompt, hooks), hooks)


def convert_up(base: GPT, x: Tensor, level: str) -> Tensor:
    """x, from any level, as "prompt" (1, P, C), "hidden" (L, 1, P, C) or "kv" (as prefix_from_hidden).

    The number of x's dimensions tells its level: tokens (P,) have one. Raises Error for a way down, or another shape.
    """
    c = base.config
    shape = dict(prompt=(1, "P", c.n_embd), hidden=(c.n_layer, 1, "P", c.n_embd),
                 kv=(c.n_layer, 2, 1, c.n_kv, "P", c.head_size))[level]
    dims = len(shape)
    step = {1: prompt_from_tokens, 3: hidden_from_prompt, 4: prefix_from_hidden}
    while x.dim() < dims and x.dim() in step:
        x = step[x.dim()](base, x)
    if x.dim() != dims:
        raise Error(f"{tuple(x.shape)} is above level {level!r} of the ladder, which has no way down")
    check_shape(f"level {level!r} of the ladder", x, shape)
    return x


def _check_virtual(base: GPT, name: str, x: Tensor, shape: tuple) -> None:
    check_shape(name, x, shape)
    if not x.size(-2):
        raise Error(f"the {name} has no virtual tokens")
    if x.size(-2) > base.config.block_size:
        raise Error(f"{x.size(-2)} virtual tokens exceed the base's block size of {base.config.block_size}")
