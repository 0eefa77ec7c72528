"""Floating-point operations of the matrix products of a training step: 2·m·n·k for one of (m, k) by (k, n)."""

from typing import NamedTuple

from ..config import Error, GPTConfig, at_least_one, linears
from ..files.huggingface import READ_FIRST
from .gradients import flow
from .parameters import count, depends_on, settings, virtual_tokens


class Flops(NamedTuple):
    """Floating-point operations of each pass: see `flops`."""

    forward: int
    backward: int


class Product(NamedTuple):
    """One kind of matrix product, and how often each pass has it."""

    name: str
    size: int  # 2·m·n·k
    forward: int
    backward: int


def flops(c: GPTConfig, method: str, batch_size: int, seq_len: int, **hyperparameters) -> Flops:
    """Operations of all matrix products of logits and their cross-entropy, forward and backward, as they are executed.

    A product y = x W goes through three passes when W is trained, and two when it is frozen:

        forward     y  = x W       always
        backward    dx = dy Wᵀ     where x needs a gradient: something trained lies before it (gradients.py)
                    dW = xᵀ dy     where W is trained

    The three cost the same. So of full fine-tuning's 3 passes a frozen base still takes 2, however few parameters are trained:
    a step is at most 3/2 = 1.5 times as fast, and 1000 times fewer parameters are not 1000 times faster. More is spared only before
    the first trained number, where no gradient has to go: there 1 pass of 3 is left (llama-adapter, whose lowest layers are bare).

    With B·S positions in the blocks (S = P + T under a prompt, else T), every product once, in the code's symbols:

        linear       2·B·S·in·out         of every linear of a block: 12·C² numbers in all in GPT-2's shape
        attention    2·2·B·S·keys·C       scores q kᵀ and outputs; keys, the positions that queries look at, are P + S under a prefix,
                                          else S: the whole rectangle, as torch's FlopCounterMode has it: half of it is masked.
                                          Backward, where any of q, k, v needs a gradient, 5 products instead of 2: kernels keep no
                                          weights, so they make the scores again, then the gradients of weights, v, q and k, all of
                                          them whether or not they are needed
        head         2·B·T·V·C
        lora         2·B·S·r·(in + out)   of every edited linear
        adapter      2·B·S·2·C·m          at every place
        prefix       from hidden vectors: 2·P·C·(C + 2·n_kv·hs) in each block that has one (space "hidden", llama-adapter); queries
                     are made, too, though nobody reads them. Backward: where q, k and v are one matrix, all of it once more, where
                     they are apart, the products of k and v
                     llama-adapter's attention to K prompts: 2·2·B·T·K·C forward, 5/2 of it backward
                     through the MLP: 2·P·m·(C + W) forward, twice that backward, its input being trained as well

    Not here: what is no matrix product (norms, softmax, the optimizer's few operations a number). Adapted.loss, which keeps no logits
    (loss.py), makes the head's gradient in the forward pass, and with a trained head its logits once more in the backward pass.

    Raises Error as `count` does, or for a size that is none.
    """
    every = products(c, method, batch_size, seq_len, **hyperparameters)
    return Flops(sum(p.size * p.forward for p in every), sum(p.size * p.backward for p in every))


def products(c: GPTConfig, method: str, batch_size: int, seq_len: int, **hyperparameters) -> list[Product]:
    """What `flops` sums."""
    at_least_one("batch_size", batch_size), at_least_one("seq_len", seq_len)
    h = settings(c, method, hyperparameters)
    B, T, P = batch_size, seq_len, virtual_tokens(h)
    S = P + T if method in ("prompt", "hard-prompt") else T
    head = Product("head", 2 * B * T * c.vocab_size * c.n_embd, 1, flow(c, method, **hyperparameters)[-1].out + (method == "full"))
    keys = P + S if method == "prefix" else S
    return [*mlp_products(c, method, h), *prefix_products(c, method, h), *block_products(c, method, h, B * S, keys), head]


def mlp_products(c: GPTConfig, method: str, h: dict) -> list[Product]:
    """Through the MLP of a prefix: (P, C) by (C, m), and (P, m) by (m, W)."""
    if not h.get("prefix_projection"):
        return []
    P, m = h["num_virtual_tokens"], h["encoder_hidden_size"]
    W = count(c, method, num_virtual_tokens=1, space=h["space"]).stored
    return [Product("mlp of the prefix, first", 2 * P * c.n_embd * m, 1, 2), Product("mlp of the prefix, second", 2 * P * m * W, 1, 2)]


def prefix_products(c: GPTConfig, method: str, h: dict) -> list[Product]:
    """Keys and values made of P hidden vectors, in every block that has them."""
    if not (method == "llama-adapter" or h.get("space") == "hidden"):
        return []
    n, P, C, kv = h.get("adapter_layers", c.n_layer), virtual_tokens(h), c.n_embd, c.n_kv * c.head_size
    if c.projections == "joined":
        return n * [Product("c_attn of the prefix", 2 * P * C * (C + 2 * kv), 1, 1)]
    return n * [Product("q_proj of the prefix", 2 * P * C * C, 1, 0), Product("k_proj, v_proj of the prefix", 2 * P * C * kv, 2, 2)]


