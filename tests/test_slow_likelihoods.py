"""Likelihoods that take long, hang, fail or kill their worker: by executors, in a log on disk, reweighted."""

import concurrent.futures
import errno
import functools
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import numpyro.distributions as dist
import psutil
import pytest
import slow_functions
from scipy.stats import norm

import qbs
from qbs.errors import CheckpointError, ExecutorError, LikelihoodError, ModelError
from qbs.inference import checkpoint, executors
from qbs.inference.black_box import BlackBox, Status
from qbs.inference.calls import Caller
from qbs.inference.nested import Dynesty, call_file, read_calls
from qbs.inference.progress import ProgressLine

pytestmark = pytest.mark.serial
METHOD = Dynesty(num_live=40, dlogz=0.5, batch_size=8)
SHORT = Dynesty(num_live=40, dlogz=0.5, batch_size=8, max_calls=300)
PRIORS = {"x": dist.Uniform(0, 1)}
LINE = {"x": dist.Uniform(0, 1), "y": dist.Uniform(0, 1)}


def fit(function, *data, priors=PRIORS, method=METHOD, seed=1, **settings):
    target = qbs.Target(function, priors, name="box")
    return qbs.fit(target, *data, method=method, key=jax.random.key(seed), **settings)


def require_same(found, expected):
    assert found.log_evidence == expected.log_evidence
    assert found.log_evidence_error == expected.log_evidence_error
    assert found.num_likelihood_calls == expected.num_likelihood_calls
    assert found.problems == expected.problems
    np.testing.assert_array_equal(found.log_weights, expected.log_weights)
    for name, values in expected.samples.items():
        np.testing.assert_array_equal(found.samples[name], values)


class AtOnce:
    """The least that looks like an executor, in this process."""

    def submit(self, function, *args):
        future = concurrent.futures.Future()
        future.set_result(function(*args))
        return future


class DaemonThreads:
    """An executor like those of clusters: some workers, a queue, no way to stop a call."""

    def __init__(self, num_workers):
        self._calls = []
        self._has_calls = threading.Condition()
        for _ in range(num_workers):
            threading.Thread(target=self._work, daemon=True).start()

    def submit(self, function, *args):
        future = concurrent.futures.Future()
        with self._has_calls:
            self._calls.append((future, function, args))
            self._has_calls.notify()
        return future

    def _work(self):
        while True:
            with self._has_calls:
                while not self._calls:
                    self._has_calls.wait()
                future, function, args = self._calls.pop(0)
            if future.set_running_or_notify_cancel():
                future.set_result(function(*args))


def make(function, tasks, *data, **settings):
    """Make calls; return their outcomes in order, and the count of failures."""
    found = {}
    with Caller(BlackBox(function, data, "box"), qbs.Calls(**settings)) as caller:
        caller.make(tasks, range(len(tasks)), found.__setitem__)
    return [found[number] for number in range(len(tasks))], caller.failures


def points(*values):
    return [{"x": np.float64(value)} for value in values]


# Who makes the calls.


@pytest.fixture(scope="module")
def whole():
    return fit(slow_functions.gaussian)


@pytest.mark.parametrize("kind", ["own processes", "processes", "threads", "at once", "queue"])
def test_the_posterior_does_not_depend_on_the_executor(kind, whole):
    context = multiprocessing.get_context("spawn")
    executor = {
        "own processes": lambda: 2,
        "processes": lambda: concurrent.futures.ProcessPoolExecutor(2, mp_context=context),
        "threads": lambda: concurrent.futures.ThreadPoolExecutor(2),
        "at once": AtOnce,
        "queue": lambda: DaemonThreads(3),
    }[kind]()
    found = fit(slow_functions.gaussian, executor=executor)
    require_same(found, whole)
    assert found.provenance["num_new_calls"] == whole.num_likelihood_calls
    if isinstance(executor, concurrent.futures.Executor):
        assert executor.submit(abs, -1).result() == 1  # it is left open
        executor.shutdown()


