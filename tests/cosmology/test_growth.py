"""Growth of structure against closed forms, SciPy and CAMB; the likelihood against a direct computation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp
from scipy.special import hyp2f1

from qbs.errors import DataError
from qbs.models.cosmology import _growth_rate, _table_files, growth
from qbs.models.cosmology._growth_rate import growth_rates
from qbs.models.cosmology.background import RADIATION_DENSITY, Cosmology
from qbs.models.cosmology.expansion import cold_density
from qbs.models.cosmology.likelihoods import DATA_SETS, GrowthRate

EMPTY = 1e5  # so large an h has no radiation
REDSHIFTS = np.array([0.0, 0.02, 0.3, 1.0, 2.0, 10.0, 99.0])

# Compiled as a whole, in each precision: much faster than operation by operation.
factor, rate = jax.jit(growth.growth_factor), jax.jit(growth.growth_rate)
rate_sigma8 = jax.jit(growth.growth_rate_sigma8)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("x64")
def test_matter_alone_grows_with_the_scale_factor():
    cosmology = Cosmology(1.0, EMPTY)
    np.testing.assert_allclose(factor(cosmology, REDSHIFTS), 1 / (1 + REDSHIFTS), rtol=1e-7)
    np.testing.assert_allclose(rate(cosmology, REDSHIFTS), 1.0, rtol=1e-7)


@pytest.mark.usefixtures("x64")
def test_matter_and_radiation_have_a_closed_form():
    """Meszaros (1974): D is proportional to 1 + 3/2 a/a_eq."""
    Or = RADIATION_DENSITY / 0.7**2
    y = (1 - Or) / Or / (1 + REDSHIFTS)
    cosmology = Cosmology(1 - Or, 0.7)
    np.testing.assert_allclose(factor(cosmology, REDSHIFTS), (1 + 1.5 * y) / (1 + 1.5 * y[0]), rtol=1e-7)
    np.testing.assert_allclose(rate(cosmology, REDSHIFTS), 1.5 * y / (1 + 1.5 * y), rtol=1e-7)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("Om", "w"), [(0.3, -1.0), (0.2, -1.0), (0.3, -0.7), (0.35, -1.4)])
def test_constant_w_has_a_closed_form(Om, w):
    """Silveira & Waga (1994): a hypergeometric function of the ratio of dark energy to matter."""

    def growing(a):
        ratio = -(1 - Om) / Om * a ** (-3 * w)
        return a * hyp2f1(-1 / (3 * w), (w - 1) / (2 * w), 1 - 5 / (6 * w), ratio)

    a, step = 1 / (1 + REDSHIFTS), 1e-5
    expected = growing(a) / growing(1.0)
    np.testing.assert_allclose(factor(Cosmology(Om, EMPTY, w=w), REDSHIFTS), expected, rtol=5e-7)
    slope = np.log(growing(a * np.exp(step)) / growing(a * np.exp(-step))) / (2 * step)
    np.testing.assert_allclose(rate(Cosmology(Om, EMPTY, w=w), REDSHIFTS), slope, rtol=5e-6)


@pytest.mark.usefixtures("x64")
def test_an_open_universe_has_a_closed_form():
    """Peebles (1980), equation 11.16, for x = Ok a/Om."""
    x = 0.7 / 0.3 / (1 + REDSHIFTS)
    growing = 1 + 3 / x + 3 * np.sqrt((1 + x) / x**3) * np.log(np.sqrt(1 + x) - np.sqrt(x))
    expected = growing / growing[0]
    # The formula cancels at small x: 1e-16 / growing.
    np.testing.assert_allclose(factor(Cosmology(0.3, EMPTY, Ok=0.7), REDSHIFTS), expected, rtol=1e-5)


@pytest.mark.usefixtures("x64")
def test_outside_its_range_growth_is_nan():
    values = factor(Cosmology(0.3, 0.7), np.array([-0.1, 0.0, 1000.0, 1000.1]))
    np.testing.assert_array_equal(np.isfinite(values), [False, True, True, False])


@functools.cache
def _camb(mnu, num_massive, w=-1.0, wa=0.0, Ok=0.0):
    """Return CAMB's redshifts, sigma8 today and f sigma8, and the cosmology."""
    camb = pytest.importorskip("camb")
    with jax.enable_x64(True):
        cosmology = Cosmology(0.31, 0.68, w, wa, Ok, mnu=mnu, num_massive=num_massive)
        cold = float(cold_density(cosmology)) * 0.68**2
    z = np.array([2.0, 1.0, 0.5, 0.0])
    parameters = camb.CAMBparams()
    parameters.set_cosmology(
        H0=68.0,
        ombh2=0.0224,
        omch2=cold - 0.0224,
        omk=Ok,
        mnu=mnu or 0.0,
        num_massive_neutrinos=num_massive,
        nnu=3.046,
        standard_neutrino_neff=3.046,
        TCMB=2.7255,
    )
    parameters.set_dark_energy(w=w, wa=wa, dark_energy_model="ppf")
    parameters.InitPower.set_params(As=2.1e-9, ns=0.965)
    parameters.set_matter_power(redshifts=list(z), kmax=5.0)
    parameters.NonLinear = camb.model.NonLinear_none
    results = camb.get_results(parameters)
    return z, results.get_sigma8()[-1], results.get_fsigma8(), cosmology


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("setting", "tolerance"),
    [
        ((None, 1), 1.1e-4),
        ((None, 1, -0.7, -0.8), 1.1e-4),
        ((None, 1, -0.9, 0.0, 0.04), 1.1e-4),
        ((0.06, 1), 3e-4),
        ((0.3, 3), 3e-3),
        ((0.3, 1), 8e-3),
    ],
)
def test_f_sigma8_is_that_of_camb(setting, tolerance):
    z, sigma8, expected, cosmology = _camb(*setting)
    found = rate_sigma8(Cosmology(**{**vars(cosmology), "sigma8": sigma8}), z)
    np.testing.assert_allclose(found, expected, rtol=tolerance)


