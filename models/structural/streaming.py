"""Means and covariance of the columns of a file too large to hold, read in batches."""

import re
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float

from qbs.errors import DataError, MissingExtraError
from qbs.inference.progress import ProgressLine
from qbs.models.structural.column_checks import (
    check_finite,
    check_present,
    check_refused,
    check_rows_left,
    check_shape,
    check_spread,
    check_varying,
    distinct_names,
    index_sentence,
    left_out_sentences,
    missing_sentence,
    shape_sentences,
)
from qbs.models.structural.columns import rows_of_block, sorted_levels
from qbs.models.structural.gram_blocks import (
    BlockSums,
    GramBlocks,
    resampled,
    weighted_covariance,
    with_columns,
)

StreamMissing = Literal["drop", "raise"]

_MOST_SAMPLED = 10_000  # rows
_SEED = 20240229  # of the sample
_CSV_BLOCK = 2**23  # bytes
_LARGE_TABLE, _LARGE_FILE = 20_000_000, 200_000_000  # numbers, bytes
_BAD_VALUE = re.compile(r"In CSV column #(\d+): .*invalid value '(.*)'")


class Gram(NamedTuple):
    """What least squares needs of a table.

    Attributes:
        names: Of the columns, as given.
        means: Of the columns.
        covariance: With divisor `num_rows`: what is most likely for Gaussian data.
        num_rows: How many complete rows they come from.
        dropped: Names of the columns that are left out.
        problems: Sentences for a person.
        sample: At most 10,000 complete rows, each as likely as any other, in the order of the file.
        blocks: The same of random blocks of the rows.
    """

    names: tuple[str, ...]
    means: Float[np.ndarray, " num_nodes"]
    covariance: Float[np.ndarray, "num_nodes num_nodes"]
    num_rows: int
    dropped: tuple[str, ...]
    problems: list[str]
    sample: Float[np.ndarray, "num_sampled num_nodes"]
    blocks: GramBlocks

    def resampled(self, rng: np.random.Generator) -> tuple[Float[np.ndarray, "num_nodes num_nodes"], int]:
        """Return covariance and number of rows of one bootstrap replicate; see `gram_blocks.resampled`."""
        return resampled(self.blocks, rng)


def stream_gram(
    path: str | PathLike[str],
    *,
    missing: StreamMissing = "drop",
    batch_rows: int = 65536,
    num_blocks: int | None = None,
    progress: bool | None = None,
) -> Gram:
    """Return means and covariance of the columns of a parquet or CSV file, which need not fit in memory.

    Columns are treated as `read_columns` treats them, in float64, with these differences:

    * Categories may have two levels, not more: codes of more have no covariance.
    * Missing values cannot be filled in, as the means are known only at the end.
    * The index that pandas writes into a parquet file is left out, with a sentence.
    * A CSV file has a first line of names. The types of its columns are those of the first 8 MB.

    Where a column with one value, or none, also misses values, the file is read a second time without it: its
    rows are not lost. The result depends on `batch_rows` by rounding only, and the sample not at all.

    Besides a batch, the blocks of rows for bootstraps are held, up to 256 MB unless `num_blocks` says more.

    Args:
        path: Of a file that ends in `.parquet`, `.pq`, `.csv`, or `.csv` and the ending of a compression.
        missing: What to do with missing values. `"drop"`: leave out the rows that have any. `"raise"`: an
            error.
        batch_rows: The most rows read at a time; fewer where there are more than 64 columns.
        num_blocks: How many blocks of rows to keep the products of, for bootstraps; `None`: 1,000, or as many
            as fit in 256 MB, which matters beyond 182 columns.
        progress: Whether to show it; `None`: on a terminal or in a notebook.

    Raises:
        TypeError: If a column holds text, dates, durations, lists or more than two levels.
        ValueError: As in `read_columns`; and if the file is of another kind or is damaged.
        FileNotFoundError: If there is no file.
        MissingExtraError: If pyarrow is not installed.
    """
    if missing not in get_args(StreamMissing):
        hint = ": read a frame to fill them in" if missing == "mean" else ""
        raise ValueError(f"stream_gram: missing must be 'drop' or 'raise', not {missing!r}{hint}")
    if batch_rows < 1:
        raise ValueError(f"stream_gram: batch_rows must be 1 or more, not {batch_rows}")
    if num_blocks is not None and num_blocks < 1:
        raise ValueError(f"stream_gram: num_blocks must be 1 or more, not {num_blocks}")
    table = _opened(Path(path), batch_rows)
    check_shape(2, len(table.nodes))  # of rows, more is known at the end
    nodes = list(table.nodes)
    with ProgressLine(f"reading {Path(path).name}", show=progress) as line:
        moments = _accumulated(table, nodes, num_blocks, line)
        check_shape(moments.num_rows, len(nodes))
        check_finite(_counts(table, nodes, moments.num_infinite))
        check_spread(
            {table.names[node]: spread for node, spread in zip(nodes, moments.spreads, strict=True) if spread}
        )
        if missing == "raise":
            check_present(_counts(table, nodes, moments.num_missing))
        varies = moments.seen_low < moments.seen_high
        check_varying(np.flatnonzero(varies).tolist(), [table.names[node] for node in nodes])
        if moments.num_missing[~varies].any():
            nodes = [node for node, stays in zip(nodes, varies, strict=True) if stays]
            del moments  # the blocks are large
            moments = _accumulated(table, nodes, num_blocks, line)
    num_missing = _counts(table, nodes, moments.num_missing)
    check_rows_left(moments.count, moments.num_rows, num_missing)
    varies = moments.low < moments.high
    names = tuple(table.names[node] for node, stays in zip(nodes, varies, strict=True) if stays)
    dropped = tuple(table.names[node] for node in table.nodes if table.names[node] not in set(names))
    check_varying(names, dropped)
    signs = np.array([-1.0 if table.is_turned(node) else 1.0 for node in nodes])
    all_means, blocks = moments.sums.finished()
    blocks = with_columns(blocks, varies, signs)
    covariance, _ = weighted_covariance(blocks, np.ones(len(blocks.counts), int))
    sizes = np.sqrt(np.diagonal(covariance))
    problems = index_sentence([name for at, name in enumerate(table.names) if at not in table.nodes])
    problems += left_out_sentences(dropped)
    if num_missing:
        problems.append(missing_sentence(moments.num_rows - moments.count, moments.num_rows, num_missing))
    problems += shape_sentences(names, moments.count, covariance / sizes / sizes[:, None])
    means, sample = (np.where(signs < 0, 1 - rows, rows)[..., varies] for rows in (all_means, moments.sample))
    return Gram(names, means, covariance, moments.count, dropped, problems, sample, blocks)


