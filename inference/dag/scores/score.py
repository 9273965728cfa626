"""What a search for an order asks of a score, and a graph of its end."""

from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from qbs.inference.dag.equations import Equation

PruningKind = Literal["ebic", "threshold", "adaptive-lasso", "none"]


class Pruning(NamedTuple):
    """How the parents of a node are chosen among those before it.

    Attributes:
        kind: `"ebic"` by the extended Bayesian information criterion, `"threshold"` by the size of their
            weights when all are parents, `"adaptive-lasso"` by the criterion along its path (linear
            equations only), `"none"` keeps all.
        gamma: Of the criterion, see `parents.penalty`.
        threshold: Least size of a weight that is kept.
    """

    kind: PruningKind = "ebic"
    gamma: float = 1.0
    threshold: float = 0.3


class Fits(NamedTuple):
    """Nodes fitted to those who may be their parents.

    Attributes:
        scores: Of each fit; lower is better.
        weights: Of each node in each fit, zero for those that may not be parents: the coefficient, or the
            norm of a group of coefficients, which is never negative.
        gradients: Derivative of the score in the coefficient of each node, those who may not be parents
            included, or the norm of that of a group; without an l1 penalty. Zero for the node itself.
    """

    scores: Float[np.ndarray, " batch"]
    weights: Float[np.ndarray, "batch num_nodes"]
    gradients: Float[np.ndarray, "batch num_nodes"]


@runtime_checkable
class Score(Protocol):
    """A sum over nodes, each given who may be its parents."""

    def scores(
        self, nodes: Int[np.ndarray, " batch"], candidates: Bool[np.ndarray, "batch num_nodes"]
    ) -> Float[np.ndarray, " batch"]:
        """Return scores per row of data; lower is better.

        Args:
            nodes: Their numbers.
            candidates: Who may be the parents of each.
        """
        ...


@runtime_checkable
class FittingScore(Score, Protocol):
    """A score whose fits have weights and gradients: what TOPO's search by KKT conditions needs."""

    def fits(self, nodes: Int[np.ndarray, " batch"], candidates: Bool[np.ndarray, "batch num_nodes"]) -> Fits:
        """Return the fits of nodes to all of their candidates."""
        ...


@runtime_checkable
class EquationScore(Score, Protocol):
    """A score with equations of its own, which are not linear."""

    def equation(
        self,
        node: int,
        candidates: Bool[np.ndarray, " num_nodes"],
        required: Bool[np.ndarray, " num_nodes"],
        pruning: Pruning,
    ) -> Equation:
        """Return the equation of a node, with parents that are chosen among candidates.

        Args:
            node: Its number.
            candidates: Who may be a parent.
            required: Candidates that must be parents.
            pruning: How to choose.
        """
        ...
