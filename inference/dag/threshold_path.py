"""All graphs that thresholds give along an order, so that what one threshold hides is seen."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from qbs.inference.dag.parents import penalty, regress

_TINY = 1e-10  # of its variance: less is left of a node that others tell all about


class ThresholdPath(NamedTuple):
    """The graphs of all thresholds, from that of all edges on.

    Attributes:
        thresholds: At and above each, up to the next, the graph is the same; ascending, the first is zero.
        num_edges: Of each graph.
        criteria: Extended Bayesian information criterion of each graph, per observation, with weights fitted
            again, and each node with a variance of its own: the sum of what `parents.choose_parents` says of
            nodes. Lower is better.
        weights: Of row -> column in the graph of all edges.
        required: Edges that stay at all thresholds.
    """

    thresholds: Float[np.ndarray, " num_graphs"]
    num_edges: Int[np.ndarray, " num_graphs"]
    criteria: Float[np.ndarray, " num_graphs"]
    weights: Float[np.ndarray, "num_nodes num_nodes"]
    required: Bool[np.ndarray, "num_nodes num_nodes"]

    @property
    def best_threshold(self) -> float:
        """The least threshold of the graph of least criterion."""
        return float(self.thresholds[np.argmin(self.criteria)])

    def place(self, threshold: float | int) -> int:
        """Return which of the graphs a threshold gives.

        Raises:
            ValueError: If it is negative.
        """
        if not threshold >= 0:
            raise ValueError(f"ThresholdPath: threshold must be zero or more, not {threshold}")
        return int(np.searchsorted(self.thresholds, threshold, side="right")) - 1

    def is_edge(self, threshold: float | int) -> Bool[np.ndarray, "num_nodes num_nodes"]:
        """Return the edges whose weight in the graph of all edges is of a size above a threshold."""
        return (np.abs(self.weights) > threshold) | self.required


def threshold_path(
    covariance: Float[np.ndarray, "num_nodes num_nodes"],
    order: Int[np.ndarray, " num_nodes"],
    num_rows: float | int,
    *,
    may_be: Bool[np.ndarray, "num_nodes num_nodes"] | None = None,
    required: Bool[np.ndarray, "num_nodes num_nodes"] | None = None,
    gamma: float | int = 1.0,
) -> ThresholdPath:
    """Return the graphs of all thresholds of the weights along an order.

    The parents of a node are lost one by one, so that one factorization tells what all of its sets leave:
    the cost is that of the factorizations of all nodes, whatever the number of thresholds.

    Args:
        covariance: Of the nodes, positive definite.
        order: Causes first.
        num_rows: Of the data.
        may_be: Whether row may be a parent of column; only those before it in the order are. None for all.
        required: Edges that stay; those against the order or not allowed are left out.
        gamma: Of the criterion, see `parents.penalty`; 0 for the Bayesian information criterion.
    """
    num_nodes = len(covariance)
    places = np.argsort(order)
    allowed = places[:, None] < places
    if may_be is not None:
        allowed &= may_be
    kept = np.zeros_like(allowed) if required is None else required & allowed
    weights = _all_weights(covariance, order) if may_be is None else _weights_among(covariance, allowed)

    lost, gains, start = [], [], 0.0
    for node in range(num_nodes):
        parents = np.flatnonzero(allowed[:, node])
        sizes = np.abs(weights[parents, node])
        ranked = np.lexsort((-sizes, ~kept[parents, node]))  # the last is lost first
        logs = _log_variances(covariance, node, parents[ranked])
        num_kept = int(kept[:, node].sum())
        start += logs[-1]
        lost.append(sizes[ranked][num_kept:])
        gains.append(np.diff(logs)[num_kept:])
    sizes, rises = np.concatenate(lost), -np.concatenate(gains)
    by_size = np.argsort(sizes, kind="stable")
    sizes, rises = sizes[by_size], rises[by_size]

    price = penalty(num_rows, num_nodes - 1, gamma)
    num_edges = int(allowed.sum()) - np.arange(len(sizes) + 1)
    criteria = start + np.concatenate([[0.0], np.cumsum(rises)]) + price * num_edges
    thresholds = np.concatenate([[0.0], sizes])
    is_last = np.append(thresholds[1:] > thresholds[:-1], True)  # of those of the same size
    return ThresholdPath(thresholds[is_last], num_edges[is_last], criteria[is_last], weights, kept)


def _all_weights(covariance: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return the weights of row -> column, all predecessors being parents."""
    factor = np.linalg.cholesky(covariance[np.ix_(order, order)])
    # The inverse is of a triangle; what rounding leaves above it is cut off.
    along = np.eye(len(order)) - np.diagonal(factor)[:, None] * np.linalg.inv(factor)
    weights = np.zeros_like(covariance)
    weights[np.ix_(order, order)] = np.tril(along, -1).T
    return weights


def _weights_among(covariance: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Return the weights of row -> column, all that are allowed being parents."""
    weights = np.zeros_like(covariance)
    for node in range(len(covariance)):
        parents = np.flatnonzero(allowed[:, node])
        weights[parents, node] = regress(covariance, node, parents)[0]
    return weights


def _log_variances(covariance: np.ndarray, node: int, ranked: np.ndarray) -> np.ndarray:
    """Return the logs of what no parent, the first, the first two, ... leave of a node's variance."""
    names = np.append(ranked, node)
    last = np.linalg.cholesky(covariance[np.ix_(names, names)])[-1]
    # Summed from the small end: what all parents leave is exact.
    variances = np.cumsum(last[::-1] ** 2)[::-1]
    return np.log(np.maximum(variances, _TINY * covariance[node, node]))
