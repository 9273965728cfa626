"""Search for an order by a score of each node and those before it, whatever the score.

For scores that have no formula for all moves at once. One node after another is taken out, and put where the
total is least: what the others score with it and without it tells that for all places together.

References:
    Andrews, Ramsey, Sanchez-Romero, Camchong & Kummerfeld (2023), "Fast scalable and accurate discovery of
    DAGs using the best order score search and grow-shrink trees", for the move.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

TOLERANCE = 1e-10  # of the score of all nodes: what makes an order better than another

# Of nodes, given who stands before each; lower is better.
LocalScores = Callable[
    [Int[np.ndarray, " batch"], Bool[np.ndarray, "batch num_nodes"]], Float[np.ndarray, " batch"]
]


class KnownScores:
    """Scores that are not computed again: searches from several starts may share them.

    Attributes:
        values: Those that were asked for, by node and who stands before it.
    """

    def __init__(self, scores: LocalScores):
        """Begin with none.

        Args:
            scores: Computes them.
        """
        self._scores = scores
        self.values: dict[tuple[int, bytes], float] = {}

    def __call__(
        self, nodes: Int[np.ndarray, " batch"], is_before: Bool[np.ndarray, "batch num_nodes"]
    ) -> Float[np.ndarray, " batch"]:
        """Return scores of nodes, given who stands before each."""
        sets = np.packbits(is_before, axis=1)
        names = [(int(node), own.tobytes()) for node, own in zip(nodes, sets, strict=True)]
        new = {name: at for at, name in enumerate(names) if name not in self.values}
        if new:
            rows = list(new.values())
            self.values.update(zip(new, map(float, self._scores(nodes[rows], is_before[rows])), strict=True))
        return np.array([self.values[name] for name in names])


class LocalFound(NamedTuple):
    """Where a search ended.

    Attributes:
        order: The nodes, causes first.
        score: The sum of the scores of all nodes; lower is better.
        num_sweeps: How many times all nodes were tried at all places.
        num_scores: How many scores of a node with its predecessors were computed.
        is_optimal: Whether moving any one node does not improve it; else the sweeps ran out.
    """

    order: Int[np.ndarray, " num_nodes"]
    score: float
    num_sweeps: int
    num_scores: int
    is_optimal: bool


def local_search(
    scores: LocalScores,
    order: Int[np.ndarray, " num_nodes"],
    before: Bool[np.ndarray, "num_nodes num_nodes"],
    *,
    max_sweeps: int = 1000,
    watch: Callable[[int, float], None] = lambda *_: None,
) -> LocalFound:
    """Return an order that moving no one node improves.

    Args:
        scores: Scores of nodes, given who stands before each; lower is better. It is asked for many at once,
            and never twice for the same; nor are the searches that share `KnownScores`.
        order: The order to start at; it must keep the rules.
        before: Whether row must come before column; transitive.
        max_sweeps: Most sweeps.
        watch: Told the number of each sweep, and the score after it.
    """
    known = scores if isinstance(scores, KnownScores) else KnownScores(scores)
    num_known = len(known.values)
    places, total, num_sweeps = [int(node) for node in order], np.inf, 0
    is_optimal = False
    while num_sweeps < max_sweeps and not is_optimal:
        for node in list(places):
            places = _replaced(known, places, node, before)
        new = float(known(np.array(places), _before(places)[:-1]).sum())
        num_sweeps += 1
        watch(num_sweeps, new)
        is_optimal = not new < total - TOLERANCE * abs(new)
        total = min(new, total)
    num_new = len(known.values) - num_known
    return LocalFound(np.array(places, int), total, num_sweeps, num_new, is_optimal)


def _before(places: list[int], num_nodes: int | None = None) -> np.ndarray:
    """Return who is before each place of an order, and after the last."""
    is_before = np.zeros((len(places) + 1, num_nodes or len(places)), bool)
    for at, node in enumerate(places):
        is_before[at + 1 :, node] = True
    return is_before


def _replaced(known: KnownScores, places: list[int], node: int, before: np.ndarray) -> list[int]:
    """Return the order with a node at its best place that the rules allow; its own, where none is better."""
    others = [other for other in places if other != node]
    is_before = _before(others, len(places))
    with_node = is_before.copy()
    with_node[:, node] = True
    count = len(others)
    nodes = np.array([node] * (count + 1) + others + others, int)
    asked = known(nodes, np.concatenate([is_before, is_before[:-1], with_node[:-1]]))
    own, without, with_ = np.split(asked, [count + 1, 2 * count + 1])
    totals = own + np.concatenate([[0.0], np.cumsum(without)])
    totals += np.concatenate([np.cumsum(with_[::-1])[::-1], [0.0]])
    first = max((at + 1 for at, other in enumerate(others) if before[other, node]), default=0)
    last = min((at for at, other in enumerate(others) if before[node, other]), default=len(others))
    here = places.index(node)
    allowed = totals[first : last + 1]
    # Places of one score differ by rounding, which is not to choose among them.
    is_best = allowed <= allowed.min() + TOLERANCE * abs(totals[here])
    at = here if is_best[here - first] else first + int(np.argmax(is_best))
    return [*others[:at], node, *others[at:]]
