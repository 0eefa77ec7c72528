"""Named tensors in files: safetensors, or torch's own format (.bin) where safetensors is missing.

A checksum of the tensors is saved with them: in the metadata of a safetensors file, or under
"minipeft" in the config beside a .bin. Reading a file runs no code from it.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..checks import Error, shown
from . import torch_format
from .atomic import file_exists, file_sha256, read_json, write_atomically


def have_safetensors() -> bool:
    return importlib.util.find_spec("safetensors") is not None


def write_tensors(folder: Path, stem: str, tensors: dict[str, Tensor], safe: bool | None,
                  notes: dict | None = None) -> bool:
    """Write {name: tensor}, and remove a leftover file of the other format.

    safe: True for safetensors with `notes` in its metadata, False for torch's format, None for
    safetensors if it is installed. Returns True for safetensors.
    """
    safe = have_safetensors() if safe is None else safe
    path = _tensor_paths(folder, stem)[0 if safe else 1]
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    if safe:
        if not have_safetensors():
            raise Error("writing safetensors needs: pip install safetensors")
        from safetensors.torch import save_file

        metadata = {"format": "pt"} | ({"minipeft": json.dumps(notes)} if notes else {})
        write_atomically(path, lambda to: save_file(tensors, to, metadata=metadata))
    else:
        write_atomically(path, lambda to: save_torch(to, tensors))
    for file in tensor_files(folder, stem):  # an index of earlier shards would be read instead
        if file != path:
            file.unlink(missing_ok=True)
    return safe


def tensor_files(folder: Path, stem: str) -> list[Path]:
    """The files that `write_tensors` writes or removes: of both formats, and their indexes."""
    paths = _tensor_paths(folder, stem)
    return [*paths, *(path.with_name(f"{path.name}.index.json") for path in paths)]


def _tensor_paths(folder: Path, stem: str) -> tuple[Path, Path]:
    """The safetensors and the .bin path; Hugging Face calls a model's .bin pytorch_model."""
    return (folder / f"{stem}.safetensors",
            folder / f"{'pytorch_model' if stem == 'model' else stem}.bin")


def save_torch(to: Path, value: dict) -> str:
    """torch.save; returns the SHA-256 of the file."""
    try:
        with open(to, "wb") as f:  # given a path, torch would store its name in the file
            torch.save(value, f)
    except RuntimeError as e:  # torch hides the OSError of a full disk behind one of its own
        raise e.__context__ if isinstance(e.__context__, OSError) else e from None
    return file_sha256(to)


class Lazily(dict):
    """{name: function}, read as {name: what the function returns}."""

    def __getitem__(self, name):
        return super().__getitem__(name)()


class StoredTensors:
    """Iterator over the (name, tensor) pairs of a folder; no file is ever in memory twice.

    path: the (first) file; size: bytes of all files; notes: the dict that write_tensors saved.
    Raises Error when there is no file, and during iteration when a file is torn, holds anything but
    named tensors or does not match its checksum.
    """

    def __init__(self, folder: Path, stem: str, config: dict):
        self.files = _find_files(folder, stem)
        self.path, self.notes = self.files[0], config.get("minipeft", {})
        self.size = sum(path.stat().st_size for path in self.files)
        if self.path.suffix == ".safetensors":
            if not have_safetensors():
                raise Error(f"reading {self.path} needs: pip install safetensors")
            self.notes = _from_safetensors(
                self.path, lambda f: json.loads((f.metadata() or {}).get("minipeft", "{}")))
        if not isinstance(self.notes, dict):
            raise Error(f"{self.path} is damaged: its notes are no JSON object")

    def __iter__(self):
        checksum, seen = hashlib.sha256(), set()
        for path in self.files:
            read = _read_safetensors if path.suffix == ".safetensors" else _read_bin
            for name, t in read(path):
                if not isinstance(name, str) or not isinstance(t, Tensor):
                    raise Error(f"{path} holds something else than named tensors")
                if name in seen:
                    raise Error(f"{path} holds {shown(name)}, which another shard holds as well")
                seen.add(name)
                if "sha256" in self.notes:
                    _update_hash(checksum, name, t)
                yield name, t
        if self.notes.get("sha256", checksum.hexdigest()) != checksum.hexdigest():
            raise Error(f"{self.path} is damaged: its tensors do not match their checksum")

    def names(self) -> list:
        """The tensors' names; from a safetensors file without the tensors."""
        if self.path.suffix != ".safetensors":
            return [name for name, _ in self]
        return [name for path in self.files
                for name in _from_safetensors(path, lambda f: sorted(f.keys()))]

    def lazily(self) -> Lazily:
        """{name: tensor}; from a safetensors file each is read alone, when it is asked for."""
        if self.path.suffix != ".safetensors":
            tensors = dict(self)
            return Lazily({name: partial(tensors.get, name) for name in tensors})
        places = {name: path for path in self.files
                  for name in _from_safetensors(path, lambda f: list(f.keys()))}
        return Lazily({name: partial(_from_safetensors, path, lambda f, name=name: f.get_tensor(name))
                       for name, path in places.items()})

    def check_size(self, parameters: int, where) -> None:
        """Raise Error when the config at `where` describes more parameters than the files can hold,
        before tensors of that size are allocated; small excesses are left to check_tensors."""
        if parameters > max(self.size, 1 << 20):
            raise Error(f"{where} describes {shown(parameters)} parameters, "
                        f"but there are {self.size:,} bytes of tensors")

    def check_config(self, config: dict, where) -> None:
        """Raise Error when `config` differs from the one saved with the tensors."""
        if self.notes.get("config", ours := config_digest(config)) != ours:
            raise Error(f"{where} is damaged: "
                        f"it is not the config that {self.path.name} was saved with")


