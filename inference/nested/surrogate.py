"""Surrogates of a log likelihood: a concave quadratic form, and a smooth function for what it leaves.

Far from all points only the quadratic form is left, which falls off in every direction.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import numpy as np
from jaxtyping import Float

from qbs.inference.nested.concave import ConcaveForm, fit_concave
from qbs.inference.nested.whitening import Coordinates

# Standard deviations, as those of a fit to chosen points are too small by half; and at most so many nats.
DOUBT, _MOST_DOUBT = 2.0, 6.0
_SURE = 0.5  # nats, a standard deviation of which half is taken off
_FLATTENED = 0.5  # of the depth, in nats, below which values are flattened
_MOST = 3.0  # nats above the greatest value that is known


@runtime_checkable
class Remainder(Protocol):
    """What is fitted to values at whitened points."""

    def __call__(self, white: np.ndarray, /) -> tuple[np.ndarray, np.ndarray]:
        """Return a mean and a standard deviation at each whitened point."""


class Surrogate(eqx.Module):
    """Settings of a model for what a concave quadratic form leaves of a log likelihood."""

    def fit(
        self,
        white: Float[np.ndarray, "num_points dim"],
        values: Float[np.ndarray, " num_points"],
        before: Any = None,
    ) -> Remainder:
        """Return a smooth function near values at whitened points.

        Args:
            white: Whitened points, in which a unit is about the width of the likelihood.
            values: There, in nats.
            before: What an earlier fit to some of the points returned, if there was one.
        """
        raise NotImplementedError


class FittedSurrogate(NamedTuple):
    """A surrogate of a log likelihood on the unit cube.

    It is what is expected where that is known well, and a standard deviation lower where it is not, so that
    it is not high where nothing is known.

    Attributes:
        whitening: Of the unit cube.
        top: The greatest value that it was fitted to.
        form: Values less the top, roughly.
        rest: What the form leaves of them, both flattened, at whitened points.
        start: Of flattening, in nats below the top.
    """

    whitening: Coordinates
    top: float
    form: ConcaveForm
    rest: Remainder
    start: float

    def __call__(self, points: Float[np.ndarray, "num_points dim"]) -> Float[np.ndarray, " num_points"]:
        """Return the surrogate at points of the unit cube."""
        return self.bounds(points)[0]

    def bounds(
        self, points: Float[np.ndarray, "num_points dim"]
    ) -> tuple[Float[np.ndarray, " num_points"], Float[np.ndarray, " num_points"]]:
        """Return the surrogate, and what the likelihood is hardly above."""
        white = self.whitening(points)
        mean, deviation = self.rest(white)
        level = _flattened(np.asarray(self.form(white)), self.start) + mean
        above = np.minimum(DOUBT * deviation, _MOST_DOUBT)
        below = deviation**2 / (deviation + _SURE)
        lower, upper = (np.minimum(bound, _MOST) for bound in (level - below, level + above))
        return self.top + _restored(lower, self.start), self.top + _restored(upper, self.start)


def _flattened(values: np.ndarray, start: float) -> np.ndarray:
    """Return values that below the start fall only as a logarithm does."""
    below = np.maximum(-values - start, 0.0)
    return np.maximum(values, -start) - start * np.log1p(below / start)


def _restored(values: np.ndarray, start: float) -> np.ndarray:
    """Return what `_flattened` was given."""
    below = np.clip((-values - start) / start, 0.0, 500.0)
    return np.maximum(values, -start) - start * np.expm1(below)


def fit_surrogate(
    settings: Surrogate,
    points: Float[np.ndarray, "num_points dim"],
    log_likelihoods: Float[np.ndarray, " num_points"],
    whitening: Coordinates,
    depth: float | int,
    before: FittedSurrogate | None = None,
) -> FittedSurrogate:
    """Return the surrogate of a log likelihood that is known at some points.

    Args:
        settings: Of what is fitted to the rest.
        points: In the unit cube.
        log_likelihoods: There; some of them finite, none NaN.
        whitening: Of the unit cube.
        depth: Below the greatest value, in nats, that matters. Lower points are left out where the surrogate
            is as low.
        before: A surrogate of the same problem; its settings may be kept if its coordinates are alike.
    """
    white, top, start = whitening(points), float(np.max(log_likelihoods)), _FLATTENED * depth
    is_near = log_likelihoods > top - depth
    form = fit_concave(white[is_near], log_likelihoods[is_near] - top, depth)
    expected = np.asarray(form(white))
    values = np.where(np.isfinite(log_likelihoods), log_likelihoods - top, np.minimum(expected, -depth))
    left = _flattened(values, start) - _flattened(expected, start)
    is_used = is_near | (expected > -depth)
    rest = before.rest if before is not None and _are_alike(before.whitening, whitening) else None
    while True:
        rest = settings.fit(white[is_used], left[is_used], rest)
        found = FittedSurrogate(whitening, top, form, rest, start)
        is_wrong = ~is_used & (found(points) > top - depth)
        if not is_wrong.any():
            return found
        is_used |= is_wrong


def _are_alike(first: Coordinates, second: Coordinates) -> bool:
    """Whether coordinates mean the same: linear ones, or straight ones in the same order."""
    return type(first) is type(second) and getattr(first, "order", None) == getattr(second, "order", None)
