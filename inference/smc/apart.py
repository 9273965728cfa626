"""Prior and likelihood of a bound model, apart, at unconstrained values of its sites.

The likelihood is taken in portions: all of it at once by powers, or one score of the program after the other.
A *stage* from 0 to the number of portions says how much of it counts; within a portion it is the power.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from qbs.inference.binding import BoundModel
from qbs.interpreter import Semantics, interpret
from qbs.semantics.density import from_unconstrained


class Parts(NamedTuple):
    """The two parts of a log density on unconstrained space.

    Attributes:
        log_prior: Of the latent sites, change of variables included, in nats.
        portions: Log likelihood of what is observed, in portions; NaN where it is NaN.
    """

    log_prior: Float[Array, "..."]
    portions: Float[Array, "... num_portions"]

    def log_likelihood(self, stage: Any) -> Array:
        """Return the log likelihood at a stage."""
        share = jnp.clip(stage - jnp.arange(self.portions.shape[-1]), 0.0, 1.0)
        # Zero times minus infinity: what is not there yet does not count.
        return jnp.sum(jnp.where(share > 0, share * self.portions, 0.0), -1)

    def log_density(self, stage: Any) -> Array:
        """Return the log density at a stage, `-inf` where a part is NaN or the prior zero."""
        total = self.log_prior + self.log_likelihood(stage)
        return jnp.where(
            jnp.isnan(total) | (total == jnp.inf) | (self.log_prior == -jnp.inf), -jnp.inf, total
        )


def parts(bound: BoundModel, position: dict[str, Array], num_portions: int = 1) -> Parts:
    """Return log prior and log likelihood at unconstrained values.

    Args:
        bound: The model with its data.
        position: Unconstrained values by site.
        num_portions: 1, or the number of scores that a run meets: each is a portion, in their order.
    """
    staged = bound.program.stage(*bound.arrays)
    zero = jnp.zeros(())
    start = _Sums(zero, jnp.zeros(num_portions) if num_portions > 1 else zero, jnp.zeros((), int))
    semantics = _Apart(frozenset(bound.scored), is_split=num_portions > 1)
    found = interpret(
        staged.jaxpr.jaxpr, staged.jaxpr.consts, staged.operands, semantics, start, dict(position)
    ).state
    return Parts(found.log_prior, jnp.reshape(found.portions, num_portions))


class _Sums(NamedTuple):
    log_prior: Array
    portions: Array
    num_scores: Array


class _Apart(Semantics):
    """Add up the log density of sites and of what is observed."""

    def __init__(self, observed: frozenset[str], *, is_split: bool):
        self._observed, self._is_split = observed, is_split

    def sample(self, state: _Sums, name: str, distribution: Any, given: Any) -> tuple[Array, _Sums]:
        value, log_density = from_unconstrained(name, distribution, jnp.asarray(given))
        return value, state._replace(log_prior=state.log_prior + log_density)

    def score(self, state: _Sums, name: str, log_weight: Any) -> _Sums:
        if name not in self._observed:
            return state._replace(log_prior=state.log_prior + log_weight)
        if not self._is_split:
            return state._replace(portions=state.portions + log_weight)
        portions = state.portions.at[state.num_scores].add(log_weight)
        return state._replace(portions=portions, num_scores=state.num_scores + 1)
