"""Waiting threads: spinning or asleep, chosen before torch loads GNU OpenMP (Linux).

At the end of every parallel region a thread waits for the others. GNU OpenMP lets it spin 300,000
times (its manual, GOMP_SPINCOUNT), which is fastest while every thread has a core to itself. Where
other processes run too, it spins on the core that the thread it waits for needs, so with
OMP_WAIT_POLICY=passive it sleeps at once. Neither changes a result by a bit.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

LOOKS, SECONDS_APART = 5, 0.01
BY_THE_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
WAYS = {"spin": {"GOMP_SPINCOUNT": "300000"}, "sleep": {"OMP_WAIT_POLICY": "passive"}}


def sleep_where_others_run() -> None:
    """Let waiting threads, here and in processes started, sleep if other processes run now."""
    if "torch" in sys.modules or any(name in os.environ for name in BY_THE_USER):
        return
    if os.environ.get("OMP_NUM_THREADS") != "1" and others_run(Path("/proc/loadavg")):
        os.environ |= WAYS["sleep"]


def others_run(loadavg: Path) -> bool:
    """True if others run in at least LOOKS - 1 of LOOKS samples; False where unknown."""
    alone = 0
    for _ in range(LOOKS):
        time.sleep(SECONDS_APART)
        try:
            running = int(loadavg.read_text(encoding="utf-8").split()[3].partition("/")[0])
        except (OSError, ValueError, IndexError):
            return False
        alone += running <= 1  # this process runs while it looks
        if alone > 1:
            return False
    return True


@contextlib.contextmanager
def new_processes_wait(way: str) -> Iterator[None]:
    """Within it, waiting threads of started processes "sleep", or "spin" as long as by default."""
    before = {name: os.environ.pop(name, None) for name in BY_THE_USER}
    os.environ |= WAYS[way]
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
