"""Bytes that training hands to collectives: counted in a step, beside accounting's closed form."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..accounting import Traffic, base_parameters, bytes_per_step
from ..runtime.processes import local_rows, world_size


class CountedBytes(TorchDispatchMode):
    """with CountedBytes() as counted: …  Then counted.traffic is this process's, by collective."""

    def __init__(self):
        super().__init__()
        self.traffic = Traffic()

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # compiled blocks hold no collectives, and refuse other modes

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(hasattr(kind, "full_tensor") for kind in types):
            return NotImplemented  # a sharded tensor: the collectives it calls come here
        result = func(*args, **(kwargs or {}))
        if func.namespace in ("c10d", "_c10d_functional"):
            name = func.overloadpacket.__name__.strip("_").replace("_", "")
            for kind in Traffic._fields:
                if name.startswith(kind.replace("_", "")):
                    size = max(map(_bytes, (*args, result)))  # gathered output, or input to scatter
                    total = getattr(self.traffic, kind) + size
                    self.traffic = self.traffic._replace(**{kind: total})
        return result


def _bytes(x) -> int:
    """Bytes of a tensor, or of all tensors in a list."""
    if isinstance(x, (list, tuple)):
        return sum(map(_bytes, x))
    return x.nbytes if isinstance(x, Tensor) else 0


def traffic_line(model, loss_of, batch: tuple[Tensor, Tensor], full: bool, shard_base: bool) -> str:
    """A step's bytes: counted on one batch without the optimizer update, and by the closed form."""
    N, weight, config = world_size(), model.base.wte.weight, model.base.config
    trained = sum(p.numel() for p in model.trainable_parameters())
    closed_form = bytes_per_step(config, trained, N, full, shard_base, weight.element_size())
    idx, targets, share_weight = local_rows(*batch)
    with CountedBytes() as counted:
        (loss_of(idx.to(weight.device), targets.to(weight.device)) * share_weight).backward()
        torch.nn.utils.clip_grad_norm_(model.trainable_parameters(), 1.0)
    model.zero_grad(set_to_none=True)
    everything = bytes_per_step(config, base_parameters(config), N)
    return (f"{N} processes, each hands {sum(counted.traffic):,} bytes a step to collectives "
            f"(closed form {sum(closed_form):,}), and sends {closed_form.sent(N):,.0f}; "
            f"full fine-tuning's gradients are {sum(everything):,} bytes")
