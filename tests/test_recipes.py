"""The recipes of the guide, run as they stand there, against closed forms, Kalman and quadrature."""

import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kalman import kalman
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import qbs

GUIDE = Path(__file__).parents[1] / "docs" / "guides" / "recipes.md"
NUM_RUNS = 40


@pytest.fixture(scope="module")
def recipes():
    """Return the names that the guide's code defines."""
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf8"), re.S):
        if not block.startswith("particles,"):
            exec(block, names)
    return names


def unknown_mean(data):
    """Return log evidence, mean and variance of the posterior, in closed form."""
    data = np.asarray(data, float)
    covariance = np.eye(len(data)) + 4.0
    variance = 1 / (len(data) + 0.25)
    return multivariate_normal(np.zeros(len(data)), covariance).logpdf(data), variance * data.sum(), variance


def unknown_coefficient(ys):
    """Return log evidence, mean and standard deviation of the coefficient, by quadrature over Kalman."""
    phi, weight = np.polynomial.legendre.leggauss(60)
    log_masses = np.array([kalman(ys, p)[0] for p in phi]) + np.log(weight / 2)
    masses = np.exp(log_masses - logsumexp(log_masses))
    mean = masses @ phi
    return logsumexp(log_masses), mean, math.sqrt(masses @ (phi - mean) ** 2)


def runs(program, *args, num_runs=NUM_RUNS):
    return jax.jit(jax.vmap(lambda k: qbs.run(program)(k, *args)))(
        jax.random.split(jax.random.key(3), num_runs)
    )


def require_unbiased(found, log_evidence, mean):
    """Z-test E[Z/Z*] = 1 and E[Z/Z* (mean of the particles)] = posterior mean, at 4 standard errors."""
    ratio = np.exp(np.asarray(found.log_weight, float) - log_evidence)
    assert ratio.std() > 0
    assert abs(ratio.mean() - 1) < 4 * ratio.std(ddof=1) / math.sqrt(len(ratio))
    value = found.value
    if isinstance(value, qbs.Particles):
        weights = np.exp(np.asarray(value.log_weights, float))
        states = np.asarray(value.value, float).reshape(*weights.shape, -1).mean(-1)
        value = (weights * states).mean(1)
    weighted = ratio * np.asarray(value, float) - mean * ratio  # zero in expectation
    assert abs(weighted.mean()) < 4 * weighted.std(ddof=1) / math.sqrt(len(weighted))


@pytest.mark.parametrize("name", ["importance_sampling", "ibis", "tempered_smc", "waste_free"])
def test_evidence_and_mean_of_a_static_model(recipes, name):
    log_evidence, mean, _ = unknown_mean(recipes["data"])
    args = () if name == "waste_free" else (recipes["data"],)
    num_runs = 1000 if name == "importance_sampling" else NUM_RUNS
    require_unbiased(runs(recipes[name], *args, num_runs=num_runs), log_evidence, mean)


def test_particle_filter(recipes):
    found = runs(recipes["particle_filter"], 0.7, recipes["ys"], num_runs=100)
    ratio = np.exp(np.asarray(found.log_weight, float) - kalman(recipes["ys"], 0.7)[0])
    assert abs(ratio.mean() - 1) < 4 * ratio.std(ddof=1) / 10


def test_smc_squared(recipes):
    log_evidence, mean, _ = unknown_coefficient(recipes["ys"])
    require_unbiased(runs(recipes["smc2"], recipes["ys"], num_runs=20), log_evidence, mean)


def require_posterior(draws, mean, deviation):
    """Compare mean and spread of a chain with the truth, by the spread over 20 batches."""
    draws = np.asarray(draws, float)[len(draws) // 10 :]
    batches = draws[: len(draws) // 20 * 20].reshape(20, -1)
    assert abs(draws.mean() - mean) < 4 * batches.mean(1).std(ddof=1) / math.sqrt(20)
    squares = ((batches - mean) ** 2).mean(1)
    assert abs(squares.mean() - deviation**2) < 4 * squares.std(ddof=1) / math.sqrt(20)


def test_trace_metropolis(recipes):
    _, mean, variance = unknown_mean(recipes["data"])
    drawn = qbs.run(recipes["trace_mh"])(recipes["key"], recipes["data"])
    require_posterior(drawn.value, mean, math.sqrt(variance))


def test_pmmh_and_particle_gibbs_agree_with_quadrature(recipes):
    _, mean, deviation = unknown_coefficient(recipes["ys"])
    require_posterior(qbs.run(recipes["pmmh"])(recipes["key"], recipes["ys"]).value, mean, deviation)
    require_posterior(qbs.run(recipes["particle_gibbs"])(recipes["key"]).value, mean, deviation)


def test_the_last_block_runs(recipes):
    block = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf8"), re.S)[-1]
    assert block.startswith("particles,")
    names = dict(recipes)
    exec(block, names)
    _, mean, variance = unknown_mean(recipes["data"])
    assert names["draws"].shape == (3500,)
    assert abs(names["estimate"] - mean) < 6 * math.sqrt(variance / 100)  # 100 particles, moved
    assert jnp.isfinite(names["log_evidence"])
