"""--climb: runs of hard prompt, soft prompt and prefix, each started from the one below."""

import argparse
from pathlib import Path

import torch

from ..adapters import fingerprint
from ..checks import Error
from ..files.atomic import read_json
from ..runtime.processes import run_on_rank0
from .checkpoints import check_same
from .flags import LADDER
from .job import run_job
from .opening import open_base
from .resumable import has_checkpoints, run_flags, sources_of
from .run_folder import RunFolder


def finished(out: Path) -> dict | None:
    """The scores of a finished run, else None."""
    scores = out / "scores.json"
    return read_json(scores) if scores.exists() and RunFolder(out).is_finished else None


def sources_now(args: argparse.Namespace) -> dict:
    """Digests of the base and the data as they are now."""
    torch.manual_seed(args.seed)  # as a run does: a base from scratch is drawn
    base, _ = open_base(args, on_device=False)
    return sources_of(args, fingerprint(base))


def check_levels(args: argparse.Namespace) -> None:
    """Raise Error, before the first level is trained, for a finished run that is no level of this climb."""
    for level, below in zip(LADDER, (None, *LADDER), strict=False):
        if not args.resume:
            RunFolder(args.out / level).check()
        elif (found := finished(args.out / level)) and "flags" in found:  # an older version wrote none
            start = Path(found["flags"].get("init_from") or "").name  # wherever the climb lies now
            if start != (below or ""):
                raise Error(f"{args.out / level} holds a run that is no level of this climb: another --out keeps it")


def run_ladder(args: argparse.Namespace) -> list[dict]:
    """Run every level in OUT/LEVEL; returns their scores. --resume skips the finished ones."""
    if args.resume and not args.out.is_dir():
        raise Error(f"nothing to resume: there is no folder {args.out}")
    if not args.overwrite:
        run_on_rank0(lambda: check_levels(args))
    sources = sources_now(args) if args.resume else {}
    results, has_run = [], False  # after a run, results above it are of another start
    for level, below in zip(LADDER, (None, *LADDER), strict=False):
        one = argparse.Namespace(**vars(args))
        one.method, one.methods, one.out = level, [level], args.out / level
        one.init_from = str(args.out / below) if below else None
        goes_on = args.resume and not has_run
        if goes_on and (found := run_on_rank0(lambda out=one.out: finished(out))):
            ours, recorded = run_flags(one) | sources, found.get("flags", {})
            theirs = ours | recorded | found.get("sources", {})  # an older version wrote less
            theirs["init_from"] = one.init_from
            if theirs == ours:
                results.append(found)
                continue
            if not results:  # a climb with other flags; further up it is the rest of an older one
                check_same(one.out, theirs, ours)
            goes_on = False
        one.resume = goes_on and has_checkpoints(one) and run_on_rank0(one.out.is_dir)
        one.overwrite = args.overwrite or args.resume and not one.resume
        results.append(run_job(one))
        has_run = True
    return results
