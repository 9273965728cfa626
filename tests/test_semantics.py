"""Semantics: exact laws, unconstrained densities, quadrature and pictures, against truth from outside."""

import math
import os
import sys
import xml.etree.ElementTree as ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import lax
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer.util import constrain_fn, potential_energy
from scipy import integrate as scipy_integrate
from scipy import stats

import qbs
from qbs.errors import MissingExtraError, ProgramError
from qbs.semantics.density import constrain, unconstrain

Y = np.sin(np.arange(5.0))


# Enumeration.
class Interval(dist.Distribution):
    """A uniform draw that acts only through the interval it falls into, as in systematic resampling."""

    arg_constraints = {"lengths": dist.constraints.simplex}  # noqa: RUF012
    support = dist.constraints.unit_interval

    def __init__(self, lengths):
        self.lengths = lengths
        super().__init__(batch_shape=jnp.shape(lengths)[:-1])

    def sample(self, key, sample_shape=()):
        return jax.random.uniform(key, sample_shape + self.batch_shape)

    def log_prob(self, value):
        return jnp.zeros(jnp.shape(value))

    def finite_law(self):
        lengths = jnp.moveaxis(self.lengths, -1, 0)
        return jnp.cumsum(lengths, 0) - lengths / 2, jnp.log(lengths)


LENGTHS = np.array([[0.2, 0.0, 0.8], [0.5, 0.25, 0.25]])
MIDDLES = np.cumsum(LENGTHS, 1) - LENGTHS / 2
OUTCOMES = {(MIDDLES[0, i], MIDDLES[1, j]): LENGTHS[0, i] * LENGTHS[1, j] for i in (0, 2) for j in range(3)}


def batched_law():
    x = numpyro.sample("x", Interval(jnp.array(LENGTHS)))
    numpyro.factor("trap", jnp.where(jnp.abs(x[0] - 0.2) < 1e-3, jnp.nan, 0.0))  # at the atom without mass
    return x


def mapped_law():
    return jax.vmap(lambda lengths: numpyro.sample("x", Interval(lengths)))(jnp.array(LENGTHS))


def law_in_branch():
    coin = numpyro.sample("coin", dist.Bernoulli(0.25))
    return lax.cond(coin == 1, lambda: jnp.zeros(2), mapped_law)


@pytest.mark.parametrize("model", [batched_law, mapped_law])
def test_a_distribution_may_give_its_own_finite_law(model):
    measure = qbs.enumerate(qbs.reify(model))()
    assert dict(measure.items()) == pytest.approx(OUTCOMES, abs=1e-12)


def test_finite_law_in_a_branch():
    measure = qbs.enumerate(qbs.reify(law_in_branch))()
    expected = {outcome: 0.75 * mass for outcome, mass in OUTCOMES.items()} | {(0.0, 0.0): 0.25}
    assert dict(measure.items()) == pytest.approx(expected, abs=1e-12)


def test_batches_with_differing_parameters():
    def model():
        rates = jnp.array([0.2, 0.3])
        tables = jnp.array([[[0.1, 0.9], [0.4, 0.6], [0.7, 0.3]], [[0.5, 0.5], [0.8, 0.2], [0.25, 0.75]]])

        def one(rate, table):
            x = numpyro.sample("x", dist.Bernoulli(rate))
            return x, jax.vmap(lambda p: numpyro.sample("k", dist.Categorical(p)))(table)

        return jax.vmap(one)(rates, tables)

    measure = qbs.enumerate(qbs.reify(model))()
    assert len(measure.masses) == 2**8
    expected = {}
    tables = [[[0.1, 0.9], [0.4, 0.6], [0.7, 0.3]], [[0.5, 0.5], [0.8, 0.2], [0.25, 0.75]]]
    for bits in np.ndindex(*(2,) * 8):
        x, k = bits[:2], np.reshape(bits[2:], (2, 3))
        mass = math.prod(r if b else 1 - r for r, b in zip((0.2, 0.3), x, strict=True))
        mass *= math.prod(tables[i][j][k[i, j]] for i in range(2) for j in range(3))
        expected[x, tuple(map(tuple, k.tolist()))] = mass
    assert dict(measure.items()) == pytest.approx(expected, abs=1e-12)


