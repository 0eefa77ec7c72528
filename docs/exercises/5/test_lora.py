"""Tests of lora.py."""

import torch

from docs.exercises.harness import check, expect, random

W, X = random(6, 4).float(), random(5, 4, seed=1).float()


def layer(answer, started=True):
    torch.manual_seed(0)
    lora = answer.LoRALinear(W, r=2, alpha=6.0)
    if not started:
        with torch.no_grad():
            lora.A.copy_(random(2, 4, seed=2))
            lora.B.copy_(random(6, 2, seed=3))
    return lora


def test_step_zero_is_the_base_and_can_learn(answer):
    lora = layer(answer)
    check(lora.A.shape == (2, 4) and lora.B.shape == (6, 2), f"A must be (r, in) = (2, 4) and B (out, r) = (6, 2), "
          f"but they are {tuple(lora.A.shape)} and {tuple(lora.B.shape)}")
    check(bool((lora.A == 0).all() | (lora.B == 0).all()), "step 0 is not the base: start one of A and B at zero")
    check(bool(lora.A.any() | lora.B.any()), "A and B both start at zero: then neither has a gradient, for ever")
    y = lora(X)
    expect("y at step 0", y, X @ W.T, atol=1e-5)
    y.sum().backward()
    check(not lora.W.requires_grad, "W is frozen: it must not require a gradient")
    check(any(p.grad is not None and bool(p.grad.any()) for p in (lora.A, lora.B)), "neither A nor B has a gradient")


def test_forward_is_the_equation(answer):
    lora = layer(answer, started=False)
    change = (X @ lora.A.T @ lora.B.T).detach()
    expect("y", lora(X).detach(), X @ W.T + 3 * change, {
        "the change is scaled by α and not by α/r": X @ W.T + 6 * change,
        "the change is not scaled: α/r is missing": X @ W.T + change,
        "W x is missing: the change is added to it": 3 * change,
    }, atol=1e-5)


def test_merge_and_unmerge(answer):
    lora = layer(answer, started=False)
    before = lora(X).detach()
    change = (lora.B @ lora.A).detach()
    lora.merge()
    check(not lora.W.requires_grad, "W after merge() requires a gradient: the change is added without a graph (detach)")
    expect("W after merge()", lora.W.detach(), W + 3 * change, {
        "α/r is missing in merge()": W + change,
        "W is as it was: merge() must change it": W,
    }, atol=1e-5)
    expect("y after merge()", lora(X).detach(), before, {
        "the change is added twice: W has it already, so forward() leaves it out": before + 3 * X @ change.T,
    }, atol=1e-5)
    lora.unmerge()
    check(bool((lora.W - W).abs().max() < 1e-3), "W after unmerge() still has the change: was the original kept, "
          "and as a copy? (W += … writes into the tensor that was kept)")
    check(torch.equal(lora.W, W),
          "W after unmerge() is not W bit for bit: adding and subtracting rounds, so keep the original")
    expect("y after unmerge()", lora(X).detach(), before, {
        "the change is left out after unmerge()": X @ W.T}, atol=1e-5)
