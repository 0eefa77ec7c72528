"""Runs of train.py stopped at random moments and resumed: all must end like the uninterrupted run.

The results are compared byte for byte. Half of the moments are uniform over the run, once its folder
exists; the other half wait for a write and hit it.
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
from minipeft.checks import Error
from minipeft.data.batches import draw
from minipeft.data.tasks import find_task
from minipeft.files.atomic import write_json, write_text
from minipeft.parts.quantised_base import BASE_DTYPES
from minipeft.runtime.console import Parser, seed
from minipeft.runtime.profiling import card
from minipeft.training.run_folder import LEFTOVER, RunFolder
from tests.faults.running import Running, list_files, result_of

# A large MLP beside the prefix makes checkpoints slow enough to hit; a small data file keeps the
# rest of the run short.
RUN = shlex.split("--prefix-projection --encoder-hidden-size 1024 --steps 40 --batch-size 4 --keep-best")


def flags(folder: Path, base_dtype: str | None = None) -> tuple[str, ...]:
    """The run's flags, with examples in a file in this folder."""
    path = folder / "sort.jsonl"
    if not path.exists():
        examples = draw(find_task("sort").example, "faults", 60)
        rows = [dict(zip(("input", "target"), e, strict=False)) for e in examples]
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return *RUN, *of_base(base_dtype), "--data", str(path)


def of_base(base_dtype: str | None) -> tuple[str, ...]:
    return () if base_dtype is None else ("--base-dtype", base_dtype)


def kill(argv) -> None:
    stop_runs(argv, signal.SIGKILL, 100)


def terminate(argv) -> None:
    stop_runs(argv, signal.SIGTERM, 20)


def stop_runs(argv, number: signal.Signals, times: int) -> None:
    p = Parser(f"Send {number.name} to a short run of train.py at random moments, then resume it. "
               "Run it where train.py is.")
    p.add_argument("--times", type=int, default=times, help="runs to stop")
    p.add_argument("--seed", type=seed, default=0, help="of the moments")
    p.add_argument("--workers", type=int, default=2, metavar="N", help="runs at the same time")
    p.add_argument("--base-dtype", choices=BASE_DTYPES, metavar="TYPE",
                   help=f"of the run's base: {', '.join(BASE_DTYPES)} (default: its own)")
    p.add_argument("--out", metavar="FILE", help="write the counts as JSON")
    args = p.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        whole = uninterrupted(Path(folder), args.base_dtype)
        result = count(Path(folder), number, args.times, args.seed, args.workers, whole, args.base_dtype)
    name = "kill" if number == signal.SIGKILL else "terminate"
    command = shlex.join(["python", "-m", "tests.faults", name, "--times", str(args.times), "--seed", str(args.seed),
                          "--workers", str(args.workers), *of_base(args.base_dtype)])
    result = {"command": command, "card": card(torch.device("cpu")), **result}
    if args.out:
        write_json(Path(args.out), result)
    print(table(result))
    if different := args.times - result["identical"]:
        raise Error(f"{different} of {args.times} stopped runs did not end like the uninterrupted one")


def table(r: dict) -> str:
    lines = [card_line(r["card"]), f"{r['signal']} to: {r['run']}"]
    lines += [f"  {n:4} stopped {where}" for where, n in r["stopped"].items()]
    lines += [f"  {n:4} {failure}" for failure, n in r["failed"].items()]
    return "\n".join([*lines, f"{r['identical']} of {r['times']} ended bit for bit like the uninterrupted run"])


def uninterrupted(folder: Path, base_dtype: str | None = None) -> tuple[float, tuple]:
    """Run to the end in `folder`. Returns the seconds since the run had its folder, and its result."""
    whole = Running(folder / "whole", *flags(folder, base_dtype))
    whole.wait_for("lock")
    start = time.monotonic()
    whole.wait()
    return time.monotonic() - start, result_of(folder / "whole")


def count(folder: Path, number: signal.Signals, times: int, seed: int, workers: int,
          whole: tuple[float, tuple], base_dtype: str | None = None) -> dict:
    """Stop `times` runs in `folder`; count where they were stopped and how many then end like `whole`."""
    start, (seconds, wanted) = time.monotonic(), whole
    stopped, failed = Counter(), Counter()

    def stop(i: int) -> tuple[str, list[str]]:
        return stop_one(folder / str(i), number, f"{seed}/{i}", seconds, wanted, base_dtype)

    with ThreadPoolExecutor(workers) as pool, tqdm(total=times, unit="run", dynamic_ncols=True) as bar:
        for where, failures in pool.map(stop, range(times)):
            stopped[where] += 1
            failed.update(failures)
            bar.update()
    return {
        "signal": number.name,
        "run": shlex.join(["python", "train.py", *RUN, *of_base(base_dtype), "--data", "sort.jsonl"]),
        "times": times,
        "stopped": dict(sorted(stopped.items())),
        "failed": dict(failed),
        "identical": times - sum(failed.values()),
        "seconds": round(time.monotonic() - start),
    }


def stop_one(out: Path, number: signal.Signals, seed: str, seconds: float,
             wanted: tuple, base_dtype: str | None = None) -> tuple[str, list[str]]:
    """Start, stop and resume one run. Returns where it was stopped, and its failures (usually none)."""
    rng = random.Random(seed)
    while True:  # until a run is stopped before it ends
        run = Running(out, *flags(out.parent, base_dtype), "--overwrite")
        run.wait_for("lock")
        if rng.random() < 0.5:
            time.sleep(rng.uniform(0, seconds))
        else:
            skip = rng.randrange(12)  # writes: ten checkpoints, the adapter and the scores
            writing = False
            for now in run.writes():
                skip -= now and not writing
                writing = now
                if skip < 0:
                    break
        run.process.send_signal(number)
        code, printed = run.wait()
        if code != 0:
            break
    where = place(out)
    if code != (-signal.SIGKILL if number == signal.SIGKILL else 128 + number):
        return where, [f"left with exit code {code}"]
    if RunFolder(out).is_finished:
        return where, [] if result_of(out) == wanted else ["finished differently"]
    resume = shlex.join(["python", "train.py", *flags(out.parent, base_dtype), "--out", str(out), "--resume"])
    if number != signal.SIGKILL and f"go on with: {resume}" not in printed[-1]:
        return where, ["did not print the command that resumes it"]
    code, printed = Running(out, *flags(out.parent, base_dtype), "--resume").wait()
    if code:
        return where, [f"not resumed: {printed[-1]}"]
    return where, [] if result_of(out) == wanted else ["resumed, and ended differently"]


def place(out: Path) -> str:
    """Where a run was stopped, judged by the files it left."""
    if any(LEFTOVER.fullmatch(p.name) for p in list_files(out / "training_state")):
        return "while a state was written"
    if any(LEFTOVER.fullmatch(p.name) for p in list_files(out)):
        return "while its result was written"
    if not any(p.suffix == ".pt" for p in list_files(out / "training_state")):
        return "after its last state was removed" if (out / "scores.json").exists() else "before its first state"
    return "with its adapter saved" if (out / "adapter_config.json").exists() else "between two states"
