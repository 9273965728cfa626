"""Dynesty through `qbs.fit` against evidences and posteriors in closed form, and on bad input."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import qbs
from qbs.inference.checkpoint import Keeper
from qbs.inference.nested import Dynesty
from qbs.inference.nested.problem import MAX_FIRST_DRAWS
from qbs.inference.problem import pose
from qbs.inference.progress import ProgressLine

FAST = Dynesty(num_live=200, dlogz=0.05)
COARSE = Dynesty(num_live=100, dlogz=0.2)


def normal_normal(y):
    theta = numpyro.sample("theta", dist.Normal(0, 2))
    numpyro.sample("y", dist.Normal(theta, 1), obs=y)


def linear_regression(x, y):
    slope = numpyro.sample("slope", dist.Normal(0, 1))
    intercept = numpyro.sample("intercept", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(intercept + slope * x, 0.5), obs=y)


def coin(flips):
    numpyro.sample("flips", dist.Bernoulli(numpyro.sample("p", dist.Beta(1, 1))), obs=flips)


def sprinkler(is_wet):
    rain = numpyro.sample("rain", dist.Bernoulli(0.3))
    sprinkler = numpyro.sample("sprinkler", dist.Bernoulli(jnp.where(rain == 1, 0.1, 0.4)))
    # The published table has P(wet | neither) = 0; jitter breaks the ties that nested sampling cannot rank.
    wet = jnp.array([[0.0, 0.9], [0.8, 0.98]])[rain, sprinkler]
    numpyro.factor("wet", jnp.log(jnp.where(is_wet, wet, 1 - wet)))


def autoregression(y, scan=scan):
    def step(previous, observed):
        state = numpyro.sample("state", dist.Normal(0.9 * previous, 1.0))
        numpyro.sample("y", dist.Normal(state, 0.5), obs=observed)
        return state, state

    scan(step, 0.0, y)


def scaled_and_masked(y):
    with numpyro.handlers.scale(scale=2.0):
        theta = numpyro.sample("theta", dist.Normal(0, 1))
    with numpyro.handlers.mask(mask=np.array([True, True, False])):
        numpyro.sample("y", dist.Normal(theta, 1), obs=y)


def _autoregression_log_evidence(y):
    """The joint Gaussian of the observations, written out."""
    n = len(y)
    state = np.zeros((n, n))
    for i, j in itertools.product(range(n), repeat=2):
        state[i, j] = sum(0.9 ** (i - k) * 0.9 ** (j - k) for k in range(min(i, j) + 1))
    return multivariate_normal(np.zeros(n), state + 0.25 * np.eye(n)).logpdf(y)


_X = np.linspace(-1, 1, 10)
_CASES = {
    "normal-normal": (normal_normal, (np.array([1, 2, 0.5]),), -4.779674893729401),
    "linear regression": (
        linear_regression,
        (_X, 1 + 2 * _X + 0.3 * np.sin(7 * np.arange(10))),
        -8.106275788340302,
    ),
    "coin": (coin, (np.array([1] * 7 + [0] * 3),), -7.185387015580417),
    "autoregression": (
        autoregression,
        (np.sin(np.arange(3.0)),),
        _autoregression_log_evidence(np.sin(np.arange(3.0))),
    ),
    "jax.lax.scan": (
        functools.partial(autoregression, scan=jax.lax.scan),
        (np.sin(np.arange(3.0)),),
        _autoregression_log_evidence(np.sin(np.arange(3.0))),
    ),
    # N(0,1)^2 N(1;.) N(2;.): complete the square of exp(-theta^2 - (1-theta)^2/2 - (2-theta)^2/2).
    "scale and mask": (
        scaled_and_masked,
        (np.array([1.0, 2.0, 50.0]),),
        -2 * math.log(2 * math.pi) + 0.5 * math.log(2 * math.pi / 4) - 2.5 + 9 / 8,
    ),
}


_FAST = ("normal-normal", "linear regression")


@pytest.mark.parametrize(
    "name", [name if name in _FAST else pytest.param(name, marks=pytest.mark.slow) for name in _CASES]
)
def test_evidence_in_closed_form(name, key):
    model, data, truth = _CASES[name]
    posterior = qbs.fit(model, *data, method=FAST, key=key)
    assert abs(posterior.log_evidence - truth) < 3 * posterior.log_evidence_error
    assert 0.01 < posterior.log_evidence_error < 0.3
    assert posterior.problems == []
    assert abs(posterior.weights.sum() - 1) < 1e-12


def test_posterior_moments_in_closed_form(key):
    posterior = qbs.fit(*_flat(_CASES["normal-normal"]), method=FAST, key=key)
    error = math.sqrt(0.3076923 / posterior.ess)
    assert abs(posterior.mean("theta") - 1.0769231) < 4 * error
    assert abs(posterior.sd("theta") ** 2 - 0.3076923) < 4 * 0.3076923 * math.sqrt(2 / posterior.ess)
    assert posterior.samples["theta"].dtype == np.float64
    theta = posterior.samples["theta"]
    expected = sum(-0.5 * (y - theta) ** 2 - 0.5 * math.log(2 * math.pi) for y in (1, 2, 0.5))
    np.testing.assert_allclose(posterior.stats["log_likelihood"], expected, atol=1e-9)


def _flat(case):
    model, data, _ = case
    return model, *data


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sd", "width", "dim"), [(1.0, 20.0, 2), (0.1, 2.0, 3), (1.0, 20.0, 5)], ids=["2", "3", "5"]
)
def test_gaussian_in_a_box(sd, width, dim, key):
    def model():
        x = numpyro.sample("x", dist.Uniform(-width / 2, width / 2).expand([dim]).to_event(1))
        numpyro.factor("peak", jnp.sum(dist.Normal(0, sd).log_prob(x)))

    posterior = qbs.fit(model, method=FAST, key=key)
    assert abs(posterior.log_evidence + dim * math.log(width)) < 3 * posterior.log_evidence_error
    assert posterior.samples["x"].shape[2:] == (dim,)


@pytest.mark.slow
def test_two_modes_far_apart_keep_their_weights(key):
    def log_likelihood(p):
        modes = jnp.log(jnp.array([0.25, 0.75])) + jnp.stack(
            [dist.Normal(m, 1).log_prob(p["x"]) + dist.Normal(0, 1).log_prob(p["y"]) for m in (-5.0, 5.0)]
        )
        return jax.nn.logsumexp(modes)

    target = qbs.Target(log_likelihood, {"x": dist.Uniform(-10, 10), "y": dist.Uniform(-10, 10)})
    posterior = qbs.fit(target, method=Dynesty(num_live=500, dlogz=0.05), key=key)
    assert abs(posterior.log_evidence + 2 * math.log(20)) < 3 * posterior.log_evidence_error
    right = float(posterior.weights[posterior.samples["x"] > 0].sum())
    # The split of 500 live points between the modes is binomial while they are drawn from the prior.
    assert abs(right - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 500) * 2


def test_likelihood_zero_on_half_the_prior(key):
    target = qbs.Target(
        lambda p: jnp.where(p["x"] > 0, -0.5 * (p["y"] / 0.1) ** 2, -jnp.inf),
        {"x": dist.Uniform(-1, 1), "y": dist.Uniform(-1, 1)},
    )
    posterior = qbs.fit(target, method=FAST, key=key)
    truth = math.log(0.5) + math.log(0.1 * math.sqrt(2 * math.pi) / 2)
    assert abs(posterior.log_evidence - truth) < 3 * posterior.log_evidence_error
    assert np.all(posterior.samples["x"] > 0)


def test_a_flat_likelihood_is_one_and_says_so(key):
    target = qbs.Target(lambda p: 0.0 * p["x"], {"x": dist.Uniform(0, 1)})
    posterior = qbs.fit(target, method=Dynesty(num_live=100), key=key)
    assert abs(posterior.log_evidence) < 2 / 100  # dynesty leaves out 1.5 of 101 shares of the prior
    assert any("plateau" in problem for problem in posterior.problems)


def test_discrete_sites_and_plateaus(key):
    posterior = qbs.fit(sprinkler, True, method=FAST, key=key)
    # On four plateaus of the likelihood dynesty's own error is not meaningful; the share of 200 draws is.
    spread = math.sqrt((1 / 0.4974 - 1) / 200)
    assert abs(posterior.log_evidence - math.log(0.4974)) < 4 * spread
    assert abs(posterior.mean("rain") - 0.49336550) < 4 * math.sqrt(0.25 / posterior.ess)
    assert posterior.samples["rain"].dtype.kind == "i"


@pytest.mark.slow
def test_ten_dimensions_use_a_random_walk(key):
    def model():
        x = numpyro.sample("x", dist.Normal(0, 1).expand([10]).to_event(1))
        numpyro.sample("y", dist.Normal(x, 1).to_event(1), obs=jnp.ones(10))

    posterior = qbs.fit(model, method=FAST, key=key)
    truth = 10 * (-0.5 * math.log(2 * math.pi * 2) - 0.25)
    assert abs(posterior.log_evidence - truth) < 3 * posterior.log_evidence_error


def _python_log_likelihood(p):
    return -0.5 * ((math.fsum([p["x"]]) - 1) / 0.1) ** 2 - math.log(0.1 * math.sqrt(2 * math.pi))


def test_black_box_and_traced_likelihood_agree_exactly(key):
    priors = {"x": dist.Uniform(-5, 5), "z": dist.Normal(0, 1)}

    def traced(p):
        return -0.5 * ((p["x"] - 1) / 0.1) ** 2 - math.log(0.1 * math.sqrt(2 * math.pi))

    def derived(p):
        return {"x_squared": p["x"] ** 2}

    assert pose(qbs.Target(_python_log_likelihood, priors), ()).black_box is not None
    assert pose(qbs.Target(traced, priors), ()).black_box is None
    python, jitted = (
        qbs.fit(qbs.Target(function, priors, derived=derived), method=COARSE, key=key)
        for function in (_python_log_likelihood, traced)
    )
    for posterior in (python, jitted):
        assert abs(posterior.log_evidence + math.log(10)) < 3 * posterior.log_evidence_error
        assert list(posterior.samples) == ["x", "z", "x_squared"]
        assert posterior.derived == ("x_squared",)
        np.testing.assert_allclose(posterior.samples["x_squared"], posterior.samples["x"] ** 2, rtol=1e-12)
    assert python.log_evidence == pytest.approx(jitted.log_evidence, abs=1e-6)


def test_batches_change_nothing_but_the_number_of_calls(key):
    """Uniform draws are used in turn whatever the batch, so the batch size is not a statistical setting."""
    truth = -4.779674893729401
    for batch_size in (1, 64):
        posterior = qbs.fit(
            *_flat(_CASES["normal-normal"]),
            method=Dynesty(num_live=100, dlogz=0.2, batch_size=batch_size),
            key=key,
        )
        assert abs(posterior.log_evidence - truth) < 3 * posterior.log_evidence_error


def test_same_key_same_result(key):
    first, again = (qbs.fit(*_flat(_CASES["coin"]), method=COARSE, key=key) for _ in range(2))
    assert first.log_evidence == again.log_evidence
    np.testing.assert_array_equal(first.samples["p"], again.samples["p"])


def test_new_data_of_the_same_shape_does_not_compile(key, compile_events):
    qbs.fit(normal_normal, np.array([1, 2, 0.5]), method=COARSE, key=key)
    with compile_events() as events:
        qbs.fit(normal_normal, np.array([0, 1, 0.5]), method=COARSE, key=key)
    assert events == []


@pytest.fixture
def few_draws(monkeypatch):
    """Give up soon where all draws from the prior are impossible."""
    for kind in (True, False):
        monkeypatch.setitem(MAX_FIRST_DRAWS, kind, 1000)


def _no_latents():
    numpyro.factor("f", 1.0)


def _improper():
    numpyro.sample("scale", dist.ImproperUniform(dist.constraints.positive, (), ()))


def _no_map():
    numpyro.sample("matrix", dist.LKJ(3, 1.0))


def _nan_somewhere():
    x = numpyro.sample("x", dist.Uniform(-1, 1))
    numpyro.factor("f", jnp.log(x))


def _impossible():
    x = numpyro.sample("x", dist.Uniform(-1, 1))
    numpyro.factor("f", jnp.where(x < 2, -jnp.inf, 0.0))


def _infinite():
    x = numpyro.sample("x", dist.Uniform(-1, 1))
    numpyro.factor("f", 1 / jnp.abs(x - x))


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (_no_latents, qbs.errors.ModelError, "no latent sites"),
        (_improper, qbs.errors.ModelError, "site 'scale': its prior is improper"),
        (_no_map, qbs.errors.ModelError, "site 'matrix': .*LKJ"),
        (_nan_somewhere, qbs.errors.LikelihoodError, "is nan at x = -"),
        (_impossible, qbs.errors.LikelihoodError, "-inf at all of"),
        (_infinite, qbs.errors.LikelihoodError, "is inf at x ="),
    ],
)
@pytest.mark.usefixtures("few_draws")
def test_bad_models_are_explained(model, error, words, key):
    with pytest.raises(error, match=words):
        qbs.fit(model, method=FAST, key=key)


def _raises_somewhere(p):
    if float(p["x"]) > 0.5:
        raise RuntimeError("the solver diverged")
    return 0.0


@pytest.mark.parametrize(
    ("log_likelihood", "words"),
    [
        (_raises_somewhere, "RuntimeError: the solver diverged; the parameters were x = 0."),
        (lambda p: math.nan if float(p["x"]) > 0.5 else 0.0, "it returned nan; the parameters were x = 0."),
        (lambda p: float("-inf") * (1 + float(p["x"])), "-inf at all of"),
        (lambda p: np.zeros(3) + float(p["x"]), r"array of shape \(3,\)"),
        (lambda p: p["y"], "KeyError: 'y'"),
        (lambda p: "much", "ValueError"),
        (lambda: 0.0, "TypeError"),
    ],
)
@pytest.mark.usefixtures("few_draws")
def test_bad_python_likelihoods_are_explained(log_likelihood, words, key):
    target = qbs.Target(log_likelihood, {"x": dist.Uniform(0, 1)})
    with pytest.raises(qbs.errors.LikelihoodError, match=words):
        qbs.fit(target, method=FAST, key=key)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_live": 0},
        {"dlogz": -1.0},
        {"batch_size": 0},
        {"bound": "best"},
        {"sample": "hmc"},
        {"max_calls": 0},
    ],
)
def test_bad_settings_name_themselves(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Dynesty(**settings)


def test_call_limit_is_a_problem(key):
    posterior = qbs.fit(*_flat(_CASES["normal-normal"]), method=Dynesty(num_live=200, max_calls=400), key=key)
    assert posterior.problems[0].startswith("Stopped by max_calls = 400 after")
    assert posterior.num_likelihood_calls < 800


class _InterruptingLine(ProgressLine):
    """Presses Ctrl-C at a given iteration."""

    def __init__(self, after):
        super().__init__("test", show=False)
        self._after = after

    @property
    def is_due(self):
        return True

    def update(self, status, fraction=None, remaining=None):
        if int(status.split()[0].replace(",", "")) >= self._after:
            raise KeyboardInterrupt


def test_interrupt_keeps_the_points_so_far(key):
    model, data, truth = _CASES["normal-normal"]
    with jax.enable_x64(True):
        posterior = FAST.run(pose(model, data), key, _InterruptingLine(300), Keeper())
    assert posterior.problems[0].startswith("Interrupted after 30")
    assert posterior.provenance["is_interrupted"]
    assert abs(posterior.log_evidence - truth) < 0.5  # the live points already cover the peak
    assert abs(logsumexp(posterior.log_weights)) < 1e-12


def test_interrupt_of_a_python_likelihood(key):
    calls = itertools.count()

    def log_likelihood(p):
        if next(calls) == 900:
            raise KeyboardInterrupt
        return -0.5 * ((float(p["x"]) - 0.5) / 0.01) ** 2

    target = qbs.Target(log_likelihood, {"x": dist.Uniform(0, 1)})
    posterior = qbs.fit(target, method=FAST, key=key)
    assert posterior.problems[0].startswith("Interrupted after")
    assert 800 <= posterior.num_likelihood_calls <= 900


@pytest.mark.parametrize("num_live", [50, 500])
@pytest.mark.usefixtures("few_draws")
def test_impossible_data_are_named(num_live, key):
    with pytest.raises(qbs.errors.LikelihoodError, match=r"-inf at all of .*data array 0 .* holds 1 NaN"):
        qbs.fit(normal_normal, np.array([1.0, np.nan]), method=Dynesty(num_live=num_live), key=key)


def test_too_few_live_points(key):
    with pytest.raises(ValueError, match="num_live is 2; in 1 dimensions it must be above 2"):
        qbs.fit(*_flat(_CASES["normal-normal"]), method=Dynesty(num_live=2), key=key)


def test_data_of_a_python_likelihood_are_on_record(key):
    def log_likelihood(p, y):
        return -0.5 * math.fsum((float(p["x"]) - value) ** 2 for value in y)

    target = qbs.Target(log_likelihood, {"x": dist.Normal(0, 1)})
    first, other = (
        qbs.fit(target, y, method=Dynesty(num_live=50, dlogz=1.0), key=key) for y in (np.zeros(2), np.ones(2))
    )
    assert first.provenance["data_sha256"] != other.provenance["data_sha256"]
    assert first.log_evidence != other.log_evidence
