"""The log density on unconstrained space, against closed forms and NumPyro's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats as st
from numpyro.contrib.control_flow import scan
from numpyro.handlers import mask, scale
from numpyro.infer.util import initialize_model, log_density

from qbs.inference.binding import bind
from qbs.inference.unconstrained import constrain, potential, site_log_probs, starting_point

Y = np.array([0.3, -0.7, 1.1, 0.4])


def regression(y):
    slope = numpyro.sample("slope", dist.Normal(1, 2))
    noise = numpyro.sample("noise", dist.HalfNormal(3))
    numpyro.deterministic("double", 2 * slope)
    numpyro.factor("penalty", -(slope**2))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(slope, noise), obs=y)


def many_supports(y):
    numpyro.sample("share", dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])))
    with numpyro.plate("outer", 2, dim=-2), numpyro.plate("inner", 3, dim=-1), scale(scale=0.5):
        rate = numpyro.sample("rate", dist.Gamma(2, 1))
    with mask(mask=jnp.array([True, False])):
        numpyro.sample("bounded", dist.Uniform(jnp.array([-1.0, 2.0]), 5))
    numpyro.sample("flat", dist.ImproperUniform(dist.constraints.positive, (), ()))

    def step(state, observed):
        state = numpyro.sample("state", dist.Normal(state, 1))
        numpyro.sample("seen", dist.Normal(state, rate.sum()), obs=observed)
        return state, None

    scan(step, 0.0, y)


def walk(y):
    spread = numpyro.sample("spread", dist.HalfNormal(1))

    def step(state, observed):
        state = numpyro.sample("state", dist.LogNormal(state, spread))
        numpyro.sample("seen", dist.Normal(state, 0.5), obs=observed)
        return state, None

    scan(step, 0.0, y)


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


_potential = jax.jit(potential)
_gradient = jax.jit(jax.grad(potential, argnums=1))
_constrain = jax.jit(constrain)
_starting_point = jax.jit(starting_point)


@pytest.mark.parametrize(("slope", "log_noise"), [(0.0, 0.0), (-1.3, 0.7), (2.0, -3.0)])
def test_potential_of_a_regression_in_closed_form(slope, log_noise):
    noise = np.exp(log_noise)
    log_prior = st.norm(1, 2).logpdf(slope) + st.halfnorm(scale=3).logpdf(noise)
    log_likelihood = st.norm(slope, noise).logpdf(Y).sum() - slope**2
    bound = bind(regression, (Y,))
    position = {"slope": jnp.asarray(slope), "noise": jnp.asarray(log_noise)}
    # The Jacobian of noise = exp(log_noise) is log_noise.
    expected = -(log_prior + log_likelihood + log_noise)
    np.testing.assert_allclose(_potential(bound, position), expected, rtol=1e-12)

    values, densities = _constrain(bound, position)
    assert set(values) == {"slope", "noise", "double"}
    np.testing.assert_allclose([values["noise"], values["double"]], [noise, 2 * slope], rtol=1e-12)
    np.testing.assert_allclose(densities["log_likelihood"], log_likelihood, rtol=1e-12)
    np.testing.assert_allclose(densities["log_density"], log_prior + log_likelihood, rtol=1e-12)

    d_slope = -(1 - slope) / 4 - np.sum(Y - slope) / noise**2 + 2 * slope
    d_noise = noise**2 / 9 - np.sum((Y - slope) ** 2) / noise**2 + len(Y) - 1
    gradient = _gradient(bound, position)
    np.testing.assert_allclose([gradient["slope"], gradient["noise"]], [d_slope, d_noise], rtol=1e-10)


def test_potential_of_many_supports():
    """Against NumPyro's log density of the values, and the change of variables by NumPyro's transforms."""
    low = jnp.array([-1.0, 2.0])
    maps = {
        "share": dist.transforms.StickBreakingTransform(),
        "rate": dist.transforms.ExpTransform(),
        "bounded": dist.biject_to(dist.constraints.interval(low, 5)),
        "flat": dist.transforms.ExpTransform(),
        "state": dist.transforms.IdentityTransform(),
    }
    shapes = {"share": (2,), "rate": (2, 3), "bounded": (2,), "flat": (), "state": (4,)}
    rng = np.random.default_rng(0)
    position = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}

    @jax.jit
    def reference(position):
        values = {name: maps[name](x) for name, x in position.items()}
        change = {n: maps[n].log_abs_det_jacobian(x, values[n]) for n, x in position.items()}
        change = sum(jnp.sum(one) for one in change.values())
        joint, _ = log_density(many_supports, (Y,), {}, values)
        return values, joint, change

    bound = bind(many_supports, (Y,))
    expected, joint, change = reference(position)
    np.testing.assert_allclose(_potential(bound, position), -(joint + change), rtol=1e-10)
    values, densities = _constrain(bound, position)
    assert set(values) == set(expected)
    for name in values:
        np.testing.assert_allclose(values[name], expected[name], rtol=1e-10)
    np.testing.assert_allclose(densities["log_density"], joint, rtol=1e-10)
    seen = st.norm(values["state"], values["rate"].sum()).logpdf(Y).sum()
    np.testing.assert_allclose(densities["log_likelihood"], seen, rtol=1e-10)


def plates_and_vectors(y):
    with numpyro.plate("outer", 2, dim=-2), numpyro.plate("inner", 3, dim=-1):
        rate = numpyro.sample("rate", dist.Gamma(2, 1))
    share = numpyro.sample("share", dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])))
    factor = numpyro.sample("factor", dist.LKJCholesky(3, 2.0))
    low = numpyro.sample("low", dist.Normal(0, 1))
    above = numpyro.sample("above", dist.TruncatedNormal(low, 2, low=low))
    cuts = numpyro.sample("cuts", dist.ImproperUniform(dist.constraints.ordered_vector, (), (3,)))
    total = rate.sum() + share[0] + factor[2, 1] + above + cuts[2]
    with scale(scale=2.5), numpyro.plate("data", 4), mask(mask=np.array([True, False, True, True])):
        numpyro.sample("y", dist.StudentT(3, total, 1), obs=y)


@pytest.mark.parametrize(
    "model",
    [regression, *(pytest.param(model, marks=pytest.mark.slow) for model in (plates_and_vectors, walk))],
    ids=lambda model: model.__name__,
)
def test_potential_and_gradient_are_numpyros(model):
    for precision, tolerance in ((False, 1e-5), (True, 1e-12)):
        with jax.enable_x64(precision):
            reference = initialize_model(jax.random.key(1), model, model_args=(jnp.asarray(Y),))
            position, bound = reference.param_info.z, bind(model, (Y,))
            expected, slope = jax.value_and_grad(reference.potential_fn)(position)
            np.testing.assert_allclose(_potential(bound, position), expected, rtol=tolerance)
            found = _gradient(bound, position)
            assert set(found) == set(slope)
            for name in slope:
                np.testing.assert_allclose(
                    found[name], slope[name], rtol=10 * tolerance, atol=10 * tolerance, err_msg=name
                )


@pytest.mark.parametrize("handler", [scale(scale=0.5), mask(mask=False)])
def test_the_change_of_variables_of_a_handled_site_is_whole(handler):
    """The integral over unconstrained space is that over the values, which for NumPyro it is not."""

    def model():
        with handler:
            numpyro.sample("x", dist.Uniform(0, 3))

    grid = jnp.linspace(-40.0, 40.0, 4001)
    bound = bind(model)
    density = jnp.exp(-jax.vmap(lambda x: _potential(bound, {"x": x}))(grid))
    expected = 3 ** (1 - handler.scale) if isinstance(handler, scale) else 3
    np.testing.assert_allclose(jnp.trapezoid(density, grid), expected, rtol=1e-9)


def test_starting_point_is_valid_and_describes_itself(key):
    bound = bind(regression, (Y,))
    position, energy, gradient, is_valid = _starting_point(bound, key)
    assert is_valid
    assert set(position) == {"slope", "noise"}
    assert all(-2 < value < 2 for value in position.values())
    np.testing.assert_allclose(energy, _potential(bound, position), rtol=1e-12)
    expected = _gradient(bound, position)
    for name in position:
        np.testing.assert_allclose(gradient[name], expected[name], rtol=1e-10)


def test_starting_points_differ_by_key_and_repeat_by_key(key):
    bound = bind(regression, (Y,))
    first, second = jax.random.split(key)
    one, again, other = (_starting_point(bound, k)[0]["slope"] for k in (first, first, second))
    assert one == again
    assert one != other


def test_starting_point_searches_past_impossible_draws(key):
    """Three quarters of the first draws have density zero."""

    def model():
        x = numpyro.sample("x", dist.Normal(0, 1))
        numpyro.factor("wall", jnp.where(x > 1, 0.0, -jnp.inf))

    starts = jax.vmap(lambda k: starting_point(bind(model), k))(jax.random.split(key, 20))
    assert np.all(starts[3])
    assert np.all(starts[0]["x"] > 1)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
def test_no_starting_point_where_there_is_none(value, key):
    def model():
        x = numpyro.sample("x", dist.Normal(0, 1))
        numpyro.factor("bad", value + 0 * x)

    assert not _starting_point(bind(model), key)[3]


def test_site_log_probs_name_the_bad_site(key):
    def model(y):
        x = numpyro.sample("x", dist.Normal(0, 1))
        numpyro.factor("root", jnp.sqrt(-1.0 - x**2))
        numpyro.sample("y", dist.Poisson(jnp.exp(x)), obs=y)
        numpyro.sample("flat", dist.ImproperUniform(dist.constraints.real, (), ()))

    found = site_log_probs(bind(model, (np.array([3, 4]),)), key)
    assert set(found) == {"x", "root", "y", "flat"}
    assert np.isnan(found["root"])
    assert np.isfinite(found["x"])
    assert np.isfinite(found["y"])
    assert found["flat"] == 0


def test_infinite_potential_where_the_density_is_zero():
    def model(y):
        numpyro.sample("y", dist.Uniform(0, jnp.exp(numpyro.sample("x", dist.Normal(0, 1)))), obs=y)

    bound = bind(model, (np.array([0.5, 2.0]),))
    assert _potential(bound, {"x": jnp.asarray(0.0)}) == np.inf
    expected = -(st.norm.logpdf(1) + st.uniform(0, np.e).logpdf([0.5, 2.0]).sum())
    np.testing.assert_allclose(_potential(bound, {"x": jnp.asarray(1.0)}), expected, rtol=1e-12)


def test_new_data_does_not_compile_again_and_vmap_agrees():
    counted = jax.jit(lambda bound, position: potential(bound, position))
    position = {"slope": jnp.array([0.1, -2.0]), "noise": jnp.array([0.0, 0.4])}
    for shift in (0.0, 1.0):
        bound = bind(regression, (Y + shift,))
        batch = jax.vmap(functools.partial(_potential, bound))(position)
        alone = [counted(bound, {k: v[i] for k, v in position.items()}) for i in range(2)]
        np.testing.assert_allclose(batch, alone, rtol=1e-12)
    assert counted._cache_size() == 1
