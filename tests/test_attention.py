"""prefix_attention against its equation, written out row by row, and the backends against each other."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minipeft import Error, prefix_attention
from minipeft.attention import causal_mask, should_split_in_inference
from minipeft.fused import Window

SHAPES = [  # B, nh, n_kv, Tq, Tk, P, hs, batch of the prefix
    (2, 4, 4, 7, 7, 3, 8, 1),
    (2, 4, 4, 7, 7, 3, 8, 2),
    (3, 4, 2, 5, 5, 1, 16, 1),
    (2, 4, 1, 1, 9, 4, 8, 2),
    (2, 2, 2, 3, 10, 5, 8, 1),
    (1, 2, 2, 1, 1, 2, 8, 1),
    (2, 2, 2, 6, 6, 0, 8, 1),
    (2, 2, 1, 2, 6, 0, 8, 1),
]


def tensors(B, nh, n_kv, Tq, Tk, P, hs, Bp, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = (B, nh, Tq, hs), (B, n_kv, Tk, hs), (B, n_kv, Tk, hs), (Bp, n_kv, P, hs), (Bp, n_kv, P, hs), (nh,)
    return [torch.randn(s, generator=g, dtype=dtype) for s in shapes]


def by_hand(q, k, v, pk, pv, gate=None, window=None):
    """The definition, one query at a time."""
    B, nh, Tq, hs = q.shape
    group, Tk = nh // k.size(1), k.size(2)
    o = torch.empty_like(q)
    for b in range(B):
        for h in range(nh):
            keys, values = k[b, h // group], v[b, h // group]
            pkeys, pvalues = (x[b if x.size(0) > 1 else 0, h // group] for x in (pk, pv))
            for t in range(Tq):
                n = Tk - Tq + t + 1  # this query sees its own position and those before
                seen = [i for i in range(n) if window is None or i > n - 1 - window.size or i < window.virtual]
                s = keys[seen] @ q[b, h, t] / math.sqrt(hs)
                sp = pkeys @ q[b, h, t] / math.sqrt(hs)
                if gate is None:
                    o[b, h, t] = torch.cat([sp, s]).softmax(0) @ torch.cat([pvalues, values[seen]])
                else:
                    o[b, h, t] = s.softmax(0) @ values[seen] + gate[h] * (sp.softmax(0) @ pvalues)
    return o


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("backend", ["reference", "sdpa", "flash", "auto"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_backend_is_the_definition(shape, backend, gated):
    *args, gate = tensors(*shape)
    gate = gate if gated else None
    with torch.set_grad_enabled(backend != "flash"):
        got = prefix_attention(*args, gate, backend=backend)
    torch.testing.assert_close(got, by_hand(*args, gate), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("backend", ["reference", "sdpa", "flash", "split", "auto"])
@pytest.mark.parametrize("window", [Window(1), Window(3), Window(3, 2), Window(2, 5), Window(6), Window(50, 1)])
@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[3], SHAPES[4], SHAPES[7]])
def test_every_backend_has_the_window(shape, window, backend, gated):
    """Shorter and longer than the text, with and without positions that it leaves visible."""
    *args, gate = tensors(*shape)
    gate = gate if gated and shape[5] else None
    exact = by_hand(*args, gate, window)
    with torch.no_grad():
        got = prefix_attention(*args, gate, backend=backend, window=window)
        torch.testing.assert_close(got, exact, rtol=1e-10, atol=1e-10)
    if backend != "flash":  # training takes other paths
        args = [x.requires_grad_() for x in args if x.numel()] if not shape[5] else [x.requires_grad_() for x in args]
        got = prefix_attention(*args, gate=gate, backend=backend, window=window)
        torch.testing.assert_close(got, exact, rtol=1e-10, atol=1e-10)
        reference = prefix_attention(*args, gate=gate, backend="reference", window=window)
        want = torch.autograd.grad(reference.sin().sum(), args)
        for a, b in zip(torch.autograd.grad(got.sin().sum(), args), want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("window", [Window(1), Window(40), Window(40, 3), Window(98), Window(100, 70), Window(300)])
def test_spans_of_a_long_text_have_the_window(window):
    """The kernel leaves out whole spans of keys, forward and backward, and still is the definition."""
    args = [x.requires_grad_() for x in tensors(1, 2, 1, 230, 237, 3, 4, 1)[:5]]
    got = prefix_attention(*args, backend="split", window=window)
    with torch.no_grad():
        torch.testing.assert_close(got, by_hand(*args, None, window), rtol=1e-10, atol=1e-10)
    want = torch.autograd.grad(prefix_attention(*args, backend="reference", window=window).sin().sum(), args)
    for a, b in zip(torch.autograd.grad(got.sin().sum(), args), want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_the_kernel_computes_less_under_a_window():
    def operations(window):
        args = [x.requires_grad_() for x in tensors(1, 2, 2, 1024, 1024, 0, 4, 1)[:3]]
        with FlopCounterMode(display=False) as counted:
            prefix_attention(*args, backend="split", window=window).sum().backward()
        return counted.get_total_flops()

    assert operations(Window(96)) < 0.4 * operations(None)


@pytest.mark.parametrize("backend", ["reference", "sdpa", "flash", "split"])
@pytest.mark.parametrize("Tq", [1, 3])
@torch.no_grad()
def test_rows_of_different_lengths_have_the_window_each(backend, Tq):
    *args, _ = tensors(4, 4, 2, Tq, 9, 5, 8, 4)
    length, window = torch.tensor([9, 5, 3, 7]), Window(3, 1)
    got = prefix_attention(*args, None, backend, None, length, window)
    for b, n in enumerate(length.tolist()):
        q, k, v, pk, pv = (x[b : b + 1] for x in args)
        want = by_hand(q, k[:, :, :n], v[:, :, :n], pk, pv, None, window)
        torch.testing.assert_close(got[b : b + 1], want, rtol=1e-10, atol=1e-10)


def test_what_is_no_window_is_refused():
    for wrong in (3, (3, 0), Window(0), Window(2, -1)):
        with pytest.raises(Error, match="^window must be a Window"):
            prefix_attention(*tensors(*SHAPES[0])[:5], window=wrong)


@pytest.mark.parametrize("gated", [False, True])
def test_gradients_of_sdpa_equal_the_reference(gated):
    grads = {}
    for backend in ("reference", "sdpa"):
        args = [x.requires_grad_() for x in tensors(2, 4, 2, 5, 8, 3, 8, 1)]
        out = prefix_attention(*args[:5], args[5] if gated else None, backend=backend)
        grads[backend] = torch.autograd.grad(out.sin().sum(), args[: 6 if gated else 5])
    torch.testing.assert_close(grads["sdpa"], grads["reference"], rtol=1e-9, atol=1e-9)


def test_flash_is_refused_where_its_gradients_would_be_wrong_or_it_does_not_run():
    args = tensors(*SHAPES[0])
    with pytest.raises(Error, match="for inference on a CPU"):
        prefix_attention(*args[:5], backend="flash")
    with torch.no_grad(), pytest.raises(Error, match="for inference on a CPU"):
        prefix_attention(*(x.to("meta") for x in args[:5]), backend="flash")


@pytest.mark.parametrize("backend", ["sdpa", "flash", "split"])
@pytest.mark.parametrize("Tq, Tk", [(7, 7), (1, 9), (3, 9)])
@torch.no_grad()
def test_rows_of_different_lengths(backend, Tq, Tk):
    """One row's prefix has no position at all."""
    *given, _ = tensors(4, 4, 2, Tq, Tk, 5, 8, 4)
    prefix_length, length = torch.tensor([5, 3, 1, 0]), Tk - torch.arange(4).clamp(max=Tk - Tq)
    for lengths in ((None, length), (prefix_length, None), (prefix_length, length)):
        exact = prefix_attention(*given, None, "reference", *lengths)
        torch.testing.assert_close(prefix_attention(*given, None, backend, *lengths), exact, rtol=1e-10, atol=1e-10)


