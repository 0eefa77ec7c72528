"""Bytes that training hands to collectives, counted: the check of accounting's closed form."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..accounting import Traffic
from ..runtime.processes import share


class CountedBytes(TorchDispatchMode):
    """with CountedBytes() as counted: …  Then counted.traffic holds this process's bytes by collective."""

    def __init__(self):
        super().__init__()
        self.traffic = Traffic()

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # torch.compile refuses to run under other modes; compiled blocks hold no collectives

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(hasattr(kind, "full_tensor") for kind in types):
            return NotImplemented  # a sharded tensor: it calls the collectives, and they come here
        result = func(*args, **(kwargs or {}))
        if func.namespace in ("c10d", "_c10d_functional"):
            name = func.overloadpacket.__name__.strip("_").replace("_", "")
            for kind in Traffic._fields:
                if name.startswith(kind.replace("_", "")):  # the larger side: gathered output, or input to scatter
                    size = max(map(_bytes, (*args, result)))
                    self.traffic = self.traffic._replace(**{kind: getattr(self.traffic, kind) + size})
        return result


def _bytes(x) -> int:
    """Bytes of a tensor, or of all tensors in a list."""
    if isinstance(x, (list, tuple)):
        return sum(map(_bytes, x))
    return x.nbytes if isinstance(x, Tensor) else 0


def counted_step(model, loss_of, idx: Tensor, targets: Tensor) -> Traffic:
    """Traffic of one training step on idx, targets (B, T), without its optimizer update, which sends nothing."""
    idx, targets, weight = share(idx, targets)
    device = model.base.wte.weight.device
    with CountedBytes() as counted:
        (loss_of(idx.to(device), targets.to(device)) * weight).backward()
        torch.nn.utils.clip_grad_norm_(model.trainable_parameters(), 1.0)
    model.zero_grad(set_to_none=True)
    return counted.traffic
