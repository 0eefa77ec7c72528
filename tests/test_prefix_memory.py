"""PrefixMemory-Tuning: its equation, its size, and tasks by row."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import moved, one_shape, tiny

from minipeft import PRESETS, Error, TaskBank, accounting, adapt, generate

FEATURE_MAPS = {
    "elu": lambda x: torch.where(x > 0, x, torch.exp(x) - 1),
    "gelu": lambda x: x / 2 * (1 + torch.erf(x / math.sqrt(2))),
}


def textbook(base, idx, memory, phi):
    """Logits with o = softmax(q Kᵀ / sqrt(hs)) V + φ(q) M in every head; memory: M (nh, hs, hs) of each block."""
    c, (B, T) = base.config, idx.shape
    x, ropes = base.add_positions(base.embed(idx))
    for i, (block, rope, M) in enumerate(zip(base.h, ropes, memory, strict=True)):
        seen = torch.ones(T, T).tril().bool() & ~torch.ones(T, T).tril(-(c.window(i) or T)).bool()
        q, k, v = block.attn.qkv(block.ln_1(x), rope)
        o = torch.empty_like(q)
        for h in range(c.n_head):
            group = h // (c.n_head // c.n_kv)
            scores = q[:, h] @ k[:, group].mT / math.sqrt(c.head_size)
            weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
            o[:, h] = weights @ v[:, group] + phi(q[:, h]) @ M[h]
        out = block.attn.c_proj if c.projections == "joined" else block.attn.o_proj
        x = x + block.ln_1_post(out(o.transpose(1, 2).reshape(B, T, -1)))
        x = x + block.ln_2_post(block.mlp(block.ln_2(x)))
    return base.ln_f(x) @ base.head.mT


@pytest.mark.parametrize("feature_map", FEATURE_MAPS)
def test_logits_and_gradients_are_those_of_the_equation(shape, feature_map, idx):
    base = tiny(shape, torch.float64)
    model = moved(adapt(base, "prefix-memory", feature_map=feature_map), 0.3)
    memory = [p.detach()[0].clone().requires_grad_() for p in model.trainable_parameters()]
    want = textbook(base, idx, memory, FEATURE_MAPS[feature_map])
    torch.testing.assert_close(model(idx), want, rtol=0, atol=1e-10)
    targets = idx.roll(-1, 1)
    gradients = torch.autograd.grad(F.cross_entropy(want.flatten(0, 1), targets.flatten()), memory)
    model.loss(idx, targets).backward()
    for p, gradient in zip(model.trainable_parameters(), gradients, strict=True):
        assert gradient.abs().max() > 1e-6
        torch.testing.assert_close(p.grad[0], gradient, rtol=0, atol=1e-10)


@torch.no_grad()
def test_it_starts_as_the_base_and_answers_with_a_cache_as_without(base, idx):
    model = adapt(base, "prefix-memory")
    assert torch.equal(model(idx), base(idx))
    model = moved(model, 0.2)
    got = generate(model, idx[:1], 6)
    for n in range(idx.size(1), got.size(1)):
        assert got[0, n] == model(got[:, :n])[0, -1].argmax()


def test_it_has_the_parameters_of_a_prefix_of_half_the_head_size():
    gpt2 = PRESETS["gpt2"]
    counted = accounting.count(gpt2, "prefix-memory")
    assert counted == accounting.count(gpt2, "prefix", num_virtual_tokens=gpt2.head_size // 2)
    assert counted.trained == gpt2.n_layer * gpt2.n_head * gpt2.head_size**2


@torch.no_grad()
def test_rows_of_a_batch_have_a_task_each(idx):
    base = tiny("llama", torch.float64)
    tasks = {name: moved(adapt(base, "prefix-memory", feature_map="gelu"), 0.3) for name in "ab"}
    tasks |= {"c": moved(adapt(base, "prefix", num_virtual_tokens=2))}
    bank = TaskBank(base, tasks)
    for names in (["b", None, "a"], ["c", "a", "b"], ["a", "a", "a"]):
        alone = [(tasks[name] if name else base)(row[None]) for row, name in zip(idx, names, strict=True)]
        torch.testing.assert_close(bank(idx, names), torch.cat(alone), rtol=0, atol=1e-10)


@one_shape
def test_what_it_cannot_do_is_refused_in_one_line(base):
    elu, gelu = (adapt(base, "prefix-memory", feature_map=name) for name in FEATURE_MAPS)
    with pytest.raises(Error, match="^tasks that hook attn.heads in different ways.*EluMemory and GeluMemory$"):
        TaskBank(base, {"a": elu, "b": gelu})
    with pytest.raises(Error, match="^prefix-memory cannot be merged.*$"):
        elu.merge()
    with pytest.raises(Error, match="^feature_map must be 'elu' or 'gelu', not 'relu'$"):
        adapt(base, "prefix-memory", feature_map="relu")
