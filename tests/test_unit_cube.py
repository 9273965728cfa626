"""The unit cube: log likelihood on it plus log prior is NumPyro's log density, for every effect handler."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats as st
from numpyro.contrib.control_flow import scan
from numpyro.handlers import mask, scale, scope
from numpyro.infer.util import log_density

from qbs.errors import ModelError
from qbs.inference.binding import bind
from qbs.inference.nested.unit_cube import UnitCube, cube_log_likelihood, cube_values, unit_cube

Y = np.array([0.3, -0.7, 1.1, 0.4])
GROUPS = np.array([0, 1, 1, 0])


# Incomplete gamma and beta functions take a second each to compile, half of that unoptimised.
@partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
def _at(model, bound, cube, point):
    """Return the log likelihood and the values at a point, and NumPyro's log density of the values."""
    values = cube_values(bound, cube, point)
    joint = log_density(model, (jnp.asarray(Y),), {}, {name: values[name] for name, _ in cube.shapes})[0]
    return cube_log_likelihood(bound, cube, point), values, joint


# Each model, and its log prior by scipy.stats: the density that the cube integrates out.


def plain(y):
    mean = numpyro.sample("mean", dist.Normal(1, 2))
    spread = numpyro.deterministic("twice", 2 * numpyro.sample("spread", dist.HalfNormal(3)))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(mean, spread), obs=y)


def plain_prior(v):
    return st.norm(1, 2).logpdf(v["mean"]) + st.halfnorm(scale=3).logpdf(v["spread"])


def nested_plates(y):
    with numpyro.plate("outer", 3, dim=-2), numpyro.plate("inner", 2, dim=-1):
        grid = numpyro.sample("grid", dist.Gamma(2, 1))
        shares = numpyro.sample("shares", dist.Dirichlet(jnp.ones(3)))
    total = grid.sum() + (shares[..., 0] * shares[..., 2]).sum()
    numpyro.sample("y", dist.Normal(total, 1).expand([4]).to_event(1), obs=y)


def nested_plates_prior(v):
    return st.gamma(2).logpdf(v["grid"]).sum() + 6 * np.log(2)  # Dirichlet(1, 1, 1) has density 2


def walk(y):
    start = numpyro.sample("start", dist.Normal(0, 1))

    def step(state, observed):
        state = numpyro.sample("state", dist.Normal(0.5 * state, 2))
        numpyro.sample("seen", dist.Normal(state, 1), obs=observed)
        numpyro.deterministic("square", state**2)
        return state, state

    scan(step, start, y)


def walk_prior(v):
    path = np.concatenate([[v["start"]], v["state"]])
    return st.norm(0, 1).logpdf(path[0]) + st.norm(0.5 * path[:-1], 2).logpdf(path[1:]).sum()


def vector_walk(y):
    def step(state, observed):
        with numpyro.plate("coordinate", 3):
            state = numpyro.sample("state", dist.Normal(state, 2))
        jump = numpyro.sample("jump", dist.MultivariateNormal(jnp.zeros(2), 4 * jnp.eye(2)))
        numpyro.sample("seen", dist.Normal(state.sum() + jump[0], 1), obs=observed)
        return state, None

    scan(step, jnp.zeros(3), y)


def vector_walk_prior(v):
    steps = np.diff(v["state"], axis=0, prepend=np.zeros((1, 3)))
    return st.norm(0, 2).logpdf(steps).sum() + st.norm(0, 2).logpdf(v["jump"]).sum()


def factors(y):
    x = numpyro.sample("x", dist.Uniform(-1, 3))
    numpyro.factor("penalty", -3 * x**2)
    numpyro.factor("several", jnp.stack([x, 2 * x]))
    numpyro.sample("y", dist.Cauchy(x, 1), obs=y)


def factors_prior(v):
    return st.uniform(-1, 4).logpdf(v["x"])


def dependent(y):
    low = numpyro.sample("low", dist.Normal(0, 1))
    high = numpyro.sample("high", dist.TruncatedNormal(low, 2, low=low))
    pair = numpyro.sample(
        "pair", dist.MultivariateNormal(jnp.stack([low, high]), jnp.array([[2.0, 1], [1, 3]]))
    )
    numpyro.sample("y", dist.Normal(pair.sum(), 1), obs=y)


def dependent_prior(v):
    low, high = v["low"], v["high"]
    return (
        st.norm().logpdf(low)
        + st.truncnorm(0, np.inf, low, 2).logpdf(high)
        + st.multivariate_normal([low, high], [[2, 1], [1, 3]]).logpdf(v["pair"])
    )


