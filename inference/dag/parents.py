"""The parents of a node among candidates, by the extended Bayesian information criterion."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

_EAGER = 0.2  # of the penalty: what must be gained while growing
_TINY = 1e-10  # of its variance: less is left of a candidate that others tell all about


class Regression(NamedTuple):
    """A node on its parents.

    Attributes:
        parents: Their numbers, ascending.
        weights: Their coefficients.
        variance: Of what they leave.
        criterion: Extended Bayesian information criterion, per observation; lower is better.
    """

    parents: Int[np.ndarray, " num_parents"]
    weights: Float[np.ndarray, " num_parents"]
    variance: float
    criterion: float


def penalty(num_observations: float | int, num_candidates: int, gamma: float | int) -> float:
    r"""Return what a parent must gain, in units of the log of the variance.

    \((\log n + 2 \gamma \log p) / n\) for \(p\) candidates: with \(\gamma = 0\) the Bayesian information
    criterion; larger keeps out more of what many candidates offer by chance.

    References:
        Chen & Chen (2008), "Extended Bayesian information criteria for model selection".
    """
    return (math.log(num_observations) + 2 * gamma * math.log(max(num_candidates, 1))) / num_observations


def choose_parents(
    covariance: Float[np.ndarray, "num_nodes num_nodes"],
    node: int,
    candidates: Bool[np.ndarray, " num_nodes"],
    num_observations: float | int,
    *,
    gamma: float | int = 1.0,
    required: Bool[np.ndarray, " num_nodes"] | None = None,
) -> Regression:
    """Return the parents that growing and then shrinking finds.

    Growing takes in the candidate that leaves the least variance while it gains a fifth of the penalty or
    more: parents that cancel each other gain little one by one. Shrinking then lets go the one that is missed
    least while the criterion falls.

    Args:
        covariance: Of the nodes.
        node: The child.
        candidates: Who may be a parent.
        num_observations: How many the covariance comes from.
        gamma: See `penalty`.
        required: Who must be a parent.
    """
    # All other nodes, also where only some come before: there are as many sets of edges to be misled by.
    price = penalty(num_observations, len(covariance) - 1, gamma)
    fixed = [] if required is None else [int(number) for number in np.flatnonzero(required & candidates)]
    grown = _grown(covariance, node, candidates, fixed, _EAGER * price, int(num_observations) - 2)
    chosen = np.sort(np.array(_shrunk(covariance, node, grown, set(fixed), price), int))
    weights, variance = regress(covariance, node, chosen)
    return Regression(chosen, weights, variance, math.log(variance) + price * len(chosen))


def regress(
    covariance: Float[np.ndarray, "num_nodes num_nodes"], node: int, parents: Int[np.ndarray, " num_parents"]
) -> tuple[Float[np.ndarray, " num_parents"], float]:
    """Return the coefficients of a node on parents, and the variance that they leave."""
    with_node = covariance[parents, node]
    weights = np.linalg.lstsq(covariance[np.ix_(parents, parents)], with_node, rcond=None)[0]
    left = covariance[node, node] - with_node @ weights
    return weights, float(max(left, _TINY * covariance[node, node]))


def _grown(
    covariance: np.ndarray, node: int, candidates: np.ndarray, fixed: list[int], price: float, most: int
) -> list[int]:
    """Return who is taken in: a Cholesky factorization of the candidates, pivoted on the gain."""
    numbers = np.flatnonzero(candidates)
    where = {int(number): at for at, number in enumerate(numbers)}
    with_node = covariance[numbers, node].copy()
    variances = covariance[numbers, numbers].copy()
    floors = _TINY * variances
    chosen: list[int] = []
    left = float(covariance[node, node])
    floor = _TINY * left
    rows = np.empty((0, len(numbers)))
    is_open = variances > floors
    while is_open.any() and len(chosen) < most:
        if len(chosen) < len(fixed):
            at = where[fixed[len(chosen)]]
        else:
            gains = np.where(is_open, with_node**2 / np.where(is_open, variances, 1.0), 0.0)
            at = int(np.argmax(gains))
            after = max(left - gains[at], floor)
            if not math.log(left / after) > price:
                break
        chosen.append(int(numbers[at]))
        is_open[at] = False
        row = (covariance[numbers[at], numbers] - rows[:, at] @ rows) / math.sqrt(
            max(variances[at], floors[at])
        )
        rows = np.vstack([rows, row])
        share = with_node[at] / math.sqrt(max(variances[at], floors[at]))
        left = max(left - share**2, floor)
        with_node = with_node - share * row
        variances = variances - row**2
        is_open &= variances > floors
    return chosen


def _shrunk(covariance: np.ndarray, node: int, chosen: list[int], fixed: set[int], price: float) -> list[int]:
    """Return who is left after those who are not missed have gone, one by one."""
    numbers = np.array(chosen, int)
    precision = np.linalg.pinv(covariance[np.ix_(numbers, numbers)], hermitian=True)
    weights = precision @ covariance[numbers, node]
    left = regress(covariance, node, numbers)[1]
    is_free = np.array([number not in fixed for number in chosen], bool)
    while is_free.any():
        losses = np.where(is_free, weights**2 / np.diagonal(precision), np.inf)
        least = int(np.argmin(losses))
        if math.log((left + losses[least]) / left) >= price:
            break
        left += losses[least]
        stays = np.arange(len(numbers)) != least
        row = precision[least, stays] / precision[least, least]
        weights = weights[stays] - weights[least] * row
        precision = precision[np.ix_(stays, stays)] - precision[least, least] * np.outer(row, row)
        numbers, is_free = numbers[stays], is_free[stays]
    return [int(number) for number in numbers]
