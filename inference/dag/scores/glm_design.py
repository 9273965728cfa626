"""The columns of a table as regressors: numbers on one scale, and dummies for categories."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

KINDS = ("continuous", "binary", "categorical")

_FEW_ALIKE = 0.8  # of the rows: with more that differ, it does not pay to count those alike


class Design(NamedTuple):
    """Regressors, and where those of each node are.

    Attributes:
        columns: The first is one everywhere. Continuous nodes have mean zero and standard deviation one; a
            categorical node has a column of zeros and ones for each code but the first. The rows that differ,
            and rows of zeros that make up a round number.
        row_weights: The share of the data that is like each row.
        groups: The numbers of the columns of each node.
        centres: What was taken from each column.
        scales: What each column was then divided by.
        num_rows: Of the data.
    """

    columns: Float[np.ndarray, "num_columns num_distinct"]
    row_weights: Float[np.ndarray, " num_distinct"]
    groups: tuple[Int[np.ndarray, " _"], ...]
    centres: Float[np.ndarray, " num_columns"]
    scales: Float[np.ndarray, " num_columns"]
    num_rows: int

    @property
    def moments(self) -> Float[np.ndarray, "num_columns num_columns"]:
        """The mean products of columns."""
        return (self.columns * self.row_weights) @ self.columns.T


def design_of(
    values: Float[np.ndarray, "num_rows num_nodes"], kinds: Sequence[str], *, caller: str
) -> Design:
    """Return the regressors of a table.

    Args:
        values: Of the nodes: any numbers, or 0 and 1, or codes 0, 1, ...
        kinds: Of each node: `"continuous"`, `"binary"` or `"categorical"`.
        caller: Whose name errors carry.

    Raises:
        ValueError: If a kind is not known, or a column does not hold what its kind says.
    """
    values = np.asarray(values, float)
    if values.ndim != 2 or len(values) < 2:
        raise ValueError(f"{caller}: values must be two rows or more by columns, not {values.shape}")
    if len(kinds) != values.shape[1]:
        raise ValueError(f"{caller}: {len(kinds)} kinds for {values.shape[1]} columns")
    for node, kind in enumerate(kinds):
        _check(values[:, node], kind, f"{caller}: column {node}")
    num_rows, row_weights = len(values), np.full(len(values), 1 / len(values))
    if "continuous" not in kinds:
        distinct, counts = np.unique(values, axis=0, return_counts=True)
        if len(distinct) < _FEW_ALIKE * num_rows:
            values, row_weights = distinct, counts / num_rows
    columns, groups = [np.ones(len(values))], []
    centres, scales = [0.0], [1.0]
    for column, kind in zip(values.T, kinds, strict=True):
        start = len(columns)
        if kind == "continuous":
            centre, scale = row_weights @ column, float(np.sqrt(row_weights @ (column - column.mean()) ** 2))
            scale = scale if scale > 1e-12 * abs(centre) else 1.0  # a constant one
            columns.append((column - centre) / scale)
            centres.append(centre)
            scales.append(scale)
        else:
            codes = [1] if kind == "binary" else range(1, max(int(column.max()) + 1, 2))
            columns += [(column == code).astype(float) for code in codes]
            centres += [0.0] * len(codes)
            scales += [1.0] * len(codes)
        groups.append(np.arange(start, len(columns)))
    num_more = round_number(len(values)) - len(values)
    return Design(
        np.pad(np.array(columns), ((0, 0), (0, num_more))),
        np.pad(row_weights, (0, num_more)),
        tuple(groups),
        np.array(centres),
        np.array(scales),
        num_rows,
    )


def round_number(count: int) -> int:
    """Return the next number of few digits in base two: what is compiled serves many tables."""
    unit = 1 << max(count.bit_length() - 3, 3)
    return -(-count // unit) * unit


def _check(column: np.ndarray, kind: str, where: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"{where}: the kind must be {', '.join(KINDS)}, not {kind!r}")
    if not np.isfinite(column).all():
        raise ValueError(f"{where} must hold finite numbers")
    if kind == "binary" and not ((column == 0) | (column == 1)).all():
        strange = column[(column != 0) & (column != 1)][0]
        raise ValueError(f"{where} must hold 0 and 1 only, not {strange:g}")
    if kind == "categorical" and ((column < 0) | (column != np.round(column))).any():
        strange = column[(column < 0) | (column != np.round(column))][0]
        raise ValueError(f"{where} must hold codes 0, 1, ..., not {strange:g}")
