"""Worker processes of qbs's own: one call at a time each, killed and replaced when they hang.

The process that waits knows which call each worker is at. So a call that ends its worker is known, and so is
one that takes too long; the other workers go on.
"""

import contextlib
import multiprocessing
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing import connection
from typing import Any

from qbs.errors import ExecutorError
from qbs.inference.black_box import Outcome, Status, failed
from qbs.inference.worker import READY, Refused, serve

TICK = 0.5  # seconds between looks at the clock while nothing happens
_MAX_LOSSES = 3  # workers that may end one after another without being at a call
_KILL = 5.0  # seconds that a killed process may take to be gone
_ENDED = "ended"
_one_start = threading.Lock()
_GUARD = (
    "what it said is above. Workers run the script again to find its functions, so the call must stand under "
    '`if __name__ == "__main__":`'
)


class _Worker:
    """A process, and the number of the call that it is at."""

    def __init__(self, payload: bytes):
        # A fresh interpreter: a fork of a process with JAX's threads may stand still.
        context = multiprocessing.get_context("spawn")
        self.link, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, payload))
        with contextlib.nullcontext() if b"__main__" in payload else _without_script():
            self.process.start()
        theirs.close()
        self.is_ready = False
        self.task: int | None = None
        self._start = 0.0

    @property
    def seconds(self) -> float:
        """How long the worker has been at its call."""
        return time.monotonic() - self._start

    def give(self, number: int, parameters: Any) -> None:
        """Hand out a call."""
        self.link.send(parameters)
        self.task, self._start = number, time.monotonic()

    def hear(self) -> Any:
        """Return what the worker said, `None` where it says nothing, or that it has ended."""
        is_alive = self.process.is_alive()  # looked at first: it may speak and end
        try:
            if self.link.poll():
                return self.link.recv()
        except Exception:  # it closed its end, or was killed within a word
            return _ENDED
        return None if is_alive else _ENDED

    def end(self) -> int | None:
        """Kill the process, and return its exit code."""
        self.link.close()
        self.process.kill()
        self.process.join(_KILL)
        code = self.process.exitcode
        if code is not None:
            self.process.close()
        return code


@contextlib.contextmanager
def _without_script() -> Iterator[None]:
    """Hide from a process that starts in the body which script this is, so that it does not run it again.

    It takes the time of its imports, and would start workers of its own where the script has no guard.
    """
    names = vars(sys.modules["__main__"])
    with _one_start:
        hidden: dict[str, Any] = {name: names.pop(name) for name in ("__file__", "__spec__") if name in names}
        names["__spec__"] = None
        try:
            yield
        finally:
            names.update(hidden)


