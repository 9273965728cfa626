"""The columns of a data frame as numbers, with what a person should know about them."""

import decimal
import numbers
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np
from jaxtyping import Bool, Float

from qbs.errors import DataError, MissingExtraError
from qbs.models.structural.column_checks import (
    check_finite,
    check_present,
    check_refused,
    check_rows_left,
    check_shape,
    check_spread,
    check_varying,
    distinct_names,
    filled_sentence,
    left_out_sentences,
    missing_sentence,
    shape_sentences,
)

Kind = Literal["continuous", "binary", "categorical"]
Missing = Literal["drop", "mean", "raise"]

_BLOCK = 2**22  # numbers worked on at a time
_FRAMES = "a pandas or polars data frame, an arrow table, a dict of columns or a 2-d array"


class Columns(NamedTuple):
    """A table of numbers.

    Attributes:
        names: Of the columns in `values`, as given and as text; `"x0"`, `"x1"`, ... for an array.
        values: In float64. A categorical or boolean column holds codes 0, 1, ...
        kinds: What each column holds.
        levels: What the codes of a categorical or boolean column stand for.
        dropped: Names of the columns that are left out.
        problems: Sentences for a person.
    """

    names: tuple[str, ...]
    values: Float[np.ndarray, "num_rows num_nodes"]
    kinds: tuple[Kind, ...]
    levels: dict[str, tuple]
    dropped: tuple[str, ...]
    problems: list[str]


def read_columns(frame: Any, *, missing: Missing = "drop", names: Sequence[str] | None = None) -> Columns:
    """Return the columns of a table as numbers.

    The same table gives the same numbers, to the last bit, whatever library holds it.

    * Numbers of any width, nullable or not, and decimals become float64; whole numbers beyond 2^53 are
      rounded. A column whose values are 0 and 1 is binary. A column of objects is read if all are numbers.
    * Booleans become 0 and 1, binary.
    * Categories become codes 0, 1, ... of the levels that occur: in their own order if they have one (pandas
      ordered, polars Enum, arrow ordered), else sorted. Two levels make the column binary.
    * A column with one value, or with none, is left out, before rows are looked at for missing values and
      once more after that.
    * A missing value is NaN or null. Infinite values are an error, never missing ones.
    * A column that is a copy of another, or a straight line of it, stays, with a sentence: the covariance is
      singular. So it is where there are no more rows than columns.

    At most two copies of the numbers are held besides the frame.

    Args:
        frame: A pandas or polars data frame, an arrow table, a dict from name to column, or an array of
            rows by columns.
        missing: What to do with missing values. `"drop"`: leave out the rows that have any. `"mean"`: put the
            mean of the column's other values, or their most frequent one if it is binary or categorical (the
            lower code of two as frequent). `"raise"`: an error.
        names: Of the columns, in place of their own.

    Raises:
        TypeError: If the frame is none of these, or a column holds text, dates, durations, lists or other
            things that are no numbers.
        ValueError: If there are no columns, names twice, fewer than two rows, before or after rows are left
            out, infinite values, complex numbers, numbers so far apart or so close that their squares are
            none, nothing but constant columns, or missing values and `missing="raise"`.
        MissingExtraError: If the frame is neither an array nor a dict and narwhals is not installed.
    """
    if missing not in get_args(Missing):
        raise ValueError(f"read_columns: missing must be 'drop', 'mean' or 'raise', not {missing!r}")
    own_names, num_rows, sources = opened_table(frame, "read_columns")
    if names is not None and len(names) != len(own_names):
        raise ValueError(f"read_columns: {len(names)} names for {len(own_names)} columns")
    given = distinct_names(own_names if names is None else names)
    check_shape(num_rows, len(given))
    values = np.empty((num_rows, len(given)), order="F")
    is_complete = np.ones(num_rows, bool)
    levels: dict[str, tuple] = {}
    refused: dict[str, str] = {}
    spreads: dict[str, float] = {}
    num_missing, num_infinite, varying = Counter[str](), Counter[str](), []
    for at, (name, source) in enumerate(zip(given, sources, strict=True)):
        reading = _read_array(source) if isinstance(source, np.ndarray) else _read_series(source)
        if reading.refused or reading.numbers is None:
            refused[name] = reading.refused
            continue
        values[:, at] = column = reading.numbers
        if reading.levels is not None:
            levels[name] = reading.levels
        is_missing = np.isnan(column)
        num_missing[name] = int(is_missing.sum())
        seen = column[~is_missing] if num_missing[name] else column
        low, high = (seen.min(), seen.max()) if len(seen) else (0.0, 0.0)
        if np.isinf(low) or np.isinf(high):
            num_infinite[name] = int(np.isinf(seen).sum())
        elif low < high:
            varying.append(at)
            spreads[name] = high / 2 - low / 2
            is_complete &= ~is_missing
    check_refused(refused)
    check_finite(num_infinite)
    check_spread(spreads)
    if missing == "raise":
        check_present(num_missing)
    num_missing = Counter({given[at]: num_missing[given[at]] for at in varying if num_missing[given[at]]})
    problems = []
    if num_missing and missing == "drop":
        problems.append(missing_sentence(num_rows - int(is_complete.sum()), num_rows, num_missing))
    elif num_missing:
        problems.append(filled_sentence(num_missing))
        is_complete[:] = True
    check_rows_left(int(is_complete.sum()), num_rows, num_missing)
    columns = _settled(given, values, varying, is_complete, levels)
    check_varying(columns.names, given)
    problems = left_out_sentences(columns.dropped) + problems
    problems += shape_sentences(columns.names, len(columns.values), _correlation(columns.values))
    return columns._replace(problems=problems)


