"""Bytes on disk: of one adapter folder, and of many tasks on one base."""

import json
import math
from typing import NamedTuple

from ..checks import at_least_one
from ..config import GPTConfig
from ..files.families import architecture, config_to_json, stored_name
from ..formulas.terms import Size, Term, round_up, total
from ..methods import WHOLE
from .parameters import Declared, declared, elements

DIGEST = 64 * "0"  # stands for a SHA-256, which is as long


class Files(NamedTuple):
    """Content of a folder's files; sizes may be symbols."""

    tensors: dict[str, tuple[Size, ...]]  # names with {i}: one in each block from `first` on
    notes: dict[str, str]  # the metadata that files.tensors.write_tensors adds
    config: dict  # adapter_config.json, or a base's config.json
    each: int  # bytes of an element: 4, or 8 for token ids
    first: Size


def files(c: GPTConfig, d: Declared) -> Files:
    """Files that Adapted.save writes with safetensors; full: those of base.save_pretrained.

    Hyper-parameters that do not change the count, such as lora_alpha, have their defaults.
    """
    notes, stored = {"sha256": DIGEST, "config": DIGEST}, d.shapes.stored
    if not d.method.freezes_base:
        kind, config = architecture(c), config_to_json(c)
        stored = {stored_name(name, kind): shape for name, shape in stored.items()}
    else:
        initial = {name: p.default for name, p in d.method.arguments().items()} | d.sizes
        config = d.method.adapter_config(c, **{name: initial[name] for name in d.method.config_fields()})
        config |= {"task_type": "CAUSAL_LM", "inference_mode": True,
                   "base_model_name_or_path": None}
        notes["base"] = DIGEST
    return Files(stored, notes, config, d.shapes.each, d.shapes.first)


def header_bytes(c: GPTConfig, f: Files) -> int:
    """Bytes of the header of a safetensors file (format: README of huggingface/safetensors): JSON
    without spaces, the metadata, then each tensor's name, dtype, shape, start and end."""
    tensors, end = {}, 0
    for name, shape in f.tensors.items():
        tensors |= {name.replace("{i}", str(i)): shape for i in (range(f.first, c.n_layer) if "{i}" in name else [0])}
    header = {"__metadata__": {"format": "pt", "minipeft": json.dumps(f.notes)}}
    for name, shape in sorted(tensors.items()):
        start, end = end, end + f.each * math.prod(shape)
        header[name] = {"dtype": {4: "F32", 8: "I64"}[f.each], "shape": shape,
                        "data_offsets": [start, end]}
    return len(json.dumps(header, separators=(",", ":")))


def folder_terms(d: Declared, stored: Size, header: Size, config: Size) -> list[Term]:
    """Bytes of the folder of one task. stored: elements; header, config: bytes as text.

        4·stored (token ids: 8·stored)     the tensors, one after the other
        8                                  the header's length
        header                             padded with spaces to a multiple of 8
        config                             adapter_config.json; of a base, config.json
    """
    return [Term("tensors", d.shapes.each * stored), Term("header of the tensors' file", 8 + round_up(header, 8)),
            Term("adapter_config.json" if d.method.freezes_base else "config.json", config)]


def storage_terms(d: Declared, tasks: Size, adapter: Size, folder: Size) -> list[Term]:
    """Bytes of so many tasks; adapter, folder: bytes of one task, and of the base."""
    if not d.method.freezes_base:
        return [Term("a whole model for each task", tasks * adapter)]
    return [Term("the base, once", folder), Term("an adapter for each task", tasks * adapter)]


def adapter_bytes(c: GPTConfig, method: str, **hyperparameters) -> int:
    """Bytes of the folder that Adapted.save writes if safetensors is installed: see `folder_terms`.

    The header takes about 100 bytes a tensor. full: the base's folder.
    """
    return _folder_bytes(c, declared(c, method, hyperparameters))


def storage_bytes(c: GPTConfig, method: str, tasks: int, **hyperparameters) -> int:
    """Bytes of N tasks: the base's folder once and N adapters; full: N bases."""
    at_least_one("tasks", tasks)
    d = declared(c, method, hyperparameters)
    return total(storage_terms(d, tasks, _folder_bytes(c, d),
                               _folder_bytes(c, declared(c, WHOLE, {}))))


def _folder_bytes(c: GPTConfig, d: Declared) -> int:
    f = files(c, d)
    config = len(json.dumps(f.config, indent=2)) + 1  # as files.atomic.write_json writes it
    return total(folder_terms(d, elements(c, d.shapes, d.shapes.stored), header_bytes(c, f), config))
