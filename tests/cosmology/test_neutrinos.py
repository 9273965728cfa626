"""Massive neutrinos against the integral by SciPy, and expansion and distances against CAMB."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from qbs.models.cosmology import Analysis, background, neutrinos
from qbs.models.cosmology.background import Cosmology, LineOfSight
from qbs.models.cosmology.expansion import NEUTRINO_DENSITY, PHOTON_DENSITY, cold_density
from qbs.models.cosmology.likelihoods import DesiBAO
from qbs.models.cosmology.run import analyses
from qbs.models.cosmology.runfile import parse_run_file

REDSHIFTS = np.array([0.0, 0.1, 0.5, 1.0, 2.33, 10.0, 100.0, 500.0, 1100.0])
SHAPES = {
    "LCDM": {},
    "CPL": {"w": -0.6, "wa": -1.2},
    "curved": {"w": -0.9, "Ok": 0.04},
    "closed": {"Ok": -0.05},
}


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@functools.cache
def fermi_dirac(y):
    """Return the density over that of a massless neutrino, by adaptive quadrature."""
    ends = sorted({0.0, 1.0, 5.0, 15.0, 60.0, min(max(y, 0.1), 50.0)})
    total = sum(
        quad(lambda q: q**2 * np.sqrt(q**2 + y**2) / (np.exp(q) + 1), a, b, epsabs=0, epsrel=1e-12)[0]
        for a, b in itertools.pairwise(ends)
    )
    return total / (7 * np.pi**4 / 120)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("y", [0.0, 1e-3, 0.1, 0.3, 1.0, 3.0, 10.0, 357.0, 1e4])
def test_density_is_the_integral(y):
    assert float(neutrinos.relative_density(y)) == pytest.approx(fermi_dirac(y), rel=2e-9)


@pytest.mark.usefixtures("x64")
def test_constants_are_the_known_ones():
    # PDG 2022: omega_gamma = 2.473e-5 (T/2.7255)^4; Mangano et al.: sum m/93.14 eV for N_eff = 3.046 with
    # distortions; thermal neutrinos of this temperature have 94.06 eV (3/3.046)^(3/4) = 92.99 eV.
    assert pytest.approx(2.473e-5, rel=2e-4) == PHOTON_DENSITY
    mass = 1 / float(neutrinos.rest_mass_density(1.0, NEUTRINO_DENSITY))
    assert mass == pytest.approx(94.06 * (3 / 3.046) ** 0.75, rel=3e-4)


def camb_background(camb, cosmology, Obh2=0.0222):
    """Return CAMB's background with the same cold matter, masses and Neff."""
    parameters = camb.CAMBparams()
    parameters.set_cosmology(
        H0=100 * cosmology.h,
        ombh2=Obh2,
        omch2=float(cold_density(cosmology)) * cosmology.h**2 - Obh2,
        omk=cosmology.Ok,
        mnu=cosmology.mnu or 0.0,
        num_massive_neutrinos=cosmology.num_massive,
        nnu=3.046,
        standard_neutrino_neff=3.046,
        TCMB=2.7255,
    )
    parameters.set_dark_energy(w=cosmology.w, wa=cosmology.wa, dark_energy_model="ppf")
    return camb.get_background(parameters)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("mnu", "num_massive"), [(None, 1), (0.06, 1), (0.06, 3), (0.3, 1), (0.3, 3)])
def test_agrees_with_camb_up_to_recombination(shape, mnu, num_massive):
    camb = pytest.importorskip("camb")
    cosmology = Cosmology(Om=0.31, h=0.69, mnu=mnu, num_massive=num_massive, **SHAPES[shape])
    results = camb_background(camb, cosmology)
    # At z = 1100, 9e-6 come from RADIATION_DENSITY, which has four digits.
    np.testing.assert_allclose(
        background.hubble(cosmology, REDSHIFTS), results.hubble_parameter(REDSHIFTS), rtol=1e-5
    )
    np.testing.assert_allclose(
        background.comoving_distance(cosmology, REDSHIFTS),
        results.comoving_radial_distance(REDSHIFTS),
        rtol=2e-6,
    )
    np.testing.assert_allclose(
        background.angular_diameter_distance(cosmology, REDSHIFTS),
        results.angular_diameter_distance(REDSHIFTS),
        rtol=2e-6,
    )


