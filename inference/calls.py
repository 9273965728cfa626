"""How a likelihood in plain Python is called: here or by workers, with what patience."""

import math
import numbers
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from qbs.inference.black_box import BlackBox, Outcome
from qbs.inference.executors import Borrowed, pickled
from qbs.inference.failures import Failures
from qbs.inference.progress import ProgressLine
from qbs.inference.worker_pool import WorkerPool

_SLOW = 0.01  # seconds a call, from which the line of progress tells of calls
Tasks = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Calls:
    """How a log likelihood in plain Python is called; given to `qbs.fit` as `executor=`.

    A call *fails* when it raises, returns NaN, `+inf`, `None` or something else that is not one number, takes
    too long, or ends its worker process. It counts as a log likelihood of `-inf`, impossible; it is logged
    with its parameters, and told in `Posterior.problems`. What a call raises or returns is taken to be the
    same a second time: only calls that were too slow, or whose worker died, are made again.

    Attributes:
        executor: Who makes the calls. `None`: this process, one after another. A whole number: so many worker
            processes that qbs starts, and replaces when a call hangs or kills one. Or an object with the
            interface of `concurrent.futures.Executor`: a process or thread pool, Dask's
            `client.get_executor()`, `mpi4py.futures`; it stays open, and qbs cannot mend it when it breaks.
        timeout: Seconds that a call may take; no limit by default. For workers of qbs they count from when
            the worker starts the call, and its process is killed. For another executor they count from when
            all calls of the batch have been started, and the worker is lost to it. Nothing can stop a call
            in this process, so that a time-out needs an executor.
        retries: How often a call is made again that was too slow or whose worker died; with an executor that
            is not qbs's own only the latter, since each call that hangs costs it a worker.
        max_failures: The share of failed calls, from 0 to 1, above which the run stops with an error, once
            there are 20 calls.

    Raises:
        TypeError: If `executor` is something else.
        ValueError: If another setting is out of range, or there is a time-out without an executor.
    """

    executor: Any = None
    timeout: float | int | None = None
    retries: int = 1
    max_failures: float | int = 0.2

    def __post_init__(self) -> None:
        _require_executor(self.executor)
        if self.timeout is not None:
            if not (_is_number(self.timeout) and 0 < self.timeout < math.inf):
                raise ValueError(f"Calls: timeout must be a number of seconds above 0, not {self.timeout!r}")
            if self.executor is None:
                raise ValueError(
                    "Calls: a call in this process cannot be stopped, so timeout needs an executor, such as "
                    "executor=1 for one worker process"
                )
        if not isinstance(self.retries, int) or isinstance(self.retries, bool) or self.retries < 0:
            raise ValueError(f"Calls: retries must be a whole number from 0 up, not {self.retries!r}")
        if not (_is_number(self.max_failures) and 0 <= self.max_failures <= 1):
            raise ValueError(f"Calls: max_failures must be a share from 0 to 1, not {self.max_failures!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _require_executor(executor: Any) -> None:
    if executor is None or (callable(getattr(executor, "submit", None)) and not isinstance(executor, type)):
        return
    if isinstance(executor, bool) or not isinstance(executor, numbers.Integral):
        raise TypeError(
            "executor must be a number of worker processes, an object with the method submit of "
            f"concurrent.futures.Executor, or qbs.Calls, not {executor!r}"
        )
    if executor < 1:
        raise ValueError(f"executor must be at least 1 worker process, not {executor}")


def as_calls(executor: Any) -> Calls:
    """Return the settings that `executor=` stands for."""
    return executor if isinstance(executor, Calls) else Calls(executor)


@runtime_checkable
class _Workers(Protocol):
    """What makes calls: yields what is done and `None` while waiting, and can be stopped at any time."""

    def open(self) -> Iterator[None]: ...
    def results(self, tasks: Sequence[Any]) -> Iterator[tuple[int, Outcome] | None]: ...
    def stop(self) -> list[tuple[int, Outcome]]: ...
    def close(self) -> None: ...


class _InProcess:
    """Makes calls in this process, one after another."""

    def __init__(self, likelihood: BlackBox):
        self._likelihood = likelihood

    def open(self) -> Iterator[None]:
        return iter(())

    def results(self, tasks: Sequence[Any]) -> Iterator[tuple[int, Outcome] | None]:
        for number, parameters in enumerate(tasks):
            yield None
            yield number, self._likelihood.attempt(parameters)

    def stop(self) -> list[tuple[int, Outcome]]:
        return []

    def close(self) -> None:
        pass


class Caller:
    """Makes the calls of a run; a context manager that ends the workers that it started.

    Attributes:
        failures: The count of calls and failures of the run.
        num_made: Calls made so far.
        seconds: What they took, added up.

    Args:
        likelihood: What to call.
        calls: How.
        line: Where to show how far a batch is.

    Raises:
        ExecutorError: If the likelihood cannot be sent to a process.
    """

    def __init__(self, likelihood: BlackBox, calls: Calls | None = None, line: ProgressLine | None = None):
        calls = calls or Calls()
        self._line = line
        self.failures = Failures(likelihood.name, calls.max_failures)
        self.num_made, self.seconds = 0, 0.0
        self._workers: _Workers
        if calls.executor is None:
            self._workers = _InProcess(likelihood)
        elif isinstance(calls.executor, numbers.Integral):
            num_workers = int(calls.executor)
            self._workers = WorkerPool(pickled(likelihood), num_workers, calls.timeout, calls.retries)
        else:
            self._workers = Borrowed(calls.executor, likelihood, calls.timeout, calls.retries)

    def __enter__(self) -> "Caller":
        try:
            for _ in self._workers.open():
                self._show("waiting for workers")
        except BaseException:
            self._workers.close()
            raise
        self._show("")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._workers.close()

    def make(self, tasks: Tasks, numbers: Sequence[int], keep: Callable[[int, Outcome], None]) -> None:
        """Make calls, all at once where there are workers.

        Interrupted, it stops the calls at work, and those that are done have been kept.

        Args:
            tasks: The parameters of each.
            numbers: The number of each in the order of the run.
            keep: Called with the place of a call in `tasks` and its outcome as it is done, in any order.

        Raises:
            LikelihoodError: If too many calls of the run failed.
            ExecutorError: If the workers cannot go on.
        """
        try:
            for found in self._workers.results(tasks):
                if found is None:
                    self._tell()
                    continue
                self._take(*found, tasks, numbers, keep)
                self.failures.check()
        finally:
            for place, outcome in self._workers.stop():
                self._take(place, outcome, tasks, numbers, keep)

    def _take(
        self,
        place: int,
        outcome: Outcome,
        tasks: Tasks,
        numbers: Sequence[int],
        keep: Callable[[int, Outcome], None],
    ) -> None:
        keep(place, outcome)
        self.num_made += 1
        self.seconds += outcome.seconds
        self.failures.note(numbers[place], tasks[place], outcome)

    def _tell(self) -> None:
        if self.num_made and self.seconds >= _SLOW * self.num_made:
            failed = f", {self.failures.num_failed:,} failed" if self.failures.num_failed else ""
            self._show(f"{self.num_made:,} calls made at {self.seconds / self.num_made:.3g} s{failed}")

    def _show(self, text: str) -> None:
        if self._line is not None:
            self._line.note(text)

    @property
    def record(self) -> dict[str, Any]:
        """What the result keeps of the calls: how many were made and failed, and their seconds."""
        return {
            "num_new_calls": self.num_made,
            "num_failed_calls": self.failures.num_failed,
            "call_seconds": self.seconds,
        }
