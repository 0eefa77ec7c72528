"""Head and loss in one against the two written out: value, both gradients, and what it never does."""

import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from minipeft import loss as module
from minipeft.loss import linear_cross_entropy

N, C, V = 37, 16, 5000  # two whole chunks of the vocabulary and a part of one


def case(dtype, supervised=0.6, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(N, C, generator=g).to(dtype), torch.randn(V, C, generator=g).to(dtype)
    targets = torch.randint(V, (N,), generator=g)
    targets[torch.rand(N, generator=g) >= supervised] = -100
    return x.requires_grad_(), weight.requires_grad_(), targets


def written_out(x, weight, targets):
    return F.cross_entropy(x @ weight.T, targets, ignore_index=-100)


@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-13), (torch.float32, 2e-6)])
@pytest.mark.parametrize("supervised", [1.0, 0.4])
def test_loss_and_gradients(dtype, bound, supervised):
    x, weight, targets = case(dtype, supervised)
    exact = written_out(x.double(), weight.double(), targets)
    loss = linear_cross_entropy(x, weight, targets)
    assert abs(float((loss - exact).detach())) <= bound * float(exact.detach())
    grads, wanted = (torch.autograd.grad(3 * y, (x, weight)) for y in (loss, exact))
    for got, want in zip(grads, wanted, strict=True):
        assert (got - want).norm() <= bound * want.norm()
    assert not grads[0][targets == -100].any()


def test_bfloat16_loses_no_more_than_the_plain_head():
    x, weight, targets = case(torch.bfloat16)
    exact = torch.autograd.grad(written_out(x.double(), weight.double(), targets), (x, weight))
    plain = torch.autograd.grad(F.cross_entropy((x @ weight.T).float(), targets), (x, weight))
    ours = torch.autograd.grad(linear_cross_entropy(x, weight, targets), (x, weight))
    for a, b, c in zip(ours, plain, exact, strict=True):
        assert (a.double() - c.double()).norm() <= 1.1 * (b.double() - c.double()).norm()


def test_under_autocast():
    x, weight, targets = case(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(x, weight, targets)
        plain = F.cross_entropy((x @ weight.T).float(), targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain, rtol=1e-3, atol=0)
    exact = torch.autograd.grad(written_out(x.double(), weight.double(), targets), (x, weight))
    for got, want, wanted in zip(*(torch.autograd.grad(y, (x, weight)) for y in (loss, plain)), exact, strict=True):
        assert got.dtype == torch.float32
        assert 0 < (got - wanted).norm() <= 1.1 * (want - wanted).norm()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_known_is_left_alone(dtype, autocast):
    """Where the right token is certain, loss and gradients are zero in any dtype: the rounding cancels."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(V, 64, generator=g).to(dtype).requires_grad_()
    targets = torch.randint(V, (N,), generator=g)
    x = weight.detach()[targets].clone().requires_grad_()  # the logit of the target is some 64, all others some 8
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = linear_cross_entropy(x, weight, targets)
    dx, dweight = torch.autograd.grad(loss, (x, weight))
    assert 0 <= loss.item() < 1e-6 and dx.norm() < 1e-5 and dweight.norm() < 1e-5


def test_a_frozen_head_gets_no_gradient_and_keeps_nothing():
    x, weight, targets = case(torch.float32)
    loss = linear_cross_entropy(x, weight.detach(), targets)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        loss = linear_cross_entropy(x, weight.detach(), targets)
    assert [t.shape for t in saved] == [x.shape]  # its own gradient, and no logits
    loss.backward()
    assert x.grad is not None and weight.grad is None


def test_no_logit_matrix_ever_exists():
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(t, torch.Tensor) and t.shape != (V, C):
                    self.numel = max(self.numel, t.numel())
            return out

    x, weight, targets = (t.detach() for t in case(torch.float32, 1.0))
    with Largest() as largest:
        _, _, lse = module._head_loss._init_fn(x, weight, targets, x.dtype, True)
        module._dweight._init_fn(x, weight, targets, x.dtype, lse, torch.tensor(1.0))
    assert 0 < largest.numel <= N * module.CHUNK < N * V


def test_nothing_supervised_is_nan_as_everywhere_in_torch():
    x, weight, _ = case(torch.float32)
    assert math.isnan(linear_cross_entropy(x.detach(), weight.detach(), torch.full((N,), -100)))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_other_supervised_positions_are_no_other_program():
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(lambda x, w, t: 2 * linear_cross_entropy(x, w, t), fullgraph=True)
    for seed in range(4):
        x, weight, targets = case(torch.float32, 0.5, seed)
        got = torch.autograd.grad(compiled(x, weight, targets), (x, weight))
        want = torch.autograd.grad(2 * written_out(x, weight, targets), (x, weight))
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
