"""The ladder: text → soft prompt → hidden prefix → prefix. Each rung contains the one before it, exactly.

    hard prompt      tokens the vocabulary has                             P choices out of V
    soft prompt      any vectors before the token embeddings               P·C numbers          Lester et al. 2021, 2104.08691
    hidden prefix    any vectors before the input of every block           L·P·C                as prefix tuning is often drawn
    prefix           any keys and values in every attention block          2·L·P·C              Li & Liang 2021, 2101.00190

Why climbing loses nothing: attention is causal, so virtual tokens never see the real ones and pass through the blocks the same
way whatever follows them; and real tokens see them only through keys and values. So what a soft prompt is at the input of every
block is a hidden prefix, and what each block makes of that, its keys and values, is a prefix. Going down is not possible in
general: few keys and values are those of any prompt.
"""

import torch
from torch import Tensor

from .config import Error
from .model import GPT


def prompt_from_tokens(base: GPT, tokens: Tensor) -> Tensor:
    """Hard → soft: tokens (P,) int64 -> their embeddings (1, P, C). Raises Error for ids outside the vocabulary."""
    if tokens.dim() != 1 or tokens.dtype != torch.int64:
        raise Error(f"tokens must be (P,) int64, not {tuple(tokens.shape)} {tokens.dtype}")
    V = base.config.vocab_size
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < V:
        raise Error(f"token ids must lie in 0 … {V - 1}, but they span {int(tokens.min())} … {int(tokens.max())}")
    return base.wte(tokens.to(base.wte.weight.device)).unsqueeze(0)


def hidden_from_prompt(base: GPT, prompt: Tensor, hooks: list[dict] | None = None) -> Tensor:
    """Soft → hidden: prompt (1, P, C) -> the input it gives every block, (L, 1, P, C); learned positions are already in it.

    hooks: those of GPT.hidden, for a prompt that was tuned together with them; the next step then wants them as well.
    """
    _fits(base, "prompt", prompt, (1, None, base.config.n_embd))
    x, rope = base.add_positions(prompt.to(base.wte.weight.dtype))
    inputs = []
    for block, its_hooks in zip(base.h, hooks or [None] * len(base.h), strict=True):
        inputs.append(x)
        x = block(x, rope, hooks=its_hooks)
    return torch.stack(inputs)


def prefix_from_hidden(base: GPT, hidden: Tensor, hooks: list[dict] | None = None) -> Tensor:
    """Hidden → keys and values: (L, 1, P, C) -> (L, 2, 1, n_kv, P, hs), through each block's own ln_1 and projection."""
    _fits(base, "hidden", hidden, (base.config.n_layer, 1, None, base.config.n_embd))
    hidden = hidden.to(base.wte.weight.dtype)
    _, rope = base.add_positions(hidden[0])
    layers = []
    for block, x, its_hooks in zip(base.h, hidden, hooks or [None] * len(base.h), strict=True):
        _, k, v = block.attn.qkv(block.ln_1(x), rope, its_hooks)  # (1, n_kv, P, hs)
        layers.append(torch.stack([k, v]))
    return torch.stack(layers)


def prefix_from_prompt(base: GPT, prompt: Tensor, hooks: list[dict] | None = None) -> Tensor:
    """Soft → keys and values in one step: (1, P, C) -> (L, 2, 1, n_kv, P, hs)."""
    return prefix_from_hidden(base, hidden_from_prompt(base, prompt, hooks), hooks)


def convert_up(base: GPT, x: Tensor, rung: str) -> Tensor:
    """x, on whatever rung it is, as what it is on this one: "prompt" (1, P, C), "hidden" (L, 1, P, C) or "kv" (L, 2, 1, n_kv, P, hs).

    Its own dimensions say where it starts: tokens (P,) have one, the others three, four and six. Raises Error for a way down.
    """
    dims = {"prompt": 3, "hidden": 4, "kv": 6}[rung]
    step = {1: prompt_from_tokens, 3: hidden_from_prompt, 4: prefix_from_hidden}
    while x.dim() < dims and x.dim() in step:
        x = step[x.dim()](base, x)
    if x.dim() != dims:
        raise Error(f"{tuple(x.shape)} lies above the rung {rung!r} of the ladder: few keys and values are those of any prompt")
    return x


def _fits(base: GPT, name: str, x: Tensor, shape: tuple) -> None:
    """Raise Error unless x has this shape (None: any number P, as long as the base has positions for it)."""
    if x.dim() != len(shape) or any(want not in (None, have) for want, have in zip(shape, x.shape, strict=True)):
        raise Error(f"{name} {tuple(x.shape)} must be ({', '.join('P' if n is None else str(n) for n in shape)})")
    if x.size(-2) > base.config.block_size:
        raise Error(f"{x.size(-2)} virtual tokens exceed the base's block size of {base.config.block_size}")
