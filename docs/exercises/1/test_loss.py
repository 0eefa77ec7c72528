"""Tests of loss.py."""

import torch

from docs.exercises.harness import check, expect, random

SEQUENCE = torch.tensor([[11, 12, 13, 21, 22, 23]])  # a prompt of 3 tokens, a completion of 3


def test_targets_are_the_next_tokens_of_the_completion(answer):
    before = SEQUENCE.clone()
    inputs, targets = answer.inputs_and_targets(SEQUENCE, 3)
    check(torch.equal(SEQUENCE, before), "the sequence itself was changed: clone before you write into it")
    expect("inputs", inputs, SEQUENCE[:, :-1])
    expect("targets", targets, torch.tensor([[-100, -100, 21, 22, 23]]), {
        "nothing is shifted: a position predicts the token after it, not itself":
            torch.tensor([[-100, -100, -100, 21, 22]]),
        "the prompt is supervised too: its tokens are given, not predicted": SEQUENCE[:, 1:],
        "the first token of the completion is not supervised: the last token of the prompt predicts it":
            torch.tensor([[-100, -100, -100, 22, 23]]),
    })


def test_loss_is_the_mean_over_supervised_positions(answer):
    logits = random(2, 4, 5)
    targets = torch.tensor([[-100, -100, -100, 3], [-100, 0, 4, 2]])
    terms = -logits.log_softmax(dim=-1).gather(2, targets.clamp_min(0)[..., None])[..., 0] * (targets != -100)
    expect("the loss", answer.loss(logits, targets), terms.sum() / 4, {
        "it is divided by all B·T positions: divide by the supervised ones": terms.sum() / 8,
        "it is the mean of every row's mean, so short completions weigh more":
            (terms.sum(1) / torch.tensor([1, 3])).mean(),
        "it is the sum: divide by the number of supervised positions": terms.sum(),
    })
