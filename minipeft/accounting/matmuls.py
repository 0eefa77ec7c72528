"""Floating-point operations of a training step's matmuls: 2·m·n·k for (m, k) by (k, n)."""

from typing import NamedTuple

from ..checks import Error, at_least_one
from ..config import GPTConfig, linears
from ..formulas.terms import Cost, Matmul, Size, Term, total
from .gradients import BlockGradients, gradient_flow
from .parameters import Declared, declared


class Flops(NamedTuple):
    """Floating-point operations of each pass: see `flops`."""

    forward: int
    backward: int


class Product(NamedTuple):
    """One kind of matmul: its size, how often each pass executes it, and in how many blocks."""

    name: str
    size: Size  # 2·m·n·k floating-point operations
    forward: int
    backward: int
    times: Size = 1


def flops(c: GPTConfig, method: str, batch_size: int, seq_len: int, **hyperparameters) -> Flops:
    """FLOPs of all matmuls of logits and cross-entropy, forward and backward, as executed.

    A linear y = x W takes three matmuls of one size if W is trained, two if W is frozen:

        forward     y  = x W       always
        backward    dx = dy Wᵀ     if x needs a gradient: a trained parameter comes before it
                    dW = xᵀ dy     if W is trained

    So a frozen base still takes 2 of full fine-tuning's 3 matmuls, however few parameters are
    trained: a step is at most 3/2 = 1.5 times as fast. Blocks below the first trained parameter
    take 1 of 3 (llama-adapter, whose lowest layers have no prompts).

    One matmul each, with B·S positions in the blocks (S = P + T with a prompt, else T):

        linear       2·B·S·in·out         every linear of a block: 12·C² weights in GPT-2's shape
        attention    2·2·B·S·keys·nh·hs   scores q kᵀ and outputs; keys = P + S with a prefix, else S.
                                          The full rectangle, as torch's FlopCounterMode counts it,
                                          masked half included, and what a window masks. (Compiled,
                                          the fused kernel leaves out most of either.) Backward, if
                                          q, k or v needs a gradient: 5 matmuls instead of 2. Kernels save no attention
                                          weights: they compute scores again, then the gradients of
                                          weights, v, q and k, needed or not
        head         2·B·T·V·C
        a method     what its Cost declares: matmuls of its hooks, 2·B·S·in·out, and of what is folded
                     away when saved
        prefix       made by the block's own projections (of hidden vectors): 2·P·C·(nh + 2·n_kv)·hs in
                     each block that has one, unused queries included; backward once more (with
                     separate projections, keys and values only)
                     with a softmax of its own: 2·2·B·T·P·nh·hs; backward 5/2 of it
                     with a bias on its keys: the same, less the gradient of q where none needs one,
                     and attention to the real tokens has no backward there

    Not counted: what is not a matmul (norms, softmax, the optimizer; to dequantise a base a look-up
    and a multiplication for each weight of its matrices, in forward and again in backward, whatever
    B·S: little beside 2·B·S in training, as much as the matmul itself for one new token); and with
    a trained head the second computation of the logits, in the backward pass of a loss that stores
    none (loss.py).
    """
    every = products(c, method, batch_size, seq_len, **hyperparameters)
    return Flops(*(total(pass_terms(every, name)) for name in Flops._fields))


def step_flops(c: GPTConfig, method: str, batch_size: int, seq_len: int, supervised: float = 1.0,
               **hyperparameters) -> int:
    """The fewest matmul FLOPs that a training step needs; the floor of bench.py.

    Of the matmuls of `flops` it leaves out what no result depends on:

        attention    only the S·(S + 1)/2 pairs that the causal mask leaves, and T·P of a prefix; of D =
                     T - window tokens that a window hides something from, D·(D + 1)/2 pairs less.
                     Backward, of those pairs: dV, dQ and dK where needed, and the gradient of the
                     scores for either of the latter; no scores a second time
        prefix       no queries of hidden vectors
        head         the share `supervised` of its B·T positions

    Raises Error for a method that trains nothing.
    """
    every = products(c, method, batch_size, seq_len, needed=True, **hyperparameters)
    if not declared(c, method, hyperparameters).shapes.trained:
        raise Error(f"{method} has no training step: nothing is trained")
    every[-1] = every[-1]._replace(size=round(every[-1].size * supervised))  # the head
    return sum(p.size * (p.forward + p.backward) * p.times for p in every)


def pass_terms(matmuls: list[Product], name: str) -> list[Term]:
    """FLOPs of these matmuls in one pass, "forward" or "backward"."""
    return [Term(p.name, p.size, getattr(p, name) * p.times) for p in matmuls]


