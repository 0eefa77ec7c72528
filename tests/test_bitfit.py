"""BitFit: its equation, what it changes, and the bases it refuses."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import moved, tiny

from minipeft import GPT, Error, GPTConfig, TaskBank, accounting, adapt
from minipeft.config import LLAMA


def textbook(base, idx, change):
    """Logits of a GPT-2 whose linears have the biases b + δ; change: {name of a bias: δ}."""
    c, w, T = base.config, base.state_dict(), idx.size(1)

    def norm(name, x):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + c.layer_norm_epsilon).sqrt()
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(name, x):
        return x @ w[f"{name}.weight"].mT + (w[f"{name}.bias"] + change[f"{name}.bias"])

    x = w["wte.weight"][idx] + w["wpe.weight"][:T]
    for i in range(c.n_layer):
        q, k, v = (y.unflatten(-1, (c.n_head, -1)).transpose(1, 2)
                   for y in linear(f"h.{i}.attn.c_attn", norm(f"h.{i}.ln_1", x)).chunk(3, -1))
        scores = (q @ k.mT / math.sqrt(c.head_size)).masked_fill(~torch.ones(T, T).tril().bool(), -math.inf)
        x = x + linear(f"h.{i}.attn.c_proj", (scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        f = linear(f"h.{i}.mlp.c_fc", norm(f"h.{i}.ln_2", x))
        x = x + linear(f"h.{i}.mlp.c_proj", f / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (f + 0.044715 * f**3))))
    return norm("ln_f", x) @ w["wte.weight"].mT


def qkv_base():
    """A base with biases at q, k and v alone."""
    torch.manual_seed(0)
    base = GPT(GPTConfig(97, 48, n_layer=2, n_head=4, n_embd=32, n_kv_head=2, **LLAMA | {"bias": "qkv"}))
    return moved(adapt(base, "full"), 0.2).detach()


def test_logits_and_gradients_are_those_of_the_equation(idx):
    base = tiny("learned", torch.float64)
    model = moved(adapt(base, "bitfit"), 0.3)
    change = {name: t.clone().requires_grad_() for name, t in model.method.tensors().items()}
    want = textbook(base, idx, change)
    torch.testing.assert_close(model(idx), want, rtol=0, atol=1e-10)
    targets = idx.roll(-1, 1)
    gradients = torch.autograd.grad(F.cross_entropy(want.flatten(0, 1), targets.flatten()), change.values())
    model.loss(idx, targets).backward()
    for p, gradient in zip(model.trainable_parameters(), gradients, strict=True):
        assert gradient.abs().max() > 1e-6
        torch.testing.assert_close(p.grad.flatten(), gradient, rtol=0, atol=1e-10)


@pytest.mark.parametrize("make", [tiny, qkv_base])
def test_its_tensors_are_the_biases_of_the_blocks_and_it_starts_as_the_base(make, idx):
    base = make()
    with torch.no_grad():
        before = base(idx)
        model = adapt(base, "bitfit")
        assert torch.equal(model(idx), before)
    biases = {name: t.shape for name, t in base.named_parameters() if name.endswith("bias") and "ln_" not in name}
    assert {name: t.shape for name, t in model.method.tensors().items()} == biases


@pytest.mark.parametrize("make", [tiny, qkv_base])
@torch.no_grad()
def test_merged_it_is_in_the_biases_and_unmerged_the_base_is_as_before(make, idx):
    base = make()
    before = {name: t.clone() for name, t in base.state_dict().items()}
    model = moved(adapt(base, "bitfit"), 0.3)
    want = model(idx)
    model.merge()
    torch.testing.assert_close(base(idx), want, rtol=0, atol=1e-4)
    changed = {name for name, t in base.state_dict().items() if not torch.equal(t, before[name])}
    assert changed == set(model.method.tensors())
    model.unmerge()
    assert all(torch.equal(t, before[name]) for name, t in base.state_dict().items())


@torch.no_grad()
def test_a_layernorm_bias_before_a_linear_is_contained_in_that_linears(idx):
    base = tiny("learned", torch.float64)
    model, change = adapt(base, "bitfit"), torch.randn(2, 32, dtype=torch.float64)
    for name, δ in zip(("attn.c_attn", "mlp.c_fc"), change, strict=True):
        model.method.tensors()[f"h.1.{name}.bias"].copy_(base.h[1].get_submodule(name).weight @ δ)
    got = model(idx)
    for ln, δ in zip(("ln_1", "ln_2"), change, strict=True):
        base.h[1].get_submodule(ln).bias.add_(δ)
    torch.testing.assert_close(got, model.detach()(idx), rtol=0, atol=1e-10)


@torch.no_grad()
def test_rows_of_a_batch_have_a_task_each(idx):
    base = tiny("rotary", torch.float64)
    tasks = {name: moved(adapt(base, "bitfit"), 0.3) for name in "ab"}
    mixed = TaskBank(base, tasks)(idx, ["b", None, "a"])
    alone = tasks["b"](idx[:1]), base(idx[1:2]), tasks["a"](idx[2:])
    torch.testing.assert_close(mixed, torch.cat(alone), rtol=0, atol=1e-10)


def test_a_base_without_biases_is_refused():
    base = tiny("llama")
    for ask in (lambda: adapt(base, "bitfit"), lambda: accounting.count(base.config, "bitfit")):
        with pytest.raises(Error, match="^this base has no biases for bitfit to train.*$"):
            ask()


def test_it_trains_nine_numbers_a_channel_in_each_block_of_gpt2():
    gpt2 = GPTConfig()
    assert accounting.count(gpt2, "bitfit").trained == 9 * gpt2.n_layer * gpt2.n_embd
