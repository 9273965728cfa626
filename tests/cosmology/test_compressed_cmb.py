"""Last scattering against CAMB, and the two compressions of the CMB against their sources and each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from qbs.errors import DataError
from qbs.models.cosmology import Analysis, _compressed_cmb, _table_files, recombination
from qbs.models.cosmology._compressed_cmb import cmb_acoustic_angle, cmb_distance_priors
from qbs.models.cosmology.background import SPEED_OF_LIGHT, Cosmology
from qbs.models.cosmology.expansion import PHOTON_DENSITY, RADIATION_DENSITY, cold_density
from qbs.models.cosmology.likelihoods import DATA_SETS, CMBAcousticAngle, CMBDistancePriors

# Planck 2018 TT,TE,EE+lowE (arXiv:1807.06209, table 2, column 5): means, with 0.06 eV in Om.
PLANCK = {"Om": 0.3166, "h": 0.6727, "Obh2": 0.02236}

# Compiled as a whole, in each precision: much faster than operation by operation.
acoustic_angle, distance_priors = (
    jax.jit(recombination.acoustic_angle),
    jax.jit(recombination.distance_priors),
)
last_scattering_redshift = jax.jit(recombination.last_scattering_redshift)
comoving_sound_horizon = jax.jit(recombination.comoving_sound_horizon)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["cmb_shift", "cmb_thetastar"])
def data_set(request):
    return DATA_SETS[request.param].load()


def _camb(cosmology):
    """Return CAMB's derived parameters, with the same cold matter, masses and Neff."""
    camb = pytest.importorskip("camb")
    parameters = camb.CAMBparams()
    parameters.set_cosmology(
        H0=100 * cosmology.h,
        ombh2=cosmology.Obh2,
        omch2=float(cold_density(cosmology)) * cosmology.h**2 - cosmology.Obh2,
        omk=cosmology.Ok,
        mnu=cosmology.mnu or 0.0,
        num_massive_neutrinos=cosmology.num_massive,
        nnu=3.046,
        standard_neutrino_neff=3.046,
        TCMB=2.7255,
    )
    parameters.set_dark_energy(w=cosmology.w, wa=cosmology.wa, dark_energy_model="ppf")
    return camb.get_background(parameters).get_derived_params()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("cosmology", "tolerance"),
    [
        (Cosmology(**PLANCK, mnu=0.06), 2e-5),
        (Cosmology(**PLANCK, mnu=0.06, num_massive=3), 2e-5),
        (Cosmology(**PLANCK), 2e-5),
        (Cosmology(0.2, 0.75, Obh2=0.0205), 2e-5),
        (Cosmology(0.4, 0.6, Obh2=0.0245), 2e-5),
        (Cosmology(0.36, 0.63, w=-0.45, wa=-1.7, Obh2=0.0222, mnu=0.06), 2e-5),
        (Cosmology(0.3, 0.68, w=-0.9, Ok=0.05), 2e-5),
        (Cosmology(0.3, 0.68, Ok=-0.05), 2e-5),
        (Cosmology(0.31, 0.67, mnu=0.3), 1e-4),
        (Cosmology(0.31, 0.67, mnu=0.3, num_massive=3), 1e-4),
        (Cosmology(0.31, 0.67, w=-0.9, wa=0.7), 1e-4),
    ],
)
def test_last_scattering_is_that_of_camb(cosmology, tolerance):
    expected = _camb(cosmology)
    # The error of the datum is 2.5e-4 of it.
    assert 100 * float(acoustic_angle(cosmology)) == pytest.approx(expected["thetastar"], rel=tolerance)
    z = float(last_scattering_redshift(cosmology))
    assert z == pytest.approx(expected["zstar"], abs=0.03 if tolerance < 5e-5 else 0.15)
    horizon = float(comoving_sound_horizon(cosmology, expected["zstar"]))
    assert horizon == pytest.approx(expected["rstar"], rel=1.5e-5)


@pytest.mark.usefixtures("x64")
def test_last_scattering_within_its_range():
    for Obh2, Omh2 in ((0.018, 0.08), (0.027, 0.08), (0.018, 0.25), (0.027, 0.25), (0.0225, 0.15)):
        cosmology = Cosmology(Omh2 / 0.68**2, 0.68, Obh2=Obh2)
        z = float(last_scattering_redshift(cosmology))
        assert z == pytest.approx(_camb(cosmology)["zstar"], abs=0.03)


