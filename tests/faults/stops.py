"""Runs of train.py stopped at random moments and resumed: what they end with must be, byte for byte, what an uninterrupted run has.

Half of the moments are drawn evenly over the run, from when its folder exists; the other half wait for a write and hit it.
"""

import json
import random
import shlex
import signal
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from tqdm import tqdm

from minipeft.bench.measure import card_line
from minipeft.config import Error
from minipeft.data.batches import draw
from minipeft.data.tasks import find_task
from minipeft.files.atomic import write_json, write_text
from minipeft.runtime.console import Parser, seed
from minipeft.runtime.profiling import card
from minipeft.training.run_folder import LEFTOVER, RunFolder
from tests.faults.running import Running, ending, listed

# An MLP that is large beside its prefix: writing a state takes long enough to be hit. A small file of data: little else is waited for.
RUN = shlex.split("--prefix-projection --encoder-hidden-size 1024 --steps 40 --batch-size 4 --keep-best")


def flags(folder: Path) -> tuple[str, ...]:
    """The run's flags, with examples in a file in this folder."""
    path = folder / "sort.jsonl"
    if not path.exists():
        rows = [dict(zip(("input", "target"), e, strict=False)) for e in draw(find_task("sort").example, "faults", 60)]
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return *RUN, "--data", str(path)


def kill(argv) -> None:
    stops(argv, signal.SIGKILL, 100)


def terminate(argv) -> None:
    stops(argv, signal.SIGTERM, 20)


def stops(argv, number: signal.Signals, times: int) -> None:
    p = Parser(f"{number.name} at random moments of a short run of train.py, which is then resumed. Run it where train.py is.")
    p.add_argument("--times", type=int, default=times, help="runs that are stopped")
    p.add_argument("--seed", type=seed, default=0, help="of the moments")
    p.add_argument("--workers", type=int, default=2, metavar="N", help="runs at the same time")
    p.add_argument("--out", metavar="FILE", help="write what was counted as JSON")
    args = p.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        result = count(Path(folder), number, args.times, args.seed, args.workers, uninterrupted(Path(folder)))
    result = {"command": command_of(number, args), "card": card(torch.device("cpu")), **result}
    if args.out:
        write_json(Path(args.out), result)
    print(table(result))
    if result["identical"] != args.times:
        raise Error(f"{args.times - result['identical']} of {args.times} stopped runs did not end like the uninterrupted one")


def command_of(number: signal.Signals, args) -> str:
    name = "kill" if number == signal.SIGKILL else "terminate"
    return f"python -m tests.faults {name} --times {args.times} --seed {args.seed} --workers {args.workers}"


def table(r: dict) -> str:
    lines = [card_line(r["card"]), f"{r['signal']} to: {r['run']}"]
    lines += [f"  {n:4} stopped {where}" for where, n in r["stopped"].items()]
    lines += [f"  {n:4} {what}" for what, n in r["failed"].items()]
    return "\n".join([*lines, f"{r['identical']} of {r['times']} ended bit for bit like the uninterrupted run"])


def uninterrupted(folder: Path) -> tuple[float, tuple]:
    """A run in `folder` that nobody stops: the seconds from when it has its folder, and what it ends with."""
    whole = Running(folder / "whole", *flags(folder))
    whole.wait_for("lock")
    begun = time.monotonic()
    whole.ended()
    return time.monotonic() - begun, ending(folder / "whole")


def count(folder: Path, number: signal.Signals, times: int, seed: int, workers: int, whole: tuple[float, tuple]) -> dict:
    """Stop so many runs in `folder`; returns where they were stopped, and how many ended as they should: like the uninterrupted one."""
    start, (seconds, wanted) = time.monotonic(), whole
    stopped, failed = Counter(), Counter()
    with ThreadPoolExecutor(workers) as pool, tqdm(total=times, unit="run", dynamic_ncols=True) as bar:
        for where, failure in pool.map(lambda i: stop_one(folder / str(i), number, f"{seed}/{i}", seconds, wanted), range(times)):
            stopped[where] += 1
            failed.update(failure)
            bar.update()
    return {
        "signal": number.name,
        "run": shlex.join(["python", "train.py", *RUN, "--data", "sort.jsonl"]),
        "times": times,
        "stopped": dict(sorted(stopped.items())),
        "failed": dict(failed),
        "identical": times - sum(failed.values()),
        "seconds": round(time.monotonic() - start),
    }


def stop_one(out: Path, number: signal.Signals, seed: str, seconds: float, wanted: tuple) -> tuple[str, list[str]]:
    """Start, stop and resume one run; returns where it was stopped, and what was wrong (nothing, most often)."""
    rng = random.Random(seed)
    while True:  # until one is stopped before it is through
        run = Running(out, *flags(out.parent), "--overwrite")
        run.wait_for("lock")
        if rng.random() < 0.5:
            time.sleep(rng.uniform(0, seconds))
        else:
            skip = rng.randrange(12)  # there are ten states, the adapter and the scores
            writing = False
            for now in run.writes():
                skip -= now and not writing
                writing = now
                if skip < 0:
                    break
        run.process.send_signal(number)
        code, printed = run.ended()
        if code != 0:
            break
    where = place(out)
    if code != (-signal.SIGKILL if number == signal.SIGKILL else 128 + number):
        return where, [f"left with exit code {code}"]
    if RunFolder(out).is_finished:
        return where, [] if ending(out) == wanted else ["finished differently"]
    again = shlex.join(["python", "train.py", *flags(out.parent), "--out", str(out), "--resume"])
    if number != signal.SIGKILL and f"go on with: {again}" not in printed[-1]:
        return where, ["did not tell the command to resume by"]
    code, printed = Running(out, *flags(out.parent), "--resume").ended()
    if code:
        return where, [f"not resumed: {printed[-1]}"]
    return where, [] if ending(out) == wanted else ["resumed, and ended differently"]


def place(out: Path) -> str:
    """Where a run was stopped, by what it left."""
    if any(LEFTOVER.fullmatch(p.name) for p in listed(out / "training_state")):
        return "while a state was written"
    if any(LEFTOVER.fullmatch(p.name) for p in listed(out)):
        return "while its result was written"
    if not any(p.suffix == ".pt" for p in listed(out / "training_state")):
        return "after its last state was removed" if (out / "scores.json").exists() else "before its first state"
    return "with its adapter saved" if (out / "adapter_config.json").exists() else "between two states"
