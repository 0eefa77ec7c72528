"""Where gradients flow: what the backward pass must reach, and so what it costs and what has to be kept for it.

A tensor needs a gradient when something trained lies before it. In a frozen base that starts at the first trained number, which method
and shape decide, and from there on it holds for everything up to the loss:

    full             everywhere: the embeddings are trained
    prompt           from the input of the first block on
    prefix           from the attention of the first block on; its queries and what made them need none
    llama-adapter    the same, in the first block that has one
    lora, adapter    from the first edited place of the first block on
    hard-prompt      nowhere
"""

from typing import NamedTuple

from ..config import GPTConfig, linears
from ..files.huggingface import READ_FIRST
from .parameters import settings


class Block(NamedTuple):
    """Of one block: which of its tensors need a gradient, in the order they are made."""

    x: bool  # the input, and what ln_1 makes of it
    q: bool  # queries, keys, values, as they come out of their linears
    k: bool
    v: bool
    prefix: bool  # this block has a prefix (or LLaMA-Adapter's prompts), which always needs one
    y: bool  # what attention puts out
    o: bool  # what its projection puts out; the sum x + o is the MLP's input
    m: bool  # what ln_2 makes of the sum
    inner: dict[str, bool]  # what the MLP's first linears put out, by place
    down: bool  # what the MLP puts out
    out: bool  # the sum of all: the next block's input

    @property
    def own(self) -> bool:
        """Whether the block's own queries, keys or values need one."""
        return self.q or self.k or self.v


def flow(c: GPTConfig, method: str, **hyperparameters) -> list[Block]:
    """Every block in turn. Raises Error as `count` does."""
    h = settings(c, method, hyperparameters)
    full, places = method == "full", list(linears(c))
    hooks = set(h["places"]) if method == "lora" else set()
    if method == "adapter":
        hooks = {"attn", "mlp"} if h["placement"] == "houlsby" else {"mlp"}
    first_prefix = {"prefix": 0, "llama-adapter": c.n_layer - h.get("adapter_layers", 0)}.get(method, c.n_layer)
    attention, mlp = [p for p in places if p.startswith("attn.")], [p for p in places if p.startswith("mlp.")]
    x, blocks = method in ("full", "prompt"), []
    for i in range(c.n_layer):
        q, k, v = (x or full or place in hooks for place in (READ_FIRST[:1] * 3 if c.projections == "joined" else READ_FIRST[1:]))
        prefix = i >= first_prefix
        y = q or k or v or prefix
        o = y or attention[-1] in hooks or "attn" in hooks
        m = x or o
        inner = {place: m or place in hooks for place in mlp[:-1]}
        down = any(inner.values()) or mlp[-1] in hooks or "mlp" in hooks
        blocks.append(Block(x, q, k, v, prefix, y, o, m, inner, down, m or down))
        x = m or down
    return blocks
