"""Hugging Face folders: config.json beside model.safetensors or pytorch_model.bin, whole or in shards.

    transformers' model     what its folder says of a GPTConfig
    GPT2LMHeadModel         learned positions, LayerNorm, GELU, one matrix for q, k and v, biases, a tied head
    LlamaForCausalLM        rotary positions, RMSNorm, SwiGLU, q, k and v apart, no biases: Llama, SmolLM2, TinyLlama …
    Qwen2ForCausalLM        the same with biases on q, k and v: Qwen2, Qwen2.5

Other mixtures, such as the embedded base's, lie in GPT-2's layout under model_type "minipeft".
"""

import importlib.util
from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import StoredTensors, check_place, check_tensors, digest, read_json, write_json, write_tensors
from .config import LLAMA, Error, GPTConfig, RopeScaling
from .model import GPT


def architecture(c: GPTConfig) -> str:
    """The model_type of a base: "gpt2", "llama" or "qwen2" where transformers has it, else "minipeft"."""
    if c.position == "learned" and not c.rope_scaling and GPTConfig(
        c.vocab_size, c.block_size, c.n_layer, c.n_head, c.n_embd, n_inner=c.n_inner, rope_theta=c.rope_theta,
        layer_norm_epsilon=c.layer_norm_epsilon, n_kv_head=c.n_kv_head if c.n_kv == c.n_head else None,
    ) == c:  # fmt: skip
        return "gpt2"
    if all(getattr(c, name) == value for name, value in LLAMA.items() if name != "bias") and c.bias != "all":
        return "llama" if c.bias == "none" else "qwen2"
    return "minipeft"


# ours -> theirs, in transformers' Llama and Qwen2; attn and mlp hold the same linears under the same names
_LLAMA_TOP = {"wte.weight": "model.embed_tokens.weight", "ln_f.weight": "model.norm.weight", "lm_head.weight": "lm_head.weight"}
_LLAMA_PARTS = {"ln_1": "input_layernorm", "ln_2": "post_attention_layernorm", "attn": "self_attn", "mlp": "mlp"}


def _stored_name(name: str, kind: str) -> str:
    """What a weight of ours is called in a folder of this model_type."""
    if kind not in ("llama", "qwen2"):
        return name if name == "lm_head.weight" else f"transformer.{name}"
    if name in _LLAMA_TOP:
        return _LLAMA_TOP[name]
    _, i, part, rest = name.split(".", 3)
    return f"model.layers.{i}.{_LLAMA_PARTS[part]}.{rest}"


def _transposed(name: str) -> bool:
    """GPT-2's linears are stored (in, out), torch's are (out, in)."""
    return name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))


def _no_weight(name: str) -> bool:
    """What old files also hold: causal masks, and the frequencies of rotary positions."""
    return name.endswith((".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"))


def _config_to_json(c: GPTConfig) -> dict:
    kind = architecture(c)
    if kind == "minipeft":
        return {"model_type": "minipeft", "architectures": ["GPT"], **asdict(c)}
    shared = {"vocab_size": c.vocab_size, "tie_word_embeddings": c.tied, "bos_token_id": None, "eos_token_id": None}
    if kind == "gpt2":
        return {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "n_positions": c.block_size,
            "n_layer": c.n_layer,
            "n_head": c.n_head,
            "n_embd": c.n_embd,
            "n_inner": c.n_inner,
            "layer_norm_epsilon": c.layer_norm_epsilon,
            "activation_function": "gelu_new",
            **shared,
        }
    s = c.rope_scaling
    scaling = s and {
        "rope_type": "llama3",
        "factor": s.factor,
        "low_freq_factor": s.low_freq_factor,
        "high_freq_factor": s.high_freq_factor,
        "original_max_position_embeddings": s.original,
    }
    return {
        "model_type": kind,
        "architectures": ["LlamaForCausalLM" if kind == "llama" else "Qwen2ForCausalLM"],
        "max_position_embeddings": c.block_size,
        "num_hidden_layers": c.n_layer,
        "num_attention_heads": c.n_head,
        "num_key_value_heads": c.n_kv,
        "hidden_size": c.n_embd,
        "intermediate_size": c.inner,
        "rms_norm_eps": c.layer_norm_epsilon,
        "hidden_act": "silu",
        "rope_theta": c.rope_theta,
        "rope_scaling": scaling,
        **shared,
    }


