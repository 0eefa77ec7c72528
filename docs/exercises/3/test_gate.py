"""Tests of gate.py."""

import torch

from docs.exercises.harness import check, expect, random
from minipeft import prefix_attention

Q, K, V = random(3, 2, 4, 4, 4)  # nh = T = hs: a gate on the wrong dimension has a fitting shape
PK, PV = random(2, 1, 4, 4, 4, seed=1)
GATE = random(4, seed=2)


def pieces():
    text = prefix_attention(Q, K, V, backend="reference")
    scores = Q @ PK.mT / 2
    masked = scores.masked_fill(~torch.ones(4, 4, dtype=torch.bool).tril(), -torch.inf)
    return text, scores.softmax(-1) @ PV, masked.softmax(-1) @ PV


def test_gated_attention(answer):
    text, on_prefix, masked = pieces()
    g = GATE.view(-1, 1, 1)
    joined = prefix_attention(Q, K, V, PK, PV, backend="reference")
    lam = ((Q @ PK.mT / 2).logsumexp(-1) - (Q @ K.mT / 2).masked_fill(
        ~torch.ones(4, 4, dtype=torch.bool).tril(), -torch.inf).logsumexp(-1)).sigmoid()[..., None]
    got = answer.gated_attention(Q, K, V, PK, PV, GATE)
    want = prefix_attention(Q, K, V, PK, PV, gate=GATE, backend="reference")
    expect("o", got, want, {
        "the gate lies on the channels: it is one number a head, so view it as (nh, 1, 1)": text + GATE * on_prefix,
        "the gate lies on the tokens: it is one number a head, so view it as (nh, 1, 1)":
            text + GATE[:, None] * on_prefix,
        "the prefix is masked: every query sees all of it": text + g * masked,
        "the text has 1 - g: here it keeps all of its weight": (1 - g) * text + g * on_prefix,
        "one softmax over both: the prefix needs a softmax of its own": (1 - lam) * text + g * lam * on_prefix,
        "there is no gate: this is attention over [prefix ; text]": joined,
        "the gate went through a tanh, as in the released code: the equation here has g itself":
            text + g.tanh() * on_prefix,
    })


def test_at_gate_zero_it_is_the_base_and_the_gate_has_a_gradient(answer):
    gate = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    o = answer.gated_attention(Q, K, V, PK, PV, gate)
    expect("o at gate 0 (it should be the base's)", o, prefix_attention(Q, K, V, backend="reference"))
    check(o.requires_grad, "the gate gets no gradient")
    (gradient,) = torch.autograd.grad(o.sum(), gate)
    expect("the gate's gradient", gradient, pieces()[1].sum(dim=(0, 2, 3)))
