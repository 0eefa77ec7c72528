"""Hard prompts: words before the input. Nothing is trained; a prompt is chosen, or searched for.

    x = [wte(tokens) ; wte(idx)]          tokens (P,) out of V^P: the ladder's lowest rung

trained = 0, stored = P token ids. The choice is between wordings that people write (score each on examples and keep the best), or by a
search that follows the gradient as far as words can (HotFlip, Ebrahimi et al. 2018, 1712.06751; AutoPrompt, Shin et al. 2020,
2010.15980 §2.2): how much the loss would change if token i became w is, to first order,

    L(e_i → e_w) - L ≈ (e_w - e_i)ᵀ ∂L/∂e_i          so the most promising w for place i have the smallest e_wᵀ ∂L/∂e_i

and of the k most promising the best is kept, if it lowers the loss on the next batch. One step costs one gradient and k + 1 forward
passes for at most one token changed: that is the price of "discrete".
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..config import at_least_one
from ..console import progress
from ..ladder import prompt_from_tokens
from ..loss import linear_cross_entropy
from ..model import GPT
from .base import Adapted, Method, virtual_tokens


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

    def rung(self) -> Tensor:
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


def search(base: GPT, start: Tensor, batch: Callable[[int], tuple[Tensor, Tensor]], steps: int, candidates: int = 8) -> Tensor:
    """Improve the tokens (P,) int64 step by step, as the equation above says; returns the tokens reached.

    batch(step) -> (idx, targets) (B, T); in each step one token, drawn at random, may change into one of `candidates`.
    """

    def loss(prompt: Tensor, step: int) -> Tensor:
        idx, targets = (t.to(device) for t in batch(step))
        x = base.hidden(idx, prompt=prompt)
        return linear_cross_entropy(x.flatten(0, 1), base.head, targets.flatten())

    device = base.wte.weight.device
    tokens = start.to(device)
    frozen = Adapted(base, HardPrompt(base, start))  # no gradient of any weight
    with progress(total=steps, unit="step", desc="search") as bar:
        for step in range(steps):
            prompt = prompt_from_tokens(base, tokens).detach().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(prompt, 2 * step), prompt)  # (1, P, C)
            i = int(torch.randint(len(tokens), ()))
            promising = (base.wte.weight.detach().float() @ gradient[0, i].float()).topk(candidates, largest=False).indices
            tries = tokens.repeat(candidates + 1, 1)
            tries[1:, i] = promising
            with torch.no_grad():
                losses = torch.stack([loss(prompt_from_tokens(base, t), 2 * step + 1) for t in tries])
            tokens = tries[int(losses.argmin())]
            bar.update()
            bar.set_postfix(loss=f"{losses.min():.3f}")
    frozen.detach()
    return tokens
