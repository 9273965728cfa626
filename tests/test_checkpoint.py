"""Checkpoints: a run that was killed goes on to the same numbers, and a file of another run is refused."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

import qbs
from qbs.errors import CheckpointError
from qbs.inference import mcmc, nested, smc
from qbs.inference.checkpoint import Keeper
from qbs.inference.results import archive

DATA = np.array([0.3, -0.2, 1.1, 0.8, 0.1])


def normal(y):
    mean = numpyro.sample("mean", dist.Normal(0, 2))
    scale = numpyro.sample("scale", dist.HalfNormal(1))
    numpyro.sample("y", dist.Normal(mean, scale), obs=y)


def series(y):
    persistence = numpyro.sample("persistence", dist.Uniform(-1, 1))

    def step(x, value):
        x = numpyro.sample("x", dist.Normal(persistence * x, 1))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=value)
        return x, None

    scan(step, 0.0, y)


def states(y):
    def step(x, value):
        x = numpyro.sample("x", dist.Normal(0.9 * x, 1))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=value)
        return x, None

    scan(step, 0.0, y)


def series_of_normals(y):
    mean = numpyro.sample("mean", dist.Normal(0, 2))

    def step(carry, value):
        numpyro.sample("y", dist.Normal(mean, 1), obs=value)
        return carry, None

    jax.lax.scan(step, 0.0, y)


METHODS = {
    "NUTS": (normal, mcmc.NUTS(num_warmup=60, num_draws=80)),
    "Chains": (
        normal,
        mcmc.Chains(
            mcmc.cycle(mcmc.RandomWalk(num_warmup=50), mcmc.Slice()), num_warmup=50, num_draws=60, thinning=2
        ),
    ),
    "Dynesty": (normal, nested.Dynesty(num_live=60, dlogz=0.5)),
    "nested Slice": (normal, nested.Slice(num_live=40, num_steps=4, dlogz=0.5, min_ess=150)),
    "Tempered": (normal, smc.Tempered(num_particles=64, num_islands=4)),
    "ResampleMove": (series_of_normals, smc.ResampleMove(num_particles=64, num_islands=4)),
    "ParticleFilter": (states, smc.ParticleFilter(num_particles=50, num_islands=4, num_paths=5)),
    "PMMH": (series, smc.PMMH(num_particles=10, num_warmup=20, num_draws=30)),
    "ParticleGibbs": (series, smc.ParticleGibbs(num_particles=4, num_warmup=20, num_draws=30)),
    "SMC2": (series, smc.SMC2(num_particles=8, num_inner=8, num_islands=3, num_paths=4)),
}


def require_same(found, expected):
    for group in ("samples", "stats"):
        ours, theirs = getattr(found, group), getattr(expected, group)
        assert list(ours) == list(theirs)
        for name, values in theirs.items():
            np.testing.assert_array_equal(ours[name], values, err_msg=name)
    np.testing.assert_array_equal(found.log_weights, expected.log_weights)
    for name in ("log_evidence", "log_evidence_error", "num_likelihood_calls", "problems"):
        assert getattr(found, name) == getattr(expected, name), name


class Killed(BaseException):
    """Stands for a process that ends without a word."""


def kill_after(monkeypatch, num_writes):
    """Let a run die once it has written its checkpoint a number of times."""
    write, count = archive.write, iter(range(1, 10**9))

    def write_and_die(*args, **kwargs):
        write(*args, **kwargs)
        if next(count) == num_writes:
            raise Killed

    monkeypatch.setattr(archive, "write", write_and_die)


# One of each kind of loop; the others are killed for real by the slow tests.
FAST = ("Chains", "Dynesty", "nested Slice", "Tempered", "ParticleFilter")


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
)
def test_a_killed_run_goes_on_to_the_same_bits(name, key, tmp_path, monkeypatch):
    model, method = METHODS[name]
    path = tmp_path / "run.checkpoint"
    whole = qbs.fit(model, DATA, method=method, key=key)
    checkpoint = qbs.Checkpoint(path, seconds=0.0)
    for num_writes in (2, 1):  # killed twice, the second time soon after it went on
        with monkeypatch.context() as patch:
            kill_after(patch, num_writes)
            with pytest.raises(Killed):
                qbs.fit(model, DATA, method=method, key=key, checkpoint=checkpoint)
    require_same(qbs.fit(model, DATA, method=method, key=key, checkpoint=checkpoint), whole)
    require_same(qbs.fit(model, DATA, method=method, key=key, checkpoint=path), whole)


def test_an_interrupt_keeps_the_state(key, tmp_path, monkeypatch):
    model, method = METHODS["Chains"]
    whole = qbs.fit(model, DATA, method=method, key=key)
    path = tmp_path / "run.checkpoint"

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("qbs.inference.blocks.Run.num_kept", property(lambda _: 1))
        patch.setattr(Keeper, "is_due", property(interrupt))
        words = "before it kept a draw: nothing to return. The same call goes on from .*run.checkpoint"
        with pytest.raises(KeyboardInterrupt, match=words):
            qbs.fit(model, DATA, method=method, key=key, checkpoint=path)
    assert path.exists()
    require_same(qbs.fit(model, DATA, method=method, key=key, checkpoint=path), whole)


def test_more_draws_are_added_to_a_run_that_is_done(key, tmp_path):
    path = tmp_path / "run.checkpoint"
    settings = {"num_warmup": 60, "num_chains": 2}
    qbs.fit(normal, DATA, method=mcmc.NUTS(num_draws=20, **settings), key=key, checkpoint=path)
    longer = mcmc.NUTS(num_draws=50, **settings)
    found = qbs.fit(normal, DATA, method=longer, key=key, checkpoint=path)
    require_same(found, qbs.fit(normal, DATA, method=longer, key=key))
    shorter = qbs.fit(normal, DATA, method=mcmc.NUTS(num_draws=30, **settings), key=key, checkpoint=path)
    np.testing.assert_array_equal(shorter.samples["mean"], found.samples["mean"][:, :30])


def other_prior(y):
    mean = numpyro.sample("mean", dist.Normal(0, 3))
    scale = numpyro.sample("scale", dist.HalfNormal(1))
    numpyro.sample("y", dist.Normal(mean, scale), obs=y)


def other_site(y):
    mean = numpyro.sample("mean", dist.Normal(0, 2))
    scale = numpyro.sample("sd", dist.HalfNormal(1))
    numpyro.sample("y", dist.Normal(mean, scale), obs=y)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    path = tmp_path_factory.mktemp("kept") / "run.checkpoint"
    qbs.fit(
        normal, DATA, method=mcmc.NUTS(num_warmup=60, num_draws=20), key=jax.random.key(1), checkpoint=path
    )
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"key": jax.random.key(2)}, r"seed\[1\] was 1 and is 2"),
        ({"data": DATA + 0.1}, "another run: the data differ. Name"),
        ({"method": mcmc.NUTS(num_warmup=61, num_draws=20)}, "settings.num_warmup was 60 and is 61"),
        (
            {"method": mcmc.NUTS(num_warmup=60, target_accept=0.9)},
            "settings.target_accept was 0.8 and is 0.9",
        ),
        ({"method": smc.Tempered()}, r"method was 'NUTS' and is 'Tempered'\. Name"),
        ({"precision": "float64"}, r"run: precision was 'float32' and is 'float64'\. Name"),
        (
            {"model": other_prior, "name": "normal"},
            "another run: the model differs at mean; the model differs at y. Name",
        ),
        ({"model": other_site, "name": "normal"}, "the model differs at sd"),
    ],
    ids=["key", "data", "warm-up", "acceptance", "method", "precision", "prior", "site"],
)
def test_a_file_of_another_run_is_refused_and_left_alone(kept, change, words):
    given = {"model": normal, "data": DATA, "method": mcmc.NUTS(num_warmup=60, num_draws=20)}
    given |= {"key": jax.random.key(1)} | change
    before = kept.read_bytes()
    with pytest.raises(CheckpointError, match=words):
        qbs.fit(given.pop("model"), given.pop("data"), checkpoint=kept, **given)
    assert kept.read_bytes() == before


def rewritten(kept, path, change):
    """Copy a checkpoint with another header."""
    with zipfile.ZipFile(kept) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "header.json":
                header = json.loads(data)
                change(header)
                data = json.dumps(header).encode()
            new.writestr(name, data)
    return path


def test_another_version_of_a_library_is_told(kept, tmp_path):
    def change(header):
        header["identity"]["versions"]["jax"] = "0.1"

    path = rewritten(kept, tmp_path / "old.checkpoint", change)
    method = mcmc.NUTS(num_warmup=60, num_draws=20)
    found = qbs.fit(normal, DATA, method=method, key=jax.random.key(1), checkpoint=path)
    assert any("went on elsewhere (versions.jax was '0.1'" in text for text in found.problems)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is not a checkpoint"), (b"not a zip", "is not a checkpoint")],
)
def test_a_file_that_is_something_else_is_left_alone(content, words, key, tmp_path):
    path = tmp_path / "thesis.txt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        qbs.fit(normal, DATA, method=mcmc.NUTS(), key=key, checkpoint=path)
    assert path.read_bytes() == content


def test_a_saved_posterior_is_no_checkpoint(key, tmp_path):
    path = qbs.Posterior({"x": np.zeros((1, 5))}).save(tmp_path / "run.qbs")
    with pytest.raises(CheckpointError, match="of another program"):
        qbs.fit(normal, DATA, method=mcmc.NUTS(), key=key, checkpoint=path)


def test_paths_that_cannot_be(key, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        qbs.fit(normal, DATA, method=mcmc.NUTS(), key=key, checkpoint=tmp_path / "none" / "run")
    with pytest.raises(CheckpointError, match="is a folder"):
        qbs.fit(normal, DATA, method=mcmc.NUTS(), key=key, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="seconds must be"):
        qbs.Checkpoint(tmp_path / "run", seconds=float("nan"))


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(key, tmp_path, monkeypatch, capsys):
    model, method = METHODS["NUTS"]
    whole = qbs.fit(model, DATA, method=method, key=key)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(archive, "write", full)
        checkpoint = qbs.Checkpoint(tmp_path / "run", seconds=0.0)
        found = qbs.fit(model, DATA, method=method, key=key, checkpoint=checkpoint)
    assert "could not be written: [Errno 28] No space left on device" in found.problems[-1]
    assert capsys.readouterr().err.count("No space left on device); the run goes on") == 1
    found.problems.pop()
    require_same(found, whole)


def test_a_black_box_is_not_called_twice_for_a_point(key, tmp_path, monkeypatch):
    calls = []

    def log_likelihood(parameters):
        calls.append(float(parameters["x"]))
        return -0.5 * (calls[-1] / 0.1) ** 2

    target = qbs.Target(log_likelihood, {"x": dist.Normal(0, 1)}, name="box")
    method = nested.Dynesty(num_live=30, dlogz=0.5)
    whole = qbs.fit(target, method=method, key=key)
    num_calls = len(calls)
    calls.clear()
    checkpoint = qbs.Checkpoint(tmp_path / "run", seconds=0.0)
    with monkeypatch.context() as patch:
        kill_after(patch, 5)
        with pytest.raises(Killed):
            qbs.fit(target, method=method, key=key, checkpoint=checkpoint)
    require_same(qbs.fit(target, method=method, key=key, checkpoint=checkpoint), whole)
    assert len(calls) == num_calls + 1  # each fit tries one draw from the prior first


def test_chains_stop_when_they_have_converged(key):
    settings = {"num_warmup": 60, "num_draws": 2000}
    until = mcmc.Converged(ess=300.0, r_hat=1.05)
    whole = qbs.fit(normal, DATA, method=mcmc.NUTS(**settings), key=key)
    found = qbs.fit(normal, DATA, method=mcmc.NUTS(until=until, **settings), key=key)
    num_draws = found.shape[1]
    assert 100 <= num_draws < 1000
    np.testing.assert_array_equal(found.samples["mean"], whole.samples["mean"][:, :num_draws])
    assert until.is_met(found.samples)
    earlier = {name: values[:, :100] for name, values in whole.samples.items()}
    assert num_draws == 100 or not until.is_met(earlier)


def test_a_run_that_stopped_early_goes_on_to_another_end(key, tmp_path):
    def run(until, path=None):
        method = mcmc.NUTS(num_warmup=60, num_draws=600, until=until)
        return qbs.fit(normal, DATA, method=method, key=key, checkpoint=path)

    early, later = mcmc.Converged(ess=100.0), mcmc.Converged(ess=300.0)
    path = tmp_path / "run.checkpoint"
    lengths = []
    for until in (early, later, early, None):
        found = run(until, path)
        np.testing.assert_array_equal(found.samples["mean"], run(until).samples["mean"])
        lengths.append(found.shape[1])
    assert lengths[0] == lengths[2] < lengths[1] < lengths[3] == 600


def test_what_is_met_at_the_last_draw_is_met_when_it_is_read_again(key, tmp_path):
    method = mcmc.NUTS(num_warmup=60, num_draws=40, until=mcmc.Converged(r_hat=10.0))
    for _ in range(2):
        found = qbs.fit(normal, DATA, method=method, key=key, checkpoint=tmp_path / "run.checkpoint")
        assert not any("did not reach" in problem for problem in found.problems)


def test_chains_that_do_not_get_there_say_so(key):
    method = mcmc.NUTS(num_warmup=60, num_draws=40, until=mcmc.Converged(ess=1e6))
    assert "did not reach ESS >= 1e+06" in qbs.fit(normal, DATA, method=method, key=key).problems[0]


@pytest.mark.parametrize("settings", [{}, {"ess": 0.0}, {"r_hat": 1.0}, {"ess": float("nan")}])
def test_targets_that_cannot_be(settings):
    with pytest.raises(ValueError, match="Converged"):
        mcmc.Converged(**settings)


def _run(name, path, out):
    """Fit by a method at length, in a process of its own."""
    model, method = METHODS[name]
    longer = {"num_draws": 3000, "num_live": 800, "num_particles": 256, "num_islands": 40}
    longer = {field: value for field, value in longer.items() if hasattr(method, field)}
    if name in ("PMMH", "ParticleGibbs"):
        longer["num_particles"] = 20
    if name == "SMC2":
        longer["num_particles"] = 32
    if name == "ParticleFilter":
        longer["num_islands"] = 1000
    if name in ("Tempered", "ResampleMove"):
        longer |= {"num_particles": 8192, "num_islands": 4}
    method = type(method)(**{**vars(method), **longer})
    data = np.concatenate([DATA] * 10)
    checkpoint = qbs.Checkpoint(path, seconds=0.0) if path else None
    qbs.fit(model, data, method=method, key=jax.random.key(7), checkpoint=checkpoint).save(out)


@pytest.mark.slow
@pytest.mark.serial
@pytest.mark.parametrize("name", METHODS)
def test_kill_9_and_resume(name, tmp_path):
    path, out = tmp_path / "run.checkpoint", tmp_path / "run.qbs"
    command = [sys.executable, __file__, name]  # each with another order of sets
    seed = iter(range(1, 4))

    def environment():
        return os.environ | {"PYTHONHASHSEED": str(next(seed))}

    subprocess.run([*command, "", tmp_path / "whole.qbs"], check=True, env=environment())
    process = subprocess.Popen([*command, path, out], env=environment())
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was done too soon for this test"
    assert not out.exists()
    subprocess.run([*command, path, out], check=True, env=environment())
    require_same(qbs.load(out), qbs.load(tmp_path / "whole.qbs"))


if __name__ == "__main__":
    _run(sys.argv[1], sys.argv[2] and Path(sys.argv[2]), Path(sys.argv[3]))
