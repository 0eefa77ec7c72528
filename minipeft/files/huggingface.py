"""A base's Hugging Face folder: config.json, and model.safetensors or pytorch_model.bin or shards.

    model_type  in transformers   what it is
    gpt2        GPT2LMHeadModel   learned positions, LayerNorm, GELU, joined q, k, v; tied head
    llama       LlamaForCausalLM  rotary positions, RMSNorm, SwiGLU, separate q, k, v, no biases:
                                  Llama, SmolLM2, TinyLlama …
    qwen2       Qwen2ForCausalLM  as llama, with biases on q, k, v: Qwen2, Qwen2.5
    minipeft    -                 any other mixture, stored under GPT-2's tensor names
"""

import hashlib
import importlib.util
import math
import re
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch import Tensor

from ..checks import Error, did_you_mean, shown
from ..config import CHOICES, LLAMA, GPTConfig, RopeScaling, linears
from .atomic import check_destination, file_exists, lost_from_run, read_json, write_json
from .tensors import Lazily, StoredTensors, check_tensors, config_digest, digest, write_tensors

SHIPPED = Path(__file__).parents[1] / "data"  # holds a folder for each base of the package itself
MAX_LAYERS = 1000  # a module takes memory however small its weights; real models have some hundred


def architecture(c: GPTConfig) -> str:
    """The model_type of a base: "gpt2", "llama", "qwen2" or "minipeft"."""
    like_gpt2 = all(getattr(c, name) == choices[0] for name, choices in CHOICES.items())
    like_llama = all(getattr(c, name) == value for name, value in LLAMA.items() if name != "bias")
    if like_gpt2 and c.n_kv == c.n_head:
        return "gpt2"
    if like_llama and c.bias != "all":
        return "llama" if c.bias == "none" else "qwen2"
    return "minipeft"


_LLAMA_NAMES = {  # ours: transformers'; modules of a block, then tensors outside the blocks
    "ln_1": "input_layernorm", "ln_2": "post_attention_layernorm", "attn": "self_attn",
    "mlp": "mlp", "wte.weight": "model.embed_tokens.weight", "ln_f.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}


def stored_name(name: str, kind: str) -> str:
    """The name that one of our tensors has in a folder of this model_type."""
    if kind not in ("llama", "qwen2"):
        return name if name == "lm_head.weight" else f"transformer.{name}"
    if name in _LLAMA_NAMES:
        return _LLAMA_NAMES[name]
    _, i, module, rest = name.split(".", 3)
    return f"model.layers.{i}.{_LLAMA_NAMES[module]}.{rest}"


def is_transposed(name: str) -> bool:
    """True for GPT-2's linears: stored (in, out), where torch has (out, in)."""
    return name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))


