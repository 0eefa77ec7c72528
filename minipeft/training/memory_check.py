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
    """Raise Error when training needs more memory than is left: for activations, measured on one
    and two rows of `longest`, the longest example, and for gradients and AdamW's two moments,
    computed.
    """
    device, dtype, base = args.device, getattr(torch, args.dtype), model.base
    rows = -(-batch_size // world_size())

    def saved(forward) -> tuple[int, int]:
        """Bytes that forward(idx, targets) saves a row, and once (weights in another dtype)."""
        batches = [[t.to(device) for t in collate(n * [longest], fill)] for n in range(1, min(rows, 2) + 1)]
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            one, *two = (saved_bytes(lambda b=b: forward(*b), model.parameters()) for b in batches)
        return (two[0] - one, 2 * one - two[0]) if two else (one, 0)

    def block(idx, _):
        S = idx.size(1) + model.method.positions_taken
        x = base.wte.weight.new_zeros(len(idx), S, base.config.n_embd).requires_grad_()
        x, ropes = base.add_positions(x)
        return base.h[0](x, ropes[0])

    row, once = saved(model.loss)
    if base.checkpointed:  # backward runs one block after the other again, which then saves all it needs
        row, once = (a + b for a, b in zip((row, once), saved(block), strict=True))
    trained = sum(p.numel() * p.element_size() for p in model.trainable_parameters())
    need = rows * row + once + (4 if args.keep_best else 3) * trained
    left = available_memory(device)
    if left is not None and device.type == "cpu":
        left //= local_world_size()  # all take from the same
    if left is not None and need > left:
        needed, there, each, rest = map(format_gigabytes, (need, left, row, need - rows * row))
        copies = "" if dtype == torch.float32 else f", and copies of weights in {args.dtype}"
        raise Error(f"training needs {needed} more memory, and {there} are left: {each} for each "
                    f"of {rows} examples, {rest} for gradients and moments{copies}; lower {LOWER}")
