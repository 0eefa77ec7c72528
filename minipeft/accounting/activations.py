"""Activation memory: every tensor that autograd saves for backward, and why."""

from typing import NamedTuple

from ..checks import at_least_one
from ..config import GPTConfig, linears
from .gradients import BlockGradients, gradient_flow, linears_by_role
from .parameters import virtual_tokens, with_defaults


class Kept(NamedTuple):
    """A tensor saved for backward."""

    layer: int | None  # its block; None: outside the blocks
    name: str
    numbers: int  # elements
    each: int  # bytes per element


def activations(c: GPTConfig, method: str, batch_size: int, seq_len: int, checkpointing: bool = False,
                base_bytes: int = 4, **hyperparameters) -> list[Kept]:
    """Every tensor that autograd saves in one eager Adapted.loss, in the order of the forward pass.

    An operation saves the inputs of its gradients, if it needs a gradient (gradients.py):

        linear y = x W     x, for dW = xᵀ dy; dx = dy Wᵀ needs only W. A frozen linear saves nothing
        norm               its input; per position mean and 1/spread ("layer") or 1/spread ("rms");
                           a trained RMSNorm also the normalised input
        rotary positions   cosines and sines (S, hs), one table each for all blocks
        attention          q, k, v, the output, and the log-sum-exp of each softmax (B, nh, S). Joined
                           q, k and v are slices of one output (B, S, C + 2·n_kv·hs), and one saved
                           slice holds all of it; rotated q and k, and k and v behind a prefix, are
                           new tensors beside it
                           prefix: k and v (B, n_kv, P+T, hs) and the mask (T, P+T) in each block
        gelu(f)            f (B, S, M)
        silu(g) · u        g and u if g needs a gradient, silu(g) if u does: (B, S, M) each
        loss               the gradient of the last hidden state (B·T, C), computed in forward
                           (loss.py): no logits

    In addition, by method:

        full            the input of every linear; head: input, targets, log-sum-exps; token indices
        prompt          nothing, but S = P + T in every block
        prefix          hidden vectors: each block's ln_1 of them, their rotary tables; MLP: its tanh
                        (P, m), and for hidden vectors its output
        lora            of every target linear: x, x Aᵀ (B, S, r), (α/r)·B
        adapter         at every place: the input (B, S, C), input and output of gelu (B, S, m)
        llama-adapter   the prompts' keys and values, once for all rows; output and log-sum-exps of
                        the attention to them, and q if the block's own attention does not save it

    A block of GPT-2's shape, in units of B·T·C; in brackets, saved for gradients of weights only:

        ln_1 input 1, (output 1), q, k, v 3, attention output 1,
        ln_2 input 1, (output 1), c_fc output 4, (gelu output 4)

    So full fine-tuning saves 16, and a frozen block that a gradient passes through 10, however few
    parameters are trained.

    checkpointing: such a block saves its input alone and runs again in backward. (Not counted: its
    other arguments, rotary tables and a prefix of hidden vectors, which autograd does not hold.)
    base_bytes: bytes of a float of the base's dtype; log-sum-exps, rotary tables and RMSNorm's
    tensors stay float32. Exact at 4; at 2 without small copies of trained tensors in that dtype.
    """
    at_least_one("batch_size", batch_size), at_least_one("seq_len", seq_len)
    h = with_defaults(c, method, hyperparameters)
    full, blocks = method == "full", gradient_flow(c, method, h)
    C, B, T, b = c.n_embd, batch_size, seq_len, base_bytes
    S = virtual_tokens(h) + T if method == "prompt" else T
    before, after = before_blocks(c, method, h, checkpointing, b), []
    if full:
        indices = B * T + (T if c.position == "learned" else 0)
        before.append(("indices of the embeddings", indices, 8))
    if c.position == "rotary" and not checkpointing and any(block.q or block.k for block in blocks):
        before.append(("rotary tables", 2 * S * c.head_size, 4))
    found = [Kept(None, *tensor) for tensor in before]
    for i, block in enumerate(blocks):
        if not checkpointing:
            found += [Kept(i, *tensor) for tensor in in_block(c, method, h, block, B, S, b)]
        elif block.out:
            found.append(Kept(i, "input", B * S * C, b))
    if blocks[-1].out:
        # LayerNorm saves a slice, whose storage holds all S positions; RMSNorm may copy it first.
        each = b if c.norm == "layer" else 4
        after = [("ln_f: input", B * (T if each != b else S) * C, each),
                 *norm_statistics(c, "ln_f", B * T, full, b),
                 ("loss: its gradient in the last hidden state", B * T * C, b)]
    if full:
        after += [("ln_f: output", B * T * C, b), ("loss: log-sums", B * T, 4),
                  ("loss: targets", B * T, 8)]
    return found + [Kept(None, *tensor) for tensor in after]


