"""Hard prompts: words before the input. Nothing is trained; a prompt is chosen, or searched for.

    x = [wte(tokens) ; wte(idx)]          tokens (P,) out of V^P: the ladder's lowest rung

trained = 0, stored = P token ids. The choice is between wordings that people write (score each on examples and keep the best), or by a
search that follows the gradient as far as words can (HotFlip, Ebrahimi et al. 2018, 1712.06751; AutoPrompt, Shin et al. 2020,
2010.15980 §2.2): how much the loss would change if token i became w is, to first order,

    L(e_i → e_w) - L ≈ (e_w - e_i)ᵀ ∂L/∂e_i          so the most promising w for place i have the smallest e_wᵀ ∂L/∂e_i

and of the k most promising the best is kept, if it lowers the loss on the next batch. One step costs one gradient and k + 1 forward
passes for at most one token changed: that is the price of "discrete".
"""


import torch
from torch import Tensor

from ..config import at_least_one
from ..ladder import prompt_from_tokens
from ..model import GPT
from .base import Method, virtual_tokens


class HardPrompt(Method):
    """adapt(base, "hard-prompt", tokens=token ids (P,) int64)."""

    name = "hard-prompt"
    learning_rate = learning_rate_wide = 0.0  # nothing learns
    peft_types = ("HARD_PROMPT",)  # PEFT has none

    def __init__(self, base: GPT, tokens: Tensor):
        super().__init__()
        self.num_virtual_tokens = virtual_tokens(base, None, tokens)
        self.register_buffer("prompt_tokens", tokens.to(base.wte.weight.device, copy=True).contiguous())  # (P,) int64
        self.check(base)

    def ladder_value(self) -> Tensor:
        """What is stored, as the ladder has it: (P,) int64."""
        return self.prompt_tokens

    def slots(self, base: GPT) -> dict[str, Tensor]:
        return {"prompt": prompt_from_tokens(base, self.prompt_tokens)}

    def tensors(self) -> dict[str, Tensor]:
        return {"prompt_tokens": self.prompt_tokens}

    def check(self, base: GPT) -> None:
        prompt_from_tokens(base, self.prompt_tokens)  # raises Error for what is no token

    def peft_config(self, base: GPT) -> dict:
        return {"peft_type": self.peft_types[0], "num_virtual_tokens": self.num_virtual_tokens, "token_dim": base.config.n_embd}

    @classmethod
    def hyperparameters(cls, config: dict) -> dict:
        P = at_least_one("num_virtual_tokens", config.get("num_virtual_tokens"))
        return {"tokens": torch.zeros((), dtype=torch.int64).expand(P)}  # as large as a file claims, and yet one number

