"""A normal random walk whose covariance and scale are learned from all chains in warm-up, then frozen.

References:
    Haario, Saksman & Tamminen (2001), "An adaptive Metropolis algorithm". Andrieu & Thoms (2008), "A tutorial
    on adaptive MCMC", algorithm 4.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

_INITIAL_WEIGHT = 10  # steps that the spread of the prior counts as
_JITTER = 1e-8  # of each variance, so that the covariance has a Cholesky factor


class Walking(NamedTuple):
    """What the random walk has learned.

    Attributes:
        mean: Of the chains so far, later steps weighing more.
        covariance: Likewise.
        log_scale: Log of the factor between the covariance's root and the steps of the walk.
        num_steps: Number of steps learned from.
    """

    mean: Float[Array, " dim"]
    covariance: Float[Array, "dim dim"]
    log_scale: Float[Array, ""]
    num_steps: Float[Array, ""]

    @classmethod
    def start(cls, draws: Float[Array, "num_draws dim"]) -> "Walking":
        """Start from draws of the prior."""
        dim = draws.shape[1]
        mean, variance = jnp.mean(draws, 0), jnp.var(draws, 0)
        usual = jnp.log(2.38 / jnp.sqrt(float(dim)))  # Roberts, Gelman & Gilks (1997)
        return cls(mean, jnp.diag(variance), usual, jnp.zeros(()))

    @classmethod
    def fixed(cls, scale: Float[Array, ""], dim: int) -> "Walking":
        """Take steps of a standard deviation in each coordinate."""
        return cls(jnp.zeros(dim), jnp.eye(dim), jnp.log(scale), jnp.zeros(()))

    def factor(self) -> Float[Array, "dim dim"]:
        """Return the matrix that makes a step of standard normal numbers."""
        variances = jnp.diag(self.covariance)
        root = jnp.linalg.cholesky(self.covariance + jnp.diag(_JITTER * variances))
        return jnp.exp(self.log_scale) * root

    def learned(
        self,
        positions: Float[Array, "num_chains dim"],
        accept_prob: Float[Array, " num_chains"],
        target: Float[Array, ""],
    ) -> "Walking":
        """Learn from a step of all chains."""
        gain = 2 / (self.num_steps + _INITIAL_WEIGHT)
        deviations = positions - self.mean
        seen = deviations.T @ deviations / len(positions)
        return Walking(
            self.mean + gain * jnp.mean(deviations, 0),
            self.covariance + gain * (seen - self.covariance),
            self.log_scale + (jnp.mean(accept_prob) - target) / jnp.sqrt(self.num_steps + 1),
            self.num_steps + 1,
        )
