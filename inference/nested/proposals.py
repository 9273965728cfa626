"""Proposals on the unit cube that follow a target: mixtures of t distributions, wider ones, and the prior."""

import math
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import logsumexp

from qbs.inference.nested.student_mixture import StudentMixture, fit_mixture
from qbs.inference.nested.whitening import Coordinates, Whitening

_PRIOR_SHARE = 0.05
_WARM_SHARE = 0.5  # where that at the higher temperature is known
_WARMTH = 4.0  # temperature
_SPREAD = 2.0  # times as wide as a posterior
_NEW_SHARE = 0.2  # of a component at a point
_MIXTURE = 4, 15, 2000  # components, steps to find them, points: rough, as there are many fits
_LEAST_SHARE = 0.02  # of draws that stand for a target, effective


@runtime_checkable
class Target(Protocol):
    """A log density on the cube, up to a constant."""

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Return it at points."""


class Spread(NamedTuple):
    """A t distribution about a posterior, and wider, in coordinates in which the posterior is round.

    Attributes:
        space: The coordinates.
    """

    space: Coordinates

    def log_density(self, points: Float[np.ndarray, "num_points dim"]) -> Float[np.ndarray, " num_points"]:
        """Return the log density, in the cube and outside."""
        return _round(points.shape[1]).log_density(self.space(points)) + self.space.log_slope

    def draw(self, rng: np.random.Generator, count: int, dim: int) -> Float[np.ndarray, "count dim"]:
        """Return draws, some of them outside the cube."""
        return self.space.inverse(_round(dim).draw(rng, count))


def _round(dim: int) -> StudentMixture:
    return StudentMixture(np.zeros(1), np.zeros((1, dim)), _SPREAD * np.eye(dim)[None])


class FreeProposal(NamedTuple):
    """A mixture near a target, with shares of wider ones and of the prior.

    Attributes:
        mixture: Near the target. It reaches beyond the cube.
        warm: Near the target at temperature 4, where more may be than the target knows of.
        warm_share: Of the draws.
        spread: About the target in coordinates of it, with half of the warm share; by default none.
    """

    mixture: StudentMixture
    warm: StudentMixture
    warm_share: float
    spread: Spread | None = None

    @property
    def _shares(self) -> list[float]:
        """Of the mixture, the warm one, the spread and the prior."""
        wide = (self.warm_share, 0.0) if self.spread is None else (self.warm_share / 2, self.warm_share / 2)
        return [1 - _PRIOR_SHARE - self.warm_share, *wide, _PRIOR_SHARE]

    def log_density(self, points: Float[np.ndarray, "num_points dim"]) -> Float[np.ndarray, " num_points"]:
        """Return the log density, in the cube and outside."""
        near, warm, spread, prior = self._shares
        terms = [
            np.where(in_cube(points), math.log(prior), -math.inf),
            math.log(near) + self.mixture.log_density(points),
            math.log(warm) + self.warm.log_density(points),
        ]
        if self.spread is not None:
            terms.append(math.log(spread) + self.spread.log_density(points))
        return logsumexp(terms, axis=0)

    def draw(self, rng: np.random.Generator, count: int) -> Float[np.ndarray, "count dim"]:
        """Return draws, some of them outside the cube."""
        dim = self.mixture.means.shape[1]
        near, warm, spread, prior = (int(part) for part in rng.multinomial(count, self._shares))
        drawn = [self.mixture.draw(rng, near), self.warm.draw(rng, warm), rng.uniform(size=(prior, dim))]
        if self.spread is not None:
            drawn.append(self.spread.draw(rng, spread, dim))
        return rng.permutation(np.concatenate(drawn))

    def reaching(self, point: Float[np.ndarray, " dim"]) -> "FreeProposal":
        """Return a proposal that draws near a point too, as widely as near its largest component."""
        near = self.mixture
        factor = near.factors[np.argmax(near.log_shares)]
        mixture = StudentMixture(
            np.append(near.log_shares + math.log(1 - _NEW_SHARE), math.log(_NEW_SHARE)),
            np.concatenate([near.means, point[None]]),
            np.concatenate([near.factors, factor[None]]),
        )
        return self._replace(mixture=mixture)

    def draw_warm(self, rng: np.random.Generator, count: int) -> Float[np.ndarray, "count dim"]:
        """Return draws near the target at the higher temperature, all of them in the cube."""
        found = np.empty((0, self.warm.means.shape[1]))
        while len(found) < count:
            drawn = self.warm.draw(rng, 1000)
            found = np.concatenate([found, drawn[in_cube(drawn)]])
        return found[:count]


class WeightedPoints(NamedTuple):
    """Points in the cube that stand for a target.

    Attributes:
        points: In the cube.
        weights: They sum to 1.
    """

    points: Float[np.ndarray, "num_points dim"]
    weights: Float[np.ndarray, " num_points"]

    @property
    def is_enough(self) -> bool:
        """Whether so many draws are effective that they stand for the target."""
        return bool(1 / np.sum(self.weights**2) > _LEAST_SHARE * len(self.points))

    def chosen(self, rng: np.random.Generator, count: int) -> Float[np.ndarray, "count dim"]:
        """Return points chosen by their weight, none of them twice."""
        weights = self.weights + 1e-12
        places = rng.choice(len(weights), size=count, replace=False, p=weights / weights.sum())
        return self.points[places]


def in_cube(points: Float[np.ndarray, "num_points dim"]) -> Bool[np.ndarray, " num_points"]:
    """Whether points are inside the unit cube."""
    return np.all((points > 0) & (points < 1), axis=1)


def normalized(log_weights: Float[np.ndarray, " num_points"]) -> Float[np.ndarray, " num_points"]:
    """Return weights that sum to 1."""
    return np.exp(log_weights - logsumexp(log_weights))


def around(whitening: Whitening, warm_share: float = _WARM_SHARE) -> FreeProposal:
    """Return a proposal of one component."""
    one = StudentMixture(np.zeros(1), whitening.centre[None], whitening.factor[None])
    return of_mixture(one, warm_share)


def of_mixture(mixture: StudentMixture, warm_share: float) -> FreeProposal:
    """Return a proposal of a mixture whose target is taken for as much wider at the higher temperature."""
    return FreeProposal(mixture, mixture.widened(math.sqrt(_WARMTH)), warm_share)


def refined(
    rng: np.random.Generator, target: Target, proposal: FreeProposal, rounds: int, count: int
) -> tuple[FreeProposal, WeightedPoints]:
    """Return a proposal nearer to a target, and weighted points that stand for it.

    Args:
        rng: Draws the points.
        target: A log density on the cube, up to a constant.
        proposal: To begin with.
        rounds: How often a proposal is fitted to weighted draws from the one before.
        count: Draws in a round.

    References:
        Cappe, Douc, Guillin, Marin & Robert (2008), "Adaptive importance sampling in general mixture
        classes".
    """
    for _ in range(rounds):
        points = proposal.draw(rng, count)
        points = points[in_cube(points)]
        values, density = target(points), proposal.log_density(points)
        weights = normalized(values - density)
        proposal = proposal._replace(mixture=fit_mixture(rng, points, weights, *_MIXTURE))
    warm = fit_mixture(rng, points, normalized(values / _WARMTH - density), *_MIXTURE)
    return proposal._replace(warm=warm), WeightedPoints(points, weights)
