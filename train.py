#!/usr/bin/env python3
"""Tune a base with any method, or pretrain one.

  python train.py                                           a prefix, on the default task
  python train.py --method prompt --task sort               a soft prompt for another skill
  python train.py --method lora+prefix                      two methods together
  python train.py --method full --task reverse+increment    full fine-tuning on two skills in a row
  python train.py --method hard-prompt                      choose the best wording, train nothing
  python train.py --climb                                   hard prompt, soft prompt, prefix in turn
  python train.py --base SmolLM2-135M --data train.csv --test test.csv --method lora --answers 100
  python train.py --base scratch --method full --task skills --steps 3500 --lr 2e-3    pretraining
  torchrun --nproc-per-node 2 train.py                      two processes: docs/processes.md
"""

import argparse
import contextlib
import math
import os
import shlex
import sys

from minipeft import METHODS
from minipeft.accounting.shapes import EMBEDDED
from minipeft.data.tasks import NOVEL, SKILLS
from minipeft.data.template import DEFAULT
from minipeft.parts.quantised_base import BASE_DTYPES
from minipeft.runtime.console import Parser, local_path, run, seed, utf8_text
from minipeft.runtime.devices import HELP, default_device, device
from minipeft.runtime.processes import is_main_process, join_processes, leave_processes, world_size
from minipeft.training import flags
from minipeft.training.arguments import check
from minipeft.training.document_run import (
    add_document_flags,
    document_help,
    document_report,
    run_document,
)
from minipeft.training.flags import ALL_FLAGS, LADDER
from minipeft.training.job import REPORTED, VALIDATION, run_job
from minipeft.training.ladder_run import run_ladder
from minipeft.training.memory_check import LOWER


def parser() -> argparse.ArgumentParser:
    usage = "python train.py [--method NAME | --climb | --document FILE] [--task NAME | --data FILE] …"
    p = Parser(__doc__, usage=usage, add_help=False)

    group = p.add_argument_group("method")
    group.add_argument("-h", "--help", nargs="?", const="", metavar="NAME",
                       help="this page, the flags of a method, or those of document")
    one = group.add_mutually_exclusive_group()
    one.add_argument("--method", metavar="NAME",
                     help=f"{', '.join(METHODS)}, or several joined by '+' (default: prefix)")
    one.add_argument("--climb", action="store_true",
                     help=f"{', '.join(LADDER)}: each started from the one before")
    of_methods = group

    add = p.add_argument_group("data").add_argument
    add("--task", metavar="NAME",
        help=f"a skill ({', '.join(SKILLS)}), two joined by '+', a novel task "
             f"({', '.join(NOVEL)}), or skills or lookup, to pretrain (default: reverse)")
    add("--data", metavar="FILE", type=local_path,
        help='your own data: .csv, .tsv, or .jsonl with {"input": "…", "target": "…"}, '
             '{"text": "…"}, {"messages": […]} … on every line (docs/own-data.md)')
    add("--dev", metavar="FILE", type=local_path,
        help=f"validation set, at most {VALIDATION} (default: of --data: docs/own-data.md)")
    add("--test", metavar="FILE", type=local_path,
        help=f"held-out set, at most {REPORTED} (default: --dev, or of --data)")
    add("--columns", nargs=2, type=utf8_text, metavar=("INPUT", "TARGET"),
        help="names of input and target in the files; others are left out, with a note")
    add("--limit", type=int, metavar="N", help="train on N examples of --data, drawn by --seed")
    add("--max-length", type=int, metavar="T",
        help="tokens of an example, virtual included; longer is cut (default: 1024)")
    add("--template", metavar="TEXT", type=utf8_text,
        help=f'a text with {{input}} in it, or "chat": the base\'s own, else ChatML (default: "{DEFAULT}"); '
             "with {soft} virtual tokens stand there")
    add("--answers", type=int, metavar="N",
        help="complete N held-out inputs and score them by BLEU and chrF")

    add = p.add_argument_group("base").add_argument
    add("--base", default="nano", metavar="FOLDER", type=local_path,
        help="folder or hub id (docs/architectures.md), embedded base "
             f"({', '.join(EMBEDDED)}), or scratch:SIZE")
    add("--base-dtype", choices=BASE_DTYPES, metavar="TYPE",
        help=f"{', '.join(BASE_DTYPES)} (default: its own)")
    add("--shard-base", action="store_true",
        help="under torchrun, shard the frozen base (full always does)")

    group = p.add_argument_group("optimisation")
    add = group.add_argument
    add("--lr", type=float, help="peak learning rate (default: the method's, see --help NAME)")
    add("--batch-size", type=int, metavar="B",
        help="examples of a step (default: 64 of a task, 8 of --data)")
    duration = group.add_mutually_exclusive_group()
    duration.add_argument("--steps", type=int, help="optimizer steps (default: 300 on a task)")
    duration.add_argument("--epochs", type=int, metavar="E", help="over --data (default: 3)")
    add("--keep-best", action="store_true",
        help="save the best by the validation set, evaluated ten times or more")
    add("--seed", type=seed, default=0, help="of initial values and data order")

    add = p.add_argument_group("precision and memory").add_argument
    add("--device", default=default_device(), help=HELP)
    add("--dtype", default="float32", choices=["float32", "bfloat16"], metavar="TYPE",
        help="float32 or bfloat16, for matmuls; trained in float32")
    add("--gradient-checkpointing", action="store_true",
        help="save less for backward, and run every block twice")
    add("--compile", action=argparse.BooleanOptionalAction,
        help="compile the blocks (default: on a CPU, if the first steps say it pays)")

    group = p.add_argument_group("run folder")
    group.add_argument("--out", metavar="FOLDER", type=local_path,
                       help="of the adapter and its scores (default: runs/BASE-METHOD-TASK)")
    what = group.add_mutually_exclusive_group()
    what.add_argument("--resume", action="store_true",
                      help="go on with the stopped run in --out from its last checkpoint")
    what.add_argument("--overwrite", action="store_true",
                      help="start anew in --out, in place of the run that it holds")
    what.add_argument("--eval-only", action="store_true",
                      help="evaluate the adapter in --out, train nothing")
    flags.add_method_flags(of_methods, ALL_FLAGS, help=argparse.SUPPRESS)
    add_document_flags(p, help=argparse.SUPPRESS)
    return p


