"""Search for the topological order of least loss, by the best set of moves at a time."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from qbs.inference.dag.moves import all_changes, best_moves, forbid, least_turning
from qbs.inference.dag.order_factor import equal_variance_loss, factorize

_TOLERANCE = 1e-10  # of the loss: what a sweep must gain


class Found(NamedTuple):
    """Where a search ended.

    Attributes:
        order: The nodes, causes first.
        loss: Half the sum of the residual variances.
        num_sweeps: How many times the changes of all moves were found.
        best_change: Least change of the loss by any move that is left: not below zero, but for rounding.
    """

    order: Int[Array, " num_nodes"]
    loss: Float[Array, ""]
    num_sweeps: Int[Array, ""]
    best_change: Float[Array, ""]


class _Walk(NamedTuple):
    order: Array
    loss: Array
    num_sweeps: Array
    best_change: Array
    is_over: Array


@partial(jax.jit, static_argnames=("window", "max_sweeps"))
def search(
    covariance: Float[Array, "num_nodes num_nodes"],
    order: Int[Array, " num_nodes"],
    before: Bool[Array, "num_nodes num_nodes"],
    *,
    window: int = 0,
    max_sweeps: int = 10_000,
) -> Found:
    """Return the order that no insertion and no swap of two nodes improves, from one to start at.

    Args:
        covariance: Of the nodes, positive definite.
        order: The order to start at; it must keep the rules.
        before: Whether row must come before column; transitive.
        window: Swaps of nodes at most so many positions apart are looked at until nothing more is found, and
            then all are, once, and so on. Insertions are always all looked at; they take the least time, so
            that by default swaps come after them.
        max_sweeps: Most sweeps, a bound on the time.
    """

    def sweep(walk: _Walk, reach: int | None) -> _Walk:
        factors = factorize(covariance, walk.order)
        loss = equal_variance_loss(factors.factor)
        changes = forbid(all_changes(factors, reach), before, walk.order)
        sources, gain = best_moves(changes)
        is_over = ~(gain < -_TOLERANCE * loss) | (walk.num_sweeps + 1 >= max_sweeps)
        least = jnp.min(jnp.stack(changes), initial=0.0)
        return _Walk(
            jnp.where(is_over, walk.order, walk.order[sources]), loss, walk.num_sweeps + 1, least, is_over
        )

    going = jnp.zeros((), bool)

    def goes_on(walk: _Walk) -> Array:
        return ~walk.is_over

    def run(walk: _Walk) -> _Walk:
        near = lax.while_loop(goes_on, partial(sweep, reach=window), walk)
        return sweep(near._replace(is_over=going), None)

    zero = jnp.zeros((), covariance.dtype)
    start = _Walk(jnp.asarray(order), zero, jnp.zeros((), int), zero, going)
    end = lax.while_loop(goes_on, run, start)
    return Found(end.order, end.loss, end.num_sweeps, end.best_change)


@jax.jit
def turning_cost(
    covariance: Float[Array, "num_nodes num_nodes"],
    order: Int[Array, " num_nodes"],
    before: Bool[Array, "num_nodes num_nodes"],
    is_edge: Bool[Array, "num_nodes num_nodes"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the loss, and the least change of it by an insertion that turns an edge round.

    Args:
        covariance: Of the nodes, positive definite.
        order: The order of the nodes.
        before: Whether row must come before column; transitive, and kept by the order.
        is_edge: Edges of row -> column, along the order.
    """
    factors = factorize(covariance, order)
    changes = forbid(all_changes(factors, 0), before, order)
    return equal_variance_loss(factors.factor), least_turning(changes, is_edge, order)
