r"""Moves of nodes along a topological order, and what each does to the loss, all of them at once.

The loss is \(\frac12 \sum_k \operatorname{var}(v_k \mid v_0, \ldots, v_{k-1})\). With the Cholesky factor
`L` of the covariance along the order, a move between positions `p < q` changes only the terms of `p, ..., q`,
each by a formula in `L`: all insertions cost the square of the number of nodes, and all swaps its cube, which
is what one evaluation of the loss costs. Moves on disjoint intervals add up exactly.

References:
    Deng, Bello, Aragam & Ravikumar (2023), "Optimizing NOTEARS objectives via topological swaps"; Gill,
    Golub, Murray & Saunders (1974), "Methods for modifying matrix factorizations", for the rank-one update.
"""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from qbs.inference.dag.order_factor import OrderFactor

UP, DOWN, SWAP = 0, 1, 2
_BLOCK = 64


class Changes(NamedTuple):
    """Change of the loss by each move between positions `p < q`, at `[p, q]`; `inf` elsewhere.

    Attributes:
        up: What is at `q` goes to `p`, and those from `p` on one down.
        down: What is at `p` goes to `q`, and those after it one up.
        swap: The two change places.
    """

    up: Float[Array, "num_nodes num_nodes"]
    down: Float[Array, "num_nodes num_nodes"]
    swap: Float[Array, "num_nodes num_nodes"]


class _Ends(NamedTuple):
    """What is needed of the two nodes of a move.

    Attributes:
        variances: Of what is at each position given all before it.
        told: One plus what those after `p` up to `q` tell of its variance, as a share, at `[p, q]`.
        given: Variance of what is at `q` given all before `p`, at `[p, q]`.
        rise: Change of the term of `q` if it comes right after those before `p`, at `[p, q]`.
        fall: Change of the term of `p` if it comes right after all others up to `q`, at `[p, q]`.
    """

    variances: Float[Array, " num_nodes"]
    told: Float[Array, "num_nodes num_nodes"]
    given: Float[Array, "num_nodes num_nodes"]
    rise: Float[Array, "num_nodes num_nodes"]
    fall: Float[Array, "num_nodes num_nodes"]


def _ends(factors: OrderFactor) -> _Ends:
    variances = jnp.diagonal(factors.factor) ** 2
    given = lax.cumsum(factors.factor**2, axis=1, reverse=True).T
    told = variances[:, None] * jnp.cumsum(factors.inverse.T**2, 1)
    fall = variances[:, None] * (1 / jnp.where(told > 0, told, 1.0) - 1)
    return _Ends(variances, told, given, given - variances, fall)


def insertion_changes(factors: OrderFactor) -> tuple[Array, Array]:
    """Return what moves up and moves down change, see `Changes`, in the square of the number of nodes."""
    ends, lower = _ends(factors), factors.factor
    is_move = jnp.triu(jnp.ones(lower.shape, bool), 1)
    # Of those between, as what is at q comes before them.
    gains = jnp.where(is_move, (lower.T * jnp.diagonal(lower)[:, None]) ** 2 / ends.given, 0.0)
    up = ends.rise - lax.cumsum(gains, axis=0, reverse=True)
    # And as what is at p goes from before them.
    before = jnp.roll(ends.told, 1, axis=1)
    losses = ends.variances[:, None] * factors.inverse.T**2 / jnp.where(before > 0, before, 1.0)
    losses = jnp.where(is_move, losses * ends.variances, 0.0)
    down = ends.fall + jnp.cumsum(losses, 1)
    return jnp.where(is_move, 0.5 * up, jnp.inf), jnp.where(is_move, 0.5 * down, jnp.inf)


