"""The calls of a slow likelihood on disk: none is lost when a run is killed, and none is made twice."""

import contextlib
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qbs.errors import CheckpointError
from qbs.inference.black_box import Outcome
from qbs.inference.checkpoint import Keeper, Saved, call_files
from qbs.inference.nested.call_file import (
    Appender,
    Layout,
    create,
    failure_line,
    outcomes,
    read,
    read_failures,
)

_SECTION = "journal"


class Journal:
    """Answers calls that the stopped run made, and keeps the others as they are made.

    Calls are found by their points, whatever the order: a run goes on with other workers, or with none. A
    point that the stopped run asked for twice is answered twice, by its two calls.

    Args:
        keeper: Of the run; the log lies beside its file.
        layout: Of the records.

    Raises:
        CheckpointError: If the log is of another run, damaged, without its checkpoint, or missing.
    """

    def __init__(self, keeper: Keeper, layout: Layout):
        self._keeper, self._layout = keeper, layout
        self._known: dict[bytes, deque[Outcome]] = {}
        self._calls: Appender | None = None
        self._failures: Appender | None = None
        self._waiting: list[tuple[np.ndarray, Mapping[str, Any], Outcome]] = []
        self._num_records, self._num_damaged = 0, 0
        self._failure: str | None = None
        if keeper.path is None:
            return
        keeper.attach(lambda: self.problems)
        self._path, self._failures_path = call_files(keeper.path)
        saved = keeper.found(_SECTION)
        if self._path.exists():
            self._go_on(is_kept=saved is not None)
        elif saved is not None and (num_calls := saved.facts["num_calls"]):
            raise CheckpointError(
                f"{self._path} is missing, the log of the {num_calls:,} calls of {keeper.path}: put it back, "
                "or delete the checkpoint too to start anew"
            )
        else:
            self._start()

    def _go_on(self, *, is_kept: bool) -> None:
        if not is_kept:
            raise CheckpointError(
                f"{self._path} is a log of calls without its checkpoint {self._keeper.path}: put that back, "
                "or delete the log too to start anew"
            )
        found = read(self._path)
        self._keeper.compare(self._path, found.identity)
        if found.layout != self._layout:
            raise CheckpointError(
                f"{self._path} is of another run: its points have {found.layout.dim} dimensions and its "
                f"parameters are {_named(found.layout)}; here they are {self._layout.dim} and "
                f"{_named(self._layout)}. Name another checkpoint, or delete this one to start anew"
            )
        reasons, size = read_failures(self._failures_path)
        points = np.ascontiguousarray(found.records["point"])
        for point, is_whole, outcome in zip(points, found.is_whole, outcomes(found, reasons), strict=True):
            if is_whole:
                self._known.setdefault(point.tobytes(), deque()).append(outcome)
        self._num_records = len(found.records)
        self._num_damaged = int(np.sum(~found.is_whole))
        self._calls = Appender(self._path, found.size)
        if size:
            self._failures = Appender(self._failures_path, size)

    def _start(self) -> None:
        """Begin the log, once its checkpoint is there; without a place for it the run goes on."""
        assert self._keeper.path is not None
        self._keeper.keep(_SECTION, self._saved, at_once=True)
        if not self._keeper.path.exists():
            return  # the keeper says why
        try:
            self._failures_path.unlink(missing_ok=True)
            create(self._path, self._keeper.identity, self._layout)
            self._calls = Appender(self._path)
        except OSError as error:
            self._fail(error)

    def known(self, point: np.ndarray) -> Outcome | None:
        """Return what came of the next call of the stopped run at a point of the cube, if there was one."""
        if not self._known or (calls := self._known.get(key := point.tobytes())) is None:
            return None
        outcome = calls.popleft()
        if not calls:
            del self._known[key]
        return outcome

    def add(self, point: np.ndarray, parameters: Mapping[str, Any], outcome: Outcome) -> None:
        """Keep a call that was made."""
        if not self._keeper.is_on:
            return
        self._waiting.append((point, parameters, outcome))
        if self._calls is None and self._keeper.is_due:
            self._start()
        if self._calls is not None:
            self._append_all(self._calls, is_last=False)
            self._keeper.keep(_SECTION, self._saved)

    def _append_all(self, calls: Appender, *, is_last: bool) -> None:
        """Append what waits, and have the disk take it at the end of a run."""
        try:
            self._append(calls)
            if is_last:
                for appender in (self._failures, calls):
                    if appender is not None:
                        appender.sync()
        except OSError as error:
            self._fail(error)
        else:
            self._failure = None

    def _append(self, calls: Appender) -> None:
        while self._waiting:
            point, parameters, outcome = self._waiting[0]
            if outcome.is_failure:
                if self._failures is None:
                    self._failures = Appender(self._failures_path)
                self._failures.append(failure_line(self._num_records, parameters, outcome))
            del self._waiting[0]
            self._num_records += 1
            calls.append(self._layout.pack(point, parameters, outcome))
        calls.flush()

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Have the disk take all calls as the body ends, also by an error or an interrupt."""
        try:
            yield
        finally:
            if self._keeper.is_on and self._calls is None:
                self._start()
            if self._calls is not None:
                self._append_all(self._calls, is_last=True)
            if self._keeper.is_on:
                self._keeper.keep(_SECTION, self._saved, at_once=True)

    def _saved(self) -> Saved:
        return Saved({"num_calls": self._num_records}, {})

    def _fail(self, error: OSError) -> None:
        """Let the run go on: it is worth more than its log."""
        if self._failure is None:
            print(
                f"qbs: the log of calls {self._path} could not be written ({error}); the run goes on, and "
                "tries again",
                file=sys.stderr,
            )
        self._failure = f"The log of calls {self._path} could not be written: {error}."

    @property
    def promise(self) -> str:
        """What to tell a user whose run stops: a sentence after a space, or nothing."""
        if self._calls is None or self._failure is not None:
            return ""
        return f" All calls are kept in {self._path}, and the same call of qbs.fit goes on from there."

    @property
    def problems(self) -> list[str]:
        """What a reader of the result must know."""
        said = [] if self._failure is None else [self._failure]
        if self._num_damaged:
            said.append(
                f"{self._num_damaged:,} damaged records of {self._path} were left out, and their calls made "
                "again."
            )
        return said


def _named(layout: Layout) -> str:
    return ", ".join(name for name, _ in layout.sites)


class CallRecords(NamedTuple):
    """The calls of a log, in the order in which they came back.

    Attributes:
        points: Points of the unit cube, shape (num_calls, dim).
        parameters: Parameter name to its values, shape (num_calls, then its own).
        log_likelihood: In nats, shape (num_calls,); `-inf` also where a call failed.
        status: How each call ended, `qbs.inference.black_box.Status` as whole numbers, 0 where all is well.
        seconds: How long each call took.
        reasons: Why each call failed; empty text where it did not.
    """

    points: np.ndarray
    parameters: dict[str, np.ndarray]
    log_likelihood: np.ndarray
    status: np.ndarray
    seconds: np.ndarray
    reasons: tuple[str, ...]


def read_calls(path: str | Path) -> CallRecords:
    """Return the likelihood calls that a run with a checkpoint has made so far.

    The run may be at work, done, or killed. Damaged records and one that is not complete are left out.

    Args:
        path: The checkpoint as given to `qbs.fit`, or the log beside it, whose name ends in `.calls`.

    Raises:
        FileNotFoundError: If there is no log: the likelihood was compiled, or there was no checkpoint.
        CheckpointError: If the file is something else, or its header is damaged.
    """
    path = Path(path)
    calls, failures = call_files(path)
    if path.suffix == ".calls" and not calls.exists():
        calls, failures = call_files(path.with_suffix(""))
    if not calls.exists():
        raise FileNotFoundError(
            f"there is no log of calls {calls}: only runs of a likelihood in plain Python with a checkpoint "
            "have one"
        )
    found = read(calls)
    told = outcomes(found, read_failures(failures)[0])
    records = found.records[found.is_whole]
    parameters, start = {}, 0
    for name, shape in found.layout.sites:
        size = int(np.prod(shape))
        columns = records["parameters"][:, start : start + size]
        parameters[name] = columns.reshape(len(records), *shape)
        start += size
    return CallRecords(
        points=records["point"].copy(),
        parameters=parameters,
        log_likelihood=records["log_likelihood"].copy(),
        status=records["status"].astype(int),
        seconds=records["seconds"].copy(),
        reasons=tuple(outcome.reason for outcome, kept in zip(told, found.is_whole, strict=True) if kept),
    )
