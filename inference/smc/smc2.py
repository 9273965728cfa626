"""SMC^2: a population over parameters, each weighed by a particle filter of its own."""

import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

import qbs.semantics.run as semantics
from qbs.inference.blocks import Plan
from qbs.inference.checkpoint import Keeper
from qbs.inference.method import Method, require_positive
from qbs.inference.problem import Problem
from qbs.inference.progress import ProgressLine
from qbs.inference.results.posterior import Posterior
from qbs.inference.sites import walk
from qbs.inference.smc.chains import CAPACITY, NUM_STARTS, Space, Walk, run_chains
from qbs.inference.smc.islands import (
    combined_evidence,
    effective_number,
    island_problems,
    path_log_weights,
    require_scores,
    run_islands,
)
from qbs.inference.smc.pmmh import TARGET_ACCEPT, Marginal
from qbs.inference.smc.settings import require_islands, require_names, require_threshold
from qbs.inference.smc.split import find_parameters
from qbs.inference.transform.metropolis import Proposal
from qbs.inference.transform.population import population
from qbs.inference.transform.rejuvenation import rejuvenate
from qbs.precision import Precision
from qbs.program import Program
from qbs.semantics.run import Weighted

_PILOT_WALK = Walk(num_chains=4, scale=None, target_accept=TARGET_ACCEPT)
_PILOT = Plan("the pilot of SMC2", num_warmup=100, num_draws=100, capacity=CAPACITY, is_all=False)
_DEGREES = (
    3.0  # of freedom of the random walk: heavy tails, for the wide posteriors of the first observations
)
MIN_DISTINCT = 100


class SMC2(Method):
    """SMC^2: evidence, parameters and states of a time series with unknown parameters.

    Particles of parameters, each with a particle filter of its own, go through the data in order: a filter's
    evidence for the next observation weighs its parameters. When few parameters carry the weight they are
    resampled and moved, by particle marginal Metropolis-Hastings on the data so far. Independent islands give
    the error of the evidence. Runs in float64.

    The moves are a random walk with heavy tails (Student's t) on unconstrained space, whose scale in each
    coordinate comes from a short pilot run of PMMH. `num_likelihood_calls` counts the pilot and one pass
    through the data; the moves, as many as resampling asks for, come on top.

    Attributes:
        num_particles: Particles of parameters on each island.
        num_inner: Particles of states for each of them.
        num_islands: Independent runs; two or more.
        threshold: Resample and move the parameters when their effective sample size is below this share.
        num_moves: Moves each time.
        num_paths: Draws returned by each island, parameters with a path of the states.
        parameters: The names of the parameters; by default the latent sites outside of scans.

    References:
        Chopin, Jacob & Papaspiliopoulos (2013), "SMC^2: an efficient algorithm for sequential analysis of
        state space models".
    """

    precision: ClassVar[Precision | None] = "float64"

    num_particles: int = eqx.field(static=True, default=200)
    num_inner: int = eqx.field(static=True, default=200)
    num_islands: int = eqx.field(static=True, default=8)
    threshold: float = eqx.field(static=True, default=0.5)
    num_moves: int = eqx.field(static=True, default=3)
    num_paths: int = eqx.field(static=True, default=100)
    parameters: tuple[str, ...] | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        counts = ("num_particles", "num_inner", "num_islands", "num_moves", "num_paths")
        require_positive(self, *counts, whole=True)
        require_islands(self)
        require_threshold(self)
        require_names(self)

    def run(self, problem: Problem, key: Array, line: ProgressLine, keeper: Keeper) -> Posterior:
        """Run the pilot and all islands; see `Method.run`."""
        num_scores = require_scores(problem, "SMC2")
        space = Space(problem.bound, find_parameters(problem, self.parameters, "SMC2"))
        pilot_key, islands_key = jax.random.split(key)
        scales = self._scales(problem, space, pilot_key, line, keeper)
        keys = jax.random.split(islands_key, self.num_islands)
        islands = run_islands(problem, keys, line, keeper, lambda own: _run_island(self, space, scales, own))
        log_weights = path_log_weights(islands.log_evidences, self.num_paths)
        log_evidence, error = combined_evidence(islands.log_evidences)
        samples, derived = problem.in_order(islands.trace)
        remedy = "use more particles, or more num_inner"
        problems = island_problems(islands, self.num_islands, remedy)
        if (distinct := effective_number(islands.labels, log_weights)) < MIN_DISTINCT:
            problems.append(
                f"The draws have only {distinct:.0f} effective distinct values of the parameters: means and "
                "quantiles are rough; raise num_particles or num_moves."
            )
        num_passes = len(islands.log_evidences) * self.num_particles + _num_pilot_filters()
        return Posterior(
            samples=samples,
            log_weights=log_weights,
            log_evidence=log_evidence,
            log_evidence_error=error,
            num_likelihood_calls=num_passes * self.num_inner * num_scores,
            problems=problems,
            derived=derived,
            provenance={
                "is_interrupted": islands.is_interrupted,
                "log_evidence_of_islands": islands.log_evidences.tolist(),
                "random_walk_scales": np.asarray(scales).tolist(),
            },
        )

    def _scales(
        self, problem: Problem, space: Space, key: Array, line: ProgressLine, keeper: Keeper
    ) -> Float[Array, " dim"]:
        """Return the scales of the random walk: the posterior's, each parameter given the others."""
        mover = Marginal(space, self.num_inner)
        run = run_chains(problem, mover, _PILOT_WALK, _PILOT, key, line, keeper)
        if run.is_interrupted:
            raise KeyboardInterrupt("SMC2 was interrupted in its pilot run: nothing to return")
        positions = run.draws()[1]["position"]
        draws = positions.reshape(-1, positions.shape[-1])
        dim = draws.shape[1]
        covariance = np.atleast_2d(np.cov(draws.T))
        covariance += np.diag(1e-6 * np.diag(covariance) + 1e-300)
        return jnp.asarray(2.38 / math.sqrt(dim) / np.sqrt(np.diag(np.linalg.inv(covariance))))


