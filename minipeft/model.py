"""A GPT from scratch, with two slots through which it can be tuned while its weights stay frozen.

    B  batch            T   real tokens              C   channels, n_embd (d_model in the papers)
    L  layers, n_layer  P   virtual tokens           nh  heads            hs  head size, C / nh         V  vocabulary

    slot 1   the input layer concatenates `prompt` before the token embeddings       soft prompts  (Lester et al. 2021, 2104.08691)
    slot 2   every attention block takes `prefix` keys and values beside its own     prefix tuning (Li & Liang 2021, 2101.00190)

The architecture is GPT-2's (Radford et al. 2019) and so are the parameter names; `position="rotary"` swaps the learned position
table for rotary positions (RoPE, Su et al. 2021, 2104.09864). The model knows no tuning method by name: it only has the slots.
Read from leaf to root.
"""

import math
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .attention import prefix_attention
from .compiling import can_compile, compiled
from .config import Error, GPTConfig


class Prefix(NamedTuple):
    """What slot 2 takes when keys and values alone do not say it all.

    A gated prefix has its own softmax: it stands beside the sequence, not before it, and takes no positions.
    """

    k: Tensor  # (L, 1|B, n_kv, P, hs)
    v: Tensor  # (L, 1|B, n_kv, P, hs)
    gate: Tensor | None = None  # (L, nh)

    @classmethod
    def of(cls, prefix: Tensor) -> "Prefix":
        """Keys and values (L, 2, 1|B, n_kv, P, hs) taken apart."""
        if prefix.dim() != 6 or prefix.size(1) != 2:
            raise Error(f"prefix {tuple(prefix.shape)} must be (L, 2, 1|B, n_kv, P, hs)")
        return cls(prefix[:, 0], prefix[:, 1])


def rotary_tables(positions: Tensor, head_size: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position's angles: positions (T,) -> two (T, hs) tensors of this dtype (RoPE §3.2.2)."""
    frequency = theta ** (-torch.arange(0, head_size, 2, device=positions.device, dtype=dtype) / head_size)  # (hs/2,)
    angle = positions.to(dtype)[:, None] * frequency  # (T, hs/2)
    angle = torch.cat([angle, angle], dim=-1)  # (T, hs)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Turn channel i of x (B, nh, T, hs) with channel i + hs/2 by the angle of its position (the pairing Llama uses)."""
    cos, sin = rope
    a, b = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-b, a], dim=-1) * sin).to(x.dtype)


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def qkv(self, x: Tensor, rope=None) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, C) -> queries, keys and values, each (B, nh, T, hs); rotary positions are already in q and k."""
        B, T, C = x.shape
        q, k, v = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)  # 3 × (B, nh, T, hs)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        return q, k, v

    def forward(self, x: Tensor, rope=None, prefix_k=None, prefix_v=None, gate=None) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.qkv(x, rope)
        y = prefix_attention(q, k, v, prefix_k, prefix_v, gate)  # slot 2: keys and values from outside   (B, nh, T, hs)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))  # (B, T, C)


def gelu(x: Tensor) -> Tensor:
    """GPT-2's form of GELU (1606.08415 §2): x/2 · (1 + tanh y) = x · sigmoid(2y), y = sqrt(2/pi) (x + 0.044715 x³).

    Compiled code takes the sigmoid, which costs half of the tanh; run eagerly, the one operator that torch has is faster.
    """
    if torch.compiler.is_compiling():
        return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return F.gelu(x, approximate="tanh")


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(gelu(self.c_fc(x)))


class Block(nn.Module):
    """One layer: x + attention, then x + MLP, each on a normalised copy (pre-LayerNorm)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rope=None, prefix_k=None, prefix_v=None, gate=None) -> Tensor:
        x = x + self.attn(self.ln_1(x), rope, prefix_k, prefix_v, gate)
        return x + self.mlp(self.ln_2(x))


def call_block(block: Block, *inputs) -> Tensor:
    """The function that is compiled: the block is an argument, so one compilation serves every layer."""
    return block(*inputs)


