"""Files: written whole or not at all, checked when they are read, and never a place that code runs from.

An adapter is a folder in PEFT's layout: adapter_config.json and adapter_model.safetensors (adapter_model.bin where safetensors is
not installed); a base is a Hugging Face folder (hf.py). With the tensors of both travels their checksum, with an adapter's also the
fingerprint of its base: in the metadata of a safetensors file, or under "minipeft" in the config beside a .bin.
"""

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .config import Error
from .methods import METHODS
from .methods.base import Adapted, Method
from .methods.combined import Combined
from .methods.full import Full
from .model import GPT


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """write(temporary path), then flush it to the disk and put it in place in one step: readers see the old file or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: dict) -> None:
    write_atomically(path, lambda to: to.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8"))


def read_json(path: Path) -> dict:
    """A JSON object from a file. Raises Error when the file is missing, unreadable or holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Error(f"{path} is missing") from None
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
    """torch.save, atomically, and through a handle: given a path, it would put the temporary name into the file."""

    def write(to: Path) -> None:
        with open(to, "wb") as f:
            torch.save(value, f)

    write_atomically(path, write)


def stored_files(folder: Path, stem: str) -> list[Path]:
    """The file that holds a folder's tensors, or the several that an index lists (shards). Raises Error when one is missing."""
    kinds = tensor_paths(folder, stem)
    for path in kinds:
        index = path.with_name(f"{path.name}.index.json")
        if path.exists():
            return [path]
        if index.exists():
            names = read_json(index).get("weight_map")
            if not isinstance(names, dict) or not names or not all(isinstance(n, str) and Path(n).name == n for n in names.values()):
                raise Error(f"{index} must list the file of every tensor under weight_map")
            shards = sorted({folder / name for name in names.values()})
            for shard in shards:
                if not shard.exists():
                    raise Error(f"{shard} is missing: it is one of the {len(shards)} shards that {index.name} lists")
            return shards
    raise Error(f"{folder} holds neither {kinds[0].name} nor {kinds[1].name}")


class StoredTensors:
    """The named tensors of a folder, one at a time, so that what converts them never holds a file twice.

    notes: what travels with them (in their metadata, or the config beside a .bin); path: the (first) file. Raises Error when there is no
    file, or while it is read for one that is torn, holds anything but named tensors, or does not match its checksum.
    """

    def __init__(self, folder: Path, stem: str, config: dict):
        self.files = stored_files(folder, stem)
        self.path, self.notes = self.files[0], config.get("minipeft", {})
        if self.path.suffix == ".safetensors":
            if not have_safetensors():
                raise Error(f"reading {self.path} needs: pip install safetensors")
            self.notes = _guarded(self.path, lambda f: json.loads((f.metadata() or {}).get("minipeft", "{}")))
        if not isinstance(self.notes, dict):
            raise Error(f"{self.path} is damaged: its notes are no JSON object")

    def __iter__(self):
        checksum = hashlib.sha256()
        for path in self.files:
            for name, t in self._of(path):
                if not isinstance(name, str) or not isinstance(t, Tensor):
                    raise Error(f"{path} holds something else than named tensors")
                if "sha256" in self.notes:
                    _hash(checksum, name, t)
                yield name, t
        if self.notes.get("sha256", checksum.hexdigest()) != checksum.hexdigest():
            raise Error(f"{self.path} is damaged: its tensors do not match their checksum")

    def _of(self, path: Path):
        if path.suffix == ".safetensors":
            for name in sorted(_guarded(path, lambda f: list(f.keys()))):
                # opened anew for each: a tensor is a view of its mapping, which goes with it
                yield name, _guarded(path, lambda f, name=name: f.get_tensor(name))
        else:
            tensors = read_torch(path)
            for name in sorted(tensors, key=str):
                yield name, tensors.pop(name)


def read_tensors(folder: Path, stem: str, config: dict) -> tuple[dict[str, Tensor], dict, Path]:
    """All of StoredTensors at once: tensors, notes, and the file."""
    stored = StoredTensors(folder, stem, config)
    return dict(stored), stored.notes, stored.path


def _guarded(path: Path, load: Callable):
    """load(an open safetensors file). Raises Error when it is torn."""
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as f:
            return load(f)
    except Exception as e:  # the reader raises many kinds for what is one thing here: not a whole file
        raise Error(f"{path} is torn or not a file of tensors ({type(e).__name__})") from None


def read_torch(path: Path) -> dict:
    """A dictionary written by torch.save, read without running code. Raises Error when it is torn or anything else."""
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # as above
        raise Error(f"{path} is torn or not a file of tensors ({type(e).__name__})") from None
    if not isinstance(value, dict):
        raise Error(f"{path} must hold named tensors, not a {type(value).__name__}")
    return value


