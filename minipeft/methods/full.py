"""Full fine-tuning: every weight of the base is trained. The yardstick, not a lightweight method.

    θ ← θ − η ∇θ loss          trained = stored = all parameters, once per task

The one method that changes its base: `detach()` has no frozen base to give back, and `save()`
writes a whole base, a Hugging Face folder. A base in float16 or bfloat16 becomes float32: small
steps would be rounded away.
"""

import torch

from ..checks import Error
from ..files.huggingface import block_tensors, outer_tensors
from ..formulas.terms import Cost, Shapes
from ..model import GPT
from ..slots import Slots
from .base import Method


class Full(Method):
    name = "full"
    learning_rate = 1e-3
    learning_rate_wide = 1e-4
    hyperparameters = {}
    typical = ({},)
    peft_types = ()
    peft = "it is a whole model, which transformers opens as it is"
    mixing = "every task is a base of its own"

    @staticmethod
    def shapes(c):
        tensors = outer_tensors(c) | {f"h.{{i}}.{name}": shape for name, shape in block_tensors(c).items()}
        return Shapes(tensors, tensors)

    @staticmethod
    def cost(c, rows):
        return Cost(base=True)

    def __init__(self, base: GPT):
        super().__init__()
        if known := vars(base).get("quantised"):
            raise Error(f"full fine-tuning changes every weight, and this base's are frozen in {known.kind}: "
                        "open it unquantised, or take another method")

    def on_attach(self, base: GPT) -> None:
        base.to(torch.promote_types(base.wte.weight.dtype, torch.float32))

    def slots(self, base: GPT) -> Slots:
        return Slots()

    def save(self, base: GPT, folder, base_fingerprint: str | None = None) -> None:
        base.save_pretrained(folder)
