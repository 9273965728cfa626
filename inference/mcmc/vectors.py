"""The floating-point numbers of a position as one vector."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float


def as_vector(position: Any) -> tuple[Float[Array, " dim"], Callable[[Array], Any]]:
    """Return the floating-point numbers of a position, and the way back; others stay as they are.

    Raises:
        ValueError: If there is none.
    """
    floats, rest = eqx.partition(position, eqx.is_inexact_array)
    flat, unravel = ravel_pytree(floats)
    if not flat.size:
        raise ValueError("the kernel moves floating-point numbers, and the position has none")
    return flat, lambda vector: eqx.combine(unravel(vector), rest)
