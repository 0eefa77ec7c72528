"""Tests of saved.py."""

import torch
from torch import nn

from docs.exercises.harness import check, random
from minipeft.runtime import profiling


def model():
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(6, 24), nn.GELU(), nn.Linear(24, 6)).double() for _ in range(3)]
    return blocks, [p for block in blocks for p in block.parameters()]


def plain(blocks, x):
    for block in blocks:
        x = block(x)
    return x


def views(x):
    a = x * 1  # one storage, of which two views are saved
    return (a[:2] ** 2).sum() + (a[2:] ** 3).sum()


def test_bytes_of_a_forward_pass(answer):
    blocks, parameters = model()
    x = random(5, 6).requires_grad_()
    want = profiling.saved_bytes(lambda: plain(blocks, x), parameters)
    got = answer.saved_bytes(lambda: plain(blocks, x), parameters)
    weights = sum(p.nbytes for p in parameters if p.dim() == 2)
    check(got != want // 8, f"{got} elements were counted: an element of float64 has 8 bytes")
    check(got != want + weights, f"{got - want} bytes too many: the weights are saved as well, but they are in memory "
          "anyway: leave the parameters' storages out")
    check(got == want, f"{got} bytes, and {want} are saved")


def test_views_share_a_storage(answer):
    x = random(4, 6).requires_grad_()
    got = answer.saved_bytes(lambda: views(x), [x])
    check(got != 2 * 192, "a storage was counted twice: two views of it are saved, its bytes are there "
          "once. A view has a data_ptr() of its own: ask t.untyped_storage().data_ptr()")
    check(got == 192, f"{got} bytes, and 192 are saved: one storage of 24 elements")


def test_with_checkpointing(answer):
    blocks, parameters = model()
    x = random(5, 6).requires_grad_()
    outputs = [answer.run(blocks, x, on) for on in (False, True)]
    check(torch.equal(*outputs), "checkpointing changes the output: the same blocks must run")
    ran = []
    handles = [block.register_forward_pre_hook(lambda *_, i=i: ran.append(i)) for i, block in enumerate(blocks)]
    got = profiling.saved_bytes(lambda: answer.run(blocks, x, True), [*parameters, x])
    full = profiling.saved_bytes(lambda: plain(blocks, x), [*parameters, x])
    check(got != full, f"with checkpointing {got} bytes are saved, as many as without: it is not switched on")
    ran.clear()
    answer.run(blocks, x, True).sum().backward()
    for handle in handles:
        handle.remove()
    again = ran[3:]
    check(again != [0, 1, 2], "there is one checkpoint around all blocks: backward then runs all of them again "
          "before its first step, and holds all their activations at once. Checkpoint every block by itself")
    check(again == [2, 1, 0], f"in backward the blocks ran again in the order {again}, and should in [2, 1, 0]")
    check(got == 2 * 240, f"with checkpointing {got} bytes are saved, and should be 480: the inputs of blocks 1 and 2")
