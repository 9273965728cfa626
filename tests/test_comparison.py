"""Comparison of models: evidences, pointwise log likelihoods and PSIS-LOO, against closed forms."""

import dataclasses
import math
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats as st
from jax import lax
from numpyro.contrib.control_flow import scan

import qbs
from qbs.errors import LikelihoodError, MissingExtraError, ModelError
from qbs.inference.mcmc import NUTS
from qbs.inference.nested import Dynesty
from qbs.inference.results.provenance import data_fingerprint

SEED = 20240229
DATA = {"data_sha256": "a" * 64, "precision": "float64"}


def _fit(log_evidence=None, error=None, *, problems=(), **provenance):
    samples = {"x": np.zeros((1, 3))}
    return qbs.Posterior(samples, None, log_evidence, error, problems=list(problems), provenance=provenance)


def _fits(**evidences):
    return {name: _fit(*pair, **DATA) for name, pair in evidences.items()}


# Evidence


def test_two_models_in_closed_form():
    table = qbs.compare(_fits(worse=(-12.0, 0.3), better=(-10.5, 0.4)))
    assert list(table.rows) == ["better", "worse"]
    better, worse = table.rows.values()
    probability = 1 / (1 + math.exp(1.5))
    assert better["log_bayes_factor"] == better["log_bayes_factor_error"] == 0
    assert (worse["log_bayes_factor"], worse["log_bayes_factor_error"]) == pytest.approx((-1.5, 0.5))
    assert (worse["probability"], better["probability"]) == pytest.approx((probability, 1 - probability))
    slope = probability * (1 - probability)  # of the logistic function
    assert (worse["probability_error"], better["probability_error"]) == pytest.approx((slope * 0.5,) * 2)
    assert (worse["prior"], worse["strength"], better["strength"]) == (0.5, "positive", "")
    assert table.problems == []


def test_errors_of_probabilities_are_the_spread_over_repeated_runs():
    """Small errors, for which the first order is exact up to the error of the simulated spread."""
    rng = np.random.default_rng(SEED)
    log_evidences = np.array([-3.0, -2.0, -2.5, -6.0])
    errors = np.array([0.02, 0.01, 0.03, 0.02])
    weights = np.array([1.0, 2.0, 3.0, 4.0])
    count = 40_000
    drawn = weights * np.exp(log_evidences + errors * rng.normal(size=(count, 4)))
    drawn /= drawn.sum(1, keepdims=True)
    named = {f"m{i}": (z, e) for i, (z, e) in enumerate(zip(log_evidences, errors, strict=True))}
    table = qbs.compare(_fits(**named), prior=weights.tolist())
    found = [table.rows[name]["probability_error"] for name in named]
    # A standard deviation is known to 1 / sqrt(2 n); the second order adds about a part in a thousand.
    np.testing.assert_allclose(found, drawn.std(0), rtol=4 / np.sqrt(2 * count) + 2e-3)
    np.testing.assert_allclose([table.rows[n]["probability"] for n in named], drawn.mean(0), rtol=2e-3)


@pytest.mark.parametrize("prior", [{"b": 6.0, "a": 2.0}, [2.0, 6.0], (0.25, 0.75)])
def test_prior_weights(prior):
    rows = qbs.compare(_fits(a=(-1.0, 0.1), b=(-3.0, 0.1)), prior=prior).rows
    odds = math.exp(2.0) * 0.25 / 0.75
    assert (rows["a"]["prior"], rows["b"]["prior"]) == pytest.approx((0.25, 0.75))
    assert rows["a"]["probability"] == pytest.approx(odds / (1 + odds))
    assert rows["b"]["log_bayes_factor"] == pytest.approx(-2.0)


def test_extreme_evidences_do_not_overflow():
    rows = qbs.compare(_fits(a=(-1e6, 0.1), b=(-1e6 - 2000, 0.1), c=(5e5, 0.1))).rows
    assert list(rows) == ["c", "a", "b"]
    assert [row["probability"] for row in rows.values()] == [1, 0, 0]
    assert [row["probability_error"] for row in rows.values()] == [0, 0, 0]


@pytest.mark.parametrize(
    ("log_bayes_factor", "error", "words"),
    [
        (0.0, 0.0, "bare mention"),
        (-0.99, 0.1, "bare mention"),
        (-1.0, 0.1, "positive"),
        (-2.99, 0.1, "positive"),
        (-3.0, 0.1, "strong"),
        (-5.0, 0.1, "very strong"),
        (-1000.0, 0.1, "very strong"),
        (-0.1, 0.1, "undecided"),
        (-5.99, 3.0, "undecided"),
        (-6.0, 3.0, "very strong"),
    ],
)
def test_words_for_strength(log_bayes_factor, error, words):
    rows = qbs.compare(_fits(best=(0.0, 0.0), other=(log_bayes_factor, error))).rows
    assert rows["other"]["strength"] == words


