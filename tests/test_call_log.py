"""The log of the calls of a slow likelihood: no call is lost or made twice, and a damaged log is refused."""

import errno
import functools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import numpyro.distributions as dist
import psutil
import pytest
import slow_functions
from scipy.stats import norm
from slow_fits import LINE, SHORT, AtOnce, fit, require_same

from qbs.errors import CheckpointError
from qbs.inference import checkpoint
from qbs.inference.black_box import Status
from qbs.inference.nested import call_file, read_calls


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run in one go, which other folders of lines do not change."""
    folder = tmp_path_factory.mktemp("lines")
    return fit(slow_functions.counting, str(folder), priors=LINE, method=SHORT, seed=7)


@pytest.fixture
def counted(tmp_path):
    """A fit in two dimensions whose calls leave lines in files, and the count of these."""
    folder = tmp_path / "lines"
    folder.mkdir()

    def count():
        return sum(len(path.read_text().splitlines()) for path in folder.iterdir())

    run = functools.partial(fit, slow_functions.counting, str(folder), priors=LINE, method=SHORT, seed=7)
    return run, count


@pytest.mark.serial
def test_kill_9_loses_no_call(counted, whole, tmp_path):
    run, count = counted
    path = tmp_path / "run"
    process = subprocess.Popen([sys.executable, __file__, str(tmp_path / "lines"), path])
    log = tmp_path / "run.calls"
    while not log.exists() or len(read_calls(path).points) < 50:
        assert process.poll() is None
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was done too soon for this test"
    assert psutil.wait_procs(children, timeout=20)[1] == []  # workers end with it
    kept = read_calls(path)
    num_kept, num_made = len(kept.points), count() - 1  # one to try it
    assert num_kept <= num_made <= num_kept + 2  # two workers may have been at one each
    found = run(checkpoint=path)
    assert found.provenance["num_new_calls"] == found.num_likelihood_calls - num_kept
    assert count() - 2 == num_made + found.provenance["num_new_calls"]
    np.testing.assert_array_equal(read_calls(path).points[:num_kept], kept.points)
    require_same(found, whole)


def test_a_log_is_read_back(tmp_path):
    path = tmp_path / "run.checkpoint"
    priors = {"a": dist.Uniform(-1, 3).expand([2]), "b": dist.Normal(0, 1), "n": dist.Poisson(3.0)}

    def log_likelihood(p):
        if float(p["b"]) > 1.5:
            raise RuntimeError("too large")
        return -float(np.sum(np.asarray(p["a"]) ** 2) + p["b"] ** 2 + abs(int(p["n"]) - 2))

    found = fit(log_likelihood, priors=priors, method=SHORT, checkpoint=path)
    for name in (path, tmp_path / "run.checkpoint.calls"):
        calls = read_calls(name)
        assert len(calls.points) == found.num_likelihood_calls
        assert calls.points.shape[1] == 4
        assert list(calls.parameters) == ["a", "b", "n"]
        assert calls.parameters["a"].shape == (len(calls.points), 2)
        a, b, n = calls.parameters.values()
        is_good = calls.status == Status.OK
        np.testing.assert_array_equal(is_good, b <= 1.5)
        expected = -(np.sum(a**2, axis=1) + b**2 + np.abs(n - 2))
        np.testing.assert_allclose(calls.log_likelihood[is_good], expected[is_good], rtol=1e-12)
        assert np.all(calls.log_likelihood[~is_good] == -math.inf)
        np.testing.assert_allclose(calls.points[:, 2], norm.cdf(b), atol=1e-9)
        assert np.all(calls.seconds >= 0)
        assert {calls.reasons[i] for i in np.flatnonzero(~is_good)} == {"raised RuntimeError: too large"}
    lines = (tmp_path / "run.checkpoint.failures").read_text().splitlines()
    said = json.loads(lines[0])
    assert (said["status"], said["reason"]) == ("RAISED", "raised RuntimeError: too large")
    assert said["parameters"]["b"] > 1.5
    with pytest.raises(FileNotFoundError, match="there is no log of calls"):
        read_calls(tmp_path / "other")
    checkpoint.discard(path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that is done, with its files, and how to go on from such files."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "lines").mkdir()
    lines = str(folder / "lines")
    run = functools.partial(fit, slow_functions.counting, lines, priors=LINE, method=SHORT, seed=7)
    whole = run(checkpoint=folder / "run")
    require_same(run(checkpoint=folder / "run"), whole)
    return folder, whole, run


@pytest.fixture
def stopped(tmp_path, finished):
    """Files of a run that is done, and how to go on from them."""
    folder, whole, run = finished
    for file in folder.glob("run*"):
        shutil.copy(file, tmp_path)
    path, expected = tmp_path / "run", whole.problems.copy()

    def go_on():
        found = run(checkpoint=path)
        problems = [problem for problem in found.problems if problem not in expected]
        found.problems[:] = expected
        require_same(found, whole)
        return found.provenance["num_new_calls"], problems

    return path, tmp_path / "run.calls", go_on


def test_a_torn_record_is_cut_off(stopped):
    _, log, go_on = stopped
    data = log.read_bytes()
    size = call_file.read(log).layout.record.itemsize
    log.write_bytes(data[:-5])
    assert go_on() == (1, [])
    assert log.stat().st_size == len(data)
    log.write_bytes(data[:-size] + b"\0" * 3 * size)  # as after a power cut
    assert go_on() == (1, [])
    assert log.stat().st_size == len(data)


def test_a_damaged_record_is_left_out_and_told(stopped):
    _, log, go_on = stopped
    data, before = bytearray(log.read_bytes()), call_file.read(log)
    data[-10 * before.layout.record.itemsize + 3] ^= 1
    log.write_bytes(data)
    num_new, problems = go_on()
    assert num_new == 1
    assert problems == [f"1 damaged records of {log} were left out, and their calls made again."]
    assert len(read_calls(log).points) == len(before.records)  # one less, and one more


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda path, log: log.write_bytes(b"something else"), "is not a log of likelihood calls"),
        (lambda path, log: log.write_bytes(b""), "is not a log of likelihood calls"),
        (lambda path, log: log.write_bytes(b"QBSCALLS\1\0\0\0" + log.read_bytes()[12:40]), "its header"),
        (lambda path, log: log.write_bytes(b"QBSCALLS\2" + log.read_bytes()[9:]), "format version 2"),
        (lambda path, log: log.unlink(), r"run.calls is missing, the log of the \d+ calls"),
        (lambda path, log: path.unlink(), "run.calls is a log of calls without its checkpoint"),
    ],
    ids=["other", "empty", "header", "newer", "missing", "alone"],
)
def test_files_that_do_not_belong_are_refused(stopped, harm, words):
    path, log, go_on = stopped
    harm(path, log)
    before = {file: file.read_bytes() for file in (path, log) if file.exists()}
    with pytest.raises(CheckpointError, match=words):
        go_on()
    assert {file: file.read_bytes() for file in (path, log) if file.exists()} == before


def test_a_log_of_another_run_is_refused(stopped, finished, tmp_path):
    _, log, go_on = stopped
    other = tmp_path / "other"
    lines = str(finished[0] / "lines")
    fit(slow_functions.counting, lines, priors=LINE, method=SHORT, seed=8, checkpoint=other)
    log.write_bytes((tmp_path / "other.calls").read_bytes())
    with pytest.raises(CheckpointError, match=r"run.calls is of another run: seed\[1\] was 8 and is 7"):
        go_on()


def test_a_log_of_other_dimensions_is_refused(stopped):
    _, log, go_on = stopped
    found = call_file.read(log)
    call_file.create(log, found.identity, call_file.Layout(1, (("z", ()),)))
    words = "its points have 1 dimensions and its parameters are z; here they are 2 and x, y"
    with pytest.raises(CheckpointError, match=words):
        go_on()


@pytest.mark.parametrize("recovers", [True, False])
def test_a_full_disk_costs_the_log_and_not_the_run(recovers, counted, whole, tmp_path, monkeypatch, capsys):
    run, _ = counted
    num_written = 0

    def write(descriptor, data):
        nonlocal num_written
        is_full = num_written > 3000 and not (recovers and num_written > 3500)
        num_written += 50 if is_full else 0
        if is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        num_written += (done := os.write(descriptor, data[:37]))  # not all at once
        return done

    with monkeypatch.context() as patch:
        patch.setattr(call_file, "_write", write)
        found = run(checkpoint=tmp_path / "run")
    assert capsys.readouterr().err.count("No space left on device); the run goes on") == 1
    if recovers:
        require_same(found, whole)
        assert len(read_calls(tmp_path / "run").points) == whole.num_likelihood_calls
    else:
        assert "run.calls could not be written: [Errno 28]" in found.problems.pop()
        require_same(found, whole)
        num_kept = len(read_calls(tmp_path / "run").points)
        assert 0 < num_kept < whole.num_likelihood_calls
        again = run(checkpoint=tmp_path / "run")
        assert again.provenance["num_new_calls"] == whole.num_likelihood_calls - num_kept
        require_same(again, whole)


def test_a_run_goes_on_with_other_workers(counted, whole, tmp_path):
    run, _ = counted
    path = tmp_path / "run"

    class Stopping(AtOnce):
        num_calls = 0

        def submit(self, function, *args):
            self.num_calls += 1
            if self.num_calls == 100:
                raise KeyboardInterrupt
            return super().submit(function, *args)

    first = run(checkpoint=path, executor=Stopping())
    assert first.provenance["is_interrupted"]
    num_kept = len(read_calls(path).points)
    assert num_kept == first.num_likelihood_calls == 98  # one was to load the likelihood
    found = run(checkpoint=path, executor=2)
    assert found.provenance["num_new_calls"] == found.num_likelihood_calls - num_kept
    require_same(found, whole)


if __name__ == "__main__":
    fit(
        slow_functions.counting,
        sys.argv[1],
        priors=LINE,
        method=SHORT,
        seed=7,
        executor=2,
        checkpoint=Path(sys.argv[2]),
    )
