"""Communication of a training step over several processes."""

import math
from typing import NamedTuple

from ..checks import at_least_one
from ..config import GPTConfig
from ..files.huggingface import block_tensors, outer_tensors
from ..formulas.terms import Size, round_up
from ..methods import method_class
from .parameters import count


class Traffic(NamedTuple):
    """Bytes that one process hands to collectives, counted as the whole tensors they work on."""

    all_gather: int = 0
    reduce_scatter: int = 0
    all_reduce: int = 0
    broadcast: int = 0

    def sent(self, processes: int) -> float:
        """Bytes that one of N processes sends in ring collectives: (N - 1)/N of a tensor to gather it,
        or to reduce and scatter it. All-reduce is both in turn (Patarasuk & Yuan 2009, §3)."""
        total = self.all_gather + self.reduce_scatter + 2 * self.all_reduce + self.broadcast
        return total * (processes - 1) / processes


def wire_bytes(c: GPTConfig, method: str, processes: int, shard_base: bool = False, base_bytes: int = 4,
               **hyperparameters) -> Traffic:
    """`bytes_per_step` of a training step with a method, from forward to the clipped gradient."""
    at_least_one("processes", processes)
    trained = count(c, method, **hyperparameters).trained
    return bytes_per_step(c, trained, processes, not method_class(method).freezes_base, shard_base, base_bytes)


def bytes_per_step(config: GPTConfig, trained: int, processes: int, full: bool = False,
                   shard_base: bool = False, base_bytes: int = 4) -> Traffic:
    """Bytes of one training step for any number of trained parameters (such as several methods'), with
    b = base_bytes per parameter of the base:

        frozen base     all-reduce        4·trained              every gradient, in float32
        sharded base    all-gather        b·(rest + L·block)     every weight in forward, and
                                        + b·(L - 1)·block        again in backward, but for the last block
        full            as sharded base, without 4·trained, and
                        reduce-scatter    b·(rest + L·block)     every gradient
                        all-reduce        b·tensors              the norm of each, to clip by

    block and rest (embeddings, last norm, head): elements, with the first dimension of each tensor
    rounded up to a multiple of the processes, as FSDP2 pads. Left out, as it does not grow with the
    model: the loss for the progress bar, and the order of DDP's buckets in its second step.
    """
    if processes == 1:
        return Traffic()
    if not (full or shard_base):
        return Traffic(all_reduce=4 * trained)

    def padded(shapes: dict[str, tuple[Size, ...]]) -> Size:
        return base_bytes * sum(round_up(d, processes) * math.prod(rest) for d, *rest in shapes.values())

    L, block, rest = config.n_layer, block_tensors(config), outer_tensors(config)
    everything = padded(rest) + L * padded(block)
    gather = everything + (L - 1) * padded(block)
    if not full:
        return Traffic(gather, all_reduce=4 * trained)
    return Traffic(gather, everything, base_bytes * (len(rest) + L * len(block)))
