"""What files call things, from a base's shape alone: its own Hugging Face folder, and PEFT's adapters for it.

    transformers' model     what its folder says of a GPTConfig
    GPT2LMHeadModel         learned positions, LayerNorm, GELU, one matrix for q, k and v, biases, a tied head
    LlamaForCausalLM        rotary positions, RMSNorm, SwiGLU, q, k and v apart, no biases: Llama, SmolLM2, TinyLlama …
    Qwen2ForCausalLM        the same with biases on q, k and v: Qwen2, Qwen2.5

Other mixtures, such as the embedded base's, lie in GPT-2's layout under model_type "minipeft".
"""

from dataclasses import asdict, fields
from pathlib import Path

from .config import CHOICES, LLAMA, Error, GPTConfig, RopeScaling, shown


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


def _prompt_learning_config(c: GPTConfig, num_virtual_tokens: int) -> dict:
    """The fields of PEFT's PromptLearningConfig, which prompt and prefix share."""
    return {
        "num_virtual_tokens": num_virtual_tokens,
        "token_dim": c.n_embd,
        "num_transformer_submodules": 1,
        "num_attention_heads": c.n_head,
        "num_layers": c.n_layer,
    }


def prompt_config(c: GPTConfig, num_virtual_tokens: int) -> dict:
    """A prompt's part of adapter_config.json: PEFT's PromptTuningConfig."""
    return {
        "peft_type": "PROMPT_TUNING",
        "prompt_tuning_init": "RANDOM",  # where it started no longer matters
        **_prompt_learning_config(c, num_virtual_tokens),
    }


def prefix_config(c: GPTConfig, num_virtual_tokens: int, space: str) -> dict:
    """A prefix's part of adapter_config.json: PEFT's PrefixTuningConfig, which knows keys and values only; "hidden" says it is something
    else."""
    own = {"token_dim": c.n_kv * c.head_size, "num_attention_heads": c.n_kv}  # with grouped heads PEFT counts those of the keys and values
    return {
        "peft_type": "PREFIX_TUNING" if space == "kv" else "HIDDEN_PREFIX_TUNING",
        "prefix_projection": False,
        "encoder_hidden_size": c.n_embd,
        **_prompt_learning_config(c, num_virtual_tokens),
        **(own if space == "kv" else {}),
    }


def lora_config(
    c: GPTConfig, r: int, target_modules: list[str] | tuple[str, ...], lora_alpha: float = 8, lora_dropout: float = 0.0
) -> dict:
    """LoRA's part of adapter_config.json: PEFT's LoraConfig."""
    return {
        "peft_type": "LORA",
        "r": r,
        "lora_alpha": lora_alpha,
        "lora_dropout": lora_dropout,
        "target_modules": [peft_name(c, name) for name in target_modules],
        "fan_in_fan_out": c.projections == "joined",  # GPT-2's linears are stored (in, out) in transformers
        "bias": "none",
    }


def adaption_modules(c: GPTConfig, adapter_layers: int, gate: str) -> list[str] | None:
    """The attentions that PEFT's ADAPTION_PROMPT names, in the top layers; None where LLaMA-Adapter is not PEFT's: that one has a gate a
    layer, and is this function in transformers' Llama alone (in its GPT-2 the output projection is left out)."""
    if gate != "layer" or c.projections != "apart" or c.bias != "none":
        return None
    return [peft_module(c, i, "attn") for i in range(c.n_layer - adapter_layers, c.n_layer)]


def peft_name(c: GPTConfig, place: str) -> str:
    """How transformers calls a place of a block in its GPT-2 or its Llama, and so PEFT."""
    return f"self_{place}" if c.projections == "apart" and place.startswith("attn") else place


def peft_module(c: GPTConfig, i: int, place: str) -> str:
    """How PEFT calls a place of block i."""
    blocks = "transformer.h" if c.projections == "joined" else "model.layers"
    return f"base_model.model.{blocks}.{i}.{peft_name(c, place)}"
