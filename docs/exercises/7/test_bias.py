"""Tests of bias.py."""

import torch

from docs.exercises.harness import check, expect, random

Q, K, V, BIAS = random(5, 4), random(6, 4, seed=1), random(6, 4, seed=2), random(6, seed=3)
ROWS = torch.tensor([0, 1, 1, 2, 1, 2])  # row 1 three times, row 2 twice


def test_mass_and_output(answer):
    log_mass, o = answer.mass_and_output(Q, K, V, BIAS)
    plain = Q @ K.T / 2
    scores = plain + BIAS
    expect("log m", log_mass, scores.logsumexp(-1), {
        "this is m: return its logarithm": scores.exp().sum(-1),
        "the bias is missing": plain.logsumexp(-1),
        "the bias was divided by √hs as well: it is added to the finished scores": ((Q @ K.T + BIAS) / 2).logsumexp(-1),
        "the scores are not divided by √hs": (Q @ K.T + BIAS).logsumexp(-1),
        "β itself was a factor: exp β is": (plain.exp() * BIAS).sum(-1).log(),
    })
    expect("o", o, scores.softmax(-1) @ V, {
        "it is not divided by m": scores.exp() @ V,
        "the bias is in the mass, but not in the output": plain.softmax(-1) @ V,
    })


def test_a_key_can_be_absent_and_scores_can_be_large(answer):
    bias = BIAS.clone()
    bias[2] = -torch.inf
    log_mass, o = answer.mass_and_output(1000 * Q, K, V, bias)
    check(bool(log_mass.isfinite().all()),
          "log m is not finite for scores in the hundreds: exp overflows; logsumexp does not")
    rest = torch.tensor([0, 1, 3, 4, 5])
    expect("o with β = -inf on key 2", o, answer.mass_and_output(1000 * Q, K[rest], V[rest], bias[rest])[1])


def test_one_row_counts_as_many(answer):
    keys, values = K[ROWS], V[ROWS]
    values[5] += 1.0  # row 5 has the key of row 3, but another value
    got = answer.counted(keys, values)
    check(isinstance(got, tuple) and len(got) == 3, "three tensors are wanted: keys, values, bias")
    k, v, bias = got
    check(len(k) != 3, "there are 3 rows, and there should be 4: "
          "two rows have one key and different values, so they are not equal")
    check(k.shape == v.shape == (4, 4) and bias.shape == (4,), "keys and values must be (4, 4) and the bias (4,), "
          f"but they are {tuple(k.shape)}, {tuple(v.shape)} and {tuple(bias.shape)}")
    scores = Q @ keys.T / 2
    counts = torch.tensor([int(((keys == a) & (values == b)).all(-1).sum()) for a, b in zip(k, v, strict=True)])
    check(not torch.allclose(bias, counts.to(bias.dtype)), "β is the count itself: exp β must be the count")
    check(not torch.allclose(bias, -counts.log().to(bias.dtype)),
          "β has the wrong sign: three equal keys weigh more than one")
    check(bool(bias.any()), "β is 0 everywhere: then a row that was there three times weighs as one")
    own = Q @ k.T / 2 + bias
    expect("log m of the rows that are left", own.logsumexp(-1), scores.logsumexp(-1))
    expect("o of the rows that are left", own.softmax(-1) @ v, scores.softmax(-1) @ values)
