"""Run a program again as part of another: with some of its sites given, and the others drawn."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from qbs.batches import mask_of
from qbs.effects import note_p, sample, sample_p, score
from qbs.errors import ProgramError
from qbs.interpreter import Interpreted, Semantics, interpret
from qbs.jaxprs import SiteShape, all_names, find_sites, open_jaxpr
from qbs.program import Program, Staged


class Weights(NamedTuple):
    """What a replay adds up: log probability of the given sites, and log score."""

    log_prob: Array
    log_score: Array

    @classmethod
    def zero(cls) -> "Weights":
        """Return the start of the sum."""
        return cls(jnp.zeros(()), jnp.zeros(()))


class Replay(Semantics):
    """Take given values and weigh them; draw the other sites as effects of the program around.

    Attributes:
        rename: From the name of a site to the name that it is drawn under.
        scores: Whether scores are effects of the program around too; they are added up in any case.
        weighed: Drawn sites whose log probability counts as that of given ones.
    """

    def __init__(
        self, rename: Callable[[str], str] = str, *, scores: bool = False, weighed: Collection[str] = ()
    ):
        self.rename, self.scores, self.weighed = rename, scores, weighed

    def sample(self, state: Weights, name: str, distribution: Any, given: Any) -> tuple[Array, Weights]:
        """Return the given value, or draw."""
        value = sample(self.rename(name), distribution) if given is None else given
        if given is not None or name in self.weighed:
            state = state._replace(log_prob=state.log_prob + log_prob_inside(distribution, value))
        return value, state

    def score(self, state: Weights, name: str, log_weight: Any) -> Weights:
        """Add the score up, and pass it on if asked to."""
        if self.scores:
            score(log_weight, name=name)
        return state._replace(log_score=state.log_score + log_weight)


def log_prob_inside(distribution: Any, value: Array) -> Array:
    """Return the sum of log probabilities, `-inf` outside of the support (where NumPyro gives any number)."""
    log_prob, is_inside = distribution.log_prob(value), distribution.support(value)
    mask = mask_of(distribution)
    if mask is not None:
        is_inside |= ~mask[(..., *[0] * distribution.event_dim)]
    return jnp.sum(jnp.where(is_inside, log_prob, -jnp.inf))


def replay(staged: Staged, semantics: Replay, given: Mapping[str, Any]) -> Interpreted:
    """Run a staged program with some sites given; the state of the result is `Weights`."""
    jaxpr, consts = open_jaxpr(staged.jaxpr)
    return interpret(jaxpr, consts, staged.operands, semantics, Weights.zero(), dict(given))


class _Reissue(Semantics):
    """Draw and score as effects of the program around."""

    def sample(self, state: Any, name: str, distribution: Any, given: Any) -> tuple[Array, Any]:  # noqa: ARG002
        return sample(name, distribution), state

    def score(self, state: Any, name: str, log_weight: Any) -> Any:
        score(log_weight, name=name)
        return state


def traced(program: Program, sites: Collection[str] | None = None) -> Program:
    """Return the program whose value is `(value, trace)`: what it returns, and its sites by name.

    In a population it records whole paths, in memory linear in them: `population(traced(program), n)`.

    Args:
        program: The program.
        sites: The names of the sites to keep; all sites and deterministic values by default.

    Raises:
        ProgramError: If there is no site of a name.
    """

    def run_all(*args: Any) -> Any:
        staged = program.stage(*args)
        there = all_names(staged.jaxpr, (sample_p, note_p))
        if unknown := sorted(set(sites or ()) - there):
            raise ProgramError(f"the program has no site named {unknown}; it has {sorted(there)}")
        jaxpr, consts = open_jaxpr(staged.jaxpr)
        walked = interpret(jaxpr, consts, staged.operands, _Reissue(), (), {})
        trace = walked.trace if sites is None else {name: walked.trace[name] for name in sites}
        return staged.unflatten(walked.outputs), trace

    return Program(run_all, program.name)


def movable_sites(staged: Staged, wanted: Collection[str] | None) -> dict[str, SiteShape]:
    """Return the sites of a program that can be traced: those outside of branches; by default all of them.

    Raises:
        ProgramError: If a wanted site does not exist, or stands in a branch of a `cond`, so that it may not
            exist in another run.
    """
    sites = find_sites(staged.jaxpr)
    free = {name: site for name, site in sites.items() if not site.in_branch}
    if wanted is None:
        return free
    for name in wanted:
        if name not in sites:
            raise ProgramError(f"the program has no site named {name!r}; it has {sorted(sites)}")
        if name not in free:
            raise ProgramError(f"site {name!r} stands in a branch of a lax.cond and cannot be moved by name")
    return {name: free[name] for name in wanted}
