"""Distances against astropy, CAMB and closed forms; gradients; precision; the line of sight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qbs.models.cosmology import background
from qbs.models.cosmology.background import SPEED_OF_LIGHT, Cosmology, LineOfSight

MODELS = {
    "LCDM": Cosmology(Om=0.3045, h=0.6861),
    "wCDM": Cosmology(Om=0.298, h=0.665, w=-0.917),
    "CPL": Cosmology(Om=0.32, h=0.66, w=-0.75, wa=-0.9),
    "oLCDM": Cosmology(Om=0.294, h=0.67, Ok=0.047),
    "oCPL": Cosmology(Om=0.302, h=0.667, w=-0.89, wa=-0.25, Ok=-0.06),
}
REDSHIFTS = np.concatenate([[0.01, 0.05], np.linspace(0.1, 3.0, 30)])
DISTANCES = (
    background.comoving_distance,
    background.transverse_comoving_distance,
    background.angular_diameter_distance,
    background.luminosity_distance,
    background.distance_modulus,
    background.hubble_distance,
    background.volume_averaged_distance,
    background.hubble,
    background.expansion_rate,
)


@pytest.fixture(params=MODELS)
def cosmology(request):
    return MODELS[request.param]


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("x64")
def test_agrees_with_astropy(cosmology):
    reference = pytest.importorskip("astropy.cosmology")
    Or = background.RADIATION_DENSITY / cosmology.h**2
    theirs = reference.w0waCDM(
        H0=100 * cosmology.h,
        Om0=cosmology.Om,
        Ode0=1 - cosmology.Om - cosmology.Ok - Or,
        w0=cosmology.w,
        wa=cosmology.wa,
        Tcmb0=2.7255,
        Neff=3.046,
        m_nu=0.0,
    )
    z = REDSHIFTS
    radial, transverse = theirs.comoving_distance(z).value, theirs.comoving_transverse_distance(z).value
    hubble = theirs.H(z).value
    expected = {
        "comoving_distance": radial,
        "transverse_comoving_distance": transverse,
        "angular_diameter_distance": theirs.angular_diameter_distance(z).value,
        "luminosity_distance": theirs.luminosity_distance(z).value,
        "distance_modulus": theirs.distmod(z).value,
        "hubble_distance": SPEED_OF_LIGHT / hubble,
        "volume_averaged_distance": np.cbrt(z * transverse**2 * SPEED_OF_LIGHT / hubble),
        "hubble": hubble,
        "expansion_rate": theirs.efunc(z),
    }
    for distance in DISTANCES:
        np.testing.assert_allclose(distance(cosmology, z), expected[distance.__name__], rtol=1e-5)


@pytest.mark.usefixtures("x64")
def test_agrees_with_camb(cosmology):
    camb = pytest.importorskip("camb")
    z = REDSHIFTS
    results = _camb_background(camb, cosmology)
    np.testing.assert_allclose(
        background.comoving_distance(cosmology, z), results.comoving_radial_distance(z), rtol=1e-5
    )
    np.testing.assert_allclose(
        background.angular_diameter_distance(cosmology, z), results.angular_diameter_distance(z), rtol=1e-5
    )
    np.testing.assert_allclose(background.hubble(cosmology, z), results.hubble_parameter(z), rtol=1e-5)


def _camb_background(camb, cosmology, Obh2=0.0222):
    parameters = camb.CAMBparams()
    parameters.set_cosmology(
        H0=100 * cosmology.h,
        ombh2=Obh2,
        omch2=cosmology.Om * cosmology.h**2 - Obh2,
        omk=cosmology.Ok,
        mnu=0.0,
        nnu=3.046,
        TCMB=2.7255,
    )
    parameters.set_dark_energy(w=cosmology.w, wa=cosmology.wa, dark_energy_model="ppf")
    return camb.get_background(parameters)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("Obh2", [0.0205, 0.0222, 0.0245])
def test_sound_horizon_is_that_of_camb(Obh2):
    camb = pytest.importorskip("camb")
    cosmology = MODELS["LCDM"]
    expected = _camb_background(camb, cosmology, Obh2).get_derived_params()["rdrag"]
    # The formula is good to 0.1 per cent near Planck; massless neutrinos move it by as much.
    np.testing.assert_allclose(background.sound_horizon(cosmology.Om, cosmology.h, Obh2), expected, rtol=3e-3)


@pytest.mark.usefixtures("x64")
def test_sound_horizon_at_its_pivot_and_off_it():
    assert float(background.sound_horizon(0.1432 / 0.49, 0.7, 0.02236)) == pytest.approx(147.05, rel=1e-12)
    value, gradient = jax.value_and_grad(background.sound_horizon, argnums=(0, 1, 2))(-0.3, 0.7, 0.02236)
    assert np.isnan(value)
    assert np.all(np.asarray(gradient) == 0)


@pytest.mark.usefixtures("x64")
def test_matter_and_radiation_have_a_closed_form():
    h, z = 0.7, np.array([0.0, 0.01, 1.0, 3.0, 1100.0])
    Or = background.RADIATION_DENSITY / h**2
    Om = 1 - Or  # Einstein-de Sitter with radiation: no dark energy is left
    exact = SPEED_OF_LIGHT / (100 * h) * 2 / Om * (1 - np.sqrt(Om / (1 + z) + Or))
    np.testing.assert_allclose(background.comoving_distance(Cosmology(Om, h), z)[:4], exact[:4], rtol=1e-10)
    np.testing.assert_allclose(background.comoving_distance(Cosmology(Om, h), z)[4], exact[4], rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_an_empty_universe_has_a_closed_form():
    h, z = 1e4, np.array([0.1, 1.0, 3.0])  # so large an h has no radiation
    milne = Cosmology(Om=0.0, h=h, Ok=1.0 - background.RADIATION_DENSITY / h**2)
    unit = SPEED_OF_LIGHT / (100 * h)
    np.testing.assert_allclose(background.comoving_distance(milne, z), unit * np.log1p(z), rtol=1e-9)
    exact = unit * np.sinh(np.log1p(z))
    np.testing.assert_allclose(background.transverse_comoving_distance(milne, z), exact, rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_distances_are_zero_at_the_origin_and_nan_where_the_universe_is_not():
    assert float(background.transverse_comoving_distance(MODELS["oCPL"], 0.0)) == 0.0
    assert float(background.distance_modulus(MODELS["LCDM"], 0.0)) == -np.inf
    assert np.isnan(background.comoving_distance(Cosmology(Om=-1.0, h=0.7), 2.0))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("Ok", [0.0, 1e-9, -1e-4, 0.2, -0.2])
def test_curvature_is_smooth_through_zero(Ok):
    @jax.jit
    def distance(Ok):
        return background.transverse_comoving_distance(Cosmology(Om=0.3, h=0.7, Ok=Ok), 2.0)

    step = 1e-4
    numerical = (distance(Ok + step) - distance(Ok - step)) / (2 * step)
    assert float(jax.grad(distance)(Ok)) == pytest.approx(float(numerical), rel=1e-6)
    second = (distance(Ok + step) - 2 * distance(Ok) + distance(Ok - step)) / step**2
    assert float(jax.jit(jax.grad(jax.grad(distance)))(Ok)) == pytest.approx(float(second), rel=1e-3)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["Om", "h", "w", "wa", "Ok"])
def test_gradients_are_finite_differences(name):
    values = {"Om": 0.3, "h": 0.7, "w": -1.0, "wa": 0.0, "Ok": 0.0}

    def modulus(x):
        return background.distance_modulus(Cosmology(**{**values, name: x}), 1.3)

    at, step = values[name], 1e-5
    numerical = (modulus(at + step) - modulus(at - step)) / (2 * step)
    assert float(jax.grad(modulus)(at)) == pytest.approx(float(numerical), rel=1e-6)


@pytest.mark.parametrize("distance", DISTANCES, ids=lambda f: f.__name__)
def test_the_global_precision_only_rounds(distance):
    cosmology = MODELS["oCPL"]
    single = distance(cosmology, REDSHIFTS)
    with jax.enable_x64(True):
        double = distance(cosmology, REDSHIFTS)
    assert single.dtype == jnp.float32
    assert double.dtype == jnp.float64
    np.testing.assert_array_equal(single, np.asarray(double, dtype=np.float32))


@pytest.mark.parametrize("distance", DISTANCES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("is_x64", [False, True])
def test_jit_vmap_and_shapes(distance, is_x64):
    with jax.enable_x64(is_x64):
        z = jnp.asarray(REDSHIFTS[:6]).reshape(2, 3)
        traces = 0

        @jax.jit
        def compiled(Om, h, z):
            nonlocal traces
            traces += 1
            return distance(Cosmology(Om, h), z)

        direct = distance(Cosmology(0.3, 0.7), z)
        assert direct.shape == (2, 3)
        np.testing.assert_allclose(compiled(0.3, 0.7, z), direct, rtol=1e-6)
        compiled(0.31, 0.69, z)
        assert traces == 1
        batch = jax.vmap(functools.partial(compiled, z=z))(jnp.array([0.3, 0.4]), jnp.array([0.7, 0.6]))
        assert batch.shape == (2, 2, 3)
        np.testing.assert_allclose(batch[0], direct, rtol=1e-6)


@pytest.mark.parametrize(
    "distance", [background.distance_modulus, background.hubble_distance], ids=lambda f: f.__name__
)
def test_gradients_and_batches_keep_float64_inside(distance):
    def value(Om):
        return jnp.sum(distance(Cosmology(Om, 0.7, w=-0.9, Ok=0.1), REDSHIFTS[-4:]))

    def compute():
        Om = jnp.array([0.25, 0.5])  # exact in both precisions
        return (
            jax.vmap(jax.jit(value))(Om),
            jax.jit(jax.vmap(jax.grad(value)))(Om),
            jax.jit(jax.grad(value))(Om[0]),
        )

    single = compute()
    with jax.enable_x64(True):
        double = compute()
    for low, high in zip(single, double, strict=True):
        assert low.dtype == jnp.float32
        np.testing.assert_allclose(low, high, rtol=3e-7)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "corner", [Cosmology(0.1, 0.4, -3.0, 2.0, 0.3), Cosmology(0.5, 0.9, 1.0, -3.0, -0.3)]
)
def test_line_of_sight_is_the_same_distance(cosmology, corner):
    z = np.array([0.5, 0.0, 2.3, 1e-4, 0.5, 2.3, 0.011, 3.0])  # unsorted, with repeats and zero
    line = LineOfSight.from_redshifts(z)
    np.testing.assert_array_equal(line.redshifts, z)
    for case in (cosmology, corner):
        exact = background.comoving_distance(case, z)
        np.testing.assert_allclose(line.comoving_distance(case), exact, rtol=1e-10)
        exact = background.transverse_comoving_distance(case, z)
        np.testing.assert_allclose(line.transverse_comoving_distance(case), exact, rtol=1e-10)
        np.testing.assert_allclose(
            line.hubble_distance(case), background.hubble_distance(case, z), rtol=1e-12
        )
        np.testing.assert_allclose(line.expansion_rate(case), background.expansion_rate(case, z), rtol=1e-12)


def test_line_of_sight_keeps_no_precision_from_an_earlier_trace(cosmology):
    line = LineOfSight.from_redshifts(REDSHIFTS)

    def total(Om):
        return jnp.sum(line.comoving_distance(Cosmology(Om, 0.7)))

    assert jax.jit(total)(0.3).dtype == jnp.float32
    with jax.enable_x64(True):
        exact = jnp.sum(background.comoving_distance(Cosmology(0.3, 0.7), REDSHIFTS))
        assert float(jax.jit(total)(0.3)) == pytest.approx(float(exact), rel=1e-10)
    assert jax.jit(total)(0.3).dtype == jnp.float32


def test_line_of_sight_knows_what_is_physical():
    line = LineOfSight.from_redshifts(np.array([0.0, 2.0]))
    assert bool(line.is_physical(MODELS["LCDM"]))
    for bad in (
        Cosmology(Om=-1.0, h=0.7),
        Cosmology(Om=float("nan"), h=0.7),
        Cosmology(Om=0.3, h=-0.7),
        Cosmology(Om=0.3, h=0.7, Ok=-9.0),
        Cosmology(Om=0.3, h=0.7, w=1e4),
    ):
        assert not bool(line.is_physical(bad))
    assert bool(LineOfSight.from_redshifts(np.zeros(2)).is_physical(MODELS["LCDM"]))


@pytest.mark.parametrize("z", [np.array([]), np.array([[0.1]]), np.array([-0.1]), np.array([np.nan])])
def test_line_of_sight_refuses_bad_redshifts(z):
    with pytest.raises(ValueError, match="z must be a non-empty vector"):
        LineOfSight.from_redshifts(z)
