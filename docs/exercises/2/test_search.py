"""Tests of search.py."""

import torch

from docs.exercises.harness import check, expect, random

WTE, GRADIENT, TOKENS = random(30, 6), random(4, 6, seed=1), (5, 6, 7, 8)


def test_the_gradient_proposes(answer):
    change = WTE @ GRADIENT[2]
    direction = torch.nn.functional.cosine_similarity(WTE, GRADIENT[2], dim=1)
    expect("the proposed tokens", answer.promising(WTE, GRADIENT, 2, 3), change.topk(3, largest=False).indices, {
        "these raise the loss most: the change should be as negative as can be": change.topk(3).indices,
        "the gradient of all places was added up: take row i alone":
            (WTE @ GRADIENT.sum(0)).topk(3, largest=False).indices,
        "the first k tokens were taken, whatever the gradient says": torch.arange(3),
        "only the direction was compared: the length of an embedding counts too":
            direction.topk(3, largest=False).indices,
    })


def losses(table, others=9.0):
    return lambda tokens: table.get(tokens.tolist()[2], others)


def test_the_loss_decides(answer):
    first, second, third = (WTE @ GRADIENT[2]).topk(3, largest=False).indices.tolist()
    tokens = torch.tensor(TOKENS)
    proposed = {7: 2.0, first: 3.0, second: 1.0, third: 1.5}
    found = answer.search_step(losses(proposed, others=0.1), WTE, tokens, GRADIENT, 2, 3)
    check(tokens.tolist() == [*TOKENS], "`tokens` itself was changed: clone it before a token is replaced")
    check(found.tolist()[2] in proposed, "a token was taken that is not among the k proposed: only these are tried")
    want, trusted = torch.tensor(TOKENS), torch.tensor(TOKENS)
    want[2], trusted[2] = second, first
    expect("the prompt", found, want, {
        "the estimate was trusted: try all k by `loss` and take the smallest": trusted,
        "nothing was replaced, though the second proposal has half the loss (did promising() name it?)": tokens,
    })


def test_a_worse_token_is_not_taken(answer):
    tokens = torch.tensor(TOKENS)
    found = answer.search_step(losses({7: 0.5}), WTE, tokens, GRADIENT, 2, 3)
    check(tokens.tolist() == [*TOKENS], "`tokens` itself was changed: clone it before a token is replaced")
    check(torch.equal(found, tokens),
          "a token was replaced though no proposal lowers the loss: `tokens` itself is a candidate")
