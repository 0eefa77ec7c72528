"""A GPT from scratch, with two slots through which it can be tuned while its weights stay frozen.

    B  batch            T   real tokens              C   channels, n_embd (d_model in the papers)
    L  layers, n_layer  P   virtual tokens           nh  heads            hs  head size, C / nh         V  vocabulary

    slot 1   the input layer concatenates `prompt` before the token embeddings       soft prompts  (Lester et al. 2021, 2104.08691)
    slot 2   every attention block takes `prefix` keys and values beside its own     prefix tuning (Li & Liang 2021, 2101.00190)

What is no virtual token is an *edit*: a function of what a place in a block reads and puts out (PLACES), which gives what it puts
out from then on. LoRA (Hu et al. 2021, 2106.09685) and bottleneck adapters (Houlsby et al. 2019, 1902.00751) are edits.

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
from .config import LINEARS, Error, GPTConfig


class Prefix(NamedTuple):
    """What slot 2 takes when keys and values of every layer do not say it all.

    A gated prefix has its own softmax: it stands beside the sequence, not before it, and takes no positions.
    """

    k: Tensor  # (n, 1|B, n_kv, P, hs) of the top n layers, n <= L
    v: Tensor  # (n, 1|B, n_kv, P, hs)
    gate: Tensor | None = None  # (n, nh)
    length: Tensor | None = None  # (B,) int64: how many of the P positions each row has; None: all of them

    @classmethod
    def of(cls, prefix: Tensor) -> "Prefix":
        """Keys and values (L, 2, 1|B, n_kv, P, hs) taken apart."""
        if prefix.dim() != 6 or prefix.size(1) != 2:
            raise Error(f"prefix {tuple(prefix.shape)} must be (L, 2, 1|B, n_kv, P, hs)")
        return cls(prefix[:, 0], prefix[:, 1])

    def layers(self, L: int) -> "list[Prefix | None]":
        """Every layer's own part, without the first dimension."""
        gates = self.gate if self.gate is not None else [None] * len(self.k)
        parts = [Prefix(k, v, gate, self.length) for k, v, gate in zip(self.k, self.v, gates, strict=True)]
        return [None] * (L - len(parts)) + parts


