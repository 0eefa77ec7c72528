"""The choice of a hard prompt: wordings scored on the validation set, or a search by gradients.

A search step estimates to first order how the loss would change if token i became w (HotFlip,
Ebrahimi et al. 2018, 1712.06751; AutoPrompt, Shin et al. 2020, 2010.15980 §2.2):

    L(e_i → e_w) - L ≈ (e_w - e_i)ᵀ ∂L/∂e_i      the best w for place i: the smallest e_wᵀ ∂L/∂e_i

The best of the k most promising tokens replaces token i if it lowers the loss on the next batch. A
step costs one gradient and k + 1 forward passes, and changes at most one token.
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..attach import Adapted, adapt
from ..data.tokenizer import Tokenizer, in_letters
from ..ladder import prompt_from_tokens
from ..loss import linear_cross_entropy
from ..methods.hard_prompt import HardPrompt
from ..model import GPT
from ..runtime.console import TimeEstimate, progress
from ..runtime.processes import all_reduce_max
from ..runtime.signals import Stopped, StopRequest
from .checkpoints import collect, restore
from .evaluation import evaluate
from .run_folder import CHECKPOINT_SECONDS, SEARCH, RunFolder


def choose_wording(base: GPT, candidates: list[Tensor], validation: list,
                   tokenizer: Tokenizer) -> tuple[list[dict], Tensor]:
    """Scores of hard prompts (P,), by exact match and then loss, and the tokens of the best one."""
    scored = []
    for tokens in progress(candidates, unit="wording", desc="choosing"):
        model = adapt(base, HardPrompt.name, tokens=tokens)
        loss, exact = evaluate(model, validation)
        model.detach()
        wording = in_letters(tokenizer, tokens.tolist())
        scored.append(({"wording": wording, "exact_match": exact, "loss": loss}, tokens))
    scored.sort(key=lambda x: (-x[0]["exact_match"], x[0]["loss"]))
    return [score for score, _ in scored], scored[0][1]


def search(base: GPT, start: Tensor, batch: Callable[[int], tuple[Tensor, Tensor]], steps: int,
           run: RunFolder | None = None, settings: dict | None = None, resume: Path | None = None,
           candidates: int = 8) -> Tensor:
    """Improve the tokens (P,) int64 by the equation above; returns the tokens reached.

    batch(step) -> (idx, targets) (B, T). Each step tries `candidates` for one place. run, settings
    and resume are those of loop.train, whose checkpoints and signals a search has too.
    """

    def loss(prompt: Tensor, step: int) -> Tensor:
        idx, targets = (t.to(device) for t in batch(step))
        x = base.hidden(idx, prompt=prompt)
        return linear_cross_entropy(x.flatten(0, 1), base.head, targets.flatten())

    device = base.wte.weight.device
    tokens = start.to(device, copy=True)
    done = restore(resume, steps, {"tokens": tokens}, None, settings)[0] if resume else 0
    tenth, saved = max(1, steps // 10), time.monotonic()
    frozen = Adapted(base, HardPrompt(base, start))  # no weight has a gradient
    with StopRequest() as stop_request, progress(total=steps, initial=done, unit="step", desc="search") as bar:
        expected = TimeEstimate(bar)
        for step in range(done, steps):
            prompt = prompt_from_tokens(base, tokens).detach().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(prompt, 2 * step), prompt)  # (1, P, C)
            i = int(torch.randint(len(tokens), ()))
            change = base.wte.weight.detach().float() @ gradient[0, i].float()  # (V,)
            tries = tokens.repeat(candidates + 1, 1)
            tries[1:, i] = change.topk(candidates, largest=False).indices
            with torch.no_grad():
                prompts = [prompt_from_tokens(base, t) for t in tries]
                losses = torch.stack([loss(prompt, 2 * step + 1) for prompt in prompts])
            tokens = tries[int(losses.argmin())]
            bar.update()
            expected()
            bar.set_postfix(loss=f"{losses.min():.3f}")
            done = step + 1
            stop = all_reduce_max(stop_request.number or time.monotonic() - saved > CHECKPOINT_SECONDS)
            if run is not None and (stop or done % tenth == 0 or done == steps):
                run.save(done, collect(done, settings, {"tokens": tokens}, None, None), SEARCH)
                saved = time.monotonic()
            if stop > 1:
                raise Stopped.after(stop, done, steps)
    frozen.detach()
    return tokens