def swap_changes(factors: OrderFactor) -> Float[Array, "num_nodes num_nodes"]:
    """Return what swaps change, see `Changes`, in the cube of the number of nodes.

    Column by column, for all `p` at once: the factor of what is after `p` without `p` is a rank-one update.
    """
    lower, ends = factors.factor, _ends(factors)
    num_nodes = lower.shape[0]
    is_move = jnp.triu(jnp.ones(lower.shape, bool), 1)
    whole: tuple[Array, ...] = jnp.where(is_move, lower.T, 0.0), ends.given, jnp.zeros(lower.shape)
    columns = lower.T

    def take_column(carry: tuple[Array, ...], k: Array, first: int) -> tuple[tuple[Array, ...], None]:
        """Of the rows up to some p, and of the columns from `first` on."""
        extra, given, changes = carry
        rows, at = jnp.arange(extra.shape[0]), k - first
        own = columns[k, first:]
        is_before = rows < k
        old, gone = own[at], jnp.where(is_before, extra[:, at], 0.0)
        new = jnp.sqrt(old**2 + gone**2)
        is_after = jnp.arange(own.size) > at
        entries = (old * own + gone[:, None] * extra) / new[:, None]
        entries = jnp.where(is_before[:, None] & is_after, entries, 0.0)
        changes += jnp.where(
            is_before[:, None] & is_after, new[:, None] ** 2 * (1 - entries**2 / given) - old**2, 0.0
        )
        extra = jnp.where(
            is_before[:, None] & is_after, (old * extra - gone[:, None] * own) / new[:, None], extra
        )
        return (extra, given - entries**2, changes), None

    # Rows from the block's end on, and columns before it, have nothing to do in it.
    for first in range(0, num_nodes, _BLOCK):
        last = min(first + _BLOCK, num_nodes)
        part = tuple(leaf[:last, first:] for leaf in whole)
        part, _ = lax.scan(partial(take_column, first=first), part, jnp.arange(first, last))
        whole = tuple(leaf.at[:last, first:].set(new) for leaf, new in zip(whole, part, strict=True))
    changes = ends.rise + whole[2] + ends.fall
    return jnp.where(is_move, 0.5 * changes, jnp.inf)


def near_swap_changes(factors: OrderFactor, window: int) -> Float[Array, "num_nodes num_nodes"]:
    """Return what swaps over at most some positions change, `inf` for others; see `swap_changes`.

    The same scan, of whose rows and columns only those near the column are kept, in rings.
    """
    lower, ends = factors.factor, _ends(factors)
    num_nodes = lower.shape[0]
    window = min(window, num_nodes - 1)
    if window < 1:
        return jnp.full(lower.shape, jnp.inf)
    ring, offsets = jnp.arange(window), jnp.arange(num_nodes)[:, None] + jnp.arange(window)
    wide = jnp.pad(lower, ((0, window), (0, 0)))
    given = jnp.pad(ends.given, ((0, 0), (0, window)), constant_values=1.0)
    nodes = jnp.arange(num_nodes)[:, None]
    columns = wide[offsets, nodes]  # from the diagonal on
    extras, givens = wide[offsets + 1, nodes], given[nodes, offsets + 1]  # from below it on

    def take_column(carry: tuple[Array, Array, Array], k: Array) -> tuple[tuple, Array]:
        is_new = (ring == (k - 1) % window)[:, None] & (k > 0)
        fresh = extras[k - 1], givens[k - 1], jnp.zeros(window)
        extra, given, changes = (
            jnp.where(is_new, jnp.roll(new, k % window), old) for new, old in zip(fresh, carry, strict=True)
        )
        own = jnp.roll(columns[k], k % window)
        is_own = ring == k % window
        old, gone = columns[k, 0], extra[:, k % window]
        new = jnp.sqrt(old**2 + gone**2)
        entries = (old * own + gone[:, None] * extra) / new[:, None]
        changes += jnp.where(is_own, 0.0, new[:, None] ** 2 * (1 - entries**2 / given) - old**2)
        extra = jnp.where(is_own, extra, (old * extra - gone[:, None] * own) / new[:, None])
        given = jnp.where(is_own, given, given - entries**2)
        told = changes[(k - ring) % window, (k + 1) % window].at[0].set(0.0)
        return (extra, given, changes), told

    none = jnp.zeros((window, window))
    _, between = lax.scan(take_column, (none, none + 1.0, none), jnp.arange(num_nodes - 1))
    q = jnp.arange(1, num_nodes)[:, None]
    p = q - 1 - ring
    changes = ends.rise[p, q] + between + ends.fall[p, q]
    changes = jnp.where(p >= 0, 0.5 * changes, jnp.inf)
    return jnp.full(lower.shape, jnp.inf).at[jnp.where(p >= 0, p, num_nodes), q].set(changes, mode="drop")


