"""Quick child processes for tests: forked from a server process that has already imported torch."""

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
    """The forkserver context of multiprocessing. Skips the test on systems without fork."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system cannot fork processes")
    start = multiprocessing.get_context("forkserver")
    start.set_forkserver_preload(IMPORTED)
    return start


class Script:
    """`python train.py argv`, used like subprocess.Popen; its output goes to a file."""

    one_at_a_time = threading.Lock()  # multiprocessing polls all children whenever it starts one

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
