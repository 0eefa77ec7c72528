"""A run as it goes on after a stop: settings that must be equal, files of its own, the command."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from ..checks import Error
from ..data.tokenizer import FILES
from ..files.atomic import FOLDER_MARKERS, file_sha256
from ..files.huggingface import SHIPPED
from ..files.peft import read_combination
from ..files.tensors import tensor_files
from ..methods import METHODS
from ..runtime import processes
from ..runtime.console import command_line
from ..runtime.signals import Stopped
from .flags import ALL_FLAGS, trains_anything, trains_base
from .run_folder import SELF_STUDY_FILE, RunFolder, check_no_run

SETTINGS = (  # flags that a resumed run must share
    "method", *ALL_FLAGS, "task", "data", "dev", "test", "columns", "limit", "batch_size",
    "seed", "dtype", "base_dtype", "lr", "keep_best", "document", "how", "teacher_context", "teacher_top_k")


@contextlib.contextmanager
def resumable_folder(args) -> Iterator[RunFolder]:
    """The folder of a run, for this run alone. A stop is told with the command that goes on.

    Raises Error for the base's own folder, and where the run would replace files that no run wrote.
    """
    if os.path.realpath(args.out) in map(os.path.realpath, (args.base, SHIPPED / args.base)):
        raise Error(f"--out {args.out} is the base's own folder: it needs another")
    try:
        with RunFolder(args.out, args.resume, args.overwrite) as folder:
            processes.run_on_rank0(lambda: check_own_files(args, folder))
            yield folder
    except KeyboardInterrupt as e:
        e = e if isinstance(e, Stopped) else Stopped(signal.SIGINT, "interrupted")
        message = f"{e}; go on with: {resume_command(args)}"
        raise Stopped(e.number, message, e.on_all_ranks) from None
    except RuntimeError as e:
        if not processes.is_lost_peer(e):
            raise
        raise Error("another process of this run ended or fell silent; "
                    f"go on with: {resume_command(args)}") from None


def check_own_files(args, folder: RunFolder) -> None:
    """Raise Error where the run would replace or remove a file that is a user's, or another run's."""
    checked = ("scores.json", SELF_STUDY_FILE)  # by RunFolder, and by document_run.begin
    notes = [args.out / name for name in notes_of(args) if name not in checked]
    own = [path for path in notes if path not in folder.notes and not args.resume]  # else a stopped run's, maybe
    is_base, parts = trains_base(args.methods), []
    if len(args.methods) > 1:
        parts = [args.out / name for name in args.methods]
        listed = read_combination(args.out, METHODS)
        for part in parts:
            check_no_run(part)
            if (part / FOLDER_MARKERS["an adapter"]).exists() and part.name not in listed and not folder.was_stopped:
                raise Error(f"{part} already holds an adapter, which this run would replace: another --out keeps it")
    if is_base and not (args.out / FOLDER_MARKERS["a base"]).exists():  # else they are of the base there
        own += [args.out / name for name in (*FILES, "generation_config.json")]
    if not folder.notes and not folder.was_stopped:
        kind, stem = ("a base", "model") if is_base else ("an adapter", "adapter_model")
        own += [path for place in parts or [args.out] if not (place / FOLDER_MARKERS[kind]).exists()
                for path in tensor_files(place, stem)]
    for path in own:
        if path.exists():
            raise Error(f"{path} is not of a run, and this run would replace it: another --out keeps it")


def notes_of(args) -> list[str]:
    """Files of NOTES that a run writes beside its adapter."""
    scores = ["scores.json"] + ["answers.jsonl"] * bool(args.answers)
    texts = os.path.realpath(args.out / SELF_STUDY_FILE)
    if args.how == "distil" and (args.data is None or os.path.realpath(args.data) == texts):
        scores.append(SELF_STUDY_FILE)
    return ["document.json"] * bool(args.document) + (scores if args.how in (None, "distil") else [])


def run_flags(args) -> dict:
    """Flags that make a run what it is, as scores.json has them."""
    names = (*SETTINGS, "base", "steps", "epochs", "max_length", "answers")
    return {name: getattr(args, name) for name in names} | {"template": args.template.text}


def sources_of(args, base_fingerprint: str) -> dict:
    """Digests of the base and of the files of data, of which the flags have the paths."""
    files = {name: getattr(args, name) for name in ("data", "dev", "test")}
    return {"base SHA-256": base_fingerprint} | {
        f"{name} SHA-256": file_sha256(Path(path)) for name, path in files.items() if path is not None}


def resume_command(args) -> str:
    """The command with --resume; without checkpoints, with --overwrite."""
    words = [word for word in args.words if word not in ("--overwrite", "--resume")]
    return command_line([*words, "--resume" if args.climb or has_checkpoints(args) else "--overwrite"])


def has_checkpoints(args) -> bool:
    """True for a run that trains, or searches for a hard prompt."""
    return bool(args.search) or (trains_anything(args.methods) and args.how in (None, "distil"))
