"""Prompt tuning (Lester, Al-Rfou & Constant 2021, "The Power of Scale for Parameter-Efficient
Prompt Tuning", 2104.08691 §2).

    x = [Pe ; wte(idx)]          Pe (P, C) is learnt by backpropagation, everything else is frozen

trained = stored = P·C. With T5-XXL, P = 5 and C = 4096: 20,480 parameters per task, beside 11
billion shared by all.

Departs from the paper: decoder-only GPT instead of T5, AdamW instead of Adafactor. "random" draws
from N(0, σ²), σ the standard deviation of the base's embeddings, where the paper draws uniformly
from [-0.5, 0.5]; "vocab" samples the whole vocabulary, where the paper samples its 5,000 most
common tokens. For class labels as a start give their token ids.

With a template such as "{input} {soft} -> " the P vectors stand inside the text, where idx holds
the ids V … V+P-1. It costs as much as a prompt before the text, but is another function and no
level of the ladder: tokens before the vectors cannot attend to them, and the vectors' keys and
values depend on those tokens.
"""

import torch
from torch import Tensor

from ..checks import Error, shown
from ..files.peft import prompt_config
from ..formulas.terms import Cost, Hyperparameter, Shapes
from ..ladder import convert_up
from ..model import GPT
from ..slots import Slots, SoftTokens
from .base import LENGTH, Method, Start, Text, initial_value, new_parameter, noise, virtual_tokens


class PromptTuning(Method):
    """adapt(base, "prompt", num_virtual_tokens=P, init="vocab", template=None).

    init: "vocab", "random", token ids (n,) int64 of a text, or a prompt (1, P, C).
    Unless given, P is the length of `init`, or 8 if it has none. template: a text with {input} and
    {soft} in it, where the vectors stand in the text; it is saved with the adapter.
    """

    name = "prompt"
    learning_rate = 0.1
    learning_rate_wide = 3e-2
    hyperparameters = {"num_virtual_tokens": Hyperparameter("virtual tokens (default: those of the start, or 8)", "P"),
                       "init": Hyperparameter("start from noise, or from tokens of the vocabulary"),
                       "template": Hyperparameter("text with {soft} where they stand (default: before the text)")}
    typical = ({"num_virtual_tokens": 5},)
    peft_types = ("PROMPT_TUNING", "PROMPT_TUNING_IN_TEXT")
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

    def __init__(self, base: GPT, num_virtual_tokens: int | None = None, init: Start = "vocab", template: Text = None):
        super().__init__()
        if template is not None:
            if not isinstance(template, str) or template.count("{soft}") != 1 or template.count("{input}") != 1:
                raise Error("template must be a text with {input} and {soft} in it, each once, "
                            f"not {shown(template)}")
            self.peft = self.mixing = "its virtual tokens stand in the text, not before it"
        self.template = template
        self.num_virtual_tokens = P = virtual_tokens(base, num_virtual_tokens, init)
        with torch.no_grad():
            x = initial_value(base, P, init)
            x = noise(base, P, base.config.n_embd) if x is None else convert_up(base, x, "prompt")[0]
        self.prompt_embeddings = new_parameter(base, x)  # (P, C), PEFT's name

    def ladder_value(self) -> Tensor:
        """The prompt (1, P, C), to convert up the ladder; with a template it is no level of it."""
        return self.prompt_embeddings.unsqueeze(0)

    def slots(self, base: GPT) -> Slots:
        prompt = self.ladder_value()
        return Slots(prompt if self.template is None else SoftTokens(prompt[0], base.config.vocab_size))

    @property
    def tokens_in_text(self) -> int:
        return 0 if self.template is None else self.num_virtual_tokens

    adapter_config = staticmethod(prompt_config)

    @classmethod
    def from_config(cls, config: dict) -> dict:
        names = ("num_virtual_tokens", "template")
        return {name: config.get(name) for name in names} | {"init": "random"}
