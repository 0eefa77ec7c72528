"""The Hugging Face folder of a base: config.json beside model.safetensors or pytorch_model.bin, whole or in shards.

    transformers' model     the GPTConfig it stands for
    GPT2LMHeadModel         learned positions, LayerNorm, GELU, one matrix for q, k and v, biases, a tied head
    LlamaForCausalLM        rotary positions, RMSNorm, SwiGLU, q, k and v apart, no biases: Llama, SmolLM2, TinyLlama …
    Qwen2ForCausalLM        the same with biases on q, k and v: Qwen2, Qwen2.5

Other mixtures, such as the embedded base's, are stored in GPT-2's layout under model_type "minipeft".
"""

import hashlib
import importlib.util
import math
from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch import Tensor

from ..config import CHOICES, LLAMA, Error, GPTConfig, RopeScaling, linears, shown
from .atomic import check_place, is_there, read_json, write_json
from .tensors import StoredTensors, check_tensors, digest, digest_of_config, write_tensors


def architecture(c: GPTConfig) -> str:
    """The model_type of a base: "gpt2", "llama" or "qwen2" where transformers has it, else "minipeft"."""
    if all(getattr(c, name) == choices[0] for name, choices in CHOICES.items()) and c.n_kv == c.n_head:
        return "gpt2"
    if all(getattr(c, name) == value for name, value in LLAMA.items() if name != "bias") and c.bias != "all":
        return "llama" if c.bias == "none" else "qwen2"
    return "minipeft"


# ours -> theirs, in transformers' Llama and Qwen2; attn and mlp hold the same linears under the same names
_LLAMA_TOP = {"wte.weight": "model.embed_tokens.weight", "ln_f.weight": "model.norm.weight", "lm_head.weight": "lm_head.weight"}


_LLAMA_PARTS = {"ln_1": "input_layernorm", "ln_2": "post_attention_layernorm", "attn": "self_attn", "mlp": "mlp"}


def stored_name(name: str, kind: str) -> str:
    """What a weight of ours is called in a folder of this model_type."""
    if kind not in ("llama", "qwen2"):
        return name if name == "lm_head.weight" else f"transformer.{name}"
    if name in _LLAMA_TOP:
        return _LLAMA_TOP[name]
    _, i, part, rest = name.split(".", 3)
    return f"model.layers.{i}.{_LLAMA_PARTS[part]}.{rest}"


def transposed(name: str) -> bool:
    """GPT-2's linears are stored (in, out), torch's are (out, in)."""
    return name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))


# What the sizes are called: theirs -> ours.
SIZES = {
    "gpt2": {"n_positions": "block_size"} | {n: n for n in ("vocab_size", "n_layer", "n_head", "n_embd", "n_inner", "layer_norm_epsilon")},
    "llama": {
        "vocab_size": "vocab_size",
        "max_position_embeddings": "block_size",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "num_key_value_heads": "n_kv_head",
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "rms_norm_eps": "layer_norm_epsilon",
        "rope_theta": "rope_theta",
    },
}
SIZES["qwen2"] = SIZES["llama"]


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


_STRETCH = {  # rotary positions of type "llama3": theirs -> ours
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original",
}


