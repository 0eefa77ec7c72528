"""Activation memory: every tensor that autograd saves for backward, and why."""

from ..checks import at_least_one
from ..config import GPTConfig, linears, linears_by_role
from ..formulas.terms import Cost, PrefixCost, Saved, Size, Term, minimum
from .gradients import BlockGradients, gradient_flow
from .parameters import Declared, declared


def activations(c: GPTConfig, method: str, batch_size: int, seq_len: int, checkpointing: bool = False,
                base_bytes: int = 4, **hyperparameters) -> list[Saved]:
    """Every tensor that autograd saves in one eager Adapted.loss, in the order of the forward pass.

    An operation saves the inputs of its gradients, if it needs a gradient (gradients.py):

        linear y = x W     x, for dW = xᵀ dy; dx = dy Wᵀ needs only W. A frozen linear saves nothing
        norm               its input; per position mean and 1/spread ("layer") or 1/spread ("rms");
                           a trained RMSNorm also the normalised input; with weight 1 + w that sum.
                           Norms of queries and keys the same, per position and head
        rotary positions   cosines and sines (S, hs), one table each for all blocks of one θ
        attention          q, k, v, the output, and the log-sum-exp of each softmax (B, nh, S). Joined
                           q, k and v are slices of one output (B, S, (nh + 2·n_kv)·hs), and one saved
                           slice holds all of it; rotated q and k, and k and v behind a prefix, are
                           new tensors beside it
                           prefix: k and v (B, n_kv, P+T, hs) and, for T > 1, the mask (T, P+T) in each block;
                           with a bias on its keys neither, nor a window's mask: two parts, merged (fused.py),
                           which save the prefix instead where it is made by an MLP, once for all rows
                           window: the mask (S, S) where T is more than the window
        gelu(f)            f (B, S, M)
        silu(g) · u        g and u if g needs a gradient, silu(g) if u does: (B, S, M) each; gelu the same
        loss               the gradient of the last hidden state (B·T, C), computed in forward
                           (loss.py): no logits

    In addition:

        every weight trained     the input of every linear; head: input, targets, log-sum-exps; token indices
        prompt                   nothing, but S = P + T in every block
        prefix of states         each block's ln_1 of them, their rotary tables
        prefix of its own        the keys and values, once for all rows; output and log-sum-exps of the
        softmax                  attention to them, and q if the block's own attention does not save it
        a method                 what its Cost declares for its hooks, and for what is folded away

    A block of GPT-2's shape, in units of B·T·C; in brackets, saved for gradients of weights only:

        ln_1 input 1, (output 1), q, k, v 3, attention output 1,
        ln_2 input 1, (output 1), c_fc output 4, (gelu output 4)

    So full fine-tuning saves 16, and a frozen block that a gradient passes through 10, however few
    parameters are trained.

    checkpointing: such a block saves its input alone and runs again in backward. (Not counted: its
    other arguments, rotary tables and a prefix of hidden vectors, which autograd does not hold.)
    base_bytes: bytes of a float of the base's dtype; log-sum-exps, rotary tables and RMSNorm's
    tensors stay float32. Exact at 4 (but for qk_norm behind a joined projection, which
    no family has); at 2 without small copies of trained tensors in that dtype.
    """
    at_least_one("batch_size", batch_size), at_least_one("seq_len", seq_len)
    return saved_tensors(c, declared(c, method, hyperparameters), batch_size, seq_len,
                         checkpointing, base_bytes)


