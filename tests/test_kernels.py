"""Kernels leave their targets invariant: exactly on finite ones, and by moments on a Gaussian."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import qbs
from qbs.inference import mcmc

MASSES = np.array([0.05, 0.25, 0.1, 0.45, 0.15])


def five():
    return {"x": qbs.sample("x", dist.Categorical(probs=jnp.asarray(MASSES)))}


def log_mass(position):
    x = position["x"]
    is_inside = (x >= 0) & (x < 5)
    return jnp.where(is_inside, jnp.log(jnp.asarray(MASSES))[jnp.clip(x, 0, 4).astype(int)], -jnp.inf)


def nearby(position):
    return {"x": dist.Categorical(logits=-jnp.abs(jnp.arange(5) - position["x"] - 0.3))}


def swing(_):
    qbs.sample("by", dist.Categorical(probs=jnp.array([0.2, 0.3, 0.5])))


def swung(position, drawn):
    """A rotation of five states whose step depends on where it is, as pairs that undo one another."""
    partner = jnp.array([[1, 0, 3, 2, 4], [4, 2, 1, 3, 0], [0, 3, 4, 1, 2]])[drawn["by"], position["x"]]
    return {"x": partner}, drawn


INDEPENDENT = {"x": dist.Categorical(probs=np.array([0.3, 0.1, 0.2, 0.2, 0.2]))}
METROPOLIS = mcmc.MetropolisHastings(nearby)
INDEPENDENCE = mcmc.Independence(INDEPENDENT)
GIBBS = mcmc.Gibbs({"x": range(5)})
KERNELS = {
    "metropolis": METROPOLIS,
    "independence": INDEPENDENCE,
    "gibbs": GIBBS,
    "conditional": mcmc.Conditional(lambda _: {"x": dist.Categorical(probs=jnp.asarray(MASSES))}),
    "green": mcmc.green(swing, swung),
    "cycle": mcmc.cycle(METROPOLIS, INDEPENDENCE, mcmc.green(swing, swung)),
    "mixture": mcmc.mixture(METROPOLIS, INDEPENDENCE, probabilities=[0.3, 0.7]),
    "repeat": mcmc.repeat(METROPOLIS, 2),
    "nested": mcmc.cycle(mcmc.repeat(mcmc.mixture(METROPOLIS, GIBBS), 2), INDEPENDENCE),
}


@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_is_invariant_exactly(name):
    report = qbs.validate.invariant(mcmc.as_transition(KERNELS[name], log_mass), qbs.Program(five))
    assert report.ok, report
    assert report.max_difference < 1e-12
    assert np.abs(report.matrix - np.eye(5)).max() > 0.05  # it moves


def test_a_random_walk_on_a_lattice_is_invariant_exactly():
    kernel = mcmc.RandomWalk(1.0, noise=dist.DiscreteUniform(-1, 1))

    def on_floats():
        return {"x": 1.0 * five()["x"]}

    report = qbs.validate.invariant(mcmc.as_transition(kernel, log_mass), qbs.Program(on_floats))
    assert report.ok, report


def two_sites():
    a = numpyro.sample("a", dist.Bernoulli(0.3))
    b = numpyro.sample("b", dist.Categorical(probs=jnp.where(a == 1, jnp.array([0.2, 0.3, 0.5]), 1 / 3)))
    numpyro.factor("together", 0.7 * a * b)


@pytest.mark.parametrize(
    "kernel",
    [
        mcmc.TraceMH(),
        mcmc.cycle(
            mcmc.on_sites(mcmc.Gibbs({"a": [0, 1]}), ["a"]),
            mcmc.on_sites(mcmc.Independence({"b": dist.DiscreteUniform(0, 2)}), ["b"]),
        ),
    ],
    ids=["single sites of a trace", "Gibbs blocks"],
)
def test_kernels_on_the_sites_of_a_model_are_invariant_exactly(kernel):
    program = qbs.reify(two_sites)
    traces = qbs.Program(lambda: qbs.traced(program)()[1])
    report = qbs.validate.invariant(mcmc.as_transition(kernel, mcmc.TraceTarget(program)), traces)
    assert report.ok, report


def goes_round(position, drawn):
    return {"x": (position["x"] + drawn["by"]) % 5}, drawn


def test_planted_faults_are_caught():
    wrong = mcmc.Conditional(lambda _: INDEPENDENT)
    assert not qbs.validate.invariant(mcmc.as_transition(wrong, log_mass), qbs.Program(five)).ok
    no_involution = mcmc.green(swing, goes_round)
    report = qbs.validate.invariant(mcmc.as_transition(no_involution, log_mass), qbs.Program(five))
    assert not report.ok
    with pytest.raises(eqx.EquinoxRuntimeError, match="not an involution"):
        no_involution.init(jax.random.key(0), {"x": jnp.asarray(2)}, log_mass)


MEAN = np.array([1.0, -2.0])
COVARIANCE = np.array([[1.0, 0.6], [0.6, 2.0]])


def log_gaussian(position):
    gap = jnp.concatenate([position["a"][None], position["b"]]) - MEAN
    return -0.5 * gap @ jnp.asarray(np.linalg.inv(COVARIANCE), gap.dtype) @ gap


CONTINUOUS = {
    "random walk": mcmc.RandomWalk(1.2),
    "random walk, adapted": mcmc.RandomWalk(0.3, num_warmup=300),
    "slice": mcmc.Slice(num_warmup=300),
    "hit and run": mcmc.HitAndRun(num_warmup=300),
    "elliptical slice": mcmc.EllipticalSlice(np.zeros(2), np.diag([4.0, 4.0])),
    "MALA": mcmc.MALA(0.3, num_warmup=300),
    "HMC": mcmc.HMC(5, 0.4),
    "no U-turn": mcmc.NoUTurn(0.5),
    "blocks": mcmc.cycle(mcmc.on_sites(mcmc.Slice(), ["a"]), mcmc.on_sites(mcmc.RandomWalk(1.0), ["b"])),
    "gradients in a mixture": mcmc.mixture(mcmc.MALA(0.7), mcmc.RandomWalk(1.0)),
}


# Of those that compile long; the others check the same machinery.
SLOW = ("no U-turn", "blocks", "slice", "random walk, adapted", "elliptical slice")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CONTINUOUS]
)
def test_moments_of_a_gaussian(name, key):
    """Chains start in the target; the spread of means is known from the chains themselves."""
    kernel, num_chains, num_steps, num_warmup = CONTINUOUS[name], 64, 700, 300

    def chain(key):
        start_key, init_key, run_key = jax.random.split(key, 3)
        start = MEAN + jnp.linalg.cholesky(COVARIANCE) @ jax.random.normal(start_key, (2,))
        state = kernel.init(init_key, {"a": start[0], "b": start[1:]}, log_gaussian)

        def turn(state, key):
            state, info = kernel.step(key, state, log_gaussian)
            return state, (state.position, info)

        _, (positions, info) = jax.lax.scan(turn, state, jax.random.split(run_key, num_steps))
        return jnp.column_stack([positions["a"], positions["b"]])[num_warmup:], info

    draws, info = jax.jit(jax.vmap(chain))(jax.random.split(key, num_chains))
    gaps = np.asarray(draws, float) - MEAN
    products = np.stack([gaps[..., 0] ** 2, gaps[..., 1] ** 2, gaps[..., 0] * gaps[..., 1]], -1)
    found = np.concatenate([gaps.mean(1), products.mean(1)], -1)
    wanted = np.array([0, 0, COVARIANCE[0, 0], COVARIANCE[1, 1], COVARIANCE[0, 1]])
    z = (found.mean(0) - wanted) / (found.std(0, ddof=1) / np.sqrt(num_chains))
    assert np.all(np.abs(z) < 4.5), z  # of five numbers, by a t distribution with 63 degrees of freedom
    assert np.all(np.asarray(info.num_evaluations) >= 1)
    assert not np.any(info.num_nonfinite)


def test_points_of_nan_are_rejected_and_counted(key):
    def log_density(x):
        return jnp.where(x > 1, jnp.nan, -0.5 * x**2)

    for kernel in (mcmc.RandomWalk(1.0), mcmc.Slice(), mcmc.MALA(0.9)):
        state = kernel.init(key, jnp.zeros(()), log_density)

        def turn(state, key, kernel=kernel):
            state, info = kernel.step(key, state, log_density)
            return state, (state.position, info.num_nonfinite)

        _, (x, bad) = jax.lax.scan(turn, state, jax.random.split(key, 300))
        assert np.all(x <= 1)
        assert np.sum(bad) > 0


def test_no_start_where_the_density_is_not_finite(key):
    with pytest.raises(eqx.EquinoxRuntimeError, match="finite"):
        mcmc.RandomWalk().init(key, jnp.zeros(()), lambda x: jnp.log(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (mcmc.cycle, "at least one kernel"),
        (lambda: mcmc.mixture(GIBBS, probabilities=[0.5, 0.5]), "must be 1 positive numbers"),
        (lambda: mcmc.mixture(GIBBS, GIBBS, probabilities=[1.0, -1.0]), "must be 2 positive numbers"),
        (lambda: mcmc.repeat(GIBBS, 0), "whole number above 0"),
        (lambda: mcmc.on_sites(GIBBS, "x"), "must be a list of names"),
        (lambda: mcmc.on_sites(GIBBS, []), "at least one site"),
        (lambda: mcmc.Gibbs({}), "at least one site"),
        (lambda: mcmc.Gibbs({"x": [[1, 2]]}), "must be a list of numbers"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


@pytest.mark.parametrize(
    ("kernel", "position", "message"),
    [
        (GIBBS, {"z": jnp.zeros(())}, "no site named 'x'"),
        (mcmc.on_sites(GIBBS, ["x"]), {"z": jnp.zeros(())}, r"no site named \['x'\]"),
        (INDEPENDENCE, {"x": jnp.zeros(2, int)}, "has shape"),
        (mcmc.Slice(), {"x": jnp.zeros((), int)}, "has none"),
        (mcmc.EllipticalSlice(np.zeros(2), np.eye(2)), {"x": jnp.zeros(3)}, "3 numbers"),
    ],
)
def test_positions_that_do_not_fit_are_refused(kernel, position, message, key):
    def log_density(position):
        return sum(jnp.sum(0.0 * leaf) for leaf in position.values())

    with pytest.raises(ValueError, match=message):
        kernel.step(key, kernel.begin(position, log_density), log_density)


def test_trace_mh_needs_a_program(key):
    with pytest.raises(qbs.errors.ProgramError, match="needs a TraceTarget"):
        mcmc.TraceMH().step(key, GIBBS.begin({"x": jnp.asarray(1)}, log_mass), log_mass)
