"""Prior and likelihood of a bound model, apart, at unconstrained values of its sites."""

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
        log_likelihood: Of observed sites and factors; NaN where it is NaN.
    """

    log_prior: Float[Array, "..."]
    log_likelihood: Float[Array, "..."]

    def tempered(self, temperature: Any) -> Array:
        """Return the log density at an inverse temperature, `-inf` where a part is NaN or the prior zero."""
        # Zero times minus infinity: the likelihood does not count where its power is zero.
        power = jnp.where(temperature > 0, temperature * self.log_likelihood, 0.0)
        total = self.log_prior + power
        return jnp.where(
            jnp.isnan(total) | (total == jnp.inf) | (self.log_prior == -jnp.inf), -jnp.inf, total
        )


def parts(bound: BoundModel, position: dict[str, Array]) -> Parts:
    """Return log prior and log likelihood at unconstrained values."""
    staged = bound.program.stage(*bound.arrays)
    start = Parts(jnp.zeros(()), jnp.zeros(()))
    semantics = _Apart(frozenset(bound.scored))
    return interpret(
        staged.jaxpr.jaxpr, staged.jaxpr.consts, staged.operands, semantics, start, dict(position)
    ).state


class _Apart(Semantics):
    """Add up the log density of sites and of what is observed."""

    def __init__(self, observed: frozenset[str]):
        self._observed = observed

    def sample(self, state: Parts, name: str, distribution: Any, given: Any) -> tuple[Array, Parts]:
        value, log_density = from_unconstrained(name, distribution, jnp.asarray(given))
        return value, state._replace(log_prior=state.log_prior + log_density)

    def score(self, state: Parts, name: str, log_weight: Any) -> Parts:
        if name in self._observed:
            return state._replace(log_likelihood=state.log_likelihood + log_weight)
        return state._replace(log_prior=state.log_prior + log_weight)
