"""Particle marginal Metropolis-Hastings: a chain over parameters that a particle filter weighs."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

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
    estimate_likelihoods,
    nonfinite_problems,
    run_chains,
)
from qbs.inference.smc.islands import require_scores
from qbs.inference.smc.settings import require_names, require_warmup
from qbs.inference.smc.split import find_parameters
from qbs.precision import Precision

TARGET_ACCEPT = 0.2
_BEST_SPREAD, _MAX_SPREAD = 1.2, 1.7  # of the estimated log likelihood: Doucet et al. (2015), section 3


class PMMH(Method):
    """Particle marginal Metropolis-Hastings: parameters and states of a time series, exactly.

    A random walk over the parameters, on unconstrained space. Each proposal is weighed by the likelihood that
    a particle filter estimates, which leaves the exact posterior as it is. Each draw comes with a path of the
    states. Runs in float64; gives no evidence.

    Attributes:
        num_particles: Particles of the filter. Enough of them keep the standard deviation of the log
            likelihood near 1.2; a result says if it is above 1.7.
        num_chains: Number of chains; four or more let R-hat judge them.
        num_warmup: Steps in which the random walk learns its covariance and scale from all chains, not kept.
        num_draws: Draws kept from each chain.
        scale: Standard deviation of the random walk in each unconstrained coordinate; learned by default.
        parameters: The names of the parameters; by default the latent sites outside of scans.
        until: When to stop before `num_draws`, for example `mcmc.Converged(ess=1000, r_hat=1.01)`.

    References:
        Andrieu, Doucet & Holenstein (2010), "Particle Markov chain Monte Carlo methods"; Andrieu & Roberts
        (2009), "The pseudo-marginal approach"; Doucet, Pitt, Deligiannidis & Kohn (2015), "Efficient
        implementation of Markov chain Monte Carlo when using an unbiased likelihood estimator".
    """

    precision: ClassVar[Precision | None] = "float64"
    extensible: ClassVar[tuple[str, ...]] = ("num_draws", "until")

    num_particles: int = eqx.field(static=True, default=200)
    num_chains: int = eqx.field(static=True, default=4)
    num_warmup: int = eqx.field(static=True, default=500)
    num_draws: int = eqx.field(static=True, default=2000)
    scale: float | None = None
    parameters: tuple[str, ...] | None = eqx.field(static=True, default=None)
    until: Converged | None = None

    def __check_init__(self) -> None:
        require_positive(self, "num_particles", "num_chains", "num_draws", whole=True)
        require_warmup(self)
        require_names(self)
        if self.scale is not None:
            require_positive(self, "scale")

    def run(self, problem: Problem, key: Array, line: ProgressLine, keeper: Keeper) -> Posterior:
        """Run all chains; see `Method.run`."""
        num_scores = require_scores(problem, "PMMH")
        space = Space(problem.bound, find_parameters(problem, self.parameters, "PMMH"))
        mover = Marginal(space, self.num_particles)
        how = Walk(self.num_chains, self.scale, TARGET_ACCEPT)
        plan = Plan("PMMH", self.num_warmup, self.num_draws, CAPACITY, until=self.until)
        run_key, check_key = jax.random.split(key)
        run = run_chains(problem, mover, how, plan, run_key, line, keeper)
        draws, stats = run.draws()
        samples, derived = problem.in_order(draws)
        position = stats.pop("position")
        spread = _log_likelihood_spread(mover, check_key, position.mean((0, 1)), self.num_chains)
        problems = [*run_problems(plan, run), *chain_problems(samples, stats), *nonfinite_problems(run)]
        problems += self._spread_problems(spread)
        num_filters = self.num_chains * (3 * NUM_STARTS + run.num_steps)
        return Posterior(
            samples=samples,
            num_likelihood_calls=num_filters * self.num_particles * num_scores,
            problems=problems,
            derived=derived,
            stats=stats,
            provenance={"is_interrupted": run.is_interrupted, "log_likelihood_spread": spread},
        )

    def _spread_problems(self, spread: float) -> list[str]:
        if spread <= _MAX_SPREAD:
            return []
        if not np.isfinite(spread):
            return [
                "At the posterior mean all particles of the filter died out in some runs: the chains stick; "
                f"use more than num_particles={self.num_particles}."
            ]
        needed = int(np.ceil(self.num_particles * (spread / _BEST_SPREAD) ** 2))
        return [
            f"The estimated log likelihood at the posterior mean has a standard deviation of {spread:.1f} "
            f"nats, above {_MAX_SPREAD}: the chains stick; use about num_particles={needed:,}."
        ]


class Marginal(Mover):
    """Move the parameters, and draw the path with their estimated likelihood."""

    def prepared(self, chains: Chain) -> Chain:
        """Return the chains as they are."""
        return chains

    def move(self, key: Array, chain: Chain, factor: Float[Array, "dim dim"]) -> tuple[Chain, Info]:
        """Make a step of pseudo-marginal Metropolis-Hastings."""
        step_key, filter_key, accept_key = jax.random.split(key, 3)
        noise = jax.random.normal(step_key, chain.position.shape)
        position = chain.position + factor @ noise
        values, log_prior = self.space.values(position)
        path, log_likelihood = self.space.filtered(filter_key, values, self.num_particles)
        log_target = log_prior + log_likelihood
        is_bad = jnp.isnan(log_target) | (log_target == jnp.inf)
        log_ratio = log_target - (self.space.values(chain.position)[1] + chain.log_likelihood)
        accept_prob = jnp.where(is_bad, 0.0, jnp.exp(jnp.minimum(log_ratio, 0.0)))
        is_accepted = jax.random.uniform(accept_key) < accept_prob
        new = Chain(position, log_likelihood, path)
        chain = jax.tree.map(lambda new, old: jnp.where(is_accepted, new, old), new, chain)
        return chain, Info(accept_prob, is_bad.astype(int))

    def record(self, chain: Chain) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return parameters, path and estimate."""
        return chain.path, {"log_likelihood_estimate": chain.log_likelihood, "position": chain.position}


def _log_likelihood_spread(mover: Marginal, key: Array, mean: np.ndarray, num_chains: int) -> float:
    """Return the standard deviation of the estimated log likelihood at a position."""
    positions = jnp.broadcast_to(jnp.asarray(mean), (num_chains, 1, len(mean)))
    found = np.asarray(estimate_likelihoods(mover, key, positions).log_likelihood)
    return float(np.std(found, ddof=1)) if np.all(np.isfinite(found)) else float("inf")
