"""Tests of adapter.py."""

import torch
import torch.nn.functional as F

from docs.exercises.harness import check, expect, random

Y = random(2, 3, 8)
SHAPES = {"down": (3, 8), "b_down": (3,), "up": (8, 3), "b_up": (8,)}


def layer(answer):
    torch.manual_seed(0)
    return answer.Bottleneck(8, 3).double()


def test_step_zero_is_the_base_and_can_learn(answer):
    adapter = layer(answer)
    for name, shape in SHAPES.items():
        got = tuple(getattr(adapter, name).shape)
        check(got == shape, f"{name} has shape {got} and should have {shape}")
    check(adapter.down.any() or adapter.up.any(), "both matrices start at zero: then only b_up ever gets a gradient")
    expect("the output at step 0", adapter(Y).detach(), Y, {
        "y is not added: the network's output is a change of y": torch.zeros_like(Y)})


def test_forward_is_the_equation(answer):
    adapter = layer(answer)
    with torch.no_grad():
        for i, name in enumerate(SHAPES):
            getattr(adapter, name).copy_(random(*SHAPES[name], seed=i + 1))
    down, b_down, up, b_up = (getattr(adapter, name).detach() for name in SHAPES)
    inner = F.linear(Y, down, b_down)
    expect("the output", adapter(Y).detach(), Y + F.linear(F.gelu(inner), up, b_up), {
        "y is not added: the network's output is a change of y": F.linear(F.gelu(inner), up, b_up),
        "there is no gelu: two linears are one, and could be merged": Y + F.linear(inner, up, b_up),
        "it has relu where the equation has gelu": Y + F.linear(inner.relu(), up, b_up),
        "the gelu comes too late: it stands between down and up": Y + F.gelu(F.linear(inner, up, b_up)),
        "the biases are missing": Y + F.linear(F.gelu(Y @ down.T), up),
    })
