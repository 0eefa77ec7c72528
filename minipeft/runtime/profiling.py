"""The machine a run is on, and the bytes autograd saves for backward."""

import os
import platform
import subprocess
import weakref
from collections.abc import Callable
from pathlib import Path

import torch


def card(device: torch.device) -> dict:
    """The machine and the versions, for the top of every result."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else _cpu_name(),
        "device_type": device.type,
        **({} if cuda else {"instructions": torch.backends.cpu.get_cpu_capability()}),  # of vectors, that torch takes: they decide rounding
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str:
    """The short commit of the checkout this file lies in, with a + when files differ from it; "unknown" outside one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+" if changed else "")


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def saved_bytes(forward: Callable[[], torch.Tensor], weights) -> int:
    """Bytes that autograd holds for the backward pass once this forward is over: each storage once, the weights themselves not counted."""
    own = {w.untyped_storage().data_ptr() for w in weights}
    saved: weakref.WeakSet[_Saved] = weakref.WeakSet()

    def pack(t: torch.Tensor) -> _Saved:
        saved.add(kept := _Saved(t))
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        loss = forward()  # while it lives, so does what its backward needs
    storages = {storage.data_ptr(): storage.nbytes() for storage in (kept.tensor.untyped_storage() for kept in saved)}
    del loss
    return sum(size for place, size in storages.items() if place not in own)


class _Saved:
    """A tensor in autograd's hands: it lives as long as autograd holds it."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor
