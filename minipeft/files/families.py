"""Architectures of Hugging Face folders: choices, names of tensors, and config.json.

    model_type   in transformers     what it is
    gpt2         GPT2LMHeadModel     learned positions, LayerNorm, GELU, joined q, k, v; tied head
    llama        LlamaForCausalLM    rotary positions, RMSNorm, SwiGLU, separate q, k, v, no biases:
                                     Llama, SmolLM2, TinyLlama …
    mistral      MistralForCausalLM  as llama, with a window in every layer
    qwen2        Qwen2ForCausalLM    as llama, with biases on q, k, v: Qwen2, Qwen2.5
    qwen3        Qwen3ForCausalLM    as llama, with norms of each head's queries and keys
    smollm3      SmolLM3ForCausalLM  as llama, with every 4th layer without rotation
    gemma3_text  Gemma3ForCausalLM   as qwen3, with windows, four norms a block, GEGLU, scaled embeddings
    minipeft     -                   any other mixture, stored under GPT-2's tensor names
"""

from dataclasses import fields, replace
from pathlib import Path

from ..checks import Error, at_least_one, shown
from ..config import BY_LAYER, CHOICES, GEMMA3, GPT2, LLAMA, QWEN3, GPTConfig, RopeScaling

FAMILIES = {  # model_type: its choices (others as in GPT-2), and the fields by layer that it may have
    "gpt2": ({}, ()),
    "llama": (LLAMA, ()),
    "mistral": (LLAMA, ("sliding_window",)),
    "qwen2": (LLAMA | {"bias": "qkv"}, ()),
    "qwen3": (QWEN3, ()),
    "smollm3": (LLAMA, ("no_rope_layer_interval",)),
    "gemma3_text": (GEMMA3, ("sliding_window", "sliding_window_pattern", "rope_local_base_freq")),
}
_NO_HEAD_DIM = ("gpt2", "qwen2", "smollm3")  # no field for the size of a head
_DIVIDING = ("llama", "gemma3_text")  # transformers wants C to divide into heads, whatever their size


def architecture(c: GPTConfig) -> str:
    """The model_type of a base: the first of FAMILIES that has its choices, or "minipeft"."""
    resolved = c.resolved()
    by_layer = {name for name in BY_LAYER if getattr(resolved, name) is not None}
    for kind, (choices, allowed) in FAMILIES.items():
        if not by_layer <= set(allowed):
            continue
        wanted = {name: options[0] for name, options in CHOICES.items()} | choices
        if kind != "gpt2":
            del wanted["tied"]  # either way
        if all(getattr(c, name) == value for name, value in wanted.items()) and _can_say(kind, resolved):
            return kind
    return "minipeft"


def _can_say(kind: str, c: GPTConfig) -> bool:
    """True where a config.json of this model_type has a field for all that differs."""
    if kind == "gpt2" and c.n_kv != c.n_head:
        return False
    if c.head_dim is not None and (kind in _NO_HEAD_DIM or (kind in _DIVIDING and not c.heads_divide)):
        return False
    scaled = c.rope_scaling is not None and c.sliding_window is not None and c.rope_local_base_freq is None
    return not (scaled and kind == "gemma3_text")  # transformers scales only its layers without a window


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
    "qwen3": {"hidden_act": ("silu",), "attention_bias": (False, None),
              "use_sliding_window": (False, None)},
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


def told(c: GPTConfig) -> dict:
    """The fields of a config, without those that older files lack where they have GPT-2's value."""
    every = {f.name: getattr(c, f.name) for f in fields(GPTConfig)}
    return {name: value for name, value in every.items() if name not in _LATER or value != getattr(GPT2, name)}


def config_to_json(c: GPTConfig) -> dict:
    """The config.json of a base."""
    kind = architecture(c)
    if kind == "minipeft":
        return {"model_type": "minipeft", "architectures": ["GPT"], **told(c)}
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
    config = {} if kind in _NO_HEAD_DIM or (kind == "llama" and c.q == c.n_embd) else {"head_dim": c.head_size}
    if kind == "mistral":
        config["sliding_window"] = c.sliding_window
    if kind == "smollm3":
        config["no_rope_layers"] = c.by_layer(c.no_rope_layer_interval, 0, 1)
        config["no_rope_layer_interval"] = c.no_rope_layer_interval
    if kind == "gemma3_text":
        others = "full_attention" if c.sliding_window is None else "sliding_attention"
        kinds = c.by_layer(c.sliding_window_pattern, "full_attention", others)
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
    at_least_one("num_hidden_layers", sizes["n_layer"])
    choices = FAMILIES[kind][0] | {"tied": bool(c.get("tie_word_embeddings"))}
    config = GPTConfig(**sizes, rope_scaling=_rope_scaling(rope), **choices, head_dim=c.get("head_dim"),
                       **_by_layer_from_json(c, kind, sizes["n_layer"], local))
    if config.q == config.n_embd:
        config = replace(config, head_dim=None)
    elif kind in _NO_HEAD_DIM:
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
    every = _interval("layer_types", types, "full_attention", L) if types else c["sliding_window_pattern"]
    if every == 1:  # every layer sees all
        return {}
    return {"sliding_window": c["sliding_window"], "sliding_window_pattern": every,
            "rope_local_base_freq": local.get("rope_theta", c["rope_local_base_freq"])}


def _interval(name: str, layers: list, other, L: int) -> int | None:
    """n where every n-th layer is `other`, None where none is. Raises Error for another pattern."""
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
