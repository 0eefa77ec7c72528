"""What every tuning method is: a few trainable tensors and what they put into the slots of a frozen base, or edit in it."""

from weakref import WeakKeyDictionary, WeakSet

import torch
import torch.nn as nn
from torch import Tensor

from ..config import Error, shown
from ..files import huggingface, peft
from ..loss import linear_cross_entropy
from ..model import GPT

WIDE = 512  # channels from which on a base takes the smaller learning rates


class Method(nn.Module):
    """One way of tuning. Its parameters are what is trained; `tensors()` is what the adapter file holds.

    The two differ only where something is needed in training and can be folded away afterwards (a prefix's MLP).
    Subclasses are built as `Method(base, **hyperparameters)`, read the base's shape and embeddings, and do not keep it.
    """

    name: str  # as in minipeft.METHODS
    learning_rate: float  # a default that works on the embedded base (AdamW, warm-up, cosine)
    learning_rate_wide: float  # and one for pretrained models of hundreds of channels: docs/tools/e2e.py chose between two for most
    peft_types: tuple[str, ...] = ()  # what adapter_config.json may call it
    freezes_base = True
    num_virtual_tokens = 0  # positions it takes before the real tokens

    def rate(self, base: GPT) -> float:
        """The default learning rate on this base."""
        return self.learning_rate if base.config.n_embd < WIDE else self.learning_rate_wide

    def slots(self, base: GPT) -> dict:
        """The `prompt`, `prefix` and `hooks` arguments for base(idx, …)."""
        return {}

    def parts(self) -> "list[Method]":
        """The methods it is made of: itself, unless it combines others."""
        return [self]

    def tensors(self) -> dict[str, Tensor]:
        """What is saved, detached: exactly these names and shapes are demanded when it is loaded, and written to in place."""
        return {name: p.detach() for name, p in self.named_parameters()}

    def peft_config(self, base: GPT) -> dict:
        """The method's part of adapter_config.json, in PEFT's own fields."""
        raise NotImplementedError

    @classmethod
    def hyperparameters(cls, config: dict) -> dict:
        """The keyword arguments that rebuild the method of this adapter_config.json."""
        raise NotImplementedError

    def check(self, base: GPT) -> None:
        """Raise Error when what was loaded into the tensors cannot be used on this base."""

    def save(self, base: GPT, folder, base_fingerprint: str | None = None) -> None:
        """Write the adapter folder: adapter_config.json and adapter_model.*, in PEFT's layout."""
        here = base_fingerprint or huggingface.base_fingerprint(base.config, base.state_dict())
        peft.write_adapter(folder, self.peft_config(base), self.tensors(), here)


# For every base: which of its parameters required a gradient before anything was attached, and what is attached now.
_ATTACHED: "WeakKeyDictionary[GPT, tuple[list[bool], WeakSet[Adapted]]]" = WeakKeyDictionary()


