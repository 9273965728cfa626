"""How far a causal graph is from the true one."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from numpy.typing import ArrayLike

from qbs.inference.dag.equivalence import topological_order


class Comparison(NamedTuple):
    """How a graph that was found differs from the true one.

    An arrow is an edge that goes one way only; an undirected edge goes both ways.

    Attributes:
        shd: Structural Hamming distance: how many edges are missing, extra or turned.
        sid: Structural intervention distance: of how many ordered pairs of nodes the effect of the first on
            the second comes out wrong, if it is adjusted for the parents that were found. None unless both
            graphs are directed and acyclic.
        precision: Share of the arrows found that are arrows of the truth; 1 if none was found: none is wrong.
        recall: Share of the arrows of the truth that were found; 1 if it has none: none was missed.
        skeleton_precision: Share of the edges found that are edges of the truth, directions aside; 1 if none
            was found.
        skeleton_recall: Share of the edges of the truth that were found, directions aside; 1 if it has none.
        num_missing: How many edges of the truth are between nodes without an edge in what was found.
        num_extra: How many edges found are between nodes without an edge in the truth.
        num_turned: How many edges of both differ in direction, or are undirected in one only.
    """

    shd: int
    sid: int | None
    precision: float
    recall: float
    skeleton_precision: float
    skeleton_recall: float
    num_missing: int
    num_extra: int
    num_turned: int


def compare_graphs(found: ArrayLike, truth: ArrayLike) -> Comparison:
    """Return how a graph that was found differs from the true one.

    Either may be a directed graph or that of a class of equivalent ones (CPDAG), in which an undirected edge
    has an entry both ways. Compare like with like: undirected against directed counts as turned.

    Args:
        found: Square array; an entry that is not zero is an edge row -> column. Weights are not compared.
        truth: The same of the true graph, its nodes in the same order.

    Returns:
        See `Comparison`. The structural intervention distance takes most of the time, in the worst case the
        cube of the number of nodes.

    Raises:
        ValueError: If an array is not square or not of numbers, if it has a NaN or an edge from a node to
            itself, or if the two differ in shape.

    References:
        Tsamardinos, Brown & Aliferis (2006), "The max-min hill-climbing Bayesian network structure learning
        algorithm", for the structural Hamming distance; Peters & Bühlmann (2015), "Structural intervention
        distance for evaluating causal graphs".
    """
    is_found, is_true = _edges("found", found), _edges("truth", truth)
    if is_found.shape != is_true.shape:
        raise ValueError(
            f"compare_graphs: found and truth must be of one shape, not {is_found.shape} and {is_true.shape}"
        )
    pairs = np.triu(np.ones(is_true.shape, bool), 1)
    in_found, in_truth = (is_found | is_found.T) & pairs, (is_true | is_true.T) & pairs
    is_other = (is_found != is_true) | (is_found != is_true).T
    num_missing = int(np.count_nonzero(in_truth & ~in_found))
    num_extra = int(np.count_nonzero(in_found & ~in_truth))
    num_turned = int(np.count_nonzero(in_found & in_truth & is_other))
    arrows, true_arrows = is_found & ~is_found.T, is_true & ~is_true.T
    return Comparison(
        shd=num_missing + num_extra + num_turned,
        sid=_intervention_distance(is_found, is_true),
        precision=_share(arrows & true_arrows, arrows),
        recall=_share(arrows & true_arrows, true_arrows),
        skeleton_precision=_share(in_found & in_truth, in_found),
        skeleton_recall=_share(in_found & in_truth, in_truth),
        num_missing=num_missing,
        num_extra=num_extra,
        num_turned=num_turned,
    )


def _edges(name: str, graph: ArrayLike) -> np.ndarray:
    """Return where a graph has edges, once it has been looked at."""
    values = np.asarray(graph)
    if values.ndim != 2 or values.shape[0] != values.shape[1]:
        raise ValueError(f"compare_graphs: {name} must be a square array, not of shape {values.shape}")
    if values.dtype.kind not in "biuf":
        raise ValueError(f"compare_graphs: {name} must be an array of numbers, not of {values.dtype}")
    if is_nan := np.argwhere(np.isnan(values)).tolist():
        raise ValueError(
            f"compare_graphs: {name} must have no NaN, but has {len(is_nan)}, the first at {is_nan[0]}"
        )
    if loops := np.flatnonzero(np.diagonal(values)).tolist():
        raise ValueError(
            f"compare_graphs: {name} must have no edge from a node to itself, but has at {loops}"
        )
    return values != 0


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    """Return which share of a set is in a part of it; 1 of an empty one."""
    num_all = int(np.count_nonzero(whole))
    return int(np.count_nonzero(part)) / num_all if num_all else 1.0


def _intervention_distance(
    is_found: Bool[np.ndarray, "num_nodes num_nodes"], is_true: Bool[np.ndarray, "num_nodes num_nodes"]
) -> int | None:
    r"""Return the structural intervention distance, None unless both graphs are directed and acyclic.

    Where a parent `j` of `i` was found, `i` is said to have no effect on `j`: wrong if `j` is a descendant of
    `i`. Elsewhere the effect is adjusted for the parents `Z` that were found of `i`, which is right just if
    (Shpitser, VanderWeele & Robins 2010)

    - no node of a directed path from `i` to `j`, other than `i`, is in `Z` or has a descendant in `Z`;
    - `Z` blocks every other path from `i` to `j`.

    Args:
        is_found: Edges of the graph that was found.
        is_true: Edges of the true graph.

    References:
        Peters & Bühlmann (2015), "Structural intervention distance for evaluating causal graphs"; Shpitser,
        VanderWeele & Robins (2010), "On the validity of covariate adjustment for estimating causal effects".
    """
    order, num_nodes = topological_order(is_true), len(is_true)
    if len(order) < num_nodes or len(topological_order(is_found)) < num_nodes:
        return None
    reaches = np.eye(num_nodes, dtype=bool)  # row reaches column by a directed path, or is it
    for node in order[::-1]:
        reaches[node] |= reaches[is_true[node]].any(axis=0)
    is_parent, is_given, is_reached = (
        np.ascontiguousarray(graph.T) for graph in (is_true, is_found, reaches)
    )
    total = 0
    for node, given in enumerate(is_given):
        above = is_reached[given].any(axis=0)
        through = reaches[node] & above
        through[node] = False
        is_wrong = reaches[through].any(axis=0) | _joined(is_true, is_parent, node, given, above)
        is_wrong = np.where(given, reaches[node], is_wrong)
        is_wrong[node] = False
        total += int(np.count_nonzero(is_wrong))
    return total


def _joined(
    is_edge: np.ndarray, is_parent: np.ndarray, node: int, given: np.ndarray, above: np.ndarray
) -> Bool[np.ndarray, " num_nodes"]:
    """Return which nodes an open path joins to one, other than a directed path from it.

    A walk that comes back to a node is as good as a path, with one exception: it may begin along a directed
    path to its own end and turn around below. It then turns at a node above one that is given, so that the
    effect on its end is wrong anyhow.

    Args:
        is_edge: Of row -> column.
        is_parent: Of column -> row.
        node: Where paths begin.
        given: The nodes that block a path, but for those where two arrows meet.
        above: These and their ancestors: nodes that do not block it where two arrows meet.
    """
    is_other = np.arange(len(is_edge)) != node
    # By directed paths, to start with.
    new = is_edge[node]
    below = new
    while new.any():
        new = is_edge[new & ~given].any(axis=0) & ~below
        below = below | new
    # Nodes that a walk comes to against an arrow, and those that it comes to along one after it has turned.
    up = (is_parent[node] | is_parent[below & above].any(axis=0)) & is_other
    down = np.zeros_like(up)
    new_up, new_down = up, down
    while new_up.any() or new_down.any():
        next_up = is_parent[(new_up & ~given) | (new_down & above)].any(axis=0)
        next_down = is_edge[(new_up | new_down) & ~given].any(axis=0)
        new_up, new_down = next_up & ~up & is_other, next_down & ~down & is_other
        up, down = up | new_up, down | new_down
    return up | down
