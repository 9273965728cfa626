"""Evidence of particle filters against Kalman and the forward algorithm, from 100 to 10^6 particles."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import lax
from kalman import kalman
from scipy.stats import norm

import qbs

NUM_STEPS, NUM_SEEDS = 100, 100
OBSERVED = np.sin(np.arange(NUM_STEPS))
TRANSITION = np.array([[0.8, 0.15, 0.05], [0.1, 0.8, 0.1], [0.05, 0.15, 0.8]])


def move_gaussian(x, y, t=""):
    x = numpyro.sample(f"x{t}", dist.Normal(0.9 * x, 1.0))
    numpyro.sample(f"y{t}", dist.Normal(x, 0.5), obs=y)
    return x


def move_hidden(x, y, t=""):
    x = numpyro.sample(f"x{t}", dist.Categorical(probs=jnp.asarray(TRANSITION)[x]))
    numpyro.sample(f"y{t}", dist.Normal(x - 1.0, 0.8), obs=y)
    return x


def by_scan(move, start):
    return lambda ys: lax.scan(lambda x, y: (move(x, y), None), start, ys)[0]


def by_loop(move, start):
    def model(ys):
        x = start
        for t in range(NUM_STEPS):
            x = move(x, ys[t], t)
        return x

    return model


MODELS = {
    "gaussian, scan": by_scan(move_gaussian, 0.0),
    "gaussian, loop": by_loop(move_gaussian, 0.0),
    "hidden Markov, scan": by_scan(move_hidden, 1),
    "hidden Markov, loop": by_loop(move_hidden, 1),
}


def forward():
    state, total = np.array([0.0, 1.0, 0.0]), 0.0
    for y in OBSERVED:
        state = (state @ TRANSITION) * norm(np.array([-1.0, 0.0, 1.0]), 0.8).pdf(y)
        total += math.log(state.sum())
        state /= state.sum()
    return total


def log_evidences(name, num_particles, num_seeds=NUM_SEEDS, *, batch=1):
    """Return estimates from several keys, and the truth."""
    program = qbs.population(qbs.reify(MODELS[name]), num_particles)
    ys = jnp.asarray(OBSERVED, dtype=float)
    keys = jax.random.split(jax.random.key(11), num_seeds)
    run = jax.jit(lambda keys: lax.map(lambda k: qbs.run(program)(k, ys).log_weight, keys, batch_size=batch))
    return np.asarray(run(keys), float), kalman(OBSERVED)[0] if "gaussian" in name else forward()


def require_unbiased(found, truth):
    ratio = np.exp(found - truth)
    assert ratio.std() > 0
    assert abs(ratio.mean() - 1) < 4 * ratio.std(ddof=1) / math.sqrt(len(ratio))


@pytest.mark.parametrize("num_particles", [100, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", MODELS)
def test_evidence_is_unbiased(name, num_particles):
    require_unbiased(*log_evidences(name, num_particles, batch=NUM_SEEDS))


@pytest.mark.slow
@pytest.mark.parametrize("num_particles", [10**4, 10**5, 10**6])
@pytest.mark.parametrize("name", MODELS)
def test_evidence_is_unbiased_with_many_particles(name, num_particles):
    require_unbiased(*log_evidences(name, num_particles))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gaussian, scan", "hidden Markov, scan"])
def test_float32_is_as_good_as_float64_with_a_million(name):
    """Both are within 4 standard errors of the truth, and of each other."""
    single, truth = log_evidences(name, 10**6, 10)
    with jax.enable_x64(True):
        double, _ = log_evidences(name, 10**6, 10)
    error = math.hypot(single.std(ddof=1), double.std(ddof=1)) / math.sqrt(10)
    assert abs(single.mean() - double.mean()) < 4 * error
    assert abs(single.mean() - truth) < 4 * single.std(ddof=1) / math.sqrt(10)
    assert abs(double.mean() - truth) < 4 * double.std(ddof=1) / math.sqrt(10)
