"""Learning a surrogate of a log likelihood, from the prior to where the posterior is, in few calls."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import qmc

from qbs.inference.nested import whitening
from qbs.inference.nested.concave import form_weights
from qbs.inference.nested.known import Evaluate, Known
from qbs.inference.nested.proposals import FreeProposal, Spread, WeightedPoints, around, refined
from qbs.inference.nested.straightening import coordinates
from qbs.inference.nested.surrogate import FittedSurrogate, Surrogate, fit_surrogate
from qbs.inference.nested.whitening import Coordinates, Whitening

_COOLING = 9.0  # temperatures fall by this once they are understood
_TOLERANCE = {True: 1.0, False: 0.25}  # nats, rms, of a batch: while it is warm; at temperature 1
_LEAST_AGREEMENT = 0.9  # of a surrogate and the one before
_WARM_DEPTH = 3.0  # times the depth: the warped values reach as far down
_WARP = 0.25  # of the depth, in nats at the temperature: where the warp sets in
_DRAWS, _ROUNDS = 3000, 3  # from the surrogate
_DOUBT_SHARE, _WARM_SHARE = 0.125, 0.125  # of a batch


class Stage(NamedTuple):
    """How far training has come.

    Attributes:
        known: The points so far.
        temperature: By which the log likelihood is divided, until it is 1.
        error: Root mean square, in nats at the temperature, of the last batch's prediction.
    """

    known: Known
    temperature: float
    error: float


class Trained(NamedTuple):
    """A surrogate near the posterior.

    Attributes:
        known: The points so far.
        surrogate: Fitted to them, but for the last batch.
        proposal: Near the surrogate's posterior.
        whitening: Of that posterior.
        is_right: Whether the last two batches were predicted well, and the last two surrogates agree.
        error: Root mean square, in nats, of the last batch's prediction.
    """

    known: Known
    surrogate: FittedSurrogate
    proposal: FreeProposal
    whitening: Coordinates
    is_right: bool
    error: float


def depth_of(dim: int) -> float:
    """Return how far below the peak a likelihood in so many dimensions matters, in nats."""
    return 30.0 + 3.0 * dim


def reach_of(dim: int) -> float:
    """Return how far below the peak of a posterior in so many dimensions its draws are, in nats, at most."""
    return 10.0 + dim


def first_points(rng: np.random.Generator, dim: int, count: int) -> Float[np.ndarray, "count dim"]:
    """Return points spread evenly over the cube (Sobol 1967, scrambled)."""
    drawn = qmc.Sobol(dim, seed=rng).random_base2(int(np.ceil(np.log2(count))))
    return np.clip(drawn[:count], 1e-12, 1 - 1e-12)


def train(
    settings: Surrogate,
    evaluate: Evaluate,
    rng: np.random.Generator,
    known: Known,
    batch: int,
    max_points: int,
    tell: Callable[[Stage], None],
    start: Trained | None = None,
) -> Trained:
    """Learn a surrogate from batches of calls, each drawn from the surrogate so far.

    The log likelihood is divided by a temperature, at first so high that the prior is mostly within reach.
    The temperature falls once a batch that was drawn from the surrogate was predicted well.

    Args:
        settings: Of the surrogate.
        evaluate: The log likelihood at points of the cube.
        rng: Draws the points.
        known: Where to begin; some log likelihoods are finite.
        batch: Points for each batch.
        max_points: Where to give up.
        tell: Called after each batch.
        start: What is gone on from, with other points than it knew of.
    """
    dim = known.points.shape[1]
    depth = depth_of(dim)
    cube = whitening.of_cube(dim)
    space: Coordinates = cube
    proposal, surrogate, num_good, error = around(cube), None, 0, np.inf
    finite = known.log_likelihoods[np.isfinite(known.log_likelihoods)]
    temperature = max(float(known.top - np.median(finite)) / depth, 1.0)
    if start is not None:
        space, proposal, temperature = start.whitening, start.proposal, 1.0
    while True:
        while np.sum(known.log_likelihoods > known.top - temperature * depth) < dim + 2:
            temperature *= 1.5
        is_warm = temperature > 1
        scaled = _Scaled(known.top, temperature, depth)
        before = surrogate
        surrogate = fit_surrogate(
            settings,
            known.points,
            scaled(known.log_likelihoods),
            space,
            depth * _WARM_DEPTH if is_warm else depth,
            before if error < _TOLERANCE[True] else None,
        )
        proposal, drawn = refined(rng, surrogate, proposal, _ROUNDS, _DRAWS)
        agrees = before is not None and agreement(before, surrogate, drawn) > _LEAST_AGREEMENT
        is_right = num_good >= 2 and agrees
        if is_right or len(known.points) >= max_points:
            space = coordinates(drawn, scaled.of(known), depth)
            proposal = proposal._replace(spread=Spread(space))
            return Trained(known, surrogate, proposal, space, is_right, error)
        near, far = _batch(rng, surrogate, proposal, drawn, batch)
        points = np.concatenate([near, far])
        found = evaluate(points)
        error, is_predicted = _judged(surrogate(near), scaled(found[: len(near)]), dim, _TOLERANCE[is_warm])
        known = known.with_new(points, found)
        tell(Stage(known, temperature, error))
        is_followed = error < _TOLERANCE[True] and drawn.is_enough
        space = coordinates(drawn, scaled.of(known), depth) if is_followed else _of_known(known, temperature)
        proposal = proposal._replace(spread=Spread(space) if is_followed else None)
        if not is_warm:
            num_good = num_good + 1 if is_predicted else 0
        elif is_predicted:
            cooler = max(temperature / _COOLING, 1.0)
            space, surrogate = space.scaled(np.sqrt(cooler / temperature)), None
            proposal = proposal._replace(spread=None)
            temperature = cooler


def _batch(
    rng: np.random.Generator,
    surrogate: FittedSurrogate,
    proposal: FreeProposal,
    drawn: WeightedPoints,
    count: int,
) -> tuple[Float[np.ndarray, "num_near dim"], Float[np.ndarray, "num_far dim"]]:
    """Return points of the surrogate's posterior, and a few from where the likelihood may be besides."""
    num_doubtful, num_warm = int(_DOUBT_SHARE * count), int(_WARM_SHARE * count)
    lower, upper = surrogate.bounds(drawn.points)
    doubts = drawn.weights * np.exp(np.clip(upper - lower, 0.0, 50.0))
    doubtful = WeightedPoints(drawn.points, doubts / doubts.sum())
    near = drawn.chosen(rng, count - num_doubtful - num_warm)
    return near, np.concatenate([doubtful.chosen(rng, num_doubtful), proposal.draw_warm(rng, num_warm)])


