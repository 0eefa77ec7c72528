"""Several methods on one base: adapt(base, ["lora", "prefix"], r=8, num_virtual_tokens=20).

Each fills its own slot or hooks its own modules, and is trained at its own learning rate. Saved is
one adapter folder per part and a list of them.
"""

from pathlib import Path

from torch import nn

from ..checks import Error
from ..files import huggingface, peft
from ..files.atomic import check_destination
from ..model import GPT
from .base import Method


class Combined(Method):
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
            for slot in part.slots(base).keys() - {"hooks"}:  # LoRA hooks linears, bottleneck adapters hook sublayers
                if slot in filled:
                    raise Error(f"{filled[slot]} and {part.name} cannot be combined: both fill the model's {slot} slot")
                filled[slot] = part.name

    def parts(self) -> list[Method]:
        return list(self.by_name.values())

    def slots(self, base: GPT) -> dict:
        slots = {}
        for part in self.parts():
            part_slots = part.slots(base)
            if "hooks" in slots and "hooks" in part_slots:
                part_slots["hooks"] = [a | b for a, b in zip(slots["hooks"], part_slots["hooks"], strict=True)]
            slots |= part_slots
        return slots

    def save(self, base: GPT, folder, base_fingerprint: str | None = None) -> None:
        check_destination(folder, "a combination")
        base_fingerprint = base_fingerprint or huggingface.base_fingerprint(base.config, base.state_dict())
        for name, part in self.by_name.items():
            part.save(base, Path(folder) / name, base_fingerprint)
        peft.write_combination(folder, {name: part.tensors() for name, part in self.by_name.items()})