def arguments(argv) -> argparse.Namespace:
    """The checked flags. Prints a help page and exits where one is asked for."""
    p = parser()
    args = p.parse_args(argv)
    if args.help is not None:
        method = args.help or args.method
        page = document_help if method == "document" else lambda: flags.method_help(method)
        print(page() if method else p.format_help(), end="")
        raise SystemExit(0)
    args.method = "prefix" if args.method is None else args.method
    return check(args)


def command(argv: list[str]) -> list[str]:
    """The words of this run's command. The -- keeps torchrun from reading --r as its own flag."""
    start = ["python"]
    if world_size() > 1:
        start = ["torchrun", "--nproc-per-node", os.environ["LOCAL_WORLD_SIZE"], "--"]
    return [*start, "train.py", *argv]


def main(argv=None) -> None:
    args = arguments(argv)
    args.device = join_processes(device(args.device))
    args.words = command(sys.argv[1:] if argv is None else argv)
    args.command = shlex.join(args.words)
    with contextlib.ExitStack() as stack:
        if not is_main_process():  # the main process prints for all
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        if args.document is not None:
            print(document_report(run_document(args)))
        else:
            print(climb_table(run_ladder(args)) if args.climb else report(run_job(args)))
    leave_processes()


def report(r: dict) -> str:
    """The result of a run as printed, from its scores.json."""
    (before, after), (loss, lower), (adapter, base) = r["exact_match"], r["loss"], r["kb"]
    lines = []
    if r["wordings"]:
        lines.append(f"wordings, best first, on at most {VALIDATION} examples of the validation set: exact match, loss")
        lines += ["  {exact_match:.3f} {loss:6.3f}  {wording!r}".format(**w) for w in r["wordings"]]
    lines.append(f"held-out exact match {before:.3f} -> {after:.3f}, "
                 f"loss {loss:.3f} -> {lower:.3f} ({r['examples']} examples)")
    if "dev_loss" in r:
        first, last = (math.exp(min(x, 700)) for x in (loss, lower))
        lines.append(f"perplexity {first:.2f} -> {last:.2f}; "
                     f"loss on {r['dev_set']}: {r['dev_loss']:.3f}")
    if r.get("answers"):
        lines.append("{inputs} inputs answered: BLEU {bleu:.2f}, chrF {chrf:.2f}, "
                     "exact match {exact_match:.3f}".format(**r["answers"]))
    for s in r["samples"]:
        lines += [f"  {s['input']}", f"    wanted {s['wanted']}",
                  f"    base   {s['base']}", f"    tuned  {s['tuned']}"]
    if r["skills"]:
        lines.append("skill         instructed  not instructed")
        lines += [f"{name:<12} {score['told']:>11.3f} {score['not told']:>15.3f}"
                  for name, score in r["skills"].items()]
    lines.append(f"{r['out']}: {adapter:,.1f} KB, beside the base's {base:,.1f} KB")
    return "\n".join(lines)


def climb_table(results: list[dict]) -> str:
    """The levels of --climb. Converting up is exact: each starts with the loss of the one below."""
    head = ("level", "trained", "exact match", "loss at its start", "loss")
    lines = ["{:<12} {:>8} {:>12} {:>18} {:>7}".format(*head)]
    for level, r in zip(LADDER, results, strict=True):
        start = f"{r['start_loss']:.3f}" if r["start_loss"] is not None else "-"
        lines.append(f"{level:<12} {r['trained']:>8,} {r['exact_match'][1]:>12.3f} {start:>18} "
                     f"{r['loss'][1]:>7.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run("train.py", main, LOWER))
