"""The calls of a compiled likelihood, in order, so that a run that was stopped is made again without them."""

import contextlib
from collections.abc import Callable, Iterator

import numpy as np

from qbs.errors import CheckpointError
from qbs.inference.checkpoint import Keeper, Saved

_SECTION = "calls"


class CallLog:
    """Answers calls that the stopped run made, and makes and keeps the others.

    A sampler that draws from a seeded generator asks for the same points again, and finds their values here.
    Of millions of fast calls it keeps 16 bytes each, in the checkpoint; slow ones have a `Journal`.

    Attributes:
        num_new: How many calls were made, and not found.

    Args:
        keeper: Where the calls are kept.
    """

    def __init__(self, keeper: Keeper):
        self._keeper = keeper
        saved = keeper.found(_SECTION) or Saved({}, {"sums": np.zeros(0), "values": np.zeros(0)})
        self._sums, self._values = [saved.arrays["sums"]], [saved.arrays["values"]]
        self._next = 0  # among the known calls
        self.num_new = 0

    def call(self, function: Callable[[np.ndarray], np.ndarray], points: np.ndarray) -> np.ndarray:
        """Return the values of a function at points of shape (n, dim), shape (n,).

        Raises:
            CheckpointError: If the stopped run asked for other points.
        """
        if not self._keeper.is_on:
            self.num_new += len(points)
            return function(points)
        place = slice(self._next, self._next + len(points))
        known, sums = self._values[0][place], points.sum(axis=1)
        if not np.array_equal(self._sums[0][place], sums[: len(known)]):
            raise CheckpointError(
                "the run does not ask for the points that it asked for before it was stopped: were dynesty, "
                "NumPy or the machine changed? Delete the checkpoint to start anew"
            )
        self._next += len(known)
        if len(known) == len(points):
            return known
        new = function(points[len(known) :])
        self.num_new += len(new)
        self._sums.append(sums[len(known) :])
        self._values.append(new)
        self._keeper.keep(_SECTION, self._saved)
        return np.concatenate([known, new])

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Write all calls as the body ends, also by an error or an interrupt."""
        try:
            yield
        finally:
            self._keeper.keep(_SECTION, self._saved, at_once=True)

    def _saved(self) -> Saved:
        return Saved({}, {"sums": np.concatenate(self._sums), "values": np.concatenate(self._values)})
