"""Tests of concatenation.py."""

import torch

from docs.exercises.harness import expect, random
from minipeft import prefix_attention

Q, K, V = random(3, 2, 3, 4, 8)
PK, PV = random(2, 1, 3, 5, 8, seed=1)


def textbook(scale=8**0.5, tril=5, dim=-1, after=False):
    k, v = (torch.cat([p.expand(2, -1, -1, -1), x], dim=2) for p, x in ((PK, K), (PV, V)))
    mask = torch.ones(4, 9, dtype=torch.bool).tril(tril)
    scores = Q @ k.mT / scale
    if after:
        return (scores.softmax(dim=dim) * mask) @ v
    return scores.masked_fill(~mask, -torch.inf).softmax(dim=dim).nan_to_num() @ v


def test_attention_is_the_textbook(answer):
    expect("o", answer.attention(Q, K, V, PK, PV), prefix_attention(Q, K, V, PK, PV, backend="reference"), {
        "the scores are not divided by √hs": textbook(scale=1),
        "the scores are divided by hs, not by its root": textbook(scale=8),
        "the prefix is masked too: all of its P columns are open to every query": textbook(tril=0),
        "nothing is masked: a token sees the ones after it": textbook(tril=9),
        "the softmax is over the queries: each query's weights must sum to 1 over the keys": textbook(dim=-2),
        "masked after the softmax: the weights that are left no longer sum to 1": textbook(after=True),
    })


def test_an_empty_prefix_changes_nothing(answer):
    none = PK[:, :, :0]
    plain = prefix_attention(Q, K, V, backend="reference")
    expect("o without a prefix (P = 0)", answer.attention(Q, K, V, none, none), plain)
