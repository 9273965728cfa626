"""The log density of a bound model on unconstrained space, as gradient methods want it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from qbs.inference.binding import BoundModel
from qbs.inference.sites import walk
from qbs.semantics.density import constrain as constrain_program
from qbs.semantics.density import log_density, unconstrain

_MAX_STARTS = 100


def potential(bound: BoundModel, position: dict[str, Array]) -> Array:
    """Return minus the log joint density at unconstrained latent values.

    The change of variables of each constrained site (NumPyro's `biject_to`) is included, whole also where a
    `scale` or `mask` handler acts on the site.

    Args:
        bound: The model with its data.
        position: Unconstrained value of every latent site.

    Returns:
        A scalar, in nats. `+inf` where the density is zero.
    """
    return -log_density(bound.program, unconstrained=True)(position, *bound.arrays)


def constrain(bound: BoundModel, position: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the model's values at unconstrained latent values, and their densities.

    Returns:
        Latent and deterministic values by name; and `log_likelihood` (observed sites and factors) and
        `log_density` (the joint density of latent and observed sites, without the change of variables).
    """
    values = constrain_program(bound.program)(position, *bound.arrays)
    log_probs = walk(bound.program, bound.arrays, jax.random.key(0), values).log_probs
    zero = jnp.zeros(())
    observed = sum((log_probs[name] for name in bound.scored), start=zero)
    return values, {"log_likelihood": observed, "log_density": sum(log_probs.values(), start=zero)}


def coordinates(bound: BoundModel) -> tuple[Float[Array, " dim"], Callable[[Array], dict[str, Array]]]:
    """Return the origin of unconstrained space as a vector, and the map from vectors to values by site."""

    def draw(key: Array) -> dict[str, Array]:
        trace = walk(bound.program, bound.arrays, key, {}).trace
        return unconstrain(bound.program)(trace, *bound.arrays)

    shapes = jax.eval_shape(draw, jax.random.key(0))
    return ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes))


def starting_point(
    bound: BoundModel, key: Array
) -> tuple[dict[str, Array], Array, dict[str, Array], Bool[Array, ""]]:
    """Find an unconstrained point where the log density and its gradient are finite.

    Draws uniformly from (-2, 2) on unconstrained space, at most 100 times, as Stan and NumPyro do.

    Returns:
        The point, its potential, the gradient there, and whether all of it is finite.
    """
    flat, unravel = coordinates(bound)

    def is_next(state: Any) -> Bool[Array, ""]:
        index, _, _, is_valid = state
        return (index < _MAX_STARTS) & ~is_valid

    def turn(state: Any) -> Any:
        index, key, _, _ = state
        key, own = jax.random.split(key)
        position = unravel(jax.random.uniform(own, flat.shape, minval=-2.0, maxval=2.0))
        energy, gradient = jax.value_and_grad(potential, argnums=1)(bound, position)
        is_valid = jnp.isfinite(energy) & jnp.all(jnp.isfinite(ravel_pytree(gradient)[0]))
        return index + 1, key, (position, energy, gradient), is_valid

    nowhere = unravel(flat)
    start = 0, key, (nowhere, jnp.zeros(()), nowhere), jnp.zeros((), bool)
    *_, (position, energy, gradient), is_valid = jax.lax.while_loop(is_next, turn, start)
    return position, energy, gradient, is_valid


@jax.jit
def site_log_probs(bound: BoundModel, key: Array) -> dict[str, Array]:
    """Return the log probability of every site at one draw from the prior, to say which is not finite."""
    return walk(bound.program, bound.arrays, key, {}).log_probs
