"""The parents of many nodes by growing and shrinking, whatever the regression."""

from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from qbs.inference.dag.grow_shrink import EAGER


class Considered(NamedTuple):
    """A node fitted to some parents.

    Attributes:
        loss: In nats per row.
        gains: What taking in each other node should gain.
        losses: What letting go each parent should lose.
    """

    loss: float
    gains: Float[np.ndarray, " num_nodes"]
    losses: Float[np.ndarray, " num_nodes"]


# Fits of nodes to masks of parents.
Consider = Callable[[list[tuple[int, np.ndarray]]], Sequence[Considered]]


class ParentSearch:
    """Grows and shrinks sets of parents, and remembers what it has seen.

    Growing takes in the parent that should gain most above a fifth of its penalty, if it does: parents that
    cancel each other gain little one by one. Shrinking then lets go the one that should be missed least, if
    the criterion falls. What should happen is known for all nodes from one fit; what does, from one more.
    """

    def __init__(self, consider: Consider, num_parameters: Int[np.ndarray, "num_nodes num_nodes"], most: int):
        """Start to remember.

        Args:
            consider: Fits what is not yet remembered.
            num_parameters: Of the parent in the row for the child in the column.
            most: Most parameters of a child.
        """
        self._consider, self._num_parameters, self._most = consider, num_parameters, most
        self._seen: dict[tuple[int, bytes], Considered] = {}

    @property
    def num_fits(self) -> int:
        """How many fits are remembered."""
        return len(self._seen)

    def choose(
        self,
        nodes: Sequence[int],
        candidates: Bool[np.ndarray, "batch num_nodes"],
        required: Bool[np.ndarray, "batch num_nodes"],
        price: float,
    ) -> tuple[Bool[np.ndarray, "batch num_nodes"], Float[np.ndarray, " batch"]]:
        """Return parents and criteria: losses, and the price of each parameter of a parent.

        Args:
            nodes: The children.
            candidates: Who may be a parent of each.
            required: Candidates who must be.
            price: In nats per row.
        """
        chosen, criteria = np.zeros(candidates.shape, bool), np.zeros(len(nodes))
        walks: dict[int, tuple[_Walk, np.ndarray]] = {}
        for at, node in enumerate(nodes):
            may_be = candidates[at] & (np.arange(candidates.shape[1]) != node)
            prices = price * self._num_parameters[:, node]
            walk = _walk(may_be, required[at] & may_be, prices, self._num_parameters[:, node], self._most)
            walks[at] = walk, next(walk)
        while walks:
            asked = {
                (int(nodes[at]), mask.tobytes()): (int(nodes[at]), mask) for at, (_, mask) in walks.items()
            }
            new = {name: pair for name, pair in asked.items() if name not in self._seen}
            if new:
                self._seen.update(zip(new, self._consider(list(new.values())), strict=True))
            for at, (walk, mask) in list(walks.items()):
                node = int(nodes[at])
                try:
                    while (seen := self._seen.get((node, mask.tobytes()))) is not None:
                        mask = walk.send(seen)
                    walks[at] = walk, mask
                except StopIteration as end:
                    chosen[at], criteria[at] = end.value
                    del walks[at]
        return chosen, criteria


_Walk = Generator[np.ndarray, Considered, tuple[np.ndarray, float]]


def _walk(
    may_be: np.ndarray, must_be: np.ndarray, prices: np.ndarray, num_parameters: np.ndarray, most: int
) -> _Walk:
    """Ask for fits, and end with the parents and the criterion."""
    chosen = must_be.copy()
    here = yield chosen
    while True:
        is_open = may_be & ~chosen & (num_parameters <= most - num_parameters[chosen].sum())
        surplus = np.where(is_open, here.gains - EAGER * prices, -np.inf)
        best = int(np.argmax(surplus))
        if not surplus[best] > 0:
            break
        grown = chosen.copy()
        grown[best] = True
        there = yield grown
        if not here.loss - there.loss > EAGER * prices[best]:
            break
        chosen, here = grown, there
    is_free = chosen & ~must_be
    while True:
        excess = np.where(is_free, here.losses - prices, np.inf)
        least = int(np.argmin(excess))
        if not excess[least] < 0:
            break
        shrunk = chosen.copy()
        shrunk[least] = False
        there = yield shrunk
        if there.loss - here.loss < prices[least]:
            chosen, here = shrunk, there
            is_free &= chosen
        else:
            is_free[least] = False  # it is missed more than it should be
    return chosen, here.loss + float(prices[chosen].sum())
