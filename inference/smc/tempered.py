"""Tempered sequential Monte Carlo: from prior to posterior by powers of the likelihood, with evidence."""

import math
from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import jax
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from qbs.errors import LikelihoodError, ModelError
from qbs.inference.binding import BoundModel
from qbs.inference.checkpoint import Keeper
from qbs.inference.method import Method, require_positive
from qbs.inference.problem import Problem, nonfinite_data, require_continuous
from qbs.inference.progress import ProgressLine
from qbs.inference.results.posterior import Posterior, to_numpy
from qbs.inference.sites import is_improper, walk
from qbs.inference.smc.islands import MAX_SPREAD, combined_evidence, path_log_weights
from qbs.inference.smc.journey import Here, Journey, draw_sites, particle_shape
from qbs.inference.smc.moves import Cloud, evaluate
from qbs.inference.smc.settings import require_islands
from qbs.inference.unconstrained import constrain
from qbs.precision import Precision

_SECTION = "journey"


class Tempered(Method):
    r"""Tempered sequential Monte Carlo: posterior and evidence of any model with continuous sites.

    Particles drawn from the prior follow the densities \(p(\theta) L(\theta)^\beta\) from \(\beta = 0\)
    to 1. Each next \(\beta\) is chosen such that the effective sample size of the reweighting is `ess` of the
    particles; they are resampled, and moved until what they remember of their likelihood, as a correlation
    over the particles, is below `max_correlation`. Moves need no tuning: see `qbs.inference.smc.moves`. The
    particles are split into islands that are resampled apart, and the spread of their evidences is the error.

    Attributes:
        num_particles: Number of particles in all; a multiple of `num_islands`. The evidence error falls
            with its square root.
        num_islands: Islands; two or more.
        ess: Effective sample size of a reweighting, as a share of the particles, in (0, 1).
        max_correlation: Correlation of the log likelihood with its value before the moves at which they end.
        max_rounds: Most rounds of moves at a temperature; where they are used up, a problem says so.
        chain_length: Waste-free: resample one particle in so many, move it so often but once, and let all
            links of these chains be particles. By default all particles are resampled and moved.
        chunk_size: How many particles to evaluate at a time: less memory. All by default.

    References:
        Del Moral, Doucet & Jasra (2006), "Sequential Monte Carlo samplers"; Jasra et al. (2011), "Inference
        for Levy-driven stochastic volatility models via adaptive sequential Monte Carlo", for the
        temperatures; Zhou, Johansen & Aston (2016), "Toward automatic model comparison", for the evidence;
        Dau & Chopin (2022), "Waste-free sequential Monte Carlo".
    """

    precision: ClassVar[Precision | None] = "float64"

    num_particles: int = eqx.field(static=True, default=2048)
    num_islands: int = eqx.field(static=True, default=8)
    ess: float = 0.5
    max_correlation: float = 0.1
    max_rounds: int = eqx.field(static=True, default=500)
    chain_length: int | None = eqx.field(static=True, default=None)
    chunk_size: int | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        require_positive(self, "num_particles", "num_islands", "max_rounds", whole=True)
        require_positive(self, "ess", "max_correlation")
        require_islands(self)
        if self.chunk_size is not None:
            require_positive(self, "chunk_size", whole=True)
        if self.num_particles % self.num_islands or self.num_particles < 4 * self.num_islands:
            raise ValueError(
                f"Tempered: num_particles must be a multiple of num_islands ({self.num_islands}), four or "
                f"more for each, not {self.num_particles}"
            )
        if self.chain_length is not None:
            require_positive(self, "chain_length", whole=True)
            least = 4 * self.num_islands * self.chain_length
            if self.chain_length < 2 or self.num_particles < least or self.num_particles % (least // 4):
                raise ValueError(
                    f"Tempered: chain_length must be 2 or more, and num_particles ({self.num_particles}) a "
                    f"multiple of num_islands * chain_length, with four chains or more on an island; not "
                    f"{self.chain_length}"
                )
        for name in ("ess", "max_correlation"):
            if getattr(self, name) >= 1:
                raise ValueError(f"Tempered: {name} must lie between 0 and 1, not {getattr(self, name)!r}")

    def run(self, problem: Problem, key: Array, line: ProgressLine, keeper: Keeper) -> Posterior:
        """Run through the temperatures; see `Method.run`."""
        require_continuous(problem, "Tempered")
        _require_proper(problem)
        start_key, key = jax.random.split(key)
        cloud = _draw(problem.bound, start_key, self.num_particles, self.chunk_size)
        _require_usable(problem, cloud)
        journey = Journey(problem.bound, self, key)
        here = journey.restored(keeper.found(_SECTION), cloud)
        try:
            while not here.is_there:
                here = journey.next(here)
                keeper.keep(_SECTION, partial(journey.saved, here))
                if line.is_due:
                    line.update(journey.said(here), journey.fraction(here))
        except KeyboardInterrupt:
            keeper.keep(_SECTION, partial(journey.saved, here), at_once=True)
            raise
        keeper.keep(_SECTION, partial(journey.saved, here), at_once=True)
        return self._posterior(problem, here)

    def _posterior(self, problem: Problem, here: Here) -> Posterior:
        log_evidences = np.asarray(here.arrays.log_evidences)
        log_evidence, error = combined_evidence(log_evidences)
        draws, stats = to_numpy(_values(problem.bound, here.arrays.cloud.points))
        per_island = self.num_particles // self.num_islands
        split = partial(
            jax.tree.map, lambda leaf: leaf.reshape(self.num_islands, per_island, *leaf.shape[1:])
        )
        samples, derived = problem.in_order(split(draws))
        return Posterior(
            samples=samples,
            log_weights=path_log_weights(log_evidences, per_island),
            log_evidence=log_evidence,
            log_evidence_error=error,
            num_likelihood_calls=here.num_calls,
            problems=self._problems(here, log_evidences),
            derived=derived,
            stats=split(stats),
            provenance={
                "temperatures": list(here.temperatures),
                "rounds": list(here.rounds),
                "log_evidence_of_islands": log_evidences.tolist(),
                "is_interrupted": False,
            },
        )

    def _problems(self, here: Here, log_evidences: np.ndarray) -> list[str]:
        """Return what a reader must know, as sentences."""
        found = []
        stuck = [
            (correlation, temperature)
            for temperature, correlation in zip(here.temperatures, here.correlations, strict=True)
            if correlation > self.max_correlation
        ]
        if stuck:
            correlation, temperature = max(stuck)
            name = "max_rounds" if self.chain_length is None else "chain_length"
            found.append(
                f"At {len(stuck)} of {len(here.temperatures)} temperatures the particles still "
                f"remembered their likelihood after all rounds of moves (at {temperature:.3g} with a "
                f"correlation of {correlation:.2f}): the evidence may be off by more than its error; raise "
                f"{name} ({getattr(self, name)}) or num_particles, or reparameterise."
            )
        if here.num_bad:
            found.append(
                f"The likelihood was NaN at {here.num_bad:,} of {here.num_calls:,} points: they were "
                "taken as impossible, which is right only if they are."
            )
        _, error = combined_evidence(log_evidences)
        if error * math.sqrt(len(log_evidences)) > MAX_SPREAD:
            found.append(
                f"The islands disagree: their log evidences run from {log_evidences.min():.2f} to "
                f"{log_evidences.max():.2f}, so the evidence and its error are rough: raise num_particles."
            )
        return found


def _require_proper(problem: Problem) -> None:
    improper: list[str] = []

    def watch(name: str, distribution: Any) -> None:
        if distribution is not None and is_improper(distribution):
            improper.append(name)

    bound = problem.bound
    jax.eval_shape(lambda key: walk(bound.program, bound.arrays, key, {}, watch).trace, jax.random.key(0))
    if improper:
        raise ModelError(
            f"the prior of {improper[0]!r} in {bound.name!r} is improper, so the evidence does not exist: "
            "give it a proper prior, or use method=qbs.inference.mcmc.NUTS()"
        )


def _require_usable(problem: Problem, cloud: Cloud) -> None:
    """Raise `LikelihoodError` where draws from the prior have no likelihood that a run can start from."""
    values = np.asarray(cloud.parts.log_likelihood)
    causes = nonfinite_data(problem.bound)
    because = f": {'; '.join(causes)}" if causes else ""
    for is_bad, word in ((np.isnan(values), "NaN"), (np.isposinf(values), "+inf")):
        if count := int(is_bad.sum()):
            raise LikelihoodError(
                f"the log likelihood of {problem.name!r} is {word} at {count} of {values.size} draws from "
                f"the prior{because}; where a point is impossible, say -inf"
            )
    if not np.any(np.isfinite(values)):
        raise LikelihoodError(
            f"the log likelihood of {problem.name!r} is -inf at all {values.size} draws from the prior"
            f"{because}"
        )


@eqx.filter_jit
def _draw(bound: BoundModel, key: Array, num_particles: int, chunk_size: int | None) -> Cloud:
    draw = partial(draw_sites, bound)
    points = jax.vmap(lambda key: ravel_pytree(draw(key))[0])(jax.random.split(key, num_particles))
    return Cloud(points, evaluate(bound, particle_shape(bound), points, chunk_size))


@eqx.filter_jit
def _values(bound: BoundModel, points: Array) -> tuple[dict[str, Array], dict[str, Array]]:
    shape = particle_shape(bound)
    return lax.map(lambda point: constrain(bound, shape.unravel(point)), points, batch_size=256)
