"""Resampling schemes: programs that draw the ancestors of a new population.

All that a scheme has to keep is the expected number of offspring of particle i, n w_i / sum(w): then a
population that resamples by it denotes the same measure. Each scheme takes a name for its random choice,
log weights, normalised or not, and how many ancestors to draw. Weights are added up in float64: a float32
running sum loses whole offspring from about 10^5 particles on.

References:
    Chopin & Papaspiliopoulos (2020), "An Introduction to Sequential Monte Carlo", chapter 9.
    Gerber, Chopin & Whiteley (2019), "Negative association, ordering and convergence of resampling methods".
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array, Float, Int

from qbs.effects import sample

Scheme = Callable[[str, Array, int], Array]


def multinomial(
    name: str, log_weights: Float[Array, " num_particles"], num_samples: int
) -> Int[Array, " num_samples"]:
    """Draw each ancestor independently by weight; O(n log n)."""
    return sample(name, _ByWeight(log_weights, num_samples))


def stratified(
    name: str, log_weights: Float[Array, " num_particles"], num_samples: int
) -> Int[Array, " num_samples"]:
    """Draw one ancestor in each of `num_samples` equal slices of the total weight; O(n)."""
    shares = _cumulative(log_weights, num_samples)
    offsets = sample(name, _Offset(shares[None].astype(log_weights.dtype), (num_samples,)))
    with jax.enable_x64(True):
        whole = jnp.clip(shares.astype(jnp.int32), 0, num_samples - 1)
        below = whole + (offsets.astype(shares.dtype)[whole] < shares - whole)
    return _ancestors(below, num_samples)


def systematic(
    name: str, log_weights: Float[Array, " num_particles"], num_samples: int
) -> Int[Array, " num_samples"]:
    """Draw one ancestor in each slice of the total weight, all at the same place in their slices; O(n)."""
    shares = _cumulative(log_weights, num_samples)
    offset = sample(name, _Offset(shares.astype(log_weights.dtype), ()))
    with jax.enable_x64(True):  # how many of the points j + offset are below each share
        below = num_samples - (num_samples + offset.astype(shares.dtype) - shares).astype(jnp.int32)
    return _ancestors(below, num_samples)


def residual(
    name: str, log_weights: Float[Array, " num_particles"], num_samples: int
) -> Int[Array, " num_samples"]:
    """Keep the whole part of each expected number of offspring; draw the rest by the fractions."""
    certain, fractions = _expected_offspring(log_weights, num_samples)
    # Where nothing is left to draw, the draws are not used.
    drawn = sample(name, _ByWeight(jnp.log(jnp.where(jnp.any(fractions > 0), fractions, 1.0)), num_samples))
    total = jnp.cumsum(certain)
    return jnp.where(jnp.arange(num_samples) < total[-1], _ancestors(total, num_samples), drawn)


def ssp(
    name: str, log_weights: Float[Array, " num_particles"], num_samples: int
) -> Int[Array, " num_samples"]:
    """Round each expected number of offspring up or down, by pairwise trades (Srinivasan's process); O(n)."""
    certain, fractions = _expected_offspring(log_weights, num_samples)

    def trade(held: Any, other: Any) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        (open_, a), (new, b) = held, other
        up = a + b >= 1  # one of the two is settled: at 1 if the fractions fill a whole, else at 0
        settle_open = jnp.where(up, 1 - b, b) / jnp.maximum(jnp.where(up, 2 - a - b, a + b), 1e-30)
        is_open = sample(name, dist.Bernoulli(probs=jnp.clip(settle_open, 0, 1))) == 1
        settled, kept = jnp.where(is_open, open_, new), jnp.where(is_open, new, open_)
        return (kept, jnp.where(up, a + b - 1, a + b)), (settled, up)

    places = jnp.arange(fractions.shape[0])
    (last, rest), (settled, up) = lax.scan(trade, (places[0], fractions[0]), (places[1:], fractions[1:]))
    offspring = certain.at[settled].add(up).at[last].add(rest > 0.5)
    return _ancestors(jnp.cumsum(offspring), num_samples)


SCHEMES: dict[str, Scheme] = {
    "multinomial": multinomial,
    "stratified": stratified,
    "systematic": systematic,
    "residual": residual,
    "ssp": ssp,
}
"""The schemes by name."""


def _cumulative(log_weights: Array, num_samples: int) -> Array:
    """Return the running sum of the expected numbers of offspring, in float64; the last is `num_samples`."""
    weights = jnp.exp(log_weights - jnp.max(log_weights))
    with jax.enable_x64(True):
        total = jnp.cumsum(weights.astype(jnp.float64))
        return total / total[-1] * num_samples


def _expected_offspring(log_weights: Array, num_samples: int) -> tuple[Array, Array]:
    """Return the whole part of the expected number of offspring of each particle, and the fraction."""
    weights = jnp.exp(log_weights - jnp.max(log_weights))
    with jax.enable_x64(True):
        shares = weights.astype(jnp.float64)
        shares = shares / jnp.sum(shares) * num_samples
        certain = shares.astype(jnp.int32)
        return certain, (shares - certain).astype(weights.dtype)


def _ancestors(below: Array, num_samples: int) -> Array:
    """Return ancestors in order, from the running number of offspring."""
    starts = jnp.zeros(num_samples, jnp.int32).at[below.astype(jnp.int32)].add(1, mode="drop")
    return jnp.minimum(jnp.cumsum(starts), below.shape[0] - 1)


class _ByWeight(dist.CategoricalLogits):
    """Independent draws of integers by weight: a categorical distribution in O(n log n) instead of O(n^2)."""

    def __init__(self, log_weights: Array, num_samples: int):
        super().__init__(log_weights[..., None, :])
        self._batch_shape = (*log_weights.shape[:-1], num_samples)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draw by inversion of the cumulative weights."""
        logits = self.logits[..., 0, :]
        uniforms = jax.random.uniform(key, (*sample_shape, *self.batch_shape), logits.dtype)
        batch, last = self.batch_shape[:-1], logits.shape[-1]
        cumulative = jax.vmap(_cumulative, (0, None))(logits.reshape(-1, last), 1)
        points = jnp.moveaxis(uniforms.reshape(math.prod(sample_shape), *cumulative.shape[:1], -1), 1, 0)
        with jax.enable_x64(True):
            points = points.astype(cumulative.dtype)
            found = jax.vmap(lambda c, u: jnp.searchsorted(c, u, side="right"))(cumulative, points)
            found = jnp.moveaxis(found, 0, 1).reshape(*sample_shape, *batch, -1)
            return jnp.minimum(found, last - 1).astype(jnp.int32)


class _Offset(dist.Distribution):
    """A uniform place in the slices of the total weight.

    What ancestors it leads to changes at finitely many places, so it has a finite law as well: one
    representative for each interval between them.
    """

    arg_constraints = {"shares": dist.constraints.real_vector}  # noqa: RUF012 (NumPyro's way)
    support = dist.constraints.unit_interval

    def __init__(self, shares: Array, batch_shape: tuple[int, ...]):
        self.shares = shares
        super().__init__(batch_shape)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draw the offset."""
        return jax.random.uniform(key, (*sample_shape, *self.batch_shape))

    def log_prob(self, value: Array) -> Array:
        """Return zero: the density is one."""
        return jnp.zeros(jnp.broadcast_shapes(jnp.shape(value), self.batch_shape))

    def finite_law(self) -> tuple[Array, Array]:
        """Return a representative of each interval, and the log of its length."""
        cuts = jnp.sort(self.shares % 1.0, axis=-1)
        ends = (jnp.zeros_like(cuts[..., :1]), jnp.ones_like(cuts[..., :1]))
        edges = jnp.moveaxis(jnp.concatenate([ends[0], cuts, ends[1]], -1), -1, 0)
        middles, lengths = (edges[1:] + edges[:-1]) / 2, jnp.diff(edges, axis=0)
        shape = (middles.shape[0], *self.batch_shape)
        return jnp.broadcast_to(middles, shape), jnp.broadcast_to(jnp.log(lengths), shape)
