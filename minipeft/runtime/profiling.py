"""The machine a measurement ran on, and the bytes autograd saves for backward."""

import os
import platform
import subprocess
import weakref
from collections.abc import Callable
from pathlib import Path

import torch


def card(device: torch.device) -> dict:
    """Machine and versions, for the top of every result file."""
    cuda = device.type == "cuda"  # on a CPU the vector instructions torch uses decide the rounding
    vectors = {} if cuda else {"instructions": torch.backends.cpu.get_cpu_capability()}
    return {"device": torch.cuda.get_device_name(device) if cuda else _cpu_name(),
            "device_type": device.type, **vectors,
            "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "platform": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(), "torch": torch.__version__, "commit": _commit()}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _commit() -> str:
    """The checkout's short commit, with "+" if tracked files differ; "unknown" without one."""

    def git(*args: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "-uno") != ""
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def saved_bytes(forward: Callable[[], torch.Tensor], weights) -> int:
    """Bytes that autograd saves for backward in forward(): each storage once, without `weights`."""
    excluded = {w.untyped_storage().data_ptr() for w in weights}
    saved: weakref.WeakSet[_Saved] = weakref.WeakSet()

    def pack(t: torch.Tensor) -> _Saved:
        saved.add(holder := _Saved(t))
        return holder

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.tensor):
        loss = forward()  # its graph holds the saved tensors
    storages = [holder.tensor.untyped_storage() for holder in saved]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    del loss
    return sum(size for pointer, size in sizes.items() if pointer not in excluded)


class _Saved:
    """A saved tensor; it lives as long as autograd holds it."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor
