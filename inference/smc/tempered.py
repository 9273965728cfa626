"""Tempered sequential Monte Carlo: from prior to posterior by powers of the likelihood, with evidence."""

import math
from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from qbs.errors import LikelihoodError, ModelError
from qbs.inference.binding import BoundModel
from qbs.inference.method import Method, require_positive
from qbs.inference.problem import Problem, nonfinite_data, require_continuous
from qbs.inference.progress import ProgressLine
from qbs.inference.results.posterior import Posterior, to_numpy
from qbs.inference.sites import is_improper, walk
from qbs.inference.smc.islands import MAX_SPREAD, combined_evidence, path_log_weights
from qbs.inference.smc.moves import NUM_SCALES, Cloud, Moved, Shape, evaluate, glide, shape_of, slide
from qbs.inference.smc.settings import require_islands
from qbs.inference.unconstrained import constrain
from qbs.precision import Precision
from qbs.semantics.density import unconstrain

_BISECTIONS = 60


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
        chunk_size: How many particles to evaluate at a time: less memory. All by default.

    References:
        Del Moral, Doucet & Jasra (2006), "Sequential Monte Carlo samplers"; Jasra et al. (2011), "Inference
        for Levy-driven stochastic volatility models via adaptive sequential Monte Carlo", for the
        temperatures; Zhou, Johansen & Aston (2016), "Toward automatic model comparison", for the evidence.
    """

    precision: ClassVar[Precision | None] = "float64"

    num_particles: int = eqx.field(static=True, default=2048)
    num_islands: int = eqx.field(static=True, default=8)
    ess: float = 0.5
    max_correlation: float = 0.1
    max_rounds: int = eqx.field(static=True, default=500)
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
        for name in ("ess", "max_correlation"):
            if getattr(self, name) >= 1:
                raise ValueError(f"Tempered: {name} must lie between 0 and 1, not {getattr(self, name)!r}")

    def run(self, problem: Problem, key: Array, line: ProgressLine) -> Posterior:
        """Run through the temperatures; see `Method.run`."""
        require_continuous(problem, "Tempered")
        _require_proper(problem)
        start_key, key = jax.random.split(key)
        cloud = _draw(problem.bound, start_key, self.num_particles, self.chunk_size)
        _require_usable(problem, cloud)
        journey = _Journey(problem.bound, self, cloud)
        number = 0
        while journey.temperature < 1:
            number += 1
            journey.advance(jax.random.fold_in(key, number), line)
        return self._posterior(problem, journey)

    def _posterior(self, problem: Problem, journey: "_Journey") -> Posterior:
        log_evidences = journey.log_evidences
        log_evidence, error = combined_evidence(log_evidences)
        draws, stats = to_numpy(_values(problem.bound, journey.cloud.points))
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
            num_likelihood_calls=journey.num_calls,
            problems=journey.problems(),
            derived=derived,
            stats=split(stats),
            provenance={
                "temperatures": journey.temperatures,
                "rounds": journey.rounds,
                "log_evidence_of_islands": log_evidences.tolist(),
                "is_interrupted": False,
            },
        )


class _Journey:
    """The way through the temperatures, and what there is to tell of it."""

    def __init__(self, bound: BoundModel, method: Tempered, cloud: Cloud):
        self._bound, self._method = bound, method
        self.cloud = cloud
        self.temperature = 0.0
        self.temperatures: list[float] = []
        self.rounds: list[int] = []
        self.log_evidences = np.zeros(method.num_islands)
        self.num_calls, self.num_bad = method.num_particles, 0
        self._stuck: list[tuple[float, float]] = []
        self._shares = jnp.ones(NUM_SCALES) / NUM_SCALES
        self._rates = {"glide": math.inf, "slide": 0.0}

    def advance(self, key: Array, line: ProgressLine) -> None:
        """Go on to the next temperature."""
        method = self._method
        weigh_key, move_key = jax.random.split(key)
        temperature, increments, cloud = _reweigh(
            weigh_key, self.cloud, jnp.asarray(self.temperature), jnp.asarray(method.ess), method.num_islands
        )
        self.temperature = float(temperature)
        self.temperatures.append(self.temperature)
        self.log_evidences = self.log_evidences + np.asarray(increments)
        start, correlation, rounds, needed = cloud.parts.log_likelihood, 1.0, 0, method.max_rounds
        while rounds < needed:
            # Mostly the kind that has worked better; now and then the other, for it may have changed.
            kind = max(self._rates, key=lambda kind: self._rates[kind])
            if rounds % 4 == 3:
                kind = "slide" if kind == "glide" else "glide"
            moved = self._move(kind, jax.random.fold_in(move_key, rounds), cloud, temperature)
            cloud, before = moved.cloud, correlation
            correlation = float(_correlation(start, cloud.parts.log_likelihood))
            count = int(moved.num_evaluations)
            rate = math.log(max(before, 0.01) / max(correlation, 0.01)) / count
            self._rates[kind] = rate if math.isinf(self._rates[kind]) else 0.5 * (self._rates[kind] + rate)
            rounds += 1
            if correlation <= method.max_correlation and needed == method.max_rounds:
                needed = min(2 * rounds, method.max_rounds)  # as many again: other things may mix more slowly
            self.num_calls += count * method.num_particles
            self.num_bad += int(moved.num_bad)
            if line.is_due:
                line.update(
                    f"temperature {self.temperature:.3g}, round {rounds}, {self.num_calls:,} calls, "
                    f"ln Z {combined_evidence(self.log_evidences)[0]:.2f}",
                    self._fraction(),
                )
        self.cloud = cloud
        self.rounds.append(rounds)
        if correlation > method.max_correlation:
            self._stuck.append((self.temperature, correlation))

    def _move(self, kind: str, key: Array, cloud: Cloud, temperature: Array) -> Moved:
        chunk_size = self._method.chunk_size
        if kind == "slide":
            return _slide(self._bound, key, cloud, temperature, chunk_size)
        moved = _glide(self._bound, key, cloud, temperature, self._shares, chunk_size)
        gains = moved.gains / jnp.maximum(moved.uses, 1.0)
        self._shares = jnp.where(gains.sum() > 0, gains / gains.sum(), 1 / NUM_SCALES)
        return moved

    def _fraction(self) -> float:
        """Return how much of the way is done, as if temperatures rose by a constant factor."""
        first = self.temperatures[0]
        if first >= 1:
            return 1.0
        steps = len(self.temperatures)
        pace = (math.log(self.temperature) - math.log(first)) / max(steps - 1, 1)
        left = -math.log(self.temperature) / pace if pace > 0 else 10.0
        return steps / (steps + left)

    def problems(self) -> list[str]:
        """Return what a reader must know, as sentences."""
        found = []
        if self._stuck:
            temperature, correlation = max(self._stuck, key=lambda pair: pair[1])
            found.append(
                f"At {len(self._stuck)} of {len(self.temperatures)} temperatures the particles still "
                f"remembered their likelihood after {self._method.max_rounds} rounds of moves (at "
                f"{temperature:.3g} with a correlation of {correlation:.2f}): the evidence may be off by "
                "more than its error; raise max_rounds or num_particles, or reparameterise."
            )
        if self.num_bad:
            found.append(
                f"The likelihood was NaN at {self.num_bad:,} of {self.num_calls:,} points: they were "
                "taken as impossible, which is right only if they are."
            )
        _, error = combined_evidence(self.log_evidences)
        if error * math.sqrt(len(self.log_evidences)) > MAX_SPREAD:
            low, high = self.log_evidences.min(), self.log_evidences.max()
            found.append(
                f"The islands disagree: their log evidences run from {low:.2f} to {high:.2f}, so the "
                "evidence and its error are rough: raise num_particles."
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
    draw = partial(_draw_one, bound)
    points = jax.vmap(lambda key: ravel_pytree(draw(key))[0])(jax.random.split(key, num_particles))
    return Cloud(points, evaluate(bound, _shape(bound), points, chunk_size))


def _draw_one(bound: BoundModel, key: Array) -> dict[str, Array]:
    """Draw the sites from the prior, unconstrained."""
    trace = walk(bound.program, bound.arrays, key, {}).trace
    return unconstrain(bound.program)(trace, *bound.arrays)


def _shape(bound: BoundModel) -> Shape:
    return shape_of(jax.eval_shape(partial(_draw_one, bound), jax.random.key(0)))


@eqx.filter_jit
def _reweigh(
    key: Array, cloud: Cloud, temperature: Array, ess: Array, num_islands: int
) -> tuple[Float[Array, ""], Float[Array, " num_islands"], Cloud]:
    """Return the next temperature, what it adds to the log evidence of islands, and resampled particles."""
    log_likelihood = cloud.parts.log_likelihood

    def share(next_temperature: Array) -> Array:
        log_weights = (next_temperature - temperature) * log_likelihood
        weights = jnp.exp(log_weights - jnp.max(log_weights))
        return jnp.sum(weights) ** 2 / jnp.sum(weights**2) / weights.size

    def halve(bounds: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        low, high = bounds
        middle = 0.5 * (low + high)
        is_enough = share(middle) >= ess
        return (jnp.where(is_enough, middle, low), jnp.where(is_enough, high, middle)), None

    start = (temperature, jnp.ones_like(temperature))
    (low, high), _ = lax.scan(halve, start, None, length=_BISECTIONS)
    # Where -inf leaves less than the share at any temperature, the smallest step sorts it out.
    chosen = jnp.where(share(jnp.ones(())) >= ess, 1.0, jnp.where(low > temperature, low, high))
    log_weights = ((chosen - temperature) * log_likelihood).reshape(num_islands, -1)
    per_island = log_weights.shape[1]
    increments = jax.scipy.special.logsumexp(log_weights, axis=1) - jnp.log(per_island)

    def resample(key: Array, log_weights: Array) -> Int[Array, " per_island"]:
        weights = jax.nn.softmax(log_weights)
        is_dead = ~jnp.any(jnp.isfinite(log_weights))
        steps = (jnp.arange(per_island) + jax.random.uniform(key)) / per_island
        cumulative = jnp.cumsum(weights)
        chosen = jnp.searchsorted(cumulative, steps * cumulative[-1], side="right")
        return jnp.where(is_dead, jnp.arange(per_island), jnp.minimum(chosen, per_island - 1))

    chosen_ones = jax.vmap(resample)(jax.random.split(key, num_islands), log_weights)
    index = (chosen_ones + per_island * jnp.arange(num_islands)[:, None]).reshape(-1)
    return chosen, increments, jax.tree.map(lambda leaf: leaf[index], cloud)


@eqx.filter_jit
def _glide(
    bound: BoundModel, key: Array, cloud: Cloud, temperature: Array, shares: Array, chunk_size: int | None
) -> Moved:
    return glide(bound, _shape(bound), key, cloud, temperature, shares, chunk_size)


@eqx.filter_jit
def _slide(bound: BoundModel, key: Array, cloud: Cloud, temperature: Array, chunk_size: int | None) -> Moved:
    return slide(bound, _shape(bound), key, cloud, temperature, chunk_size)


@jax.jit
def _correlation(before: Array, after: Array) -> Array:
    """Return the correlation of the log likelihoods of the particles before and after, by rank."""
    ranks = [jnp.argsort(jnp.argsort(values)).astype(float) for values in (before, after)]
    gaps = [rank - rank.mean() for rank in ranks]
    return jnp.abs(jnp.sum(gaps[0] * gaps[1])) / jnp.sqrt(jnp.sum(gaps[0] ** 2) * jnp.sum(gaps[1] ** 2))


@eqx.filter_jit
def _values(bound: BoundModel, points: Array) -> tuple[dict[str, Array], dict[str, Array]]:
    shape = _shape(bound)
    return lax.map(lambda point: constrain(bound, shape.unravel(point)), points, batch_size=256)
