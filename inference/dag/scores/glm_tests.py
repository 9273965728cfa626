"""What adding or dropping groups of regressors should gain or lose, from the fit of a regression as it is."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

_FLOOR = 1e-9  # of a second derivative: less is left of a regressor that others tell all about


class Expected(NamedTuple):
    """Quadratic forms: twice the loss that is expected to go away, or to come.

    Attributes:
        by_adding: Score tests of the groups; of no meaning for those that are in.
        by_dropping: Wald tests of the groups; of no meaning for those that are not.
    """

    by_adding: Float[np.ndarray, "batch num_groups"]
    by_dropping: Float[np.ndarray, "batch num_groups"]


def expected_changes(
    hessians: Float[np.ndarray, "batch size size"],
    gradients: Float[np.ndarray, "batch size"],
    coefficients: Float[np.ndarray, "batch size"],
    is_in: Bool[np.ndarray, "batch size"],
    groups: Sequence[Int[np.ndarray, " _"]],
) -> Expected:
    """Return score tests and Wald tests of groups of coefficients.

    Args:
        hessians: Second derivatives of the loss in all coefficients, zero or not.
        gradients: Its derivatives.
        coefficients: Where the loss is least in those that are in; zero for the others.
        is_in: Which these are.
        groups: The coefficients of each group.
    """
    size, batch = hessians.shape[1], len(hessians)
    both = is_in[:, :, None] & is_in[:, None]
    diagonals = np.diagonal(hessians, axis1=1, axis2=2)
    floors = _FLOOR * np.maximum(diagonals, 1e-12)
    inside = np.where(both, hessians, 0.0) + np.eye(size) * np.where(is_in, floors, 1.0)[:, None]
    inverses = np.linalg.inv(inside)
    rows = hessians * is_in[:, :, None]
    left = hessians - rows.swapaxes(1, 2) @ (inverses @ rows)
    adding, dropping = np.zeros((batch, len(groups))), np.zeros((batch, len(groups)))
    lengths = np.array([len(group) for group in groups])
    for length in np.unique(lengths):
        which = np.flatnonzero(lengths == length)
        at = np.array([group for group in groups if len(group) == length])  # groups by members
        first, second = at[:, :, None], at[:, None, :]
        ridges = np.eye(length) * floors[:, at][..., None]
        adding[:, which] = _forms(left[:, first, second] + 2 * ridges, gradients[:, at])
        inner = np.linalg.solve(inverses[:, first, second], coefficients[:, at][..., None])[..., 0]
        dropping[:, which] = (inner * coefficients[:, at]).sum(-1)
    return Expected(np.maximum(adding, 0.0), np.maximum(dropping, 0.0))


def _forms(matrices: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    if matrices.shape[-1] == 1:
        return vectors[..., 0] ** 2 / np.maximum(matrices[..., 0, 0], 1e-300)
    return (np.linalg.solve(matrices, vectors[..., None])[..., 0] * vectors).sum(-1)