# Settings that would need another model.py, and the values that this one has.
_FIXED = {
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "tie_word_embeddings": (True,),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    "llama": {"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,)},
    "qwen2": {"hidden_act": ("silu",), "use_sliding_window": (False,)},
}


def _config_from_json(c: dict, where: Path) -> GPTConfig:
    kind = c.get("model_type")
    if kind == "minipeft":
        known = {f.name: c[f.name] for f in fields(GPTConfig) if f.name in c}
        if isinstance(known.get("rope_scaling"), list) and len(known["rope_scaling"]) == 4:
            known["rope_scaling"] = RopeScaling(*known["rope_scaling"])
        return GPTConfig(**known)
    if not isinstance(kind, str) or kind not in _FIXED:
        raise Error(f"{where}: model_type {kind!r} is not supported, only {', '.join(_FIXED)} and minipeft")
    for name, allowed in _FIXED[kind].items():
        if name in c and c[name] not in allowed:
            raise Error(f"{where}: {name} {c[name]!r} is not supported, only {' or '.join(map(repr, allowed))}")
    if kind == "gpt2":
        names = {"n_positions": "block_size"} | {
            n: n for n in ("vocab_size", "n_layer", "n_head", "n_embd", "n_inner", "layer_norm_epsilon")
        }
        return GPTConfig(**{ours: c[theirs] for theirs, ours in names.items() if theirs in c})

    names = {
        "vocab_size": "vocab_size",
        "max_position_embeddings": "block_size",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "rms_norm_eps": "layer_norm_epsilon",
    }
    for name in names:
        if name not in c:
            raise Error(f"{where} has no {name}")
    rope = c.get("rope_parameters") or {"rope_theta": c.get("rope_theta", 10000.0), **(c.get("rope_scaling") or {})}
    config = GPTConfig(
        **{ours: c[theirs] for theirs, ours in names.items()},
        n_kv_head=c.get("num_key_value_heads"),
        rope_theta=rope.get("rope_theta", 10000.0),
        rope_scaling=_rope_scaling(rope, where),
        tied=c.get("tie_word_embeddings", False),
        **(LLAMA | {"bias": "none" if kind == "llama" else "qkv"}),
    )
    if c.get("head_dim") not in (None, config.head_size):
        raise Error(f"{where}: head_dim {c['head_dim']!r} is not supported, only hidden_size / num_attention_heads ({config.head_size})")
    return config


def _rope_scaling(rope: dict, where: Path) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    if kind != "llama3" or not all(name in rope for name in names):
        raise Error(f"{where}: rotary positions of type {kind!r} are not supported, only 'default' and 'llama3' (with {', '.join(names)})")
    return RopeScaling(*(rope[name] for name in names))


def save_base(base: GPT, folder, safe_serialization: bool | None = None) -> None:
    """GPT.save_pretrained: see there."""
    check_place(folder, "a base")
    folder, kind = Path(folder), architecture(base.config)
    tensors = {_stored_name(name, kind): t.t() if _transposed(name) else t for name, t in base.state_dict().items()}
    notes = {"sha256": digest(tensors)}
    safe = write_tensors(folder, "model", tensors, safe_serialization, notes)
    config = _config_to_json(base.config)
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
        return Path(snapshot_download(str(folder), allow_patterns=["*.json", "*.safetensors"]))
    except Exception as e:  # no network, no such model, no permission: many kinds
        reason = str(e).strip().splitlines()[0][:200] if str(e).strip() else type(e).__name__
        raise Error(f"no base at {folder}: there is no such folder, and fetching a model of that name failed ({reason})") from None


@torch.no_grad()
def load_base(folder, dtype: torch.dtype | None = None) -> GPT:
    """GPT.from_pretrained: see there."""
    folder = find_base(folder)
    if not (folder / "config.json").exists():
        raise Error(f"{folder} holds no config.json: a base is a Hugging Face model folder")
    stored = read_json(folder / "config.json")
    config = _config_from_json(stored, folder / "config.json")
    with torch.device("meta"):
        base = GPT(config)  # the shapes only: the file's tensors become the weights
    files = StoredTensors(folder, "model", stored)
    state = _weights(files, base, architecture(config), dtype)
    check_tensors(state, base.state_dict(), files.path)
    base.load_state_dict(state, assign=True)
    return base


def _weights(files: StoredTensors, base: GPT, kind: str, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The file's tensors under our names; what has another name there keeps it, for check_tensors to refuse."""
    ours = {_stored_name(name, kind): name for name in base.state_dict()}
    bare = {theirs.removeprefix("transformer."): name for theirs, name in ours.items()}  # GPT-2's released files leave it out
    state, head = {}, None
    for theirs, t in files:
        if _no_weight(theirs):
            continue
        name = ours.get(theirs) or bare.get(theirs, theirs)
        t = t.to(dtype) if dtype is not None and t.is_floating_point() else t
        if name == "lm_head.weight" and base.config.tied:
            head = t
        else:
            state[name] = t.t().contiguous() if _transposed(name) and t.dim() == 2 else t
    if head is not None and not ("wte.weight" in state and torch.equal(head, state["wte.weight"])):
        raise Error(f"{files.path}: lm_head.weight differs from the embeddings, but the config says that the head is tied to them")
    return state
