"""Quantised bases: opened from a folder tensor by tensor, or made of a base in memory."""

from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ..checks import Error, one_of
from ..config import linears
from ..files import huggingface
from ..files.tensors import Lazily
from .quantised import QUANTISED, QuantisedLinear, quantise

Model = TypeVar("Model", bound=nn.Module)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
BASE_DTYPES = ("float32", "bfloat16", *QUANTISED)  # --base-dtype


class Quantised(NamedTuple):
    """base.quantised, of a quantised base."""

    kind: str  # of QUANTISED
    fingerprint: str  # of the base it was made of


def dtype_named(name: str | None) -> "torch.dtype | str | None":
    """One of BASE_DTYPES, or None, as GPT.from_pretrained takes it."""
    return name if name is None or name in QUANTISED else getattr(torch, name)


def open_folder(model: type[Model], folder: str | Path,
                dtype: "torch.dtype | str | None" = None) -> Model:
    """Open a folder as model(config). dtype: None (the file's), a torch.dtype, "int8" or "nf4".

    To quantise, each matrix is rounded to bfloat16 and quantised as soon as it is read: a float32
    base and its bfloat16 copy give the same codes, and the unquantised base is never in memory as a
    whole (from .safetensors; a .bin is read at once). The matrices are read a second time for the
    fingerprint. Raises Error as huggingface.read_base does, and for any other dtype.
    """
    kind = dtype if one_of("dtype", dtype, (None, *DTYPES, *QUANTISED)) in QUANTISED else None
    made = {}  # name of a matrix: its quantised tensors

    def convert(name: str, t: Tensor) -> Tensor:
        if not name.startswith("h.") or t.dim() != 2:  # norms and biases
            return t
        made[name] = quantise(t, kind)
        return t.to("meta")  # in its place, until all tensors have been checked

    folder = huggingface.find_base(folder)
    config, tensors = huggingface.read_base(folder, torch.bfloat16 if kind else dtype, convert if kind else None)
    with torch.device("meta"):
        base = model(config)  # shapes only: the file's tensors become the weights
    base.load_state_dict(unshared(tensors), assign=True)
    if kind:
        again = huggingface.read_lazily(folder, config)
        every = Lazily({name: lambda name=name: again[name] if name in made else tensors[name] for name in tensors})
        _replace(base, made, Quantised(kind, huggingface.base_fingerprint(config, every)))
    return base


def unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, those that lie where another does copied: training would change both."""
    places, copied = set(), {}
    for name, t in tensors.items():
        if t.device.type != "meta" and t.numel():
            copied |= {name: t.clone()} if t.data_ptr() in places else {}
            places.add(t.data_ptr())
    return {**tensors, **copied}


def quantise_base(base: nn.Module, kind: str) -> None:
    """Quantise a GPT in place, as open_folder its folder. Raises Error for an unknown kind."""
    one_of("kind", kind, QUANTISED)
    if vars(base).get("quantised"):
        raise Error(f"this base is quantised already, in {base.quantised.kind}")
    if vars(base).get("attached"):
        raise Error("an adapter is attached to this base: detach it, then quantise")
    if "attached" in vars(base):  # of adapters that are gone
        del base.attached
    known = Quantised(kind, fingerprint(base))
    base.to(torch.bfloat16)
    names = [f"h.{i}.{name}.weight" for i in range(base.config.n_layer) for name in linears(base.config)]
    _replace(base, {name: quantise(base.get_parameter(name), kind) for name in names}, known)


def fingerprint(base: nn.Module) -> str:
    """SHA-256 of a base's config and weights; of a quantised base those it was made of."""
    known = vars(base).get("quantised")
    return known.fingerprint if known else huggingface.base_fingerprint(base.config, base.state_dict())


def _replace(base: nn.Module, made: dict[str, dict[str, Tensor]], known: Quantised) -> None:
    for name, tensors in made.items():
        part, _, last = name.removesuffix(".weight").rpartition(".")
        linear = base.get_submodule(f"{part}.{last}")
        setattr(base.get_submodule(part), last,
                QuantisedLinear(tensors, linear.weight.shape, linear.bias))
    base.quantised = known
