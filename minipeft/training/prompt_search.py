"""Choosing a hard prompt: score wordings on the validation set, or search for tokens along the gradient.

A search step estimates how much the loss would change if token i became w, to first order (HotFlip, Ebrahimi et al. 2018,
1712.06751; AutoPrompt, Shin et al. 2020, 2010.15980 §2.2):

    L(e_i → e_w) - L ≈ (e_w - e_i)ᵀ ∂L/∂e_i          so the most promising w for place i have the smallest e_wᵀ ∂L/∂e_i

Of the k most promising tokens the best is kept if it lowers the loss on the next batch. A step costs one gradient and k + 1
forward passes for at most one changed token: the price of "discrete".
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..data.tokenizer import Tokenizer, in_letters
from ..ladder import prompt_from_tokens
from ..loss import linear_cross_entropy
from ..methods import adapt
from ..methods.base import Adapted
from ..methods.hard_prompt import HardPrompt
from ..model import GPT
from ..runtime.console import progress
from .evaluation import evaluate


def choose_wording(base: GPT, candidates: list[Tensor], development: list, tokenizer: Tokenizer) -> tuple[list[dict], Tensor]:
    """Score hard prompts, tokens (P,) each, by exact match on batches of idx, targets, and where that is equal by loss.

    Returns all scores, best first, and the best one's tokens.
    """
    scored = []
    for tokens in progress(candidates, unit="wording", desc="choosing"):
        model = adapt(base, "hard-prompt", tokens=tokens)
        loss, exact = evaluate(model, development)
        model.detach()
        scored.append(({"wording": in_letters(tokenizer, tokens.tolist()), "exact_match": exact, "loss": loss}, tokens))
    scored.sort(key=lambda x: (-x[0]["exact_match"], x[0]["loss"]))
    return [score for score, _ in scored], scored[0][1]


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
