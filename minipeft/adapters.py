"""Save and load adapters: which base an adapter belongs to, opening one, and writing one that PEFT opens."""

import functools
from pathlib import Path

import torch

from . import accounting
from .config import Error, shown
from .files import huggingface
from .files.atomic import is_there, read_json
from .files.tensors import StoredTensors, check_tensors, digest, digest_of_config
from .ladder import convert_up
from .methods import METHODS
from .methods.base import Adapted, Method
from .methods.combined import Combined
from .methods.full import Full
from .model import GPT


def fingerprint(base: GPT) -> str:
    """SHA-256 of a base: its config and weights, rounded to bfloat16 so that float32 and bfloat16 copies are the same base."""
    return huggingface.base_fingerprint(base.config, base.state_dict())


def parts_in(folder: Path) -> dict[str, str]:
    """{name of a part: checksum of its tensors} of the combination that this folder holds; {} when it holds none."""
    if not is_there(folder / "combination.json"):
        return {}
    where = folder / "combination.json"
    whole = read_json(where)
    parts = whole.get("parts")
    if not isinstance(parts, dict) or len(parts) < 2 or not all(name in METHODS for name in parts):
        raise Error(f"{where} must name the parts, of {', '.join(METHODS)}, two or more")
    if whole.get("sha256", ours := digest_of_config(parts)) != ours:
        raise Error(f"{where} is damaged: its parts do not match their checksum")
    return parts


def load_adapter(base: GPT, folder, base_fingerprint: str | None = None) -> Adapted:
    """Open what `model.save(folder)` wrote and attach it to the base, in eval mode.

    A fully tuned model is a base of its own: it is opened beside the one given, which stays as it is.
    base_fingerprint: fingerprint(base) where it is known already; it takes a pass over all weights.
    Raises Error when files are missing, torn or changed, or belong to another base.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise Error(f"no adapter at {folder}: there is no such folder")
    if is_there(folder / "config.json") and not is_there(folder / "adapter_config.json"):
        tuned = GPT.from_pretrained(folder)
        if tuned.config.resolved() != base.config.resolved():
            raise Error(f"{folder} holds a fully tuned model of another shape than the base's")
        return Adapted(tuned.to(base.wte.weight.device), Full(tuned)).eval()
    here = base_fingerprint or fingerprint(base)
    if parts := parts_in(folder):
        methods = [load_method(base, folder / name, here) for name in METHODS if name in parts]
        for method in methods:
            if digest(method.tensors()) != parts[method.name]:
                raise Error(f"{folder}: its {method.name} is not the one it was saved with")
        try:
            combined = Combined(base, methods)
        except Error as e:
            raise Error(f"{folder}: {e}") from None
        return Adapted(base, combined).eval()
    return Adapted(base, load_method(base, folder, here)).eval()


@torch.no_grad()
def load_method(base: GPT, folder: Path, here: str) -> Method:
    """One adapter folder's method, not attached to the base yet; load_adapter says what is checked. here: the base's fingerprint."""
    where = folder / "adapter_config.json"
    config = read_json(where)
    methods = {peft_type: method for method in METHODS.values() for peft_type in method.peft_types}
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in methods:
        raise Error(f"{where}: peft_type must be one of {', '.join(methods)}, not {shown(kind)}")
    stored = StoredTensors(folder, "adapter_model", config)
    if stored.notes.get("base", here) != here:
        raise Error(f"{folder} was tuned for another base (fingerprint {shown(stored.notes['base'])[:13]}, this one is {here[:12]})")
    try:
        given = methods[kind].hyperparameters(config)
        sizes = {name: given[name] for name in accounting.depends_on(methods[kind].name) if given.get(name) is not None}
        stored.check_size(accounting.count(base.config, methods[kind].name, **sizes).stored, "it")
        method = methods[kind](base, **given)
    except Error as e:
        raise Error(f"{where}: {e}") from None
    expected = method.peft_config(base)
    for name, ours in expected.items():  # what PEFT wrote has no fingerprint, but names the base's shape
        if name in ("token_dim", "num_layers", "num_attention_heads") and config.get(name, ours) != ours:
            raise Error(f"{folder} was tuned for another base: {name} is {shown(config[name])}, this one has {ours}")
    if expected["peft_type"] != kind:
        raise Error(f"{folder} is {kind}, which on this base is another function than {method.name} ({expected['peft_type']})")

    tensors = dict(stored)
    check_tensors(tensors, method.tensors(), stored.path)
    stored.check_config(expected, where)  # last: whatever fits no tensor is told in its own words
    if floats := {t.dtype for t in tensors.values() if t.is_floating_point()}:
        method.to(functools.reduce(torch.promote_types, floats))  # as the file has it, so that what is saved again is the same
    ours = method.tensors()
    for name, t in ours.items():
        t.copy_(tensors[name])
    try:
        method.check(base)
    except Error as e:
        raise Error(f"{stored.path}: {e}") from None
    return method


@torch.no_grad()
def export_adapter(base: GPT, folder, out) -> str:
    """Write the adapter in `folder` to `out` as one that PEFT opens on this base in transformers; returns its peft_type.

    What PEFT has no name for climbs the ladder: a hard prompt becomes a soft prompt, a hidden prefix keys and values, exactly.
    Raises Error for what PEFT cannot do, by name and reason.
    """
    if Path(folder).resolve() == Path(out).resolve():
        raise Error(f"{out} is the adapter itself: export it into another folder")
    model = load_adapter(base, folder)
    method, kind = model.method, huggingface.architecture(base.config)
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
        method = METHODS["prompt"](base, init=method.ladder_value())
    elif method.name == "prefix" and method.space == "hidden":
        method = METHODS["prefix"](base, init=convert_up(base, method.ladder_value(), "kv"))
    method.save(base, out)
    return method.peft_config(base)["peft_type"]
