r"""Functions of the sizes of weights that are zero on acyclic graphs alone, and their gradients.

Each takes sizes \(A = |W| \ge 0\), of row -> column. The gradient at \((i, j)\) is above zero if and only if
there is a directed walk from \(j\) to \(i\): an edge \(i \to j\) would close a cycle. In \(W \circ W\), as is
usual, the gradient in \(W\) would be zero at every acyclic graph and tell nothing.

All compute in the precision they are given. Of a matrix that is upper triangular, zeros of the gradient are
exact; of others, up to rounding.

References:
    Zheng, Aragam, Ravikumar & Xing (2018), "DAGs with NO TEARS"; Yu, Chen, Gao & Yu (2019), "DAG-GNN"; Bello,
    Aragam & Ravikumar (2022), "DAGMA"; Wei, Gao & Yu (2020), "DAGs with No Fears", for the walks.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

_HALVINGS, _TERMS = 10, 20  # halvings of a matrix, and terms of the series of its exponential

Sizes = Float[Array, "num_nodes num_nodes"]


class Acyclicity(NamedTuple):
    """A function that is zero on acyclic graphs, and its gradient.

    Attributes:
        value: Of the sizes of weights.
        gradient: In these.
    """

    value: Callable[[Sizes], Float[Array, ""]]
    gradient: Callable[[Sizes], Sizes]


@jax.jit
def is_in_domain(
    sizes: Float[Array, "num_nodes num_nodes"], s: Float[Array, ""] | float | int = 1.0
) -> Bool[Array, ""]:
    r"""Return whether the spectral radius of the sizes is below \(s\).

    It is if and only if the solution of \((s I - A) x = 1\) is positive: \(s I - A\) is then an M-matrix.
    """
    left = s * jnp.eye(len(sizes), dtype=sizes.dtype) - sizes
    solution = jnp.linalg.solve(left, jnp.ones(len(sizes), sizes.dtype))
    return jnp.all(jnp.isfinite(solution) & (solution > 0))


@jax.jit
def log_determinant(
    sizes: Float[Array, "num_nodes num_nodes"], s: Float[Array, ""] | float | int = 1.0
) -> Float[Array, ""]:
    r"""Return \(-\log \det (s I - A) + d \log s\), and infinity where a cycle is too strong for it.

    Args:
        sizes: Of the weights, not negative.
        s: Above zero; the domain is where the spectral radius of the sizes is below it.
    """
    is_inside, unit = is_in_domain(sizes, s), jnp.eye(len(sizes), dtype=sizes.dtype)
    # The determinant is taken of what has one, so that derivatives outside the domain are not NaN.
    log_det = jnp.linalg.slogdet(jnp.where(is_inside, s * unit - sizes, unit))[1]
    return jnp.where(is_inside, len(sizes) * jnp.log(s) - log_det, jnp.inf)


@jax.jit
def log_determinant_gradient(
    sizes: Float[Array, "num_nodes num_nodes"], s: Float[Array, ""] | float | int = 1.0
) -> Float[Array, "num_nodes num_nodes"]:
    r"""Return \((s I - A)^{-T}\), the gradient of `log_determinant`; infinity outside its domain.

    At \(s = 1\) entry \((i, j)\) is the total weight of all walks from \(j\) to \(i\).
    """
    unit = jnp.eye(len(sizes), dtype=sizes.dtype)
    return jnp.where(is_in_domain(sizes, s), jnp.linalg.inv(s * unit - sizes).T, jnp.inf)


@jax.jit
def exponential(sizes: Float[Array, "num_nodes num_nodes"]) -> Float[Array, ""]:
    r"""Return \(\mathrm{tr}\, e^A - d\), the walks that return, those of \(k\) steps over \(k!\).

    Args:
        sizes: Of the weights, not negative; exact to rounding where their sums are below 1000.
    """
    return jnp.trace(_exponential_less_one(sizes))


@jax.jit
def exponential_gradient(
    sizes: Float[Array, "num_nodes num_nodes"],
) -> Float[Array, "num_nodes num_nodes"]:
    r"""Return \((e^A)^T\), the gradient of `exponential`."""
    return jnp.eye(len(sizes), dtype=sizes.dtype) + _exponential_less_one(sizes).T


@jax.jit
def polynomial(sizes: Float[Array, "num_nodes num_nodes"]) -> Float[Array, ""]:
    r"""Return \(\mathrm{tr}\, (I + A / d)^d - d\)."""
    return jnp.trace(_power(sizes, len(sizes))) - len(sizes)


@jax.jit
def polynomial_gradient(sizes: Float[Array, "num_nodes num_nodes"]) -> Float[Array, "num_nodes num_nodes"]:
    r"""Return \(((I + A / d)^{d-1})^T\), the gradient of `polynomial`."""
    return _power(sizes, len(sizes) - 1).T


def _exponential_less_one(sizes: Array) -> Array:
    r"""Return \(e^A - I\). No digits cancel, as no entry is negative, in the series nor in the doublings."""
    part = sizes / 2**_HALVINGS
    series = lax.fori_loop(0, _TERMS, lambda k, sum_: (part + part @ sum_) / (_TERMS - k), part)
    return lax.fori_loop(0, _HALVINGS, lambda _, less: 2 * less + less @ less, series)


def _power(sizes: Array, exponent: int) -> Array:
    step = jnp.eye(len(sizes), dtype=sizes.dtype) + sizes / len(sizes)
    return jnp.linalg.matrix_power(step, exponent)


ACYCLICITIES = {
    "log-determinant": Acyclicity(log_determinant, log_determinant_gradient),
    "exponential": Acyclicity(exponential, exponential_gradient),
    "polynomial": Acyclicity(polynomial, polynomial_gradient),
}
