"""Nested sampling by slices of a likelihood that may change on the way: the in-loop method on live points."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from qbs.inference.nested.finished import Finished, cut_short
from qbs.inference.nested.insertion import insertion_test
from qbs.inference.nested.learned_likelihood import LearnedLikelihood
from qbs.inference.nested.live_points import first_live, is_over
from qbs.inference.nested.passes import python_iteration
from qbs.inference.nested.records import (
    Draws,
    Records,
    finished,
    first_draws,
    insertion_problems,
    weighed_by,
)
from qbs.inference.nested.slice import Slice
from qbs.inference.progress import ProgressLine


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
    count = settings.num_live
    draws = first_draws(learned, count, of_prior, line) if live_points is None else Draws(*live_points, 0)
    live = first_live(jnp.asarray(draws.points[:count]), jnp.asarray(draws.log_likelihoods[:count]))
    parts: list[Records] = []
    problems, num_dead, is_interrupted = [], 0, False
    try:
        while not bool(is_over(live, settings.dlogz)):
            live, block = python_iteration(learned.log_likelihood, of_pass, live, pattern)
            parts.append(Records.of_block(block))
            num_dead += len(parts[-1].points)
            remaining, alive = float(live.remaining), np.asarray(live.is_alive)
            standing = np.asarray(live.points)[alive], np.asarray(live.log_likelihoods)[alive]
            if not learned.after(num_dead, remaining, *standing):
                problems.append(cut_short("Stopped by max_calls", num_dead, remaining, settings.dlogz))
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
        problems.append(cut_short("Interrupted", num_dead, float(live.remaining), settings.dlogz))
    records = Records.joined([*parts, Records.of_live(live)])
    p_values = insertion_test(records.ranks, count)
    provenance = {
        "num_iterations": num_dead,
        "insertion_p_value": min(p_values),
        "is_interrupted": is_interrupted,
    }
    problems += insertion_problems(p_values)
    return finished(records, weighed_by(draws, records), problems, provenance)
