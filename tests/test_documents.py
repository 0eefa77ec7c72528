"""A document as a prefix: the text itself, attention matching, distillation and self-study."""

import math
from random import Random

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny
from folders import real_base, with_bos

from minipeft import GPT, Error, adapt, generate
from minipeft.data import NANO
from minipeft.data.files import read_examples
from minipeft.data.tasks import Example
from minipeft.data.tokenizer import ByteTokenizer, tokenizer_for
from minipeft.documents import divergence, match, matching, prefill, rows, self_study, write_self_study
from minipeft.documents.self_study import read_seeds
from minipeft.loss import distillation_loss

TEXT = "sort 3142 -> 1234, sort 9871 -> 1789, reverse 123 -> 321, reverse 907 -> 709. " * 3


def ids(text: str) -> torch.Tensor:
    return torch.tensor(ByteTokenizer().encode(text))


@pytest.fixture(scope="module")
def nano() -> GPT:
    return GPT.from_pretrained(NANO).requires_grad_(False)


@pytest.mark.parametrize("kind", ["learned", "rotary", "llama"])
def test_the_text_itself_is_exact(kind, idx):
    base, document = tiny(kind, torch.float64), torch.randint(97, (13,))
    with torch.no_grad():
        behind = base(torch.cat([document.expand(3, -1), idx], dim=1))[:, 13:]
        torch.testing.assert_close(base(idx, prefix=prefill(base, document)), behind, rtol=0, atol=1e-10)
        same = match(base, document, 13)
        assert same.positions == 13 and not same.bias.any()
        torch.testing.assert_close(base(idx, prefix=same), behind, rtol=0, atol=1e-10)
    kl, _ = divergence(base.requires_grad_(False), prefill(base, document), match(base, document, 13), list(idx))
    assert abs(kl) < 1e-6


def test_a_divergence_is_the_textbooks_kl_and_cross_entropy():
    base = tiny("llama", torch.float64).requires_grad_(False)
    document, text = torch.randint(97, (9,)), torch.randint(97, (12,))
    whole, half = prefill(base, document), prefill(base, document[:4])
    p, q = (base(text[None], prefix=prefix)[0, :-1].log_softmax(-1) for prefix in (whole, half))
    kl, loss = divergence(base, whole, half, [text])
    assert kl == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-5)
    assert loss == pytest.approx(-q.gather(1, text[1:, None]).mean().item(), rel=1e-5)


def test_some_rows_alone_stand_where_they_stood():
    base, document, keep = tiny("rotary"), torch.randint(97, (9,)), torch.tensor([0, 3, 8])
    text, few = prefill(base, document), rows(prefill(base, document), keep)
    assert few.positions == 9
    assert torch.equal(few.k, text.k[:, :, :, keep]) and torch.equal(few.v, text.v[:, :, :, keep])
    own = rows(text, keep.expand(3, base.config.n_kv, 3))
    assert torch.equal(own.k, few.k) and torch.equal(own.v, few.v)


@torch.no_grad()
def test_the_rows_with_most_attention_are_those_that_the_text_attends_to():
    """Of the first layer, written out: the text read again behind itself, squares of its weights summed."""
    base, document, P = tiny("llama", torch.float64), torch.randint(97, (9,)), 3
    c, block, text = base.config, base.h[0], prefill(base, document)
    x, rotations = base.add_positions(base.embed(document[None]), 9)
    q = block.attn.qkv(block.ln_1(x), rotations[0])[0][0].reshape(c.n_kv, -1, c.head_size)
    weights = (q @ text.k[0, 0].mT / math.sqrt(c.head_size)).softmax(-1)
    most = weights.square().sum(1).topk(P).indices.sort(-1).values
    few = matching.match_by_attention(base, document, P)
    assert torch.equal(few.k[0, 0], text.k[0, 0].gather(1, most[..., None].expand(-1, -1, c.head_size)))


