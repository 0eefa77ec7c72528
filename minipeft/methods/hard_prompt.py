"""Hard prompts: words before the input. Nothing is trained; a prompt is chosen or searched for.

    x = [wte(tokens) ; wte(idx)]          tokens (P,) out of V^P: the ladder's lowest level

trained = 0, stored = P token ids. training/prompt_search.py scores wordings that people wrote, or
searches along the gradient.
"""

import torch
from torch import Tensor

from ..checks import at_least_one
from ..ladder import prompt_from_tokens
from ..model import GPT
from .base import Method, virtual_tokens


class HardPrompt(Method):
    """adapt(base, "hard-prompt", tokens=token ids (P,) int64)."""

    name = "hard-prompt"
    learning_rate = learning_rate_wide = 0.0  # nothing is trained
    peft_types = ("HARD_PROMPT",)  # PEFT has no such type

    def __init__(self, base: GPT, tokens: Tensor):
        super().__init__()
        self.num_virtual_tokens = virtual_tokens(base, None, tokens)
        self.register_buffer("prompt_tokens", tokens.to(base.wte.weight.device, copy=True).contiguous())  # (P,) int64
        self.slots(base)  # raises Error for ids outside the vocabulary

    def ladder_value(self) -> Tensor:
        """The tokens, as the ladder has them: (P,) int64."""
        return self.prompt_tokens

    def slots(self, base: GPT) -> dict[str, Tensor]:
        return {"prompt": prompt_from_tokens(base, self.prompt_tokens)}

    def tensors(self) -> dict[str, Tensor]:
        return {"prompt_tokens": self.prompt_tokens}

    def peft_config(self, base: GPT) -> dict:
        return {"peft_type": self.peft_types[0], "num_virtual_tokens": self.num_virtual_tokens,
                "token_dim": base.config.n_embd}

    @classmethod
    def hyperparameters(cls, config: dict) -> dict:
        P = at_least_one("num_virtual_tokens", config.get("num_virtual_tokens"))
        return {"tokens": torch.zeros((), dtype=torch.int64).expand(P)}  # P from the file, memory for one
