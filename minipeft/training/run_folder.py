"""The folder of a run: one run at a time, and its checkpoints, verified when read.

In OUT/training_state:

    00000120-1f3a9c04e7b25d68.pt    a checkpoint: step, and start of the file's SHA-256; of the
                                    search for a hard prompt: search-00000120-….pt
    lock                            held while a run works; freed when its process ends
    anew                            marks the checkpoints as those of the run before: one with
                                    --overwrite has begun, and written none yet

The last two checkpoints of a stage (search, training) are kept, so a damaged one costs some steps
instead of the run. A finished run leaves no training_state.
"""

import contextlib
import re
import sys
from pathlib import Path

from filelock import FileLock, Timeout  # a dependency of torch

from ..checks import Error
from ..files.atomic import FOLDER_MARKERS, file_exists, file_sha256, read_json, write_atomically
from ..files.tensors import read_torch, save_torch
from ..runtime.processes import is_lost_peer, is_main_process, run_on_rank0

CHECKPOINT_SECONDS = 600  # at most, between two checkpoints
SEARCH = "search-"  # begins the names of a search's checkpoints
EVAL_ONLY_ANSWERS, SELF_STUDY_FILE = "answers-eval-only.jsonl", "self-study.jsonl"
NOTES = ("scores.json", "answers.jsonl", EVAL_ONLY_ANSWERS, "document.json",
         SELF_STUDY_FILE)  # that runs write beside an adapter
NOTE_KEYS = {"scores.json": ("scores.json", "exact_match"), "answers.jsonl": ("scores.json", "answers"),
             EVAL_ONLY_ANSWERS: ("scores.json", "exact_match"),
             "document.json": ("document.json", "rows"),
             SELF_STUDY_FILE: ("document.json", "self_study")}  # a note is a run's if this file has this key
RESULTS = ("scores.json", *FOLDER_MARKERS.values())
LEFTOVER = re.compile(  # of an interrupted write
    rf"\.(({SEARCH})?\d{{8,}}\.pt|(scores|answers(-eval-only)?|document|combination|(adapter_)?model|pytorch_model|tokenizer|"
    r"((adapter|tokenizer|generation)_)?config|special_tokens_map|chat_template)\.\w+)\.\d+\.tmp")


