"""Orders whose nodes are fitted to all those before them, and what moves within an order change."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from qbs.inference.dag.scores.score import FittingScore

_CHUNK = 256  # moves that are tried at a time
_MEMORY = 5e8  # bytes of weights and gradients that are kept

_Name = tuple[int, bytes]


class Move(NamedTuple):
    """Who stands at the positions from a first one on, after a move.

    Attributes:
        first: The position.
        nodes: Those who stand there and at the next ones; the same as before the move, in another order.
    """

    first: int
    nodes: Int[np.ndarray, " num_moved"]

    def applied(self, order: Int[np.ndarray, " num_nodes"]) -> Int[np.ndarray, " num_nodes"]:
        """Return an order after the move."""
        return np.concatenate([order[: self.first], self.nodes, order[self.first + len(self.nodes) :]])


class FittedOrder(NamedTuple):
    """An order, and each node fitted to all before it that may be its parents.

    Attributes:
        order: The nodes, causes first.
        scores: Of each node.
        weights: Of row -> column.
        gradients: Of the score of the column in the weight of row -> column.
    """

    order: Int[np.ndarray, " num_nodes"]
    scores: Float[np.ndarray, " num_nodes"]
    weights: Float[np.ndarray, "num_nodes num_nodes"]
    gradients: Float[np.ndarray, "num_nodes num_nodes"]

    @property
    def total(self) -> float:
        """The sum of the scores."""
        return float(self.scores.sum())

    def along(
        self, of_nodes: Shaped[np.ndarray, "num_nodes num_nodes"]
    ) -> Shaped[np.ndarray, "num_nodes num_nodes"]:
        """Return entries of nodes as those of the positions where they stand."""
        return of_nodes[np.ix_(self.order, self.order)]

    def swap(self, first: int, last: int) -> Move:
        """Return the swap of those who stand at two positions, the earlier first."""
        nodes = self.order[first : last + 1].copy()
        nodes[[0, -1]] = nodes[[-1, 0]]
        return Move(first, nodes)


class KnownFits:
    """Fits of nodes to those before them, none of which is made twice.

    Of more than fit into half a gigabyte, the oldest lose their weights and gradients, and are made again
    where these are needed.

    Attributes:
        num_solves: How many were made.
    """

    def __init__(self, score: FittingScore, forbidden: Bool[np.ndarray, "num_nodes num_nodes"]):
        """Begin with none.

        Args:
            score: Makes the fits.
            forbidden: Edges of row -> column that must not be there.
        """
        self._score, self._forbidden = score, forbidden
        self._scores: dict[_Name, float] = {}
        self._lines: dict[_Name, tuple[np.ndarray, np.ndarray]] = {}
        self._most = int(_MEMORY / (16 * len(forbidden)))
        self.num_solves = 0

    def fitted(self, order: Int[np.ndarray, " num_nodes"]) -> FittedOrder:
        """Return an order with all nodes fitted."""
        names, may_be = self._named(*_stand(order, Move(0, order)))
        self._fit(names, may_be, [name for name in names if name not in self._lines])
        scores = np.zeros(len(order))
        weights, gradients = np.zeros((2, len(order), len(order)))
        for name in names:
            scores[name[0]] = self._scores[name]
            weights[:, name[0]], gradients[:, name[0]] = self._lines[name]
        return FittedOrder(order, scores, weights, gradients)

    def changes(self, here: FittedOrder, moves: list[Move]) -> Float[np.ndarray, " num_moves"]:
        """Return what moves, each by itself, change the total score by."""
        parts = [self._changes(here, moves[at : at + _CHUNK]) for at in range(0, len(moves), _CHUNK)]
        return np.concatenate([np.zeros(0), *parts])

    def _changes(self, here: FittedOrder, moves: list[Move]) -> np.ndarray:
        while len(self._lines) > self._most:
            del self._lines[next(iter(self._lines))]
        stands = [_stand(here.order, move) for move in moves]
        nodes = np.concatenate([own for own, _ in stands])
        names, may_be = self._named(nodes, np.concatenate([is_before for _, is_before in stands]))
        self._fit(names, may_be, [name for name in names if name not in self._scores])
        gains = np.array([self._scores[name] for name in names]) - here.scores[nodes]
        return np.add.reduceat(gains, np.cumsum([0, *(len(own) for own, _ in stands[:-1])]))

    def _named(self, nodes: np.ndarray, is_before: np.ndarray) -> tuple[list[_Name], np.ndarray]:
        """Return names of nodes with those who may be their parents, and who these are."""
        may_be = is_before & ~self._forbidden[:, nodes].T
        sets = np.packbits(may_be, axis=1)
        return [(int(node), own.tobytes()) for node, own in zip(nodes, sets, strict=True)], may_be

    def _fit(self, names: list[_Name], may_be: np.ndarray, missing: list[_Name]) -> None:
        if not missing:
            return
        where = dict(zip(names, range(len(names)), strict=True))
        new = list(dict.fromkeys(missing))
        fits = self._score.fits(
            np.array([name[0] for name in new], int), may_be[[where[name] for name in new]]
        )
        self.num_solves += len(new)
        self._scores.update(zip(new, map(float, fits.scores), strict=True))
        self._lines.update(zip(new, zip(fits.weights, fits.gradients, strict=True), strict=True))


def _stand(order: np.ndarray, move: Move) -> tuple[np.ndarray, np.ndarray]:
    """Return the nodes that a move places, and who is then before each."""
    first, nodes = move
    is_before = np.zeros((len(nodes), len(order)), bool)
    is_before[:, order[:first]] = True
    is_before[:, nodes] = np.tri(len(nodes), k=-1, dtype=bool)
    return nodes, is_before