def _normal_mean(y, scale=1.0):
    numpyro.sample("y", dist.Normal(numpyro.sample("mean", dist.Normal(0, scale)), 1.0), obs=y)


def test_nested_sampling_of_two_conjugate_models(key):
    """mean ~ N(0, t), y ~ N(mean, 1): the evidence is the density of y under N(0, 1 + t^2) of full rank."""
    y = np.random.default_rng(SEED).normal(0.8, 1.0, 12)
    fits, exact = {}, {}
    for scale, own in zip((0.5, 20.0), jax.random.split(key), strict=True):
        model = partial(_normal_mean, scale=scale)
        fits[f"prior of {scale}"] = qbs.fit(model, y, method=Dynesty(num_live=100), key=own, progress=False)
        covariance = np.eye(12) + scale**2
        exact[f"prior of {scale}"] = st.multivariate_normal(np.zeros(12), covariance).logpdf(y)
    table = qbs.compare(fits)
    best, other = sorted(exact, key=exact.get, reverse=True)
    row = table.rows[other]
    error = row["log_bayes_factor_error"]
    assert abs(row["log_bayes_factor"] - (exact[other] - exact[best])) < 4 * error
    assert error < 0.5
    assert row["strength"] in ("positive", "strong")  # 2.7 in truth
    assert not table.problems


# Fits that tell too little


