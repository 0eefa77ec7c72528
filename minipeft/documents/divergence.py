"""Divergence of a base behind one prefix from that behind another: KL in nats a token, and loss."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import Error, check_base, described
from ..loss import distillation_loss, linear_cross_entropy
from ..model import GPT
from ..slots import Prefix


class Divergence(NamedTuple):
    kl: float  # KL(behind the whole text ‖ behind the prefix), mean over tokens
    loss: float  # cross-entropy of the next tokens, behind the prefix


@torch.no_grad()
def divergence(base: GPT, whole: Prefix | None, prefix: Prefix | None,
               texts: list[Tensor]) -> Divergence:
    """`Divergence` on texts (T,) int64 behind a document; `whole`: documents.prefill of it."""
    check_base(base)
    if not isinstance(texts, (list, tuple)) or not all(isinstance(x, Tensor) and x.dim() == 1 for x in texts):
        raise Error(f"a divergence is on a list of texts (T,) int64, not on {described(texts)}")
    kl, loss, tokens = 0.0, 0.0, 0
    for text in (text for text in texts if len(text) > 1):
        idx = text[None].to(base.wte.weight.device)
        states = [base.hidden(idx, prefix=p)[0, :-1] for p in (whole, prefix)]
        every = torch.ones(len(text) - 1, dtype=torch.bool, device=idx.device)
        head = base.head.detach()
        kl += float(distillation_loss(states[1], states[0], head, every)) * len(every)
        loss += float(linear_cross_entropy(states[1], head, idx[0, 1:])) * len(every)
        tokens += len(every)
    if not tokens:
        raise Error("a divergence needs a text of at least two tokens")
    return Divergence(kl / tokens, loss / tokens)
