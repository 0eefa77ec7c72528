"""python train.py --document: a text as a prefix: matched, distilled from there, or itself.

Beside the adapter lies document.json: the document's name, digest and tokens, the rows it has
become, how, the seconds that took, and what the texts of a distillation are made of. A distillation
leaves its texts (self-study.jsonl) and scores.json as any run does; --resume keeps the texts that
are there.
"""

import argparse
import hashlib
import time
from pathlib import Path

from ..adapters import fingerprint
from ..attach import adapt
from ..checks import Error
from ..documents import match, prefill, write_self_study
from ..documents.self_study import PLAIN, SEEDS, TEMPERATURE, read_seeds, room_behind
from ..files.atomic import read_json, write_json
from ..methods.prefix_tuning import PrefixTuning
from ..runtime.console import Parser, local_path
from ..runtime.memory import resident_peak
from ..runtime.processes import run_on_rank0
from ..slots import Prefix
from .checkpoints import check_same
from .flags import METHOD_FLAGS, as_flag
from .job import run_job
from .opening import open_base, read_document
from .resumable import notes_of, resumable_folder
from .run_folder import SELF_STUDY_FILE, RunFolder
from .scores import size_kb

NOTE = "document.json"
HOW = ("match", "distil", "text")
SELF_STUDY = 128  # texts
EPOCHS, LEARNING_RATE, BATCH_SIZE = 8, 2e-3, 4  # of a distillation: 8 texts need more than 3 GB on SmolLM2-135M


TRAINING = dict.fromkeys(  # flags of a distillation alone, and their values where they are not given
    ("data", "dev", "test", "columns", "limit", "template", "answers", "self_study", "seeds", "temperature",
     "teacher_top_k", "steps", "epochs", "lr", "batch_size", "compile", "max_length")) | dict.fromkeys(
    ("keep_best", "gradient_checkpointing"), False) | {"dtype": "float32"}
FLAGS = {  # as argparse takes them
    "--document": {"metavar": "FILE", "type": local_path, "help": "a text to turn into a prefix of "
                   "--num-virtual-tokens rows (default: an eighth of its tokens)"},
    "--how": {"choices": HOW, "metavar": "WAY", "help": "match (attention matching: seconds, no training), distil "
              "(trained from there on self-study) or text (all rows: exact) (default: match)"},
    "--self-study": {"type": int, "metavar": "N", "help": "texts that the base writes about the document, "
                     f"to distil on (default: {SELF_STUDY}); --data FILE takes their place"},
    "--seeds": {"metavar": "FILE", "type": local_path, "help": "prompts of self-study, one a line, "
                "comments begin with # (default: minipeft/documents/seeds.txt)"},
    "--temperature": {"type": float, "metavar": "X",
                      "help": f"sampling in self-study (default: {TEMPERATURE})"},
    "--teacher-context": {"metavar": "FILE", "type": local_path, "help": "of a run with any --method: a text that only "
                          "the teacher, the frozen base, has before every input"},
    "--teacher-top-k": {"type": int, "metavar": "K", "help": "distil the teacher's K most likely tokens (default: the "
                        "whole distribution)"}}


def add_document_flags(parser: argparse.ArgumentParser, **settings) -> None:
    """Add FLAGS to a parser or group; settings override a flag's own."""
    for flag, its in FLAGS.items():
        parser.add_argument(flag, **its | settings)


def document_help() -> str:
    """The help page of --document and --teacher-context."""
    p = Parser("A text as a prefix, and distillation from a text that only the teacher has: docs/documents.md.\n"
               "Flags beside those of python train.py --help.", add_help=False,
               usage="python train.py --document FILE [--how WAY] [--num-virtual-tokens P] [--base FOLDER] [flags]")
    add_document_flags(p.add_argument_group("document"))
    return p.format_help()


def check_document(args: argparse.Namespace) -> None:
    """Fill in the defaults of --document. Raises Error for flags that do not go with it."""
    args.how = args.how or HOW[0]
    for name in METHOD_FLAGS[PrefixTuning.name]:
        if name != "num_virtual_tokens" and getattr(args, name) is not None:
            raise Error(f"{as_flag(name)} does not go with --document, which is what the prefix starts from")
    if args.method != PrefixTuning.name or args.climb or args.eval_only or args.teacher_context is not None:
        raise Error(f"--document makes a {PrefixTuning.name}: it goes with no other --method, and not with --climb, "
                    "--eval-only or --teacher-context")
    if args.shard_base:
        raise Error("--shard-base does not go with --document, whose teacher reads the whole base as well")
    for name, unset in TRAINING.items() if args.how != "distil" else ():
        if getattr(args, name) != unset:
            raise Error(f"{as_flag(name)} goes with --how distil: {args.how} trains nothing")
    if args.how != "distil" and args.resume:
        raise Error(f"nothing to resume: --how {args.how} trains nothing")
    if args.data is not None and (args.self_study, args.seeds, args.temperature) != (None, None, None):
        raise Error("--data takes the place of self-study: no --self-study, --seeds or --temperature beside it")
    if args.self_study == 1 and args.dev is None:
        raise Error("--self-study must be at least 2 without --dev: one text is held out")
    if args.temperature is not None and not 0 <= args.temperature <= 100:
        raise Error(f"--temperature must be 0 … 100, not {args.temperature:g}")
    if args.data is None:
        args.self_study = args.self_study or SELF_STUDY
        args.temperature = TEMPERATURE if args.temperature is None else args.temperature
    args.template = PLAIN if args.template is None else args.template
    args.epochs = args.epochs or (EPOCHS if args.steps is None else None)
    args.lr = LEARNING_RATE if args.lr is None else args.lr
    args.batch_size = args.batch_size or BATCH_SIZE


