"""Graphs of resampled data: how often each edge comes back."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from jaxtyping import Float, Int

from qbs.errors import DataError
from qbs.inference.dag.equivalence import completed_graph
from qbs.inference.dag.learning import Settings, learn_graph
from qbs.inference.dag.orders import OF_MOMENTS
from qbs.inference.dag.rules import Rules
from qbs.inference.dag.sample import Sample, sample_of_rows, with_ridge

# Covariance, with divisor the number of rows, and that number.
Moments = tuple[Float[np.ndarray, "num_nodes num_nodes"], int]
Draw = Callable[[np.random.Generator], Moments]

_MOST_DRAWS = 100
_LEAST_RIDGE = 1e-12  # few rows can leave a column without two different values


def edges_of_replicates(
    sample: Sample,
    rules: Rules,
    settings: Settings,
    num_replicates: int,
    *,
    start: Int[np.ndarray, " num_nodes"] | None = None,
    draw: Draw | None = None,
    seed: int = 0,
) -> Iterator[Float[np.ndarray, "num_nodes num_nodes"]]:
    """Yield, for one replicate after the other, the share that each edge has in it: 1, or less, or 0.

    Args:
        sample: The table, or its moments.
        rules: What all graphs keep.
        settings: How they are learned; without restarts.
        num_replicates: How many.
        start: The order at which all searches start; the score's own by default.
        draw: Draws the moments of a replicate; by default, of rows drawn with replacement.
        seed: Of the random numbers.
    """
    rng = np.random.default_rng(seed)
    draw = partial(_moments_of_rows, sample) if draw is None else draw
    for _ in range(num_replicates):
        is_moments = settings.score in OF_MOMENTS
        own = _resampled_moments(sample, draw(rng)) if is_moments else _resampled_rows(sample, rng)
        yield _learned(own, rules, settings, start)


def _moments_of_rows(sample: Sample, rng: np.random.Generator) -> Moments:
    values, num_rows = sample.values, sample.num_rows
    if values is None:
        raise ValueError("bootstraps need the rows of the table, or a way to draw moments")
    counts = np.bincount(rng.integers(0, num_rows, num_rows), minlength=num_rows)
    centred = values - counts @ values / num_rows
    return centred.T @ (counts[:, None] * centred) / num_rows, num_rows


def _resampled_rows(sample: Sample, rng: np.random.Generator) -> Sample:
    """Return rows drawn with replacement, in which no column is constant."""
    values = sample.values
    assert values is not None  # or there would be no score
    for _ in range(_MOST_DRAWS):
        rows = values[rng.integers(0, len(values), len(values))]
        if np.all(np.ptp(rows, axis=0) > 0):
            return sample_of_rows(rows, sample.kinds)
    raise DataError(
        "bootstraps: some column has so few values unlike the others that resampled rows have none of them; "
        "leave it out, or set bootstraps=0"
    )


def _resampled_moments(sample: Sample, moments: Moments) -> Sample:
    covariance, num_rows = moments
    least = _LEAST_RIDGE * np.diag(np.diagonal(sample.covariance))
    ridged = with_ridge(covariance, sample.ridge) + least
    return sample._replace(covariance=ridged, num_rows=num_rows, values=None)


def _learned(sample: Sample, rules: Rules, settings: Settings, start: np.ndarray | None) -> np.ndarray:
    is_edge = learn_graph(sample, rules, settings, start=start).is_edge
    if settings.score != "bic":
        return is_edge.astype(float)
    # A direction that the score does not tell counts half for each.
    is_possible = completed_graph(is_edge, is_known=rules.known_arrows)
    return is_possible / (1.0 + (is_possible & is_possible.T))
