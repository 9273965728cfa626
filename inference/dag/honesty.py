"""What the data say against the assumption that orients edges: that all noises have the same variance."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

UNEQUAL = 0.2  # coefficient of variation of the residual variances from which fits are bad
_STANDARD = 0.01  # relative spread of variances below which the columns have been put on one scale


class Honesty(NamedTuple):
    """How far to trust the directions of arrows.

    Attributes:
        residual_variation: Coefficient of variation of the residual variances; small where they are equal.
        is_standardized: Whether all columns have the same variance, so that units have been taken away.
        varsortability: Share of directed paths along which the variance grows; near 1, sorting by variance
            alone would orient them.
        r2_sortability: The same for the share of the variance that the other columns explain.
        same_as_variance_order: Share of the arrows that sorting by variance orients the same way.
        same_as_top_down: The same for the top-down order, the start.
        margin: What the best move that turns an arrow costs, in nats of the likelihood of equal variances: of
            those looked at, the next best order that says something else. NaN for other scores.

    References:
        Reisach, Seiler & Weichwald (2021), "Beware of the simulated DAG!"; Reisach, Tami, Seiler, Chambaz &
        Weichwald (2023), "A scale-invariant sorting criterion to find a causal order".
    """

    residual_variation: float
    is_standardized: bool
    varsortability: float
    r2_sortability: float
    same_as_variance_order: float
    same_as_top_down: float
    margin: float = float("nan")


def is_standardized(covariance: Float[np.ndarray, "num_nodes num_nodes"]) -> bool:
    """Return whether all variances are the same, as of columns that were standardized."""
    variances = np.diagonal(covariance)
    return len(variances) > 1 and bool(np.ptp(variances) <= _STANDARD * variances.mean())


def variation(residual_variances: Float[np.ndarray, " num_nodes"]) -> float:
    """Return the coefficient of variation of residual variances; zero for one."""
    if len(residual_variances) < 2:
        return 0.0
    return float(residual_variances.std(ddof=1) / residual_variances.mean())


def sortability(
    is_edge: Bool[np.ndarray, "num_nodes num_nodes"], values: Float[np.ndarray, " num_nodes"]
) -> float:
    """Return the share of directed paths, counted for each length, whose end has the larger value.

    Ties count a half. NaN for a graph without edges.
    """
    paths, num_sorted, num_all = is_edge.astype(float), 0.0, 0.0
    rises = np.sign(values[None, :] - values[:, None])
    rises = np.where(np.isclose(values[None, :], values[:, None], rtol=1e-9), 0.0, rises)
    for _ in range(len(values)):
        there = paths > 0
        if not there.any():
            break
        num_all += there.sum()
        num_sorted += (0.5 * (1 + rises))[there].sum()
        paths = np.minimum(paths @ is_edge, 1.0)
    return float(num_sorted / num_all) if num_all else float("nan")


def explained(covariance: Float[np.ndarray, "num_nodes num_nodes"]) -> Float[np.ndarray, " num_nodes"]:
    """Return the share of the variance of each node that all others explain."""
    precision = np.linalg.pinv(covariance, hermitian=True)
    return 1 - 1 / np.maximum(np.diagonal(precision) * np.diagonal(covariance), 1.0)


def agreement(
    is_edge: Bool[np.ndarray, "num_nodes num_nodes"], order: Int[np.ndarray, " num_nodes"]
) -> float:
    """Return the share of edges that go forward along an order; NaN without edges."""
    places = np.argsort(order)
    causes, effects = np.nonzero(is_edge)
    return float(np.mean(places[causes] < places[effects])) if len(causes) else float("nan")


def honesty(
    covariance: Float[np.ndarray, "num_nodes num_nodes"],
    is_edge: Bool[np.ndarray, "num_nodes num_nodes"],
    residual_variances: Float[np.ndarray, " num_nodes"],
    top_down: Int[np.ndarray, " num_nodes"],
) -> Honesty:
    """Return all of what speaks for or against the directions."""
    variances = np.diagonal(covariance)
    return Honesty(
        variation(residual_variances),
        is_standardized(covariance),
        sortability(is_edge, variances),
        sortability(is_edge, explained(covariance)),
        agreement(is_edge, np.argsort(variances, kind="stable")),
        agreement(is_edge, top_down),
    )


def doubts(found: Honesty) -> list[str]:
    """Return what a reader must know of a graph by equal variances, as sentences."""
    said = []
    if found.is_standardized:
        said.append(
            "All columns have the same variance, as after standardizing: the equal-variance score cannot "
            "tell causes from effects then, and directions mean nothing. Use the columns in their own units."
        )
    if found.residual_variation > UNEQUAL:
        said.append(
            f"The residual variances differ (coefficient of variation {found.residual_variation:.2f}; up to "
            f"{UNEQUAL} is in order): the noises are not of equal variance in these units, so the directions "
            "of arrows may be wrong; cpdag_ has those that do not rest on it."
        )
    return said
