"""Bytes on disk: of one adapter folder, and of many tasks on one base."""

import json
import math

from ..checks import at_least_one
from ..config import GPTConfig
from ..files.huggingface import architecture, base_tensors, config_to_json, stored_name
from ..methods import WHOLE, method_class
from .parameters import Declared, declared

DIGEST = 64 * "0"  # stands for a SHA-256, which is as long


def safetensors_bytes(tensors: dict[str, tuple[int, ...]], notes: dict, each: int = 4) -> int:
    """Bytes of a safetensors file (format: README of huggingface/safetensors):

        8                     the header's length
        header                JSON without spaces: the metadata, then each tensor's name, dtype, shape,
                              start and end; padded with spaces to a multiple of 8
        each · elements       the tensors, one after the other

    tensors: {name: shape}; notes: the metadata that files.tensors.write_tensors adds; each: bytes per
    element, 8 for token ids.
    """
    header, end = {"__metadata__": {"format": "pt", "minipeft": json.dumps(notes)}}, 0
    for name, shape in sorted(tensors.items()):
        start, end = end, end + each * math.prod(shape)
        header[name] = {"dtype": {4: "F32", 8: "I64"}[each], "shape": shape, "data_offsets": [start, end]}
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + math.ceil(length / 8) * 8 + end


def adapter_bytes(c: GPTConfig, method: str, **hyperparameters) -> int:
    """Bytes of the folder that Adapted.save writes if safetensors is installed:

        4·stored (a hard prompt: 8·P) + the header, about 100 bytes a tensor + adapter_config.json

    full: the base's folder, 4·base + header + config.json. Hyper-parameters that do not change the
    count, such as lora_alpha, have their defaults.
    """
    d = declared(c, method, hyperparameters)
    notes = {"sha256": DIGEST, "config": DIGEST}
    if not d.method.freezes_base:
        kind, config = architecture(c), config_to_json(c)
        tensors = {stored_name(name, kind): shape for name, shape in base_tensors(c).items()}
    else:
        tensors, config = adapter_files(c, d)
        config |= {"task_type": "CAUSAL_LM", "inference_mode": True,
                   "base_model_name_or_path": None}
        notes["base"] = DIGEST
    file = safetensors_bytes(tensors, notes, d.shapes.each)
    return file + len(json.dumps(config, indent=2)) + 1  # as files.atomic.write_json writes it


def storage_bytes(c: GPTConfig, method: str, tasks: int, **hyperparameters) -> int:
    """Bytes of N tasks: the base's folder once and N adapters; full: N bases."""
    at_least_one("tasks", tasks)
    one = adapter_bytes(c, method, **hyperparameters)
    return tasks * one + (adapter_bytes(c, WHOLE) if method_class(method).freezes_base else 0)


def adapter_files(c: GPTConfig, d: Declared) -> tuple[dict[str, tuple[int, ...]], dict]:
    """{name: shape} of the tensors that a method saves, and its fields of adapter_config.json."""
    tensors = {}
    for name, shape in d.shapes.stored.items():
        blocks = range(d.shapes.first, c.n_layer) if "{i}" in name else [0]
        tensors |= {name.replace("{i}", str(i)): shape for i in blocks}
    initial = {name: p.default for name, p in d.method.arguments().items()} | d.sizes
    return tensors, d.method.adapter_config(c, **{name: initial[name] for name in d.method.config_fields()})
