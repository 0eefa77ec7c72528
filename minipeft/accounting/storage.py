"""Bytes on disk: of one adapter folder, and of many tasks on one base."""

import itertools
import json
import math

from ..checks import at_least_one
from ..config import GPTConfig, linears
from ..files.huggingface import architecture, base_tensors, config_to_json, stored_name
from ..files.peft import adaption_modules, lora_config, peft_module, prefix_config, prompt_config
from .parameters import with_defaults

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
    h = with_defaults(c, method, hyperparameters)
    notes = {"sha256": DIGEST, "config": DIGEST}
    if method == "full":
        kind, config = architecture(c), config_to_json(c)
        tensors = {stored_name(name, kind): shape for name, shape in base_tensors(c).items()}
    else:
        tensors, config = adapter_files(c, method, h)
        config |= {"task_type": "CAUSAL_LM", "inference_mode": True,
                   "base_model_name_or_path": None}
        notes["base"] = DIGEST
    file = safetensors_bytes(tensors, notes, 8 if method == "hard-prompt" else 4)
    return file + len(json.dumps(config, indent=2)) + 1  # as files.atomic.write_json writes it


def storage_bytes(c: GPTConfig, method: str, tasks: int, **hyperparameters) -> int:
    """Bytes of N tasks: the base's folder once and N adapters; full: N bases."""
    at_least_one("tasks", tasks)
    one = adapter_bytes(c, method, **hyperparameters)
    return tasks * one if method == "full" else adapter_bytes(c, "full") + tasks * one


def adapter_files(c: GPTConfig, method: str, h: dict) -> tuple[dict[str, tuple[int, ...]], dict]:
    """{name: shape} of the tensors that a method saves, and its fields of adapter_config.json."""
    C, P = c.n_embd, h.get("num_virtual_tokens")
    if method == "hard-prompt":
        config = {"peft_type": "HARD_PROMPT", "num_virtual_tokens": P, "token_dim": C}
        return {"prompt_tokens": (P,)}, config
    if method == "prompt":
        return {"prompt_embeddings": (P, C)}, prompt_config(c, P)
    if method == "prefix":
        one = C if h["space"] == "hidden" else 2 * c.n_kv * c.head_size
        return {"prompt_embeddings": (P, c.n_layer * one)}, prefix_config(c, P, h["space"])
    tensors = {}
    if method == "lora":
        r, targets = h["r"], h["target_modules"]
        for i, place in itertools.product(range(c.n_layer), h["places"]):
            (into, out), name = linears(c)[place], peft_module(c, i, place)
            tensors |= {f"{name}.lora_A.weight": (r, into), f"{name}.lora_B.weight": (out, r)}
        return tensors, lora_config(c, r, [targets] if isinstance(targets, str) else targets)
    if method == "adapter":
        m, placement = h["bottleneck_size"], h["placement"]
        places = ("attn", "mlp") if placement == "houlsby" else ("mlp",)
        shapes = {"down": (m, C), "b_down": (m,), "up": (C, m), "b_up": (C,)}
        for i, place in itertools.product(range(c.n_layer), places):
            tensors |= {f"layers.{i}.{place}.{name}": shape for name, shape in shapes.items()}
        config = {"peft_type": "BOTTLENECK_ADAPTER", "bottleneck_size": m, "placement": placement}
        return tensors, config
    K, n, gate = h["adapter_len"], h["adapter_layers"], h["gate"]
    config = {"adapter_len": K, "adapter_layers": n}
    if names := adaption_modules(c, n, gate):
        parts = {"prompt": (1, K, C), "gate": (1,)}
        tensors = {f"{x}.adaption_{part}": shape for x in names for part, shape in parts.items()}
        return tensors, {"peft_type": "ADAPTION_PROMPT", **config, "target_modules": "self_attn"}
    gates = c.n_head if gate == "head" else 1
    tensors = {"adaption_prompt": (n, K, C), "adaption_gate": (n, gates)}
    return tensors, {"peft_type": "LLAMA_ADAPTER", **config, "gate": gate}
