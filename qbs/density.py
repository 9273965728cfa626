"""The log density of a bound model on unconstrained space, as gradient methods want it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool
from numpyro import handlers
from numpyro.infer import util as numpyro_util

from qbs.model import BoundModel, seeded


def potential(bound: BoundModel, position: dict[str, Array]) -> Array:
    """Return minus the log joint density at unconstrained latent values.

    The change of variables of each constrained site (NumPyro's `biject_to`) is included; a `scale` or
    `mask` handler around a latent site scales or masks its change of variables too, as in NumPyro.

    Args:
        bound: The model with its data.
        position: Unconstrained value of every latent site.

    Returns:
        A scalar, in nats. `+inf` where the density is zero.
    """
    args, kwargs = bound.arguments()
    return numpyro_util.potential_energy(bound.function, args, kwargs, position)


def constrain(bound: BoundModel, position: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the model's values at unconstrained latent values, and their densities.

    Returns:
        Latent and deterministic values by name; and `log_likelihood` (observed sites and factors) and
        `log_density` (the joint density of latent and observed sites, without the change of variables).
    """
    args, kwargs = bound.arguments()
    values = numpyro_util.constrain_fn(bound.function, args, kwargs, position, return_deterministic=True)
    latent = {name: values[name] for name in position}
    log_probs, _ = numpyro_util.compute_log_probs(bound.function, args, kwargs, latent)
    zero = jnp.zeros(())
    observed = sum((value for name, value in log_probs.items() if name not in position), start=zero)
    return values, {"log_likelihood": observed, "log_density": sum(log_probs.values(), start=zero)}


def starting_point(
    bound: BoundModel, key: Array
) -> tuple[dict[str, Array], Array, dict[str, Array], Bool[Array, ""]]:
    """Find an unconstrained point where the log density and its gradient are finite.

    Draws uniformly from (-2, 2) on unconstrained space, at most 100 times, as Stan and NumPyro do.

    Returns:
        The point, its potential, the gradient there, and whether all of it is finite.
    """
    args, kwargs = bound.arguments()
    trace = handlers.trace(seeded(bound.function, key)).get_trace(*args, **kwargs)
    draw = {
        name: site["value"]
        for name, site in trace.items()
        if site["type"] == "sample" and not site["is_observed"]
    }
    (position, energy, gradient), is_valid = numpyro_util.find_valid_initial_params(
        key,
        bound.function,
        model_args=args,
        model_kwargs=kwargs,
        prototype_params=numpyro_util.unconstrain_fn(bound.function, args, kwargs, draw),
    )
    return position, energy, gradient, is_valid


@jax.jit
def site_log_probs(bound: BoundModel, key: Array) -> dict[str, Array]:
    """Return the log probability of every site at one draw from the prior, to say which is not finite."""
    args, kwargs = bound.arguments()
    log_probs, _ = numpyro_util.compute_log_probs(seeded(bound.function, key), args, kwargs, {})
    return {name: jnp.asarray(value) for name, value in log_probs.items()}