@pytest.mark.usefixtures("x64")
def test_planck_is_found_again():
    """Planck (arXiv:1807.06209, table 2): 100 theta_* = 1.04109 +- 0.00030, z_* = 1089.95, r_* = 144.39."""
    cosmology = Cosmology(**PLANCK, mnu=0.06)
    assert 100 * float(acoustic_angle(cosmology)) == pytest.approx(1.04109, abs=1e-4)  # of rounded parameters
    z = last_scattering_redshift(cosmology)
    assert float(z) == pytest.approx(1089.95, abs=0.02)
    assert float(comoving_sound_horizon(cosmology, z)) == pytest.approx(144.39, abs=0.05)


@pytest.mark.usefixtures("x64")
def test_the_formula_of_hu_and_sugiyama():
    g1 = 0.0783 * 0.02**-0.238 / (1 + 39.5 * 0.02**0.763)
    g2 = 0.560 / (1 + 21.1 * 0.02**1.81)
    expected = 1048 * (1 + 0.00124 * 0.02**-0.738) * (1 + g1 * 0.15**g2)
    found = recombination.hu_sugiyama_redshift(0.02, 0.15)
    assert float(found) == pytest.approx(expected, rel=1e-12)
    # WMAP five years (Komatsu et al. 2009, arXiv:0803.0547), by this formula: z_* = 1090.51 +- 0.95.
    assert float(recombination.hu_sugiyama_redshift(0.02267, 0.1358)) == pytest.approx(1090.5, abs=0.5)


