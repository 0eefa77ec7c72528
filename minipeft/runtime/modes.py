"""Evaluation mode for a while: no dropout, and afterwards every module in the mode that it had."""

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def in_eval_mode(model) -> Iterator[None]:
    """Within it, a module and its parts are in eval mode; a task bank, which is no module, always is."""
    modes = {part: part.training for part in model.modules()} if isinstance(model, nn.Module) else {}
    model.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
