"""PrefixMemory-Tuning (Wang et al. 2025, 2506.13674; first published as Prefix-Tuning+).

    in every head:   o = softmax(q Kᵀ / sqrt(hs)) V + φ(q) M          M (hs, hs) learnt, starts at 0; φ = elu or gelu

The prefix taken out of the softmax. A prefix adds exp(q Pkᵀ / sqrt(hs)) Pv to the sum over the
text, and both are divided by one denominator, so either takes weight from the other. Here the
weights are a feature map, as in linear attention (2006.16236), no denominator is shared, and Σ
φ(pk)ᵀ pv over any number of virtual tokens is one matrix M. So this is the second branch off the
ladder:

    prefix           one softmax over prefix and text
    llama-adapter    a softmax of its own, and a gate
    prefix-memory    no softmax, nothing that depends on the length of the text

At M = 0 step 0 is exactly the base. φ prevents merging into a weight.

trained = stored = L·nh·hs²: as many as a prefix with P = hs/2 where n_kv = nh.

Written from the paper's abstract and summaries of its equations. Not checked against the paper:
that M starts at 0; that q is taken after rotary positions, as attention takes it; that gelu is the
exact form.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import one_of
from ..formulas.terms import Cost, Hook, Hyperparameter, Matmul, Saved, Shapes
from ..model import GPT
from ..slots import Slots
from .base import Method, TensorHook, new_parameter


class EluMemory(TensorHook):
    """The hook y + φ(x) M, x the queries (B, nh, T, hs): M (1, nh, hs, hs), or one for each row, (B, nh, hs, hs)."""

    feature_map = staticmethod(F.elu)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + torch.einsum("bhti,bhij->bhtj", self.feature_map(x), self.value.to(x.dtype))


class GeluMemory(EluMemory):
    """The same with another feature map, which a batch cannot mix with the first."""

    feature_map = staticmethod(F.gelu)


FEATURE_MAPS = {"elu": EluMemory, "gelu": GeluMemory}


class PrefixMemory(Method):
    """adapt(base, "prefix-memory", feature_map="elu" | "gelu")."""

    name = "prefix-memory"
    learning_rate = 3e-2
    learning_rate_wide = 2e-3  # LoRA's; not measured here
    hyperparameters = {"feature_map": Hyperparameter("function of the queries in front of the memory")}
    typical = ({},)
    peft_types = ("PREFIX_MEMORY",)
    peft = "PEFT has no prefix outside the softmax"
    mixing = None

    @staticmethod
    def shapes(c):
        tensors = {"layers.{i}.value": (1, c.n_head, c.head_size, c.head_size)}
        return Shapes(tensors, tensors)

    @staticmethod
    def cost(c, rows):
        product = Matmul("φ(q) M", c.q, c.head_size, "x")  # every head by a matrix of its own
        return Cost(hooks={"attn.heads": Hook((product,), (Saved("φ(q)", rows * c.q),))})

    def __init__(self, base: GPT, feature_map: Literal["elu", "gelu"] = "elu"):
        super().__init__()
        one_of("feature_map", feature_map, FEATURE_MAPS)
        self.feature_map, c = feature_map, base.config
        zeros = torch.zeros(1, c.n_head, c.head_size, c.head_size)
        self.layers = nn.ModuleList(FEATURE_MAPS[feature_map](new_parameter(base, zeros)) for _ in base.h)

    def slots(self, base: GPT) -> Slots:
        return Slots(hooks=[{"attn.heads": hook} for hook in self.layers])
