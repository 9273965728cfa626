"""What all graphs that imply the same independences have in common: the class of a directed acyclic graph."""

import numpy as np
from jaxtyping import Bool, Int


def completed_graph(
    is_edge: Bool[np.ndarray, "num_nodes num_nodes"],
    *,
    is_known: Bool[np.ndarray, "num_nodes num_nodes"] | None = None,
) -> Bool[np.ndarray, "num_nodes num_nodes"]:
    r"""Return what all graphs equivalent to a directed acyclic graph agree on: its CPDAG.

    Two graphs imply the same independences just if they have the same edges, directions aside, and the same
    v-structures: \(i \to k \leftarrow j\) with `i` and `j` not adjacent (Verma & Pearl). An arrow that all
    graphs of such a class have is compelled. With arrows that are known beforehand, only graphs that have
    these count; what is returned is then called an MPDAG. V-structures and known arrows are directed first,
    and then what follows by Meek's four rules, which find all there is to find.

    Args:
        is_edge: Whether there is an edge row -> column; acyclic.
        is_known: Whether an edge between row and column, if there is one, is known to be row -> column: by
            tiers of the nodes, say, or because it is required. Passed over where there is no edge.

    Returns:
        True at `[i, j]` and False at `[j, i]` for a compelled arrow i -> j; True at both for an undirected
        edge, which goes one way in some graphs of the class and the other way in others.

    Raises:
        ValueError: If the graph has a cycle, if an edge goes against a known arrow, or if an array is not
            square, not of booleans, or not of the shape of the other.

    References:
        Verma & Pearl (1990), "Equivalence and synthesis of causal models"; Meek (1995), "Causal inference and
        causal explanation with background knowledge"; Chickering (1995), "A transformational characterization
        of equivalent Bayesian network structures".
    """
    _check("is_edge", is_edge)
    if len(order := topological_order(is_edge)) < len(is_edge):
        cycle = " -> ".join(str(node) for node in _cycle(is_edge, order))
        raise ValueError(f"completed_graph: the graph must be acyclic, but it has the cycle {cycle}")
    pattern = _Pattern(is_edge | is_edge.T)
    for cause, effect in _colliding(is_edge):
        pattern.direct(cause, effect)
    if is_known is not None:
        _check("is_known", is_known)
        if is_known.shape != is_edge.shape:
            raise ValueError(
                f"completed_graph: is_known must be of is_edge's shape {is_edge.shape}, not {is_known.shape}"
            )
        if against := np.argwhere(is_edge & is_known.T).tolist():
            cause, effect = against[0]
            raise ValueError(
                f"completed_graph: {effect} -> {cause} is known, but the graph has {cause} -> {effect}"
            )
        for cause, effect in np.argwhere(is_edge & is_known).tolist():
            pattern.direct(cause, effect)
    pattern.close()
    return pattern.to_array()


def topological_order(is_edge: Bool[np.ndarray, "num_nodes num_nodes"]) -> Int[np.ndarray, " num_placed"]:
    """Return the nodes such that all edges go forward; the lower number first where either may be.

    Args:
        is_edge: Whether there is an edge row -> column.

    Returns:
        The nodes, without those that are on a cycle or come after one: of an acyclic graph, all of them.
    """
    num_left, order = np.count_nonzero(is_edge, axis=0), [np.empty(0, int)]
    while len(free := np.flatnonzero(num_left == 0)):
        order.append(free)
        num_left -= np.count_nonzero(is_edge[free], axis=0)
        num_left[free] = -1
    return np.concatenate(order)


def _check(name: str, array: np.ndarray) -> None:
    if array.ndim != 2 or array.shape[0] != array.shape[1] or array.dtype != bool:
        raise ValueError(
            f"completed_graph: {name} must be a square array of booleans, "
            f"not of {array.dtype} and shape {array.shape}"
        )


def _cycle(is_edge: np.ndarray, order: np.ndarray) -> list[int]:
    """Return a cycle, its first node at both ends, of those that have no place in an order."""
    is_left = np.ones(len(is_edge), bool)
    is_left[order] = False
    back = [int(np.argmax(is_left))]
    # Each of these has a parent among them.
    while (node := int(np.argmax(is_edge[:, back[-1]] & is_left))) not in back:
        back.append(node)
    return [node, *reversed(back[back.index(node) :])]


def _colliding(is_edge: np.ndarray) -> list[tuple[int, int]]:
    """Return the arrows that are part of a v-structure."""
    is_apart = ~(is_edge | is_edge.T | np.eye(len(is_edge), dtype=bool))
    arrows = []
    for effect in range(len(is_edge)):
        causes = np.flatnonzero(is_edge[:, effect])
        is_part = is_apart[np.ix_(causes, causes)].any(axis=1)
        arrows += [(int(cause), effect) for cause in causes[is_part]]
    return arrows


class _Pattern:
    """A graph some of whose edges are directed.

    Attributes:
        adjacent: Of each node, those that it has an edge with.
        parents: Those that it has an edge from.
        children: Those that it has an edge to.
        undirected: Those that it has an undirected edge with.
    """

    def __init__(self, is_adjacent: np.ndarray) -> None:
        self.adjacent = [set(np.flatnonzero(row).tolist()) for row in is_adjacent]
        self.undirected = [set(others) for others in self.adjacent]
        self.parents: list[set[int]] = [set() for _ in self.adjacent]
        self.children: list[set[int]] = [set() for _ in self.adjacent]
        self._new: list[tuple[int, int]] = []

    def direct(self, cause: int, effect: int) -> None:
        """Direct an edge, if it is undirected."""
        if effect in self.undirected[cause]:
            self.undirected[cause].remove(effect)
            self.undirected[effect].remove(cause)
            self.children[cause].add(effect)
            self.parents[effect].add(cause)
            self._new.append((cause, effect))

    def close(self) -> None:
        """Direct what follows from the arrows there are."""
        while self._new:
            for cause, effect in self._implied(*self._new.pop()):
                self.direct(cause, effect)

    def to_array(self) -> np.ndarray:
        """Return the graph as an array of booleans."""
        is_edge = np.zeros((len(self.adjacent), len(self.adjacent)), bool)
        for node in range(len(is_edge)):
            is_edge[node, list(self.children[node] | self.undirected[node])] = True
        return is_edge

    def _implied(self, a: int, b: int) -> list[tuple[int, int]]:
        """Return what Meek's rules say of an arrow a -> b and those that are there already."""
        adjacent, undirected = self.adjacent, self.undirected
        # Rule 1: a -> b - c, or else there were another v-structure.
        arrows = [(b, c) for c in undirected[b] - adjacent[a]]
        # Rule 2: a -> b -> c with a - c, or else there were a cycle; the arrow is the first or the second.
        arrows += [(a, c) for c in undirected[a] & self.children[b]]
        arrows += [(c, b) for c in undirected[b] & self.parents[a]]
        # Rule 3: c - a -> b and c - d -> b with c - b, and a, d not adjacent.
        if both := undirected[a] & undirected[b]:
            apart = self.parents[b] - adjacent[a] - {a}
            arrows += [(c, b) for d in apart for c in both & undirected[d]]
        # Rule 4: a -> b -> d with c adjacent to all three, and a, d not adjacent; the first or the second.
        if both := undirected[a] & adjacent[b]:
            apart = self.children[b] - adjacent[a]
            arrows += [(c, d) for d in apart for c in both & undirected[d]]
        if both := undirected[b] & adjacent[a]:
            apart = self.parents[a] - adjacent[b]
            arrows += [(c, b) for d in apart for c in both & undirected[d]]
        return arrows
