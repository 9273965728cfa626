"""Resampling schemes: programs that draw the ancestors of a new population.

All that a scheme has to keep is the expected number of offspring of particle i, n w_i / sum(w): then a
population that resamples by it denotes the same measure. Each scheme takes log weights, normalised or
not, and a name for its random choice.

References:
    Chopin & Papaspiliopoulos (2020), "An Introduction to Sequential Monte Carlo", chapter 9.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int

from qbs.effects import sample

Scheme = Callable[[str, Array, int], Array]


def multinomial(
    name: str, log_weights: Float[Array, " num_particles"], num_samples: int
) -> Int[Array, " num_samples"]:
    """Draw each ancestor independently by weight."""
    logits = jax.nn.log_softmax(log_weights)
    return sample(name, dist.CategoricalLogits(logits).expand([num_samples]))


def stratified(
    name: str, log_weights: Float[Array, " num_particles"], num_samples: int
) -> Int[Array, " num_samples"]:
    """Draw one ancestor in each of `num_samples` equal slices of the total weight."""
    return _by_slices(log_weights, num_samples, sample(name, dist.Uniform(0.0, 1.0).expand([num_samples])))


def systematic(
    name: str, log_weights: Float[Array, " num_particles"], num_samples: int
) -> Int[Array, " num_samples"]:
    """Draw one ancestor in each slice of the total weight, all at the same place in their slices."""
    return _by_slices(log_weights, num_samples, sample(name, dist.Uniform(0.0, 1.0)))


def _by_slices(log_weights: Array, num_samples: int, offsets: Array) -> Array:
    """Return the particle whose share of the total weight holds each point `(j + offset_j) / num_samples`."""
    weights = jnp.exp(log_weights - jnp.max(log_weights))
    cumulative = jnp.cumsum(weights)
    points = (jnp.arange(num_samples) + offsets) / num_samples * cumulative[-1]
    return jnp.clip(jnp.searchsorted(cumulative, points, side="right"), 0, log_weights.shape[0] - 1)


SCHEMES: dict[str, Scheme] = {"multinomial": multinomial, "stratified": stratified, "systematic": systematic}
"""The schemes by name."""
