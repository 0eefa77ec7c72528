"""Running a grid: what is not in the lines yet, over several processes, every line written when it is done."""

import contextlib
import json
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import torch
from filelock import FileLock, Timeout  # comes with torch, which needs it
from tqdm import tqdm

from ...accounting import base_parameters
from ...config import EMBEDDED, PRESETS, Error
from ...runtime.console import progress
from ...runtime.profiling import card
from .cell import Cell, run
from .studies import PROMPT_RUNG, sweep

Lines = dict[str, dict]  # a cell's key -> its line
BEGINNING = b'{"cell": '  # of every line that Writer writes


def read(path: Path) -> Lines:
    """The lines of a file, by their cells; none where there is no file. Raises Error as numbered() does."""
    return {Cell.of(line).key: line for line in numbered(path).values()} if path.exists() else {}


def numbered(path: Path) -> dict[int, dict]:
    """The lines of a file by their numbers, from 1. What a stop tore, after the last line break, is passed over. Raises Error for any
    other line that is none, and for a file that cannot be read."""
    try:
        *texts, torn = path.read_bytes().split(b"\n")
    except OSError as e:
        raise Error(f"{path} cannot be read ({type(e).__name__})") from None
    if torn[: len(BEGINNING)] != BEGINNING[: len(torn)]:
        texts.append(torn)  # another file's
    lines = {}
    for number, text in enumerate(texts, 1):
        if not text:
            continue
        try:
            line = json.loads(text)
            Cell.of(line)
            if not {"score", "loss"} <= line.keys():
                raise Error("it has no score and loss")
        except (ValueError, AttributeError, RecursionError) as e:  # Error is one
            raise Error(f"{path}, line {number}, is no line of `bench.py quality`: {e}") from None
        lines[number] = line
    return lines


@contextlib.contextmanager
def alone(path: Path) -> Iterator[Lines]:
    """The lines of a file, which no other grid writes to meanwhile. Raises Error where one does or none can, and as read() does."""
    lock = path.parent / f"{path.name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock)
        held.acquire(timeout=0)
    except Timeout:
        raise Error(f"{path} is in use: another grid writes to it") from None
    except OSError as e:
        raise Error(f"{path} cannot be written to: {e.strerror}") from None
    try:
        yield read(path)
    finally:
        with contextlib.suppress(OSError):  # Windows keeps what is open
            lock.unlink()
        held.release()


class Writer:
    """Appends lines to a file, each whole and on the disk before the next; what a stop tore is cut off first."""

    def __init__(self, path: Path):
        self.file = path.open("ab+")
        self.file.seek(0)
        whole = self.file.read().rfind(b"\n") + 1
        self.file.truncate(whole)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_) -> None:
        self.file.close()

    def __call__(self, line: dict) -> None:
        self.file.write(json.dumps(line).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())


def chosen(lines: Lines, like: Cell) -> float | None:
    """The rate of the sweep of this cell with the lowest loss on dev; None where nothing is trained. Raises Error when it is not run."""
    if not (cells := sweep(like)):
        return None
    if missing := [c for c in cells if c.key not in lines]:
        raise Error(f"the sweep of {missing[0].method} on {missing[0].task} is not run")
    best = min(cells, key=lambda c: loss(lines[c.key]))
    if not math.isfinite(loss(lines[best.key])):
        raise Error(f"no rate of {[c.lr for c in cells]} trains {best.method} on {best.task}")
    return best.lr


def loss(line: dict) -> float:
    return math.inf if line["loss"] is None else line["loss"]


def rated(lines: Lines, cell: Cell, like: Cell | None) -> Cell:
    """The cell with the rate that the sweep of `like` chose (and a soft prompt below it with its own); None: it has one."""
    if like is None:
        return cell
    if cell.start == PROMPT_RUNG:
        prompt = replace(like, method="prompt")
        cell = replace(cell, start={**PROMPT_RUNG, "lr": chosen(lines, prompt)})
    return replace(cell, lr=chosen(lines, like))


def fill(path: Path, wanted: list[tuple[Cell, Cell | None]], processes: int, folders: dict[str, str], device: str) -> Lines:
    """Run the sweeps of these cells, then the cells, all but those whose lines are in the file; returns the lines of both."""
    sweeps = [c for _, like in wanted if like is not None for c in sweep(like)]
    with alone(path) as lines, Writer(path) as write, pool(processes) as workers:
        for cells in (lambda: sweeps, lambda: [rated(lines, *pair) for pair in wanted]):
            todo = list({c.key: c for c in cells() if c.key not in lines}.values())
            for line in done(workers, todo, folders, device) if todo else ():
                write(line)
                lines[Cell.of(line).key] = line
    keys = {c.key for c in sweeps} | {rated(lines, *pair).key for pair in wanted}
    return {key: lines[key] for key in keys}


@contextlib.contextmanager
def pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Workers, which are killed when anything ends what is done with them: a cell that is not done is worth nothing."""
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=begin) as workers:
        try:
            yield workers
        except BaseException as e:
            for process in multiprocessing.active_children():  # and their futures are left to the pool: it fails to fail cancelled ones
                process.kill()
            if isinstance(e, BrokenProcessPool):
                raise Error("a process was ended from outside, most likely because memory ran out: try fewer --processes") from None
            raise


def begin() -> None:
    """A worker's start: one thread, Ctrl-C is the parent's to answer, and what kills the parent ends the worker."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system's, which outlives a process that is killed
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def work(cell: Cell, folders: dict[str, str], device: str) -> dict:
    """In a worker: the cell's line."""
    result = run(cell, folders, device)
    if not math.isfinite(result["loss"]):
        result["loss"] = None  # JSON has no infinity
    return {"cell": json.loads(cell.key), **result, "card": card(torch.device(device))}


def done(workers: ProcessPoolExecutor, todo: list[Cell], folders: dict[str, str], device: str) -> Iterable[dict]:
    """The lines of these cells as they are finished. The longest are begun first, so that no process waits at the end."""
    todo = sorted(todo, key=seconds, reverse=True)
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # workers begin here, and have it from their first moment
    futures = [workers.submit(work, cell, folders, device) for cell in todo]
    signal.signal(signal.SIGINT, handler)
    bar = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    with progress(total=sum(map(seconds, todo)), desc=f"0 of {len(todo)} cells", bar_format=bar) as shown:
        for i, future in enumerate(as_completed(futures), 1):
            line = future.result()
            shown.set_description(f"{i} of {len(todo)} cells", refresh=False)
            shown.update(seconds(Cell.of(line)))
            yield line


def seconds(cell: Cell) -> float:
    """About how long it takes on one CPU core: what blocks cost to call, and floating-point operations. For the bar's time left alone."""
    config, virtual = (EMBEDDED | PRESETS)[cell.base], cell.size.get("num_virtual_tokens", 0) if cell.method == "prompt" else 0
    tokens = cell.batch_size * ((80 if cell.task == "e2e" else 20) + virtual)
    return (cell.steps if cell.lr else 100) * (0.004 * config.n_layer + 6 * tokens * base_parameters(config) / 7e10)
