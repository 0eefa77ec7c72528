# nan is no loss
"""A fair comparison: a learning rate chosen on the validation set, and methods compared seed by seed."""

import math
import statistics


def choose(losses: dict[float, float]) -> tuple[float, bool]:
    """losses: {learning rate: loss on the validation set}, nan where training diverged

    -> the learning rate with the lowest loss, and True if a further one should be tried: the best is the
       smallest or largest of those that did not diverge, and nothing that was tried lies beyond it.
    """
    finite = {lr: loss for lr, loss in losses.items() }
    best = min(finite, key=finite.get)
    return best, best in (min(losses), max(losses))


def paired(a: dict[int, float], b: dict[int, float], quantile: float) -> tuple[float, float]:
    """a, b: {seed: score} of two methods, run with the same seeds

    -> mean of a - b, and half of its interval: quantile · s / √n, over the n differences, seed by seed;
       s their sample standard deviation (divisor n - 1). Seeds that only one of them has are left out.
    """
    differences = [a[seed] - b[seed] for seed in a if seed in b]
    half = quantile * statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.mean(differences), half
