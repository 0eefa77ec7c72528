"""Tools of measuring: time, spread, matmul rate, peak memory, and aligned tables."""

import contextlib
import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy
import torch
from tqdm import tqdm

from ..checks import Error
from ..methods import METHODS
from ..runtime.matmul import product
from ..runtime.memory import give_back, resident_peak
from ..runtime.profiling import saved_bytes as saved_bytes  # scripts import it from here
from ..runtime.profiling import synchronize

MS = "{0[median]:,.1f} ({0[p10]:,.1f}–{0[p90]:,.1f})"  # a spread as a table's cell


def milliseconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of work(), the device synchronised before and after."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return 1000 * (time.perf_counter() - start)


def time_all(groups: list[list[Callable]], rounds: int, device: torch.device, bar: tqdm,
             rate: Callable[[], None] | None = None) -> list[list[dict]]:
    """The spread of each work's time. Every round does all of them once, each round beginning with
    another; the bar advances by one per group. After `rate`, which leaves the caches to the next,
    that one runs untimed first."""
    times = [[[] for _ in group] for group in groups]
    for turn in range(rounds):
        order = in_turn(range(len(groups)), turn)
        if rate is not None:
            rate()
            in_turn(groups[order[0]], turn)[0]()
        for g in order:
            for i in in_turn(range(len(groups[g])), turn):
                times[g][i].append(milliseconds(groups[g][i], device))
            bar.update()
    return [[spread(ms) for ms in samples] for samples in times]


def in_turn(items: Sequence, turn: int) -> Sequence:
    """The items, begun at another one each turn."""
    first = turn % len(items)
    return [*items[first:], *items[:first]]


def spread(samples: list[float]) -> dict[str, float]:
    """Median, 10th and 90th percentile."""
    p10, median, p90 = numpy.percentile(samples, [10, 50, 90])
    return {"median": float(median), "p10": float(p10), "p90": float(p90)}


def first_line(e: Exception) -> str:
    """The first line of an error's message, or the error's type."""
    return str(e).strip().partition("\n")[0] or type(e).__name__


def card_line(c: dict) -> str:
    """Machine and versions as the first line of a table."""
    instructions = f" with {c['instructions']}" if "instructions" in c else ""
    versions = "".join(f"{name} {c[name]}, " for name in ("torch", "peft", "transformers") if name in c)
    of = [c[x] for x in ("vendor", "generation") if c.get(x) and c[x] not in c["device"]]
    vendor = f" ({', '.join(of)})" if of else ""
    library = ", float32 products by oneDNN" if c.get("matmul") == "oneDNN" else ""
    return (f"{c['device']}{vendor}{instructions}{library}, {c['threads']} threads of {c['cores']} cores, "
            f"{c['platform']}, Python {c['python']}, {versions}commit {c['commit']}")


class Rate:
    """Speed of a work that is the floor of others, in FLOPs or bytes per second.

    Call it once a round, so that it and the other works see the same fast or slow machine.
    """

    def __init__(self, work: Callable[[], object], amount: int, device: torch.device):
        self.work, self.amount, self.device, self.samples = work, amount, device, []
        work()

    def __call__(self) -> None:
        self.samples += [milliseconds(self.work, self.device) for _ in range(3)]

    @property
    def value(self) -> float:
        """Median."""
        return 1000 * self.amount / spread(self.samples)["median"]


class MatmulRate(Rate):
    """Speed of large square matmuls, by the library that the model takes."""

    def __init__(self, dtype: torch.dtype, device: torch.device):
        n = 4096 if device.type == "cuda" else 1024
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        super().__init__(lambda: product(a, b), 2 * n**3, device)


class ReadRate(Rate):
    """Memory bandwidth of reading: the sum of a tensor larger than any cache."""

    def __init__(self, device: torch.device):
        x = torch.ones(2**26, device=device)
        super().__init__(x.sum, x.nbytes, device)


def header(result: dict, setting: str) -> list[str]:
    """The first lines of a table: the machine; the base, and the rest of the setting."""
    s = result["settings"]
    base = "{}: L {n_layer}, C {n_embd}, nh {n_head}, V {vocab_size}".format(s["preset"], **s["config"])
    return [card_line(result["card"]), base + setting]


def size_text(row: dict) -> str:
    """The size of a row's method as a table cell, such as "P 8"; "-" if it has none."""
    for name, spec in METHODS[row["method"]].hyperparameters.items():
        if spec.symbol and name in row:
            return f"{spec.symbol} {row[name]}"
    return "-"


def cell(name: str, text: str, scale: float = 0, missing: str = "-") -> Callable[[dict], str]:
    """A cell of `columns`: row[name], over a scale, in the format `text`; `missing` if None."""
    def show(row: dict) -> str:
        value = row.get(name)
        return missing if value is None else text.format(value / scale if scale else value)

    return show


def if_trained(text: Callable[[dict], str]) -> Callable[[dict], str]:
    """A cell of `columns`, "-" for a method that trains nothing."""
    return lambda r: text(r) if r["trained"] else "-"


def columns(cells: dict[str, Callable[[dict], str]], rows: list[dict]) -> list[str]:
    """Aligned lines: the headings, then one per row."""
    return aligned([list(cells)] + [[cell(r) for cell in cells.values()] for r in rows])


def aligned(text: list[list[str]]) -> list[str]:
    """Lines of cells under each other; the first column is aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(*text, strict=True)]
    pad = [str.ljust] + [str.rjust] * (len(widths) - 1)
    return ["  ".join(f(c, w) for f, c, w in zip(pad, line, widths, strict=True)) for line in text]


@contextlib.contextmanager
def busy_processes(n: int) -> Iterator[list[subprocess.Popen]]:
    """n processes that each keep a core busy; they end with this one too."""
    loop = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"
    started = [subprocess.Popen([sys.executable, "-c", loop]) for _ in range(n)]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def peak_bytes(device: torch.device, work: Callable, *arguments) -> int | None:
    """Peak memory of work(*arguments) in a new process; None if the system does not report it.

    GPU: the peak of torch's allocator. CPU: the rise of the process's resident memory above its
    state after all imports. Raises Error if the work fails.
    """
    try:
        return in_new_process(_measure_peak, device, work, arguments)
    except Error as e:
        raise Error(f"peak memory cannot be measured, try a smaller shape: {e}") from None


def in_new_process(work: Callable, *arguments):
    """work(*arguments) in a new process with as many threads as here. Raises Error if it fails."""
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, context, _start_process, (torch.get_num_threads(),)) as pool:
            return pool.submit(work, *arguments).result()
    except BrokenProcessPool:
        reason = "the process was killed, most likely because memory ran out"
    except Exception as e:
        reason = first_line(e)
    raise Error(reason)


def _start_process(threads: int) -> None:
    torch.set_num_threads(threads)
    end_with_parent()


def end_with_parent() -> None:
    """In a process of multiprocessing: it ends when its parent does, though that was killed."""
    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def restart_peak(device: torch.device) -> None:
    """Give back freed memory, and reset this process's peak to the rest (CPU: Linux only)."""
    gc.collect()
    give_back()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_above(before: int | None, device: torch.device) -> int | None:
    """Peak of torch's allocator on a GPU; of resident memory above `before` on a CPU, None if the
    system does not report it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resident_peak()
    return None if before is None or peak is None else peak - before


def _measure_peak(device: torch.device, work: Callable, arguments: tuple) -> int | None:
    restart_peak(device)  # imports do not count
    before = resident_peak()
    work(*arguments)
    return peak_above(before, device)