def agreement(first: FittedSurrogate, second: FittedSurrogate, drawn: WeightedPoints) -> float:
    """Return the effective share of weighted draws from one surrogate as draws from another, up to 1.

    It is 0 where few draws have all the weight: they tell nothing.
    """
    if not drawn.is_enough:
        return 0.0
    ratios = first(drawn.points) - second(drawn.points)
    ratios = np.exp(np.clip(ratios - drawn.weights @ ratios, -50, 50))
    return float((drawn.weights @ ratios) ** 2 / (drawn.weights @ ratios**2))


class _Scaled(NamedTuple):
    """From log likelihoods to what a surrogate at a temperature learns.

    Above temperature 1, values far below the top are drawn up, as the distance from the peak grows no faster
    than the root of the fall.
    """

    top: float
    temperature: float
    depth: float

    def __call__(self, log_likelihoods: np.ndarray) -> np.ndarray:
        falls = (self.top - log_likelihoods) / self.temperature
        if self.temperature == 1:
            return -falls
        start = _WARP * self.depth
        warped = 2 * (np.sqrt(start * np.maximum(falls, 0) + start**2) - start)
        return -np.where(falls > 0, warped, falls)

    def of(self, known: Known) -> Known:
        """Return points with what is learned of them."""
        return Known(known.points, self(known.log_likelihoods))


def _judged(expected: np.ndarray, found: np.ndarray, dim: int, tolerance: float) -> tuple[float, bool]:
    """Return the error of a prediction where it matters, and whether it is small on half of the batch."""
    matters = found > max(float(found.max()), 0.0) - reach_of(dim)
    if not matters.any():
        return np.inf, False
    error = float(np.sqrt(np.mean((expected - found)[matters] ** 2)))
    return error, bool(error < tolerance and matters.sum() >= len(found) // 2)


def _of_known(known: Known, temperature: float) -> Whitening:
    """Return the coordinates of the best points so far, where the surrogate is not to be trusted."""
    depth = temperature * depth_of(known.points.shape[1])
    is_near = known.log_likelihoods > known.top - depth
    weights = form_weights(known.log_likelihoods[is_near] - known.top, depth)
    return whitening.of_points(known.points[is_near], weights / weights.sum())