def test_supports_that_differ():
    """Of the elements of a batch, of branches that share a name; and elements inside one event."""

    def binomials():
        return numpyro.sample("x", dist.Binomial(jnp.array([1, 3]), jnp.array([0.5, 0.2])))

    found = dict(qbs.enumerate(qbs.reify(binomials))().items())
    law = stats.binom([1, 3], [0.5, 0.2])
    assert found == pytest.approx({(i, j): math.prod(law.pmf((i, j))) for i in (0, 1) for j in range(4)})

    def branches():
        coin = numpyro.sample("coin", dist.Bernoulli(0.5))
        three = jnp.array([0.2, 0.3, 0.5])
        return lax.cond(
            coin == 1,
            lambda: numpyro.sample("x", dist.Categorical(three)),
            lambda: 10 + numpyro.sample("x", dist.Bernoulli(0.4)),
        )

    found = dict(qbs.enumerate(qbs.reify(branches))().items())
    assert found == pytest.approx({0: 0.1, 1: 0.15, 2: 0.25, 10: 0.3, 11: 0.2})

    def vector():
        return numpyro.sample("x", dist.Bernoulli(jnp.array([0.5, 0.2])).to_event(1))

    found = dict(qbs.enumerate(qbs.reify(vector))().items())
    assert found == pytest.approx({(0, 0): 0.4, (0, 1): 0.1, (1, 0): 0.4, (1, 1): 0.1})


def test_masses_beyond_float64_and_none_at_all():
    def shifted(shift):
        x = numpyro.sample("x", dist.Bernoulli(0.5))
        numpyro.factor("f", shift + x)
        return x

    for shift in (-2000.0, 3000.0):
        measure = qbs.enumerate(qbs.reify(shifted))(shift)
        assert measure.log_total_mass == pytest.approx(shift + math.log((1 + math.e) / 2), rel=1e-12)
        for f in (lambda x: x, lambda x: float(x)):  # JAX can trace the first, and not the second
            assert measure.expect(f) == pytest.approx(math.e / (1 + math.e), rel=1e-12)
    nothing = qbs.enumerate(qbs.reify(shifted))(-math.inf)
    assert (nothing.total_mass, nothing.log_total_mass, list(nothing.items())) == (0.0, -math.inf, [])
    with pytest.raises(ProgramError, match="nothing to average over"):
        nothing.expect(lambda x: x)


def test_half_a_million_outcomes():
    def model():
        return numpyro.sample("x", dist.Categorical(jnp.array([0.2, 0.3, 0.5])).expand([12])).sum()

    measure = qbs.enumerate(qbs.reify(model))()
    assert measure.total_mass == pytest.approx(1, rel=1e-12)
    assert measure.expect(lambda total: total**2) == pytest.approx((12 * 1.3) ** 2 + 12 * 0.61, rel=1e-10)


# Unconstrained densities.
def many_supports(y):
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    b = numpyro.sample("b", dist.Beta(2.0, 0.5).expand([2, 3]).to_event(1))
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(4)))
    factor = numpyro.sample("factor", dist.LKJCholesky(3, 2.0))
    low = numpyro.sample("low", dist.Normal(0.0, 1.0))
    u = numpyro.sample("u", dist.Uniform(low, low + tau * jnp.arange(1.0, 4.0)))
    steps = dist.Normal(0.0, 1.0).expand([3]).to_event(1)
    o = numpyro.sample("o", dist.TransformedDistribution(steps, dist.transforms.OrderedTransform()))
    t = numpyro.sample("t", dist.TruncatedNormal(0.0, 1.0, low=low))
    p = numpyro.sample("p", dist.Pareto(tau, 2.0))
    g = numpyro.sample("g", dist.Gamma(2.0, tau))
    z = numpyro.sample("z", dist.ZeroSumNormal(1.0, (3,)))
    numpyro.sample(
        "y", dist.Normal(u.sum() + factor.sum() + w[0] * o[1] + b.sum() + t * p + g + z[0], 9.0), obs=y
    )


def series(y):
    scale = numpyro.sample("scale", dist.Gamma(2.0, 1.0))

    def step(previous, observed):
        x = numpyro.sample("x", dist.Uniform(previous - scale, previous + 2 * scale))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=observed)
        return x, x

    numpyro.deterministic("last", scan(step, 0.0, y)[0])


