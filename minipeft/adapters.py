"""Load an adapter onto its base, and export one for PEFT."""

import os
from pathlib import Path

import torch

from . import accounting
from .attach import Adapted, check_fingerprint, check_unmerged
from .checks import Error, check_base, shown
from .files.atomic import as_path, file_exists
from .files.families import FAMILIES, architecture
from .files.peft import drop_embeddings, read_adapter, read_combination
from .files.tensors import check_tensors, digest
from .methods import METHODS
from .methods.base import Method
from .methods.combined import Combined
from .methods.full import Full
from .model import GPT
from .parts import quantised_base


def fingerprint(base: GPT) -> str:
    """SHA-256 of a base's config and weights, the same for its copies in bfloat16, int8 or NF4."""
    check_base(base)
    return quantised_base.fingerprint(base)


def load_adapter(base: GPT, folder: str | Path, base_fingerprint: str | None = None) -> Adapted:
    """Attach the adapter that `model.save(folder)` wrote to the base, in eval mode.

    A fully tuned model is a base of its own and leaves the one given as it is. Trained tensors are
    float32 (float64 on such a base) whatever the file holds: training goes on as it began, and
    saving again writes float32. base_fingerprint: fingerprint(base) if known, which saves a pass
    over all weights. Raises Error when files are missing, torn or changed, or belong to another
    base.
    """
    check_base(base)
    folder = as_path("an adapter's folder", folder)
    if not folder.is_dir():
        raise Error(f"no adapter at {folder}: there is no such folder")
    if file_exists(folder / "config.json") and not file_exists(folder / "adapter_config.json"):
        tuned = GPT.from_pretrained(folder)
        if tuned.config.resolved() != base.config.resolved():
            raise Error(f"{folder} holds a fully tuned model with another config than the base's")
        return Adapted(tuned.to(base.wte.weight.device), Full(tuned)).eval()
    check_unmerged(base)
    base_fingerprint = base_fingerprint or fingerprint(base)
    check_fingerprint(base_fingerprint)
    parts = parts_in(folder)
    if not parts:
        return Adapted(base, _load_method(base, folder, base_fingerprint)).eval()
    methods = [_load_method(base, folder / name, base_fingerprint, str(parts[name]))
               for name in METHODS if name in parts]
    try:
        combined = Combined(base, methods)
    except Error as e:
        raise Error(f"{folder}: {e}") from None
    return Adapted(base, combined).eval()


def parts_in(folder: Path) -> dict[str, str]:
    """{method: digest} of a combination, {} for one adapter. Raises Error for a folder of several."""
    parts = read_combination(folder, METHODS)
    others = [str(folder / name) for name in METHODS if (folder / name / "adapter_config.json").exists()]
    if others and not parts and not file_exists(folder / "adapter_config.json"):
        raise Error(f"{folder} is no adapter, but holds some: take one of them, {' or '.join(others)}")
    return parts


@torch.no_grad()
def _load_method(base: GPT, folder: Path, base_fingerprint: str, part: str | None = None) -> Method:
    """The method in an adapter folder, not attached yet; raises Error as load_adapter does.

    part: the digest of its tensors that the combination's list gives."""
    path = folder / "adapter_config.json"
    config, stored = read_adapter(folder)
    methods = {peft_type: method for method in METHODS.values() for peft_type in method.peft_types}
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in methods:
        raise Error(f"{path}: peft_type must be one of {', '.join(methods)}, not {shown(kind)}")
    if stored.notes.get("base", base_fingerprint) != base_fingerprint:
        rounded = ", rounded to float16: open it in another dtype" * (base.wte.weight.dtype == torch.float16)
        raise Error(f"{folder} was tuned for another base (fingerprint "
                    f"{shown(str(stored.notes['base'])[:12])}, this one is '{base_fingerprint[:12]}'{rounded})")
    try:
        given = methods[kind].from_config(config)
        sizes = {name: given[name] for name in methods[kind].sizes() if given.get(name) is not None}
        stored.check_size(accounting.count(base.config, methods[kind].name, **sizes).stored, "it")
        method = methods[kind](base, **given)
    except Error as e:
        raise Error(f"{path}: {e}") from None
    expected = method.config(base)
    for name in ("token_dim", "num_layers", "num_attention_heads"):  # PEFT saves no fingerprint
        if name in expected and config.get(name) not in (None, expected[name]):
            raise Error(f"{folder} was tuned for another base: {name} is {shown(config[name])}, "
                        f"this one has {expected[name]}")
    if expected["peft_type"] != kind:
        raise Error(f"{folder} is {kind}, which on this base is another function "
                    f"than {method.name} ({expected['peft_type']})")

    tensors = dict(stored)
    drop_embeddings(tensors, base.wte.weight, base.head, stored.path)
    check_tensors(tensors, method.tensors(), stored.path)
    stored.check_config(expected, path)  # after the more specific errors of the tensors
    if part not in (None, digest(tensors)):
        raise Error(f"{folder.parent}: its {method.name} is not the one it was saved with")
    for name, t in method.tensors().items():
        t.copy_(tensors[name])
    try:
        method.slots(base)  # a hard prompt: its tokens must be of this base's vocabulary
    except Error as e:
        raise Error(f"{stored.path}: {e}") from None
    return method


@torch.no_grad()
def export_adapter(base: GPT, folder: str | Path, out: str | Path) -> str:
    """Write the adapter in `folder` to `out` in a form PEFT opens on this base in transformers.

    Methods PEFT lacks are converted up the ladder, exactly: a hard prompt to a soft prompt, a
    hidden prefix to keys and values. Returns the peft_type. Raises Error for what PEFT cannot do.
    """
    if os.path.realpath(folder) == os.path.realpath(out):
        raise Error(f"{out} is the adapter itself: export it into another folder")
    model = load_adapter(base, folder)
    try:
        return _export(base, model.method, folder, out)
    finally:
        model.detach()


def _export(base: GPT, method: Method, folder: str | Path, out: str | Path) -> str:
    if len(method.parts()) == 1:
        try:
            method = method.for_peft(base)
        except Error as e:
            raise Error(f"{folder} is {method.name}: {e}") from None
    if architecture(base.config) == "minipeft":
        raise Error("PEFT works on transformers' models, and none has this base's architecture "
                    f"(these can be exported: {', '.join(FAMILIES)})")
    if len(method.parts()) > 1:
        raise Error(f"{folder} is a combination: "
                    "export its parts, each a folder of its own, one by one")
    method.save(base, out)
    return method.config(base)["peft_type"]
