"""torch.compile, where it works."""

import functools
import sys
from collections.abc import Callable

import torch


@functools.cache
def compiled(function: Callable) -> Callable:
    """The function compiled as one graph, anew for every set of shapes. One and the same for every caller."""
    limits = torch._dynamo.config  # a program for every shape, type, and what needs gradients: past the limit it would refuse
    limits.recompile_limit = limits.accumulated_recompile_limit = max(10_000, limits.recompile_limit)
    return torch.compile(function, fullgraph=True, dynamic=False)


@functools.cache
def can_compile(device_type: str) -> bool:
    """Whether torch.compile works here; if not (no C++ compiler, say), one line on stderr says so, once."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(64, device=device_type))
    except Exception as e:  # whatever keeps the compiler from working, the eager form of the same code does
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        print(f"torch.compile does not work here, everything runs eagerly: {reason}", file=sys.stderr)
        return False
    return True
