"""A disk that fills up during a run of train.py: one line, intact checkpoints, and it can be resumed.

A limit on the size of a file stands in for the disk: writing a checkpoint fails halfway, as it does
on a full one. With --on, the disk is real: a folder on a small file system is filled until a
checkpoint no longer fits.
"""

import shutil
import signal
import tempfile
from pathlib import Path

import torch

from minipeft.bench.measure import card_line
from minipeft.checks import Error
from minipeft.files.atomic import write_json
from minipeft.runtime.console import Parser
from minipeft.runtime.profiling import card
from tests.faults.running import Running, list_files, result_of
from tests.faults.stops import flags, uninterrupted


def main(argv) -> None:
    p = Parser("Fill the disk during a short run of train.py, and resume it. Run it where train.py is.")
    p.add_argument("--on", metavar="FOLDER", help="a folder on a small file system that may be filled")
    p.add_argument("--out", metavar="FILE", help="write the result as JSON")
    args = p.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.on) as folder, tempfile.TemporaryDirectory() as elsewhere:
        whole = uninterrupted(Path(elsewhere))
        result = fill_up(Path(folder) / "run", flags(Path(elsewhere)), whole, args.on is not None)
    command = f"python -m tests.faults disk{' --on FOLDER' if args.on else ''}"
    result = {"command": command, "card": card(torch.device("cpu")), **result}
    if args.out:
        write_json(Path(args.out), result)
    print(card_line(result["card"]), text(result), sep="\n")
    if not as_promised(result):
        raise Error("the run did not end, or was not resumed, as it should")


def fill_up(out: Path, run: tuple[str, ...], whole: tuple[float, tuple], real: bool) -> dict:
    """Stop a run, resume it without room for the next checkpoint, then with room.

    whole: as `uninterrupted` returns it.
    """
    stopped = Running(out, *run)
    stopped.wait_for("*.pt")
    stopped.process.send_signal(signal.SIGTERM)
    stopped.wait()
    if not (before := checkpoints(out)):
        raise Error(f"the run has no checkpoint: {out.parent} must have room for three of some 20 MB")
    ballast = out.with_name("ballast")
    if real:
        fill(ballast, min(map(len, before.values())) // 2)
    options = {} if real else {"preexec_fn": limit_file_size}
    code, printed = Running(out, *run, "--resume", **options).wait()
    untouched = checkpoints(out) == before
    ballast.unlink(missing_ok=True)
    second_code, last = Running(out, *run, "--resume").wait()
    if second_code:
        raise Error(f"the run was not resumed once there was room: {last[-1]}")
    line = printed[-1].replace(str(out), "OUT")
    return {"exit_code": code, "line": line, "states_untouched": untouched,
            "resumed_identical": result_of(out) == whole[1]}


def text(r: dict) -> str:
    return (f"exit code {r['exit_code']}: {r['line']}\ncheckpoints untouched: {r['states_untouched']}; "
            f"resumed once there is room: identical {r['resumed_identical']}")


def as_promised(r: dict) -> bool:
    one_line = r["exit_code"] == 2 and "cannot be written" in r["line"]
    return one_line and r["states_untouched"] and r["resumed_identical"]


def checkpoints(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in list_files(out / "training_state") if p.name != "lock"}


def limit_file_size() -> None:
    """In the child process: no file may exceed a megabyte."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))


def fill(ballast: Path, leave: int) -> None:
    """Write zeros until the file system has at most `leave` bytes left."""
    with open(ballast, "wb") as f:
        while (left := shutil.disk_usage(ballast.parent).free) > leave:
            f.write(bytes(min(left - leave, 10**6)))
            f.flush()
