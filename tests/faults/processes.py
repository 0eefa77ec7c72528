"""Distributed runs of train.py that lose a process: the job ends soon, says so, and can be resumed.

For prefix (DDP) and full (FSDP2), rank 0 and rank 1 are killed in turn. Resumed over two processes,
a job must end byte for byte like the uninterrupted one; resumed by one process, it must reach the
same loss up to rounding. Linux only.
"""

import json
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import torch
from tqdm import tqdm

from minipeft.bench.measure import card_line
from minipeft.checks import Error
from minipeft.files.atomic import write_json
from minipeft.runtime.console import Parser
from minipeft.runtime.profiling import card
from tests.faults.running import Running, result_of

RUN = ("--task", "sort", "--steps", "200", "--batch-size", "5")
SOON = 30  # seconds in which a job must have ended
ROUNDING = 1e-4  # of a loss, after 200 steps


def main(argv) -> None:
    p = Parser("Kill one of two processes of a distributed run of train.py, and resume it. "
               "Run it where train.py is.")
    p.add_argument("--out", metavar="FILE", help="write the result as JSON")
    args = p.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as folder, tqdm(total=4, unit="run", dynamic_ncols=True) as bar:
        for method in ("prefix", "full"):
            whole = Path(folder) / method
            traffic = complete(whole, method, 2)
            for victim in (0, 1):
                lost = lose(Path(folder) / str(len(rows)), whole, method, victim)
                rows.append({"method": method, "victim": victim, "traffic": traffic, **lost})
                bar.update()
    result = {"command": "python -m tests.faults processes", "card": card(torch.device("cpu")), "rows": rows}
    if args.out:
        write_json(Path(args.out), result)
    print(card_line(result["card"]))
    for r in rows:
        print("{method:<7} process {victim} killed: ended after {seconds:.1f} s, {line!r}".format(**r))
        print("        {traffic}".format(**r))
        print("        resumed by 2: {by_two}; by 1: loss {by_one:.6f} for {loss:.6f}".format(**r))
    if bad := [r for r in rows if not as_promised(r)]:
        raise Error(f"{len(bad)} of {len(rows)} jobs did not end, or were not resumed, as they should")


def as_promised(r: dict) -> bool:
    ended = r["seconds"] < SOON and "go on with: torchrun" in r["line"]
    return ended and r["by_two"] == "identical" and abs(r["by_one"] - r["loss"]) < ROUNDING


def complete(out: Path, method: str, processes: int, *flags: str) -> str:
    """Run train.py to its end. Returns its line about the bytes a step sends."""
    code, printed = Running(out, "--method", method, *RUN, *flags, processes=processes).wait()
    if code:
        raise Error(f"{method} over {processes} processes failed: {printed[-1]}")
    return next((line for line in printed if "bytes a step" in line), "")


def lose(out: Path, whole: Path, method: str, victim: int) -> dict:
    """Kill rank `victim` of a run after its first checkpoint; resume it by two processes and by one."""
    job = Running(out, "--method", method, *RUN, processes=2)
    job.wait_for("*.pt")
    os.kill(worker(job.process.pid, victim), signal.SIGKILL)
    killed = time.monotonic()
    _, printed = job.wait()
    seconds = time.monotonic() - killed
    alone = out.with_name(f"{out.name}-alone")
    shutil.copytree(out, alone)
    complete(out, method, 2, "--resume")
    complete(alone, method, 1, "--resume")
    loss, by_one = (json.loads((folder / "scores.json").read_text())["loss"][1]
                    for folder in (whole, alone))
    by_two = "identical" if result_of(out) == result_of(whole) else "different"
    lines = (line for line in printed if line.startswith(("train.py:", "train.py, process")))
    line = next(lines, "").replace(str(out), "OUT")
    return {"seconds": round(seconds, 2), "line": line, "by_two": by_two, "by_one": by_one, "loss": loss}


def worker(job: int, rank: int) -> int:
    """The process id of torchrun's worker with this rank."""
    for child in Path(f"/proc/{job}/task/{job}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise Error(f"torchrun has no worker {rank}")
