"""Hugging Face folders: config.json beside model.safetensors or pytorch_model.bin, whole or in shards.

What is called how in them: layout.py.
"""

import importlib.util
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from .accounting import base_parameters
from .checkpoint import (
    StoredTensors,
    check_place,
    check_tensors,
    digest,
    digest_of_config,
    is_there,
    load_adapter,
    read_json,
    write_json,
    write_tensors,
)
from .config import Error, GPTConfig
from .ladder import climb
from .layout import architecture, config_from_json, config_to_json, stored_name, transposed
from .methods import METHODS
from .model import GPT


def _no_weight(name: str) -> bool:
    """What old files also hold: causal masks, and the frequencies of rotary positions."""
    return name.endswith((".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"))


def save_base(base: GPT, folder, safe_serialization: bool | None = None) -> None:
    """GPT.save_pretrained: see there."""
    check_place(folder, "a base")
    folder, kind = Path(folder), architecture(base.config)
    tensors = {stored_name(name, kind): t.t() if transposed(name) else t for name, t in base.state_dict().items()}
    config = config_to_json(base.config)
    notes = {"sha256": digest(tensors), "config": digest_of_config(_shape(config_from_json(config, folder / "config.json")))}
    safe = write_tensors(folder, "model", tensors, safe_serialization, notes)
    write_json(folder / "config.json", config if safe else config | {"minipeft": notes})


def find_base(folder) -> Path:
    """The folder, fetched where a hub id is given instead and huggingface_hub is installed. Raises Error when there is none."""
    if Path(folder).is_dir():
        return Path(folder)
    owner, slash, name = str(folder).partition("/")
    if not (owner.strip(".~") and slash and name) or "/" in name or "\\" in name:
        raise Error(f"no base at {folder}: there is no such folder")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise Error(f"no base at {folder}: there is no such folder (and to fetch a model of that name: pip install huggingface_hub)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(folder), allow_patterns=["*.json", "*.jinja", "*.safetensors"]))
    except Exception as e:  # no network, no such model, no permission: many kinds
        reason = str(e).strip().splitlines()[0][:200] if str(e).strip() else type(e).__name__
        raise Error(f"no base at {folder}: there is no such folder, and fetching a model of that name failed ({reason})") from None


MOST_LAYERS = 1000  # the models there are have some hundred; modules take memory, however small their weights


def base_config(folder: Path) -> tuple[GPTConfig, dict]:
    """The shape of a base, and the config.json that tells it; the weights are left alone. Raises Error when it tells none."""
    where = folder / "config.json"
    if not is_there(where):
        raise Error(f"{folder} holds no config.json: a base is a Hugging Face model folder")
    stored = read_json(where)
    return config_from_json(stored, where), stored


@torch.no_grad()
def load_base(folder, dtype: torch.dtype | None = None) -> GPT:
    """GPT.from_pretrained: see there."""
    folder = find_base(folder)
    where = folder / "config.json"
    config, stored = base_config(folder)
    files = StoredTensors(folder, "model", stored)
    files.check_size(base_parameters(config), where)
    if config.n_layer > MOST_LAYERS:
        raise Error(f"{where}: {config.n_layer} layers, but no more than {MOST_LAYERS} are read")
    with torch.device("meta"):
        base = GPT(config)  # the shapes only: the file's tensors become the weights
    state = _weights(files, base, architecture(config), dtype)
    files.check_config(_shape(config), where)  # last: whatever fits no tensor is told in its own words
    base.load_state_dict(state, assign=True)
    return base


def _shape(config: GPTConfig) -> dict:
    return asdict(config.resolved())


def _weights(files: StoredTensors, base: GPT, kind: str, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The file's tensors under our names, and only those that have one. Raises Error for a head that should be the embeddings' own."""
    ours = {stored_name(name, kind): name for name in base.state_dict()}
    bare = {theirs.removeprefix("transformer."): name for theirs, name in ours.items()}  # GPT-2's released files leave it out
    state, head, strange = {}, None, []
    for theirs, t in files:
        if _no_weight(theirs):
            continue
        name = ours.get(theirs) or bare.get(theirs)
        t = t.to(dtype) if dtype is not None and t.is_floating_point() else t
        if theirs == "lm_head.weight" and base.config.tied:
            head = t
        elif name is None:
            strange.append(theirs)
        elif name in state:
            raise Error(f"{files.path} holds {name} under two names")
        else:
            state[name] = t.t().contiguous() if transposed(name) and t.dim() == 2 else t
    check_tensors(state | dict.fromkeys(strange), base.state_dict(), files.path)
    if head is not None and not ("wte.weight" in state and torch.equal(head, state["wte.weight"])):
        raise Error(f"{files.path}: lm_head.weight differs from the embeddings, but the config says that the head is tied to them")
    return state


@torch.no_grad()
def export_adapter(base: GPT, folder, out) -> str:
    """Write the adapter in `folder` to `out` as one that PEFT opens on this base in transformers; returns its peft_type.

    What PEFT has no name for climbs the ladder: a hard prompt becomes a soft prompt, a hidden prefix keys and values, exactly.
    Raises Error for what PEFT cannot do, by name and reason.
    """
    if Path(folder).resolve() == Path(out).resolve():
        raise Error(f"{out} is the adapter itself: export it into another folder")
    model = load_adapter(base, folder)
    method, kind = model.method, architecture(base.config)
    if kind == "minipeft":
        raise Error("PEFT works on transformers' models, and none has this base's shape (GPT-2, Llama and Qwen2 shapes can be exported)")
    if len(method.parts()) > 1:
        raise Error(f"{folder} is a combination: export its parts, each a folder of its own, one by one")
    if method.name == "full":
        raise Error(f"{folder} is a whole model, which transformers opens as it is")
    if method.name == "adapter":
        raise Error("PEFT has no bottleneck adapters")
    if method.name == "llama-adapter" and method.module_names is None:
        raise Error("PEFT's ADAPTION_PROMPT is LLaMA-Adapter with one gate a layer on transformers' Llama: tune with gate='layer' there")
    if method.name == "hard-prompt":
        method = METHODS["prompt"](base, init=method.rung())
    elif method.name == "prefix" and method.space == "hidden":
        method = METHODS["prefix"](base, init=climb(base, method.rung(), "kv"))
    method.save(base, out)
    return method.peft_config(base)["peft_type"]
