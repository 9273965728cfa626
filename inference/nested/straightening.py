"""Coordinates in which a curved posterior is about straight, and as wide in all directions.

A surrogate that knows a banana's middle has to guess its ends. In coordinates that bend with it, the ends are
where a quadratic form expects them.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from qbs.inference.nested import whitening
from qbs.inference.nested.concave import fit_concave, form_weights
from qbs.inference.nested.known import Known
from qbs.inference.nested.proposals import WeightedPoints
from qbs.inference.nested.whitening import Coordinates, Whitening
from qbs.inference.results.diagnostics import kish_ess

_BEND = 0.25  # standard deviation of coefficients that is expected, of coordinates that are one wide
_NUMERICAL = 1e-6
_LEAST_GAIN = 0.8  # what a quadratic form leaves in straight coordinates, at most, of what it leaves else
_MOST_SETS = 32


class Straightening(NamedTuple):
    """A triangular map of the unit cube: each coordinate less a quadratic function of those before it.

    Attributes:
        order: Of the coordinates.
        whitening: Of the cube's coordinates in that order, to ones that are not correlated.
        bends: For each of them, the coefficients of the function.
        widths: Of each less the function.
    """

    order: tuple[int, ...]
    whitening: Whitening
    bends: tuple[Float[np.ndarray, " num_features"], ...]
    widths: Float[np.ndarray, " dim"]

    def __call__(self, points: Float[np.ndarray, "num_points dim"]) -> Float[np.ndarray, "num_points dim"]:
        """Return straight coordinates of points, each in the place of the one that it was made from."""
        white = self.whitening(points[:, self.order])
        straight = np.empty_like(white)
        for rank, (place, bend) in enumerate(zip(self.order, self.bends, strict=True)):
            straight[:, place] = (white[:, rank] - _features(white[:, :rank]) @ bend) / self.widths[rank]
        return straight

    @property
    def log_slope(self) -> float:
        """Log of the volume in straight coordinates for each in the cube."""
        return self.whitening.log_slope - float(np.log(self.widths).sum())

    def inverse(self, straight: Float[np.ndarray, "num_points dim"]) -> Float[np.ndarray, "num_points dim"]:
        """Return points of straight coordinates."""
        white, points = np.empty_like(straight), np.empty_like(straight)
        for rank, (place, bend) in enumerate(zip(self.order, self.bends, strict=True)):
            white[:, rank] = self.widths[rank] * straight[:, place] + _features(white[:, :rank]) @ bend
        points[:, self.order] = self.whitening.inverse(white)
        return points

    def scaled(self, times: float) -> "Straightening":
        """Return the map for a likelihood so many times as wide."""
        return self._replace(widths=self.widths * times)


def coordinates(drawn: WeightedPoints, known: Known, depth: float) -> Coordinates:
    """Return straight coordinates where they make the log likelihood rounder, and others where they do not.

    They do not where the posterior has two peaks, or is a Gaussian.

    Args:
        drawn: Points that stand for the posterior.
        known: Where the log likelihood is known, as the surrogate learns it.
        depth: Below the top, in nats, down to which it matters.
    """
    linear, straight = whitening.of_points(*drawn), of_points(*drawn)
    spaces: tuple[Coordinates, ...] = (linear, straight)
    falls = known.log_likelihoods - known.top
    is_near = falls > -depth
    left = []
    for space in spaces:
        white = space(known.points[is_near])
        form = fit_concave(white, falls[is_near], depth)
        left.append(np.sum(form_weights(falls[is_near], depth) * (falls[is_near] - form(white)) ** 2))
    return straight if left[1] < _LEAST_GAIN**2 * left[0] else linear


def of_points(
    points: Float[np.ndarray, "num_points dim"], weights: Float[np.ndarray, " num_points"]
) -> Straightening:
    """Return the map for weighted points; the weights sum to 1."""
    order = best_order(points, weights)
    space = whitening.of_points(points[:, order], weights)
    white = space(points[:, order])
    ridge = 1 / (_BEND**2 * kish_ess(np.log(weights + 1e-300)))
    bends, widths = [], []
    for rank, values in enumerate(white.T):
        features = _features(white[:, :rank])
        weighted = features.T * weights
        bends.append(_solved(weighted @ features, weighted @ values, ridge))
        widths.append(np.sqrt(weights @ (values - features @ bends[-1]) ** 2))
    return Straightening(tuple(order), space, tuple(bends), np.array(widths))


def best_order(
    points: Float[np.ndarray, "num_points dim"], weights: Float[np.ndarray, " num_points"]
) -> list[int]:
    """Return the order of coordinates in which quadratic functions of those before leave least.

    That is the order in which the map to straight coordinates is most likely. Sets of first coordinates are
    grown by one at a time, each in its best order; of more than a few sets the best go on.
    """
    dim = points.shape[1]
    mean = weights @ points
    features = _features((points - mean) / np.sqrt(weights @ (points - mean) ** 2))
    moments = (features.T * weights) @ features
    rows, columns = np.triu_indices(dim)

    def gain(place: int, before: tuple[int, ...]) -> float:
        """Return the log of what products leave of a coordinate's variance, for what a line leaves."""
        known = np.isin(np.arange(dim), before)
        left = []
        for products in (known[rows] & known[columns], np.zeros(len(rows), bool)):
            used = np.concatenate([[True], known, products])
            values = moments[used, 1 + place]
            bend = _solved(moments[np.ix_(used, used)], values, _NUMERICAL)
            left.append(max(1 - float(values @ bend), _NUMERICAL))
        return math.log(left[0] / left[1])

    best: dict[frozenset[int], tuple[float, tuple[int, ...]]] = {frozenset(): (0.0, ())}
    for _ in range(dim):
        longer: dict[frozenset[int], tuple[float, tuple[int, ...]]] = {}
        for total, order in best.values():
            for place in set(range(dim)).difference(order):
                found = total + gain(place, order), (*order, place)
                members = frozenset(found[1])
                longer[members] = min(found, longer.get(members, found))
        best = dict(sorted(longer.items(), key=lambda each: each[1])[:_MOST_SETS])
    ((_, order),) = best.values()
    return list(order)


def _features(white: np.ndarray) -> np.ndarray:
    """Return a one, the coordinates, and their products."""
    rows, columns = np.triu_indices(white.shape[1])
    return np.column_stack([np.ones(len(white)), white, white[:, rows] * white[:, columns]])


def _solved(moments: np.ndarray, products: np.ndarray, ridge: float) -> np.ndarray:
    """Return coefficients by ridge regression; that of the first feature is free."""
    penalty = ridge * np.eye(len(moments))
    penalty[0, 0] = 0.0
    return np.linalg.solve(moments + penalty, products)
