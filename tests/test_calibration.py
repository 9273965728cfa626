"""Every method of `qbs.fit` is calibrated: the ranks of known truths among its draws are uniform.

Each method is tried on three models or more. A chain is thinned by the longest autocorrelation time that
pilot runs on other datasets show, so that its draws are as good as independent. Faults planted in each family
must be caught.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import lax

import qbs
from qbs.inference import mcmc, nested, smc
from qbs.inference.mcmc.green import Green
from qbs.inference.mcmc.kernel import State, accept, report
from qbs.inference.method import Method
from qbs.inference.results.diagnostics import chain_statistics, scalars
from qbs.inference.validate.simulator import simulator
from qbs.models.change_point import ChangePoint
from qbs.models.state_space import HiddenMarkov

NUM_DRAWS = 29
NUM_PILOTS = 4


# --- models: each draws its data where they are None ---


def normal(num, y=None):
    """A normal sample of unknown mean and scale."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 0.5))
    numpyro.sample("y", dist.Normal(mu, sigma).expand([num]), obs=y)


def schools(errors, y=None):
    """Effects with a common law, in units of its scale."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand(errors.shape))
    numpyro.sample("y", dist.Normal(mu + tau * z, errors), obs=y)


def counts(exposure, heads=None, n=None):
    """A probability and two rates: sites with bounds on one side or two."""
    p = numpyro.sample("p", dist.Beta(1.0, 2.0))
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0).expand(exposure.shape))
    numpyro.sample("heads", dist.Binomial(8, p), obs=heads)
    numpyro.sample("n", dist.Poisson(rate * exposure), obs=n)


def regression(x, y=None):
    """A line through points that come one after the other."""
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    b = numpyro.sample("b", dist.Normal(0.0, 1.0))

    def step(carry, now):
        numpyro.sample("y", dist.Normal(a + b * now[0], 0.7), obs=now[1])
        return carry, None

    lax.scan(step, 0.0, (x, y))


def stream(num, y=None):
    """The normal sample, one after the other."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 0.5))

    def step(carry, now):
        numpyro.sample("y", dist.Normal(mu, sigma), obs=now)
        return carry, None

    lax.scan(step, 0.0, y, length=num)


def arrivals(num, n=None):
    """Counts that come one after the other, of a rate that grows."""
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    growth = numpyro.sample("growth", dist.Uniform(0.0, 1.0))

    def step(level, now):
        numpyro.sample("n", dist.Poisson(level), obs=now)
        return level * (1 + 0.3 * growth), None

    lax.scan(step, rate, n, length=num)


def mixed(num, y=None):
    """Two groups, and which of them each observation belongs to."""
    gap = numpyro.sample("gap", dist.Gamma(3.0, 1.0))
    group = numpyro.sample("group", dist.Bernoulli(0.4).expand([num]))
    numpyro.sample("y", dist.Normal(gap * group, 1.0), obs=y)


def coefficient(num, y=None):
    """A state that falls back by an unknown factor, seen with noise."""
    phi = numpyro.sample("phi", dist.Uniform(-1.0, 1.0))

    def step(x, now):
        x = numpyro.sample("x", dist.Normal(phi * x, 1.0))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=now)
        return x, None

    lax.scan(step, 0.0, y, length=num)


def level(num, y=None):
    """A level that wanders by steps of unknown size."""
    scale = numpyro.sample("scale", dist.LogNormal(-0.5, 0.5))

    def step(x, now):
        x = numpyro.sample("x", dist.Normal(x, scale))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=now)
        return x, None

    lax.scan(step, 0.0, y, length=num)


def switching(num, y=None):
    """A state of two that stays with unknown probability."""
    stay = numpyro.sample("stay", dist.Beta(4.0, 2.0))

    def step(state, now):
        state = numpyro.sample("state", dist.Bernoulli(jnp.where(state == 1, stay, 1 - stay)))
        numpyro.sample("y", dist.Normal(2.0 * state, 1.0), obs=now)
        return state, None

    lax.scan(step, jnp.zeros((), int), y, length=num)