def block_products(c: GPTConfig, method: str, h: dict, rows: int, keys: int) -> list[Product]:
    """All blocks, for so many positions (rows, of the whole batch) that each look at so many keys."""
    full, C, found = int(method == "full"), c.n_embd, []

    def linear(name: str, x: bool) -> None:
        """A linear, and LoRA's edit beside it; x: whether its input needs a gradient."""
        into, out = linears(c)[name]
        found.append(Product(name, 2 * rows * into * out, 1, x + full))
        if name in h.get("places", ()):
            found.append(Product(f"{name}: x Aᵀ", 2 * rows * into * h["r"], 1, x + 1))
            found.append(Product(f"{name}: (x Aᵀ) Bᵀ", 2 * rows * h["r"] * out, 1, 2))

    def bottleneck(place: str, y: bool) -> None:
        if method == "adapter" and (place == "mlp" or h["placement"] == "houlsby"):
            size = 2 * rows * C * h["bottleneck_size"]
            found.extend([Product(f"adapter behind {place}: down", size, 1, y + 1), Product(f"adapter behind {place}: up", size, 1, 2)])

    *make_qkv, attn_out = (name for name in linears(c) if name.startswith("attn."))
    *mlp_in, mlp_out = (name for name in linears(c) if name.startswith("mlp."))
    for block in flow(c, method, **{name: h[name] for name in depends_on(method)}):
        for name in make_qkv:
            linear(name, block.x)
        gated = block.prefix and method == "llama-adapter"
        found.append(Product("attention", 2 * rows * keys * C, 2, 5 * (block.own if gated else block.y)))
        if gated:
            found.append(Product("attention to the prompts", 2 * rows * h["adapter_len"] * C, 2, 5))
        linear(attn_out, block.y)
        bottleneck("attn", block.y)
        for name in mlp_in:
            linear(name, block.m)
        inner = any(block.inner.values())
        linear(mlp_out, inner)
        bottleneck("mlp", inner)
    return found


def step_flops(c: GPTConfig, method: str, batch_size: int, seq_len: int, supervised: float = 1.0, **hyperparameters) -> int:
    """Floating-point operations of the matrix products that a training step cannot do without (2·m·n·k for each, nothing twice).

    B·S positions in the blocks (S = P + T for a prompt, else T), of which B·T·supervised meet the head. Forward:

        linear     2 · B·S · 12·C²                each block's weights (12·C² in GPT-2's shape)
        attention  4 · C · B·S·(S + 1)/2          scores and outputs of the pairs that see each other
        prefix     4 · C · B·T·P                  (llama-adapter: in its layers); and what makes it: the projection of hidden
                                                  vectors to keys and values, the MLP
        hooks      2 · B·T · weights              lora, adapter: each number meets each position once
        head       2 · B·T·supervised · V·C

    Backward: each product of a weight once more for the gradient of its input, and (full, hooks, MLP) once more for its own; attention and
    prefix twice over. What lies before the first trained number needs no gradient, so it is spared: under a prefix of keys and values,
    in the first block that has one, the projection, the causal products and the gradient of the query; before an edit, what leads there.

    Raises Error as `count` does, for a size that is none, or for hard-prompt, which trains nothing.
    """
    at_least_one("batch_size", batch_size), at_least_one("seq_len", seq_len)
    h = settings(c, method, hyperparameters)
    if method == "hard-prompt":
        raise Error("hard-prompt has no training step: nothing is trained")
    L, C, kv, T = c.n_layer, c.n_embd, c.n_kv * c.head_size, seq_len
    P = virtual_tokens(h)
    S = T + P if method == "prompt" else T
    sizes = {place: 2 * batch_size * S * into * out for place, (into, out) in linears(c).items()}
    linear = sum(sizes.values())
    attention = 4 * C * batch_size * (S * (S + 1) // 2)
    head = round(2 * batch_size * T * supervised * c.vocab_size * C)
    both = 2 * (L * linear + head) + 3 * L * attention  # forward, and backward to the input
    if method == "full":
        return both + L * linear + head
    if method in ("prefix", "llama-adapter"):
        n = h.get("adapter_layers", L)
        prefix = 4 * C * batch_size * T * P
        hidden = method == "llama-adapter" or h["space"] == "hidden"
        make = n * 2 * P * C * 2 * kv if hidden else 0  # keys and values of the hidden vectors
        make_mlp = sum(p.size for p in mlp_products(c, method, h))
        spared = (L - n) * (linear + 2 * attention) + _up_to(sizes, 1) + 2 * attention + prefix // 2
        return both + 3 * n * prefix + 2 * make + 3 * make_mlp - spared
    if method in ("lora", "adapter"):
        if method == "lora":
            hooks = 2 * batch_size * T * (count(c, method, **hyperparameters).trained // L)  # in one block
            stage = _stage(h["places"][0])
            first = [place for place in h["places"] if _stage(place) == stage]  # those that read the same, which has no gradient
            entry = 2 * batch_size * T * h["r"] * sum(linears(c)[place][0] for place in first)
            if stage == 1 and c.projections == "apart":  # without q or k: no gradient of the scores; each has its own product
                untouched = [name for name in "qkv" if f"attn.{name}_proj" not in first]
                entry += attention // 2 * (len(untouched) + ({"q", "k"} <= set(untouched)))
        else:
            m, both_places = h["bottleneck_size"], h["placement"] == "houlsby"
            hooks = 2 * batch_size * T * (2 if both_places else 1) * 2 * C * m  # biases take part in no product
            entry = 2 * batch_size * T * m * C
            stage = 2 if both_places else 4
        spared = _up_to(sizes, stage) + (2 * attention if stage > 1 else 0) + entry
        return both + 3 * L * hooks - spared
    return both


def _stage(place: str) -> int:
    """Which of a block's four steps a linear belongs to: what attention reads, what it puts out, what the MLP reads, what it puts out."""
    if place in READ_FIRST:
        return 1
    return {"attn.c_proj": 2, "attn.o_proj": 2, "mlp.c_proj": 4, "mlp.down_proj": 4}.get(place, 3)


def _up_to(sizes: dict[str, int], stage: int) -> int:
    return sum(size for place, size in sizes.items() if _stage(place) <= stage)