@torch.no_grad()
def test_matching_goes_on_behind_the_rows_that_it_has_found(monkeypatch):
    """The second layer's queries are of states that saw the first layer's new rows, not the whole text."""
    base, document, seen, attention = tiny("llama"), torch.randint(97, (9,)), [], matching.attention_to_text
    monkeypatch.setattr(matching, "attention_to_text", lambda part, inputs, whole: (
        seen.append(inputs), attention(part, inputs, whole))[1])
    found = match(base, document, 3)
    x, rotations = base.add_positions(base.embed(document[None]), 9)
    x = base.h[0](x, rotations[0], found.layers(3)[0])
    torch.testing.assert_close(seen[1][0][0], base.h[1].ln_1(x))


def test_weights_are_those_of_scipys_nonnegative_least_squares():
    optimize = pytest.importorskip("scipy.optimize")
    g = torch.Generator().manual_seed(0)
    a = torch.rand(2, 60, 12, generator=g, dtype=torch.float64) ** 4
    y = torch.rand(2, 60, generator=g, dtype=torch.float64)
    got = matching.nonnegative(a.mT @ a, (a.mT @ y[..., None])[..., 0])
    for one, of, target in zip(got, a, y, strict=True):
        want, left = optimize.nnls(of.numpy(), target.numpy())
        assert (one >= 0).all() and (one == 0).any()
        assert float((of @ one - target).norm()) == pytest.approx(left, rel=1e-6)
        assert one.numpy() == pytest.approx(want, abs=1e-3)


def test_a_pursuit_finds_the_columns_that_a_target_is_made_of():
    g = torch.Generator().manual_seed(1)
    a = torch.randn(2, 200, 40, generator=g, dtype=torch.float64)
    w = torch.zeros(2, 40, dtype=torch.float64)
    w[0, [3, 17, 30]], w[1, [0, 1, 39]] = torch.tensor([1.0, 2, 3]).double(), torch.tensor([3.0, 1, 2]).double()
    keep = matching.pursuit(a.mT @ a, (a.mT @ (a @ w[..., None]))[..., 0], 3)
    assert [sorted(x) for x in keep.tolist()] == [[3, 17, 30], [0, 1, 39]]


def test_keys_that_a_text_repeats_become_one_with_a_bias():
    """Mass and output of r equal keys are those of one with β = log r: what is left is exact, for every query."""
    g = torch.Generator().manual_seed(2)
    k, v, q = (torch.randn(2, n, 8, generator=g) for n in (5, 5, 300))
    times = torch.tensor([1, 4, 2, 7, 3])
    many_k, many_v = (x.repeat_interleave(times, dim=1) for x in (k, v))
    weights = (q @ many_k.mT / math.sqrt(8)).softmax(-1)
    seen = matching.Seen(weights, weights @ many_v, q)
    got_k, got_v, bias = matching.fit_keys(seen, many_k, many_v, 5)
    fresh = torch.randn(2, 50, 8, generator=g)
    wanted = (fresh @ k.mT / math.sqrt(8) + times.log()).softmax(-1) @ v
    got = (fresh @ got_k.mT / math.sqrt(8) + bias[:, None]).softmax(-1) @ got_v
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-3)


def test_values_are_those_of_ridge_least_squares(monkeypatch):
    monkeypatch.setattr(matching, "RIDGE", 0.5)
    g = torch.Generator().manual_seed(3)
    k, v, q = (torch.randn(1, n, 4, generator=g) for n in (20, 20, 100))
    weights = (q @ k.mT / 2).softmax(-1)
    got_k, got_v, bias = matching.fit_keys(matching.Seen(weights, weights @ v, q), k, v, 6)
    p = (q @ got_k.mT / 2 + bias[:, None]).softmax(-1)[0].double()
    own = v[0][[int((k[0] == row).all(-1).nonzero()) for row in got_k[0]]].double()
    ridge = 0.5 * float((p.mT @ p).diagonal().mean())
    a = torch.cat([p, math.sqrt(ridge) * torch.eye(6).double()])  # as one least-squares problem
    y = torch.cat([(weights @ v)[0].double(), math.sqrt(ridge) * own])
    torch.testing.assert_close(got_v[0].double(), torch.linalg.lstsq(a, y).solution, rtol=0, atol=1e-5)


