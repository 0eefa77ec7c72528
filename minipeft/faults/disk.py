"""A disk that fills up in the middle of a run of train.py: one line, the states before it untouched, and the run goes on from them.

A limit on the size of a file stands in for the disk: the write of a state fails in its middle as it does on a full one. With --on, the
disk is a real one: a folder on a small file system, which is filled up to less room than a state takes.
"""

import shutil
import signal
import tempfile
from pathlib import Path

import torch

from ..bench.measure import card, card_line
from ..checkpoint import write_json
from ..config import Error
from ..console import Parser
from .running import Running, ending, listed
from .stops import flags


def main(argv) -> None:
    p = Parser("Let the disk fill up in the middle of a short run of train.py, and resume it. Run it where train.py is.")
    p.add_argument("--on", metavar="FOLDER", help="a folder on a small file system that may be filled")
    p.add_argument("--out", metavar="FILE", help="write what was seen as JSON")
    args = p.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.on) as folder, tempfile.TemporaryDirectory() as elsewhere:
        whole, out = Path(elsewhere) / "whole", Path(folder) / "run"
        run = flags(Path(elsewhere))
        uninterrupted, stopped = Running(whole, *run), Running(out, *run)
        stopped.wait_for("*.pt")
        stopped.process.send_signal(signal.SIGTERM)
        stopped.ended()
        uninterrupted.ended()
        before = states(out)
        if not before:
            raise Error(f"the run has no state to lose: {args.on or folder} must have room for three of some 20 MB")
        if args.on:
            fill(Path(folder) / "ballast", min(map(len, before.values())) // 2)
        code, printed = Running(out, *run, "--resume", **({} if args.on else {"preexec_fn": small_files})).ended()
        kept = states(out) == before
        (Path(folder) / "ballast").unlink(missing_ok=True)
        again, last = Running(out, *run, "--resume").ended()
        if again:
            raise Error(f"with room again the run did not go on: {last[-1]}")
        result = {
            "command": f"python -m minipeft.faults disk{' --on FOLDER' if args.on else ''}",
            "card": card(torch.device("cpu")),
            "exit_code": code,
            "line": printed[-1].replace(str(out), "OUT"),
            "states_untouched": kept,
            "resumed_identical": ending(out) == ending(whole),
        }
    if args.out:
        write_json(Path(args.out), result)
    print(card_line(result["card"]))
    print(
        f"exit code {code}: {result['line']}\nstates untouched: {kept}; resumed once there is room: identical {result['resumed_identical']}"
    )
    if code != 2 or "cannot be written" not in result["line"] or not kept or not result["resumed_identical"]:
        raise Error("the run did not end, or go on, as it should")


def states(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in listed(out / "training_state") if p.name != "lock"}


def small_files() -> None:
    """In the child: no file may become larger than a megabyte."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))


def fill(ballast: Path, leave: int) -> None:
    """Write zeros until the file system has no more than so many bytes left."""
    with open(ballast, "wb") as f:
        while (left := shutil.disk_usage(ballast.parent).free) > leave:
            f.write(bytes(min(left - leave, 10**6)))
            f.flush()