def all_changes(factors: OrderFactor, window: int | None = None) -> Changes:
    """Return what all moves change; swaps of positions that are not too far apart, if `window` says so."""
    up, down = insertion_changes(factors)
    swap = swap_changes(factors) if window is None else near_swap_changes(factors, window)
    return Changes(up, down, swap)


def forbid(
    changes: Changes, before: Bool[Array, "num_nodes num_nodes"], order: Int[Array, " num_nodes"]
) -> Changes:
    """Return changes with `inf` for the moves that break a rule.

    Args:
        changes: Of all moves.
        before: Whether row must come before column; transitive, and kept by the order.
        order: The order of the nodes.
    """
    is_turned = _turned(before, order)
    return Changes(
        *(jnp.where(is_bad, jnp.inf, change) for change, is_bad in zip(changes, is_turned, strict=True))
    )


def least_turning(
    changes: Changes, is_edge: Bool[Array, "num_nodes num_nodes"], order: Int[Array, " num_nodes"]
) -> Float[Array, ""]:
    """Return the least change by a move that turns an edge round; `inf` if there is none.

    Args:
        changes: Of all moves.
        is_edge: Edges of row -> column, along the order.
        order: The order of the nodes.
    """
    is_turned = _turned(is_edge, order)
    return jnp.min(jnp.stack([jnp.where(*both, jnp.inf) for both in zip(is_turned, changes, strict=True)]))


def _turned(relation: Array, order: Array) -> Changes:
    """Return whether each move makes some column come before its row."""
    along = relation[order][:, order].astype(jnp.int8)
    # For some row from p on and the column at q; for the row at p and some column up to q.
    up = lax.cummax(along, axis=0, reverse=True).astype(bool)
    down = lax.cummax(along, axis=1).astype(bool)
    return Changes(up, down, up | down)


def best_moves(changes: Changes) -> tuple[Int[Array, " num_nodes"], Float[Array, ""]]:
    """Return what the best set of moves on disjoint intervals does: weighted interval scheduling.

    Returns:
        For each position, the one that what goes there comes from; and the change of the loss.
    """
    every = jnp.stack(changes)
    gains, kinds = every.min(0), every.argmin(0)
    num_nodes = gains.shape[0]

    def extend(best: Array, q: Array) -> tuple[Array, Array]:
        """Find the best of the positions up to q: with a move that ends there, or none."""
        totals = best[:-1] + gains[:, q]
        p = jnp.argmin(totals)
        is_moved = totals[p] < best[q]
        return best.at[q + 1].set(jnp.where(is_moved, totals[p], best[q])), jnp.where(is_moved, p, q)

    positions = jnp.arange(num_nodes)
    best, starts = lax.scan(extend, jnp.zeros(num_nodes + 1), positions)

    def unwind(interval: tuple[Array, Array], at: Array) -> tuple[tuple[Array, Array], Array]:
        p, q = interval
        is_next = at < p
        p, q = jnp.where(is_next, starts[at], p), jnp.where(is_next, at, q)
        kind = kinds[p, q]
        sources = (
            jnp.where(at == p, q, at - 1),
            jnp.where(at == q, p, at + 1),
            jnp.where(at == p, q, jnp.where(at == q, p, at)),
        )
        source = jnp.stack(sources)[kind]
        return (p, q), jnp.where(p == q, at, source)

    end = jnp.asarray(num_nodes)
    _, sources = lax.scan(unwind, (end, end), positions, reverse=True)
    return sources, best[num_nodes]
