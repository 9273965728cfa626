"""What a table must be for its columns to become nodes of a graph, and the sentences that say what is not."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from qbs.errors import DataError

_MOST_NAMED = 20  # in one sentence
_NARROWEST, _WIDEST = 1e-70, 1e70  # of values with a variance that can be reckoned with
_SAME = 1 - 1e-12  # a correlation beyond it is that of a copy


def distinct_names(names: Sequence[Any]) -> tuple[str, ...]:
    """Return names as text.

    Raises:
        ValueError: If two are the same.
    """
    texts = tuple(str(name) for name in names)
    twice = [text for text, count in Counter(texts).items() if count > 1]
    if twice:
        raise DataError(f"column names must differ, also as text: {_listed(twice)} more than once")
    return texts


def check_shape(num_rows: int, num_columns: int) -> None:
    """Raise where there is nothing to learn from; in words that scikit-learn's checks know."""
    if num_columns == 0:
        raise DataError(f"no columns: 0 feature(s) (shape=({num_rows}, 0)) while a minimum of 1 is required.")
    if num_rows < 2:
        count = "one row (1 sample)" if num_rows else "no rows (0 samples)"
        raise DataError(f"{count}: nothing can be learnt from fewer than two")


def check_refused(refused: Mapping[str, str]) -> None:
    """Raise where columns are of a type that is no number."""
    if not refused:
        return
    text = [name for name, dtype in refused.items() if dtype == "text"]
    others = {name: dtype for name, dtype in refused.items() if dtype != "text"}
    if not text and set(others.values()) == {"complex"}:
        raise DataError(f"Complex data not supported: {_columns(others)}: give real and imaginary parts")
    parts = []
    if text:
        parts.append(
            f"{_columns(text)} {'hold' if len(text) > 1 else 'holds'} text: encode as categories "
            "(pandas: .astype('category'), polars: .cast(pl.Categorical)) or drop"
        )
    if others:
        types = ", ".join(
            f"{name!r} is of type {dtype}" for name, dtype in list(others.items())[:_MOST_NAMED]
        )
        parts.append(f"{types}{_more(others)}: not numbers; make them numbers, or drop")
    raise TypeError("; ".join(parts))


def check_finite(num_infinite: Mapping[str, int]) -> None:
    """Raise where values are infinite."""
    if num_infinite:
        raise DataError(f"infinite values, {counted(num_infinite)}: they have no variance; mend or drop them")


def check_present(num_missing: Mapping[str, int]) -> None:
    """Raise where values are missing."""
    if any(num_missing.values()):
        raise DataError(f"missing values, {counted(num_missing)}; missing='drop' leaves their rows out")


def check_rows_left(num_left: int, num_rows: int, num_missing: Mapping[str, int]) -> None:
    """Raise where too few rows are complete."""
    if num_left < 2:
        raise DataError(
            f"{num_left} of {num_rows} rows have no missing value: {counted(num_missing)}. "
            "Drop the columns that miss most, or fill them in"
        )


def check_varying(kept: Sequence[object], given: Sequence[str]) -> None:
    """Raise where no column is left."""
    if not kept:
        raise DataError(f"nothing varies in {_columns(given)}: one value each, or none")


def check_spread(spreads: Mapping[str, float]) -> None:
    """Raise where squares, or products of squares, are too large or too small to be numbers."""
    extreme = [name for name, spread in spreads.items() if not _NARROWEST < spread < _WIDEST]
    if extreme:
        raise DataError(
            f"numbers too far apart, or too close, to square in {_columns(extreme)}: change the unit"
        )


def index_sentence(names: Sequence[str]) -> list[str]:
    """Say which columns are the index of a pandas data frame."""
    return [f"{_columns(names)}: the index that pandas wrote, left out of the graph"] if names else []


def left_out_sentences(dropped: Sequence[str]) -> list[str]:
    """Say which columns do not vary."""
    if not dropped:
        return []
    does, they = ("does not vary and is", "it") if len(dropped) == 1 else ("do not vary and are", "they")
    return [
        f"{_columns(dropped)} {does} left out of the graph: as far as these data tell, {they} can neither "
        "cause nor be caused"
    ]


def filled_sentence(num_missing: Mapping[str, int]) -> str:
    """Say how many values are filled in because they are missing."""
    return (
        f"missing values are filled in, {counted(num_missing)}, with the column's mean or its most frequent "
        "level: what depends on them looks weaker than it is"
    )


def missing_sentence(num_dropped: int, num_rows: int, num_missing: Mapping[str, int]) -> str:
    """Say how many rows are left out because a value is missing."""
    return f"{num_dropped} of {num_rows} rows left out, as values are missing: {counted(num_missing)}"


def shape_sentences(
    names: Sequence[str], num_rows: int, correlation: Float[np.ndarray, "num_nodes num_nodes"]
) -> list[str]:
    """Say which columns say the same, each but once, and that the rows are few."""
    said = []
    if num_rows > 2:  # any two columns of two rows are on a line
        is_same = np.triu(np.abs(correlation) > _SAME, 1)
        said = [
            f"columns {names[int(np.argmax(is_same[:, at]))]!r} and {names[int(at)]!r} say the same (one a "
            "copy of the other, or a straight line of it): no data tell their arrows apart"
            for at in np.flatnonzero(is_same.any(0))
        ]
    if num_rows <= len(names):
        said.append(
            f"{num_rows} rows for {len(names)} columns: the covariance is singular, most arrows are guesses"
        )
    return said


def counted(counts: Mapping[str, int]) -> str:
    """Return counts with the names of the columns, the largest first."""
    some = sorted(((name, count) for name, count in counts.items() if count), key=lambda pair: -pair[1])
    return ", ".join(f"{count} in {name!r}" for name, count in some[:_MOST_NAMED]) + _more(some)


def _columns(names: Iterable[str]) -> str:
    names = list(names)
    return f"column{'s' * (len(names) > 1)} {_listed(names)}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_MOST_NAMED])) + _more(names)


def _more(items: Any) -> str:
    return f" and {len(items) - _MOST_NAMED} more" if len(items) > _MOST_NAMED else ""
