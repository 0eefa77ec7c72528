"""The machine a measurement ran on, and the bytes autograd saves for backward."""

import os
import platform
import subprocess
import weakref
from collections.abc import Callable
from pathlib import Path

import torch

from . import matmul
from .devices import cpu


def card(device: torch.device) -> dict:
    """Machine and versions, for the top of every result file."""
    if device.type == "cuda":
        machine = {"device": torch.cuda.get_device_name(device), "device_type": "cuda"}
    else:  # on a CPU its vendor, the vector instructions and who multiplies float32 matrices decide the rounding
        name, vendor, generation = cpu()  # virtual machines call all of a vendor's CPUs by one name
        machine = {"device": name, "device_type": device.type, "vendor": vendor, "generation": generation,
                   "instructions": torch.backends.cpu.get_cpu_capability(),
                   "matmul": "oneDNN" if matmul.LIBRARY == "onednn" else "torch"}
    return {**machine,
            "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "waiting": os.environ.get("OMP_WAIT_POLICY", "default"),
            "platform": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(), "torch": torch.__version__, "commit": _commit()}


def _commit() -> str:
    """The checkout's short commit, with "+" if tracked files differ; "unknown" without one."""

    def git(*args: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *args]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace",
                              check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "-uno") != ""
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def saved_bytes(forward: Callable[[], torch.Tensor], weights) -> int:
    """Bytes that autograd saves for backward in forward(): each storage once, without `weights`."""
    excluded = {w.untyped_storage().data_ptr() for w in weights}
    saved: weakref.WeakSet[_Saved] = weakref.WeakSet()

    def pack(t: torch.Tensor) -> _Saved:
        saved.add(holder := _Saved(t.detach()))  # an output that holds its own graph would never be freed
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
