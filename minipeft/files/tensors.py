"""Named tensors in files: safetensors, or torch's own format (.bin) where safetensors is not installed.

A checksum of the tensors travels with them: in the metadata of a safetensors file, or under "minipeft" in the config beside a .bin.
No code runs from a file that is read.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..config import Error, shown
from . import torch_format
from .atomic import is_there, read_json, write_atomically


def have_safetensors() -> bool:
    return importlib.util.find_spec("safetensors") is not None


def tensor_paths(folder: Path, stem: str) -> tuple[Path, Path]:
    """Where tensors may lie: as safetensors, or in torch's own format, which Hugging Face calls pytorch_model.bin for a model."""
    return folder / f"{stem}.safetensors", folder / f"{'pytorch_model' if stem == 'model' else stem}.bin"


def write_tensors(folder: Path, stem: str, tensors: dict[str, Tensor], safe: bool | None, notes: dict | None = None) -> bool:
    """Write {name: tensor} as safetensors (with notes in its metadata) or in torch's own format; a leftover other is removed.

    safe: which of the two; None takes safetensors when it is installed. Returns which it was.
    """
    safe = have_safetensors() if safe is None else safe
    path, other = tensor_paths(folder, stem)[:: 1 if safe else -1]
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    if safe:
        if not have_safetensors():
            raise Error("writing safetensors needs: pip install safetensors")
        from safetensors.torch import save_file

        metadata = {"format": "pt"} | ({"minipeft": json.dumps(notes)} if notes else {})
        write_atomically(path, lambda to: save_file(tensors, to, metadata=metadata))
    else:
        write_torch(path, tensors)
    other.unlink(missing_ok=True)
    for leftover in (path, other):
        leftover.with_name(f"{leftover.name}.index.json").unlink(missing_ok=True)  # of shards that are no longer the tensors
    return safe


def write_torch(path: Path, value: dict) -> None:
    """torch.save, atomically."""
    write_atomically(path, lambda to: dump_torch(to, value))


def dump_torch(to: Path, value: dict) -> str:
    """torch.save through a handle (given a path, it would put that name into the file). Returns the file's SHA-256."""
    with open(to, "wb") as f:
        handle = _Hashed(f)
        try:
            torch.save(value, handle)
        except RuntimeError:
            raise handle.error or OSError(f"torch could not write {to.name}") from None
    return handle.sha256.hexdigest()


class _Hashed:
    """What torch.save needs of a file; hashes what passes through, and remembers why it could not, which torch does not tell."""

    def __init__(self, f):
        self.f, self.sha256, self.error = f, hashlib.sha256(), None

    def write(self, data) -> int:
        try:
            self.sha256.update(data)
            return self.f.write(data)
        except OSError as e:
            self.error = e
            raise

    def flush(self) -> None:
        self.f.flush()


def stored_files(folder: Path, stem: str) -> list[Path]:
    """The file that holds a folder's tensors, or the several that an index lists (shards). Raises Error when one is missing."""
    kinds = tensor_paths(folder, stem)
    for path in kinds:
        index = path.with_name(f"{path.name}.index.json")
        if is_there(path):
            return [path]
        if is_there(index):
            names = read_json(index).get("weight_map")
            if not isinstance(names, dict) or not names or not all(map(_is_plain_name, names.values())):
                raise Error(f"{index} must list the file of every tensor under weight_map")
            shards = sorted({folder / name for name in names.values()})
            for shard in shards:
                if not is_there(shard):
                    raise Error(f"{shard} is missing: it is one of the {len(shards)} shards that {index.name} lists")
            return shards
    raise Error(f"{folder} holds neither {kinds[0].name} nor {kinds[1].name}")


def _is_plain_name(name) -> bool:
    """Whether this can be a file in the folder itself: no way out of it, and nothing that breaks the line of a message."""
    return isinstance(name, str) and re.fullmatch(r"[\w.-]{1,200}", name, re.ASCII) is not None and name.strip(".") != ""