def discrete(y):
    count = numpyro.sample("count", dist.Poisson(4))
    with numpyro.plate("data", 4):
        label = numpyro.sample("label", dist.Categorical(probs=jnp.array([0.2, 0.5, 0.3])))
    successes = numpyro.sample("successes", dist.Binomial(count, 0.3))
    numpyro.sample("y", dist.Normal(label + successes, 1), obs=y)


def discrete_prior(v):
    labels = np.log(np.array([0.2, 0.5, 0.3]))[v["label"]].sum()
    return st.poisson(4).logpmf(v["count"]) + labels + st.binom(v["count"], 0.3).logpmf(v["successes"])


def observed_under_handlers(y):
    x = numpyro.sample("x", dist.Normal(0, 1))
    with scale(scale=2.5), numpyro.plate("data", 4), mask(mask=jnp.array([True, False, True, True])):
        numpyro.sample("y", dist.Normal(x, 1), obs=y)
    with mask(mask=x > 0):
        numpyro.factor("half", x)


def observed_under_handlers_prior(v):
    return st.norm().logpdf(v["x"])


def latent_under_handlers(y):
    keep = jnp.array([True, False, True])
    with scale(scale=0.3):
        scaled = numpyro.sample("scaled", dist.Gamma(2, 1))
    with mask(mask=False):
        masked = numpyro.sample("masked", dist.Normal(0, 2))
    with numpyro.plate("three", 3), mask(mask=keep):
        inside = numpyro.sample("inside", dist.Normal(0, 3))
    with mask(mask=keep), numpyro.plate("three again", 3):
        outside = numpyro.sample("outside", dist.Exponential(1))
    with numpyro.plate("two", 2, dim=-2), numpyro.plate("three more", 3), mask(mask=keep), scale(scale=2.0):
        wide = numpyro.sample("wide", dist.Dirichlet(jnp.ones(2)))
    event = numpyro.sample("event", dist.Normal(0, 1).expand([3]).mask(keep).to_event(1))
    vector = numpyro.sample("vector", dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)).mask(False))
    total = scaled + masked + inside.sum() + outside.sum() + wide[..., 0].sum() + event.sum() + vector.sum()
    numpyro.sample("y", dist.Normal(total, 1), obs=y)


def latent_under_handlers_prior(v):
    """The draws come from the whole priors; what handlers take away is part of the likelihood."""
    return (
        st.gamma(2).logpdf(v["scaled"])
        + st.norm(0, 2).logpdf(v["masked"])
        + st.norm(0, 3).logpdf(v["inside"]).sum()
        + st.expon().logpdf(v["outside"]).sum()
        + st.norm().logpdf(v["event"]).sum()
        + st.norm().logpdf(v["vector"]).sum()
    )


def scaled_walk(y):
    def step(state, observed):
        with scale(scale=0.5):
            state = numpyro.sample("state", dist.Normal(state, 2))
        with mask(mask=observed > 0):
            numpyro.sample("jump", dist.Normal(0, 1))
        numpyro.sample("seen", dist.Normal(state, 1), obs=observed)
        return state, None

    with scale(scale=3.0):
        scan(step, 0.0, y)


def scaled_walk_prior(v):
    steps = np.diff(v["state"], prepend=0)
    return st.norm(0, 2).logpdf(steps).sum() + st.norm().logpdf(v["jump"]).sum()


def transformed(y):
    location = numpyro.sample("location", dist.LogNormal(0, 0.5))
    cuts = numpyro.sample(
        "cuts",
        dist.TransformedDistribution(
            dist.Normal(0, 1).expand([3]).to_event(1), dist.transforms.OrderedTransform()
        ),
    )
    heavy = numpyro.sample("heavy", dist.StudentT(3, location, 2))
    fixed = numpyro.sample("fixed", dist.Delta(1.5))
    numpyro.sample("y", dist.Normal(heavy + cuts[0] + fixed, 1), obs=y)


def transformed_prior(v):
    log_gaps = np.log(np.diff(v["cuts"]))
    return (
        st.lognorm(0.5).logpdf(v["location"])
        + st.norm().logpdf(v["cuts"][0])
        + (st.norm().logpdf(log_gaps) - log_gaps).sum()
        + st.t(3, v["location"], 2).logpdf(v["heavy"])
    )


def scoped_and_partly_observed(y):
    with scope(prefix="left"):
        x = numpyro.sample("x", dist.Normal(0, 2))
    with scope(prefix="right"):
        x = x + numpyro.sample("x", dist.Normal(1, 2))
    with numpyro.plate("data", 4):
        seen = np.array([True, True, False, True])
        numpyro.sample("y", dist.Normal(x, 3), obs=y, obs_mask=seen)


def scoped_and_partly_observed_prior(v):
    x = v["left/x"] + v["right/x"]
    return (
        st.norm(0, 2).logpdf(v["left/x"])
        + st.norm(1, 2).logpdf(v["right/x"])
        + st.norm(x, 3).logpdf(v["y_unobserved"]).sum()
    )


