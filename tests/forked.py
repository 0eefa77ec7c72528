"""Processes that start in a moment: forked from one that has imported torch. All else about them is as in any other process."""

import multiprocessing
import os
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from minipeft.runtime import console

IMPORTED = ["train", "minipeft.bench.quality.grid", "torch._dynamo"]
if torch.distributed.is_available():
    IMPORTED += ["torch.distributed.fsdp", "torch.distributed.tensor"]


def context():
    """Of multiprocessing; one process is forked from for all tests. Skips the test where a system cannot."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system cannot fork processes")
    start = multiprocessing.get_context("forkserver")
    start.set_forkserver_preload(IMPORTED)
    return start


class Script:
    """python train.py argv, as subprocess.Popen gives it; what it prints goes through a file."""

    one_at_a_time = threading.Lock()  # multiprocessing looks at all children when it starts one

    def __init__(self, argv: list[str], printed: Path, preexec_fn=None):
        self.printed = printed
        self.process = context().Process(target=_train, args=(argv, printed, preexec_fn), daemon=True)
        with self.one_at_a_time:
            self.process.start()

    def poll(self) -> int | None:
        with self.one_at_a_time:
            return self.process.exitcode

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def communicate(self) -> tuple[str, None]:
        while self.poll() is None:
            time.sleep(0.005)
        return self.printed.read_text(errors="replace"), None


def _train(argv: list[str], printed: Path, preexec_fn) -> None:
    import train

    torch.set_num_threads(1)
    with open(printed, "wb") as f:
        for stream in (1, 2):
            os.dup2(f.fileno(), stream)
    if preexec_fn is not None:
        preexec_fn()
    sys.exit(console.run("train.py", lambda: train.main(argv), train.LOWER))
