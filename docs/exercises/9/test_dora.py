"""Tests of dora.py."""

import torch

from docs.exercises.harness import check, expect, random

W, X, A, B = random(4, 4), random(3, 4, seed=1), random(2, 4, seed=2), random(4, 2, seed=3)
M = random(4, seed=4).abs() + 0.5
ALPHA = 6.0


def test_merged_weight(answer):
    V = W + 3 * B @ A
    expect("W'", answer.merged(W, A, B, ALPHA, M), M[:, None] * V / V.norm(dim=1, keepdim=True), {
        "the norms are of columns: m has a length for each row of (out, in), each output channel":
            M[:, None] * V / V.norm(dim=0, keepdim=True),
        "V was divided by the norms of W: the direction of V is wanted": M[:, None] * V / W.norm(dim=1, keepdim=True),
        "the lengths lie on the input channels: m[:, None] scales rows": M * V / V.norm(dim=1, keepdim=True),
        "α/r is missing": M[:, None] * (W + B @ A) / (W + B @ A).norm(dim=1, keepdim=True),
        "α was taken without dividing by r": M[:, None] * (W + 6 * B @ A) / (W + 6 * B @ A).norm(dim=1, keepdim=True),
        "the lengths m are missing": V / V.norm(dim=1, keepdim=True),
        "V was not divided by its norms": M[:, None] * V,
        "one norm for the whole matrix: every row has its own": M[:, None] * V / V.norm(),
    })


def test_it_starts_as_the_base(answer):
    got = answer.merged(W, A, torch.zeros_like(B), ALPHA, W.norm(dim=1))
    expect("W' for B = 0 and m = ‖W‖ (it should be W)", got, W)


def test_forward_and_its_gradient(answer):
    b = B.clone().requires_grad_()
    y = answer.forward(X, W, A, b, ALPHA, M)
    V = (W + 3 * B @ A).requires_grad_()
    expect("y", y.detach(), (X @ V.T * (M / V.norm(dim=1))).detach())
    (gradient,) = torch.autograd.grad(y.square().sum(), b)

    def through(norm):
        (dV,) = torch.autograd.grad((X @ V.T * (M / norm)).square().sum(), V)
        return 3 * dV @ A.T

    expect("the gradient of B", gradient, through(V.norm(dim=1).detach()), {
        "‖V‖ has a gradient here: it counts as a constant, so detach it": through(V.norm(dim=1))})
    check(y.shape == (3, 4), f"y has shape {tuple(y.shape)}")
