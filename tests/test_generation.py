"""Generation with a cache is generation without one, and what is drawn follows the settings."""

import pytest
import torch
from conftest import TYPICAL, attached, in_turn, moved, one_shape, quick, tiny
from test_methods import COMBINED, SETTINGS

from minipeft import Error, Prefix, adapt, attention, generate
from minipeft.inference.generation import sample, stream
from minipeft.slots import KVCache, Slots

HARD = ("hard-prompt", dict(tokens=torch.tensor([5, 6, 7])))
MODELS = [(None, {}), *TYPICAL, *(x for x in SETTINGS if x not in TYPICAL), COMBINED, HARD]


def without_a_cache(model, idx, n):
    """The definition: the most likely token after all that is there, n times."""
    for _ in range(n):
        idx = torch.cat([idx, model(idx)[:, -1].argmax(-1, keepdim=True)], dim=1)
    return idx


@pytest.mark.parametrize("name, h, shape", in_turn(MODELS))
@torch.no_grad()
def test_token_for_token_as_without_a_cache(name, h, shape, idx):
    model = base = tiny(shape)
    if name is not None:
        model = adapt(base, name, **h) if (name, h) in (COMBINED, HARD) else attached(base, name, h)
        moved(model, 0.3 if model.method.freezes_base else 0.0)
    assert torch.equal(generate(model, idx, 12), without_a_cache(model, idx, 12))
    lengths = torch.tensor([11, 1, 6])  # rows of different lengths answer as each would alone
    rows = generate(model, idx, 9, lengths=lengths, stop_token=None)
    assert rows.shape == (3, 20)
    for row, one, n in zip(rows, idx, lengths.tolist(), strict=True):
        assert torch.equal(row[: n + 9], without_a_cache(model, one[None, :n], 9)[0])
        assert not row[n + 9 :].any()


def test_no_row_reads_memory_that_nobody_wrote(base, idx):
    """Every empty tensor comes filled with NaN."""
    lengths = torch.tensor([11, 1, 6])
    want = generate(base, idx, 9, lengths=lengths)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        assert torch.equal(generate(base, idx, 9, lengths=lengths), want)
    finally:
        torch.use_deterministic_algorithms(False)


@one_shape
def test_under_autocast(base, idx, monkeypatch):
    """The cache keeps the base's own type, whatever the products are in."""
    types, extended = set(), KVCache.extended
    monkeypatch.setattr(KVCache, "extended", lambda self, *kv: (types.add(self.k.dtype), extended(self, *kv))[1])
    with torch.autocast("cpu", torch.bfloat16):
        rows = generate(adapt(base, "prefix"), idx, 5, lengths=torch.tensor([11, 4, 6]))
    assert rows.shape == (3, 16) and types == {torch.float32}


@one_shape
def test_it_goes_on_from_one_step_to_the_next(base, idx):
    whole = generate(base, idx, 6)
    assert [t.tolist() for t in stream(base, idx, 6)] == whole[:, 11:].T.tolist()
    assert torch.equal(generate(base, idx, 0), idx)
    padded = generate(base, idx[:2], 0, lengths=torch.tensor([3, 11]), stop_token=5)
    assert torch.equal(padded[1], idx[1]) and padded[0].tolist() == [*idx[0, :3].tolist(), *8 * [5]]


def test_a_stop_token_ends_a_row_and_fills_it_up(base, idx):
    free = generate(base, idx, 8)[:, 11:]
    stop = int(free[0, 2])
    rows = generate(base, idx, 8, stop_token=stop)[:, 11:]
    for row, whole in zip(rows.tolist(), free.tolist(), strict=True):
        end = whole.index(stop) + 1 if stop in whole else 8
        assert row == (whole[:end] + [stop] * 8)[: len(row)]
    either = generate(base, idx[:1], 8, stop_token=[96, stop])[:, 11:]  # one of several
    assert either[0].tolist()[: len(either[0])] == rows[0][: len(either[0])].tolist()
    short = generate(base, idx[:1], 8, stop_token=stop)
    assert (
        short[0, 11:].tolist() == free[0, : free[0].tolist().index(stop) + 1].tolist()
    )  # nothing is computed past the end


