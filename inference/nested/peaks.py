"""Looking for peaks that a surrogate does not know of."""

import contextlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize

from qbs.inference.nested.known import Evaluate, Known
from qbs.inference.nested.surrogate import FittedSurrogate
from qbs.inference.nested.training import depth_of, reach_of
from qbs.inference.nested.unit_cube import LEAST, MOST

_NUM_CANDIDATES = 6
_LEAST_DISTANCE = 0.1  # of candidates, in the cube, for each root of the dimension
_FURTHER = 0.25  # from the top to a candidate, beyond it
_MOST_ASCENTS = 2
_STEPS = 25  # of an ascent, for each dimension
_FIRST_STEP = 0.05  # in the cube
_MISSED = 0.5  # of the depth, in nats: a surrogate that is further off does not know of a peak


class Hunt(NamedTuple):
    """What was found beyond the surrogate.

    Attributes:
        known: The points so far, with those of the hunt.
        peak: The highest point that was found beyond, or None.
        below: How far it is below the top, in nats.
    """

    known: Known
    peak: Float[np.ndarray, " dim"] | None = None
    below: float = np.inf


def hunt(evaluate: Evaluate, surrogate: FittedSurrogate, known: Known) -> Hunt:
    """Look for a peak that a surrogate does not know of, from points that one peak does not explain.

    The likeliest points are taken of those far out, by the moments of the posterior. From a single peak the
    likelihood falls along every line: where it is lower halfway to the top than at a point, or higher beyond,
    something else is there, or the posterior is curved. An ascent from there tells. A posterior that falls
    off along each line from its top costs two calls for each of `_NUM_CANDIDATES`.

    Args:
        evaluate: The log likelihood at points of the cube.
        surrogate: Of the log likelihood, up to a constant.
        known: All points so far.
    """
    dim = known.points.shape[1]
    best, _ = known.best
    candidates = _candidates(surrogate, known)
    if not len(candidates):
        return Hunt(known)
    points, values = known.points[candidates], known.log_likelihoods[candidates]
    halfway = (points + best) / 2
    outside = np.clip(points + _FURTHER * (points - best), LEAST, MOST)
    tried = np.concatenate([halfway, outside])
    found = evaluate(tried)
    known = known.with_new(tried, found)
    between, beyond = np.split(found, 2)
    is_strange = (between < values) | (beyond > values)
    starts = np.where((beyond > values)[:, None], outside, points)[is_strange]
    for start in starts[:_MOST_ASCENTS]:
        known, peak, height = _ascent(evaluate, surrogate, known, start)
        below = known.top - height
        missed = -below - _expected(surrogate, _highest(surrogate, known), peak)
        if below < reach_of(dim) and missed > _MISSED * depth_of(dim):
            return Hunt(known, peak, below)
    return Hunt(known)


def _highest(surrogate: FittedSurrogate, known: Known) -> float:
    """Return the surrogate at the highest of the known points."""
    return float(surrogate(known.points).max())


def _expected(surrogate: FittedSurrogate, highest: float, point: np.ndarray) -> float:
    """Return how far above its top, in nats, a surrogate expects a point to be."""
    return float(surrogate(point[None])[0]) - highest


def _candidates(surrogate: FittedSurrogate, known: Known) -> np.ndarray:
    """Return the places of the likeliest points far from the peak, no two of them near each other."""
    dim = known.points.shape[1]
    alone = -0.5 * np.sum(surrogate.whitening(known.points) ** 2, axis=1)
    is_open = (alone < -depth_of(dim)) & np.isfinite(known.log_likelihoods)
    is_open &= known.log_likelihoods < known.top - reach_of(dim)
    chosen: list[int] = []
    while is_open.any() and len(chosen) < _NUM_CANDIDATES:
        place = int(np.argmax(np.where(is_open, known.log_likelihoods, -np.inf)))
        chosen.append(place)
        distances = np.linalg.norm(known.points - known.points[place], axis=1)
        is_open &= distances > _LEAST_DISTANCE * np.sqrt(dim)
    return np.array(chosen, int)


class _ArrivedError(Exception):
    """An ascent came to what the surrogate takes for the posterior."""


def _ascent(
    evaluate: Evaluate, surrogate: FittedSurrogate, known: Known, start: np.ndarray
) -> tuple[Known, np.ndarray, float]:
    """Return all points after a simplex search (Nelder & Mead 1965), and the highest of it."""
    dim, highest = len(start), _highest(surrogate, known)
    points: list[np.ndarray] = []
    values: list[float] = []

    def fall(point: np.ndarray) -> float:
        inside = np.clip(point, LEAST, MOST)
        points.append(inside)
        values.append(float(evaluate(inside[None])[0]))
        if _expected(surrogate, highest, inside) > -reach_of(dim):
            raise _ArrivedError
        return -values[-1] if np.isfinite(values[-1]) else 1e300

    steps = np.where(start > 0.5, -_FIRST_STEP, _FIRST_STEP) * np.eye(dim)
    with contextlib.suppress(_ArrivedError):
        minimize(
            fall,
            start,
            method="Nelder-Mead",
            options={
                "maxfev": _STEPS * dim,
                "initial_simplex": np.concatenate([start[None], start + steps]),
                "fatol": 0.5,
                "xatol": 1e-4,
            },
        )
    climbed = Known(np.array(points), np.array(values))
    return known.with_new(*climbed), *climbed.best
