"""Atomic writes (a file is written whole or not at all); reads that check kind and size first."""

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

from ..checks import Error, shown

MAX_JSON_BYTES = 1 << 21  # parsed, nested brackets take 20 times the memory of the file
FOLDER_MARKERS = {"a base": "config.json", "an adapter": "adapter_config.json",
                  "a combination": "combination.json"}


def as_path(name: str, value) -> Path:
    """The path. Raises Error unless it is text or a path."""
    if not isinstance(value, (str, os.PathLike)):
        raise Error(f"{name} must be a path, not {shown(value)}")
    return Path(value)


def write_atomically(path: Path, write: Callable[[Path], object],
                     name: Callable[[object], str] | None = None) -> Path:
    """Call write(temporary path), flush to disk, rename; returns the path written.

    name: maps what `write` returned to a file name that replaces path's. Raises Error when the file
    cannot be written; the old file is still there then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)  # by the umask, whatever `write` gives its file
        written = write(temporary)
        with contextlib.suppress(OSError):  # some file systems have no modes
            temporary.chmod(mode)
        with open(temporary, "rb+") as f:
            os.fsync(f.fileno())
        final = path.with_name(name(written)) if name else path
        os.replace(temporary, final)
        return final
    except Exception as e:  # for a full disk every library raises an exception of its own
        raise Error(f"{path} cannot be written: {getattr(e, 'strerror', None) or e}") from None
    finally:
        with contextlib.suppress(OSError):  # the folder may have become read-only
            temporary.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    sha256 = hashlib.sha256()
    with open(path, "rb") as f:
        while piece := f.read(1 << 20):
            sha256.update(piece)
    return sha256.hexdigest()


def write_json(path: Path, value: dict) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, lambda to: to.write_text(text, encoding="utf-8"))


def file_exists(path: Path) -> bool:
    """True for a regular file, False for nothing. Raises Error for a folder, and for a pipe or a
    device, which may block forever when opened."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as e:
        raise Error(f"{path} cannot be read: {getattr(e, 'strerror', None) or e}") from None
    if not stat.S_ISREG(mode):
        raise Error(f"{path} cannot be read: it is not a regular file")
    return True


def lost_from_run(path: Path) -> str:
    """The reason why a file is not there, if its folder is a run's without a result; else ""."""
    folder = path.parent
    if any((folder / marker).exists() for marker in FOLDER_MARKERS.values()):
        return ""
    if (folder / "training_state").is_dir():
        return f"{folder} holds a run that was stopped, and no result yet: train.py --resume goes on with it"
    if (folder / "scores.json").exists():
        return f"{folder} holds the scores of a run, but its {path.name} was deleted or not copied along"
    return ""


def read_json(path: Path) -> dict:
    """Read a JSON object. Raises Error for a missing or unreadable file, or any other content."""
    if not file_exists(path):
        raise Error(lost_from_run(path) or f"{path} is missing")
    try:
        if (size := path.stat().st_size) > MAX_JSON_BYTES:
            raise Error(f"{path} has {size:,} bytes: "
                        f"no JSON file here needs more than {MAX_JSON_BYTES:,}")
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except Error:
        raise
    except (OSError, ValueError, RecursionError) as e:
        raise Error(f"{path} is not a readable JSON file ({type(e).__name__})") from None
    if not isinstance(value, dict):
        raise Error(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value


def check_destination(folder, kind: str) -> None:
    """Raise Error when `kind`, one of FOLDER_MARKERS, cannot be saved here beside another kind."""
    folder = as_path("the folder to save in", folder)
    if folder.exists() and not folder.is_dir():
        raise Error(f"{folder} is a file, but saving needs a folder")
    for other, marker in FOLDER_MARKERS.items():
        if other != kind and (folder / marker).exists():
            raise Error(f"{folder} already holds {other}: save {kind} in a folder of its own")