SHAPES = {
    many_supports: {"tau": (), "b": (2, 3), "w": (3,), "factor": (3,), "low": (), "u": (3,), "o": (3,)}
    | {"t": (), "p": (), "g": (), "z": (2,)},
    series: {"scale": (), "x": (5,)},
}


@pytest.mark.parametrize("model", SHAPES)
@pytest.mark.parametrize(
    ("x64", "tolerance"), [pytest.param(False, 1e-6, marks=pytest.mark.slow), (True, 1e-12)]
)
def test_unconstrained_density_is_numpyros(model, x64, tolerance, key):
    with jax.enable_x64(x64):
        y = jnp.asarray(Y)
        program = qbs.reify(model)
        density = qbs.log_density(program, unconstrained=True)
        ours = jax.jit(jax.value_and_grad(density))
        theirs = jax.jit(jax.value_and_grad(lambda p, y: -potential_energy(model, (y,), {}, p)))
        for seed in range(4):
            keys = iter(jax.random.split(jax.random.fold_in(key, seed), 20))
            position = {name: jax.random.normal(next(keys), shape) for name, shape in SHAPES[model].items()}
            (value, gradient), (expected, slope) = ours(position, y), theirs(position, y)
            np.testing.assert_allclose(value, expected, rtol=tolerance)
            for name in position:
                scale = 1 + np.max(np.abs(slope[name]))
                np.testing.assert_allclose(gradient[name] / scale, slope[name] / scale, atol=5 * tolerance)
        trace = jax.jit(constrain(program))(position, y)
        theirs = jax.jit(lambda p: constrain_fn(model, (y,), {}, p, return_deterministic=True))(position)
        assert trace.keys() == theirs.keys() - {"y"}
        for name in trace:
            np.testing.assert_allclose(trace[name], theirs[name], rtol=tolerance, err_msg=name)
        back = jax.jit(unconstrain(program))(trace, y)
        assert back.keys() == position.keys()
        for name in position:
            np.testing.assert_allclose(back[name], position[name], atol=1e3 * tolerance, err_msg=name)


def branching():
    coin = numpyro.sample("coin", dist.Bernoulli(0.3))
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))

    def left():
        x = numpyro.sample("x", dist.Gamma(3.0, scale))
        return x + numpyro.sample("w", dist.Dirichlet(jnp.ones(3)))[0]

    return lax.cond(coin == 1, left, lambda: numpyro.sample("x", dist.Beta(0.5, scale)))


def test_the_branch_not_taken_counts_nothing(key):
    """Its sites have placeholders, of which neither Jacobian nor gradient may come through."""
    with jax.enable_x64(True):
        program = qbs.reify(branching)
        density = qbs.log_density(program, unconstrained=True)
        traces = jax.vmap(qbs.run(program))(jax.random.split(key, 16)).trace
        assert set(traces["coin"].tolist()) == {0, 1}
        positions = jax.jit(jax.vmap(unconstrain(program)))(traces)
        free = {name: positions[name] for name in ("scale", "x", "w")}
        slope = jax.value_and_grad(lambda rest, coin: density(rest | {"coin": coin}))
        values, slopes = jax.jit(jax.vmap(slope))(free, positions["coin"])
        back = jax.jit(jax.vmap(constrain(program)))(positions)
        for i, coin in enumerate(traces["coin"].tolist()):
            trace = {name: np.asarray(leaf[i]) for name, leaf in traces.items()}
            s, x, w = trace["scale"], trace["x"], trace["w"]
            expected = math.log(0.3 if coin else 0.7) + stats.halfnorm.logpdf(s) + math.log(s)
            if coin:  # exp for x, stick breaking for w
                expected += stats.gamma(3, scale=1 / s).logpdf(x) + math.log(x) + math.log(2)
                expected += math.log(w[0] * (1 - w[0]) * w[1] * (1 - w[0] - w[1]) / (1 - w[0]))
            else:
                expected += stats.beta(0.5, s).logpdf(x) + math.log(x * (1 - x))
                assert not np.any(slopes["w"][i])
                assert not np.any(positions["w"][i])
            np.testing.assert_allclose(values[i], expected, rtol=1e-6)  # 0.3 is in float32 for NumPyro
            np.testing.assert_allclose(back["x"][i], x, rtol=1e-9)
        assert all(np.all(np.isfinite(slope)) for slope in slopes.values())


