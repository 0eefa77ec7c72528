"""A run of train.py in a process of its own, to be disturbed."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from minipeft.config import Error
from minipeft.training.run_folder import LEFTOVER


class Running:
    """train.py with these flags, started in this folder; over several processes by torchrun."""

    def __init__(self, out: Path, *flags: str, processes: int = 1, **how):
        if not Path("train.py").exists():
            raise Error("there is no train.py here: start this in the folder that has it")
        self.out, self.states = out, out / "training_state"
        start = [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *start, "train.py", *flags, "--out", str(out)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", **how)

    def wait_for(self, pattern: str) -> None:
        """Until there is such a file among its states, or the run has ended."""
        while not any(self.states.glob(pattern)) and self.process.poll() is None:
            time.sleep(0.002)

    def writes(self) -> Iterator[bool]:
        """Whether a file is being written, again and again until the run ends."""
        while self.process.poll() is None:
            yield any(LEFTOVER.fullmatch(p.name) for p in listed(self.states) + listed(self.out))
            time.sleep(0.0005)

    def ended(self) -> tuple[int, list[str]]:
        """Exit code and the lines that were printed, once it has ended."""
        printed, _ = self.process.communicate()
        return self.process.returncode, [line for line in printed.splitlines() if line.strip()]


def listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def ending(out: Path) -> tuple:
    """What a run ends with: its files of tensors and settings byte for byte, and its scores."""
    scores = json.loads((out / "scores.json").read_text())
    files = sorted(p for p in out.iterdir() if p.name.startswith(("adapter_", "model", "config")))
    return [(p.name, content(p)) for p in files], scores["loss"], scores["exact_match"]


def content(path: Path) -> tuple:
    """A file's bytes; of safetensors, which write their header's keys in any order, the header and the bytes behind it."""
    data = path.read_bytes()
    if path.suffix != ".safetensors":
        return (data,)
    start = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:start]), data[start:]
