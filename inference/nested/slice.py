"""Nested sampling by slices: live points replaced in batches, in one compiled program."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from qbs.inference.checkpoint import Keeper
from qbs.inference.method import Method, require_positive
from qbs.inference.nested.live_points import Live
from qbs.inference.nested.passes import (
    Block,
    Pattern,
    compiled_block,
    pattern_of,
    python_iteration,
    require_batch,
    spread,
)
from qbs.inference.nested.problem import CubeProblem
from qbs.inference.nested.shrinking import Goals, Run
from qbs.inference.nested.unit_cube import unit_cube
from qbs.inference.problem import Problem
from qbs.inference.progress import ProgressLine
from qbs.inference.results.posterior import Posterior
from qbs.precision import Precision


class Slice(Method):
    """Nested sampling with slices: posterior and evidence of any model with proper priors.

    Runs in float64 on the unit cube of the model's priors. In each iteration the `batch` least likely points
    die, and walks from others, all made together, find new ones above them. A model written in JAX runs as
    one compiled program; a Python likelihood is called with all points of a batch at once, which an
    `executor` of `qbs.fit` shares out.

    Attributes:
        num_live: Live points. The evidence error falls as `1 / sqrt(num_live)`, the cost grows with it.
        batch: Points replaced at a time; by default a tenth of the live points. More make better use of a
            GPU or a pool, and cost a little accuracy for each call.
        num_steps: Of the walk to a new point; by default five for each dimension. Too few, and new points
            stay near old ones: the evidence is then biased, and the insertion test may tell.
        dlogz: Stop when the live points can add less than this to the log evidence, in nats.
        min_ess: More points are drawn where the posterior is until its draws have at least this effective
            sample size; by default one pass is made.
        chunk_size: Walks made together, for memory; by default all of a batch.
        max_calls: Stop after about this many likelihood calls, with the result so far; no limit by
            default.

    References:
        Skilling (2006), "Nested sampling for general Bayesian computation"; Handley, Hobson & Lasenby (2015),
        "PolyChord", arXiv:1506.00171, for slices; Neal (2003), "Slice sampling"; Higson, Handley, Hobson &
        Lasenby (2019), "Dynamic nested sampling", arXiv:1704.03459.
    """

    precision: ClassVar[Precision | None] = "float64"

    num_live: int = eqx.field(static=True, default=500)
    batch: int | None = eqx.field(static=True, default=None)
    num_steps: int | None = eqx.field(static=True, default=None)
    dlogz: float = eqx.field(static=True, default=0.01)
    min_ess: int | None = eqx.field(static=True, default=None)
    chunk_size: int | None = eqx.field(static=True, default=None)
    max_calls: int | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        require_positive(self, "dlogz")
        require_positive(self, "num_live", whole=True)
        for name in ("batch", "num_steps", "min_ess", "chunk_size", "max_calls"):
            if getattr(self, name) is not None:
                require_positive(self, name, whole=True)
        require_batch(self)

    def pattern(self, dim: int) -> Pattern:
        """Return the shapes of a run in so many dimensions.

        Raises:
            ValueError: If there are too few live points for their covariance to be known.
        """
        return pattern_of(self, dim, self.num_steps, self.chunk_size)

    def run(self, problem: Problem, key: Array, line: ProgressLine, keeper: Keeper) -> Posterior:
        """Run until the evidence is accurate; see `Method.run`."""
        cube = CubeProblem(problem, keeper)
        finder = _Slices(problem, cube, self.pattern(cube.dim), self.dlogz)
        goals = Goals(self.num_live, self.dlogz, self.max_calls, self.min_ess)
        return Run(goals, cube, finder, key, line, keeper).posterior()


class _Slices:
    """Finds new points by slices of the likelihood; see `shrinking.Finder`."""

    def __init__(self, problem: Problem, cube: CubeProblem, pattern: Pattern, dlogz: float):
        self._bound, self._unit_cube = problem.bound, unit_cube(problem.bound)
        self._pattern, self._dlogz = pattern, dlogz
        self._evaluate = None if cube.is_compiled else cube.log_likelihood
        self.is_compiled = cube.is_compiled
        self.remedy = f"num_steps, now {pattern.num_steps}"

    def advanced(self, key: Array, live: Live, length: int) -> tuple[Live, Block]:
        if self._evaluate is not None:
            return python_iteration(self._evaluate, key, live, self._pattern)
        model = self._bound, self._unit_cube
        limits = jnp.asarray(length), jnp.asarray(self._dlogz)  # plain numbers would be compiled in
        return jax.block_until_ready(compiled_block(*model, key, live, *limits, self._pattern))

    def spread(self, key: Array, live: Live) -> tuple[Live, Block]:
        return spread(self._bound, self._unit_cube, key, live, self._pattern, self._evaluate)

    def problems(self) -> list[str]:
        return []

    def provenance(self) -> dict[str, Any]:
        return {}
