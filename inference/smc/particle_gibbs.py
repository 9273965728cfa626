"""Particle Gibbs: the states by a conditional particle filter, the parameters given the states."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from qbs.errors import ModelError, ProgramError
from qbs.inference.blocks import Converged, Plan, run_problems
from qbs.inference.checkpoint import Keeper
from qbs.inference.method import Method, require_positive
from qbs.inference.problem import Problem
from qbs.inference.progress import ProgressLine
from qbs.inference.results.diagnostics import chain_problems
from qbs.inference.results.posterior import Posterior
from qbs.inference.smc.chains import (
    CAPACITY,
    NUM_STARTS,
    Chain,
    Info,
    Mover,
    Space,
    Walk,
    nonfinite_problems,
    run_chains,
)
from qbs.inference.smc.draws import draw
from qbs.inference.smc.islands import require_scores
from qbs.inference.smc.settings import require_names, require_warmup
from qbs.inference.smc.split import find_parameters, split
from qbs.inference.transform.conditional import conditional
from qbs.inference.transform.replay import Replay, replay
from qbs.jaxprs import find_sites
from qbs.precision import Precision

_TARGET_ACCEPT = 0.3  # the density is exact here; between the optima for one coordinate and for many


class ParticleGibbs(Method):
    """Particle Gibbs with ancestor sampling: parameters and states of long time series.

    Draws in turn a new path of all states, by a particle filter in which one particle keeps the old path, and
    new parameters given the path, by steps of a random walk on unconstrained space whose covariance and scale
    are learned in warm-up. Few particles suffice, also for long series. Runs in float64; gives no evidence.

    Attributes:
        num_particles: Particles of the filter, the one on the old path included; at least 2.
        num_chains: Number of chains; four or more let R-hat judge them.
        num_warmup: Steps in which the random walk learns, not kept.
        num_draws: Draws kept from each chain.
        num_parameter_steps: Steps of the random walk for each new path; they are cheap.
        ancestor_sampling: Draw a new past for the old path at each step. The model must be Markov for it;
            without it, many more particles are needed for long series.
        parameters: The names of the parameters; by default the latent sites outside of scans.
        until: When to stop before `num_draws`, for example `mcmc.Converged(ess=1000, r_hat=1.01)`.

    References:
        Andrieu, Doucet & Holenstein (2010), "Particle Markov chain Monte Carlo methods"; Lindsten, Jordan &
        Schön (2014), "Particle Gibbs with ancestor sampling".
    """

    precision: ClassVar[Precision | None] = "float64"
    extensible: ClassVar[tuple[str, ...]] = ("num_draws", "until")

    num_particles: int = eqx.field(static=True, default=50)
    num_chains: int = eqx.field(static=True, default=4)
    num_warmup: int = eqx.field(static=True, default=500)
    num_draws: int = eqx.field(static=True, default=2000)
    num_parameter_steps: int = eqx.field(static=True, default=5)
    ancestor_sampling: bool = eqx.field(static=True, default=True)
    parameters: tuple[str, ...] | None = eqx.field(static=True, default=None)
    until: Converged | None = None

    def __check_init__(self) -> None:
        counts = ("num_particles", "num_chains", "num_draws", "num_parameter_steps")
        require_positive(self, *counts, whole=True)
        require_warmup(self)
        require_names(self)
        if self.num_particles < 2:
            raise ValueError(
                "ParticleGibbs: num_particles must be at least 2: one of them is on the old path"
            )

    def run(self, problem: Problem, key: Array, line: ProgressLine, keeper: Keeper) -> Posterior:
        """Run all chains; see `Method.run`."""
        num_scores = require_scores(problem, "ParticleGibbs")
        space = Space(problem.bound, find_parameters(problem, self.parameters, "ParticleGibbs"))
        if optional := [name for name, site in problem.latent.items() if site.is_optional]:
            raise ModelError(
                f"ParticleGibbs needs paths of all sites, and a branch of a cond in {problem.name!r} passes "
                f"by {', '.join(map(repr, optional))}: draw before the cond and use the value inside, or "
                "use PMMH"
            )
        mover = _Sweep(space, self.num_particles, self.num_parameter_steps, self.ancestor_sampling)
        how = Walk(self.num_chains, None, _TARGET_ACCEPT)
        plan = Plan("ParticleGibbs", self.num_warmup, self.num_draws, CAPACITY, until=self.until)
        try:
            run = run_chains(problem, mover, how, plan, key, line, keeper)
        except ProgramError as error:
            if "Markov" not in str(error):
                raise
            raise ModelError(
                f"{problem.name!r}: {error}; or set ancestor_sampling=False, or use PMMH"
            ) from error
        draws, stats = run.draws()
        samples, derived = problem.in_order(draws)
        num_passes = 2 * NUM_STARTS * self.num_particles
        num_passes += run.num_steps * (self.num_particles + self.num_parameter_steps + 1)
        return Posterior(
            samples=samples,
            num_likelihood_calls=self.num_chains * num_passes * num_scores,
            problems=[*run_problems(plan, run), *chain_problems(samples, stats), *nonfinite_problems(run)],
            derived=derived,
            stats=stats,
            provenance={"is_interrupted": run.is_interrupted},
        )


class _Sweep(Mover):
    """Draw a new path given the parameters, and move the parameters given the path."""

    num_parameter_steps: int = eqx.field(static=True)
    ancestor_sampling: bool = eqx.field(static=True)

    def prepared(self, chains: Chain) -> Chain:
        """Keep of the path what is drawn, and is no parameter."""
        bound = self.space.bound
        states = set(find_sites(bound.program.stage(*bound.arrays).jaxpr)).difference(self.space.parameters)
        return chains._replace(path={name: chains.path[name] for name in sorted(states)})

    def move(self, key: Array, chain: Chain, factor: Float[Array, "dim dim"]) -> tuple[Chain, Info]:
        """Make a sweep."""
        path_key, *keys = jax.random.split(key, self.num_parameter_steps + 1)
        values, log_prior = self.space.values(chain.position)
        rest = split(self.space.bound.program, self.space.parameters, nan_is_impossible=True).rest
        kernel = conditional(rest, self.num_particles, ancestor_sampling=self.ancestor_sampling)
        path = draw(kernel, path_key, chain.path, values, *self.space.bound.arrays).value
        start = chain.position, log_prior + self._log_rest(values, path)

        def step(state: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
            position, log_target = state
            step_key, accept_key = jax.random.split(key)
            proposed = position + factor @ jax.random.normal(step_key, position.shape)
            values, log_prior = self.space.values(proposed)
            log_proposed = log_prior + self._log_rest(values, path)
            is_bad = jnp.isnan(log_proposed) | (log_proposed == jnp.inf)
            log_ratio = jnp.minimum(log_proposed - log_target, 0.0)
            accept_prob = jnp.where(is_bad, 0.0, jnp.exp(log_ratio))
            is_accepted = jax.random.uniform(accept_key) < accept_prob
            new = jnp.where(is_accepted, proposed, position), jnp.where(is_accepted, log_proposed, log_target)
            return new, (accept_prob, is_bad.astype(int))

        (position, log_target), (accept_prob, is_bad) = lax.scan(step, start, jnp.stack(keys))
        return Chain(position, log_target, path), Info(jnp.mean(accept_prob), jnp.sum(is_bad))

    def _log_rest(self, values: dict[str, Array], path: dict[str, Array]) -> Array:
        """Return the log density of a path and the data, given parameters."""
        found = replay(self.space.split.rest.stage(values, *self.space.bound.arrays), Replay(), path).state
        return found.log_prob + found.log_score

    def record(self, chain: Chain) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return all sites and deterministic values, and densities."""
        values, _ = self.space.values(chain.position)
        bound = self.space.bound
        walked = replay(bound.program.stage(*bound.arrays), Replay(), values | chain.path)
        log_density = walked.state.log_prob + walked.state.log_score
        return walked.trace, {"log_likelihood": walked.state.log_score, "log_density": log_density}
