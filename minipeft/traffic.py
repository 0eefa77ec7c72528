"""What training over several processes sends: the closed form, and a count of what happened to hold it to."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .config import GPTConfig
from .distributed import share
from .model import GPT


class Traffic(NamedTuple):
    """Bytes that one process hands to collectives, counted as the whole tensors that they work on."""

    all_gather: int = 0
    reduce_scatter: int = 0
    all_reduce: int = 0
    broadcast: int = 0

    def sent(self, processes: int) -> float:
        """Bytes that a process sends when they run round a ring: (N-1)/N of a tensor to gather it or to reduce and scatter it, and
        all-reduce is both in turn (Patarasuk & Yuan 2009, §3)."""
        return (self.all_gather + self.reduce_scatter + 2 * self.all_reduce + self.broadcast) * (processes - 1) / processes


def bytes_per_step(
    config: GPTConfig, trained: int, processes: int, full: bool = False, shard_base: bool = False, base_bytes: int = 4
) -> Traffic:
    """One training step, from the forward pass to the clipped gradient: closed form, with b = base_bytes a number of the base.

        frozen base     all-reduce        4·trained                           every gradient once, in float32
        sharded base    all-gather        b·(rest + L·block)                  every weight once in the forward pass
                                        + b·(L - 1)·block                     and again in the backward pass; the last block's stay
        full            reduce-scatter    b·(rest + L·block)                  every gradient once
                        all-reduce        b·tensors                           one norm for each, to clip by

    block and rest (embeddings, last norm, head) count a tensor (d, …) with d rounded up to a multiple of the processes, as FSDP2 pads.
    What does not grow with the model is left out: the loss that is shown, and, in DDP's second step, the order of its buckets.
    """
    if processes == 1:
        return Traffic()
    gradients = 0 if full else 4 * trained
    if not (full or shard_base):
        return Traffic(all_reduce=gradients)
    with torch.device("meta"):
        base = GPT(config)

    def padded(module: nn.Module) -> int:
        return sum(math.ceil(len(p) / processes) * processes * (p.numel() // len(p)) for p in module.parameters())

    everything, block = base_bytes * padded(base), base_bytes * padded(base.h[0])
    gather = everything + (config.n_layer - 1) * block
    if not full:
        return Traffic(gather, 0, gradients)
    return Traffic(gather, everything, base_bytes * len(list(base.parameters())))


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
