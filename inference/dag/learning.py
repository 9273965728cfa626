"""Learn a linear graph from a covariance: an order by its score, and the parents along it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from qbs.inference.dag.local_search import local_search
from qbs.inference.dag.parents import choose_parents, regress
from qbs.inference.dag.search import search
from qbs.inference.dag.starts import random_order, top_down_order

_WINDOW = 64
_NEAR_SINGULAR = 1e-8  # least eigenvalue of the correlation matrix
_COLLINEAR_RIDGE, _FEW_ROWS_RIDGE = 1e-6, 0.1  # shares of the variances that are added to them


class Rules(NamedTuple):
    """What a graph must keep; entries are of row -> column.

    Attributes:
        before: Whether row must come before column in the order; transitive.
        required: Edges that must be there.
        forbidden: Edges that must not be there.
    """

    before: Bool[np.ndarray, "num_nodes num_nodes"]
    required: Bool[np.ndarray, "num_nodes num_nodes"]
    forbidden: Bool[np.ndarray, "num_nodes num_nodes"]

    @property
    def known_arrows(self) -> Bool[np.ndarray, "num_nodes num_nodes"]:
        """Whether an edge between two nodes, if there is one, can only be row -> column."""
        return self.before | (self.forbidden.T & ~self.forbidden)

    def allowed(self, node: int, is_before: Bool[np.ndarray, " num_nodes"]) -> Bool[np.ndarray, " num_nodes"]:
        """Return who of those before a node may be its parent."""
        return is_before & ~self.forbidden[:, node]


class Ordered(NamedTuple):
    """An order that was searched for.

    Attributes:
        order: The nodes, causes first.
        loss: Half the sum of the residual variances, all predecessors that may be parents being parents.
        num_sweeps: Of the search that found it.
        is_optimal: Whether no move that was looked at improves it: insertions and swaps of two nodes, or,
            where edges are forbidden, insertions.
        top_down: The top-down order, for comparison.
    """

    order: Int[np.ndarray, " num_nodes"]
    loss: float
    num_sweeps: int
    is_optimal: bool
    top_down: Int[np.ndarray, " num_nodes"]


class LinearGraph(NamedTuple):
    """A linear structural equation model.

    Attributes:
        weights: Of row -> column.
        variances: Of the noise of each node.
    """

    weights: Float[np.ndarray, "num_nodes num_nodes"]
    variances: Float[np.ndarray, " num_nodes"]


def regularized(
    covariance: Float[np.ndarray, "num_nodes num_nodes"], num_rows: float | int
) -> tuple[Float[np.ndarray, "num_nodes num_nodes"], str | None]:
    """Return a covariance that can be factorized, and what was done to it, if anything."""
    variances = np.diagonal(covariance)
    if num_rows <= len(covariance):
        share, why = _FEW_ROWS_RIDGE, f"There are {num_rows:.0f} rows for {len(covariance)} columns"
    else:
        scales = np.sqrt(variances)
        if np.linalg.eigvalsh(covariance / np.outer(scales, scales))[0] > _NEAR_SINGULAR:
            return covariance, None
        share, why = _COLLINEAR_RIDGE, "Some columns are linear functions of others"
    said = f"{why}: a ridge of {share:g} of each variance was added, and what is found depends on it."
    return covariance + share * np.diag(variances), said


def equal_variance_order(
    covariance: Float[np.ndarray, "num_nodes num_nodes"],
    rules: Rules,
    *,
    neighbourhood: str = "all",
    start: Int[np.ndarray, " num_nodes"] | None = None,
    num_restarts: int = 0,
    seed: int = 0,
) -> Ordered:
    """Return the best order that is found from the top-down order, or one given, and random ones.

    Args:
        covariance: Of the nodes, positive definite.
        rules: What the order and the edges must keep.
        neighbourhood: `"all"` looks at all swaps; `"windowed"` at those over up to 64 positions, and at all
            once nothing is left to gain there.
        start: An order to start at instead; it must keep the rules.
        num_restarts: How many random orders to start at as well.
        seed: Of their random numbers.
    """
    rng, before = np.random.default_rng(seed), rules.before
    with jax.enable_x64(True):
        top_down = np.asarray(top_down_order(jnp.asarray(covariance), jnp.asarray(before)))
    starts = [top_down if start is None else np.asarray(start, int)]
    starts += [random_order(rng, before) for _ in range(num_restarts)]
    is_free = not np.any(rules.forbidden & ~before.T)
    find = _by_swaps if is_free else _by_insertions
    found = min(
        (find(covariance, rules, first, neighbourhood) for first in starts), key=lambda found: found.loss
    )
    return found._replace(top_down=top_down)


def _by_swaps(covariance: np.ndarray, rules: Rules, start: np.ndarray, neighbourhood: str) -> Ordered:
    window = _WINDOW if neighbourhood == "windowed" and len(covariance) > _WINDOW else None
    with jax.enable_x64(True):
        found = search(jnp.asarray(covariance), jnp.asarray(start), jnp.asarray(rules.before), window=window)
    loss = float(found.loss)
    is_optimal = float(found.best_change) >= -1e-9 * loss
    return Ordered(np.asarray(found.order), loss, int(found.num_sweeps), is_optimal, start)


def _by_insertions(covariance: np.ndarray, rules: Rules, start: np.ndarray, _: str) -> Ordered:
    """Search without the formulas for all moves, which take all predecessors for parents."""

    def scores(nodes: np.ndarray, is_before: np.ndarray) -> np.ndarray:
        may_be = is_before & ~rules.forbidden[:, nodes].T
        pairs = zip(map(int, nodes), may_be, strict=True)
        return np.array([0.5 * regress(covariance, node, np.flatnonzero(mask))[1] for node, mask in pairs])

    found = local_search(scores, start, rules.before)
    return Ordered(found.order, found.score, found.num_sweeps, found.is_optimal, top_down=start)


def prune(
    covariance: Float[np.ndarray, "num_nodes num_nodes"],
    order: Int[np.ndarray, " num_nodes"],
    rules: Rules,
    num_rows: float | int,
    *,
    pruning: str = "ebic",
    gamma: float | int = 1.0,
    threshold: float | int = 0.3,
) -> LinearGraph:
    """Return the graph along an order, with the parents of each node that are worth it.

    Args:
        covariance: Of the nodes.
        order: Causes first.
        rules: Required edges stay, forbidden ones are not there.
        num_rows: Of the data.
        pruning: `"ebic"`, by the extended Bayesian information criterion; `"threshold"`, those whose weight,
            all predecessors being parents, is of a size above `threshold`; `"none"`, all.
        gamma: Of the criterion, see `parents.penalty`.
        threshold: In units of the effect for one unit of the cause.
    """
    weights, variances = np.zeros_like(covariance), np.zeros(len(covariance))
    is_before = np.zeros(len(covariance), bool)
    for node in map(int, order):
        may_be = rules.allowed(node, is_before)
        if pruning == "ebic":
            must_be = rules.required[:, node]
            found = choose_parents(covariance, node, may_be, num_rows, gamma=gamma, required=must_be)
            parents, own, variances[node] = found.parents, found.weights, found.variance
        else:
            parents = np.flatnonzero(may_be)
            own, variances[node] = regress(covariance, node, parents)
            if pruning == "threshold":
                parents = parents[(np.abs(own) > threshold) | rules.required[parents, node]]
                own, variances[node] = regress(covariance, node, parents)
        weights[parents, node] = own
        is_before[node] = True
    return LinearGraph(weights, variances)
