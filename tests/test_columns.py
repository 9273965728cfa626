import datetime
import os
import subprocess
import sys
from decimal import Decimal
from typing import Any

import jax.numpy as jnp
import narwhals as nw
import numpy as np
import pandas as pd
import pytest

from qbs.errors import MissingExtraError
from qbs.models.structural.columns import Columns, read_columns
from qbs.models.structural.streaming import _MOST_SAMPLED, stream_gram

pl = pytest.importorskip("polars")
pa = pytest.importorskip("pyarrow")
csv = pytest.importorskip("pyarrow.csv")
parquet = pytest.importorskip("pyarrow.parquet")

NAN, INF = float("nan"), float("inf")
LIBRARIES = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "arrow": pa.table, "dict": dict}
ANY = pytest.mark.parametrize("library", LIBRARIES)
ANY_OR_ARRAY = pytest.mark.parametrize("library", [*LIBRARIES, "numpy"])
HELD = pytest.mark.parametrize("library", ["pandas", "polars", "arrow"])  # with types of columns of their own


def table(library: str, columns: dict[str, list]) -> Any:
    if library == "numpy":
        return np.array(list(columns.values()), float).T.reshape(-1, len(columns))
    return LIBRARIES[library](columns)


def names(library: str, *given: str) -> tuple[str, ...]:
    return tuple(f"x{at}" for at in range(len(given))) if library == "numpy" else given


def same(first: Columns, second: Columns) -> None:
    assert first._replace(values=None) == second._replace(values=None)
    np.testing.assert_array_equal(first.values, second.values, strict=True)


def categories(library: str, items: list, order: list | None = None) -> Any:
    if library == "polars":
        return pl.Series(items, dtype=pl.Enum(order) if order else pl.Categorical)
    if library == "arrow":
        levels = order or list(dict.fromkeys(item for item in items if item is not None))
        codes = [None if item is None else levels.index(item) for item in items]
        return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int8()), levels, ordered=bool(order))
    return pd.Categorical(items, categories=order, ordered=bool(order))


@ANY_OR_ARRAY
def test_numbers_keep_their_values_and_names(library):
    data = {"b": [1.5, 2.0, -3.0, 0.1], "a": [0.0, 1.0, 1.0, 0.0], "c": [1.0, 2.0, 0.0, 0.0]}
    columns = read_columns(table(library, data))
    assert columns.names == names(library, "b", "a", "c")
    assert columns.kinds == ("continuous", "binary", "continuous")
    assert (columns.levels, columns.dropped, columns.problems) == ({}, (), [])
    np.testing.assert_array_equal(columns.values, np.array(list(data.values())).T, strict=True)


def test_arrays_of_other_kinds_read_as_numpy_does():
    data = np.array([[1.0, 2.0], [3.0, 5.0], [4.0, 1.0]])
    for array in (jnp.asarray(data), data.astype(np.float16), data.astype(object), data.astype(np.uint8)):
        same(read_columns(array), read_columns(data))
    masked = np.ma.masked_array(data, [[False, True], [False, False], [False, False]])
    np.testing.assert_array_equal(read_columns(masked, missing="mean").values[:, 1], [3.0, 5.0, 1.0])
    assert read_columns(data > 2).levels == {"x0": (False, True), "x1": (False, True)}


def test_names_can_be_given():
    data = np.array([[1.0, 2.0], [3.0, 5.0], [4.0, 1.0]])
    assert read_columns(data, names=["u", "v"]).names == ("u", "v")
    with pytest.raises(ValueError, match="3 names for 2 columns"):
        read_columns(data, names=["u", "v", "w"])
    with pytest.raises(ValueError, match="'u' more than once"):
        read_columns(data, names=["u", "u"])


@ANY
def test_text_is_an_error_that_says_what_to_do(library):
    data = {"x": [1, 2, 3], "city": ["a", "b", None], "name": ["u", "v", "w"]}
    with pytest.raises(TypeError, match=r"columns 'city', 'name' hold text: encode as categories .* or drop"):
        read_columns(table(library, data))