@pytest.mark.parametrize("is_x64", [False, True])
def test_jit_vmap_gradients_and_precision(is_x64):
    def value(Om):
        return growth.growth_rate_sigma8(Cosmology(Om, 0.7, w=-0.9, wa=-0.2, Ok=0.01), REDSHIFTS)

    with jax.enable_x64(is_x64):
        Om = jnp.array([0.25, 0.5])  # exact in both precisions
        batch = jax.jit(jax.vmap(value))(Om)
        slopes = jax.jit(jax.vmap(jax.grad(lambda Om: jnp.sum(value(Om)))))(Om)
        assert batch.dtype == slopes.dtype == (jnp.float64 if is_x64 else jnp.float32)
    with jax.enable_x64(True):
        compiled, step = jax.jit(value), 1e-5
        np.testing.assert_allclose(batch[0], compiled(0.25), rtol=1e-12 if is_x64 else 2e-7)
        numerical = (compiled(0.5 + step) - compiled(0.5 - step)).sum() / (2 * step)
        assert float(slopes[1]) == pytest.approx(float(numerical), rel=1e-6)


def test_the_table_is_that_of_its_source(data_path):
    table = growth_rates()
    assert growth_rates() is table
    source = np.loadtxt(data_path / "growth" / "fsigma8_gold2018.txt")
    np.testing.assert_array_equal(table.redshifts, source[:, 0])
    np.testing.assert_array_equal(table.values, source[:, 1])
    np.testing.assert_array_equal(table.fiducial_products, source[:, 3])
    expected = np.diag(source[:, 2] ** 2)
    expected[12:15, 12:15] = np.loadtxt(data_path / "growth" / "Cij_WiggleZ.txt")
    expected[18:, 18:] = np.loadtxt(data_path / "growth" / "Cij_SDSS.txt")
    np.testing.assert_allclose(table.covariance, expected, rtol=1e-12)
    np.testing.assert_array_equal(table.covariance, table.covariance.T)
    # The blocks stand where their diagonals are the tabulated errors.
    np.testing.assert_allclose(np.sqrt(np.diag(table.covariance)), source[:, 2], rtol=1e-12)
    assert not table.covariance.flags.writeable
    assert "arXiv:1806.10822" in table.citation


def test_a_missing_table_is_a_data_error(monkeypatch, tmp_path):
    monkeypatch.setattr(_table_files.resources, "files", lambda package: tmp_path)
    with pytest.raises(DataError, match=r"fsigma8_gold2018.csv that ships with qbs is missing: reinstall"):
        _growth_rate.growth_rates.__wrapped__()


