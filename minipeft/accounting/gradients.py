"""Gradient flow: which tensors of each block need a gradient, and so what backward must compute.

A tensor needs a gradient if a trained parameter comes before it. In a frozen base this starts at
the first trained parameter and holds for everything from there to the loss:

    full             everywhere: the embeddings are trained
    prompt           from the input of the first block
    prefix           from the attention of the first block; its queries and their input need none
    llama-adapter    the same, in the first block that has prompts
    lora, adapter    from the first hook of the first block
    hard-prompt      nowhere
"""

from typing import NamedTuple

from ..config import GPTConfig, linears


class BlockGradients(NamedTuple):
    """True for the tensors of one block that need a gradient, in the order of the forward pass."""

    x: bool  # the block's input, and the output of ln_1
    q: bool  # queries, keys, values: the outputs of their linears
    k: bool
    v: bool
    prefix: bool  # the block has a prefix or LLaMA-Adapter's prompts; these always need one
    y: bool  # the output of attention
    o: bool  # the output of its projection
    m: bool  # the residual x + o, and the output of ln_2
    inner: dict[str, bool]  # the outputs of the MLP's first linears, by name
    down: bool  # the output of the MLP
    out: bool  # the block's output

    @property
    def qkv(self) -> bool:
        """True if the block's own queries, keys or values need a gradient."""
        return self.q or self.k or self.v


def gradient_flow(c: GPTConfig, method: str, h: dict) -> list[BlockGradients]:
    """Every block in turn; h: all hyper-parameters (parameters.with_defaults)."""
    full = method == "full"
    hooks = set(h.get("places", ()))
    if method == "adapter":
        hooks = {"attn", "mlp"} if h["placement"] == "houlsby" else {"mlp"}
    first_prefix = {"prefix": 0, "llama-adapter": c.n_layer - h.get("adapter_layers", 0)}.get(method, c.n_layer)
    into_qkv, attn_out, mlp_in, mlp_out = linears_by_role(c)
    x, blocks = method in ("full", "prompt"), []
    for i in range(c.n_layer):
        q, k, v = (x or full or name in hooks for name in into_qkv * (3 // len(into_qkv)))
        prefix = i >= first_prefix
        y = q or k or v or prefix
        o = y or attn_out in hooks or "attn" in hooks
        m = x or o
        inner = {name: m or name in hooks for name in mlp_in}
        down = any(inner.values()) or mlp_out in hooks or "mlp" in hooks
        blocks.append(BlockGradients(x, q, k, v, prefix, y, o, m, inner, down, m or down))
        x = m or down
    return blocks


def linears_by_role(c: GPTConfig) -> tuple[list[str], str, list[str], str]:
    """A block's linears: into q, k and v; attention's output; the MLP's inputs; its output."""
    *into_qkv, attn_out = (name for name in linears(c) if name.startswith("attn."))
    *mlp_in, mlp_out = (name for name in linears(c) if name.startswith("mlp."))
    return into_qkv, attn_out, mlp_in, mlp_out
