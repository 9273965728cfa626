"""A problem as nested sampling sees it: batches of unit-cube points in, log likelihoods out."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from qbs.errors import LikelihoodError
from qbs.inference.binding import BoundModel
from qbs.inference.checkpoint import Keeper
from qbs.inference.nested.call_log import CallLog
from qbs.inference.nested.unit_cube import UnitCube, cube_log_likelihood, cube_values, unit_cube
from qbs.inference.problem import Problem, describe, nonfinite_data

_CHUNK = 1024  # points whose values are computed in one call


class CubeProblem:
    """Evaluates a problem on points of the unit cube, counts the calls and refuses NaN.

    Attributes:
        dim: Dimension of the unit cube.
        num_calls: Log likelihoods computed so far.
        num_finite: How many of them were finite.
        calls: The log of the calls.
        is_compiled: Whether a batch is one compiled call, or a Python call for each point.
    """

    def __init__(self, problem: Problem, keeper: Keeper):
        self._problem, self.calls = problem, CallLog(keeper)
        self._cube = unit_cube(problem.bound)
        self.dim = self._cube.dim
        self.num_calls = self.num_finite = 0
        self.is_compiled = problem.black_box is None

    def log_likelihood(self, points: np.ndarray) -> np.ndarray:
        """Return log likelihoods, shape (n,), of points of shape (n, dim).

        Raises:
            LikelihoodError: If one of them is NaN or `+inf`; the message gives the parameters.
        """
        if self.is_compiled:
            values = self.calls.call(self._compiled, points)
        else:  # kept one by one: a call may take minutes
            values = np.concatenate([self.calls.call(self._black_box, point[None]) for point in points])
        self.num_calls += len(points)
        self.num_finite += int(np.sum(np.isfinite(values)))
        invalid = np.flatnonzero(np.isnan(values) | np.isposinf(values))
        if invalid.size:
            parameters = self.parameters(points[invalid[:1]])[0]
            raise LikelihoodError(
                f"the log likelihood of {self._problem.name!r} is {values[invalid[0]]} at "
                f"{describe(parameters)}: return -jnp.inf where parameters are impossible, and mend the rest"
            )
        return values

    def _compiled(self, points: np.ndarray) -> np.ndarray:
        return np.asarray(_batch_log_likelihood(self._problem.bound, self._cube, points))

    def _black_box(self, points: np.ndarray) -> np.ndarray:
        return np.array([self._call_black_box(point) for point in points], dtype=np.float64)

    def impossible(self) -> LikelihoodError:
        """Return the error for a likelihood that is zero wherever it was tried."""
        causes = "; ".join(nonfinite_data(self._problem.bound)) or (
            "the priors and the data exclude each other, or the likelihood is wrong"
        )
        return LikelihoodError(
            f"the log likelihood of {self._problem.name!r} is -inf at all of {self.num_calls:,} draws from "
            f"the prior: {causes}"
        )

    def parameters(self, points: np.ndarray) -> list[dict[str, Any]]:
        """Return the latent values at points of the cube, one dictionary a point."""
        columns = self._columns(points)
        latent = self._problem.latent
        return [{name: columns[name][i] for name in latent} for i in range(len(points))]

    def values(self, points: np.ndarray) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        """Return latent and derived values at points of the cube, and the names of the derived ones."""
        columns = self._columns(points)
        if self._problem.derive is not None:
            rows = [
                self._problem.derive({name: columns[name][i] for name in self._problem.latent})
                for i in range(len(points))
            ]
            columns |= {name: np.array([row[name] for row in rows]) for name in rows[0]}
        return self._problem.in_order(columns)

    def _columns(self, points: np.ndarray) -> dict[str, np.ndarray]:
        padded = -(-len(points) // _CHUNK) * _CHUNK
        filled = np.concatenate([points, np.full((padded - len(points), self.dim), 0.5)])
        parts = [
            _batch_values(self._problem.bound, self._cube, filled[start : start + _CHUNK])
            for start in range(0, padded, _CHUNK)
        ]
        return {
            name: np.concatenate([np.asarray(part[name]) for part in parts])[: len(points)]
            for name in parts[0]
        }

    def _call_black_box(self, point: np.ndarray) -> float:
        assert self._problem.black_box is not None
        values = _values(self._problem.bound, self._cube, point)
        return self._problem.black_box({name: np.asarray(values[name])[()] for name in self._problem.latent})


@jax.jit
def _batch_log_likelihood(bound: BoundModel, cube: UnitCube, points: Array) -> Array:
    return jax.vmap(partial(cube_log_likelihood, bound, cube))(points)


@jax.jit
def _values(bound: BoundModel, cube: UnitCube, point: Array) -> dict[str, Array]:
    return cube_values(bound, cube, point)


@jax.jit
def _batch_values(bound: BoundModel, cube: UnitCube, points: Array) -> dict[str, Array]:
    return jax.vmap(partial(cube_values, bound, cube))(jnp.asarray(points))
