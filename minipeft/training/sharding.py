"""A model trained by several processes: by DDP, or by FSDP2 where its base is sharded."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..checks import Error
from ..model import GPT
from ..runtime.processes import is_main_process, world_size


class _Loss(nn.Module):
    """The module that DDP wraps: its forward pass is the model's loss."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, idx: Tensor, targets: Tensor) -> Tensor:
        return self.model.loss(idx, targets)


def parallel(model, device: torch.device, shard_base: bool = False) -> Callable[..., Tensor]:
    """loss_of(idx, targets), whose backward pass averages the gradients over all processes.

    Trained parameters are copied from the main process; a base must be the same everywhere. A
    sharded base moves to the device block by block, so it may start on the CPU, and
    model.named_trainable_parameters() are then shards: build the optimizer after this.
    """
    if world_size() == 1:
        return model.loss
    full = not model.method.freezes_base
    if full or shard_base:
        _shard(model, device)
    if full:
        return model.loss
    model.method.to(device)
    for p in model.trainable_parameters():
        dist.broadcast(p.detach(), src=0)
    # no init_sync: it would send the frozen base, too
    return nn.parallel.DistributedDataParallel(_Loss(model), init_sync=False,
                                               broadcast_buffers=False)


def _shard(model, device: torch.device) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    base = model.base
    if base.through_compile:
        raise Error("a sharded base cannot be compiled: its weights are gathered block by block")
    if isinstance(base, FSDPModule):
        return
    mesh = init_device_mesh(device.type, (world_size(),))
    for block in base.h:  # backward needs the last block's weights again at once
        fully_shard(block, mesh=mesh, reshard_after_forward=block is not base.h[-1])
    fully_shard(base, mesh=mesh)  # the rest stays gathered from its first use to its backward pass
    register_fsdp_forward_method(base, "hidden")
    try:
        with torch.no_grad():
            model.method.to(device)
            model.slots()
    except RuntimeError:
        raise Error(f"{model.method.name} in this form reads weights of blocks before their turn, "
                    "so its base cannot be sharded") from None


def reshard(base: GPT) -> None:
    """Free weights that forward passes without a backward pass (evaluations) left gathered."""
    for module in _sharded_parts(base):
        module.reshard()


def _sharded_parts(base: GPT) -> list:
    if world_size() == 1:
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in base.modules() if isinstance(module, FSDPModule)]


def full_tensor(t: Tensor) -> Tensor:
    """A sharded tensor, gathered from all processes; any other tensor as it is."""
    return t.detach().full_tensor() if hasattr(t, "full_tensor") else t


def gather_to_rank0(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The full tensors, gathered one by one, on the main process; {} on the others."""
    result = {}
    for name, t in tensors.items():
        full = full_tensor(t)
        if is_main_process():
            result[name] = full.cpu() if full is not t else t
    return result


def shard_like(full: Tensor, like: Tensor) -> Tensor:
    """This process's shard of a tensor that all have; the tensor if `like` is not sharded."""
    if not hasattr(like, "full_tensor"):
        return full
    from torch.distributed.tensor import distribute_tensor

    full = full.to(like.device)
    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)


def full_base(base: GPT) -> GPT | None:
    """A sharded base's copy on the main process's CPU, None on the others; another base as is."""
    if not _sharded_parts(base):
        return base
    reshard(base)
    tensors = gather_to_rank0(base.state_dict())
    if not is_main_process():
        return None
    with torch.device("meta"):
        copy = GPT(base.config)
    copy.load_state_dict(tensors, assign=True)
    return copy
