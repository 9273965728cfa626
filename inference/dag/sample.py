"""What a graph is learned from: the moments of a table, and its rows if they are there."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

_NEAR_SINGULAR = 1e-12  # least eigenvalue of the correlation matrix: data of equal noises reach 1e-9
_COLLINEAR_RIDGE, _FEW_ROWS_RIDGE = 1e-9, 0.1


class Sample(NamedTuple):
    """A table of numbers, or what is known of it.

    Attributes:
        covariance: Of the columns, with a ridge where it could not be factorized else; divisor `num_rows`.
        means: Of the columns.
        num_rows: How many rows there are.
        values: The rows; None where only their moments are known.
        kinds: Of the columns: `"continuous"`, `"binary"` or `"categorical"`.
        ridge: Share of the variances that was added to them.
    """

    covariance: Float[np.ndarray, "num_nodes num_nodes"]
    means: Float[np.ndarray, " num_nodes"]
    num_rows: int
    values: Float[np.ndarray, "num_rows num_nodes"] | None
    kinds: tuple[str, ...]
    ridge: float = 0.0

    @property
    def num_nodes(self) -> int:
        """How many columns there are."""
        return len(self.means)

    @property
    def ridge_sentence(self) -> str:
        """What was done to the covariance, and why; empty if nothing was."""
        if not self.ridge:
            return ""
        few = f"There are {self.num_rows} rows for {self.num_nodes} columns"
        why = few if self.num_rows <= self.num_nodes else "Some columns are linear functions of others"
        return (
            f"{why}: a ridge of {self.ridge:g} of each variance was added, and what is found depends on it."
        )


def sample_of_rows(values: Float[np.ndarray, "num_rows num_nodes"], kinds: tuple[str, ...]) -> Sample:
    """Return a sample of a table."""
    means = values.mean(0)
    centred = values - means
    covariance = centred.T @ centred / len(values)
    return sample_of_moments(covariance, means, len(values), kinds)._replace(values=values)


def sample_of_moments(
    covariance: Float[np.ndarray, "num_nodes num_nodes"],
    means: Float[np.ndarray, " num_nodes"],
    num_rows: int,
    kinds: tuple[str, ...],
) -> Sample:
    """Return a sample of which no rows are there; see `Sample`."""
    ridge = _ridge(covariance, num_rows)
    return Sample(with_ridge(covariance, ridge), means, num_rows, None, kinds, ridge)


def with_ridge(
    covariance: Float[np.ndarray, "num_nodes num_nodes"], share: float
) -> Float[np.ndarray, "num_nodes num_nodes"]:
    """Return a covariance with a share of the variances added to them."""
    return covariance + share * np.diag(np.diagonal(covariance))


def _ridge(covariance: np.ndarray, num_rows: int) -> float:
    if num_rows <= len(covariance):
        return _FEW_ROWS_RIDGE
    scales = np.sqrt(np.diagonal(covariance))
    is_regular = np.linalg.eigvalsh(covariance / np.outer(scales, scales))[0] > _NEAR_SINGULAR
    return 0.0 if is_regular else _COLLINEAR_RIDGE
