"""What autograd keeps from the forward pass for the backward pass: tensor by tensor, and why."""

from typing import NamedTuple

from ..config import GPTConfig, at_least_one, linears
from .gradients import Block, flow
from .parameters import settings, virtual_tokens


class Kept(NamedTuple):
    """A tensor that is kept, with how many numbers and how many bytes each takes."""

    layer: int | None  # the block it lies in; None: outside of them
    name: str
    numbers: int
    each: int


def activations(
    c: GPTConfig, method: str, batch_size: int, seq_len: int, checkpointing: bool = False, base_bytes: int = 4, **hyperparameters
) -> list[Kept]:
    """Every tensor that autograd keeps of one Adapted.loss, run eagerly, in the order of the forward pass.

    An operation keeps what its gradients are made of, and only where a gradient is asked for (gradients.py says where):

        linear y = x W      dx = dy Wᵀ wants W, which is there anyway; dW = xᵀ dy wants x. So a frozen linear keeps nothing
        norm                its input, and for each position the mean and 1/spread ("layer") or 1/spread alone ("rms"); a trained
                            RMSNorm also keeps what its weight is multiplied with
        rotary positions    the cosines and sines (S, hs), one table each for all blocks
        attention           q, k, v, its output and the log of each softmax's sum (B, nh, S). No weights: they are made again.
                            Where one matrix makes q, k and v they are slices of its output (B, S, C + 2·n_kv·hs), and one slice
                            keeps the whole: rotary q and k, and all k and v that a prefix was concatenated to, are tensors of
                            their own, but as long as q or v is a slice, the whole lies beside them
                            A prefix: k and v (B, n_kv, P+T, hs), concatenated anew in each block and for each row, and who sees
                            whom, (T, P+T) numbers
        gelu(f)             f (B, S, M)
        silu(g) · u         g and u where g needs a gradient, silu(g) where u does      (B, S, M) each
        loss                its gradient in the last hidden state (B·T, C), made in the forward pass (loss.py): no logits

    What is added to that by method:

        full            the input of every linear (the norms' outputs, gelu's or the product's; attention's output is kept already), and
                        for the head its input, the targets and the log-sum-exps; the indices of both tables
        prompt          nothing, but S = P + T in every block
        prefix          from hidden vectors: each block's ln_1 of them, their rotary tables; through the MLP: its tanh (P, m), and
                        with hidden vectors what it puts out
        lora            of every edited linear the input x, x Aᵀ (B, S, r) and (α/r)·B
        adapter         at every place its input (B, S, C), and what goes into gelu and comes out of it (B, S, m)
        llama-adapter   the keys and values of the prompts, once for all rows; attention to them keeps its output and
                        log-sums besides, and q where the block's own does not

    In GPT-2's shape, in units of B·T·C, a block of full fine-tuning keeps 16 and a frozen one 10 of them:

        ln_1's input 1, its output (1), q, k, v 3, attention's output 1, ln_2's input 1, its output (1), c_fc's output 4, gelu's (4)

    where what stands in brackets is kept for the gradients of weights alone. So a block that a gradient passes keeps 10/16,
    however few numbers are trained: what attention, norms and gelu need to pass a gradient on stays.

    checkpointing: of every block that a gradient passes its input alone; the block runs again in the backward pass. (Held by name, not
    by autograd, and so not counted: what blocks are called with again besides, which are rotary tables and a prefix of hidden vectors.)

    Floats take base_bytes each, as a base in that type computes; log-sums, rotary tables and what RMSNorm keeps stay float32. At 4 this
    is exact; at 2 copies of what is trained in the base's type are left out, which is little.

    Raises Error as `count` does, or for a size that is none.
    """
    at_least_one("batch_size", batch_size), at_least_one("seq_len", seq_len)
    h, full, blocks = settings(c, method, hyperparameters), method == "full", flow(c, method, **hyperparameters)
    C, B, T, P, b = c.n_embd, batch_size, seq_len, virtual_tokens(h), base_bytes
    S = P + T if method == "prompt" else T
    found = [Kept(None, *tensor) for tensor in before_the_blocks(c, method, h, checkpointing, b)]
    if full:
        found.append(Kept(None, "indices of the embeddings", B * T + (T if c.position == "learned" else 0), 8))
    if c.position == "rotary" and not checkpointing and any(block.q or block.k for block in blocks):
        found.append(Kept(None, "rotary tables", 2 * S * c.head_size, 4))
    for i, block in enumerate(blocks):
        if not checkpointing:
            found += [Kept(i, *tensor) for tensor in in_a_block(c, method, h, block, B, S, b)]
        elif block.out:
            found.append(Kept(i, "input", B * S * C, b))
    if blocks[-1].out:
        whole = norm_bytes(c, b) == b  # the real tokens are a slice, which keeps the whole, unless they are copied
        found.append(Kept(None, "ln_f: input", B * (S if whole else T) * C, norm_bytes(c, b)))
        found += [Kept(None, *tensor) for tensor in statistics(c, "ln_f", B * T, full, b)]
        found.append(Kept(None, "loss: its gradient in the last hidden state", B * T * C, b))
    if full:
        found += [Kept(None, "ln_f: output", B * T * C, b), Kept(None, "loss: log-sums", B * T, 4), Kept(None, "loss: targets", B * T, 8)]
    return found