class RunFolder:
    """with RunFolder(out, resume, overwrite) as run: this run alone works in the folder.

    Of several processes the main one acts for all. Raises Error when another run works there, when
    it cannot be written to, when it holds a run and neither `resume` nor `overwrite` is set, and
    when there is nothing to resume.
    """

    def __init__(self, folder, resume: bool = False, overwrite: bool = False):
        self.folder, self.resume, self.overwrite = Path(folder), resume, overwrite
        self.checkpoints = self.folder / "training_state"
        self._lock, self._anew = FileLock(self.checkpoints / "lock"), self.checkpoints / "anew"
        self._intact: dict[str, list[Path]] = {}  # by stage: verified or just written, oldest first
        self.notes: list[Path] = []  # of the run before; on the main process
        self.was_stopped = False

    def __enter__(self) -> "RunFolder":
        run_on_rank0(self._enter)
        return self

    def check(self) -> None:
        """Raise Error for a finished run that is not to be overwritten, or no folder to resume."""
        if self.resume and not self.folder.is_dir():
            raise Error(f"nothing to resume: there is no folder {self.folder}")
        if self.is_finished and self.resume and not self.overwrite:
            then = ", --eval-only evaluates it" if self.has_weights else ""
            raise Error(f"nothing to resume: the run in {self.folder} is finished{self._lost()} "
                        f"(--overwrite starts anew{then})")
        if self.is_finished and not self.overwrite:
            raise Error(f"{self.folder} holds a finished run{self._lost()}: --overwrite replaces "
                        "it, another --out keeps both")

    def _enter(self) -> None:
        self.check()
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise Error(f"{self.folder} is in use: another run works there") from None
        except OSError as e:
            raise Error(f"{self.folder} cannot be written to: {e.strerror}") from None
        try:
            self._was_anew = self._anew.exists()
            self.was_stopped = bool(self._found() or self._was_anew)
            if self.was_stopped and not self.resume and not self.overwrite:
                raise Error(f"{self.folder} holds a run that was stopped: --resume goes on with "
                            "it, --overwrite starts anew")
            if self.overwrite and (self.was_stopped or self.is_finished):
                self._anew.touch()  # the old checkpoints stay until the new run has one
            self.notes = [self.folder / name for name in NOTES if self._is_note(name)]
            there = (*self.folder.glob("*.tmp"), *self.folder.glob("*/*.tmp"))
            self._remove([p for p in there if LEFTOVER.fullmatch(p.name)])
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, kind, error, _) -> None:
        if is_main_process():
            if isinstance(error, Exception) and not is_lost_peer(error) and not self._was_anew:  # else resumable
                self._remove([self._anew])
                if not self._found():
                    self._remove_all()
            self._lock.release()

    @property
    def is_finished(self) -> bool:
        """True if there is a result, and no checkpoint of an unfinished run."""
        has_result = any((self.folder / name).exists() for name in RESULTS)
        return has_result and not self._found() and not self._anew.exists()

    @property
    def has_weights(self) -> bool:
        """True if tensors lie in the folder or, of a combination, in one of its parts."""
        files = [*self.folder.glob("*.*"), *self.folder.glob("*/*.*")]
        return any(path.suffix in (".safetensors", ".bin") for path in files)

    def _lost(self) -> str:
        return "" if self.has_weights else ", but its weights were deleted or not copied along"

    def _is_note(self, name: str) -> bool:
        """True if a run wrote it, and not a user."""
        file, key = NOTE_KEYS[name]
        with contextlib.suppress(Error):
            return read_json(self.folder / file).get(key) is not None
        return False

    def _found(self, stage: str = f"({SEARCH})?") -> list[Path]:
        """All checkpoints, or those of a stage, intact or not, oldest first."""
        files = self.checkpoints.glob("*.pt")
        return sorted(p for p in files if re.fullmatch(rf"{stage}\d{{8,}}-[0-9a-f]{{16}}\.pt", p.name))

    def _remove(self, paths: list[Path]) -> None:
        for path in paths:
            path.unlink(missing_ok=True)

    def save(self, step: int, checkpoint: dict, stage: str = "") -> None:
        """Write a checkpoint, then remove all but the stage's last two. Raises Error if it cannot.

        stage: "" for training, SEARCH for the search before it."""
        run_on_rank0(lambda: self._save(step, checkpoint, stage))

    def _save(self, step: int, checkpoint: dict, stage: str) -> None:
        path = write_atomically(self.checkpoints / f"{stage}{step:08d}.pt",
                                lambda to: save_torch(to, checkpoint),
                                name=lambda sha256: f"{stage}{step:08d}-{sha256[:16]}.pt")
        intact = [*(p for p in self._intact.get(stage, []) if p != path), path][-2:]
        self._intact[stage] = intact
        old = self._found() if self._anew.exists() else self._found(stage)
        self._remove([p for p in old if p not in intact] + [self._anew])

    def newest(self, stage: str = "") -> Path | None:
        """The stage's newest intact checkpoint or None. Warns of damaged ones; Error if all are."""
        return run_on_rank0(lambda: self._newest(stage))

    def _newest(self, stage: str) -> Path | None:
        found = [] if self._anew.exists() else self._found(stage)[::-1]
        for i, path in enumerate(found):
            if is_intact(path):
                for other in found[:i]:
                    print(f"warning: {other} is damaged, going back to the checkpoint before it",
                          file=sys.stderr)
                self._intact[stage] = [path]
                return path
        if found:
            raise Error(f"nothing to resume: every checkpoint in {self.checkpoints} is damaged "
                        "(--overwrite starts anew)")
        return None

    def finish(self, *notes: str) -> None:
        """Once the result is written, with these notes: remove checkpoints, lock, other notes."""
        run_on_rank0(lambda: self._remove([path for path in self.notes if path.name not in notes]))
        run_on_rank0(self._remove_all)

    def _remove_all(self) -> None:
        for path in [*self._found(), self._anew, self.checkpoints / "lock"]:
            with contextlib.suppress(OSError):  # Windows keeps open files
                path.unlink()
        for folder in (self.checkpoints, self.folder):
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()


def check_no_run(folder: str | Path) -> None:
    """Raise Error for a folder that holds a run, finished or stopped."""
    run = RunFolder(folder)
    if run._found() or run._anew.exists() or any(map(run._is_note, NOTES)):
        raise Error(f"{folder} holds a run of train.py: write into another folder")


def template_of_run(out: Path) -> str | None:
    """The template that the run in a folder had, None if nothing tells."""
    if not (out / "scores.json").exists():
        return None
    found = read_json(out / "scores.json").get("flags")
    template = found.get("template") if isinstance(found, dict) else None
    return template if isinstance(template, str) else None


def is_intact(path: Path) -> bool:
    """True if the file's SHA-256 is the one in its name."""
    try:
        return file_exists(path) and path.stem.rpartition("-")[2] == file_sha256(path)[:16]
    except (Error, OSError):  # Error: a pipe in its place
        return False


def read_checkpoint(path: Path) -> dict:
    """A checkpoint's content, read without running code. Raises Error when it is damaged."""
    if not is_intact(path):
        raise Error(f"{path} is damaged: it is not what was written")
    return read_torch(path)
