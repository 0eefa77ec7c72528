"""Several processes that train one model, on PyTorch's own engine; with one process every function here is the identity.

    torchrun --nproc-per-node 2 train.py …          N processes, each with its rows of every batch and, on GPUs, its own GPU

    frozen base    every process holds it whole; only the trained tensors' gradients are averaged                  (DDP, 2006.15704)
    sharded base   every process holds 1/N of every weight; a block's are gathered when it is their turn, then given back
                   (FSDP2, 2304.11277): for method `full`, and by choice for a frozen base too large for one device

The mean over a batch's supervised tokens must not depend on N. Process p has n_p of the n tokens and a mean loss l_p of its own;
what is averaged over processes is w_p·l_p with w_p = N·n_p / n:     (1/N) Σ w_p l_p = (1/n) Σ n_p l_p, and its gradient likewise.

It knows torch.distributed and a model with .loss(idx, targets), and nothing of files. Collectives are called by all processes or none.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..config import Error

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)  # how long processes wait while one reads, writes or compiles; one that died is noticed at once


def join(device: torch.device) -> torch.device:
    """Join the processes that torchrun started, if it did; returns the device of this one: cuda becomes the GPU of its own.

    Raises Error where torch or the device cannot do it, or when there is no GPU for this process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    if missing := [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise Error(f"WORLD_SIZE is {os.environ['WORLD_SIZE']} but {missing[0]} is not set: start it by torchrun, or unset WORLD_SIZE")
    if not dist.is_available():
        raise Error("this build of torch has no torch.distributed: run one process, without torchrun")
    if device.type not in ("cpu", "cuda"):
        raise Error(f"several processes can train on cpu or cuda, not on {device.type}")
    if device.type == "cuda":
        if (own := int(os.environ["LOCAL_RANK"])) >= (there := torch.cuda.device_count()):
            raise Error(f"process {own} of this machine has no GPU of its own: with {there} of them, torchrun --nproc-per-node {there}")
        device = torch.device("cuda", own)
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    return device


def leave() -> None:
    if world_size() > 1:
        dist.destroy_process_group()


def world_size() -> int:
    """N: how many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, 0 … N-1."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main_process() -> bool:
    """Whether this is the one that writes files and prints."""
    return rank() == 0


def lost_peer(error: BaseException) -> bool:
    """Whether this is what torch raises when another process died, never came, or stayed silent for TIMEOUT."""
    return isinstance(error, RuntimeError) and (
        (dist.is_available() and isinstance(error, dist.DistError)) or "gloo" in str(error).lower() or "closed by peer" in str(error)
    )




def share(idx: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, float]:
    """This process's rows of the batch idx, targets (B, T) that all of them have, and the weight w of their mean loss (see above).

    A process without a supervised token of its own takes the first row that has one, with weight 0: the mean of none would be nan.
    """
    n, mine = int((targets != -100).sum()), slice(rank(), None, world_size())
    own = int((targets[mine] != -100).sum())
    if own == 0:
        first = int((targets != -100).any(dim=1).int().argmax())
        mine = slice(first, first + 1)
    return idx[mine], targets[mine], world_size() * own / max(n, 1)


def share_batches(batches: Sequence[T]) -> Iterator[tuple[T, bool]]:
    """This process's batches, and whether each counts here: every one counts in exactly one process, and all processes have as many,
    since a sharded base's weights are gathered by all or none."""
    for first in range(0, len(batches), world_size()):
        own = first + rank()
        yield (batches[own], True) if own < len(batches) else (batches[first], False)


def own_noise(seed: int) -> None:
    """From here on every process draws its own random numbers (dropout), once what all must have alike has been drawn."""
    if not is_main_process():
        torch.manual_seed(seed + rank())


def all_reduce_sum(t: Tensor) -> Tensor:
    """The sum over processes."""
    if world_size() > 1:
        t = t.detach().clone()
        dist.all_reduce(t)
    return t


def all_reduce_mean(t: Tensor) -> Tensor:
    """The mean over processes."""
    return all_reduce_sum(t) / world_size()


def all_reduce_max(flag: int) -> int:
    """The largest of all processes' flags; 8 bytes between CPUs, where a signal can wait for no GPU."""
    if world_size() > 1:
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        flag = int(flags)
    return flag


def all_gather(value: T) -> list[T]:
    """Every process's value, in order of rank."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def check_same(settings: dict) -> None:
    """Raise Error unless all processes have these settings: other arguments or files on another machine would train something else."""
    for other, theirs in enumerate(all_gather(settings)):
        for name in sorted(settings.keys() | theirs.keys()):
            if (a := settings.get(name)) != (b := theirs.get(name)):
                raise Error(f"processes {rank()} and {other} differ in {name}: {a!r} and {b!r}")


def run_on_rank0(work: Callable[[], T]) -> T:
    """The leader does it, everyone gets the result. An Error of it is everyone's; of another exception the others get the text."""
    if world_size() == 1:
        return work()
    result, error = None, None
    if is_main_process():
        try:
            result = work()
        except Exception as e:  # told first, then raised: the others would wait
            error = e
    told = [result, None if error is None else str(error) or type(error).__name__]
    dist.broadcast_object_list(told, src=0)
    if error is not None:
        raise error
    if told[1] is not None:
        raise Error(told[1])
    return told[0]

