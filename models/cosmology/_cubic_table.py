"""A function tabulated on a regular grid of one or two dimensions, as a smooth function in JAX."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from qbs.models.cosmology.background import ambient_array


class CubicTable(eqx.Module):
    """The cubic spline through values on a regular grid (not-a-knot), constant beyond it.

    It has two continuous derivatives on the grid. Beyond it takes the value at the nearest point of the
    grid, with a zero gradient across the edge. It is plain JAX and runs in the ambient precision.

    Attributes:
        lower: First node along each axis.
        spacing: Distance of the nodes along each axis.
        coefficients: Coefficients of the uniform cubic B-splines, two more than nodes along each axis.
    """

    lower: Float[np.ndarray, " num_axes"]
    spacing: Float[np.ndarray, " num_axes"]
    coefficients: Float[np.ndarray, "..."]

    @classmethod
    def from_values(cls, axes: tuple[np.ndarray, ...], values: np.ndarray) -> "CubicTable":
        """Return the spline through the values.

        Args:
            axes: The nodes along each axis, four or more: increasing, equally spaced to 1e-8 of a step.
            values: The values at the nodes, finite.

        Returns:
            The table.

        Raises:
            ValueError: If the nodes or the values are not of this kind.
        """
        values = np.asarray(values, dtype=np.float64)
        shape = tuple(len(axis) for axis in axes)
        if values.shape != shape or min(shape, default=0) < 4 or not np.isfinite(values).all():
            raise ValueError(
                f"values must be finite and of shape {shape}, four or more a side; they have {values.shape}"
            )
        for axis in axes:
            steps = np.diff(axis)
            if not (steps[0] > 0 and np.all(np.abs(steps / steps.mean() - 1) < 1e-8)):
                raise ValueError(f"the nodes of an axis must increase by equal steps, not {axis!r}")
        coefficients = values
        for dimension, size in enumerate(shape):
            moved = np.moveaxis(coefficients, dimension, 0)
            solved = np.linalg.solve(
                _collocation(size), np.pad(moved, [(1, 1)] + [(0, 0)] * (values.ndim - 1))
            )
            coefficients = np.moveaxis(solved, 0, dimension)
        return cls(
            lower=np.array([axis[0] for axis in axes]),
            spacing=np.array([(axis[-1] - axis[0]) / (len(axis) - 1) for axis in axes]),
            coefficients=np.ascontiguousarray(coefficients),
        )

    def __call__(self, point: Num[Array, " num_axes"]) -> Float[Array, ""]:
        """Return the value at a point, which may lie beyond the grid."""
        last = np.array(self.coefficients.shape) - 3
        position = (point - ambient_array(self.lower)) / ambient_array(self.spacing)
        position = jnp.clip(position, 0.0, last)
        start = jnp.clip(jnp.floor(jax.lax.stop_gradient(position)).astype(int), 0, last - 1)
        block = jax.lax.dynamic_slice(
            ambient_array(self.coefficients), tuple(start), (4,) * self.coefficients.ndim
        )
        for offset in position - start:
            block = jnp.tensordot(_basis(offset), block, axes=1)
        return block


def _collocation(size: int) -> np.ndarray:
    """Return the matrix from coefficients to values at the nodes, with an end condition above and below.

    The conditions make the third derivative continuous at the second and at the last node but one.
    """
    matrix = np.zeros((size + 2, size + 2))
    for node in range(size):
        matrix[node + 1, node : node + 3] = np.array([1.0, 4.0, 1.0]) / 6.0
    jump = np.array([1.0, -4.0, 6.0, -4.0, 1.0])
    matrix[0, :5] = jump
    matrix[-1, -5:] = jump
    return matrix


def _basis(t: Array) -> Float[Array, " 4"]:
    """Return the four uniform cubic B-splines that overlap at a fraction t of a step."""
    s = 1.0 - t
    return jnp.stack([s**3, 3 * t**3 - 6 * t**2 + 4, 3 * s**3 - 6 * s**2 + 4, t**3]) / 6.0
