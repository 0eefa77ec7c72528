"""Runs cells that have no line yet, in several processes, and appends their lines to the file."""

import contextlib
import json
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import torch
from filelock import FileLock, Timeout  # torch itself requires it
from tqdm import tqdm

from ...accounting import base_parameters
from ...accounting.shapes import EMBEDDED, PRESETS
from ...checks import Error
from ...methods import METHODS
from ...runtime.console import progress
from ...runtime.profiling import card
from ..measure import end_with_parent
from .cell import run
from .lines import Cell, Lines, read
from .studies import PROMPT_RUNG, Pairs, sweep, swept_at

TEXT_LENGTHS = {"e2e": 80, "topics": 18, "amounts": 34}  # of an example, roughly; others have 20
BEYOND = 4  # learning rates that a sweep adds at most at one side


@contextlib.contextmanager
def appending(path: Path) -> Iterator[tuple[Lines, Callable[[dict], None]]]:
    """The lines of a file, and write(line), which adds one and flushes it to the disk.

    Cuts off an incomplete last line. Raises Error if another grid writes to the file, if it cannot
    be written, and as read().
    """
    lock = FileLock(path.parent / f"{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise Error(f"{path} is in use: another grid writes to it") from None
    except OSError as e:
        raise Error(f"{path} cannot be written to: {e.strerror}") from None
    try:
        lines = read(path)
        with path.open("ab+") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)

            def write(line: dict) -> None:
                file.write(json.dumps(line).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
                lines[Cell.of(line).key] = line

            yield lines, write
    finally:
        with contextlib.suppress(OSError):  # Windows does not delete open files
            os.unlink(lock.lock_file)
        lock.release()


def sweep_cells(lines: Lines, like: Cell) -> list[Cell]:
    """A cell's sweep as far as it has been run, lowest learning rate first: the first runs, and
    those beyond its edges."""
    cells = sorted(sweep(like), key=lambda c: c.lr)
    if not cells or any(c.key not in lines for c in cells):
        return [c for c in cells if c.key in lines]
    while (lower := swept_at(cells[0], rate_beyond(cells, 0))).key in lines:
        cells.insert(0, lower)
    while (higher := swept_at(cells[0], rate_beyond(cells, -1))).key in lines:
        cells.append(higher)
    return cells


def rate_beyond(cells: list[Cell], edge: int) -> float:
    """Learning rate below the lowest (edge 0) or above the highest (edge -1): 1, 3, 10, …"""
    return float(f"{cells[1].lr / 10 if edge == 0 else cells[-2].lr * 10:.0e}")


def next_of_sweep(lines: Lines, like: Cell) -> list[Cell]:
    """The runs that a cell's sweep needs next: the first ones, then one beyond an edge with the
    lowest loss, at most BEYOND on a side; [] when it is finished."""
    first = sweep(like)
    if missing := [c for c in first if c.key not in lines]:
        return missing
    best, rates, cells = lowest(sweep_losses(lines, like)), [c.lr for c in first], sweep_cells(lines, like)
    added = {0: sum(c.lr < min(rates) for c in cells), -1: sum(c.lr > max(rates) for c in cells)}
    return [swept_at(cells[edge], rate_beyond(cells, edge)) for edge, n in added.items()
            if cells and best == cells[edge].lr and n < BEYOND]


def lowest(losses: dict[float, "float | None"]) -> float | None:
    """The learning rate with the lowest loss; None where every training diverged."""
    finite = {lr: loss for lr, loss in losses.items() if loss is not None}
    return min(finite, key=finite.get, default=None)


def chosen(lines: Lines, like: Cell) -> float | None:
    """The learning rate with the lowest validation loss in a cell's sweep; None if nothing trains.

    Raises Error when the sweep has not been run, or diverged throughout.
    """
    losses = sweep_losses(lines, like)
    if len(losses) < len(sweep(like)):
        raise Error(f"the sweep of {like.method} on {like.task} is not run")
    if losses and lowest(losses) is None:
        raise Error(f"no learning rate of {[*losses]} trains {like.method} on {like.task}")
    return lowest(losses)


def sweep_losses(lines: Lines, like: Cell) -> dict[float, "float | None"]:
    """{learning rate: validation loss} of a cell's sweep; None where training diverged."""
    return {c.lr: lines[c.key]["loss"] for c in sweep_cells(lines, like)}


def with_learning_rate(lines: Lines, cell: Cell, like: Cell | None) -> Cell:
    """The cell with the learning rate chosen for `like` (None: it has one), as its soft prompt."""
    if like is None:
        return cell
    if cell.start == PROMPT_RUNG:
        cell = replace(cell, start={**PROMPT_RUNG, "lr": chosen(lines, prompt_below(like))})
    return replace(cell, lr=chosen(lines, like))


def fill(path: Path, wanted: Pairs, processes: int, folders: dict[str, str], device: str) -> Lines:
    """Run the sweeps of these cells, then the cells, where a line is missing; returns all lines."""
    likes = sweeps_of(wanted)
    with appending(path) as (lines, write), pool(processes) as workers:

        def run_missing(cells: Iterable[Cell]) -> bool:
            missing = [c for c in {c.key: c for c in cells}.values() if c.key not in lines]
            for line in run_cells(workers, missing, folders, device) if missing else ():
                write(line)
            return bool(missing)

        while run_missing(c for like in likes for c in next_of_sweep(lines, like)):
            pass
        cells = [with_learning_rate(lines, *pair) for pair in wanted]
        run_missing(cells)
    return {c.key: lines[c.key] for c in [c for like in likes for c in sweep_cells(lines, like)] + cells}


def sweeps_of(wanted: Pairs) -> list[Cell]:
    """The cells for whose settings learning rates are swept, each once, whatever its seed."""
    likes = [of for cell, like in wanted if like is not None
             for of in ([prompt_below(like)] if cell.start == PROMPT_RUNG else []) + [like]]
    return list({like.key: like for like in likes}.values())


def prompt_below(like: Cell) -> Cell:
    """The soft prompt that a prefix starts from, trained at a learning rate of its own."""
    return replace(like, method=PROMPT_RUNG["rung"])


def planned(lines: Lines, wanted: Pairs) -> list[Cell]:
    """The cells that fill() would run, but for those of a sweep beyond its edges."""
    sweeps = {c.key: c for like in sweeps_of(wanted) for c in sweep(like)}
    missing = [c for c in sweeps.values() if c.key not in lines]
    for pair in wanted:
        try:
            cell = with_learning_rate(lines, *pair)
        except Error:  # its sweep has not been run
            missing.append(replace(pair[0], lr=1.0))
        else:
            missing += [cell] if cell.key not in lines else []
    return list({c.key: c for c in missing}.values())


@contextlib.contextmanager
def pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes, killed when anything ends the block early: half a cell is worth nothing."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, initializer=start_worker) as workers:
        try:
            yield workers
        except BaseException as e:
            for process in multiprocessing.active_children():
                process.kill()  # futures are left alone: the pool fails at cancelled ones
            if isinstance(e, BrokenProcessPool):
                raise Error("a process was ended from outside, most likely because memory ran out: "
                            "try fewer --processes") from None
            raise


def start_worker() -> None:
    """One thread; Ctrl-C is left to the parent; the worker ends when the parent is killed."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tqdm.set_lock(threading.RLock())  # tqdm's own is a system semaphore, which a kill leaks
    end_with_parent()


def run_cell(cell: Cell, folders: dict[str, str], device: str) -> dict:
    """Run a cell, in a worker; returns its line, with None for a loss that JSON lacks."""
    result = run(cell, folders, device)
    if not math.isfinite(result["loss"]):
        result["loss"] = None
    return {"cell": json.loads(cell.key), **result, "card": card(torch.device(device))}


def run_cells(workers: ProcessPoolExecutor, cells: list[Cell], folders: dict[str, str],
         device: str) -> Iterable[dict]:
    """The lines of these cells as they finish. Long ones start first, and none is last alone."""
    cells = sorted(cells, key=seconds, reverse=True)
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # workers inherit it as they start here
    futures = [workers.submit(run_cell, cell, folders, device) for cell in cells]
    signal.signal(signal.SIGINT, handler)
    style = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    total = sum(map(seconds, cells))
    with progress(total=total, desc=f"0 of {len(cells)} cells", bar_format=style) as bar:
        for i, future in enumerate(as_completed(futures), 1):
            line = future.result()
            bar.set_description(f"{i} of {len(cells)} cells", refresh=False)
            bar.update(seconds(Cell.of(line)))
            yield line


def seconds(cell: Cell) -> float:
    """Rough time of a cell on one CPU core, for the order and the progress bar only."""
    config, virtual = (EMBEDDED | PRESETS)[cell.base], cell.size.get("num_virtual_tokens", 0)
    tokens = TEXT_LENGTHS.get(cell.task, 20) + virtual * (cell.method == PROMPT_RUNG["rung"])
    passes = 4 if METHODS[cell.method].freezes_base else 6  # FLOPs of a parameter and token
    flops = passes * cell.batch_size * tokens * base_parameters(config)
    return (cell.steps if cell.lr else 100) * (0.004 * config.n_layer + flops / 7e10)