def test_text_in_arrays_and_objects():
    for frame in (np.array([["a", "b"], ["c", "d"]]), np.array([[1, "b"], [2, 3]], object)):
        with pytest.raises(TypeError, match=r"holds? text"):
            read_columns(frame)
    with pytest.raises(TypeError, match="column 'o' holds text"):
        read_columns(pd.DataFrame({"o": pd.Series(["a", "b"], dtype=object)}))


@ANY
@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([datetime.datetime(2020, 1, day) for day in (1, 2, 3)], "date"),
        ([datetime.timedelta(day) for day in (1, 2, 3)], "delta|duration"),
        ([datetime.date(2020, 1, day) for day in (1, 2, 3)], "date"),
        ([[1, 2], [3, 4], [5]], "list"),
        ([{"a": 1}, {"a": 2}, {"a": 3}], "struct|dict"),
    ],
)
def test_other_types_are_errors_that_name_them(library, items, words):
    with pytest.raises(TypeError, match=rf"'when'.*(?i:{words})"):
        read_columns(table(library, {"x": [1.0, 2.0, 3.0], "when": items}))


def test_types_of_pandas_that_are_no_numbers():
    frame = pd.DataFrame({"p": pd.period_range("2020", periods=3), "i": pd.interval_range(0, 3)})
    with pytest.raises(
        TypeError, match=r"'p' is of type period\[D\], 'i' is of type interval.*: not numbers"
    ):
        read_columns(frame)
    with pytest.raises(TypeError, match="'o' is of type object"):
        read_columns(pd.DataFrame({"o": [object(), object()]}))


def test_complex_numbers_are_an_error():
    for frame in (np.array([[1j, 2], [3, 4]]), pd.DataFrame({"x0": [1j, 2], "b": [1, 2]}), {"x0": [1j, 2]}):
        with pytest.raises(ValueError, match=r"Complex data not supported: column.* 'x0'"):
            read_columns(frame)


@ANY
def test_booleans_are_binary(library):
    columns = read_columns(table(library, {"b": [True, False, True, False], "n": [None, True, False, True]}))
    assert columns.kinds == ("binary", "binary")
    assert columns.levels == {"b": (False, True), "n": (False, True)}
    np.testing.assert_array_equal(columns.values, [[0, 1], [1, 0], [0, 1]])


@HELD
def test_categories_are_coded_in_order(library):
    data = {
        "two": categories(library, ["v", "u", "v", "v"]),
        "more": categories(library, ["c", "a", "b", "a"]),
        "ordered": categories(library, ["low", "high", "mid", "low"], ["none", "low", "mid", "high"]),
    }
    columns = read_columns(table(library, data))
    assert columns.kinds == ("binary", "categorical", "categorical")
    assert columns.levels == {"two": ("u", "v"), "more": ("a", "b", "c"), "ordered": ("low", "mid", "high")}
    np.testing.assert_array_equal(columns.values.T, [[1, 0, 1, 1], [2, 0, 1, 0], [0, 2, 1, 0]])


@HELD
def test_missing_categories_and_levels_that_go_with_their_rows(library):
    data = {
        "c": categories(library, ["a", "b", "c", None, "c", "c"]),
        "x": [1.0, None, 3.0, 4.0, 5.0, 7.0],
    }
    columns = read_columns(table(library, data))
    assert columns.levels == {"c": ("a", "c")}
    assert columns.kinds == ("binary", "continuous")
    np.testing.assert_array_equal(columns.values.T, [[0, 1, 1, 1], [1, 3, 5, 7]])
    filled = read_columns(table(library, data), missing="mean")
    assert filled.levels == {"c": ("a", "b", "c")}
    np.testing.assert_array_equal(filled.values.T, [[0, 1, 2, 2, 2, 2], [1, 4, 3, 4, 5, 7]])