@torch.no_grad()
def test_a_shared_prefix_is_neither_copied_nor_cached(base, monkeypatch):
    """Decoding reads the one prefix for all rows: nothing of the size of a copy for each of them is ever made."""
    from torch.utils._python_dispatch import TorchDispatchMode

    B, P, n_kv, hs = 8, 40, base.config.n_kv, base.config.head_size
    prefix = torch.randn(3, 2, 1, n_kv, P, hs)

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if (
                isinstance(out, torch.Tensor) and out.untyped_storage().nbytes() >= 4 * out.numel()
            ):  # not an expanded view
                self.numel = max(self.numel, out.numel())
            return out

    class Model:
        training = False

        def slots(self):
            return Slots(prefix=prefix)

        def eval(self):
            pass

        def train(self, mode):
            pass

    model = Model()
    model.base = base
    idx = torch.randint(97, (B, 2))
    with Largest() as largest:
        shared = generate(model, idx, 3)
    copies = B * P * n_kv * hs  # one layer's keys for every row
    assert largest.numel < copies
    prefix = prefix.expand(3, 2, B, n_kv, P, hs).contiguous()  # a prefix a row gives the same answers
    assert torch.equal(generate(model, idx, 3), shared)


@torch.no_grad()
def test_prefixes_of_unequal_lengths_are_each_rows_own(base, idx):
    k, v = torch.randn(2, 3, 3, base.config.n_kv, 6, base.config.head_size)
    length = torch.tensor([6, 0, 2])
    mixed = base(idx, prefix=Prefix(k, v, length=length))
    for i, n in enumerate(length.tolist()):
        alone = base(idx[i : i + 1], prefix=Prefix(k[:, i : i + 1, :, :n], v[:, i : i + 1, :, :n]))
        torch.testing.assert_close(mixed[i : i + 1], alone, rtol=0, atol=1e-5)
    with pytest.raises(Error, match="one length for all rows"):
        base(idx, prefix=Prefix(k, v, torch.ones(3, 4), length))


@pytest.mark.parametrize("backend", quick(["sdpa", "fused", "split", "auto"], "sdpa", "split", "auto"))
@pytest.mark.parametrize("shared", [False, True])
def test_every_backend_takes_lengths(backend, shared):
    g = torch.Generator().manual_seed(0)
    for _ in range(3 if backend == "fused" else 20):  # every shape is compiled
        B, nh, n_kv, P, Tq = (
            int(torch.randint(lo, hi, (), generator=g)) for lo, hi in ((1, 5), (1, 3), (1, 3), (0, 9), (1, 5))
        )
        nh, Tk = nh * n_kv, Tq + int(torch.randint(12, (), generator=g))
        q = torch.randn(B, nh, Tq, 8, generator=g, dtype=torch.float64)
        k, v = torch.randn(2, B, n_kv, Tk, 8, generator=g, dtype=torch.float64)
        pk, pv = torch.randn(2, 1 if shared else B, n_kv, P, 8, generator=g, dtype=torch.float64)
        prefix_length = torch.randint(P + 1, (B,), generator=g)
        length = torch.randint(Tq, Tk + 1, (B,), generator=g)
        wanted = [attention.prefix_attention(
            q[b : b + 1], *(x[b : b + 1, :, : length[b]] for x in (k, v)),
            *(x[0 if shared else b, :, : prefix_length[b]].unsqueeze(0) for x in (pk, pv)), backend="reference",
        ) for b in range(B)]  # fmt: skip
        got = attention.prefix_attention(q, k, v, pk, pv, None, backend, prefix_length, length)
        torch.testing.assert_close(got, torch.cat(wanted), rtol=1e-10, atol=1e-10)


def test_lengths_must_be_one_a_row():
    q = torch.randn(2, 1, 3, 8)
    for bad in (torch.tensor([1]), torch.tensor([1.0, 2.0])):
        with pytest.raises(Error, match="one value per row"):
            attention.prefix_attention(q, q, q, length=bad)


def test_sampling_follows_the_distribution_it_is_asked_for():
    """Frequencies of 20,000 draws against softmax(logits / temperature), cut to the top."""
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -8.0]])
    torch.manual_seed(0)

    def frequencies(**settings):
        settings = {"temperature": 1.0, "top_k": None, "top_p": None} | settings
        return torch.bincount(sample(logits.expand(20_000, 5), **settings), minlength=5) / 20_000

    p = logits[0].softmax(0)
    assert (frequencies() - p).abs().max() < 0.015
    assert (frequencies(temperature=2.0) - (logits[0] / 2).softmax(0)).abs().max() < 0.015
    two = torch.where(torch.arange(5) < 2, p, 0.0)
    assert (frequencies(top_k=2) - two / two.sum()).abs().max() < 0.015
    for top_p, kept in ((0.5, 1), (float(p[0]) + 0.01, 2), (0.9, 3), (1.0, 5)):
        some = torch.where(torch.arange(5) < kept, p, 0.0)
        got = frequencies(top_p=top_p)
        assert (got - some / some.sum()).abs().max() < 0.015 and not got[kept:].any()
    assert sample(logits, 0.0, None, None).tolist() == sample(logits, 1e-39, None, None).tolist() == [0]
    assert sample(logits, 1.0, None, 1e-46).tolist() == [0]  # which float32 rounds to 0
    equal = torch.zeros(2000, 5)
    assert len(set(sample(equal, 1.0, 2, None).tolist())) == 2  # of equal ones, too, no more than k


