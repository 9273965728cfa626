"""Concave quadratic forms, fitted to a log likelihood near its peak."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

_LEAST_CURVATURE = 0.02  # in whitened coordinates, where 1 is expected
_RIDGE = 1e-4  # of the least squares, for each point

_Points = Float[np.ndarray, "num_points dim"] | Float[Array, "num_points dim"]
_Values = Float[np.ndarray, " num_points"] | Float[Array, " num_points"]


class ConcaveForm(NamedTuple):
    """A quadratic form that falls off in every direction, in whitened coordinates.

    Attributes:
        constant: Its value at zero.
        slope: Its linear part.
        curvature: Its symmetric matrix; negative definite.
    """

    constant: float
    slope: Float[np.ndarray, " dim"]
    curvature: Float[np.ndarray, "dim dim"]

    def __call__(self, white: _Points) -> _Values:
        """Return the form at whitened points, in code that JAX can trace."""
        return self.constant + white @ self.slope + 0.5 * (white @ self.curvature * white).sum(axis=1)


def fit_concave(
    white: Float[np.ndarray, "num_points dim"], values: Float[np.ndarray, " num_points"], depth: float
) -> ConcaveForm:
    """Return a form by least squares, in which the greatest values count most.

    Args:
        white: Whitened points.
        values: Log likelihoods, less the greatest.
        depth: Down to which values matter; see `form_weights`.
    """
    count, dim = white.shape
    rows, columns = np.triu_indices(dim)
    weights = np.sqrt(form_weights(values, depth))
    products = white[:, rows] * white[:, columns] * np.where(rows == columns, 0.5, 1.0)
    design = np.column_stack([np.ones(count), white, products])
    # Where there are too few points, the form is that of a standard Gaussian.
    expected = np.concatenate([np.zeros(1 + dim), np.where(rows == columns, -1.0, 0.0)])
    found = _least_squares(design, values - design @ expected, weights) + expected
    curvature = np.zeros((dim, dim))
    curvature[rows, columns] = curvature[columns, rows] = found[1 + dim :]
    sizes, vectors = np.linalg.eigh(curvature)
    curvature = (vectors * np.minimum(sizes, -_LEAST_CURVATURE)) @ vectors.T
    left = values - 0.5 * np.sum(white @ curvature * white, axis=1)
    found = _least_squares(design[:, : 1 + dim], left, weights)
    return ConcaveForm(float(found[0]), found[1:], curvature)


def form_weights(values: Float[np.ndarray, " num_points"], depth: float) -> Float[np.ndarray, " num_points"]:
    """Return what log likelihoods, less the greatest, count in a fit: a fourth of the depth down, 1/e."""
    return np.exp(values / (0.25 * depth))


def _least_squares(design: np.ndarray, target: np.ndarray, weights: np.ndarray) -> np.ndarray:
    count, size = design.shape
    ridge = np.sqrt(_RIDGE * count) * np.eye(size)[1:]  # of all but the constant
    rows = np.concatenate([design * weights[:, None], ridge])
    return np.linalg.lstsq(rows, np.concatenate([target * weights, np.zeros(size - 1)]), rcond=None)[0]
