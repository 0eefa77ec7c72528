"""Attach a method to a base: adapt() returns a model to train, merge, save or detach."""

import re
import sys
from pathlib import Path
from typing import NamedTuple
from weakref import WeakSet

import torch
import torch.nn as nn
from torch import Tensor

from .checks import Error, at_least_one, check_base, check_shape, shown
from .files.huggingface import count_parameters
from .loss import distillation_loss, linear_cross_entropy
from .methods import METHODS, method_class
from .methods.base import Method
from .methods.combined import Combined
from .model import GPT
from .slots import Prefix, Slots


class BaseState(NamedTuple):
    """A base before the first adapter is attached, apart from its tensors."""

    required_grad: list[bool]  # of its parameters
    through_compile: bool
    checkpointed: bool
    backends: list[str]  # of its blocks' attention

    @classmethod
    def of(cls, base: GPT) -> "BaseState":
        return cls([p.requires_grad for p in base.parameters()], base.through_compile, base.checkpointed,
                   [block.attn.backend for block in base.h])

    def restore(self, base: GPT) -> None:
        for p, required in zip(base.parameters(), self.required_grad, strict=True):
            p.requires_grad_(required)
        base.through_compile, base.checkpointed = self.through_compile, self.checkpointed
        for block, backend in zip(base.h, self.backends, strict=True):
            block.attn.backend = backend


class Attachments(WeakSet):
    """`base.attached`: a weak set of adapters; a copy keeps those copied with the base."""

    def __init__(self, attachments=(), before: BaseState | None = None):
        super().__init__(attachments)
        self.before = before

    def __reduce__(self):
        return type(self), ([a for a in self if not a.original], self.before)  # a merged one joins by itself


def check_unmerged(base: GPT) -> None:
    """Raise Error while an adapter is merged into the base."""
    if any(attachment.original for attachment in vars(base).get("attached", ())):
        raise Error("an adapter is merged into this base: unmerge it first")


def check_fingerprint(value) -> None:
    """Raise Error unless it has the form of fingerprint(base)."""
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise Error(f"base_fingerprint must be what fingerprint(base) returns, not {shown(value)}")


class Attachment:
    """An adapter's registration at its base; detaching or deleting it gives the base back.

    Raises Error if the base is merged, or if one of several adapters would train it."""

    original: dict[str, Tensor] = {}  # while merged: the base's weights without the change
    copied = False  # a copy of a base keeps its state when the copy of the adapter goes

    def __init__(self, base: GPT, freezes_base: bool):
        self.base, self.freezes_base = base, freezes_base
        if "attached" not in vars(base):
            base.attached = Attachments(before=BaseState.of(base))
        others = base.attached
        if others and not (freezes_base and all(other.freezes_base for other in others)):
            raise Error("full fine-tuning changes the base, so it cannot share it: detach the other adapter first")
        check_unmerged(base)
        others.add(self)

    def __setstate__(self, state: dict) -> None:
        """Of a copy, which keeps a merge: a merged base copied alone stays as it is."""
        vars(self).update(state, copied=True)
        if "attached" in vars(self.base):
            self.base.attached.add(self)

    @torch.no_grad()
    def merge(self, changes: dict[str, Tensor]) -> None:
        self.original = {name: self.base.get_parameter(name).clone() for name in changes}
        for name, change in changes.items():
            weight = self.base.get_parameter(name)
            weight.copy_(weight.to(change.dtype) + change)

    @torch.no_grad()
    def unmerge(self) -> None:
        for name, weight in self.original.items():
            self.base.get_parameter(name).copy_(weight)
        self.original = {}

    def detach(self) -> None:
        self.unmerge()
        others = vars(self.base).get("attached", Attachments())
        others.discard(self)
        if not others and others.before is not None:
            others.before.restore(self.base)
            del self.base.attached

    def __del__(self):
        if sys.is_finalizing():
            return
        if self.copied:
            self.unmerge()
        else:
            self.detach()