HMM = HiddenMarkov(
    np.array([[0.8, 0.15, 0.05], [0.1, 0.8, 0.1], [0.05, 0.15, 0.8]]),
    np.full(3, 1 / 3),
    lambda state: dist.Normal(jnp.array([-1.0, 0.0, 1.0])[state], 0.5),
)


def hidden_markov(num, y=None):
    """A state of three, with all probabilities known."""
    HMM(y, num if y is None else None)


def local_level(num, y=None):
    """A level that wanders by known steps."""

    def step(x, now):
        x = numpyro.sample("x", dist.Normal(x, 0.7))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=now)
        return x, None

    lax.scan(step, 0.0, y, length=num)


def autoregression(num, y=None):
    """A state that falls back by a known factor, seen with noise."""

    def step(x, now):
        x = numpyro.sample("x", dist.Normal(0.9 * x, 1.0))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=now)
        return x, None

    lax.scan(step, 0.0, y, length=num)


class Posed(NamedTuple):
    """A model with its arguments, the data left out, and which sites are data."""

    model: Any
    args: tuple
    observed: Any = "y"


NORMAL = Posed(normal, (6,))
SCHOOLS = Posed(schools, (np.array([0.5, 1.0, 1.0, 2.0]),))
COUNTS = Posed(counts, (np.array([1.0, 3.0]),), ("heads", "n"))
REGRESSION = Posed(regression, (np.linspace(-1, 1, 6),))
STREAM = Posed(stream, (6,))
ARRIVALS = Posed(arrivals, (6,), "n")
MIXED = Posed(mixed, (5,))
COEFFICIENT = Posed(coefficient, (8,))
LEVEL = Posed(level, (8,))
SWITCHING = Posed(switching, (8,))
MARKOV = Posed(hidden_markov, (8,))
LOCAL = Posed(local_level, (8,))
AUTOREGRESSION = Posed(autoregression, (8,))

# --- methods, with cheap settings ---


def chains(kernel, num_warmup=300, **settings):
    return mcmc.Chains(kernel, num_chains=4, num_warmup=num_warmup, num_draws=500, **settings)


GROUPS = mcmc.cycle(mcmc.on_sites(mcmc.Slice(num_warmup=300), ["gap"]), mcmc.Gibbs({"group": [0, 1]}))
NUTS = mcmc.NUTS(num_chains=4, num_warmup=300, num_draws=500)
WALK = mcmc.RandomWalk(0.5, num_warmup=300)
DYNESTY = nested.Dynesty(num_live=60, dlogz=0.1)
NESTED = nested.Slice(num_live=60, dlogz=0.1)
TEMPERED = smc.Tempered(num_particles=256, num_islands=4)
WASTE_FREE = smc.Tempered(num_particles=1024, num_islands=2, chain_length=32)
MOVE = smc.ResampleMove(num_particles=256, num_islands=4)
FILTER = smc.ParticleFilter(num_particles=500, num_islands=4, num_paths=50)
PMMH = smc.PMMH(num_particles=30, num_chains=4, num_warmup=200, num_draws=500)
GIBBS = smc.ParticleGibbs(num_particles=10, num_chains=4, num_warmup=200, num_draws=500)
SQUARED = smc.SMC2(num_particles=100, num_inner=30, num_islands=4, num_paths=50)

