"""The line of progress: on a terminal, on none, and switched off."""

import io
import math
import re
from contextlib import redirect_stderr

import pytest

from qbs.inference import progress
from qbs.inference.progress import Pace, ProgressLine


class _Terminal(io.StringIO):
    def isatty(self):
        return True


class _Clock:
    """A clock that moves when it is told to."""

    now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = _Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def stderr(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "JUPYTER_COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    return io.StringIO()  # for `redirect_stderr` in the test: pytest sets sys.stderr anew after the fixtures


@pytest.fixture
def terminal(monkeypatch, stderr):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "150")
    return _Terminal()


def test_silent_by_default_where_there_is_no_terminal(clock, stderr):
    with redirect_stderr(stderr), ProgressLine("model") as line:
        for _ in range(5):
            clock.now += 100
            assert not line.is_due
            line.update("step", 0.5)
    assert stderr.getvalue() == ""


def test_plain_lines_every_ten_seconds(clock, stderr):
    with redirect_stderr(stderr), ProgressLine("model NUTS", show=True) as line:
        line.update("at once", 0.01)
        clock.now += 9.9
        assert not line.is_due
        line.update("too early", 0.1)
        clock.now += 0.2
        assert line.is_due
        line.update("10 draws", 0.25)
        assert not line.is_due
        clock.now += 5
        line.update("too early", 0.3)
        clock.now += 3600
        line.update("20 draws")
        clock.now += 10
        line.update("30 draws", 1.0)
    assert stderr.getvalue().splitlines() == [
        "model NUTS: 10 draws, 0:10 elapsed, ETA 0:30",
        "model NUTS: 20 draws, 1:00:15 elapsed, ETA --:--",
        "model NUTS: 30 draws, 1:00:25 elapsed, ETA 0:00",
    ]


@pytest.mark.parametrize(
    ("elapsed", "fraction", "eta"),
    [
        (60, 0.5, "1:00"),
        (60, 0.01, "1:39:00"),
        (90, 0.9, "0:10"),
        (10, 1e-6, "2777:46:30"),
        (10, 0.0, "--:--"),
    ],
)
def test_the_time_left_is_proportional(clock, stderr, elapsed, fraction, eta):
    with redirect_stderr(stderr), ProgressLine("m", show=True) as line:
        clock.now += elapsed
        line.update("s", fraction)
    assert stderr.getvalue().rstrip().endswith(f"ETA {eta}")


def test_before_anything_is_known_there_is_no_time_left(clock, stderr):
    with redirect_stderr(stderr), ProgressLine("model NUTS", show=True) as line:
        clock.now += 20
        line.update("1 draw", 1e-4, math.inf)
    assert stderr.getvalue().rstrip().endswith("ETA --:--")


def test_switched_off_on_a_terminal(clock, terminal):
    with redirect_stderr(terminal), ProgressLine("model", show=False) as line:
        clock.now += 100
        assert not line.is_due
        line.update("step", 0.5)
    assert terminal.getvalue() == ""


@pytest.mark.parametrize("show", [None, True])
def test_one_live_line_on_a_terminal(clock, terminal, show):
    with redirect_stderr(terminal), ProgressLine("model NUTS", show=show) as line:
        clock.now += 0.05
        assert not line.is_due
        clock.now += 0.1
        assert line.is_due
        line.update("10 draws", 0.25)
        assert not line.is_due
        clock.now += 30
        line.update("20 draws", 0.5)
        line._progress.refresh()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert "model NUTS" in text
    assert "20 draws" in text
    assert "ETA 0:30" in text
    assert "\n" not in text.strip().split("20 draws")[1].rstrip()
    assert terminal.getvalue().endswith("\x1b[2K")  # the line wipes itself when it ends


def test_names_are_no_markup(clock, terminal):
    with redirect_stderr(terminal), ProgressLine("model [red]x[/red]") as line:
        clock.now += 1
        line.update("ln Z [bold]", 0.5)
        line._progress.refresh()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert "model [red]x[/red]" in text
    assert "ln Z [bold]" in text


def test_the_terminal_is_given_back_after_an_exception(clock, terminal):
    def interrupted():
        with redirect_stderr(terminal), ProgressLine("model") as line:
            clock.now += 1
            line.update("step", 0.5)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "\x1b[?25h" in terminal.getvalue()  # the cursor is shown again


def test_the_pace_is_that_of_the_later_half(clock):
    pace = Pace()
    clock.now += 100  # compiling
    pace.note(1)
    assert pace.seconds_for(9) == float("inf")
    for done in (2, 3, 4, 5):
        clock.now += 10
        pace.note(done)
    assert pace.seconds_for(5) == pytest.approx(50)
    for done in range(6, 14):
        clock.now += 1
        pace.note(done)
    assert pace.seconds_for(1) == pytest.approx(1)
    assert pace.seconds_for(0) == 0
