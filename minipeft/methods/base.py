"""Base class of the methods: the tensors that are trained and saved, and what is made of them."""

from typing import Annotated

import torch
import torch.nn as nn
from torch import Tensor

from ..checks import Error, described, shown
from ..files import peft
from ..formulas.declaration import Declaration
from ..model import GPT
from ..parts.quantised_base import fingerprint
from ..slots import Slots

LENGTH = 8  # virtual tokens, where nothing says how many
WIDE = 512  # bases of at least this many channels use `learning_rate_wide`
Start = Annotated[str | Tensor, "what virtual tokens start from"]  # --init, --init-from-text, --init-from
Tokens = Annotated[Tensor, "tokens chosen among texts"]  # --wordings, --search
Text = Annotated[str | None, "a template with {soft} in it"]  # --template of the script


class Method(Declaration, nn.Module, registered=False):
    """One way of tuning. Its parameters are trained; `tensors()` is what the adapter file holds.

    The two differ where a part is needed in training alone and folded away when saved (a prefix's
    MLP), and for a hard prompt, which trains nothing and stores its tokens. Subclasses are built as
    `Method(base, **hyperparameters)`; they keep their hyper-parameters, and no reference to the
    base. They declare what formulas.declaration.DECLARED lists; Error names what is missing.
    """

    learning_rate: float  # default on narrower bases (AdamW, warm-up, cosine)
    learning_rate_wide: float  # default on bases of n_embd >= WIDE
    num_virtual_tokens = 0  # vectors before the real tokens, or among them

    def slots(self, base: GPT) -> Slots:
        """Prompt, prefix and hooks of this method, for base(idx, *slots)."""
        raise NotImplementedError

    def on_attach(self, base: GPT) -> None:
        """Called once it is attached. Only `full` does something: it changes the base's dtype."""

    @classmethod
    def example(cls, base: GPT, **sizes) -> "Method":
        """The method with these sizes, to measure or to test it."""
        return cls(base, **sizes)

    def default_learning_rate(self, base: GPT) -> float:
        """The default peak learning rate on this base."""
        return self.learning_rate if base.config.n_embd < WIDE else self.learning_rate_wide

    @property
    def positions_taken(self) -> int:
        """Positions that the model gives it, before those of idx."""
        return self.num_virtual_tokens - self.tokens_in_text

    @property
    def tokens_in_text(self) -> int:
        """Virtual tokens that stand in idx."""
        return 0

    def parts(self) -> "list[Method]":
        """The methods of a combination; otherwise the method itself."""
        return [self]

    def tensors(self) -> dict[str, Tensor]:
        """The saved tensors, detached; loading demands their names and shapes, and fills them."""
        return {name: p.detach() for name, p in self.named_parameters()}

    def for_peft(self, base: GPT) -> "Method":
        """The method in a form that PEFT opens. Raises Error where there is none."""
        if self.peft is not None:
            raise Error(self.peft)
        return self

    def config(self, base: GPT) -> dict:
        """The fields of its adapter_config.json."""
        for name in self.config_fields():
            if not hasattr(self, name):
                raise Error(f"method class {type(self).__name__} must keep {name} as an attribute, to be saved")
        return self.adapter_config(base.config, **{name: getattr(self, name) for name in self.config_fields()})

    def save(self, base: GPT, folder, base_fingerprint: str | None = None) -> None:
        """Write the adapter folder, adapter_config.json and adapter_model.*, in PEFT's layout."""
        base_fingerprint = base_fingerprint or fingerprint(base)
        peft.write_adapter(folder, self.config(base), self.tensors(), base_fingerprint)


class TensorHook(nn.Module):
    """A hook f(x, y) -> y' with a tensor (1, …), or one for each row, (B, …). Subclasses are f."""

    neutral = 0.0  # the value at which f returns y

    def __init__(self, value: Tensor):
        super().__init__()
        self.value = value

    @classmethod
    def stack(cls, hooks: "list[TensorHook | None]") -> "TensorHook":
        """One hook with the tensors of n tasks, (n, …); None: no change."""
        some = next(hook.value for hook in hooks if hook is not None)
        none = torch.full_like(some, cls.neutral)
        return cls(torch.cat([none if hook is None else hook.value for hook in hooks]))

    def rows(self, ids: Tensor) -> "TensorHook":
        """The hook of these tasks of a stack: (B,) one for each row, () one for all."""
        return type(self)(self.value[ids.view(-1)])


def virtual_tokens(base: GPT, num_virtual_tokens: int | None, init: "str | Tensor") -> int:
    """P, with room for one real token. None: the length of `init`, or LENGTH if it has none."""
    if isinstance(init, Tensor) and (init.dim() == 0 or init.numel() == 0):
        raise Error("the text to start from is empty")
    if num_virtual_tokens is None:
        num_virtual_tokens = LENGTH
        if isinstance(init, Tensor):
            num_virtual_tokens = init.numel() if init.dim() == 1 else init.size(-2)
    block = base.config.block_size
    if type(num_virtual_tokens) is not int or not 1 <= num_virtual_tokens < block:
        raise Error(f"num_virtual_tokens must be 1 … {block - 1} with a block size of {block}, "
                    f"not {shown(num_virtual_tokens)}")
    return num_virtual_tokens


def initial_value(base: GPT, P: int, init: "str | Tensor") -> Tensor | None:
    """The value that P virtual tokens start from, on some level of the ladder; None for "random"
    (see `noise`).

    "vocab": tokens (P,) drawn from the vocabulary; token ids (n,): repeated or cut to P; a prompt,
    hidden prefix or prefix: as given. Raises Error for anything else.
    """
    if isinstance(init, str) and init == "random":
        return None
    if isinstance(init, str) and init == "vocab":
        return torch.randint(base.config.vocab_size, (P,))
    known = isinstance(init, Tensor) and init.dim() in (1, 3, 4, 6)
    if not known or not (init.dtype == torch.int64 if init.dim() == 1 else init.is_floating_point()):
        raise Error("init must be 'random', 'vocab', token ids (n,) int64 or a lower level of the ladder, "
                    f"not {described(init)}")
    if init.dim() == 1:
        return init[torch.arange(P) % init.numel()]
    if init.size(-2) != P:
        raise Error(f"init has {init.size(-2)} virtual tokens, so num_virtual_tokens cannot be {P}")
    return init


def noise(base: GPT, P: int, W: int) -> Tensor:
    """(P, W) from N(0, σ²), σ the standard deviation of the base's embeddings as scaled."""
    x = base.wte.weight.detach()
    if x.dtype in (torch.float16, torch.bfloat16):  # in parts: a copy in float32 may outweigh the base
        parts = (part.cpu().double() for part in x.split(2048))  # on the CPU: Apple's GPUs have no float64
        sums = sum(torch.stack([part.sum(), part.square().sum()]) for part in parts)
        mean, mean_square = sums / x.numel()
        std = ((mean_square - mean**2) * (x.numel() / max(1, x.numel() - 1))).sqrt().float()
    else:
        std = x.float().std().cpu()
    return torch.randn(P, W) * std * base.embedding_scale


def new_parameter(base: GPT, value: Tensor) -> nn.Parameter:
    """A trained parameter on the base's device, in float32 or above whatever the base's dtype."""
    like = base.wte.weight
    dtype = torch.promote_types(like.dtype, torch.float32)
    return nn.Parameter(value.detach().to(like.device, dtype, copy=True))