def products(c: GPTConfig, method: str, batch_size: int, seq_len: int, needed: bool = False,
             **hyperparameters) -> list[Product]:
    """The matmuls that `flops` sums; needed: those that `step_flops` sums."""
    at_least_one("batch_size", batch_size), at_least_one("seq_len", seq_len)
    return step_matmuls(c, declared(c, method, hyperparameters), batch_size, seq_len, needed)


def step_matmuls(c: GPTConfig, d: Declared, B: Size, T: Size,
                 needed: bool = False) -> list[Product]:
    """`products` of declared sizes, which may be symbols."""
    S = T + d.cost(c, B).prompt
    cost = d.cost(c, B * S)
    kinds = gradient_flow(c, cost, bool(d.shapes.trained))
    head = Product("head", 2 * B * T * c.vocab_size * c.n_embd, 1, kinds[-1].out + cost.base)
    folded = [Product(m.name, 2 * m.rows * m.n_in * m.n_out, 1, 1 + m.trained)
              for m in cost.folded if isinstance(m, Matmul)]
    hidden = 0
    if needed and c.sliding_window is not None:  # pairs that a window hides
        D = max(0, T - c.sliding_window)
        hidden = B * D * (D + 1) // 2
    blocks = block_matmuls(c, cost, kinds, B * S, S, needed, hidden=hidden)
    return [*folded, *prefix_matmuls(c, cost, needed), *blocks, head]


def prefix_matmuls(c: GPTConfig, cost: Cost, needed: bool = False) -> list[Product]:
    """Keys and values of a prefix made by the blocks' own projections."""
    if cost.prefix is None or cost.prefix.source == "parameters":
        return []
    n, P, C, q, kv = cost.prefix.layers, cost.prefix.rows, c.n_embd, c.q, c.kv
    if c.projections == "joined" and not needed:
        return [Product("c_attn of the prefix", 2 * P * C * (q + 2 * kv), 1, 1, n)]
    unused = [] if needed else [Product("q_proj of the prefix", 2 * P * C * q, 1, 0, n)]
    return [*unused, Product("k_proj, v_proj of the prefix", 2 * P * C * kv, 2, 2, n)]


def block_matmuls(c: GPTConfig, cost: Cost, kinds: list[BlockGradients], rows: Size, keys: Size,
                  needed: bool = False, in_window: Size | None = None, hidden: Size = 0) -> list[Product]:
    """All blocks, for `rows` positions of the whole batch, each with `keys` keys of the context.

    in_window: keys that blocks with a window read (None: as others); hidden: pairs that they need not.
    """
    q, sizes, found = c.q, linears(c), []
    P = 0 if cost.prefix is None else cost.prefix.rows

    def attention(block: BlockGradients, add) -> None:
        own_softmax = block.prefix and cost.prefix.own_softmax
        if needed:  # dV; the gradient of the scores; dQ; dK
            backward = block.v + (block.q or block.k) + block.q + block.k
            less = 2 * hidden if block.windowed else 0
            add("attention", (rows * (keys + 1) - less) * q, 2, backward)  # half of 2·rows·(keys + 1)·q
            if block.prefix:
                add("attention to the prefix", 2 * rows * P * q, 2, 3 + block.q)
            return
        every = keys if in_window is None or not block.windowed else in_window
        if block.prefix and cost.prefix.bias:
            add("attention", 2 * rows * every * q, 2, 5 * block.qkv)
            add("attention to the prefix", 2 * rows * P * q, 2, 4 + block.qkv)
            return
        every = every + P if block.prefix and not own_softmax else every
        add("attention", 2 * rows * every * q, 2,
            5 * (block.qkv or (block.prefix and not own_softmax)))
        if own_softmax:
            add("attention to the prompts", 2 * rows * P * q, 2, 5)

    for block in kinds:
        def add(name: str, size: Size, forward: int, backward: int, times=block.times) -> None:
            found.append(Product(name, size, forward, backward, times))

        for place, needs in block.at.items():
            if place == "attn.heads":
                attention(block, add)
            elif place in sizes:
                into, out = sizes[place]
                add(place, 2 * rows * into * out, 1, needs.x + cost.base)
            for m in cost.hooks[place].matmuls if place in cost.hooks else ():
                of = {"x": needs.x, "y": needs.y, "own": True}[m.of]
                add(m.name, 2 * (rows if m.rows is None else m.rows) * m.n_in * m.n_out, 1, of + m.trained)
    return found
