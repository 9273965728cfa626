"""The precision policy: float64 at its own boundary, the caller's flag untouched."""

import inspect
import math
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import gammaln

from qbs.precision import in_float64, precision_context


def _cancelling(x):
    """Return x, by way of a sum that float32 cannot hold."""
    return (x + 1e9) - 1e9


sharp = in_float64(_cancelling)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", jnp.float32), ("float64", jnp.float64), (None, None)]
)
@pytest.mark.parametrize("ambient", [False, True])
def test_context_sets_and_restores(precision, dtype, ambient):
    with jax.enable_x64(ambient):
        before = jax.config.jax_enable_x64
        with precision_context(precision):
            expected = dtype if dtype is not None else (jnp.float64 if ambient else jnp.float32)
            assert jnp.zeros(()).dtype == expected
        assert jax.config.jax_enable_x64 is before


def test_context_restores_after_an_exception():
    before = jax.config.jax_enable_x64
    with pytest.raises(ZeroDivisionError), precision_context("float64"):
        raise ZeroDivisionError
    assert jax.config.jax_enable_x64 is before


@pytest.mark.parametrize("precision", ["double", "float16", 64, True])
def test_context_refuses_other_words(precision):
    unchecked = contextmanager(inspect.unwrap(precision_context))  # under test, types are checked first
    with pytest.raises(ValueError, match="'float32', 'float64' or None, not"), unchecked(precision):
        pytest.fail("the body must not run")


def test_the_plain_function_fails_in_float32():
    """What the tests below rest on."""
    with jax.enable_x64(False):
        assert float(_cancelling(jnp.asarray(1.25))) != 1.25


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, lambda f: jax.jit(lambda x: f(x))])
def test_in_float64_computes_in_double_and_returns_the_callers_dtype(wrap):
    with jax.enable_x64(False):
        result = wrap(sharp)(jnp.asarray(1.25))
        assert result.dtype == jnp.float32
        assert float(result) == 1.25
    with jax.enable_x64(True):
        assert wrap(sharp)(jnp.asarray(1.25)).dtype == jnp.float64


@pytest.mark.parametrize("ambient", [False, True])
def test_in_float64_under_grad_vmap_and_jit(ambient):
    @in_float64
    def function(x):
        return jnp.sum(_cancelling(x) ** 3)

    with jax.enable_x64(ambient):
        x = jnp.array([0.5, 1.25, -2.0])
        gradient = jax.jit(jax.grad(function))(x)
        assert gradient.dtype == x.dtype
        np.testing.assert_array_equal(gradient, 3 * np.array([0.5, 1.25, -2.0]) ** 2)
        each = jax.jit(jax.vmap(jax.value_and_grad(function)))(x[:, None])
        np.testing.assert_array_equal(each[0], np.array([0.5, 1.25, -2.0]) ** 3)
        np.testing.assert_array_equal(each[1][:, 0], 3 * np.array([0.5, 1.25, -2.0]) ** 2)
        curvature = jax.hessian(function)(x)
        np.testing.assert_array_equal(curvature, np.diag(6 * np.array([0.5, 1.25, -2.0])))


def test_in_float64_inside_scan_and_cond():
    def body(carry, x):
        value = jax.lax.cond(x > 0, sharp, lambda x: x, x)
        return carry + value, value

    with jax.enable_x64(False):
        total, values = jax.lax.scan(body, jnp.zeros(()), jnp.array([1.25, -1.0, 0.5]))
    assert values.dtype == jnp.float32
    np.testing.assert_array_equal(values, [1.25, -1.0, 0.5])
    assert float(total) == 0.75


def test_in_float64_loss_of_digits_against_scipy():
    """A log binomial of large numbers, whose terms cancel to 1e-7 of their size."""

    @in_float64
    def log_binomial(n, k):
        gamma = jax.scipy.special.gammaln
        return gamma(n + 1) - gamma(k + 1) - gamma(n - k + 1)

    with jax.enable_x64(False):
        found = float(log_binomial(jnp.asarray(1e6), 3.0))
    expected = gammaln(1e6 + 1) - gammaln(4) - gammaln(1e6 - 2)
    assert abs(found - expected) < 1e-5  # float32 of 39.6 is 4e-6 apart; the terms are 1e7


def test_in_float64_passes_other_leaves_through():
    class Thing:
        pass

    seen = {}

    @in_float64
    def function(tree, *, flag, thing):
        seen.update(tree, flag=flag, thing=thing)
        return {
            "sum": tree["x"] + tree["y"],
            "count": tree["count"],
            "key": tree["key"],
            "word": tree["word"],
        }

    thing, key = Thing(), jax.random.key(3)
    with jax.enable_x64(False):
        tree = {
            "x": 0.5,
            "y": np.float32(0.25),
            "count": 3,
            "key": key,
            "word": "a",
            "mask": np.array([True]),
        }
        result = function(tree, flag=True, thing=thing)
    assert seen["x"].dtype == jnp.float64
    assert seen["y"].dtype == jnp.float64
    assert seen["mask"].dtype == bool
    assert seen["count"] == 3
    assert type(seen["count"]) is int
    assert seen["flag"] is True
    assert seen["thing"] is thing
    assert (result["sum"].dtype, float(result["sum"])) == (jnp.float32, 0.75)
    assert (result["count"], result["word"]) == (3, "a")
    assert jnp.all(jax.random.key_data(result["key"]) == jax.random.key_data(key))


def test_in_float64_does_not_trace_again():
    traces = []

    @jax.jit
    def outer(x):
        traces.append(None)
        return sharp(x)

    with jax.enable_x64(False):
        results = [float(outer(jnp.asarray(value))) for value in (1.0, 2.0, -math.inf)]
    assert results == [1.0, 2.0, -math.inf]
    assert len(traces) == 1


def test_in_float64_edges():
    with jax.enable_x64(False):
        assert math.isnan(float(sharp(math.nan)))
        assert float(sharp(-math.inf)) == -math.inf
        assert sharp(jnp.zeros((0, 2))).shape == (0, 2)
        assert sharp.__name__ == "_cancelling"
