"""What makes a training step fast or small changes nothing in what is learnt."""

import copy
import shutil

import pytest
import torch
from conftest import FROZEN, TRAINED, WITHOUT_CODE, compiling_by, quick, tiny
from conftest import attached as attached_to

import minipeft.model
from minipeft import attention
from minipeft.runtime.profiling import saved_bytes

FIRST = {name: (name, h) for name, h in reversed(TRAINED)}  # one setting of every method that trains
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


def batch(seed, T=40):
    """(3, T) tokens, of whose targets about half are supervised."""
    g = torch.Generator().manual_seed(seed)
    tokens, chosen = torch.randint(97, (3, T + 1), generator=g), torch.rand(3, T, generator=g) < 0.5
    return tokens[:, :-1].contiguous(), torch.where(chosen, tokens[:, 1:], -100)


def gradients(model, idx, targets):
    loss = model.loss(idx, targets)
    return [loss.detach(), *torch.autograd.grad(loss, list(model.trainable_parameters()), allow_unused=True)]


def attached(name, h, dtype=torch.float32, shape="learned"):
    torch.manual_seed(0)
    return attached_to(tiny(shape, dtype), name, h)


def close(got, want, bound):
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert (a - b).norm() <= bound * b.norm() + 1e-7


@pytest.mark.parametrize("name, h", TRAINED)
def test_checkpointing_keeps_less_and_gives_equal_gradients(name, h):
    model = attached(name, h)
    idx, targets = batch(0)
    plain, kept = gradients(model, idx, targets), saved_bytes(lambda: model.loss(idx, targets), model.parameters())
    model.gradient_checkpointing(True)
    close(gradients(model, idx, targets), plain, 1e-6)
    assert saved_bytes(lambda: model.loss(idx, targets), model.parameters()) < 0.6 * kept
    with torch.no_grad():
        assert torch.equal(model.loss(idx, targets), plain[0])
    model.gradient_checkpointing(False)
    assert saved_bytes(lambda: model.loss(idx, targets), model.parameters()) == kept


@pytest.fixture
def kernel(monkeypatch):
    """A compiled model's attention by our kernel, whatever the number of queries."""
    monkeypatch.setattr(attention, "faster", lambda q, compiling: "fused" if compiling else "sdpa")
    torch._dynamo.reset()  # nothing compiled with another choice


# the first setting of every method on Llama's shape: COMPILED has its blocks on GPT-2's, as whole graphs
EVERY = [(*setting, "llama" if setting in FIRST.values() else "learned") for setting in TRAINED]


@needs_compiler
@pytest.mark.parametrize("name, h, shape", quick(EVERY, (*FIRST["prefix"], "llama")))
def test_every_method_is_one_graph_without_breaks(name, h, shape, kernel):
    model = attached(name, h, shape=shape)
    explained = torch._dynamo.explain(model.loss)(*batch(0))
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