def _num_pilot_filters() -> int:
    return _PILOT_WALK.num_chains * (2 * NUM_STARTS + _PILOT.num_steps)


@eqx.filter_jit
def _run_island(method: SMC2, space: Space, scales: Float[Array, " dim"], key: Array) -> Weighted:
    prior, rest = space.split
    inner = population(rest, method.num_inner, num_returned=1)

    def draw_both(*args: Any) -> dict[str, Array]:
        path = inner(prior(*args), *args).value
        return jax.tree.map(lambda leaf: leaf[0], path)

    moved = rejuvenate(
        Program(draw_both, space.bound.name),
        _random_walk(space, scales),
        method.num_moves,
        sites=space.parameters,
        only_resampled=True,
    )
    outer = population(moved, method.num_particles, threshold=method.threshold, num_returned=method.num_paths)

    def labelled(*args: Any) -> tuple[Array, dict[str, Array]]:
        values = outer(*args).value
        return values[space.parameters[0]].reshape(method.num_paths, -1)[:, 0], values

    return semantics.run(Program(labelled, space.bound.name))(key, *space.bound.arrays)


def _random_walk(space: Space, scales: Float[Array, " dim"]) -> Proposal:
    """Return the random walk on unconstrained space, as distributions on the supports of the parameters."""
    by_name = space.by_name(scales)

    def proposal(current: dict[str, Array]) -> dict[str, dist.Distribution]:
        priors: dict[str, Any] = {}
        prior, arrays = space.split.prior, space.bound.arrays
        walk(prior, arrays, jax.random.key(0), current, priors.__setitem__)
        proposed = {}
        for name, value in current.items():
            transform = dist.biject_to(priors[name].support)
            steps = dist.StudentT(_DEGREES, transform.inv(value), by_name[name])
            proposed[name] = dist.TransformedDistribution(
                steps.to_event(transform.domain.event_dim), transform
            )
        return proposed

    return proposal