def run_document(args: argparse.Namespace) -> dict:
    """Write the adapter of --document to --out. Returns the content of its document.json."""
    with resumable_folder(args) as folder:  # refuses a finished run before any work
        base, tokenizer = open_base(args)
        base.requires_grad_(False)
        tokens = read_document(args.document, tokenizer).to(base.wte.weight.device)
        n, began = len(tokens), time.perf_counter()
        whole = prefill(base, tokens)
        P = args.num_virtual_tokens
        P = (n if args.how == "text" else max(1, n // 8)) if P is None else P
        if not 1 <= P <= n or (args.how == "text" and n != P):
            raise Error(f"--num-virtual-tokens {P} of a document of {n:,} tokens: --how text keeps all {n:,}, "
                        f"the others have 1 … {n:,}")
        prefix = whole if args.how == "text" else match(base, tokens, P)
        digest = hashlib.sha256(Path(args.document).read_bytes()).hexdigest()
        result = {"command": args.command, "document": Path(args.document).name, "sha256": digest, "how": args.how,
                  "tokens": n, "rows": P, "seconds": round(time.perf_counter() - began, 1)}
        note = args.out / NOTE
        if args.how == "distil":
            result["texts"] = texts_of(args, base, tokens)
            result |= {"self_study": args.self_study} if args.data is None else {}
            run_on_rank0(lambda: begin(args, folder, result))
            result |= distilled(args, folder, base, tokenizer, tokens, prefix)
        else:
            run_on_rank0(lambda: adapt(base, PrefixTuning.name, init=prefix).save(args.out))
        result |= {"out": str(args.out), "kb": size_kb(args.out), "peak_bytes": resident_peak()}
        run_on_rank0(lambda: write_json(note, result))
        folder.finish(*notes_of(args))
    return result


def texts_of(args: argparse.Namespace, base, tokens) -> dict:
    """Settings of a distillation's texts. Raises Error where the document leaves them no room."""
    made = {"data": args.data, "seed": args.seed, "base": fingerprint(base)}
    if args.data is None:
        room_behind(base, tokens, args.max_length)
        seeds = "\n".join(read_seeds(args.seeds or SEEDS))
        made |= {"self_study": args.self_study, "temperature": args.temperature,
                 "seeds": hashlib.sha256(seeds.encode()).hexdigest()}
    return made


def begin(args: argparse.Namespace, folder: RunFolder, result: dict) -> None:
    """Note a distillation's document and texts, and remove the self-study of the run before.

    Raises Error, and writes nothing, for a self-study that no run wrote, or that a stopped run
    began, and for a run to resume that began with another document or other texts.
    """
    note, self_study = args.out / NOTE, args.out / SELF_STUDY_FILE
    if args.data is None and self_study.exists() and note not in folder.notes:
        raise Error(f"{self_study} is not of a run: --data {self_study} distils on it, another --out keeps it")
    if args.data is None and self_study.exists() and not (args.resume or args.overwrite):
        raise Error(f"{args.out} holds self-study of a run that was stopped: --resume goes on with it, "
                    "--overwrite starts anew")
    if args.resume and note.exists():
        check_begun(note, read_json(note), result)
    if args.data is None and not args.resume:
        self_study.unlink(missing_ok=True)
    write_json(note, result)


def check_begun(note: Path, theirs: dict, ours: dict) -> None:
    """Raise Error unless the distillation to resume began with our document and texts."""
    if theirs.get("sha256") != ours["sha256"]:
        raise Error(f"{ours['document']} is not the document that the run in {note.parent} began with "
                    "(--overwrite starts anew)")
    texts = theirs.get("texts", ours["texts"])  # an older version wrote none
    check_same(note, texts if isinstance(texts, dict) else {}, ours["texts"])


def distilled(args: argparse.Namespace, folder: RunFolder, base, tokenizer, tokens,
              prefix: Prefix) -> dict:
    """Self-study, then a run of train.py on it that starts from the matched prefix."""
    began, result = time.perf_counter(), {}
    if args.data is None:
        args.data, seeds = str(args.out / SELF_STUDY_FILE), read_seeds(args.seeds or SEEDS)
        n = run_on_rank0(lambda: len(write_self_study(base, tokenizer, tokens, args.data, args.self_study,
                                                      args.temperature, seeds, args.seed, args.max_length,
                                                      args.template)))
        result = {"self_study": n, "self_study_seconds": round(time.perf_counter() - began, 1)}
    args.start, args.teacher_context = prefix, args.document
    scores = run_job(args, folder)
    return result | {"train_seconds": scores["seconds"], "loss": scores["loss"]}


def document_report(r: dict) -> str:
    """The result as printed, from its document.json."""
    lines = ["{document}: {tokens:,} tokens as {rows:,} rows, by {how}, in {seconds:.1f} s".format(**r)]
    if "self_study" in r:
        lines.append("{self_study} texts of self-study in {self_study_seconds:.0f} s".format(**r))
    if "train_seconds" in r:
        lines.append("distilled in {train_seconds:.0f} s".format(**r))
    return "\n".join([*lines, f"{r['out']}: {r['kb']:,.1f} KB"])
