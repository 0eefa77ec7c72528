"""LoRA (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", 2106.09685 §4.1).

    y = W x + (α/r)·B A x          A (r, in), B (out, r) learnt, W (out, in) frozen

A starts random and B at zero, so step 0 is exactly the base. What is learnt is a change of W: once learnt, merge() adds it to W, and
a forward pass costs what the base's does.

trained = stored = r·(in + out) for every edited linear: with the default, the attention's input projection, L·r·4C in GPT-2's shape.

Departs from the paper: where q, k and v are one projection, as in GPT-2, they are edited together; the paper hooks q and v apart, and so
does this where they are two (the Llama family). A starts as its released code and PEFT have it (uniform, Kaiming) rather than Gaussian.
"""

import math
import sys

import torch
import torch.nn as nn
from torch import Tensor

from ..config import Error, GPTConfig, at_least_one, linears_named, shown
from ..files.peft import lora_config, peft_module
from ..model import GPT
from .base import Method, new_parameter


class LowRank(nn.Module):
    """The edit: y + scale·dropout(x) Aᵀ Bᵀ for A (r, in), B (out, r); or one pair a row of the batch, A (B, r, in), B (B, out, r)."""

    def __init__(self, A: Tensor, B: Tensor, scale: float, dropout: float = 0.0):
        super().__init__()
        self.A, self.B, self.scale, self.dropout = A, B, scale, dropout

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.dropout and self.training:
            x = nn.functional.dropout(x, self.dropout)
        return y + (x @ self.A.to(x.dtype).mT) @ self.scaled_B().to(x.dtype).mT

    def scaled_B(self) -> Tensor:
        """scale·B in float32 or above: what was stored in bfloat16 is not rounded once more."""
        return self.scale * self.B.to(torch.promote_types(self.B.dtype, torch.float32))


class LoRA(Method):
    """adapt(base, "lora", r=8, lora_alpha=8, lora_dropout=0.0, target_modules=None (c_attn, or q_proj and v_proj)).

    target_modules: names of linears, each a whole one ("mlp.c_proj") or its end ("c_proj": both that the block has).
    """

    name = "lora"
    learning_rate = 2e-2
    learning_rate_wide = 2e-3
    peft_types = ("LORA",)

    def __init__(
        self,
        base: GPT,
        r: int = 8,
        lora_alpha: float = 8,
        lora_dropout: float = 0.0,
        target_modules: "str | list[str] | tuple[str, ...] | None" = None,
    ):
        super().__init__()
        if isinstance(lora_alpha, bool) or not isinstance(lora_alpha, (int, float)) or not 0 < lora_alpha <= sys.float_info.max:
            raise Error(f"lora_alpha must be a number above 0, not {shown(lora_alpha)}")
        if not isinstance(lora_dropout, (int, float)) or not 0 <= lora_dropout < 1:
            raise Error(f"lora_dropout must be at least 0 and below 1, not {shown(lora_dropout)}")
        self.r, self.lora_alpha, self.lora_dropout = at_least_one("r", r), lora_alpha, lora_dropout
        target_modules = lora_targets(base.config) if target_modules is None else target_modules
        self.places = linears_named(base.config, target_modules)
        self.target_modules = [target_modules] if isinstance(target_modules, str) else list(target_modules)
        self.module_names = [[peft_module(base.config, i, place) for place in self.places] for i in range(base.config.n_layer)]
        self.layers = nn.ModuleList()
        for block in base.h:
            pairs = nn.ModuleList()
            for place in self.places:
                out, into = block.get_submodule(place).weight.shape
                if r > min(out, into):
                    raise Error(f"r {r} is larger than {place} has ranks: its matrix is {out} × {into}")
                A = torch.empty(r, into)
                nn.init.kaiming_uniform_(A, a=math.sqrt(5))
                A, B = new_parameter(base, A), new_parameter(base, torch.zeros(out, r))
                pairs.append(LowRank(A, B, lora_alpha / r, lora_dropout))
            self.layers.append(pairs)

    def slots(self, base: GPT) -> dict:
        return {"hooks": [dict(zip(self.places, pairs, strict=True)) for pairs in self.layers]}

    def weight_changes(self) -> dict[str, Tensor]:
        """{name of a weight of the base: what to add to it}."""
        return {
            f"h.{i}.{place}.weight": (B := pair.scaled_B()) @ pair.A.to(B.dtype)
            for i, pairs in enumerate(self.layers)
            for place, pair in zip(self.places, pairs, strict=True)
        }

    def tensors(self) -> dict[str, Tensor]:
        """PEFT's own names."""
        return {
            f"{module}.lora_{name}.weight": getattr(pair, name).detach()
            for modules, pairs in zip(self.module_names, self.layers, strict=True)
            for module, pair in zip(modules, pairs, strict=True)
            for name in ("A", "B")
        }

    def peft_config(self, base: GPT) -> dict:
        return lora_config(base.config, self.r, self.target_modules, self.lora_alpha, self.lora_dropout)

    @classmethod
    def hyperparameters(cls, config: dict) -> dict:
        for name, plain in _PLAIN.items():
            if config.get(name, plain[0]) not in plain:
                raise Error(f"LoRA with {name} {shown(config[name])} is not supported, only {plain[0]!r}")
        names = ("r", "lora_alpha", "lora_dropout", "target_modules")
        given = {name: config[name] for name in names if config.get(name) is not None}
        if isinstance(targets := given.get("target_modules"), list):
            given["target_modules"] = [t.replace("self_attn.", "attn.") if isinstance(t, str) else t for t in targets]
        return given


# what PEFT's LoraConfig may also ask for, and its values that ask for nothing
_PLAIN = {
    "bias": ("none",),
    "use_dora": (False,),
    "use_rslora": (False,),
    "lora_bias": (False,),
    "modules_to_save": (None, []),
    "layers_to_transform": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, []),
    "exclude_modules": (None, []),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal"),  # others change the base
}


def lora_targets(c: GPTConfig) -> tuple[str, ...]:
    """What LoRA hooks by default: the attention's input projection; where that is three matrices, the two that the paper hooks."""
    return ("c_attn",) if c.projections == "joined" else ("q_proj", "v_proj")
