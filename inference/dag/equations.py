"""Structural equations: how a node comes about from its parents."""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int


@runtime_checkable
class Equation(Protocol):
    """How a node comes about from its parents."""

    @property
    def node(self) -> int:
        """Its number."""
        ...

    @property
    def parents(self) -> Int[np.ndarray, " num_parents"]:
        """Their numbers, ascending."""
        ...

    @property
    def weights(self) -> Float[np.ndarray, " num_parents"]:
        """One for each parent: the coefficient, or the norm of a group of coefficients."""
        ...

    @property
    def noise_variance(self) -> float:
        """Variance of the additive noise; NaN where there is none."""
        ...

    def mean(self, values: Float[np.ndarray, "num_rows num_nodes"]) -> Float[np.ndarray, " num_rows"]:
        """Return the expectation of the node, or its likeliest code if it is categorical.

        Args:
            values: Of all nodes; only those of the parents are read.
        """
        ...

    def draw(
        self, rng: np.random.Generator, values: Float[np.ndarray, "num_rows num_nodes"]
    ) -> Float[np.ndarray, " num_rows"]:
        """Return random values of the node, given those of its parents."""
        ...


def drawn_noise(
    rng: np.random.Generator,
    num_rows: int,
    variance: float,
    residuals: Float[np.ndarray, " num_seen"] | None = None,
) -> Float[np.ndarray, " num_rows"]:
    """Return additive noise: Gaussian, or drawn from residuals where there are any."""
    if residuals is None:
        return np.sqrt(variance) * rng.normal(size=num_rows)
    return rng.choice(residuals, num_rows)


class LinearEquation(NamedTuple):
    """A weighted sum of the parents, and noise.

    Attributes:
        node: Its number.
        parents: Their numbers, ascending.
        weights: Their coefficients.
        noise_variance: Of the noise.
        intercept: What is added to the sum.
        residuals: The noise is drawn from these; None for Gaussian noise.
    """

    node: int
    parents: Int[np.ndarray, " num_parents"]
    weights: Float[np.ndarray, " num_parents"]
    noise_variance: float
    intercept: float
    residuals: Float[np.ndarray, " num_seen"] | None = None

    def mean(self, values: Float[np.ndarray, "num_rows num_nodes"]) -> Float[np.ndarray, " num_rows"]:
        """Return the expectation of the node."""
        return self.intercept + values[:, self.parents] @ self.weights

    def draw(
        self, rng: np.random.Generator, values: Float[np.ndarray, "num_rows num_nodes"]
    ) -> Float[np.ndarray, " num_rows"]:
        """Return random values of the node."""
        return self.mean(values) + drawn_noise(rng, len(values), self.noise_variance, self.residuals)
