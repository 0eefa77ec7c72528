"""A GPT from scratch, with two slots through which it can be tuned while its weights stay frozen.

    B  batch            T   real tokens              C   channels, n_embd (d_model in the papers)
    L  layers, n_layer  P   virtual tokens           nh  heads      hs  size of a head        V  vocabulary

    slot 1   the input layer concatenates `prompt` before the token embeddings       soft prompts (2104.08691)
    slot 2   every attention block takes `prefix` keys and values beside its own     prefix tuning (2101.00190)

LoRA (Hu et al. 2021, 2106.09685) and bottleneck adapters (Houlsby et al. 2019, 1902.00751) add no
virtual tokens. They are *hooks*: functions `f(x, y) -> y'` that replace the output `y` of a named
place of a block (config.hookable_modules) whose input was `x`.

The architecture is GPT-2's (Radford et al. 2019) and so are the parameter names. Changes of Llama
(2302.13971), Mistral, Qwen3, SmolLM3 and Gemma 3 are choices of the config (docs/architectures.md).
The model knows no tuning method by name. The file goes bottom-up: attention, MLP, block, GPT.
"""

import math
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .attention import prefix_attention
from .checks import Error, check_slots, shown
from .config import GPTConfig, hookable_modules
from .files import huggingface
from .fused import Window
from .parts.block import Rope, gelu, layer_tables, norm, rotate
from .parts.quantised_base import open_folder
from .runtime.compiling import can_compile, compiled
from .runtime.matmul import Linear, product
from .slots import KVCache, Prefix, SoftTokens


def apply_hook(hooks: dict | None, name: str, x: Tensor, y: Tensor) -> Tensor:
    """Pass the output y of `name`, whose input was x, through its hook, or hooks in turn."""
    found = hooks.get(name, ()) if hooks else ()
    for hook in found if isinstance(found, tuple) else (found,):
        y = hook(x, y)
    return y


