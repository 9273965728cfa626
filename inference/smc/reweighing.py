"""From stage to stage: how far the next one is, what it adds to the evidence, and who goes on."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from qbs.inference.cpu import light_jit
from qbs.inference.smc.moves import Cloud

_BISECTIONS = 60
_WEIGHING = 2**31 - 1  # the number of no round
_LIGHT_TAIL = 0.25  # index of the tail of the weights of a step that is not too long
_TAIL = 64  # the highest weight of so many is in the tail
_FEW_IN_TAIL = 8


class Arrays(NamedTuple):
    """The arrays of a place on the way.

    Attributes:
        cloud: The particles.
        before: Their log likelihoods before the moves at this stage.
        shares: Of the step sizes of glides.
        log_evidences: Of the islands.
        by_portion: The same, as they were after each portion of the likelihood.
    """

    cloud: Cloud
    before: Float[Array, " num_particles"]
    shares: Float[Array, " num_scales"]
    log_evidences: Float[Array, " num_islands"]
    by_portion: Float[Array, "num_islands num_portions"]


@light_jit
def reweigh(
    key: Array,
    number: ArrayLike,
    arrays: Arrays,
    stage: ArrayLike,
    ess: ArrayLike,
    num_islands: int,
    length: int,
) -> tuple[Arrays, Float[Array, ""], Bool[Array, ""]]:
    """Return resampled particles with their evidences, the stage, and whether the weights' tail was heavy."""
    key = jax.random.fold_in(jax.random.fold_in(key, number), _WEIGHING)
    chosen, is_heavy, increments, growth, cloud = _reweighed(
        key, arrays.cloud, jnp.asarray(stage), jnp.asarray(ess), num_islands, length
    )
    log_evidences = arrays.log_evidences
    by_portion = jnp.where(jnp.isnan(growth), arrays.by_portion, log_evidences[:, None] + growth)
    before = cloud.parts.log_likelihood(chosen)
    return Arrays(cloud, before, arrays.shares, log_evidences + increments, by_portion), chosen, is_heavy


def _reweighed(
    key: Array, cloud: Cloud, stage: Array, ess: Array, num_islands: int, length: int
) -> tuple[Array, Array, Float[Array, " num_islands"], Float[Array, "num_islands num_portions"], Cloud]:
    """Return the next stage, what it adds to the log evidence of islands, and resampled particles.

    After the stage, whether the tail of the weights was heavy, so that it is nearer. After the increments,
    what is added up to the end of each portion, NaN for those that end before the stage or after the
    next. Of particles there are as many as before, in chains of some length that hold one particle each.
    """
    here, end = cloud.parts.log_likelihood(stage), jnp.asarray(1.0 * cloud.parts.portions.shape[1])

    def gain(next_stage: Array) -> Array:
        found = cloud.parts.log_likelihood(next_stage) - here
        return jnp.where(jnp.isnan(found), -jnp.inf, found)

    def share(next_stage: Array) -> Array:
        log_weights = gain(next_stage)
        weights = jnp.exp(log_weights - jnp.max(log_weights))
        return jnp.sum(weights) ** 2 / jnp.sum(weights**2) / weights.size

    def halve(bounds: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        low, high = bounds
        middle = 0.5 * (low + high)
        is_enough = share(middle) >= ess
        return (jnp.where(is_enough, middle, low), jnp.where(is_enough, high, middle)), None

    (low, high), _ = lax.scan(halve, (stage, end), None, length=_BISECTIONS)
    # Where -inf leaves less than the share at any stage, the smallest step sorts it out.
    chosen = jnp.where(share(end) >= ess, end, jnp.where(low > stage, low, high))
    # Heavy tails hide how few particles count: there the step is shorter, as the index of the tail asks.
    tail = _tail_index(gain(chosen))
    chosen = jnp.where(tail > _LIGHT_TAIL, stage + _LIGHT_TAIL / tail * (chosen - stage), chosen)

    def grown(next_stage: Array) -> Float[Array, " num_islands"]:
        log_weights = gain(next_stage).reshape(num_islands, -1)
        return jax.scipy.special.logsumexp(log_weights, axis=1) - jnp.log(log_weights.shape[1])

    ends = 1.0 + jnp.arange(cloud.parts.portions.shape[1])
    is_passed = (ends > stage) & (ends <= chosen)
    growth = jnp.where(is_passed, lax.map(grown, ends).T, jnp.nan)
    increments = grown(chosen)
    log_weights = gain(chosen).reshape(num_islands, -1)
    per_island = log_weights.shape[1]
    num_chains = per_island // length

    def resample(key: Array, log_weights: Array) -> Int[Array, " num_chains"]:
        weights = jax.nn.softmax(log_weights)
        is_dead = ~jnp.any(jnp.isfinite(log_weights))
        steps = (jnp.arange(num_chains) + jax.random.uniform(key)) / num_chains
        cumulative = jnp.cumsum(weights)
        chosen = jnp.searchsorted(cumulative, steps * cumulative[-1], side="right")
        return jnp.where(is_dead, jnp.arange(num_chains), jnp.minimum(chosen, per_island - 1))

    chosen_ones = jax.vmap(resample)(jax.random.split(key, num_islands), log_weights)
    chosen_ones = jnp.tile(chosen_ones, (1, length))
    index = (chosen_ones + per_island * jnp.arange(num_islands)[:, None]).reshape(-1)
    return chosen, tail > _LIGHT_TAIL, increments, growth, jax.tree.map(lambda leaf: leaf[index], cloud)


def _tail_index(log_weights: Array) -> Float[Array, ""]:
    """Return the estimate of Hill (1975): from 1/2 the variance of the weights is infinite.

    It grows with the log weights. Zero where there are too few particles to tell.
    """
    count = log_weights.size // _TAIL
    if count < _FEW_IN_TAIL:
        return jnp.zeros(())
    highest, _ = lax.top_k(log_weights, count + 1)
    index = jnp.mean(highest[:-1]) - highest[-1]
    return jnp.where(jnp.isfinite(index), index, 0.0)
