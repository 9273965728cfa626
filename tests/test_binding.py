"""Binding a model to its data: what is traced, what is structure, and what is refused."""

import functools
import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer.util import log_density

import qbs
from qbs.errors import ModelError
from qbs.inference.binding import bind, model_name, require_latents
from qbs.inference.sites import Site, is_improper, walk


def regression(x, y=None):
    slope = numpyro.sample("slope", dist.Normal(0, 2))
    noise = numpyro.sample("noise", dist.HalfNormal(1))
    with numpyro.plate("data", len(x)):
        mean = numpyro.deterministic("mean", slope * x)
        numpyro.sample("y", dist.Normal(mean, noise), obs=y)


@jax.jit
def log_joint(bound, values):
    """The log density of a bound model, compiled once for all bindings alike."""
    return qbs.log_density(bound.program)(values, *bound.arrays)


X, Y = np.linspace(0, 1, 5), np.array([0.1, 0.4, 0.3, 0.9, 1.2])


# What is read off a model without running it


def test_sites_of_a_regression():
    bound = bind(regression, (X, Y))
    assert list(bound.latent) == ["slope", "noise"]
    assert bound.latent["noise"] == Site((), is_discrete=False)
    assert bound.scored == ("y",)


def test_unobserved_data_is_latent():
    assert bind(regression, (X,)).latent["y"].shape == (5,)


def _every_kind(switch):
    numpyro.sample("vector", dist.MultivariateNormal(jnp.zeros(3), jnp.eye(3)))
    with numpyro.plate("outer", 2, dim=-2), numpyro.plate("inner", 4, dim=-1):
        numpyro.sample("nested", dist.Gamma(1.0, 1.0))
        numpyro.sample("weights", dist.Dirichlet(jnp.ones(3)))
    numpyro.sample("rows", dist.Normal(0, 1).expand([2, 5]).to_event(1))
    numpyro.sample("count", dist.Poisson(3.0))
    with numpyro.handlers.mask(mask=False):
        numpyro.sample("masked", dist.Beta(1.0, 2.0))
    numpyro.sample("nothing", dist.Normal(0, 1).expand([0]))
    numpyro.sample("improper", dist.ImproperUniform(dist.constraints.positive, (2,), ()))
    numpyro.factor("extra", 1.0)
    numpyro.param("constant", 2.0)

    def step(carry, _):
        state = numpyro.sample("state", dist.Normal(carry, 1))
        return state, None

    scan(step, 0.0, None, length=6)
    jax.lax.scan(lambda carry, _: (numpyro.sample("walk", dist.Normal(carry, 1)), None), 0.0, None, length=7)
    jax.vmap(lambda loc: numpyro.sample("batch", dist.Normal(loc, 1).expand([2])))(jnp.arange(3.0))
    jax.lax.cond(switch > 0, lambda: numpyro.sample("branch", dist.Beta(1, 1)), lambda: 0.0)


def test_sites_of_every_kind():
    bound = bind(_every_kind, (np.array(1.0),))
    assert list(bound.latent.items()) == [
        ("vector", Site((3,), False)),
        ("nested", Site((2, 4), False)),
        ("weights", Site((2, 4, 3), False)),
        ("rows", Site((2, 5), False)),
        ("count", Site((), True)),
        ("masked", Site((), False)),
        ("nothing", Site((0,), False)),
        ("improper", Site((2,), False)),
        ("state", Site((6,), False)),
        ("walk", Site((7,), False)),
        ("batch", Site((3, 2), False)),
        ("branch", Site((), False, is_optional=True)),
    ]
    assert bound.scored == ("extra",)


def test_binding_computes_nothing():
    """A model that would not finish on numbers is read all the same."""

    def endless(y):
        x = numpyro.sample("x", dist.Normal(0, 1))
        x = jax.lax.while_loop(lambda _: True, lambda v: v, x)
        numpyro.sample("y", dist.Normal(x, 1), obs=y)

    assert list(bind(endless, (Y,)).latent) == ["x"]


def test_improper_sites_are_drawn_inside_their_support(key):
    flat = dist.ImproperUniform(dist.constraints.interval(3.0, 3.5), (2,), ())

    def model():
        numpyro.sample("flat", flat)
        with numpyro.plate("five", 5, dim=-2):
            numpyro.sample("expanded", flat)
        numpyro.sample("normal", dist.Normal(-7, 0.01))

    trace = walk(bind(model).program, (), key, {}).trace
    for name, shape in {"flat": (2,), "expanded": (5, 2)}.items():
        assert trace[name].shape == shape
        assert np.all((trace[name] > 3) & (trace[name] < 3.5))
    assert abs(trace["normal"] + 7) < 0.1
    assert is_improper(flat.expand([3, 2]).mask(True).to_event(1))
    assert not is_improper(dist.Normal(0, 1).expand([3]))


