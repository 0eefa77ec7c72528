"""What training over several processes sends in a step."""

import math
from typing import NamedTuple

from ..config import GPTConfig, at_least_one
from ..files.huggingface import block_tensors, rest_tensors
from .parameters import count


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


def wire_bytes(c: GPTConfig, method: str, processes: int, shard_base: bool = False, base_bytes: int = 4, **hyperparameters) -> Traffic:
    """Bytes of one training step, from the forward pass to the clipped gradient, with these hyper-parameters of `count`; `bytes_per_step`
    has the formulas.

    Raises Error as `count` does, or for no processes.
    """
    at_least_one("processes", processes)
    trained = count(c, method, **hyperparameters).trained
    return bytes_per_step(c, trained, processes, method == "full", shard_base, base_bytes)


def bytes_per_step(
    config: GPTConfig, trained: int, processes: int, full: bool = False, shard_base: bool = False, base_bytes: int = 4
) -> Traffic:
    """Bytes of one training step for any number of trained parameters (of several methods, say), with b = base_bytes a number of the base:

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

    def padded(shapes: dict[str, tuple[int, ...]]) -> int:
        return base_bytes * sum(math.ceil(d / processes) * processes * math.prod(rest) for d, *rest in shapes.values())

    L, block, rest = config.n_layer, block_tensors(config), rest_tensors(config)
    everything = padded(rest) + L * padded(block)
    gather = everything + (L - 1) * padded(block)
    if not full:
        return Traffic(gather, 0, gradients)
    return Traffic(gather, everything, base_bytes * (len(rest) + L * len(block)))
