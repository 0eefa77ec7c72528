"""Loss on targets only: the prompt is given, so nothing is learnt from predicting it."""

import torch.nn.functional as F
from torch import Tensor

IGNORED = -100  # target of a position that is not supervised


def inputs_and_targets(sequence: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """sequence (B, T + 1): n tokens of the prompt, then the completion with its end mark.

    -> inputs (B, T): all tokens but the last, which is never an input
       targets (B, T): at each position the *next* token where that belongs to the completion, else IGNORED
    """
    raise NotImplementedError("shift by one place; the first supervised position is the prompt's last token")


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """logits (B, T, V), targets (B, T) -> mean over the supervised positions of  -log softmax(logits)[target]."""
    raise NotImplementedError("cross-entropy of the supervised positions, divided by how many there are")