def saved_tensors(c: GPTConfig, d: Declared, B: Size, T: Size, checkpointing: bool = False,
                  b: int = 4) -> list[Saved]:
    """`activations` of declared sizes, symbols too; b: bytes of a float of the base's dtype."""
    S = T + d.cost(c, B).prompt
    cost, C = d.cost(c, B * S), c.n_embd
    kinds = gradient_flow(c, cost, bool(d.shapes.trained))
    found = before_blocks(c, cost, checkpointing)
    # 1 where a window hides something, else 0
    hides = 0 if c.sliding_window is None else minimum(1, T - minimum(T, c.sliding_window))
    if cost.base:
        found.append(Saved("indices of the embeddings",
                           B * T + (T if c.position == "learned" else 0), 8))
    for name, rotated in rotary_blocks(c, kinds).items():
        turned = sum(block.times for block in rotated if block.q or block.k)
        if not checkpointing and turned != 0:
            found.append(Saved(name, 2 * S * c.head_size, 4, minimum(1, turned)))
    for block in kinds:
        if not checkpointing:
            found += [tensor._replace(times=block.times) for tensor in in_block(c, cost, block, B, S, hides)]
        elif block.out:
            found.append(Saved("input of a block", B * S * C, times=block.times))
    if kinds[-1].out:
        # LayerNorm saves a slice, whose storage holds all S positions; RMSNorm may copy it first.
        each = b if c.norm == "layer" else 4
        found += [Saved("ln_f: input", B * (T if each != b else S) * C, each),
                  *norm_statistics(c, "ln_f", B * T, C, cost.base),
                  Saved("loss: its gradient in the last hidden state", B * T * C)]
    if cost.base:
        found += [Saved("ln_f: output", B * T * C), Saved("loss: log-sums", B * T, 4),
                  Saved("loss: targets", B * T, 8)]
    return [tensor._replace(each=tensor.each or b) for tensor in found]


def saved_terms(c: GPTConfig, d: Declared, B: Size, T: Size, checkpointing: bool = False,
                b: int = 4) -> list[Term]:
    """Bytes of `saved_tensors`."""
    return [Term(x.name, x.each * x.elements, x.times) for x in saved_tensors(c, d, B, T, checkpointing, b)]


def rotary_blocks(c: GPTConfig, kinds: list[BlockGradients]) -> dict[str, list[BlockGradients]]:
    """The blocks with rotary positions that share tables of cosines and sines."""
    local = c.rope_local_base_freq is not None and (c.rope_local_base_freq, None) != (c.rope_theta, c.rope_scaling)
    found: dict[str, list[BlockGradients]] = {}
    for block in kinds:
        if block.rotated:
            name = "rotary tables of layers with a window" if local and block.windowed else "rotary tables"
            found.setdefault(name, []).append(block)
    return found


def before_blocks(c: GPTConfig, cost: Cost, checkpointing: bool) -> list[Saved]:
    """The tensors saved where a prefix is computed."""
    found, prefix = [tensor for tensor in cost.folded if isinstance(tensor, Saved)], cost.prefix
    made = [] if prefix is None else prefix_norms(c, prefix)
    found += [tensor._replace(times=prefix.layers) for tensor in made]
    if prefix is not None and prefix.source == "states":
        for name, rotated in rotary_blocks(c, gradient_flow(c, cost, True)).items():
            layers = sum(block.times for block in rotated)
            found.append(Saved(f"{name} of the prefix", 2 * prefix.rows * c.head_size, 4,
                               minimum(1, layers)))
    if prefix is not None and (prefix.own_softmax or (prefix.bias and prefix.made)) and not checkpointing:
        name = "keys and values of the prompts" if prefix.own_softmax else "mlp of the prefix: keys and values"
        found.append(Saved(name, prefix.layers * 2 * prefix.rows * c.kv))
    return found


def prefix_norms(c: GPTConfig, prefix: PrefixCost) -> list[Saved]:
    """The tensors that norms save where a block's own projections make its prefix."""
    found = norm_statistics(c, "ln_1 of the prefix", prefix.rows, c.n_embd, False) if prefix.source == "states" else []
    if c.qk_norm and prefix.source != "parameters":
        found.append(Saved("k_norm of the prefix: input", prefix.rows * c.kv, None if c.norm == "layer" else 4))
        found += norm_statistics(c, "k_norm of the prefix", prefix.rows * c.n_kv, c.head_size,
                                 False)
    return found


def norm_statistics(c: GPTConfig, name: str, positions: Size, width: Size,
                    trained: bool) -> list[Saved]:
    """The tensors that a norm of vectors of this width saves beside its input."""
    if c.norm == "layer":
        return [Saved(f"{name}: mean, 1/spread", 2 * positions)]
    found = [Saved(f"{name}: 1/spread", positions, 4)]
    if c.norm == "rms1p":
        found.append(Saved(f"{name}: 1 + w", width, 4))
    return [*found, Saved(f"{name}: normalised", positions * width, 4)] if trained else found