def check_tensors(found: dict, expected: dict[str, Tensor], where) -> None:
    """Raise Error unless `found` has exactly the names, shapes and floating types that `expected` has."""
    missing, extra = sorted(expected.keys() - found.keys()), sorted(map(str, found.keys() - expected.keys()))
    if missing or extra:
        raise Error(f"{where} does not fit: missing {missing[:3] or 'nothing'}, not expected {extra[:3] or 'nothing'}")
    for name, want in expected.items():
        have = found[name]
        if not isinstance(have, Tensor) or have.shape != want.shape or have.is_floating_point() != want.is_floating_point():
            shape = tuple(have.shape) if isinstance(have, Tensor) else type(have).__name__
            raise Error(f"{where} does not fit: {name} is {shape}, but {tuple(want.shape)} is needed")


def digest(tensors: dict[str, Tensor], dtype: torch.dtype | None = None) -> str:
    """SHA-256 over names, shapes, types and bytes; with dtype, over the values rounded to it."""
    h = hashlib.sha256()
    for name, t in sorted(tensors.items()):
        _hash(h, name, t, dtype)
    return h.hexdigest()


def _hash(h, name: str, t: Tensor, dtype: torch.dtype | None = None) -> None:
    t = t.detach().to("cpu", dtype).contiguous()
    h.update(f"{name} {tuple(t.shape)} {t.dtype};".encode())
    h.update(t.view(torch.uint8).numpy().data if t.numel() else b"")


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
    if not (folder / "combination.json").exists():
        return {}
    parts = read_json(folder / "combination.json").get("parts")
    if not isinstance(parts, dict) or not parts or not all(name in METHODS for name in parts):
        raise Error(f"{folder / 'combination.json'} must name the parts, of {', '.join(METHODS)}")
    return parts


def save_combination(parts, base: GPT, folder) -> None:
    """Write one adapter folder a part, and then combination.json, which says which parts belong together.

    parts: name -> Method. Raises Error when the folder holds something else.
    """
    check_place(folder, "a combination")
    for name, part in parts.items():
        part.save(base, Path(folder) / name)
    write_json(Path(folder) / "combination.json", {"parts": {name: digest(part.tensors()) for name, part in parts.items()}})


def save_adapter(method: Method, base: GPT, folder) -> None:
    """Write the adapter folder, tensors first; tensors that a stop in between leaves beside an older config do not fit it.

    Raises Error when the folder holds something else.
    """
    check_place(folder, "an adapter")
    folder, tensors = Path(folder), method.tensors()
    notes = {"base": fingerprint(base), "sha256": digest(tensors)}
    safe = write_tensors(folder, "adapter_model", tensors, None, notes)
    config = {**method.peft_config(base), "task_type": "CAUSAL_LM", "inference_mode": True, "base_model_name_or_path": None}
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
    if (folder / "config.json").exists() and not (folder / "adapter_config.json").exists():
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
        return Adapted(base, Combined(base, methods)).eval()
    return Adapted(base, load_method(base, folder, here)).eval()


def load_method(base: GPT, folder: Path, here: str) -> Method:
    """One adapter folder's method, not attached to the base yet; load_adapter says what is checked. here: the base's fingerprint."""
    config = read_json(folder / "adapter_config.json")
    methods = {peft_type: method for method in METHODS.values() for peft_type in method.peft_types}
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in methods:
        raise Error(f"{folder / 'adapter_config.json'}: peft_type must be one of {', '.join(methods)}, not {kind!r}")
    tensors, notes, path = read_tensors(folder, "adapter_model", config)
    if "base" in notes and notes["base"] != here:
        raise Error(f"{folder} was tuned for another base (fingerprint {str(notes['base'])[:12]}, this one is {here[:12]})")

    method = methods[kind](base, **methods[kind].hyperparameters(config))
    expected = method.peft_config(base)
    for name, ours in expected.items():  # what PEFT wrote has no fingerprint, but names the base's shape
        if name in ("token_dim", "num_layers", "num_attention_heads") and config.get(name, ours) != ours:
            raise Error(f"{folder} was tuned for another base: {name} is {config[name]!r}, this one has {ours}")
    if expected["peft_type"] != kind:
        raise Error(f"{folder} is {kind}, which on this base is another function than {method.name} ({expected['peft_type']})")
    check_tensors(tensors, method.tensors(), path)
    stored = {t.dtype for t in tensors.values() if t.is_floating_point()}
    if len(stored) == 1:
        method.to(stored.pop())  # as the file has it, so that what is saved again is the same
    ours = method.tensors()
    for name, t in ours.items():
        t.copy_(tensors[name])
    return method
