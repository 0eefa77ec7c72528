"""Tests of merge.py."""

import torch

from docs.exercises.harness import check, expect, random
from minipeft import prefix_attention

Q, K, V = random(3, 2, 3, 4, 8)
PK, PV = random(2, 1, 3, 5, 8, seed=1)


def parts(answer, scale=1.0):
    return *answer.part(scale * Q, K, V, torch.ones(4, 4, dtype=torch.bool).tril()), *answer.part(scale * Q, PK, PV)


def test_the_mix_is_attention_over_both(answer):
    o_text, text, o_prefix, prefix = parts(answer)
    o, share = answer.merge(o_text, text, o_prefix, prefix)
    right = (prefix - torch.logaddexp(text, prefix)).exp()
    expect("λ", share, right, {
        "this is 1 - λ, the share of the text": 1 - right,
        "the log-sum-exps themselves were compared: they are logarithms, so exp comes first": prefix / (prefix + text),
        "it counts keys, P / (P + T), and not how well they fit": torch.full_like(right, 5 / 9),
        "divided by the text's sum alone: the denominator is the sum of both": (prefix - text).exp(),
        "both parts have the same weight: λ depends on the query": torch.full_like(right, 0.5),
    })
    expect("o", o, prefix_attention(Q, K, V, PK, PV, backend="reference"), {
        "the parts are exchanged: λ is the prefix's": right * o_text + (1 - right) * o_prefix,
        "the text keeps all of its weight: it has 1 - λ": o_text + right * o_prefix,
        "both are added: they are averages, to be mixed by 1 - λ and λ": o_text + o_prefix,
    })


def test_large_scores_do_not_overflow(answer):
    o, share = answer.merge(*parts(answer, scale=2000.0))
    check(bool(share.isfinite().all()) and bool(o.isfinite().all()),
          "scores of some thousands give nan: exp of a log-sum-exp overflows, so subtract first and take exp then")
    expect("o for large scores", o, prefix_attention(2000 * Q, K, V, PK, PV, backend="reference"))
