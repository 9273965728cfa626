"""Programs: exact measures, populations that keep them, and what JAX's own control flow means."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import lax
from kalman import kalman
from scipy.stats import expon, norm

import qbs
from qbs.effects import sample
from qbs.errors import ProgramError

Y = jnp.sin(jnp.arange(5.0))


def schools(y):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", 5):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.deterministic("square", theta**2)
        numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def test_jax_control_flow_around_sites(key):
    """lax.scan, vmap (nested) and jit around sample statements, which NumPyro alone cannot do."""

    def model(y):
        def step(previous, observed):
            x = numpyro.sample("x", dist.Normal(0.9 * previous, 1.0))
            numpyro.sample("y", dist.Normal(x, 0.5), obs=observed)
            return x, None

        lax.scan(step, 0.0, y)
        scales, locs = jnp.arange(1.0, 3.0), jnp.arange(3.0)
        jax.vmap(lambda loc: jax.vmap(lambda s: numpyro.sample("w", dist.Normal(loc, s)))(scales))(locs)
        jax.jit(lambda rate: numpyro.sample("q", dist.Exponential(rate)))(2.0)

    with jax.enable_x64(True):
        program = qbs.reify(model)
        trace = {name: np.asarray(value) for name, value in qbs.run(program)(key, Y).trace.items()}
        assert {name: value.shape for name, value in trace.items()} == {"x": (5,), "w": (3, 2), "q": ()}
        before = np.concatenate([[0.0], trace["x"][:-1]])
        expected = (
            norm(0.9 * before, 1).logpdf(trace["x"]).sum()
            + norm(trace["x"], 0.5).logpdf(np.asarray(Y)).sum()
            + norm(np.arange(3.0)[:, None], np.arange(1.0, 3.0)).logpdf(trace["w"]).sum()
            + expon(scale=0.5).logpdf(trace["q"])
        )
        np.testing.assert_allclose(qbs.log_density(program)(trace, Y), expected, rtol=1e-7)


def test_draws_of_a_batch_are_independent(key):
    def model():
        return jax.vmap(lambda loc: numpyro.sample("x", dist.Normal(loc, 1.0)))(jnp.zeros(10_000))

    x = np.asarray(qbs.run(qbs.reify(model))(key).value)
    assert abs(x.mean()) < 4 / 100
    assert abs(x.std() - 1) < 4 / math.sqrt(2 * 10_000)
    assert len(np.unique(x)) > 9_990


def test_subsampled_plate_draws_without_replacement(key):
    def model():
        with numpyro.plate("data", 10, subsample_size=4) as index:
            numpyro.sample("y", dist.Normal(0.0, 1.0), obs=jnp.zeros(4))
        return index

    index, log_weight, _ = qbs.run(qbs.reify(model))(key)
    assert len(set(index.tolist())) == 4
    np.testing.assert_allclose(log_weight, 10 * norm.logpdf(0), rtol=1e-5)  # scaled by 10 / 4


# The zoo: finite programs whose measures are known.
def coin():
    return numpyro.sample("coin", dist.Bernoulli(0.25))


def sprinkler(is_wet):
    rain = numpyro.sample("rain", dist.Bernoulli(0.3))
    on = numpyro.sample("sprinkler", dist.Bernoulli(jnp.where(rain == 1, 0.1, 0.4)))
    wet = jnp.array([[0.0, 0.9], [0.8, 0.98]])[rain, on]
    numpyro.factor("wet", jnp.log(jnp.where(is_wet, wet, 1 - wet)))
    return rain


def loop_hmm():
    x, path = 0, []
    for t in range(3):
        x = numpyro.sample(f"x{t}", dist.Bernoulli(jnp.where(x == 1, 0.8, 0.3)))
        numpyro.sample(f"y{t}", dist.Normal(x, 1.0), obs=0.7 * t)
        path.append(x)
    return jnp.stack(path)


def scan_hmm():
    def step(x, y):
        x = numpyro.sample("x", dist.Bernoulli(jnp.where(x == 1, 0.8, 0.3)))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, x

    return lax.scan(step, 0, jnp.array([0.0, 0.7, 1.4]))


def tree():
    z = numpyro.sample("z", dist.Categorical(jnp.array([0.5, 0.2, 0.3])))

    def heavy(_):
        numpyro.factor("heavy", math.log(0.5))
        return numpyro.sample("u", dist.Bernoulli(0.2))

    return lax.cond(z == 0, heavy, lambda _: 2 + numpyro.sample("v", dist.Bernoulli(0.6)), None)


def rejecting():
    x = numpyro.sample("x", dist.Categorical(jnp.array([0.1, 0.2, 0.7])))
    numpyro.factor("wall", jnp.where(x == 2, -jnp.inf, 0.0))
    y = numpyro.sample("y", dist.Bernoulli(0.5))
    numpyro.factor("tilt", 0.3 * x * y)
    return x, y


def test_exact_measures():
    measure = qbs.enumerate(qbs.reify(sprinkler))(True)
    assert measure.total_mass == pytest.approx(0.4974, abs=1e-7)  # probabilities given in float32
    assert measure.expect(lambda rain: rain) == pytest.approx(0.49336550, abs=1e-7)
    assert dict(qbs.enumerate(qbs.reify(coin))().items()) == pytest.approx({0: 0.75, 1: 0.25})
    assert dict(qbs.enumerate(qbs.reify(tree))().items()) == pytest.approx(
        {0: 0.5 * 0.5 * 0.8, 1: 0.5 * 0.5 * 0.2, 2: 0.5 * 0.4, 3: 0.5 * 0.6}, abs=1e-7
    )
    assert qbs.enumerate(qbs.reify(rejecting))().total_mass == pytest.approx(
        0.1 + 0.2 * (1 + math.exp(0.3)) / 2, abs=1e-7
    )


def test_exact_evidence_of_a_hidden_markov_model():
    """The 3-state model of the design table, cut to 8 steps, against the forward algorithm."""
    transition = np.array([[0.8, 0.15, 0.05], [0.1, 0.8, 0.1], [0.05, 0.15, 0.8]])
    observed = np.sin(0.3 * np.arange(8))

    def hmm():
        def step(x, y):
            x = numpyro.sample("x", dist.Categorical(jnp.asarray(transition)[x]))
            numpyro.sample("y", dist.Normal(x - 1.0, 0.5), obs=y)
            return x, None

        start = numpyro.sample("start", dist.Categorical(jnp.ones(3) / 3))
        return lax.scan(step, start, jnp.asarray(observed))[0]

    forward = np.full(3, 1 / 3)
    for y in observed:
        forward = (forward @ transition) * norm(np.array([-1.0, 0, 1]), 0.5).pdf(y)
    measure = qbs.enumerate(qbs.reify(hmm))()
    assert measure.total_mass == pytest.approx(forward.sum(), rel=1e-6)
    assert dict(measure.items()) == pytest.approx(dict(enumerate(forward)), rel=1e-6)


ZOO = {"coin": coin, "loop": loop_hmm, "scan": scan_hmm, "rejecting": rejecting}


@pytest.mark.parametrize("threshold", [1.0, 0.8, 0.0])
@pytest.mark.parametrize("name", ZOO)
def test_population_keeps_the_measure_exactly(name, threshold):
    report = qbs.validate.exact(
        lambda program: qbs.population(program, num_particles=2, resample="multinomial", threshold=threshold),
        qbs.reify(ZOO[name]),
    )
    assert report.ok, report
    assert report.max_difference <= 1e-12


@pytest.mark.parametrize("num_particles", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_collapse_and_named_suspension_points(num_particles):
    for at in (None, ["y1"], []):
        report = qbs.validate.exact(
            lambda program, at=at: qbs.collapse(
                qbs.population(program, num_particles, resample="multinomial", at=at)
            ),
            qbs.reify(_two_steps),
        )
        assert report.ok, report


def _two_steps():
    x = numpyro.sample("x0", dist.Bernoulli(0.3))
    numpyro.factor("y0", 0.8 * x)
    x = numpyro.sample("x1", dist.Bernoulli(0.2 + 0.6 * x))
    numpyro.factor("y1", -0.5 * x)
    return x


def test_nested_populations_keep_the_measure():
    """A parameter with a particle filter inside, two particles in two: SMC^2 in small."""

    def outer():
        parameter = numpyro.sample("parameter", dist.Bernoulli(0.4))

        def inner():
            x = numpyro.sample("x", dist.Bernoulli(0.2 + 0.5 * parameter))
            numpyro.factor("y", 0.7 * x)

        qbs.population(qbs.reify(inner), 2, resample="multinomial")()
        return parameter

    plain = {0: 0.6 * (0.8 + 0.2 * math.exp(0.7)), 1: 0.4 * (0.3 + 0.7 * math.exp(0.7))}
    assert dict(qbs.enumerate(qbs.reify(outer))().items()) == pytest.approx(plain, abs=1e-7)
    report = qbs.validate.exact(lambda p: qbs.population(p, 2, resample="multinomial"), qbs.reify(outer))
    assert report.ok, report


def _biased(name, log_weights, num_samples):
    """A planted fault: the heaviest particle takes every place."""
    return jnp.full(num_samples, jnp.argmax(log_weights))


def _one_for_all(name, log_weights, num_samples):
    """A fair scheme that is nothing but unbiased: all places go to one particle, drawn by weight."""
    return jnp.full(num_samples, sample(name, dist.CategoricalLogits(log_weights)))


def test_exactness_tells_fair_schemes_from_biased_ones():
    program = qbs.reify(_two_steps)
    fair = qbs.validate.exact(lambda p: qbs.population(p, 2, resample=_one_for_all), program)
    assert fair.ok, fair
    biased = qbs.validate.exact(lambda p: qbs.population(p, 2, resample=_biased), program)
    assert not biased.ok
    assert biased.max_difference > 1e-3
    assert "NOT the same measure" in repr(biased)


def _state_space(ys):
    def step(x, y):
        x = numpyro.sample("x", dist.Normal(0.9 * x, 1.0))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
        return x, None

    first = numpyro.sample("x0", dist.Normal(0.0, 1.0))
    numpyro.sample("y0", dist.Normal(first, 0.5), obs=ys[0])
    return lax.scan(step, first, ys[1:])[0]


@pytest.mark.parametrize("resample", ["multinomial", "stratified", "systematic"])
@pytest.mark.parametrize("threshold", [1.0, 0.5])
def test_evidence_of_a_particle_filter_is_unbiased(resample, threshold, key):
    ys = np.sin(np.arange(20.0))
    truth, mean, _ = kalman(ys)
    assert truth == pytest.approx(-25.041647827763214, abs=1e-9)  # the published value of this problem
    program = qbs.population(qbs.reify(_state_space), 200, resample=resample, threshold=threshold)
    run = jax.jit(jax.vmap(lambda k: qbs.run(program)(k, jnp.asarray(ys))))
    particles, log_weight, _ = run(jax.random.split(key, 400))
    ratio = np.exp(np.asarray(log_weight, dtype=float) - truth)
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(len(ratio))
    weights = np.exp(np.asarray(particles.log_weights, dtype=float))
    weighted = (np.asarray(particles.value) * weights).mean(1) * ratio  # E[Z mean of particles] = Z E[x]
    assert abs(weighted.mean() - mean) < 4 * weighted.std() / math.sqrt(len(ratio))


def test_impossible_evidence_is_minus_infinity(key):
    def model():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.factor("wall", jnp.where(x > -1e9, -jnp.inf, 0.0))
        return x

    drawn = qbs.run(qbs.population(qbs.reify(model), 10))(key)
    assert drawn.log_weight == -jnp.inf
    assert np.all(np.isfinite(drawn.value.value))
    assert np.all(np.isfinite(drawn.value.log_weights))


def _twice():
    numpyro.sample("x", dist.Normal(0, 1))
    jax.jit(lambda: numpyro.sample("x", dist.Normal(0, 1)))()


def _unbounded():
    lax.while_loop(lambda x: x < 1, lambda x: x + numpyro.sample("step", dist.Exponential(1.0)), 0.0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda key: qbs.run(qbs.reify(_twice))(key), "'x' appears twice"),
        (lambda key: qbs.run(qbs.reify(_unbounded))(key), "primitive 'while' around 'step'"),
        (lambda key: qbs.log_density(qbs.reify(schools))({"mu": 0.0}, Y), "no value for site 'tau'"),
        (lambda key: qbs.log_density(qbs.reify(coin))({"coin": jnp.zeros(2)}), r"'coin' has shape \(\)"),
        (lambda key: qbs.enumerate(qbs.reify(schools))(Y), "'mu' has no finite support"),
        (lambda key: qbs.sample("x", dist.Normal(0, 1)), "'x' was reached outside a program"),
        (lambda key: qbs.score(0.0, name="s"), "'s' was reached outside a program"),
        (lambda key: qbs.population(qbs.reify(coin), 2, chunk_size=0), "chunk_size must be a whole number"),
        (lambda key: qbs.population(qbs.reify(coin), 2, num_path_nodes=1), "at least num_particles"),
        (lambda key: qbs.population(qbs.reify(coin), 0), "num_particles must be a whole number above 0"),
        (
            lambda key: qbs.population(qbs.reify(coin), 2, resample="best"),
            "multinomial, stratified, systematic",
        ),
        (lambda key: qbs.population(qbs.reify(coin), 2, threshold=2.0), "threshold must lie in"),
    ],
)
def test_what_cannot_be_done_is_said(call, words, key):
    with pytest.raises((ProgramError, ValueError), match=words):
        call(key)


def test_running_composes_with_jax(key):
    def model(scale):
        return scale * numpyro.sample("x", dist.Normal(0.0, 1.0))

    run = qbs.run(qbs.reify(model))
    value = jax.jit(run)(key, 2.0).value
    np.testing.assert_allclose(value, run(key, 2.0).value, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda s: run(key, s).value)(2.0), value / 2.0, rtol=1e-6)
    many = jax.vmap(functools.partial(run), in_axes=(0, None))(jax.random.split(key, 3), 2.0).value
    assert len(set(map(float, many))) == 3
