"""Tests of mass.py."""

import torch

from docs.exercises.harness import check, expect, nano, random
from minipeft import prefix_from_prompt, prompt_from_tokens
from minipeft.attention import causal_mask
from minipeft.slots import Prefix

IDX = torch.tensor([list(b"58213764 -> 4673")])


def prefix_of_words():
    return prefix_from_prompt(nano(), prompt_from_tokens(nano(), torch.tensor(list(b"reverse: ")))) + 0.0


def by_sigmoid(prefix, first=None, mask=True, through_prefix=True, norm=True):
    """λ by log-sum-exps, (L, nh, T), and the same with one mistake."""
    base, T = nano(), IDX.size(1)
    x, (rope, *_) = base.add_positions(base.wte(IDX), first=prefix.size(4) if first is None else first)
    found = []
    for block, own in zip(base.h, Prefix.of(prefix).layers(4), strict=True):
        q, k, _ = block.attn.qkv(block.ln_1(x) if norm else x, rope)
        scores, on_prefix = q @ k.mT / 32**0.5, q @ own.k.mT / 32**0.5
        if mask:
            scores = scores.masked_fill(~causal_mask((0, T), (0, T)), -torch.inf)
        found.append((on_prefix.logsumexp(-1) - scores.logsumexp(-1)).sigmoid()[0])
        x = block(x, rope, prefix=own if through_prefix else None)
    return torch.stack(found)


def check_mass(name, got, prefix):
    right = by_sigmoid(prefix)
    check(getattr(got, "shape", ()) != (4, 1, 4, 16), "λ has a dimension for the batch, whose only row is wanted: [0]")
    expect(name, got, right, {
        "the text starts at position 0: behind a prefix it starts at P": by_sigmoid(prefix, first=0),
        "queries see the text behind them: the causal mask is missing": by_sigmoid(prefix, mask=False),
        "the blocks ran without the prefix: from layer 1 on x must be what the prefix made of it":
            by_sigmoid(prefix, through_prefix=False),
        "ln_1 is missing: queries and keys are made of the normalised x": by_sigmoid(prefix, norm=False),
        "this is the mean weight of a virtual token: add up all P": right / prefix.size(4),
        "this is the text's share, 1 - λ": 1 - right,
    }, atol=1e-6)


def test_mass_of_the_words_reverse(answer):
    prefix = prefix_of_words()
    check_mass("λ", answer.mass(nano(), IDX, prefix), prefix)


def test_a_random_prefix_of_one_token(answer):
    prefix = random(4, 2, 1, 4, 1, 32)
    check_mass("λ of one random virtual token", answer.mass(nano(), IDX, prefix), prefix)
