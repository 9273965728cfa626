"""Where batches come from: rows of a table, drawn at random, or an iterator that makes them."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from qbs.errors import DataError


class TableBatches:
    """Rows drawn with replacement from an array.

    Attributes:
        sample: All rows.
    """

    def __init__(self, rows: np.ndarray, batch_size: int, key: Array):
        """Keep the rows."""
        self.sample = rows
        self._rows, self._size, self._key = jnp.asarray(rows), batch_size, key

    def take(self, first: int, _count: int, room: int) -> Shaped[Array, "room batch_size ..."]:
        """Return the batches of some steps in a row; each depends on the key and the step alone."""
        return _drawn(self._rows, self._key, jnp.asarray(first), self._size, room)


@partial(jax.jit, static_argnames=("size", "room"))
def _drawn(rows: Array, key: Array, first: Array, size: int, room: int) -> Array:
    def of_step(step: Array) -> Array:
        return rows[jax.random.randint(jax.random.fold_in(key, step), (size,), 0, len(rows))]

    return jax.lax.map(of_step, first + jnp.arange(room))


class StreamBatches:
    """Batches from an iterator, one for each step, none of which is kept.

    A run that goes on passes over those that it has had: the iterator must make the same ones again.

    Attributes:
        sample: The first batch.
    """

    def __init__(self, batches: Iterable[Any]):
        """Take the first batch."""
        self._batches: Iterator[Any] = iter(batches)
        self._next, self._first = 0, None
        self.sample = self._first = self._new()

    def _new(self) -> np.ndarray:
        try:
            batch = next(self._batches)
        except StopIteration:
            raise DataError(
                f"the iterator of batches ended after {self._next} of them: it must have one for each step; "
                "itertools.cycle repeats a list"
            ) from None
        rows = as_rows(batch, f"batch {self._next}")
        if self._first is not None and (rows.shape, rows.dtype) != (self._first.shape, self._first.dtype):
            raise DataError(
                f"batch {self._next} is of {rows.dtype} and shape {rows.shape}, and the first of "
                f"{self._first.dtype} and shape {self._first.shape}"
            )
        return rows

    def take(self, first: int, count: int, room: int) -> Shaped[Array, "room batch_size ..."]:
        """Return the next batches; those before the first step that is asked for are passed over."""
        taken = []
        while self._next < first + count:
            batch = self.sample if self._next == 0 else self._new()
            if self._next >= first:
                taken.append(batch)
            self._next += 1
        return jnp.asarray(np.stack(taken + [taken[-1]] * (room - count)))


Batches = TableBatches | StreamBatches


def as_rows(data: Any, name: str = "data") -> np.ndarray:
    """Return a table as an array of numbers, one row for each observation.

    Raises:
        DataError: If it is empty, not of numbers, or has NaN or infinities in it; the message says where.
    """
    if hasattr(data, "to_numpy"):  # data frames and series
        data = data.to_numpy()
    try:
        rows = np.asarray(data)
    except ValueError as error:
        raise DataError(f"{name} is not an array: {error}") from None
    if rows.dtype.kind not in "biuf":
        raise DataError(f"{name} must be numbers, not of {rows.dtype}")
    if rows.ndim == 0 or not rows.size:
        raise DataError(f"{name} has no rows: its shape is {rows.shape}")
    if rows.dtype.kind == "f":
        bad = ~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1)
        if bad.any():
            raise DataError(
                f"{name} has NaN or infinities in {bad.sum()} of its {len(rows)} rows, the first of them "
                f"row {np.argmax(bad)}"
            )
        return rows.astype(np.result_type(jnp.result_type(float)))
    return rows.astype(int)