def test_calls_are_made_in_other_processes_at_once(tmp_path):
    outcomes, _ = make(slow_functions.meet, points(*range(4)), str(tmp_path), 2, executor=2)
    pids = {int(outcome.value) for outcome in outcomes}
    assert os.getpid() not in pids
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)  # they end with the caller


@pytest.mark.parametrize("kind", ["own", "threads"])
@pytest.mark.parametrize("is_float64", [True, False])
def test_workers_compute_in_the_precision_of_the_run(kind, is_float64):
    likelihood = BlackBox(slow_functions.in_jax, (), "box", is_float64)
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        found = {}
        with Caller(likelihood, qbs.Calls(1 if kind == "own" else threads)) as caller:
            caller.make(points(0.1, 0.2), range(2), found.__setitem__)
    assert [found[number].value for number in range(2)] == [64.0 if is_float64 else 32.0] * 2


def test_a_closure_needs_no_pickle_in_threads(whole):
    folder = []

    def log_likelihood(p):
        folder.append(float(p["x"]))
        return slow_functions.gaussian(p)

    with concurrent.futures.ThreadPoolExecutor(2) as executor:
        require_same(fit(log_likelihood, executor=executor), whole)
    assert len(folder) == whole.num_likelihood_calls + 1  # one to try it


@pytest.mark.parametrize("own", [True, False])
def test_what_cannot_be_sent_is_said_before_the_run(own):
    calls = []

    def log_likelihood(p):
        calls.append(float(p["x"]))
        return 0.0

    with concurrent.futures.ProcessPoolExecutor(1) as pool:
        executor = 1 if own else pool
        with pytest.raises(
            ExecutorError, match=r"'box' is '.*log_likelihood', which cannot be sent .* module"
        ):
            fit(log_likelihood, executor=executor)
        with pytest.raises(ExecutorError, match=r"the data given to qbs.fit with 'box' cannot be sent"):
            fit(slow_functions.careless, threading.Lock(), executor=executor)
    assert len(calls) == 1  # to try it


def test_what_workers_cannot_import_is_said_before_the_run(monkeypatch):
    module = type(sys)("nowhere_to_be_found")
    exec("def log_likelihood(p): return float(p['x'])", vars(module))
    monkeypatch.setitem(sys.modules, "nowhere_to_be_found", module)
    with pytest.raises(ExecutorError, match=r"could not load the likelihood: ModuleNotFoundError.* a module"):
        fit(module.log_likelihood, executor=2)
    pool = concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    with pool, pytest.raises(ExecutorError, match=r"in a worker \(ModuleNotFoundError"):
        fit(module.log_likelihood, executor=pool)


SCRIPT = """
from qbs.inference.black_box import BlackBox
from qbs.inference.calls import Caller, Calls

def log_likelihood(p):
    return p["x"] ** 2

{guard}
    with Caller(BlackBox(log_likelihood, (), "box"), Calls(2)) as caller:
        caller.make([dict(x=3.0)], [0], lambda place, outcome: print(outcome.value))
"""


@pytest.mark.parametrize("guard", ['if __name__ == "__main__":', "if True:"])
def test_a_function_of_the_script_itself(guard, tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format(guard=guard))
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=120, check=False)
    if "main" in guard:
        assert done.stdout == "9.0\n", done.stderr
    else:
        assert done.returncode == 1
        assert "ended before it was ready" in done.stderr.splitlines()[-1]
        assert 'if __name__ == "__main__":' in done.stderr.splitlines()[-1]