def block_tensors(c: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of a block's tensors: linears (out, in), their biases (out,), and two norms (C,)."""
    shapes = _norm_tensors(c, "ln_1") | _norm_tensors(c, "ln_2")
    for module, (inputs, outputs) in linears(c).items():
        shapes[f"{module}.weight"] = (outputs, inputs)
        is_qkv = module in ("attn.c_attn", "attn.q_proj", "attn.k_proj", "attn.v_proj")
        if c.bias == "all" or (c.bias == "qkv" and is_qkv):
            shapes[f"{module}.bias"] = (outputs,)
    return shapes


def outer_tensors(c: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors outside the blocks: embeddings (V, C), positions, last norm, head."""
    positions = {"wpe.weight": (c.block_size, c.n_embd)} if c.position == "learned" else {}
    head = {} if c.tied else {"lm_head.weight": (c.vocab_size, c.n_embd)}
    return {"wte.weight": (c.vocab_size, c.n_embd), **positions, **_norm_tensors(c, "ln_f"), **head}


def _norm_tensors(c: GPTConfig, name: str) -> dict[str, tuple[int, ...]]:
    tensors = ("weight", "bias") if c.norm == "layer" else ("weight",)
    return {f"{name}.{tensor}": (c.n_embd,) for tensor in tensors}


def base_tensors(c: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of a base, under model.py's names."""
    block = block_tensors(c)
    blocks = {f"h.{i}.{name}": shape for i in range(c.n_layer) for name, shape in block.items()}
    return outer_tensors(c) | blocks


def count_parameters(c: GPTConfig) -> int:
    """Parameters of a base, without listing every layer's tensors."""
    outer, block = outer_tensors(c).values(), block_tensors(c).values()
    return sum(map(math.prod, outer)) + c.n_layer * sum(map(math.prod, block))


CONFIG_FIELDS = {  # model_type: {transformers' field: ours}
    "gpt2": {"n_positions": "block_size", "vocab_size": "vocab_size", "n_layer": "n_layer",
             "n_head": "n_head", "n_embd": "n_embd", "n_inner": "n_inner",
             "layer_norm_epsilon": "layer_norm_epsilon"},
    "llama": {"vocab_size": "vocab_size", "max_position_embeddings": "block_size",
              "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
              "num_key_value_heads": "n_kv_head", "hidden_size": "n_embd",
              "intermediate_size": "n_inner", "rms_norm_eps": "layer_norm_epsilon",
              "rope_theta": "rope_theta"},
}
CONFIG_FIELDS["qwen2"] = CONFIG_FIELDS["llama"]
_ROPE_FIELDS = (  # of rotary positions of type "llama3", in the order of RopeScaling
    "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_SUPPORTED = {  # values of the settings that model.py implements; the first is written
    "gpt2": {"activation_function": ("gelu_new", "gelu_pytorch_tanh"),
             "tie_word_embeddings": (True,), "scale_attn_weights": (True,),
             "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,)},
    "llama": {"hidden_act": ("silu",), "attention_bias": (False, None), "mlp_bias": (False, None)},
    "qwen2": {"hidden_act": ("silu",), "use_sliding_window": (False, None)},
}
_IF_ABSENT = {  # of the fields that the weights do not tell; the others must be there
    "llama": {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
    "qwen2": {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6},
}
_CLASSES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}


def config_to_json(c: GPTConfig) -> dict:
    """The config.json of a base."""
    kind = architecture(c)
    if kind == "minipeft":
        return {"model_type": "minipeft", "architectures": ["GPT"],
                **{f.name: getattr(c, f.name) for f in fields(GPTConfig)}}
    full = c if kind == "gpt2" else c.resolved()
    config = {"model_type": kind, "architectures": [_CLASSES[kind]]}
    config |= {theirs: getattr(full, ours) for theirs, ours in CONFIG_FIELDS[kind].items()}
    if kind != "gpt2":
        scaling = c.rope_scaling and dict(zip(_ROPE_FIELDS, c.rope_scaling, strict=True))
        config["rope_scaling"] = scaling and {"rope_type": "llama3", **scaling}
    config |= {name: values[0] for name, values in _SUPPORTED[kind].items()}
    return config | {"tie_word_embeddings": c.tied, "bos_token_id": None, "eos_token_id": None}


def config_from_json(c: dict, path: Path) -> GPTConfig:
    """The config that the config.json at `path` describes. Raises Error for what model.py lacks."""
    try:
        if c.get("model_type") != "minipeft":
            return _config_from_transformers(c)
        known = {f.name: c[f.name] for f in fields(GPTConfig) if f.name in c}
        if isinstance(known.get("rope_scaling"), list) and len(known["rope_scaling"]) == 4:
            known["rope_scaling"] = RopeScaling(*known["rope_scaling"])
        return GPTConfig(**known)
    except Error as e:
        raise Error(f"{path}: {e}") from None


def _config_from_transformers(c: dict) -> GPTConfig:
    kind = c.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_FIELDS:
        raise Error(f"model_type {shown(kind)} is not supported, "
                    f"only {', '.join(CONFIG_FIELDS)} and minipeft")
    _refuse_quantised(c.get("quantization_config"))
    c = _IF_ABSENT.get(kind, {}) | c
    for name, values in _SUPPORTED[kind].items():
        if name in c and c[name] not in values:
            allowed = " or ".join(repr(value) for value in values if value is not None)
            raise Error(f"{name} {shown(c[name])} is not supported, only {allowed}")
    layers = c.get("layer_types") or []
    if not isinstance(layers, list) or any(layer != "full_attention" for layer in layers):
        raise Error(f"layer_types {shown(layers)} is not supported, only 'full_attention'")
    # transformers 4 writes rope_scaling, 5 rope_parameters; it prefers the former too
    rope = {} if kind == "gpt2" else c.get("rope_scaling") or c.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise Error(f"rope_scaling must be a JSON object or null, not {shown(rope)}")
    if (part := rope.get("partial_rotary_factor", c.get("partial_rotary_factor"))) not in (None, 1):
        raise Error(f"partial_rotary_factor {shown(part)} is not supported, only 1")
    sizes = {ours: value for theirs, ours in CONFIG_FIELDS[kind].items()
             if (value := rope.get(theirs, c.get(theirs))) is not None}
    if kind == "gpt2":
        return GPTConfig(**sizes)
    for theirs, ours in CONFIG_FIELDS[kind].items():
        if ours not in sizes and ours not in ("n_kv_head", "rope_theta"):
            raise Error(f"it has no {theirs}")
    choices = LLAMA | {"bias": "none" if kind == "llama" else "qkv",
                       "tied": bool(c.get("tie_word_embeddings"))}
    config = GPTConfig(**sizes, rope_scaling=_rope_scaling(rope), **choices)
    if c.get("head_dim") not in (None, config.head_size):
        raise Error(f"head_dim {shown(c['head_dim'])} is not supported, "
                    f"only hidden_size / num_attention_heads ({config.head_size})")
    return config


def _refuse_quantised(settings) -> None:
    """Raise Error for weights in few bits; settings: config.json's, null for other weights."""
    if not settings:
        return
    settings = settings if isinstance(settings, dict) else {}
    four, eight = (settings.get(f"load_in_{n}bit") for n in (4, 8))
    bits = settings.get("bits") or (4 if four else 8 if eight else None)
    kind = settings.get("quant_method") or (bits and "bitsandbytes") or "unknown method"
    kind = shown(kind)[1:-1] + (f", {shown(bits)} bit" if bits else "")
    raise Error(f"the weights are quantised ({kind}): take the unquantised model")


def _rope_scaling(rope: dict) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3" or not all(name in rope for name in _ROPE_FIELDS):
        raise Error(f"rotary positions of type {shown(kind)} are not supported, "
                    f"only 'default' and 'llama3' (with {', '.join(_ROPE_FIELDS)})")
    return RopeScaling(*(rope[name] for name in _ROPE_FIELDS))


def write_base(c: GPTConfig, tensors: dict[str, Tensor], folder,
               safe_serialization: bool | None = None) -> None:
    """Write a base's folder; safe_serialization: as in GPT.save_pretrained."""
    if tensors.keys() != base_tensors(c).keys():
        raise Error("a quantised base is not saved: keep the folder it was read from, which adapters open on too")
    check_destination(folder, "a base")
    folder, kind = Path(folder), architecture(c)
    tensors = {stored_name(name, kind): t.t() if is_transposed(name) else t
               for name, t in tensors.items()}
    config = config_to_json(c)
    as_read = config_from_json(config, folder / "config.json")
    notes = {"sha256": digest(tensors), "config": config_digest(asdict(as_read.resolved()))}
    safe = write_tensors(folder, "model", tensors, safe_serialization, notes)
    write_json(folder / "config.json", config if safe else config | {"minipeft": notes})


_HUB_NAME = re.compile(r"(\w[\w.-]{0,95}/)?\w[\w.-]{0,95}", re.ASCII)  # with or without an owner
_HUB_FAILURES = {  # classes of huggingface_hub's exceptions, in the order they are looked for
    "GatedRepoError": "its page asks for a login and consent",
    "RepositoryNotFoundError": "the hub has no such model, or keeps it private",
    "LocalEntryNotFoundError": "the hub cannot be reached",
    "ConnectionError": "the hub cannot be reached", "TransportError": "the hub cannot be reached",
}
_GGUF = "GGUF is not read: take the Hugging Face folder that it was made from"


def find_base(folder) -> Path:
    """A folder, else a base that ships with the package ("nano"), else the snapshot of a hub id.

    Raises Error when there is none of that name."""
    if Path(folder).is_dir():
        return Path(folder)
    shipped = {path.parent.name: path.parent for path in SHIPPED.glob("*/config.json")}
    if str(folder) in shipped:
        return shipped[str(folder)]
    if Path(folder).suffix == ".gguf":
        raise Error(f"no base at {folder}: {_GGUF}")
    meant = did_you_mean(str(folder), shipped)
    if not _HUB_NAME.fullmatch(str(folder)):
        raise Error(f"no base at {folder}: there is no such folder{meant}")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise Error(f"no base at {folder}: there is no such folder "
                    f"(and to fetch a model of that name: pip install huggingface_hub){meant}")
    from huggingface_hub import snapshot_download

    files = ["*.json", "*.jinja", "*.safetensors"]
    try:
        found = Path(snapshot_download(str(folder), allow_patterns=files))
        if not any(found.glob("*.safetensors")):  # an older model
            files += ["pytorch_model*.bin"]
            found = Path(snapshot_download(str(folder), allow_patterns=files))
        return found
    except Exception as e:  # no network, no such model, no permission: a class for each
        classes = {c.__name__ for c in type(e).__mro__}
        said = (text for name, text in _HUB_FAILURES.items() if name in classes)
        lines = [line[:200] for line in str(e).splitlines() if line.strip()] or [type(e).__name__]
        raise Error(f"no base at {folder}: there is no such folder, and fetching a model of that "
                    f"name failed ({next(said, lines[0])}){meant}") from None


def read_base_config(folder: Path) -> tuple[GPTConfig, dict]:
    """The config of a base's folder and its config.json as it stands. Raises Error without one."""
    if not file_exists(path := folder / "config.json"):
        wanted = _GGUF if any(folder.glob("*.gguf")) else "a base is a Hugging Face model folder"
        raise Error(lost_from_run(path) or f"{folder} holds no config.json: {wanted}")
    stored = read_json(path)
    return config_from_json(stored, path), stored


@torch.no_grad()
def read_base(folder, dtype: torch.dtype | None = None, convert: Callable[[str, Tensor], Tensor] | None = None,
              ) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Config and weights of the base that find_base finds, in `dtype` or the file's own; `convert`
    replaces tensors as they are read, from (name, tensor).

    Raises Error for a folder that is no base, an architecture that model.py does not have, or files
    that are torn or changed.
    """
    path = find_base(folder) / "config.json"
    config, stored = read_base_config(path.parent)
    files = StoredTensors(path.parent, "model", stored)
    files.check_size(count_parameters(config), path)
    if config.n_layer > MAX_LAYERS:
        raise Error(f"{path}: {config.n_layer} layers, but no more than {MAX_LAYERS} are read")
    weights = _read_weights(files, config, dtype, convert)
    files.check_config(asdict(config.resolved()), path)  # after more specific errors of the tensors
    return config, weights


def _our_names(c: GPTConfig) -> dict[str, str]:
    """{name in a folder: ours} of every tensor of a base."""
    ours = {stored_name(name, architecture(c)): name for name in base_tensors(c)}
    # GPT-2's released files, and all that a model without its head saved, lack the outer prefix
    return ours | {re.sub("^(transformer|model)[.]", "", theirs): name for theirs, name in ours.items()}


def _turned(name: str, t: Tensor) -> Tensor:
    """The tensor of a folder as torch has it, (out, in)."""
    return t.t().contiguous() if is_transposed(name) and t.dim() == 2 else t


def read_lazily(folder: Path, c: GPTConfig) -> Lazily:
    """{name: tensor} of a base that read_base has read; see StoredTensors.lazily."""
    stored, ours = StoredTensors(folder, "model", {}).lazily(), _our_names(c)
    return Lazily({ours[theirs]: lambda theirs=theirs: _turned(ours[theirs], stored[theirs])
                   for theirs in stored if theirs in ours})


def _read_weights(files: StoredTensors, c: GPTConfig, dtype: torch.dtype | None,
                  convert: Callable[[str, Tensor], Tensor] | None) -> dict[str, Tensor]:
    """The tensors under our names. Raises Error for any that is missing, unknown or misshapen."""
    ours, shapes = _our_names(c), base_tensors(c)
    weights, head, unknown = {}, None, []  # head: of a file that has tied weights under both names
    for theirs, t in files:
        if theirs.endswith((".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")):
            continue  # old files also hold causal masks and rotary frequencies
        name = ours.get(theirs)
        t = t.to(dtype) if dtype is not None and t.is_floating_point() else t
        if theirs == "lm_head.weight" and c.tied:
            head = t
        elif name is None:
            unknown.append(theirs)
        elif name in weights:
            raise Error(f"{files.path} holds {name} under two names")
        else:
            t = _turned(name, t)
            weights[name] = t if convert is None else convert(name, t)
    if head is not None:  # safetensors' save_model writes one name of the two
        weights.setdefault("wte.weight", head)
    expected = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    check_tensors(weights | dict.fromkeys(unknown), expected, files.path)
    if head is not None and not torch.equal(head, weights["wte.weight"]):
        raise Error(f"{files.path}: lm_head.weight differs from the embeddings, "
                    "but the config says that the head is tied to them")
    for name in weights:  # some programs leave norms in float32, but a model computes in one type
        weights[name] = weights[name].to(weights["wte.weight"].dtype)
    return weights


def base_fingerprint(c: GPTConfig, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of a base's config and weights, rounded to bfloat16: a float32 base and its copy in
    bfloat16 are the same base."""
    sizes = [c.vocab_size, c.block_size, c.n_layer, c.n_head, c.n_embd, float(c.layer_norm_epsilon)]
    sizes += [float(c.rope_theta)] if c.position == "rotary" else []
    sizes += [c.n_kv] if c.n_kv != c.n_head else []  # weights' names and shapes tell other choices
    sizes += [tuple(map(float, c.rope_scaling))] if c.rope_scaling else []
    text = f"{sizes} {c.position} {digest(tensors, torch.bfloat16)}"
    return hashlib.sha256(text.encode()).hexdigest()
