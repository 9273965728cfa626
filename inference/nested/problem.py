"""A problem as nested sampling sees it: batches of unit-cube points in, log likelihoods out."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from qbs.errors import ExecutorError, LikelihoodError
from qbs.inference.binding import BoundModel
from qbs.inference.black_box import Outcome
from qbs.inference.calls import Caller
from qbs.inference.checkpoint import Keeper
from qbs.inference.nested.call_file import Layout
from qbs.inference.nested.call_log import CallLog
from qbs.inference.nested.journal import Journal
from qbs.inference.nested.unit_cube import UnitCube, cube_log_likelihood, cube_values, unit_cube
from qbs.inference.problem import Problem, describe, nonfinite_data

# Points whose values are computed in one call, the last with padding: where the likelihood is compiled they
# are all draws, at the end; where it is not, a batch at a time.
MAX_FIRST_DRAWS = {True: 200_000, False: 10_000}  # compiled, Python: until one must be possible
_CHUNK = {True: 1024, False: 32}


@runtime_checkable
class Cube(Protocol):
    """What a sampler asks of a likelihood on the unit cube; see `CubeProblem`."""

    dim: int
    num_calls: int
    num_finite: int
    is_compiled: bool
    version: int  # another one where the same point may have another value

    def log_likelihood(self, points: np.ndarray) -> np.ndarray:
        """Return log likelihoods, shape (n,), of points of shape (n, dim)."""

    def impossible(self) -> Exception:
        """Return the error for a likelihood that is zero wherever it was tried."""


class CubeProblem:
    """Evaluates a problem on points of the unit cube, and counts the calls.

    A compiled likelihood that is NaN or `+inf` is an error. Calls of one in plain Python that fail give
    `-inf`, and are told in the result; see `qbs.Calls`.

    Attributes:
        dim: Dimension of the unit cube.
        num_calls: Log likelihoods computed so far, those found in the log of a stopped run included.
        num_finite: How many of them were finite.
        is_compiled: Whether a batch is one compiled call, or Python calls of each point.
        version: Always the same, as a point always has the same value.

    Args:
        problem: The problem.
        keeper: Where the calls are kept.

    Raises:
        ModelError: If a prior has no map from the unit cube.
        CheckpointError: If the log of the calls is of another run, damaged or missing.
    """

    version = 0

    def __init__(self, problem: Problem, keeper: Keeper):
        self._problem = problem
        self._cube = unit_cube(problem.bound)
        self._latent = tuple(problem.latent)
        self.dim = self._cube.dim
        self.num_calls = self.num_finite = 0
        self.is_compiled = problem.black_box is None
        self.calls: CallLog | _PythonCalls
        if problem.black_box is None:
            self.calls = CallLog(keeper)
        else:
            layout = Layout(self.dim, tuple((name, site.shape) for name, site in problem.latent.items()))
            caller = problem.caller or Caller(problem.black_box)
            self.calls = _PythonCalls(caller, Journal(keeper, layout), self.parameters)

    @property
    def num_new_calls(self) -> int:
        """How many log likelihoods were computed in this process, or by its workers."""
        return self.calls.num_new

    def log_likelihood(self, points: np.ndarray) -> np.ndarray:
        """Return log likelihoods, shape (n,), of points of shape (n, dim).

        Python calls are all handed to the executor at once, and kept as they come back.

        Raises:
            LikelihoodError: If a compiled one is NaN or `+inf`, with the parameters; or if too many Python
                calls failed.
            ExecutorError: If the workers cannot go on.
            CheckpointError: If a compiled run that goes on asks for other points than before.
            ValueError: If the points have another shape.
        """
        points = np.ascontiguousarray(points, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != self.dim:
            raise ValueError(f"points must have shape (n, {self.dim}), not {points.shape}")
        if isinstance(self.calls, CallLog):
            values = self.calls.call(self._compiled, points)
            self._count(values)
            self._require_valid(values, points)
            return values
        found = np.full(len(points), np.nan)
        try:
            self.calls.fill(found, points, self.num_calls)
        finally:
            self._count(found[~np.isnan(found)])  # an interrupt leaves some
        return found

    def _count(self, values: np.ndarray) -> None:
        self.num_calls += len(values)
        self.num_finite += int(np.count_nonzero(np.isfinite(values)))

    def _require_valid(self, values: np.ndarray, points: np.ndarray) -> None:
        invalid = np.flatnonzero(np.isnan(values) | np.isposinf(values))
        if invalid.size:
            parameters = self.parameters(points[invalid[:1]])[0]
            raise LikelihoodError(
                f"the log likelihood of {self._problem.name!r} is {values[invalid[0]]} at "
                f"{describe(parameters)}: return -jnp.inf where parameters are impossible, and mend the rest"
            )

    def _compiled(self, points: np.ndarray) -> np.ndarray:
        return np.asarray(_batch_log_likelihood(self._problem.bound, self._cube, points))

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
        latent = [columns[name] for name in self._latent]
        for values in latent:
            values.flags.writeable = False  # what a likelihood writes into its parameters would be logged
        rows = zip(*latent, strict=True)
        return [dict(zip(self._latent, row, strict=True)) for row in rows]

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
        chunk = 1 if len(points) == 1 else _CHUNK[self.is_compiled]  # walks ask for one at a time
        if missing := -len(points) % chunk:
            points = np.concatenate([points, np.full((missing, self.dim), 0.5)])
        parts = [
            _batch_values(self._problem.bound, self._cube, points[start : start + chunk])
            for start in range(0, len(points), chunk)
        ]
        return {
            name: np.concatenate([np.asarray(part[name]) for part in parts])[: len(points) - missing]
            for name in parts[0]
        }


class _PythonCalls:
    """Calls of a likelihood in plain Python: those of the stopped run from its log, and the others made.

    Args:
        caller: Makes them.
        journal: Their log.
        parameters: From points of the cube to what the likelihood is called with.
    """

    def __init__(
        self, caller: Caller, journal: Journal, parameters: Callable[[np.ndarray], list[dict[str, Any]]]
    ):
        self._caller, self._journal, self._parameters = caller, journal, parameters
        self._num_before = caller.num_made

    @property
    def num_new(self) -> int:
        """How many calls were made, and not found."""
        return self._caller.num_made - self._num_before

    def fill(self, values: np.ndarray, points: np.ndarray, start: int) -> None:
        """Write log likelihoods into an array as they come in.

        Args:
            values: Where to; of shape (n,).
            points: Points of the cube, of shape (n, dim).
            start: The number of the first call in the order of the run.
        """
        # Also where the outcome is known: a point at the same place of the same batch has the same bits.
        parameters = self._parameters(points)
        left, failures = [], self._caller.failures
        for place, point in enumerate(points):
            outcome = self._journal.known(point)
            if outcome is None:
                left.append(place)
                continue
            values[place] = outcome.value
            failures.note(start + place, parameters[place], outcome)
        tasks = [parameters[place] for place in left]

        def keep(index: int, outcome: Outcome) -> None:
            place = left[index]
            values[place] = outcome.value
            self._journal.add(points[place], tasks[index], outcome)

        try:
            failures.check()
            if tasks:
                self._caller.make(tasks, [start + place for place in left], keep)
        except (LikelihoodError, ExecutorError) as error:
            if not self._journal.promise:
                raise
            raise type(error)(f"{error}.{self._journal.promise}") from error.__cause__

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Have the disk take all calls as the body ends, also by an error or an interrupt."""
        with self._journal.kept():
            yield


@jax.jit
def _batch_log_likelihood(bound: BoundModel, cube: UnitCube, points: Array) -> Array:
    return jax.vmap(partial(cube_log_likelihood, bound, cube))(points)


@jax.jit
def _batch_values(bound: BoundModel, cube: UnitCube, points: Array) -> dict[str, Array]:
    return jax.vmap(partial(cube_values, bound, cube))(jnp.asarray(points))