# What becomes of the arguments


def _seen_arguments(*args, **kwargs):
    """Return what a model is called with after binding, the data in place of what traces it."""

    class Model:
        def __call__(self, *args, **kwargs):
            self.call = args, kwargs
            numpyro.sample("x", dist.Normal(0, 1))

    arrays = iter(bind(model := Model(), args, kwargs).arrays)
    return jax.tree.map(lambda leaf: next(arrays) if isinstance(leaf, jax.Array) else leaf, model.call)


def test_python_values_stay_and_numbers_become_arrays():
    option = object()
    values = (3, True, None, "word", b"bytes", option, np.int64(4), np.bool_(False))
    args, kwargs = _seen_arguments(*values, scale=2.5, exact=np.float64(0.5), n=7)
    assert args == (3, True, None, "word", b"bytes", option, 4, False)
    assert [type(value) for value in args[-2:]] == [int, bool]
    assert isinstance(kwargs["scale"], jax.Array)
    assert isinstance(kwargs["exact"], jax.Array)
    assert (float(kwargs["scale"]), float(kwargs["exact"]), kwargs["n"]) == (2.5, 0.5, 7)


@pytest.mark.parametrize(
    ("library", "dtype"),
    [(np, "float16"), (np, "float32"), (np, "float64"), (jnp, "float32"), (jnp, "bfloat16")],
)
@pytest.mark.parametrize("ambient", [False, True])
def test_floats_take_the_ambient_precision(library, dtype, ambient):
    with jax.enable_x64(ambient):
        ((found,), _) = _seen_arguments(library.asarray([1.0, 2.0], dtype=dtype))
        assert isinstance(found, jax.Array)
        assert found.dtype == (jnp.float64 if ambient else jnp.float32)
        np.testing.assert_array_equal(found, [1.0, 2.0])


def test_a_double_array_meets_a_single_fit():
    with jax.enable_x64(True):
        array = jnp.array([1.0, 2.0])
    with jax.enable_x64(False):
        ((found,), _) = _seen_arguments(array)
        assert found.dtype == jnp.float32


def test_containers_and_nested_data():
    args, kwargs = _seen_arguments({"a": X, "n": 2, "none": None}, [Y, (1, "s")], options={"deep": {"x": X}})
    assert isinstance(args[0]["a"], jax.Array)
    assert (args[0]["n"], args[0]["none"], args[1][1]) == (2, None, (1, "s"))
    assert isinstance(kwargs["options"]["deep"]["x"], jax.Array)


def test_data_frame_columns_and_frames():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"x": X, "y": Y, "group": [0, 1, 0, 1, 1], "name": list("abaab")})
    ((column, groups), _) = _seen_arguments(frame["x"], frame["group"])
    np.testing.assert_allclose(column, X, rtol=1e-6)
    assert groups.dtype == jnp.result_type(int)

    def by_frame(data):
        regression(jnp.asarray(data["x"].to_numpy()), jnp.asarray(data["y"].to_numpy()))

    values = {"slope": jnp.asarray(0.5), "noise": jnp.asarray(1.5)}
    expected = log_density(regression, (X, Y), {}, values)[0]
    np.testing.assert_allclose(log_joint(bind(by_frame, (frame,)), values), expected, rtol=1e-5)

    def by_name(names, y):
        _, index = np.unique(names, return_inverse=True)
        effect = numpyro.sample("effect", dist.Normal(0, 1).expand([index.max() + 1]))
        numpyro.sample("y", dist.Normal(effect[index], 1), obs=y)

    assert bind(by_name, (frame["name"], frame["y"])).latent["effect"].shape == (2,)


def test_missing_values_of_a_nullable_column_are_nan():
    pandas = pytest.importorskip("pandas")
    ((column,), _) = _seen_arguments(pandas.Series([1.0, None, 3.0], dtype="Float64"))
    np.testing.assert_array_equal(column, [1.0, np.nan, 3.0])


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 2**40])
def test_integers_that_do_not_fit_are_refused(value):
    with jax.enable_x64(False):
        with pytest.raises(ModelError, match=f"integer {value}, which does not fit into int32.*float64"):
            _seen_arguments(np.array([1, value, 2]))
        ((kept,), _) = _seen_arguments(np.array([2**31 - 1, -(2**31)]))
    np.testing.assert_array_equal(kept, [2**31 - 1, -(2**31)])
    with jax.enable_x64(True):
        ((kept,), _) = _seen_arguments(np.array([1, value, 2]))
    np.testing.assert_array_equal(kept, [1, value, 2])


