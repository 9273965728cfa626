"""Likelihoods that take long, hang, fail or kill their worker, by executors."""

import concurrent.futures
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
import slow_functions
from scipy.stats import norm
from slow_fits import METHOD, PRIORS, AtOnce, fit, require_same

import qbs
from qbs.errors import ExecutorError, LikelihoodError, ModelError
from qbs.inference import executors
from qbs.inference.black_box import BlackBox, Status
from qbs.inference.calls import Caller
from qbs.inference.nested import Dynesty, read_calls
from qbs.inference.progress import ProgressLine

alone = pytest.mark.serial  # what a busy machine may make look as if it hung


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


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=alone if way == "hang" else ()) for way in slow_functions.WAYS]
)
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


@pytest.fixture(scope="module")
def raising():
    return fit(slow_functions.bad, "raise", 0.985)


@pytest.mark.parametrize("way", [pytest.param("hang", marks=alone), "die", "none"])
def test_a_run_survives_a_few_bad_calls(way, raising):
    settings = qbs.Calls(2, timeout=0.5 if way == "hang" else None, retries=0)
    found = fit(slow_functions.bad, way, 0.985, executor=settings)
    assert found.provenance["num_failed_calls"] == raising.provenance["num_failed_calls"] > 0
    assert found.log_evidence == raising.log_evidence
    np.testing.assert_array_equal(found.samples["x"], raising.samples["x"])


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


@alone
def test_a_call_that_hangs_in_an_executor_is_given_up():
    gate = threading.Event()
    outcomes, _ = make(
        _waiting, points(0.1, 0.9, 0.2, 0.3, 0.4), gate, executor=DaemonThreads(2), timeout=0.3
    )
    gate.set()
    assert [outcome.status == Status.TIMED_OUT for outcome in outcomes] == [False, True, False, False, False]


@alone
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


@alone
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


@alone
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
