"""Adapter folders in PEFT's layout: adapter_config.json and adapter_model.safetensors (or .bin), with PEFT's names and fields."""

from pathlib import Path

from torch import Tensor

from ..config import Error, GPTConfig, linears, shown
from .atomic import check_place, write_json
from .tensors import digest, digest_of_config, write_tensors


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


# What PEFT's LoraConfig may also ask for, and the values that ask for nothing.
_NEUTRAL = {
    "bias": ("none",),
    "use_dora": (False,),
    "use_rslora": (False,),
    "lora_bias": (False,),
    "modules_to_save": (None, []),
    "layers_to_transform": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, []),
    "exclude_modules": (None, []),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal"),  # others change the base
}


def lora_hyperparameters(config: dict) -> dict:
    """The hyper-parameters in an adapter_config.json of LoRA. Raises Error for settings that ask for more than LoRA."""
    for name, neutral in _NEUTRAL.items():
        if config.get(name, neutral[0]) not in neutral:
            raise Error(f"LoRA with {name} {shown(config[name])} is not supported, only {neutral[0]!r}")
    names = ("r", "lora_alpha", "lora_dropout", "target_modules")
    given = {name: config[name] for name in names if config.get(name) is not None}
    if isinstance(targets := given.get("target_modules"), list):
        given["target_modules"] = [t.replace("self_attn.", "attn.") if isinstance(t, str) else t for t in targets]
    return given


def linears_named(c: GPTConfig, names: "str | list[str] | tuple[str, ...]") -> list[str]:
    """The linears of a block with these names: whole ("mlp.c_proj") or their end ("c_proj": every such).

    Raises Error for a name that matches none.
    """
    known = list(linears(c))
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, (list, tuple, set)) or not names:
        raise Error(f"target modules must be names of linears: there are {', '.join(known)}; not {shown(names)}")

    def matches(linear: str, name: str) -> bool:
        return linear == name or linear.endswith(f".{name}")

    for name in names:
        if not any(matches(linear, name) for linear in known):
            raise Error(f"target module {shown(name)} matches nothing: there are {', '.join(known)} "
                        f"(or their ends, such as {known[-1][4:]})")
    return [linear for linear in known if any(matches(linear, name) for name in names)]


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


def write_adapter(folder, config: dict, tensors: dict[str, Tensor], fingerprint: str) -> None:
    """Write an adapter folder, tensors first: if a stop comes in between, the older config beside them does not fit and is refused.

    config: the method's fields of adapter_config.json; fingerprint: the base's. Raises Error when the folder holds something else.
    """
    check_place(folder, "an adapter")
    folder = Path(folder)
    notes = {"base": fingerprint, "sha256": digest(tensors), "config": digest_of_config(config)}
    safe = write_tensors(folder, "adapter_model", tensors, None, notes)
    config = {**config, "task_type": "CAUSAL_LM", "inference_mode": True, "base_model_name_or_path": None}
    write_json(folder / "adapter_config.json", config if safe else config | {"minipeft": notes})


def write_combination(folder, parts: dict[str, dict[str, Tensor]]) -> None:
    """Write combination.json, which lists the adapter folders that belong together; parts: name -> tensors."""
    digests = {name: digest(tensors) for name, tensors in parts.items()}
    write_json(Path(folder) / "combination.json", {"parts": digests, "sha256": digest_of_config(digests)})