def _direct_chi2(Om, h, sigma8, w=-1.0, wa=0.0, Ok=0.0):
    """Return chi2 by an adaptive solver of the equation for D itself, and an explicit inverse."""
    table, Or = growth_rates(), RADIATION_DENSITY / h**2

    def squared(a):
        dark = (1 - Om - Ok - Or) * a ** (-3 * (1 + w + wa)) * np.exp(-3 * wa * (1 - a))
        return Or * a**-4 + Om * a**-3 + Ok * a**-2 + dark

    def slope(n, state):
        a, step = np.exp(n), 1e-5
        friction = 2 + np.log(squared(a * np.exp(step)) / squared(a * np.exp(-step))) / (4 * step)
        return [state[1], 1.5 * Om * a**-3 / squared(a) * state[0] - friction * state[1]]

    start = np.log(1e-3)
    y = Om / Or * 1e-3
    solution = solve_ivp(
        slope,
        (start, 0.0),
        [1 + 1.5 * y, 1.5 * y],
        method="DOP853",
        rtol=1e-10,
        atol=1e-10,
        dense_output=True,
    )
    z = table.redshifts
    velocity = solution.sol(-np.log1p(z))[1] / solution.y[0, -1]
    chi = np.array([quad(lambda t: squared(1 / (1 + t)) ** -0.5, 0, end, epsrel=1e-11)[0] for end in z])
    if Ok:
        chi = (np.sinh if Ok > 0 else np.sin)(np.sqrt(abs(Ok)) * chi) / np.sqrt(abs(Ok))
    product = 299792.458 * np.sqrt(squared(1 / (1 + z))) * chi / (1 + z)
    residuals = table.values - sigma8 * velocity * table.fiducial_products / product
    return residuals @ np.linalg.inv(table.covariance) @ residuals


@pytest.mark.usefixtures("x64")
def test_the_likelihood_equals_a_direct_computation():
    likelihood = GrowthRate.load()
    assert GrowthRate.load() is likelihood
    assert DATA_SETS["fsigma8"] is GrowthRate
    assert likelihood.num_points == 22
    chi2 = jax.jit(lambda cosmology: likelihood.chi2(cosmology))
    for point in (
        {"Om": 0.3, "h": 0.7, "sigma8": 0.8},
        {"Om": 0.25, "h": 0.65, "sigma8": 0.9, "w": -0.8, "wa": -0.6},
        {"Om": 0.35, "h": 0.7, "sigma8": 0.75, "Ok": -0.1},
    ):
        assert float(chi2(Cosmology(**point))) == pytest.approx(_direct_chi2(**point), rel=1e-5)


def test_the_fiducial_distances_are_those_of_a_plausible_cosmology():
    """Each fiducial H D_A is that of flat LCDM with 0.25 <= Om <= 0.31, so its column is what it says."""
    table = growth_rates()
    for z, product in zip(table.redshifts, table.fiducial_products, strict=True):
        bounds = []
        for Om in (0.24, 0.32):
            distance = quad(lambda t, Om=Om: (Om * (1 + t) ** 3 + 1 - Om) ** -0.5, 0, z)[0]
            bounds.append(299792.458 * distance * np.sqrt(Om * (1 + z) ** 3 + 1 - Om) / (1 + z))
        assert bounds[0] * 0.999 < product < bounds[1] * 1.001


@pytest.mark.parametrize("is_x64", [False, True])
def test_impossible_cosmologies_have_no_likelihood_and_no_nan_gradient(is_x64):
    names = ("Om", "h", "w", "wa", "Ok", "sigma8", "mnu")
    good = {"Om": 0.3, "h": 0.7, "w": -1.0, "wa": 0.0, "Ok": 0.0, "sigma8": 0.8, "mnu": 0.1}
    with jax.enable_x64(is_x64):
        likelihood = GrowthRate.load()
        evaluate = jax.jit(
            jax.value_and_grad(
                lambda p: likelihood.log_likelihood(Cosmology(**dict(zip(names, p, strict=True))))
            )
        )
        value, gradient = evaluate(jnp.array([good[name] for name in names]))
        assert np.isfinite(value)
        assert np.all(np.isfinite(gradient))
        assert np.all(gradient != 0)
        for bad in (
            {"Om": -2.0},
            {"Om": float("nan")},
            {"Om": 0.0005, "mnu": 0.3},  # less matter than neutrinos
            {"h": 0.0},
            {"Ok": -9.0},
            {"Om": 0.1, "w": -3.0, "wa": -3.0, "Ok": -0.3},
            {"sigma8": 0.0},
            {"sigma8": float("nan")},
            {"mnu": -0.1},
            {"w": 1e4},
        ):
            value, gradient = evaluate(jnp.array([{**good, **bad}[name] for name in names]))
            assert np.isneginf(value), bad
            assert np.all(gradient == 0), bad


def test_precision_is_that_of_the_call():
    likelihood = GrowthRate.load()
    function = jax.jit(lambda Om: likelihood.chi2(Cosmology(Om, 0.68, Ok=0.01)))
    single = function(0.3)
    with jax.enable_x64(True):
        double = function(0.3)
    assert (single.dtype, double.dtype) == (jnp.float32, jnp.float64)
    # 128 steps and 22 residuals, each rounded, in units of the errors.
    rounding = 128 * np.finfo(np.float32).eps * np.linalg.norm(likelihood.data / likelihood.errors)
    assert float(single) == pytest.approx(float(double), abs=2 * np.sqrt(float(double)) * rounding)