def test_a_compiled_likelihood_needs_no_executor(key):
    def in_jax(p):
        return -0.5 * ((p["x"] - 0.5) / 0.1) ** 2

    with pytest.raises(ModelError, match="executor= serves likelihoods in plain Python; that of 'box'"):
        fit(in_jax, executor=2)
    target = qbs.Target(in_jax, PRIORS, name="box", in_jax=False)
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        found = qbs.fit(target, method=METHOD, key=key, executor=threads)
    assert found.provenance["num_new_calls"] == found.num_likelihood_calls
    with pytest.raises(ModelError, match=r"needs the value|cannot be run"):
        qbs.fit(qbs.Target(slow_functions.gaussian, PRIORS, in_jax=True), method=METHOD, key=key)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"executor": 0}, ValueError, "at least 1 worker process"),
        ({"executor": True}, TypeError, "a number of worker processes"),
        ({"executor": "many"}, TypeError, "a number of worker processes"),
        ({"executor": AtOnce}, TypeError, "a number of worker processes"),
        ({"timeout": 1.0}, ValueError, "a call in this process cannot be stopped"),
        ({"executor": 1, "timeout": 0.0}, ValueError, "timeout must be a number of seconds"),
        ({"executor": 1, "timeout": math.nan}, ValueError, "timeout must be a number of seconds"),
        ({"retries": -1}, ValueError, "retries must be a whole number"),
        ({"max_failures": 1.5}, ValueError, "max_failures must be a share"),
        ({"max_failures": math.nan}, ValueError, "max_failures must be a share"),
    ],
)
def test_bad_settings_name_themselves(settings, error, words):
    with pytest.raises(error, match=words):
        qbs.Calls(**settings)


# Calls that fail.

REASONS = {
    "hang": (Status.TIMED_OUT, "took longer than 0.5 s"),
    "raise": (Status.RAISED, "raised RuntimeError: the solver diverged"),
    "nan": (Status.NAN, "returned nan"),
    "inf": (Status.INFINITE, "returned inf"),
    "none": (Status.NOT_A_NUMBER, "returned None: its return is missing"),
    "shape": (Status.NOT_A_NUMBER, "must return one number; it returned an array of shape (2,)"),
    "text": (Status.NOT_A_NUMBER, "returned text, '1.5', which is not a number"),
    "type": (Status.NOT_A_NUMBER, "returned a dict, and to make one number of it raised TypeError"),
    "die": (Status.DIED, "ended its worker process (SIGKILL)"),
    "leave": (Status.DIED, "ended its worker process (exit code 3)"),
    "end": (Status.RAISED, "raised SystemExit: done"),
}


@pytest.mark.parametrize("way", slow_functions.WAYS)
def test_a_bad_call_is_found_and_the_others_go_on(way):
    tasks = points(0.5, 0.9, 0.4, 0.3, 0.6, 0.5, 0.45)
    outcomes, failures = make(
        slow_functions.bad, tasks, way, 0.8, executor=2, timeout=0.5 if way == "hang" else 30
    )
    status, reason = REASONS[way]
    for task, outcome in zip(tasks, outcomes, strict=True):
        if task["x"] == 0.9:
            assert (outcome.value, outcome.status) == (-math.inf, status)
            assert outcome.reason.startswith(reason)
        else:
            assert outcome.value == slow_functions.gaussian(task)
    assert (failures.num_calls, failures.num_failed) == (7, 1)
    assert failures.problems[0].startswith("1 of 7 likelihood calls failed (14.3%: 1 ")
    assert failures.problems[0].endswith("; the parameters were x = 0.9.")


def test_a_call_is_made_again_after_its_worker_died(tmp_path):
    tasks = points(-1, 1, -2, 2, 3, 4, -3)
    outcomes, failures = make(slow_functions.once, tasks, tmp_path, executor=2)
    assert [outcome.value for outcome in outcomes] == [float(task["x"]) for task in tasks]
    assert failures.num_failed == 0
    for mark in tmp_path.iterdir():
        mark.unlink()
    outcomes, failures = make(slow_functions.once, tasks, tmp_path, executor=2, retries=0, max_failures=1)
    assert [outcome.value > -math.inf for outcome in outcomes] == [task["x"] > 0 for task in tasks]
    assert failures.num_failed == 3