@pytest.mark.usefixtures("x64")
def test_the_sound_horizon_has_a_closed_form():
    """Hu & Sugiyama (1996), equation B6, for matter and radiation."""
    h, Obh2, z = 0.7, 0.0224, 1090.0
    Or = RADIATION_DENSITY / h**2
    Om = 1 - Or
    equality, loading = Or / Om, 0.75 * Obh2 / PHOTON_DENSITY
    a = 1 / (1 + z)
    R, R_eq = loading * a, loading * equality
    prefactor = SPEED_OF_LIGHT / (100 * h) / np.sqrt(Om) * 2 / np.sqrt(3 * loading)
    exact = prefactor * np.log((np.sqrt(1 + R) + np.sqrt(R + R_eq)) / (1 + np.sqrt(R_eq)))
    assert float(comoving_sound_horizon(Cosmology(Om, h, Obh2=Obh2), z)) == pytest.approx(exact, rel=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("mnu", [None, 0.06])
def test_distance_priors_are_unbiased_at_planck(mnu):
    """At Planck's means, the recipe gives the numbers that were derived from Planck's chains."""
    table = cmb_distance_priors()
    found = np.array(distance_priors(Cosmology(**PLANCK, mnu=mnu)))
    pulls = (found - table.values[:2]) / np.sqrt(np.diag(table.covariance)[:2])
    assert np.all(np.abs(pulls) < 0.6)


@pytest.mark.usefixtures("x64")
def test_distance_priors_equal_a_direct_computation():
    Om, h, Obh2, w, Ok = 0.33, 0.65, 0.0226, -0.9, 0.02
    cosmology = Cosmology(Om, h, w=w, Ok=Ok, Obh2=Obh2)
    z = float(last_scattering_redshift(cosmology))
    warm = (2.7255 / 2.7) ** -4

    def squared(x, Or):
        dark = (1 - Om - Ok - RADIATION_DENSITY / h**2) * np.exp(3 * (1 + w) * x)
        return Or * np.exp(4 * x) + Om * np.exp(3 * x) + Ok * np.exp(2 * x) + dark

    chi = quad(lambda x: np.exp(x) / np.sqrt(squared(x, RADIATION_DENSITY / h**2)), 0, np.log1p(z))[0]
    distance = np.sinh(np.sqrt(Ok) * chi) / np.sqrt(Ok)
    Or = Om / (1 + 2.5e4 * Om * h**2 * warm)
    horizon = quad(
        lambda a: 1 / np.sqrt(3 * (1 + 31500 * Obh2 * warm * a) * a**4 * squared(-np.log(a), Or)),
        0,
        1 / (1 + z),
    )[0]
    expected = [np.sqrt(Om) * distance, np.pi * distance / horizon]
    np.testing.assert_allclose(distance_priors(cosmology), expected, rtol=2e-6)


def test_tables_are_those_of_their_sources(data_path):
    folder = data_path / "cmb_compressed"
    table = cmb_acoustic_angle()
    assert cmb_acoustic_angle() is table
    source = np.loadtxt(folder / "desi_dr2_thetastar_wb_wbc.txt")
    np.testing.assert_array_equal(table.values, source[0])
    np.testing.assert_array_equal(table.covariance, source[1:])
    table = cmb_distance_priors()
    values = np.loadtxt(folder / "chen_huang_wang_2019_distance_prior.txt", usecols=(1, 2))
    np.testing.assert_array_equal(table.values, values[:, 0])
    source = np.loadtxt(folder / "chen_huang_wang_2019_distance_prior_cov.txt")
    np.testing.assert_array_equal(table.covariance, source)
    np.testing.assert_allclose(np.sqrt(np.diag(table.covariance)), values[:, 1], rtol=1e-12)
    for table in (cmb_acoustic_angle(), cmb_distance_priors()):
        np.testing.assert_array_equal(table.covariance, table.covariance.T)
        assert not table.values.flags.writeable
        assert "arXiv:" in table.citation
        assert len(table.quantities) == 3


def test_a_missing_table_is_a_data_error(monkeypatch, tmp_path):
    monkeypatch.setattr(_table_files.resources, "files", lambda package: tmp_path)
    for load, name in ((cmb_acoustic_angle, "cmb_thetastar"), (cmb_distance_priors, "cmb_shift")):
        with pytest.raises(DataError, match=rf"{name}.csv that ships with qbs is missing: reinstall"):
            getattr(_compressed_cmb, load.__name__).__wrapped__()


@pytest.mark.usefixtures("x64")
def test_the_likelihood_is_the_gaussian_of_its_table(data_set):
    cosmology = Cosmology(0.31, 0.68, Obh2=0.0225, mnu=0.1)
    theory = jax.jit(lambda c: data_set.theory(c))(cosmology)
    residuals = data_set.data - np.asarray(theory)
    expected = residuals @ np.linalg.inv(data_set.covariance) @ residuals
    assert float(jax.jit(lambda c: data_set.chi2(c))(cosmology)) == pytest.approx(expected, rel=1e-8)
    assert type(data_set).load() is data_set
    assert data_set.parameters == ("Om", "h", "Obh2")
    if data_set.name == "cmb_thetastar":
        cold = 0.31 * 0.68**2 - 0.1 / 92.99
        np.testing.assert_allclose(theory, [acoustic_angle(cosmology), 0.0225, cold], rtol=1e-6)
    else:
        np.testing.assert_allclose(theory, [*distance_priors(cosmology), 0.0225], rtol=1e-12)


@pytest.mark.parametrize("is_x64", [False, True])
def test_impossible_cosmologies_have_no_likelihood_and_no_nan_gradient(data_set, is_x64):
    names = ("Om", "h", "w", "wa", "Ok", "Obh2")
    good = {"Om": 0.3, "h": 0.7, "w": -1.0, "wa": 0.0, "Ok": 0.0, "Obh2": 0.022}
    with jax.enable_x64(is_x64):
        evaluate = jax.jit(
            jax.value_and_grad(
                lambda p: data_set.log_likelihood(Cosmology(**dict(zip(names, p, strict=True))))
            )
        )
        value, gradient = evaluate(jnp.array([good[name] for name in names]))
        assert value.dtype == (jnp.float64 if is_x64 else jnp.float32)
        assert np.isfinite(value)
        assert np.all(np.isfinite(gradient) & (gradient != 0))
        for bad in (
            {"Om": -2.0},
            {"Om": float("nan")},
            {"h": -0.7},
            {"h": 0.0},
            {"Ok": float("nan")},
            {"Ok": -9.0},
            {"Om": 0.1, "w": -3.0, "wa": -3.0, "Ok": -0.3},
            {"Obh2": -0.02},
            {"w": 1e4},
        ):
            value, gradient = evaluate(jnp.array([{**good, **bad}[name] for name in names]))
            assert np.isneginf(value), bad
            assert np.all(gradient == 0), bad


@pytest.mark.usefixtures("x64")
def test_gradients_are_finite_differences(data_set):
    values = {"Om": 0.3, "h": 0.68, "w": -0.9, "wa": -0.2, "Ok": 0.01, "Obh2": 0.022, "mnu": 0.1}
    names = tuple(values)
    log_likelihood = jax.jit(lambda p: data_set.log_likelihood(Cosmology(**dict(zip(names, p, strict=True)))))
    point = np.array(list(values.values()))
    gradient = np.asarray(jax.grad(log_likelihood)(point))
    for row, at in enumerate(np.eye(len(names))):
        step = 1e-6 * at
        numerical = (log_likelihood(point + step) - log_likelihood(point - step)) / 2e-6
        assert gradient[row] == pytest.approx(float(numerical), rel=1e-4)


@functools.cache
def _solution(name, mnu):
    """Return Om, h and Obh2 of flat LCDM that fit three numbers exactly, by Newton's method."""
    with jax.enable_x64(True):
        likelihood = DATA_SETS[name].load()
        theory = jax.jit(lambda p: likelihood.theory(Cosmology(p[0], p[1], Obh2=p[2], mnu=mnu)))
        jacobian = jax.jit(jax.jacfwd(theory))
        point = np.array([0.31, 0.68, 0.0222])
        for _ in range(6):
            slope = np.asarray(jacobian(point))
            point = point + np.linalg.solve(slope, likelihood.data - np.asarray(theory(point)))
        covariance = np.linalg.inv(slope) @ likelihood.covariance @ np.linalg.inv(slope).T
    return point, np.sqrt(np.diag(covariance))


@pytest.mark.parametrize("mnu", [None, 0.06])
def test_distance_priors_give_the_posterior_of_planck(mnu):
    """Planck 2018 TT,TE,EE+lowE in LCDM: Om = 0.3166 +- 0.0084, H0 = 67.27 +- 0.60 (arXiv:1807.06209)."""
    point, errors = _solution("cmb_shift", mnu)
    assert abs(point[0] - 0.3166) < 0.2 * 0.0084
    assert abs(100 * point[1] - 67.27) < 0.2 * 0.60
    assert errors[0] == pytest.approx(0.0084, rel=0.05)
    assert 100 * errors[1] == pytest.approx(0.60, rel=0.05)


def test_the_acoustic_angle_is_fitted_where_camb_has_it():
    (Om, h, Obh2), errors = _solution("cmb_thetastar", 0.06)
    with jax.enable_x64(True):
        cosmology = Cosmology(Om, h, Obh2=Obh2, mnu=0.06)
        expected = _camb(cosmology)
    assert expected["thetastar"] == pytest.approx(1.041027, rel=2e-5)
    assert Om * h**2 - 0.06 / 92.99 == pytest.approx(0.14207901, rel=1e-6)
    assert errors[2] == pytest.approx(1.461e-4, rel=1e-3)


@pytest.mark.parametrize(
    ("data", "horizon", "expected"),
    [
        (("cmb_thetastar",), "formula", "Om Obh2 h"),
        (("cmb_shift", "desi_dr2"), "formula", "Om Obh2 h"),
        (("cmb_thetastar", "desi_dr2"), "free", "Om Obh2 h hrd"),
        (("bbn", "desi_dr2"), "free", "Om Obh2 hrd"),
        (("bbn", "desi_dr2"), "formula", "Om Obh2 h"),
    ],
)
@pytest.mark.usefixtures("x64")
def test_the_sound_horizon_may_be_the_formula_or_free(data, horizon, expected):
    analysis = Analysis("CPL", data, sound_horizon=horizon)
    assert analysis.parameters == (*expected.split(), "w", "wa")
    point = {"Om": 0.31, "Obh2": 0.0223, "h": 0.68, "hrd": 100.0, "w": -0.9, "wa": -0.2}
    point = {name: point[name] for name in analysis.parameters}
    chi2 = jax.jit(analysis.chi2)(point)
    assert set(chi2) == set(data)
    assert all(np.isfinite(value) for value in chi2.values())
    if horizon == "free":  # the CMB does not see r_d, BAO see nothing else
        moved = jax.jit(analysis.chi2)({**point, "hrd": 101.0})
        assert moved[data[0]] == chi2[data[0]]
        assert moved["desi_dr2"] != chi2["desi_dr2"]


def test_names_and_labels(data_set):
    assert DATA_SETS[data_set.name] is type(data_set)
    assert type(data_set) in (CMBAcousticAngle, CMBDistancePriors)
    assert data_set.label.startswith("CMB")
    assert "arXiv:" in data_set.citation