def in_block(c: GPTConfig, cost: Cost, block: BlockGradients, B: Size, S: Size,
             hides: Size = 0) -> list[Saved]:
    """Tensors saved in a block, in forward order; hides: 1 where a window hides something."""
    full, kv, found = cost.base, c.kv, []
    residual, queries, middle, log_sums = B * S * c.n_embd, B * S * c.q, B * S * c.inner, B * c.n_head * S
    into_qkv, attn_out, mlp_in, mlp_out = linears_by_role(c)

    def save(name: str, elements: Size, each: int | None = None) -> None:
        found.append(Saved(name, elements, each))

    def norm(name: str, heads: Size = 1, width: Size = c.n_embd) -> None:
        save(f"{name}: input", B * S * heads * width, None if c.norm == "layer" else 4)  # RMSNorm: a float32 copy
        found.extend(norm_statistics(c, name, B * S * heads, width, full))

    widths = {"attn": c.n_embd, "mlp.act": c.inner, "mlp": c.n_embd}
    widths |= {name: out for name, (_, out) in linears(c).items()}

    def hooks(*places: str) -> None:
        """Save what the hooks at these places save, except their input."""
        for place in [place for place in places if place in cost.hooks]:
            found.extend(cost.hooks[place].saved)
            if cost.hooks[place].saves_y and place in widths:
                save(f"{place}: output before its hook", B * S * widths[place])

    def saves(input_or_output: str, *places: str) -> bool:
        """True if a hook at these places saves its x or its y."""
        return any(getattr(cost.hooks[place], f"saves_{input_or_output}") for place in places if place in cost.hooks)

    if block.x:
        norm("ln_1")
    hooks(*into_qkv)
    if saves("x", *into_qkv, "attn") or full:
        save("ln_1: output", residual)

    own_softmax = block.prefix and cost.prefix.own_softmax
    split = block.prefix and cost.prefix.bias
    concatenated = block.prefix and not own_softmax and not split
    attends = block.qkv or concatenated or split  # attention to the real tokens saves its tensors
    slices = c.projections == "joined"  # q, k, v share one tensor, unless rotated or concatenated
    rotated = block.rotated or c.qk_norm  # q and k are new tensors
    for name, needs, heads in (("q_norm", block.q, c.n_head), ("k_norm", block.k, c.n_kv)):
        if c.qk_norm and needs:
            norm(name, heads, c.head_size)
    if attends or own_softmax:  # q
        if slices and not (rotated and (concatenated or not attends)):
            save("c_attn: output", queries + 2 * B * S * kv)
        if rotated or not slices:
            save("q", queries)
    if attends and concatenated:
        P = cost.prefix.rows
        save("prefix and k, prefix and v", 2 * B * (P + S) * kv)
        save("attention mask", minimum(1, S - 1) * S * (P + S))  # a single query needs none
    elif attends and (rotated or not slices):
        save("k", B * S * kv)
        if not slices:
            save("v", B * S * kv)
    if block.qkv and not (concatenated or split) and block.windowed and hides != 0:
        save("attention mask", hides * S * S)
    if attends:
        save("attention: log-sums", log_sums, 4)
    if own_softmax:
        save("attention to the prompts: output", queries)
        save("attention to the prompts: log-sums", log_sums, 4)
    hooks("attn.heads", attn_out, "attn")
    is_hooked = "attn.heads" in cost.hooks  # then the projection's input is another tensor
    if attends or saves("y", "attn.heads") or (saves("x", attn_out) and not is_hooked):
        save("attention: output", queries)
    if saves("x", attn_out) and is_hooked:
        save("attention: output behind its hook", queries)
    if c.sandwich_norm and block.at[attn_out].out:
        norm("ln_1_post")

    if block.m:
        norm("ln_2")
    hooks(*mlp_in)
    if saves("x", *mlp_in, "mlp.act", "mlp") or full:
        save("ln_2: output", residual)
    if c.mlp == "gelu" and block.at["mlp.c_fc"].out:
        save("c_fc: output", middle)
    act = "silu" if c.mlp == "swiglu" else "gelu"
    if c.mlp != "gelu" and block.at["mlp.gate_proj"].out:
        save("gate_proj: output", middle)
        save("up_proj: output", middle)
    if c.mlp != "gelu" and block.at["mlp.up_proj"].out:
        save(f"{act}: output", middle)
    hooks("mlp.act", mlp_out, "mlp")
    if saves("x", mlp_out) or full:
        save("gelu: output" if c.mlp == "gelu" else f"{act}(g) · u", middle)
    if c.sandwich_norm and block.at[mlp_out].out:
        norm("ln_2_post")
    return found