CASES = {
    "NUTS, normal": (NORMAL, NUTS),
    "NUTS, schools": (SCHOOLS, NUTS),
    "NUTS, counts": (COUNTS, NUTS),
    "Chains of Slice, normal": (NORMAL, chains(mcmc.Slice(num_warmup=300))),
    "Chains of Slice, schools": (SCHOOLS, chains(mcmc.Slice(num_warmup=300))),
    "Chains of RandomWalk, normal": (NORMAL, chains(WALK)),
    "Chains of RandomWalk, counts": (COUNTS, chains(WALK)),
    "Chains of HMC, counts": (COUNTS, chains(mcmc.HMC(5, 0.3, num_warmup=300))),
    "Chains of MALA, schools": (SCHOOLS, chains(mcmc.MALA(0.5, num_warmup=300))),
    "Chains of Slice and Gibbs, groups": (MIXED, chains(GROUPS)),
    "Chains of TraceMH, groups": (MIXED, chains(mcmc.repeat(mcmc.TraceMH(), 5), is_unconstrained=False)),
    "Chains of TraceMH, switching": (
        SWITCHING,
        chains(mcmc.repeat(mcmc.TraceMH(), 5), is_unconstrained=False),
    ),
    "Dynesty, normal": (NORMAL, DYNESTY),
    "Dynesty, regression": (REGRESSION, DYNESTY),
    "Dynesty, counts": (COUNTS, DYNESTY),
    "nested Slice, normal": (NORMAL, NESTED),
    "nested Slice, regression": (REGRESSION, NESTED),
    "nested Slice, counts": (COUNTS, NESTED),
    "Tempered, normal": (NORMAL, TEMPERED),
    "Tempered, schools": (SCHOOLS, TEMPERED),
    "Tempered, counts": (COUNTS, TEMPERED),
    "Tempered without waste, normal": (NORMAL, WASTE_FREE),
    "ResampleMove, stream": (STREAM, MOVE),
    "ResampleMove, regression": (REGRESSION, MOVE),
    "ResampleMove, arrivals": (ARRIVALS, MOVE),
    "ParticleFilter, autoregression": (AUTOREGRESSION, FILTER),
    "ParticleFilter, hidden Markov": (MARKOV, FILTER),
    "ParticleFilter, local level": (LOCAL, FILTER),
    **{
        f"{type(method).__name__}, {name}": (posed, method)
        for method in (PMMH, GIBBS, SQUARED)
        for name, posed in {"coefficient": COEFFICIENT, "level": LEVEL, "switching": SWITCHING}.items()
    },
}


# --- ranks of draws that are as good as independent ---


def pilots(posed, method, key, compile_events):
    """Fit some datasets; nothing is compiled for the last."""
    law = simulator(posed.model, posed.args, posed.observed)
    keys = jax.random.split(key, (NUM_PILOTS, 2))
    drawn = jax.tree.map(np.asarray, jax.vmap(lambda own: law.draw(own, {})[1])(keys[:, 0]))
    each = [{name: np.asarray(values[i]) for name, values in drawn.items()} for i in range(NUM_PILOTS)]
    data = list(map(law.with_data, each))

    def fit(i):
        return qbs.fit(posed.model, *data[i], method=method, key=keys[i, 1], progress=False)

    first = list(map(fit, range(NUM_PILOTS - 1)))
    with compile_events() as events:
        last = fit(NUM_PILOTS - 1)
    assert not events
    return [*first, last]


def autocorrelation_time(samples):
    """Return how many draws are worth an independent one: the most of any number in the draws."""
    worth = [
        min(found["ess_bulk"], found["ess_tail"])
        for found in map(chain_statistics, scalars(samples).values())
        if np.isfinite(found["ess_bulk"] + found["ess_tail"])
    ]
    return max(1, math.ceil(np.prod(next(iter(samples.values())).shape[:2]) / min(worth)))


def log_likelihoods(posterior):
    return {name: posterior.stats[name] for name in ("log_likelihood",) if name in posterior.stats}


