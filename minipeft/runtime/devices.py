"""Devices by name, and the CPU's own."""

import platform
from pathlib import Path

import torch

from ..checks import Error

VENDORS = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD", "i386": "Intel", "arm": "Apple"}
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


def cpu() -> tuple[str, str, str]:
    """Name, vendor and generation ("family 25, model 17") of the CPU, where known."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = told.get("model name") or platform.processor() or platform.machine()
    vendor = told.get("vendor_id") or told.get("CPU implementer") or name.rpartition(", ")[2]
    numbers = [f"{part} {told[key]}" for part, key in (("family", "cpu family"), ("model", "model")) if key in told]
    return name, VENDORS.get(vendor, vendor), ", ".join(numbers)  # Windows ends names by it, macOS says arm or i386
