"""Tests of bank.py."""

import torch

from docs.exercises.harness import check, expect, random, small
from minipeft import Prefix

PREFIXES = {"a": random(3, 2, 1, 4, 5, 8), "b": random(3, 2, 1, 4, 2, 8, seed=1)}
TASKS = ["b", None, "a", "b"]
IDX = torch.randint(50, (4, 6), generator=torch.Generator().manual_seed(0))


def test_shapes_and_lengths(answer):
    k, v, length = answer.gather(PREFIXES, TASKS)
    check(k.dim() != 5 or k.size(3) != 2, "the prefixes were cut to the shortest: pad to the longest instead")
    check(k.shape == v.shape == (3, 4, 4, 5, 8), f"keys {tuple(k.shape)} and values {tuple(v.shape)} should be "
          "(L, B, nh, P, hs) = (3, 4, 4, 5, 8)")
    expect("length", length, torch.tensor([2, 0, 5, 2]), {
        "every row was given the longest length, but zeros as keys do get attention (exp(0) = 1)":
            torch.full((4,), 5),
        "a row without a task has no prefix: its length is 0": torch.tensor([2, 5, 5, 2]),
    })


def test_padding_stands_at_the_end(answer):
    k, v, _ = answer.gather(PREFIXES, TASKS)
    own = PREFIXES["b"][:, 0, 0]
    check(not torch.equal(k[:, 0, :, 3:], own),
          "keys: the padding stands before the prefix; length counts from the front")
    expect("the first two keys of row 0", k[:, 0, :, :2], own, {
        "they are the values: a prefix is (L, 2, …), keys first": PREFIXES["b"][:, 1, 0],
        "they are those of task a: look up each row's own": PREFIXES["a"][:, 0, 0, :, :2]})
    expect("the first two values of row 0", v[:, 0, :, :2], PREFIXES["b"][:, 1, 0])


def test_every_row_answers_as_alone(answer):
    base = small()
    k, v, length = answer.gather(PREFIXES, TASKS)
    together = base(IDX, prefix=Prefix(k, v, length=length))
    for row, task in enumerate(TASKS):
        alone = base(IDX[row : row + 1], prefix=PREFIXES[task]) if task else base(IDX[row : row + 1])
        expect(f"logits of row {row} (task {task})", together[row : row + 1], alone)
