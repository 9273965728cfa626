"""Models known up to a constant: against closed forms, and what is said of bad input."""

import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pandas as pd
import pytest

import qbs
from qbs.errors import CheckpointError, DataError, LikelihoodError, ModelError, PosteriorFileError
from qbs.inference.unnormalized import (
    Compositional,
    ContrastiveDivergence,
    ImportanceLikelihood,
    NoiseContrastive,
    ScoreMatching,
    UnnormalizedFit,
    log_partition,
    training,
)
from qbs.inference.unnormalized.log_partition import bridge

KEY = jax.random.key(3)
ROWS = 2.0 + np.random.default_rng(0).normal(size=(4000, 2))


def tilted(mean, x):
    """Unnormalized Gaussian of unit variance, whose constant depends on its mean."""
    return jnp.vdot(mean, x) - 0.5 * jnp.vdot(x, x)


def constant_of(mean):
    return 0.5 * float(jnp.vdot(mean, mean)) + 0.5 * mean.size * math.log(2 * math.pi)


def fitted(log_density=tilted, params=None, data=ROWS, method=None, **settings):
    params = jnp.zeros(2) if params is None else params
    method = Compositional(num_steps=1500, learning_rate=0.05) if method is None else method
    return qbs.fit_unnormalized(log_density, params, data, method=method, key=KEY, progress=False, **settings)


# --- against closed forms ---