def test_levels_of_pandas_that_are_not_text():
    frame = pd.DataFrame({"n": pd.Categorical([3, 1, 3]), "cut": pd.cut([1, 2, 3.0], 2)})
    columns = read_columns(frame)
    assert columns.levels["n"] == (1, 3)
    assert [interval.right for interval in columns.levels["cut"]] == [2.0, 3.0]
    np.testing.assert_array_equal(columns.values.T, [[1, 0, 1], [0, 0, 1]])


@ANY_OR_ARRAY
def test_rows_with_missing_values_are_dropped_and_counted(library):
    data = {"a": [1.0, NAN, 3.0, 4.0, 5.0], "b": [1.0, 2.0, 2.5, None, 7.0], "c": [0.0, None, 1.0, 1.0, 3.0]}
    columns = read_columns(table(library, data))
    np.testing.assert_array_equal(columns.values, [[1, 1, 0], [3, 2.5, 1], [5, 7, 3]])
    a, b, c = names(library, "a", "b", "c")
    assert columns.problems[0] == (
        f"2 of 5 rows left out, as values are missing: 1 in {a!r}, 1 in {b!r}, 1 in {c!r}"
    )


@ANY_OR_ARRAY
def test_missing_values_are_filled_in_when_asked(library):
    data = {"a": [1.0, NAN, 3.0, 5.0], "b": [1.0, 0.0, 0.0, None]}
    columns = read_columns(table(library, data), missing="mean")
    np.testing.assert_array_equal(columns.values, [[1, 1], [3, 0], [3, 0], [5, 0]])
    assert columns.kinds == ("continuous", "binary")
    a, b = names(library, "a", "b")
    assert columns.problems[0].startswith(f"missing values are filled in, 1 in {a!r}, 1 in {b!r}, with the ")


@ANY_OR_ARRAY
def test_missing_values_are_an_error_when_asked(library):
    data = {"a": [1.0, NAN, NAN, 5.0], "b": [1.0, 0.0, 0.0, 4.0], "c": [NAN, 2.0, 2.0, 2.0]}
    a, _, c = names(library, "a", "b", "c")
    with pytest.raises(ValueError, match=f"missing values, 2 in {a!r}, 1 in {c!r}; missing='drop'"):
        read_columns(table(library, data), missing="raise")
    assert read_columns(table(library, {"b": data["b"]}), missing="raise").problems == []


@ANY_OR_ARRAY
def test_too_few_complete_rows(library):
    data = {"a": [1.0, NAN, 2.0], "b": [NAN, 1.0, 2.0]}
    a, b = names(library, "a", "b")
    with pytest.raises(ValueError, match=f"1 of 3 rows have no missing value: 1 in {a!r}, 1 in {b!r}"):
        read_columns(table(library, data))
    with pytest.raises(ValueError, match="0 of 4 rows have"):
        read_columns(table(library, {"a": [1.0, NAN, 2.0, NAN], "b": [NAN, 1.0, NAN, 2.0]}))


@ANY_OR_ARRAY
@pytest.mark.parametrize("missing", ["drop", "mean", "raise"])
def test_infinite_values_are_an_error(library, missing):
    data = {"a": [1.0, INF, -INF, NAN], "b": [1.0, 0.0, 0.0, 4.0]}
    with pytest.raises(ValueError, match=f"infinite values, 2 in {names(library, 'a')[0]!r}"):
        read_columns(table(library, data), missing=missing)


@ANY_OR_ARRAY
def test_constant_columns_are_left_out(library):
    data = {"a": [2.0, 2.0, 2.0, NAN], "b": [1.0, 0.0, 0.0, 4.0], "c": [NAN] * 4, "d": [1.0, 0.5, 0.7, 1.5]}
    a, b, c, d = names(library, "a", "b", "c", "d")
    columns = read_columns(table(library, data))
    assert (columns.names, columns.dropped) == ((b, d), (a, c))
    assert len(columns.values) == 4  # what they miss costs no rows
    assert columns.problems == [
        f"columns {a!r}, {c!r} do not vary and are left out of the graph: as far as these data tell, they "
        "can neither cause nor be caused"
    ]
    with pytest.raises(ValueError, match=f"nothing varies in columns {a!r}, {c!r}: one value each, or none"):
        read_columns(table(library, {"a": data["a"], "c": data["c"]}), names=[a, c])


