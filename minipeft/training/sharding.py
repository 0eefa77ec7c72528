"""A model trained by several processes: DDP for a frozen base that every process holds, FSDP2 for a base that is sharded."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..config import Error
from ..model import GPT
from ..runtime.processes import is_main_process, world_size


class _Loss(nn.Module):
    """What DDP wraps: a module whose forward pass is the model's loss."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, idx: Tensor, targets: Tensor) -> Tensor:
        return self.model.loss(idx, targets)


def parallel(model, device: torch.device, shard_base: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
    """loss_of(idx, targets), after whose backward pass the gradients are the mean over all processes.

    What is trained starts as the leader has it (a base, whole or sharded, must be the same everywhere: see check_same). A sharded base
    moves to the device block by block, so it may come on the CPU; what model.named_trainable_parameters() gives are then the shards,
    and an optimizer is built after this. Raises Error for what does not go with a sharded base.
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
    return nn.parallel.DistributedDataParallel(_Loss(model), init_sync=False)  # no sync: it would send the frozen base as well


def _shard(model, device: torch.device) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    base = model.base
    if base.through_compile:
        raise Error("a sharded base cannot be compiled: its weights come and go between the compiled parts")
    if isinstance(base, FSDPModule):
        return
    mesh = init_device_mesh(device.type, (world_size(),))
    for block in base.h:  # the last one's weights are wanted again at once, by its backward pass
        fully_shard(block, mesh=mesh, reshard_after_forward=block is not base.h[-1])
    fully_shard(base, mesh=mesh)  # what is left, embeddings, last norm and head: whole from the first use to the end of backward
    register_fsdp_forward_method(base, "hidden")
    try:
        with torch.no_grad():
            model.method.to(device)
            model.slots()
    except RuntimeError:
        raise Error(f"{model.method.name} in this form reads the blocks' weights outside of their turn, so its base stays whole") from None


def reshard(base: GPT) -> None:
    """Give back the weights that forward passes without a backward one have left whole: after every evaluation of a sharded base."""
    for module in _sharded_parts(base):
        module.reshard()


def _sharded_parts(base: GPT) -> list:
    if world_size() == 1:
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in base.modules() if isinstance(module, FSDPModule)]


def full_tensor(t: Tensor) -> Tensor:
    """A sharded tensor (of any method `full`'s parameters, gradients, moments) as all processes hold it together; others as they are."""
    return t.detach().full_tensor() if hasattr(t, "full_tensor") else t


def collected(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """For saving: on the leader all of them whole, on its CPU where they were sharded; on the others nothing. One is whole at a time."""
    kept = {}
    for name, t in tensors.items():
        w = full_tensor(t)
        if is_main_process():
            kept[name] = w.cpu() if w is not t else t
    return kept


def placed(full: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor that all of them have, sharded as `like` is; with a `like` that is not, the tensor itself."""
    if not hasattr(like, "full_tensor"):
        return full
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def full_base(base: GPT) -> GPT | None:
    """For saving and answering: a sharded base's plain copy on the leader's CPU, None on the others; another base as it is."""
    if not _sharded_parts(base):
        return base
    reshard(base)
    tensors = collected(base.state_dict())
    if not is_main_process():
        return None
    with torch.device("meta"):
        copy = GPT(base.config)
    copy.load_state_dict(tensors, assign=True)
    return copy