def test_temperature_top_k_and_top_p_work_together_as_in_transformers(monkeypatch):
    transformers = pytest.importorskip("transformers")
    logits, drawn, multinomial = 3 * torch.randn(4, 50), [], torch.multinomial
    monkeypatch.setattr(torch, "multinomial", lambda p, n: (drawn.append(p), multinomial(p, n))[1])
    sample(logits, 2.0, 7, 0.6)
    for warper in (transformers.TemperatureLogitsWarper(2.0), transformers.TopKLogitsWarper(7),
                   transformers.TopPLogitsWarper(0.6)):
        logits = warper(None, logits)
    torch.testing.assert_close(drawn[0], logits.softmax(-1))


@one_shape
def test_the_same_seed_draws_the_same_text(base, idx):
    texts = []
    for _ in range(2):
        torch.manual_seed(3)
        texts.append(generate(base, idx, 8, top_k=20, top_p=0.9))  # at temperature 1
    assert torch.equal(*texts)
    assert not torch.equal(texts[0], generate(base, idx, 8))


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(max_new_tokens=38), "0 virtual tokens and 48 of input and output|do not fit the base's block size of 48"),
        (dict(max_new_tokens=-1), "at least 0, not -1"),
        (dict(temperature=-0.5), "0 or above"),
        (dict(temperature=0.0, top_k=3), "top_k and top_p choose among samples: they need a temperature above 0"),
        (dict(temperature=0, top_p=0.5), "top_k and top_p choose among samples"),
        (dict(temperature=float("nan")), "0 or above"),
        (dict(top_k=0), "at least 1, not 0"),
        (dict(top_p=0.0), "above 0 and at most 1"),
        (dict(stop_token=[]), r"token ids in 0 … 96, not \[\]"),
        (dict(stop_token=[3, 97]), r"token ids in 0 … 96, not \[3, 97\]"),
        (dict(lengths=torch.tensor([11, 12, 3])), "from 1 to 11"),
        (dict(lengths=torch.tensor([11, 3])), "one a row"),
        (dict(idx=torch.zeros(2, 0, dtype=torch.int64)), "at least one token"),
    ],
)
@one_shape
def test_what_cannot_be_generated_is_refused(settings, message, base, idx):
    if "max_new_tokens" not in settings:
        settings["max_new_tokens"] = 2
    if settings["max_new_tokens"] == 38:  # 11 + 38 - 1 = 48 fits exactly; one more does not
        assert generate(base, idx, 38).shape == (3, 49)
        settings = dict(max_new_tokens=39)
    with pytest.raises(Error, match=message):
        generate(base, **{"idx": idx} | settings)


@one_shape
def test_dropout_is_off_while_generating_and_on_again_after(base, idx):
    model = moved(adapt(base, "lora", lora_dropout=0.5))
    assert torch.equal(generate(model, idx, 5), generate(model, idx, 5))
    assert model.training and model.method.training


def test_a_cache_keeps_what_it_is_given(base):
    """Two calls with a cache see what one call without it sees."""
    from minipeft.slots import KVCache

    idx = torch.randint(97, (2, 9))
    k, v = torch.zeros(2, 3, 2, base.config.n_kv, 12, base.config.head_size)
    with torch.no_grad():
        first = base.hidden(idx[:, :5], cache=KVCache(k, v))
        second = base.hidden(idx[:, 5:], cache=KVCache(k, v).after(5))
        torch.testing.assert_close(torch.cat([first, second], dim=1), base.hidden(idx), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_nothing_can_be_drawn_by_are_refused(bad):
    logits = torch.zeros(2, 5)
    logits[1] = bad
    with pytest.raises(Error, match="not finite"):
        sample(logits, 1.0, None, 0.9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@one_shape
def test_a_model_that_gives_no_numbers_generates_nothing(bad, base, idx):
    base.ln_f.weight.data.fill_(bad)
    for temperature in (0.0, 1.0):
        with pytest.raises(Error, match="not finite"):
            generate(base, idx, 2, temperature)