def test_batched_sites_have_their_own_transforms(key):
    """Under nested vmap: bounds that differ by element; the Jacobian against automatic differentiation."""

    def model():
        low = numpyro.sample("low", dist.Normal(0.0, 1.0).expand([2]))

        def row(low):
            return jax.vmap(lambda high: numpyro.sample("u", dist.Uniform(low, high)))(
                low + jnp.arange(1.0, 4.0)
            )

        jax.vmap(row)(low)
        jax.vmap(lambda a: numpyro.sample("w", dist.Dirichlet(a * jnp.ones(4))))(jnp.arange(1.0, 4.0))
        jax.vmap(lambda a: numpyro.sample("t", dist.TruncatedNormal(0.0, 1.0, low=a)))(low)

    with jax.enable_x64(True):
        program = qbs.reify(model)
        trace = qbs.run(program)(key).trace
        position = jax.jit(unconstrain(program))(trace)
        assert {name: value.shape for name, value in position.items()} == {
            "low": (2,),
            "u": (2, 3),
            "w": (3, 3),
            "t": (2,),
        }
        expected = qbs.log_density(program)(trace)
        for name in ("u", "w", "t"):

            def value(x, name=name):
                found = constrain(program)(position | {name: x})[name]
                return found[:, :3] if name == "w" else found  # the last weight follows from the others

            size = position[name].size
            jacobian = np.reshape(jax.jit(jax.jacobian(value))(position[name]), (size, size))
            expected += np.linalg.slogdet(jacobian)[1]
        np.testing.assert_allclose(
            qbs.log_density(program, unconstrained=True)(position), expected, rtol=1e-10
        )


def test_a_scale_handler_leaves_the_jacobian_alone():
    """NumPyro scales the log determinant too; a change of variables does not."""

    def model():
        with handlers.scale(scale=3.0):
            numpyro.sample("x", dist.Gamma(2.0, 1.5))

    position = {"x": jnp.asarray(0.4)}
    x = math.exp(0.4)
    prior = stats.gamma(2, scale=1 / 1.5).logpdf(x)
    ours = qbs.log_density(qbs.reify(model), unconstrained=True)(position)
    np.testing.assert_allclose(ours, 3 * prior + 0.4, rtol=1e-5)
    np.testing.assert_allclose(-potential_energy(model, (), {}, position), 3 * (prior + 0.4), rtol=1e-5)


# Quadrature.
def one_site(distribution):
    return qbs.reify(lambda: numpyro.sample("x", distribution()))


PRIORS = {  # a distribution, a function and its exact mean
    "normal": (lambda: dist.Normal(5.0, 2.0), lambda x: x**2, 29.0),
    "far and narrow": (lambda: dist.Normal(5.0, 1e-4), lambda x: x, 5.0),
    "cauchy": (lambda: dist.Cauchy(1.0, 3.0), lambda x: x < 4.0, 0.75),
    "half-cauchy": (lambda: dist.HalfCauchy(2.0), lambda x: x < 2.0, 0.5),
    "student": (lambda: dist.StudentT(3.0, 0.0, 1.0), lambda x: x, 0.0),
    "gamma": (lambda: dist.Gamma(0.1, 2.0), lambda x: x, 0.05),
    "half-normal": (lambda: dist.HalfNormal(1e-3), lambda x: x, 1e-3 * math.sqrt(2 / math.pi)),
    "uniform": (lambda: dist.Uniform(-3.0, 7.0), lambda x: jnp.cos(x), (math.sin(7) + math.sin(3)) / 10),
    "beta": (lambda: dist.Beta(0.1, 2.0), lambda x: x, 0.1 / 2.1),
    "log-normal": (lambda: dist.LogNormal(0.0, 1.0), lambda x: x, math.exp(0.5)),
    "von mises": (lambda: dist.VonMises(0.0, 3.0), lambda x: jnp.sin(x), 0.0),
}


