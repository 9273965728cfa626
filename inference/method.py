"""What `qbs.fit` asks of a method, and the pacing of long loops that all methods share."""

import math
import numbers
import time
from typing import ClassVar

import equinox as eqx
from jaxtyping import Array

from qbs.inference.checkpoint import Keeper
from qbs.inference.problem import Problem
from qbs.inference.progress import ProgressLine
from qbs.inference.results.posterior import Posterior
from qbs.precision import Precision


class Method(eqx.Module):
    """Settings of an inference algorithm, given to `qbs.fit` as `method=`.

    A method is frozen and holds settings only; `run` does the work.
    """

    precision: ClassVar[Precision | None] = None
    extensible: ClassVar[tuple[str, ...]] = ()  # settings that may change where a checkpoint goes on

    def run(self, problem: Problem, key: Array, line: ProgressLine, keeper: Keeper) -> Posterior:
        """Draw from the posterior of a problem.

        Interrupted by Ctrl-C, a method returns what it has, with a problem that says so; where it has
        nothing yet, the `KeyboardInterrupt` goes on.

        Args:
            problem: What to infer.
            key: A typed JAX key.
            line: Where to show progress.
            keeper: Where to keep the state, for a run that goes on.
        """
        raise NotImplementedError


class Pacer:
    """Chooses how many steps of a compiled loop to run between looks at the clock and the keyboard."""

    def __init__(self, capacity: int, seconds: float = 0.5):
        self._capacity, self._seconds = capacity, seconds
        self._length, self._start = 1, 0.0

    def next_length(self, remaining: int) -> int:
        """Return the length of the next block, and start its clock."""
        self._start = time.perf_counter()
        self._current = max(1, min(self._length, self._capacity, remaining))
        return self._current

    def finish(self) -> None:
        """Note that the block is done; the first block, which compiles, teaches nothing."""
        took = time.perf_counter() - self._start
        fitting = int(self._current * self._seconds / max(took, 1e-6))
        self._length = max(1, min(4 * self._length, max(fitting, 1)))


def require_positive(settings: eqx.Module, *names: str, whole: bool = False) -> None:
    """Raise `ValueError` naming the first of the settings that is not a positive (whole) number."""
    kind_of_number = numbers.Integral if whole else numbers.Real
    for name in names:
        value = getattr(settings, name)
        is_number = isinstance(value, kind_of_number) and not isinstance(value, bool)
        if not (is_number and 0 < value < math.inf):
            kind = "a whole number above 0" if whole else "a number above 0"
            raise ValueError(f"{type(settings).__name__}: {name} must be {kind}, not {value!r}")