QUICK = {"num_steps": 1500, "learning_rate": 0.05}
METHODS = {
    "compositional": Compositional(**QUICK),
    "as published": Compositional(rate=0.1, adapt_noise=False, **QUICK),
    "importance": ImportanceLikelihood(**QUICK),
    "binary": NoiseContrastive(**QUICK),
    "ranking": NoiseContrastive(loss="ranking", **QUICK),
    "exponential": NoiseContrastive(loss="exponential", **QUICK),
    "score": ScoreMatching(**QUICK),
    "sliced": ScoreMatching(kind="sliced", **QUICK),
    "divergence": ContrastiveDivergence(**QUICK),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_mean_of_a_gaussian(name):
    method = METHODS[name]
    found = fitted(method=method)
    # The last half of the steps, whose rate falls, is an average over a quarter of their rows and more.
    error = 4 * math.sqrt(2 / (method.batch_size * method.num_steps / 8))
    assert np.abs(np.asarray(found.params) - ROWS.mean(0)).max() < error
    assert abs(found.log_partition - constant_of(found.params)) < 4 * found.log_partition_error
    assert found.problems == []
    assert found.converged


@pytest.mark.parametrize("distance", [1.0, 8.0, 16.0])
def test_a_cold_start_far_away(distance):
    """The constant changes by e^128 on the way."""
    data = distance + np.random.default_rng(1).normal(size=(20_000, 1))
    method = Compositional(num_steps=2000, learning_rate=0.05)
    found = fitted(params=jnp.zeros(1), data=data, method=method)
    assert abs(float(found.params[0]) - data.mean()) < 0.03
    assert found.problems == []


@pytest.mark.parametrize("distance", [4.0, 8.0])
def test_noise_that_follows_the_model(distance):
    data = distance + np.random.default_rng(1).normal(size=(20_000, 1))
    method = Compositional(num_steps=2000, learning_rate=0.05)
    noise = qbs.inference.unnormalized.GaussianNoise(jnp.zeros(1), jnp.eye(1), (1,))
    found = fitted(params=jnp.zeros(1), data=data, method=method, noise=noise)
    assert abs(float(found.params[0]) - data.mean()) < 0.03
    assert abs(float(found.noise.mean[0]) - distance) < 0.2
    fixed = Compositional(num_steps=2000, learning_rate=0.05, adapt_noise=False)
    still = fitted(params=jnp.zeros(1), data=data, noise=noise, method=fixed)
    assert not still.converged


def test_a_constant_added_to_the_log_density_changes_nothing_else():
    plain, raised = fitted(), fitted(lambda mean, x: tilted(mean, x) + 500.0)
    assert np.allclose(plain.params, raised.params, atol=1e-3)
    assert raised.log_partition - plain.log_partition == pytest.approx(500, abs=1e-2)


def test_log_prob_is_normalized():
    found = fitted()
    truth = dist.Normal(found.params, 1.0).to_event(1).log_prob(ROWS[:50])
    assert np.allclose(found.log_prob(ROWS[:50]), truth, atol=4 * found.log_partition_error + 1e-4)
    assert found.log_prob(ROWS[0]).shape == ()
    with pytest.raises(ValueError, match=r"x must be a row of shape \(2,\)"):
        found.log_prob(np.zeros(3))


@pytest.mark.parametrize("method", ["importance", "smc", "bridge"])
def test_the_constant_by_each_method(method):
    found = fitted(method=ScoreMatching(**QUICK))
    known = log_partition(found, method=method, key=KEY)
    assert known.method == method
    assert abs(known.value - constant_of(found.params)) < 4 * known.error
    assert known.error < 0.02


def test_bridge_between_known_gaussians():
    """From N(0, 1) to twice N(1, 1), over seeds: no bias, and errors that cover."""
    scores = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        lower, upper = rng.normal(size=2000), 1 + rng.normal(size=1000)
        ratio = [math.log(2) + x - 0.5 for x in (lower, upper)]
        value, error = bridge(*ratio, np.full(1000, 1e-3), 1000.0)
        scores.append((value - math.log(2)) / error)
    assert abs(np.mean(scores)) < 4 / math.sqrt(40)
    assert abs(np.std(scores) - 1) < 4 / math.sqrt(2 * 40)


def test_draws_of_the_model():
    found = fitted()
    draws = found.sample(KEY, 2000)
    assert draws.shape == (2000, 2)
    # Tempered particles that were moved until they had forgotten: a fifth of them as independent ones.
    assert np.abs(draws.mean(0) - np.asarray(found.params)).max() < 4 / math.sqrt(400)


def test_whole_numbers():
    """Three spins in a field and coupled, against the sum over all states."""
    states = np.array(list(itertools.product([0, 1], repeat=3)))

    def ising(p, x):
        spins = 2 * x - 1
        return p["field"] * jnp.sum(spins) + p["coupling"] * (spins[0] * spins[1] + spins[1] * spins[2])

    truth = {"field": jnp.array(0.2), "coupling": jnp.array(0.5)}
    values = np.array([ising(truth, x) for x in states])
    shares = np.exp(values) / np.exp(values).sum()
    data = states[np.random.default_rng(2).choice(8, size=20_000, p=shares)]
    found = fitted(ising, {"field": jnp.array(0.0), "coupling": jnp.array(0.0)}, data)
    for name, value in truth.items():
        assert abs(float(found.params[name] - value)) < 4 / math.sqrt(20_000) + 0.01
    exact = math.log(sum(math.exp(ising(found.params, x)) for x in states))
    assert abs(found.log_partition - exact) < 4 * found.log_partition_error
    with pytest.raises(ModelError, match="real numbers"):
        log_partition(found, method="smc", key=KEY)


def test_a_module_of_equinox_and_a_data_frame():
    class Energy(eqx.Module):
        mean: jax.Array
        label: str = "kept"

        def __call__(self, x):
            return tilted(self.mean, x)

    found = fitted(lambda module, x: module(x), Energy(jnp.zeros(2)), pd.DataFrame(ROWS, columns=["a", "b"]))
    assert isinstance(found.params, Energy)
    assert found.params.label == "kept"
    assert np.abs(np.asarray(found.params.mean) - ROWS.mean(0)).max() < 0.05


def test_an_iterator_of_batches():
    rng = np.random.default_rng(5)
    found = fitted(data=(2.0 + rng.normal(size=(64, 2)) for _ in range(1500)))
    assert np.abs(np.asarray(found.params) - 2).max() < 0.1
    with pytest.raises(DataError, match="ended after 3 of them"):
        fitted(data=(2.0 + rng.normal(size=(64, 2)) for _ in range(3)))
    odd = iter([np.ones((4, 2)) * np.arange(4)[:, None], np.ones((5, 2))])
    with pytest.raises(DataError, match=r"batch 1 is of float\d+ and shape \(5, 2\)"):
        fitted(data=odd)


# --- what must not be silent ---


def test_a_mode_that_the_noise_misses():
    centres = np.where(np.random.default_rng(0).uniform(size=4000) < 0.5, -10.0, 10.0)
    data = (centres + np.random.default_rng(1).normal(size=4000))[:, None]

    def two(p, x):
        both = jnp.array([p["weight"] - 0.5 * (x[0] - 10) ** 2, -0.5 * (x[0] + 10) ** 2])
        return jax.nn.logsumexp(both)

    noise = dist.Normal(-10.0, 1.2).expand([1]).to_event(1)
    found = fitted(two, {"weight": jnp.array(0.0)}, data, noise=noise)
    assert any("the noise misses a part" in problem for problem in found.problems)


def test_noise_that_stays_far_away():
    method = Compositional(num_steps=500, adapt_noise=False)
    noise = dist.Normal(-4.0, 0.5).expand([2]).to_event(1)
    found = fitted(method=method, noise=noise)
    assert any("effective" in problem for problem in found.problems)


def test_a_nan_on_the_way_has_its_batch():
    def breaks(p, x):
        return jnp.where(p[0] > 0.5, jnp.nan, tilted(p, x))

    with pytest.raises(LikelihoodError, match=r"step \d+: log_density is nan at 128 rows") as caught:
        fitted(breaks)
    assert caught.value.batch.shape == (128, 2)
    assert 0.5 < float(caught.value.params[0]) < 0.7


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"data": np.array([[1.0, np.nan], [0.0, 1.0]])}, DataError, "NaN or infinities in 1 of its 2 rows"),
        ({"data": np.zeros((0, 2))}, DataError, "has no rows"),
        ({"data": np.ones((1, 2))}, DataError, "one row"),
        ({"data": np.array([[1.0, 2.0], [1.0, 3.0]])}, DataError, "constant in column 0"),
        ({"data": np.array([["a", "b"]])}, DataError, "must be numbers"),
        ({"data": 3}, TypeError, "an array, a data frame or an iterator"),
        ({"params": {"name": "x"}}, ModelError, "no array of real numbers"),
        ({"log_density": lambda p, x: p * x}, ModelError, "is a jnp.sum missing"),
        ({"log_density": lambda p, x: jnp.sum(p) * jnp.inf}, DataError, "with the parameters to start at"),
        ({"noise": "cauchy"}, ValueError, "'gaussian', 'marginals' or a distribution"),
        ({"noise": 3}, TypeError, "sample and log_prob"),
        (
            {"noise": dist.Normal(jnp.zeros(3), 1).to_event(1)},
            ValueError,
            r"shape of a row of the data, \(2,\)",
        ),
    ],
)
def test_bad_input(change, error, words):
    with pytest.raises(error, match=words):
        fitted(**change)


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (Compositional, {"num_steps": 0}, "num_steps must be a whole number above 0"),
        (Compositional, {"rate": 1.5}, "rate must be a number in"),
        (Compositional, {"num_noise": 0}, "num_noise must be"),
        (NoiseContrastive, {"loss": "hinge"}, "loss must be one of binary"),
        (NoiseContrastive, {"loss": "ranking", "num_noise": 8}, "num_noise must be batch_size, 128, or more"),
        (ScoreMatching, {"kind": "fast"}, "kind must be one of exact"),
        (ContrastiveDivergence, {"chain_length": 0}, "chain_length must be"),
        (ScoreMatching, {"learning_rate": 0.0}, "learning_rate must be a number above 0"),
    ],
)
def test_settings_that_cannot_be(kind, settings, words):
    with pytest.raises(ValueError, match=words):
        kind(**settings)