@pytest.mark.parametrize("name", PRIORS)
def test_priors_integrate_to_one(name):
    distribution, function, mean = PRIORS[name]
    measure = qbs.integrate(one_site(distribution))()
    assert abs(measure.total_mass - 1) < 1e-9
    assert measure.error <= 1e-8
    accuracy = 2e-3 if "cauchy" in name else 1e-8  # the mean of a step is good to the spacing of the nodes
    np.testing.assert_allclose(measure.expect(function), mean, rtol=accuracy, atol=accuracy * 1e-2)
    assert measure.masses.sum() == pytest.approx(measure.total_mass, rel=1e-12)


def test_density_that_rises_to_both_bounds():
    measure = qbs.integrate(one_site(lambda: dist.Beta(0.5, 0.5)))()
    assert abs(measure.total_mass - 1) < 2e-8  # what is nearer to 1 than rounding is lost


def location(prior, likelihood, y):
    def model(y):
        x = numpyro.sample("x", prior())
        numpyro.sample("y", likelihood(x), obs=y)
        return x

    return qbs.integrate(qbs.reify(model))(y)


@pytest.mark.parametrize(("width", "y"), [(1.0, 0.4), (1e-3, 0.7), (1e-3, -3.1), (1e-6, 1.234)])
def test_posterior_much_narrower_than_its_prior(width, y):
    measure = location(lambda: dist.Normal(0.0, 1.0), lambda x: dist.Normal(x, width), y)
    variance = 1 + width**2
    assert measure.total_mass == pytest.approx(stats.norm(0, math.sqrt(variance)).pdf(y), rel=1e-8)
    mean = measure.expect(lambda x: x)
    assert mean == pytest.approx(y / variance, rel=1e-10)
    spread = measure.expect(lambda x: (x - y / variance) ** 2)
    assert spread == pytest.approx(width**2 / variance, rel=1e-6)


def test_narrow_posterior_with_heavy_tails():
    """The convolution of two Cauchy laws is one."""
    measure = location(lambda: dist.Cauchy(0.0, 1.0), lambda x: dist.Cauchy(x, 1e-3), 2.0)
    assert measure.total_mass == pytest.approx(stats.cauchy(scale=1.001).pdf(2.0), rel=1e-10)


def test_two_narrow_peaks():
    def model():
        x = numpyro.sample("x", dist.Normal(0.0, 3.0))
        near = dist.Normal(jnp.array([4.0, -2.0]), 1e-3).log_prob(x)
        numpyro.factor("peaks", jax.nn.logsumexp(near + jnp.log(jnp.array([1.0, 0.5]))))
        return x

    measure = qbs.integrate(qbs.reify(model))()
    wide = stats.norm(0, math.sqrt(9 + 1e-6))
    parts = np.array([wide.pdf(4), 0.5 * wide.pdf(-2)])
    assert measure.total_mass == pytest.approx(parts.sum(), rel=1e-8)
    assert measure.expect(lambda x: x > 0) == pytest.approx(parts[0] / parts.sum(), rel=1e-7)


def test_far_out_the_likelihood_need_not_be_a_number():
    def model():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(0.0, jnp.exp(x)), obs=0.7)  # NaN where exp(x) is 0

    def density(x):
        return stats.norm.pdf(x) * stats.norm(0, np.exp(x)).pdf(0.7)

    expected, _ = scipy_integrate.quad(density, -10, 10, epsabs=0, epsrel=1e-12)
    assert qbs.integrate(qbs.reify(model))().total_mass == pytest.approx(expected, rel=1e-10)


def test_narrow_ridge():
    """Two choices of which the data know one combination only."""

    def model():
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(a + 3 * b, 0.05), obs=2.0)
        return a

    measure = qbs.integrate(qbs.reify(model))()
    variance = 10 + 0.05**2
    assert measure.total_mass == pytest.approx(stats.norm(0, math.sqrt(variance)).pdf(2.0), rel=1e-9)
    assert measure.expect(lambda a: a) == pytest.approx(2 / variance, rel=1e-8)


