"""Files: written whole or not at all, checked when they are read, and never a place that code runs from.

An adapter is a folder in PEFT's layout: adapter_config.json and adapter_model.safetensors (adapter_model.bin where safetensors is
not installed). The config carries, under "minipeft", a checksum of the tensors and the fingerprint of the base they belong to.
"""

import hashlib
import importlib.util
import json
import os
from pathlib import Path
from typing import Callable

import torch
from torch import Tensor

from .config import Error
from .methods import METHODS
from .methods.base import Adapted, Method
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


def write_tensors(folder: Path, stem: str, tensors: dict[str, Tensor], bin_stem: str, safe_serialization: bool | None) -> Path:
    """Write {name: tensor} to folder/stem.safetensors, or folder/bin_stem.bin (torch's own format); a leftover other is removed."""
    safe = have_safetensors() if safe_serialization is None else safe_serialization
    paths = folder / f"{stem}.safetensors", folder / f"{bin_stem}.bin"
    path, other = paths if safe else paths[::-1]
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    if safe:
        if not have_safetensors():
            raise Error("writing safetensors needs: pip install safetensors")
        from safetensors.torch import save_file

        write_atomically(path, lambda to: save_file(tensors, to, metadata={"format": "pt"}))
    else:
        write_atomically(path, lambda to: torch.save(tensors, to))
    other.unlink(missing_ok=True)
    return path


def read_tensors(folder: Path, stem: str, bin_stem: str) -> tuple[dict[str, Tensor], Path]:
    """The tensors of folder/stem.safetensors or folder/bin_stem.bin, and which file it was. Raises Error for none, or a torn one."""
    path = folder / f"{stem}.safetensors"
    if path.exists():
        if not have_safetensors():
            raise Error(f"reading {path} needs: pip install safetensors")
        from safetensors.torch import load_file

        return _read(path, load_file), path
    path = folder / f"{bin_stem}.bin"
    if not path.exists():
        raise Error(f"{folder} holds neither {stem}.safetensors nor {bin_stem}.bin")
    return read_torch(path), path


def read_torch(path: Path) -> dict:
    """A dictionary written by torch.save, read without running code. Raises Error when it is torn or anything else."""
    return _read(path, lambda p: torch.load(p, map_location="cpu", weights_only=True))


def _read(path: Path, load: Callable) -> dict:
    try:
        value = load(path)
    except Exception as e:  # the readers raise many kinds for what is one thing here: not a whole file
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
        t = t.detach().to("cpu", dtype).contiguous()
        h.update(f"{name} {tuple(t.shape)} {t.dtype};".encode())
        h.update(t.view(torch.uint8).numpy().data if t.numel() else b"")
    return h.hexdigest()


def fingerprint(base: GPT) -> str:
    """Which base this is: shape and weights, rounded to bfloat16 so that its float32 and bfloat16 copies are the same base."""
    return hashlib.sha256(f"{base.config}{digest(base.state_dict(), torch.bfloat16)}".encode()).hexdigest()


ADAPTER = ("adapter_model", "adapter_model")  # stem of the safetensors file, stem of the .bin


def save_adapter(method: Method, base: GPT, folder) -> None:
    """Write the adapter folder, tensors first; a config that does not match them (a stop in between) is noticed by its checksum."""
    folder, tensors = Path(folder), method.tensors()
    write_tensors(folder, ADAPTER[0], tensors, ADAPTER[1], None)
    config = {
        **method.peft_config(base),
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "base_model_name_or_path": None,
        "minipeft": {"method": method.name, "base": fingerprint(base), "sha256": digest(tensors)},
    }
    write_json(folder / "adapter_config.json", config)


def load_adapter(base: GPT, folder) -> Adapted:
    """Open what `model.save(folder)` wrote and attach it to the base.

    A fully tuned model is a base of its own: it is opened beside the one given, which stays as it is.
    Raises Error when files are missing, torn or changed, or belong to another base.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise Error(f"no adapter at {folder}: there is no such folder")
    if not (folder / "adapter_config.json").exists() and (folder / "config.json").exists():
        tuned = GPT.from_pretrained(folder)
        if tuned.config != base.config:
            raise Error(f"{folder} holds a fully tuned model of another shape than the base's")
        return Adapted(tuned.to(base.wte.weight.device), Full(tuned))

    config = read_json(folder / "adapter_config.json")
    methods = {peft_type: method for method in METHODS.values() for peft_type in method.peft_types}
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in methods:
        raise Error(f"{folder / 'adapter_config.json'}: peft_type must be one of {', '.join(methods)}, not {kind!r}")
    notes = config.get("minipeft", {})  # absent in what PEFT wrote
    if not isinstance(notes, dict):
        raise Error(f"{folder / 'adapter_config.json'}: 'minipeft' must be an object")
    if "base" in notes and notes["base"] != (here := fingerprint(base)):
        raise Error(f"{folder} was tuned for another base (fingerprint {str(notes['base'])[:12]}, this one is {here[:12]})")

    tensors, path = read_tensors(folder, *ADAPTER)
    method = methods[kind](base, **methods[kind].hyperparameters(config))
    check_tensors(tensors, method.tensors(), path)
    if "sha256" in notes and notes["sha256"] != digest(tensors):
        raise Error(f"{path} is damaged: its tensors do not match the checksum in adapter_config.json")
    with torch.no_grad():
        for name, p in method.named_parameters():
            p.copy_(tensors[name])
    return Adapted(base, method)
