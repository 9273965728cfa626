"""A log density that is known up to a constant, as a function of its numbers and of many rows."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from qbs.errors import ModelError


class Densities(eqx.Module):
    """Log densities of many rows, given the numbers among the parameters.

    Attributes:
        log_density: The user's, of the parameters and one row.
        rest: What of the parameters is no array of real numbers.
    """

    log_density: Callable[..., Any]
    rest: Any

    def __call__(self, numbers: Any, rows: Shaped[Array, "num_rows ..."]) -> Float[Array, " num_rows"]:
        """Return the unnormalized log densities of rows, in nats."""
        params = self.params(numbers)
        return jax.vmap(lambda row: jnp.asarray(self.log_density(params, row)))(rows)

    def params(self, numbers: Any) -> Any:
        """Return the parameters whole."""
        return eqx.combine(numbers, self.rest)


def take_apart(log_density: Callable[..., Any], params: Any, row: Any) -> tuple[Any, Densities]:
    """Return the numbers among the parameters, and the log density as a function of them.

    Args:
        log_density: Called as `log_density(params, row)`; returns one number.
        params: Any tree with arrays of real numbers in it.
        row: One row of the data, or its shape and type.

    Raises:
        TypeError: If `log_density` is no function.
        ModelError: If there is no array in the parameters, or the log density is not one real number.
    """
    if not callable(log_density):
        kind = type(log_density).__name__
        raise TypeError(f"log_density must be a function of parameters and one row of the data, not {kind}")
    numbers, rest = eqx.partition(params, _is_number)
    if not jax.tree.leaves(numbers):
        raise ModelError(
            "params has no array of real numbers in it, so there is nothing to fit: give a tree such as "
            "{'mean': jnp.zeros(2)}, or an equinox module"
        )
    numbers = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), numbers)
    densities = Densities(log_density, rest)
    found = jax.eval_shape(lambda own, x: jnp.asarray(log_density(densities.params(own), x)), numbers, row)
    if found.shape != () or not jnp.issubdtype(found.dtype, jnp.floating):
        raise ModelError(
            f"log_density must return one real number for a row of shape {tuple(row.shape)}, not "
            f"{found.dtype} of shape {found.shape}: is a jnp.sum missing?"
        )
    return numbers, densities


def _is_number(leaf: Any) -> bool:
    return eqx.is_inexact_array_like(leaf) and not isinstance(leaf, complex)