def test_failures_count_as_impossible_and_are_told():
    """One half of the prior above x = 0.5 is lost, and half of the evidence with it."""
    method = Dynesty(num_live=100, dlogz=0.1)
    settings = {"executor": qbs.Calls(max_failures=1.0)}
    found = fit(slow_functions.bad, "raise", 0.5, method=method, **settings)
    truth = math.log(0.5 * 0.1 * math.sqrt(2 * math.pi)) + math.log1p(-2 * norm.sf(5))
    assert abs(found.log_evidence - truth) < 3 * found.log_evidence_error
    assert np.all(found.samples["x"] <= 0.5)
    count = found.provenance["num_failed_calls"]
    assert count > 100
    assert any(
        problem.startswith(f"{count:,} of {found.num_likelihood_calls:,} likelihood calls failed (")
        and "%: " in problem
        and "it raised RuntimeError: the solver diverged; the parameters were x = 0." in problem
        for problem in found.problems
    )


@pytest.mark.parametrize("way", ["hang", "die", "none"])
def test_a_run_survives_a_few_bad_calls(way, whole):
    settings = qbs.Calls(2, timeout=0.5 if way == "hang" else None, retries=0)
    found = fit(slow_functions.bad, way, 0.985, executor=settings)
    expected = fit(slow_functions.bad, "raise", 0.985)
    assert found.provenance["num_failed_calls"] == expected.provenance["num_failed_calls"] > 0
    assert found.log_evidence == expected.log_evidence
    np.testing.assert_array_equal(found.samples["x"], expected.samples["x"])


def test_too_many_failures_stop_the_run_and_lose_nothing(tmp_path):
    path = tmp_path / "run"
    words = (
        r"failed at \d+ of 2\d calls, more than max_failures = 20%. The first: it raised RuntimeError: the "
        r"solver diverged; the parameters were x = 0.\d+ \| it raised .*All calls are kept in .*run.calls"
    )
    with pytest.raises(LikelihoodError, match=words):
        fit(slow_functions.bad, "raise", 0.6, checkpoint=path)
    first = read_calls(path)
    assert 20 <= len(first.points) < 30
    assert set(first.status) == {Status.OK, Status.RAISED}
    with pytest.raises(LikelihoodError, match="failed at"):  # the same from the log, without a call
        fit(slow_functions.bad, "raise", 0.6, checkpoint=path)
    assert len(read_calls(path).points) == len(first.points)
    more = qbs.Calls(max_failures=0.6)
    found = fit(slow_functions.bad, "raise", 0.6, checkpoint=path, executor=more)
    assert found.provenance["num_new_calls"] == found.num_likelihood_calls - len(first.points)
    require_same(found, fit(slow_functions.bad, "raise", 0.6, executor=more))


def test_a_likelihood_that_fails_at_one_draw_from_the_prior_can_be_fitted():
    values = []

    def log_likelihood(p):
        values.append(float(p["x"]))
        if len(values) == 1:
            raise RuntimeError("only here")
        return 0.0

    assert qbs.inference.problem.pose(qbs.Target(log_likelihood, PRIORS), ()).probe == 0.0
    assert values[0] != values[1]


# Executors of others.


def test_an_executor_that_breaks_ends_the_run_and_loses_nothing(tmp_path):
    path = tmp_path / "run"
    pool = concurrent.futures.ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))
    words = r"the executor broke during a call \(BrokenProcessPool.*executor=n.*All calls are kept in"
    with pool, pytest.raises(ExecutorError, match=words):
        fit(slow_functions.bad, "die", 0.985, executor=pool, checkpoint=path)
    num_kept = len(read_calls(path).points)
    found = fit(slow_functions.bad, "die", 0.985, executor=qbs.Calls(2, retries=0), checkpoint=path)
    assert found.provenance["num_new_calls"] == found.num_likelihood_calls - num_kept
    with pytest.raises(ExecutorError, match="the executor takes no calls"):
        fit(slow_functions.gaussian, executor=pool)


def _waiting(p, gate):
    if float(p["x"]) > 0.8:
        gate.wait(60)
    return float(p["x"])


def test_a_call_that_hangs_in_an_executor_is_given_up():
    gate = threading.Event()
    outcomes, _ = make(
        _waiting, points(0.1, 0.9, 0.2, 0.3, 0.4), gate, executor=DaemonThreads(2), timeout=0.3
    )
    gate.set()
    assert [outcome.status == Status.TIMED_OUT for outcome in outcomes] == [False, True, False, False, False]