class GPT(nn.Module):
    """GPT(config); base(idx) gives logits. See `hidden` for the two slots."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.through_compile = self.checkpointed = False  # how blocks are run, see run_block
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)  # also the head: GPT-2 ties the two
        self.wpe = nn.Embedding(config.block_size, config.n_embd) if config.position == "learned" else None
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        for name, p in self.named_parameters():  # GPT-2's initialisation; LayerNorm keeps ones and zeros
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif p.dim() == 2:  # what adds to the residual stream starts smaller: 2 additions a layer
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer) if name.endswith("c_proj.weight") else 0.02)

    def add_positions(self, x: Tensor, first: int = 0):
        """Place x (B, T, C) at positions first … first+T-1: returns x and the rotary tables (None with learned positions)."""
        T = x.size(1)
        positions = torch.arange(first, first + T, device=x.device)
        if self.wpe is not None:
            return x + self.wpe(positions), None
        dtype = torch.promote_types(x.dtype, torch.float32)  # angles of far positions need the digits
        return x, rotary_tables(positions, self.config.head_size, self.config.rope_theta, dtype)

    def forward(self, idx: Tensor, prompt: Tensor | None = None, prefix: "Tensor | Prefix | None" = None) -> Tensor:
        """idx (B, T) int64 -> logits of the real tokens (B, T, V); the two slots are those of `hidden`."""
        return F.linear(self.hidden(idx, prompt, prefix), self.wte.weight)

    def hidden(self, idx: Tensor, prompt: Tensor | None = None, prefix: "Tensor | Prefix | None" = None) -> Tensor:
        """idx (B, T) int64 -> what the head is applied to: the last block's output at the real tokens, normalised (B, T, C).

        prompt   (1|B, P, C): vectors put before the token embeddings
        prefix   (L, 2, 1|B, n_kv, P, hs): keys and values put before each block's own (with rotary positions: keys already
                 turned, as a cache stores them); or a Prefix record, which may carry a gate

        Virtual tokens take positions 0 … P-1, real tokens follow at P. Raises Error when P + T exceeds block_size, or for
        a prompt or prefix of another shape.
        """
        if isinstance(prefix, Tensor):
            prefix = Prefix.of(prefix)
        self._check_slots(idx, prompt, prefix)
        B, T = idx.shape
        first = prefix.k.size(3) if prefix is not None and prefix.gate is None else 0  # where what follows the prefix starts

        x = self.wte(idx)  # (B, T, C)
        if prompt is not None:  # slot 1: the soft prompt
            x = torch.cat([prompt.to(x.dtype).expand(B, -1, -1), x], dim=1)  # (B, P+T, C)
        x, rope = self.add_positions(x, first)
        if prefix is None:
            for block in self.h:
                x = self.run_block(block, x, rope)
        else:  # slot 2: every layer its own part of the prefix
            gates = prefix.gate if prefix.gate is not None else [None] * len(self.h)
            for block, k, v, gate in zip(self.h, prefix.k, prefix.v, gates, strict=True):
                x = self.run_block(block, x, rope, k, v, gate)
        return self.ln_f(x[:, x.size(1) - T :])  # the virtual tokens have done their work   (B, T, C)

    def compile_blocks(self, on: bool = True) -> None:
        """Run blocks through torch.compile from now on (not where it does not work, which one line on stderr says).

        The first pass of every new set of shapes compiles, some ten seconds, once for all layers.
        """
        self.through_compile = on and can_compile(self.wte.weight.device.type)

    def gradient_checkpointing(self, on: bool = True) -> None:
        """Keep only every block's input for the backward pass and run the block again there (Chen et al. 2016, 1604.06174)."""
        self.checkpointed = on

    def run_block(self, block: Block, *inputs) -> Tensor:
        run = compiled(call_block) if self.through_compile else call_block
        if self.checkpointed and torch.is_grad_enabled():
            return checkpoint(run, block, *inputs, use_reentrant=False, preserve_rng_state=False)
        return run(block, *inputs)

    def _check_slots(self, idx: Tensor, prompt: Tensor | None, prefix: Prefix | None) -> None:
        """Raise Error unless the shapes are those that `hidden` names and all tokens find a position."""
        c = self.config
        if idx.dim() != 2:
            raise Error(f"idx {tuple(idx.shape)} must be (B, T)")
        (B, T), P = idx.shape, 0
        if prompt is not None:
            if prompt.dim() != 3 or prompt.size(0) not in (1, B) or prompt.size(2) != c.n_embd:
                raise Error(f"prompt {tuple(prompt.shape)} must be (1|B, P, {c.n_embd}) with B {B}")
            P += prompt.size(1)
        if prefix is not None:
            k, v, gate = prefix
            fits = k.dim() == 5 and k.shape == v.shape and k.size(1) in (1, B)
            if not fits or (k.size(0), k.size(2), k.size(4)) != (c.n_layer, c.n_head, c.head_size):
                want = f"({c.n_layer}, 1|B, {c.n_head}, P, {c.head_size}) with B {B}"
                raise Error(f"a prefix's keys and values must each be {want}, not {tuple(k.shape)} and {tuple(v.shape)}")
            if gate is not None and gate.shape != (c.n_layer, c.n_head):
                raise Error(f"a prefix's gate {tuple(gate.shape)} must be ({c.n_layer}, {c.n_head})")
            P += k.size(3) if gate is None else 0
        if P + T > c.block_size:
            raise Error(f"{P} virtual + {T} real tokens do not fit the base's block size of {c.block_size}")

    @classmethod
    def from_pretrained(cls, folder) -> "GPT":
        """Open a Hugging Face folder. Raises Error for one that is not, or whose architecture this file does not have."""
        from . import hf  # the file formats live above the model, so that this file stands alone

        return hf.load_base(folder)

    def save_pretrained(self, folder, safe_serialization: bool | None = None) -> None:
        """Write config.json and the weights as Hugging Face does; GPT-2 shapes open in transformers.

        safe_serialization: True writes safetensors, False pytorch_model.bin; None takes safetensors when it is installed.
        """
        from . import hf

        hf.save_base(self, folder, safe_serialization)
