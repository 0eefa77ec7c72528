"""A base's Hugging Face folder: config.json, and model.safetensors or pytorch_model.bin or shards.

    model_type  in transformers   what it is
    gpt2        GPT2LMHeadModel   learned positions, LayerNorm, GELU, joined q, k, v; tied head
    llama       LlamaForCausalLM  rotary positions, RMSNorm, SwiGLU, separate q, k, v, no biases:
                                  Llama, SmolLM2, TinyLlama …
    mistral     MistralForCausalLM  as llama, with a window in every layer
    qwen2       Qwen2ForCausalLM  as llama, with biases on q, k, v: Qwen2, Qwen2.5
    qwen3       Qwen3ForCausalLM  as llama, with norms of queries and keys
    smollm3     SmolLM3ForCausalLM  as llama, every 4th layer without rotation
    gemma3_text Gemma3ForCausalLM  as qwen3, with windows, four norms a block, GEGLU, embeddings · √C
    minipeft    -                 any other mixture, stored under GPT-2's tensor names
"""

import hashlib
import importlib.util
import math
import re
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from ..checks import Error, did_you_mean, shown
from ..config import BY_LAYER, CHOICES, GEMMA3, GPT2, LLAMA, QWEN3, GPTConfig, RopeScaling, linears
from .atomic import check_destination, file_exists, lost_from_run, read_json, write_json
from .tensors import StoredTensors, check_tensors, config_digest, digest, write_tensors

SHIPPED = Path(__file__).parents[1] / "data"  # holds a folder for each base of the package itself
MAX_LAYERS = 1000  # a module takes memory however small its weights; real models have some hundred


FAMILIES = {  # model_type: its choices (others as in GPT-2), and the fields by layer that it may have
    "gpt2": ({}, ()),
    "llama": (LLAMA, ()),
    "mistral": (LLAMA, ("sliding_window",)),
    "qwen2": (LLAMA | {"bias": "qkv"}, ()),
    "qwen3": (QWEN3, ()),
    "smollm3": (LLAMA, ("no_rope_layer_interval",)),
    "gemma3_text": (GEMMA3, ("sliding_window", "sliding_window_pattern", "rope_local_base_freq")),
}
_DIVIDING = ("gpt2", "llama", "gemma3_text")  # transformers wants C to divide into heads there, whatever their size


def architecture(c: GPTConfig) -> str:
    """The model_type of a base: the first of FAMILIES that has its choices, or "minipeft"."""
    first = {name: choices[0] for name, choices in CHOICES.items()}
    ours = {name: getattr(c, name) for name in CHOICES}
    by_layer = {name for name in BY_LAYER if getattr(c.resolved(), name) is not None}
    for kind, (choices, allowed) in FAMILIES.items():
        tied = {} if kind == "gpt2" else {"tied": c.tied}
        fits = ours == first | choices | tied and by_layer <= set(allowed)
        if kind == "gpt2":
            fits = fits and c.n_kv == c.n_head and c.q == c.n_embd
        if kind == "smollm3":
            fits = fits and c.q == c.n_embd  # its config has no size of a head
        if kind == "gemma3_text" and c.rope_local_base_freq is None:  # transformers scales none of these layers
            fits = fits and not (c.rope_scaling and c.sliding_window)
        if fits and not (kind in _DIVIDING and c.n_embd % c.n_head):
            return kind
    return "minipeft"


_LLAMA_NAMES = {  # ours: transformers'; modules of a block, then tensors outside the blocks
    "ln_1": "input_layernorm", "ln_2": "post_attention_layernorm", "attn": "self_attn",
    "mlp": "mlp", "wte.weight": "model.embed_tokens.weight", "ln_f.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
_GEMMA_NAMES = _LLAMA_NAMES | {"ln_1_post": "post_attention_layernorm", "ln_2": "pre_feedforward_layernorm",
                               "ln_2_post": "post_feedforward_layernorm"}


def stored_name(name: str, kind: str) -> str:
    """The name that one of our tensors has in a folder of this model_type."""
    if kind in ("gpt2", "minipeft"):
        return name if name == "lm_head.weight" else f"transformer.{name}"
    names = _GEMMA_NAMES if kind == "gemma3_text" else _LLAMA_NAMES
    if name in names:
        return names[name]
    _, i, module, rest = name.split(".", 3)
    return f"model.layers.{i}.{names[module]}.{rest}"


def is_transposed(name: str) -> bool:
    """True for GPT-2's linears: stored (in, out), where torch has (out, in)."""
    return name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))


