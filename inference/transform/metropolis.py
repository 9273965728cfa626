"""`metropolis`: trace Metropolis-Hastings, the chain as a program.

A move proposes new values of the traced sites, runs the program again with them, draws the sites that are
not traced afresh, and accepts by the ratio of densities. Fresh draws from their own law cancel in it: where
they are a particle filter, this is the pseudo-marginal method.

References:
    Scibior et al. (2018), section 4.3. Andrieu & Roberts (2009), "The pseudo-marginal approach".
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array

from qbs.effects import sample, score, unused
from qbs.errors import ProgramError
from qbs.inference.transform.population import require_count
from qbs.inference.transform.replay import Replay, movable_sites, replay
from qbs.jaxprs import all_names
from qbs.program import Program

Proposal = Callable[[dict[str, Array]], Mapping[str, dist.Distribution]]
"""From the present values of the traced sites to the distribution of the new value of each that moves."""


def random_walk(scale: Any, sites: Collection[str] | None = None) -> Proposal:
    """Return the proposal that adds normal noise to continuous sites.

    Args:
        scale: Standard deviation: a number for all, or numbers by site name.
        sites: The sites to move; those named in `scale`, or all continuous ones, by default.
    """
    by_name = scale if isinstance(scale, Mapping) else None
    wanted = sites if sites is not None else by_name

    def proposal(current: dict[str, Array]) -> dict[str, dist.Distribution]:
        moving = {
            name: value
            for name, value in current.items()
            if (name in wanted if wanted is not None else jnp.issubdtype(value.dtype, jnp.floating))
        }
        return {name: dist.Normal(x, by_name[name] if by_name else scale) for name, x in moving.items()}

    return proposal


def metropolis(
    program: Program,
    proposal: Proposal,
    num_steps: int = 1,
    *,
    sites: Collection[str] | None = None,
    keep_all: bool = False,
) -> Program:
    """Return the program that runs a program and then moves its trace by Metropolis-Hastings.

    The first run is weighed as ever, and the moves leave the posterior as it is; so the measure stays the
    same, however few steps there are. A long chain forgets its start: then its values are draws of the
    posterior whatever the weight.

    Args:
        program: The program.
        proposal: From the values of the traced sites to distributions of new ones, such as
            `random_walk(0.1)`. A traced site that it leaves out stays as it is.
        num_steps: Number of moves.
        sites: The traced sites; all but those in branches by default. Other sites are drawn afresh in each
            move.
        keep_all: Return the values after each move, with a leading axis, and not the last one only.

    Returns:
        A program with the measure of `program`, for each element of the leading axis under `keep_all`.

    Raises:
        ProgramError: If a site is not there, or the proposal names one that is not traced.
    """
    require_count(num_steps, "num_steps")

    def run_all(*args: Any) -> Any:
        staged = program.stage(*args)
        traced = movable_sites(staged, sites)
        taken = all_names(staged.jaxpr)
        first = replay(staged, Replay(weighed=traced), {})
        score(first.state.log_score, name=f"score of {program.name}")
        trace = {name: first.trace[name] for name in traced}
        start = Moved(trace, first.state.log_prob + first.state.log_score, first.outputs)

        def rerun(trace: dict[str, Array]) -> tuple[Array, list]:
            walked = replay(staged, Replay(lambda name: unused(f"{name}_redrawn", taken)), trace)
            return walked.state.log_prob + walked.state.log_score, walked.outputs

        def step(current: Moved, _: None) -> tuple[Moved, Any]:
            moved = move(current, proposal, rerun, lambda name: unused(name, taken))
            return moved, moved.kept if keep_all else None

        last, history = lax.scan(step, start, None, length=num_steps)
        return staged.unflatten(history if keep_all else last.kept)

    return Program(run_all, program.name)


class Moved(NamedTuple):
    """Where a chain is: the traced sites, their log density with the scores, and what else follows them."""

    trace: dict[str, Array]
    log_target: Array
    kept: Any


def move(
    current: Moved,
    proposal: Proposal,
    rerun: Callable[[dict[str, Array]], tuple[Array, Any]],
    rename: Callable[[str], str],
    filled: Mapping[str, Array] | None = None,
) -> Moved:
    """Make one Metropolis-Hastings move.

    Args:
        current: Where the chain is.
        proposal: From the traced values to distributions of new ones.
        rerun: From new traced values to their log target and what follows them.
        rename: Makes names of the move's own random choices.
        filled: Which elements of each traced site exist so far; all by default.
    """
    distributions = _proposed(proposal, current.trace)
    new = dict(current.trace)
    for name, distribution in distributions.items():
        drawn = sample(rename(f"{name}_proposed"), distribution)
        new[name] = _where(filled, name, drawn, current.trace[name])
    backwards = _proposed(proposal, new)
    log_ratio = jnp.zeros(())
    for name, distribution in distributions.items():
        there = distribution.log_prob(new[name])
        back = backwards[name].log_prob(current.trace[name])
        log_ratio += jnp.sum(_where(filled, name, back - there, jnp.zeros_like(there)))
    log_target, kept = rerun(new)
    log_ratio += log_target - jnp.where(current.log_target == -jnp.inf, 0.0, current.log_target)
    accept = jnp.where(jnp.isnan(log_ratio), 0.0, jnp.exp(jnp.minimum(log_ratio, 0.0)))
    is_accepted = sample(rename("is_accepted"), dist.Bernoulli(probs=accept)) == 1
    return jax.tree.map(lambda a, b: jnp.where(is_accepted, a, b), Moved(new, log_target, kept), current)


def _proposed(proposal: Proposal, trace: dict[str, Array]) -> Mapping[str, dist.Distribution]:
    found = proposal(dict(trace))
    for name, distribution in found.items():
        if name not in trace:
            raise ProgramError(f"the proposal moves {name!r}, which is not among the traced {sorted(trace)}")
        if distribution.shape() != trace[name].shape:
            raise ProgramError(
                f"the proposal of {name!r} has shape {distribution.shape()}, the site {trace[name].shape}"
            )
    return found


def _where(filled: Mapping[str, Array] | None, name: str, new: Array, old: Array) -> Array:
    if filled is None:
        return new
    mask = filled[name]
    if new.ndim < mask.ndim:
        raise ProgramError(
            f"the proposal of {name!r} must be independent over its {mask.ndim} axes of time: not all "
            "of their steps exist yet"
        )
    return jnp.where(mask.reshape(*mask.shape, *[1] * (new.ndim - mask.ndim)), new, old)
