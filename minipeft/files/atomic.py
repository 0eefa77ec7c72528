"""Files are written whole or not at all, and read with their size and kind checked first."""

import contextlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

from ..config import Error


def write_atomically(path: Path, write: Callable[[Path], object], name: Callable[[object], str] | None = None) -> Path:
    """write(temporary path), then flush it to the disk and put it in place in one step: readers see the old file or the new.

    name: what `write` returned -> a name to take instead of the path's, where it depends on what was written. Returns where the file
    is. Raises Error when it cannot be written; what was there before is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        written = write(temporary)
        with open(temporary, "rb+") as f:
            os.fsync(f.fileno())
        final = path.with_name(name(written)) if name else path
        os.replace(temporary, final)
        return final
    except Exception as e:  # every library has its own kind for a full disk
        raise Error(f"{path} cannot be written: {getattr(e, 'strerror', None) or e}") from None
    finally:
        with contextlib.suppress(OSError):  # a folder that became read-only
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: dict) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """UTF-8, atomically."""
    write_atomically(path, lambda to: to.write_text(text, encoding="utf-8"))


def is_there(path: Path) -> bool:
    """Whether this file is there. Raises Error for anything else in its place: to open a pipe or a device may never return."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as e:
        raise Error(f"{path} cannot be read: {getattr(e, 'strerror', None) or e}") from None
    if not stat.S_ISREG(mode):
        raise Error(f"{path} cannot be read: it is no regular file")
    return True


JSON_BYTES = 1 << 21  # that a config or an index may have: as Python's lists, brackets take some twenty times the file


def read_json(path: Path) -> dict:
    """A JSON object from a file. Raises Error when the file is missing, unreadable or holds anything else."""
    if not is_there(path):
        raise Error(f"{path} is missing")
    try:
        if (size := path.stat().st_size) > JSON_BYTES:
            raise Error(f"{path} has {size:,} bytes: no JSON file here needs more than {JSON_BYTES:,}")
        value = json.loads(path.read_text(encoding="utf-8"))
    except Error:
        raise
    except (OSError, ValueError, RecursionError) as e:
        raise Error(f"{path} is not a readable JSON file ({type(e).__name__})") from None
    if not isinstance(value, dict):
        raise Error(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value


KINDS = {"a base": "config.json", "an adapter": "adapter_config.json", "a combination": "combination.json"}


def check_place(folder, kind: str) -> None:
    """Raise Error when one of KINDS would be written into a folder that already holds another of them."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise Error(f"{folder} is a file: what is saved needs a folder")
    for other, marker in KINDS.items():
        if other != kind and (folder / marker).exists():
            raise Error(f"{folder} already holds {other}: save {kind} in a folder of its own")