class Adapted(nn.Module):
    """A base with a method attached; all but `full` freeze it, and `detach()` returns it as it was.

    Any number of them may share one base; `full` must have a base of its own, or raises Error.
    """

    teacher: Prefix | None = None  # see distil_from
    teacher_top_k: int | None = None

    def __init__(self, base: GPT, method: Method):
        super().__init__()
        self.base = base
        self.method = method
        self._attachment = Attachment(base, method.freezes_base)
        method.on_attach(base)
        base.requires_grad_(not method.freezes_base)

    def slots(self) -> Slots:
        """What the method puts into the model, base(idx, *slots); nothing while merged."""
        return self.method.slots(self.base) if not self.merged else Slots()

    def forward(self, idx: Tensor) -> Tensor:
        """idx (B, T) int64 -> logits (B, T, V), without the positions of virtual tokens."""
        return self.base(idx, *self.slots())

    def loss(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy over supervised positions, a scalar; after distil_from the mean KL.

        targets (B, T) int64: the next token of each position, or -100. Raises Error while merged.
        """
        if self.merged:
            raise Error("merged into the base: unmerge() before training or evaluating a loss")
        x = self.base.hidden(idx, *self.slots())  # (B, T, C)
        check_shape("targets", targets, idx.shape)
        if self.teacher is not None:
            with torch.no_grad():
                wanted = self.base.hidden(idx, prefix=self.teacher)
            return distillation_loss(x.flatten(0, 1), wanted.flatten(0, 1), self.base.head,
                                     targets.flatten() != -100, self.teacher_top_k)
        return linear_cross_entropy(x.flatten(0, 1), self.base.head, targets.flatten())

    def distil_from(self, teacher: Prefix | None, top_k: int | None = None) -> None:
        """Context distillation (Snell et al. 2022, 2209.15189): from now on `loss` is the mean KL
        from the base behind this prefix, the teacher, to the model, over supervised positions. A
        text as a prefix: documents.prefill.

        teacher None: back to the cross-entropy of the targets. top_k: KL over the teacher's k most
        likely tokens only. Raises Error for a method that trains the base, virtual tokens in the
        text, and a top_k below 1.
        """
        if teacher is not None and not self.method.freezes_base:
            raise Error(f"{self.method.name} changes the base, which is the teacher: distillation needs a frozen one")
        if teacher is not None and self.method.tokens_in_text:
            raise Error("virtual tokens that stand in the text cannot be distilled: the teacher has no such place")
        if not isinstance(teacher, (Prefix, type(None))):
            raise Error(f"the teacher must be a Prefix or None, not {shown(teacher)}")
        if top_k is not None:
            at_least_one("top_k", top_k)
        self.teacher, self.teacher_top_k = teacher, top_k

    @property
    def merged(self) -> bool:
        return bool(self._attachment.original)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the learnt change to the base's weights, until unmerge() or until this object is
        deleted; a forward pass then costs what the base's does. Raises Error for a method without
        weight_changes, for several methods, for weights that are quantised, for a shared base, and
        when already merged."""
        changes = getattr(self.method, "weight_changes", None)
        if changes is None:
            can = [name for name, method in METHODS.items() if hasattr(method, "weight_changes")]
            combined = len(self.method.parts()) > 1
            why = "only one method at a time can" if combined else "it is no change of the base's weights"
            raise Error(f"{self.method.name} cannot be merged: {why} ({', '.join(can)} can)")
        if self.merged:
            raise Error("already merged")
        if list(vars(self.base).get("attached", ())) != [self._attachment]:
            raise Error("to merge, this adapter must be attached to the base, and no other: detach the others first")
        self._attachment.merge(changes(self.base))

    def unmerge(self) -> None:
        """Give the base its original weights back, bit for bit."""
        self._attachment.unmerge()

    def compile_blocks(self, on: bool = True, any_length: bool = False) -> None:
        """GPT.compile_blocks, for the base and so for everything attached to it."""
        self.base.compile_blocks(on, any_length)

    def gradient_checkpointing(self, on: bool = True) -> None:
        """GPT.gradient_checkpointing, for the base and so for everything attached to it."""
        self.base.gradient_checkpointing(on)

    def trainable_parameters(self):
        """Iterator over the trained parameters, in a fixed order."""
        return (p for _, p in self.named_trainable_parameters())

    def named_trainable_parameters(self):
        if self.method.freezes_base:
            return self.method.named_parameters("method")
        return self.base.named_parameters("base")

    def parameter_groups(self, lr: float | None = None) -> list[dict]:
        """Optimizer groups: each part's parameters at its default learning rate, or all at `lr`."""
        groups = [{"params": list((part if part.freezes_base else self.base).parameters()),
                   "lr": part.default_learning_rate(self.base) if lr is None else lr}
                  for part in self.method.parts()]
        return [group for group in groups if group["params"]]

    def trainable_summary(self) -> str:
        """PEFT's line: trained parameters, all (base and method), and the share in percent."""
        trained = sum(p.numel() for p in self.trainable_parameters())
        total = count_parameters(self.base.config) + sum(p.numel() for p in self.method.parameters())
        return f"trainable params: {trained:,} || all params: {total:,} || trainable%: {100 * trained / total:.4f}"

    def save(self, folder: str | Path, base_fingerprint: str | None = None) -> None:
        """Write an adapter folder in PEFT's layout (a combination: one folder per part; `full`: a
        whole base). base_fingerprint: fingerprint(base) if known. Raises Error while merged."""
        if self.merged:
            raise Error("merged into the base: unmerge() before saving the adapter, or save the base itself")
        if base_fingerprint is not None:
            check_fingerprint(base_fingerprint)
        check_unmerged(self.base)  # its fingerprint would be of the merged weights
        self.method.save(self.base, folder, base_fingerprint)

    def detach(self) -> GPT:
        """Return the base, its tensors untouched by any method but `full`. With nothing attached,
        parameters require gradients, and blocks are compiled and checkpointed, as before."""
        self._attachment.detach()
        return self.base


def adapt(base: GPT, name: "str | list[str]", **hyperparameters: object) -> Adapted:
    """Freeze the base and attach a method: adapt(base, "prefix", num_virtual_tokens=20).

    Several names attach a combination, adapt(base, ["lora", "prefix"], r=8, num_virtual_tokens=20);
    each method gets the hyper-parameters it knows. Raises Error for an unknown method or
    hyper-parameter, values that do not fit the base, or methods that cannot be combined.
    """
    check_base(base)
    names = list(name) if isinstance(name, (list, tuple)) else [name]
    if not names or not all(isinstance(n, str) for n in names):
        raise Error(f"no method given, but {shown(name)}: there are {', '.join(METHODS)}")
    classes = {n: method_class(n) for n in names}
    known = list(dict.fromkeys(p for method in classes.values() for p in method.arguments()))
    for key in hyperparameters:
        if key not in known:
            raise Error(f"method {'+'.join(names)!r} takes {', '.join(known) or 'no hyper-parameters'}, not {key!r}")
    for n, method in classes.items():
        for key, p in method.arguments().items():
            if p.default is p.empty and key not in hyperparameters:
                raise Error(f"{n} needs its {key}: {method.hyperparameters[key].help}")
    names.sort(key=list(METHODS).index)  # one name for one combination, whatever the order given
    parts = [classes[n](base, **{key: value for key, value in hyperparameters.items()
                                 if key in classes[n].arguments()}) for n in names]
    return Adapted(base, parts[0] if len(parts) == 1 else Combined(base, parts))