def test_unsigned_integers_that_do_not_fit_are_refused():
    with jax.enable_x64(False), pytest.raises(ModelError, match=r"integer 4294967296, which .* uint32"):
        _seen_arguments(np.array([0, 2**32], dtype=np.uint64))


def test_a_key_and_an_empty_array_are_arguments_too(key):
    ((found, empty), _) = _seen_arguments(key, np.zeros((0, 3)))
    assert jax.dtypes.issubdtype(found.dtype, jax.dtypes.prng_key)
    assert empty.shape == (0, 3)


# Sharing compiled code


def test_binding_new_data_does_not_compile_again():
    def model(x, y, degree, *, mode):
        regression(x**degree, y)

    counted = jax.jit(lambda bound, values: qbs.log_density(bound.program)(values, *bound.arrays))

    values = {"slope": jnp.asarray(0.5), "noise": jnp.asarray(1.5)}
    results = []
    for shift in (0.0, 1.0, 2.0):
        bound = bind(model, (X + shift, Y, 2), {"mode": "a"})
        results.append(float(counted(bound, values)))
        assert counted._cache_size() == 1
        expected = log_density(regression, ((X + shift) ** 2, Y), {}, values)[0]
        np.testing.assert_allclose(results[-1], expected, rtol=1e-5)
    assert len(set(results)) == 3


def test_structure_compiles_anew_and_is_not_mixed_up():
    def model(x, flag, y):
        slope = numpyro.sample("slope", dist.Normal(0, 2))
        factor = {"True": 10.0, "1": 1.0, "0": 0.0, "False": -10.0, "<array>": 3.0}[str(flag)]
        numpyro.sample("y", dist.Normal(factor * slope * x, 1), obs=y)

    values = {"slope": jnp.asarray(0.5)}
    for flag in (1, True, 0, False, "<array>"):
        found = log_joint(bind(model, (X, flag, Y)), values)
        np.testing.assert_allclose(found, log_density(model, (X, flag, Y), {}, values)[0], rtol=1e-5)


def test_shape_and_function_are_structure():
    values = {"slope": jnp.asarray(0.5), "noise": jnp.asarray(1.5)}

    def other(x, y):
        regression(2 * x, y)

    for function, n in ((regression, 5), (regression, 4), (other, 5)):
        found = log_joint(bind(function, (X[:n], Y[:n])), values)
        expected = log_density(function, (X[:n], Y[:n]), {}, values)[0]
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_bound_model_is_a_pytree_of_its_data():
    bound = bind(regression, (X, Y))
    leaves = jax.tree.leaves(bound)
    assert [leaf.shape for leaf in leaves] == [(5,), (5,)]
    doubled = jax.tree.map(lambda leaf: 2 * leaf, bound)
    np.testing.assert_allclose(doubled.arrays[1], 2 * Y, rtol=1e-6)


# Models that need the values of their data


def _unique(x, y):
    return len(np.unique(x))


def _maximum(x, y):
    return int(x.max()) + 1


def _branch(x, y):
    return 3 if x[2] > 1 else 1


def _loop(x, y):
    return sum(1 for value in x if value == 0) + 1


def _boolean_index(x, y):
    return len(y[x > 0])


@pytest.mark.parametrize("count", [_unique, _maximum, _branch, _loop, _boolean_index])
@pytest.mark.parametrize("as_array", [np.array, jnp.array])
def test_models_that_need_concrete_data(count, as_array):
    groups = as_array([0, 1, 2, 0, 1])

    def model(groups, y):
        effect = numpyro.sample("effect", dist.Normal(0, 1).expand([count(groups, y)]))
        numpyro.sample("y", dist.Normal(effect.sum() + groups, 1), obs=y)

    bound = bind(model, (groups, as_array(Y)))
    assert bound.latent["effect"].shape == (3,)
    values = {"effect": jnp.array([0.1, 0.2, 0.3])}
    expected = log_density(model, (np.array([0, 1, 2, 0, 1]), Y), {}, values)[0]
    np.testing.assert_allclose(log_joint(bound, values), expected, rtol=1e-5)


def test_baked_data_may_be_indexed_by_a_latent_value():
    def model(levels, y):
        n = len(np.unique(levels))
        index = numpyro.sample("index", dist.Categorical(probs=jnp.ones(n) / n))
        numpyro.sample("y", dist.Normal(levels[index], 1), obs=y)

    bound = bind(model, (np.array([1.0, 5.0, 9.0]), Y))
    values = {"index": jnp.asarray(1)}
    expected = -np.log(3) + np.sum(-0.5 * (Y - 5) ** 2 - 0.5 * np.log(2 * np.pi))
    np.testing.assert_allclose(log_joint(bound, values), expected, rtol=1e-5)


