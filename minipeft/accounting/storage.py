"""Bytes on disk: of one adapter folder, and of many tasks on one base."""

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


def config_bytes(config: dict) -> int:
    """Bytes of this config as files.atomic.write_json writes it."""
    return len(json.dumps(config, indent=2)) + 1


def adapter_bytes(c: GPTConfig, method: str, **hyperparameters) -> int:
    """Bytes of the folder that Adapted.save writes if safetensors is installed:

        4·stored (a hard prompt: 8·P) + the header, about 100 bytes a tensor + adapter_config.json

    full: the base's folder, 4·base + header + config.json. Hyper-parameters that do not change the
    count, such as lora_alpha, have their defaults. Raises Error as `count` does.
    """
    h = with_defaults(c, method, hyperparameters)
    if method == "full":
        notes = {"sha256": DIGEST, "config": DIGEST}
        kind = architecture(c)
        names = {stored_name(name, kind): shape for name, shape in base_tensors(c).items()}  # transposed or not
        return safetensors_bytes(names, notes) + config_bytes(config_to_json(c))
    tensors, fields = _PARTS[method](c, h)
    config = {**fields, "task_type": "CAUSAL_LM", "inference_mode": True, "base_model_name_or_path": None}
    notes = {"base": DIGEST, "sha256": DIGEST, "config": DIGEST}
    return safetensors_bytes(tensors, notes, 8 if method == "hard-prompt" else 4) + config_bytes(config)


def storage_bytes(c: GPTConfig, method: str, tasks: int, **hyperparameters) -> int:
    """Bytes of N tasks: the base's folder once and N adapters; full: N bases.

    Raises Error as `count` does, or for a number of tasks below 1.
    """
    at_least_one("tasks", tasks)
    one = adapter_bytes(c, method, **hyperparameters)
    return tasks * one if method == "full" else adapter_bytes(c, "full") + tasks * one


# By method: {name: shape} of the tensors that methods/*.py save, and their fields of adapter_config.json.


def _hard_prompt(c: GPTConfig, h: dict):
    P = h["num_virtual_tokens"]
    return {"prompt_tokens": (P,)}, {"peft_type": "HARD_PROMPT", "num_virtual_tokens": P, "token_dim": c.n_embd}


def _prompt(c: GPTConfig, h: dict):
    P = h["num_virtual_tokens"]
    return {"prompt_embeddings": (P, c.n_embd)}, prompt_config(c, P)


def _prefix(c: GPTConfig, h: dict):
    P, one = h["num_virtual_tokens"], c.n_embd if h["space"] == "hidden" else 2 * c.n_kv * c.head_size
    return {"prompt_embeddings": (P, c.n_layer * one)}, prefix_config(c, P, h["space"])


def _lora(c: GPTConfig, h: dict):
    tensors = {}
    for i in range(c.n_layer):
        for place in h["places"]:
            into, out = linears(c)[place]
            name = peft_module(c, i, place)
            tensors |= {f"{name}.lora_A.weight": (h["r"], into), f"{name}.lora_B.weight": (out, h["r"])}
    names = [h["target_modules"]] if isinstance(h["target_modules"], str) else h["target_modules"]
    return tensors, lora_config(c, h["r"], names)


def _adapter(c: GPTConfig, h: dict):
    C, m, tensors = c.n_embd, h["bottleneck_size"], {}
    for i in range(c.n_layer):
        for place in ("attn", "mlp") if h["placement"] == "houlsby" else ("mlp",):
            shapes = {"down": (m, C), "b_down": (m,), "up": (C, m), "b_up": (C,)}
            tensors |= {f"layers.{i}.{place}.{name}": shape for name, shape in shapes.items()}
    return tensors, {"peft_type": "BOTTLENECK_ADAPTER", "bottleneck_size": m, "placement": h["placement"]}


def _llama_adapter(c: GPTConfig, h: dict):
    K, n, C = h["adapter_len"], h["adapter_layers"], c.n_embd
    config = {"adapter_len": K, "adapter_layers": n}
    if names := adaption_modules(c, n, h["gate"]):
        parts = {"prompt": (1, K, C), "gate": (1,)}
        tensors = {f"{name}.adaption_{part}": shape for name in names for part, shape in parts.items()}
        return tensors, {"peft_type": "ADAPTION_PROMPT", **config, "target_modules": "self_attn"}
    gates = c.n_head if h["gate"] == "head" else 1
    tensors = {"adaption_prompt": (n, K, C), "adaption_gate": (n, gates)}
    return tensors, {"peft_type": "LLAMA_ADAPTER", **config, "gate": h["gate"]}


_PARTS = {"hard-prompt": _hard_prompt, "prompt": _prompt, "prefix": _prefix, "lora": _lora,
          "adapter": _adapter, "llama-adapter": _llama_adapter}
