"""Models of dark energy and curvature, and what they imply, against closed forms, SciPy and astropy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from qbs.models.cosmology import MODELS, PARAMETERS, Analysis, background, derived
from qbs.models.cosmology.background import RADIATION_DENSITY, Cosmology
from qbs.models.cosmology.parameters import DERIVED

POINT = {
    "Om": 0.31,
    "Obh2": 0.0221,
    "h": 0.67,
    "hrd": 100.5,
    "w": -0.9,
    "wa": -0.3,
    "Ok": 0.02,
    "Om1": 0.4,
    "Om2": -0.1,
}
DATA = ("cc", "desi_dr2", "bbn", "h0")
EMPTY = 1e5  # so large an h has no radiation

# Compiled as a whole, in each precision: much faster than operation by operation.
age, deceleration = jax.jit(derived.age), jax.jit(derived.deceleration)
hubble, luminosity_distance = jax.jit(background.hubble), jax.jit(background.luminosity_distance)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def at(analysis):
    return {name: POINT[name] for name in analysis.parameters}


def test_the_models_are_these():
    assert {name: model.parameters for name, model in MODELS.items()} == {
        "LCDM": (),
        "wCDM": ("w",),
        "CPL": ("w", "wa"),
        "oLCDM": ("Ok",),
        "oCPL": ("w", "wa", "Ok"),
        "owCDM": ("w", "Ok"),
        "PolyCDM": ("Ok", "Om1", "Om2"),
    }


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("model", "horizon", "expected"),
    [
        ("LCDM", "formula", -36.215633746129896),
        ("LCDM", "free", -26.24333348895137),
        ("CPL", "formula", -26.502540900759413),
        ("CPL", "free", -27.194371420870915),
        ("oCPL", "formula", -24.73496311487714),
        ("oCPL", "free", -33.06963548465075),
    ],
)
def test_earlier_likelihoods_have_not_moved(model, horizon, expected):
    """What version 0.1.0 gave, before neutrino masses and polynomials: pinned evidences depend on it."""
    analysis = Analysis(model, DATA, sound_horizon=horizon)
    assert float(jax.jit(analysis.log_likelihood)(at(analysis))) == pytest.approx(expected, rel=1e-12)


@pytest.mark.usefixtures("x64")
def test_polynomial_dark_energy_is_what_it_says():
    Om, h, Ok, Om1, Om2 = 0.3, 0.7, -0.04, 0.5, -0.15
    z = np.array([0.0, 0.3, 1.0, 2.5, 20.0])
    Or = RADIATION_DENSITY / h**2

    def squared(z):
        rest = 1 - Om - Or - Ok - Om1 - Om2
        return Or * (1 + z) ** 4 + Om * (1 + z) ** 3 + (Ok + Om2) * (1 + z) ** 2 + Om1 * (1 + z) + rest

    cosmology = Cosmology(Om, h, Ok=Ok, Om1=Om1, Om2=Om2)
    np.testing.assert_allclose(background.expansion_rate(cosmology, z) ** 2, squared(z), rtol=1e-12)
    chi = np.array([quad(lambda x: squared(x) ** -0.5, 0, end, epsrel=1e-11)[0] for end in z[:4]])
    exact = background.SPEED_OF_LIGHT / (100 * h) * np.sin(np.sqrt(-Ok) * chi) / np.sqrt(-Ok)
    distance = background.transverse_comoving_distance(cosmology, z[:4])
    np.testing.assert_allclose(distance, exact, rtol=1e-9)
    assert float(derived.dark_energy_density(cosmology)) == pytest.approx(1 - Om - Ok - Or, rel=1e-12)


@pytest.mark.usefixtures("x64")
def test_a_polynomial_term_is_dark_energy_of_its_own_equation_of_state():
    """(1+z)^1 is w = -2/3 and (1+z)^2 is w = -1/3: all dark energy in one term is a wCDM."""
    z, Or = np.array([0.5, 2.0, 100.0]), RADIATION_DENSITY / 0.7**2
    for name, w in (("Om1", -2 / 3), ("Om2", -1 / 3)):
        polynomial = Cosmology(0.3, 0.7, Ok=0.1, **{name: 0.6 - Or})
        constant = Cosmology(0.3, 0.7, Ok=0.1, w=w)
        for function in (hubble, luminosity_distance):
            np.testing.assert_allclose(function(polynomial, z), function(constant, z), rtol=1e-12)


@pytest.mark.parametrize("model", ["owCDM", "PolyCDM"])
@pytest.mark.parametrize("is_x64", [False, True])
def test_new_models_run_under_jit_grad_and_vmap(model, is_x64):
    with jax.enable_x64(is_x64):
        analysis = Analysis(model, DATA)
        evaluate = jax.jit(jax.vmap(jax.value_and_grad(analysis.log_likelihood)))
        points = {name: jnp.array([value, value]) for name, value in at(analysis).items()}
        points["Om"] = jnp.array([0.31, -2.0])
        value, gradient = evaluate(points)
        assert value.dtype == (jnp.float64 if is_x64 else jnp.float32)
        assert np.isfinite(value[0])
        assert np.isneginf(value[1])
        assert all(np.all(np.isfinite(g)) for g in gradient.values())
        for name in MODELS[model].parameters:
            assert gradient[name][0] != 0
            assert gradient[name][1] == 0


@pytest.mark.usefixtures("x64")
def test_age_has_closed_forms():
    time = derived.HUBBLE_TIME
    assert time == pytest.approx(977.8, abs=0.01)  # Gyr km/s/Mpc, the number in every textbook
    h = EMPTY
    assert float(age(Cosmology(1.0, h))) == pytest.approx(2 / 3 * time / (100 * h), rel=1e-8)
    Om = 0.3
    exact = 2 / (3 * np.sqrt(1 - Om)) * np.arcsinh(np.sqrt((1 - Om) / Om)) * time / (100 * h)
    assert float(age(Cosmology(Om, h))) == pytest.approx(exact, rel=1e-8)
    Or = RADIATION_DENSITY / 0.7**2
    y = (1 - Or) / Or  # a / a_eq today, in matter and radiation
    exact = 2 / 3 * Or**1.5 / (1 - Or) ** 2 * ((y - 2) * np.sqrt(1 + y) + 2) * time / 70
    assert float(age(Cosmology(1 - Or, 0.7))) == pytest.approx(exact, rel=1e-8)
    assert np.isnan(age(Cosmology(-0.1, 0.7)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "cosmology",
    [Cosmology(0.3, 0.7), Cosmology(0.32, 0.66, w=-0.8, wa=-0.9), Cosmology(0.3, 0.67, w=-0.9, Ok=0.1)],
)
def test_age_is_that_of_astropy(cosmology):
    reference = pytest.importorskip("astropy.cosmology")
    Ode = float(derived.dark_energy_density(cosmology))
    theirs = reference.w0waCDM(
        H0=100 * cosmology.h,
        Om0=cosmology.Om,
        Ode0=Ode,
        w0=cosmology.w,
        wa=cosmology.wa,
        Tcmb0=2.7255,
        Neff=3.046,
        m_nu=0.0,
    )
    assert float(age(cosmology)) == pytest.approx(theirs.age(0).value, rel=1e-7)
    assert Ode == pytest.approx(1 - theirs.Om0 - cosmology.Ok - theirs.Ogamma0 - theirs.Onu0, abs=1e-8)


@pytest.mark.usefixtures("x64")
def test_deceleration_has_closed_forms():
    assert float(deceleration(Cosmology(1.0, EMPTY))) == pytest.approx(0.5, abs=1e-12)
    assert float(deceleration(Cosmology(0.0, EMPTY))) == pytest.approx(-1.0, abs=1e-12)
    assert float(deceleration(Cosmology(0.0, EMPTY, Ok=1.0))) == pytest.approx(0.0, abs=1e-12)
    at_one = deceleration(Cosmology(0.3, EMPTY, w=-0.8), np.array([0.0, 1.0]))
    dark, matter = 0.7 * 2**0.6, 0.3 * 2**3
    exact = [0.5 - 1.2 * 0.7, 0.5 - 1.2 * dark / (dark + matter)]
    np.testing.assert_allclose(at_one, exact, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_transition_has_closed_forms_and_a_gradient():
    transition = jax.jit(lambda Om, w: derived.transition_redshift(Cosmology(Om, EMPTY, w=w)))
    for Om, w in ((0.3, -1.0), (0.25, -0.7), (0.4, -1.5)):
        exact = ((-1 - 3 * w) * (1 - Om) / Om) ** (-1 / (3 * w)) - 1
        assert float(transition(Om, w)) == pytest.approx(exact, rel=1e-10)
        slope = -(1 + exact) / (-3 * w) / (Om * (1 - Om))
        assert float(jax.grad(transition)(Om, w)) == pytest.approx(slope, rel=1e-8)


@pytest.mark.usefixtures("x64")
def test_transition_is_never_nan():
    value_and_grad = jax.jit(
        jax.value_and_grad(lambda Om, w, wa, Ok: derived.transition_redshift(Cosmology(Om, EMPTY, w, wa, Ok)))
    )
    for point, expected in (
        ((1.0, -1.0, 0.0, 0.0), 0.0),  # never accelerated
        ((0.3, -0.4, -1.7, 0.0), 0.0),  # no longer accelerates
        ((0.0, -1.0, 0.0, 0.0), derived.MAX_TRANSITION),  # always did
        ((0.0, -1.0, 0.0, 1.0), 0.0),  # coasts
    ):
        value, gradient = value_and_grad(*point)
        assert float(value) == expected
        assert np.isfinite(gradient)


@pytest.mark.parametrize("is_x64", [False, True])
def test_derived_numbers_jit_vmap_and_precision(is_x64):
    with jax.enable_x64(is_x64):
        traces = 0

        @jax.jit
        def compute(Om):
            nonlocal traces
            traces += 1
            cosmology = Cosmology(Om, 0.7, w=-0.9, mnu=0.06)
            return jnp.stack(
                [
                    derived.age(cosmology),
                    derived.deceleration(cosmology),
                    derived.transition_redshift(cosmology),
                    derived.dark_energy_density(cosmology),
                ]
            )

        rows = [compute(Om) for Om in (0.25, 0.5)]
        assert traces == 1
        assert rows[0].dtype == (jnp.float64 if is_x64 else jnp.float32)
        np.testing.assert_allclose(jax.vmap(compute)(jnp.array([0.25, 0.5])), jnp.stack(rows), rtol=2e-7)
    with jax.enable_x64(True):
        np.testing.assert_allclose(rows[0], compute(0.25), rtol=2e-7)


def test_derived_parameters_of_an_analysis():
    analysis = Analysis("PolyCDM", ("cc", "desi_dr2", "bbn"))
    derive = jax.jit(analysis.derived)
    values = derive(at(analysis))
    assert set(values) == {"H0", "rd", "hrd", "age", "Ode", "q0", "z_transition"} <= set(DERIVED)
    cosmology = analysis.cosmology(at(analysis))
    assert float(values["age"]) == pytest.approx(float(age(cosmology)), rel=1e-6)
    assert float(values["Ode"]) == pytest.approx(1 - 0.31 - 0.02 - RADIATION_DENSITY / 0.67**2, rel=1e-6)
    assert float(values["q0"]) == pytest.approx(float(deceleration(cosmology)), rel=1e-5)
    alone = Analysis("LCDM", "desi_dr2", sound_horizon="free")
    assert set(alone.derived({"Om": 0.3, "hrd": 101.0})) == {"Ode", "q0", "z_transition"}  # nothing sets h
    growth = Analysis("LCDM", "fsigma8")
    assert growth.parameters == ("Om", "sigma8")
    values = growth.derived({"Om": 0.27, "sigma8": 0.8})
    assert float(values["S8"]) == pytest.approx(0.8 * np.sqrt(0.9), rel=1e-6)


def test_new_parameters_have_priors():
    bounds = {name: PARAMETERS[name].bounds for name in ("Om1", "Om2", "sigma8", "mnu")}
    assert bounds == {"Om1": (-3.0, 3.0), "Om2": (-3.0, 3.0), "sigma8": (0.5, 1.2), "mnu": (0.0, 1.0)}
    with pytest.raises(ValueError, match=r"Om1 is not a parameter of model LCDM.*accepted: Om, h, mnu$"):
        Analysis("LCDM", "cc", priors={"Om1": 0.1})
    flat = Analysis("PolyCDM", "cc", priors={"Ok": 0.0})
    assert flat.parameters == ("Om", "h", "Om1", "Om2")
