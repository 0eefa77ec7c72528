"""Devices by name."""

import torch

from ..config import Error


def device(name: str) -> torch.device:
    """The device of this name. Raises Error when it is not there."""
    try:
        if (found := torch.empty(0, device=name).device).type in ("cpu", "cuda", "mps"):
            return found
        raise Error(f"--device {name} cannot be used: only cpu, cuda and mps compute here")
    except (RuntimeError, AssertionError) as e:
        raise Error(f"--device {name} cannot be used: {str(e).splitlines()[0]}") from None
