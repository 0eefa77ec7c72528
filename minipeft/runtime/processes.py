"""Several processes that train one model, by torch.distributed; with one, nothing is sent.

    torchrun --nproc-per-node 2 train.py …    N processes, each with its rows of every batch and,
                                              on GPUs, its own GPU

    frozen base     every process holds all of it; only gradients of trained tensors are averaged
                    (DDP, 2006.15704)
    sharded base    every process holds 1/N of every weight; a block's are gathered when it runs
                    (FSDP2, 2304.11277): for `full`, or for a frozen base too large for one device

The mean over a batch's supervised tokens must not depend on N. Process p has n_p of the n tokens
and mean loss l_p, and contributes w_p·l_p with w_p = N·n_p / n:

    (1/N) Σ w_p l_p = (1/n) Σ n_p l_p, and its gradient likewise.

Collectives must be called by all processes or by none.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..checks import Error, shown

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)  # while rank 0 works alone; a death is noticed at once


def join_processes(device: torch.device) -> torch.device:
    """Join the processes torchrun started, if any. Returns this one's device: cuda becomes its GPU.
    Raises Error where torch, the device or the environment cannot, or when there is no GPU for this
    process."""
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        return device
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR",
                 "MASTER_PORT"):
        value = os.environ.get(name)
        if value is None or (name != "MASTER_ADDR" and not value.isdecimal()):
            found = "not set" if value is None else f"{shown(value)}, no number"
            raise Error(f"WORLD_SIZE is {size} but {name} is {found}: start it by torchrun, or unset WORLD_SIZE")
    if not dist.is_available():
        raise Error("this build of torch has no torch.distributed: "
                    "run one process, without torchrun")
    if device.type not in ("cpu", "cuda"):
        raise Error(f"several processes can train on cpu or cuda, not on {device.type}")
    if device.type == "cuda":
        local_rank, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local_rank >= gpus:
            raise Error(f"process {local_rank} of this machine has no GPU of its own: "
                        f"with {gpus} of them, torchrun --nproc-per-node {gpus}")
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    return device


def leave_processes() -> None:
    if world_size() > 1:
        dist.destroy_process_group()


def world_size() -> int:
    """N: processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def local_world_size() -> int:
    """Number of processes on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if world_size() > 1 else 1


def rank() -> int:
    """This process's number, 0 … N-1."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main_process() -> bool:
    """True for rank 0, which writes files and prints."""
    return rank() == 0


def is_lost_peer(error: BaseException) -> bool:
    """True for torch's errors when another process died, never came, or was silent for TIMEOUT."""
    known = dist.is_available() and isinstance(error, dist.DistError)  # a RuntimeError
    text = str(error) if isinstance(error, RuntimeError) else ""
    return known or "gloo" in text.lower() or "closed by peer" in text


def local_rows(idx: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, float]:
    """This process's rows of a batch (B, T) that all processes have, and w_p of their mean loss."""
    supervised, mine = targets != -100, slice(rank(), None, world_size())
    n, n_p = int(supervised.sum()), int(supervised[mine].sum())
    if n_p == 0:  # its mean would be nan: it takes the first row that has a token, with weight 0
        first = int(supervised.any(dim=1).int().argmax())
        mine = slice(first, first + 1)
    return idx[mine], targets[mine], world_size() * n_p / max(n, 1)


def local_batches(batches: Sequence[T]) -> Iterator[tuple[T, bool]]:
    """This process's batches, each with True if it counts here: a batch counts in one process. All
    get as many, since all or none must gather a sharded base's weights."""
    for first in range(0, len(batches), world_size()):
        i = first + rank()
        yield (batches[i], True) if i < len(batches) else (batches[first], False)


def seed_this_rank(seed: int) -> None:
    """Give every process its own random numbers (dropout), after the shared ones are drawn."""
    if not is_main_process():
        torch.manual_seed(seed + rank())


def all_reduce_sum(t: Tensor) -> Tensor:
    """The sum over processes, in a new tensor."""
    if world_size() > 1:
        t = t.detach().clone()
        dist.all_reduce(t)
    return t


def all_reduce_mean(t: Tensor) -> Tensor:
    """The mean over processes."""
    return all_reduce_sum(t) / world_size()


def all_reduce_max(value: int) -> int:
    """The largest value of all processes, over the CPUs: a signal must not wait for a GPU."""
    if world_size() > 1:
        largest = torch.tensor(int(value))
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        value = int(largest)
    return value


def all_gather(value: T) -> list[T]:
    """The values of all processes, in order of rank."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def check_same_settings(settings: dict) -> None:
    """Raise Error unless all processes have these settings; arguments or files may differ."""
    for other, theirs in enumerate(all_gather(settings)):
        for name in sorted(settings.keys() | theirs.keys()):
            if (a := settings.get(name)) != (b := theirs.get(name)):
                raise Error(f"processes {rank()} and {other} differ in {name}: {a!r} and {b!r}")


def run_on_rank0(work: Callable[[], T]) -> T:
    """Run work() on rank 0 and return its result everywhere. If it raises, rank 0 raises the same
    and the others an Error with its text."""
    if world_size() == 1:
        return work()
    shared, error = [None, None], None  # its result, or the text of its exception
    if is_main_process():
        try:
            shared[0] = work()
        except Exception as e:  # raised after the broadcast, for which the others wait
            error, shared[1] = e, str(e) or type(e).__name__
    dist.broadcast_object_list(shared, src=0)
    if shared[1] is not None:
        raise error or Error(shared[1])
    return shared[0]
