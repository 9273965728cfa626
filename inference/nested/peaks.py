"""Looking for peaks that a surrogate does not know of."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize

from qbs.inference.nested.known import Evaluate, Known
from qbs.inference.nested.surrogate import FittedSurrogate
from qbs.inference.nested.training import depth_of, reach_of

_NUM_CANDIDATES = 6
_LEAST_DISTANCE = 0.1  # of candidates, in the cube, for each root of the dimension
_STEPS = 25  # of an ascent, for each dimension
_FIRST_STEP = 0.05  # in the cube


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
    """Look for a peak that a surrogate does not know of, from points that it does not explain.

    The likeliest points far beyond the surrogate's posterior are taken. Where the likelihood is lower halfway
    to the top than at a point, there is a valley between, and an ascent from there tells how high the other
    side is. A posterior that falls off along each line from its top costs `_NUM_CANDIDATES` calls.

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
    points = known.points[candidates]
    halfway = (points + best) / 2
    between = evaluate(halfway)
    starts = points[between < known.log_likelihoods[candidates]]
    known = known.with_new(halfway, between)
    for start in starts:
        climbed = _ascent(evaluate, start)
        known = known.with_new(*climbed)
        peak, height = climbed.best
        below = known.top - height
        if below < reach_of(dim) and _is_beyond(surrogate, known, peak[None])[0]:
            return Hunt(known, peak, below)
    return Hunt(known)


def _is_beyond(surrogate: FittedSurrogate, known: Known, points: np.ndarray) -> np.ndarray:
    """Whether points are so far out that they have no part in the surrogate's posterior."""
    highest = surrogate(known.points).max()
    return surrogate(points) < highest - depth_of(points.shape[1])


def _candidates(surrogate: FittedSurrogate, known: Known) -> np.ndarray:
    """Return the places of the likeliest points beyond, no two of them near each other."""
    dim = known.points.shape[1]
    is_open = _is_beyond(surrogate, known, known.points) & np.isfinite(known.log_likelihoods)
    chosen: list[int] = []
    while is_open.any() and len(chosen) < _NUM_CANDIDATES:
        place = int(np.argmax(np.where(is_open, known.log_likelihoods, -np.inf)))
        chosen.append(place)
        distances = np.linalg.norm(known.points - known.points[place], axis=1)
        is_open &= distances > _LEAST_DISTANCE * np.sqrt(dim)
    return np.array(chosen, int)


def _ascent(evaluate: Evaluate, start: np.ndarray) -> Known:
    """Return the points of a simplex search (Nelder & Mead 1965)."""
    dim = len(start)
    points: list[np.ndarray] = []
    values: list[float] = []

    def fall(point: np.ndarray) -> float:
        inside = np.clip(point, 1e-12, 1 - 1e-12)
        points.append(inside)
        values.append(float(evaluate(inside[None])[0]))
        return -values[-1] if np.isfinite(values[-1]) else 1e300

    steps = np.where(start > 0.5, -_FIRST_STEP, _FIRST_STEP) * np.eye(dim)
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
    return Known(np.array(points), np.array(values))