def before_the_blocks(c: GPTConfig, method: str, h: dict, checkpointing: bool, b: int) -> list[tuple[str, int, int]]:
    """(name, numbers, bytes of each) of what is kept where a prefix is made."""
    P, L, C, found = virtual_tokens(h), c.n_layer, c.n_embd, []
    if h.get("prefix_projection"):
        found.append(("mlp of the prefix: tanh", P * h["encoder_hidden_size"], 4))
    if h.get("space") == "hidden":
        if h["prefix_projection"]:
            found.append(("mlp of the prefix: hidden vectors", P * L * C, 4))
        found += L * statistics(c, "ln_1 of the prefix", P, False, b)
        if c.position == "rotary":
            found.append(("rotary tables of the prefix", 2 * P * c.head_size, 4))
    if method == "llama-adapter" and not checkpointing:
        found.append(("keys and values of the prompts", h["adapter_layers"] * 2 * P * c.n_kv * c.head_size, b))
    return found


def statistics(c: GPTConfig, name: str, rows: int, trained: bool, b: int) -> list[tuple[str, int, int]]:
    """What a norm keeps of so many positions, beside its input."""
    if c.norm == "layer":
        return [(f"{name}: mean, 1/spread", 2 * rows, b)]
    return [(f"{name}: 1/spread", rows, 4)] + ([(f"{name}: normalised", rows * c.n_embd, 4)] if trained else [])


def norm_bytes(c: GPTConfig, b: int) -> int:
    """RMSNorm works on a copy in float32, and keeps that."""
    return b if c.norm == "layer" else 4


def in_a_block(c: GPTConfig, method: str, h: dict, block: Block, B: int, S: int, b: int) -> list[tuple[str, int, int]]:
    """(name, numbers, bytes of each) of what is kept of a block, in the order of the forward pass."""
    full, P, C, kv, found = method == "full", virtual_tokens(h), c.n_embd, c.n_kv * c.head_size, []
    residual, middle, log_sums = B * S * C, B * S * c.inner, B * c.n_head * S
    *make_qkv, attn_out = (name for name in linears(c) if name.startswith("attn."))
    *mlp_in, mlp_out = (name for name in linears(c) if name.startswith("mlp."))

    def keep(name: str, numbers: int, each: int = b) -> None:
        found.append((name, numbers, each))

    def norm(name: str) -> None:
        keep(f"{name}: input", residual, norm_bytes(c, b))
        found.extend(statistics(c, name, B * S, full, b))

    def apply_hook(*places: str) -> bool:
        """Keep what LoRA's hooks of these linears keep, but for their input; returns whether there are any."""
        places = [place for place in places if place in h.get("places", ())]
        for place in places:
            keep(f"{place}: x Aᵀ", B * S * h["r"])
            keep(f"{place}: (α/r)·B", h["r"] * linears(c)[place][1])
        return bool(places)

    def bottleneck(place: str) -> None:
        if method == "adapter" and (place == "mlp" or h["placement"] == "houlsby"):
            keep(f"adapter behind {place}: input", residual)
            keep(f"adapter behind {place}: before and after gelu", 2 * B * S * h["bottleneck_size"])

    if block.x:
        norm("ln_1")
    if apply_hook(*make_qkv) or full:
        keep("ln_1: output", residual)

    gated = block.prefix and method == "llama-adapter"
    attends = block.own if gated else block.y  # whether attention to the text keeps anything
    concatenated = block.prefix and not gated
    slices = c.projections == "joined"  # q, k and v are slices of one tensor, but for those that are turned or concatenated
    turned = c.position == "rotary"
    if attends or gated:  # q
        if slices and not (turned and (concatenated or not attends)):
            keep("c_attn: output", residual + 2 * B * S * kv)
        if turned or not slices:
            keep("q", residual)
    if attends and concatenated:
        keep("prefix and k, prefix and v", 2 * B * (P + S) * kv)
        keep("who sees whom", S * (P + S))
    elif attends:
        if turned or not slices:
            keep("k", B * S * kv)
        if not slices:
            keep("v", B * S * kv)
    if attends:
        keep("attention: log-sums", log_sums, 4)
    if gated:
        keep("attention to the prompts: output", residual)
        keep("attention to the prompts: log-sums", log_sums, 4)
    if apply_hook(attn_out) or attends:
        keep("attention: output", residual)
    bottleneck("attn")

    if block.m:
        norm("ln_2")
    if apply_hook(*mlp_in) or full:
        keep("ln_2: output", residual)
    if c.mlp == "gelu" and block.inner["mlp.c_fc"]:
        keep("c_fc: output", middle)
    if c.mlp == "swiglu" and block.inner["mlp.gate_proj"]:
        keep("gate_proj: output", middle)
        keep("up_proj: output", middle)
    if c.mlp == "swiglu" and block.inner["mlp.up_proj"]:
        keep("silu: output", middle)
    if apply_hook(mlp_out) or full:
        keep("gelu: output" if c.mlp == "gelu" else "silu(g) · u", middle)
    bottleneck("mlp")
    return found
