"""LoRA (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", 2106.09685 §4.1).

    y = W x + (α/r)·B A x          A (r, in), B (out, r) learnt, W (out, in) frozen

A starts random and B at zero, so step 0 is exactly the base. The change of W that is learnt can be
added to W by merge(); a forward pass then costs what the base's does.

trained = stored = r·(in + out) per hooked linear: by default L·r·4C on GPT-2 (c_attn).

Departs from the paper, which hooks q and v: where q, k and v are one projection, as in GPT-2, they
are hooked together. A starts as in the released code and PEFT (uniform, Kaiming), not Gaussian.
"""

import math

import torch
import torch.nn as nn
from torch import Tensor

from ..checks import Error, at_least_one, positive, shown
from ..config import GPTConfig, linears
from ..files.peft import linears_named, lora_config, lora_hyperparameters, peft_module
from ..formulas.terms import Cost, Hook, Hyperparameter, Matmul, Saved, Shapes
from ..model import GPT
from ..slots import Slots
from .base import Method, new_parameter


class LowRank(nn.Module):
    """The hook y + scale·dropout(x) Aᵀ Bᵀ: A (r, in), B (out, r), or one pair per row: A (B, r, in), B (B, out, r)."""

    def __init__(self, A: Tensor, B: Tensor, scale: float, dropout: float = 0.0):
        super().__init__()
        self.A, self.B, self.scale, self.dropout = A, B, scale, dropout

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.dropout and self.training:
            x = nn.functional.dropout(x, self.dropout)
        return y + (x @ self.A.to(x.dtype).mT) @ self.scaled_B().to(x.dtype).mT

    @classmethod
    def stack(cls, hooks: "list[LowRank | None]") -> "LowRank":
        """One hook with A (n, r, in), B (n, out, r) of n tasks, padded to the largest rank; None: no change."""
        some = [hook for hook in hooks if hook is not None]
        r, like = max(hook.A.size(0) for hook in some), some[0]
        A, B = like.A.new_zeros(len(hooks), r, like.A.size(1)), like.B.new_zeros(len(hooks), like.B.size(0), r)
        for i, hook in enumerate(hooks):
            if hook is not None:
                A[i, : hook.A.size(0)], B[i, :, : hook.A.size(0)] = hook.A, hook.scaled_B()
        return cls(A, B, 1.0)

    def rows(self, ids: "Tensor | int") -> "LowRank":
        """The hook of these tasks of a stack, one for each row."""
        return LowRank(self.A[ids], self.B[ids], 1.0)

    def scaled_B(self) -> Tensor:
        """scale·B in float32 or above: a B stored in bfloat16 is not rounded once more."""
        return self.scale * self.B.to(torch.promote_types(self.B.dtype, torch.float32))


def lora_targets(c: GPTConfig) -> tuple[str, ...]:
    """LoRA's default target modules: attention's joined input projection, or q and v (paper)."""
    return ("c_attn",) if c.projections == "joined" else ("q_proj", "v_proj")


class LoRA(Method):
    """adapt(base, "lora", r=8, lora_alpha=8, lora_dropout=0.0, target_modules=None (c_attn, or
    q_proj and v_proj)).

    target_modules: names of linears, whole ("mlp.c_proj") or their end ("c_proj": both that a block
    has).
    """

    name = "lora"
    learning_rate = 2e-2
    learning_rate_wide = 2e-3
    hyperparameters = {
        "r": Hyperparameter("rank", "r"),
        "lora_alpha": Hyperparameter("the update is scaled by lora_alpha / r"),
        "lora_dropout": Hyperparameter("dropout of its input in training"),
        "target_modules": Hyperparameter("linears, by name or the end of it (default: c_attn; q_proj v_proj)")}
    typical = ({"r": 3}, {"r": 2, "target_modules": ("c_proj", "mlp.c_fc")},
               {"r": 1, "target_modules": ("c_attn", "mlp.c_proj")})
    peft_types = ("LORA",)
    peft = mixing = None

    @staticmethod
    def shapes(c, r, target_modules):
        sizes = {name: linears(c)[name] for name in linears_named(c, target_modules)}
        stored = {f"{peft_module(c, '{i}', name)}.lora_{matrix}.weight": shape for name, (n_in, n_out) in sizes.items()
                  for matrix, shape in (("A", (r, n_in)), ("B", (n_out, r)))}
        return Shapes(stored, stored)

    @staticmethod
    def cost(c, rows, r, target_modules):
        hooks = {}
        for name in linears_named(c, target_modules):
            n_in, n_out = linears(c)[name]
            matmuls = Matmul(f"{name}: x Aᵀ", n_in, r, "x"), Matmul(f"{name}: (x Aᵀ) Bᵀ", r, n_out)
            saved = Saved(f"{name}: x Aᵀ", rows * r), Saved(f"{name}: (α/r)·B", r * n_out)
            hooks[name] = Hook(matmuls, saved, saves_x=True)
        return Cost(hooks=hooks)

    @staticmethod
    def defaults(c):
        return {"target_modules": lora_targets(c)}

    def __init__(self, base: GPT, r: int = 8, lora_alpha: float = 8, lora_dropout: float = 0.0,
                 target_modules: str | list[str] | tuple[str, ...] | None = None):
        super().__init__()
        if not isinstance(lora_dropout, (int, float)) or not 0 <= lora_dropout < 1:
            raise Error(f"lora_dropout must be at least 0 and below 1, not {shown(lora_dropout)}")
        self.r, self.lora_alpha = at_least_one("r", r), positive("lora_alpha", lora_alpha)
        self.lora_dropout = lora_dropout
        target_modules = lora_targets(base.config) if target_modules is None else target_modules
        self.linears = linears_named(base.config, target_modules)
        self.target_modules = [target_modules] if isinstance(target_modules, str) else list(target_modules)
        self.layers = nn.ModuleList()
        for _ in base.h:
            pairs = nn.ModuleList()
            for name in self.linears:
                into, out = linears(base.config)[name]
                A = torch.empty(r, into)
                nn.init.kaiming_uniform_(A, a=math.sqrt(5))
                A, B = new_parameter(base, A), new_parameter(base, torch.zeros(out, r))
                pairs.append(LowRank(A, B, lora_alpha / r, lora_dropout))
            self.layers.append(pairs)
        self._pairs = [(i, name, pair) for i, pairs in enumerate(self.layers)
                       for name, pair in zip(self.linears, pairs, strict=True)]
        self._peft_names = [peft_module(base.config, i, name) for i, name, _ in self._pairs]

    def slots(self, base: GPT) -> Slots:
        return Slots(hooks=[dict(zip(self.linears, pairs, strict=True)) for pairs in self.layers])

    def weight_changes(self, base: GPT) -> dict[str, Tensor]:
        """{name of a weight of the base: the change to add to it}."""
        return {f"h.{i}.{name}.weight": (B := pair.scaled_B()) @ pair.A.to(B.dtype) for i, name, pair in self._pairs}

    def tensors(self) -> dict[str, Tensor]:
        """A and B of every pair, under PEFT's names."""
        return {f"{name}.lora_{matrix}.weight": getattr(pair, matrix).detach()
                for name, (_, _, pair) in zip(self._peft_names, self._pairs, strict=True) for matrix in ("A", "B")}

    adapter_config = staticmethod(lora_config)
    from_config = staticmethod(lora_hyperparameters)
