"""What a topological order says of a covariance: its factors, and the residual variances."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qbs.inference.dag.triangular import triangular_inverse


class OrderFactor(NamedTuple):
    """Two triangular matrices; rows and columns are positions in the order.

    Attributes:
        factor: Cholesky factor `L` of the covariance along the order: `L[k, k]**2` is the variance of what is
            at `k` given all before it.
        inverse: Its inverse.
    """

    factor: Float[Array, "num_nodes num_nodes"]
    inverse: Float[Array, "num_nodes num_nodes"]


def factorize(
    covariance: Float[Array, "num_nodes num_nodes"], order: Int[Array, " num_nodes"]
) -> OrderFactor:
    """Return the factors of a positive definite covariance along an order of its nodes."""
    factor = jnp.linalg.cholesky(covariance[order][:, order])
    return OrderFactor(factor, triangular_inverse(factor))


def equal_variance_loss(factor: Float[Array, "num_nodes num_nodes"]) -> Float[Array, ""]:
    """Return half the sum of the residual variances: least squares, with all predecessors as parents."""
    return 0.5 * jnp.sum(jnp.diagonal(factor) ** 2)
