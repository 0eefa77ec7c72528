"""Hard prompts: words before the input. Nothing is trained; a prompt is chosen or searched for.

    x = [wte(tokens) ; wte(idx)]          tokens (P,) out of V^P: the ladder's lowest level

trained = 0, stored = P token ids. training/prompt_search.py scores wordings that people wrote, or
searches along the gradient.
"""

import torch
from torch import Tensor

from ..checks import Error, at_least_one, shown
from ..formulas.terms import Hyperparameter, Shapes
from ..ladder import prompt_from_tokens
from ..model import GPT
from ..slots import Slots
from .base import LENGTH, Method, Tokens, virtual_tokens
from .prompt_tuning import PromptTuning


class HardPrompt(Method):
    """adapt(base, "hard-prompt", tokens=token ids (P,) int64)."""

    name = "hard-prompt"
    learning_rate = learning_rate_wide = 0.0  # nothing is trained
    hyperparameters = {"tokens": Hyperparameter("token ids (P,) int64"),
                       "num_virtual_tokens": Hyperparameter("virtual tokens", "P")}
    typical = ({"num_virtual_tokens": 4},)
    peft_types = ("HARD_PROMPT",)  # PEFT has no such type
    peft = None  # as the soft prompt of its embeddings
    mixing = None

    @staticmethod
    def shapes(c, num_virtual_tokens):
        tokens = {"prompt_tokens": (num_virtual_tokens,)}
        return Shapes({}, tokens, frozen=tokens, each=8)

    cost, defaults = staticmethod(PromptTuning.cost), staticmethod(PromptTuning.defaults)  # they take positions alike

    @classmethod
    def example(cls, base: GPT, num_virtual_tokens: int = LENGTH) -> "HardPrompt":
        return cls(base, torch.zeros(num_virtual_tokens, dtype=torch.int64))

    def __init__(self, base: GPT, tokens: Tokens):
        super().__init__()
        if not isinstance(tokens, Tensor):
            raise Error(f"tokens must be (P,) int64, not {shown(tokens)}")
        self.num_virtual_tokens = virtual_tokens(base, None, tokens)
        self.register_buffer("prompt_tokens", tokens.to(base.wte.weight.device, copy=True).contiguous())  # (P,) int64
        self.slots(base)  # raises Error for ids outside the vocabulary

    def ladder_value(self) -> Tensor:
        """The tokens, as the ladder has them: (P,) int64."""
        return self.prompt_tokens

    def slots(self, base: GPT) -> Slots:
        return Slots(prompt=prompt_from_tokens(base, self.prompt_tokens))

    def tensors(self) -> dict[str, Tensor]:
        return {"prompt_tokens": self.prompt_tokens}

    @classmethod
    def adapter_config(cls, c, num_virtual_tokens):
        return {"peft_type": cls.peft_types[0], "num_virtual_tokens": num_virtual_tokens, "token_dim": c.n_embd}

    def for_peft(self, base: GPT) -> Method:
        return PromptTuning(base, init=self.ladder_value())

    @classmethod
    def from_config(cls, config: dict) -> dict:
        P = at_least_one("num_virtual_tokens", config.get("num_virtual_tokens"))
        return {"tokens": torch.zeros((), dtype=torch.int64).expand(P)}  # P from the file, memory for one