def _settled(
    names: tuple[str, ...],
    values: Float[np.ndarray, "num_rows num_given"],
    varying: list[int],
    is_complete: Bool[np.ndarray, " num_rows"],
    levels: dict[str, tuple],
) -> Columns:
    """Return the complete rows of the columns that vary there, missing values filled in; reuses `values`."""
    every = bool(is_complete.all())
    into = values if every else np.empty((int(is_complete.sum()), len(varying)), order="F")
    kept: list[str] = []
    kinds: list[Kind] = []
    kept_levels: dict[str, tuple] = {}
    for at in varying:
        column, name = values[:, at] if every else values[is_complete, at], names[at]
        is_missing = np.isnan(column)
        any_missing = bool(is_missing.any())
        seen = column[~is_missing] if any_missing else column
        low, high = seen.min(), seen.max()
        if low == high:
            continue
        kind: Kind = "continuous"
        if name in levels:
            codes = np.unique(seen)
            kept_levels[name] = tuple(levels[name][int(code)] for code in codes)
            kind = "binary" if len(codes) == 2 else "categorical"
            if len(codes) < len(levels[name]):
                column = np.where(is_missing, np.nan, np.searchsorted(codes, column).astype(float))
                seen = column[~is_missing]
        elif low == 0 and high == 1 and ((seen == 0) | (seen == 1)).all():
            kind = "binary"
        into[:, len(kept)] = column  # not after the column it comes from
        if any_missing:
            filling = seen.mean() if kind == "continuous" else np.bincount(seen.astype(int)).argmax()
            into[is_missing, len(kept)] = filling
        kept.append(name)
        kinds.append(kind)
    dropped = tuple(name for name in names if name not in set(kept))
    return Columns(tuple(kept), into[:, : len(kept)], tuple(kinds), kept_levels, dropped, [])


def _correlation(values: Float[np.ndarray, "num_rows num_nodes"]) -> Float[np.ndarray, "num_nodes num_nodes"]:
    with np.errstate(all="ignore"):
        means = values.mean(0)
        scales = np.maximum(values.max(0) - means, means - values.min(0))
        products = np.zeros((values.shape[1],) * 2)
        num_rows = rows_of_block(values.shape[1])
        for start in range(0, len(values), num_rows):
            block = (values[start : start + num_rows] - means) / scales
            products += block.T @ block
        sizes = np.sqrt(np.diagonal(products))
        return products / np.outer(sizes, sizes)


