"""Memory this process holds, memory it can still take, and memory it gives back."""

import contextlib
import ctypes
import re
import sys
from pathlib import Path

import torch

with contextlib.suppress(ImportError):  # not on Windows
    import resource


def resident_peak() -> int | None:
    """Peak resident bytes. Linux's getrusage would start at the parent process's peak."""
    if (peak := _own_status("VmHWM")) is not None or "resource" not in globals():
        return peak
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_memory(device: torch.device) -> int | None:
    """Bytes left on a GPU, or the least of system, control group and own limit; None if unknown."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    known = [_kilobytes("/proc/meminfo", "MemAvailable"), _left_in_cgroup(), _left_of_own_limit()]
    return min((n for n in known if n is not None), default=None)


def _find_trim():
    """glibc's malloc_trim; None where the C library is another."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # TypeError: Windows
        return None


_trim = _find_trim()
_results = 0  # bytes of results since the last time
EVERY = 2**24  # such bytes: pages that are given back have to be mapped again, which takes time


def give_back() -> None:
    """Give the pages of freed memory back to the system, where the C library can."""
    if _trim is not None:
        _trim(0)


def give_back_freed(result: torch.Tensor) -> None:
    """Give the pages of freed memory back to the system, now and then, where `result` was computed.
    glibc keeps what lies between blocks in use: where a forward pass saves tensors among
    temporaries, such holes add up."""
    global _results
    if _trim is not None and type(result) is torch.Tensor and result.device.type == "cpu":  # no tensor of a tracer
        _results += result.nbytes
        if _results >= EVERY:
            _results = 0
            give_back()


def _own_status(field: str) -> int | None:
    return _kilobytes("/proc/self/status", field)


def _kilobytes(path: str, field: str) -> int | None:
    """A field of one of Linux's status files, in bytes; None without such a file or field."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
    return None


def _left_in_cgroup(groups: Path = Path("/proc/self/cgroup"),
                    root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """The fewest bytes left in this process's control group and those around it, a job's or a
    container's; their file cache can be reclaimed. Groups of cgroup v2 and of v1's memory
    controller."""
    found = []
    with contextlib.suppress(OSError):
        for line in groups.read_text(encoding="utf-8").splitlines():
            number, controllers, name = line.split(":", 2)
            if number == "0" or "memory" in controllers.split(","):
                top, files = (root, ("max", "current", "file")) if number == "0" else (
                    root / "memory", ("limit_in_bytes", "usage_in_bytes", "total_cache"))
                folder = top / name.strip("/")
                found += [_left_in_group(x, *files) for x in (folder, *folder.parents) if x.is_relative_to(top)]
    return min((n for n in found if n is not None), default=None)


def _left_in_group(folder: Path, limit: str, used: str, cache: str) -> int | None:
    """Bytes left in one control group; None where it has no limit."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        most, now, stat = ((folder / f"memory.{name}").read_text(encoding="utf-8") for name in (limit, used, "stat"))
        return int(most) - int(now) + int(dict(line.split() for line in stat.splitlines())[cache])
    return None


def _left_of_own_limit() -> int | None:
    if "resource" not in globals():
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else max(0, limit - (_own_status("VmSize") or 0))


def format_gigabytes(n: int) -> str:
    return f"{n / 1e9:.2f} GB"


def out_of_memory_message(message: str) -> str:
    """torch's out-of-memory message in one line: bytes requested, held and left."""
    held_on = {"cuda": torch.cuda.memory_allocated, "mps": torch.mps.current_allocated_memory,
               "cpu": lambda: _own_status("VmRSS")}
    kind = "mps" if "MPS" in message else "cuda" if "CUDA" in message or "GPU" in message else "cpu"
    left, held = available_memory(torch.device(kind)), held_on[kind]()
    more = "more"
    if found := re.search(r"allocate ([\d.]+) (bytes|KiB|MiB|GiB)", message):
        unit = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}[found[2]]
        more = f"{format_gigabytes(int(float(found[1]) * unit))} more"
    left_text = f", {format_gigabytes(left)} are left" if left is not None else ""
    held_text = f" than the {format_gigabytes(held)} held" if held is not None else ""
    return (f"memory ran out on the {'CPU' if kind == 'cpu' else 'GPU'}: "
            f"{more}{held_text} are needed{left_text}")
