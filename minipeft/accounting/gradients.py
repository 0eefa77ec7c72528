"""Gradient flow: which tensors of each block need a gradient, and so what backward must compute.

A tensor needs a gradient if a trained parameter comes before it. In a frozen base this starts at
the first trained parameter and holds for everything from there to the loss:

    every weight     everywhere: the embeddings are trained
    prompt           from the input of the first block
    prefix           from the attention of the first block that has one; its queries need none
    hooks            from the first hook of the first block

So there are at most three kinds of blocks: those below the first trained parameter, the block that
has it, and those above; and of each two, where every so many-th layer has no window or no rotation.
"""

from typing import NamedTuple

from ..config import GPTConfig, hookable_modules, linears_by_role
from ..formulas.terms import Cost, Size, floor


class Needs(NamedTuple):
    """True for the tensors of a place of a block that need a gradient."""

    x: bool  # its input
    y: bool  # its output, before its hook
    out: bool  # behind its hook


class BlockGradients(NamedTuple):
    """True for the tensors of a block that need a gradient; the same in `times` blocks."""

    times: Size
    x: bool  # the block's input, and the output of ln_1
    q: bool  # queries, keys, values: the outputs of their linears
    k: bool
    v: bool
    prefix: bool  # the block has a prefix; it always needs one
    m: bool  # the residual behind attention, and the output of ln_2
    at: dict[str, Needs]  # by place (config.hookable_modules)
    out: bool  # the block's output
    windowed: bool = False  # attention has a window
    rotated: bool = False  # queries and keys have rotary positions

    @property
    def qkv(self) -> bool:
        """True if the block's own queries, keys or values need a gradient."""
        return self.q or self.k or self.v


def gradient_flow(c: GPTConfig, cost: Cost, trains: bool) -> list[BlockGradients]:
    """The kinds of blocks from the first to the last; trains: the method trains something."""
    layers = c.n_layer if cost.prefix is None else cost.prefix.layers
    x, kinds, has_prefix = trains and (cost.base or cost.prompt != 0), [], cost.prefix is not None
    stop = 0
    for times, prefix in ((c.n_layer - layers, False), (1, has_prefix), (layers - 1, has_prefix)):
        first, stop = stop, stop + times
        if times != 0:
            block = _block(c, cost, times, x, prefix)
            kinds += [block._replace(times=n, windowed=windowed, rotated=rotated)
                      for n, windowed, rotated in _by_layer(c, first, stop) if n != 0]
            x = block.out
    return kinds


def _by_layer(c: GPTConfig, first: Size, stop: Size) -> list[tuple[Size, bool, bool]]:
    """Of the layers first … stop-1: how many have a window or not, and rotation or not."""
    every, windowed, rotary = c.sliding_window_pattern, c.sliding_window is not None, c.position == "rotary"
    if not windowed:
        every = c.no_rope_layer_interval
    if every is None:
        return [(stop - first, windowed, rotary)]
    others = floor(stop, every) - floor(first, every)
    return [(stop - first - others, windowed, rotary), (others, False, rotary and windowed)]


def _block(c: GPTConfig, cost: Cost, times: Size, x: bool, prefix: bool) -> BlockGradients:
    into_qkv, attn_out, mlp_in, mlp_out = linears_by_role(c)
    at: dict[str, Needs] = {}

    def reach(places: list[str] | str, into: bool, y: bool) -> bool:
        for place in [places] if isinstance(places, str) else places:
            at[place] = Needs(into, y or cost.base, y or cost.base or place in cost.hooks)
        return any(at[place].out for place in ([places] if isinstance(places, str) else places))

    reach(into_qkv, x, x)
    q, k, v = (at[name].out for name in into_qkv * (3 // len(into_qkv)))
    heads = reach("attn.heads", q, q or k or v or prefix)
    o = reach("attn", x, reach(attn_out, heads, heads))
    m = x or o
    inner = reach(mlp_in, m, m)
    act = reach("mlp.act", inner, inner)
    down = reach("mlp", m, reach(mlp_out, act, act))
    assert list(at) == hookable_modules(c)
    return BlockGradients(times, x, q, k, v, prefix, m, at, m or down)
