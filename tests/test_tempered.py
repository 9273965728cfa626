"""Tempered SMC against evidences in closed form, also where scales shrink on the way to the posterior."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from evidence_models import known
from scipy.stats import multivariate_normal, norm

import qbs
from qbs.errors import ModelError
from qbs.inference import smc
from qbs.inference.smc.apart import parts

Y = np.array([1.0, 2.0, 0.5])
SMALL = smc.Tempered(num_particles=512)


def conjugate(y):
    theta = numpyro.sample("theta", dist.Normal(0, 2))
    numpyro.sample("y", dist.Normal(theta, 1), obs=y)


TRUTH = multivariate_normal(np.zeros(3), np.eye(3) + 4 * np.ones((3, 3))).logpdf(Y)


def two_modes():
    x = numpyro.sample("x", dist.Uniform(-10, 10))
    numpyro.factor("modes", jnp.logaddexp(jnp.log(0.3) + norm_pdf(x, -5.0), jnp.log(0.7) + norm_pdf(x, 5.0)))


def norm_pdf(x, mean):
    return dist.Normal(mean, 0.3).log_prob(x)


KNOWN = known()


def require_right(model, data, truth, num_seeds, method):
    """The mean over seeds is within 0.15 nats of the truth, or four of its standard errors."""
    fits = [
        qbs.fit(model, *data, method=method, key=jax.random.key(seed), progress=False)
        for seed in range(num_seeds)
    ]
    found = np.array([fit.log_evidence for fit in fits])
    error = np.sqrt(np.mean([fit.log_evidence_error**2 for fit in fits]) / num_seeds)
    assert abs(found.mean() - truth) < max(0.15, 4 * error), (found - truth, error)
    return fits


def test_evidence_and_moments_in_closed_form():
    fits = require_right(conjugate, (Y,), TRUTH, 5, SMALL)
    assert abs(np.mean([fit.log_evidence for fit in fits]) - TRUTH) < 0.1
    for fit in fits:
        assert fit.problems == []
        mean, sd = fit.mean("theta"), fit.sd("theta")
        assert abs(mean - 1.0769231) < 5 * np.sqrt(0.3076923 / fit.ess)
        assert abs(sd - np.sqrt(0.3076923)) < 5 * np.sqrt(0.3076923 / 2 / fit.ess)


@pytest.mark.slow
def test_two_modes_keep_their_shares():
    fits = require_right(two_modes, (), -np.log(20), 3, smc.Tempered(num_particles=1024))
    shares = [float(np.sum(fit.weights * (fit.samples["x"] > 0))) for fit in fits]
    spread = np.sqrt(np.mean([fit.log_evidence_error**2 for fit in fits]) + 0.21 / 1024)
    assert abs(np.mean(shares) - 0.7) < 4 * spread / np.sqrt(3)


def test_the_parts_are_those_of_the_density(key):
    from qbs.inference.problem import pose
    from qbs.inference.unconstrained import potential

    x, y = KNOWN["shrinking"].data
    bound = pose(KNOWN["shrinking"].model, (x, y)).bound
    position = {"slopes": jax.random.normal(key, (5,)), "log_scale": jnp.asarray(0.3)}
    found = parts(bound, position)
    likelihood = norm(x @ np.asarray(position["slopes"]), np.exp(0.3)).logpdf(y).sum()
    assert float(found.log_likelihood(1.0)) == pytest.approx(likelihood, rel=1e-5)
    total = float(found.log_density(1.0))
    assert total == pytest.approx(-float(potential(bound, position)), rel=1e-6)


def test_same_key_same_result_and_nothing_compiled_again(key, compile_events):
    first = qbs.fit(conjugate, Y, method=SMALL, key=key, progress=False)
    with compile_events() as events:
        again = qbs.fit(conjugate, Y, method=SMALL, key=key, progress=False)
        qbs.fit(conjugate, Y + 1, method=SMALL, key=key, progress=False)
    assert not events
    assert first.log_evidence == again.log_evidence
    np.testing.assert_array_equal(first.samples["theta"], again.samples["theta"])


def test_chunks_change_nothing(key):
    whole = qbs.fit(conjugate, Y, method=SMALL, key=key, progress=False)
    chunks = smc.Tempered(num_particles=512, chunk_size=100)
    parted = qbs.fit(conjugate, Y, method=chunks, key=key, progress=False)
    assert parted.log_evidence == pytest.approx(whole.log_evidence, abs=1e-9)


def nowhere(y):
    theta = numpyro.sample("theta", dist.Normal(0, 1))
    numpyro.factor("bad", jnp.where(theta > 0.5, jnp.nan, y.sum()))


def impossible(y):
    numpyro.sample("theta", dist.Normal(0, 1))
    numpyro.factor("bad", -jnp.inf * y.sum())


def improper(y):
    theta = numpyro.sample("theta", dist.ImproperUniform(dist.constraints.real, (), ()))
    numpyro.sample("y", dist.Normal(theta, 1), obs=y)


def discrete(y):
    z = numpyro.sample("z", dist.Bernoulli(0.5))
    numpyro.sample("y", dist.Normal(z, 1), obs=y)


@pytest.mark.parametrize(
    ("model", "data", "error", "message"),
    [
        (nowhere, Y, qbs.errors.LikelihoodError, "is NaN at"),
        (conjugate, np.array([1.0, np.nan]), qbs.errors.LikelihoodError, "holds 1 NaN"),
        (impossible, Y, qbs.errors.LikelihoodError, "-inf at all"),
        (improper, Y, qbs.errors.ModelError, "'theta' in 'improper' is improper"),
        (discrete, Y, qbs.errors.ModelError, "'z' of 'discrete' is discrete"),
    ],
    ids=["NaN", "NaN in the data", "impossible", "improper", "discrete"],
)
def test_bad_models_are_explained(model, data, error, message, key):
    with pytest.raises(error, match=message):
        qbs.fit(model, data, method=SMALL, key=key, progress=False)


def test_nan_out_of_the_prior_draws_is_said(key):
    def model(y):
        theta = numpyro.sample("theta", dist.Normal(0, 1))
        numpyro.factor("far", jnp.where(theta > 4.5, jnp.nan, dist.Normal(theta, 0.5).log_prob(y).sum()))

    posterior = qbs.fit(model, np.array([4.4, 4.6, 4.5]), method=SMALL, key=key, progress=False)
    assert any("NaN at" in problem for problem in posterior.problems)
    assert np.all(posterior.samples["theta"] <= 4.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_particles": 100}, "a multiple of num_islands"),
        ({"num_islands": 1}, "num_islands must be at least 2"),
        ({"ess": 1.0}, "ess must lie between 0 and 1"),
        ({"max_correlation": 2.0}, "max_correlation must lie"),
        ({"chunk_size": 0}, "chunk_size must be a whole number"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        smc.Tempered(**settings)


@pytest.mark.parametrize(("dim", "truth"), [(2, -1.746), (5, -5.672), (10, -14.59)])
def test_evidence_of_shells_is_that_of_a_table(dim, truth):
    """Feroz, Hobson & Bridges (2009), table 1, whose digits at 5 dimensions are of a quadrature like ours."""
    assert KNOWN[f"shells_{dim}"].truth() == pytest.approx(truth, abs=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_evidence_at_the_defaults(name):
    """Scales that shrink a hundredfold or differ a thousandfold, funnels, shells, modes that are alike."""
    case = KNOWN[name]
    for fit in require_right(case.model, case.data, case.truth(), 5, smc.Tempered()):
        assert not any("remembered" in problem or "NaN" in problem for problem in fit.problems)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["line", "shells_2", "mixture", "eight_schools"])
def test_errors_cover_the_truth(name):
    case = KNOWN[name]
    fits = require_right(case.model, case.data, case.truth(), 50, smc.Tempered(num_particles=1024))
    z = np.array([(fit.log_evidence - case.truth()) / fit.log_evidence_error for fit in fits])
    assert 0.7 < z.std(ddof=1) < 1.4
    assert abs(z.mean()) < 4 * z.std(ddof=1) / np.sqrt(50)


def series(y):
    """The same as `conjugate`, one observation after the other."""
    theta = numpyro.sample("theta", dist.Normal(0, 2))

    def observe(carry, value):
        numpyro.sample("y", dist.Normal(theta, 1), obs=value)
        return carry, None

    jax.lax.scan(observe, None, y)


LONG = 0.8 + np.sin(np.arange(12.0))


def test_the_evidence_after_each_observation():
    method = smc.ResampleMove(num_particles=512)
    fits = [qbs.fit(series, LONG, method=method, key=jax.random.key(seed)) for seed in range(4)]
    truth = [
        multivariate_normal(np.zeros(t), np.eye(t) + 4 * np.ones((t, t))).logpdf(LONG[:t])
        for t in range(1, len(LONG) + 1)
    ]
    found = np.array([fit.provenance["log_evidence_by_score"] for fit in fits])
    # All of a path shares its first errors, so that the last error is about the greatest.
    error = np.sqrt(np.mean([fit.log_evidence_error**2 for fit in fits]) / len(fits))
    assert np.max(np.abs(found.mean(0) - truth)) < 4.5 * error
    for fit, path in zip(fits, found, strict=True):
        assert fit.problems == []
        assert fit.log_evidence == pytest.approx(path[-1], abs=1e-12)
        assert fit.provenance["resampled_at"][-1] == len(LONG)
        assert abs(fit.mean("theta") - LONG.sum() / 12.25) < 5 / np.sqrt(12.25 * fit.ess)


@pytest.mark.parametrize(
    ("model", "data", "method"),
    [
        pytest.param(conjugate, Y, smc.Tempered(num_particles=1024, chain_length=8), marks=pytest.mark.slow),
        (series, LONG, smc.ResampleMove(num_particles=1024, chain_length=8)),
    ],
    ids=["Tempered", "ResampleMove"],
)
def test_waste_free(model, data, method):
    truth = multivariate_normal(
        np.zeros(len(data)), np.eye(len(data)) + 4 * np.ones((len(data),) * 2)
    ).logpdf(data)
    fits = require_right(model, (data,), truth, 4, method)
    precision = len(data) + 0.25
    means = np.array([fit.mean("theta") for fit in fits])
    # Links of a chain are correlated: what counts as independent are the chains.
    assert abs(means.mean() - data.sum() / precision) < 5 / np.sqrt(precision * 4 * 1024 / 8)
    for fit in fits:
        assert fit.num_likelihood_calls < 30 * 7 * 128 * len(fit.provenance["rounds"]) + 1024
        assert set(fit.provenance["rounds"]) == {7}


def test_one_score_has_no_order(key):
    with pytest.raises(ModelError, match="has one: draw the observations in a scan"):
        qbs.fit(conjugate, Y, method=smc.ResampleMove(), key=key)


@pytest.mark.parametrize("settings", [{"chain_length": 1}, {"num_particles": 512, "chain_length": 100}])
def test_chains_that_do_not_fit(settings):
    with pytest.raises(ValueError, match="chain_length must be 2 or more"):
        smc.Tempered(**settings)
