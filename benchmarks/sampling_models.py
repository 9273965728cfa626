"""Models that samplers are compared on, as NumPyro models with their data; `benchmarks/nuts.py` runs them.

Data are published, or simulated from the model with a fixed seed. Every latent site is a number or an array
of numbers that are constrained one by one, so that ranks, and effective sample sizes in bulk, are the same on
constrained and unconstrained space.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist


class Case(NamedTuple):
    """A model with its data.

    Attributes:
        model: A NumPyro model.
        data: Its positional arguments.
        said: A few words for tables.
        is_small: Whether a gradient takes microseconds, so that compiling should take seconds.
    """

    model: Callable
    data: tuple[Any, ...]
    said: str
    is_small: bool = True


SCHOOL_EFFECTS = np.array([28.0, 8, -3, 7, -1, 1, 18, 12], np.float32)
SCHOOL_ERRORS = np.array([15.0, 10, 16, 11, 9, 11, 10, 18], np.float32)


def eight_schools(sigma, y):
    """Rubin (1981), as in Gelman et al., "Bayesian Data Analysis", section 5.5."""
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", 8):
        raw = numpyro.sample("raw", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mu + tau * raw, sigma), obs=y)


def eight_schools_centred(sigma, y):
    """The same posterior, as a funnel."""
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", 8):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def logistic_regression(x, y):
    """As the German credit regression of many comparisons: 1,000 rows, 25 coefficients."""
    coefficients = numpyro.sample("coefficients", dist.Normal(0, 1).expand([x.shape[1]]).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=x @ coefficients), obs=y)


def radon(county, floor, uranium, y):
    """As Gelman & Hill (2007), chapter 12: intercepts of 85 counties, with a predictor for each."""
    base = numpyro.sample("base", dist.Normal(0, 3))
    on_floor = numpyro.sample("on_floor", dist.Normal(0, 3))
    on_uranium = numpyro.sample("on_uranium", dist.Normal(0, 3))
    spread = numpyro.sample("spread", dist.HalfNormal(1))
    noise = numpyro.sample("noise", dist.HalfNormal(1))
    with numpyro.plate("counties", uranium.shape[0]):
        raw = numpyro.sample("raw", dist.Normal(0, 1))
    level = base + on_uranium * uranium + spread * raw
    numpyro.sample("y", dist.Normal(level[county] + on_floor * floor, noise).to_event(1), obs=y)


def stochastic_volatility(returns):
    """As Hoffman & Gelman (2014), section 4: log volatility is a random walk, returns are Student's."""
    step = numpyro.sample("step", dist.Exponential(10.0))
    freedom = numpyro.sample("freedom", dist.Exponential(0.1))
    level = numpyro.sample("level", dist.Normal(-4, 2))
    walk = numpyro.sample("walk", dist.GaussianRandomWalk(1.0, num_steps=returns.shape[0]))
    scale = jnp.exp(0.5 * level + step * walk)
    numpyro.sample("returns", dist.StudentT(freedom, 0.0, scale).to_event(1), obs=returns)


def correlated_gaussian(precision):
    """Fifty dimensions, neighbours correlated by 0.9: condition number 350."""
    dim = precision.shape[0]
    x = numpyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), (dim,)))
    numpyro.factor("density", -0.5 * x @ (precision @ x))


def horseshoe(x, y):
    """Carvalho, Polson & Scott (2010), reparameterised: a funnel for each coefficient."""
    dim = x.shape[1]
    shared = numpyro.sample("shared", dist.HalfCauchy(0.1))
    own = numpyro.sample("own", dist.HalfCauchy(1).expand([dim]).to_event(1))
    raw = numpyro.sample("raw", dist.Normal(0, 1).expand([dim]).to_event(1))
    noise = numpyro.sample("noise", dist.HalfNormal(2))
    numpyro.sample("y", dist.Normal(x @ (shared * own * raw), noise).to_event(1), obs=y)


def gaussian_process(x, y):
    """Length scale, amplitude and noise of a regression on 40 points."""
    length = numpyro.sample("length", dist.LogNormal(0, 1))
    amplitude = numpyro.sample("amplitude", dist.LogNormal(0, 1))
    noise = numpyro.sample("noise", dist.LogNormal(-1, 1))
    gaps = (x[:, None] - x) / length
    covariance = amplitude**2 * jnp.exp(-0.5 * gaps**2) + (noise**2 + 1e-4) * jnp.eye(x.shape[0])
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros_like(x), covariance), obs=y)