def is_large(path: str | PathLike[str]) -> bool:
    """Return whether a file should be streamed: parquet of over 20 million numbers, others of over 200 MB.

    A file that is not there or is damaged is not large: who reads it will say so.
    """
    path = Path(path)
    if not path.is_file():
        return False
    if path.suffix.lower() not in (".parquet", ".pq"):
        return path.stat().st_size > _LARGE_FILE
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError:
        return False
    try:
        metadata = parquet.read_metadata(path)
    except ArrowInvalid:
        return False
    return metadata.num_rows * metadata.num_columns > _LARGE_TABLE


class _Table(NamedTuple):
    """A file.

    Attributes:
        names: Of all its columns.
        nodes: The numbers of those that are read.
        batches: Reads it from the start.
        num_rows: How many it has, where that is known.
        levels: Of each column of categories, as they come; filled while reading.
        order: The own order of levels that have one; filled while reading.
    """

    names: tuple[str, ...]
    nodes: tuple[int, ...]
    batches: Callable[[], Iterator[Any]]
    num_rows: int | None
    levels: dict[int, list]
    order: dict[int, list]

    def is_turned(self, node: int) -> bool:
        """Whether the level that came first is coded 0 and should be 1."""
        levels, order = self.levels.get(node, []), self.order.get(node)
        return len(levels) == 2 and sorted_levels(levels, order) != levels


class _Moments:
    """What is known of the rows so far: of all (`seen_`), and of the complete and finite ones."""

    def __init__(self, num_nodes: int, num_blocks: int | None):
        self.num_rows = 0
        self.num_missing, self.num_infinite = np.zeros(num_nodes, int), np.zeros(num_nodes, int)
        self.seen_low, self.seen_high = np.full(num_nodes, np.inf), np.full(num_nodes, -np.inf)
        self.low, self.high = self.seen_low, self.seen_high
        self.sums = BlockSums(num_nodes, num_blocks)
        self.sample = np.empty((0, num_nodes))
        self._keys, self._rng = np.empty(0), np.random.default_rng(_SEED)

    @property
    def spreads(self) -> Float[np.ndarray, " num_nodes"]:
        """Half of what is between the largest and the smallest value; zero where nothing is."""
        return np.where(self.seen_low < self.seen_high, self.seen_high / 2 - self.seen_low / 2, 0.0)

    @property
    def count(self) -> int:
        """Of the complete rows."""
        return self.sums.num_rows

    def add(self, block: Float[np.ndarray, "num_rows num_nodes"]) -> None:
        """Take in rows."""
        self.num_rows += len(block)
        is_finite = np.isfinite(block)
        if not is_finite.all():
            is_missing = np.isnan(block)
            self.num_missing += is_missing.sum(0)
            self.num_infinite += (~is_finite & ~is_missing).sum(0)
            self.seen_low = np.fmin(self.seen_low, np.fmin.reduce(block, 0))
            self.seen_high = np.fmax(self.seen_high, np.fmax.reduce(block, 0))
            block = block[is_finite.all(1)]
        if not len(block):
            return
        low, high = block.min(0), block.max(0)
        self.seen_low, self.seen_high = np.fmin(self.seen_low, low), np.fmax(self.seen_high, high)
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
        self._draw(block)
        self.sums.add(block)

    def _draw(self, block: Float[np.ndarray, "num_rows num_nodes"]) -> None:
        """Keep the rows with the lowest random keys."""
        keys = self._rng.random(len(block))
        if len(self._keys) == _MOST_SAMPLED:
            chosen = keys < self._keys.max()
            keys, block = keys[chosen], block[chosen]
        keys, sample = np.concatenate([self._keys, keys]), np.concatenate([self.sample, block])
        kept = np.sort(np.argsort(keys)[:_MOST_SAMPLED])
        self._keys, self.sample = keys[kept], sample[kept]


