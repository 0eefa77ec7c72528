# a storage was counted twice
"""Saved bytes: the activations that autograd keeps for backward, with and without checkpointing."""

from collections.abc import Callable, Iterable

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint


def run(blocks: list[nn.Module], x: Tensor, checkpointed: bool) -> Tensor:
    """Apply the blocks in turn. checkpointed: save each block's input alone, and run each block again in backward.

    One block: checkpoint(block, x, use_reentrant=False).
    """
    for block in blocks:
        x = checkpoint(block, x, use_reentrant=False) if checkpointed else block(x)
    return x


def saved_bytes(forward: Callable[[], Tensor], parameters: Iterable[Tensor]) -> int:
    """Bytes that autograd saves in forward(), each storage once, without those of the parameters.

    Inside `with saved_tensors_hooks(pack, unpack):` every tensor t that is saved goes through pack(t), and
    comes back by unpack. Of a tensor, t.untyped_storage() has .data_ptr(), which names it, and .nbytes().
    """
    parameters, sizes = {p.untyped_storage().data_ptr() for p in parameters}, {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in parameters:
            sizes[len(sizes)] = storage.nbytes()
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        y = forward()  # as long as y lives, so does what was saved
    assert y.requires_grad
    return sum(sizes.values())
