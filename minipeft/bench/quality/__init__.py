"""Quality of every method, one question at a time, on equal terms.

A cell is one run: a method of some size, on a base, on a task, with a learning rate and a seed. A
study is a list of cells that answers one question and varies one thing. All methods of a seed see
the same examples in the same order.

    1. sweeps   each method trains once with each of five learning rates, with a seed of their own;
                the lowest loss on the validation set decides, and where it lies at an edge, the
                sweep goes on beyond it
    2. cells    each cell trains with that learning rate over seeds 0 … 4, and is scored on held-out
                examples

A finished cell is one JSON line, with all it takes to run it again (--again) and its machine. A
stopped run continues: cells with a line are not run again. `python bench.py report` draws tables,
figures and pages from the lines.

    python bench.py quality --quick             the main table, small: 10 minutes on 2 cores
    python bench.py quality                     all studies of embedded bases: hours
    python bench.py quality --study length      one question
    python bench.py quality --study real --smollm2 FOLDER --e2e FOLDER     a real model, real data
    python bench.py quality --study real --smollm2 FOLDER --tasks topics --methods prompt prefix
    python bench.py quality --study real_data --smollm2 FOLDER --tasks topics --examples 50
    python bench.py quality --again 1           run line 1 again: is the score the same?
"""

import os
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path

from ...checks import Error
from ...runtime.console import Parser, local_path, note
from ...runtime.devices import HELP, default_device
from ..flags import parse
from . import again, costs, grid, real, studies
from .lines import Lines, read


def run(argv: list[str], tables: Callable[[Lines, list[str]], str]) -> tuple[dict, str, str | None]:
    """`bench.py quality`; returns the result, its text (tables(lines, studies)), and --out."""
    p = Parser(__doc__)
    names = [*studies.STUDIES, "cost"]
    which = p.add_argument_group("what to run").add_mutually_exclusive_group()
    which.add_argument("--study", nargs="+", choices=names, metavar="NAME",
                       help=f"of {', '.join(names)} (default: all but {', '.join(studies.REAL)})")
    which.add_argument("--quick", action="store_true", help="two tasks of the first study, 2 seeds")
    which.add_argument("--again", type=int, metavar="N", help="line N of --lines again, to compare")
    add = p.add_argument_group("a part of it").add_argument
    add("--tasks", nargs="+", metavar="TASK", help="cells of these tasks only")
    add("--methods", nargs="+", metavar="ROW", help="cells of these rows of the tables only")
    add("--examples", nargs="+", type=int, metavar="N",
        help="cells with as many training examples only")
    add = p.add_argument_group("data").add_argument
    add("--lines", metavar="FILE.jsonl", type=local_path, default="runs/quality.jsonl",
        help="where cells are written and looked up")
    add("--smollm2", metavar="FOLDER", type=local_path,
        help="studies of the real model: SmolLM2-135M-Instruct")
    add("--e2e", metavar="FOLDER", type=local_path,
        help="task e2e: E2E NLG's devset.csv and testset_w_refs.csv")
    add = p.add_argument_group("machine").add_argument
    add("--processes", type=int, default=os.cpu_count(), metavar="N",
        help="cells at a time, each on one CPU thread")
    add("--device", default=default_device(), help=HELP)
    args = parse(p, argv)
    args.lines = Path(args.lines)
    if args.processes < 1:
        raise Error(f"--processes must be at least 1, not {args.processes}")
    given = {"smollm2": args.smollm2, "e2e": args.e2e}
    folders = {name: folder for name, folder in given.items() if folder is not None}
    if args.again is not None:
        result = again.run(args.lines, args.again, folders, args.device)
        return result, again.table(result), args.out
    chosen = args.study or [name for name in names if name not in studies.REAL]
    wanted = studies.methods(studies.QUICK, seeds=range(2)) if args.quick else [
        pair for name in chosen if name != "cost" for pair in studies.STUDIES[name]()]
    if args.quick:
        chosen = ["methods"]
    wanted = filter_cells(wanted, {"tasks": args.tasks, "methods": args.methods,
                                   "examples": args.examples})
    for name, needs in (("smollm2", [c.base == real.BASE for c, _ in wanted]),
                        ("e2e", [c.task == "e2e" for c, _ in wanted])):
        if any(needs):
            real.folder_of(folders, name)  # missing folders are reported before anything runs
    lines = read(args.lines)
    tables(lines, [])  # so are a damaged file and a missing package
    if planned := grid.planned(lines, wanted):
        minutes = sum(map(grid.seconds, planned)) / args.processes / 60
        note(f"{len(planned)} cells to run, about {max(1, minutes):,.0f} minutes in {args.processes} processes, "
             "more where a sweep goes on beyond its learning rates")
    lines = grid.fill(args.lines, wanted, args.processes, folders, args.device)
    table = tables(lines, [name for name in chosen if name != "cost"])
    if "cost" in chosen:
        table = "\n".join(filter(None, [table, costs.measure(args.lines, args.device)]))
    return {"cells": len(lines), "lines": str(args.lines)}, table, args.out


PARTS = {"tasks": attrgetter("task"), "methods": studies.row, "examples": attrgetter("examples")}  # by flag


def filter_cells(wanted: studies.Pairs, named: dict[str, "list | None"]) -> studies.Pairs:
    """The cells that have one of the named values by every flag of PARTS (None: any). Raises Error
    for a value that no cell has, and without cells."""
    kept = wanted
    for flag, values in named.items():
        has = PARTS[flag]
        known = {has(c) for c, _ in wanted} - {None}  # endless examples
        for value in values or ():
            if value not in known:
                has_these = ", ".join(map(str, sorted(known))) or "no choice of them"
                raise Error(f"--{flag} {value}: the study has {has_these}")
        kept = [(c, like) for c, like in kept if values is None or has(c) in values]
    if wanted and not kept:
        raise Error("no cell of the study has " + ", ".join(f"the {flag} {its}" for flag, its in named.items() if its))
    return kept