def test_a_callable_that_cannot_be_hashed_is_a_model():
    class Line(eqx.Module):
        scale: jax.Array

        def __call__(self, y):
            slope = numpyro.sample("slope", dist.Normal(0, self.scale))
            numpyro.sample("y", dist.Normal(slope, 1), obs=y)

    bound = bind(Line(jnp.asarray(2.0)), (Y,))
    values = {"slope": jnp.asarray(0.5)}
    expected = -0.5 * 0.25**2 - np.log(2) - np.sum(0.5 * (Y - 0.5) ** 2) - 3 * np.log(2 * np.pi)
    np.testing.assert_allclose(log_joint(bound, values), expected, rtol=1e-5)
    assert bound.name == "Line"


# Refusals


def _twice():
    numpyro.sample("x", dist.Normal(0, 1))
    numpyro.deterministic("x", 1.0)


def _twice_factor():
    numpyro.sample("x", dist.Normal(0, 1))
    numpyro.factor("f", 1.0)
    numpyro.factor("f", 1.0)


def _latent_branch():
    if numpyro.sample("x", dist.Normal(0, 1)) > 0:
        numpyro.sample("y", dist.Normal(0, 1))


def _latent_numpy():
    np.log(numpyro.sample("x", dist.HalfNormal(1)))


def _shapes():
    numpyro.sample("x", dist.Normal(0, 1))
    jnp.zeros(3) + jnp.zeros(2)


def _asserts():
    assert len("x") == 2, "two, please"


def _raises():
    raise RuntimeError("no licence for the solver")


def _subsamples():
    numpyro.sample("x", dist.Normal(0, 1))
    with numpyro.plate("data", 10, subsample_size=3):
        pass


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (_twice, "site name 'x' appears twice in '_twice'"),
        (_twice_factor, "site name 'f' appears twice in '_twice_factor'"),
        (_latent_branch, "value of a latent site.*jax.lax.cond"),
        (_latent_numpy, "value of a latent site.*jax.numpy"),
        (_shapes, "cannot be run on draws from its prior: it raised TypeError: add got incompatible shapes"),
        (_asserts, "raised AssertionError: two, please"),
        (_raises, "RuntimeError: no licence for the solver"),
        (_subsamples, "plate 'data' takes 3 of 10 at random.*subsample_size"),
        (lambda x: None, "TypeError.*missing 1 required positional argument: 'x'"),
    ],
)
def test_bad_models_are_explained(model, words):
    with pytest.raises(ModelError, match=f"(?s){words}"):
        bind(model)


def test_an_error_after_concrete_data_is_the_models_own():
    def model(x):
        numpyro.sample("x", dist.Normal(jnp.zeros(int(x.max())), 1))
        raise RuntimeError("the real one")

    with pytest.raises(ModelError, match="the real one"):
        bind(model, (np.arange(3),))


def test_a_whole_plate_is_no_subsample():
    def model():
        with numpyro.plate("data", 4, subsample_size=4):
            numpyro.sample("x", dist.Normal(0, 1))

    assert bind(model).latent["x"].shape == (4,)


@pytest.mark.parametrize("thing", [3, "model", None, dist.Normal(0, 1).log_prob(0.0)])
def test_what_is_no_function_is_refused(thing):
    with pytest.raises(ModelError, match=f"must be a NumPyro model.*not {type(thing).__name__}"):
        inspect.unwrap(bind)(thing)


def test_no_latent_sites():
    bound = bind(lambda y: numpyro.sample("y", dist.Normal(0, 1), obs=y), (Y,), name="empty")
    with pytest.raises(ModelError, match=r"'empty' has no latent sites.*obs="):
        require_latents(bound)
    require_latents(bind(regression, (X, Y)))


def test_names():
    assert model_name(regression) == "regression"
    assert model_name(functools.partial(regression, X)) == "partial"
    assert bind(regression, (X, Y)).name == "regression"
    assert bind(regression, (X, Y), name="mine").name == "mine"


def test_densities_of_sites_are_in_the_order_of_the_program(key):
    """In that of a set their sum would depend on the process, in the last bit."""
    names = [f"x{i}" for i in (5, 3, 9, 1, 7, 0, 8)]

    def model(y):
        total = sum(numpyro.sample(name, dist.Normal()) for name in names)
        numpyro.sample("a", dist.Normal(total, 1), obs=y)

    bound = bind(model, (np.float32(0.5),))
    assert list(walk(bound.program, bound.arrays, key, {}).log_probs) == [*names, "a"]
