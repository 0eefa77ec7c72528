"""bench.py quality: a grid that is stopped or killed keeps its lines and leaves no process."""

import json
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import replace

import pytest
from forked import context
from tiny_cell import TINY, without_times

from minipeft import Error
from minipeft.bench import measure
from minipeft.bench.quality import again, grid
from minipeft.bench.quality.lines import Cell
from minipeft.runtime import console

ENDLESS = [replace(TINY, steps=10**8, seed=seed) for seed in range(8)]  # more than the workers take at once


@pytest.fixture
def forked(monkeypatch):
    """Workers that start in a moment, and begin cells in the order they are given."""
    start = context()
    monkeypatch.setattr(grid.multiprocessing, "get_context", lambda name: start)
    monkeypatch.setattr(grid, "seconds", lambda c: 1)  # equally long, so they start in their order
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs with it ignored
    yield
    signal.signal(signal.SIGINT, before)


def ended(path, wanted: list[Cell], processes: int, when, do) -> int:
    """The exit code of a grid to which something is done once it is so far."""
    over, late = threading.Event(), []

    def disturb():
        deadline = time.monotonic() + 600
        while not when() and time.monotonic() < deadline:
            time.sleep(0.02)
        do()
        if not over.wait(60):
            late.extend(multiprocessing.active_children())
            for process in late:
                process.kill()

    thread = threading.Thread(target=disturb)
    thread.start()
    code = console.run("bench.py", lambda: grid.fill(path, [(c, None) for c in wanted], processes, {}, "cpu"))
    over.set()
    thread.join()
    assert not late and not multiprocessing.active_children()
    return code


def lines_are(path, n: int):
    return lambda: path.exists() and path.read_bytes().count(b"\n") == n


def messages(err: str) -> list[str]:
    """The lines of stderr without the progress bar."""
    return [line for line in err.splitlines() if line.strip() and "%|" not in line]


@pytest.mark.slow
def test_a_grid_that_is_stopped_keeps_its_lines_which_are_those_of_this_process(tmp_path, forked, capfd):
    path, two = tmp_path / "lines.jsonl", [TINY, replace(TINY, method="prefix")]
    for number, code, line in ((signal.SIGTERM, 143, "stopped by SIGTERM"), (signal.SIGINT, 130, "interrupted")):
        path.unlink(missing_ok=True)
        stop = lambda number=number: os.kill(os.getpid(), number)  # noqa: E731
        assert ended(path, [*two, *ENDLESS], 2, lines_are(path, 2), stop) == code
        assert messages(capfd.readouterr().err) == [f"bench.py: {line}"]
        written = grid.read(path)
        assert written.keys() == {c.key for c in two}
    for c in two:
        assert without_times(written[c.key]) == without_times(grid.run_cell(c, {}, "cpu"))

    for number, c in enumerate(map(Cell.of, written.values()), 1):
        result = again.run(path, number, {}, "cpu")
        table = again.table(result)
        assert result["same"] and f"{c.method} on parity" in table and table.endswith(": the same")
    changed = [replace_score(line) for line in path.read_text().splitlines()]
    path.write_text("\n".join(["", *changed, ""]))  # numbers are those of the file's lines
    result = again.run(path, 2, {}, "cpu")
    assert (result["same"], result["differs"]) == (False, ["score"])
    assert "not the same (score; then on" in again.table(result)
    for number in (0, 1, 4, -1):
        with pytest.raises(Error, match=f"has 2 lines: there is no line {number}"):
            again.run(path, number, {}, "cpu")
    with pytest.raises(Error, match="there is no file"):
        again.run(tmp_path / "nowhere.jsonl", 1, {}, "cpu")


def replace_score(line: str) -> str:
    return json.dumps(json.loads(line) | {"score": 0.123})


def sleep() -> None:
    lonely.end.send("begun")
    time.sleep(600)


def lonely(of: str, end) -> None:
    """A grid of one long cell, or a measurement, in a process of its own. The worker, forked, holds the end of the
    pipe as well."""
    lonely.end, start = end, multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda name: start
    if of == "measurement":
        measure.in_new_process(sleep)
    with grid.pool(1) as workers:
        workers.submit(sleep)
        end.recv()


@pytest.mark.parametrize("of", ["grid", "measurement"])
def test_when_a_grid_or_a_measurement_is_killed_its_workers_end_too(of):
    ours, theirs = context().Pipe()
    process = context().Process(target=lonely, args=(of, theirs))
    process.start()
    theirs.close()
    assert ours.recv() == "begun"
    process.kill()
    process.join()
    with pytest.raises(EOFError):  # nobody holds the other end
        assert ours.poll(30)
        ours.recv()


def test_a_worker_that_is_killed_is_one_line(tmp_path, forked, capfd):
    """And it ends the grid at once: the other workers start no further cells."""
    path = tmp_path / "lines.jsonl"
    is_begun = lines_are(path, 1)

    def kill_one():
        multiprocessing.active_children()[0].kill()

    assert ended(path, [replace(TINY, steps=1), *ENDLESS], 2, is_begun, kill_one) == 2
    (line,) = messages(capfd.readouterr().err)
    assert line.startswith("bench.py: a process was ended from outside, most likely because memory ran out: ")
