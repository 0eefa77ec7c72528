"""Several methods on one base: adapt(base, ["lora", "prefix"], r=8, num_virtual_tokens=20).

Each method fills its own slot, or hooks modules; hooks at one place run in the order of METHODS.
Each trains at its own learning rate. save() writes an adapter folder for each method, and their
list.
"""

import contextlib
from pathlib import Path

from torch import nn

from ..checks import Error
from ..files import peft
from ..files.atomic import check_destination
from ..model import GPT
from ..parts.quantised_base import fingerprint
from ..slots import Slots
from . import METHODS
from .base import Method


class Combined(Method, registered=False):
    """The parts as one method; its name joins theirs by "+"."""

    def __init__(self, base: GPT, parts: list[Method]):
        super().__init__()
        self.by_name = nn.ModuleDict({part.name: part for part in parts})
        self.name = "+".join(self.by_name)
        self.num_virtual_tokens = sum(part.num_virtual_tokens for part in parts)
        if len(self.by_name) < len(parts):
            names = " and ".join(part.name for part in parts)
            raise Error(f"{names}: a method can be combined with others, not with itself")
        if not all(part.freezes_base for part in parts):
            raise Error("full fine-tuning cannot be combined: it changes the base that the others are tuned for")
        filled: dict[str, str] = {}
        for part in parts:
            slots = part.slots(base)._asdict()
            for slot in [slot for slot in Slots._fields[:2] if slots[slot] is not None]:
                if slot in filled:
                    raise Error(f"{filled[slot]} and {part.name} cannot be combined: both fill the model's {slot} slot")
                filled[slot] = part.name

    @property
    def positions_taken(self) -> int:
        return sum(part.positions_taken for part in self.parts())

    def parts(self) -> list[Method]:
        return list(self.by_name.values())

    @property
    def tokens_in_text(self) -> int:
        return sum(part.tokens_in_text for part in self.parts())

    def slots(self, base: GPT) -> Slots:
        prompts, prefixes, hooks = zip(*(part.slots(base) for part in self.parts()), strict=True)
        prompt = next((x for x in prompts if x is not None), None)
        prefix = next((x for x in prefixes if x is not None), None)
        layers = zip(*(h for h in hooks if h is not None), strict=True)
        return Slots(prompt, prefix, [merge_hooks(layer) for layer in layers] or None)

    def save(self, base: GPT, folder, base_fingerprint: str | None = None) -> None:
        check_destination(folder, "a combination")
        base_fingerprint = base_fingerprint or fingerprint(base)
        before: dict[str, str] = {}
        with contextlib.suppress(Error):  # a damaged list names nothing
            before = peft.read_combination(Path(folder), METHODS)
        for name, part in self.by_name.items():
            part.save(base, Path(folder) / name, base_fingerprint)
        peft.write_combination(folder, {name: part.tensors() for name, part in self.by_name.items()})
        for name in before.keys() - self.by_name.keys():
            peft.remove_adapter(Path(folder) / name)


def merge_hooks(layer: tuple[dict, ...]) -> dict:
    """A block's hooks from those of the parts, several at one place as a tuple."""
    every: dict[str, tuple] = {}
    for hooks in layer:
        for place, hook in hooks.items():
            every[place] = (*every.get(place, ()), hook)
    return {place: hooks if len(hooks) > 1 else hooks[0] for place, hooks in every.items()}