def block_tensors(c: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of a block's tensors: linears (out, in), their biases (out,), norms (C,) or, of heads, (hs,)."""
    shapes = {}
    for name in ("ln_1", "ln_2", *(("ln_1_post", "ln_2_post") if c.sandwich_norm else ())):
        shapes |= _norm_tensors(c, name)
    for name in ("attn.q_norm", "attn.k_norm") if c.qk_norm else ():
        shapes |= _norm_tensors(c, name, c.head_size)
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


def _norm_tensors(c: GPTConfig, name: str, size: int | None = None) -> dict[str, tuple[int, ...]]:
    tensors = ("weight", "bias") if c.norm == "layer" else ("weight",)
    return {f"{name}.{tensor}": (c.n_embd if size is None else size,) for tensor in tensors}


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
CONFIG_FIELDS |= {kind: CONFIG_FIELDS["llama"] for kind in FAMILIES if kind != "gpt2"}
_HEAD_DIM = ("llama", "mistral", "qwen3", "gemma3_text")  # have a field for the size of a head
_ROPE_FIELDS = (  # of rotary positions of type "llama3", in the order of RopeScaling
    "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_NO_BIAS = {"hidden_act": ("silu",), "attention_bias": (False, None), "mlp_bias": (False, None)}
_SUPPORTED = {  # values of the settings that model.py implements; the first is written
    "gpt2": {"activation_function": ("gelu_new", "gelu_pytorch_tanh"),
             "tie_word_embeddings": (True,), "scale_attn_weights": (True,),
             "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,)},
    "llama": _NO_BIAS,
    "mistral": {"hidden_act": ("silu",)},
    "qwen2": {"hidden_act": ("silu",), "use_sliding_window": (False, None)},
    "qwen3": {"hidden_act": ("silu",), "attention_bias": (False, None), "use_sliding_window": (False, None)},
    "smollm3": _NO_BIAS | {"use_sliding_window": (False, None)},
    "gemma3_text": {"hidden_activation": ("gelu_pytorch_tanh",), "attention_bias": (False, None),
                    "attn_logit_softcapping": (None,), "final_logit_softcapping": (None,),
                    "use_bidirectional_attention": (False, None)},
}
_IF_ABSENT = {  # of the fields that the weights do not tell; the others must be there
    "gpt2": {},
    "llama": {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
    "mistral": {"max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "sliding_window": 4096},
    "qwen2": {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6},
    "qwen3": {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "head_dim": 128},
    "smollm3": {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 2e6, "tie_word_embeddings": True,
                "no_rope_layer_interval": 4},
    "gemma3_text": {"max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "head_dim": 256, "rope_theta": 1e6,
                    "rope_local_base_freq": 1e4, "sliding_window": 4096, "sliding_window_pattern": 6,
                    "tie_word_embeddings": True, "query_pre_attn_scalar": 256},
}
_CLASSES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM",
            "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "smollm3": "SmolLM3ForCausalLM",
            "gemma3_text": "Gemma3ForCausalLM"}
_LATER = ("head_dim", "sandwich_norm", "qk_norm", "scale_embeddings", *BY_LAYER)  # older files have none of them


def _told(c: GPTConfig) -> dict:
    """The fields of a config, without those that older files lack where they have GPT-2's value."""
    return {name: value for name, value in asdict(c).items()
            if name not in _LATER or value != getattr(GPT2, name)}


def config_to_json(c: GPTConfig) -> dict:
    """The config.json of a base."""
    kind = architecture(c)
    if kind == "minipeft":
        return {"model_type": "minipeft", "architectures": ["GPT"], **_told(c)}
    full = c if kind == "gpt2" else c.resolved()
    config = {"model_type": kind, "architectures": [_CLASSES[kind]]}
    config |= {theirs: getattr(full, ours) for theirs, ours in CONFIG_FIELDS[kind].items()}
    if kind != "gpt2":
        scaling = c.rope_scaling and dict(zip(_ROPE_FIELDS, c.rope_scaling, strict=True))
        config["rope_scaling"] = scaling and {"rope_type": "llama3", **scaling}
    config |= _by_layer_to_json(c, kind) | {name: values[0] for name, values in _SUPPORTED[kind].items()}
    if kind in ("smollm3", "gemma3_text"):  # else an id of the published models
        config["pad_token_id"] = None
    return config | {"tie_word_embeddings": c.tied, "bos_token_id": None, "eos_token_id": None}


def _by_layer_to_json(c: GPTConfig, kind: str) -> dict:
    """The fields of config.json for the size of a head, and for what differs by layer."""
    layers = range(c.n_layer)
    config = {"head_dim": c.head_size} if kind in _HEAD_DIM and (c.q != c.n_embd or kind != "llama") else {}
    if kind == "mistral":
        config["sliding_window"] = c.sliding_window
    if kind == "smollm3":
        config["no_rope_layers"] = [int(c.rope(i) is not None) for i in layers]
        config["no_rope_layer_interval"] = c.no_rope_layer_interval
    if kind == "gemma3_text":
        kinds = ["full_attention" if c.window(i) is None else "sliding_attention" for i in layers]
        config |= {"query_pre_attn_scalar": c.head_size, "layer_types": kinds,
                   "sliding_window": c.sliding_window or _IF_ABSENT[kind]["sliding_window"],
                   "rope_local_base_freq": c.resolved().rope_local_base_freq or c.rope_theta}
    return config


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
    given, c = c, _IF_ABSENT[kind] | c
    for name, values in _SUPPORTED[kind].items():
        if name in c and c[name] not in values:
            allowed = " or ".join(repr(value) for value in values if value is not None)
            raise Error(f"{name} {shown(c[name])} is not supported, only {allowed or 'null'}")
    # transformers 4 writes rope_scaling, 5 rope_parameters; it prefers the former too
    rope = {} if kind == "gpt2" else given.get("rope_scaling") or given.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise Error(f"rope_scaling must be a JSON object or null, not {shown(rope)}")
    local = {}
    if kind == "gemma3_text" and {"full_attention", "sliding_attention"} & set(rope):
        rope, local = rope.get("full_attention") or {}, rope.get("sliding_attention") or {}
    if not isinstance(rope, dict) or not isinstance(local, dict):
        raise Error("rope_parameters must hold a JSON object for full_attention and for sliding_attention")
    if _rope_scaling(local) is not None:
        raise Error("rotary positions of layers with a window are not supported with scaling")
    if (part := rope.get("partial_rotary_factor", c.get("partial_rotary_factor"))) not in (None, 1):
        raise Error(f"partial_rotary_factor {shown(part)} is not supported, only 1")
    sizes = {ours: value for theirs, ours in CONFIG_FIELDS[kind].items()
             if (value := rope.get(theirs, c.get(theirs))) is not None}
    if kind == "gpt2":
        return GPTConfig(**sizes)
    for theirs, ours in CONFIG_FIELDS[kind].items():
        if ours not in sizes and ours not in ("n_kv_head", "rope_theta"):
            raise Error(f"it has no {theirs}")
    choices = FAMILIES[kind][0] | {"tied": bool(c.get("tie_word_embeddings"))}
    config = GPTConfig(**sizes, rope_scaling=_rope_scaling(rope), **choices, head_dim=c.get("head_dim"),
                       **_by_layer_from_json(c, kind, sizes["n_layer"], local))
    if config.q == config.n_embd:
        config = replace(config, head_dim=None)
    elif kind in ("qwen2", "smollm3"):
        raise Error(f"head_dim {shown(c['head_dim'])} is not supported, only hidden_size / num_attention_heads")
    if kind == "gemma3_text" and c["query_pre_attn_scalar"] != config.head_size:
        raise Error(f"query_pre_attn_scalar {shown(c['query_pre_attn_scalar'])} is not supported, "
                    f"only head_dim ({config.head_size})")
    return config


def _by_layer_from_json(c: dict, kind: str, L: int, local: dict) -> dict:
    """The fields of a config by layer; local: rotary positions of Gemma 3's layers with a window."""
    types = c.get("layer_types") or []
    known = ("full_attention",) if kind != "gemma3_text" else ("full_attention", "sliding_attention")
    if not isinstance(types, list) or any(layer not in known for layer in types):
        raise Error(f"layer_types {shown(types)} is not supported, only {' and '.join(map(repr, known))}")
    if kind == "mistral":
        return {"sliding_window": c["sliding_window"]}
    if kind == "smollm3":
        rotated = c.get("no_rope_layers")
        every = _interval("no_rope_layers", rotated, 0, L) if rotated else c["no_rope_layer_interval"]
        return {"no_rope_layer_interval": every}
    if kind != "gemma3_text":
        return {}
    every = c.get("_sliding_window_pattern") or c["sliding_window_pattern"]
    every = _interval("layer_types", types, "full_attention", L) if types else every
    if every == 1:  # every layer sees all
        return {}
    return {"sliding_window": c["sliding_window"], "sliding_window_pattern": every,
            "rope_local_base_freq": local.get("rope_theta", c["rope_local_base_freq"])}


def _interval(name: str, layers: list, other, L: int) -> int | None:
    """n where every n-th of the layers is `other`, None where none is. Raises Error for another pattern."""
    layers = layers[:L] if isinstance(layers, list) else []
    every = layers.index(other) + 1 if other in layers else None
    if len(layers) < L or any((x == other) != (every is not None and i % every == 0)
                              for i, x in enumerate(layers, start=1)):
        raise Error(f"{name} {shown(layers)} is not supported: only {L} layers of which every n-th is {other!r}")
    return every


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
    check_destination(folder, "a base")
    folder, kind = Path(folder), architecture(c)
    tensors = {stored_name(name, kind): t.t() if is_transposed(name) else t
               for name, t in tensors.items()}
    config = config_to_json(c)
    as_read = config_from_json(config, folder / "config.json")
    notes = {"sha256": digest(tensors), "config": config_digest(_told(as_read.resolved()))}
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
def read_base(folder, dtype: torch.dtype | None = None) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Config and weights of the base that find_base finds, in `dtype` or the file's own.

    Raises Error for a folder that is no base, an architecture that model.py does not have, or files
    that are torn or changed.
    """
    path = find_base(folder) / "config.json"
    config, stored = read_base_config(path.parent)
    files = StoredTensors(path.parent, "model", stored)
    files.check_size(count_parameters(config), path)
    if config.n_layer > MAX_LAYERS:
        raise Error(f"{path}: {config.n_layer} layers, but no more than {MAX_LAYERS} are read")
    weights = _read_weights(files, config, stored["model_type"], dtype)
    files.check_config(_told(config.resolved()), path)  # after more specific errors of the tensors
    return config, weights


def _read_weights(files: StoredTensors, c: GPTConfig, kind: str,
                  dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The tensors under our names; kind: model_type. Raises Error for any missing, unknown or misshapen."""
    shapes = base_tensors(c)
    ours = {stored_name(name, kind): name for name in shapes}
    # GPT-2's released files, and all that a model without its head saved, lack the outer prefix
    ours |= {re.sub("^(transformer|model)[.]", "", theirs): name for theirs, name in ours.items()}
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
            weights[name] = t.t().contiguous() if is_transposed(name) and t.dim() == 2 else t
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
    untold = {name: getattr(c.resolved(), name) for name in ("norm", "mlp", "scale_embeddings", *BY_LAYER)}
    sizes += [f"{name} {value}" for name, value in untold.items()
              if value not in (None, False, "layer", "rms", "gelu", "swiglu")]
    text = f"{sizes} {c.position} {digest(tensors, torch.bfloat16)}"
    return hashlib.sha256(text.encode()).hexdigest()