def rows_of_block(num_columns: int, most: int = 65536) -> int:
    """Return how many rows to work on at a time."""
    return max(1, min(most, _BLOCK // num_columns))


class _Reading(NamedTuple):
    numbers: np.ndarray | None = None
    levels: tuple | None = None
    refused: str = ""  # the type that is no number


def opened_table(frame: Any, caller: str) -> tuple[list, int, Iterable[Any]]:
    """Return the names, the number of rows, and the columns: one-dimensional arrays or narwhals series.

    Args:
        frame: A table, see `read_columns`.
        caller: What errors begin with.

    Raises:
        TypeError: If it is no table.
        ValueError: If an array or a dict is not of rows by columns.
        MissingExtraError: If narwhals is needed and not installed.
    """
    if isinstance(frame, (np.ndarray, jax.Array)):
        array = frame if isinstance(frame, np.ma.MaskedArray) else np.asarray(frame)
        if array.ndim != 2:
            raise DataError(
                f"{caller}: an array must be rows by columns, not {array.shape}. Reshape your data"
            )
        return (
            [f"x{at}" for at in range(array.shape[1])],
            len(array),
            [array[:, at] for at in range(array.shape[1])],
        )
    if hasattr(frame, "toarray"):
        raise TypeError(f"{caller}: a sparse matrix is not supported: give frame.toarray()")
    if isinstance(frame, Mapping):
        columns = [_opened_column(name, column, caller) for name, column in frame.items()]
        lengths = {len(column) for column in columns}
        if len(lengths) > 1:
            raise DataError(f"{caller}: the columns of a dict must be of one length, not {sorted(lengths)}")
        return list(frame), lengths.pop() if lengths else 0, columns
    try:
        import narwhals as nw
    except ImportError as error:
        raise MissingExtraError(
            f"reading a {type(frame).__name__} needs narwhals: pip install 'qbs-jax[frames]'"
        ) from error
    try:
        table = nw.from_native(frame, eager_only=True)
    except nw.exceptions.DuplicateError:
        distinct_names(list(getattr(frame, "column_names", None) or frame.columns))
        raise
    except TypeError:
        kind = f"{type(frame).__module__}.{type(frame).__qualname__}"
        hint = ": collect it first" if hasattr(frame, "collect") else ""
        raise TypeError(f"{caller}: frame must be {_FRAMES}, not {kind}{hint}") from None
    return list(table.columns), len(table), table.iter_columns()


def _opened_column(name: object, column: Any, caller: str) -> Any:
    if not isinstance(column, (np.ndarray, jax.Array, list, tuple, range)):
        try:
            import narwhals as nw

            return nw.from_native(column, series_only=True)
        except (ImportError, TypeError):
            pass
    try:
        array: np.ndarray = np.asanyarray(column)
    except ValueError as error:
        raise TypeError(f"{caller}: column {str(name)!r} holds lists: give one number a row") from error
    if array.ndim != 1:
        raise DataError(f"{caller}: column {str(name)!r} must be one-dimensional, not of shape {array.shape}")
    return array


def _read_series(series: Any) -> _Reading:
    import narwhals as nw

    dtype = series.dtype
    if dtype == nw.Boolean:
        return _Reading(series.cast(nw.Float64).to_numpy(), (False, True))
    if dtype == nw.Decimal:  # by its digits: arrow's own cast is not always the nearest float
        return _Reading(series.cast(nw.String).cast(nw.Float64).to_numpy())
    if dtype.is_integer() and dtype not in (nw.Int128, nw.UInt128):  # arrow casts none beyond 2^53
        return _Reading(np.asarray(series.to_numpy(), float))
    if dtype.is_numeric():
        return _Reading(series.cast(nw.Float64).to_numpy())
    if dtype in (nw.Categorical, nw.Enum):
        return _read_codes(series)
    if dtype == nw.String:  # or nothing at all: so it is for pandas
        is_empty = series.null_count() == len(series)
        return _Reading(np.full(len(series), np.nan)) if is_empty else _Reading(refused="text")
    if dtype in (nw.Object, nw.Unknown):
        native = series.to_native()
        native_type = getattr(native, "dtype", getattr(native, "type", dtype))
        return _read_array(np.asarray(series.to_numpy()), str(native_type))
    return _Reading(refused=str(dtype))


def _read_codes(series: Any) -> _Reading:
    import narwhals as nw

    native = series.to_native()
    levels = series.drop_nulls().unique().to_list()
    if isinstance(series.dtype, nw.Enum):
        order = list(series.dtype.categories)
    elif getattr(getattr(native, "type", None), "ordered", False):  # arrow
        order = native.unify_dictionaries().chunk(0).dictionary.to_pylist()
    else:
        order = None
    levels = sorted_levels(levels, order)
    if not levels:
        return _Reading(np.full(len(series), np.nan), ())
    codes = [float(code) for code in range(len(levels))]
    numbers = series.replace_strict(levels, codes, default=None, return_dtype=nw.Float64)
    return _Reading(numbers.to_numpy(), tuple(levels))


def _read_array(array: np.ndarray, dtype: str = "") -> _Reading:
    if array.dtype.kind in "biuf":
        numbers = np.ma.filled(array.astype(float), np.nan)
        return _Reading(numbers, (False, True) if array.dtype.kind == "b" else None)
    if array.dtype.kind == "O":
        return _read_objects(np.ma.filled(array, None), dtype)
    kinds = {"c": "complex", "U": "text", "S": "text", "T": "text"}
    return _Reading(refused=kinds.get(array.dtype.kind, dtype or str(array.dtype)))


def _read_objects(objects: np.ndarray, dtype: str) -> _Reading:
    numbers_ = np.full(len(objects), np.nan)
    are_booleans = True
    for at, item in enumerate(objects):
        if item is None or type(item).__name__ == "NAType":
            continue
        if isinstance(item, (str, bytes)):
            return _Reading(refused="text")
        if not isinstance(item, (numbers.Real, decimal.Decimal, np.bool_)):
            is_complex = isinstance(item, numbers.Complex)
            known = "" if dtype.lower() == "object" else dtype
            return _Reading(refused="complex" if is_complex else known or type(item).__name__)
        try:
            numbers_[at] = float(item)
        except OverflowError:
            numbers_[at] = np.inf
        are_booleans &= isinstance(item, (bool, np.bool_)) or item != item
    return _Reading(numbers_, (False, True) if are_booleans and not np.isnan(numbers_).all() else None)


def sorted_levels(levels: Iterable[Any], order: Sequence[Any] | None = None) -> list:
    """Return levels in their own order, or sorted where they have none."""
    if order is not None:
        places = {level: place for place, level in enumerate(order)}
        return sorted(levels, key=places.__getitem__)
    levels = list(levels)
    try:
        return sorted(levels)
    except TypeError:
        return sorted(levels, key=str)
