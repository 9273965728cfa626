"""Coordinates in which a likelihood is about as wide in all directions."""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float


@runtime_checkable
class Coordinates(Protocol):
    """A map of the unit cube to coordinates in which a likelihood is about as wide in all directions."""

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Return coordinates of points."""

    @property
    def log_slope(self) -> float:
        """Log of the volume in these coordinates for each in the cube."""

    def inverse(self, coordinates: np.ndarray) -> np.ndarray:
        """Return points, which may be outside of the cube."""

    def scaled(self, times: float) -> "Coordinates":
        """Return the map for a likelihood so many times as wide."""


class Whitening(NamedTuple):
    """A linear map of the unit cube.

    Attributes:
        centre: In the unit cube.
        factor: Points are the centre and this times whitened coordinates.
    """

    centre: Float[np.ndarray, " dim"]
    factor: Float[np.ndarray, "dim dim"]

    def __call__(self, points: Float[np.ndarray, "num_points dim"]) -> Float[np.ndarray, "num_points dim"]:
        """Return whitened coordinates of points."""
        return np.linalg.solve(self.factor, (points - self.centre).T).T

    @property
    def log_slope(self) -> float:
        """Log of the volume in whitened coordinates for each in the cube."""
        return -float(np.linalg.slogdet(self.factor)[1])

    def inverse(self, white: Float[np.ndarray, "num_points dim"]) -> Float[np.ndarray, "num_points dim"]:
        """Return points of whitened coordinates."""
        return self.centre + white @ self.factor.T

    def scaled(self, times: float) -> "Whitening":
        """Return the map for a likelihood so many times as wide."""
        return self._replace(factor=self.factor * times)


def of_cube(dim: int) -> Whitening:
    """Return the map for points uniform in the cube."""
    return Whitening(np.full(dim, 0.5), np.eye(dim) / np.sqrt(12.0))


def of_points(
    points: Float[np.ndarray, "num_points dim"], weights: Float[np.ndarray, " num_points"]
) -> Whitening:
    """Return the map for weighted points; the weights sum to 1."""
    dim = points.shape[1]
    covariance = np.cov(points.T, aweights=weights, bias=True).reshape(dim, dim)
    ridge = 1e-6 * np.diag(np.diagonal(covariance)) + 1e-18 * np.eye(dim)
    return Whitening(weights @ points, np.linalg.cholesky(covariance + ridge))
