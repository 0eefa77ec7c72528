"""What every tuning method is: a few trainable tensors and what they put into the two slots of a frozen base."""

from weakref import WeakKeyDictionary, WeakSet

import torch
import torch.nn as nn
from torch import Tensor

from ..config import Error
from ..loss import linear_cross_entropy
from ..model import GPT


class Method(nn.Module):
    """One way of tuning. Its parameters are what is trained; `tensors()` is what the adapter file holds.

    The two differ only where something is needed in training and can be folded away afterwards (a prefix's MLP).
    Subclasses are built as `Method(base, **hyperparameters)`, read the base's shape and embeddings, and do not keep it.
    """

    name: str  # as in minipeft.METHODS
    learning_rate: float  # a default that works on the embedded base (AdamW, warm-up, cosine)
    peft_types: tuple[str, ...] = ()  # what adapter_config.json may call it
    freezes_base = True
    num_virtual_tokens = 0  # positions it takes before the real tokens

    def slots(self, base: GPT) -> dict[str, Tensor]:
        """The `prompt` and `prefix` arguments for base(idx, …)."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """What is saved, detached: exactly these names and shapes are demanded when it is loaded."""
        return {name: p.detach() for name, p in self.named_parameters()}

    def peft_config(self, base: GPT) -> dict:
        """The method's part of adapter_config.json, in PEFT's own fields."""
        raise NotImplementedError

    @classmethod
    def hyperparameters(cls, config: dict) -> dict:
        """The keyword arguments that rebuild the method of this adapter_config.json."""
        raise NotImplementedError

    def save(self, base: GPT, folder) -> None:
        """Write the adapter folder: adapter_config.json and adapter_model.*, in PEFT's layout."""
        from .. import checkpoint  # file formats live above the methods

        checkpoint.save_adapter(self, base, folder)


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
        attached.add(self)
        base.requires_grad_(not method.freezes_base)

    def forward(self, idx: Tensor) -> Tensor:
        """idx (B, T) int64 -> logits (B, T, V); the positions of virtual tokens are already dropped."""
        return self.base(idx, **self.method.slots(self.base))

    def loss(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy over supervised positions: targets (B, T) int64 holds the next token of each, or -100."""
        x = self.base.hidden(idx, **self.method.slots(self.base))  # (B, T, C)
        return linear_cross_entropy(x.flatten(0, 1), self.base.wte.weight, targets.flatten())

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

    def trainable_summary(self) -> str:
        """The line PEFT users know: trained, all (base and method together), and the share in percent."""
        trained = sum(p.numel() for p in self.trainable_parameters())
        everything = sum(p.numel() for p in self.parameters())
        return f"trainable params: {trained:,} || all params: {everything:,} || trainable%: {100 * trained / everything:.4f}"

    def save(self, folder) -> None:
        """Write what was tuned. An adapter folder in PEFT's layout; for `full`, a whole base in Hugging Face's."""
        self.method.save(self.base, folder)

    def detach(self) -> GPT:
        """The base, its tensors untouched by any method but `full`. Once nothing is attached to it any more, its parameters
        require gradients again as they did before, and its blocks run eagerly and keep what backward needs."""
        required_grad, attached = _ATTACHED.get(self.base, ([], WeakSet()))
        attached.discard(self)
        if not attached and _ATTACHED.pop(self.base, None):
            for p, required in zip(self.base.parameters(), required_grad, strict=True):
                p.requires_grad_(required)
            self.base.compile_blocks(False)
            self.base.gradient_checkpointing(False)
        return self.base


def virtual_tokens(base: GPT, num_virtual_tokens: int) -> int:
    """P, checked against the base: at least 1, and at least one position left for a real token."""
    block = base.config.block_size
    if type(num_virtual_tokens) is not int or not 1 <= num_virtual_tokens < block:
        raise Error(f"num_virtual_tokens must be 1 … {block - 1} with a block size of {block}, not {num_virtual_tokens!r}")
    return num_virtual_tokens


def initial_tokens(base: GPT, P: int, init: "str | Tensor") -> Tensor | None:
    """The P token ids a prompt or prefix starts from: drawn from the vocabulary ("vocab"), a text's ids (n,) repeated or cut,
    or none ("random": see noise). Raises Error for anything else."""
    if isinstance(init, str) and init == "random":
        return None
    if isinstance(init, str) and init == "vocab":
        return torch.randint(base.config.vocab_size, (P,))
    if not isinstance(init, Tensor) or init.dim() != 1 or init.dtype != torch.int64:
        raise Error(f"init must be 'random', 'vocab' or token ids (n,) int64, not {init!r}".replace("\n", " "))
    if init.numel() == 0:
        raise Error("the text to start from is empty")
    return init[torch.arange(P) % init.numel()]


def noise(base: GPT, P: int, W: int) -> Tensor:
    """(P, W) from N(0, σ²), σ the spread of the base's own embeddings."""
    return torch.randn(P, W) * base.wte.weight.float().std().cpu()


def new_parameter(base: GPT, value: Tensor) -> nn.Parameter:
    """A trained tensor beside the base: on its device, in float32 or above whatever the base is held in."""
    like = base.wte.weight
    return nn.Parameter(value.detach().to(like.device, torch.promote_types(like.dtype, torch.float32), copy=True))


def prompt_learning_config(base: GPT, num_virtual_tokens: int) -> dict:
    """The fields of PEFT's PromptLearningConfig, which prompt and prefix share."""
    return {
        "num_virtual_tokens": num_virtual_tokens,
        "token_dim": base.config.n_embd,
        "num_transformer_submodules": 1,
        "num_attention_heads": base.config.n_head,
        "num_layers": base.config.n_layer,
    }
