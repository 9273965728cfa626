"""The inverse of a triangular matrix, without the threads of LAPACK."""

import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

# From 32 rows on, LAPACK's triangular solve starts threads: beside other work that takes fifty times as long.
_LARGEST = 24


def triangular_inverse(lower: Float[Array, "size size"]) -> Float[Array, "size size"]:
    """Return the inverse of a lower triangular matrix, by those of its two halves."""
    size = len(lower)
    if size <= _LARGEST:
        return solve_triangular(lower, jnp.eye(size, dtype=lower.dtype), lower=True)
    half = size // 2
    first, last = triangular_inverse(lower[:half, :half]), triangular_inverse(lower[half:, half:])
    corner = -last @ (lower[half:, :half] @ first)
    return jnp.block([[first, jnp.zeros((half, size - half), lower.dtype)], [corner, last]])
