"""Tests of backward.py: against autograd of the textbook, then gradcheck."""

import torch

from docs.exercises.harness import check, expect, random

N, T, P, HS = 2, 3, 4, 5
MASK = torch.ones(T, T, dtype=torch.bool).tril()


def scores(q, k):
    return q @ k.mT / HS**0.5


def attend(q, k, v, pk, pv):
    """-> merged o (N, T, hs) and lse (N, T, 1)."""
    joined = torch.cat([scores(q, pk), scores(q, k).masked_fill(~MASK, -torch.inf)], dim=-1)
    values = torch.cat([pv.expand(len(q), -1, -1), v], dim=1)
    return joined.softmax(dim=-1) @ values, joined.logsumexp(dim=-1, keepdim=True)


def inputs():
    return *random(3, N, T, HS), *random(2, P, HS, seed=1)


def text_gradients(do, q, k, v, o, lse):
    W = (scores(q, k) - lse).exp().masked_fill(~MASK, 0)
    dS = W * (do @ v.mT - (do * o).sum(-1, keepdim=True))
    return dS @ k / HS**0.5, dS.mT @ q / HS**0.5, W.mT @ do


def variants(do, q, k, v, pk, pv, D=None, own=False, scale=HS**0.5, sign=1):
    o, lse = attend(q, k, v, pk, pv)
    lse = scores(q, pk).logsumexp(-1, keepdim=True) if own else lse
    W = (scores(q, pk) - lse).exp()
    dS = W * (do @ pv.T - ((do * o).sum(-1, keepdim=True) if D is None else D) * sign)
    return dS @ pk / scale, (dS.mT @ q).sum(0) / scale, (W.mT @ do).sum(0)


def test_gradients_are_those_of_autograd(answer):
    q, k, v, pk, pv = inputs()
    do = random(N, T, HS, seed=2)
    o, lse = attend(q, k, v, pk, pv)
    got = answer.prefix_gradients(do, q, pk, pv, o, lse)
    check(isinstance(got, tuple) and len(got) == 3, "three gradients are wanted: dq, dpk, dpv")
    check(got[1].dim() == 2, "dpk has one row for each of the N heads: they share the prefix, so sum over N")
    own_o = scores(q, pk).softmax(-1) @ pv
    mistakes = {
        "D is missing: the softmax's gradient is W ∘ (do pvᵀ - D)": variants(do, q, k, v, pk, pv, D=0.0),
        "the weights sum to 1 over the prefix alone: subtract the merged lse": variants(do, q, k, v, pk, pv, own=True),
        "1/√hs is missing: S has it, so dq and dpk have it": variants(do, q, k, v, pk, pv, scale=1.0),
        "D was made of the prefix's own output: take the merged o":
            variants(do, q, k, v, pk, pv, D=(do * own_o).sum(-1, keepdim=True)),
        "D has the wrong sign": variants(do, q, k, v, pk, pv, sign=-1),
    }
    for i, name in enumerate(("dq", "dpk", "dpv")):
        expect(name, got[i], variants(do, q, k, v, pk, pv)[i], {message: x[i] for message, x in mistakes.items()})


def test_gradcheck_of_all_five_inputs(answer):
    class SplitAttention(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v, pk, pv):
            o, lse = attend(q, k, v, pk, pv)
            ctx.save_for_backward(q, k, v, pk, pv, o, lse)
            return o

        @staticmethod
        def backward(ctx, do):
            q, k, v, pk, pv, o, lse = ctx.saved_tensors
            dq, dk, dv = text_gradients(do, q, k, v, o, lse)
            dq_prefix, dpk, dpv = answer.prefix_gradients(do, q, pk, pv, o, lse)
            return dq + dq_prefix, dk, dv, dpk, dpv

    five = [x.requires_grad_() for x in inputs()]
    right = torch.autograd.gradcheck(SplitAttention.apply, five, raise_exception=False)
    check(right, "gradcheck: the gradients differ from finite differences of the textbook")
