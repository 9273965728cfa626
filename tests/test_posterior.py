"""Posterior: moments, weights, resampling, prediction and its printed form."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats as st

import qbs
from qbs.inference.results.posterior import to_numpy

SEED = 20240229


def _chains(num_chains=4, num_draws=250, **extra):
    rng = np.random.default_rng(SEED)
    samples = {
        "x": rng.normal(3, 2, (num_chains, num_draws)),
        "v": rng.normal(size=(num_chains, num_draws, 2, 3)),
    }
    return qbs.Posterior(samples, **extra)


def _weighted(log_weights, values=None):
    log_weights = np.asarray(log_weights, dtype=np.float64)[None]
    values = np.arange(log_weights.size, dtype=np.float64) if values is None else np.asarray(values, float)
    return qbs.Posterior({"x": values[None], "pair": np.stack([values, -values], -1)[None]}, log_weights)


# Moments and weights


def test_unweighted_moments_are_numpys():
    posterior = _chains()
    assert posterior.shape == (4, 250)
    np.testing.assert_allclose(posterior.mean("x"), posterior.samples["x"].mean(), rtol=1e-12)
    np.testing.assert_allclose(posterior.sd("x"), posterior.samples["x"].std(), rtol=1e-12)
    assert posterior.mean("v").shape == posterior.sd("v").shape == (2, 3)
    np.testing.assert_allclose(posterior.mean("v"), posterior.samples["v"].mean((0, 1)), rtol=1e-10)
    np.testing.assert_allclose(posterior.sd("v"), posterior.samples["v"].std((0, 1)), rtol=1e-10)
    np.testing.assert_array_equal(posterior.weights, np.full((4, 250), 1e-3))
    assert posterior.ess == 1000


@pytest.mark.parametrize("offset", [0.0, 5000.0, -5000.0])
def test_weighted_moments_are_numpys_and_ignore_the_scale_of_the_weights(offset):
    rng = np.random.default_rng(SEED)
    log_weights = rng.normal(0, 2, 300)
    posterior = _weighted(log_weights + offset, rng.normal(size=300))
    x, weights = posterior.samples["x"][0], np.exp(log_weights)
    mean = np.average(x, weights=weights)
    np.testing.assert_allclose(posterior.mean("x"), mean, rtol=1e-10)
    np.testing.assert_allclose(
        posterior.sd("x"), np.sqrt(np.average((x - mean) ** 2, weights=weights)), rtol=1e-10
    )
    np.testing.assert_allclose(posterior.mean("pair"), [mean, -mean], rtol=1e-10)
    np.testing.assert_allclose(posterior.weights.sum(), 1, rtol=1e-12)
    np.testing.assert_allclose(posterior.ess, weights.sum() ** 2 / (weights**2).sum(), rtol=1e-10)


def test_importance_weights_recover_a_closed_form():
    """Draws from N(0, 2) weighted to N(1, 1): within four standard errors, by the delta method."""
    rng = np.random.default_rng(SEED)
    x = rng.normal(0, 2, 20_000)
    posterior = _weighted(st.norm(1, 1).logpdf(x) - st.norm(0, 2).logpdf(x), x)
    weights = posterior.weights[0]
    mean_error = np.sqrt(np.sum(weights**2 * (x - 1) ** 2))
    square_error = np.sqrt(np.sum(weights**2 * ((x - 1) ** 2 - 1) ** 2))
    assert abs(posterior.mean("x") - 1) < 4 * mean_error
    assert abs(posterior.sd("x") ** 2 - 1) < 4 * square_error + 16 * mean_error**2
    assert mean_error < 0.02


def test_one_weight_dominates():
    posterior = _weighted([-1000.0, 0.0, -800.0])
    np.testing.assert_array_equal(posterior.weights, [[0, 1, 0]])
    assert (posterior.mean("x"), posterior.sd("x"), posterior.ess) == (1, 0, 1)
    assert np.all(posterior.resample(7)["x"] == 1)
    assert posterior.resample()["x"].shape == (1,)
    assert posterior.summary().rows["x"]["q05"] == posterior.summary().rows["x"]["q95"] == 1


def test_weights_of_zero():
    posterior = _weighted([-np.inf, 0.0, -np.inf, np.log(3)])
    np.testing.assert_allclose(posterior.weights, [[0, 0.25, 0, 0.75]])
    assert posterior.mean("x") == 2.5
    assert set(posterior.resample(1000)["x"]) == {1.0, 3.0}


def test_equal_weights():
    posterior = _weighted(np.full(50, -123.4))
    np.testing.assert_allclose(posterior.weights, 0.02, rtol=1e-12)
    np.testing.assert_allclose(posterior.ess, 50, rtol=1e-12)
    np.testing.assert_array_equal(np.sort(posterior.resample(50)["x"]), np.arange(50))


def test_a_single_draw():
    posterior = qbs.Posterior({"x": np.array([[2.0]])})
    assert (posterior.mean("x"), posterior.sd("x"), posterior.ess) == (2, 0, 1)
    assert "x" in repr(posterior)


def test_integer_and_boolean_draws_have_moments():
    posterior = qbs.Posterior({"n": np.array([[1, 2, 6]]), "b": np.array([[True, False, False]])})
    np.testing.assert_allclose([posterior.mean("n"), posterior.mean("b")], [3, 1 / 3])
    np.testing.assert_allclose(posterior.sd("n"), np.std([1, 2, 6]))


# Resampling


@pytest.mark.parametrize("count", [1, 7, 40])
def test_resampling_is_unbiased(count):
    """The mean number of offspring is n w_i, within four standard errors over seeds."""
    log_weights = np.log([0.05, 0.5, 0.01, 0.3, 0.14])
    posterior = _weighted(log_weights)
    offspring = np.array(
        [np.bincount(posterior.resample(count, seed=s)["x"].astype(int), minlength=5) for s in range(2000)]
    )
    expected = count * np.exp(log_weights)
    # Systematic: the number is the floor or the ceiling of its mean, a Bernoulli of the fractional part.
    assert np.all(offspring >= np.floor(expected - 1e-9))
    assert np.all(offspring <= np.ceil(expected + 1e-9))
    part = expected - np.floor(expected)
    error = np.sqrt(part * (1 - part) / 2000)
    np.testing.assert_array_less(np.abs(offspring.mean(0) - expected), 4 * error + 1e-9)


def test_resampled_order_is_random():
    """The position of draws says nothing of their value: the first is uniform over the draws."""
    posterior = _weighted(np.zeros(4))
    first = [int(posterior.resample(4, seed=s)["x"][0]) for s in range(2000)]
    counts = np.bincount(first, minlength=4)
    assert st.chisquare(counts).pvalue > 1e-5


def test_resampling_keeps_draws_together():
    posterior = _weighted(np.random.default_rng(SEED).normal(size=50))
    draws = posterior.resample(20)
    assert draws["x"].shape == (20,)
    np.testing.assert_array_equal(draws["pair"], np.stack([draws["x"], -draws["x"]], -1))


def test_resampling_repeats_by_seed_and_differs_by_seed():
    posterior = _weighted(np.random.default_rng(SEED).normal(size=50))
    one, again, other = (posterior.resample(20, seed=s)["x"] for s in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_resampling_unweighted_chains():
    posterior = _chains()
    everything = posterior.resample()
    np.testing.assert_array_equal(everything["x"], posterior.samples["x"].ravel())
    assert everything["v"].shape == (1000, 2, 3)
    assert len(np.unique(posterior.resample(100)["x"])) == 100
    np.testing.assert_array_equal(
        np.sort(posterior.resample(2000)["x"]), np.sort(np.repeat(everything["x"], 2))
    )


def test_the_default_count_is_the_effective_size():
    posterior = _weighted(np.random.default_rng(SEED).normal(size=80))
    assert len(posterior.resample()["x"]) == int(posterior.ess)


@pytest.mark.parametrize("count", [0, -1])
def test_no_draws_is_refused(count):
    with pytest.raises(ValueError, match=f"num_draws must be at least 1, not {count}"):
        _chains().resample(count)


# Best fit


def test_best_fit():
    posterior = _chains(stats={"log_likelihood": np.zeros((4, 250)), "log_density": np.zeros((4, 250))})
    posterior.stats["log_likelihood"][2, 17] = 5.0
    posterior.stats["log_density"][0, 3] = 9.0
    best = posterior.best_fit()
    assert best["x"] == posterior.samples["x"][2, 17]
    np.testing.assert_array_equal(best["v"], posterior.samples["v"][2, 17])
    del posterior.stats["log_likelihood"]
    assert posterior.best_fit()["x"] == posterior.samples["x"][0, 3]
    del posterior.stats["log_density"]
    with pytest.raises(ValueError, match="recorded no density"):
        posterior.best_fit()


# Prediction


def _normal_model(n, y=None):
    mean = numpyro.sample("mean", dist.Normal(0, 10))
    numpyro.deterministic("double", 2 * mean)
    with numpyro.plate("data", n):
        numpyro.sample("y", dist.Normal(mean, 0.5), obs=y)


@pytest.mark.parametrize("is_weighted", [False, True])
def test_posterior_predictive_of_a_conjugate_model(is_weighted, key):
    """mean ~ N(m, s) by draws of known law, so y ~ N(m, sqrt(s^2 + 0.5^2))."""
    m, s, n = 1.3, 0.8, 4000
    rng = np.random.default_rng(SEED)
    draws = rng.normal(m, 2 * s if is_weighted else s, (1, 20_000 if is_weighted else n))
    log_weights = st.norm(m, s).logpdf(draws) - st.norm(m, 2 * s).logpdf(draws) if is_weighted else None
    samples = {"mean": draws, "double": 2 * draws}
    posterior = qbs.Posterior(samples, log_weights, derived=("double",))
    predicted = posterior.predict(_normal_model, 2, None, key=key, num_draws=n)
    assert set(predicted) == {"y", "double"}
    assert predicted["y"].shape == (n, 2)
    assert isinstance(predicted["y"], np.ndarray)
    law = st.norm(m, np.hypot(s, 0.5))
    for column in predicted["y"].T:
        assert st.kstest(column, law.cdf).statistic < st.kstwo(n).isf(1e-6)
    # The two members share their mean: their covariance is s^2.
    products = np.prod(predicted["y"] - m, axis=1)
    assert abs(products.mean() - s**2) < 4 * products.std() / np.sqrt(n)


def test_prediction_is_by_draw(key):
    """Every prediction belongs to the draw of its own row."""
    posterior = qbs.Posterior({"mean": np.linspace(-1000, 1000, 50)[None]})
    predicted = posterior.predict(_normal_model, 3, None, key=key)
    np.testing.assert_allclose(predicted["y"], np.repeat(np.linspace(-1000, 1000, 50)[:, None], 3, 1), atol=4)
    np.testing.assert_allclose(predicted["double"], np.linspace(-2000, 2000, 50), rtol=1e-6)
    again = posterior.predict(_normal_model, 3, None, key=key)
    np.testing.assert_array_equal(predicted["y"], again["y"])
    other = posterior.predict(_normal_model, 3, None, key=jax.random.key(1))
    assert not np.array_equal(predicted["y"], other["y"])


# Refusals


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"samples": {}}, "at least one parameter"),
        (
            {"samples": {"x": np.zeros((2, 3)), "y": np.zeros((3, 2))}},
            "share their leading axes.*'y': .3, 2.",
        ),
        ({"samples": {"x": np.zeros(3)}}, "share their leading axes"),
        ({"samples": {"x": np.zeros((1, 0))}}, "at least one draw"),
        ({"samples": {"x": np.zeros((0, 3, 2))}}, "at least one draw"),
        ({"samples": {"x": np.zeros((1, 3))}, "log_weights": np.zeros(3)}, r"shape \(1, 3\), like the draws"),
        ({"samples": {"x": np.zeros((1, 2))}, "log_weights": np.full((1, 2), -np.inf)}, "one of them finite"),
        ({"samples": {"x": np.zeros((1, 2))}, "log_weights": np.array([[0, np.nan]])}, "none of them NaN"),
        ({"samples": {"x": np.zeros((1, 2))}, "log_weights": np.array([[0, np.inf]])}, r"below \+inf"),
        ({"samples": {"x": np.zeros((1, 2))}, "derived": ("z",)}, r"derived names \['z'\]"),
    ],
)
def test_bad_posteriors_are_explained(arguments, words):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=words):
            qbs.Posterior(**arguments)


def test_an_unknown_parameter_is_named():
    with pytest.raises(KeyError, match="no parameter 'z'; there are x, v"):
        _chains().mean("z")


def test_a_posterior_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        _chains().log_evidence = 3.0


# Printing


def test_repr_tells_the_story():
    posterior = _chains(
        log_evidence=-12.34567,
        log_evidence_error=0.0789,
        num_likelihood_calls=1234567,
        problems=["The first problem.", "word " * 60],
        provenance={"model": "line", "method": "NUTS", "wall_seconds": 3.14},
    )
    text = repr(posterior)
    assert "line by NUTS: 4 chains of 250 draws" in text
    assert "log evidence -12.346 +- 0.079" in text
    assert "1,234,567 likelihood calls in 3.1 s" in text
    assert "! The first problem." in text
    assert text.count("word") == 60
    assert "v[1,2]" in text
    assert f"{posterior.mean('x'):.2f}" in text
    assert max(map(len, text.splitlines())) <= 120
    assert "\x1b" not in text


def test_repr_of_a_clean_weighted_result():
    posterior = dataclasses.replace(_weighted(np.zeros(1500)), log_evidence=-1.0)
    text = repr(posterior)
    assert "posterior: 1,500 draws, effective size 1,500" in text
    assert "no problems found" in text
    assert "r_hat" not in text
    assert "log evidence -1.000\n" in text


@pytest.mark.parametrize("name", ["beta[red]", "[/bold]", "a:smile:b", "outer/inner", "Größe", "x" * 300])
def test_repr_shows_names_as_they_are(name):
    text = repr(qbs.Posterior({name: np.random.default_rng(0).normal(size=(2, 50))}))
    column = "".join(line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│"))
    assert column == name
    assert max(map(len, text.splitlines())) <= 120


def test_to_numpy():
    tree = to_numpy({"a": jnp.arange(3), "b": [jnp.ones(())]})
    assert type(tree["a"]) is np.ndarray
    assert type(tree["b"][0]) is np.ndarray
