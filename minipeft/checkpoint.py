"""Files: written whole or not at all, checked when they are read, and never a place that code runs from.

An adapter is a folder in PEFT's layout: adapter_config.json and adapter_model.safetensors (adapter_model.bin where safetensors is
not installed); a base is a Hugging Face folder (hf.py). With the tensors of both travels their checksum, with an adapter's also the
fingerprint of its base: in the metadata of a safetensors file, or under "minipeft" in the config beside a .bin.
"""

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from . import accounting, torch_format
from .config import Error, shown
from .methods import METHODS
from .methods.base import Adapted, Method
from .methods.combined import Combined
from .methods.full import Full
from .model import GPT


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


def fingerprint(base: GPT) -> str:
    """Which base this is: shape and weights, rounded to bfloat16 so that its float32 and bfloat16 copies are the same base."""
    c = base.config
    shape = [c.vocab_size, c.block_size, c.n_layer, c.n_head, c.n_embd, float(c.layer_norm_epsilon)]
    shape += [float(c.rope_theta)] if c.position == "rotary" else []
    shape += [c.n_kv] if c.n_kv != c.n_head else []  # the weights' own names and shapes tell the other choices apart
    shape += [tuple(map(float, c.rope_scaling))] if c.rope_scaling else []
    return hashlib.sha256(f"{shape} {c.position} {digest(base.state_dict(), torch.bfloat16)}".encode()).hexdigest()


KINDS = {"a base": "config.json", "an adapter": "adapter_config.json", "a combination": "combination.json"}


def check_place(folder, kind: str) -> None:
    """Raise Error when one of KINDS would be written into a folder that already holds another of them."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise Error(f"{folder} is a file: what is saved needs a folder")
    for other, marker in KINDS.items():
        if other != kind and (folder / marker).exists():
            raise Error(f"{folder} already holds {other}: save {kind} in a folder of its own")


def parts_in(folder: Path) -> dict[str, str]:
    """{name of a part: checksum of its tensors} of the combination that this folder holds; {} when it holds none."""
    if not is_there(folder / "combination.json"):
        return {}
    where = folder / "combination.json"
    whole = read_json(where)
    parts = whole.get("parts")
    if not isinstance(parts, dict) or len(parts) < 2 or not all(name in METHODS for name in parts):
        raise Error(f"{where} must name the parts, of {', '.join(METHODS)}, two or more")
    if whole.get("sha256", ours := digest_of_config(parts)) != ours:
        raise Error(f"{where} is damaged: its parts do not match their checksum")
    return parts


def save_combination(parts, base: GPT, folder, base_fingerprint: str | None = None) -> None:
    """Write one adapter folder a part, and then combination.json, which says which parts belong together.

    parts: name -> Method. Raises Error when the folder holds something else.
    """
    check_place(folder, "a combination")
    base_fingerprint = base_fingerprint or fingerprint(base)
    for name, part in parts.items():
        part.save(base, Path(folder) / name, base_fingerprint)
    digests = {name: digest(part.tensors()) for name, part in parts.items()}
    write_json(Path(folder) / "combination.json", {"parts": digests, "sha256": digest_of_config(digests)})


def save_adapter(method: Method, base: GPT, folder, base_fingerprint: str | None = None) -> None:
    """Write the adapter folder, tensors first; tensors that a stop in between leaves beside an older config do not fit it.

    Raises Error when the folder holds something else.
    """
    check_place(folder, "an adapter")
    folder, tensors = Path(folder), method.tensors()
    its_own = method.peft_config(base)
    notes = {"base": base_fingerprint or fingerprint(base), "sha256": digest(tensors), "config": digest_of_config(its_own)}
    safe = write_tensors(folder, "adapter_model", tensors, None, notes)
    config = {**its_own, "task_type": "CAUSAL_LM", "inference_mode": True, "base_model_name_or_path": None}
    write_json(folder / "adapter_config.json", config if safe else config | {"minipeft": notes})


def load_adapter(base: GPT, folder, base_fingerprint: str | None = None) -> Adapted:
    """Open what `model.save(folder)` wrote and attach it to the base, in eval mode.

    A fully tuned model is a base of its own: it is opened beside the one given, which stays as it is.
    base_fingerprint: fingerprint(base) where it is known already; it takes a pass over all weights.
    Raises Error when files are missing, torn or changed, or belong to another base.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise Error(f"no adapter at {folder}: there is no such folder")
    if is_there(folder / "config.json") and not is_there(folder / "adapter_config.json"):
        tuned = GPT.from_pretrained(folder)
        if tuned.config.resolved() != base.config.resolved():
            raise Error(f"{folder} holds a fully tuned model of another shape than the base's")
        return Adapted(tuned.to(base.wte.weight.device), Full(tuned)).eval()
    here = base_fingerprint or fingerprint(base)
    if parts := parts_in(folder):
        methods = [load_method(base, folder / name, here) for name in METHODS if name in parts]
        for method in methods:
            if digest(method.tensors()) != parts[method.name]:
                raise Error(f"{folder}: its {method.name} is not the one it was saved with")
        try:
            combined = Combined(base, methods)
        except Error as e:
            raise Error(f"{folder}: {e}") from None
        return Adapted(base, combined).eval()
    return Adapted(base, load_method(base, folder, here)).eval()


@torch.no_grad()
def load_method(base: GPT, folder: Path, here: str) -> Method:
    """One adapter folder's method, not attached to the base yet; load_adapter says what is checked. here: the base's fingerprint."""
    where = folder / "adapter_config.json"
    config = read_json(where)
    methods = {peft_type: method for method in METHODS.values() for peft_type in method.peft_types}
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in methods:
        raise Error(f"{where}: peft_type must be one of {', '.join(methods)}, not {shown(kind)}")
    stored = StoredTensors(folder, "adapter_model", config)
    if stored.notes.get("base", here) != here:
        raise Error(f"{folder} was tuned for another base (fingerprint {shown(stored.notes['base'])[:13]}, this one is {here[:12]})")
    try:
        given = methods[kind].hyperparameters(config)
        sizes = {name: given[name] for name in accounting.depends_on(methods[kind].name) if given.get(name) is not None}
        stored.check_size(accounting.count(base.config, methods[kind].name, **sizes).stored, "it")
        method = methods[kind](base, **given)
    except Error as e:
        raise Error(f"{where}: {e}") from None
    expected = method.peft_config(base)
    for name, ours in expected.items():  # what PEFT wrote has no fingerprint, but names the base's shape
        if name in ("token_dim", "num_layers", "num_attention_heads") and config.get(name, ours) != ours:
            raise Error(f"{folder} was tuned for another base: {name} is {shown(config[name])}, this one has {ours}")
    if expected["peft_type"] != kind:
        raise Error(f"{folder} is {kind}, which on this base is another function than {method.name} ({expected['peft_type']})")

    tensors = dict(stored)
    check_tensors(tensors, method.tensors(), stored.path)
    stored.check_config(expected, where)  # last: whatever fits no tensor is told in its own words
    if floats := {t.dtype for t in tensors.values() if t.is_floating_point()}:
        method.to(functools.reduce(torch.promote_types, floats))  # as the file has it, so that what is saved again is the same
    ours = method.tensors()
    for name, t in ours.items():
        t.copy_(tensors[name])
    try:
        method.check(base)
    except Error as e:
        raise Error(f"{stored.path}: {e}") from None
    return method