MODELS = [
    plain,
    nested_plates,
    walk,
    vector_walk,
    factors,
    dependent,
    discrete,
    observed_under_handlers,
    latent_under_handlers,
    scaled_walk,
    transformed,
    scoped_and_partly_observed,
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_cube_likelihood_and_prior_make_the_log_density(model):
    log_prior = globals()[f"{model.__name__}_prior"]
    with jax.enable_x64(True):
        bound = bind(model, (Y,))
        cube = unit_cube(bound)
        for point in np.random.default_rng(20240229).uniform(size=(3, cube.dim)):
            found, values, joint = jax.device_get(_at(model, bound, cube, point))
            np.testing.assert_allclose(found + log_prior(values), joint, rtol=1e-8, atol=1e-8)
            assert abs(log_prior(values)) > 1e-3


def test_the_order_and_shape_of_the_coordinates():
    cube = unit_cube(bind(nested_plates, (Y,)))
    assert cube.shapes == (("grid", (3, 2)), ("shares", (3, 2, 2)))
    assert cube.dim == 18
    parts = cube.split(jnp.arange(18.0))
    np.testing.assert_array_equal(parts["grid"], np.arange(6.0).reshape(3, 2))
    np.testing.assert_array_equal(parts["shares"], np.arange(6.0, 18).reshape(3, 2, 2))
    assert unit_cube(bind(walk, (Y,))).shapes == (("start", ()), ("state", (4,)))
    assert unit_cube(bind(transformed, (Y,))).shapes == (
        ("location", ()),
        ("cuts", (3,)),
        ("heavy", ()),
        ("fixed", (0,)),
    )


def test_values_are_quantiles_in_the_order_of_the_model():
    bound = bind(plain, (Y,))
    values = cube_values(bound, unit_cube(bound), jnp.array([0.9, 0.2]))
    assert set(values) == {"mean", "spread", "twice"}
    np.testing.assert_allclose(values["mean"], st.norm(1, 2).ppf(0.9), rtol=1e-5)
    np.testing.assert_allclose(values["spread"], st.halfnorm(scale=3).ppf(0.2), rtol=1e-5)
    np.testing.assert_allclose(values["twice"], 2 * st.halfnorm(scale=3).ppf(0.2), rtol=1e-5)


def test_a_dependent_prior_moves_with_what_it_depends_on():
    with jax.enable_x64(True):
        bound = bind(dependent, (Y,))
        cube = unit_cube(bound)
        for low_u in (0.1, 0.8):
            values = _at(dependent, bound, cube, np.array([low_u, 0.5, 0.5, 0.5]))[1]
            low = st.norm.ppf(low_u)
            np.testing.assert_allclose(values["low"], low, rtol=1e-7)
            np.testing.assert_allclose(values["high"], st.truncnorm(0, np.inf, low, 2).ppf(0.5), rtol=1e-6)
            np.testing.assert_allclose(values["pair"], [values["low"], values["high"]], rtol=1e-7)


def test_a_walk_takes_its_own_coordinate_at_each_step():
    bound = bind(walk, (Y,))
    uniforms = np.array([0.3, 0.1, 0.9, 0.4, 0.6])
    values = cube_values(bound, unit_cube(bound), jnp.asarray(uniforms))
    path = [st.norm.ppf(0.3)]
    for u in uniforms[1:]:
        path.append(st.norm(0.5 * path[-1], 2).ppf(u))
    np.testing.assert_allclose(values["state"], path[1:], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(values["square"], np.array(path[1:]) ** 2, rtol=1e-4, atol=1e-5)


def test_the_mean_over_the_cube_is_the_evidence():
    """By the midpoint rule in one dimension, for a conjugate pair."""

    def model(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("mean", dist.Normal(1, 2)), 0.5), obs=y)

    with jax.enable_x64(True):
        bound = bind(model, (Y,))
        cube = unit_cube(bound)
        points = (np.arange(20_000)[:, None] + 0.5) / 20_000
        values = jax.jit(jax.vmap(partial(cube_log_likelihood, bound, cube)))(points)
        found = jax.scipy.special.logsumexp(values) - np.log(20_000)
    exact = st.multivariate_normal(np.ones(4), 0.25 * np.eye(4) + 4).logpdf(Y)
    np.testing.assert_allclose(found, exact, atol=1e-5)


def test_second_binding_does_not_compile_again():
    counted = jax.jit(lambda bound, cube, point: cube_log_likelihood(bound, cube, point))
    results = []
    for shift in (0.0, 1.0, 2.0):
        bound = bind(plain, (Y + shift,))
        results.append(float(counted(bound, unit_cube(bound), jnp.array([0.5, 0.5]))))
    assert counted._cache_size() == 1
    spread = 2 * st.halfnorm(scale=3).ppf(0.5)
    expected = [st.norm(1, spread).logpdf(Y + shift).sum() for shift in (0.0, 1.0, 2.0)]
    np.testing.assert_allclose(results, expected, rtol=1e-5)


def test_nan_and_minus_infinity_come_through():
    def model(y):
        x = numpyro.sample("x", dist.Uniform(-1, 1))
        numpyro.factor("root", jnp.where(x > 0.5, -jnp.inf, jnp.sqrt(x)))

    bound = bind(model, (Y,))
    cube = unit_cube(bound)
    found = [float(cube_log_likelihood(bound, cube, jnp.array([u]))) for u in (0.1, 0.625, 0.9)]
    np.testing.assert_allclose(found, [np.nan, 0.5, -np.inf], rtol=1e-6)


def test_a_model_that_needs_its_data():
    def model(groups, y):
        effect = numpyro.sample("effect", dist.Normal(0, 2).expand([len(np.unique(groups))]))
        numpyro.sample("y", dist.Normal(effect[groups], 1), obs=y)

    bound = bind(model, (GROUPS, Y))
    cube = unit_cube(bound)
    found = cube_log_likelihood(bound, cube, jnp.array([0.2, 0.7]))
    effect = st.norm(0, 2).ppf([0.2, 0.7])
    np.testing.assert_allclose(found, st.norm(effect[GROUPS], 1).logpdf(Y).sum(), rtol=1e-5)


def test_jax_control_flow_around_sites():
    def model(y):
        def step(state, observed):
            state = numpyro.sample("state", dist.Normal(0.5 * state, 2))
            numpyro.sample("seen", dist.Normal(state, 1), obs=observed)
            return state, None

        last = jax.lax.scan(step, 0.0, y)[0]
        jax.vmap(lambda loc: numpyro.sample("batch", dist.Gamma(loc, jnp.ones(2))))(jnp.arange(1.0, 4))
        jax.lax.cond(last > 0, lambda: numpyro.sample("side", dist.Normal(0, 1)), lambda: 0.0)

    with jax.enable_x64(True):
        bound = bind(model, (Y,))
        cube = unit_cube(bound)
        assert cube.shapes == (("state", (4,)), ("batch", (3, 2)), ("side", ()))
        uniforms = jnp.linspace(0.1, 0.9, 11)
        found, values = cube_log_likelihood(bound, cube, uniforms), cube_values(bound, cube, uniforms)
    path = [0.0]
    for uniform in uniforms[:4]:
        path.append(st.norm(0.5 * path[-1], 2).ppf(uniform))
    np.testing.assert_allclose(values["state"], path[1:], rtol=1e-7)
    expected = st.gamma([[1, 1], [2, 2], [3, 3]]).ppf(uniforms[4:10].reshape(3, 2))
    np.testing.assert_allclose(values["batch"], expected, rtol=1e-7)
    np.testing.assert_allclose(found, st.norm(path[1:], 1).logpdf(Y).sum(), rtol=1e-7)


# Refusals


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        (dist.ImproperUniform(dist.constraints.real, (), ()), "site 'slope': its prior is improper"),
        (dist.ImproperUniform(dist.constraints.positive, (), ()).expand([3]), "site 'slope'.*improper"),
        (dist.ImproperUniform(dist.constraints.real, (), ()).mask(True), "site 'slope'.*improper"),
        (dist.LKJ(3), "site 'slope': qbs knows no map from the unit cube for LKJCholesky"),
        (dist.VonMises(0.0, 1.0).expand([2]).to_event(1), "site 'slope'.*VonMises.*mcmc.NUTS"),
    ],
)
def test_a_prior_without_a_map_is_named(prior, words):
    def model():
        numpyro.sample("fine", dist.Normal(0, 1))
        numpyro.sample("slope", prior)

    with pytest.raises(ModelError, match=words):
        unit_cube(bind(model))


def test_no_latent_sites():
    bound = bind(lambda y: numpyro.sample("y", dist.Normal(0, 1), obs=y), (Y,))
    with pytest.raises(ModelError, match="no latent sites"):
        unit_cube(bound)


def test_a_subsampled_plate_is_refused():
    def model(y):
        x = numpyro.sample("x", dist.Normal(0, 1))
        with numpyro.plate("data", len(y), subsample_size=2) as index:
            numpyro.sample("y", dist.Normal(x, 1), obs=y[index])

    with pytest.raises(ModelError, match="plate 'data' takes 2 of 4"):
        bind(model, (Y,))


def test_an_empty_cube_has_no_dimension():
    assert UnitCube(()).dim == 0
    assert UnitCube(()).split(jnp.zeros(0)) == {}
