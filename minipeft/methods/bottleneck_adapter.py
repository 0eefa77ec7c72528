"""Bottleneck adapters: small MLPs in every block, applied to what is added to the residual stream.

    y ← y + W_up gelu(W_down y + b_down) + b_up          W_down (m, C), W_up (C, m) learnt, m ≪ C

    placement="houlsby"    after attention and after the MLP   trained = stored = 2·L·(2·C·m + m + C)   1902.00751 §2.1
    placement="pfeiffer"   after the MLP alone                 trained = stored =   L·(2·C·m + m + C)   2005.00247

(Houlsby et al. 2019; Pfeiffer et al. 2020.) W_up starts at zero, so step 0 is exactly the base.
The nonlinearity prevents merging.

Departs from the papers: they tune BERT, whose LayerNorms come after the sum, and train those too;
here the base is pre-LayerNorm and wholly frozen. They start from N(0, σ) with a small σ, near the
identity. gelu is the exact one, whatever form the base's own MLP has.
"""

from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..checks import at_least_one, one_of
from ..formulas.terms import Cost, Hook, Hyperparameter, Matmul, Saved, Shapes
from ..model import GPT
from ..slots import Slots
from .base import Method, new_parameter

PLACEMENTS = {"houlsby": ("attn", "mlp"), "pfeiffer": ("mlp",)}


class Bottleneck(nn.Module):
    """The hook y + up(gelu(down(y))); the module's input x plays no part."""

    def __init__(self, base: GPT, m: int):
        super().__init__()
        C = base.config.n_embd
        self.down, self.b_down = new_parameter(base, torch.randn(m, C) * C**-0.5), new_parameter(base, torch.zeros(m))
        self.up, self.b_up = new_parameter(base, torch.zeros(C, m)), new_parameter(base, torch.zeros(C))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        down, b_down, up, b_up = (p.to(y.dtype) for p in (self.down, self.b_down, self.up, self.b_up))
        return y + F.linear(F.gelu(F.linear(y, down, b_down)), up, b_up)  # (B, T, C) -> (B, T, m) -> (B, T, C)


class BottleneckAdapter(Method):
    """adapt(base, "adapter", bottleneck_size=8, placement="houlsby" | "pfeiffer")."""

    name = "adapter"
    learning_rate = 1e-2
    learning_rate_wide = 2e-3
    hyperparameters = {"bottleneck_size": Hyperparameter("width of the bottleneck", "m"),
                       "placement": Hyperparameter("after attention and MLP, or after the MLP alone")}
    typical = ({"bottleneck_size": 3}, {"bottleneck_size": 5, "placement": "pfeiffer"})
    peft_types = ("BOTTLENECK_ADAPTER",)
    peft = "PEFT has no bottleneck adapters"
    mixing = "its networks are layers of the model, not vectors that a row can bring along"

    @staticmethod
    def shapes(c, bottleneck_size, placement):
        C, m = c.n_embd, bottleneck_size
        each = {"down": (m, C), "b_down": (m,), "up": (C, m), "b_up": (C,)}
        tensors = {f"layers.{{i}}.{place}.{name}": shape
                   for place in PLACEMENTS[placement] for name, shape in each.items()}
        return Shapes(tensors, tensors)

    @staticmethod
    def cost(c, rows, bottleneck_size, placement):
        C, m, hooks = c.n_embd, bottleneck_size, {}
        for place in PLACEMENTS[placement]:
            name = f"adapter behind {place}"
            matmuls = Matmul(f"{name}: down", C, m, "y"), Matmul(f"{name}: up", m, C)
            saved = Saved(f"{name}: input", rows * C), Saved(f"{name}: before and after gelu", 2 * rows * m)
            hooks[place] = Hook(matmuls, saved)
        return Cost(hooks=hooks)

    def __init__(self, base: GPT, bottleneck_size: int = 8, placement: Literal["houlsby", "pfeiffer"] = "houlsby"):
        super().__init__()
        one_of("placement", placement, PLACEMENTS)
        self.bottleneck_size, self.placement = at_least_one("bottleneck_size", bottleneck_size), placement
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: Bottleneck(base, bottleneck_size) for name in PLACEMENTS[placement]}) for _ in base.h)

    def slots(self, base: GPT) -> Slots:
        return Slots(hooks=[dict(layer.items()) for layer in self.layers])
