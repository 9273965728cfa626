"""The exact test of uniform ranks by their empirical distribution, and the band that belongs to it.

References:
    Sailynoja, Burkner & Vehtari (2022), "Graphical test for discrete uniformity and its applications in
    goodness-of-fit evaluation and multiple sample comparison", Statistics and Computing 32, 32.
"""

from functools import lru_cache

import numpy as np
from scipy import stats


@lru_cache(maxsize=8)
def _tails(count: int, num_ranks: int) -> np.ndarray:
    """Return the two-sided tail probability of each number of ranks (column) up to k (row)."""
    share, numbers = np.arange(1, num_ranks)[:, None] / num_ranks, np.arange(count + 1)
    return 2 * np.minimum(stats.binom.cdf(numbers, count, share), stats.binom.sf(numbers - 1, count, share))


def _stray(count: int, num_ranks: int, level: float) -> float:
    """Return the probability that some tail probability of uniform ranks is not above a level.

    The numbers of ranks of each value are independent Poisson variables, given their sum.
    """
    step = stats.poisson.pmf(np.arange(count + 1), count / num_ranks)
    step = step[: np.flatnonzero(step > 1e-20)[-1] + 1]
    walk = np.eye(1, count + 1)[0]
    for tails in _tails(count, num_ranks):
        walk = np.convolve(walk, step)[: count + 1] * (tails > level)
    inside = np.convolve(walk, step)[count] / stats.poisson.pmf(count, count)
    return float(np.clip(1 - inside, 0, 1))


def uniform_p_value(ranks: np.ndarray, num_ranks: int) -> float:
    """Return the probability that ranks uniform in 0 ... num_ranks - 1 stray as far as these."""
    up_to = np.cumsum(np.bincount(ranks, minlength=num_ranks))[:-1]
    tails = _tails(len(ranks), num_ranks)[np.arange(num_ranks - 1), up_to]
    return _stray(len(ranks), num_ranks, tails.min(initial=1))


def uniform_band(count: int, num_ranks: int, error: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and greatest number of ranks up to each, in a band left with probability `error`."""
    low, high = np.log(error / num_ranks) - 1, 0.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if _stray(count, num_ranks, np.exp(middle)) > error else (middle, high)
    inside = _tails(count, num_ranks) > np.exp(low)
    return np.append(inside.argmax(1), count), np.append(count - inside[:, ::-1].argmax(1), count)
