"""State-space models: exact companions against closed forms, enumeration and quadrature; and as programs."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from arviz_stats.base import array_stats
from scipy import stats
from scipy.integrate import solve_ivp
from scipy.special import logsumexp

import qbs
from qbs.inference.mcmc import NUTS
from qbs.models.state_space import (
    HUDSON_BAY,
    HiddenMarkov,
    LinearGaussian,
    StochasticVolatility,
    lotka_volterra,
    solve_lotka_volterra,
    stochastic_volatility,
)

NAN = np.nan
PRECISIONS = pytest.mark.parametrize("x64", [False, True], ids=["float32", "float64"])
RNG = np.random.default_rng(8)


def autoregression(phi=0.9):
    """The series of many tests: the state at the first observation is N(0, 1)."""
    return LinearGaussian(
        transition=phi,
        transition_covariance=1.0,
        observation=1.0,
        observation_covariance=0.25,
        initial_mean=0.0,
        initial_covariance=1.0,
    )


PLANE = LinearGaussian(
    transition=np.array([[0.9, 0.2, 0.0], [-0.1, 0.8, 0.3], [0.0, 0.1, 0.7]]),
    transition_covariance=np.array([[0.5, 0.1, 0.0], [0.1, 0.4, -0.1], [0.0, -0.1, 0.3]]),
    observation=np.array([[1.0, 0.0, 0.5], [0.0, 2.0, -1.0]]),
    observation_covariance=np.array([[0.3, 0.1], [0.1, 0.6]]),
    initial_mean=np.array([1.0, -0.5, 0.2]),
    initial_covariance=np.array([[1.0, 0.3, 0.0], [0.3, 2.0, 0.4], [0.0, 0.4, 1.5]]),
)
PLANE_YS = RNG.normal(size=(6, 2))
PLANE_GAPS = PLANE_YS.copy()
PLANE_GAPS[0, 1] = PLANE_GAPS[2] = PLANE_GAPS[4, 0] = NAN

ROWS = np.array([[0.8, 0.15, 0.05], [0.1, 0.8, 0.1], [0.05, 0.15, 0.8]])
LEVELS = np.array([-1.0, 0.0, 1.0])


UNIFORM = np.ones(3) / 3


def three_states(initial=UNIFORM, transition=ROWS, levels=LEVELS, spread=0.5):
    emission = lambda state: dist.Normal(jnp.asarray(levels)[state], spread)  # noqa: E731
    return HiddenMarkov(transition, initial, emission)


VOLATILITY = StochasticVolatility(mu=-0.5, phi=0.95, sigma=0.3)
RETURNS = 0.8 * RNG.normal(size=40)
RETURNS[[7, 8]] = NAN
PELTS = np.array([row[1:] for row in HUDSON_BAY])


# Linear and Gaussian


def joint(model, num_steps):
    """Return mean and covariance of all states and then all observations, from the equations."""
    a, q, h, r = (
        np.asarray(getattr(model, name), float)
        for name in ("transition", "transition_covariance", "observation", "observation_covariance")
    )
    dim = len(a)
    # The states are a linear map of the independent shocks (x_1, w_2, w_3, ...).
    maps = np.zeros((num_steps * dim, num_steps * dim))
    for t, s in itertools.product(range(num_steps), repeat=2):
        if s <= t:
            maps[t * dim : (t + 1) * dim, s * dim : (s + 1) * dim] = np.linalg.matrix_power(a, t - s)
    shocks = np.kron(np.eye(num_steps), q)
    shocks[:dim, :dim] = model.initial_covariance
    means = maps[:, :dim] @ model.initial_mean
    states = maps @ shocks @ maps.T
    see = np.kron(np.eye(num_steps), h)
    observed = see @ states @ see.T + np.kron(np.eye(num_steps), r)
    covariance = np.block([[states, states @ see.T], [see @ states, observed]])
    return np.concatenate([means, see @ means]), covariance


def given(model, ys, until=None):
    """Return log density of the series, and moments of all states given it (up to a step)."""
    ys = np.asarray(ys, float)
    mean, covariance = joint(model, len(ys))
    num = len(ys) * np.shape(model.transition)[0]
    flat = ys.ravel().copy()
    if until is not None:
        flat[until * ys.shape[1] :] = NAN
    seen = num + np.flatnonzero(~np.isnan(flat))
    flat = flat[~np.isnan(flat)]
    cross, own = covariance[:num, seen], covariance[np.ix_(seen, seen)]
    weights = np.linalg.solve(own, cross.T).T
    density = stats.multivariate_normal(mean[seen], own).logpdf(flat)
    return density, mean[:num] + weights @ (flat - mean[seen]), covariance[:num, :num] - weights @ cross.T


@PRECISIONS
def test_kalman_is_the_tabulated_answer(x64):
    with jax.enable_x64(x64):
        tolerance = 1e-10 if x64 else 1e-4
        model = autoregression()
        for num_steps, truth in ((20, -25.041647827763214), (100, -126.40024851491273)):
            assert abs(model.log_evidence(np.sin(np.arange(num_steps))) - truth) < tolerance
        means, covariances = model.filter(np.sin(np.arange(100.0))[:, None])
        assert means.shape == (100, 1)
        assert covariances.shape == (100, 1, 1)
        assert means.dtype == (jnp.float64 if x64 else jnp.float32)
        np.testing.assert_allclose(means[-1], -0.88642777, atol=1e-6)
        np.testing.assert_allclose(covariances[-1], 0.20588548, atol=1e-6)


def test_kalman_as_the_likelihood_of_a_parameter():
    phi, weights = np.polynomial.legendre.leggauss(60)
    ys = np.sin(np.arange(50.0))
    with jax.enable_x64(True):
        found = jax.jit(jax.vmap(lambda phi: autoregression(phi).log_evidence(ys)))(phi)
    log_masses = np.asarray(found) + np.log(weights / 2)
    masses = np.exp(log_masses - logsumexp(log_masses))
    assert abs(logsumexp(log_masses) - -61.192792895579) < 1e-9
    mean = masses @ phi
    assert abs(mean - 0.379509289) < 1e-8
    assert abs(math.sqrt(masses @ (phi - mean) ** 2) - 0.205731729) < 1e-8


@PRECISIONS
@pytest.mark.parametrize("ys", [PLANE_YS, PLANE_GAPS], ids=["complete", "with gaps"])
def test_filter_and_smoother_are_conditional_gaussians(ys, x64):
    tolerance = {"rtol": 1e-9, "atol": 1e-11} if x64 else {"rtol": 1e-3, "atol": 2e-5}
    with jax.enable_x64(x64):
        log_evidence, filtered, smoothed = PLANE.log_evidence(ys), PLANE.filter(ys), PLANE.smooth(ys)
    density, means, covariance = given(PLANE, ys)
    np.testing.assert_allclose(log_evidence, density, **tolerance)
    np.testing.assert_allclose(smoothed.means, means.reshape(-1, 3), **tolerance)
    for t in range(6):
        block = slice(3 * t, 3 * t + 3)
        np.testing.assert_allclose(smoothed.covariances[t], covariance[block, block], **tolerance)
        _, now, spread = given(PLANE, ys, until=t + 1)
        np.testing.assert_allclose(filtered.means[t], now[block], **tolerance)
        np.testing.assert_allclose(filtered.covariances[t], spread[block, block], **tolerance)


def test_the_gaussian_model_has_the_joint_density():
    states, program = RNG.normal(size=(6, 3)), qbs.reify(PLANE)
    program.stage(jnp.asarray(PLANE_GAPS))  # in float32: what the model captured does not stay so
    with jax.enable_x64(True):
        found = jax.jit(qbs.log_density(program))({"state": jnp.asarray(states)}, jnp.asarray(PLANE_GAPS))
    mean, covariance = joint(PLANE, 6)
    everything = np.concatenate([states.ravel(), PLANE_GAPS.ravel()])
    seen = np.flatnonzero(~np.isnan(everything))
    truth = stats.multivariate_normal(mean[seen], covariance[np.ix_(seen, seen)]).logpdf(everything[seen])
    np.testing.assert_allclose(found, truth, rtol=1e-10)


def test_a_series_that_is_missing_says_nothing():
    ys = np.full((6, 2), NAN)
    assert abs(PLANE.log_evidence(ys)) < 1e-5
    mean, covariance = joint(PLANE, 6)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    close(PLANE.smooth(ys).means, mean[:18].reshape(6, 3))
    close(PLANE.filter(ys).covariances[-1], covariance[15:18, 15:18])


def test_one_step():
    means, covariances = autoregression().smooth(np.ones(1))
    np.testing.assert_allclose(means, [[0.8]], rtol=1e-6)  # prior and noise weigh 1 to 4
    np.testing.assert_allclose(covariances, [[[0.2]]], rtol=1e-6)


def test_float32_serves_for_a_vague_start():
    """Where a filter that keeps covariances instead of roots gives NaN."""
    vague = LinearGaussian(
        transition=np.array([[1.0, 1.0], [0.0, 1.0]]),
        transition_covariance=1e-4 * np.eye(2),
        observation=np.array([[1.0, 0.0]]),
        observation_covariance=1e-2,
        initial_mean=np.zeros(2),
        initial_covariance=1e6 * np.eye(2),
    )
    ys = 0.1 * np.arange(6.0)
    single = vague.smooth(ys)
    with jax.enable_x64(True):
        double = vague.smooth(ys)
    np.testing.assert_allclose(single.means, double.means, atol=2e-3)
    np.testing.assert_allclose(single.covariances, double.covariances, rtol=2e-2, atol=1e-5)


# Simulation


def require_moments(draws, mean, covariance):
    """Compare sample moments with the truth: within 5 standard errors, for some hundred numbers."""
    draws = np.asarray(draws, float).reshape(len(draws), -1) - mean
    error = np.sqrt(np.diag(covariance) / len(draws))
    assert np.all(np.abs(draws.mean(0)) < 5 * error)
    variances = np.diag(covariance)
    errors = np.sqrt((np.outer(variances, variances) + covariance**2) / len(draws))  # of Gaussians
    assert np.all(np.abs(draws.T @ draws / len(draws) - covariance) < 5 * errors)


@pytest.mark.parametrize("by", ["companion", "program"])
def test_simulated_series_have_the_moments_of_the_joint(by, key):
    keys = jax.random.split(key, 4000)
    if by == "companion":
        states, ys = jax.vmap(lambda key: PLANE.simulate(key, 4))(keys)
    else:
        run = qbs.run(qbs.reify(PLANE))
        trace = jax.jit(jax.vmap(lambda key: run(key, None, 4).trace))(keys)
        states, ys = trace["state"], trace["y"]
    both = np.concatenate([np.reshape(states, (4000, -1)), np.reshape(ys, (4000, -1))], axis=1)
    require_moments(both, *joint(PLANE, 4))


@pytest.mark.parametrize("by", ["companion", "program"])
def test_simulated_hidden_states_have_the_probabilities_of_the_chain(by, key):
    model, keys = three_states(initial=np.array([0.7, 0.3, 0.0])), jax.random.split(key, 4000)
    if by == "companion":
        states, ys = jax.vmap(lambda key: model.simulate(key, 5))(keys)
    else:
        run = qbs.run(qbs.reify(model))
        trace = jax.jit(jax.vmap(lambda key: run(key, None, 5).trace))(keys)
        states, ys = trace["state"], trace["y"]
    truth = np.array([np.array([0.7, 0.3, 0.0]) @ np.linalg.matrix_power(ROWS, t) for t in range(5)])
    found = (np.asarray(states)[..., None] == np.arange(3)).mean(0)
    assert np.all(np.abs(found - truth) <= 4.5 * np.sqrt(truth * (1 - truth) / 4000))
    residuals = (np.asarray(ys) - LEVELS[np.asarray(states)]).ravel() / 0.5
    assert stats.kstest(residuals, "norm").pvalue > 1e-4


def test_simulated_volatility_is_stationary(key):
    h, ys = jax.vmap(lambda key: VOLATILITY.simulate(key, 6))(jax.random.split(key, 4000))
    lags = np.abs(np.subtract.outer(np.arange(6), np.arange(6)))
    require_moments(h, -0.5, 0.3**2 / (1 - 0.95**2) * 0.95**lags)
    assert stats.kstest(np.ravel(ys * jnp.exp(-0.5 * h)), "norm").pvalue > 1e-4


# Hidden Markov


def test_forward_algorithm_is_the_tabulated_answer():
    with jax.enable_x64(True):
        ys = np.sin(0.3 * np.arange(50))
        model = three_states()
        assert abs(model.log_evidence(ys) - -37.35296529483584) < 1e-10
        np.testing.assert_allclose(model.filter(ys)[-1], [0.0000728, 0.0528172, 0.9471100], atol=1e-6)


def test_a_chain_that_moves_before_its_first_observation():
    """The benchmark of Scibior et al. (2018), from uniform probabilities: its first state is one move on."""
    ys = np.array([0.9, 0.8, 0.7, 0, -0.025, -5, -2, -0.1, 0, 0.13, 0.45, 6, 0.2, 0.3, -1, -1])
    rows = np.array([[0.1, 0.4, 0.5], [0.2, 0.6, 0.2], [0.15, 0.7, 0.15]])
    model = three_states(np.ones(3) / 3 @ rows, rows, np.array([-1.0, 1.0, 0.0]), 1.0)
    with jax.enable_x64(True):
        assert abs(model.log_evidence(ys) - -44.685841550866) < 1e-10
        np.testing.assert_allclose(model.filter(ys)[-1], [0.340712100, 0.181489259, 0.477798642], atol=1e-6)


def all_paths(model, log_likelihoods):
    """Return all paths with the log of their joint probability, by enumeration."""
    num_steps, size = log_likelihoods.shape
    paths = np.array(list(itertools.product(range(size), repeat=num_steps)))
    with np.errstate(divide="ignore"):
        first, moves = np.log(model.initial), np.log(model.transition)
    joint = first[paths[:, 0]] + log_likelihoods[np.arange(num_steps), paths].sum(1)
    return paths, joint + moves[paths[:, :-1], paths[:, 1:]].sum(1)


def marginals(paths, log_joint, size):
    masses = np.exp(log_joint - logsumexp(log_joint))
    return np.array([[masses[paths[:, t] == s].sum() for s in range(size)] for t in range(paths.shape[1])])


@pytest.mark.parametrize("seed", range(4))
def test_passes_are_sums_over_all_paths(seed):
    rng = np.random.default_rng(seed)
    transition, initial = rng.dirichlet(np.ones(3), 3), rng.dirichlet(np.ones(3))
    if seed == 3:  # from left to right
        transition, initial = np.array([[0.6, 0.4, 0], [0, 0.7, 0.3], [0, 0, 1]]), np.array([1.0, 0, 0])
    ys = rng.normal(size=6)
    if seed > 1:
        ys[[1, 4]] = NAN
    log_likelihoods = np.nan_to_num(stats.norm(LEVELS, 0.7).logpdf(ys[:, None]))
    with jax.enable_x64(True):
        found = map(np.asarray, all_passes(initial, transition, LEVELS, ys))
    log_evidence, slope, filtered, smoothed, best = found
    model = three_states(initial, transition)
    paths, log_joint = all_paths(model, log_likelihoods)
    assert abs(log_evidence - logsumexp(log_joint)) < 1e-12
    np.testing.assert_allclose(smoothed, marginals(paths, log_joint, 3), atol=1e-12)
    np.testing.assert_array_equal(best, paths[np.argmax(log_joint)])
    for t in range(6):
        until = all_paths(model, log_likelihoods[: t + 1])
        np.testing.assert_allclose(filtered[t], marginals(*until, 3)[-1], atol=1e-12)
    assert np.all(np.isfinite(slope))


@jax.jit
def all_passes(initial, transition, levels, ys):
    of = partial(three_states, initial, transition, spread=0.7)
    both = jax.value_and_grad(lambda levels: of(levels=levels).log_evidence(ys))(levels)
    model = of(levels=levels)
    return *both, model.filter(ys), model.smooth(ys), model.most_likely_path(ys)


def test_the_hidden_program_enumerates_to_the_evidence():
    """In float32."""
    model, ys = three_states(), np.array([0.2, NAN, -1.1, 0.9])
    exact = qbs.enumerate(qbs.reify(model))(jnp.asarray(ys))
    np.testing.assert_allclose(np.log(exact.total_mass), model.log_evidence(ys), rtol=1e-5)
    last = [exact.expect(partial(lambda state, which: state == which, which=k)) for k in range(3)]
    np.testing.assert_allclose(last, model.filter(ys)[-1], atol=1e-6)


def test_counts_and_vectors_are_emitted():
    rates = np.array([1.0, 5.0])
    counts = HiddenMarkov(
        np.array([[0.9, 0.1], [0.2, 0.8]]),
        np.full(2, 0.5),
        lambda state: dist.Poisson(jnp.asarray(rates)[state]),
    )
    ys = np.array([0, 2, 7, 4])
    _, log_joint = all_paths(counts, stats.poisson(rates).logpmf(ys[:, None]))
    np.testing.assert_allclose(counts.log_evidence(ys), logsumexp(log_joint), rtol=1e-5)
    centres = np.array([[0.0, 1.0], [2.0, -1.0]])
    vectors = HiddenMarkov(
        counts.transition,
        counts.initial,
        lambda state: dist.Normal(jnp.asarray(centres)[state], 1.0).to_event(1),
    )
    ys = np.array([[0.5, 0.5], [NAN, 3.0], [1.5, -1.5]])  # the second step is skipped, all of it
    log_likelihoods = np.nan_to_num(stats.norm(centres).logpdf(ys[:, None]).sum(-1))
    _, log_joint = all_paths(vectors, log_likelihoods)
    np.testing.assert_allclose(vectors.log_evidence(ys), logsumexp(log_joint), rtol=1e-5)


def test_an_impossible_series():
    model = HiddenMarkov(np.eye(2), np.full(2, 0.5), lambda state: dist.Delta(1.0 * state))
    ys = np.array([0.0, 1.0, 0.0])
    assert model.log_evidence(ys) == -np.inf
    np.testing.assert_allclose(model.filter(ys), [[1, 0], [0, 0], [0, 0]], atol=1e-6)
    np.testing.assert_array_equal(model.smooth(ys), np.zeros((3, 2)))


def test_rare_states_do_not_underflow():
    """A likelihood a thousand nats below that of a state that cannot be reached."""
    model = HiddenMarkov(np.eye(2), np.eye(2)[0], lambda s: dist.Normal(50.0 * s, 1.0))
    np.testing.assert_allclose(model.log_evidence(np.array([50.0])), stats.norm.logpdf(50.0), rtol=1e-6)


# As particle filters


def grid_filter(model, ys, num_nodes=600):
    """Return log evidence, and mean of each log volatility given all returns, by quadrature on a grid."""
    mu, phi, sigma = (float(getattr(model, name)) for name in ("mu", "phi", "sigma"))
    spread = sigma / math.sqrt(1 - phi**2)
    h = np.linspace(mu - 8 * spread, mu + 8 * spread, num_nodes)
    width = h[1] - h[0]
    moves = stats.norm(mu + phi * (h[:, None] - mu), sigma).pdf(h) * width
    densities = np.array(
        [np.ones_like(h) if np.isnan(y) else stats.norm(0, np.exp(h / 2)).pdf(y) for y in ys]
    )
    forward, total = [], 0.0
    state = stats.norm(mu, spread).pdf(h) * width
    for density in densities:
        state = state * density
        total += math.log(state.sum())
        forward.append(state / state.sum())
        state = forward[-1] @ moves
    backward, means = np.ones_like(h), []
    for state, density in zip(reversed(forward), reversed(densities), strict=True):
        smoothed = state * backward
        means.append(smoothed @ h / smoothed.sum())
        backward = moves @ (density * backward)
        backward /= backward.max()
    return total, np.array(means[::-1])


FILTERED = {
    "plane with gaps": (PLANE, PLANE_GAPS, lambda ys: given(PLANE, ys)[0]),
    "three states": (three_states(), np.sin(0.3 * np.arange(50)), lambda ys: -37.35296529483584),
    "volatility with gaps": (VOLATILITY, RETURNS, lambda ys: grid_filter(VOLATILITY, ys)[0]),
}


@pytest.mark.parametrize("name", FILTERED)
def test_the_evidence_of_a_particle_filter_is_unbiased(name, key):
    model, ys, truth = FILTERED[name]
    run = qbs.run(qbs.population(qbs.reify(model), 1000))
    filters = jax.jit(jax.vmap(lambda key: run(key, jnp.asarray(ys)).log_weight))
    ratio = np.exp(np.asarray(filters(jax.random.split(key, 50)), float) - truth(ys))
    assert ratio.std() > 0
    assert abs(ratio.mean() - 1) < 4 * ratio.std(ddof=1) / math.sqrt(50)


def test_the_hidden_model_has_the_joint_density():
    path, ys = np.array([0, 2, 1]), np.array([0.2, NAN, -1.1])
    program = qbs.reify(three_states(levels=LEVELS / 3))
    program.stage(jnp.asarray(ys))  # in float32: what the emission captured does not stay so
    with jax.enable_x64(True):
        found = jax.jit(qbs.log_density(program))({"state": jnp.asarray(path)}, jnp.asarray(ys))
    truth = np.log(1 / 3 * ROWS[0, 2] * ROWS[2, 1]) + np.nansum(stats.norm(path / 3 - 1 / 3, 0.5).logpdf(ys))
    np.testing.assert_allclose(found, truth, rtol=1e-12)


# Stochastic volatility, predators and prey


def test_the_priors_of_volatility():
    mu, phi, variance, h = 0.3, 0.93, 0.02, RNG.normal(size=40)
    program = qbs.reify(stochastic_volatility)
    program.stage(jnp.asarray(RETURNS))
    with jax.enable_x64(True):
        trace = {"mu": mu, "phi": phi, "sigma_squared": variance, "log_volatility": h}
        found = jax.jit(qbs.log_density(program))(jax.tree.map(jnp.asarray, trace), jnp.asarray(RETURNS))
    truth = stats.norm(0, math.sqrt(10)).logpdf(mu) + stats.invgamma(2.5, scale=0.025).logpdf(variance)
    truth += stats.beta(20, 1.5, loc=-1, scale=2).logpdf(phi)
    truth += stats.norm(mu, np.sqrt(variance / (1 - phi**2))).logpdf(h[0])
    truth += stats.norm(mu + phi * (h[:-1] - mu), np.sqrt(variance)).logpdf(h[1:]).sum()
    truth += np.nansum(stats.norm(0, np.exp(h / 2)).logpdf(RETURNS))
    np.testing.assert_allclose(found, truth, rtol=1e-10)


RATES, START = np.array([0.55, 0.028, 0.80, 0.024]), np.array([33.9, 5.9])


def integrated(times):
    growth, predation, decline, gain = RATES
    solution = solve_ivp(
        lambda _, z: [(growth - predation * z[1]) * z[0], (gain * z[0] - decline) * z[1]],
        (times[0], times[-1]),
        START,
        t_eval=times,
        rtol=1e-11,
        atol=1e-11,
    )
    return solution.y.T


@PRECISIONS
def test_lotka_volterra_is_integrated(x64):
    with jax.enable_x64(x64):
        found = solve_lotka_volterra(RATES, START, np.arange(21.0))
        np.testing.assert_allclose(found, integrated(np.arange(21.0)), rtol=1e-5)
        uneven = np.array([0.5, 0.7, 2.0, 2.3])
        np.testing.assert_allclose(
            solve_lotka_volterra(RATES, START, uneven), integrated(uneven), rtol=2e-5 if x64 else 3e-5
        )


def test_lotka_volterra_has_the_density_of_the_case_study():
    gaps = PELTS.copy()
    gaps[3, 1] = gaps[9] = NAN
    with jax.enable_x64(True):
        program = qbs.reify(lotka_volterra)
        names = ("prey_growth", "predation", "predator_decline", "predator_growth")
        given = dict(zip(names, map(jnp.asarray, RATES), strict=True))
        noise = np.array([0.25, 0.3])
        given |= {"initial": jnp.asarray(START), "noise": jnp.asarray(noise)}
        found = jax.jit(qbs.log_density(program))(given, jnp.asarray(gaps))
    truth = 0.0
    for rate, mean, spread in zip(RATES, (1, 0.05, 1, 0.05), (0.5, 0.05, 0.5, 0.05), strict=True):
        truth += stats.truncnorm(-mean / spread, np.inf, loc=mean, scale=spread).logpdf(rate)
    truth += (
        stats.lognorm(1, scale=10).logpdf(START).sum()
        + stats.lognorm(1, scale=np.exp(-1)).logpdf(noise).sum()
    )
    truth += np.nansum(stats.lognorm(noise, scale=integrated(np.arange(21.0))).logpdf(gaps))
    np.testing.assert_allclose(found, truth, rtol=1e-5)


def test_absurd_rates_give_no_nan():
    found = solve_lotka_volterra(np.array([3.0, 0.5, 3.0, 0.5]), np.array([100.0, 100.0]), np.arange(21.0))
    assert np.all(np.isfinite(found))
    slope = jax.grad(lambda rates: jnp.sum(jnp.log(solve_lotka_volterra(rates, START, np.arange(21.0)))))
    assert np.all(np.isfinite(slope(np.array([3.0, 0.5, 3.0, 0.5]))))


def test_populations_are_drawn_at_times(key):
    drawn = qbs.run(qbs.reify(lotka_volterra))(key, None, np.array([1900.0, 1901.5, 1903.0]))
    assert drawn.trace["population"].shape == (3, 2)
    assert np.all(np.asarray(drawn.trace["population"]) > 0)


# Transformations of JAX


@pytest.mark.parametrize(
    ("build", "values"),
    [
        (lambda phi: autoregression(phi), [0.9, 0.5, -0.3]),
        (lambda spread: three_states(spread=spread), [0.5, 0.8, 1.3]),
    ],
    ids=["gaussian", "hidden"],
)
def test_companions_under_jit_vmap_and_grad(build, values):
    step, scale = 1e-5, np.array([1.0, 2.0, 0.5])
    ys = scale[:, None] * np.sin(np.arange(6.0))
    with jax.enable_x64(True):
        both = jax.value_and_grad(lambda value, ys: build(value).log_evidence(ys))
        around = np.array(values) + step * np.array([[0], [1], [-1]])
        found, slopes = jax.jit(jax.vmap(jax.vmap(both), (0, None)))(around, ys)
        single = [build(value).log_evidence(y) for value, y in zip(values, ys, strict=True)]
        np.testing.assert_allclose(found[0], single, rtol=1e-12)
        np.testing.assert_allclose(slopes[0], (found[1] - found[2]) / (2 * step), rtol=1e-6)
        batch = jax.vmap(lambda value: build(value).smooth(ys[0]))(np.array(values))
        compare = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
        jax.tree.map(lambda a, b: compare(a[1], b), batch, build(values[1]).smooth(ys[0]))


def test_gradients_pass_the_gaps():
    slope = jax.grad(lambda model: model.log_evidence(PLANE_GAPS))(PLANE)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slope))


def test_new_values_do_not_compile_again(compile_events):
    model, ys = autoregression(), np.sin(np.arange(7.0))
    for _ in range(2):  # the second time everything is compiled
        with compile_events() as events:
            for phi in (0.9, 0.4):
                other = autoregression(phi)
                (
                    other.log_evidence(ys),
                    other.filter(ys),
                    other.smooth(ys),
                    other.simulate(jax.random.key(1), 7),
                )
            three_states(spread=0.4).smooth(ys), model.log_evidence(2 * ys)
    assert events == []


# What is refused

MATRICES = {
    "transition": np.eye(2),
    "transition_covariance": np.eye(2),
    "observation": np.array([[1.0, 0.0]]),
    "observation_covariance": 1.0,
    "initial_mean": np.zeros(2),
    "initial_covariance": np.eye(2),
}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("transition", np.ones((2, 3)), "transition must have shape (2, 2), square"),
        ("transition", np.ones(2), "transition must be a number or a matrix"),
        ("transition", np.array([[1.0, NAN], [0.0, 1.0]]), "transition must be finite"),
        ("transition_covariance", np.eye(3), "transition_covariance must have shape (2, 2)"),
        ("transition_covariance", np.diag([1.0, 0.0]), "transition_covariance must be positive definite"),
        ("initial_covariance", np.array([[1.0, 0.5], [0.0, 1.0]]), "initial_covariance must be symmetric"),
        ("initial_mean", np.zeros(3), "initial_mean must have shape (2,)"),
        ("observation", np.ones((1, 3)), "observation must have shape (1, 2)"),
        ("observation_covariance", -1.0, "observation_covariance must be positive definite"),
        ("observation_covariance", np.eye(2), "observation_covariance must have shape (1, 1)"),
    ],
)
def test_wrong_matrices_are_refused(name, value, message):
    with pytest.raises(ValueError, match="^" + message.replace("(", r"\(").replace(")", r"\)")):
        LinearGaussian(**{**MATRICES, name: value})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: three_states(initial=np.array([0.5, 0.6, 0.0])), "initial must be made of probabilities"),
        (lambda: three_states(initial=np.full(2, 0.5)), r"initial must have shape \(3,\)"),
        (lambda: three_states(transition=ROWS + 0.1), "each row of transition must be made of probabilities"),
        (lambda: three_states(transition=ROWS[:2]), r"transition must have shape \(2, 2\)"),
        (lambda: HiddenMarkov(ROWS, ROWS[0], lambda s: s).filter(RETURNS), "emission must return a NumPyro"),
        (
            lambda: HiddenMarkov(ROWS, ROWS[0], lambda s: dist.Normal(0.0, 1.0)).filter(RETURNS),
            "emission must return a distribution of batch shape",
        ),
        (lambda: three_states().log_evidence(np.zeros(0)), "ys is empty"),
        (lambda: three_states().log_evidence(np.array([0.0, np.inf])), "ys must be finite"),
        (lambda: three_states().log_evidence(np.zeros((3, 1))), r"ys must have shape \(num_steps\)"),
        (lambda: three_states().simulate(jax.random.key(0), 0), "num_steps must be a whole number above 0"),
        (lambda: PLANE.filter(np.zeros((0, 2))), "ys is empty"),
        (lambda: PLANE.smooth(np.zeros(3)), r"ys must have shape \(num_steps, 2\)"),
        (lambda: PLANE.log_evidence(1j * PLANE_YS), "ys must be made of real numbers"),
        (lambda: PLANE(), "give ys, or num_steps"),
        (lambda: PLANE(PLANE_YS, 6), "give ys, or num_steps"),
        (lambda: VOLATILITY(np.zeros((3, 2))), r"returns must have shape \(num_steps\)"),
        (lambda: StochasticVolatility(mu=0.0, phi=1.0, sigma=1.0), "phi must lie in"),
        (lambda: StochasticVolatility(mu=0.0, phi=0.5, sigma=0.0), "sigma must be above 0"),
        (lambda: StochasticVolatility(mu=np.zeros(2), phi=0.5, sigma=1.0), r"mu must have shape \(\)"),
        (lambda: StochasticVolatility(mu=NAN, phi=0.5, sigma=1.0), "mu must be finite"),
        (lambda: lotka_volterra(), "give populations, or times"),
        (lambda: lotka_volterra(PELTS[:, 0]), r"populations must have shape \(num_steps, 2\)"),
        (lambda: lotka_volterra(-PELTS), "populations must be above 0"),
        (lambda: lotka_volterra(PELTS, np.arange(3.0)), "times must be 21 times"),
        (lambda: lotka_volterra(None, np.array([1.0, 0.0])), "times must increase"),
        (lambda: solve_lotka_volterra(RATES, -START, np.arange(3.0)), "initial must be above 0"),
        (lambda: solve_lotka_volterra(RATES, START, np.zeros(0)), "times must be a vector of at least one"),
    ],
)
def test_wrong_calls_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Fits


def require_means(found, truth, error=0.0):
    """Compare means of chains, and of squares if given, by their Monte Carlo errors."""
    flat = np.asarray(found, float).reshape(*np.shape(found)[:2], -1)
    mcse = [
        array_stats.mcse(flat[..., i], method="mean", chain_axis=0, draw_axis=1)
        for i in range(flat.shape[-1])
    ]
    # 4 standard errors, raised for the number of numbers compared (at most 40).
    assert np.all(np.abs(flat.mean((0, 1)) - np.ravel(truth)) < 4.5 * np.hypot(np.array(mcse, float), error))


@pytest.mark.slow
def test_nuts_agrees_with_the_smoother(key):
    posterior = qbs.fit(PLANE, PLANE_GAPS, method=NUTS(num_warmup=500), key=key)
    _, means, covariance = given(PLANE, PLANE_GAPS)
    states = posterior.samples["state"]
    assert states.shape == (4, 1000, 6, 3)
    require_means(states, means)
    require_means((states - means.reshape(6, 3)) ** 2, np.diag(covariance))


@pytest.mark.slow
def test_nuts_over_the_exact_likelihood_of_a_parameter(key):
    def unknown(ys):
        phi = numpyro.sample("phi", dist.Uniform(-1, 1))
        numpyro.factor("ys", autoregression(phi).log_evidence(ys))

    phi = qbs.fit(unknown, np.sin(np.arange(50.0)), method=NUTS(), key=key).samples["phi"]
    require_means(phi, 0.379509289)
    require_means((phi - 0.379509289) ** 2, 0.205731729**2)


@pytest.mark.slow
def test_nuts_agrees_with_quadrature_on_volatility(key):
    posterior = qbs.fit(VOLATILITY, RETURNS, method=NUTS(num_warmup=500), key=key)
    require_means(posterior.samples["log_volatility"], grid_filter(VOLATILITY, RETURNS)[1])


@pytest.mark.slow
def test_hudson_bay_is_the_published_posterior(key):
    """Against posteriordb's reference for Stan's case study: means and mean squares, with their errors."""
    posterior = qbs.fit(lotka_volterra, PELTS, method=NUTS(num_warmup=500, num_draws=500), key=key)
    names = ("prey_growth", "predation", "predator_decline", "predator_growth", "initial", "noise")
    draws = np.concatenate(
        [np.reshape(posterior.samples[name], (4, 500, -1)) for name in names], axis=-1, dtype=float
    )
    means = [0.54686450, 0.027747288, 0.80009536, 0.024085915, 34.0352225, 5.93589713, 0.24805686, 0.25101691]
    errors = [6.3e-4, 4.1e-5, 8.8e-4, 3.5e-5, 0.029, 0.0053, 4.4e-4, 4.4e-4]
    require_means(draws, means, errors)
    squares = [
        0.30303629,
        0.0007871719,
        0.6481388153,
        0.0005925775,
        1166.9038171,
        35.5163321,
        0.06340368,
        0.06490942,
    ]
    errors = [7.0e-4, 2.4e-6, 1.5e-3, 1.8e-6, 2.02, 0.065, 2.4e-4, 2.4e-4]
    require_means(draws**2, squares, errors)
