"""A score for columns of numbers, of zeros and ones, and of categories: a regression for each kind."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from qbs.inference.dag.equations import Equation, LinearEquation
from qbs.inference.dag.parents import penalty
from qbs.inference.dag.scores.discrete_equations import (
    CategoricalEquation,
    GroupedLinearEquation,
    LogisticEquation,
)
from qbs.inference.dag.scores.glm_design import design_of
from qbs.inference.dag.scores.glm_fits import fit_softmax, on_device, unpacked
from qbs.inference.dag.scores.glm_parents import Considered, ParentSearch
from qbs.inference.dag.scores.glm_tests import expected_changes
from qbs.inference.dag.scores.score import Pruning

_LEAST_VARIANCE = 1e-10  # of a node's: less is not left of it
_COLLINEAR = 1e-10  # ridge on the covariance of regressors


class MixedScore:
    """Scores nodes by the likelihood of generalized linear models with sparse parents.

    A continuous node is Gaussian around a linear function of its parents, the log odds of a binary or
    categorical one are linear functions (multinomial logistic regression). A categorical parent counts by a
    coefficient for each of its codes but the first, all in or all out. The score is the extended Bayesian
    information criterion in nats per row of the parents that growing and shrinking finds among the
    candidates (`ParentSearch`): the likelihood with all candidates as parents would, for Gaussian nodes, be
    the same in all orders.

    Regressions are unpenalized but for a ridge (`glm_fits.RIDGE`) that keeps them finite. All is float64.
    """

    def __init__(
        self,
        values: Float[np.ndarray, "num_rows num_nodes"],
        kinds: Sequence[str],
        gamma: float | int = 1.0,
    ):
        """Check the data.

        Args:
            values: Of the nodes: any numbers, or 0 and 1, or codes 0, 1, ...
            kinds: Of each node: `"continuous"`, `"binary"` or `"categorical"`.
            gamma: See `parents.penalty`; 0 for the Bayesian information criterion.

        Raises:
            ValueError: If a kind is not known, or a column does not hold what its kind says.
        """
        self._kinds, self._gamma = tuple(kinds), float(gamma)
        self._design = design_of(values, self._kinds, caller="MixedScore")
        self._data = on_device(self._design)
        sizes = np.array([len(group) for group in self._design.groups])
        self._num_logits = np.where([kind == "continuous" for kind in self._kinds], 1, sizes)
        most = self._design.num_rows - 2
        self._search = ParentSearch(self._consider, np.outer(sizes, self._num_logits), most)

    @property
    def num_fits(self) -> int:
        """How many regressions have been fitted."""
        return self._search.num_fits

    def scores(
        self, nodes: Int[np.ndarray, " batch"], candidates: Bool[np.ndarray, "batch num_nodes"]
    ) -> Float[np.ndarray, " batch"]:
        """Return criteria in nats per row; lower is better."""
        none = np.zeros_like(candidates)
        return self._search.choose(list(map(int, nodes)), candidates, none, self._price(self._gamma))[1]

    def equation(
        self,
        node: int,
        candidates: Bool[np.ndarray, " num_nodes"],
        required: Bool[np.ndarray, " num_nodes"],
        pruning: Pruning,
    ) -> Equation:
        """Return the equation of a node: `LinearEquation` or one of `discrete_equations`.

        The weights that `"threshold"` compares are in the units of the columns: coefficients, or the norm of
        those of a categorical node.
        """
        chosen = candidates.copy()
        chosen[node] = False
        if pruning.kind == "ebic":
            price = self._price(pruning.gamma)
            chosen = self._search.choose([node], chosen[None], required[None], price)[0][0]
        elif pruning.kind == "threshold":
            weights = self.fitted(node, chosen).weights
            parents = np.flatnonzero(chosen)
            chosen[parents] = (np.abs(weights) > pruning.threshold) | required[parents]
        return self.fitted(node, chosen)

    def fitted(self, node: int, is_parent: Bool[np.ndarray, " num_nodes"]) -> Equation:
        """Return the equation of a node with all of some parents."""
        design, parents = self._design, np.flatnonzero(is_parent)
        is_in = self._columns_of(is_parent[None])
        kind = self._kinds[node]
        variance = math.nan
        if kind == "continuous":
            slopes, left = self._least_squares(np.array([node]), is_in)
            own = design.groups[node][0]
            all_of = slopes * design.scales[own]
            variance = float(left[0]) * design.scales[own] ** 2
            shift = design.centres[own]
        else:
            all_of = fit_softmax(self._data, design.groups[node][None], is_in).coefficients[0]
            shift = 0.0
        all_of = all_of / design.scales
        intercepts = all_of[:, 0] + shift - all_of[:, 1:] @ design.centres[1:]
        groups = [design.groups[parent] for parent in parents]
        coefficients = all_of[:, np.concatenate([np.empty(0, int), *groups])]
        parts = [all_of[:, group] for group in groups]
        weights = np.array([float(part[0, 0]) if part.size == 1 else np.linalg.norm(part) for part in parts])
        is_coded = [self._kinds[parent] == "categorical" for parent in parents]
        num_levels = np.array(
            [len(group) + 1 if coded else 0 for group, coded in zip(groups, is_coded, strict=True)], int
        )
        if kind == "categorical":
            return CategoricalEquation(node, parents, weights, intercepts, coefficients, num_levels)
        if kind == "binary":
            own_intercept = float(intercepts[0])
            return LogisticEquation(node, parents, weights, own_intercept, coefficients[0], num_levels)
        if any(is_coded):
            return GroupedLinearEquation(
                node, parents, weights, variance, float(intercepts[0]), coefficients[0], num_levels
            )
        return LinearEquation(node, parents, weights, variance, float(intercepts[0]))

    def _price(self, gamma: float) -> float:
        """Return what a parameter must gain in nats per row: the penalty is twice that."""
        return penalty(self._design.num_rows, len(self._kinds) - 1, gamma) / 2

    def _columns_of(self, masks: np.ndarray) -> np.ndarray:
        is_in = np.zeros((len(masks), len(self._design.columns)), bool)
        is_in[:, 0] = True
        for node, group in enumerate(self._design.groups):
            is_in[:, group] = masks[:, [node]]
        return is_in

    def _consider(self, asked: list[tuple[int, np.ndarray]]) -> list[Considered]:
        found: dict[int, Considered] = {}
        nodes = np.array([node for node, _ in asked])
        is_in = self._columns_of(np.array([mask for _, mask in asked]))
        is_continuous = np.array([self._kinds[node] == "continuous" for node in nodes])
        for kind in set(zip(is_continuous, self._num_logits[nodes], strict=True)):
            at = np.flatnonzero((is_continuous == kind[0]) & (self._num_logits[nodes] == kind[1]))
            consider = self._consider_numbers if kind[0] else self._consider_classes
            found.update(zip(map(int, at), consider(nodes[at], is_in[at]), strict=True))
        return [found[at] for at in range(len(asked))]

    def _consider_classes(self, nodes: np.ndarray, is_in: np.ndarray) -> list[Considered]:
        outcomes = np.array([self._design.groups[node] for node in nodes])
        fits = fit_softmax(self._data, outcomes, is_in)
        batch, num_logits, num_columns = fits.coefficients.shape
        starts = num_columns * np.arange(num_logits)
        expected = expected_changes(
            unpacked(fits.curvatures, num_logits, num_columns),
            fits.gradients.reshape(batch, -1),
            fits.coefficients.reshape(batch, -1),
            np.tile(is_in, num_logits),
            [(starts[:, None] + group).ravel() for group in self._design.groups],
        )
        rows = zip(fits.losses, expected.by_adding / 2, expected.by_dropping / 2, strict=True)
        return [Considered(float(loss), gains, losses) for loss, gains, losses in rows]

    def _consider_numbers(self, nodes: np.ndarray, is_in: np.ndarray) -> list[Considered]:
        slopes, left = self._least_squares(nodes, is_in)
        own = np.array([self._design.groups[node][0] for node in nodes])
        moments = self._data.moments
        expected = expected_changes(
            np.broadcast_to(moments, (len(nodes), *moments.shape)),
            moments[own] - slopes @ moments,
            slopes,
            is_in,
            self._design.groups,
        )
        # Here the quadratic forms are what the variance changes by.
        shares = np.minimum(expected.by_adding / left[:, None], 1 - _LEAST_VARIANCE)
        gains = -np.log1p(-shares) / 2
        losses = np.log1p(expected.by_dropping / left[:, None]) / 2
        full = (np.log(2 * math.pi * left) + 1) / 2 + np.log(self._design.scales[own])
        return [Considered(float(loss), *changes) for loss, *changes in zip(full, gains, losses, strict=True)]

    def _least_squares(self, nodes: np.ndarray, is_in: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return coefficients and variances left, of standardized nodes."""
        moments = self._data.moments
        own = np.array([self._design.groups[node][0] for node in nodes])
        both = is_in[:, :, None] & is_in[:, None]
        inside = (
            np.where(both, moments, 0.0) + np.eye(len(moments)) * np.where(is_in, _COLLINEAR, 1.0)[:, None]
        )
        slopes = np.linalg.solve(inside, (moments[own] * is_in)[..., None])[..., 0]
        left = moments[own, own] - (slopes * moments[own]).sum(1)
        return slopes, np.maximum(left, _LEAST_VARIANCE)
