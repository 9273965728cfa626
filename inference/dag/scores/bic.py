"""Gaussian likelihood with sparse parents: the score of a graph up to its equivalence class."""

import numpy as np
from jaxtyping import Bool, Float, Int

from qbs.inference.dag.parents import choose_all_parents, penalty


class BICScore:
    """The extended Bayesian information criterion of linear Gaussian equations with any noise variances.

    Each node has the best parents that growing and shrinking finds among its candidates: with all of them, a
    Gaussian likelihood were the same for all orders. Units do not matter.

    References:
        Chickering (2002), "Optimal structure identification with greedy search"; Chen & Chen (2008),
        "Extended Bayesian information criteria"; Andrews, Ramsey, Sanchez-Romero, Camchong & Kummerfeld
        (2023), "Fast scalable and accurate discovery of DAGs using the best order score search and
        grow-shrink trees".
    """

    def __init__(
        self,
        covariance: Float[np.ndarray, "num_nodes num_nodes"],
        num_rows: float | int,
        *,
        gamma: float | int = 1.0,
    ):
        """Keep the settings.

        Args:
            covariance: Of the nodes, positive definite.
            num_rows: That it comes from.
            gamma: Of the criterion, see `parents.penalty`.
        """
        # Correlations: then rounding does not depend on units.
        scales = np.sqrt(np.diagonal(covariance))
        self._correlation = covariance / np.outer(scales, scales)
        self._num_rows, self._gamma = num_rows, gamma

    def scores(
        self, nodes: Int[np.ndarray, " batch"], candidates: Bool[np.ndarray, "batch num_nodes"]
    ) -> Float[np.ndarray, " batch"]:
        """Return half the criteria, in nats per row, the columns being put on one scale."""
        none = np.zeros_like(candidates)
        found = choose_all_parents(
            self._correlation, nodes, candidates, none, self._num_rows, gamma=self._gamma
        )
        price = penalty(self._num_rows, len(self._correlation) - 1, self._gamma)
        return 0.5 * (np.log(found.variances) + price * found.is_parent.sum(1))
