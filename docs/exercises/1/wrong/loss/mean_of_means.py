# it is the mean of every row
"""Loss on targets only: the prompt is given, so nothing is learnt from predicting it."""

import torch.nn.functional as F
from torch import Tensor

IGNORED = -100  # target of a position that is not supervised


def inputs_and_targets(sequence: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """sequence (B, T + 1): n tokens of the prompt, then the completion with its end mark.

    -> inputs (B, T): all tokens but the last, which is never an input
       targets (B, T): at each position the *next* token where that belongs to the completion, else IGNORED
    """
    inputs, targets = sequence[:, :-1], sequence[:, 1:].clone()
    targets[:, : n - 1] = IGNORED
    return inputs, targets


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """logits (B, T, V), targets (B, T) -> mean over the supervised positions of  -log softmax(logits)[target]."""
    rows = [F.cross_entropy(x, t, ignore_index=IGNORED) for x, t in zip(logits, targets, strict=True)]
    return sum(rows) / len(rows)