def calibrate(posed, method, key, compile_events, num_datasets=50):
    """Return the report of a calibration, chains thinned by what pilot runs ask for."""
    pilot_key, key = jax.random.split(key)
    found, thin = pilots(posed, method, pilot_key, compile_events), 1
    if hasattr(method, "num_chains"):
        thin = max(autocorrelation_time(p.samples | log_likelihoods(p)) for p in found)
        method = dataclasses.replace(method, num_draws=math.ceil(NUM_DRAWS * thin / method.num_chains))
    settings = {"num_datasets": num_datasets, "num_draws": NUM_DRAWS, "thin": thin}
    return qbs.validate.calibration(
        posed.model, method, *posed.args, key=key, observed=posed.observed, **settings
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_calibrated(name, key, compile_events):
    report = calibrate(*CASES[name], key, compile_events)
    assert report.ok, report


# --- change-points: the model has a factor, so its data are drawn by another ---

SERIES = ChangePoint(max_count=3, prior_mean=1.0, scale=4.0)
LENGTH = 10


class Rates(dist.Distribution):
    """The prior of the rates at each time, given the number of change-points; a draw is all it can do."""

    arg_constraints = {"count": dist.constraints.nonnegative_integer}  # noqa: RUF012 (NumPyro's form)
    support = dist.constraints.real_vector

    def __init__(self, count, *, validate_args=None):
        self.count = count
        super().__init__((), (LENGTH,), validate_args=validate_args)

    def sample(self, key, sample_shape=()):
        assert sample_shape == ()
        place_key, rate_key = jax.random.split(key)
        place = 1 + jax.random.permutation(place_key, LENGTH - 1)[:3]
        rate = SERIES.scale * jax.random.gamma(rate_key, SERIES.shape, (4,))
        return rates_at_times(self.count, place, rate[:3], rate[3])

    def log_prob(self, value):
        return jnp.zeros(jnp.shape(value)[:-1])


def rates_at_times(count, place, rate, first_rate):
    """Return the rate at each time: that of the last change-point before it."""
    is_before = (place <= jnp.arange(LENGTH)[:, None]) & (jnp.arange(3) < count)
    latest = jnp.argmax(jnp.where(is_before, place, 0), axis=1)
    return jnp.where(is_before.any(1), rate[latest], first_rate)


def drawn_series(counts=None):
    numbers = jnp.arange(4)
    count = numpyro.sample("count", dist.Categorical(logits=-jax.scipy.special.gammaln(numbers + 1.0)))
    rates = numpyro.sample("rates", Rates(count))
    numpyro.sample("counts", dist.Poisson(rates), obs=counts)


def jumping(key, counts, *, num_steps):
    """Return draws of a chain of `ChangePoint.kernel`, which starts with no change-point, after a warm-up."""
    kernel, target = SERIES.kernel(counts), mcmc.TraceTarget(qbs.reify(SERIES), (counts,))
    start = {"count": 0, "first_rate": 4.0, "place": jnp.ones(3, int), "rate": jnp.ones(3)}

    def turn(state, key):
        state, _ = kernel.step(key, state, target)
        return state, {"count": state.position["count"], "rates": rates_at_times(**state.position)}

    state = kernel.begin(start, target)
    _, draws = lax.scan(turn, state, jax.random.split(key, 100 + num_steps))
    return jax.tree.map(lambda leaf: leaf[100:], draws)


def calibrate_jumping(key, num_datasets=200):
    pilot_key, data_key, key = jax.random.split(key, 3)
    law = simulator(drawn_series, (), "counts")
    data = jax.vmap(lambda own: law.draw(own, {})[1]["counts"])(jax.random.split(data_key, NUM_PILOTS))
    run = jax.jit(jax.vmap(partial(jumping, num_steps=2000)))
    found = jax.tree.map(np.asarray, run(jax.random.split(pilot_key, NUM_PILOTS), data))
    thin = max(autocorrelation_time({k: v[None, i] for k, v in found.items()}) for i in range(NUM_PILOTS))
    method = partial(jumping, num_steps=NUM_DRAWS * thin)
    return qbs.validate.calibration(
        drawn_series,
        method,
        key=key,
        observed="counts",
        num_datasets=num_datasets,
        num_draws=NUM_DRAWS,
        thin=thin,
    )


@pytest.mark.slow
def test_reversible_jump_is_calibrated(key):
    report = calibrate_jumping(key)
    assert report.ok, report


# --- planted faults ---


class ForgetsRatio(mcmc.Kernel):
    """A random walk on the logarithm of one site that accepts as if its steps were symmetric."""

    site: str = eqx.field(static=True)

    def move(self, state, target, name="step"):
        factor = jnp.exp(qbs.sample(f"{name}: step", dist.Normal(0.0, 1.0)))
        new = {**state.position, self.site: factor * state.position[self.site]}
        pair, probability = accept(
            target(new) - state.log_density, (new, target(new)), (state.position, state.log_density), name
        )
        return State(*pair, state.inner), report(probability)


class Faulty(Method):
    """A method that does something to its draws."""

    precision: ClassVar = "float64"
    method: Method
    fault: Callable = eqx.field(static=True)

    def run(self, problem, key, line, keeper):
        return self.fault(self.method.run(problem, key, line, keeper))


def narrow(posterior):
    """Draws at half their distance from the mean."""
    samples = {name: 0.5 * (values + posterior.mean(name)) for name, values in posterior.samples.items()}
    return dataclasses.replace(posterior, samples=samples)


def unweighted(posterior):
    return dataclasses.replace(posterior, log_weights=None)


FAULTS = {
    "NUTS that is too narrow": (NORMAL, dataclasses.replace(NUTS, num_draws=150), narrow),
    "Dynesty without its weights": (NORMAL, DYNESTY, unweighted),
    "Tempered that is too narrow": (NORMAL, TEMPERED, narrow),
    "ParticleFilter that is too narrow": (AUTOREGRESSION, FILTER, narrow),
    "PMMH that is too narrow": (COEFFICIENT, dataclasses.replace(PMMH, num_draws=150), narrow),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_faulty_methods_are_caught(name, key):
    posed, method, fault = FAULTS[name]
    settings = {
        "num_datasets": 60,
        "num_draws": NUM_DRAWS,
        "thin": 20 if hasattr(method, "num_chains") else 1,
    }
    found = qbs.validate.calibration(
        posed.model, Faulty(method, fault), *posed.args, key=key, observed=posed.observed, **settings
    )
    assert not found.ok, found


@pytest.mark.slow
def test_a_kernel_that_forgets_its_proposal_ratio_is_caught(key, compile_events):
    kernel = mcmc.cycle(ForgetsRatio("sigma"), mcmc.on_sites(mcmc.RandomWalk(0.5), ["mu"]))
    method = chains(kernel, is_unconstrained=False)
    found = calibrate(NORMAL, method, key, compile_events, num_datasets=300)
    assert not found.ok, found


@pytest.mark.slow
def test_reversible_jump_that_forgets_its_proposals_is_caught(key, monkeypatch):
    monkeypatch.setattr(Green, "_log_prob", lambda _self, _point: 0.0)
    found = calibrate_jumping(key)
    assert not found.ok, found


# --- in the fast suite: chains in JAX, for all datasets at once ---

NORMAL_PROGRAM = qbs.reify(normal)


def walking(key, num, y, *, kernel):
    """Return the draws of a chain that starts at a fixed point, after a warm-up."""
    target = mcmc.TraceTarget(NORMAL_PROGRAM, (num, y))

    def turn(state, key):
        state, _ = kernel.step(key, state, target)
        return state, state.position

    state = kernel.begin({"mu": jnp.zeros(()), "sigma": jnp.ones(())}, target)
    _, draws = lax.scan(turn, state, jax.random.split(key, 100 + NUM_DRAWS * 20))
    return jax.tree.map(lambda leaf: leaf[100:], draws)


@pytest.mark.parametrize("is_right", [True, False])
def test_random_walks_and_forgotten_ratios(is_right, key):
    scale = mcmc.on_sites(mcmc.RandomWalk(0.6), ["sigma"]) if is_right else ForgetsRatio("sigma")
    kernel = mcmc.cycle(scale, mcmc.on_sites(mcmc.RandomWalk(0.8), ["mu"]))
    settings = {"num_datasets": 300, "num_draws": NUM_DRAWS, "thin": 20, "batch_size": 300}
    method = partial(walking, kernel=kernel)
    found = qbs.validate.calibration(normal, method, 6, key=key, observed="y", **settings)
    assert found.ok == is_right, found
