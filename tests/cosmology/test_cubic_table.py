"""Splines on grids against polynomials, SciPy and finite differences; what lies beyond the grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import CubicSpline, RectBivariateSpline

from qbs.models.cosmology._cubic_table import CubicTable

X = np.linspace(-1.0, 2.0, 13)
Y = np.linspace(5.0, 9.0, 10)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def _cubic(x, y=0.0):
    return 1.0 - 2.0 * x + 0.5 * x**2 - 0.3 * x**3 + y * (0.2 + x**2) + 0.1 * y**3 * (1.0 - x**3)


@pytest.mark.usefixtures("x64")
def test_cubics_are_exact():
    """A not-a-knot spline is the cubic itself; the coefficients add rounding of a few ulp."""
    points = np.random.default_rng(0).uniform([X[0], Y[0]], [X[-1], Y[-1]], (50, 2))
    line = CubicTable.from_values((X,), _cubic(X))
    found = jax.vmap(line)(points[:, :1])
    np.testing.assert_allclose(found, _cubic(points[:, 0]), rtol=1e-12, atol=1e-12)
    plane = CubicTable.from_values((X, Y), _cubic(X[:, None], Y))
    np.testing.assert_allclose(jax.vmap(plane)(points), _cubic(*points.T), rtol=1e-11)


@pytest.mark.usefixtures("x64")
def test_rough_tables_agree_with_scipy():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(X.size, Y.size))
    points = rng.uniform([X[0], Y[0]], [X[-1], Y[-1]], (200, 2))
    line = CubicTable.from_values((X,), values[:, 0])
    reference = CubicSpline(X, values[:, 0])
    np.testing.assert_allclose(jax.vmap(line)(points[:, :1]), reference(points[:, 0]), atol=1e-11)
    slopes = jax.vmap(jax.grad(line))(points[:, :1])[:, 0]
    np.testing.assert_allclose(slopes, reference(points[:, 0], 1), atol=1e-10)
    plane = CubicTable.from_values((X, Y), values)
    np.testing.assert_allclose(
        jax.vmap(plane)(points), RectBivariateSpline(X, Y, values).ev(*points.T), atol=1e-11
    )
    np.testing.assert_allclose(
        jax.vmap(plane)(np.column_stack([X[:10], Y])), np.diag(values), atol=1e-12
    )  # the nodes


@pytest.mark.usefixtures("x64")
def test_beyond_the_grid_is_the_nearest_point():
    table = CubicTable.from_values((X, Y), np.random.default_rng(2).normal(size=(X.size, Y.size)))
    for outside, nearest in (
        ((-3.0, 6.2), (-1.0, 6.2)),
        ((9.0, 6.2), (2.0, 6.2)),
        ((0.3, -1.0), (0.3, 5.0)),
        ((50.0, 99.0), (2.0, 9.0)),
    ):
        value, gradient = jax.value_and_grad(table)(jnp.array(outside))
        assert float(value) == pytest.approx(float(table(jnp.array(nearest))), abs=1e-12)
        is_out = np.array(outside) != np.array(nearest)
        assert np.all(np.asarray(gradient)[is_out] == 0)
        assert np.all(np.isfinite(gradient))


def test_it_runs_in_the_ambient_precision():
    table = CubicTable.from_values((X, Y), _cubic(X[:, None], Y))
    point = np.array([0.37, 6.11])

    def compute():
        return jax.jit(lambda p: table(p))(jnp.asarray(point))

    single = compute()
    with jax.enable_x64(True):
        double = compute()
    assert (single.dtype, double.dtype) == (jnp.float32, jnp.float64)
    assert float(double) == pytest.approx(_cubic(*point), rel=1e-12)
    # Rounding of the position by eps times the number of nodes, times a slope of at most 200, and of the sum.
    scale = np.abs(table.coefficients).max()
    assert float(single) == pytest.approx(float(double), abs=16 * np.finfo(np.float32).eps * scale)


@pytest.mark.parametrize(
    ("axes", "values", "words"),
    [
        ((X[:3],), X[:3], "four or more"),
        ((X,), X[:-1], "finite and of shape"),
        ((X,), np.where(X[3] == X, np.nan, X), "finite and of shape"),
        ((X,), np.where(X[3] == X, -np.inf, X), "finite and of shape"),
        ((X[::-1],), X, "equal steps"),
        ((X**3,), X, "equal steps"),
        ((), np.zeros(()), "four or more"),
    ],
)
def test_bad_tables_are_refused(axes, values, words):
    with pytest.raises(ValueError, match=words):
        CubicTable.from_values(axes, values)