def autoregression(lags, y):
    """Five lags, as in posteriordb's `arK`."""
    base = numpyro.sample("base", dist.Normal(0, 10))
    weights = numpyro.sample("weights", dist.Normal(0, 10).expand([lags.shape[1]]).to_event(1))
    noise = numpyro.sample("noise", dist.HalfCauchy(2.5))
    numpyro.sample("y", dist.Normal(base + lags @ weights, noise).to_event(1), obs=y)


def item_response(person, item, y):
    """Two parameters for each of 20 items, one for each of 50 persons."""
    ability = numpyro.sample("ability", dist.Normal(0, 1).expand([50]).to_event(1))
    difficulty = numpyro.sample("difficulty", dist.Normal(0, 2).expand([20]).to_event(1))
    sharpness = numpyro.sample("sharpness", dist.LogNormal(0, 0.5).expand([20]).to_event(1))
    logits = sharpness[item] * (ability[person] - difficulty[item])
    numpyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=y)


def cases() -> dict[str, Case]:
    """Return all models with their data, by name."""
    schools = SCHOOL_ERRORS, SCHOOL_EFFECTS
    found = [
        Case(eight_schools, schools, "eight schools, not centred"),
        Case(eight_schools_centred, schools, "eight schools, centred"),
        Case(logistic_regression, _credit(), "logistic regression, 1,000 x 25", is_small=False),
        Case(radon, _radon(), "radon-like regression, 85 counties", is_small=False),
        Case(stochastic_volatility, _returns(), "stochastic volatility, 100 days"),
        Case(correlated_gaussian, _neighbours(), "correlated Gaussian, 50-d"),
        Case(horseshoe, _sparse(), "horseshoe, 20 of 100"),
        Case(gaussian_process, _wave(), "Gaussian process, 40 points"),
        Case(autoregression, _series(), "autoregression, 5 lags of 200"),
        Case(item_response, _answers(), "item response, 50 x 20", is_small=False),
    ]
    return {case.model.__name__: case for case in found}


def _floats(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(array, np.float32) for array in arrays)


def _credit() -> tuple[Any, ...]:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(1000, 25))
    x[:, 0] = 1.0
    odds = x @ (0.5 * rng.normal(size=25))
    return *_floats(x), (rng.random(1000) < 1 / (1 + np.exp(-odds))).astype(np.int32)


def _radon() -> tuple[Any, ...]:
    rng = np.random.default_rng(2)
    shares = rng.dirichlet(np.full(85, 0.7))
    county = np.concatenate([np.arange(85), rng.choice(85, 919 - 85, p=shares)]).astype(np.int32)
    floor, uranium = rng.random(919) < 0.17, 0.4 * rng.normal(size=85)
    level = 1.5 + 0.7 * uranium + 0.15 * rng.normal(size=85)
    return county, *_floats(floor, uranium, level[county] - 0.65 * floor + 0.75 * rng.normal(size=919))


def _returns() -> tuple[Any, ...]:
    rng = np.random.default_rng(3)
    scale = np.exp(0.5 * -8.0 + np.cumsum(0.15 * rng.normal(size=100)))
    return _floats(scale * rng.standard_t(8, size=100))


def _neighbours() -> tuple[Any, ...]:
    steps = np.arange(50)
    return _floats(np.linalg.inv(0.9 ** np.abs(steps[:, None] - steps)))


def _sparse() -> tuple[Any, ...]:
    rng = np.random.default_rng(4)
    x, weights = rng.normal(size=(100, 20)), np.zeros(20)
    weights[:4] = 2.0, -1.0, 1.0, 0.5
    return _floats(x, x @ weights + rng.normal(size=100))


def _wave() -> tuple[Any, ...]:
    rng = np.random.default_rng(5)
    x = np.linspace(-3, 3, 40)
    return _floats(x, np.sin(2 * x) + 0.3 * rng.normal(size=40))


def _series() -> tuple[Any, ...]:
    rng = np.random.default_rng(6)
    weights, y = np.array([0.5, 0.2, -0.1, 0.1, 0.1]), list(rng.normal(size=5))
    for noise in rng.normal(size=200):
        y.append(weights @ y[:-6:-1] + noise)
    lags = np.stack([y[5 - k : -k] for k in range(1, 6)], 1)
    return _floats(lags, np.array(y[5:]))


def _answers() -> tuple[Any, ...]:
    rng = np.random.default_rng(7)
    person, item = (axis.ravel().astype(np.int32) for axis in np.indices((50, 20)))
    ability, difficulty = rng.normal(size=50), rng.normal(size=20)
    logits = np.exp(0.3 * rng.normal(size=20))[item] * (ability[person] - difficulty[item])
    return person, item, (rng.random(1000) < 1 / (1 + np.exp(-logits))).astype(np.int32)
