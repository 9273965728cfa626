"""The equation of a node that is a small network of its parents, and noise."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from qbs.inference.dag.equations import drawn_noise


class NetworkEquation(NamedTuple):
    r"""A network with one layer of hidden units, and noise.

    The node is \(c + w' \tanh(A' x + b)\) of its parents \(x\), in the units of the data, plus noise.

    Attributes:
        node: Its number.
        parents: Their numbers, ascending.
        weights: The norm of the row of \(A\) of each parent.
        noise_variance: Of the noise.
        first: \(A\).
        biases: \(b\).
        second: \(w\).
        intercept: \(c\).
        residuals: The noise is drawn from these; None for Gaussian noise.
    """

    node: int
    parents: Int[np.ndarray, " num_parents"]
    weights: Float[np.ndarray, " num_parents"]
    noise_variance: float
    first: Float[np.ndarray, "num_parents num_hidden"]
    biases: Float[np.ndarray, " num_hidden"]
    second: Float[np.ndarray, " num_hidden"]
    intercept: float
    residuals: Float[np.ndarray, " num_seen"] | None = None

    def mean(self, values: Float[np.ndarray, "num_rows num_nodes"]) -> Float[np.ndarray, " num_rows"]:
        """Return the expectation of the node."""
        hidden = np.tanh(values[:, self.parents] @ self.first + self.biases)
        return self.intercept + hidden @ self.second

    def draw(
        self, rng: np.random.Generator, values: Float[np.ndarray, "num_rows num_nodes"]
    ) -> Float[np.ndarray, " num_rows"]:
        """Return random values of the node."""
        return self.mean(values) + drawn_noise(rng, len(values), self.noise_variance, self.residuals)