def test_an_executor_whose_workers_all_hang_ends_the_run(monkeypatch):
    """Calls that wait for a worker are not taken for calls that hang."""
    monkeypatch.setattr(executors, "_PATIENCE", 0.5)
    gate = threading.Event()
    with pytest.raises(ExecutorError, match=r"nothing came back .* all its workers hang"):
        make(_waiting, points(0.9, 0.95, 0.2), gate, executor=DaemonThreads(2), timeout=0.3)
    gate.set()


class LosesWorkers(AtOnce):
    """Loses the worker of each call once, as Dask may, and goes on."""

    def __init__(self):
        self._lost = set()

    def submit(self, function, likelihood, parameters, serial):
        future = super().submit(function, likelihood, parameters, serial)
        if parameters is not None and parameters["x"] not in self._lost:
            self._lost.add(parameters["x"])
            future = concurrent.futures.Future()
            future.set_exception(OSError("worker lost"))
        return future


def test_an_executor_that_loses_a_worker_is_asked_again():
    outcomes, _ = make(slow_functions.gaussian, points(0.1, 0.2), executor=LosesWorkers())
    assert [outcome.status for outcome in outcomes] == [Status.OK, Status.OK]
    outcomes, _ = make(slow_functions.gaussian, points(0.1), executor=LosesWorkers(), retries=0)
    assert outcomes[0].reason == "was lost with its worker (OSError: worker lost)"


# Interrupts and progress.


@pytest.mark.parametrize("executor", [2, DaemonThreads(2)], ids=["own", "other"])
def test_an_interrupt_stops_at_once_and_keeps_what_is_done(executor):
    found = {}
    gate = threading.Event()
    function, data = (slow_functions.bad, ("hang", 0.8)) if executor == 2 else (_waiting, (gate,))
    timer = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGINT))
    with Caller(BlackBox(function, data, "box"), qbs.Calls(executor)) as caller:
        timer.start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            caller.make(points(0.1, 0.2, 0.9, 0.3, 0.95, 0.99), range(6), found.__setitem__)
        assert time.monotonic() - start < 10
        assert {0, 1} <= set(found) <= {0, 1, 3}
        again = {}
        gate.set()
        if executor == 2:  # its workers are new
            caller.make(points(0.1, 0.2), range(2), again.__setitem__)
            assert set(again) == {0, 1}


def test_the_line_of_progress_tells_of_slow_calls():
    texts = []

    class Line(ProgressLine):
        def note(self, text):
            texts.append(text)

    line = Line("test", show=False)
    likelihood = BlackBox(lambda p: time.sleep(0.02) or float(p["x"]), (), "box")
    with Caller(likelihood, qbs.Calls(), line) as caller:
        caller.make(points(1, 2, math.nan, 4), range(4), lambda *_: None)
    assert texts[-1].startswith("3 calls made at 0.02")
    assert texts[-1].endswith(" s, 1 failed")


# The log on disk.


@pytest.fixture
def counted(tmp_path):
    """A fit in two dimensions whose calls leave lines in files, and the count of these."""
    folder = tmp_path / "lines"
    folder.mkdir()

    def count():
        return sum(len(path.read_text().splitlines()) for path in folder.iterdir())

    run = functools.partial(fit, slow_functions.counting, str(folder), priors=LINE, method=SHORT, seed=7)
    return run, count


def test_kill_9_loses_no_call(counted, tmp_path):
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
    require_same(found, run())


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


@pytest.fixture
def stopped(tmp_path, counted):
    """The files of a run that is done, and how to go on from them."""
    run, _ = counted
    path = tmp_path / "run"
    whole = run(checkpoint=path)
    require_same(run(checkpoint=path), whole)

    def go_on():
        found = run(checkpoint=path)
        problems = [problem for problem in found.problems if problem not in whole.problems]
        found.problems[:] = whole.problems
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


def test_a_log_of_another_run_is_refused(stopped, tmp_path):
    _, log, go_on = stopped
    other = tmp_path / "other"
    fit(slow_functions.counting, str(tmp_path / "lines"), priors=LINE, method=SHORT, seed=8, checkpoint=other)
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
def test_a_full_disk_costs_the_log_and_not_the_run(recovers, counted, tmp_path, monkeypatch, capsys):
    run, _ = counted
    whole = run()
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


