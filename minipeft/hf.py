"""Hugging Face folders: config.json beside model.safetensors or pytorch_model.bin, in GPT-2's own layout.

A base with learned positions is a GPT-2 and `transformers.GPT2LMHeadModel.from_pretrained` opens it. One with rotary positions, which
GPT-2 does not have, lies in the same layout under model_type "minipeft".
"""

from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import check_place, check_tensors, digest, read_json, read_tensors, write_json, write_tensors
from .config import Error, GPTConfig
from .model import GPT


def _transposed(name: str) -> bool:
    """GPT-2's linears are stored (in, out), torch's are (out, in)."""
    return name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))


def _to_folder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"transformer.{name}": t.t() if _transposed(name) else t for name, t in state.items()}


def _from_folder(tensors: dict[str, Tensor], where: Path) -> dict[str, Tensor]:
    state = {name.removeprefix("transformer."): t for name, t in tensors.items()}
    head = state.pop("lm_head.weight", None)  # a second copy of the tied head
    if head is not None and not ("wte.weight" in state and torch.equal(head, state["wte.weight"])):
        raise Error(f"{where}: lm_head.weight differs from wte.weight, but GPT-2's head is tied")
    # old files also hold each block's causal mask, which is no weight
    return {
        name: t.t().contiguous() if _transposed(name) and t.dim() == 2 else t
        for name, t in state.items()
        if not name.endswith((".attn.bias", ".attn.masked_bias"))
    }


def _config_to_json(c: GPTConfig) -> dict:
    if c.position == "rotary":
        return {"model_type": "minipeft", "architectures": ["GPT"], **asdict(c)}
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": c.vocab_size,
        "n_positions": c.block_size,
        "n_layer": c.n_layer,
        "n_head": c.n_head,
        "n_embd": c.n_embd,
        "layer_norm_epsilon": c.layer_norm_epsilon,
        "activation_function": "gelu_new",
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": None,
    }


# settings of a GPT-2 folder that would need another model.py, and the value that this one has
_FIXED = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "n_inner": (None,),
    "tie_word_embeddings": (True,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}


def _config_from_json(c: dict, where: Path) -> GPTConfig:
    kind = c.get("model_type")
    if kind == "minipeft":
        known = {f.name for f in fields(GPTConfig)}
        return GPTConfig(**{name: value for name, value in c.items() if name in known})
    if kind != "gpt2":
        raise Error(f"{where}: model_type must be gpt2 or minipeft, not {kind!r}")
    for name, allowed in _FIXED.items():
        if name in c and c[name] not in allowed and not (name == "n_inner" and c[name] == 4 * c.get("n_embd", 768)):
            raise Error(f"{where}: {name} {c[name]!r} is not supported, only {' or '.join(map(repr, allowed))}")
    names = {"n_positions": "block_size"} | {n: n for n in ("vocab_size", "n_layer", "n_head", "n_embd", "layer_norm_epsilon")}
    return GPTConfig(**{ours: c[theirs] for theirs, ours in names.items() if theirs in c})


def save_base(base: GPT, folder, safe_serialization: bool | None = None) -> None:
    """GPT.save_pretrained: see there."""
    check_place(folder, "a base")
    folder, tensors = Path(folder), _to_folder(base.state_dict())
    notes = {"sha256": digest(tensors)}
    safe = write_tensors(folder, "model", tensors, safe_serialization, notes)
    config = _config_to_json(base.config)
    write_json(folder / "config.json", config if safe else config | {"minipeft": notes})


def load_base(folder) -> GPT:
    """GPT.from_pretrained: see there. The weights keep the type they are stored in."""
    folder = Path(folder)
    if not folder.is_dir():
        raise Error(f"no base at {folder}: there is no such folder")
    if not (folder / "config.json").exists():
        raise Error(f"{folder} holds no config.json: a base is a Hugging Face model folder")
    stored = read_json(folder / "config.json")
    config = _config_from_json(stored, folder / "config.json")
    tensors, _, path = read_tensors(folder, "model", stored)
    with torch.device("meta"):
        base = GPT(config)  # the shapes only: the file's tensors become the weights
    state = _from_folder(tensors, path)
    check_tensors(state, base.state_dict(), path)
    base.load_state_dict(state, assign=True)
    return base
