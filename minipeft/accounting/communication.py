"""Communication of a training step over several processes."""

import math
from typing import NamedTuple

from ..checks import at_least_one
from ..config import GPTConfig
from ..files.huggingface import block_tensors, outer_tensors
from ..formulas.terms import Size, Term, round_up, total
from ..methods import method_class
from .parameters import check_gpt, count


class Traffic(NamedTuple):
    """Bytes that one process hands to collectives, counted as the whole tensors they work on."""

    all_gather: int = 0
    reduce_scatter: int = 0
    all_reduce: int = 0
    broadcast: int = 0

    def sent(self, processes: int) -> float:
        """Bytes that one of N processes sends in ring collectives: (N - 1)/N of a tensor to gather
        it, or to reduce and scatter it. All-reduce is both in turn (Patarasuk & Yuan 2009, §3)."""
        total = self.all_gather + self.reduce_scatter + 2 * self.all_reduce + self.broadcast
        return total * (processes - 1) / processes


def wire_bytes(c: GPTConfig, method: str, processes: int, shard_base: bool = False, base_bytes: int = 4,
               **hyperparameters) -> Traffic:
    """`bytes_per_step` of a training step with a method, from forward to the clipped gradient."""
    trained = count(c, method, **hyperparameters).trained
    return bytes_per_step(c, trained, processes, not method_class(method).freezes_base, shard_base,
                          base_bytes)


def bytes_per_step(config: GPTConfig, trained: int, processes: int, full: bool = False,
                   shard_base: bool = False, base_bytes: int = 4) -> Traffic:
    """Bytes of one training step for any number of trained parameters (such as several methods'),
    with b = base_bytes per parameter of the base:

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
    check_gpt(config)
    at_least_one("processes", processes), at_least_one("base_bytes", base_bytes)
    block, rest = (total(padded_terms(shapes, processes)) for shapes in (block_tensors(config), outer_tensors(config)))
    tensors = len(outer_tensors(config)) + config.n_layer * len(block_tensors(config))
    terms = traffic_terms(config, trained, tensors, block, rest, processes, full, shard_base,
                          base_bytes)
    return Traffic(**{name: total(of) for name, of in terms.items()})


def padded_terms(shapes: dict[str, tuple[Size, ...]], processes: Size) -> list[Term]:
    """Elements of each tensor, its first dimension rounded up to a multiple of the processes."""
    return [Term(name, round_up(first, processes) * math.prod(rest)) for name, (first, *rest) in shapes.items()]


def traffic_terms(c: GPTConfig, trained: Size, tensors: Size, block: Size, rest: Size, processes: Size,
                  full: bool = False, shard_base: bool = False, b: int = 4) -> dict[str, list[Term]]:
    """The terms of `bytes_per_step`, by the fields of Traffic; sizes may be symbols.

    tensors: trained tensors; block, rest: padded elements; b: bytes of a parameter of the base.
    """
    if processes == 1:
        return {}
    if not (full or shard_base):
        return {"all_reduce": [Term("all-reduce: every gradient", 4 * trained)]}
    everything = rest + c.n_layer * block
    gather = [Term("all-gather: weights in forward", b * everything),
              Term("all-gather: weights again in backward", b * block, c.n_layer - 1)]
    if not full:
        return {"all_gather": gather,
                "all_reduce": [Term("all-reduce: every gradient", 4 * trained)]}
    return {"all_gather": gather, "reduce_scatter": [Term("reduce-scatter: gradients", b * everything)],
            "all_reduce": [Term("all-reduce: norm of each gradient", b * tensors)]}
