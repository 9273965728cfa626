"""Calls through somebody else's executor: all points of a batch at once, gathered as they come back.

Nothing is asked of the executor but `submit`, and of its futures `result`, `done`, `cancel` and
`add_done_callback`.
"""

import concurrent.futures
import hashlib
import itertools
import math
import pickle
import queue
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from qbs.errors import ExecutorError
from qbs.inference.black_box import BlackBox, Outcome, Status, failed
from qbs.inference.worker import Shipped, answer
from qbs.inference.worker_pool import TICK

_serial = itertools.count()
_PATIENCE = 30.0  # least seconds that a free worker may take to answer
_BROKEN = (concurrent.futures.BrokenExecutor, concurrent.futures.CancelledError)
_REMEDY = "qbs cannot mend an executor that is not its own: make a new one, or let qbs make it, executor=n"


def pickled(likelihood: BlackBox) -> bytes:
    """Return the pickle of a likelihood.

    Raises:
        ExecutorError: If it has none; the message names the function, or the data.
    """
    try:
        return pickle.dumps(likelihood)
    except Exception as error:
        try:
            pickle.dumps(likelihood.function)
        except Exception:
            named = getattr(likelihood.function, "__qualname__", type(likelihood.function).__name__)
            what = f"log_likelihood of {likelihood.name!r} is {named!r}, which"
            remedy = "define it with def at the top of a module (a .py file)"
        else:
            what = f"the data given to qbs.fit with {likelihood.name!r}"
            remedy = "pass arrays, numbers and text, or load the data inside the function"
        raise ExecutorError(
            f"{what} cannot be sent to a process ({type(error).__name__}: {error}): {remedy}, or use "
            "threads, executor=concurrent.futures.ThreadPoolExecutor(n)"
        ) from error


def _shipped(likelihood: BlackBox, executor: Any) -> BlackBox | Shipped:
    """Return a likelihood as an executor can take it."""
    if isinstance(executor, concurrent.futures.ThreadPoolExecutor):
        return likelihood
    try:
        payload = pickled(likelihood)
    except ExecutorError:
        if isinstance(executor, concurrent.futures.ProcessPoolExecutor):
            raise
        return likelihood  # it may pickle in a way of its own, as Dask does, or have no processes
    return Shipped(payload, hashlib.sha256(payload).hexdigest())


class _Given(NamedTuple):
    """A call that an executor was given.

    Attributes:
        number: Of the call; below 0 it is no call, but asks whether a worker is free.
        future: What the executor returned.
    """

    number: int
    future: Any


