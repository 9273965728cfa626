"""Orders to start a search at."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int


@jax.jit
def top_down_order(
    covariance: Float[Array, "num_nodes num_nodes"], before: Bool[Array, "num_nodes num_nodes"]
) -> Int[Array, " num_nodes"]:
    """Return the order in which each next node has the least variance given those before.

    A Cholesky factorization that is pivoted on the smallest. It finds the causal order of a linear model of
    equal noise variances, given enough data.

    Args:
        covariance: Of the nodes.
        before: Whether row must come before column; transitive, without a cycle.

    References:
        Chen, Drton & Wang (2019), "On causal discovery with an equal-variance assumption".
    """
    num_nodes = covariance.shape[0]

    def choose(carry: tuple[Array, Array, Array], k: Array) -> tuple[tuple[Array, Array, Array], Array]:
        rows, variances, is_taken = carry
        is_early = jnp.any(before & ~is_taken[:, None], 0)
        node = jnp.argmin(jnp.where(is_taken | is_early, jnp.inf, variances))
        row = (covariance[node] - rows[:, node] @ rows) / jnp.sqrt(variances[node])
        return (rows.at[k].set(row), variances - row**2, is_taken.at[node].set(True)), node

    start = jnp.zeros_like(covariance), jnp.diagonal(covariance), jnp.zeros(num_nodes, bool)
    _, order = lax.scan(choose, start, jnp.arange(num_nodes))
    return order


def sorted_order(
    values: Float[np.ndarray, " num_nodes"], before: Bool[np.ndarray, "num_nodes num_nodes"]
) -> Int[np.ndarray, " num_nodes"]:
    """Return the order in which each next node has the least value of those that may come next."""
    is_taken, order = np.zeros(len(before), bool), []
    for _ in range(len(before)):
        is_early = is_taken | np.any(before & ~is_taken[:, None], axis=0)
        order.append(int(np.argmin(np.where(is_early, np.inf, values))))
        is_taken[order[-1]] = True
    return np.array(order, int)


def random_order(
    rng: np.random.Generator,
    before: Bool[np.ndarray, "num_nodes num_nodes"],
    first: Int[np.ndarray, " num_nodes"] | None = None,
) -> Int[np.ndarray, " num_nodes"]:
    """Return a random order that keeps the rules.

    Args:
        rng: Draws it.
        before: Whether row must come before column; transitive, without a cycle.
        first: An order whose nodes are shuffled, in place of their numbers: then what is drawn does not
            depend on these, where the order does not.
    """
    values = rng.uniform(size=len(before))
    return sorted_order(values if first is None else values[np.argsort(first)], before)