@ANY
def test_columns_without_a_type_or_a_second_level_are_left_out(library):
    data = {"none": [None] * 3, "b": [True] * 3, "x": [1, 2, 4]}
    columns = read_columns(table(library, data))
    assert (columns.names, columns.dropped, columns.levels) == (("x",), ("none", "b"), {})


@ANY_OR_ARRAY
def test_columns_constant_on_the_complete_rows_are_left_out(library):
    data = {"a": [1.0, NAN, 2.0, 4.0], "b": [1.0, 0.0, 1.0, 1.0]}
    columns = read_columns(table(library, data))
    assert columns.dropped == names(library, "a", "b")[1:]
    np.testing.assert_array_equal(columns.values.T, [[1, 2, 4]])


@ANY_OR_ARRAY
def test_copies_and_lines_are_named(library):
    x, y = [1.0, 2.5, 3.0, 7.0, 8.0], [3.0, -1.0, 0.5, 2.0, 9.0]
    data = {"x": x, "y": y, "copy": x, "line": [5 - 3 * item for item in x], "near": [*x[:-1], 8.0001]}
    columns = read_columns(table(library, {**data}))
    x_, _, copy, line, _ = names(library, *data)
    said = "say the same (one a copy of the other, or a straight line of it): no data tell their arrows apart"
    assert columns.problems[:2] == [f"columns {x_!r} and {other!r} {said}" for other in (copy, line)]
    assert len(columns.names) == 5
    assert len(columns.problems) == 3  # and five rows are few


@ANY_OR_ARRAY
def test_few_rows_and_few_columns(library):
    one = read_columns(table(library, {"x": [1.0, 2.5, 3.0]}))
    assert (one.values.shape, one.problems) == ((3, 1), [])
    two = read_columns(table(library, {"x": [1.0, 2.5, 3.0], "y": [1.0, 0.0, 3.0]}))
    assert (two.values.shape, two.problems) == ((3, 2), [])
    wide = read_columns(table(library, {"x": [1.0, 2.5], "y": [1.0, 0.0], "z": [1.0, 2.0]}))
    assert wide.problems == ["2 rows for 3 columns: the covariance is singular, most arrows are guesses"]
    with pytest.raises(ValueError, match=r"one row \(1 sample\): nothing can be learnt"):
        read_columns(table(library, {"x": [1.0], "y": [2.0]}))
    with pytest.raises(ValueError, match="no rows"):
        read_columns(table(library, {"x": [], "y": []}))


def test_no_columns():
    for frame in (pd.DataFrame(index=range(3)), pl.DataFrame(), {}, np.empty((3, 0))):
        with pytest.raises(ValueError, match=r"no columns: 0 feature\(s\) \(shape=\(\d, 0\)\)"):
            read_columns(frame)


def test_names_must_differ():
    for frame in (pd.DataFrame([[1, 2], [3, 4]], columns=["a", "a"]), pa.table([[1], [2]], names=["a", "a"])):
        with pytest.raises(ValueError, match="column names must differ, also as text: 'a' more than once"):
            read_columns(frame)
    for frame in (pd.DataFrame([[1, 2], [3, 4]], columns=["1", 1]), {1: [1, 2], "1": [3, 4]}):
        with pytest.raises(ValueError, match="'1' more than once"):
            read_columns(frame)


def test_names_become_text():
    index = pd.MultiIndex.from_tuples([("a", "b"), ("a", "c")])
    assert read_columns(pd.DataFrame([[1, 2], [3, 5], [0, 1]])).names == ("0", "1")
    assert read_columns(pd.DataFrame([[1, 2], [3, 5], [0, 1]], columns=index)).names[0] == "('a', 'b')"


