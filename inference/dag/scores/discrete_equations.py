"""Equations of nodes that take few values, or that have parents that do."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from qbs.inference.dag.equations import drawn_noise


def regressors(
    values: Float[np.ndarray, "num_rows num_nodes"],
    parents: Int[np.ndarray, " num_parents"],
    num_levels: Int[np.ndarray, " num_parents"],
) -> Float[np.ndarray, "num_rows num_regressors"]:
    """Return what coefficients are of: the parents, with a column for each code but the first of categories.

    Args:
        values: Of all nodes.
        parents: Their numbers.
        num_levels: Of each parent; 0 for one that is a number, or 0 and 1.
    """
    columns = [np.empty((len(values), 0))]
    for parent, count in zip(parents, num_levels, strict=True):
        codes = np.arange(1, count)
        columns.append(values[:, [parent]] == codes if count else values[:, [parent]])
    return np.concatenate(columns, axis=1)


class LogisticEquation(NamedTuple):
    """A node of 0 and 1, whose log odds are a weighted sum.

    Attributes:
        node: Its number.
        parents: Their numbers, ascending.
        weights: Their coefficients; the norm of those of a categorical parent.
        intercept: Log odds where all regressors are zero.
        coefficients: Of the regressors.
        num_levels: Of each parent, see `regressors`.
    """

    node: int
    parents: Int[np.ndarray, " num_parents"]
    weights: Float[np.ndarray, " num_parents"]
    intercept: float
    coefficients: Float[np.ndarray, " num_regressors"]
    num_levels: Int[np.ndarray, " num_parents"]

    @property
    def noise_variance(self) -> float:
        """NaN: the noise is not additive."""
        return float("nan")

    def mean(self, values: Float[np.ndarray, "num_rows num_nodes"]) -> Float[np.ndarray, " num_rows"]:
        """Return the chance of a one."""
        log_odds = self.intercept + regressors(values, self.parents, self.num_levels) @ self.coefficients
        return np.exp(-np.logaddexp(0.0, -log_odds))

    def draw(
        self, rng: np.random.Generator, values: Float[np.ndarray, "num_rows num_nodes"]
    ) -> Float[np.ndarray, " num_rows"]:
        """Return random zeros and ones."""
        return (rng.uniform(size=len(values)) < self.mean(values)).astype(float)


class CategoricalEquation(NamedTuple):
    """A node of codes 0, 1, ..., whose log odds against code 0 are weighted sums.

    Attributes:
        node: Its number.
        parents: Their numbers, ascending.
        weights: The norm of the coefficients of each.
        intercepts: Log odds where all regressors are zero.
        coefficients: Of the regressors, for each code but the first.
        num_levels: Of each parent, see `regressors`.
    """

    node: int
    parents: Int[np.ndarray, " num_parents"]
    weights: Float[np.ndarray, " num_parents"]
    intercepts: Float[np.ndarray, " num_logits"]
    coefficients: Float[np.ndarray, "num_logits num_regressors"]
    num_levels: Int[np.ndarray, " num_parents"]

    @property
    def noise_variance(self) -> float:
        """NaN: codes are not numbers."""
        return float("nan")

    def chances(
        self, values: Float[np.ndarray, "num_rows num_nodes"]
    ) -> Float[np.ndarray, "num_rows num_codes"]:
        """Return the chance of each code."""
        log_odds = self.intercepts + regressors(values, self.parents, self.num_levels) @ self.coefficients.T
        log_odds = np.pad(log_odds, ((0, 0), (1, 0)))
        odds = np.exp(log_odds - log_odds.max(1, keepdims=True))
        return odds / odds.sum(1, keepdims=True)

    def mean(self, values: Float[np.ndarray, "num_rows num_nodes"]) -> Float[np.ndarray, " num_rows"]:
        """Return the likeliest code."""
        return self.chances(values).argmax(1).astype(float)

    def draw(
        self, rng: np.random.Generator, values: Float[np.ndarray, "num_rows num_nodes"]
    ) -> Float[np.ndarray, " num_rows"]:
        """Return random codes."""
        upper = np.cumsum(self.chances(values), axis=1)[:, :-1]
        return (rng.uniform(size=(len(values), 1)) >= upper).sum(1).astype(float)


class GroupedLinearEquation(NamedTuple):
    """A weighted sum with parents of which some are categorical, and Gaussian noise.

    Attributes:
        node: Its number.
        parents: Their numbers, ascending.
        weights: Their coefficients; the norm of those of a categorical parent.
        noise_variance: Of the noise.
        intercept: The sum where all regressors are zero.
        coefficients: Of the regressors.
        num_levels: Of each parent, see `regressors`.
    """

    node: int
    parents: Int[np.ndarray, " num_parents"]
    weights: Float[np.ndarray, " num_parents"]
    noise_variance: float
    intercept: float
    coefficients: Float[np.ndarray, " num_regressors"]
    num_levels: Int[np.ndarray, " num_parents"]

    def mean(self, values: Float[np.ndarray, "num_rows num_nodes"]) -> Float[np.ndarray, " num_rows"]:
        """Return the expectation of the node."""
        return self.intercept + regressors(values, self.parents, self.num_levels) @ self.coefficients

    def draw(
        self, rng: np.random.Generator, values: Float[np.ndarray, "num_rows num_nodes"]
    ) -> Float[np.ndarray, " num_rows"]:
        """Return random values of the node."""
        return self.mean(values) + drawn_noise(rng, len(values), self.noise_variance)
