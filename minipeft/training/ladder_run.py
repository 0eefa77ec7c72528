"""--climb: runs of hard prompt, soft prompt and prefix, each started from the one below."""

import argparse

from ..checks import Error
from ..files.atomic import read_json
from .flags import LADDER
from .job import has_checkpoints, run_job
from .run_folder import RunFolder


def run_ladder(args: argparse.Namespace) -> list[dict]:
    """Run every level in OUT/LEVEL; returns their scores. --resume skips the finished ones."""
    if args.resume and not args.out.is_dir():
        raise Error(f"nothing to resume: there is no folder {args.out}")
    results, has_run = [], False  # after a run, results above it are of another start
    for level, below in zip(LADDER, (None, *LADDER), strict=False):
        one = argparse.Namespace(**vars(args))
        one.method, one.methods, one.out = level, [level], args.out / level
        one.init_from = str(args.out / below) if below else None
        scores = one.out / "scores.json"
        if args.resume and not has_run and scores.exists() and RunFolder(one.out).is_finished:
            results.append(read_json(scores))
            continue
        one.resume = args.resume and not has_run and has_checkpoints(one) and one.out.is_dir()
        one.overwrite = args.overwrite or args.resume and not one.resume
        results.append(run_job(one))
        has_run = True
    return results
