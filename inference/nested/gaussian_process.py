"""Gaussian processes with a squared-exponential kernel, of settings that make their data likely."""

import bisect
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array, Bool, Float
from scipy.optimize import minimize

from qbs.inference.nested.surrogate import Surrogate

_NUM_STEPS = 60
_MOST_FOR_SETTINGS = 384  # points
# Points are padded to one of these numbers, so that refits seldom compile.
_SIZES = (64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
_CHUNK = 4096
# Of logarithms of settings, about where they start: lengths, size, noise.
_BOUNDS = (-3.0, 3.0), (-4.0, 2.0), (-8.0, 2.0)


class Process(NamedTuple):
    """A Gaussian process, given its values at some points.

    Attributes:
        points: Whitened; of rows of padding the weight is zero.
        is_there: Whether the row is none of padding.
        weights: Of the kernel at each, in the mean.
        factor: Cholesky factor of the covariance of the values.
        settings: Logarithms of the kernel's lengths, of its size and of the noise, both standard deviations.
        num_points: For which the settings were chosen.
    """

    points: Float[np.ndarray, "num_padded dim"]
    is_there: Bool[np.ndarray, " num_padded"]
    weights: Float[np.ndarray, " num_padded"]
    factor: Float[np.ndarray, "num_padded num_padded"]
    settings: Float[np.ndarray, " num_settings"]
    num_points: int

    def __call__(
        self, white: Float[np.ndarray, "num_points dim"]
    ) -> tuple[Float[np.ndarray, " num_points"], Float[np.ndarray, " num_points"]]:
        """Return the mean and the standard deviation at whitened points."""
        padded = np.concatenate([white, np.zeros((-len(white) % _CHUNK, white.shape[1]))])
        with jax.enable_x64(True):
            parts = [
                np.asarray(_moments(padded[start : start + _CHUNK], *self[:-1]))
                for start in range(0, len(padded), _CHUNK)
            ]
        mean, variance = np.concatenate([np.zeros((2, 0)), *parts], axis=1)[:, : len(white)]
        return mean, np.sqrt(variance)

    def mean(self, white: Float[Array, "num_points dim"]) -> Float[Array, " num_points"]:
        """Return the mean at whitened points, in code that JAX can trace."""
        kernel = _kernel(white, jnp.asarray(self.points), jnp.asarray(self.settings))
        return jnp.where(self.is_there, kernel, 0.0) @ jnp.asarray(self.weights)


class GaussianProcess(Surrogate):
    """A Gaussian process with a squared-exponential kernel for what a quadratic form leaves.

    The kernel's lengths, its size and the noise make the values most likely, under weak priors.
    Its time grows with the third power of the number of points: for hundreds of them, not for thousands.

    References:
        Rasmussen & Williams (2006), "Gaussian processes for machine learning", sections 2.2 and 5.4.
    """

    def fit(
        self,
        white: Float[np.ndarray, "num_points dim"],
        values: Float[np.ndarray, " num_points"],
        before: Process | None = None,
    ) -> Process:
        """Return a process; see `Surrogate.fit`.

        The settings of an earlier fit are kept while there are not a quarter more points.
        """
        return _fitted(white, values, before)


def _fitted(white: np.ndarray, values: np.ndarray, before: Process | None) -> Process:
    count, dim = white.shape
    size = _padded_size(count)
    points = np.concatenate([white, np.zeros((size - count, dim))])
    known = np.concatenate([values, np.zeros(size - count)])
    is_there = np.arange(size) < count
    with jax.enable_x64(True):
        if before is not None and count < 1.25 * before.num_points:
            settings, chosen_for = before.settings, before.num_points
        else:
            some = _some(points, known, is_there)
            settings, chosen_for = _chosen(*some, before), count
        weights, factor = _solved(settings, points, known, is_there)
        while not np.isfinite(weights).all():  # the covariance was no longer positive
            settings = settings + np.array([*np.zeros(dim + 1), 1.0])
            weights, factor = _solved(settings, points, known, is_there)
    return Process(points, is_there, np.asarray(weights), np.asarray(factor), settings, chosen_for)


def _padded_size(count: int) -> int:
    """Return to how many rows so many are padded."""
    place = bisect.bisect_left(_SIZES, count)
    return _SIZES[place] if place < len(_SIZES) else -(-count // 1024) * 1024


def _some(
    points: np.ndarray, values: np.ndarray, is_there: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return points enough to choose settings by, evenly from all."""
    count = int(is_there.sum())
    if count <= _MOST_FOR_SETTINGS:
        return points, values, is_there
    places = np.linspace(0, count - 1, _MOST_FOR_SETTINGS).astype(int)
    return points[places], values[places], is_there[places]


def _chosen(
    points: np.ndarray, values: np.ndarray, is_there: np.ndarray, before: Process | None
) -> np.ndarray:
    dim = points.shape[1]
    spread = max(float(values[is_there].std()), 1e-3)
    start = np.array([*np.full(dim, np.log(2.0)), np.log(spread), np.log(0.05 * spread)])
    bounds = start[:, None] + [*[_BOUNDS[0]] * dim, *_BOUNDS[1:]]
    starts = [start] if before is None else [np.clip(before.settings, *bounds.T), start]

    def loss(settings: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = _loss(settings, points, values, is_there)
        if not np.isfinite(value):
            return 1e10, np.zeros(len(settings))
        return float(value), np.asarray(slope)

    found = [
        minimize(
            loss,
            first,
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": _NUM_STEPS},
        )
        for first in starts
    ]
    best = min(found, key=lambda each: float(each.fun))
    return np.asarray(best.x)


def _kernel(first: Array, second: Array, settings: Array) -> Array:
    dim = first.shape[1]
    scaled, other = first / jnp.exp(settings[:dim]), second / jnp.exp(settings[:dim])
    squares = jnp.sum(scaled**2, 1)[:, None] + jnp.sum(other**2, 1) - 2 * scaled @ other.T
    return jnp.exp(2 * settings[dim] - 0.5 * jnp.maximum(squares, 0.0))


def _factor(settings: Array, points: Array, is_there: Array) -> Array:
    both = is_there[:, None] & is_there
    kernel = jnp.where(both, _kernel(points, points, settings), 0.0)
    noise = jnp.exp(2 * settings[-1]) + 1e-8 * jnp.exp(2 * settings[-2])
    return jnp.linalg.cholesky(kernel + jnp.diag(jnp.where(is_there, noise, 1.0)))


@jax.jit
@jax.value_and_grad
def _loss(settings: Array, points: Array, values: Array, is_there: Array) -> Array:
    """Return the negative log marginal likelihood, and that of the priors."""
    dim = points.shape[1]
    factor = _factor(settings, points, is_there)
    half = solve_triangular(factor, values, lower=True)
    lengths, noise = settings[:dim] - jnp.log(3.0), settings[-1] - settings[-2] + 4.0
    prior = jnp.sum(lengths**2) / 2 + noise**2 / 8
    return 0.5 * half @ half + jnp.log(jnp.diagonal(factor)).sum() + prior


@jax.jit
def _solved(settings: Array, points: Array, values: Array, is_there: Array) -> tuple[Array, Array]:
    factor = _factor(settings, points, is_there)
    return jnp.where(is_there, cho_solve((factor, True), values), 0.0), factor


@jax.jit
def _moments(
    white: Array, points: Array, is_there: Array, weights: Array, factor: Array, settings: Array
) -> Array:
    kernel = jnp.where(is_there, _kernel(white, points, settings), 0.0)
    explained = jnp.sum(solve_triangular(factor, kernel.T, lower=True) ** 2, axis=0)
    size = jnp.exp(2 * settings[-2])
    return jnp.stack([kernel @ weights, jnp.maximum(size - explained, 0.0)])