def config_to_json(c: GPTConfig) -> dict:
    kind = architecture(c)
    if kind == "minipeft":
        return {"model_type": "minipeft", "architectures": ["GPT"], **asdict(c)}
    full = c if kind == "gpt2" else c.resolved()
    return {
        "model_type": kind,
        "architectures": [{"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[kind]],
        **{theirs: getattr(full, ours) for theirs, ours in SIZES[kind].items()},
        **({} if kind == "gpt2" else {"rope_scaling": _stretch_to_json(c.rope_scaling)}),
        **{name: allowed[0] for name, allowed in _FIXED[kind].items()},
        "tie_word_embeddings": c.tied,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _stretch_to_json(scaling: RopeScaling | None) -> dict | None:
    return scaling and {"rope_type": "llama3"} | {theirs: getattr(scaling, ours) for theirs, ours in _STRETCH.items()}


def config_from_json(c: dict, where: Path) -> GPTConfig:
    kind = c.get("model_type")
    try:
        if kind == "minipeft":
            known = {f.name: c[f.name] for f in fields(GPTConfig) if f.name in c}
            if isinstance(known.get("rope_scaling"), list) and len(known["rope_scaling"]) == 4:
                known["rope_scaling"] = RopeScaling(*known["rope_scaling"])
            return GPTConfig(**known)
        if not isinstance(kind, str) or kind not in SIZES:
            raise Error(f"model_type {shown(kind)} is not supported, only {', '.join(SIZES)} and minipeft")
        for name, allowed in _FIXED[kind].items():
            if name in c and c[name] not in allowed:
                raise Error(f"{name} {shown(c[name])} is not supported, only {' or '.join(map(repr, allowed))}")
        rope = {} if kind == "gpt2" else c.get("rope_parameters") or c.get("rope_scaling") or {}
        if not isinstance(rope, dict):
            raise Error(f"rope_scaling must be a JSON object or null, not {shown(rope)}")
        sizes = {ours: value for theirs, ours in SIZES[kind].items() if (value := rope.get(theirs, c.get(theirs))) is not None}
        if kind == "gpt2":
            return GPTConfig(**sizes)
        for theirs, ours in SIZES[kind].items():
            if ours not in sizes and ours not in ("n_kv_head", "rope_theta"):
                raise Error(f"it has no {theirs}")
        choices = LLAMA | {"bias": "none" if kind == "llama" else "qkv", "tied": bool(c.get("tie_word_embeddings"))}
        config = GPTConfig(**sizes, rope_scaling=_stretch_from_json(rope), **choices)
        if c.get("head_dim") not in (None, config.head_size):
            raise Error(f"head_dim {shown(c['head_dim'])} is not supported, only hidden_size / num_attention_heads ({config.head_size})")
        return config
    except Error as e:
        raise Error(f"{where}: {e}") from None


def _stretch_from_json(rope: dict) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3" or not all(name in rope for name in _STRETCH):
        raise Error(f"rotary positions of type {shown(kind)} are not supported, only 'default' and 'llama3' (with {', '.join(_STRETCH)})")
    return RopeScaling(*(rope[name] for name in _STRETCH))


# linears that make queries, keys and values
READ_FIRST = ("attn.c_attn", "attn.q_proj", "attn.k_proj", "attn.v_proj")


def block_tensors(c: GPTConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a block: its linears (out, in) with their biases (out,), and two norms (C,)."""
    shapes = {}
    for name in ("ln_1", "ln_2"):
        shapes |= _norm(c, name)
    for place, (into, out) in linears(c).items():
        shapes[f"{place}.weight"] = (out, into)
        if c.bias == "all" or (c.bias == "qkv" and place in READ_FIRST):
            shapes[f"{place}.bias"] = (out,)
    return shapes


def rest_tensors(c: GPTConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor outside the blocks: the tables (V, C) and (block_size, C), the last norm, a head of its own (V, C)."""
    shapes = {"wte.weight": (c.vocab_size, c.n_embd)}
    if c.position == "learned":
        shapes["wpe.weight"] = (c.block_size, c.n_embd)
    shapes |= _norm(c, "ln_f")
    if not c.tied:
        shapes["lm_head.weight"] = (c.vocab_size, c.n_embd)
    return shapes


def base_tensors(c: GPTConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a base, under model.py's names."""
    blocks = {f"h.{i}.{name}": shape for i in range(c.n_layer) for name, shape in block_tensors(c).items()}
    return rest_tensors(c) | blocks


def base_size(c: GPTConfig) -> int:
    """Parameters of a base, counted without making its tensors."""
    return sum(map(math.prod, rest_tensors(c).values())) + c.n_layer * sum(map(math.prod, block_tensors(c).values()))


def _norm(c: GPTConfig, name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{part}": (c.n_embd,) for part in (("weight", "bias") if c.norm == "layer" else ("weight",))}


def _no_weight(name: str) -> bool:
    """What old files also hold: causal masks, and the frequencies of rotary positions."""
    return name.endswith((".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"))


def write_base(c: GPTConfig, tensors: dict[str, Tensor], folder, safe_serialization: bool | None = None) -> None:
    """Write a base's folder. safe_serialization: see GPT.save_pretrained. Raises Error when the folder holds something else."""
    check_place(folder, "a base")
    folder, kind = Path(folder), architecture(c)
    tensors = {stored_name(name, kind): t.t() if transposed(name) else t for name, t in tensors.items()}
    config = config_to_json(c)
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
    config = config_from_json(stored, where)
    return config, stored


@torch.no_grad()
def read_base(folder, dtype: torch.dtype | None = None) -> tuple[GPTConfig, dict[str, Tensor]]:
    """The config and weights of a base's folder, or of a hub id where huggingface_hub is installed; the weights keep their type, or
    take `dtype`.

    Raises Error for a folder that is no base, an architecture that model.py does not have, or files that are torn or changed.
    """
    folder = find_base(folder)
    where = folder / "config.json"
    config, stored = base_config(folder)
    files = StoredTensors(folder, "model", stored)
    files.check_size(base_size(config), where)
    if config.n_layer > MOST_LAYERS:
        raise Error(f"{where}: {config.n_layer} layers, but no more than {MOST_LAYERS} are read")
    state = _weights(files, config, base_tensors(config), dtype)
    files.check_config(_shape(config), where)  # last: whatever fits no tensor is told in its own words
    return config, state


def base_fingerprint(c: GPTConfig, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of a base: its config and weights, rounded to bfloat16 so that float32 and bfloat16 copies are the same base."""
    shape = [c.vocab_size, c.block_size, c.n_layer, c.n_head, c.n_embd, float(c.layer_norm_epsilon)]
    shape += [float(c.rope_theta)] if c.position == "rotary" else []
    shape += [c.n_kv] if c.n_kv != c.n_head else []  # the weights' own names and shapes tell the other choices apart
    shape += [tuple(map(float, c.rope_scaling))] if c.rope_scaling else []
    return hashlib.sha256(f"{shape} {c.position} {digest(tensors, torch.bfloat16)}".encode()).hexdigest()


def _shape(config: GPTConfig) -> dict:
    return asdict(config.resolved())


def _weights(files: StoredTensors, c: GPTConfig, shapes: dict, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The file's tensors under our names, and only those that have one. Raises Error for a head that should be the embeddings' own."""
    kind = architecture(c)
    ours = {stored_name(name, kind): name for name in shapes}
    bare = {theirs.removeprefix("transformer."): name for theirs, name in ours.items()}  # GPT-2's released files leave it out
    state, head, strange = {}, None, []
    for theirs, t in files:
        if _no_weight(theirs):
            continue
        name = ours.get(theirs) or bare.get(theirs)
        t = t.to(dtype) if dtype is not None and t.is_floating_point() else t
        if theirs == "lm_head.weight" and c.tied:
            head = t
        elif name is None:
            strange.append(theirs)
        elif name in state:
            raise Error(f"{files.path} holds {name} under two names")
        else:
            state[name] = t.t().contiguous() if transposed(name) and t.dim() == 2 else t
    expected = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    check_tensors(state | dict.fromkeys(strange), expected, files.path)
    if head is not None and not ("wte.weight" in state and torch.equal(head, state["wte.weight"])):
        raise Error(f"{files.path}: lm_head.weight differs from the embeddings, but the config says that the head is tied to them")
    return state
