"""Draws of a fit weighted anew by another likelihood: closed forms, and what cannot be."""

import math

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import norm
from slow_fits import LINE, PRIORS, AtOnce

import qbs
from qbs.errors import LikelihoodError, ModelError
from qbs.inference.nested import Dynesty


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
