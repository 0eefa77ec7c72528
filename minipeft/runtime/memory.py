"""How much memory this process holds, and how much there is for it."""

import contextlib
import re
import sys
from pathlib import Path

import torch

with contextlib.suppress(ImportError):  # not on Windows
    import resource


def resident_peak() -> int | None:
    """Bytes this process has held at most. On Linux not from getrusage, which starts at what the parent process held."""
    if (peak := _status("VmHWM")) is not None or "resource" not in globals():
        return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _status(field: str) -> int | None:
    return _kilobytes("/proc/self/status", field)


def _kilobytes(path: str, field: str) -> int | None:
    """A field of one of Linux's status files, in bytes; None where there is none."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(path).read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
    return None


def available(device: torch.device) -> int | None:
    """Bytes that can still be taken: of the GPU, or of the system, the process's control group and its own limit, whichever has least.

    None where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    known = [_kilobytes("/proc/meminfo", "MemAvailable"), _group(), _own_limit()]
    return min((n for n in known if n is not None), default=None)


def _group() -> int | None:
    """What the control group (a container, most often) has left; its file cache can be given up."""
    with contextlib.suppress(OSError, ValueError, KeyError, StopIteration):
        name = next(line.split("::", 1)[1] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        folder = Path("/sys/fs/cgroup") / name.strip("/")
        most, held = int((folder / "memory.max").read_text()), int((folder / "memory.current").read_text())
        parts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return most - held + int(parts["file"])
    return None


def _own_limit() -> int | None:
    if "resource" not in globals() or (limit := resource.getrlimit(resource.RLIMIT_AS)[0]) == resource.RLIM_INFINITY:
        return None
    return max(0, limit - (_status("VmSize") or 0))


def gigabytes(n: int) -> str:
    return f"{n / 1e9:.2f} GB"


def out_of_memory(message: str) -> str:
    """torch's message about memory that could not be had, as: how much was asked for, and how much there is."""
    gpu = "CUDA" in message or "GPU" in message
    left = available(torch.device("cuda" if gpu else "cpu"))
    asked = re.search(r"allocate (\d+) bytes", message) or re.search(r"allocate ([\d.]+) ([KMG])iB", message)
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    n = int(float(asked[1]) * (units[asked[2]] if asked.re.groups == 2 else 1)) if asked else None
    more = f"{gigabytes(n)} more" if n is not None else "more"
    held = torch.cuda.memory_allocated() if gpu else _status("VmRSS")
    there = f", {gigabytes(left)} are left" if left is not None else ""
    return f"memory ran out on the {'GPU' if gpu else 'CPU'}: {more} than the {gigabytes(held or 0)} held are needed{there}"
