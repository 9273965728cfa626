"""Verified nested sampling: evidences against closed forms and quadratures, whatever the surrogate."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import CLOSED, fit_in_box, narrow_gaussian, off_by, require_no_bias
from scipy import stats

from qbs.inference.nested import Slice, Verified, verified
from qbs.inference.nested.gaussian_process import GaussianProcess
from qbs.inference.nested.learned_bound import heights_above, instructive, learn_bound, wander
from qbs.inference.nested.live_points import first_live
from qbs.inference.nested.problem import CubeProblem
from qbs.inference.nested.surrogate import Surrogate

# The fast tests run without most of the optimizations of the compiler.
QUICK = Verified(num_live=32, dlogz=0.5)
KEY = jax.random.key(0)


def fitted(log_likelihood, dim=2, *, low=-1.0, high=1.0, method=QUICK, seed=0, checkpoint=None):
    return fit_in_box(log_likelihood, dim, low, high, method, seed, checkpoint=checkpoint)


# --- the parts ---


def test_heights_keep_the_order_and_are_linear_at_the_bound():
    heights = heights_above(-5.0, np.array([-9.0, -4.0, -3.0, -2.0]))
    assert heights.unit == 2.0  # the median of 1, 2, 3
    values = np.array([-math.inf, -1e6, -20.0, -5.1, -5.0, -4.9, 20.0, 1e6])
    found = heights(values)
    assert found[0] == found[1] == -8.0
    assert np.all(np.diff(found[1:]) > 0)
    np.testing.assert_allclose(found[3:6], [-0.05, 0.0, 0.05], atol=2e-4)
    assert heights_above(0.0, np.zeros(3)).unit == 1.0


def test_instructive_points():
    rng = np.random.default_rng(0)
    values = rng.normal(size=1000)
    values[-3:] = -math.inf  # the last calls were refused
    chosen = instructive(values, 0.5, 100)
    assert len(set(chosen)) == len(chosen) == 100
    assert {997, 998, 999} <= set(chosen)
    assert np.sum(values[chosen] > 0.5) == 60
    assert values.argmax() in chosen
    # Of those below the nearest, but for the last dozen calls.
    below = np.sort(values[values <= 0.5])[::-1]
    assert np.sum(np.isin(below[:28], values[chosen])) >= 27
    few = instructive(values[:20], -9.0, 100)
    assert sorted(few) == list(range(20))


class Wrong(Surrogate):
    """What is left of the heights is taken for a wave that has nothing to do with them."""

    size: float = 1.5

    def fit(self, white, values, before=None):
        return Wave(self.size)


class Wave(NamedTuple):
    size: float

    def mean(self, white):
        return self.size * jnp.sin(3.0 * white[:, 0] + 1.0)

    def __call__(self, white):
        return np.asarray(self.mean(white)), np.zeros(len(white))


def test_walks_with_decisions_keep_the_uniform_distribution():
    """Uniform points of a disc that the cube cuts off stay uniform, though the surrogate is wrong."""

    def log_likelihood(points):
        return -np.sum((np.asarray(points) - np.array([0.2, 0.5])) ** 2, axis=-1)

    rng = np.random.default_rng(0)
    many = rng.uniform(size=(40_000, 2))
    bound = -(0.35**2)
    inside = many[log_likelihood(many) > bound]
    points, others, fresh = inside[:2000], inside[2000:2100], inside[2100:]
    with jax.enable_x64(True):
        live = first_live(jnp.asarray(others), jnp.asarray(log_likelihood(others)))
        near = many[:300]
        heights = heights_above(bound, log_likelihood(others))
        learned = learn_bound(Wrong(), near, log_likelihood(near), heights, others)
        num_taken = 0
        for number in range(3):
            key = jax.random.fold_in(KEY, number)
            ends = wander(key, live, points, learned, 0.0, 0.5, 15)
            is_taken = np.log(rng.uniform(size=len(points))) < np.asarray(ends.log_ratios)
            is_taken &= log_likelihood(ends.points) > bound
            points = np.where(is_taken[:, None], np.asarray(ends.points), points)
            num_taken += is_taken.sum()
        # The walks alone do not keep it: that is what the decision mends.
        alone = np.asarray(ends.points)[log_likelihood(ends.points) > bound]
    assert 0.2 < num_taken / 6000 < 0.9
    assert np.all((points > 0) & (points < 1))
    for of in (lambda p: p[:, 0], lambda p: p[:, 1], log_likelihood):
        assert stats.ks_2samp(of(points), of(fresh)).pvalue > 1e-4
    assert stats.ks_2samp(alone[:, 0], fresh[:, 0]).pvalue < 1e-6


def test_a_surrogate_of_a_quadratic_form_is_right():
    rng = np.random.default_rng(1)
    points = rng.uniform(0.3, 0.7, size=(200, 2))
    values = -50 * np.sum((points - 0.5) ** 2, axis=1)
    with jax.enable_x64(True):
        heights = heights_above(-1.0, values)
        learned = learn_bound(GaussianProcess(), points, values, heights, points[values > -1.0])
        fresh = rng.uniform(0.35, 0.65, size=(100, 2))
        expected = heights(-50 * np.sum((fresh - 0.5) ** 2, axis=1))
        np.testing.assert_allclose(np.asarray(learned.level(jnp.asarray(fresh))), expected, atol=0.02)


# --- evidences ---


def slow_gaussian(x):
    """Return what `gaussian` does, in plain Python."""
    return float(-0.5 * np.sum((np.asarray(x) / 0.1) ** 2) - 2 * math.log(0.1 * math.sqrt(2 * math.pi)))


@pytest.fixture(scope="module")
def found():
    return fitted(slow_gaussian)


def test_a_gaussian(found):
    assert off_by(found, -2 * math.log(2)) < 4
    assert np.all(np.abs(found.mean("x")) < 4 * 0.1 / math.sqrt(found.ess))
    assert np.all(np.abs(found.sd("x") - 0.1) < 4 * 0.1 / math.sqrt(2 * found.ess))
    told = found.provenance
    assert told["exactness"] == "true likelihood above every bound; the surrogate only proposes"
    # A quadratic form is what the surrogate begins with.
    assert told["acceptance"] > 0.8
    assert told["share_of_duplicates"] < 0.05
    assert told["share_without_surrogate"] == 0


class Killed(BaseException):
    """Stands for a process that ends without a word."""


def killed_after(monkeypatch, num_batches, log_likelihood, checkpoint):
    """Let a run die after some batches of calls."""
    call, count = CubeProblem.log_likelihood, iter(range(1, 10**9))

    def call_and_die(self, points):
        if next(count) > num_batches:
            raise Killed
        return call(self, points)

    with monkeypatch.context() as patch:
        patch.setattr(CubeProblem, "log_likelihood", call_and_die)
        with pytest.raises(Killed):
            fitted(log_likelihood, checkpoint=checkpoint)


def require_same(found, expected):
    for name in ("log_evidence", "log_evidence_error", "num_likelihood_calls", "problems"):
        assert getattr(found, name) == getattr(expected, name), name
    for name in ("acceptance", "share_of_duplicates", "num_surrogate_fits", "insertion_p_value"):
        assert found.provenance[name] == expected.provenance[name], name
    np.testing.assert_array_equal(found.samples["x"], expected.samples["x"])
    np.testing.assert_array_equal(found.log_weights, expected.log_weights)


def test_a_killed_run_goes_on_to_the_same_bits(found, tmp_path, monkeypatch):
    """And so the same key gives the same run; no call is made twice."""
    path, num_calls = tmp_path / "run.checkpoint", 0

    def counted(x):
        nonlocal num_calls
        num_calls += 1
        return slow_gaussian(x)

    killed_after(monkeypatch, 60, counted, path)
    assert 0 < num_calls < found.num_likelihood_calls
    went_on = fitted(counted, checkpoint=path)
    # And one at the start of each, which tells that it is no JAX code.
    assert num_calls == found.num_likelihood_calls + 2
    require_same(went_on, found)


@pytest.mark.slow
def test_a_killed_compiled_run_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    whole, path = fitted(narrow_gaussian), tmp_path / "run.checkpoint"
    killed_after(monkeypatch, 60, narrow_gaussian, path)
    require_same(fitted(narrow_gaussian, checkpoint=path), whole)


def test_a_flat_likelihood_is_exact():
    flat = fitted(lambda x: 0.5 + 0 * x.sum())
    assert flat.log_evidence == pytest.approx(0.5, abs=1e-12)
    assert flat.log_evidence_error == pytest.approx(0.0, abs=1e-12)


def test_half_of_the_prior_is_impossible():
    half = fitted(lambda x: jnp.where(x[0] < 0, 0.0, -jnp.inf))
    assert off_by(half, -math.log(2)) < 4
    # The share of about 64 draws.
    assert half.log_evidence_error == pytest.approx(1 / math.sqrt(64), rel=0.3)


def constant(settings, points, log_likelihoods, heights, live_points, before=None):
    """Learn that all of the cube is as likely as the bound."""
    return learn_bound(settings, points, np.full(len(points), heights.bound), heights, live_points)


def elsewhere(settings, points, log_likelihoods, heights, live_points, before=None):
    """Learn a peak that is two standard deviations away from the true one."""
    return learn_bound(settings, points + 0.1, log_likelihoods, heights, live_points)


@pytest.mark.parametrize("wrong", [elsewhere, pytest.param(constant, marks=pytest.mark.slow)])
def test_a_surrogate_that_is_wrong_is_only_slow(wrong, found, monkeypatch):
    monkeypatch.setattr(verified, "learn_bound", wrong)
    posterior = fitted(narrow_gaussian)
    assert off_by(posterior, -2 * math.log(2)) < 4
    assert posterior.num_likelihood_calls > 1.5 * found.num_likelihood_calls
    assert posterior.provenance["share_without_surrogate"] > 0.2
    assert np.all(np.abs(posterior.sd("x") - 0.1) < 4 * 0.1 / math.sqrt(2 * posterior.ess))


def test_calls_run_out():
    posterior = fitted(narrow_gaussian, method=Verified(num_live=32, max_calls=300))
    assert any("Stopped by max_calls = 300" in problem for problem in posterior.problems)
    # One more batch: three points of at most thirty proposals each.
    assert 300 <= posterior.num_likelihood_calls <= 300 + 3 * 30
    assert math.isfinite(posterior.log_evidence)


# --- bad input ---


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_live": 0}, "num_live must be a whole number above 0"),
        ({"num_live": 10, "batch": 10}, "batch is 10; it must be below num_live, 10"),
        ({"num_steps": -1}, "num_steps must be"),
        ({"tau": 0.0}, "tau must be a number above 0"),
        ({"tau": math.nan}, "tau must be a number above 0"),
        ({"dlogz": math.inf}, "dlogz must be a number above 0"),
        ({"num_proposals": 31}, "num_proposals is 31; it must be at most 30"),
        ({"max_calls": 0}, "max_calls must be a whole number above 0"),
    ],
)
def test_settings_that_cannot_be(settings, words):
    with pytest.raises(ValueError, match=words):
        Verified(**settings)


def test_too_few_live_points():
    with pytest.raises(ValueError, match="in 3 dimensions it must be above 6"):
        fitted(narrow_gaussian, 3, method=Verified(num_live=6))


class Mute(Surrogate):
    def fit(self, white, values, before=None):
        return lambda white: (np.zeros(len(white)), np.zeros(len(white)))


def test_a_surrogate_that_no_program_can_follow():
    with pytest.raises(ValueError, match="Mute fits nothing that walks can follow"):
        fitted(narrow_gaussian, method=Verified(num_live=32, surrogate=Mute()))


# --- closed forms and quadratures, over seeds: no bias, and errors that cover ---

NAMES = ("narrow Gaussian, 2", "narrow Gaussian, 5", "shells, 2", "Rosenbrock, 2", "eggbox")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_no_bias_and_errors_that_cover(name):
    log_likelihood, dim, (low, high), truth = CLOSED[name]
    posteriors = [
        fitted(log_likelihood, dim, low=low, high=high, method=Verified(), seed=s) for s in range(20)
    ]
    require_no_bias(posteriors, truth)


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [constant, elsewhere])
def test_no_bias_by_a_surrogate_that_is_wrong(wrong, monkeypatch):
    monkeypatch.setattr(verified, "learn_bound", wrong)
    method = Verified(num_live=100, dlogz=0.1)
    require_no_bias([fitted(narrow_gaussian, method=method, seed=s) for s in range(20)], -2 * math.log(2))


@pytest.mark.slow
def test_fewer_calls_than_slices():
    ours = fitted(narrow_gaussian, 3, method=Verified(num_live=100))
    slices = fitted(narrow_gaussian, 3, method=Slice(num_live=100))
    assert off_by(ours, -3 * math.log(2)) < 4
    assert ours.num_likelihood_calls < slices.num_likelihood_calls / 5
