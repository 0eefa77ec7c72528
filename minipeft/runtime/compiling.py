"""torch.compile, with a check that it works on this machine."""

import functools
import sys
from collections.abc import Callable

import torch


@functools.cache
def compiled(function: Callable) -> Callable:
    """The function compiled as one graph per set of shapes; the same object for every caller."""
    config = torch._dynamo.config  # every shape and dtype is a program of its own; the default is 8
    config.recompile_limit = max(10_000, config.recompile_limit)
    config.accumulated_recompile_limit = config.recompile_limit
    return torch.compile(function, fullgraph=True, dynamic=False)


@functools.cache
def can_compile(device_type: str) -> bool:
    """True where torch.compile works; if not (no C++ compiler, say), warn once on stderr."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(64, device=device_type))
    except Exception as e:  # any class: whatever stops the compiler, the code then runs eagerly
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        print("torch.compile does not work here, everything runs eagerly:", reason, file=sys.stderr)
        return False
    return True