def _accumulated(table: _Table, nodes: list[int], num_blocks: int | None, line: ProgressLine) -> _Moments:
    moments = _Moments(len(nodes), num_blocks)
    with np.errstate(over="ignore", invalid="ignore"):  # told at the end
        for batch in table.batches():
            block = np.empty((batch.num_rows, len(nodes)), order="F")
            for at, node in enumerate(nodes):
                block[:, at] = _numbers(batch.column(node), table, node)
            moments.add(block)
            fraction = moments.num_rows / table.num_rows if table.num_rows else None
            line.update(f"{moments.num_rows} rows", fraction)
    return moments


def _counts(table: _Table, nodes: list[int], counts: np.ndarray) -> dict[str, int]:
    return {table.names[node]: int(count) for node, count in zip(nodes, counts, strict=True) if count}


def _opened(path: Path, batch_rows: int) -> _Table:
    try:
        import pyarrow as pa
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError(
            "reading a file in batches needs pyarrow: pip install 'qbs-jax[frames]'"
        ) from error
    is_parquet = path.suffix.lower() in (".parquet", ".pq")
    if not is_parquet and ".csv" not in [suffix.lower() for suffix in path.suffixes[-2:]]:
        raise ValueError(f"stream_gram: {path.name} must be a .parquet or .csv file")
    if not path.is_file():
        raise FileNotFoundError(f"stream_gram: there is no file {path}")
    options = pa.csv.ReadOptions(block_size=_CSV_BLOCK)
    try:
        if is_parquet:
            with pa.parquet.ParquetFile(path) as file:
                schema, num_rows = file.schema_arrow, file.metadata.num_rows
        else:
            with pa.csv.open_csv(path, read_options=options) as reader:
                schema, num_rows = reader.schema, None
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    names = distinct_names(schema.names)
    index = (schema.pandas_metadata or {}).get("index_columns", [])
    nodes = tuple(at for at, name in enumerate(schema.names) if name not in index)
    check_refused({names[at]: why for at in nodes if (why := _refused(schema.field(at).type))})
    most = rows_of_block(len(names), batch_rows)

    def batches() -> Iterator[Any]:
        try:
            if is_parquet:
                with pa.parquet.ParquetFile(path) as file:
                    yield from file.iter_batches(batch_size=most)
            else:
                types = {
                    field.name: field.type if pa.types.is_boolean(field.type) else pa.float64()
                    for field in schema
                }  # what is whole or missing in the first block may not be so later
                convert = pa.csv.ConvertOptions(column_types=types)
                with pa.csv.open_csv(path, read_options=options, convert_options=convert) as reader:
                    for batch in reader:
                        yield from (batch.slice(at, most) for at in range(0, batch.num_rows, most))
        except pa.ArrowInvalid as error:
            bad = _BAD_VALUE.search(str(error))
            if bad:
                name, value = names[int(bad[1])], bad[2]
                raise TypeError(f"column {name!r} begins with numbers, but has {value!r} later") from error
            raise DataError(f"{path} cannot be read: {error}") from error

    return _Table(names, nodes, batches, num_rows, {}, {})


def _refused(dtype: Any) -> str:
    """Return what a column is, if it is no number."""
    from pyarrow import types

    if types.is_string(dtype) or types.is_large_string(dtype) or types.is_string_view(dtype):
        return "text"
    known = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal, types.is_dictionary)
    return "" if types.is_null(dtype) or any(is_known(dtype) for is_known in known) else str(dtype)


def _numbers(array: Any, table: _Table, node: int) -> np.ndarray:
    import pyarrow as pa

    if not pa.types.is_dictionary(array.type):
        if pa.types.is_decimal(array.type):  # by its digits, as in columns
            array = array.cast(pa.string())
        return array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    own, levels = array.dictionary.to_pylist(), table.levels.setdefault(node, [])
    if array.type.ordered:
        table.order[node] = own
    codes = array.indices.cast(pa.float64()).to_numpy(zero_copy_only=False)
    is_missing = np.isnan(codes)
    places = np.where(is_missing, len(own), codes).astype(int)
    meaning = np.full(len(own) + 1, np.nan)
    for place in np.unique(places[~is_missing]):
        if own[place] is None:
            continue
        if own[place] not in levels:
            levels.append(own[place])
        meaning[place] = levels.index(own[place])
    if len(levels) > 2:
        raise TypeError(
            f"column {table.names[node]!r} has more than two levels, which have no covariance: drop it, "
            "make it columns of 0 and 1, or read a frame for a score that takes it"
        )
    return meaning[places]
