"""--climb: runs of hard prompt, soft prompt and prefix, each started from the one below."""

import argparse
from pathlib import Path

from ..checks import Error, shown
from ..files.atomic import read_json
from ..runtime.processes import run_on_rank0
from .flags import LADDER
from .job import has_checkpoints, run_flags, run_job
from .run_folder import RunFolder


def finished(out: Path) -> dict | None:
    """The scores of a finished run, else None."""
    scores = out / "scores.json"
    return read_json(scores) if scores.exists() and RunFolder(out).is_finished else None


def other_flags(scores: dict, args: argparse.Namespace) -> str | None:
    """Name a flag of a finished run that is another here; None if there is none."""
    here = run_flags(args)
    theirs = scores.get("flags", here)  # an older version wrote none
    for name in here:
        if name != "init_from" and theirs.get(name) != here[name]:
            return f"its {name} is {shown(theirs.get(name))}, here it is {shown(here[name])}"
    return None


def run_ladder(args: argparse.Namespace) -> list[dict]:
    """Run every level in OUT/LEVEL; returns their scores. --resume skips the finished ones."""
    if args.resume and not args.out.is_dir():
        raise Error(f"nothing to resume: there is no folder {args.out}")
    results, has_run = [], False  # after a run, results above it are of another start
    for level, below in zip(LADDER, (None, *LADDER), strict=False):
        one = argparse.Namespace(**vars(args))
        one.method, one.methods, one.out = level, [level], args.out / level
        one.init_from = str(args.out / below) if below else None
        goes_on = args.resume and not has_run
        if goes_on and (found := run_on_rank0(lambda out=one.out: finished(out))):
            if (other := other_flags(found, one)) is None:
                results.append(found)
                continue
            if not results:
                raise Error(f"{one.out} is of another run: {other} (--overwrite starts anew)")
            goes_on = False
        one.resume = goes_on and has_checkpoints(one) and run_on_rank0(one.out.is_dir)
        one.overwrite = args.overwrite or args.resume and not one.resume
        results.append(run_job(one))
        has_run = True
    return results