def linear(part: nn.Module, name: str, x: Tensor, hooks: dict | None) -> Tensor:
    """Apply the linear `name` of this part of a block, and its hook."""
    return apply_hook(hooks, name, x, getattr(part, name.split(".")[1])(x))


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig, window: int | None = None):
        super().__init__()
        C, q, kv, bias = config.n_embd, config.q, config.kv, config.bias != "none"
        self.head_size, self.widths, self.window, self.backend = config.head_size, (q, kv, kv), window, "auto"
        self.joined = config.projections == "joined"
        if self.joined:  # one matrix makes queries, keys and values
            self.c_attn = Linear(C, sum(self.widths), bias=bias)
            self.c_proj = Linear(q, C, bias=config.bias == "all")
        else:
            self.q_proj, self.k_proj, self.v_proj = (Linear(C, width, bias=bias) for width in self.widths)
            self.o_proj = Linear(q, C, bias=config.bias == "all")
        self.q_norm, self.k_norm = (norm(config, self.head_size) if config.qk_norm else nn.Identity() for _ in "qk")

    def qkv(self, x: Tensor, rope: Rope = None, hooks=None) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, C) -> queries (B, nh, T, hs), keys, values (B, n_kv, T, hs); q and k rotated."""
        B, T, C = x.shape
        if self.joined:
            q, k, v = linear(self, "attn.c_attn", x, hooks).split(self.widths, dim=-1)
        else:
            q, k, v = (linear(self, name, x, hooks) for name in ("attn.q_proj", "attn.k_proj", "attn.v_proj"))
        q, k, v = (y.view(B, T, -1, self.head_size) for y in (q, k, v))
        q, k, v = (y.transpose(1, 2) for y in (self.q_norm(q), self.k_norm(k), v))  # (B, nh | n_kv, T, hs)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        return q, k, v

    def forward(self, x: Tensor, rope: Rope = None, prefix: Prefix | None = None, cache: KVCache | None = None,
                hooks=None, virtual: int = 0) -> Tensor:
        B, T, _ = x.shape
        window = self.window and Window(self.window, virtual)
        q, k, v = self.qkv(x, rope, hooks)
        k, v, length = (k, v, None) if cache is None else cache.extended(k, v)
        prefix_k, prefix_v, gate, prefix_length, bias, _ = prefix or 6 * (None,)
        # slot 2: keys and values from outside -> (B, nh, T, hs)
        y = prefix_attention(q, k, v, prefix_k, prefix_v, gate, self.backend, prefix_length, length, window, bias)
        y = apply_hook(hooks, "attn.heads", q, y)
        y = y.transpose(1, 2).reshape(B, T, -1)
        return linear(self, "attn.c_proj" if self.joined else "attn.o_proj", y, hooks)  # (B, T, C)


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        C, M, bias = config.n_embd, config.inner, config.bias == "all"
        self.gated, self.act = config.mlp != "gelu", F.silu if config.mlp == "swiglu" else gelu
        if self.gated:  # SwiGLU or GEGLU (Shazeer 2020, 2002.05202, eq. 6)
            self.gate_proj, self.up_proj = Linear(C, M, bias), Linear(C, M, bias)
            self.down_proj = Linear(M, C, bias)
        else:
            self.c_fc, self.c_proj = Linear(C, M, bias), Linear(M, C, bias)

    def forward(self, x: Tensor, hooks=None) -> Tensor:
        if self.gated:
            y = self.act(linear(self, "mlp.gate_proj", x, hooks)) * linear(self, "mlp.up_proj", x, hooks)
        else:
            y = self.act(linear(self, "mlp.c_fc", x, hooks))
        y = apply_hook(hooks, "mlp.act", x, y)  # (B, T, M), M = 4C in GPT-2
        return linear(self, "mlp.down_proj" if self.gated else "mlp.c_proj", y, hooks)


class Block(nn.Module):
    """One layer: x + attention, then x + MLP, each behind a norm (or between two)."""

    def __init__(self, config: GPTConfig, window: int | None = None):
        super().__init__()
        self.ln_1 = norm(config)
        self.attn = CausalSelfAttention(config, window)
        self.ln_1_post = norm(config) if config.sandwich_norm else nn.Identity()
        self.ln_2 = norm(config)
        self.mlp = MLP(config)
        self.ln_2_post = norm(config) if config.sandwich_norm else nn.Identity()

    def forward(self, x: Tensor, rope: Rope = None, prefix: Prefix | None = None, cache: KVCache | None = None,
                hooks=None, virtual: int = 0) -> Tensor:
        a = self.ln_1(x)
        x = x + apply_hook(hooks, "attn", a, self.ln_1_post(self.attn(a, rope, prefix, cache, hooks, virtual)))
        m = self.ln_2(x)
        return x + apply_hook(hooks, "mlp", m, self.ln_2_post(self.mlp(m, hooks)))


def call_block(block: Block, *inputs) -> Tensor:
    return block(*inputs)  # compiled; the block is an argument, so one compilation serves every layer


class GPT(nn.Module):
    """GPT(config); base(idx) returns logits. See `hidden` for the two slots."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        if not isinstance(config, GPTConfig):
            raise Error(f"a GPT is made of a GPTConfig, not {shown(config)}: GPT.from_pretrained opens one by name")
        self.config = config
        self.through_compile = self.checkpointed = False  # see run_block
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd) if config.position == "learned" else None
        self.h = nn.ModuleList(Block(config, config.window(i)) for i in range(config.n_layer))
        self.ln_f = norm(config)
        self.lm_head = None if config.tied else Linear(config.n_embd, config.vocab_size, bias=False)
        for name, p in self.named_parameters():  # GPT-2's initialisation; norms keep ones and zeros
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif p.dim() == 2:  # outputs added to the residual stream start smaller: 2 additions per layer
                added = name.endswith(("c_proj.weight", "o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer) if added else 0.02)

    @property
    def head(self) -> Tensor:
        """(V, C): the matrix from hidden states to logits; GPT-2 ties it to the embeddings."""
        return self.wte.weight if self.lm_head is None else self.lm_head.weight

    def embed(self, idx: Tensor) -> Tensor:
        """Token embeddings (B, T, C), times sqrt(C) if config.scale_embeddings. On a CPU, raises
        Error for ids outside the vocabulary."""
        try:
            x = self.wte(idx)
        except IndexError:
            raise Error(f"token ids must lie in 0 … {self.config.vocab_size - 1}, but they span "
                        f"{int(idx.min())} … {int(idx.max())}") from None
        return x * self.embedding_scale if self.config.scale_embeddings else x

    @property
    def embedding_scale(self) -> float:
        """sqrt(C), rounded to the weights' dtype as in Gemma; 1 without scaled embeddings."""
        c, dtype = self.config, self.wte.weight.dtype
        return torch.tensor(math.sqrt(c.n_embd), dtype=dtype, device="cpu").item() if c.scale_embeddings else 1.0

    def add_positions(self, x: Tensor, first: "int | Tensor" = 0) -> tuple[Tensor, list[Rope]]:
        """Place x (B, T, C) at positions first … first+T-1, first an int or (B,) -> x, and each
        layer's rotary tables (None with learned positions)."""
        offset = first if isinstance(first, int) else first[:, None]
        positions = torch.arange(x.size(1), device=x.device) + offset  # (T,) or (B, T)
        if self.wpe is not None:
            x = x + self.wpe(positions)
        # angles of far positions need the digits
        return x, layer_tables(self.config, positions, torch.promote_types(x.dtype, torch.float32))

    def forward(self, idx: Tensor, prompt=None, prefix=None, hooks=None) -> Tensor:
        """idx (B, T) int64 -> logits of the real tokens (B, T, V); slots, hooks as in `hidden`."""
        return product(self.hidden(idx, prompt, prefix, hooks), self.head)

    def hidden(self, idx: Tensor, prompt: "Tensor | SoftTokens | None" = None, prefix: "Tensor | Prefix | None" = None,
               hooks: list[dict] | None = None, cache: KVCache | None = None) -> Tensor:
        """idx (B, T) int64 -> the head's input: normalised states of the real tokens (B, T, C).

        prompt   (1|B, P, C): vectors concatenated before the (scaled) token embeddings; or SoftTokens, inside the text
        prefix   (L, 2, 1|B, n_kv, P, hs): keys (already rotated, with rotary positions) and values put
                 before each block's own; or a Prefix: with a gate, a bias, lengths, positions, or fewer than L layers
        hooks    per layer {place: f, or several in a tuple}: see the top of this file
        cache    keys and values of the positions before idx; those of idx are written to it

        Virtual tokens take positions 0 … P-1 (a Prefix: its `positions`, a gated one none;
        SoftTokens: their places in idx), real tokens follow. Raises Error when they exceed
        block_size, for a prompt or prefix of another shape, and for a hook at an unknown place.
        """
        if isinstance(prefix, Tensor):
            prefix = Prefix.of(prefix)
        cached = cache.read + cache.shift if cache else 0
        soft, prompt = (prompt, None) if isinstance(prompt, SoftTokens) else (None, prompt)
        check_slots(self.config, idx, prompt, prefix, hooks, cached, hookable_modules(self.config))
        (B, T), L = idx.shape, len(self.h)
        first = 0 if prefix is None else prefix.taken  # position of the first embedding
        if cache is not None:
            first = first + cache.shift + (cache.read if cache.length is None else cache.length)

        x = self.embed(idx) if soft is None else soft.embed(self.embed, idx)  # (B, T, C)
        if prompt is not None:  # slot 1: the soft prompt
            x = torch.cat([prompt.to(x.dtype).expand(B, -1, -1), x], dim=1)  # (B, P+T, C)
        x, ropes = self.add_positions(x, first)
        virtual = cache.virtual if cache else x.size(1) - T  # positions of a prompt: no window hides them
        # slot 2: every block its own part of the prefix
        prefixes, caches = prefix.layers(L) if prefix else L * [None], cache.layers() if cache else L * [None]
        for block, *inputs in zip(self.h, ropes, prefixes, caches, hooks or L * [None], strict=True):
            x = self.run_block(block, x, *inputs, virtual)
        return self.ln_f(x[:, x.size(1) - T :])  # without the virtual tokens   (B, T, C)

    def run_block(self, block: Block, x: Tensor, rope: Rope, prefix: Prefix | None, cache: KVCache | None,
                  hooks: dict | None, virtual: int) -> Tensor:
        """Run a block, compiled or checkpointed where that is switched on."""
        inputs = (block, x, rope, prefix, cache, hooks, virtual)
        compile_it = self.through_compile and cache is None and (x.requires_grad or not torch.is_grad_enabled())
        run = compiled(call_block) if compile_it else call_block
        if compile_it and block.attn.backend == "auto-any-length":
            for y, tokens in ((x, 1), *((table, 2) for table in rope or ())):
                torch._dynamo.maybe_mark_dynamic(y, tokens)
        if self.checkpointed and torch.is_grad_enabled():
            return checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=hooks is not None)  # dropout
        return run(*inputs)

    def compile_blocks(self, on: bool = True, any_length: bool = False) -> None:
        """Run blocks through torch.compile from now on, if it works here (see can_compile). The
        first pass of every new set of shapes compiles, some ten seconds, once for all layers;
        any_length: one graph serves all T."""
        self.through_compile = on and can_compile(self.wte.weight.device.type)
        for block in self.h:
            block.attn.backend = "auto-any-length" if on and any_length else "auto"

    def gradient_checkpointing(self, on: bool = True) -> None:
        """Save only the blocks' inputs for backward and run the blocks again there (1604.06174)."""
        self.checkpointed = on

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: torch.dtype | str | None = None) -> "GPT":
        """Open a Hugging Face folder, shipped base ("nano") or hub id, in its own dtype or `dtype`;
        "nf4" or "int8": quantised (quantised.py). Raises Error for no base, or an architecture this
        file does not have."""
        return open_folder(cls, folder, dtype)

    def save_pretrained(self, folder: str | Path, safe_serialization: bool | None = None) -> None:
        """Write a Hugging Face folder; transformers opens those whose shape is of
        files.families.FAMILIES. safe_serialization: False writes pytorch_model.bin; None
        safetensors if installed. Raises Error if quantised."""
        huggingface.write_base(self.config, self.state_dict(), folder, safe_serialization)
