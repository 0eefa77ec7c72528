"""What training over several processes sends, counted as it happens: what `accounting.wire_bytes` is held to."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..accounting import Traffic
from ..runtime.processes import share


class CountedBytes(TorchDispatchMode):
    """with CountedBytes() as counted: … ; counted.traffic is then what went into collectives, in this process, as it happened."""

    def __init__(self):
        super().__init__()
        self.traffic = Traffic()

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # compiled blocks hold no collectives, and torch.compile refuses to run under other modes

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(hasattr(kind, "full_tensor") for kind in types):
            return NotImplemented  # a sharded tensor: first it says which collectives that means, then they come here
        result = func(*args, **(kwargs or {}))
        if func.namespace in ("c10d", "_c10d_functional"):
            name = func.overloadpacket.__name__.strip("_").replace("_", "")
            for kind in Traffic._fields:
                if name.startswith(kind.replace("_", "")):  # the larger side: what is gathered, or what is to be scattered
                    size = max(map(_bytes, (*args, result)))
                    self.traffic = self.traffic._replace(**{kind: getattr(self.traffic, kind) + size})
        return result


def _bytes(x) -> int:
    """Of a tensor, or all in a list."""
    if isinstance(x, (list, tuple)):
        return sum(map(_bytes, x))
    return x.nbytes if isinstance(x, Tensor) else 0


def counted_step(model, loss_of, idx: Tensor, targets: Tensor) -> Traffic:
    """What one step of several processes hands to collectives, counted: all of a step but the optimizer's part, on idx, targets (B, T)."""
    idx, targets, weight = share(idx, targets)
    device = model.base.wte.weight.device
    with CountedBytes() as counted:
        (loss_of(idx.to(device), targets.to(device)) * weight).backward()
        torch.nn.utils.clip_grad_norm_(model.trainable_parameters(), 1.0)
    model.zero_grad(set_to_none=True)
    return counted.traffic
