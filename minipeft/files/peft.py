"""Adapter folders in PEFT's layout: adapter_config.json and adapter_model.safetensors (or .bin).

The fields of the config and the names of the tensors are PEFT's. A combination is one adapter
folder for each method, listed in combination.json.
"""

import contextlib
import re
from pathlib import Path

import torch
from torch import Tensor

from ..checks import Error, shown
from ..config import GPTConfig, linears
from .atomic import check_destination, file_exists, read_json, write_json
from .tensors import StoredTensors, config_digest, digest, tensor_files, write_tensors


def _prompt_learning_config(c: GPTConfig, num_virtual_tokens: int) -> dict:
    """The fields of PEFT's PromptLearningConfig, common to prompt and prefix."""
    return {"num_virtual_tokens": num_virtual_tokens, "token_dim": c.n_embd,
            "num_transformer_submodules": 1, "num_attention_heads": c.n_head,
            "num_layers": c.n_layer}


def prompt_config(c: GPTConfig, num_virtual_tokens: int, template: str | None) -> dict:
    """A soft prompt's fields of adapter_config.json: PEFT's PromptTuningConfig; PEFT has no soft
    tokens inside a text, so those get a peft_type of their own."""
    config = {"peft_type": "PROMPT_TUNING", "prompt_tuning_init": "RANDOM"}  # it is trained
    if template is not None:
        config |= {"peft_type": "PROMPT_TUNING_IN_TEXT", "template": template}
    return config | _prompt_learning_config(c, num_virtual_tokens)


def prefix_config(c: GPTConfig, num_virtual_tokens: int, space: str, key_bias: bool,
                  positions: int | None) -> dict:
    """A prefix's fields of adapter_config.json: PEFT's PrefixTuningConfig if space is "kv"; PEFT
    has no hidden prefixes, and no bias or positions of a prefix, so these get a peft_type of their
    own."""
    config = {"peft_type": "PREFIX_TUNING" if space == "kv" else "HIDDEN_PREFIX_TUNING",
              "prefix_projection": False, "encoder_hidden_size": c.n_embd}
    config |= _prompt_learning_config(c, num_virtual_tokens)
    if space == "kv":  # with grouped heads PEFT counts the heads of keys and values
        config |= {"token_dim": c.kv, "num_attention_heads": c.n_kv}
    positions = num_virtual_tokens if positions is None else positions
    if key_bias or positions != num_virtual_tokens:
        config |= {"peft_type": "BIASED_PREFIX_TUNING", "key_bias": key_bias,
                   "positions": positions}
    return config


def lora_config(c: GPTConfig, r: int, target_modules: str | list[str] | tuple[str, ...],
                lora_alpha: float, lora_dropout: float) -> dict:
    """LoRA's fields of adapter_config.json: PEFT's LoraConfig."""
    target_modules = [target_modules] if isinstance(target_modules, str) else target_modules
    return {"peft_type": "LORA", "r": r, "lora_alpha": lora_alpha, "lora_dropout": lora_dropout,
            "target_modules": [peft_name(c, name) for name in target_modules],
            "fan_in_fan_out": c.projections == "joined",  # GPT-2's linears are stored (in, out)
            "bias": "none"}


_STARTS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")  # others change the base too
_LORA_FIELDS = {  # of PEFT's LoraConfig: those read here or below, and those that change no number
    "peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "init_lora_weights",
    "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out", "auto_mapping",
    "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version",
    "loftq_config", "eva_config", "corda_config", "lora_ga_config", "megatron_config",
    "megatron_core", "qalora_group_size", "runtime_config", "ensure_weight_tying", "minipeft",
}


def lora_hyperparameters(config: dict) -> dict:
    """LoRA's hyper-parameters in an adapter_config.json. Raises Error for variants of LoRA: for any
    other field that is set."""
    for name, value in config.items():
        if name not in _LORA_FIELDS and value not in (None, False, "none", {}, [], ""):
            raise Error(f"LoRA with {shown(name)[1:-1]} {shown(value)} is not supported")
    if config.get("init_lora_weights") not in _STARTS:
        raise Error(f"LoRA with init_lora_weights {shown(config['init_lora_weights'])} is not "
                    "supported: it changes the base (PEFT saves a plain one with "
                    "path_initial_model_for_weight_conversion)")
    given = {name: config[name] for name in ("r", "lora_alpha", "lora_dropout", "target_modules")
             if config.get(name) is not None}
    if isinstance(targets := given.get("target_modules"), list):
        given["target_modules"] = [t.replace("self_attn.", "attn.") if isinstance(t, str) else t
                                   for t in targets]
    return given


_LORA_TENSOR = re.compile(r"base_model\.model\.(?P<path>(?:transformer\.h|model\.layers)\.\d{1,4}\."
                          r"(?P<module>[\w.]{1,80}))\.lora_[AB]\.weight")


def _targets_by_tensors(config: dict, stored: StoredTensors) -> dict:
    """The config with names of linears under target_modules, read off the tensors' names where it
    has a pattern, whole paths or more. No pattern is run: one may take forever."""
    targets = config.get("target_modules")
    found = [match for name in stored.names() if (match := _LORA_TENSOR.fullmatch(name))]
    modules = dict.fromkeys(match["module"] for match in found)
    if targets is None or not modules:
        return config
    if isinstance(targets, list):
        if not all(isinstance(t, str) for t in targets):
            return config
        for path in dict.fromkeys(match["path"] for match in found):
            if not _ends(path) & set(targets):
                raise Error(f"{stored.path.parent / 'adapter_config.json'}: its target_modules do "
                            f"not name {path}, for which there are tensors")
        if set(targets) <= set().union(*map(_ends, modules)) and not config.get("exclude_modules"):
            return config
    return config | {"target_modules": list(modules)}


