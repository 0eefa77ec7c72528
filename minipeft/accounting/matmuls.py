"""Floating-point operations of a training step's matmuls: 2·m·n·k for (m, k) by (k, n)."""

from typing import NamedTuple

from ..checks import Error, at_least_one
from ..config import GPTConfig, linears
from .gradients import gradient_flow, linears_by_role
from .parameters import count, virtual_tokens, with_defaults


class Flops(NamedTuple):
    """Floating-point operations of each pass: see `flops`."""

    forward: int
    backward: int


class Product(NamedTuple):
    """One kind of matmul: its size, and how often each pass executes it."""

    name: str
    size: int  # 2·m·n·k floating-point operations
    forward: int
    backward: int


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
        attention    2·2·B·S·keys·C       scores q kᵀ and outputs; keys = P + S with a prefix, else S.
                                          The full rectangle, as torch's FlopCounterMode counts it,
                                          masked half included. Backward, if q, k or v needs a
                                          gradient: 5 matmuls instead of 2. Kernels save no attention
                                          weights: they compute scores again, then the gradients of
                                          weights, v, q and k, needed or not
        head         2·B·T·V·C
        lora         2·B·S·r·(in + out)   every target linear
        adapter      2·B·S·2·C·m          every place
        prefix       of hidden vectors: 2·P·C·(C + 2·n_kv·hs) in each block that has one (space
                     "hidden", llama-adapter), unused queries included; backward once more (with
                     separate projections, keys and values only)
                     llama-adapter's attention to K prompts: 2·2·B·T·K·C; backward 5/2 of it
                     through an MLP: 2·P·m·(C + W); backward twice that, as its input is trained

    Not counted: what is not a matmul (norms, softmax, the optimizer). Adapted.loss stores no logits
    (loss.py): it computes the head's input gradient in the forward pass, and with a trained head
    computes the logits a second time in backward.
    """
    every = products(c, method, batch_size, seq_len, **hyperparameters)
    return Flops(sum(p.size * p.forward for p in every), sum(p.size * p.backward for p in every))


def step_flops(c: GPTConfig, method: str, batch_size: int, seq_len: int, supervised: float = 1.0,
               **hyperparameters) -> int:
    """The fewest matmul FLOPs that a training step needs; the floor of bench.py.

    Of the matmuls of `flops` it leaves out what no result depends on:

        attention    only the S·(S + 1)/2 pairs that the causal mask leaves, and T·P of a prefix.
                     Backward, of those pairs: dV, dQ and dK where needed, and the gradient of the
                     scores for either of the latter; no scores a second time
        prefix       no queries of hidden vectors
        head         the share `supervised` of its B·T positions

    Raises Error for hard-prompt, which trains nothing.
    """
    every = products(c, method, batch_size, seq_len, needed=True, **hyperparameters)
    if method == "hard-prompt":
        raise Error("hard-prompt has no training step: nothing is trained")
    every[-1] = every[-1]._replace(size=round(every[-1].size * supervised))  # the head
    return sum(p.size * (p.forward + p.backward) for p in every)


def products(c: GPTConfig, method: str, batch_size: int, seq_len: int, needed: bool = False,
             **hyperparameters) -> list[Product]:
    """The matmuls that `flops` sums; needed: those that `step_flops` sums."""
    h, B, T = with_defaults(c, method, hyperparameters), batch_size, seq_len
    at_least_one("batch_size", B), at_least_one("seq_len", T)
    S = virtual_tokens(h) + T if method in ("prompt", "hard-prompt") else T
    backward = gradient_flow(c, method, h)[-1].out + (method == "full")
    head = Product("head", 2 * B * T * c.vocab_size * c.n_embd, 1, backward)
    return [*mlp_matmuls(c, method, h), *hidden_matmuls(c, method, h, needed),
            *block_matmuls(c, method, h, B * S, S, needed), head]


def mlp_matmuls(c: GPTConfig, method: str, h: dict) -> list[Product]:
    """The MLP of a prefix: (P, C) by (C, m), and (P, m) by (m, W)."""
    if not h.get("prefix_projection"):
        return []
    P, m = h["num_virtual_tokens"], h["encoder_hidden_size"]
    W = count(c, method, num_virtual_tokens=1, space=h["space"]).stored
    return [Product("mlp of the prefix, first", 2 * P * c.n_embd * m, 1, 2),
            Product("mlp of the prefix, second", 2 * P * m * W, 1, 2)]


def hidden_matmuls(c: GPTConfig, method: str, h: dict, needed: bool = False) -> list[Product]:
    """Keys and values of P hidden vectors, in every block that has them."""
    if not (method == "llama-adapter" or h.get("space") == "hidden"):
        return []
    n, P = h.get("adapter_layers", c.n_layer), virtual_tokens(h)
    C, kv = c.n_embd, c.n_kv * c.head_size
    if c.projections == "joined" and not needed:
        return n * [Product("c_attn of the prefix", 2 * P * C * (C + 2 * kv), 1, 1)]
    unused = [] if needed else [Product("q_proj of the prefix", 2 * P * C * C, 1, 0)]
    return n * [*unused, Product("k_proj, v_proj of the prefix", 2 * P * C * kv, 2, 2)]


def block_matmuls(c: GPTConfig, method: str, h: dict, rows: int, keys: int, needed: bool = False) -> list[Product]:
    """All blocks, for `rows` positions of the whole batch, each with `keys` keys of real tokens."""
    full, C, P, found = int(method == "full"), c.n_embd, virtual_tokens(h), []
    into_qkv, attn_out, mlp_in, mlp_out = linears_by_role(c)

    def linear(name: str, x: bool) -> None:
        """A linear and LoRA's hook beside it; x: its input needs a gradient."""
        into, out = linears(c)[name]
        found.append(Product(name, 2 * rows * into * out, 1, x + full))
        if name in h.get("places", ()):
            found.append(Product(f"{name}: x Aᵀ", 2 * rows * into * h["r"], 1, x + 1))
            found.append(Product(f"{name}: (x Aᵀ) Bᵀ", 2 * rows * h["r"] * out, 1, 2))

    def bottleneck(place: str, y: bool) -> None:
        if method == "adapter" and (place == "mlp" or h["placement"] == "houlsby"):
            size = 2 * rows * C * h["bottleneck_size"]
            found.append(Product(f"adapter behind {place}: down", size, 1, y + 1))
            found.append(Product(f"adapter behind {place}: up", size, 1, 2))

    def attention(block) -> None:
        gated = block.prefix and method == "llama-adapter"
        if needed:  # dV; the gradient of the scores; dQ; dK
            backward = block.v + (block.q or block.k) + block.q + block.k
            found.append(Product("attention", rows * (keys + 1) * C, 2, backward))  # half of 2·rows·(keys + 1)·C
            if block.prefix:
                found.append(Product("attention to the prefix", 2 * rows * P * C, 2, 3 + block.q))
            return
        every = keys + P if block.prefix and not gated else keys
        found.append(Product("attention", 2 * rows * every * C, 2, 5 * (block.qkv if gated else block.y)))
        if gated:
            found.append(Product("attention to the prompts", 2 * rows * P * C, 2, 5))

    for block in gradient_flow(c, method, h):
        for name in into_qkv:
            linear(name, block.x)
        attention(block)
        linear(attn_out, block.y)
        bottleneck("attn", block.y)
        for name in mlp_in:
            linear(name, block.m)
        inner = any(block.inner.values())
        linear(mlp_out, inner)
        bottleneck("mlp", inner)
    return found
