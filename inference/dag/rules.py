"""What a graph must keep."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int


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

    @property
    def is_order_alone(self) -> bool:
        """Whether every order that keeps `before` may have all edges along it."""
        return not np.any(self.forbidden & ~self.before.T)

    def allowed(
        self, nodes: Int[np.ndarray, " batch"], is_before: Bool[np.ndarray, "batch num_nodes"]
    ) -> Bool[np.ndarray, "batch num_nodes"]:
        """Return who of those before each node may be its parent."""
        return is_before & ~self.forbidden[:, nodes].T

    def candidates(self, order: Int[np.ndarray, " num_nodes"]) -> Bool[np.ndarray, "num_nodes num_nodes"]:
        """Return who may be a parent of each node, in its row, along an order."""
        places = np.argsort(order)
        return self.allowed(np.arange(len(order)), places[None, :] < places[:, None])

    def kept_by(self, order: Int[np.ndarray, " num_nodes"]) -> bool:
        """Return whether an order keeps `before`."""
        places = np.argsort(order)
        return not np.any(self.before & (places[:, None] >= places[None, :]))