def test_a_run_goes_on_with_other_workers(counted, tmp_path):
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
    require_same(found, run())


# Reweighting.


def shifted(mean):
    def log_likelihood(p):
        return -0.5 * ((p["x"] - mean) / 0.1) ** 2

    return log_likelihood


def python_shifted(p, mean):
    return -0.5 * ((float(p["x"]) - mean) / 0.1) ** 2


@pytest.fixture(scope="module")
def gaussian():
    target = qbs.Target(shifted(0.5), PRIORS, derived=lambda p: {"double": 2 * p["x"]})
    return qbs.fit(target, method=Dynesty(num_live=250, dlogz=0.05), key=jax.random.key(3))


@pytest.mark.parametrize("mean", [0.45, 0.6, 0.7])
def test_reweighting_in_closed_form(mean, gaussian):
    found = qbs.reweight(gaussian, shifted(mean))
    low, high = (0 - mean) / 0.1, (1 - mean) / 0.1
    truth = math.log(0.1 * math.sqrt(2 * math.pi) * (norm.cdf(high) - norm.cdf(low)))
    assert abs(found.log_evidence - truth) < 3 * found.log_evidence_error
    old = math.log(0.1 * math.sqrt(2 * math.pi) * (norm.cdf(5) - norm.cdf(-5)))
    ratio = found.provenance["reweighted"]
    assert abs(ratio["log_evidence_ratio"] - (truth - old)) < 3 * ratio["log_evidence_ratio_error"]
    assert abs(found.mean("x") - mean) < 4 * 0.1 / math.sqrt(found.ess)
    assert abs(found.sd("x") - 0.1) < 4 * 0.1 / math.sqrt(2 * found.ess)
    assert found.log_evidence_error > gaussian.log_evidence_error
    assert found.ess < gaussian.ess
    np.testing.assert_array_equal(found.samples["double"], gaussian.samples["double"])
    assert found.derived == ("double",)
    assert abs(found.weights.sum() - 1) < 1e-12
    assert found.problems == []


def test_the_same_likelihood_changes_nothing(gaussian):
    found = qbs.reweight(gaussian, qbs.Target(shifted(0.5), PRIORS))
    np.testing.assert_allclose(found.weights, gaussian.weights, rtol=1e-9)
    assert found.log_evidence == pytest.approx(gaussian.log_evidence, abs=1e-12)
    assert found.log_evidence_error == pytest.approx(gaussian.log_evidence_error, abs=1e-12)


@pytest.mark.parametrize("executor", [None, AtOnce()], ids=["here", "executor"])
def test_reweighting_by_a_python_likelihood(executor, gaussian):
    expected = qbs.reweight(gaussian, shifted(0.55))
    found = qbs.reweight(gaussian, python_shifted, 0.55, executor=executor)
    np.testing.assert_allclose(found.log_weights, expected.log_weights, rtol=1e-9, atol=1e-9)
    assert found.num_likelihood_calls == gaussian.log_weights.size


def test_reweighting_by_a_model(key):
    import numpyro

    def model(y):
        mean = numpyro.sample("mean", dist.Normal(0, 2))
        numpyro.sample("y", dist.Normal(mean, 1), obs=y)

    def truth(y):
        covariance = np.eye(len(y)) + 4
        return -0.5 * (
            y @ np.linalg.solve(covariance, y)
            + np.linalg.slogdet(covariance)[1]
            + len(y) * math.log(2 * math.pi)
        )

    y, more = np.array([1.0, 2.0, 0.5]), np.array([1.0, 2.0, 0.5, 0.2])
    fitted = qbs.fit(model, y, method=Dynesty(num_live=300), key=key)
    found = qbs.reweight(fitted, qbs.reify(model), more)
    assert abs(found.log_evidence - truth(more)) < 3 * found.log_evidence_error
    assert found.provenance["data_sha256"] != fitted.provenance["data_sha256"]
    chains = qbs.fit(model, y, method=qbs.inference.mcmc.NUTS(num_draws=500), key=key)
    ratio = qbs.reweight(chains, qbs.reify(model), more)
    assert ratio.log_evidence is None
    said = ratio.provenance["reweighted"]
    assert abs(said["log_evidence_ratio"] - (truth(more) - truth(y))) < 4 * said["log_evidence_ratio_error"]
    assert 0 < said["log_evidence_ratio_error"] < 0.1
    np.testing.assert_allclose(
        ratio.stats["log_density"] - ratio.stats["log_likelihood"],
        chains.stats["log_density"] - chains.stats["log_likelihood"],
        atol=1e-3,
    )
    with pytest.raises(LikelihoodError, match=r"qbs.reify\(model\)"):
        qbs.reweight(fitted, model, more)