class Adapted(nn.Module):
    """A base with a method attached: `model(idx)` gives logits of the real tokens, `model.loss(idx, targets)` what is trained on.

    Attaching freezes the base; `detach()` gives it back as it was. Any number of methods may share a frozen base; `full`, which
    changes it, wants it for itself. Raises Error when it is not.
    """

    def __init__(self, base: GPT, method: Method):
        super().__init__()
        self.base = base
        self.method = method
        _, attached = _ATTACHED.setdefault(base, ([p.requires_grad for p in base.parameters()], WeakSet()))
        if attached and not (method.freezes_base and all(other.method.freezes_base for other in attached)):
            raise Error("full fine-tuning changes the base, so it cannot share it: detach the other adapter first")
        if any(other.merged for other in attached):
            raise Error("another adapter is merged into this base: unmerge it first")
        attached.add(self)
        self._unmerged: dict[str, Tensor] = {}
        base.requires_grad_(not method.freezes_base)

    def slots(self) -> dict:
        """What the method puts into base(idx, …)."""
        return self.method.slots(self.base) if not self.merged else {}

    def forward(self, idx: Tensor) -> Tensor:
        """idx (B, T) int64 -> logits (B, T, V); the positions of virtual tokens are already dropped."""
        return self.base(idx, **self.slots())

    def loss(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy over supervised positions: targets (B, T) int64 holds the next token of each, or -100.

        Raises Error while merged, when what is tuned has no part in it.
        """
        if self.merged:
            raise Error("merged into the base: unmerge() before training or evaluating a loss")
        x = self.base.hidden(idx, **self.slots())  # (B, T, C)
        return linear_cross_entropy(x.flatten(0, 1), self.base.head, targets.flatten())

    @property
    def merged(self) -> bool:
        return bool(self._unmerged)

    @torch.no_grad()
    def merge(self) -> None:
        """Write what was tuned into the base's own weights (LoRA can), so that a forward pass costs what the base's does.

        The weights that change are kept for unmerge(). Raises Error for a method that is no change of weights, or a shared base.
        """
        changes = getattr(self.method, "weight_changes", None)
        if changes is None:
            raise Error(f"{self.method.name} cannot be merged: it is no change of the base's weights (lora is)")
        if self.merged:
            raise Error("already merged")
        if list(_ATTACHED.get(self.base, ([], ()))[1]) != [self]:
            raise Error("what is merged must be attached to the base, and alone: detach the others first")
        for name, change in changes().items():
            weight = self.base.get_parameter(name)
            self._unmerged[name] = weight.clone()
            weight.copy_(weight.to(change.dtype) + change)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Give the base its own weights back, bit for bit."""
        for name, weight in self._unmerged.items():
            self.base.get_parameter(name).copy_(weight)
        self._unmerged = {}

    def compile_blocks(self, on: bool = True) -> None:
        """See GPT.compile_blocks. It holds for the base, and so for everything attached to it."""
        self.base.compile_blocks(on)

    def gradient_checkpointing(self, on: bool = True) -> None:
        """See GPT.gradient_checkpointing. It holds for the base, and so for everything attached to it."""
        self.base.gradient_checkpointing(on)

    def trainable_parameters(self):
        """The parameters that are trained, in a fixed order."""
        return (p for _, p in self.named_trainable_parameters())

    def named_trainable_parameters(self):
        if self.method.freezes_base:
            return self.method.named_parameters("method")
        return self.base.named_parameters("base")

    def parameter_groups(self, lr: float | None = None) -> list[dict]:
        """For an optimizer: what every part of the method trains, at the part's own learning rate unless one is given."""
        if not self.method.freezes_base:
            return [{"params": list(self.base.parameters()), "lr": lr or self.method.rate(self.base)}]
        groups = [{"params": list(part.parameters()), "lr": lr or part.rate(self.base)} for part in self.method.parts()]
        return [group for group in groups if group["params"]]

    def trainable_summary(self) -> str:
        """The line PEFT users know: trained, all (base and method together), and the share in percent."""
        trained = sum(p.numel() for p in self.trainable_parameters())
        everything = sum(p.numel() for p in self.parameters())
        return f"trainable params: {trained:,} || all params: {everything:,} || trainable%: {100 * trained / everything:.4f}"

    def save(self, folder, base_fingerprint: str | None = None) -> None:
        """Write what was tuned. An adapter folder in PEFT's layout (one for each part of a combination, in folder/part's name);
        for `full`, a whole base in Hugging Face's. base_fingerprint: fingerprint(base) where it is known already. Raises Error while
        merged."""
        if self.merged:
            raise Error("merged into the base: unmerge() before saving the adapter, or save the base itself")
        self.method.save(self.base, folder, base_fingerprint)

    def detach(self) -> GPT:
        """The base, its tensors untouched by any method but `full`. Once nothing is attached to it any more, its parameters
        require gradients again as they did before, and its blocks run eagerly and keep what backward needs."""
        self.unmerge()
        required_grad, attached = _ATTACHED.get(self.base, ([], WeakSet()))
        attached.discard(self)
        if not attached and _ATTACHED.pop(self.base, None):
            for p, required in zip(self.base.parameters(), required_grad, strict=True):
                p.requires_grad_(required)
            self.base.compile_blocks(False)
            self.base.gradient_checkpointing(False)
        return self.base


def virtual_tokens(base: GPT, num_virtual_tokens: int | None, init: "str | Tensor") -> int:
    """P, checked against the base: at least 1, and at least one position left for a real token. None: what it starts from has,
    and 8 where that says nothing."""
    if isinstance(init, Tensor) and init.numel() == 0:
        raise Error("the text to start from is empty")
    if num_virtual_tokens is None:
        num_virtual_tokens = (init.numel() if init.dim() == 1 else init.size(-2)) if isinstance(init, Tensor) else 8
    block = base.config.block_size
    if type(num_virtual_tokens) is not int or not 1 <= num_virtual_tokens < block:
        raise Error(f"num_virtual_tokens must be 1 … {block - 1} with a block size of {block}, not {shown(num_virtual_tokens)}")
    return num_virtual_tokens


def start(base: GPT, P: int, init: "str | Tensor") -> Tensor | None:
    """What P virtual tokens start from, on some rung of the ladder: tokens (P,) drawn from the vocabulary ("vocab") or a text's
    (n,) repeated or cut; a prompt, hidden prefix or prefix as it is given; None for "random" (see noise).
    Raises Error for anything else."""
    if isinstance(init, str) and init == "random":
        return None
    if isinstance(init, str) and init == "vocab":
        return torch.randint(base.config.vocab_size, (P,))
    if not isinstance(init, Tensor) or init.dim() not in (1, 3, 4, 6) or (init.dtype == torch.int64) != (init.dim() == 1):
        raise Error(f"init must be 'random', 'vocab', token ids (n,) int64 or a lower rung of the ladder, not {init!r}".replace("\n", " "))
    if init.dim() == 1:
        return init[torch.arange(P) % init.numel()]
    if init.size(-2) != P:
        raise Error(f"what it starts from has {init.size(-2)} virtual tokens, so num_virtual_tokens cannot be {P}")
    return init


def noise(base: GPT, P: int, W: int) -> Tensor:
    """(P, W) from N(0, σ²), σ the spread of the base's own embeddings."""
    return torch.randn(P, W) * base.wte.weight.float().std().cpu()


def new_parameter(base: GPT, value: Tensor) -> nn.Parameter:
    """A trained tensor beside the base: on its device, in float32 or above whatever the base is held in."""
    like = base.wte.weight
    return nn.Parameter(value.detach().to(like.device, torch.promote_types(like.dtype, torch.float32), copy=True))
