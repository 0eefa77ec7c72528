"""How to measure: what machine this is, what autograd keeps, how much memory a piece of work takes."""

import contextlib
import math
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import numpy
import torch

from ..config import Error
from ..runtime.memory import resident_peak
from ..runtime.profiling import saved_bytes as saved_bytes  # scripts import it from here
from ..runtime.profiling import synchronize


def milliseconds(work: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return 1000 * (time.perf_counter() - start)


def spread(samples: list[float]) -> dict[str, float]:
    """Median, 10th and 90th percentile."""
    p10, median, p90 = numpy.percentile(samples, [10, 50, 90])
    return {"median": float(median), "p10": float(p10), "p90": float(p90)}


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def card_line(c: dict) -> str:
    """The card as the first line of a table."""
    instructions = f" with {c['instructions']}" if "instructions" in c else ""
    libraries = "".join(f"{name} {c[name]}, " for name in ("torch", "peft", "transformers") if name in c)
    return (
        f"{c['device']}{instructions}, {c['threads']} threads of {c['cores']} cores, {c['platform']}, Python {c['python']}, "
        f"{libraries}commit {c['commit']}"
    )


class MatrixRate:
    """The speed of products of large square matrices, the machine's own limit for everything here.

    Call it once a round, beside what is measured, so that both see the machine fast or slow alike; `value` is the median.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device):
        n = 4096 if device.type == "cuda" else 1024
        self.a, self.b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        self.device, self.flops, self.samples = device, 2 * n**3, []
        torch.mm(self.a, self.b)

    def __call__(self) -> None:
        self.samples += [milliseconds(lambda: torch.mm(self.a, self.b), self.device) for _ in range(3)]

    @property
    def value(self) -> float:
        """Floating-point operations a second."""
        return 1000 * self.flops / spread(self.samples)["median"]


def columns(cells: dict[str, Callable[[dict], str]], rows: list[dict]) -> list[str]:
    """Aligned lines: the headings, then a line a row. The first column stands left, the others right."""
    return aligned([list(cells)] + [[cell(r) for cell in cells.values()] for r in rows])


def aligned(text: list[list[str]]) -> list[str]:
    """Lines of cells under each other: the first column stands left, the others right."""
    widths = [max(map(len, column)) for column in zip(*text, strict=True)]
    return ["  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))) for line in text]




def peak_bytes(device: torch.device, work: Callable, *arguments) -> int | None:
    """The most memory work(*arguments) takes, in a fresh process of its own; None where the system does not tell.

    On a GPU that is the peak of torch's allocator; on a CPU how far the process's resident memory rises above what it was
    with everything imported.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_measure_peak, args=(sender, device, torch.get_num_threads(), work, arguments))
    child.start()
    sender.close()
    try:
        peak = receiver.recv()
    except EOFError:
        peak = "it was ended, most likely because memory ran out"
    finally:
        child.join()
    if isinstance(peak, str):
        raise Error(f"peak memory cannot be measured, try a smaller shape: {peak}")
    return peak


def restart_peak(device: torch.device) -> None:
    """Let the peak of this process start anew from what it holds now (on a CPU where the system is Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _measure_peak(sender, device: torch.device, threads: int, work: Callable, arguments: tuple) -> None:
    torch.set_num_threads(threads)
    restart_peak(device)  # without what importing took
    before = resident_peak()
    try:
        work(*arguments)
    except Exception as e:  # told in the parent's one line
        return sender.send(str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__)
    if device.type == "cuda":
        sender.send(torch.cuda.max_memory_allocated(device))
    else:
        sender.send(None if before is None else resident_peak() - before)
