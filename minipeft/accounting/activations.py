"""What autograd keeps from the forward pass for the backward pass: tensor by tensor, and why."""

from typing import NamedTuple

from ..config import GPTConfig, linears
from .gradients import flow
from .parameters import settings


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
                            A prefix of P: k and v (B, n_kv, P+T, hs), concatenated anew in each block and for each row, and who sees
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

    So frozen methods keep half or more of what full fine-tuning keeps: what attention, norms and gelu need to pass a gradient on, and
    the only thing spared is the inputs of the linears.

    checkpointing: of every block that a gradient passes its input alone; the block runs again in the backward pass. (Held by name, not
    by autograd, and so not counted: what blocks are called with again besides, which are rotary tables and a prefix of hidden vectors.)

    Floats take base_bytes each, as a base in that type computes; the tables of rotary positions, loss and log-sums 4.
    Raises Error as `count` does.
    """
    h, full = settings(c, method, hyperparameters), method == "full"
    C, kv, nh, hs, B, T, b = c.n_embd, c.n_kv * c.head_size, c.n_head, c.head_size, batch_size, seq_len, base_bytes
    P = h.get("num_virtual_tokens") or h.get("adapter_len", 0)
    S = P + T if method == "prompt" else T
    blocks = flow(c, method, **hyperparameters)
    layer, found = None, []

    def keep(name: str, numbers: int, each: int = b) -> None:
        found.append(Kept(layer, name, numbers, each))

    def norm(name: str, rows: int, of: int, trained: bool = False) -> None:
        """rows: positions that are normalised; of: those of the tensor they are taken from, which is kept whole."""
        if of:
            keep(f"{name}: input", of * C)
        keep(f"{name}: {'mean, 1/spread' if c.norm == 'layer' else '1/spread'}", rows * (2 if c.norm == "layer" else 1))
        if trained and c.norm == "rms":
            keep(f"{name}: normalised", rows * C)

    def edited(*places: str) -> list[tuple[str, int, int]]:
        """LoRA's edits at these places: what each keeps but its input."""
        edits = [place for place in places if method == "lora" and place in h["places"]]
        for place in edits:
            keep(f"{place}: x Aᵀ", B * S * h["r"])
            keep(f"{place}: (α/r)·B", h["r"] * linears(c)[place][1], 4)
        return edits

    def bottleneck(place: str) -> None:
        if method == "adapter" and (place == "mlp" or h["placement"] == "houlsby"):
            keep(f"adapter behind {place}: input", B * S * C)
            keep(f"adapter behind {place}: before and after gelu", 2 * B * S * h["bottleneck_size"])

    if h.get("prefix_projection"):
        keep("mlp of the prefix: tanh", P * h["encoder_hidden_size"], 4)
    if method == "prefix" and h["space"] == "hidden":
        if h["prefix_projection"]:
            keep("mlp of the prefix: hidden vectors", P * c.n_layer * C, 4)
        for layer in range(c.n_layer):
            norm("ln_1 of the prefix", P, 0)
        layer = None
        if c.position == "rotary":
            keep("rotary tables of the prefix", 2 * P * hs, 4)
    if method == "llama-adapter" and not checkpointing:
        keep("keys and values of the prompts", h["adapter_layers"] * 2 * P * kv)
    if full:
        keep("indices of the embeddings", B * T + (T if c.position == "learned" else 0), 8)
    if c.position == "rotary" and not checkpointing and any(block.q or block.k for block in blocks):
        keep("rotary tables", 2 * S * hs, 4)

    for layer, block in enumerate(blocks):
        if checkpointing:
            if block.out:
                keep("input", B * S * C)
            continue
        attention, mlp = ([p for p in linears(c) if p.startswith(part)] for part in ("attn.", "mlp."))
        if block.x:
            norm("ln_1", B * S, B * S, full)
        if edited(*attention[:-1]) or full:
            keep("ln_1: output", B * S * C)
        joined, turned = c.projections == "joined", c.position == "rotary"
        concatenated = method == "prefix"
        if block.y:
            q_alone = method == "llama-adapter" and not block.own
            if joined and not (turned and (concatenated or q_alone)):
                keep("c_attn: output", B * S * (C + 2 * kv))
            if turned or not joined:
                keep("q", B * S * C)
            if concatenated:
                keep("prefix and k, prefix and v", 2 * B * (P + S) * kv)
                keep("who sees whom", S * (P + S))
            elif not q_alone:
                if turned or not joined:
                    keep("k", B * S * kv)
                if not joined:
                    keep("v", B * S * kv)
        if (block.own and method == "llama-adapter") or (block.y and method != "llama-adapter"):
            keep("attention: log-sums", B * nh * S, 4)
        if block.prefix and method == "llama-adapter":
            keep("attention to the prompts: output", B * S * C)
            keep("attention to the prompts: log-sums", B * nh * S, 4)
        into_o = edited(attention[-1])
        if (block.own or (block.y and method != "llama-adapter")) or into_o:
            keep("attention: output", B * S * C)
        bottleneck("attn")
        if block.m:
            norm("ln_2", B * S, B * S, full)
        if edited(*mlp[:-1]) or full:
            keep("ln_2: output", B * S * C)
        M = B * S * c.inner
        if c.mlp == "gelu":
            if block.inner["mlp.c_fc"]:
                keep("c_fc: output", M)
            middle = "gelu: output"
        else:
            if block.inner["mlp.gate_proj"]:
                keep("gate_proj: output", M)
                keep("up_proj: output", M)
            if block.inner["mlp.up_proj"]:
                keep("silu: output", M)
            middle = "gated product"
        if edited(mlp[-1]) or full:
            keep(middle, M)
        bottleneck("mlp")

    layer = None
    if blocks[-1].out:
        norm("ln_f", B * T, B * S, full)
        keep("loss: its gradient in the last hidden state", B * T * C)
    if full:
        keep("ln_f: output", B * T * C)
        keep("loss: log-sums", B * T, 4)
        keep("loss: targets", B * T, 8)
    return found