def test_two_choices_against_scipy():
    y = np.array([1.1, 1.2, 1.25, 1.05])

    def model():
        mean = numpyro.sample("mean", dist.Normal(0.0, 10.0))
        scale = numpyro.sample("scale", dist.HalfNormal(10.0))
        numpyro.sample("y", dist.Normal(mean, scale), obs=y)
        return {"mean": mean, "scale": scale}

    def density(scale):  # the mean is integrated out by hand
        spread = np.sum((y - y.mean()) ** 2) / scale**2 + 4 * y.mean() ** 2 / (scale**2 + 400)
        normal = (2 * np.pi) ** -2 * scale**-3 * (scale**2 + 400) ** -0.5 * np.exp(-spread / 2)
        return normal * stats.halfnorm.pdf(scale, scale=10)

    measure = qbs.integrate(qbs.reify(model))()
    cuts = [0.05, 0.1, 0.2, 0.5, 1, 2, 5]
    settings = {"points": cuts, "epsabs": 0, "epsrel": 1e-11, "limit": 500}
    total, _ = scipy_integrate.quad(density, 1e-3, 80, **settings)
    first, _ = scipy_integrate.quad(lambda s: s * density(s), 1e-3, 80, **settings)
    assert measure.total_mass == pytest.approx(total, rel=1e-10)
    assert measure.expect(lambda value: value["scale"]) == pytest.approx(first / total, rel=1e-8)
    assert measure.log_total_mass == pytest.approx(math.log(total), rel=1e-10)


def test_a_scan_of_three_against_the_kalman_filter():
    def model(y):
        def step(x, observed):
            x = numpyro.sample("x", dist.Normal(0.9 * x, 1.0))
            numpyro.sample("y", dist.Normal(x, 0.5), obs=observed)
            return x, None

        return lax.scan(step, 0.0, y)[0]

    y = np.array([0.5, 1.0, -0.3])
    mean, variance, log_evidence = 0.0, 0.0, 0.0
    for observed in y:
        mean, variance = 0.9 * mean, 0.81 * variance + 1
        log_evidence += stats.norm(mean, math.sqrt(variance + 0.25)).logpdf(observed)
        gain = variance / (variance + 0.25)
        mean, variance = mean + gain * (observed - mean), (1 - gain) * variance
    measure = qbs.integrate(qbs.reify(model))(y)
    assert measure.log_total_mass == pytest.approx(log_evidence, rel=1e-8)
    assert measure.expect(lambda x: x) == pytest.approx(mean, rel=1e-7)


def test_discrete_choices_and_branches():
    def model(y):
        coin = numpyro.sample("coin", dist.Bernoulli(0.25))
        x = lax.cond(
            coin == 1,
            lambda: numpyro.sample("x", dist.Normal(0.0, 1.0)),
            lambda: numpyro.sample("z", dist.Uniform(-1.0, 3.0)),
        )
        numpyro.sample("y", dist.Normal(x, 0.1), obs=y)
        return coin

    measure = qbs.integrate(qbs.reify(model))(0.6)
    one = 0.25 * stats.norm(0, math.sqrt(1.01)).pdf(0.6)
    zero = 0.75 / 4 * (stats.norm.cdf(24) - stats.norm.cdf(-16))
    assert measure.total_mass == pytest.approx(one + zero, rel=1e-7)
    assert measure.expect(lambda coin: coin) == pytest.approx(one / (one + zero), rel=1e-7)
    finite = qbs.integrate(qbs.reify(lambda: numpyro.sample("x", dist.Bernoulli(0.25))))()
    assert (finite.total_mass, finite.error) == (pytest.approx(1), 0.0)


def test_jumps_converge_slowly_and_say_so():
    def model():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.factor("wall", jnp.where(x > 0.3, 0.0, -jnp.inf))

    with pytest.raises(ProgramError, match=r"not converged: with \d+,\d+ nodes .* changed by \d"):
        qbs.integrate(qbs.reify(model), max_points=20_000)()
    measure = qbs.integrate(qbs.reify(model), tolerance=1e-3)()
    assert measure.total_mass == pytest.approx(stats.norm.sf(0.3), rel=2e-3)


# Pictures.
def schools(y):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", 8):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        effect = numpyro.deterministic("effect", theta - mu)
        numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)
        numpyro.factor("f", effect.sum())


