"""The flags of train.py, checked and filled in before anything is loaded."""

import argparse
import importlib.util
import os
import re
from pathlib import Path

from ..checks import Error
from ..data.tasks import find_task
from ..data.template import DEFAULT, Template
from ..files.atomic import check_destination
from ..methods import METHODS
from ..parts.quantised import QUANTISED
from ..runtime.console import line_breaks
from . import flags
from .document_run import check_document
from .flags import ALL_FLAGS, LADDER, trains_anything, trains_base
from .resumable import has_checkpoints
from .run_folder import NOTES, SELF_STUDY_FILE, template_of_run


def check(args: argparse.Namespace) -> argparse.Namespace:
    """Fill in the defaults. Raises Error for wrong flags, before anything is loaded."""
    args.start = None  # a prefix that a document's is distilled from
    for name in ("batch_size", "steps", "epochs", "limit", "answers", "max_length", "self_study",
                 "teacher_top_k"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise Error(f"{flags.as_flag(name)} must be at least 1, not {value}")
    for name in ("dev", "test", "columns", "limit", "max_length", "template", "answers", "epochs"):
        if args.data is None and args.document is None and getattr(args, name) is not None:
            raise Error(f"{flags.as_flag(name)} goes with --data: a task makes its own examples")
    if args.task is not None and (args.data is not None or args.document is not None):
        raise Error("--task makes its own examples: it does not go with --data or --document")
    if args.columns is not None and args.columns[0] == args.columns[1]:
        raise Error(f"--columns must name two columns, not {args.columns[0]} twice")
    if args.document is not None:
        check_document(args)
    for name in ("how", "self_study", "seeds", "temperature"):
        if args.document is None and getattr(args, name) is not None:
            raise Error(f"{flags.as_flag(name)} goes with --document")
    if args.teacher_top_k is not None and args.document is None and args.teacher_context is None:
        raise Error("--teacher-top-k goes with --teacher-context, or --document with --how distil")
    args.task, args.max_length = args.task or "reverse", args.max_length or 1024
    args.out = Path(args.out or f"runs/{run_name(args)}")
    then = template_of_run(args.out) if args.eval_only and args.data is not None else None
    args.template = Template((then or DEFAULT) if args.template is None else line_breaks(args.template))
    if args.answers and importlib.util.find_spec("sacrebleu") is None:
        raise Error("--answers scores by BLEU and chrF, which needs: pip install sacrebleu")
    if args.lr is not None and not 0 < args.lr <= 100:
        raise Error(f"--lr must be above 0 and at most 100, not {args.lr:g}")
    args.methods = args.method.split("+")
    check_training(args)
    args.batch_size = args.batch_size or (64 if args.data is None else 8)
    if args.template.has_soft:
        takers = [name for name in METHODS if "template" in METHODS[name].arguments()]
        if args.climb or not (args.eval_only or set(takers) & set(args.methods)):
            raise Error(f"{{soft}} in --template goes with --method {' or '.join(takers)}: "
                        f"{'--climb' if args.climb else args.method} has no virtual tokens in the text")
    known = flags.flags_of(LADDER if args.climb else args.methods)
    find_task(args.task)
    for name in ALL_FLAGS:
        if getattr(args, name) is not None and name not in known:
            what = "--climb" if args.climb else f"--method {args.method}"
            raise Error(f"{flags.as_flag(name)} does not go with {what}")
    if args.climb and (args.eval_only or any(getattr(args, name) for name in flags.SET_BY_CLIMB)):
        raise Error("--climb starts every level of the ladder from the one below: no --init, "
                    "--num-virtual-tokens, --prefix-projection or --eval-only")
    if args.wordings and "" in args.wordings:
        raise Error("--wordings must be texts of at least one letter")
    if args.search is not None and args.search < 1:
        raise Error(f"--search must be at least 1 token, not {args.search}")
    is_base = trains_base(args.methods)
    if args.teacher_context is not None and (is_base or args.climb or args.shard_base
                                             or not trains_anything(args.methods)):
        raise Error("--teacher-context trains one method beside a frozen base, which is the teacher: it does not go "
                    "with --climb, --shard-base, or a method that trains the base or nothing")
    if is_base and args.base_dtype not in (None, "float32"):
        raise Error(f"--base-dtype {args.base_dtype} is for a frozen base: {args.method} trains every weight, "
                    "in float32 (--dtype bfloat16 works in both)")
    if args.shard_base and args.base_dtype in QUANTISED:
        raise Error(f"--shard-base takes a base in float32 or bfloat16: in {args.base_dtype} it is small as it is")
    for name in ("data", "dev", "test", "document", "teacher_context"):
        path = getattr(args, name)
        notes = [os.path.realpath(args.out / note) for note in NOTES if note != SELF_STUDY_FILE]
        if path is not None and os.path.realpath(path) in notes:
            raise Error(f"{flags.as_flag(name)} {path} is a file that runs in {args.out} write: another --out keeps it")
    if not args.eval_only:
        content = "a base" if is_base else "an adapter"
        content = "a combination" if len(args.methods) > 1 else content
        for folder in [args.out / level for level in LADDER] if args.climb else [args.out]:
            check_destination(folder, content)
        for part in args.methods if len(args.methods) > 1 else ():
            check_destination(args.out / part, "an adapter")
    return args


def check_training(args: argparse.Namespace) -> None:
    """Raise Error for flags of training beside a method that trains nothing."""
    if args.climb or trains_anything(args.methods):
        return
    if args.keep_best:
        raise Error(f"nothing to keep the best of: {args.method} trains nothing")
    if args.dtype != "float32":
        raise Error(f"--dtype {args.dtype} is for training, and {args.method} trains nothing: "
                    f"--base-dtype {args.dtype} computes in it")
    if has_checkpoints(args):  # a search
        return
    if args.resume:
        raise Error(f"nothing to resume: {args.method} trains nothing")
    for name in ("lr", "batch_size", "steps", "epochs", "compile", "gradient_checkpointing"):
        if getattr(args, name):
            raise Error(f"{flags.as_flag(name)} does not go with --method {args.method}, which trains nothing")


def run_name(args: argparse.Namespace) -> str:
    """BASE-METHOD-TASK, a file name on every system: nano-prefix-reverse."""
    base = Path(os.path.abspath(args.base)).name  # "." has no name of its own
    method = "climb" if args.climb else args.method
    method = args.how if args.document is not None else method
    name = f"{base}-{method}-{Path(args.document or args.data or args.task).stem}"
    return re.sub(r'[<>:"/\\|?*\x00-\x1f]', "-", name).rstrip(". ")
