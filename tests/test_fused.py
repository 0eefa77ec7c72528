"""The fused kernel against the textbook in float64: forward and every gradient, over random and edge shapes."""

import functools
import random
import shutil

import pytest
import test_attention
import torch
from conftest import quick

from minipeft import Error, attention, prefix_attention
from minipeft.fused import fused_attention, query_spans
from minipeft.runtime.profiling import saved_bytes

EDGES = [  # B, nh, n_kv, Tq, Tk, P, hs, batch of the prefix
    (2, 2, 2, 1, 1, 0, 8, 1),
    (2, 2, 2, 1, 1, 1, 8, 2),
    (1, 2, 1, 1, 40, 512, 8, 1),
    (2, 2, 2, 33, 33, 512, 16, 2),
    (2, 4, 2, 129, 129, 1, 8, 1),
    (2, 4, 1, 131, 200, 5, 8, 2),
    (2, 4, 2, 100, 300, 0, 8, 1),
    (1, 2, 2, 257, 257, 20, 32, 1),
    (3, 2, 2, 64, 65, 3, 8, 1),
]


def drawn(n: int) -> list[tuple]:
    rng = random.Random(0)
    shapes = []
    for _ in range(n):
        n_kv, group, B = rng.choice([1, 2, 3]), rng.choice([1, 1, 2, 4]), rng.choice([1, 2, 3])
        Tq = rng.choice([1, 2, 3, 5, 7, 17, 31, 64, 65, 97, 130])
        Tk = Tq + rng.choice([0, 0, 1, 6, 50])
        P = rng.choice([0, 1, 2, 5, 20, 33])
        shapes.append((B, n_kv * group, n_kv, Tq, Tk, P, rng.choice([4, 8, 16]), rng.choice([1, B])))
    return shapes


def tensors(shape, seed=0):
    """q, k, v, prefix_k, prefix_v, gate and a gradient from above, float64."""
    given = test_attention.tensors(*shape, seed=seed)
    return given, torch.randn(given[0].shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)


def gradients(given, upstream, run):
    """The output and all gradients of run(*given), in float64; of no prefix and no gate there are none."""
    given = [x.detach().clone().requires_grad_() for x in given]
    out = run(*given)
    used = [x for x in given if x.numel()]
    found = torch.autograd.grad(out, used, upstream.to(out.dtype), allow_unused=True)
    return [
        x.detach().double()
        for x in (out, *(torch.zeros_like(u) if f is None else f for u, f in zip(used, found, strict=True)))
    ]


def rounded(shape, dtype, gated, seed=0):
    """Inputs that are exact in dtype, so that float64 works on the very same numbers."""
    given, upstream = tensors(shape, seed)
    given = given if gated else given[:5]
    return [x.to(dtype) for x in given], upstream.to(dtype)


def textbook(given, upstream):
    return gradients(
        [x.double() for x in given], upstream.double(), lambda *a: prefix_attention(*a, backend="reference")
    )


def eager(q, k, v, pk, pv, gate=None, prefix_bias=None):
    return fused_attention(q, k, v, pk, pv, gate, through_compile=False, prefix_bias=prefix_bias)


@pytest.mark.parametrize("gated", [False, True])
def test_float32_is_the_textbook_to_rounding_over_200_shapes(gated):
    shapes = EDGES + drawn(110)  # 119 shapes, gated and not
    for i, shape in enumerate(shapes):
        given, upstream = rounded(shape, torch.float32, gated, seed=i)
        for got, exact in zip(gradients(given, upstream, eager), textbook(given, upstream), strict=True):
            # relative to the tensor's size; where the exact gradient is zero (one key: softmax is constant), to one
            assert (got - exact).norm() <= 2e-5 * max(float(exact.norm()), 1.0), shape


