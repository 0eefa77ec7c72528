"""A bias on the keys of a prefix, and positions other than its rows: the equation, every backend, files, banks."""

import math
import shutil

import pytest
import torch
from conftest import WITHOUT_CODE, compiling_by, moved, tiny
from test_attention import tensors

from minipeft import GPT, Error, Prefix, TaskBank, adapt, attention, generate, load_adapter, prefix_attention
from minipeft.adapters import export_adapter
from minipeft.data import NANO
from minipeft.ladder import convert_up

SHAPES = [  # B, nh, n_kv, Tq, Tk, P, hs, batch of the prefix
    (2, 4, 4, 7, 7, 3, 8, 1),
    (2, 4, 2, 7, 7, 3, 8, 2),
    (3, 4, 1, 1, 9, 4, 8, 1),
    (2, 4, 2, 1, 9, 4, 8, 2),
    (2, 2, 2, 3, 10, 5, 8, 1),
    (1, 2, 2, 1, 1, 2, 8, 1),
    (2, 4, 2, 130, 150, 6, 8, 1),
]
BACKENDS = ["reference", "sdpa", "split", "flash", "auto"]


def biased(shape, absent="none"):
    """q, k, v, prefix_k, prefix_v and β, float64; absent: keys, or key heads, whose β is -inf."""
    Bp, n_kv, P = shape[7], shape[2], shape[5]
    bias = 2 * torch.randn(Bp, n_kv, P, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    bias[{"none": (0, 0, slice(0)), "keys": (..., 0), "heads": (slice(None), 0)}[absent]] = -math.inf
    return *tensors(*shape)[:5], bias


def by_hand(q, k, v, pk, pv, bias):
    """The definition, one query at a time: β is added to the scores of the prefix's keys."""
    B, nh, Tq, hs = q.shape
    group, Tk = nh // k.size(1), k.size(2)
    o = torch.empty_like(q)
    for b in range(B):
        row = b if len(pk) > 1 else 0
        for h in range(nh):
            g = h // group
            for t in range(Tq):
                n = Tk - Tq + t + 1
                scores = torch.cat([pk[row, g] @ q[b, h, t] / math.sqrt(hs) + bias[row, g],
                                    k[b, g, :n] @ q[b, h, t] / math.sqrt(hs)])
                o[b, h, t] = scores.softmax(0) @ torch.cat([pv[row, g], v[b, g, :n]])
    return o


@pytest.mark.parametrize("absent", ["none", "keys", "heads"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_backend_is_the_definition(shape, backend, absent):
    *given, bias = biased(shape, absent)
    with torch.set_grad_enabled(backend != "flash"):
        got = prefix_attention(*given, backend=backend, prefix_bias=bias)
    torch.testing.assert_close(got, by_hand(*given, bias), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("absent", ["none", "keys", "heads"])
@pytest.mark.parametrize("backend", ["sdpa", "split"])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_the_textbook(shape, backend, absent):
    found = {}
    for name in ("reference", backend):
        given = [x.requires_grad_() for x in biased(shape, absent)]
        out = prefix_attention(*given[:5], backend=name, prefix_bias=given[5])
        found[name] = torch.autograd.grad(out.sin().sum(), given)
    torch.testing.assert_close(found[backend], found["reference"], rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_is_the_same():
    given = [x.float().requires_grad_() for x in biased((2, 4, 2, 66, 80, 3, 8, 1))]
    exact = [x.detach().double().requires_grad_() for x in given]
    pairs = []
    for tensors_, backend in ((given, "fused"), (exact, "reference")):
        out = prefix_attention(*tensors_[:5], backend=backend, prefix_bias=tensors_[5])
        pairs.append([out, *torch.autograd.grad(out.sin().sum(), tensors_)])
    for got, want in zip(*pairs, strict=True):
        assert (got - want).norm() <= 2e-5 * want.norm()


@torch.no_grad()
def test_a_bias_counts_a_key_as_often_as_its_exponential():
    q, k, v, pk, pv, _ = tensors(2, 4, 2, 5, 5, 3, 8, 1)
    three_times = [torch.cat([x, x[:, :, :1], x[:, :, :1]], dim=2) for x in (pk, pv)]
    bias = torch.tensor([math.log(3), 0, 0], dtype=torch.float64).expand(1, 2, 3)
    torch.testing.assert_close(prefix_attention(q, k, v, pk, pv, prefix_bias=bias),
                               prefix_attention(q, k, v, *three_times), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["sdpa", "split", "flash"])
@torch.no_grad()
def test_rows_of_different_lengths_and_biases(backend):
    q, k, v, pk, pv, _ = tensors(4, 4, 2, 3, 9, 5, 8, 4)
    bias, prefix_length, length = torch.randn(4, 2, 5).double(), torch.tensor([5, 3, 1, 0]), torch.tensor([9, 7, 6, 3])
    got = prefix_attention(q, k, v, pk, pv, None, backend, prefix_length, length, prefix_bias=bias)
    for i, (p, n) in enumerate(zip(prefix_length, length, strict=True)):
        want = prefix_attention(*(x[i : i + 1, :, :n] if j else x[i : i + 1] for j, x in enumerate((q, k, v))),
                                *(x[i : i + 1, :, :p] for x in (pk, pv)), backend="reference",
                                prefix_bias=bias[i : i + 1, :, :p])
        torch.testing.assert_close(got[i : i + 1], want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", ["sdpa", "split", "flash"])
@torch.no_grad()
def test_what_is_not_finite_shows(backend):
    q, k, v, pk, pv, _ = tensors(2, 4, 2, 3, 3, 5, 8, 1)
    pv[..., 0, 0] = math.nan
    bias, some = torch.zeros(1, 2, 5).double(), torch.tensor([5, 0])
    assert prefix_attention(q, k, v, pk, pv, None, backend, prefix_bias=bias).isnan().any()
    rows = prefix_attention(q, k, v, pk.expand(2, -1, -1, -1), pv.expand(2, -1, -1, -1), None, backend, some)
    assert rows[0].isnan().any()


@torch.no_grad()
def test_inference_in_bfloat16_rounds_a_bias_no_more_than_training():
    q, k, v, pk, pv, _ = (x if x is None else x.bfloat16() for x in tensors(2, 4, 2, 3, 3, 5, 8, 1))
    bias = 4 + 3 * torch.rand(1, 2, 5)
    want = prefix_attention(*(x.double() for x in (q, k, v, pk, pv)), backend="reference", prefix_bias=bias.double())
    error = {backend: float((prefix_attention(q, k, v, pk, pv, backend=backend, prefix_bias=bias) - want).norm())
             for backend in ("split", "flash")}
    assert error["flash"] < 1.3 * error["split"], error


@pytest.mark.parametrize("backend", ["sdpa", "split"])
@pytest.mark.parametrize("lengths, hidden", [([3, 3], 3), ([1, 3], 1), ([0, 3], 0)])
def test_rows_of_which_no_prefix_key_is_left_have_gradients(backend, lengths, hidden):
    given, bias = tensors(2, 4, 2, 5, 5, 3, 8, 1)[:5], torch.zeros(1, 2, 3).double()
    bias[..., :hidden] = -math.inf
    found = []
    for name in ("reference", backend):
        own = [x.detach().requires_grad_() for x in given]
        prefix_attention(*own, None, name, torch.tensor(lengths), prefix_bias=bias).square().sum().backward()
        found.append([x.grad for x in own])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("T", [1, 11, 37])
@torch.no_grad()
def test_without_mass_and_positions_it_is_the_base_bit_for_bit(base, T):
    c, idx = base.config, torch.randint(97, (3, T))
    k, v = torch.randn(2, 3, 1, c.n_kv, 5, c.head_size)
    absent = Prefix(k, v, bias=torch.full((3, 1, c.n_kv, 5), -math.inf), positions=0)
    assert torch.equal(base(idx, prefix=absent), base(idx))
    if T < 37:
        model = adapt(base, "prefix", init=absent)
        assert torch.equal(generate(model, idx, 6), generate(base, idx, 6))


def test_noise_starts_near_the_base():
    """At β = -8 and without positions: the divergence from the base, against that of the same noise without a bias."""
    base = GPT.from_pretrained(NANO)
    idx = torch.tensor([list(b"A prefix that nothing attends to leaves every answer as it was.")])
    found = []
    with torch.no_grad():
        plain = base(idx).log_softmax(-1)
        for key_bias in (True, False):
            torch.manual_seed(0)
            started = adapt(base, "prefix", num_virtual_tokens=8, positions=0, key_bias=key_bias)(idx).log_softmax(-1)
            found.append(float((plain.exp() * (plain - started)).sum(-1).mean()))
    assert found[0] < 0.01 < 20 * found[0] < found[1]


def test_real_tokens_follow_behind_the_positions_that_a_prefix_takes(base, idx):
    """The middle rows of a text are gone, as by a mask, and what follows stands where it stood."""
    text = torch.randint(97, (9,))
    whole = convert_up(base, text, "kv").detach()
    keep = torch.tensor([0, 1, 7, 8])
    few = Prefix(whole[:, 0, :, :, keep], whole[:, 1, :, :, keep], positions=9)
    bias = torch.full((3, 1, base.config.n_kv, 9), -math.inf)
    bias[..., keep] = 0
    masked = Prefix(whole[:, 0], whole[:, 1], bias=bias)
    torch.testing.assert_close(base(idx, prefix=few), base(idx, prefix=masked), rtol=0, atol=2e-5)
    cached = generate(adapt(base, "prefix", init=few), idx, 8)
    rows, slots = idx, few
    for _ in range(8):
        rows = torch.cat([rows, base(rows, prefix=slots)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(cached, rows)
    if base.config.position == "learned":
        shifted = base(idx, prefix=few._replace(positions=4))
        assert (shifted - base(idx, prefix=few)).abs().max() > 0.1


@pytest.mark.parametrize("h", [dict(key_bias=True, positions=9), dict(positions=0), dict(key_bias=True),
                               dict(key_bias=True, prefix_projection=True)])
def test_saved_and_loaded_it_is_the_same_and_peft_gets_none(h, base, idx, tmp_path):
    model = moved(adapt(base, "prefix", num_virtual_tokens=5, **h))
    model.save(tmp_path / "ours")
    again = load_adapter(base, tmp_path / "ours")
    assert (again.method.key_bias, again.method.positions) == (h.get("key_bias", False), h.get("positions", 5))
    torch.testing.assert_close(again(idx), model(idx), rtol=0, atol=1e-5)
    with pytest.raises(Error, match="PEFT's prefixes have no bias, and as many positions as rows"):
        export_adapter(base, tmp_path / "ours", tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


def test_a_start_brings_its_bias_and_positions(base, idx):
    source = moved(adapt(base, "prefix", num_virtual_tokens=5, key_bias=True, positions=9))
    again = adapt(base, "prefix", init=source.method.ladder_value())
    assert again.method.key_bias and again.method.positions == 9
    assert torch.equal(again(idx), source(idx))
    for bad in (dict(gate=torch.zeros(3, 4)), dict(length=torch.tensor([5])), dict(k=torch.zeros(2, 1, 4, 5, 8))):
        with pytest.raises(Error, match="without a gate or lengths|init's keys"):
            adapt(base, "prefix", init=source.method.ladder_value()._replace(**bad))
    text = torch.tensor([3, 1, 4])
    if base.config.sliding_window is not None:  # behind more, the text would slide out of the window
        idx = idx[:, : base.config.sliding_window - len(text)]
    exact = adapt(base, "prefix", init=text, key_bias=True)
    torch.testing.assert_close(exact(idx), base(torch.cat([text.expand(3, -1), idx], 1))[:, 3:], rtol=0, atol=2e-5)


def test_training_moves_the_bias_and_gives_it_through_compiled_blocks_too(idx, monkeypatch):
    monkeypatch.setattr("minipeft.model.compiled", compiling_by(WITHOUT_CODE))
    monkeypatch.delattr(attention, "_sdpa")  # it would save all attention weights
    monkeypatch.delitem(attention.BACKENDS, "sdpa")
    grads = []
    for compiled, any_length in ((False, False), (True, False), (True, True)):
        base = tiny("llama", torch.float64)
        torch.manual_seed(3)
        model = adapt(base, "prefix", num_virtual_tokens=5, key_bias=True, positions=9)
        model.compile_blocks(compiled, any_length)
        base.through_compile = compiled  # with no compiler here, too
        model.loss(idx, idx.roll(-1, 1)).backward()
        grads.append(model.method.prompt_bias.grad)
    assert grads[0].abs().max() > 0
    torch.testing.assert_close(grads[1], grads[0])
    torch.testing.assert_close(grads[2], grads[0])


def test_rows_of_a_bank_have_a_bias_and_positions_of_their_own(base):
    tasks = {"document": moved(adapt(base, "prefix", num_virtual_tokens=3, key_bias=True, positions=20)),
             "none": moved(adapt(base, "prefix", num_virtual_tokens=2, key_bias=True, positions=0)),
             "plain": moved(adapt(base, "prefix", num_virtual_tokens=6)), "lora": moved(adapt(base, "lora", r=2))}
    bank, names = TaskBank(base, tasks), ["document", None, "plain", "lora", "none"]
    idx = torch.randint(97, (5, 8))
    for row, x, name in zip(bank(idx, names), idx, names, strict=True):
        torch.testing.assert_close(row, (tasks[name] if name else base)(x[None])[0], rtol=0, atol=3e-5)
    for row, x, name in zip(generate(bank.rows(names), idx, 6), idx, names, strict=True):
        assert torch.equal(row, generate(tasks[name] if name else base, x[None], 6)[0])
    for name in tasks:
        assert torch.equal(generate(bank.rows([name] * 5), idx, 6), generate(tasks[name], idx, 6))


@pytest.mark.parametrize("given, message", [
    (dict(prefix_bias=torch.zeros(1, 2, 4)), r"prefix_bias \(1, 2, 4\) float32 must be \(1\|B, n_kv, P\)"),
    (dict(prefix_bias=3), "prefix_bias 3 must be"),
    (dict(prefix_bias=torch.zeros(1, 2, 3, dtype=torch.int64)), "must be of floats"),
    (dict(prefix_bias=torch.zeros(1, 2, 3), gate=torch.zeros(4)), "a gated prefix takes no bias"),
])
def test_a_bias_that_does_not_fit_is_refused(given, message):
    q, k, v, pk, pv, _ = tensors(2, 4, 2, 5, 5, 3, 8, 1)
    with pytest.raises(Error, match=message):
        prefix_attention(q, k, v, pk, pv, **given)


@pytest.mark.parametrize("change, message", [
    (dict(bias=torch.zeros(3, 1, 4, 4)), r"a prefix's bias \(3, 1, 4, 4\) float32 must be \(3, 1, 4, 5\)"),
    (dict(bias=5), "a prefix's bias 5 must be"),
    (dict(gate=5), "a prefix's gate 5 must be"),
    (dict(bias=torch.zeros(3, 1, 4, 5), gate=torch.zeros(3, 4)), "a bias or a gate, not both"),
    (dict(length=torch.tensor([1, 2])), r"a prefix's length \(2,\) int64 must be \(3\)"),
    (dict(length=torch.tensor([1, 2, 6])), "a prefix's length must be int64 in 0 … 5, its keys"),
    (dict(length=torch.tensor([1, 2, -1])), "must be int64 in 0 … 5"),
    (dict(positions=-1), "positions -1 must be a whole number of at least 0"),
    (dict(positions=2.0), "positions 2.0 must be"),
    (dict(positions=torch.tensor([1, 2])), r"or \(3,\) int64"),
    (dict(positions=2, gate=torch.zeros(3, 4)), "a gated prefix takes none"),
    (dict(positions=40), "40 virtual [+] 11 real tokens do not fit"),
])
def test_a_prefix_that_does_not_fit_is_refused(change, message, idx):
    base = tiny()
    prefix = Prefix(*torch.randn(2, 3, 1, 4, 5, 8))._replace(**change)
    with pytest.raises(Error, match=message):
        base(idx, prefix=prefix)


@pytest.mark.parametrize("h, message", [
    (dict(key_bias=True, space="hidden"), "key_bias and positions go with space='kv'"),
    (dict(positions=9, space="hidden"), "key_bias and positions go with space='kv'"),
    (dict(positions=48), "positions of a prefix must be 0 … 47 with a block size of 48, not 48"),
    (dict(positions=-1), "must be 0 … 47"),
    (dict(key_bias="yes"), "key_bias must be False or True, not 'yes'"),
    (dict(prefix_projection="False"), "prefix_projection must be False or True, not 'False'"),
    (dict(init=torch.ones(1, 5, 32, dtype=torch.int32)), "init must be 'random', 'vocab', token ids"),
    (dict(encoder_hidden_size=5), "encoder_hidden_size is the width of the MLP: it goes with prefix_projection"),
])
def test_hyperparameters_that_do_not_fit_are_refused(h, message):
    with pytest.raises(Error, match=message):
        adapt(tiny(), "prefix", num_virtual_tokens=5, **h)


def test_no_bias_takes_the_path_that_it_took(monkeypatch):
    """Neither `split` nor a mask of numbers: what `auto` chose without a bias it chooses still."""
    called = []
    monkeypatch.setitem(attention.BACKENDS, "sdpa", lambda *a: called.append(len(a)) or a[0])
    given = tensors(2, 4, 2, 5, 5, 3, 8, 1)[:5]
    prefix_attention(*given)
    prefix_attention(*given, prefix_bias=None)
    assert len(called) == 2