def test_the_reference_computes_in_float32_and_answers_in_the_input_type():
    args = tensors(2, 4, 2, 5, 8, 3, 8, 1, dtype=torch.bfloat16)
    out = prefix_attention(*args[:5], backend="reference")
    exact = prefix_attention(*(x.double() for x in args[:5]), backend="reference")
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), exact, rtol=2**-8, atol=1e-6)  # rounded once, at the end


def test_a_prefix_mixes_two_softmaxes_by_their_log_sum_exp():
    """He et al. 2022, 2110.04366 eq. 6: o = (1 - λ)·attn(q, K, V) + λ·attn(q, Pk, Pv)."""
    q, k, v, pk, pv, _ = tensors(2, 4, 4, 7, 7, 3, 8, 1)
    scale = 1 / math.sqrt(8)
    causal = (q @ k.transpose(-2, -1) * scale).masked_fill(~causal_mask((0, 7), (0, 7)), -math.inf)
    on_prefix = q @ pk.transpose(-2, -1) * scale
    lam = torch.sigmoid(on_prefix.logsumexp(-1) - causal.logsumexp(-1)).unsqueeze(-1)
    mixed = (1 - lam) * (causal.softmax(-1) @ v) + lam * (on_prefix.softmax(-1) @ pv)
    torch.testing.assert_close(prefix_attention(q, k, v, pk, pv), mixed, rtol=1e-10, atol=1e-10)


def test_a_zero_prefix_is_not_nothing_but_a_zero_gate_is():
    q, k, v, pk, pv, _ = tensors(2, 4, 4, 7, 7, 3, 8, 1)
    plain = prefix_attention(q, k, v)
    assert (prefix_attention(q, k, v, 0 * pk, 0 * pv) - plain).abs().max() > 0.1  # zero keys still take softmax mass
    torch.testing.assert_close(prefix_attention(q, k, v, pk, pv, gate=torch.zeros(4)), plain)