def test_pandas_and_polars_and_arrow_give_the_same_bits():
    rng = np.random.default_rng(0)
    cents = [Decimal(int(digits)).scaleb(-2) for digits in rng.integers(-(10**9), 10**9, 300)]
    long = [Decimal(int(digits)).scaleb(-18) for digits in rng.integers(-(2**62), 2**62, 300)]
    cents[7] = None
    levels = rng.choice(["south", "north", "east"], 300)
    pandas = {
        "f64": rng.normal(size=300) * 1e8,
        "f32": rng.normal(size=300).astype(np.float32),
        "f16": rng.normal(size=300).astype(np.float16),
        "u8": rng.integers(0, 255, 300).astype(np.uint8),
        "u64": rng.integers(2**63, 2**64, 300, dtype=np.uint64),
        "i64": rng.integers(-(2**62), 2**62, 300),
        "nullable": pd.array([None, *range(299)], dtype="Int64"),
        "flag": pd.array([True, None, *([False, True] * 149)], dtype="boolean"),
        "cents": pd.Series(cents),
        "long": pd.Series(long),
        "level": pd.Categorical(levels),
    }
    polars = pl.DataFrame(
        {
            **{name: pandas[name] for name in ("f64", "f32", "u8", "u64", "i64")},
            "f16": pandas["f16"].astype(np.float32),
            "nullable": [None, *range(299)],
            "flag": [True, None, *([False, True] * 149)],
            "cents": pl.Series(cents, dtype=pl.Decimal(20, 2)),
            "long": pl.Series(long, dtype=pl.Decimal(38, 18)),
            "level": pl.Series(levels, dtype=pl.Categorical),
        }
    ).select(list(pandas))
    arrow = pa.table({**{c: polars[c].to_arrow() for c in polars.columns}, "f16": pa.array(pandas["f16"])})
    frame = pd.DataFrame(pandas)
    for missing in ("drop", "mean"):
        first = read_columns(frame, missing=missing)
        assert first.kinds[-4:] == ("binary", "continuous", "continuous", "categorical")
        backed = arrow.to_pandas(types_mapper=pd.ArrowDtype)
        for other in (polars, arrow, backed, nw.from_native(polars), {c: frame[c] for c in frame}):
            same(read_columns(other, missing=missing), first)
    np.testing.assert_array_equal(first.values[:, 9], [float(digits) for digits in long])
    assert first.values.dtype == np.float64


def test_the_frame_is_left_as_it_is():
    data = np.array([[1.0, 2.0, 2.0], [NAN, 2.0, 5.0], [4.0, 2.0, 1.0]])
    frame, before = pd.DataFrame(data, copy=False), data.copy()
    for missing in ("drop", "mean"):
        for given in (data, frame, {"a": data[:, 0], "b": data[:, 1], "c": data[:, 2]}):
            columns = read_columns(given, missing=missing)
            columns.values[:] = 7.0
    np.testing.assert_array_equal(data, before)


def test_numbers_too_far_apart_to_square():
    with pytest.raises(ValueError, match="numbers too far apart, or too close, to square in column 'x0'"):
        read_columns(np.array([[1e200, 1.0], [-1e200, 2.0], [0.0, 4.0]]))


def test_what_is_no_table():
    rows = np.ones(3)
    with pytest.raises(ValueError, match="rows by columns"):
        read_columns(rows)
    with pytest.raises(TypeError, match=r"not builtins\.int"):
        read_columns(3)
    with pytest.raises(TypeError, match=r"LazyFrame: collect it first"):
        read_columns(pl.LazyFrame({"a": [1, 2]}))
    with pytest.raises(ValueError, match=r"one length, not \[1, 2\]"):
        read_columns({"a": [1], "b": [1, 2]})
    with pytest.raises(ValueError, match="column 'a' must be one-dimensional"):
        read_columns({"a": np.ones((2, 2))})