@pytest.mark.parametrize("gated", [False, True])
@torch.no_grad()
def test_flash_is_the_textbook_to_rounding_too(gated):
    lost = {"flash": 0.0, "sdpa": 0.0}
    for i, shape in enumerate(EDGES + drawn(110)):
        given, _ = rounded(shape, torch.float32, gated, seed=i)
        exact = prefix_attention(*(x.double() for x in given), backend="reference")
        got = prefix_attention(*given, backend="flash")
        assert (got - exact).norm() <= 2e-5 * max(float(exact.norm()), 1.0), shape
        low = [x.bfloat16() for x in given]
        exact = prefix_attention(*(x.double() for x in low), backend="reference")
        for backend in lost:
            lost[backend] += float((prefix_attention(*low, backend=backend) - exact).square().sum() / exact.numel())
    assert lost["flash"] ** 0.5 <= 2 * lost["sdpa"] ** 0.5


@pytest.mark.parametrize("gated", quick([False, True], False))
def test_bfloat16_loses_at_most_twice_what_sdpa_loses(gated):
    names = ("output", "dq", "dk", "dv", "dprefix_k", "dprefix_v", "dgate")
    lost = {name: [0.0, 0.0] for name in names}
    for i, shape in enumerate(shape for shape in EDGES + drawn(110) if shape[5]):
        given, upstream = rounded(shape, torch.bfloat16, gated, seed=i)
        exact = textbook(given, upstream)
        for which, run in enumerate((eager, lambda *a: prefix_attention(*a, backend="sdpa"))):
            for name, a, b in zip(names, gradients(given, upstream, run), exact, strict=False):
                # where the exact gradient vanishes (softmax over one key), against one of ordinary size
                lost[name][which] += float((a - b).square().sum()) / max(float(b.square().sum()), 0.05 * b.numel())
    for name, (ours, sdpa) in lost.items():
        assert ours**0.5 <= 2 * sdpa**0.5, name


@pytest.mark.parametrize("gated", quick([False, True], True))
def test_gradcheck(gated):
    given, _ = tensors((2, 4, 2, 5, 7, 3, 4, 2))
    given = [x.requires_grad_() for x in (given if gated else given[:5])]
    assert torch.autograd.gradcheck(eager, given)


@pytest.mark.parametrize("Bp", [1, 2])
def test_gradcheck_with_a_bias(Bp):
    given = [x.requires_grad_() for x in (*tensors((2, 4, 2, 5, 7, 3, 4, Bp))[0][:5], torch.randn(Bp, 2, 3).double())]
    assert torch.autograd.gradcheck(lambda *x: eager(*x[:5], prefix_bias=x[5]), given)


def test_only_what_backward_needs_is_kept():
    """q, k, v, the prefix, o and lse: linear in T, and no prefix for each row of the batch."""

    def kept(B, T, P):
        q, k, v, pk, pv = (x.float().requires_grad_() for x in tensors((B, 4, 4, T, T, P, 8, 1))[0][:5])
        return saved_bytes(lambda: eager(q, k, v, pk, pv), [])

    for B, T, P in [(1, 130, 6), (3, 130, 6), (3, 260, 6), (3, 260, 60)]:
        tokens, prefix, rows = B * T * 32, P * 32, B * T * 4
        assert kept(B, T, P) == 4 * (4 * tokens + 2 * prefix + rows)


def test_what_needs_no_gradient_gets_none():
    given, upstream = tensors((2, 2, 2, 5, 5, 3, 4, 1))
    exact = gradients(given[:5], upstream, lambda *a: prefix_attention(*a, backend="reference"))
    for part in (slice(0, 3), slice(3, 5)):
        needed = [x.clone().requires_grad_() for x in given[part]]
        args = list(given[:5])
        args[part] = needed
        found = torch.autograd.grad(eager(*args), needed, upstream)
        torch.testing.assert_close(list(found), exact[1:][part])


