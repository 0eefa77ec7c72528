"""Tests of compare.py."""

import math
import statistics

from docs.exercises.harness import check

A = {0: 53.0, 1: 55.5, 2: 60.0, 3: 57.5, 9: 90.0}
B = {3: 55.0, 2: 58.5, 1: 52.5, 0: 51.0}
DIFFERENCES = [2.0, 3.0, 1.5, 2.5]


def test_the_best_learning_rate_lies_inside(answer):
    best, further = answer.choose({0.1: 1.56, 0.03: 1.52, 0.01: 1.54})
    check(best != 0.1, "the highest loss was chosen: the lowest is wanted")
    check(best == 0.03, f"{best} was chosen, and 0.03 has the lowest loss")
    check(not further, "0.03 lies between two that were tried: nothing further is needed")
    best, further = answer.choose({0.03: 1.40, 0.01: 1.54, 0.1: 1.52})
    check(best == 0.03 and not further, "0.03 is listed first, but lies between 0.01 and 0.1: an edge is one of size")


def test_the_best_at_an_edge_wants_one_more(answer):
    best, further = answer.choose({0.01: 1.54, 0.03: 1.52, 0.1: 1.40})
    check(best == 0.1 and further, "0.1 is the best and the largest tried: a larger one might be better still")
    best, further = answer.choose({0.01: 1.50, 0.03: 1.52, 0.1: 1.60})
    check(best == 0.01 and further, "0.01 is the best and the smallest tried: a smaller one might be better still")


def test_a_run_that_diverged_is_no_best(answer):
    best, further = answer.choose({0.3: math.nan, 0.1: 1.40, 0.03: 1.52})
    check(best == 0.1, f"{best} was chosen, but nan is no loss: comparisons with nan are False, so leave it out")
    check(not further, "0.3 was tried and diverged, so the edge is known: nothing further is needed")


def test_seed_by_seed(answer):
    mean, half = answer.paired(A, B, 3.18)
    s = statistics.stdev(DIFFERENCES)
    check(not math.isclose(mean, statistics.mean(A.values()) - statistics.mean(B.values())),
          "seed 9 was run by one method only: differences are of equal seeds")
    check(math.isclose(mean, 2.25), f"the mean of a - b is {mean:.3f} and should be 2.25, over seeds 0 to 3")
    pooled = math.hypot(*(statistics.stdev([x[i] for i in range(4)]) for x in (A, B)))
    check(not math.isclose(half, 3.18 * pooled / 2, rel_tol=1e-6), "the two spreads were added: take differences "
          "first. What a seed does to both methods cancels, and the interval is much narrower")
    check(not math.isclose(half, 3.18 * s), "the interval is that of one difference: the mean of n has s / √n")
    check(not math.isclose(half, 3.18 * statistics.pstdev(DIFFERENCES) / 2), "s has the divisor n: with few seeds "
          "that is too narrow, so take n - 1")
    check(math.isclose(half, 3.18 * s / 2), f"half of the interval is {half:.3f} and should be {3.18 * s / 2:.3f}")
