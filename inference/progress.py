"""One live line of progress with an ETA, or plain lines where the output is no terminal."""

import math
import sys
import time
from collections import deque
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

_PLAIN_INTERVAL = 10.0  # seconds between lines where there is no terminal
_LIVE_INTERVAL = 0.1
_WINDOW = 0.5  # the share of the work so far that tells how long the rest will take


class ProgressLine:
    """Shows how far a run is; a context manager that does nothing when it is switched off.

    Args:
        title: What is running.
        show: `True` or `False`, or `None` to show on a terminal or in a notebook only. Where it is shown
            and the output is no terminal, a plain line is printed every ten seconds.
    """

    def __init__(self, title: str, *, show: bool | None = None):
        self._console = Console(file=sys.stderr)
        is_live = self._console.is_terminal or self._console.is_jupyter
        self._is_shown = is_live if show is None else show
        self._title = title
        self._start = self._last = self._noted = time.monotonic()
        self._shown: tuple[str, float | None, float | None] = ("", None, None)
        self._note = ""
        self._progress: Progress | None = None
        if self._is_shown and is_live:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[status]}", markup=False),
                TimeElapsedColumn(),
                TextColumn("{task.fields[eta]}"),
            )
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._task = self._progress.add_task(title, total=None, status="", eta="")

    def __enter__(self) -> "ProgressLine":
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    @property
    def is_due(self) -> bool:
        """Whether an update would be shown now; ask before work that only serves the display."""
        return self._is_shown and time.monotonic() - self._last >= self._interval

    @property
    def _interval(self) -> float:
        return _LIVE_INTERVAL if self._progress is not None else _PLAIN_INTERVAL

    def update(self, status: str, fraction: float | None = None, remaining: float | None = None) -> None:
        """Show a status and the time that is left.

        Args:
            status: Counts and rates, in words.
            fraction: Done part of the work in [0, 1], or `None` when it is not known.
            remaining: Seconds left, where more is known than the fraction tells; infinite before anything is.
        """
        if not self.is_due:
            return
        self._last = time.monotonic()
        self._shown = status, fraction, remaining
        self._show(status, fraction, remaining)

    def note(self, text: str) -> None:
        """Show some words after each status; at once where no status has come for a while.

        Args:
            text: What goes on between two updates, such as a slow call.
        """
        self._note = text
        now = time.monotonic()
        if text and self._is_shown and now - max(self._last, self._noted) >= 2 * self._interval:
            self._noted = now
            self._show(*self._shown)

    def _show(self, status: str, fraction: float | None, remaining: float | None) -> None:
        status = ", ".join(part for part in (status, self._note) if part)
        elapsed = time.monotonic() - self._start
        if remaining is None and fraction:
            remaining = elapsed * (1 - fraction) / fraction
        eta = "ETA --:--" if remaining is None or remaining == math.inf else f"ETA {_clock(remaining)}"
        if self._progress is not None:
            self._progress.update(
                self._task, total=1.0 if fraction else None, completed=fraction or 0.0, status=status, eta=eta
            )
        else:
            print(f"{self._title}: {status}, {_clock(elapsed)} elapsed, {eta}", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Pace:
    """Tells from the later half of the work so far, in any unit, how long the rest will take."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, float]] = deque()
        self._first: float | None = None

    def note(self, done: float | int) -> None:
        """Note that so much is done; what came before the first note, compiling, teaches nothing."""
        if self._first is None:
            self._first = done
        self._marks.append((done, time.monotonic()))
        start = done - _WINDOW * (done - self._first)
        while len(self._marks) > 2 and self._marks[1][0] < start:
            self._marks.popleft()

    def seconds_for(self, left: float | int) -> float:
        """Return the time that so much work will take, infinite where nothing is known yet."""
        (first, start), (last, end) = self._marks[0], self._marks[-1]
        return left * (end - start) / (last - first) if last > first else math.inf