def state_space(y):
    rho = numpyro.sample("rho", dist.Beta(5.0, 1.0))
    start = numpyro.sample("start", dist.Normal(0.0, 1.0))

    def step(previous, observed):
        x, older = previous
        new = numpyro.sample("x", dist.Normal(rho * x + older, 1.0))
        numpyro.sample("y", dist.Normal(new, 0.5), obs=observed)
        return (new, x), new

    xs = lax.scan(step, (start, 0.0), y)[1]
    numpyro.sample("end", dist.Normal(xs.mean(), 1.0), obs=0.0)


def edges_of(rendering):
    return {tuple(edge) for edge in rendering.edges}


def test_graph_of_a_hierarchical_model():
    found = qbs.render(qbs.reify(schools), np.arange(8.0))
    assert [tuple(node) for node in found.nodes] == [
        ("mu", "sample", "Normal", -1),
        ("tau", "sample", "HalfCauchy", -1),
        ("theta", "sample", "Normal [8]", -1),
        ("effect", "note", "[8]", -1),
        ("y", "score", "‖ score", -1),
        ("f", "score", "‖ score", -1),
    ]
    pairs = [("mu", "theta"), ("tau", "theta"), ("theta", "y"), ("theta", "effect"), ("mu", "effect")]
    assert edges_of(found) == {(*pair, "direct") for pair in [*pairs, ("effect", "f")]}
    assert found.boxes == ()


def test_graph_of_a_scan():
    found = qbs.render(qbs.reify(state_space), Y)
    assert [(box.label, box.parent) for box in found.boxes] == [("scan, 5 steps", -1)]
    assert {node.id: node.box for node in found.nodes} == {"rho": -1, "start": -1, "x": 0, "y": 0, "end": -1}
    assert edges_of(found) == {
        ("rho", "x", "direct"),
        ("start", "x", "direct"),
        ("x", "x", "carried"),
        ("x", "y", "direct"),
        ("x", "end", "direct"),
    }


def test_graph_of_branches():
    def model():
        z = numpyro.sample("z", dist.Categorical(jnp.ones(3) / 3))
        s = numpyro.sample("s", dist.HalfNormal(1.0))
        x = lax.switch(
            z,
            [
                lambda: 0.0,
                lambda: numpyro.sample("x", dist.Normal(0.0, s)),
                lambda: numpyro.sample("x", dist.Gamma(1.0, 1.0)),
            ],
        )
        lax.cond(z == 0, lambda: numpyro.factor("f", -s), lambda: None)
        return numpyro.sample("y", dist.Normal(x, 1.0).expand([2, 3]).to_event(1))

    found = qbs.render(qbs.reify(model))
    assert [box.label for box in found.boxes] == ["case 1", "case 2", "if true"]
    assert {node.id: node.box for node in found.nodes} == {
        "z": -1,
        "s": -1,
        "x": 0,
        "x (2)": 1,
        "f": 2,
        "y": -1,
    }
    assert edges_of(found) == {
        ("z", "x", "chooses"),
        ("s", "x", "direct"),
        ("z", "x (2)", "chooses"),
        ("z", "f", "chooses"),
        ("s", "f", "direct"),
        ("z", "y", "direct"),
        ("x", "y", "direct"),
        ("x (2)", "y", "direct"),
    }
    assert found.nodes[-1].detail == "Normal [2, 3]"


def test_graph_of_a_nested_population():
    """SMC^2: an inner cloud for each outer particle; the ancestors of both steer the next step."""

    def model(y):
        rho = numpyro.sample("rho", dist.Uniform(0.0, 1.0))

        def inner():
            def step(x, observed):
                x = numpyro.sample("x", dist.Normal(rho * x, 1.0))
                numpyro.sample("y", dist.Normal(x, 0.5), obs=observed)
                return x, None

            return lax.scan(step, 0.0, y)[0]

        qbs.population(qbs.reify(inner), 7, resample="systematic")()
        return rho

    found = qbs.render(qbs.population(qbs.reify(model), 3, resample="multinomial"), Y)
    details = {node.id: node.detail for node in found.nodes}
    assert details["rho"] == "Uniform [3]"
    assert details["x"] == "Normal [3, 7]"
    edges = edges_of(found)
    ancestors = {name for name in details if name.startswith("y_ancestors")}
    assert len(ancestors) == 2
    assert {("rho", "x", "direct"), ("x", "y", "direct"), ("x", "x", "carried")} <= edges
    assert {(name, "x", "carried") for name in ancestors} <= edges