@pytest.mark.parametrize("gated", [False, True])
def test_other_derivatives_are_refused_and_right_without_gradients(gated):
    given = tuple(tensors((2, 4, 2, 5, 5, 3, 4, 1))[0][: 6 if gated else 5])
    reference = functools.partial(prefix_attention, backend="reference")
    q, *rest = (x.clone().requires_grad_() for x in given)

    def twice(run):
        found = torch.autograd.grad(run(q, *rest).sum(), (q, *rest), create_graph=True)
        return torch.autograd.grad((found[0] * q).sum(), q)

    with pytest.raises(Error, match="first derivatives only"):  # silently half of it, with once_differentiable
        twice(eager)
    twice(reference)
    tangents = tuple(torch.ones_like(x) for x in given)
    others = [
        lambda run: torch.func.jvp(run, given, tangents),
        lambda run: torch.func.grad(lambda *a: run(*a).sum())(*given),
        lambda run: torch.func.vmap(lambda q: run(q, *given[1:]))(torch.stack([given[0], 2 * given[0]])),
    ]
    for transform in others:
        with pytest.raises(RuntimeError, match="functorch transforms"):
            transform(eager)
    with torch.no_grad():  # plain PyTorch
        for transform in (others[0], others[2]):
            torch.testing.assert_close(transform(eager), transform(reference))


def test_autocast_does_not_change_the_types():
    given, upstream = rounded((2, 2, 2, 5, 5, 3, 8, 1), torch.float32, True)
    plain = gradients(given, upstream, eager)
    with torch.autocast("cpu", torch.bfloat16):
        for got, want in zip(gradients(given, upstream, eager), plain, strict=True):
            torch.testing.assert_close(got, want)
        with torch.no_grad():
            torch.testing.assert_close(eager(*given).double(), plain[0])


def test_the_blocks_cover_every_position_once():
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for T in (1, 64, 96, 97, 128, 129, 500):
            assert [t for a, b in query_spans(T, dtype) for t in range(a, b)] == list(range(T))


def test_a_prefix_in_another_type_is_cast():
    given, _ = rounded((2, 2, 2, 5, 5, 3, 8, 1), torch.bfloat16, False)
    wide = [*given[:3], *(x.float().requires_grad_() for x in given[3:])]
    out = eager(*wide)
    assert out.dtype == torch.bfloat16 and torch.equal(out, eager(*given))
    out.sum().backward()
    assert wide[3].grad.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("gate", [None, torch.tensor([0.5, -1.0])])
def test_one_span_is_the_same_as_several(gate):
    g = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=g, dtype=torch.float64).requires_grad_()
             for shape in [(2, 2, 150, 8)] + 2 * [(2, 1, 160, 8)] + 2 * [(1, 1, 5, 8)]]
    upstream = torch.randn(2, 2, 150, 8, generator=g, dtype=torch.float64)
    assert len(query_spans(150, torch.float64)) > 1 == len(query_spans(150, torch.float64, whole=True))
    results = []
    for whole in (False, True):
        o = fused_attention(*given, gate, through_compile=False, whole=whole)
        results.append([o, *torch.autograd.grad(o, given, upstream)])
        with torch.no_grad():
            results[-1].append(fused_attention(*given, gate, through_compile=False, whole=whole))
    for several, one in zip(*results, strict=True):
        torch.testing.assert_close(one, several, rtol=0, atol=1e-12)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_is_the_same():
    """With a gate, grouped heads, several spans, and a prefix for each row. test_bench measures it without these."""
    given, upstream = rounded((2, 4, 2, 66, 80, 3, 8, 2), torch.float32, True)
    for got, exact in zip(
        gradients(given, upstream, lambda *a: prefix_attention(*a, backend="fused")),
        textbook(given, upstream),
        strict=True,
    ):
        assert (got - exact).norm() <= 2e-5 * exact.norm()


def test_without_a_compiler_the_same_code_runs_eagerly(monkeypatch):
    monkeypatch.setattr(attention, "can_compile", lambda device_type: False)
    monkeypatch.setattr(torch, "compile", lambda *a, **k: pytest.fail("torch.compile was asked for"))
    given, upstream = rounded((2, 2, 2, 5, 5, 3, 8, 1), torch.float64, False)
    torch.testing.assert_close(
        gradients(given, upstream, lambda *a: prefix_attention(*a, backend="fused")), textbook(given, upstream)
    )
