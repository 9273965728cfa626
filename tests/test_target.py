"""Targets: a likelihood as a plain function, in JAX or any other Python, posed as a problem."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats as st

import qbs
from qbs.errors import LikelihoodError, ModelError
from qbs.inference.problem import describe, pose, require_continuous
from qbs.inference.sites import walk

PRIORS = {"b": dist.Normal(0, 1), "a": dist.Uniform(-1, 3).expand([2])}


def in_jax(p, y=0.0):
    return -0.5 * jnp.sum((p["a"] - y) ** 2) + p["b"]


def in_numpy(p, y=0.0):
    return float(-0.5 * np.sum((np.asarray(p["a"]) - y) ** 2) + p["b"])


def _squares(p):
    return {"square": p["b"] ** 2}


def test_a_jax_likelihood_becomes_a_model():
    problem = pose(qbs.Target(in_jax, PRIORS, derived=_squares), (np.array([1.0, 2.0]),))
    assert problem.black_box is None
    assert list(problem.latent) == ["b", "a"]
    assert problem.name == "in_jax"
    assert problem.is_continuous
    values = {"a": jnp.array([0.5, 2.5]), "b": jnp.asarray(0.3)}
    joint = qbs.log_density(problem.bound.program)(values, *problem.bound.arrays)
    trace = walk(problem.bound.program, problem.bound.arrays, jax.random.key(0), values).trace
    expected = -0.25 + 0.3 + st.norm.logpdf(0.3) + 2 * math.log(0.25)
    np.testing.assert_allclose(joint, expected, rtol=1e-5)
    np.testing.assert_allclose(trace["square"], 0.09, rtol=1e-5)


def test_a_numpy_likelihood_is_called_with_numbers():
    seen = []

    def watching(p, y):
        seen.append(p)
        return in_numpy(p, y)

    problem = pose(qbs.Target(watching, PRIORS, derived=_squares), (np.array([1.0, 2.0]),))
    assert list(problem.latent) == ["b", "a"]
    value = problem.black_box({"a": np.array([0.5, 2.5]), "b": np.float64(0.3)})
    np.testing.assert_allclose(value, -0.25 + 0.3, rtol=1e-12)
    assert type(value) is float
    assert problem.derive({"a": 0, "b": 3.0}) == {"square": 9.0}
    assert isinstance(seen[-2]["a"], np.ndarray)  # the trial call of `pose`
    assert np.ndim(seen[-2]["b"]) == 0


def test_both_ways_agree():
    data = (np.array([1.0, 2.0]),)
    jax_problem, numpy_problem = (pose(qbs.Target(f, PRIORS), data) for f in (in_jax, in_numpy))
    rng = np.random.default_rng(0)
    for _ in range(5):
        values = {"a": jnp.asarray(rng.uniform(-1, 3, 2)), "b": jnp.asarray(rng.normal())}
        joint, prior = (
            qbs.log_density(problem.bound.program)(values, *problem.bound.arrays)
            for problem in (jax_problem, numpy_problem)
        )
        np.testing.assert_allclose(joint, prior + numpy_problem.black_box(values), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (-np.inf, -math.inf),
        (np.nan, math.nan),
        (np.float32(2), 2.0),
        (3, 3.0),
        (np.array(1.5), 1.5),
        (True, 1.0),
    ],
)
def test_what_a_black_box_may_return(result, expected):
    problem = pose(qbs.Target(lambda p: result if float(p["b"]) < 99 else 0, PRIORS), ())
    np.testing.assert_equal(problem.black_box({"a": np.zeros(2), "b": 0.0}), expected)


def _no_return(p):
    float(p["b"])


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (_no_return, "'_no_return' returned None: its return is missing"),
        (lambda p: [1.0, 2.0], r"must return one number; it returned an array of shape \(2,\): sum over"),
        (lambda p: jnp.zeros((1,)), r"shape \(1,\)"),
        (lambda p: 1j * float(p["b"]), "raised TypeError"),
        (lambda p: p["missing"], r"raised KeyError: 'missing'; the parameters were b = .*, a = \["),
        (lambda p, x: 0.0, "TypeError.*missing 1 required positional argument"),
        (lambda p: {"value": 1.0}, "raised TypeError"),
    ],
)
def test_bad_likelihoods_are_explained(function, words):
    with pytest.raises(LikelihoodError, match=words):
        pose(qbs.Target(function, PRIORS), ())


@pytest.mark.parametrize(
    ("derived", "words"),
    [
        (lambda p: {"b": 2 * p["b"]}, r"derived of 'in_jax' returns \['b'\], which are names of parameters"),
        (lambda p: 3.0, "must return a dictionary, and raised TypeError"),
        (lambda p: {"x": p["c"]}, "raised KeyError: 'c'; the parameters were b ="),
        (lambda p: None, "must return a dictionary"),
    ],
)
@pytest.mark.parametrize("function", [in_jax, in_numpy])
def test_bad_derived_quantities_are_explained_before_the_run(function, derived, words):
    with pytest.raises(ModelError, match=words.replace("in_jax", function.__name__)):
        pose(qbs.Target(function, PRIORS, derived=derived), ())


def test_a_derived_log_likelihood_does_not_clash():
    target = qbs.Target(in_jax, PRIORS, derived=lambda p: {"log_likelihood": in_jax(p)})
    assert pose(target, ()).black_box is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((3, PRIORS), "log_likelihood must be a function of a dictionary of parameters, not int"),
        ((in_jax, {}), "priors must be a dictionary from parameter name"),
        ((in_jax, [dist.Normal(0, 1)]), "priors must be a dictionary from parameter name"),
        ((in_jax, {"x": 3.0}), "prior of 'x' must be a NumPyro distribution .* not float"),
        ((in_jax, {"x": dist.Normal}), "prior of 'x' .* not "),
        ((in_jax, {"x": st.norm(0, 1)}), "prior of 'x' .* not rv_"),
    ],
)
def test_bad_targets_are_explained(arguments, words):
    target = object.__new__(qbs.Target)  # under test, the constructor checks types first
    for name, value in zip(("log_likelihood", "priors", "name"), (*arguments, ""), strict=True):
        object.__setattr__(target, name, value)
    with pytest.raises(ModelError, match=words):
        inspect.unwrap(qbs.Target.__post_init__)(target)


def test_names():
    assert qbs.Target(in_jax, PRIORS).name == "in_jax"
    assert qbs.Target(lambda p: 0.0, PRIORS).name == "target"
    assert qbs.Target(in_jax, PRIORS, name="mine").name == "mine"
    assert pose(qbs.Target(in_jax, PRIORS), (), name="other").name == "other"


def test_an_improper_prior_of_a_black_box_is_refused_by_name():
    from qbs.inference.nested.unit_cube import unit_cube

    priors = PRIORS | {"flat": dist.ImproperUniform(dist.constraints.positive, (), ())}
    problem = pose(qbs.Target(in_numpy, priors), ())
    with pytest.raises(ModelError, match="site 'flat': its prior is improper"):
        unit_cube(problem.bound)


def test_posing_a_model():
    def model(y=None, *, scale=1.0):
        x = numpyro.sample("x", dist.Normal(0, 1))
        numpyro.deterministic("double", 2 * x)
        numpyro.sample("y", dist.Normal(x, scale), obs=y)

    problem = pose(model, (np.ones(3),), {"scale": 2.0})
    assert (problem.name, list(problem.latent), problem.black_box) == ("model", ["x"], None)
    values, derived = problem.in_order({"double": 2, "x": 1})
    assert (list(values), derived) == (["x", "double"], ("double",))
    with pytest.raises(ModelError, match="no latent sites"):
        pose(lambda y: numpyro.sample("y", dist.Normal(0, 1), obs=y), (np.ones(3),))


def test_gradient_methods_refuse_discrete_sites_and_black_boxes():
    def model():
        numpyro.sample("x", dist.Normal(0, 1))
        numpyro.sample("count", dist.Poisson(3))

    problem = pose(model, ())
    assert not problem.is_continuous
    with pytest.raises(
        ModelError, match="NUTS needs continuous latent sites, and 'count' of 'model' is discrete"
    ):
        require_continuous(problem, "NUTS")
    with pytest.raises(ModelError, match=r"'in_numpy' is not written in JAX: use jax.numpy"):
        require_continuous(pose(qbs.Target(in_numpy, PRIORS), ()), "NUTS")
    require_continuous(pose(qbs.Target(in_jax, PRIORS), ()), "NUTS")


def test_describe():
    text = describe({"x": np.float32(0.125), "n": 3, "flag": True, "v": np.array([1.0, 2.0]), "nan": np.nan})
    assert text == "x = 0.125, n = 3, flag = 1, v = [1. 2.], nan = nan"
    assert len(describe({"long": np.zeros(10_000)})) < 80


def test_data_reach_the_likelihood_as_they_are():
    """A black box gets the user's own objects, not arrays of JAX."""
    given = []
    problem = pose(
        qbs.Target(lambda p, *data: given.append(data) or in_numpy(p), PRIORS), (Y := [1, 2], "word")
    )
    problem.black_box({"a": np.zeros(2), "b": 0.0})
    assert given[-1][0] is Y
    assert given[-1][1] == "word"
    assert jax.config.jax_enable_x64 is False
