"""Parents of nodes by growing and shrinking, from a covariance: compiled, for many nodes at once."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from qbs.inference.cpu import light_jit

EAGER = 0.2  # of the price: what must be gained while growing
_TINY = 1e-10  # of its variance: less is left of a candidate that others tell all about


class Chosen(NamedTuple):
    """Parents of nodes.

    Attributes:
        weights: Coefficient of each node; zero for those that are no parents.
        is_parent: Who is one.
        variances: Of what the parents leave.
        is_full: Whether growing stopped because there was no room for more.
    """

    weights: Float[Array, "batch num_nodes"]
    is_parent: Bool[Array, "batch num_nodes"]
    variances: Float[Array, " batch"]
    is_full: Bool[Array, " batch"]


class _Grown(NamedTuple):
    rows: Array  # of the Cholesky factor of the chosen, over all nodes
    shares: Array  # of the node in each row
    members: Array
    num_taken: Array
    with_node: Array  # covariance of what is left of each candidate with what is left of the node
    variances: Array  # of what is left of each candidate
    is_open: Array
    left: Array


@light_jit
def grow_shrink(
    covariance: Float[Array, "num_nodes num_nodes"],
    nodes: Int[Array, " batch"],
    candidates: Bool[Array, "batch num_nodes"],
    required: Bool[Array, "batch num_nodes"],
    price: Float[Array, ""],
    most: Int[Array, ""],
    room: int,
) -> Chosen:
    """Return the parents of nodes.

    Growing takes in the candidate that leaves the least variance while it gains a fifth of the price or more:
    parents that cancel each other gain little one by one. Shrinking then lets go the one that is missed least
    while it is not worth its price.

    Args:
        covariance: Of the nodes, positive definite.
        nodes: The children.
        candidates: Who may be a parent of each.
        required: Candidates that must be parents of each.
        price: What a parent must gain, in units of the log of the variance.
        most: Most parents while growing.
        room: The same, for the arrays; where `is_full`, more of it is needed.
    """

    def choose(task: tuple[Array, Array, Array]) -> Chosen:
        node, may_be, must_be = task[0], task[1], task[1] & task[2]
        grown = _grown(covariance, node, may_be, must_be, EAGER * price, most, room)
        is_full = grown.num_taken == jnp.minimum(room, may_be.sum())
        is_full &= (grown.num_taken < most) & (room < may_be.sum())
        weights, is_parent, variance = _shrunk(grown, must_be, price)
        return Chosen(weights, is_parent, variance, is_full)

    # A CPU does one after another, so that none waits for the one with the most parents.
    each = partial(lax.map, choose) if jax.default_backend() == "cpu" else jax.vmap(choose)
    return each((nodes, candidates, required))


def _grown(
    covariance: Array, node: Array, may_be: Array, must_be: Array, price: Array, most: Array, room: int
) -> _Grown:
    """Return who is taken in: a Cholesky factorization of the candidates, pivoted on the gain."""
    variances = jnp.diagonal(covariance)
    floors, floor = _TINY * variances, _TINY * variances[node]
    zero = jnp.zeros(room, covariance.dtype)
    start = _Grown(
        rows=jnp.zeros((room, len(covariance)), covariance.dtype),
        shares=zero,
        members=jnp.full(room, len(covariance)),
        num_taken=jnp.zeros((), int),
        with_node=covariance[node],
        variances=variances,
        is_open=may_be,
        left=variances[node],
    )

    def gains(state: _Grown) -> Array:
        gained = jnp.where(state.is_open, state.with_node**2 / jnp.maximum(state.variances, floors), 0.0)
        return jnp.where(state.is_open & must_be, jnp.inf, gained)

    def goes_on(state: _Grown) -> Array:
        best = jnp.max(gains(state))
        is_worth = jnp.log(state.left / jnp.maximum(state.left - best, floor)) > price
        return (state.num_taken < jnp.minimum(most, room)) & state.is_open.any() & is_worth

    def take(state: _Grown) -> _Grown:
        at = jnp.argmax(gains(state))
        scale = jnp.sqrt(jnp.maximum(state.variances[at], floors[at]))
        row = (covariance[at] - state.rows[:, at] @ state.rows) / scale
        share = state.with_node[at] / scale
        variances = state.variances - row**2
        return _Grown(
            rows=state.rows.at[state.num_taken].set(row),
            shares=state.shares.at[state.num_taken].set(share),
            members=state.members.at[state.num_taken].set(at),
            num_taken=state.num_taken + 1,
            with_node=state.with_node - share * row,
            variances=variances,
            is_open=state.is_open.at[at].set(False) & ((variances > floors) | must_be),
            left=jnp.maximum(state.left - share**2, floor),
        )

    return lax.while_loop(goes_on, take, start)


def _shrunk(grown: _Grown, must_be: Array, price: Array) -> tuple[Array, Array, Array]:
    """Return the weights of those who are left after those who are not missed have gone, one by one."""
    room, num_nodes = grown.rows.shape
    is_member = jnp.arange(room) < grown.num_taken
    factor = jnp.where(is_member[:, None], grown.rows[:, jnp.minimum(grown.members, num_nodes - 1)].T, 0.0)
    factor = jnp.tril(factor) + jnp.diag(jnp.where(is_member, 0.0, 1.0))

    # LAPACK's triangular solve takes a hundred times as long: it starts threads from 32 rows on.
    def solve_row(k: Array, inverse: Array) -> Array:
        return inverse.at[k].divide(factor[k, k]).at[k].add(-(strict[k] @ inverse) / factor[k, k])

    strict = jnp.tril(factor, -1)
    inverse = lax.fori_loop(0, grown.num_taken, solve_row, jnp.eye(room, dtype=factor.dtype))
    fixed = must_be[jnp.minimum(grown.members, num_nodes - 1)]

    def losses(state: tuple[Array, ...]) -> Array:
        weights, precision, stays, _ = state
        return jnp.where(stays & ~fixed, weights**2 / jnp.diagonal(precision), jnp.inf)

    def goes_on(state: tuple[Array, ...]) -> Array:
        left = state[-1]
        return jnp.log((left + jnp.min(losses(state))) / left) < price

    def let_go(state: tuple[Array, ...]) -> tuple[Array, ...]:
        weights, precision, stays, left = state
        lost = losses(state)
        least = jnp.argmin(lost)
        pivot = precision[least, least]
        row = jnp.where(stays, precision[least] / pivot, 0.0)
        weights = weights - weights[least] * row
        precision = precision - pivot * jnp.outer(row, row)
        # What is gone keeps a harmless diagonal, so that nothing is divided by zero.
        precision = precision.at[least, least].set(1.0)
        return weights.at[least].set(0.0), precision, stays.at[least].set(False), left + lost[least]

    start: tuple[Array, ...] = inverse.T @ grown.shares, inverse.T @ inverse, is_member, grown.left
    weights, _, stays, left = lax.while_loop(goes_on, let_go, start)
    members = jnp.where(stays, grown.members, num_nodes)
    there = jnp.zeros(num_nodes, bool).at[members].set(True, mode="drop")
    return jnp.zeros(num_nodes, left.dtype).at[members].set(weights, mode="drop"), there, left
