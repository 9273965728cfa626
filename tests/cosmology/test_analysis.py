"""What is sampled, which priors are accepted, and that the parts add up; published posteriors on a grid."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.infer.util import log_density

from qbs.errors import DataError
from qbs.models.cosmology import Analysis, sound_horizon
from qbs.models.cosmology.analysis import FIDUCIAL_H, used_parameters
from qbs.models.cosmology.parameters import DERIVED, MODELS, PARAMETERS

POINT = {"Om": 0.31, "Obh2": 0.0221, "h": 0.67, "hrd": 100.5, "w": -0.9, "wa": -0.3, "Ok": 0.02}
POINT |= {"Om1": 0.4, "Om2": -0.1}
LIGHT = ("cc", "desi_dr2", "bbn", "h0")


def at(analysis):
    return {name: POINT[name] for name in analysis.parameters}


@pytest.mark.parametrize(
    ("model", "data", "horizon", "expected"),
    [
        ("LCDM", ("cc", "desi_dr2", "bbn"), "formula", "Om Obh2 h"),
        ("CPL", ("cc", "desi_dr2", "pantheon_plus", "bbn"), "formula", "Om Obh2 h w wa"),
        ("oCPL", LIGHT, "formula", "Om Obh2 h w wa Ok"),
        ("LCDM", ("desi_dr2",), "formula", "Om Obh2 h"),
        ("LCDM", ("desi_dr2",), "free", "Om hrd"),
        ("wCDM", ("desi_dr2", "pantheon_plus"), "free", "Om hrd w"),
        ("LCDM", ("desi_dr2", "cc"), "free", "Om h hrd"),
        ("oLCDM", ("desi_dr2", "h0", "bbn"), "free", "Om Obh2 h hrd Ok"),
        ("LCDM", ("pantheon_plus",), "formula", "Om"),
        ("CPL", ("pantheon_plus",), "free", "Om w wa"),
        ("LCDM", ("cc",), "formula", "Om h"),
        ("LCDM", ("bbn",), "formula", "Om Obh2"),
    ],
)
def test_what_is_sampled(model, data, horizon, expected):
    assert used_parameters(model, data, sound_horizon=horizon) == tuple(expected.split())
    if "pantheon_plus" not in data:
        analysis = Analysis(model, data, sound_horizon=horizon)
        assert analysis.parameters == tuple(expected.split())
        for name, prior in analysis.priors.items():
            assert (prior.low, prior.high) == PARAMETERS[name].bounds


def test_defaults_and_identity():
    analysis, other = Analysis(), Analysis()
    assert (analysis.model, analysis.data) == ("LCDM", ("cc", "desi_dr2", "bbn"))
    assert analysis != other
    assert len({analysis, other, analysis}) == 2
    assert analysis.numpyro_model == analysis.numpyro_model
    assert analysis.likelihoods["cc"] is other.likelihoods["cc"]
    assert Analysis(data="cc").data == ("cc",)
    with pytest.raises(AttributeError):
        analysis.model = "LCDM"


def test_prior_forms():
    analysis = Analysis(
        "oCPL",
        LIGHT,
        priors={
            "Om": [0.2, 0.4],
            "h": {"normal": [0.7, 0.02]},
            "wa": 0,
            "Ok": dist.Normal(0.0, 0.1),
            "w": (-1.5, -0.5),
        },
    )
    assert analysis.parameters == ("Om", "Obh2", "h", "w", "Ok")
    assert analysis.fixed == {"wa": 0.0}
    assert (analysis.priors["Om"].low, analysis.priors["Om"].high) == (0.2, 0.4)
    assert (analysis.priors["w"].low, analysis.priors["w"].high) == (-1.5, -0.5)
    assert isinstance(analysis.priors["h"], dist.Normal)
    assert (analysis.priors["h"].loc, analysis.priors["h"].scale) == (0.7, 0.02)
    assert isinstance(analysis.priors["Ok"], dist.Normal)
    assert float(analysis.cosmology(at(analysis)).wa) == 0.0


@pytest.mark.parametrize(
    "prior",
    [
        [0.4, 0.2],
        [0.3, 0.3],
        [0.1],
        [0.1, 0.2, 0.3],
        [0.1, float("inf")],
        "0.3",
        "ab",
        True,
        None,
        float("nan"),
        {"normal": [0.3, 0.0]},
        {"normal": 0.3},
        {"uniform": [0.1, 0.2]},
        {},
        dist.Normal(jnp.zeros(2), 1.0),
    ],
)
def test_bad_priors_are_explained(prior):
    with pytest.raises(
        ValueError, match=r"the prior of Om is not valid: .*\[low, high\].*normal.*distribution"
    ):
        Analysis("LCDM", "cc", priors={"Om": prior})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "lcdm"}, "unknown model 'lcdm'; accepted: LCDM, wCDM, CPL, oLCDM, oCPL"),
        ({"data": ("cc", "sn")}, "unknown data set 'sn'; accepted: cc, desi_dr2, bbn, h0, pantheon_plus"),
        ({"data": ()}, "at least one data set"),
        ({"data": ("cc", "cc")}, "each once"),
        ({"sound_horizon": "fixed"}, "unknown sound_horizon 'fixed'; accepted: formula, free"),
        (
            {"priors": {"omega": 0.3}},
            "unknown parameter in priors 'omega'; accepted: Om, Obh2, h, hrd, w, wa, Ok",
        ),
        (
            {"model": "LCDM", "priors": {"w": [-2, 0]}},
            "w is not a parameter of model LCDM.*accepted: Om, Obh2, h, mnu$",
        ),
        ({"model": "LCDM", "priors": {"hrd": 100}}, "hrd is not a parameter"),
    ],
)
def test_unknown_names_are_listed(arguments, message):
    with pytest.raises(ValueError, match=message):
        Analysis(**arguments)


def test_a_missing_parameter_is_named():
    with pytest.raises(ValueError, match="params lacks h; this analysis needs Om, h"):
        Analysis("LCDM", "cc").log_likelihood({"Om": 0.3})


def test_a_missing_table_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="no Pantheon"):
        Analysis("LCDM", "pantheon_plus", data_path=tmp_path)


def test_h_is_fiducial_fixed_or_sampled():
    fiducial = Analysis("LCDM", "desi_dr2", sound_horizon="free")
    assert fiducial.cosmology(at(fiducial)).h == FIDUCIAL_H
    assert set(fiducial.derived(at(fiducial))) == {"Ode", "q0", "z_transition"}
    fixed = Analysis("LCDM", "desi_dr2", sound_horizon="free", priors={"h": 0.7})
    assert fixed.parameters == ("Om", "hrd")
    assert fixed.cosmology(at(fixed)).h == 0.7
    assert float(fixed.derived(at(fixed))["rd"]) == pytest.approx(100.5 / 0.7)
    # BAO know hrd alone, radiation aside.
    assert float(fixed.log_likelihood(at(fixed))) == pytest.approx(
        float(fiducial.log_likelihood(at(fixed))), abs=0.05
    )
    sampled = Analysis("LCDM", "desi_dr2", sound_horizon="free", priors={"h": [0.6, 0.8]})
    assert sampled.parameters == ("Om", "h", "hrd")


@pytest.mark.parametrize(
    ("data", "horizon", "expected"),
    [
        (("cc", "desi_dr2", "bbn"), "formula", {"H0", "age", "rd", "hrd"}),
        (("cc", "desi_dr2"), "free", {"H0", "age", "rd"}),
        (("desi_dr2",), "free", set()),
        (("cc",), "formula", {"H0", "age"}),
        (("bbn",), "formula", set()),
    ],
)
def test_derived_parameters(data, horizon, expected):
    analysis = Analysis("LCDM", data, sound_horizon=horizon)
    derived = analysis.derived(at(analysis))
    assert set(derived) == expected | {"Ode", "q0", "z_transition"} <= set(DERIVED)
    if "H0" in derived:
        assert float(derived["H0"]) == pytest.approx(67.0)
    if "hrd" in derived:
        rd = float(sound_horizon(0.31, 0.67, 0.0221))
        assert float(derived["rd"]) == pytest.approx(rd)
        assert float(derived["hrd"]) == pytest.approx(0.67 * rd)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("horizon", ["formula", "free"])
@pytest.mark.parametrize("is_x64", [False, True])
def test_the_numpyro_model_is_the_log_likelihood_and_the_priors(model, horizon, is_x64):
    with jax.enable_x64(is_x64):
        analysis = Analysis(model, LIGHT, sound_horizon=horizon, priors={"Obh2": {"normal": [0.022, 0.001]}})
        params = {name: jnp.asarray(value) for name, value in at(analysis).items()}
        joint, trace = log_density(analysis.numpyro_model, (), {}, params)
        prior = sum(analysis.priors[name].log_prob(value) for name, value in params.items())
        chi2 = analysis.chi2(params)
        tolerance = 1e-12 if is_x64 else 1e-5
        assert float(joint - prior) == pytest.approx(float(analysis.log_likelihood(params)), rel=tolerance)
        assert float(analysis.log_likelihood(params)) == pytest.approx(
            -sum(map(float, chi2.values())) / 2, rel=tolerance
        )
        assert tuple(chi2) == LIGHT
        for name in LIGHT:
            assert float(trace[name]["fn"].log_factor) == pytest.approx(-float(chi2[name]) / 2, rel=tolerance)
        derived = {name for name, site in trace.items() if site["type"] == "deterministic"}
        assert derived == set(analysis.derived(params))


def test_compiles_once_and_maps(data_path):
    analysis = Analysis("oCPL", (*LIGHT, "pantheon_plus"), data_path=data_path)
    traces = 0

    @jax.jit
    def log_likelihood(params):
        nonlocal traces
        traces += 1
        return analysis.log_likelihood(params)

    values = [log_likelihood({**at(analysis), "Om": Om}) for Om in (0.3, 0.31)]
    assert traces == 1
    stacked = {name: jnp.full(2, value) for name, value in at(analysis).items()} | {
        "Om": jnp.array([0.3, 0.31])
    }
    np.testing.assert_allclose(jax.vmap(analysis.log_likelihood)(stacked), jnp.stack(values), rtol=1e-6)


def test_impossible_points_are_minus_infinity_with_finite_gradients():
    analysis = Analysis("oCPL", LIGHT)
    value, gradient = jax.value_and_grad(analysis.log_likelihood)({**at(analysis), "Om": -1.0})
    assert np.isneginf(value)
    assert all(np.isfinite(g) for g in gradient.values())


def _moments(analysis, grids):
    """Return the means and standard deviations on a grid of flat priors."""
    with jax.enable_x64(True):
        axes = np.meshgrid(*grids.values(), indexing="ij")
        flat = {name: jnp.asarray(axis.ravel()) for name, axis in zip(grids, axes, strict=True)}
        logs = np.asarray(jax.jit(jax.vmap(analysis.log_likelihood))(flat))
        weights = np.exp(logs - logs.max())
        weights /= weights.sum()
        means = {name: float(weights @ axis) for name, axis in flat.items()}
        return {name: (m, float(np.sqrt(weights @ (flat[name] - m) ** 2))) for name, m in means.items()}


def test_desi_alone_has_the_published_posterior():
    """DESI DR2 (arXiv:2503.14738): Om = 0.2975 +- 0.0086, h r_d = 101.54 +- 0.73 Mpc."""
    analysis = Analysis("LCDM", "desi_dr2", sound_horizon="free")
    moments = _moments(analysis, {"Om": np.linspace(0.25, 0.35, 101), "hrd": np.linspace(97, 106, 101)})
    assert moments["Om"] == pytest.approx((0.2975, 0.0086), abs=1e-4)
    assert moments["hrd"] == pytest.approx((101.54, 0.73), abs=1e-2)


def test_pantheon_alone_has_the_published_posterior(data_path):
    """Brout et al. (arXiv:2202.04077) have Om = 0.334 +- 0.018 with calibrators and lower redshifts."""
    analysis = Analysis("LCDM", "pantheon_plus", data_path=data_path)
    moments = _moments(analysis, {"Om": np.linspace(0.2, 0.5, 301)})
    assert moments["Om"] == pytest.approx((0.332, 0.018), abs=6e-4)


def test_parameters_describe_themselves():
    for name, parameter in (PARAMETERS | DERIVED).items():
        assert parameter.name == name
        assert parameter.label
        assert parameter.description
    assert PARAMETERS["Om"].prior.low == 0.1
    with pytest.raises(ValueError, match="rd is a derived parameter"):
        DERIVED["rd"].prior  # noqa: B018
    for model in MODELS.values():
        assert set(model.parameters) <= set(PARAMETERS)
        assert model.description
