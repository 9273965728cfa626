"""Points of the unit cube where the log likelihood was computed."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

# From points, shape (n, dim), to log likelihoods, shape (n,).
Evaluate = Callable[[np.ndarray], np.ndarray]


class Known(NamedTuple):
    """All points so far, in the order in which the log likelihood was computed.

    Attributes:
        points: In the unit cube.
        log_likelihoods: There; `-inf` where parameters are impossible.
    """

    points: Float[np.ndarray, "num_points dim"]
    log_likelihoods: Float[np.ndarray, " num_points"]

    @property
    def top(self) -> float:
        """The greatest log likelihood."""
        return float(np.max(self.log_likelihoods))

    @property
    def best(self) -> tuple[np.ndarray, float]:
        """The point with the greatest log likelihood, and the latter."""
        return self.points[np.argmax(self.log_likelihoods)], self.top

    @property
    def possible(self) -> "Known":
        """Those that are possible."""
        is_possible = self.log_likelihoods > -np.inf
        return Known(self.points[is_possible], self.log_likelihoods[is_possible])

    def with_new(
        self, points: Float[np.ndarray, "num_new dim"], log_likelihoods: Float[np.ndarray, " num_new"]
    ) -> "Known":
        """Return these and new ones."""
        return Known(
            np.concatenate([self.points, points]), np.concatenate([self.log_likelihoods, log_likelihoods])
        )
