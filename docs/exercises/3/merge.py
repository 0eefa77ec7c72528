"""Two softmaxes and their mix: attention with a prefix, without a concatenation."""

import torch
from torch import Tensor


def part(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Attention with a softmax of its own -> o (B, nh, T, hs) and its log-sum-exp over the keys (B, nh, T, 1).

    mask: boolean (T, keys), True = may attend; None: all are open. Given: nothing to fill in here.
    """
    scores = q @ k.mT / q.size(-1) ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(dim=-1) @ v, scores.logsumexp(dim=-1, keepdim=True)


def merge(o_text: Tensor, lse_text: Tensor, o_prefix: Tensor, lse_prefix: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax over [prefix ; text], from its two parts -> o (B, nh, T, hs), λ (B, nh, T, 1).

        o = (1 - λ) · o_text + λ · o_prefix,     λ = exp(lse_prefix - lse),   lse = log(exp lse_text + exp lse_prefix)

    Log-sum-exps can be in the hundreds, where exp overflows: take differences before exp.
    """
    raise NotImplementedError("λ from the two log-sum-exps, then the mix")