def _ends(path: str) -> set[str]:
    """The names that PEFT takes for this module: its path and every end of it."""
    parts = path.split(".")
    return {".".join(parts[i:]) for i in range(len(parts))}


def linears_named(c: GPTConfig, names: "str | list[str] | tuple[str, ...]") -> list[str]:
    """The linears of a block with these names: in full ("mlp.c_proj") or their end ("c_proj")."""
    known = list(linears(c))
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, (list, tuple, set)) or not names:
        raise Error(f"target modules must be names of linears: there are {', '.join(known)}; "
                    f"not {shown(names)}")
    chosen = set()
    for name in names:
        found = {linear for linear in known if linear == name or linear.endswith(f".{name}")}
        if not found:
            raise Error(f"target module {shown(name)} matches nothing: there are "
                        f"{', '.join(known)} (or their ends, such as {known[-1][4:]})")
        chosen |= found
    return [linear for linear in known if linear in chosen]


def opens_in_adaption_prompt(c: GPTConfig, gate: str) -> bool:
    """True where PEFT's ADAPTION_PROMPT is LLaMA-Adapter: it has one gate per layer, on GPT-2 it
    leaves out the output projection, and it takes C / nh for the size of a head."""
    in_peft = not (c.qk_norm or c.sandwich_norm or c.no_rope_layer_interval) and c.q == c.n_embd  # Llama, Mistral
    return gate == "layer" and c.projections == "apart" and c.bias == "none" and in_peft


def peft_name(c: GPTConfig, module: str) -> str:
    """PEFT's name of a module of a block: its name in transformers' GPT-2 or Llama."""
    return f"self_{module}" if c.projections == "apart" and module.startswith("attn") else module


def peft_module(c: GPTConfig, i: int | str, module: str) -> str:
    """PEFT's full name of a module of block i."""
    blocks = "transformer.h" if c.projections == "joined" else "model.layers"
    return f"base_model.model.{blocks}.{i}.{peft_name(c, module)}"


def write_adapter(folder, config: dict, tensors: dict[str, Tensor], fingerprint: str) -> None:
    """Write an adapter folder; fingerprint: of its base. Raises Error if it holds something else.

    The tensors go first: after a stop in between, the older config does not match their digest.
    """
    check_destination(folder, "an adapter")
    folder = Path(folder)
    notes = {"base": fingerprint, "sha256": digest(tensors), "config": config_digest(config)}
    safe = write_tensors(folder, "adapter_model", tensors, None, notes)
    config = {**config, "task_type": "CAUSAL_LM", "inference_mode": True,
              "base_model_name_or_path": None}
    write_json(folder / "adapter_config.json", config if safe else config | {"minipeft": notes})


def remove_adapter(folder: Path) -> None:
    """Remove the files of `write_adapter`, and the folder if nothing else is in it."""
    for path in (folder / "adapter_config.json", *tensor_files(folder, "adapter_model")):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty, or not there
        folder.rmdir()


def read_adapter(folder: Path) -> tuple[dict, StoredTensors]:
    """The adapter_config.json of a folder, and its tensors, which are read when iterated over."""
    config = read_json(folder / "adapter_config.json")
    stored = StoredTensors(folder, "adapter_model", config)
    is_lora = config.get("peft_type") == "LORA"
    return _targets_by_tensors(config, stored) if is_lora else config, stored


def drop_embeddings(tensors: dict, embeddings: Tensor, head: Tensor, where: Path) -> None:
    """Remove the base's own embeddings and head, which PEFT saves with an adapter where tokens were
    added, or on demand. Raises Error where they are not those of this base."""
    own = {"embed_tokens.weight": embeddings, "wte.weight": embeddings, "lm_head.weight": head}
    for name, end in [(name, end) for name in tensors for end in own if name.endswith(f".{end}")]:
        t, want = tensors.pop(name), own[end]
        pairs = ((t, want), (want, t)) if t.shape == want.shape else ()  # one may be a rounded copy
        if not any(torch.equal(a.to(b), b) for a, b in pairs):
            raise Error(f"{where} brings embeddings of its own, of a vocabulary of "
                        f"{t.shape[:1].numel()} (this base: {len(want)}): merge it into its base "
                        "with PEFT's merge_and_unload(), and open that")


def write_combination(folder, parts: dict[str, dict[str, Tensor]]) -> None:
    """Write combination.json: digests of a combination's parts, {method name: its tensors}."""
    digests = {name: digest(tensors) for name, tensors in parts.items()}
    write_json(Path(folder) / "combination.json",
               {"parts": digests, "sha256": config_digest(digests)})


def read_combination(folder: Path, known) -> dict[str, str]:
    """{method name: digest of its tensors} of a combination's folder; {} for any other folder.

    known: names of methods. Raises Error when combination.json is damaged or names others.
    """
    if not file_exists(path := folder / "combination.json"):
        return {}
    combination = read_json(path)
    parts = combination.get("parts")
    if not isinstance(parts, dict) or len(parts) < 2 or not all(name in known for name in parts):
        raise Error(f"{path} must name the parts, of {', '.join(known)}, two or more")
    if combination.get("sha256", ours := config_digest(parts)) != ours:
        raise Error(f"{path} is damaged: its parts do not match their checksum")
    return parts
