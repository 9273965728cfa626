"""A causal graph with the confidence in its arrows: what the picture and the exports are made from."""

from collections import Counter
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

OrientedBy = Literal["equivalence class", "knowledge", "assumption", "nothing"]


class Edge(NamedTuple):
    """An arrow of a causal graph.

    Attributes:
        cause: Name of the node that it leaves.
        effect: Name of the node that it enters.
        weight: Weight of cause -> effect.
        confidence: Share of bootstraps with cause -> effect; None where it is not known.
        confidence_turned: Share of bootstraps with effect -> cause; None where it is not known.
        oriented_by: `"equivalence class"` where all graphs that fit the data as well have it in this
            direction; `"knowledge"` where it follows from tiers, required and forbidden edges, together with
            those that the equivalence class directs; `"assumption"` where it rests on the assumption about
            the noise or the form of equations alone; `"nothing"` where the score makes none, and the other
            direction is as good.
    """

    cause: str
    effect: str
    weight: float
    confidence: float | None
    confidence_turned: float | None
    oriented_by: OrientedBy


class CausalGraph(NamedTuple):
    """A weighted directed graph on named nodes, with the confidence in its arrows.

    Attributes:
        names: Names of the nodes, all different.
        weights: Of row -> column; 0 where there is no edge.
        confidence: Share of bootstraps with row -> column, edges of the graph or not; NaN where it is not
            known, None without bootstraps.
        is_compelled: Arrows row -> column that the equivalence class (CPDAG) directs. Read only where there
            is an edge.
        otherwise: What directs the other arrows.
        is_known: Arrows row -> column that follow from what was known before; None if nothing was. The
            equivalence class is named first where it directs them too.
    """

    names: tuple[str, ...]
    weights: Float[np.ndarray, "num_nodes num_nodes"]
    confidence: Float[np.ndarray, "num_nodes num_nodes"] | None
    is_compelled: Bool[np.ndarray, "num_nodes num_nodes"]
    otherwise: OrientedBy = "assumption"
    is_known: Bool[np.ndarray, "num_nodes num_nodes"] | None = None

    def check(self) -> None:
        """Do nothing, or say what is wrong with the graph. Cycles are allowed.

        Raises:
            ValueError: If shapes do not fit, a name is there twice, a weight is not finite, a node causes
                itself, or a confidence is outside [0, 1].
        """
        size = len(self.names)
        if repeated := [name for name, count in Counter(self.names).items() if count > 1]:
            raise ValueError(f"CausalGraph: names must differ; given twice or more: {repeated}")
        for field in ("weights", "confidence", "is_compelled", "is_known"):
            matrix = getattr(self, field)
            if matrix is not None and np.shape(matrix) != (size, size):
                raise ValueError(
                    f"CausalGraph: {field} must be of shape ({size}, {size}) for {size} names, "
                    f"not {np.shape(matrix)}"
                )
        if not np.isfinite(self.weights).all():
            row, column = np.argwhere(~np.isfinite(self.weights))[0]
            where = f"{self.names[row]!r} -> {self.names[column]!r}"
            raise ValueError(
                f"CausalGraph: weights must be finite, not {self.weights[row, column]} of {where}"
            )
        if np.diagonal(self.weights).any():
            looped = self.names[np.flatnonzero(np.diagonal(self.weights))[0]]
            raise ValueError(f"CausalGraph: the diagonal of weights must be 0, but {looped!r} causes itself")
        if self.confidence is not None and ((self.confidence < 0) | (self.confidence > 1)).any():
            raise ValueError("CausalGraph: confidence must be in [0, 1]")

    def edges(self) -> list[Edge]:
        """Return the edges: the most confident first, then the largest weight, then in the order of names.

        Raises:
            ValueError: See `check`.
        """
        self.check()
        confidence = np.full(self.weights.shape, np.nan) if self.confidence is None else self.confidence
        rows, columns = np.nonzero(self.weights)
        keys = (-np.abs(self.weights[rows, columns]), -np.nan_to_num(confidence[rows, columns], nan=-1.0))
        order = np.lexsort(keys)
        return [
            Edge(
                cause=self.names[row],
                effect=self.names[column],
                weight=float(self.weights[row, column]),
                confidence=_known(float(confidence[row, column])),
                confidence_turned=_known(float(confidence[column, row])),
                oriented_by=self._oriented_by(int(row), int(column)),
            )
            for row, column in zip(rows[order], columns[order], strict=True)
        ]

    def _oriented_by(self, row: int, column: int) -> OrientedBy:
        if self.is_compelled[row, column]:
            return "equivalence class"
        is_known = self.is_known is not None and self.is_known[row, column]
        return "knowledge" if is_known else self.otherwise


def _known(number: float) -> float | None:
    return None if np.isnan(number) else number