class WorkerPool:
    """Makes calls in processes of its own.

    Args:
        payload: The pickled likelihood.
        num_workers: How many processes.
        timeout: Seconds for one call, or `None`.
        retries: How often a call is made again after it was too slow or its worker died.
    """

    def __init__(self, payload: bytes, num_workers: int, timeout: float | int | None, retries: int):
        self._payload, self._num_workers = payload, num_workers
        self._timeout, self._retries = timeout, retries
        self._workers: list[_Worker] = []
        self._losses, self._has_started = 0, False

    def open(self) -> Iterator[None]:
        """Start the workers; yield while waiting, until the first of them is ready.

        Raises:
            ExecutorError: If a worker cannot load the likelihood, or the workers end before they are ready.
        """
        self._fill()
        while not any(worker.is_ready for worker in self._workers):
            for worker in self._stirring():
                self._welcome(worker)
            yield

    def results(self, tasks: Sequence[Any]) -> Iterator[tuple[int, Outcome] | None]:
        """Make calls, and yield the number of each and its outcome as it is done; `None` now and then.

        A call whose worker died is made again alone, when all others are done: memory that runs out can cost
        another worker than that of the call that needs too much.

        Raises:
            ExecutorError: If the workers end without being at a call.
        """
        self._fill()
        waiting, suspects = deque(range(len(tasks))), deque[int]()
        tries = [0] * len(tasks)
        left = len(tasks)
        while left:
            self._hand_out(tasks, waiting, suspects)
            yield None
            for worker in self._stirring():
                number = worker.task
                if number is None:
                    self._welcome(worker)
                    continue
                outcome = self._outcome(worker)
                if outcome is None:
                    continue
                is_lost = outcome.status in (Status.TIMED_OUT, Status.DIED)
                if is_lost and tries[number] < self._retries:
                    tries[number] += 1
                    (suspects if outcome.status == Status.DIED else waiting).append(number)
                else:
                    left -= 1
                    yield number, outcome

    def stop(self) -> list[tuple[int, Outcome]]:
        """End the calls at work; return those that were done and not yet yielded."""
        found = []
        for worker in list(self._workers):
            if worker.task is None:
                continue
            said = worker.hear()
            if isinstance(said, Outcome):
                found.append((worker.task, said))
                worker.task = None
            else:
                self._drop(worker)
        return found

    def close(self) -> None:
        """Kill all workers."""
        for worker in list(self._workers):
            self._drop(worker)

    def _fill(self) -> None:
        while len(self._workers) < self._num_workers:
            self._workers.append(_Worker(self._payload))

    def _drop(self, worker: _Worker) -> int | None:
        self._workers.remove(worker)
        return worker.end()

    def _hand_out(self, tasks: Sequence[Any], waiting: deque[int], suspects: deque[int]) -> None:
        for worker in [worker for worker in self._workers if worker.is_ready and worker.task is None]:
            is_alone = all(other.task is None for other in self._workers)
            source = waiting or (suspects if is_alone else None)
            if not source:
                return
            number = source.popleft()
            try:
                worker.give(number, tasks[number])
            except OSError:  # it ended while it was idle
                source.appendleft(number)
                self._lose(worker)

    def _stirring(self) -> list[_Worker]:
        """Return the workers that say something, ended or are late, after waiting half a second at most."""
        pause = TICK
        if self._timeout is not None:
            left = [self._timeout - worker.seconds for worker in self._workers if worker.task is not None]
            pause = max(0.0, min([pause, *left]))
        links = [source for w in self._workers for source in (w.link, w.process.sentinel)]
        ready = set(connection.wait(links, pause))
        return [
            w for w in self._workers if w.link in ready or w.process.sentinel in ready or self._is_late(w)
        ]

    def _is_late(self, worker: _Worker) -> bool:
        return self._timeout is not None and worker.task is not None and worker.seconds > self._timeout

    def _outcome(self, worker: _Worker) -> Outcome | None:
        """Return the outcome of a worker's call where it is over, and replace the worker where it must be."""
        said = worker.hear()
        if isinstance(said, Outcome):
            worker.task, self._losses = None, 0
            return said
        seconds = worker.seconds
        if said == _ENDED:
            code = self._replace(worker)
            return failed(Status.DIED, f"ended its worker process ({_ending(code)})", seconds)
        if self._is_late(worker):
            self._replace(worker)
            return failed(Status.TIMED_OUT, f"took longer than {self._timeout:g} s", seconds)
        return None

    def _replace(self, worker: _Worker) -> int | None:
        code = self._drop(worker)
        self._fill()
        return code

    def _welcome(self, worker: _Worker) -> None:
        """Hear what a worker without a call says: that it is ready, or why it is not."""
        said = worker.hear()
        if said == READY:
            worker.is_ready = self._has_started = True
        elif isinstance(said, Refused):
            raise ExecutorError(
                f"a worker process could not load the likelihood: {said.reason}. Workers import what they "
                "call: define the function in a module (a .py file), not in a notebook or at a prompt"
            )
        elif said == _ENDED:
            self._lose(worker)

    def _lose(self, worker: _Worker) -> None:
        """Replace a worker that ended without being at a call."""
        was_ready = worker.is_ready
        code = self._drop(worker)
        self._losses += 1
        if not self._has_started or self._losses >= _MAX_LOSSES:
            when = "while it had nothing to do" if was_ready else "before it was ready"
            hint = _GUARD if not self._has_started else "is there enough memory?"
            raise ExecutorError(f"a worker process ended {when} ({_ending(code)}): {hint}")
        self._fill()


def _ending(code: int | None) -> str:
    if code is None:
        return "and is not gone yet"
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
