"""Mixtures of Student's t distributions, fitted to weighted points: proposals with heavy tails."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import gammaln, logsumexp

_DEGREES = 5.0
_WIDER = 1.2  # than the points, so that their edges are no edges of the proposal
_RIDGE = 1e-6  # of the variances of all points


class StudentMixture(NamedTuple):
    """A mixture of multivariate t distributions of five degrees of freedom.

    Attributes:
        log_shares: Of the components.
        means: Of the components.
        factors: Cholesky factors of their scale matrices.
    """

    log_shares: Float[np.ndarray, " num_components"]
    means: Float[np.ndarray, "num_components dim"]
    factors: Float[np.ndarray, "num_components dim dim"]

    def log_density(self, points: Float[np.ndarray, "num_points dim"]) -> Float[np.ndarray, " num_points"]:
        """Return the log density at points."""
        return logsumexp(self._log_terms(points), axis=1)

    def draw(self, rng: np.random.Generator, count: int) -> Float[np.ndarray, "count dim"]:
        """Return draws."""
        which = rng.choice(len(self.means), size=count, p=np.exp(self.log_shares))
        normals = rng.normal(size=(count, self.means.shape[1]))
        stretch = np.sqrt(_DEGREES / rng.chisquare(_DEGREES, size=(count, 1)))
        return self.means[which] + stretch * np.einsum("nij,nj->ni", self.factors[which], normals)

    def widened(self, times: float) -> "StudentMixture":
        """Return the mixture with all components wider."""
        return self._replace(factors=self.factors * times)

    def _log_terms(self, points: np.ndarray) -> np.ndarray:
        dim = self.means.shape[1]
        constant = (
            gammaln((_DEGREES + dim) / 2) - gammaln(_DEGREES / 2) - dim / 2 * math.log(_DEGREES * math.pi)
        )
        # One component at a time, as points may be many.
        terms = []
        for log_share, mean, factor in zip(self.log_shares, self.means, self.factors, strict=True):
            distances = np.sum(np.linalg.solve(factor, (points - mean).T) ** 2, axis=0)
            log_scale = np.log(np.diagonal(factor)).sum()
            fall = (_DEGREES + dim) / 2 * np.log1p(distances / _DEGREES)
            terms.append(log_share + constant - log_scale - fall)
        return np.stack(terms, axis=1)


def fit_mixture(
    rng: np.random.Generator,
    points: Float[np.ndarray, "num_points dim"],
    weights: Float[np.ndarray, " num_points"],
    num_components: int,
    num_steps: int = 30,
    max_points: int | None = None,
) -> StudentMixture:
    """Return a mixture near weighted points, somewhat wider than they are spread.

    Args:
        rng: Chooses where components start.
        points: They may be anywhere.
        weights: Zero or more, some of them positive.
        num_components: At most; components that hold next to nothing are left out.
        num_steps: Of expectation and maximization.
        max_points: That components are found from, chosen by weight; by default all.
    """
    weights = weights / weights.sum()
    count, dim = points.shape
    mean = weights @ points
    spread = np.cov(points.T, aweights=weights, bias=True).reshape(dim, dim)
    ridge = _RIDGE * np.diag(np.diagonal(spread)) + 1e-300 * np.eye(dim)
    whole = StudentMixture(np.zeros(1), mean[None], np.linalg.cholesky(spread + ridge)[None])
    least = 10 * (dim + 1)  # points' worth of weight in a component
    num_components = min(num_components, max(int(1 / np.sum(weights**2) / least), 1))
    if num_components == 1:
        return whole.widened(_WIDER)
    starts = points[rng.choice(count, size=num_components, replace=False, p=weights)]
    if max_points is not None and count > max_points:
        places = np.searchsorted(np.cumsum(weights), (np.arange(max_points) + rng.uniform()) / max_points)
        points, weights = points[np.minimum(places, count - 1)], np.full(max_points, 1 / max_points)
    mixture = StudentMixture(
        np.full(num_components, -math.log(num_components)),
        starts,
        np.repeat(whole.factors, num_components, axis=0),
    )
    for _ in range(num_steps):
        terms = mixture._log_terms(points)
        shares = np.exp(terms - logsumexp(terms, axis=1, keepdims=True)) * weights[:, None]
        sizes = shares.sum(0)
        is_kept = sizes > 0.01
        shares, sizes = shares[:, is_kept], sizes[is_kept]
        means = (shares / sizes).T @ points
        factors = []
        for own, size, centre in zip(shares.T, sizes, means, strict=True):
            centred = points - centre
            factors.append(np.linalg.cholesky((own[:, None] * centred).T @ centred / size + ridge))
        mixture = StudentMixture(np.log(sizes / sizes.sum()), means, np.array(factors))
    return mixture.widened(_WIDER)