def test_many_names_are_cut():
    data = np.c_[np.ones((3, 30)), [1.0, 2.0, 4.0]]
    (problem,) = read_columns(data).problems
    assert "'x19' and 10 more do not vary" in problem


def test_only_frames_need_narwhals(monkeypatch):
    monkeypatch.setitem(sys.modules, "narwhals", None)
    assert read_columns(np.array([[1.0, 2.0], [3.0, 5.0]])).names == ("x0", "x1")
    assert read_columns({"a": [1, 2], "b": np.array([True, False])}).kinds == ("continuous", "binary")
    with pytest.raises(MissingExtraError, match=r"DataFrame needs narwhals: pip install 'qbs-jax\[frames\]'"):
        read_columns(pd.DataFrame({"a": [1, 2]}))


def test_settings_that_are_not_known():
    """In a process of its own, where types are not checked first."""
    script = """
import sys
import numpy as np
from qbs.models.structural import columns, streaming
for call, words in [
    (lambda: columns.read_columns(np.eye(3), missing="median"), "'drop', 'mean' or 'raise', not 'median'"),
    (lambda: streaming.stream_gram("x.csv", missing="mean"), "'drop' or 'raise', not 'mean': read a frame"),
]:
    try:
        call()
    except ValueError as error:
        assert words in str(error), error
    else:
        raise AssertionError(words)
"""
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr


# Files.


def write(path, data: Any, **options) -> None:
    data = data if isinstance(data, pa.Table) else pa.table(data)
    if path.suffix == ".parquet":
        parquet.write_table(data, path, **options)
    else:
        csv.write_csv(data, path)


FILE = pytest.mark.parametrize("file", ["data.parquet", "data.csv", "data.csv.gz"])


def write_as(path, data: dict) -> None:
    if path.name.endswith(".gz"):
        with pa.CompressedOutputStream(str(path), "gzip") as out:
            csv.write_csv(pa.table(data), out)
    else:
        write(path, data)


@FILE
@pytest.mark.parametrize("batch_rows", [97, 65536])
def test_a_file_gives_the_covariance_of_its_table(tmp_path, file, batch_rows):
    rng = np.random.default_rng(1)
    x = rng.normal(size=5000)
    data = {
        "drift": np.linspace(-5, 5, 5000) * 1e6,  # the first batch is far from the rest
        "far": 1e9 + x,
        "x": x,
        "y": 2 * x + rng.normal(size=5000) * 1e-3,
        "whole": rng.integers(0, 100, 5000),
        "flag": x > 0.5,
    }
    data["x"] = np.where(rng.uniform(size=5000) < 0.1, None, x)
    data = {name: pa.array(column) for name, column in data.items()}
    write_as(tmp_path / file, data)
    gram = stream_gram(tmp_path / file, batch_rows=batch_rows)
    columns = read_columns(pa.table(data))
    assert (gram.names, gram.dropped, gram.problems) == (columns.names, columns.dropped, columns.problems)
    assert gram.num_rows == len(columns.values) < 5000
    covariance = np.cov(columns.values.T, bias=True)
    scales = np.sqrt(np.diagonal(covariance))
    np.testing.assert_allclose(
        gram.covariance / np.outer(scales, scales), covariance / np.outer(scales, scales), atol=1e-10
    )
    np.testing.assert_allclose(gram.means / scales, columns.values.mean(0) / scales, atol=1e-10)
    np.testing.assert_array_equal(gram.sample, columns.values)


def test_batches_change_neither_sample_nor_result(tmp_path):
    rng = np.random.default_rng(2)
    rows = np.arange(40_000.0)
    write(tmp_path / "a.parquet", {"row": rows, "x": rng.normal(size=40_000) + 1e6})
    few, many = (stream_gram(tmp_path / "a.parquet", batch_rows=count) for count in (65536, 999))
    np.testing.assert_allclose(few.covariance, many.covariance, rtol=1e-12, atol=1e-9)
    np.testing.assert_array_equal(few.sample, many.sample)
    sampled = few.sample[:, 0]
    assert len(np.unique(sampled)) == _MOST_SAMPLED == len(sampled)
    error = rows.std() / np.sqrt(_MOST_SAMPLED)
    assert abs(sampled.mean() - rows.mean()) < 4 * error
    counts = np.histogram(sampled, 20, (0, 40_000))[0]
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500 * 0.75)


