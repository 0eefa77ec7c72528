"""Devices by name."""

import torch

from ..checks import Error

HELP = "cpu, cuda, cuda:1 …, or mps (an Apple GPU; untried)"


def default_device() -> str:
    """cuda where there is one, else mps, else cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def device(name: str) -> torch.device:
    """The device of this name. Raises Error when it is missing or is no cpu, cuda or mps device."""
    try:
        found = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as e:
        raise Error(f"--device {name} cannot be used: {str(e).splitlines()[0]}") from None
    if found.type not in ("cpu", "cuda", "mps"):
        raise Error(f"--device {name} cannot be used: only cpu, cuda and mps compute here")
    return found