def before_blocks(c: GPTConfig, method: str, h: dict, checkpointing: bool, b: int) -> list[tuple[str, int, int]]:
    """(name, elements, bytes of each) of the tensors saved where a prefix is computed."""
    P, found = virtual_tokens(h), []
    if h.get("prefix_projection"):
        found.append(("mlp of the prefix: tanh", P * h["encoder_hidden_size"], 4))
    if h.get("space") == "hidden":
        if h["prefix_projection"]:
            found.append(("mlp of the prefix: hidden vectors", P * c.n_layer * c.n_embd, 4))
        found += c.n_layer * norm_statistics(c, "ln_1 of the prefix", P, False, b)
        if c.position == "rotary":
            found.append(("rotary tables of the prefix", 2 * P * c.head_size, 4))
    if method == "llama-adapter" and not checkpointing:
        elements = h["adapter_layers"] * 2 * P * c.n_kv * c.head_size
        found.append(("keys and values of the prompts", elements, b))
    return found


def norm_statistics(c: GPTConfig, name: str, positions: int, trained: bool, b: int) -> list[tuple[str, int, int]]:
    """The tensors that a norm saves beside its input."""
    if c.norm == "layer":
        return [(f"{name}: mean, 1/spread", 2 * positions, b)]
    found = [(f"{name}: 1/spread", positions, 4), (f"{name}: normalised", positions * c.n_embd, 4)]
    return found if trained else found[:1]


def in_block(c: GPTConfig, method: str, h: dict, block: BlockGradients, B: int, S: int,
             b: int) -> list[tuple[str, int, int]]:
    """(name, elements, bytes of each) of the tensors saved in a block, in the order of the forward pass."""
    full, P, kv, found = method == "full", virtual_tokens(h), c.n_kv * c.head_size, []
    residual, middle, log_sums = B * S * c.n_embd, B * S * c.inner, B * c.n_head * S
    into_qkv, attn_out, mlp_in, mlp_out = linears_by_role(c)

    def save(name: str, elements: int, each: int = b) -> None:
        found.append((name, elements, each))

    def norm(name: str) -> None:
        save(f"{name}: input", residual, b if c.norm == "layer" else 4)  # RMSNorm: a float32 copy
        found.extend(norm_statistics(c, name, B * S, full, b))

    def lora(*names: str) -> bool:
        """Save what LoRA's hooks at these linears save, except their input; True if there are any."""
        targets = [name for name in names if name in h.get("places", ())]
        for name in targets:
            save(f"{name}: x Aᵀ", B * S * h["r"])
            save(f"{name}: (α/r)·B", h["r"] * linears(c)[name][1])
        return bool(targets)

    def bottleneck(place: str) -> None:
        if method == "adapter" and (place == "mlp" or h["placement"] == "houlsby"):
            save(f"adapter behind {place}: input", residual)
            save(f"adapter behind {place}: before and after gelu", 2 * B * S * h["bottleneck_size"])

    if block.x:
        norm("ln_1")
    if lora(*into_qkv) or full:
        save("ln_1: output", residual)

    gated = block.prefix and method == "llama-adapter"
    attends = block.qkv if gated else block.y  # attention to the real tokens saves its tensors
    concatenated = block.prefix and not gated
    slices = c.projections == "joined"  # q, k, v share one tensor, unless rotated or concatenated
    rotated = c.position == "rotary"
    if attends or gated:  # q
        if slices and not (rotated and (concatenated or not attends)):
            save("c_attn: output", residual + 2 * B * S * kv)
        if rotated or not slices:
            save("q", residual)
    if attends and concatenated:
        save("prefix and k, prefix and v", 2 * B * (P + S) * kv)
        save("attention mask", S * (P + S))
    elif attends and (rotated or not slices):
        save("k", B * S * kv)
        if not slices:
            save("v", B * S * kv)
    if attends:
        save("attention: log-sums", log_sums, 4)
    if gated:
        save("attention to the prompts: output", residual)
        save("attention to the prompts: log-sums", log_sums, 4)
    if lora(attn_out) or attends:
        save("attention: output", residual)
    bottleneck("attn")

    if block.m:
        norm("ln_2")
    if lora(*mlp_in) or full:
        save("ln_2: output", residual)
    if c.mlp == "gelu" and block.inner["mlp.c_fc"]:
        save("c_fc: output", middle)
    if c.mlp == "swiglu" and block.inner["mlp.gate_proj"]:
        save("gate_proj: output", middle)
        save("up_proj: output", middle)
    if c.mlp == "swiglu" and block.inner["mlp.up_proj"]:
        save("silu: output", middle)
    if lora(mlp_out) or full:
        save("gelu: output" if c.mlp == "gelu" else "silu(g) · u", middle)
    bottleneck("mlp")
    return found
