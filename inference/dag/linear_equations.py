"""The linear equations of a graph along an order, with the parents of each node that are worth it."""

import numpy as np
from jaxtyping import Bool, Float, Int

from qbs.inference.dag.adaptive_lasso import lasso_parents
from qbs.inference.dag.equations import LinearEquation
from qbs.inference.dag.parents import choose_all_parents, regress
from qbs.inference.dag.rules import Rules
from qbs.inference.dag.sample import Sample
from qbs.inference.dag.scores.score import Pruning


def linear_equations(
    sample: Sample,
    order: Int[np.ndarray, " num_nodes"],
    rules: Rules,
    pruning: Pruning,
    *,
    with_residuals: bool = False,
) -> tuple[LinearEquation, ...]:
    """Return the equation of each node, in the order of their numbers.

    Args:
        sample: The moments; the rows as well, for residuals.
        order: Causes first.
        rules: Required edges stay, forbidden ones are not there.
        pruning: How parents are chosen.
        with_residuals: Whether noises are to be drawn from residuals, not from a Gaussian.
    """
    covariance, means, candidates = sample.covariance, sample.means, rules.candidates(order)
    required = rules.required.T & candidates
    if pruning.kind == "ebic":
        chosen = choose_all_parents(
            covariance, np.arange(len(order)), candidates, required, sample.num_rows, gamma=pruning.gamma
        )
        found = [
            (np.flatnonzero(is_parent), weights[is_parent], float(variance))
            for weights, is_parent, variance, _ in zip(*chosen, strict=True)
        ]
    else:
        found = [
            _regression(sample, node, candidates[node], required[node], pruning) for node in range(len(order))
        ]
    equations = []
    for node, (parents, weights, variance) in enumerate(found):
        intercept, residuals = float(means[node] - means[parents] @ weights), None
        if with_residuals and sample.values is not None:
            residuals = sample.values[:, node] - intercept - sample.values[:, parents] @ weights
        equations.append(LinearEquation(node, parents, weights, variance, intercept, residuals))
    return tuple(equations)


def _regression(
    sample: Sample,
    node: int,
    candidates: Bool[np.ndarray, " num_nodes"],
    required: Bool[np.ndarray, " num_nodes"],
    pruning: Pruning,
) -> tuple[Int[np.ndarray, " num_parents"], Float[np.ndarray, " num_parents"], float]:
    covariance = sample.covariance
    if pruning.kind == "adaptive-lasso":
        found = lasso_parents(
            covariance, node, candidates, sample.num_rows, criterion_gamma=pruning.gamma, required=required
        )
        return found.parents, found.weights, found.variance
    parents = np.flatnonzero(candidates)
    weights, variance = regress(covariance, node, parents)
    if pruning.kind == "threshold":
        parents = parents[(np.abs(weights) > pruning.threshold) | required[parents]]
        weights, variance = regress(covariance, node, parents)
    return parents, weights, variance