def test_matching_is_nearer_to_the_text_than_as_many_of_its_rows(nano):
    document, held = ids(TEXT), [ids("sort 5217 -> 1257, reverse 41 -> 14"), ids("reverse 307 -> 703, sort 21 -> 12")]
    whole, n = prefill(nano, document), len(document)

    def kl(prefix) -> float:
        return divergence(nano, whole, prefix, held).kl

    for P in (n // 4, n // 16):
        matched = match(nano, document, P)
        assert matched.positions == n and matched.k.shape[3] == P
        first, last = torch.arange(P), torch.cat([torch.tensor([0]), torch.arange(n - P + 1, n)])
        assert kl(matched) < min(kl(rows(whole, keep)) for keep in (first, last))
        assert kl(matched) < kl(None)
    other = match(nano, document, n // 8, reference=held)
    assert kl(other) < kl(match(nano, document, n // 8))  # the very queries that are asked


@pytest.mark.parametrize("call, message", [
    (lambda base: prefill(base, torch.tensor([], dtype=torch.int64)), "the document is empty"),
    (lambda base: prefill(base, torch.zeros(48, dtype=torch.int64)), "48 tokens, and the base's block size is 48"),
    (lambda base: prefill(base, torch.zeros(3)), "token ids"),
    (lambda _: prefill(tiny("gemma3"), torch.arange(5)), "5 tokens, but layers of this base see 5 back"),
    (lambda base: rows(prefill(base, torch.arange(9)), [1, 2]), "the rows to keep must be .P,. int64"),
    (lambda base: rows(prefill(base, torch.arange(9)), torch.tensor([1, 9])), "the rows to keep must be of 0 … 8"),
    (lambda base: rows(prefill(base, torch.arange(9)), torch.tensor([], dtype=torch.int64)), "and at least one"),
    (lambda base: divergence(base, None, None, torch.arange(9)), "a divergence is on a list of texts"),
    (lambda base: match(base, torch.arange(9), 10), "of a document of 9 tokens 1 … 9 rows can be kept, not 10"),
    (lambda base: match(base, torch.arange(9), 0), "1 … 9 rows can be kept, not 0"),
    (lambda base: match(base, torch.arange(9), 3, []), "at least one token"),
    (lambda base: match(base, torch.arange(9), 3, torch.arange(3)), "reference must be a list of texts"),
    (lambda base: match(base, torch.arange(9), 3, [[1, 2]]), "reference must be a list of texts"),
    (lambda base: match(base, torch.arange(9), 3, [torch.ones(3)]), "reference must be a list of texts"),
    (lambda base: matching.match_by_attention(base, torch.arange(9), 10), "1 … 9 rows can be kept, not 10"),
    (lambda base: adapt(base, "prompt").distil_from("x"), "the teacher must be a Prefix or None, not 'x'"),
    (lambda base: match(base, torch.arange(9), 3, [torch.tensor([], dtype=torch.int64)]), "at least one token"),
])
def test_what_cannot_be_matched_is_refused_in_one_line(call, message):
    with pytest.raises(Error, match=message) as e:
        call(tiny())
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("top_k", [None, 4, 1000])
def test_the_loss_of_distillation_is_the_divergence_and_its_gradient(top_k):
    g = torch.Generator().manual_seed(0)
    x, teacher, weight = (torch.randn(n, 6, generator=g, dtype=torch.float64) for n in (300, 300, 11))
    chosen = torch.rand(300, generator=g) < 0.7
    x.requires_grad_()

    def textbook(x):
        p = (teacher @ weight.T).softmax(-1)
        if top_k is not None:
            p = torch.where(p >= p.topk(min(top_k, 11), dim=-1).values[:, -1:], p, 0)
            p = p / p.sum(-1, keepdim=True)
        kl = F.kl_div((x @ weight.T).log_softmax(-1), p, reduction="none").sum(-1)
        return kl[chosen].mean()

    pairs = [(loss, *torch.autograd.grad(loss, x)) for loss in (
        distillation_loss(x, teacher, weight, chosen, top_k), textbook(x))]
    torch.testing.assert_close(*pairs, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(lambda y: distillation_loss(y, teacher[:5], weight, chosen[:5], top_k),
                                    x.detach()[:5].requires_grad_())
    with pytest.raises(Error, match="frozen base"):
        distillation_loss(x, teacher, weight.clone().requires_grad_(), chosen)


@pytest.mark.parametrize("name, h", [("prefix", dict(init=torch.arange(6), key_bias=True, positions=13)),
                                     ("prompt", dict(num_virtual_tokens=6)), ("lora", dict(r=2))])
def test_every_method_learns_from_a_context_that_only_its_teacher_has(name, h, idx):
    base, document = tiny("llama", torch.float64), torch.randint(97, (13,))
    model = adapt(base, name, **h)
    targets = idx.roll(-1, 1)
    targets[:, -1] = -100
    model.distil_from(prefill(base, document))
    with torch.no_grad():
        log_p = base(torch.cat([document.expand(3, -1), idx], 1))[:, 13:].log_softmax(-1)
        log_q = model(idx).log_softmax(-1)
        wanted = (log_p.exp() * (log_p - log_q)).sum(-1)[targets != -100].mean()
    torch.testing.assert_close(model.loss(idx, targets).detach(), wanted)
    optimizer, losses = torch.optim.Adam(model.trainable_parameters(), 0.02), []
    for _ in range(20):
        optimizer.zero_grad()
        losses.append(model.loss(idx, targets))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    model.distil_from(None)
    with torch.no_grad():
        torch.testing.assert_close(model.loss(idx, targets), F.cross_entropy(model(idx).flatten(0, 1),
                                                                             targets.flatten()))


def test_a_teacher_that_is_trained_is_refused():
    base = tiny()
    prefix = prefill(base, torch.arange(5))
    with pytest.raises(Error, match="needs a frozen one"):
        adapt(base, "full").distil_from(prefix)


def test_texts_of_one_token_have_no_divergence(nano):
    whole, prefix = prefill(nano, ids(TEXT[:60])), prefill(nano, ids(TEXT[60:90]))
    held = [ids("sort 31 -> 13"), ids("x")]
    assert divergence(nano, whole, prefix, held) == divergence(nano, whole, prefix, held[:1])
    with pytest.raises(Error, match="at least two tokens"):
        divergence(nano, whole, prefix, held[1:])


def test_self_study_answers_what_training_and_generation_read(tmp_path, monkeypatch):
    """Behind the document stands the begin mark of the tokenizer, where it has one."""
    real_base(tmp_path)
    with_bos(tmp_path)
    base, tokenizer, read = GPT.from_pretrained(tmp_path), tokenizer_for(300, tmp_path), []
    monkeypatch.setattr(self_study, "generate", lambda model, idx, *rest, **kw: read.append(idx) or generate(
        model, idx, *rest, **kw))
    examples = write_self_study(base, tokenizer, ids("the cat sat on the mat"), tmp_path / "s.jsonl", 12)
    assert len(tokenizer.begin) == 1 and read and examples
    assert all(row[: 1].tolist() == tokenizer.begin for idx in read for row in idx)


@pytest.mark.parametrize("text", ["春天的花儿开了，求和与排序的值。" * 5, "é😀x" * 40, "plain " * 30])
def test_passages_are_of_whole_characters(text):
    tokens = ids(text)
    for a in range(9):
        cut = tokens[a : a + 40].tolist()
        kept = ByteTokenizer().decode(self_study.whole_characters(ByteTokenizer(), cut))
        assert kept in text and len(kept.encode()) >= 40 - 6
    for seed in range(9):
        passages = self_study.texts(None, ByteTokenizer(), tokens, Random(seed), "passage", [], 99, 1.0)
        assert all(e.input and e.target and e.input + e.target in text for e in passages)


def test_self_study_is_resumed_and_completed_where_it_was_edited(nano, tmp_path):
    document, path = ids(TEXT[:200]), tmp_path / "study.jsonl"
    whole = write_self_study(nano, ByteTokenizer(), document, tmp_path / "whole.jsonl", 20)
    assert len(whole) == 20 == len({(e.input, e.target) for e in whole})
    assert any(e.input + e.target in TEXT for e in whole)  # a passage, word for word
    write_self_study(nano, ByteTokenizer(), document, path, 9)
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(['{"input": "mine", "target": "own"}', *lines[1:]]) + '\n{"input": "cut sh',
                    encoding="utf-8")
    rows_ = write_self_study(nano, ByteTokenizer(), document, path, 20)
    assert len(rows_) == 20 and rows_[0] == Example("mine", "own")
    assert read_examples(path) == rows_
    assert {e.target for e in whole} & {e.target for e in rows_[9:]}
    path.write_text(path.read_text(encoding="utf-8").rstrip(), encoding="utf-8")  # as some editors leave it
    assert write_self_study(nano, ByteTokenizer(), document, path, 20) == rows_ == read_examples(path)
    path.write_text("{}\n", encoding="utf-8")
    with pytest.raises(Error, match="study.jsonl line 1 has neither \"input\", \"target\""):
        write_self_study(nano, ByteTokenizer(), document, path, 20)
    with pytest.raises(Error, match="self-study needs 14"):
        write_self_study(nano, ByteTokenizer(), torch.zeros(500, dtype=torch.int64), tmp_path / "x.jsonl", 3)
    (tmp_path / "seeds").write_text("# nothing\n\n", encoding="utf-8")
    with pytest.raises(Error, match="no seed prompt"):
        read_seeds(tmp_path / "seeds")


def test_virtual_tokens_in_the_text_have_no_teacher():
    model = adapt(tiny(), "prompt", num_virtual_tokens=2, template="{input} {soft}")
    with pytest.raises(Error, match="virtual tokens that stand in the text cannot be distilled"):
        model.distil_from(prefill(model.base, torch.arange(5)))


def test_distillation_in_float16_has_the_gradient_of_many_tokens():
    """Divided by the number of tokens in float16, small differences would be zero before a loss scale multiplies."""
    torch.manual_seed(0)
    n, low = 4096, torch.float16
    x, teacher = torch.randn(n, 32), torch.randn(n, 32)
    weight = (0.02 * torch.randn(500, 32)).to(low)
    teacher = x + 0.02 * teacher
    grads = []
    for dtype in (torch.float64, low):
        student = x.to(low).to(dtype).requires_grad_()
        loss = distillation_loss(student, teacher.to(low).to(dtype), weight.to(dtype), torch.ones(n, dtype=torch.bool))
        (loss * 2**16).backward()
        grads.append(student.grad.double())
    assert float((grads[1] - grads[0]).norm() / grads[0].norm()) < 0.01
    nothing = distillation_loss(x.requires_grad_(), teacher, weight.float(), torch.zeros(n, dtype=torch.bool))
    assert nothing.isnan()


def test_self_study_leaves_the_global_generator_alone(tmp_path, nano):
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        write_self_study(nano, ByteTokenizer(), ids(TEXT[:60]), tmp_path / f"{seed}.jsonl", 2)
        drawn.append(torch.rand(3).tolist())
        torch.manual_seed(seed)
        assert drawn[-1] == torch.rand(3).tolist()
    assert (tmp_path / "1.jsonl").read_text() == (tmp_path / "2.jsonl").read_text()


@pytest.mark.parametrize("change", [
    lambda p: torch.stack([p.k, p.v], dim=1), lambda p: p._replace(gate=torch.zeros(len(p.k), 4)),
    lambda p: p._replace(length=torch.tensor([2])), lambda p: p._replace(k=p.k.repeat(1, 2, 1, 1, 1))])
def test_rows_of_what_they_would_change_are_refused(change, nano):
    with pytest.raises(Error, match="a Prefix of one row, without a gate or lengths"):
        rows(change(prefill(nano, ids(TEXT[:20]))), torch.arange(3))


def test_an_adapted_model_is_no_base_of_a_document(nano):
    model = adapt(nano, "prompt", num_virtual_tokens=2)
    for call in (lambda: prefill(model, ids(TEXT[:9])), lambda: match(model, ids(TEXT[:9]), 3),
                 lambda: divergence(model, None, None, [ids(TEXT[:9])])):
        with pytest.raises(Error, match="the base must be a GPT"):
            call()
    model.detach()