# Code for the CPU takes half a minute to make; graphs and their splits take ten seconds.
COMPILED = [
    (*FIRST["prefix"], torch.float32, "learned", "inductor"),
    (*FIRST["prefix"], torch.bfloat16, "learned", "inductor"),
    *((*setting, torch.float32, "learned", WITHOUT_CODE) for setting in FIRST.values()),
    ("prefix", dict(num_virtual_tokens=3, space="hidden"), torch.float32, "learned", WITHOUT_CODE),
    ("llama-adapter", dict(adapter_len=4, adapter_layers=2), torch.float32, "learned", WITHOUT_CODE),
    (*FIRST["prefix"], torch.float32, "llama", WITHOUT_CODE),
    (*FIRST["prefix"], torch.float32, "gemma3", "inductor"),
    (*FIRST["prompt"], torch.float32, "gemma3", WITHOUT_CODE),
    (*FIRST["lora"], torch.float32, "gemma3", WITHOUT_CODE),
    (*FIRST["prefix"], torch.float32, "smollm3", WITHOUT_CODE),
    (*FIRST["prefix"], torch.float32, "qwen3", WITHOUT_CODE),
]


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name, h, dtype, shape, backend", COMPILED)
def test_compiled_blocks_give_equal_gradients_and_are_compiled_once(
    name, h, dtype, shape, backend, kernel, monkeypatch
):
    monkeypatch.setattr(minipeft.model, "compiled", compiling_by(backend))
    model, eager = attached(name, h, dtype, shape), attached(name, h, dtype, shape)
    model.compile_blocks()
    bound = 1e-5 if dtype == torch.float32 else 0.1
    close(gradients(model, *batch(0)), gradients(eager, *batch(0)), bound)
    counters = torch._dynamo.utils.counters["stats"]
    after_one = counters["unique_graphs"]
    for step in range(1, 50):
        idx, targets = batch(step)
        model.loss(idx, targets).backward()
    assert counters["unique_graphs"] == after_one
    model.gradient_checkpointing(True)
    close(gradients(model, *batch(0)), gradients(eager, *batch(0)), bound)
    assert counters["unique_graphs"] == after_one


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_layers_and_lengths_share_one_compilation(dtype, monkeypatch):
    """The first layer's input needs no gradient under a prefix: it would be a program of its own, and runs eagerly."""
    torch._dynamo.reset()
    fused = attention._fused
    if dtype == torch.bfloat16:  # the kernel in one span, else torch's operator
        monkeypatch.setattr(attention, "_fused", lambda *a, whole: fused(*a, whole=whole) if whole else None)
        monkeypatch.delattr(attention, "_sdpa")
    else:
        monkeypatch.delattr(attention, "_fused")
    monkeypatch.setattr(minipeft.model, "compiled", compiling_by(WITHOUT_CODE))
    model, eager = (attached("prefix", {"num_virtual_tokens": 3}, dtype) for _ in range(2))
    model.compile_blocks(any_length=True)
    torch._dynamo.utils.counters.clear()  # of the program that shows whether compiling works here
    for T in (17, 23, 36, 40):
        bound = 1e-5 if dtype == torch.float32 else 0.1
        close(gradients(model, *batch(0, T=T)), gradients(eager, *batch(0, T=T)), bound)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
@needs_compiler
def test_within_a_compiled_model_no_scores_are_kept_either(kernel):
    """torch.compile sees forward and backward at once, and may not keep the scores that both of them make."""
    run = compiling_by(WITHOUT_CODE)(lambda *a: attention.prefix_attention(*a))
    for T, P in [(40, 6), (40, 60), (130, 6)]:
        g = torch.Generator().manual_seed(0)
        given = [torch.randn(s, generator=g).requires_grad_() for s in 3 * [(2, 4, T, 8)] + 2 * [(1, 4, P, 8)]]
        assert saved_bytes(lambda given=given: run(*given), []) == 4 * (4 * 2 * T * 32 + 2 * P * 32 + 2 * T * 4)


def test_detaching_gives_back_a_base_that_runs_as_it_did():
    model = attached("prefix", {"num_virtual_tokens": 3})
    model.gradient_checkpointing(True)
    model.base.through_compile = True
    base = model.detach()
    assert not base.checkpointed and not base.through_compile


@pytest.mark.parametrize("name, h", quick(FROZEN, *FIRST.values()))
def test_a_base_in_bfloat16_stays_and_what_is_trained_is_float32(name, h):
    model = attached(name, h, torch.bfloat16)
    before = copy.deepcopy(model.base.state_dict())
    optimizer = torch.optim.AdamW(model.trainable_parameters(), lr=0.05, fused=True)
    losses = []
    for _ in range(12):
        loss = model.loss(*batch(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert {p.dtype for p in model.trainable_parameters()} == {torch.float32}
    assert {p.dtype for p in model.base.parameters()} == {torch.bfloat16}
    assert losses[-1] < losses[0]
    assert all(torch.equal(before[k], t) for k, t in model.base.state_dict().items())
    wide = attached(name, h)
    wide.base.load_state_dict(before)
    wide.method.load_state_dict(model.method.state_dict())
    assert abs(wide.loss(*batch(0)).item() - model.loss(*batch(0)).item()) < 0.05
