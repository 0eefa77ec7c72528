"""Products by oneDNN are F.linear's: values, all derivatives, what is saved; copies for inference are never stale."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from minipeft import GPT, GPTConfig, adapt, generate
from minipeft.runtime import matmul
from minipeft.runtime.matmul import packed, product

needs_onednn = pytest.mark.skipif(not matmul.HAS_ONEDNN, reason="this torch has no oneDNN")


@pytest.fixture
def onednn(monkeypatch):
    """Every product by oneDNN, the small ones of tests too; counts the calls."""
    calls, operator = [], matmul.onednn

    def counted(*args):
        calls.append(args[0].shape)
        return operator(*args)

    monkeypatch.setattr(matmul, "LIBRARY", "onednn")
    monkeypatch.setattr(matmul, "LEAST", 1)
    monkeypatch.setattr(matmul, "onednn", counted)
    return calls


def tensors(*shape, bias=True):
    torch.manual_seed(0)
    x, weight = torch.randn(*shape[:-1]), torch.randn(shape[-1], shape[-2])
    return [x, weight, torch.randn(shape[-1])] if bias else [x, weight, None]


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 7, 3), (2, 3, 8, 16), (1, 1, 4)])
def test_the_value_and_all_gradients_are_those_of_float64(onednn, shape, bias):
    inputs = [t.requires_grad_() if t is not None else None for t in tensors(*shape, bias=bias)]
    double = [t.detach().double().requires_grad_() if t is not None else None for t in inputs]
    upstream = torch.randn(*shape[:-2], shape[-1])
    y, exact = product(*inputs), F.linear(*double)
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=2e-6)
    wanted = torch.autograd.grad(exact, [t for t in double if t is not None], upstream.double())
    found = torch.autograd.grad(y, [t for t in inputs if t is not None], upstream)
    assert len(onednn) == 3  # y, dx, dW
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=5e-6)


@needs_onednn
def test_views_and_expanded_gradients(onednn):
    x, weight, bias = tensors(6, 10, 8)
    x, weight = x.T.contiguous().T.requires_grad_(), weight.T.contiguous().T.requires_grad_()
    for upstream in (torch.ones(()).expand(6, 8), torch.randn(8, 6).T):
        found = torch.autograd.grad(product(x, weight, bias), [x, weight], upstream)
        wanted = torch.autograd.grad(F.linear(x, weight, bias), [x, weight], upstream)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b)


@needs_onednn
def test_a_bias_that_does_not_lie_in_one_piece(onednn):
    x, weight, bias = tensors(6, 10, 8)
    apart = torch.stack([bias, bias.flip(0)], dim=1)[:, 0]
    torch.testing.assert_close(product(x, weight, apart), product(x, weight, bias))
    torch.testing.assert_close(product(x, weight, bias[:1].expand(8)), F.linear(x, weight, bias[:1].expand(8)))


@needs_onednn
def test_a_single_vector(onednn):
    x, weight, bias = (t.requires_grad_() for t in tensors(1, 10, 8))
    found = torch.autograd.grad(product(x[0], weight, bias).sum(), [x, weight, bias])
    for a, b in zip(found, torch.autograd.grad(F.linear(x[0], weight, bias).sum(), [x, weight, bias]), strict=True):
        torch.testing.assert_close(a, b)


@needs_onednn
def test_second_and_forward_derivatives_and_torch_func(onednn):
    x, weight, bias = tensors(4, 6, 5)

    def curved(x, f=product):
        return f(x, weight, bias).sin().square().sum()

    def reference(x):
        return curved(x, F.linear)

    x = x.requires_grad_()
    second = [torch.autograd.grad(torch.autograd.grad(f(x), x, create_graph=True)[0].square().sum(), x)[0]
              for f in (curved, reference)]
    torch.testing.assert_close(*second, rtol=1e-4, atol=1e-4)
    x = x.detach()
    for transform in (torch.func.grad, torch.func.hessian):
        torch.testing.assert_close(transform(curved)(x), transform(reference)(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.func.jvp(curved, (x,), (x,)), torch.func.jvp(reference, (x,), (x,)))
    torch.testing.assert_close(torch.vmap(curved)(x[:, None]), torch.vmap(reference)(x[:, None]))


@needs_onednn
def test_a_frozen_weight_saves_no_input(onednn):
    x, weight, bias = tensors(4, 6, 5)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        product(x.requires_grad_(), weight, bias)
    assert [t.data_ptr() for t in saved] == [weight.data_ptr()]


@needs_onednn
def test_other_dtypes_autocast_and_other_tensors_are_left_to_torch(onednn):
    x, weight, bias = tensors(4, 6, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert product(x, weight, bias).dtype == torch.bfloat16
    for dtype in (torch.float64, torch.bfloat16):
        assert product(x.to(dtype), weight.to(dtype), bias.to(dtype)).dtype == dtype
    assert product(x.to("meta"), weight.to("meta")).shape == (4, 5)
    assert onednn == []


@needs_onednn
def test_flops_are_counted_as_of_a_linear_layer(onednn):
    counts = []
    for f in (product, F.linear):
        x, weight, bias = (t.requires_grad_() for t in tensors(2, 4, 6, 5))
        with FlopCounterMode(display=False) as counter:
            f(x, weight, bias).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 3 * 2 * 2 * 4 * 6 * 5


@needs_onednn
def test_compiled_products_are_the_same(onednn):
    x, weight, bias = (t.requires_grad_() for t in tensors(8, 16, 4))

    def gradients(f):
        return torch.autograd.grad(f(x, weight, bias).square().sum(), [x, weight, bias])

    run = torch.compile(product, fullgraph=True, backend="aot_eager")
    gradients(run)  # compiles
    with torch.profiler.profile() as profile:
        found = gradients(run)
    for a, b in zip(found, gradients(F.linear), strict=True):
        torch.testing.assert_close(a, b)
    assert next(e.count for e in profile.key_averages() if e.key == "minipeft::product") == 3


@pytest.mark.parametrize(("vendor", "instructions", "wanted", "library"), [
    ("AMD", "AVX512", "", "onednn"), ("AMD", "AVX2", "", "auto"), ("Intel", "AVX512", "", "auto"),
    ("Intel", "AVX512", "onednn", "onednn"), ("AMD", "AVX512", "torch", "torch"), ("AMD", "AVX512", "mkl", "onednn")])
def test_the_library_is_chosen_by_the_cpu_or_the_user(monkeypatch, capsys, vendor, instructions, wanted, library):
    monkeypatch.setattr(matmul, "HAS_ONEDNN", True)
    monkeypatch.setattr(matmul, "cpu", lambda: ("some CPU", vendor, ""))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    monkeypatch.setenv("MINIPEFT_MATMUL", wanted)
    assert matmul._choose() == library
    said = "MINIPEFT_MATMUL must be one of auto, torch, onednn, not 'mkl': taking auto\n"
    assert capsys.readouterr().err == (said if wanted == "mkl" else "")


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_give_the_same_product_until_they_change(onednn, dtype):
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN has no bfloat16 on this CPU")
    x, weight, bias = (t.to(dtype) for t in tensors(2, 32, 16))
    exact = F.linear(x.double(), weight.double(), bias.double())
    bound = 1e-5 if dtype == torch.float32 else 0.1
    with packed([weight], rows=2):
        assert len(matmul._packed) == 1
        with torch.no_grad():
            torch.testing.assert_close(product(x, weight, bias).double(), exact, rtol=0, atol=bound)
            assert len(onednn) == 1
            weight.zero_()
            torch.testing.assert_close(product(x, weight, bias), bias.expand(2, -1))
        weight.requires_grad_()
        assert product(x, weight).requires_grad  # with gradients, the weight itself
    assert not matmul._packed
    layer = torch.nn.Linear(32, 16, dtype=dtype)
    with packed([layer.weight], rows=2), torch.no_grad():
        layer.to(torch.float32 if dtype == torch.bfloat16 else torch.bfloat16)  # counts no version
        x = x.to(layer.weight.dtype)
        torch.testing.assert_close(product(x, layer.weight), F.linear(x, layer.weight), rtol=0, atol=0.1)


@needs_onednn
def test_generation_packs_and_leaves_nothing(onednn, monkeypatch):
    torch.manual_seed(0)
    base = GPT(GPTConfig(50, 64, n_layer=2, n_head=2, n_embd=32))
    model = adapt(base, "prefix", num_virtual_tokens=3)
    idx, seen = torch.randint(50, (2, 5)), []
    monkeypatch.setattr(matmul, "_copy_of", lambda w, x, found=matmul._copy_of: seen.append(found(w, x)) or seen[-1])
    new = generate(model, idx, 20)
    assert sum(copy is not None for copy in seen) == 20 + 19 * 4 * 2  # each head and linear but those of the first pass
    assert not matmul._packed
    with torch.no_grad():  # every token is the one of the whole sequence's logits
        assert torch.equal(model(new[:, :-1]).argmax(-1)[:, 4:], new[:, 5:])


@needs_onednn
@pytest.mark.parametrize(("library", "supported", "packs"), [
    ("onednn", True, 2), ("onednn", False, 1), ("auto", True, 1), ("auto", False, 0), ("torch", True, 0)])
def test_copies_are_made_where_the_cpu_is_faster_with_them(monkeypatch, library, supported, packs):
    monkeypatch.setattr(matmul, "LIBRARY", library)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported, raising=False)
    with packed([torch.randn(16, 32), torch.randn(16, 32, dtype=torch.bfloat16)], rows=1):
        assert len(matmul._packed) == packs


@needs_onednn
def test_no_copies_without_the_memory_for_them(onednn, monkeypatch):
    monkeypatch.setattr(matmul, "available_memory", lambda device: 4 * 16 * 32)
    weight = torch.randn(16, 32)
    with packed([weight], rows=1):
        assert not matmul._packed
