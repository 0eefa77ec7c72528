"""Head and loss in one against the two written out: value, both gradients, and what it never does."""

import math
import shutil

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch.func import grad, hessian, jacfwd, jvp, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from minipeft import Error
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
    assert 0 < largest.numel <= N * module.VOCABULARY_CHUNK < N * V


def test_nothing_supervised_is_nan_as_everywhere_in_torch():
    x, weight, _ = case(torch.float32)
    assert math.isnan(linear_cross_entropy(x.detach(), weight.detach(), torch.full((N,), -100)))


@pytest.mark.parametrize("bad", [-1, V, -101, 2**62])
def test_a_target_outside_the_vocabulary_is_refused(bad):
    x, weight, targets = case(torch.float32)
    targets[3] = bad
    with pytest.raises(Error, match=f"targets must lie in 0 … {V - 1}, or be -100 where not supervised, but they span"):
        linear_cross_entropy(x, weight, targets)
    with torch.no_grad(), pytest.raises(Error, match="targets must lie in"):
        linear_cross_entropy(x, weight, targets)


def twice(f, x, weight, targets):
    """The derivative of a function of the gradients."""
    found = torch.autograd.grad(f(x, weight, targets), (x, weight), create_graph=True)
    return torch.autograd.grad(sum((g * y).sum() for g, y in zip(found, (x, weight), strict=True)), (x, weight))


def tangent(f, x, weight, targets):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, torch.ones_like(x)), weight, targets)).tangent


def scaled(f, x, weight, targets):
    """A derivative in a factor of the loss, through its gradient."""
    factor = torch.tensor(2.0, dtype=x.dtype, requires_grad=True)
    found = torch.autograd.grad(factor * f(x, weight, targets), (x, weight), create_graph=True)
    return torch.autograd.grad(found[0].pow(3).sum(), factor)


DERIVATIVES = {
    "twice": twice,
    "twice, frozen head": lambda f, x, w, t: twice(lambda x, w, t: f(x, w.detach(), t) + w.sum(), x, w, t),
    "twice, frozen states": lambda f, x, w, t: twice(lambda x, w, t: f(x.detach(), w, t) + x.sum(), x, w, t),
    "functional.hessian": lambda f, x, w, t: torch.autograd.functional.hessian(lambda x: f(x, w, t), x),
    "tangent": tangent,
    "tangent, nothing trained": lambda f, x, w, t: tangent(f, x.detach(), w.detach(), t),
    "tangent of the head": lambda f, x, w, t: tangent(lambda w, x, t: f(x, w, t), w.detach(), x.detach(), t),
    "jvp": lambda f, x, w, t: jvp(lambda x: f(x, w, t), (x,), (torch.ones_like(x),)),
    "jacfwd": lambda f, x, w, t: jacfwd(f)(x, w, t),
    "hessian": lambda f, x, w, t: hessian(f)(x, w, t),
    "grad": lambda f, x, w, t: grad(f)(x, w, t),
    "grad of grad": lambda f, x, w, t: grad(lambda x: grad(f)(x, w, t).pow(2).sum())(x),
    "vjp": lambda f, x, w, t: vjp(lambda w: f(x, w, t), w)[1](torch.ones((), dtype=x.dtype)),
    "vmap": lambda f, x, w, t: vmap(f, (0, None, 0))(x.detach()[:, None], w.detach(), t[:, None]),
    "vmap of grad": lambda f, x, w, t: vmap(grad(f), (0, None, 0))(x[:, None], w, t[:, None]),
    "in a factor": scaled,
}
RIGHT = {"vmap", "in a factor"}


@pytest.mark.parametrize("name", DERIVATIVES)
@pytest.mark.filterwarnings("ignore")
def test_other_derivatives_are_right_or_refused(name):
    x, weight, targets = case(torch.float64, supervised=1.0)
    x, weight, targets = x.detach()[:3].requires_grad_(), weight.detach()[:9].requires_grad_(), targets[:3] % 9
    exact = DERIVATIVES[name](written_out, x, weight, targets)
    try:
        found = DERIVATIVES[name](linear_cross_entropy, x, weight, targets)
    except (Error, RuntimeError) as e:  # torch.func has its own words for a function that is not made for it
        assert name not in RIGHT and "\n" not in str(e)
        assert isinstance(e, Error) or "functorch" in str(e)
    else:
        assert name in RIGHT
        torch.testing.assert_close(found, exact)


@pytest.mark.slow
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


def test_distillation_multiplies_in_autocasts_dtype(monkeypatch):
    seen, product = set(), module.product
    monkeypatch.setattr(module, "product", lambda a, b: (seen.add(a.dtype), product(a, b))[1])
    x, teacher, weight = torch.randn(5, 6, requires_grad=True), torch.randn(5, 6), torch.randn(11, 6)
    with torch.autocast("cpu", torch.bfloat16):
        module.distillation_loss(x, teacher, weight, torch.ones(5, dtype=torch.bool))
    assert seen == {torch.bfloat16}