def test_noise_without_the_support_of_the_data():
    with pytest.raises(ValueError, match="the noise has no density at 4000 of 4000 rows"):
        fitted(noise=dist.Uniform(-20.0, -19.0).expand([2]).to_event(1))


# --- goes on, is saved ---


class Killed(BaseException):
    """Stands for a process that ends without a word."""


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, monkeypatch, is_stream):
    def data():
        rng = np.random.default_rng(5)
        return (2.0 + rng.normal(size=(64, 2)) for _ in range(400)) if is_stream else ROWS

    method, path = Compositional(num_steps=400), tmp_path / "run.checkpoint"
    whole = fitted(data=data(), method=method)
    record, count = training._record, iter(range(100))

    def record_and_die(*given):
        if next(count) == 4:
            raise Killed
        record(*given)

    monkeypatch.setattr(training, "_record", record_and_die)
    checkpoint = qbs.Checkpoint(path, seconds=0.0)
    with pytest.raises(Killed):
        fitted(data=data(), method=method, checkpoint=checkpoint)
    monkeypatch.undo()
    assert path.exists()
    went_on = fitted(data=data(), method=method, checkpoint=checkpoint)
    assert np.array_equal(went_on.params, whole.params)
    assert went_on.log_partition == whole.log_partition
    for name, values in whole.history.items():
        assert np.array_equal(went_on.history[name], values, equal_nan=True)
    with pytest.raises(CheckpointError, match="num_steps was 400 and is 500"):
        fitted(data=data(), method=Compositional(num_steps=500), checkpoint=checkpoint)


def test_saved_and_read_again(tmp_path):
    found = fitted()
    found.save(tmp_path / "fit.qbs")
    read = UnnormalizedFit.load(tmp_path / "fit.qbs", tilted, jnp.zeros(2))
    assert np.array_equal(read.log_prob(ROWS[:5]), found.log_prob(ROWS[:5]))
    assert read.problems == found.problems
    assert log_partition(read, key=KEY) == log_partition(found, key=KEY)
    with pytest.raises(PosteriorFileError, match="not of these params"):
        UnnormalizedFit.load(tmp_path / "fit.qbs", tilted, jnp.zeros(3))


def test_a_second_fit_compiles_nothing():
    fitted()
    assert fitted(data=ROWS + 1.0).provenance["compile_seconds"] < 0.5
