"""Nested sampling by slices of a likelihood that may change on the way: the in-loop method on live points."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from qbs.inference.nested.contours import weighed
from qbs.inference.nested.dynesty import Finished
from qbs.inference.nested.insertion import insertion_test
from qbs.inference.nested.learned_likelihood import LearnedLikelihood
from qbs.inference.nested.live_points import Live, first_live, is_over
from qbs.inference.nested.passes import Block, python_iteration
from qbs.inference.nested.slice import Slice
from qbs.inference.progress import ProgressLine
from qbs.inference.results.diagnostics import weight_problems

_LEAST_P_VALUE = 0.003  # of the insertion-rank test
_MAX_FIRST_DRAWS = {True: 200_000, False: 10_000}  # compiled, Python


def run_on_slices(
    settings: Slice,
    learned: LearnedLikelihood,
    key: Array,
    line: ProgressLine,
    live_points: tuple[np.ndarray, np.ndarray] | None = None,
) -> Finished:
    """Return what nested sampling finds that calls the likelihood from Python, a batch at a time.

    Args:
        settings: Of the sampler; its `max_calls` and `min_ess` are not looked at.
        learned: The likelihood.
        key: A typed JAX key.
        line: Where to show progress.
        live_points: Points to begin with, and their log likelihoods; drawn from the prior by default.
    """
    pattern = settings.pattern(learned.dim)
    of_prior, of_pass = jax.random.split(key)
    points, values, num_impossible = (
        _drawn(settings, learned, of_prior) if live_points is None else (*live_points, 0)
    )
    num_possible, count = len(points), settings.num_live
    live = first_live(jnp.asarray(points[:count]), jnp.asarray(values[:count]))
    parts: list[tuple[np.ndarray, ...]] = []
    ranks: list[np.ndarray] = []
    problems, num_dead, is_interrupted = [], 0, False
    try:
        while not bool(is_over(live, settings.dlogz)):
            live, block = python_iteration(learned.log_likelihood, of_pass, live, pattern)
            parts.append(_died(block))
            ranks.append(_ranks(block))
            num_dead += len(parts[-1][0])
            remaining, alive = float(live.remaining), np.asarray(live.is_alive)
            standing = np.asarray(live.points)[alive], np.asarray(live.log_likelihoods)[alive]
            if not learned.after(num_dead, remaining, *standing):
                problems.append(_stopped("Stopped by max_calls", num_dead, remaining, settings.dlogz))
                break
            if line.is_due:
                line.update(
                    f"{num_dead:,} iterations, {learned.num_calls:,} true calls, "
                    f"ln Z {float(live.log_evidence):.2f}, dlogz {remaining:.3g} (stop at {settings.dlogz:g})"
                )
    except KeyboardInterrupt:
        if not parts:
            raise
        is_interrupted = True
        problems.append(_stopped("Interrupted", num_dead, float(live.remaining), settings.dlogz))
    points, values, births = map(np.concatenate, zip(*parts, _left(live), strict=True))
    found = weighed(births, values, num_possible=num_possible, num_impossible=num_impossible)
    kept = found.log_weights > -700
    chosen, log_weights = found.order[kept], found.log_weights[kept]
    log_weights = log_weights - np.logaddexp.reduce(log_weights)
    p_value = min(insertion_test(np.concatenate([*ranks, np.zeros(0)]), count))
    if p_value < _LEAST_P_VALUE:
        problems.append(
            "New live points do not stand among the others as draws from the prior above the bound would "
            f"(the insertion-rank test has p = {p_value:.1g}): evidence and posterior may be biased."
        )
    return Finished(
        points=points[chosen],
        log_likelihoods=values[chosen],
        log_weights=log_weights,
        log_evidence=found.log_evidence,
        log_evidence_error=found.log_evidence_error,
        problems=[*problems, *weight_problems(log_weights)],
        provenance={
            "num_iterations": num_dead,
            "insertion_p_value": p_value,
            "is_interrupted": is_interrupted,
        },
    )


def _drawn(settings: Slice, learned: LearnedLikelihood, key: Array) -> tuple[np.ndarray, np.ndarray, int]:
    """Draw from the prior until there are enough possible points; return them and how many were not."""
    points, values, rounds = np.zeros((0, learned.dim)), np.zeros(0), 0
    while len(points) < settings.num_live:
        draw = partial(jax.random.uniform, jax.random.fold_in(key, rounds), minval=1e-300)
        new = np.asarray(draw((settings.num_live, learned.dim)))
        found = learned.log_likelihood(new)
        is_possible = found > -math.inf
        points = np.concatenate([points, new[is_possible]])
        values = np.concatenate([values, found[is_possible]])
        rounds += 1
        if not len(points) and learned.num_calls >= _MAX_FIRST_DRAWS[learned.is_compiled]:
            raise learned.impossible()
    return points, values, rounds * settings.num_live - len(points)


def _died(block: Block) -> tuple[np.ndarray, ...]:
    is_dead = np.asarray(block.dead.is_dead)
    return tuple(np.asarray(part)[is_dead] for part in block.dead[:3])


def _ranks(block: Block) -> np.ndarray:
    ranks = np.asarray(block.ranks)
    return ranks[~np.isnan(ranks)]


def _left(live: Live) -> tuple[np.ndarray, ...]:
    is_alive = np.asarray(live.is_alive)
    parts = live.points, live.log_likelihoods, live.births
    return tuple(np.asarray(part)[is_alive] for part in parts)


def _stopped(what: str, num_dead: int, remaining: float, dlogz: float) -> str:
    return (
        f"{what} after {num_dead:,} iterations, with up to {remaining:.2g} nats of log evidence left to find "
        f"(dlogz = {dlogz}): the draws so far are kept here; the evidence counts the live points, and its "
        "error is too small."
    )
