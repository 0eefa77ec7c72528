"""Tests of positions.py."""

import torch

from docs.exercises.harness import check, expect, random

WTE, WPE, IDX = random(9, 4), random(12, 4, seed=1), torch.tensor([[1, 2, 3], [4, 5, 6]])


def at(first: int):
    return WTE[IDX] + WPE[torch.arange(first, first + 3) % 12]


def test_real_tokens_start_behind_the_virtual_ones(answer):
    expect("x for P = 5", answer.embed(WTE, WPE, IDX, 5), at(5), {
        "real tokens start at position 0: the virtual tokens have taken 0 … P-1": at(0),
        "the first real token stands at P - 1, where the last virtual token is": at(4),
        "the first real token stands at P + 1: position P is left empty": at(6),
    })


def test_cached_tokens_count_too(answer):
    expect("x for P = 2 and 4 cached tokens", answer.embed(WTE, WPE, IDX, 2, cached=4), at(6), {
        "the cached tokens are forgotten: they stand between prefix and idx": at(2),
        "the prefix is forgotten when there is a cache: first = P + cached": at(4),
    })


def test_a_table_that_is_too_short_is_refused(answer):
    expect("x that just fits (P = 9, T = 3, 12 positions)", answer.embed(WTE, WPE, IDX, 9), at(9))
    try:
        answer.embed(WTE, WPE, IDX, 8, cached=2)
    except ValueError as e:
        check("13" in str(e) and "12" in str(e), f"the error names not both numbers, 13 needed and 12 there: {e}")
    except Exception as e:
        check(False, f"13 positions and a table of 12: say so by a ValueError, not by {type(e).__name__}")
    else:
        check(False, "13 positions and a table of 12: that must be refused by a ValueError")
