"""A train.py run in a process of its own, for faults to disturb."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from minipeft.checks import Error
from minipeft.training.run_folder import LEFTOVER


class Running:
    """train.py with these flags, started in the current folder; several processes use torchrun."""

    def __init__(self, out: Path, *flags: str, processes: int = 1, **options):
        if not Path("train.py").exists():
            raise Error("there is no train.py here: start this in the folder that has it")
        self.out, self.checkpoints = out, out / "training_state"
        start = []
        if processes > 1:
            start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *start, "train.py", *flags, "--out", str(out)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                        text=True, errors="replace", **options)

    def wait_for(self, pattern: str) -> None:
        """Wait until a file beside the checkpoints matches, or the run ends."""
        while not any(self.checkpoints.glob(pattern)) and self.process.poll() is None:
            time.sleep(0.002)

    def writes(self) -> Iterator[bool]:
        """Yield, until the run ends, True while a file is being written."""
        while self.process.poll() is None:
            files = list_files(self.checkpoints) + list_files(self.out)
            yield any(LEFTOVER.fullmatch(p.name) for p in files)
            time.sleep(0.0005)

    def wait(self) -> tuple[int, list[str]]:
        """Wait for the end. Returns the exit code and the printed lines."""
        printed, _ = self.process.communicate()
        return self.process.returncode, [line for line in printed.splitlines() if line.strip()]


def list_files(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def result_of(out: Path) -> tuple:
    """A run's result: the bytes of its tensors and configs, and its scores."""
    scores = json.loads((out / "scores.json").read_text())
    files = sorted(p for p in out.iterdir() if p.name.startswith(("adapter_", "model", "config")))
    return [(p.name, _content(p)) for p in files], scores["loss"], scores["exact_match"]


def _content(path: Path) -> tuple:
    """A file's bytes; safetensors orders the keys of its header at random, so its header is parsed."""
    data = path.read_bytes()
    if path.suffix != ".safetensors":
        return (data,)
    start = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:start]), data[start:]
