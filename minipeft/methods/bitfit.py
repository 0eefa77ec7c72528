"""BitFit (Ben Zaken et al. 2021, "BitFit: Simple Parameter-efficient Fine-tuning for
Transformer-based Masked Language-models", 2106.10199 §3).

    y = W x + (b + δ)          δ (out,) learnt, starts at 0; W and b frozen

The paper trains the biases b themselves and nothing else (but the new classifier's weights). Here
their change is trained, so that the base stays as it is. merge() adds it to the biases; a forward
pass then costs the base's, and before that it adds no matmul.

trained = stored = L·(nh·hs + 2·kv + 2·C + M), the biases of the blocks' linears, 9·L·C for GPT-2;
with a gated MLP 2·M for M; L·(nh·hs + 2·kv) where only q, k and v have a bias (Qwen2).

Departs from the paper, which also trains the biases of LayerNorms. One before a linear adds
nothing: W (z + δ) + b = W z + (b + W δ) is another bias of that linear. That of ln_f, behind the
blocks, stays frozen. A base without biases is refused.
"""

import torch
from torch import Tensor, nn

from ..checks import Error
from ..config import GPTConfig, linears, linears_by_role
from ..formulas.terms import Cost, Hook, Shapes
from ..model import GPT
from ..slots import Slots
from .base import Method, TensorHook, new_parameter


class BiasChange(TensorHook):
    """The hook y + δ: δ (1, 1, out), or one for each row, (B, 1, out)."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.value.to(y.dtype)


def with_bias(c: GPTConfig) -> list[str]:
    """The linears of a block that have a bias. Raises Error if none has."""
    if c.bias == "none":
        raise Error("this base has no biases for bitfit to train: its linears have weights alone (bias 'none')")
    return list(linears(c)) if c.bias == "all" else linears_by_role(c)[0]


class BitFit(Method):
    """adapt(base, "bitfit")."""

    name = "bitfit"
    learning_rate = 0.1
    learning_rate_wide = 1e-3  # as the paper's on BERT; not measured here
    hyperparameters = {}
    typical = ({},)
    peft_types = ("BITFIT",)
    peft = "PEFT has no BitFit: its BEFT adds such vectors, but not to GPT-2's linears"
    mixing = None

    @staticmethod
    def shapes(c):
        tensors = {f"h.{{i}}.{name}.bias": (linears(c)[name][1],) for name in with_bias(c)}
        return Shapes(tensors, tensors)

    @staticmethod
    def cost(c, rows):
        return Cost(hooks={name: Hook() for name in with_bias(c)})

    def __init__(self, base: GPT):
        super().__init__()
        self.linears, sizes = with_bias(base.config), linears(base.config)
        self.layers = nn.ModuleList(
            nn.ModuleList(BiasChange(new_parameter(base, torch.zeros(1, 1, sizes[name][1]))) for name in self.linears)
            for _ in base.h)

    def slots(self, base: GPT) -> Slots:
        return Slots(hooks=[dict(zip(self.linears, hooks, strict=True)) for hooks in self.layers])

    def tensors(self) -> dict[str, Tensor]:
        """δ of every linear, under the name of its bias in the base."""
        return {f"h.{i}.{name}.bias": hook.value.detach().flatten() for i, hooks in enumerate(self.layers)
                for name, hook in zip(self.linears, hooks, strict=True)}

    def weight_changes(self, base: GPT) -> dict[str, Tensor]:
        """{name of a bias of the base: the change to add to it}."""
        return self.tensors()
