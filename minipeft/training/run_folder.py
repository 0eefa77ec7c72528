"""The folder of a run: one run at a time, and its training states, each written whole and checked before it is read.

    OUT/training_state/00000120-1f3a9c04e7b25d68.pt    a state, named by its step and the start of the file's SHA-256
    OUT/training_state/lock                            held while a run works; the system frees it when the process ends, however it ends
    OUT/training_state/anew                            a run that overwrites has no state yet: what lies here is of the run before it

The last two states are kept, so that a damaged one costs some steps and not the run. A finished run leaves no training_state.
"""

import contextlib
import hashlib
import re
import sys
from pathlib import Path

from filelock import FileLock, Timeout  # comes with torch, which needs it

from ..config import Error
from ..files.atomic import KINDS, is_there, write_atomically
from ..files.tensors import dump_torch, read_torch
from ..runtime.processes import is_main_process, lost_peer, run_on_rank0

RESULTS = ("scores.json", *KINDS.values())
LEFTOVER = re.compile(r"\.(\d{8,}\.pt|(scores|answers|(adapter_)?(config|model)|pytorch_model|combination)\.\w+)\.\d+\.tmp")  # of a write


class RunFolder:
    """with RunFolder(out, resume, overwrite) as run: the folder is this run's alone. Of several processes the leader does it for all.

    Raises Error when another run works there, when it cannot be written to, when it holds a run and neither `resume` nor `overwrite`
    is set, and when there is nothing to resume.
    """

    def __init__(self, folder, resume: bool = False, overwrite: bool = False):
        self.folder, self.resume, self.overwrite = Path(folder), resume, overwrite
        self.states = self.folder / "training_state"
        self._lock, self._anew = FileLock(self.states / "lock"), self.states / "anew"
        self._kept: list[Path] = []  # known to be whole, oldest first

    def __enter__(self) -> "RunFolder":
        run_on_rank0(self._enter)
        return self

    def _enter(self) -> None:
        if self.resume and not self.folder.is_dir():
            raise Error(f"nothing to resume: there is no folder {self.folder}")
        self._refuse_a_result()  # before anything is made there
        try:
            self.states.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise Error(f"{self.folder} is in use: another run works there") from None
        except OSError as e:
            raise Error(f"{self.folder} cannot be written to: {e.strerror}") from None
        try:
            stopped = self._found() or self._anew.exists()
            if stopped and not self.resume and not self.overwrite:
                raise Error(f"{self.folder} holds a run that was stopped: --resume goes on with it, --overwrite starts anew")
            if self.overwrite and (stopped or self.is_finished):
                self._anew.touch()  # and the states go with the first that is better: a wrong flag of the new run must not cost them
            self._remove([p for p in (*self.folder.iterdir(), *self.states.iterdir()) if LEFTOVER.fullmatch(p.name)])
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, kind, error, _) -> None:
        if is_main_process():
            if isinstance(error, Exception) and not lost_peer(error):  # not where it was stopped, by whomever: that can be resumed
                self._remove([self._anew])
                if not self._found():
                    self._remove_all()
            self._lock.release()

    def _refuse_a_result(self) -> None:
        """Raise Error where a finished run would be resumed, or replaced without being asked to."""
        if self.overwrite or not self.is_finished:
            return
        if self.resume:
            raise Error(f"nothing to resume: the run in {self.folder} is finished (--overwrite starts anew, --eval-only evaluates it)")
        raise Error(f"{self.folder} holds a finished run: --overwrite replaces it, another --out keeps both")

    @property
    def is_finished(self) -> bool:
        """Whether a result lies there, and no state from before it."""
        return not self._found() and not self._anew.exists() and any((self.folder / name).exists() for name in RESULTS)

    def _found(self) -> list[Path]:
        """The states that lie there, whole or not, oldest first."""
        return sorted(p for p in self.states.glob("*.pt") if re.fullmatch(r"\d{8,}-[0-9a-f]{16}\.pt", p.name))

    def _remove(self, paths: list[Path]) -> None:
        for path in paths:
            path.unlink(missing_ok=True)

    def save(self, step: int, state: dict) -> None:
        """Write a state, and remove all but the last two. Raises Error when it cannot be written; those that were there stay."""
        run_on_rank0(lambda: self._save(step, state))

    def _save(self, step: int, state: dict) -> None:
        path = write_atomically(
            self.states / f"{step:08d}.pt", lambda to: dump_torch(to, state), name=lambda sha256: f"{step:08d}-{sha256[:16]}.pt"
        )
        self._kept = [*(p for p in self._kept if p != path), path][-2:]
        self._remove([p for p in self._found() if p not in self._kept] + [self._anew])

    def newest(self) -> Path | None:
        """The newest state that is whole; None where there are none. Damaged ones are passed over with a warning on stderr.

        Raises Error when there are only damaged ones.
        """
        return run_on_rank0(self._newest)

    def _newest(self) -> Path | None:
        damaged = []
        for path in reversed([] if self._anew.exists() else self._found()):
            if is_whole(path):
                for other in damaged:
                    print(f"warning: {other} is damaged, going back to the state before it", file=sys.stderr)
                self._kept = [path]
                return path
            damaged.append(path)
        if damaged:
            raise Error(f"nothing to resume: every training state in {self.states} is damaged (--overwrite starts anew)")
        return None

    def finish(self) -> None:
        """Remove the states and the lock: the result is safe."""
        run_on_rank0(self._remove_all)

    def _remove_all(self) -> None:
        for path in [*self._found(), self._anew, self.states / "lock"]:
            with contextlib.suppress(OSError):  # Windows keeps what is open
                path.unlink()
        for folder in (self.states, self.folder):
            with contextlib.suppress(OSError):  # something lies there
                folder.rmdir()


def is_whole(path: Path) -> bool:
    """Whether a state is, byte for byte, what its name says that was written."""
    try:
        if not is_there(path):
            return False
        sha256 = hashlib.sha256()
        with open(path, "rb") as f:
            for piece in iter(lambda: f.read(1 << 20), b""):
                sha256.update(piece)
        return path.stem.partition("-")[2] == sha256.hexdigest()[:16]
    except (Error, OSError):  # a pipe in its place is an Error
        return False


def read_state(path: Path) -> dict:
    """What a state holds, read without running code. Raises Error when it is damaged."""
    if not is_whole(path):
        raise Error(f"{path} is damaged: it is not what was written")
    return read_torch(path)