@pytest.mark.usefixtures("x64")
def test_no_mass_is_zero_mass():
    for shape in SHAPES.values():
        massless, zero = (Cosmology(Om=0.31, h=0.69, mnu=mnu, **shape) for mnu in (None, 0.0))
        for function in (background.hubble, background.transverse_comoving_distance):
            np.testing.assert_allclose(function(zero, REDSHIFTS), function(massless, REDSHIFTS), rtol=1e-12)
    assert float(background.expansion_rate(Cosmology(0.31, 0.69, mnu=0.4), 0.0)) == pytest.approx(
        1.0, abs=1e-14
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("mnu", [0.0, 0.01, 0.3])
def test_gradients_in_the_mass_are_finite_differences(mnu):
    @jax.jit
    def distance(mnu):
        return background.comoving_distance(Cosmology(Om=0.31, h=0.69, mnu=mnu), 1090.0)

    step = 1e-6  # a small part of the temperature, 1.7e-4 eV
    if mnu == 0.0:  # one-sided, of second order
        numerical = (-1.5 * distance(0.0) + 2 * distance(step) - 0.5 * distance(2 * step)) / step
    else:
        numerical = (distance(mnu + step) - distance(mnu - step)) / (2 * step)
    assert float(jax.grad(distance)(mnu)) == pytest.approx(float(numerical), rel=1e-5)


def test_a_negative_mass_is_impossible():
    assert np.isnan(background.hubble(Cosmology(0.3, 0.7, mnu=-0.1), 0.5))
    likelihood = DesiBAO.load()
    evaluate = jax.jit(jax.value_and_grad(lambda m: likelihood.log_likelihood(Cosmology(0.3, 0.7, mnu=m))))
    for mnu, is_possible in ((-0.1, False), (0.0, True), (0.1, True)):
        value, gradient = evaluate(mnu)
        assert np.isfinite(value) if is_possible else np.isneginf(value)
        assert np.isfinite(gradient)
        assert is_possible or float(gradient) == 0.0
    with pytest.raises(ValueError, match="num_massive must be 1, 2 or 3, not 4"):
        Cosmology(0.3, 0.7, mnu=0.1, num_massive=4)


@pytest.mark.parametrize("is_x64", [False, True])
def test_line_of_sight_jit_vmap_and_precision(is_x64):
    line = LineOfSight.from_redshifts(REDSHIFTS[:5])
    with jax.enable_x64(is_x64):
        masses = jnp.array([0.0, 0.06, 0.3])
        batch = jax.jit(jax.vmap(lambda m: line.comoving_distance(Cosmology(0.31, 0.69, mnu=m))))(masses)
        assert batch.dtype == (jnp.float64 if is_x64 else jnp.float32)
        for mass, row in zip(masses, batch, strict=True):
            exact = background.comoving_distance(Cosmology(0.31, 0.69, mnu=mass), REDSHIFTS[:5])
            np.testing.assert_allclose(row, exact, rtol=1e-10 if is_x64 else 2e-6)


@pytest.mark.usefixtures("x64")
def test_an_analysis_takes_the_mass_from_its_priors():
    point = {"Om": 0.31, "Obh2": 0.0222, "h": 0.68}
    plain = Analysis("LCDM", ("desi_dr2", "bbn"))
    assert "mnu" not in plain.parameters
    assert plain.cosmology(point).mnu is None
    fixed = Analysis("LCDM", ("desi_dr2", "bbn"), priors={"mnu": 0.06})
    assert fixed.parameters == plain.parameters
    sampled = Analysis("LCDM", ("desi_dr2", "bbn"), priors={"mnu": [0.0, 0.5]})
    assert sampled.parameters == (*plain.parameters, "mnu")
    log_likelihood = jax.jit(sampled.log_likelihood)
    with_mass = float(log_likelihood({**point, "mnu": 0.06}))
    assert with_mass == pytest.approx(float(jax.jit(fixed.log_likelihood)(point)), rel=1e-12)
    without = float(log_likelihood({**point, "mnu": 0.0}))
    assert without == pytest.approx(float(jax.jit(plain.log_likelihood)(point)), rel=1e-12)
    # At the same Om, mass leaves less cold matter, so the sound horizon is larger.
    cold = 0.31 * 0.68**2 - 0.06 / 92.99
    rd = 147.05 * (0.0222 / 0.02236) ** -0.13 * (cold / 0.1432) ** -0.23
    assert float(fixed.rd(point)) == pytest.approx(rd, rel=1e-6)
    bao = jax.jit(
        lambda p: DesiBAO.load().chi2(fixed.cosmology(p)) + fixed.likelihoods["bbn"].chi2(fixed.cosmology(p))
    )
    assert with_mass == pytest.approx(-0.5 * float(bao(point)), rel=1e-12)


def test_a_run_file_takes_the_mass_from_its_priors():
    text = "models: [LCDM, wCDM]\ndata: [desi_dr2]\nsound_horizon: free\npriors: {mnu: %s}\n"
    for prior, names in (("[0, 0.5]", ("Om", "hrd", "mnu")), ("0.06", ("Om", "hrd"))):
        analysis = analyses(parse_run_file(text % prior))["LCDM"]
        assert analysis.parameters == names
        assert ("mnu" in analysis.fixed) == (prior == "0.06")