def test_a_fit_without_evidence_has_empty_cells():
    fits = _fits(a=(-1.0, 0.1), b=(-2.0, 0.1), c=())
    fits["c"].provenance["method"] = "NUTS"
    table = qbs.compare(fits)
    assert list(table.rows) == ["a", "b", "c"]
    assert table.problems == ["'c' has no evidence: NUTS gives none. Its cells are empty."]
    row = table.rows["c"]
    assert row.pop("strength") == ""
    assert row.pop("prior") == pytest.approx(1 / 3)
    assert np.all(np.isnan(list(row.values())))
    assert table.rows["a"]["probability"] + table.rows["b"]["probability"] == pytest.approx(1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_evidence_that_is_not_finite_counts_as_none(value):
    table = qbs.compare(_fits(a=(-1.0, 0.1), b=(value, 0.1)))
    assert table.problems == [
        f"'b' has no evidence: its log evidence is {value}. Its cells are empty.",
        "Only one model has an evidence: there is none to compare it with.",
    ]
    assert math.isnan(table.rows["a"]["probability"])
    assert math.isnan(table.rows["b"]["log_bayes_factor"])


@pytest.mark.parametrize("error", [None, math.nan, math.inf, -0.1])
def test_an_evidence_without_its_error(error):
    table = qbs.compare(_fits(a=(-1.0, 0.1), b=(-6.0, error), c=(-2.0, 0.1)))
    assert table.problems == ["'b' gives no error of its log evidence: what follows from that is missing."]
    assert table.rows["b"]["strength"] == ""
    assert table.rows["c"]["strength"] == "positive"
    assert math.isnan(table.rows["b"]["log_bayes_factor_error"])
    assert math.isnan(table.rows["a"]["probability_error"])
    assert table.rows["a"]["probability"] > 0.5
    assert "-5.000 │" in repr(table)


def test_problems_of_the_fits_are_listed_by_name():
    fits = _fits(a=(-1.0, 0.1), b=(-2.0, 0.1))
    fits["b"] = _fit(-2.0, 0.1, problems=["One.", "Two."], **DATA)
    assert qbs.compare(fits).problems == ["b: One.", "b: Two."]


def test_no_evidence_anywhere():
    fits = _fits(a=(), b=(math.nan, 0.1))
    with pytest.raises(
        ValueError, match=r"none of the fits.*'a': the fit gives none; 'b': .*nan.*or give loo="
    ):
        qbs.compare(fits)


# The same data


def test_different_data_is_refused_unless_the_caller_vouches_for_it():
    fits = _fits(a=(-1.0, 0.1), b=(-2.0, 0.1), c=(-3.0, 0.1))
    fits["c"].provenance["data_sha256"] = "c" * 64
    with pytest.raises(ValueError, match=r"'a' and 'c' were fitted to different data.*check_data=False"):
        qbs.compare(fits)
    table = qbs.compare(fits, check_data=False)
    assert table.problems == [
        "'a', 'b' and 'c' were given different arrays, and check_data=False says that their observations are "
        "the same."
    ]


def test_fingerprints_of_different_precisions_prove_nothing():
    fits = _fits(a=(-1.0, 0.1), b=(-2.0, 0.1))
    fits["b"].provenance.update(data_sha256="b" * 64, precision="float32")
    (problem,) = qbs.compare(fits).problems
    assert problem.startswith("'a' and 'b' ran in different precisions")
    assert qbs.compare(fits, check_data=False).rows
    fits["b"].provenance["data_sha256"] = "a" * 64  # integers have the same bytes in both
    assert qbs.compare(fits).problems == []


def test_unknown_data():
    fits = {"a": _fit(-1.0, 0.1, data_sha256=""), "b": _fit(-2.0, 0.1), "c": _fit(-3.0, 0.1, **DATA)}
    (problem,) = qbs.compare(fits).problems
    assert problem.startswith("There is no fingerprint of the data of 'a' and 'b'")
    assert qbs.compare(fits, check_data=False).problems == []


# Names and wrong inputs


def test_a_list_is_named_by_its_models():
    table = qbs.compare([_fit(-2.0, 0.1, model="line", **DATA), _fit(-1.0, 0.1, **DATA)])
    assert list(table.rows) == ["model 2", "line"]


@pytest.mark.parametrize(
    ("fits", "settings", "words"),
    [
        ([], {}, "at least two fits, not 0"),
        ({}, {}, "at least two fits, not 0"),
        ([_fit(-1.0, 0.1)], {}, "at least two fits, not 1"),
        ([_fit(-1.0, 0.1, model="m"), _fit(-2.0, 0.1, model="m")], {}, "named 'm': give a mapping"),
        (_fits(a=(1.0, 0.1), b=(2.0, 0.1)), {"prior": {"a": 1.0}}, "prior lacks the weight of 'b'"),
        (_fits(a=(1.0, 0.1), b=(2.0, 0.1)), {"prior": {"a": 1.0, "z": 1.0}}, r"prior names \['z'\]"),
        (_fits(a=(1.0, 0.1), b=(2.0, 0.1)), {"prior": [1.0]}, "prior has 1 members, and there are 2 fits"),
        (
            _fits(a=(1.0, 0.1), b=(2.0, 0.1)),
            {"prior": [1.0, 0.0]},
            "positive numbers, and that of 'b' is 0.0",
        ),
        (_fits(a=(1.0, 0.1), b=(2.0, 0.1)), {"prior": [math.nan, 1.0]}, "that of 'a' is nan"),
        (_fits(a=(1.0, 0.1), b=(2.0, 0.1)), {"prior": [1.0, math.inf]}, "that of 'b' is inf"),
        (_fits(a=(1.0, 0.1), b=(2.0, 0.1)), {"loo": {}}, "loo is empty"),
        (_fits(a=(1.0, 0.1), b=(2.0, 0.1)), {"loo": {"z": None}}, r"loo names \['z'\]"),
    ],
)
def test_wrong_inputs_are_explained(fits, settings, words):
    with pytest.raises(ValueError, match=words):
        qbs.compare(fits, **settings)


_SCRIPT = """
import numpy as np, numpyro.distributions as dist, qbs
target = qbs.Target(lambda p: -p["x"], {"x": dist.Normal(0, 1)}, name="cost")
fit = qbs.Posterior({"x": np.zeros((1, 3))}, None, -1.0, 0.1)
many = qbs.Posterior({"x": np.zeros((1, 200))})
cases = [
    (lambda: qbs.compare(fit), TypeError, "list of qbs.Posterior"),
    (lambda: qbs.compare(3), TypeError, "not int"),
    (lambda: qbs.compare([fit, "fit"]), TypeError, "'model 2' there is a str"),
    (lambda: qbs.compare({1: fit, 2: fit}), TypeError, "at 1"),
    (lambda: qbs.compare({"a": fit, "b": None}), TypeError, "'b' there is a NoneType"),
    (lambda: qbs.compare({"a": fit, "b": fit}, loo={"a": 3}), TypeError, "what qbs.loo returned, not int"),
    (lambda: qbs.loo(many, target), qbs.errors.ModelError, "'cost' is one"),
    (lambda: qbs.log_likelihood(fit, "model"), qbs.errors.ModelError, "a function), not str"),
]
for call, error, words in cases:
    try:
        call()
    except error as caught:
        assert words in str(caught), (words, str(caught))
        print("ok")
    else:
        raise AssertionError(words)
"""


def test_wrong_types_are_explained():
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["ok"] * _SCRIPT.count("    (lambda")


# The printed form


def test_repr_is_a_table_with_the_best_first():
    fits = _fits(a=(-1234.5678, 0.1), b=(-1230.25, 0.1), c=(-1260.0, 0.1))
    fits["d[red]"] = _fit(problems=["word " * 60], **DATA)
    text = repr(qbs.compare(fits))
    lines = [line for line in text.splitlines() if line.startswith("│")]
    assert [line.split("│")[1].strip() for line in lines] == ["b", "a", "c", "d[red]"]
    cells = [cell.strip() for cell in lines[1].split("│")[2:-1]]
    assert cells == ["-1234.568 +- 0.100", "-4.318 +- 0.141", "0.013 +- 0.002", "strong"]
    assert [cell.strip() for cell in lines[0].split("│")[3:-1]] == ["0", "0.987 +- 0.002", "-"]
    assert "1.2e-13 +- 1.7e-14" in lines[2]
    assert [cell.strip() for cell in lines[3].split("│")[2:-1]] == ["-"] * 4
    assert "! 'd[red]' has no evidence" in text
    assert text.count("word") == 60
    assert max(map(len, text.splitlines())) <= 120
    assert "\x1b" not in text
    assert repr(qbs.compare(_fits(a=(1.0, 0.1), b=(2.0, 0.1)))).endswith("no problems found")


def test_frame_and_html():
    table = qbs.compare(_fits(a=(-2.0, 0.1), b=(-1.0, 0.1), c=()))
    frame = table.frame
    assert list(frame.index) == ["b", "a", "c"]
    assert frame.loc["a", "log_bayes_factor"] == -1
    assert frame["probability"].sum() == pytest.approx(1)
    assert np.isnan(frame.loc["c", "probability"])
    html = table._repr_html_()
    assert "log_bayes_factor" in html
    assert "0.7311" in html
    with pytest.raises(dataclasses.FrozenInstanceError):
        table.rows = {}


def test_plot(tmp_path, monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    table = qbs.compare(_fits(a=(-2.0, 0.1), b=(-1.0, 0.2), c=(), d=(-1.5, None)))
    axes = table.plot()
    (bars,) = axes.containers
    np.testing.assert_array_equal(bars[0].get_xdata(), [-1.0, -1.5, -2.0])
    ends = [segment[:, 0] for segment in bars[2][0].get_segments()]
    np.testing.assert_allclose(ends, [[-1.2, -0.8], [-1.5, -1.5], [-2.1, -1.9]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "d", "a"]
    assert axes.get_xlabel() == "log evidence [nats]"
    axes.figure.savefig(tmp_path / "evidences.png", dpi=80)
    assert (tmp_path / "evidences.png").stat().st_size > 5_000
    assert table.plot(axes) is axes
    pyplot.close("all")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match="qbs-jax\\[plots\\]"):
        table.plot()


# Pointwise log likelihoods


def _draws(num_chains=2, num_draws=60, **extra):
    rng = np.random.default_rng(SEED)
    samples = {
        "mean": rng.normal(size=(num_chains, num_draws)),
        "noise": rng.gamma(4.0, 0.25, (num_chains, num_draws)),
    }
    return qbs.Posterior(samples, **extra)


Y = np.random.default_rng(1).normal(size=5)
Z = np.random.default_rng(2).poisson(2.0, (2, 3))


def _parameters():
    mean = numpyro.sample("mean", dist.Normal(0, 1))
    return mean, numpyro.sample("noise", dist.Gamma(4.0, 4.0))


def _two_sites(y, z, mask):
    mean, noise = _parameters()
    numpyro.deterministic("double", 2 * mean)
    with numpyro.plate("n", len(y)), numpyro.handlers.mask(mask=mask):
        numpyro.sample("y", dist.Normal(mean, noise), obs=y)
    columns, rows = numpyro.plate("columns", 3, dim=-1), numpyro.plate("rows", 2, dim=-2)
    with columns, rows, numpyro.handlers.scale(scale=0.5):
        numpyro.sample("z", dist.Poisson(noise), obs=z)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_plates_masks_and_scales_against_scipy(dtype):
    posterior = _draws()
    posterior = qbs.Posterior({name: v.astype(dtype) for name, v in posterior.samples.items()})
    mask = np.array([True, False, True, True, True])
    found = qbs.log_likelihood(posterior, _two_sites, Y, Z, model_kwargs={"mask": mask})
    assert list(found) == ["y", "z"]
    assert found["y"].dtype == found["z"].dtype == dtype
    mean, noise = (posterior.samples[name].astype(float) for name in ("mean", "noise"))
    rtol = 1e-10 if dtype == np.float64 else 3e-5
    expected = st.norm.logpdf(Y, mean[..., None], noise[..., None]) * mask
    np.testing.assert_allclose(found["y"], expected, rtol=rtol, atol=rtol)
    expected = 0.5 * st.poisson.logpmf(Z, noise[..., None, None])
    np.testing.assert_allclose(found["z"], expected, rtol=rtol, atol=rtol)


def test_the_sum_is_the_log_likelihood_of_the_fit(key):
    method = NUTS(num_chains=2, num_warmup=30, num_draws=40)
    mask = np.array([True, False, True, True, True])
    fit = qbs.fit(_two_sites, Y, Z, mask, method=method, key=key, progress=False)
    found = qbs.log_likelihood(fit, _two_sites, Y, Z, mask)
    total = found["y"].sum(-1) + found["z"].sum((-2, -1))
    np.testing.assert_allclose(total, fit.stats["log_likelihood"], rtol=2e-5)


def test_loops_batches_branches_and_events():
    def model(y):
        mean, noise = _parameters()

        def step(level, own):
            numpyro.sample("scanned", dist.Normal(level, noise), obs=own)
            return level + 1.0, None

        def numpyro_step(level, own):
            with numpyro.plate("pair", 2):
                numpyro.sample("stepped", dist.Normal(level, noise), obs=own)
            return level + 1.0, None

        lax.scan(step, mean, y)
        scan(numpyro_step, mean, jnp.stack([y, -y], -1))
        jax.vmap(lambda own: numpyro.sample("mapped", dist.Normal(mean, noise), obs=own))(y)
        lax.cond(
            mean > 0,
            lambda: numpyro.sample("branch", dist.Normal(mean, 1.0), obs=1.0),
            lambda: mean,
        )
        numpyro.sample("event", dist.Normal(mean, noise).expand((5,)).to_event(1), obs=y)
        numpyro.sample("one", dist.Normal(mean, noise), obs=0.5)

    posterior = _draws()
    mean, noise = (posterior.samples[name] for name in ("mean", "noise"))
    found = qbs.log_likelihood(posterior, model, Y)
    levels = mean[..., None] + np.arange(5)
    plain = st.norm.logpdf(Y, mean[..., None], noise[..., None])
    expected = {
        "scanned": st.norm.logpdf(Y, levels, noise[..., None]),
        "stepped": st.norm.logpdf(np.stack([Y, -Y], -1), levels[..., None], noise[..., None, None]),
        "mapped": plain,
        "branch": np.where(mean > 0, st.norm.logpdf(1.0, mean, 1.0), 0.0),
        "event": plain.sum(-1),
        "one": st.norm.logpdf(0.5, mean, noise),
    }
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-9, atol=1e-12, err_msg=name)
    as_program = qbs.log_likelihood(posterior, qbs.reify(model), Y)
    np.testing.assert_array_equal(as_program["stepped"], found["stepped"])


def test_new_data_and_missing_observations():
    """Held-out data has a density; where `obs_mask` leaves values out they are latent and not scored."""

    def model(y, is_seen=True):
        mean, noise = _parameters()
        numpyro.sample("y", dist.Normal(mean, noise).expand((5,)), obs=y, obs_mask=is_seen)

    is_seen = np.array([True, True, False, True, True])
    posterior = _draws()
    posterior.samples["y_unobserved"] = np.zeros((2, 60, 5))
    found = qbs.log_likelihood(posterior, model, Y + 1, is_seen)
    mean, noise = (posterior.samples[name][..., None] for name in ("mean", "noise"))
    np.testing.assert_allclose(found["y_observed"], st.norm.logpdf(Y + 1, mean, noise) * is_seen, rtol=1e-10)


def test_weighted_draws_stay_as_they_are():
    posterior = _draws(log_weights=np.linspace(-3, 0, 120).reshape(2, 60))
    found = qbs.log_likelihood(posterior, _two_sites, Y, Z, True)
    plain = qbs.log_likelihood(_draws(), _two_sites, Y, Z, True)
    np.testing.assert_array_equal(found["y"], plain["y"])


def test_values_that_handlers_give_are_no_observations():
    posterior = qbs.Posterior({"mean": _draws().samples["mean"]})
    model = numpyro.handlers.substitute(_two_sites, {"noise": 0.7})
    found = qbs.log_likelihood(posterior, model, Y, Z, True)
    assert list(found) == ["y", "z"]
    expected = st.norm.logpdf(Y, posterior.samples["mean"][..., None], 0.7)
    np.testing.assert_allclose(found["y"], expected, rtol=1e-6)


def test_captured_data_is_read_anew():
    y = Y.copy()

    def model():
        mean, noise = _parameters()
        numpyro.sample("y", dist.Normal(mean, noise), obs=y)

    first = qbs.log_likelihood(_draws(), model)["y"]
    y += 1
    second = qbs.log_likelihood(_draws(), model)["y"]
    mean, noise = (_draws().samples[name][..., None] for name in ("mean", "noise"))
    np.testing.assert_allclose(first, st.norm.logpdf(Y, mean, noise), rtol=1e-10)
    np.testing.assert_allclose(second, st.norm.logpdf(Y + 1, mean, noise), rtol=1e-10)


def test_other_values_do_not_compile_again(compile_events):
    def evaluate(shift):
        posterior = _draws()
        posterior.samples["mean"] += shift
        return qbs.log_likelihood(posterior, _two_sites, Y + shift, Z, True)["y"]

    first = evaluate(0.0)
    with compile_events() as events:
        second = evaluate(0.5)
    assert events == []
    np.testing.assert_allclose(first, second, rtol=1e-9)  # both are shifted


def _with_factor(y):
    mean, noise = _parameters()
    numpyro.factor("penalty", -(mean**2))
    numpyro.sample("y", dist.Normal(mean, noise), obs=y)


def _with_score(y):
    mean, noise = _parameters()
    numpyro.sample("y", dist.Normal(mean, noise), obs=y)
    qbs.score(-(mean**2), name="weight")


def _conditioned(y):
    mean = numpyro.sample("mean", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@pytest.mark.parametrize(
    ("model", "data", "words"),
    [
        (_with_factor, (Y,), r"'penalty' in '_with_factor' is a factor.*block\(model, hide=\['penalty'\]\)"),
        (_with_score, (Y,), "'weight' in '_with_score' is a factor or a score"),
        (lambda: _parameters(), (), "observes nothing"),
        (_two_sites, (None, Z, True), r"cannot be run|lacks"),
        (_conditioned, (Y,), r"the posterior has \['noise'\], which are no latent sites"),
        (lambda y: numpyro.sample("y", dist.Normal(0, 1), obs=y), (Y,), "no latent sites"),
        (
            lambda y: numpyro.sample("y", dist.Normal(numpyro.sample("other", dist.Normal(0, 1)), 1), obs=y),
            (Y,),
            r"latent sites \['other'\], which the posterior lacks",
        ),
    ],
)
def test_models_without_pointwise_values_are_refused(model, data, words):
    with pytest.raises(ModelError, match=words):
        qbs.log_likelihood(_draws(), model, *data)


def test_a_factor_of_the_prior_can_be_hidden():
    model = numpyro.handlers.block(_with_factor, hide=["penalty"])
    found = qbs.log_likelihood(_draws(), model, Y)
    mean, noise = (_draws().samples[name][..., None] for name in ("mean", "noise"))
    np.testing.assert_allclose(found["y"], st.norm.logpdf(Y, mean, noise), rtol=1e-10)


def test_nan_and_shapes_are_refused():
    def model(x, y):
        mean, noise = _parameters()
        numpyro.sample("y", dist.Normal(mean + x, noise), obs=y)

    x = np.where(np.arange(5) == 2, np.nan, 0.0)
    with pytest.raises(LikelihoodError, match=r"120 of 600 log likelihoods of site 'y' are NaN"):
        qbs.log_likelihood(_draws(), model, x, Y)
    posterior = _draws()
    posterior.samples["mean"] = np.zeros((2, 60, 3))
    with pytest.raises(ValueError, match="'mean' has shape"):
        qbs.log_likelihood(posterior, _two_sites, Y, Z, True)


# Leave-one-out prediction

NOISE, WIDTH = 1.3, 2.0


def _conjugate(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, WIDTH))
    numpyro.sample("y", dist.Normal(mean, NOISE), obs=y)


def _law(y):
    """The posterior of the mean of observations of known noise."""
    precision = 1 / WIDTH**2 + len(y) / NOISE**2
    return st.norm(np.sum(y) / NOISE**2 / precision, precision**-0.5)


def _exact(y):
    """The log density of each observation given the others."""
    found = []
    for i in range(len(y)):
        rest = _law(np.delete(y, i))
        found.append(st.norm(rest.mean(), np.hypot(rest.std(), NOISE)).logpdf(y[i]))
    return np.array(found)


def _error_of_elpd(y, mean):
    """Standard error of the sum over observations of -log mean(1 / p), by the delta method over draws."""
    ratios = np.exp(-st.norm.logpdf(y, mean.ravel()[:, None], NOISE))
    return np.std(np.sum(ratios / ratios.mean(0), axis=1)) / np.sqrt(mean.size)


OBSERVED = np.random.default_rng(3).normal(0.5, NOISE, 30)


def _conjugate_fit(y, num_draws=2000, seed=SEED):
    draws = _law(y).rvs((4, num_draws), random_state=seed)
    return qbs.Posterior({"mean": draws})


def test_loo_of_a_conjugate_normal_is_exact():
    posterior = _conjugate_fit(OBSERVED)
    score = qbs.loo(posterior, _conjugate, OBSERVED)
    exact, error = _exact(OBSERVED), _error_of_elpd(OBSERVED, posterior.samples["mean"])
    assert abs(score.elpd - exact.sum()) < 4 * error
    assert error < 0.02
    np.testing.assert_allclose(score.elpd_i, exact, atol=4 * error)
    assert score.se == pytest.approx(np.sqrt(30) * exact.std(), rel=0.02)
    assert list(score.elpd_i.coords["observation"].values[:2]) == ["y[0]", "y[1]"]
    assert (score.n_samples, score.n_data_points) == (8000, 30)
    assert np.all(score.pareto_k < score.good_k)
    # p_loo is the log density of the data within the fit less that left out: both are in closed form.
    law = _law(OBSERVED)
    within = st.norm(law.mean(), np.hypot(law.std(), NOISE)).logpdf(OBSERVED)
    assert score.p == pytest.approx(within.sum() - exact.sum(), abs=4 * error)


def test_loo_of_weighted_draws():
    """Draws of twice the width, weighted to the posterior, as nested sampling weighs its draws."""
    law = _law(OBSERVED)
    wide = st.norm(law.mean(), 2 * law.std())
    draws = wide.rvs((1, 20_000), random_state=SEED)
    posterior = qbs.Posterior({"mean": draws}, law.logpdf(draws) - wide.logpdf(draws))
    score = qbs.loo(posterior, _conjugate, OBSERVED)
    assert score.n_samples == int(posterior.ess)
    error = _error_of_elpd(OBSERVED, posterior.resample()["mean"])
    assert abs(score.elpd - _exact(OBSERVED).sum()) < 4 * error


def test_loo_is_that_of_arviz():
    """On a data tree made by hand, of correlated chains."""
    import arviz_stats
    from arviz_base import from_dict

    rng = np.random.default_rng(SEED)
    steps = rng.normal(size=(4, 500))
    for i in range(1, 500):
        steps[:, i] += 0.7 * steps[:, i - 1]
    law = _law(OBSERVED)
    mean = law.mean() + law.std() * steps * np.sqrt(1 - 0.7**2)
    score = qbs.loo(qbs.Posterior({"mean": mean}), _conjugate, OBSERVED)
    density = st.norm.logpdf(OBSERVED, mean[..., None], NOISE)
    tree = from_dict({"posterior": {"mean": mean}, "log_likelihood": {"y": density}})
    expected = arviz_stats.loo(tree, pointwise=True)
    assert (score.elpd, score.se, score.p) == pytest.approx(
        (expected.elpd, expected.se, expected.p), rel=1e-9
    )
    np.testing.assert_allclose(score.pareto_k, expected.pareto_k, rtol=1e-6)


def test_loo_of_several_sites_and_of_masked_observations():
    def model(y, z):
        mean = numpyro.sample("mean", dist.Normal(0.0, WIDTH))
        seen = jnp.isfinite(y)
        with numpyro.handlers.mask(mask=seen):
            numpyro.sample("y", dist.Normal(mean, NOISE), obs=jnp.where(seen, y, 0.0))
        numpyro.sample("z", dist.Normal(mean, NOISE), obs=z)

    y, z = OBSERVED[:20].copy(), OBSERVED[20:].reshape(5, 2)
    y[3] = np.nan
    left = np.delete(OBSERVED, 3)
    posterior = _conjugate_fit(left)
    both = qbs.loo(posterior, model, y, z)
    labels = list(both.elpd_i.coords["observation"].values)
    assert both.n_data_points == 29
    assert labels[2:4] == ["y[2]", "y[4]"]
    assert labels[-1] == "z[4,1]"
    expected = qbs.loo(posterior, _conjugate, left)
    np.testing.assert_allclose(both.elpd_i, expected.elpd_i, rtol=1e-6)
    only = qbs.loo(posterior, model, y, z, site="z")
    np.testing.assert_allclose(only.elpd_i, expected.elpd_i[19:], rtol=1e-6)
    with pytest.raises(ValueError, match="site must be an observed site, 'y', 'z', not 'mean'"):
        qbs.loo(posterior, model, y, z, site="mean")


def test_loo_needs_the_data_of_the_fit():
    posterior = _conjugate_fit(OBSERVED)
    posterior.provenance["data_sha256"] = data_fingerprint((OBSERVED,))
    assert qbs.loo(posterior, _conjugate, OBSERVED).n_data_points == 30
    with pytest.raises(ValueError, match=r"was not fitted to this data.*'_conjugate' differ"):
        qbs.loo(posterior, _conjugate, OBSERVED + 1)


@pytest.mark.parametrize("precision", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_loo_of_a_fit(precision, key):
    """The fingerprint is found again in the precision of the fit, float32 or float64."""
    fit = qbs.fit(
        _conjugate,
        OBSERVED,
        method=NUTS(num_chains=2, num_warmup=100, num_draws=200),
        key=key,
        progress=False,
        precision=precision,
    )
    score = qbs.loo(fit, _conjugate, OBSERVED)
    error = _error_of_elpd(OBSERVED, fit.samples["mean"].astype(float))
    # Correlated draws: the effective size is at least a quarter of their number.
    assert abs(score.elpd - _exact(OBSERVED).sum()) < 4 * 2 * error


def test_what_loo_refuses():
    with pytest.raises(ValueError, match="loo needs 100 draws of equal weight; the posterior is worth 99"):
        qbs.loo(qbs.Posterior({"mean": np.zeros((1, 99))}), _conjugate, OBSERVED)

    def event(y):
        mean = numpyro.sample("mean", dist.Normal(0.0, WIDTH))
        numpyro.sample("y", dist.Normal(mean, NOISE).expand((30,)).to_event(1), obs=y)

    with pytest.raises(ValueError, match="'event' has 1; the numbers within one event"):
        qbs.loo(_conjugate_fit(OBSERVED, 50), event, OBSERVED)

    def bounded(y):
        mean = numpyro.sample("mean", dist.Normal(0.0, WIDTH))
        numpyro.sample("y", dist.Uniform(mean, mean + 20.0, validate_args=True), obs=y)

    with pytest.raises(LikelihoodError, match=r"the observation y\[\d+\] of 'bounded' has an infinite"):
        qbs.loo(_conjugate_fit(OBSERVED, 50), bounded, OBSERVED)


# Comparison by leave-one-out prediction


def _scores(num_draws=500):
    """Two fits of the same data, the second with one observation far from all others."""

    def centred(y):
        mean = numpyro.sample("mean", dist.Normal(0.0, WIDTH))
        numpyro.sample("y", dist.Normal(mean + 1.0, NOISE), obs=y)

    fits = {"right": _conjugate_fit(OBSERVED, num_draws), "wrong": _conjugate_fit(OBSERVED, num_draws)}
    models = {"right": _conjugate, "wrong": centred}
    return fits, {name: qbs.loo(fits[name], models[name], OBSERVED) for name in fits}


def test_columns_of_loo():
    fits, scores = _scores()
    table = qbs.compare(fits, loo=scores, check_data=False)
    assert table.problems == []
    assert list(table.rows["right"]) == ["elpd_loo", "se", "elpd_diff", "dse", "p_loo", "num_bad_k"]
    difference = np.asarray(scores["wrong"].elpd_i - scores["right"].elpd_i)
    right, wrong = table.rows["right"], table.rows["wrong"]
    assert list(table.rows) == ["right", "wrong"]
    assert wrong["elpd_diff"] == pytest.approx(difference.sum())
    assert wrong["dse"] == pytest.approx(np.sqrt(30) * difference.std())
    assert (right["elpd_diff"], right["dse"]) == (0, 0)
    assert (right["elpd_loo"], right["se"], right["p_loo"]) == (
        scores["right"].elpd,
        scores["right"].se,
        scores["right"].p,
    )
    assert right["num_bad_k"] == 0
    assert repr(table).startswith("Models by leave-one-out prediction")
    assert qbs.compare(fits, loo=list(scores.values()), check_data=False).rows == table.rows


def test_evidence_and_loo_together_each_best_first():
    fits, scores = _scores()
    fits["right"] = dataclasses.replace(fits["right"], log_evidence=-60.0, log_evidence_error=0.1)
    fits["wrong"] = dataclasses.replace(fits["wrong"], log_evidence=-50.0, log_evidence_error=0.1)
    table = qbs.compare(fits, loo=scores, check_data=False)
    assert list(table.rows) == ["wrong", "right"]
    assert table.frame.shape == (2, 14)
    text = repr(table)
    names = [line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│")]
    assert names == ["wrong", "right", "right", "wrong"]
    assert max(map(len, text.splitlines())) <= 120


def test_loo_of_some_models_only():
    fits, scores = _scores()
    table = qbs.compare(fits, loo={"wrong": scores["wrong"]}, check_data=False)
    assert table.problems == ["loo was not given for 'right': the cells are empty."]
    assert list(table.rows) == ["wrong", "right"]
    assert table.rows["wrong"]["elpd_diff"] == 0
    assert np.all(np.isnan(list(table.rows["right"].values())))
    assert "-" in repr(table)
    pytest.importorskip("matplotlib")
    axes = table.plot()
    assert axes.get_xlabel() == "elpd_loo [nats]"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["wrong"]


def test_bad_pareto_k_is_a_problem():
    y = np.append(OBSERVED, 40.0)
    fits = {"narrow": _conjugate_fit(y, 500), "other": _conjugate_fit(y, 500, seed=1)}
    scores = {}
    for name, fit in fits.items():
        with pytest.warns(UserWarning, match="shape parameter of Pareto"):
            scores[name] = qbs.loo(fit, _conjugate, y)
    table = qbs.compare(fits, loo=scores, check_data=False)
    assert table.rows["narrow"]["num_bad_k"] == int(
        np.sum(scores["narrow"].pareto_k > scores["narrow"].good_k)
    )
    assert table.rows["narrow"]["num_bad_k"] >= 1
    assert any(p.startswith("narrow: the Pareto k of 1 of 31 observations is above") for p in table.problems)


def test_loo_that_cannot_be_compared():
    fits, scores = _scores(200)
    for change, words in (
        ({"elpd_i": None}, "loo of 'wrong' must be PSIS-LOO with values for each observation"),
        ({"kind": "loo_kfold"}, "loo of 'wrong' must be PSIS-LOO"),
        ({"n_data_points": 29}, "different numbers of observations, {'right': 30, 'wrong': 29}"),
    ):
        changed = scores | {"wrong": dataclasses.replace(scores["wrong"], **change)}
        with pytest.raises(ValueError, match=words):
            qbs.compare(fits, loo=changed, check_data=False)
