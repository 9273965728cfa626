"""Take a population from prior to posterior, and tell what came of it."""

import math
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from qbs.errors import LikelihoodError, ModelError
from qbs.inference.binding import BoundModel
from qbs.inference.checkpoint import Keeper
from qbs.inference.cpu import light_jit
from qbs.inference.method import require_positive
from qbs.inference.problem import Problem, nonfinite_data
from qbs.inference.progress import Pace, ProgressLine
from qbs.inference.results.posterior import Posterior, to_numpy
from qbs.inference.sites import is_improper
from qbs.inference.smc.islands import MAX_SPREAD, combined_evidence, path_log_weights
from qbs.inference.smc.journey import Here, Journey, Settings, draw_sites, is_open, particle_shape
from qbs.inference.smc.moves import Cloud, evaluate
from qbs.inference.smc.settings import require_islands
from qbs.inference.unconstrained import constrain

_SECTION = "journey"


def require_journey(method: Any) -> None:
    """Raise `ValueError` for settings of a journey that cannot be."""
    name = type(method).__name__
    require_positive(method, "num_particles", "num_islands", "max_rounds", whole=True)
    require_positive(method, "ess", "max_correlation")
    require_islands(method)
    if method.chunk_size is not None:
        require_positive(method, "chunk_size", whole=True)
    if method.num_particles % method.num_islands or method.num_particles < 4 * method.num_islands:
        raise ValueError(
            f"{name}: num_particles must be a multiple of num_islands ({method.num_islands}), four or "
            f"more for each, not {method.num_particles}"
        )
    if method.chain_length is not None:
        require_positive(method, "chain_length", whole=True)
        least = 4 * method.num_islands * method.chain_length
        if method.chain_length < 2 or method.num_particles < least or method.num_particles % (least // 4):
            raise ValueError(
                f"{name}: chain_length must be 2 or more, and num_particles ({method.num_particles}) a "
                f"multiple of num_islands * chain_length, with four chains or more on an island; not "
                f"{method.chain_length}"
            )
    for setting in ("ess", "max_correlation"):
        if getattr(method, setting) >= 1:
            raise ValueError(f"{name}: {setting} must lie between 0 and 1, not {getattr(method, setting)!r}")


def travel(
    problem: Problem,
    method: Settings,
    num_portions: int,
    key: Array,
    line: ProgressLine,
    keeper: Keeper,
) -> tuple[Posterior, Here]:
    """Go through all stages; return the posterior, and the place where the way ends.

    Raises:
        ModelError: If a prior is improper.
        LikelihoodError: If the likelihood is NaN or `+inf` at a draw from the prior, or `-inf` at all.
    """
    start_key, key = jax.random.split(key)
    cloud = _draw(problem.bound, start_key, method.num_particles, num_portions, method.chunk_size)
    _require_usable(problem, cloud)
    journey = Journey(problem.bound, method, num_portions, key)
    here, pace = journey.restored(keeper.found(_SECTION), cloud), Pace()
    try:
        while not journey.is_over(here):
            here = journey.next(here)
            keeper.keep(_SECTION, partial(journey.saved, here))
            done = _distance(method, here)
            pace.note(done)
            if line.is_due:
                left = sum(here.sizes) + _distance_to_come(here, num_portions) - done
                line.update(journey.said(here), done / (done + left), pace.seconds_for(left))
    except KeyboardInterrupt:
        keeper.keep(_SECTION, partial(journey.saved, here), at_once=True)
        raise
    keeper.keep(_SECTION, partial(journey.saved, here), at_once=True)
    return _posterior(problem, method, here), here


def _distance(method: Settings, here: Here) -> float:
    """Return how many long steps are done; of the last, the share of the rounds that it is likely to need."""
    *before, done = here.rounds
    needed = here.needed
    if is_open(method, here):
        needed = max(before[-1] if before else 0, 2 * (done + 1))
    *sizes, last = here.sizes
    return sum(sizes) + last * min(done / needed, 1.0)


def _distance_to_come(here: Here, num_portions: int) -> float:
    """Return how many long steps there are after the present one, growing as the later three quarters."""
    share, num_grown = here.stage / num_portions, 3 * len(here.stages) // 4
    if share >= 1:
        return 0.0
    if not num_grown:
        return math.inf
    log_growth = math.log(here.stage / here.stages[-1 - num_grown]) / sum(here.sizes[-num_grown:])
    return float(math.ceil(-math.log(share) / log_growth)) if log_growth > 0 else math.inf


def _posterior(problem: Problem, method: Settings, here: Here) -> Posterior:
    log_evidences = np.asarray(here.arrays.log_evidences)
    log_evidence, error = combined_evidence(log_evidences)
    draws, stats = to_numpy(_values(problem.bound, here.arrays.cloud.points))
    per_island = method.num_particles // method.num_islands
    split = partial(jax.tree.map, lambda leaf: leaf.reshape(method.num_islands, per_island, *leaf.shape[1:]))
    samples, derived = problem.in_order(split(draws))
    return Posterior(
        samples=samples,
        log_weights=path_log_weights(log_evidences, per_island),
        log_evidence=log_evidence,
        log_evidence_error=error,
        num_likelihood_calls=here.num_calls,
        problems=_problems(method, here, log_evidences),
        derived=derived,
        stats=split(stats),
        provenance={
            "rounds": list(here.rounds),
            "log_evidence_of_islands": log_evidences.tolist(),
            "is_interrupted": False,
        },
    )


def _problems(method: Settings, here: Here, log_evidences: np.ndarray) -> list[str]:
    """Return what a reader must know, as sentences."""
    found = []
    if method.chain_length is None:
        limit, most = method.max_correlation, method.max_rounds
    else:
        # Few chains: the correlation itself is known to one over the root of their number.
        num_chains = method.num_particles / method.chain_length
        limit, most = method.max_correlation + 3 / math.sqrt(num_chains), method.chain_length - 1
    stuck = [
        (correlation, stage)
        for stage, rounds, correlation in zip(here.stages, here.rounds, here.correlations, strict=True)
        if correlation > limit and rounds == most
    ]
    if stuck:
        correlation, stage = max(stuck)
        name = "max_rounds" if method.chain_length is None else "chain_length"
        found.append(
            f"At {len(stuck)} of {len(here.stages)} stages the particles still "
            f"remembered their likelihood after all rounds of moves (at {stage:.3g} with a "
            f"correlation of {correlation:.2f}): the evidence may be off by more than its error; raise "
            f"{name} ({getattr(method, name)}) or num_particles, or reparameterise."
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


def _require_usable(problem: Problem, cloud: Cloud) -> None:
    """Raise `LikelihoodError` where draws from the prior have no likelihood that a run can start from."""
    values = np.asarray(cloud.parts.portions.sum(-1))
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


@light_jit
def _draw(
    bound: BoundModel, key: Array, num_particles: int, num_portions: int, chunk_size: int | None
) -> Cloud:
    """Draw particles from the prior; compiling refuses a prior that is improper."""

    def watch(name: str, distribution: Any) -> None:
        if distribution is not None and is_improper(distribution):
            raise ModelError(
                f"the prior of {name!r} in {bound.name!r} is improper, so the evidence does not exist: "
                "give it a proper prior, or use method=qbs.inference.mcmc.NUTS()"
            )

    draw = partial(draw_sites, bound, watch=watch)
    points = jax.vmap(lambda key: ravel_pytree(draw(key))[0])(jax.random.split(key, num_particles))
    return Cloud(points, evaluate(bound, particle_shape(bound, num_portions), points, chunk_size))


@light_jit
def _values(bound: BoundModel, points: Array) -> tuple[dict[str, Array], dict[str, Array]]:
    shape = particle_shape(bound, 1)
    return lax.map(lambda point: constrain(bound, shape.unravel(point)), points, batch_size=256)