def test_reweighting_too_far_is_told(gaussian):
    found = qbs.reweight(gaussian, shifted(1.05))
    assert any("effective sample size" in problem for problem in found.problems)
    rng = np.random.default_rng(0)
    draws = qbs.Posterior({"x": rng.normal(size=(1, 4000))}, stats={"log_likelihood": np.zeros((1, 4000))})

    def wider(p):  # weights exp(x^2 / 2 * 0.9): their tail has the index 0.9
        return 0.45 * p["x"] ** 2

    assert any("Pareto k of the new weights is" in problem for problem in qbs.reweight(draws, wider).problems)
    assert qbs.reweight(draws, lambda p: 0.1 * p["x"]).problems == []


def test_draws_that_become_impossible_stay_with_no_weight(gaussian):
    def failing(p):
        if float(p["x"]) > 0.65:
            raise RuntimeError("no")
        return python_shifted(p, 0.5)

    found = qbs.reweight(gaussian, failing, executor=qbs.Calls(max_failures=1.0))
    assert found.shape == gaussian.shape
    np.testing.assert_array_equal(found.weights == 0, gaussian.samples["x"] > 0.65)
    truth = math.log(norm.cdf(1.5))
    ratio = found.provenance["reweighted"]
    assert abs(ratio["log_evidence_ratio"] - truth) < 3 * ratio["log_evidence_ratio_error"]
    assert any("likelihood calls failed" in problem for problem in found.problems)


def test_what_cannot_be_reweighted_is_explained(gaussian):
    bare = qbs.Posterior({"x": np.zeros((2, 50))})
    with pytest.raises(ValueError, match=r"recorded no log likelihood of its draws: give them as old="):
        qbs.reweight(bare, shifted(0.5))
    assert qbs.reweight(bare, shifted(0.5), old=np.zeros((2, 50))).ess == pytest.approx(100)
    with pytest.raises(ValueError, match=r"old must have shape \(2, 50\)"):
        qbs.reweight(bare, shifted(0.5), old=np.zeros((2, 51)))
    with pytest.raises(ValueError, match="NaN or infinite at 100 draws"):
        qbs.reweight(bare, shifted(0.5), old=np.full((2, 50), np.nan))
    with pytest.raises(LikelihoodError, match="is -inf at all"):
        qbs.reweight(gaussian, lambda p: -np.inf * (1 + p["x"]))
    with pytest.raises(LikelihoodError, match=r"is nan at x = .* NaN or [+]inf at"):
        qbs.reweight(gaussian, lambda p: jax.numpy.log(p["x"] - 0.5))
    with pytest.raises(LikelihoodError, match="raised KeyError: 'z'"):
        qbs.reweight(gaussian, lambda p: p["z"])
    with pytest.raises(LikelihoodError, match=r"shape \(2,\)"):
        qbs.reweight(gaussian, lambda p: jax.numpy.stack([p["x"], p["x"]]))
    with pytest.raises(ModelError, match="executor= serves likelihoods in plain Python"):
        qbs.reweight(gaussian, shifted(0.5), executor=2)
    with pytest.raises(ModelError, match="parameters of 'log_likelihood' and of the fit differ: y"):
        qbs.reweight(gaussian, qbs.Target(shifted(0.5), LINE))


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
