"""A disk that fills up in the middle of a run of train.py: one line, the states before it untouched, and the run goes on from them.

A limit on the size of a file stands in for the disk: the write of a state fails in its middle as it does on a full one. With --on, the
disk is a real one: a folder on a small file system, which is filled up to less room than a state takes.
"""

import shutil
import signal
import tempfile
from pathlib import Path

import torch

from minipeft.bench.measure import card_line
from minipeft.config import Error
from minipeft.files.atomic import write_json
from minipeft.runtime.console import Parser
from minipeft.runtime.profiling import card
from tests.faults.running import Running, ending, listed
from tests.faults.stops import flags, uninterrupted


def main(argv) -> None:
    p = Parser("Let the disk fill up in the middle of a short run of train.py, and resume it. Run it where train.py is.")
    p.add_argument("--on", metavar="FOLDER", help="a folder on a small file system that may be filled")
    p.add_argument("--out", metavar="FILE", help="write what was seen as JSON")
    args = p.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.on) as folder, tempfile.TemporaryDirectory() as elsewhere:
        whole = uninterrupted(Path(elsewhere))
        result = fill_up(Path(folder) / "run", flags(Path(elsewhere)), whole, args.on is not None)
    result = {"command": f"python -m tests.faults disk{' --on FOLDER' if args.on else ''}", "card": card(torch.device("cpu")), **result}
    if args.out:
        write_json(Path(args.out), result)
    print(card_line(result["card"]), told(result), sep="\n")
    if not as_promised(result):
        raise Error("the run did not end, or go on, as it should")


def fill_up(out: Path, run: tuple[str, ...], whole: tuple[float, tuple], real: bool) -> dict:
    """Stop a run once it has states, go on where there is no room for the next, and again where there is; returns what was seen."""
    stopped = Running(out, *run)
    stopped.wait_for("*.pt")
    stopped.process.send_signal(signal.SIGTERM)
    stopped.ended()
    if not (before := states(out)):
        raise Error(f"the run has no state to lose: {out.parent} must have room for three of some 20 MB")
    ballast = out.with_name("ballast")
    if real:
        fill(ballast, min(map(len, before.values())) // 2)
    code, printed = Running(out, *run, "--resume", **({} if real else {"preexec_fn": small_files})).ended()
    kept = states(out) == before
    ballast.unlink(missing_ok=True)
    again, last = Running(out, *run, "--resume").ended()
    if again:
        raise Error(f"with room again the run did not go on: {last[-1]}")
    line = printed[-1].replace(str(out), "OUT")
    return {"exit_code": code, "line": line, "states_untouched": kept, "resumed_identical": ending(out) == whole[1]}


def told(r: dict) -> str:
    return (
        f"exit code {r['exit_code']}: {r['line']}\nstates untouched: {r['states_untouched']}; "
        f"resumed once there is room: identical {r['resumed_identical']}"
    )


def as_promised(r: dict) -> bool:
    return r["exit_code"] == 2 and "cannot be written" in r["line"] and r["states_untouched"] and r["resumed_identical"]


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
