"""Distributions under `jax.vmap`: each element's draws and densities are those of its own distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import qbs
from qbs.batches import ElementWise, batched_distribution

TWO = jnp.array([0.3, 0.7])
FAMILIES = {
    "Normal": lambda p: dist.Normal(p, 1.0),
    "LogNormal": lambda p: dist.LogNormal(p, 0.3),
    "HalfNormal": lambda p: dist.HalfNormal(p),
    "Gamma, expanded": lambda p: dist.Gamma(p, 1.0).expand([2, 3]).to_event(1),
    "Beta": lambda p: dist.Beta(p, 2.0),
    "StudentT": lambda p: dist.StudentT(9.0, p, 1.0),
    "InverseGamma": lambda p: dist.InverseGamma(5 * p, 1.0),
    "Weibull": lambda p: dist.Weibull(p, 2.0),
    "Kumaraswamy": lambda p: dist.Kumaraswamy(p, 2.0),
    "VonMises": lambda p: dist.VonMises(p, 2.0),
    "Poisson": lambda p: dist.Poisson(p),
    "Binomial": lambda p: dist.Binomial(4, logits=p),
    "BetaBinomial": lambda p: dist.BetaBinomial(p, 2.0, 5),
    "NegativeBinomial2": lambda p: dist.NegativeBinomial2(p, 2.0),
    "Geometric": lambda p: dist.Geometric(p / 3),
    "Categorical": lambda p: dist.Categorical(logits=jnp.array([0.0, 1.0, 2.0]) * p),
    "OrderedLogistic": lambda p: dist.OrderedLogistic(p, jnp.array([-1.0, 1.0])),
    "Multinomial": lambda p: dist.Multinomial(5, logits=jnp.array([0.0, 1.0, 2.0]) * p),
    "Dirichlet": lambda p: dist.Dirichlet(p * jnp.ones(3)),
    "DirichletMultinomial": lambda p: dist.DirichletMultinomial(p * jnp.ones(3), 5),
    "MultivariateNormal": lambda p: dist.MultivariateNormal(p * jnp.ones(2), jnp.eye(2) + 0.3),
    "LowRank": lambda p: dist.LowRankMultivariateNormal(p * jnp.ones(2), jnp.ones((2, 1)), jnp.ones(2)),
    "MultivariateStudentT": lambda p: dist.MultivariateStudentT(9.0, p * jnp.ones(2), jnp.eye(2)),
    "MatrixNormal": lambda p: dist.MatrixNormal(p * jnp.ones((2, 2)), jnp.eye(2), jnp.eye(2)),
    "LKJCholesky": lambda p: dist.LKJCholesky(3, p),
    "Wishart": lambda p: dist.Wishart(5.0, p * jnp.eye(2)),
    "GaussianRandomWalk": lambda p: dist.GaussianRandomWalk(p, 4),
    "ZeroSumNormal": lambda p: dist.ZeroSumNormal(p, (3,)),
    "SineBivariateVonMises": lambda p: dist.SineBivariateVonMises(0.0, 0.0, 2.0, 2.0, 0.5 * p),
    "mixture of one family": lambda p: dist.MixtureSameFamily(
        dist.Categorical(probs=TWO), dist.Normal(jnp.array([0.0, 5.0]) * p, 1.0)
    ),
    "mixture of families": lambda p: dist.MixtureGeneral(
        dist.Categorical(probs=TWO), [dist.Normal(p, 1.0), dist.StudentT(9.0, 3.0, 1.0)]
    ),
    "ZeroInflatedPoisson": lambda p: dist.ZeroInflatedDistribution(dist.Poisson(p), gate=0.3),
    "TruncatedNormal": lambda p: dist.TruncatedNormal(0.0, 1.0, low=p),
    "Uniform": lambda p: dist.Uniform(-p, p),
    "FoldedDistribution": lambda p: dist.FoldedDistribution(dist.Normal(p, 1.0)),
    "AffineTransform": lambda p: dist.TransformedDistribution(
        dist.Normal(0.0, 1.0), dist.transforms.AffineTransform(p, 2.0)
    ),
    "masked": lambda p: dist.Normal(p * jnp.ones(3), 1.0).mask(jnp.array([True, False, True])),
}
PARAMETERS = jnp.array([1.1, 1.9])


def batch_of(family):
    """Return the distributions of two parameters, as `jax.vmap` over parameters around a site means it."""
    leaves, structure = jax.tree.flatten(FAMILIES[family](jnp.array(1.5)))
    found = jax.vmap(lambda p: jax.tree.leaves(FAMILIES[family](p)))(PARAMETERS)
    where = tuple(None if np.array_equal(a, b[0]) else 0 for a, b in zip(leaves, found, strict=True))
    own = [a if at is None else b for a, b, at in zip(leaves, found, where, strict=True)]
    return own, structure, (2, where)


RARE = (
    *(
        "Weibull",
        "NegativeBinomial2",
        "LKJCholesky",
        "LowRank",
        "Kumaraswamy",
        "VonMises",
        "BetaBinomial",
        "Geometric",
        "Categorical",
        "DirichletMultinomial",
    ),
    *("MultivariateStudentT", "MatrixNormal", "Wishart", "GaussianRandomWalk", "SineBivariateVonMises"),
    *("InverseGamma", "FoldedDistribution", "ZeroInflatedPoisson", "Dirichlet", "MultivariateNormal"),
)


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=pytest.mark.slow if f in RARE else ()) for f in FAMILIES]
)
def test_draws_and_densities_are_those_of_each_element(family):
    """A thousand draws for each of two parameters, once with each axis outside; means by standard errors."""
    leaves, structure, axis = batch_of(family)
    draws = (1000, (None,) * len(leaves))
    singles = [FAMILIES[family](p) for p in PARAMETERS]

    @jax.jit
    def both(leaves):
        found = []
        for axes in ((draws, axis), (axis, draws)):
            batch = batched_distribution(leaves, structure, axes)
            assert batch.batch_shape == (axes[0][0], axes[1][0], *singles[0].batch_shape)
            assert batch.event_shape == singles[0].event_shape
            value = batch.sample(jax.random.key(0))
            found.append((value, batch.log_prob(value), batch.support(value)))
        found[0] = tuple(jnp.moveaxis(x, 1, 0) for x in found[0])
        values = [jnp.concatenate(parts, 1) for parts in zip(*found, strict=True)]
        alone = [
            (single.log_prob(own), single.support(own), single.sample(jax.random.key(1), (2000,)))
            for single, own in zip(singles, values[0], strict=True)
        ]
        return *values, alone

    value, density, is_inside, alone = jax.tree.map(np.asarray, both(leaves))
    assert value.shape == (2, 2000, *singles[0].shape())
    for i, (own_density, own_inside, other) in enumerate(alone):
        np.testing.assert_allclose(density[i], own_density, rtol=2e-5, atol=2e-5)
        assert np.all(is_inside[i] == own_inside)
        own, other = (np.asarray(x, float).reshape(2000, -1) for x in (value[i], other))
        for a, b in ((own[:1000], other), (own[1000:], other), (own[:1000] ** 2, other**2)):
            error = np.sqrt(a.var(0) / len(a) + b.var(0) / len(b))
            assert np.all(np.abs(a.mean(0) - b.mean(0)) <= 5 * error + 1e-6)
        assert len(np.unique(own[:, -1])) > 1


@pytest.mark.parametrize(
    "family",
    ["Gamma, expanded", "Multinomial", "TruncatedNormal", "ZeroSumNormal", "mixture of families", "masked"],
)
def test_particles_have_draws_of_their_own(family, key):
    def model():
        p = numpyro.sample("p", dist.Uniform(1.0, 2.0))
        one = numpyro.sample("one", FAMILIES[family](p))
        with numpyro.plate("n", 2):
            own = FAMILIES[family](p)
            two = numpyro.sample("two", own.to_event(len(own.batch_shape)))
        numpyro.factor("f", p)
        return one, two

    run = qbs.run(qbs.population(qbs.reify(model), 40))
    one, two = map(np.asarray, run(key).value.value)
    shape = FAMILIES[family](1.5).shape()
    assert (one.shape, two.shape) == ((40, *shape), (40, 2, *shape))
    assert len(np.unique(one.reshape(40, -1), axis=0)) > 1
    assert not np.array_equal(two[:, 0], two[:, 1])


def test_bounds_that_differ_among_elements_are_left_behind():
    """A vmapped truncated site can be moved to all real numbers and back, with the right Jacobian."""

    def model(low):
        jax.vmap(lambda low: numpyro.sample("x", dist.TruncatedNormal(0.0, 1.0, low=low, high=5.0)))(low)

    low, x = jnp.array([-1.0, 0.5, 2.0]), jnp.array([0.1, -0.4, 1.3])
    program = qbs.reify(model)
    density = qbs.log_density(program, unconstrained=True)({"x": x}, low)
    expected = 0.0
    for bound, free in zip(low, x, strict=True):
        single = dist.TruncatedNormal(0.0, 1.0, low=bound, high=5.0)
        onto = dist.biject_to(single.support)
        expected += single.log_prob(onto(free)) + onto.log_abs_det_jacobian(free, onto(free))
    assert float(density) == pytest.approx(float(expected), rel=1e-5)


def test_common_families_need_one_key():
    """What broadcasts is not taken apart: a key for each element costs ten times the draw."""
    for family in (
        *("Normal", "Gamma, expanded", "Categorical", "Poisson", "MultivariateNormal"),
        *("Beta", "StudentT", "NegativeBinomial2", "BetaBinomial"),  # NumPyro draws with another inside
    ):
        leaves, structure, axis = batch_of(family)
        assert not isinstance(batched_distribution(leaves, structure, (axis,)), ElementWise)