class Cache(NamedTuple):
    """Keys and values of the positions read so far, in buffers with room for S; what is read next is written behind them."""

    k: Tensor  # (L, B, n_kv, S, hs)
    v: Tensor  # (L, B, n_kv, S, hs)
    read: int = 0  # positions in use
    length: Tensor | None = None  # (B,) int64: positions in use in each row, where rows differ; `read` is the longest's

    def layers(self, L: int) -> "list[Cache]":
        return [Cache(k, v, self.read, self.length) for k, v in zip(self.k, self.v, strict=True)]

    def after(self, T: int) -> "Cache":
        """The same buffers, T positions later."""
        return self._replace(read=self.read + T, length=None if self.length is None else self.length + T)

    def extended(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of one layer: write k, v (B, n_kv, T, hs) behind what is there; returns all keys, all values, and each row's length."""
        T, read = k.size(2), self.read
        for buffer, new in ((self.k, k), (self.v, v)):
            if self.length is None:
                buffer[:, :, read : read + T] = new
            else:
                rows, places = torch.arange(len(k), device=k.device)[:, None], torch.arange(T, device=k.device)
                buffer[rows, :, self.length[:, None] + places] = new.transpose(1, 2).to(buffer.dtype)
        return self.k[:, :, : read + T], self.v[:, :, : read + T], self.after(T).length


def rotary_tables(positions: Tensor, head_size: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position's angles: positions (T,) or (B, T) -> two tensors (1|B, 1, T, hs) (RoPE §3.2.2)."""
    frequency = theta ** (-torch.arange(0, head_size, 2, device=positions.device, dtype=dtype) / head_size)  # (hs/2,)
    angle = positions.to(dtype)[..., None] * frequency  # (1|B, T, hs/2)
    angle = torch.cat([angle, angle], dim=-1).view(-1, 1, positions.size(-1), head_size)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Turn channel i of x (B, nh, T, hs) with channel i + hs/2 by the angle of its position (the pairing Llama uses)."""
    cos, sin = rope
    a, b = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-b, a], dim=-1) * sin).to(x.dtype)


PLACES = (*LINEARS, "attn", "mlp")  # where a block can be edited: its linears, and what is added to the residual stream


def edited(edits: dict | None, place: str, x: Tensor, y: Tensor) -> Tensor:
    """What comes out of this place, which read x and put out y."""
    return edits[place](x, y) if edits and place in edits else y


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def qkv(self, x: Tensor, rope=None, edits=None) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, C) -> queries, keys and values, each (B, nh, T, hs); rotary positions are already in q and k."""
        B, T, C = x.shape
        y = edited(edits, "attn.c_attn", x, self.c_attn(x))
        q, k, v = y.view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)  # 3 × (B, nh, T, hs)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        return q, k, v

    def forward(self, x: Tensor, rope=None, prefix: Prefix | None = None, cache: Cache | None = None, edits=None) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.qkv(x, rope, edits)
        k, v, length = (k, v, None) if cache is None else cache.extended(k, v)
        prefix_k, prefix_v, gate, prefix_length = prefix or (None, None, None, None)
        # slot 2: keys and values from outside
        y = prefix_attention(q, k, v, prefix_k, prefix_v, gate, "auto", prefix_length, length)  # (B, nh, T, hs)
        y = y.transpose(1, 2).reshape(B, T, C)
        return edited(edits, "attn.c_proj", y, self.c_proj(y))  # (B, T, C)


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

    def forward(self, x: Tensor, edits=None) -> Tensor:
        y = gelu(edited(edits, "mlp.c_fc", x, self.c_fc(x)))  # (B, T, 4C)
        return edited(edits, "mlp.c_proj", y, self.c_proj(y))


class Block(nn.Module):
    """One layer: x + attention, then x + MLP, each on a normalised copy (pre-LayerNorm)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rope=None, prefix: Prefix | None = None, cache: Cache | None = None, edits=None) -> Tensor:
        a = self.ln_1(x)
        x = x + edited(edits, "attn", a, self.attn(a, rope, prefix, cache, edits))
        m = self.ln_2(x)
        return x + edited(edits, "mlp", m, self.mlp(m, edits))


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

    def add_positions(self, x: Tensor, first: "int | Tensor" = 0):
        """Place x (B, T, C) at positions first … first+T-1, first one number or (B,): returns x and the rotary tables (None with
        learned positions)."""
        positions = torch.arange(x.size(1), device=x.device) + (first if isinstance(first, int) else first[:, None])  # (T,) or (B, T)
        if self.wpe is not None:
            return x + self.wpe(positions), None
        dtype = torch.promote_types(x.dtype, torch.float32)  # angles of far positions need the digits
        return x, rotary_tables(positions, self.config.head_size, self.config.rope_theta, dtype)

    def forward(self, idx: Tensor, prompt=None, prefix=None, edits=None) -> Tensor:
        """idx (B, T) int64 -> logits of the real tokens (B, T, V); the slots and edits are those of `hidden`."""
        return F.linear(self.hidden(idx, prompt, prefix, edits), self.wte.weight)

    def hidden(
        self,
        idx: Tensor,
        prompt: Tensor | None = None,
        prefix: "Tensor | Prefix | None" = None,
        edits: list[dict] | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """idx (B, T) int64 -> what the head is applied to: the last block's output at the real tokens, normalised (B, T, C).

        prompt   (1|B, P, C): vectors put before the token embeddings
        prefix   (L, 2, 1|B, n_kv, P, hs): keys and values put before each block's own (with rotary positions: keys already
                 turned, as a cache stores them); or a Prefix record, which may have a gate, lengths, or less than L layers
        edits    for every layer {place: f}, f(x, y) instead of y where the place, which read x, put out y
        cache    what came before idx; what idx adds to it is written there

        Virtual tokens take positions 0 … P-1, real tokens follow at P. Raises Error when P + T exceeds block_size, or for
        a prompt or prefix of another shape.
        """
        if isinstance(prefix, Tensor):
            prefix = Prefix.of(prefix)
        self._check_slots(idx, prompt, prefix, edits, cache)
        (B, T), L = idx.shape, len(self.h)
        first = 0  # the position where what is new starts
        if prefix is not None and prefix.gate is None:
            first = prefix.k.size(3) if prefix.length is None else prefix.length
        if cache is not None:
            first = first + (cache.read if cache.length is None else cache.length)

        x = self.wte(idx)  # (B, T, C)
        if prompt is not None:  # slot 1: the soft prompt
            x = torch.cat([prompt.to(x.dtype).expand(B, -1, -1), x], dim=1)  # (B, P+T, C)
        x, rope = self.add_positions(x, first)
        parts = [prefix.layers(L) if prefix else L * [None], cache.layers(L) if cache else L * [None], edits or L * [None]]
        for block, *its_own in zip(self.h, *parts, strict=True):  # slot 2: every layer its own part of the prefix
            x = self.run_block(block, x, rope, *its_own)
        return self.ln_f(x[:, x.size(1) - T :])  # the virtual tokens have done their work   (B, T, C)

    def compile_blocks(self, on: bool = True) -> None:
        """Run blocks through torch.compile from now on (not where it does not work, which one line on stderr says).

        The first pass of every new set of shapes compiles, some ten seconds, once for all layers.
        """
        self.through_compile = on and can_compile(self.wte.weight.device.type)

    def gradient_checkpointing(self, on: bool = True) -> None:
        """Keep only every block's input for the backward pass and run the block again there (Chen et al. 2016, 1604.06174)."""
        self.checkpointed = on

    def run_block(self, block: Block, x: Tensor, rope, prefix: Prefix | None, cache: Cache | None, edits: dict | None) -> Tensor:
        inputs = (block, x, rope, prefix, cache, edits)
        run = compiled(call_block) if self.through_compile and cache is None else call_block  # with a cache, every length is new
        if self.checkpointed and torch.is_grad_enabled():
            return checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=edits is not None)  # an edit may drop out
        return run(*inputs)

    def _check_slots(self, idx: Tensor, prompt: Tensor | None, prefix: Prefix | None, edits: list | None, cache: Cache | None) -> None:
        """Raise Error unless the shapes are those that `hidden` names and all tokens find a position."""
        c = self.config
        if idx.dim() != 2:
            raise Error(f"idx {tuple(idx.shape)} must be (B, T)")
        (B, T), P = idx.shape, cache.read if cache else 0
        if prompt is not None:
            if prompt.dim() != 3 or prompt.size(0) not in (1, B) or prompt.size(2) != c.n_embd:
                raise Error(f"prompt {tuple(prompt.shape)} must be (1|B, P, {c.n_embd}) with B {B}")
            P += prompt.size(1)
        if prefix is not None:
            k, v, gate, _ = prefix
            fits = k.dim() == 5 and k.shape == v.shape and k.size(1) in (1, B) and k.size(0) <= c.n_layer
            if not fits or (k.size(2), k.size(4)) != (c.n_head, c.head_size):
                want = f"({c.n_layer}, 1|B, {c.n_head}, P, {c.head_size}) with B {B}"
                raise Error(f"a prefix's keys and values must each be {want}, not {tuple(k.shape)} and {tuple(v.shape)}")
            if gate is not None and gate.shape != (k.size(0), c.n_head):
                raise Error(f"a prefix's gate {tuple(gate.shape)} must be ({k.size(0)}, {c.n_head})")
            P += k.size(3) if gate is None else 0
        if edits is not None and (len(edits) != c.n_layer or not all(place in PLACES for its_own in edits for place in its_own)):
            raise Error(f"edits must be one {{place: function}} for each of {c.n_layer} layers, with places of {', '.join(PLACES)}")
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