@FILE
def test_constant_columns_of_a_file_cost_no_rows(tmp_path, file):
    data = {
        "a": pa.array([2.0, None, 2.0, 2.0]),
        "b": [1.0, 0.0, 0.5, 4.0],
        "none": pa.array([None] * 4, pa.float64()),
        "same": [1, 1, 1, 1],
    }
    write_as(tmp_path / file, data)
    gram, columns = stream_gram(tmp_path / file), read_columns(pa.table(data))
    assert gram.problems == columns.problems
    assert (gram.names, gram.dropped, gram.num_rows) == (("b",), ("a", "none", "same"), 4)
    np.testing.assert_allclose(gram.covariance, [[np.var(data["b"])]])
    write_as(tmp_path / file, {"a": data["a"], "same": data["same"]})
    with pytest.raises(ValueError, match="nothing varies in columns 'a', 'same'"):
        stream_gram(tmp_path / file)


@FILE
def test_copies_and_few_rows_of_a_file(tmp_path, file):
    data = {"x": [1.0, 2.5, 3.0], "y": [3.0, -1.0, 0.5], "line": [3.0, 6.0, 7.0]}
    write_as(tmp_path / file, data)
    assert stream_gram(tmp_path / file).problems == read_columns(data).problems
    assert len(read_columns(data).problems) == 2


@FILE
def test_values_that_a_file_may_not_have(tmp_path, file):
    path = tmp_path / file
    write_as(path, {"x": [1.0, 2.0, INF, NAN], "y": [1.0, -INF, INF, 0.0]})
    with pytest.raises(ValueError, match="infinite values, 2 in 'y', 1 in 'x'"):
        stream_gram(path)
    write_as(path, {"x": [1.0, 2.0, None, None], "y": [1.0, None, 2.0, 0.0]})
    with pytest.raises(ValueError, match="missing values, 2 in 'x', 1 in 'y'"):
        stream_gram(path, missing="raise")
    with pytest.raises(ValueError, match="1 of 4 rows have no missing value: 2 in 'x', 1 in 'y'"):
        stream_gram(path)
    write_as(path, {"x": [1e200, 2.0]})
    with pytest.raises(ValueError, match="too far apart"):
        stream_gram(path)
    write_as(path, {"x": [1.0]})
    with pytest.raises(ValueError, match="one row"):
        stream_gram(path)
    write_as(path, {"x": [1.0, 2.0], "s": ["a", "b"]})
    with pytest.raises(TypeError, match="column 's' holds text"):
        stream_gram(path)
    write_as(path, {"x": [1.0, 2.0], "d": [datetime.datetime(2020, 1, day) for day in (1, 2)]})
    with pytest.raises(TypeError, match="'d' is of type timestamp"):
        stream_gram(path)