class Borrowed:
    """Makes calls through an executor that is not qbs's own, and neither mends it nor shuts it down.

    Args:
        executor: The executor.
        likelihood: What to call.
        timeout: Seconds for one call, counted from when a worker is free; or `None`.
        retries: How often a call is made again after its worker died, where the executor survives that.
    """

    def __init__(self, executor: Any, likelihood: BlackBox, timeout: float | int | None, retries: int):
        self._executor, self._likelihood = executor, _shipped(likelihood, executor)
        self._timeout, self._retries = timeout, retries
        self._pending: dict[int, Any] = {}
        self._arrived: queue.SimpleQueue[_Given] = queue.SimpleQueue()
        self._question, self._begun = -1, math.inf

    def open(self) -> Iterator[None]:
        """Let a worker load the likelihood; yield while waiting.

        Raises:
            ExecutorError: If it cannot.
        """
        self._submit(self._question, None)
        while (found := self._next(TICK)) is None:
            yield
        said = _said(found)
        if isinstance(said, BaseException):
            raise ExecutorError(
                f"the executor could not load the likelihood in a worker ({_told(said)}): define "
                "log_likelihood in a module (a .py file) that the workers can import"
            ) from said

    def results(self, tasks: Sequence[Any]) -> Iterator[tuple[int, Outcome] | None]:
        """Make calls, and yield the number of each and its outcome as it is done; `None` now and then.

        Raises:
            ExecutorError: If the executor breaks, or all its workers hang.
        """
        self._pending, self._arrived = {}, queue.SimpleQueue()
        tries, left = [0] * len(tasks), len(tasks)
        quiet = self._give(tasks, range(len(tasks)))
        while left:
            yield None
            again = []
            for number, outcome, retries in self._come_back(quiet):
                quiet = time.monotonic()
                if tries[number] < retries:
                    tries[number] += 1
                    again.append(number)
                else:
                    left -= 1
                    yield number, outcome
            if again:
                quiet = self._give(tasks, again)
        self._cancel()

    def _give(self, tasks: Sequence[Any], numbers: Iterable[int]) -> float:
        """Submit calls, and return the time."""
        for number in numbers:
            self._submit(number, tasks[number])
        if self._timeout is not None:
            # A worker answers this after all calls before have begun: from then on their time counts.
            self._question -= 1
            self._submit(self._question, None)
            self._begun = math.inf
        return time.monotonic()

    def _come_back(self, quiet: float) -> Iterator[tuple[int, Outcome, int]]:
        """Wait a little for a call; give up those that are out for too long.

        With each comes how often it may be made again: a call that hangs takes a worker each time.
        """
        found = self._next(TICK)
        if found is not None and found.number >= 0:
            outcome = _outcome(found)
            yield found.number, outcome, self._retries if outcome.status == Status.DIED else 0
        elif found is not None:
            self._begun = time.monotonic() if found.number == self._question else self._begun
        elif self._timeout is None:
            return
        elif time.monotonic() - self._begun > self._timeout:
            given_up = [(number, future) for number, future in sorted(self._pending.items()) if number >= 0]
            self._pending = {}
            # Dask's futures never say that they run; to cancel one makes Dask take its worker for free.
            is_told = any(_is_running(future) for _, future in given_up)
            for number, future in given_up:
                hung = failed(Status.TIMED_OUT, f"took longer than {self._timeout:g} s", float(self._timeout))
                may_wait = not _is_running(future)
                if is_told and may_wait:
                    future.cancel()
                yield number, hung, max(1, self._retries) if may_wait else 0
        elif (silence := time.monotonic() - quiet) > self._timeout + max(self._timeout, _PATIENCE):
            raise ExecutorError(
                f"nothing came back from the executor for {silence:.0f} s: all its workers hang, or there "
                f"are none. {_REMEDY}"
            )

    def stop(self) -> list[tuple[int, Outcome]]:
        """Cancel what is queued; return what is done and not yet yielded."""
        found = []
        while (given := self._next(0.0)) is not None:
            said = _said(given)
            if given.number >= 0 and isinstance(said, Outcome):
                found.append((given.number, said))
        self._cancel()
        return found

    def close(self) -> None:
        """Cancel what is queued; the executor stays as it is."""
        self._cancel()

    def _submit(self, number: int, parameters: Any) -> None:
        arrived = self._arrived
        try:
            # Dask takes equal arguments for the same call: the number makes them different.
            future = self._executor.submit(answer, self._likelihood, parameters, next(_serial))
        except Exception as error:
            raise ExecutorError(f"the executor takes no calls ({_told(error)}). {_REMEDY}") from error
        self._pending[number] = future
        future.add_done_callback(lambda _: arrived.put(_Given(number, future)))

    def _next(self, seconds: float) -> _Given | None:
        """Return a call that is done, waiting so long for one; those that were given up do not count."""
        while True:
            try:
                found = self._arrived.get(timeout=seconds) if seconds else self._arrived.get_nowait()
            except queue.Empty:
                return None
            if self._pending.get(found.number) is found.future:
                del self._pending[found.number]
                return found

    def _cancel(self) -> None:
        pending, self._pending = self._pending, {}
        for future in pending.values():
            future.cancel()


def _is_running(future: Any) -> bool:
    return bool(future.running()) if hasattr(future, "running") else False


def _said(given: _Given) -> Any:
    """Return what a worker answered, or the error that stands in for it; an interrupt goes on."""
    try:
        return given.future.result(0)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return error


def _outcome(found: _Given) -> Outcome:
    said = _said(found)
    if isinstance(said, Outcome):
        return said
    if isinstance(said, _BROKEN):
        raise ExecutorError(
            f"the executor broke during a call ({_told(said)}): a worker was killed, perhaps by the "
            f"likelihood. {_REMEDY}, which finds the call and goes on"
        ) from said
    return failed(Status.DIED, f"was lost with its worker ({_told(said)})", 0.0)


def _told(error: Any) -> str:
    return f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else repr(error)