def test_dot_text_is_quoted():
    def model():
        x = numpyro.sample('a "b" \\ c\n->', dist.Normal(0.0, 1.0))
        numpyro.factor("f; }", -x)

    text = qbs.render(qbs.reify(model)).dot
    assert 'n0 [label="a \\"b\\" \\\\ c\\n->\\nNormal"' in text
    assert "n0 -> n1 [style=solid];" in text
    assert text.count("{") == text.count("}") - 1  # the one in the name
    scanned = qbs.render(qbs.reify(state_space), Y).dot
    assert 'subgraph cluster_0 { label="scan, 5 steps";' in scanned
    assert "[style=dashed, constraint=false]" in scanned


def test_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no Graphviz here
    found = qbs.render(qbs.reify(state_space), Y)
    root = ElementTree.fromstring(found._repr_svg_())
    assert root.tag.endswith("svg")
    found.save(tmp_path / "graph.png")
    assert (tmp_path / "graph.png").read_bytes().startswith(b"\x89PNG")
    found.save(tmp_path / "graph.dot")
    assert (tmp_path / "graph.dot").read_text(encoding="utf-8") == found.dot
    assert qbs.render(qbs.reify(lambda: None)).svg()  # nothing to draw
    with pytest.raises(ValueError, match=r"end with \.dot, \.svg or \.png"):
        found.save(tmp_path / "graph.pdf")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match="qbs-jax\\[plots\\]"):
        found.svg()


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands in for Graphviz")
def test_graphviz_draws_where_it_is_installed(tmp_path, monkeypatch):
    program = tmp_path / "dot"
    program.write_text('#!/bin/sh\necho "<svg>$1"\nexec /bin/cat\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = qbs.render(qbs.reify(state_space), Y)
    assert found.svg() == f"<svg>-Tsvg\n{found.dot}"


# What cannot be done.
def unknown_support():
    n = numpyro.sample("n", dist.Bernoulli(0.5))
    numpyro.sample("x", dist.Binomial(1 + n, 0.5))


def loop():
    lax.while_loop(lambda x: x < 1, lambda x: x + numpyro.sample("step", dist.Exponential(1.0)), 0.0)


def nowhere():
    numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.factor("wall", -jnp.inf)


def spread_out():
    x = numpyro.sample("x", dist.Cauchy(0.0, 1.0))
    numpyro.factor("f", jnp.log1p(x**2))  # takes the tails away


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: qbs.enumerate(qbs.reify(unknown_support))(), "'x' depends on values that are known only in"),
        (lambda: qbs.integrate(one_site(lambda: dist.Dirichlet(jnp.ones(3))))(), "'x' are not scalars"),
        (lambda: qbs.integrate(one_site(lambda: dist.Poisson(3.0)))(), "'x' has no finite support"),
        (lambda: qbs.integrate(qbs.reify(nowhere))(), "no mass was found"),
        (lambda: qbs.integrate(qbs.reify(spread_out))(), "the mass of site 'x' does not fall off"),
        (
            lambda: qbs.integrate(one_site(lambda: dist.Normal(0, 1).expand([9])))(),
            "needs more than 67,108,864 points",
        ),
        (lambda: qbs.render(qbs.reify(loop)), "cannot draw the JAX primitive 'while' around 'step'"),
        (
            lambda: qbs.log_density(qbs.reify(schools), unconstrained=True)({"mu": 0.0}, np.ones(8)),
            "no value for site 'tau'",
        ),
        (
            lambda: constrain(one_site(lambda: dist.Dirichlet(jnp.ones(3))))({"x": jnp.ones(3)}),
            r"'x' has unconstrained shape \(2,\); the value given has \(3,\)",
        ),
        (
            lambda: unconstrain(one_site(lambda: dist.ProjectedNormal(jnp.ones(2))))({"x": jnp.ones(2)}),
            "no map from a real space to the support of site 'x'",
        ),
    ],
)
def test_what_cannot_be_done_is_said(call, words):
    with pytest.raises(ProgramError, match=words):
        call()
