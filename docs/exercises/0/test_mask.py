"""Tests of mask.py."""

import torch

from docs.exercises.harness import check, expect


def test_mask_of_three_tokens_behind_two_virtual_ones(answer):
    mask = answer.open_mask(2, 3)
    want = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    closed = torch.ones(3, 5, dtype=torch.bool).tril()
    if isinstance(mask, torch.Tensor):
        check(mask.dtype == torch.bool, f"the mask has dtype {mask.dtype} and should be boolean")
        check(mask.shape != (5, 5), "the mask has P + T rows: virtual tokens of a prefix ask nothing, "
              "they are keys only, so rows are the T real tokens")
    expect("the mask", mask, want, {
        "the virtual tokens are causal too: token 0 sees 1 of 2, but all P columns are open": closed,
        "True and False are exchanged: True = may attend": ~want,
        "the virtual tokens are on the right: their columns come first": want.roll(-2, dims=1),
        "a token does not see itself: the diagonal is missing": torch.ones(3, 5, dtype=torch.bool).tril(1),
    })


def test_without_virtual_tokens_it_is_the_causal_mask(answer):
    expect("the mask for P = 0", answer.open_mask(0, 4), torch.ones(4, 4, dtype=torch.bool).tril())
