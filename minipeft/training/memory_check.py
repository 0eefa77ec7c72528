"""The memory that training will need, checked before it begins."""

import torch

from ..checks import Error
from ..data.encoding import collate
from ..runtime.memory import available_memory, format_gigabytes
from ..runtime.processes import local_world_size, world_size
from ..runtime.profiling import saved_bytes

LOWER = ("--batch-size or --max-length, or try --gradient-checkpointing, --dtype bfloat16 "
         "or --base-dtype bfloat16")


def check_memory(args, model, longest, fill: int, batch_size: int) -> None:
    """Raise Error when training needs more memory than is left: for activations, measured on
    `longest`, the longest example, and for gradients and AdamW's two moments, computed.
    """
    device, dtype = args.device, getattr(torch, args.dtype)
    idx, targets = (t.to(device) for t in collate([longest], fill))
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        row = saved_bytes(lambda: model.loss(idx, targets), model.parameters())
    trained = sum(p.numel() * p.element_size() for p in model.trainable_parameters())
    rows = -(-batch_size // world_size())
    need, left = rows * row + (4 if args.keep_best else 3) * trained, available_memory(device)
    if left is not None and device.type == "cpu":
        left //= local_world_size()  # all take from the same
    if left is not None and need > left:
        needed, there, each, moments = map(format_gigabytes, (need, left, row, need - rows * row))
        raise Error(f"training needs {needed} more memory, and {there} are left: {each} for each "
                    f"of {rows} examples, {moments} for gradients and moments; lower {LOWER}")
