"""Prompt tuning (Lester, Al-Rfou & Constant 2021, "The Power of Scale for Parameter-Efficient
Prompt Tuning", 2104.08691 §2).

    x = [Pe ; wte(idx)]          Pe (P, C) is learnt by backpropagation, everything else is frozen

trained = stored = P·C. With T5-XXL, P = 5 and C = 4096: 20,480 parameters per task, beside 11
billion shared by all.

Departs from the paper: decoder-only GPT instead of T5, AdamW instead of Adafactor. "random" draws
from N(0, σ²), σ the standard deviation of the base's embeddings, where the paper draws uniformly
from [-0.5, 0.5]; "vocab" samples the whole vocabulary, where the paper samples its 5,000 most
common tokens. For class labels as a start give their token ids.
"""

import torch
from torch import Tensor

from ..files.peft import prompt_config
from ..formulas.terms import Cost, Hyperparameter, Shapes
from ..ladder import convert_up
from ..model import GPT
from ..slots import Slots
from .base import LENGTH, Method, Start, initial_value, new_parameter, noise, virtual_tokens


class PromptTuning(Method):
    """adapt(base, "prompt", num_virtual_tokens=P, init="vocab").

    init: "vocab", "random", token ids (n,) int64 of a text, or a prompt (1, P, C).
    Unless given, P is the length of `init`, or 8 if it has none.
    """

    name = "prompt"
    learning_rate = 0.1
    learning_rate_wide = 3e-2
    hyperparameters = {"num_virtual_tokens": Hyperparameter("virtual tokens (default: those of the start, or 8)", "P"),
                       "init": Hyperparameter("start from noise, or from tokens of the vocabulary")}
    typical = ({"num_virtual_tokens": 5},)
    peft_types = ("PROMPT_TUNING",)
    peft = mixing = None

    @staticmethod
    def shapes(c, num_virtual_tokens):
        prompt = {"prompt_embeddings": (num_virtual_tokens, c.n_embd)}
        return Shapes(prompt, prompt)

    @staticmethod
    def cost(c, rows, num_virtual_tokens):
        return Cost(prompt=num_virtual_tokens)

    @staticmethod
    def defaults(c):
        return {"num_virtual_tokens": LENGTH}

    def __init__(self, base: GPT, num_virtual_tokens: int | None = None, init: Start = "vocab"):
        super().__init__()
        self.num_virtual_tokens = P = virtual_tokens(base, num_virtual_tokens, init)
        with torch.no_grad():
            x = initial_value(base, P, init)
            x = noise(base, P, base.config.n_embd) if x is None else convert_up(base, x, "prompt")[0]
        self.prompt_embeddings = new_parameter(base, x)  # (P, C), PEFT's name

    def ladder_value(self) -> Tensor:
        """The prompt, as the ladder has it: (1, P, C)."""
        return self.prompt_embeddings.unsqueeze(0)

    def slots(self, base: GPT) -> Slots:
        return Slots(prompt=self.ladder_value())

    adapter_config = staticmethod(prompt_config)

    @classmethod
    def from_config(cls, config: dict) -> dict:
        return {"num_virtual_tokens": config.get("num_virtual_tokens"), "init": "random"}