def test_the_mask():
    assert causal_mask((1, 3), (-1, 3)).tolist() == [[True, True, True, False], [True, True, True, True]]


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(q=(2, 4, 9, 8)), "Tq 9 > Tk 7"),
        (dict(k=(2, 3, 7, 8), v=(2, 3, 7, 8)), "4 query heads do not divide"),
        (dict(v=(2, 4, 6, 8)), "must both be"),
        (dict(prefix_k=(3, 4, 3, 8), prefix_v=(3, 4, 3, 8)), "with B 2"),
        (dict(prefix_v=(1, 4, 2, 8)), "prefix_k"),
        (dict(gate=(3,)), "one value per head"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_in_one_line(change, message):
    shapes = dict(q=(2, 4, 7, 8), k=(2, 4, 7, 8), v=(2, 4, 7, 8), prefix_k=(1, 4, 3, 8), prefix_v=(1, 4, 3, 8)) | change
    with pytest.raises(Error, match=message) as e:
        prefix_attention(**{name: torch.zeros(s) for name, s in shapes.items()})
    assert "\n" not in str(e.value)


def test_keys_and_values_of_a_prefix_go_together():
    q, k, v, pk, pv, _ = tensors(*SHAPES[0])
    for args in ((q, k, v, pk, None), (q, k, v, None, pv), (q[0], k, v, pk, pv)):
        with pytest.raises(Error, match="go together"):
            prefix_attention(*args)


def test_an_unknown_backend_is_refused_with_the_list():
    with pytest.raises(Error, match="auto, auto-any-length, reference, sdpa"):
        prefix_attention(*tensors(*SHAPES[0])[:3], backend="magic")


def test_inference_keeps_a_prefix_apart_where_concatenating_would_copy():
    """The choice of `auto`: beside a cache, or as long as the text and shared; never in training."""

    def chosen(B: int, Tq: int, Tk: int, shared: bool, P: int) -> bool:
        q, k = torch.empty(B, 2, Tq, 8), torch.empty(B, 2, Tk, 8)
        return should_split_in_inference(q, k, torch.empty(1 if shared else B, 2, P, 8))

    with torch.no_grad():
        assert chosen(3, 1, 9, False, 4) and chosen(3, 1, 9, True, 4)  # decoding: the cache would be copied
        assert (
            chosen(3, 5, 5, True, 5)
            and not chosen(3, 5, 5, True, 4)
            and not chosen(3, 5, 5, False, 9)
            and not chosen(1, 5, 5, True, 9)
        )
        assert not chosen(3, 1, 9, True, 0)
    assert not chosen(3, 1, 9, True, 4)


@torch.no_grad()
def test_tensors_of_any_stride_are_read_as_they_are():
    given = [torch.randn(2, 4, t, 8) for t in (5, 9, 9, 7, 7)]
    across = [x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in given]
    want = prefix_attention(*given, backend="reference")
    for backend in ("auto", "flash", "sdpa", "split"):
        torch.testing.assert_close(prefix_attention(*across, backend=backend), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", ["auto", "reference", "sdpa", "split", "flash"])
def test_no_queries_and_keys_of_another_dtype_are_the_same_for_every_backend(backend):
    q, k, v, pk, pv, _ = tensors(2, 4, 2, 3, 5, 2, 8, 1, dtype=torch.float32)
    with torch.no_grad():
        assert prefix_attention(q[:, :, :0], k, v, pk, pv, backend=backend).shape == (2, 4, 0, 8)
        assert prefix_attention(q[:0], k[:0], v[:0], pk, pv, backend=backend).shape == (0, 4, 3, 8)
        low = prefix_attention(q.bfloat16(), k, v, pk, pv, backend=backend)
        assert low.dtype == torch.bfloat16
        torch.testing.assert_close(low.float(), prefix_attention(q, k, v, pk, pv), rtol=0, atol=0.05)
    with pytest.raises(Error, match="must be of floats"):
        prefix_attention(*(x.long() for x in (q, k, v)), backend=backend)


@pytest.mark.parametrize("lengths, message", [
    ({"length": [1, 5]}, r"length must be of 2 … 5, not \[1, 5\]"), ({"length": [2, 6]}, "length must be of 2 … 5"),
    ({"prefix_length": [-1, 3]}, "prefix_length must be of 0 … 3"),
    ({"prefix_length": [0, 4]}, "prefix_length must be of 0 … 3")])
def test_lengths_beyond_the_keys_are_refused(lengths, message):
    q, k, v, pk, pv, _ = tensors(2, 2, 2, 2, 5, 3, 8, 1)
    with pytest.raises(Error, match=message):
        prefix_attention(q, k, v, pk, pv, **{name: torch.tensor(x) for name, x in lengths.items()})
