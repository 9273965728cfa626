"""NUTS through `qbs.fit` against NumPyro's own MCMC, and its behaviour on bad input and interrupts."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from arviz_stats.base import array_stats
from kalman import kalman
from numpyro import infer
from numpyro.contrib.control_flow import scan

import qbs
from qbs.inference.checkpoint import Keeper
from qbs.inference.mcmc import NUTS
from qbs.inference.problem import pose
from qbs.inference.progress import ProgressLine


def eight_schools(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", len(sigma)):
        raw = numpyro.sample("raw", dist.Normal(0, 1))
        theta = numpyro.deterministic("theta", mu + tau * raw)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def logistic_regression(x, y=None):
    coefficients = numpyro.sample("coefficients", dist.Normal(jnp.zeros(x.shape[1]), 2.0).to_event(1))
    intercept = numpyro.sample("intercept", dist.Normal(0, 2))
    numpyro.sample("y", dist.Bernoulli(logits=x @ coefficients + intercept), obs=y)


def hierarchical_regression(group, x, y=None):
    num_groups = len(np.unique(group))  # needs the values of the data
    mean = numpyro.sample("mean", dist.Normal(0, 3))
    spread = numpyro.sample("spread", dist.HalfNormal(2))
    noise = numpyro.sample("noise", dist.HalfNormal(2))
    with numpyro.plate("groups", num_groups):
        offset = numpyro.sample("offset", dist.Normal(0, 1))
    with numpyro.plate("observations", len(x)):
        numpyro.sample("y", dist.Normal((mean + spread * offset[group]) * x, noise), obs=y)


def autoregression(y):
    phi = numpyro.sample("phi", dist.Uniform(-1, 1))
    scale = numpyro.sample("scale", dist.HalfNormal(1))

    def step(previous, observed):
        state = numpyro.sample("state", dist.Normal(phi * previous, scale))
        numpyro.sample("y", dist.Normal(state, 0.5), obs=observed)
        return state, state

    scan(step, 0.0, y)


def _case(name):
    rng = np.random.default_rng(5)
    if name == "eight schools":
        sigma = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])
        return eight_schools, (sigma, np.array([28.0, 8, -3, 7, -1, 1, 18, 12]))
    if name == "logistic regression":
        x = rng.normal(size=(60, 3))
        y = rng.random(60) < 1 / (1 + np.exp(-x @ [1.0, -0.5, 0.3]))
        return logistic_regression, (x, y.astype(int))
    if name == "hierarchical regression":
        group, x = np.repeat(np.arange(5), 8), rng.normal(size=40)
        slopes = 1.0 + 0.8 * rng.normal(size=5)
        return hierarchical_regression, (group, x, slopes[group] * x + 0.5 * rng.normal(size=40))
    return autoregression, (np.sin(np.arange(12.0)),)


def _mean_and_mcse(draws):
    """Mean and Monte Carlo standard error of each number in draws of shape (chain, draw, ...)."""
    flat = np.asarray(draws, dtype=float).reshape(*np.shape(draws)[:2], -1)
    errors = [
        array_stats.mcse(flat[..., i], method="mean", chain_axis=0, draw_axis=1)
        for i in range(flat.shape[-1])
    ]
    return flat.mean((0, 1)), np.array(errors, dtype=float)


@pytest.mark.parametrize(
    "name",
    [
        "logistic regression",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("eight schools", "hierarchical regression", "scan autoregression")
        ),
    ],
)
def test_moments_are_numpyros(name, key):
    model, data = _case(name)
    settings = {"num_warmup": 300, "num_chains": 4}
    ours = qbs.fit(model, *data, method=NUTS(num_draws=500, target_accept=0.95, **settings), key=key)
    kernel = infer.NUTS(model, target_accept_prob=0.95)
    theirs = infer.MCMC(kernel, num_samples=500, chain_method="vectorized", progress_bar=False, **settings)
    theirs.run(jax.random.fold_in(key, 1), *data)
    reference = theirs.get_samples(group_by_chain=True)
    assert set(ours.samples) == set(reference)
    for site, draws in reference.items():
        for power in (1, 2):
            ours_mean, ours_error = _mean_and_mcse(ours.samples[site] ** power)
            mean, error = _mean_and_mcse(np.asarray(draws, dtype=float) ** power)
            # 4 standard errors of a difference, raised for the number of numbers compared here (at most 28).
            assert np.all(np.abs(ours_mean - mean) <= 4.5 * np.hypot(ours_error, error)), (site, power)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_conjugate_posterior_in_closed_form(precision, key):
    def model(y):
        theta = numpyro.sample("theta", dist.Normal(0, 2))
        numpyro.sample("y", dist.Normal(theta, 1), obs=y)

    posterior = qbs.fit(model, np.array([1, 2, 0.5]), method=NUTS(), precision=precision, key=key)
    assert posterior.samples["theta"].dtype == precision
    assert posterior.samples["theta"].shape == (4, 1000)
    mean, error = _mean_and_mcse(posterior.samples["theta"])
    assert abs(mean[0] - 1.0769231) < 4 * error[0]
    square, error = _mean_and_mcse((posterior.samples["theta"] - 1.0769231) ** 2)
    assert abs(square[0] - 0.3076923) < 4 * error[0]
    assert posterior.problems == []
    assert posterior.log_evidence is None
    # Densities of the draws, against the closed form of the joint.
    theta = posterior.samples["theta"].astype(float)
    prior = -0.5 * (theta / 2) ** 2 - np.log(2 * np.sqrt(2 * np.pi))
    likelihood = sum(-0.5 * (y - theta) ** 2 - 0.5 * np.log(2 * np.pi) for y in (1, 2, 0.5))
    tolerance = 1e-4 if precision == "float32" else 1e-12
    np.testing.assert_allclose(posterior.stats["log_likelihood"], likelihood, atol=tolerance)
    np.testing.assert_allclose(posterior.stats["log_density"], likelihood + prior, atol=tolerance)


# Models that NumPyro alone cannot fit: JAX's control flow around sample statements


def _state_space(y=None, length=None):
    def step(previous, observed):
        x = numpyro.sample("x", dist.Normal(0.9 * previous, 1.0))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=observed)
        return x, None

    numpyro.deterministic("last", jax.lax.scan(step, 0.0, y, length=length)[0])


def test_a_jax_scan_around_sites_is_fitted(key):
    y = np.sin(np.arange(10.0))
    posterior = qbs.fit(_state_space, y, method=NUTS(num_warmup=300, num_draws=300), key=key)
    assert posterior.problems == []
    assert posterior.samples["x"].shape == (4, 300, 10)
    assert posterior.derived == ("last",)
    np.testing.assert_array_equal(posterior.samples["x"][..., -1], posterior.samples["last"])
    _, mean, variance = kalman(y)
    found, error = _mean_and_mcse(posterior.samples["last"])
    assert abs(found[0] - mean) < 4 * error[0]
    found, error = _mean_and_mcse((posterior.samples["last"] - mean) ** 2)
    assert abs(found[0] - variance) < 4 * error[0]
    predicted = posterior.predict(_state_space, None, 10, key=key)
    residuals = predicted["y"] - posterior.samples["x"].reshape(-1, 10)
    assert abs(residuals.mean()) < 4 * 0.5 / np.sqrt(residuals.size)
    assert abs((residuals**2).mean() - 0.25) < 4 * 0.25 * np.sqrt(2 / residuals.size)


def test_sites_in_a_vmap_are_fitted(key):
    """Groups with means and observations of their own: conjugate, one by one."""
    prior, y = np.array([0.5, -0.5]), np.array([[0.3, 0.8, 1.4], [-2.0, -1.1, -1.6]])

    def model(prior, y):
        def group(prior, y):
            mean = numpyro.sample("mean", dist.Normal(prior, 2))
            numpyro.sample("y", dist.Normal(mean, 1), obs=y)

        jax.vmap(group)(prior, y)

    posterior = qbs.fit(model, prior, y, method=NUTS(), key=key)
    exact = (prior / 4 + y.sum(1)) / 3.25
    found, error = _mean_and_mcse(posterior.samples["mean"])
    assert np.all(np.abs(found - exact) < 4.5 * error)
    found, error = _mean_and_mcse((posterior.samples["mean"] - exact) ** 2)
    assert np.all(np.abs(found - 1 / 3.25) < 4.5 * error)


def test_same_key_same_draws_other_key_others(key):
    model, data = _case("eight schools")
    method = NUTS(num_chains=2, num_warmup=100, num_draws=50)
    first, again, other = (qbs.fit(model, *data, method=method, key=k) for k in (key, key, jax.random.key(3)))
    np.testing.assert_array_equal(first.samples["mu"], again.samples["mu"])
    assert not np.array_equal(first.samples["mu"], other.samples["mu"])


def test_dense_mass_matrix_follows_correlation(key):
    covariance = np.array([[1.0, 0.99], [0.99, 1.0]])

    def model():
        numpyro.sample("x", dist.MultivariateNormal(jnp.zeros(2), covariance))

    # Float64, so that a correlation of 0.99 is not lost in the Cholesky factor.
    settings = {"num_draws": 200, "num_warmup": 300}
    method = NUTS(dense_mass=True, **settings)
    dense = qbs.fit(model, method=method, key=key, precision="float64")
    diagonal = qbs.fit(model, method=NUTS(**settings), key=key, precision="float64")
    for posterior in (dense, diagonal):
        product, error = _mean_and_mcse(posterior.samples["x"][..., 0] * posterior.samples["x"][..., 1])
        assert abs(product[0] - 0.99) < 4 * error[0]
    assert dense.num_likelihood_calls < diagonal.num_likelihood_calls


def test_new_data_of_the_same_shape_does_not_compile(key, compile_events):
    model, (sigma, y) = _case("eight schools")
    method = NUTS(num_chains=2, num_warmup=100, num_draws=50)
    qbs.fit(model, sigma, y, method=method, key=key)
    with compile_events() as events:
        changed = qbs.fit(model, sigma, y + 1, method=method, key=jax.random.key(1))
        qbs.fit(
            model,
            sigma,
            y,
            method=NUTS(num_chains=2, num_warmup=100, num_draws=70, target_accept=0.9),
            key=key,
        )
    assert events == []
    assert changed.provenance["data_sha256"]


def _no_latents(y):
    numpyro.sample("y", dist.Normal(0, 1), obs=y)


def _duplicate(y):
    numpyro.sample("x", dist.Normal(0, 1))
    numpyro.sample("x", dist.Normal(0, 1))


def _always_nan(y):
    x = numpyro.sample("x", dist.Normal(0, 1))
    numpyro.factor("fog", x * jnp.nan)


def _nan_data(y):
    x = numpyro.sample("x", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(x, 1), obs=y)


def _always_impossible(y):
    x = numpyro.sample("x", dist.Normal(0, 1))
    numpyro.factor("wall", jnp.where(x < 1e9, -jnp.inf, 0.0))


def _raises(y):
    numpyro.sample("x", dist.Normal(0, 1))
    raise RuntimeError("the table is empty")


def _discrete(y):
    k = numpyro.sample("k", dist.Poisson(3.0))
    numpyro.sample("y", dist.Normal(k, 1), obs=y)


def _optional(y):
    x = numpyro.sample("x", dist.Normal(0, 1))
    jax.lax.cond(x > 0, lambda: numpyro.sample("extra", dist.Normal(0, 1)), lambda: 0.0)


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (_no_latents, qbs.errors.ModelError, "no latent sites"),
        (_duplicate, qbs.errors.ModelError, "'x' appears twice"),
        (_always_nan, qbs.errors.LikelihoodError, "site 'fog' is NaN at 20 of 20"),
        (_nan_data, qbs.errors.LikelihoodError, r"data array 0 of shape \(3,\) holds 1 NaN"),
        (_always_impossible, qbs.errors.LikelihoodError, "site 'wall' is -inf"),
        (_raises, qbs.errors.ModelError, "RuntimeError: the table is empty"),
        (_discrete, qbs.errors.ModelError, "'k'.*discrete.*Dynesty"),
        (_optional, qbs.errors.ModelError, "a branch of a cond in '_optional' passes by 'extra'"),
    ],
)
def test_bad_models_are_explained(model, error, words, key):
    with pytest.raises(error, match=words):
        qbs.fit(model, np.array([1.0, np.nan, 2.0]), method=NUTS(num_warmup=10, num_draws=10), key=key)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_chains": 0},
        {"num_draws": -1},
        {"num_warmup": -1},
        {"target_accept": 1.0},
        {"target_accept": float("nan")},
        {"max_tree_depth": True},
    ],
)
def test_bad_settings_name_themselves(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        NUTS(**settings)


def test_stuck_chains_and_few_draws_are_problems(key):
    def model():
        numpyro.sample("x", dist.Normal(0, 1))
        numpyro.factor("spikes", 1e12 * jnp.cos(1e6 * numpyro.sample("z", dist.Normal(0, 1))))

    problems = " ".join(qbs.fit(model, method=NUTS(num_warmup=20, num_draws=20), key=key).problems)
    assert "divergent" in problems or "did not move" in problems
    assert "effective sample size" in problems


class _InterruptingLine(ProgressLine):
    """Presses Ctrl-C when the given phase has done the given number of steps."""

    def __init__(self, phase, after):
        super().__init__("test", show=False)
        self._when = phase, after

    @property
    def is_due(self):
        return True

    def update(self, status, fraction=None, remaining=None):
        phase, after = self._when
        if status.startswith(phase) and int(status.split()[1].split("/")[0].replace(",", "")) >= after:
            raise KeyboardInterrupt


def test_interrupt_keeps_the_draws_so_far(key):
    model, data = _case("eight schools")
    posterior = NUTS(num_warmup=50, num_draws=500).run(
        pose(model, data), key, _InterruptingLine("sampling", 20), Keeper()
    )
    kept = posterior.shape[1]
    assert 20 <= kept < 500
    assert posterior.problems[0].startswith(f"Interrupted after {kept} of 500 draws")
    whole = NUTS(num_warmup=50, num_draws=500).run(
        pose(model, data), key, ProgressLine("test", show=False), Keeper()
    )
    np.testing.assert_array_equal(posterior.samples["mu"], whole.samples["mu"][:, :kept])


def test_interrupt_in_warmup_has_nothing_to_keep(key):
    model, data = _case("eight schools")
    with pytest.raises(KeyboardInterrupt, match="before it kept a draw"):
        NUTS(num_warmup=50).run(pose(model, data), key, _InterruptingLine("warm-up", 5), Keeper())


def test_predictions_follow_the_posterior(key):
    model, data = _case("eight schools")
    posterior = qbs.fit(model, *data, method=NUTS(num_warmup=200, num_draws=200), key=key)
    predicted = posterior.predict(model, data[0], key=jax.random.key(2))
    assert predicted["y"].shape == (800, 8)
    theta = posterior.samples["theta"].reshape(-1, 8)
    z = (predicted["y"] - theta) / data[0]
    assert abs(z.mean()) < 4 / np.sqrt(z.size)
    assert abs((z**2).mean() - 1) < 4 * np.sqrt(2 / z.size)