class StoredTensors:
    """The named tensors of a folder, one at a time, so that what converts them never holds a file twice.

    notes: what travels with them (in their metadata, or the config beside a .bin); path: the (first) file; size: bytes of all files.
    Raises Error when there is no file, or while it is read for one that is torn, holds anything but named tensors, or does not match
    its checksum.
    """

    def __init__(self, folder: Path, stem: str, config: dict):
        self.files = stored_files(folder, stem)
        self.path, self.notes = self.files[0], config.get("minipeft", {})
        self.size = sum(path.stat().st_size for path in self.files)
        if self.path.suffix == ".safetensors":
            if not have_safetensors():
                raise Error(f"reading {self.path} needs: pip install safetensors")
            self.notes = _guarded(self.path, lambda f: json.loads((f.metadata() or {}).get("minipeft", "{}")))
        if not isinstance(self.notes, dict):
            raise Error(f"{self.path} is damaged: its notes are no JSON object")

    def __iter__(self):
        checksum, seen = hashlib.sha256(), set()
        for path in self.files:
            for name, t in self._of(path):
                if not isinstance(name, str) or not isinstance(t, Tensor):
                    raise Error(f"{path} holds something else than named tensors")
                if name in seen:
                    raise Error(f"{path} holds {shown(name)}, which another shard holds as well")
                seen.add(name)
                if "sha256" in self.notes:
                    _hash(checksum, name, t)
                yield name, t
        if self.notes.get("sha256", checksum.hexdigest()) != checksum.hexdigest():
            raise Error(f"{self.path} is damaged: its tensors do not match their checksum")

    def _of(self, path: Path):
        if path.suffix == ".safetensors":
            names = sorted(_guarded(path, lambda f: list(f.keys())), reverse=True)
            while names:  # opened anew for each that is large: a tensor is a view of its mapping, which goes with it
                yield from _guarded(path, lambda f: _some(f, names))
        else:
            tensors = read_torch(path)
            for name in sorted(tensors, key=str):
                yield name, tensors.pop(name)

    def check_size(self, numbers: int, where) -> None:
        """Raise Error when `where` describes more numbers than the files can hold: before anything of that size is made."""
        if numbers > max(self.size, 1 << 20):  # where it is little, whoever compares names and shapes tells more
            raise Error(f"{where} describes {shown(numbers)} numbers, but there are {self.size:,} bytes of tensors")

    def check_config(self, config: dict, where) -> None:
        """Raise Error when this config is another than the one that was saved with the tensors."""
        if self.notes.get("config", ours := digest_of_config(config)) != ours:
            raise Error(f"{where} is damaged: it is not the config that {self.path.name} was saved with")


def _some(f, names: list[str]) -> list[tuple[str, Tensor]]:
    """Tensors of an open safetensors file, as many as make up a megabyte; takes their names from the end of the list."""
    taken, size = [], 0
    while names and size < 1 << 20:
        t = f.get_tensor(names[-1])
        size += t.nbytes
        taken.append((names.pop(), t if size >= 1 << 20 else t.clone()))  # a small one does not hold the mapping
    return taken


def digest_of_config(config: dict) -> str:
    """SHA-256 of a config's JSON, whatever the order of its fields."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def read_tensors(folder: Path, stem: str, config: dict) -> tuple[dict[str, Tensor], dict, Path]:
    """All of StoredTensors at once: tensors, notes, and the file."""
    stored = StoredTensors(folder, stem, config)
    return dict(stored), stored.notes, stored.path


def _guarded(path: Path, load: Callable):
    """load(an open safetensors file). Raises Error when it is torn."""
    from safetensors import safe_open

    with rust(f"{path} is torn or not a file of tensors"), safe_open(path, "pt") as f:
        return load(f)


@contextlib.contextmanager
def rust(refusal: str):
    """Whatever a library written in Rust raises in here becomes an Error with this message. Its panics are no Exception, and print
    a page to stderr, which goes nowhere meanwhile."""
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as e:
        raise Error(f"{refusal} ({type(e).__name__}{f': {reason}' if (reason := ' '.join(str(e).split())[:200]) else ''})") from None
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def read_torch(path: Path) -> dict:
    """A dictionary written by torch.save, read without running code. Raises Error when it is torn or anything else."""
    try:
        value = torch_format.load(path) if is_there(path) else None
    except Error:
        raise
    except Exception as e:  # zipfile and pickle raise many kinds for what is one thing here: not a whole file
        reason = str(e) if isinstance(e, torch_format.Malformed) else type(e).__name__
        raise Error(f"{path} is torn or not a file of tensors ({reason})") from None
    if not isinstance(value, dict):
        raise Error(f"{path} must hold named tensors, not a {type(value).__name__}")
    return value


FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_tensors(found: dict, expected: dict[str, Tensor], where) -> None:
    """Raise Error unless `found` has exactly the names, shapes and types that `expected` has; a float may be another float."""
    missing, extra = sorted(expected.keys() - found.keys()), sorted(map(str, found.keys() - expected.keys()))
    if missing or extra:
        raise Error(f"{where} does not fit: missing {shown(missing[:3]) if missing else 'nothing'}, not expected "
            f"{shown(extra[:3]) if extra else 'nothing'}")  # fmt: skip
    for name, want in expected.items():
        have = found[name]
        if not isinstance(have, Tensor) or have.shape != want.shape:
            shape = shown(tuple(have.shape)) if isinstance(have, Tensor) else type(have).__name__
            raise Error(f"{where} does not fit: {name} is {shape}, but {tuple(want.shape)} is needed")
        if have.dtype != want.dtype and not (have.dtype in FLOATS and want.dtype in FLOATS):
            types = (str(t.dtype).removeprefix("torch.") for t in (have, want))
            raise Error(f"{where} does not fit: {name} is {' and not '.join(types)}")


def digest(tensors: dict[str, Tensor], dtype: torch.dtype | None = None) -> str:
    """SHA-256 over names, shapes, types and bytes; with dtype, over the values rounded to it."""
    h = hashlib.sha256()
    for name, t in sorted(tensors.items()):
        _hash(h, name, t, dtype)
    return h.hexdigest()


def _hash(h, name: str, t: Tensor, dtype: torch.dtype | None = None) -> None:
    t = t.detach().to("cpu", dtype).contiguous()
    h.update(f"{name} {tuple(t.shape)} {t.dtype};".encode())
    h.update(t.flatten().view(torch.uint8).numpy().data if t.numel() else b"")