def test_types_of_parquet(tmp_path):
    data = {
        "two": pa.chunked_array(
            [categories("arrow", ["v", "u", None]), categories("arrow", ["u", "v", "u"])]
        ),
        "order": pa.chunked_array([categories("arrow", list(half), ["z", "a"]) for half in ("azz", "zaz")]),
        "cents": pa.array([Decimal(digits).scaleb(-2) for digits in (30, 70, 110, 10, 20, 60)]),
        "half": pa.array(np.arange(6, dtype=np.float16)),
        "whole": pa.array([2**63 + 2**20, 1, 2, 3, None, 5], pa.uint64()),
    }
    write(tmp_path / "a.parquet", data, row_group_size=3)
    gram, columns = stream_gram(tmp_path / "a.parquet", batch_rows=2), read_columns(pa.table(data))
    np.testing.assert_array_equal(gram.sample, columns.values)
    np.testing.assert_allclose(gram.covariance, np.cov(columns.values.T, bias=True), rtol=1e-10)
    np.testing.assert_allclose(gram.means, columns.values.mean(0))
    assert columns.levels == {"two": ("u", "v"), "order": ("z", "a")}
    write(tmp_path / "b.parquet", {"c": categories("arrow", ["a", "b", "c"])})
    with pytest.raises(TypeError, match="column 'c' has more than two levels"):
        stream_gram(tmp_path / "b.parquet")
    write(tmp_path / "c.parquet", {"l": [[1], [2]], "x": [1, 2]})
    with pytest.raises(TypeError, match="'l' is of type list"):
        stream_gram(tmp_path / "c.parquet")


def test_what_pandas_and_polars_write(tmp_path):
    frame = pd.DataFrame({"x": [1.0, 2.5, 0.0], "b": [True, False, True]}, index=pd.Index(["u", "v", "w"]))
    frame.to_parquet(tmp_path / "a.parquet")
    gram = stream_gram(tmp_path / "a.parquet")
    assert gram.names == ("x", "b")
    assert gram.problems == ["column '__index_level_0__': the index that pandas wrote, left out of the graph"]
    for write_frame in (
        frame.reset_index(drop=True).to_parquet,
        pl.from_pandas(frame).write_parquet,
        pl.from_pandas(frame).write_csv,
    ):
        path = tmp_path / ("b.csv" if "csv" in write_frame.__name__ else "b.parquet")
        write_frame(path)
        np.testing.assert_array_equal(stream_gram(path).covariance, gram.covariance)
        assert stream_gram(path).problems == []


def test_a_column_of_csv_that_changes_its_mind(tmp_path, monkeypatch):
    monkeypatch.setattr("qbs.models.structural.streaming._CSV_BLOCK", 64)
    rows = [f"{at % 7},," for at in range(100)]
    (tmp_path / "a.csv").write_text("\n".join(["a,b,c", *rows, "1.5,2,0", "2,3,1", "3,4.5,0\n"]))
    gram = stream_gram(tmp_path / "a.csv")
    assert gram.num_rows == 3
    np.testing.assert_array_equal(gram.sample, [[1.5, 2, 0], [2, 3, 1], [3, 4.5, 0]])
    (tmp_path / "a.csv").write_text("\n".join(["a,b,c", *rows, "1.5,two,0\n"]))
    with pytest.raises(TypeError, match="column 'b' begins with numbers, but has 'two' later"):
        stream_gram(tmp_path / "a.csv")


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        stream_gram(tmp_path / "a.csv")
    with pytest.raises(ValueError, match=r"a\.xlsx must be a \.parquet or \.csv file"):
        stream_gram(tmp_path / "a.xlsx")
    with pytest.raises(ValueError, match="batch_rows must be 1 or more, not 0"):
        stream_gram(tmp_path / "a.csv", batch_rows=0)
    for name, text in (("a.csv", ""), ("a.csv", "a,b\n1,2\n3\n"), ("a.parquet", "no parquet file")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match="cannot be read"):
            stream_gram(tmp_path / name)
    (tmp_path / "a.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match="no rows"):
        stream_gram(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("a,b,a\n1,2,3\n")
    with pytest.raises(ValueError, match="'a' more than once"):
        stream_gram(tmp_path / "a.csv")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"needs pyarrow: pip install 'qbs-jax\[frames\]'"):
        stream_gram(tmp_path / "a.csv")


def test_progress_is_shown_when_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("qbs.inference.progress._PLAIN_INTERVAL", 0.0)
    write(tmp_path / "a.parquet", {"x": np.arange(10.0)})
    stream_gram(tmp_path / "a.parquet", batch_rows=5, progress=True)
    assert "reading a.parquet: 5 rows" in capsys.readouterr().err
