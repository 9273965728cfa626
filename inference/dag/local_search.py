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
from jaxtyping import Bool, Int

_TOLERANCE = 1e-10  # of the score of all nodes: what a move must gain

LocalScore = Callable[[int, Bool[np.ndarray, " num_nodes"]], float]


class LocalFound(NamedTuple):
    """Where a search ended.

    Attributes:
        order: The nodes, causes first.
        score: The sum of the scores of all nodes; lower is better.
        num_sweeps: How many times all nodes were tried at all places.
        num_scores: How many scores of a node with its predecessors were computed.
    """

    order: Int[np.ndarray, " num_nodes"]
    score: float
    num_sweeps: int
    num_scores: int


def local_search(
    score: LocalScore,
    order: Int[np.ndarray, " num_nodes"],
    before: Bool[np.ndarray, "num_nodes num_nodes"],
    *,
    max_sweeps: int = 1000,
    watch: Callable[[int, float], None] = lambda *_: None,
) -> LocalFound:
    """Return an order that moving no one node improves.

    Args:
        score: Score of a node, given who stands before it; lower is better.
        order: The order to start at; it must keep the rules.
        before: Whether row must come before column; transitive.
        max_sweeps: Most sweeps.
        watch: Told the number of each sweep, and the score after it.
    """
    known = _Known(score, len(order))
    places, total, num_sweeps = [int(node) for node in order], np.inf, 0
    while num_sweeps < max_sweeps:
        for node in list(places):
            places = _replaced(known, places, node, before)
        new, num_sweeps = known.total(places), num_sweeps + 1
        watch(num_sweeps, new)
        if not new < total - _TOLERANCE * abs(new):
            break
        total = new
    return LocalFound(np.array(places, int), min(new, total), num_sweeps, len(known.values))


class _Known:
    """Scores that have been computed."""

    def __init__(self, score: LocalScore, num_nodes: int):
        self._score, self._num_nodes = score, num_nodes
        self.values: dict[tuple[int, bytes], float] = {}

    def __call__(self, node: int, is_before: np.ndarray) -> float:
        name = node, np.packbits(is_before).tobytes()
        if name not in self.values:
            self.values[name] = self._score(node, is_before)
        return self.values[name]

    def total(self, places: list[int]) -> float:
        is_before, total = np.zeros(self._num_nodes, bool), 0.0
        for node in places:
            total += self(node, is_before.copy())
            is_before[node] = True
        return total


def _replaced(known: _Known, places: list[int], node: int, before: np.ndarray) -> list[int]:
    """Return the order with a node at its best place that the rules allow; its own, where none is better."""
    others = [other for other in places if other != node]
    is_before = np.zeros(len(places), bool)
    own, without, with_node = [known(node, is_before.copy())], [], []
    for other in others:
        without.append(known(other, is_before.copy()))
        is_before[node] = True
        with_node.append(known(other, is_before.copy()))
        is_before[node] = False
        is_before[other] = True
        own.append(known(node, is_before.copy()))
    totals = (
        np.array(own)
        + np.concatenate([[0.0], np.cumsum(without)])
        + np.concatenate([np.cumsum(with_node[::-1])[::-1], [0.0]])
    )
    first = max((at + 1 for at, other in enumerate(others) if before[other, node]), default=0)
    last = min((at for at, other in enumerate(others) if before[node, other]), default=len(others))
    at = first + int(np.argmin(totals[first : last + 1]))
    here = places.index(node)
    if not totals[at] < totals[here] - _TOLERANCE * abs(totals[here]):
        at = here
    return [*others[:at], node, *others[at:]]