def _find_files(folder: Path, stem: str) -> list[Path]:
    """The file of tensors in a folder, or the shards of an index. Raises Error for missing ones."""
    paths = _tensor_paths(folder, stem)
    for path in paths:
        index = path.with_name(f"{path.name}.index.json")
        if file_exists(path):
            return [path]
        if file_exists(index):
            names = read_json(index).get("weight_map")
            files = names.values() if isinstance(names, dict) else ()
            if not files or not all(map(_is_plain_name, files)):
                raise Error(f"{index} must list the file of every tensor under weight_map")
            shards = sorted({folder / file for file in files})
            for shard in shards:
                if not file_exists(shard):
                    raise Error(f"{shard} is missing: it is one of the {len(shards)} shards "
                                f"that {index.name} lists")
            return shards
    raise Error(f"{folder} holds neither {paths[0].name} nor {paths[1].name}: "
                "its weights were deleted or not copied along")


def _is_plain_name(name) -> bool:
    """True for the name of a file in the folder itself: no path, no line break."""
    plain = isinstance(name, str) and re.fullmatch(r"[\w.-]{1,200}", name, re.ASCII) is not None
    return plain and name.strip(".") != ""


def _read_bin(path: Path) -> Iterator[tuple[str, Tensor]]:
    tensors = read_torch(path)
    for name in sorted(tensors, key=str):
        yield name, tensors.pop(name)


def _read_safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Reopens the file after every megabyte: while it is open, its mapping counts as memory."""
    names = sorted(_from_safetensors(path, lambda f: list(f.keys())), reverse=True)

    def read_some(f) -> list[tuple[str, Tensor]]:
        some, size = [], 0
        while names and size < 1 << 20:
            t = f.get_tensor(names[-1])
            size += t.nbytes
            some.append((names.pop(), t if size >= 1 << 20 else t.clone()))  # only the last: a view
        return some

    while names:
        yield from _from_safetensors(path, read_some)


def _from_safetensors(path: Path, read: Callable):
    """Return read(the open file). Raises Error when the file is torn."""
    from safetensors import safe_open

    try:
        open(path, "rb").close()
    except OSError as e:  # which the library calls a file that is not there
        raise Error(f"{path} cannot be read: {e.strerror}") from None
    with library_errors(f"{path} is torn or not a file of tensors"), safe_open(path, "pt") as f:
        return read(f)


@contextlib.contextmanager
def library_errors(message: str):
    """Turn any exception of a library written in Rust into an Error with this message. A panic is
    a BaseException, and prints a page to stderr, which is silent meanwhile."""
    try:
        with _silent_stderr():
            yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as e:
        reason = " ".join(str(e).split())[:200]
        raise Error(f"{message} ({type(e).__name__}{f': {reason}' if reason else ''})") from None


@contextlib.contextmanager
def _silent_stderr():
    """Within, nothing that is written to stderr is shown."""
    try:
        stderr = os.dup(2)
    except OSError:  # it is closed already (2>&-)
        yield
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)


def read_torch(path: Path) -> dict:
    """Read a dictionary that torch.save wrote. Raises Error for a torn file or anything else."""
    exists = file_exists(path)
    try:
        value = torch_format.load(path) if exists else None
    except Exception as e:  # zipfile and pickle raise many kinds of exceptions for a torn file
        reason = str(e) if isinstance(e, torch_format.Malformed) else type(e).__name__
        raise Error(f"{path} is torn or not a file of tensors ({reason})") from None
    if not isinstance(value, dict):
        raise Error(f"{path} must hold named tensors, not a {type(value).__name__}")
    return value


FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_tensors(found: dict, expected: dict[str, Tensor], where) -> None:
    """Raise Error unless names, shapes and types are as expected; any float type fits a float."""
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(map(str, found.keys() - expected.keys()))
    if missing or extra:
        lists = (shown(names[:3]) if names else "nothing" for names in (missing, extra))
        raise Error(f"{where} does not fit: missing {', not expected '.join(lists)}")
    for name, want in expected.items():
        have = found[name]
        if not isinstance(have, Tensor) or have.shape != want.shape:
            shape = shown(tuple(have.shape)) if isinstance(have, Tensor) else type(have).__name__
            raise Error(f"{where} does not fit: {name} is {shape}, "
                        f"but {tuple(want.shape)} is needed")
        if have.dtype != want.dtype and not (have.dtype in FLOATS and want.dtype in FLOATS):
            types = (str(t.dtype).removeprefix("torch.") for t in (have, want))
            raise Error(f"{where} does not fit: {name} is {' and not '.join(types)}")


def config_digest(config: dict) -> str:
    """SHA-256 of a config's JSON, independent of the order of its fields."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def digest(tensors: dict[str, Tensor], dtype: torch.dtype | None = None) -> str:
    """SHA-256 over names, shapes, types and bytes; with dtype, over the values rounded to it."""
    sha256 = hashlib.sha256()
    for name in sorted(tensors):
        _update_hash(sha256, name, tensors[name], dtype)
    return sha256.hexdigest()


def _update_hash(sha256, name: str, t: Tensor, dtype: torch.dtype | None = None) -> None:
    t = t.detach().to("cpu", dtype).contiguous()
    sha256.update(f"{name} {tuple(t.shape)} {t.dtype};".encode())
    flat = t.as_strided((t.numel(),), (1,))  # a single element may have any stride
    sha256.update(flat.view(torch.uint8).numpy().data if t.numel() else b"")
