"""chi2 against straight NumPy and SciPy with explicit inverses; the guards; precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize_scalar

from qbs.models.cosmology import tables
from qbs.models.cosmology.background import Cosmology, sound_horizon
from qbs.models.cosmology.likelihoods import (
    BBN,
    DATA_SETS,
    CosmicChronometers,
    DesiBAO,
    LocalH0,
    PantheonPlus,
)

C = 299792.458
POINTS = {
    "LCDM": {"Om": 0.3045, "h": 0.6861, "Obh2": 0.0222},
    "CPL": {"Om": 0.32, "h": 0.66, "w": -0.7, "wa": -1.1, "Obh2": 0.0215},
    "oCPL": {"Om": 0.25, "h": 0.72, "w": -1.2, "wa": 0.4, "Ok": 0.08, "Obh2": 0.023},
    "closed": {"Om": 0.35, "h": 0.7, "Ok": -0.2, "Obh2": 0.022},
}
UNPHYSICAL = (
    {"Om": -2.0},
    {"Om": float("nan")},
    {"h": -0.7},
    {"h": 0.0},
    {"Ok": float("nan")},
    {"Om": 0.1, "w": -3.0, "wa": -3.0, "Ok": -0.3},
    {"Ok": -9.0},
    {"Obh2": -0.02},
    {"Obh2": float("nan")},
)


@pytest.fixture(params=POINTS)
def point(request):
    return POINTS[request.param]


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["cc", "desi_dr2", "bbn", "h0", "pantheon_plus"])
def data_set(request):
    folder = None
    if request.param == "pantheon_plus":
        folder = request.getfixturevalue("data_path")
    return DATA_SETS[request.param].load(folder)


def expansion(z, Om, h, w=-1.0, wa=0.0, Ok=0.0, Obh2=None):
    a = 1 / (1 + z)
    Or = 4.184e-5 / h**2
    dark = (1 - Om - Ok - Or) * a ** (-3 * (1 + w + wa)) * np.exp(-3 * wa * (1 - a))
    return np.sqrt(Or * a**-4 + Om * a**-3 + Ok * a**-2 + dark)


def transverse(z, Ok=0.0, **others):
    chi = np.array([quad(lambda t: 1 / expansion(t, Ok=Ok, **others), 0, end, epsrel=1e-11)[0] for end in z])
    if Ok > 0:
        chi = np.sinh(np.sqrt(Ok) * chi) / np.sqrt(Ok)
    if Ok < 0:
        chi = np.sin(np.sqrt(-Ok) * chi) / np.sqrt(-Ok)
    return C / (100 * others["h"]) * chi


@pytest.mark.usefixtures("x64")
def test_cosmic_chronometers_equal_a_direct_computation(point):
    table = tables.cosmic_chronometers()
    H = table.hubble
    covariance = np.diag(table.errors**2)
    for column in (0, 3):
        f = (
            np.interp(table.redshifts, table.systematic_redshifts, table.systematic_percent[:, column])
            * H
            / 100
        )
        covariance += f[:, None] * f
    residuals = H - 100 * point["h"] * expansion(table.redshifts, **point)
    expected = residuals @ np.linalg.inv(covariance) @ residuals
    likelihood = CosmicChronometers.load()
    assert float(likelihood.chi2(Cosmology(**point))) == pytest.approx(expected, rel=1e-10)
    assert float(likelihood.log_likelihood(Cosmology(**point))) == pytest.approx(-expected / 2, rel=1e-10)
    np.testing.assert_allclose(likelihood.errors**2, np.diag(covariance))


def test_cosmic_chronometer_covariance_is_the_published_one(data_path):
    published = np.loadtxt(data_path / "cc" / "cov_cc_MM_BC03.txt")
    np.testing.assert_allclose(CosmicChronometers.load().covariance, published, atol=0.00501)  # two decimals


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("given", [None, 146.0])
def test_desi_equals_a_direct_computation(point, given):
    table = tables.desi_dr2_bao()
    z = table.redshifts
    DM = transverse(z, **point)
    DH = C / (100 * point["h"]) / expansion(z, **point)
    distances = {"DM": DM, "DH": DH, "DV": np.cbrt(z * DM**2 * DH)}
    matter = point["Om"] * point["h"] ** 2
    rd = given or 147.05 * (point["Obh2"] / 0.02236) ** -0.13 * (matter / 0.1432) ** -0.23
    theory = np.array([distances[quantity][row] for row, quantity in enumerate(table.quantities)]) / rd
    residuals = table.values - theory
    expected = residuals @ np.linalg.inv(table.covariance) @ residuals
    likelihood = DesiBAO.load()
    np.testing.assert_allclose(likelihood.theory(Cosmology(**point), given), theory, rtol=1e-9)
    assert float(likelihood.chi2(Cosmology(**point), given)) == pytest.approx(expected, rel=1e-8)


@pytest.mark.usefixtures("x64")
def test_single_numbers_equal_a_direct_computation():
    cosmology = Cosmology(Om=0.3, h=0.7, Obh2=0.0225)
    assert float(BBN.load().chi2(cosmology)) == pytest.approx(((0.0225 - 0.02218) / 0.00055) ** 2, rel=1e-12)
    assert float(LocalH0.load().chi2(cosmology)) == pytest.approx(((70 - 73.04) / 1.04) ** 2, rel=1e-10)


@pytest.mark.usefixtures("x64")
def test_pantheon_equals_a_direct_computation(point, data_path):
    table = tables.pantheon_plus(data_path)
    rows = table.redshifts > 0.01
    distance = transverse(table.redshifts[rows], **point)
    mu = 5 * np.log10(distance * (1 + table.heliocentric_redshifts[rows])) + 25
    inverse = np.linalg.inv(table.covariance[np.ix_(rows, rows)])
    residuals = table.magnitudes[rows] - mu

    def chi2(offset):
        return (residuals - offset) @ inverse @ (residuals - offset)

    # The projection is the minimum over M_B, found here by search.
    least = minimize_scalar(chi2, bracket=(-19.6, -19.0), options={"xtol": 1e-9})
    likelihood = PantheonPlus.load(data_path)
    cosmology = Cosmology(**point)
    assert likelihood.num_points == 1590
    np.testing.assert_allclose(likelihood.theory(cosmology), mu, rtol=1e-11)
    assert float(likelihood.chi2(cosmology)) == pytest.approx(least.fun, abs=1e-7)
    assert float(likelihood.absolute_magnitude(cosmology)) == pytest.approx(least.x, abs=1e-7)


@pytest.mark.usefixtures("x64")
def test_pantheon_compression_is_lossless_within_the_priors(data_path):
    likelihood = PantheonPlus.load(data_path)
    table = tables.pantheon_plus(data_path)
    rows = table.redshifts > 0.01
    inverse = np.linalg.inv(table.covariance[np.ix_(rows, rows)])
    ones = inverse.sum(0)
    low, high = np.array([[0.1, 0.4, -3.0, -3.0, -0.3], [0.5, 0.9, 1.0, 2.0, 0.3]])
    points = low + (high - low) * np.random.default_rng(0).random((100, 5))
    compressed = jax.jit(jax.vmap(lambda p: likelihood.chi2(Cosmology(*p))))(points)
    moduli = jax.jit(jax.vmap(lambda p: likelihood.theory(Cosmology(*p))))(points)
    residuals = likelihood.data - np.asarray(moduli)
    full = (
        np.einsum("pi,ij,pj->p", residuals, inverse, residuals, optimize=True)
        - (residuals @ ones) ** 2 / ones.sum()
    )
    finite = np.isfinite(compressed)
    assert finite.sum() > 90
    np.testing.assert_allclose(compressed[finite], full[finite], rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_pantheon_does_not_know_h(data_path):
    likelihood = PantheonPlus.load(data_path)
    values = [float(likelihood.chi2(Cosmology(Om=0.33, h=h))) for h in (0.6, 0.8)]
    assert values[0] == pytest.approx(values[1], abs=0.02)  # radiation alone


def test_every_data_set_describes_itself(data_set):
    assert DATA_SETS[data_set.name] is type(data_set)
    assert type(data_set).load.__doc__
    assert "arXiv:" in data_set.citation
    assert data_set.label
    assert data_set.num_points == data_set.data.size == data_set.errors.size
    assert data_set.theory(Cosmology(0.3, 0.7)).shape == data_set.data.shape
    assert set(data_set.parameters) <= {"Om", "h", "Obh2", "hrd"}


def test_loading_again_gives_the_same_arrays(data_path):
    assert PantheonPlus.load(data_path) is PantheonPlus.load(data_path)
    assert DesiBAO.load() is DesiBAO.load()


@pytest.mark.parametrize("is_x64", [False, True])
def test_impossible_cosmologies_have_no_likelihood_and_no_nan_gradient(data_set, is_x64):
    names = ("Om", "h", "w", "wa", "Ok", "Obh2")
    good = {"Om": 0.3, "h": 0.7, "w": -1.0, "wa": 0.0, "Ok": 0.0, "Obh2": 0.022}
    reads = {"bbn": {"Obh2"}, "h0": {"h"}, "desi_dr2": set(names)}.get(data_set.name, set(names) - {"Obh2"})
    with jax.enable_x64(is_x64):
        evaluate = jax.jit(
            jax.value_and_grad(
                lambda p: data_set.log_likelihood(Cosmology(**dict(zip(names, p, strict=True))))
            )
        )
        for bad in ({}, *UNPHYSICAL):
            values = {**good, **bad}
            value, gradient = evaluate(jnp.array([values[name] for name in names]))
            is_read = any(values[name] != good[name] for name in reads)
            assert np.isneginf(value) if is_read else np.isfinite(value), bad
            assert np.all(np.isfinite(gradient)), bad
            assert not is_read or np.all(gradient == 0), bad


@pytest.mark.parametrize("rd", [float("nan"), -147.0, 0.0, float("inf")])
def test_an_impossible_sound_horizon_has_no_likelihood(rd):
    value, gradient = jax.value_and_grad(lambda rd: DesiBAO.load().log_likelihood(Cosmology(0.3, 0.7), rd))(
        rd
    )
    assert np.isneginf(value)
    assert float(gradient) == 0


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["Om", "h", "w", "wa", "Ok", "Obh2"])
def test_gradients_are_finite_differences(data_set, name):
    values = {"Om": 0.3, "h": 0.68, "w": -1.0, "wa": 0.0, "Ok": 0.0, "Obh2": 0.022}
    step = 1e-6

    @jax.jit
    def log_likelihood(x):
        return data_set.log_likelihood(Cosmology(**{**values, name: x}))

    at = values[name]
    numerical = (log_likelihood(at + step) - log_likelihood(at - step)) / (2 * step)
    assert float(jax.grad(log_likelihood)(at)) == pytest.approx(float(numerical), rel=1e-4, abs=1e-4)


def test_precision_is_that_of_the_call(data_set):
    """Also after a trace in the other precision: jax remembers NumPy constants by identity."""

    def compute():
        function = jax.jit(lambda Om: data_set.chi2(Cosmology(Om, 0.68, Ok=0.01)))
        return function(0.3), jax.vmap(function)(jnp.array([0.3, 0.31]))

    single, batch = compute()
    with jax.enable_x64(True):
        double, exact_batch = compute()
        # The direct result, from arrays that no trace has seen.
        fresh = jax.tree.map(np.copy, data_set)
        exact = fresh.chi2(Cosmology(0.3, 0.68, Ok=0.01))
    assert single.dtype == batch.dtype == jnp.float32
    assert double.dtype == exact_batch.dtype == jnp.float64
    assert float(double) == pytest.approx(float(exact), rel=1e-12)
    # A prediction in float32 carries some rounding errors of its own size, here in standard deviations.
    rounding = 8 * np.finfo(np.float32).eps * np.linalg.norm(data_set.data / data_set.errors)
    tolerance = 2 * np.sqrt(np.asarray(exact_batch).max()) * rounding + rounding**2
    assert float(single) == pytest.approx(float(exact), abs=tolerance)
    np.testing.assert_allclose(batch, exact_batch, rtol=0, atol=tolerance)


@pytest.mark.usefixtures("x64")
def test_the_default_sound_horizon_is_the_formula():
    cosmology = Cosmology(0.3, 0.68, Obh2=0.0215)
    rd = sound_horizon(cosmology.Om, cosmology.h, cosmology.Obh2)
    assert float(DesiBAO.load().chi2(cosmology)) == float(DesiBAO.load().chi2(cosmology, rd))
