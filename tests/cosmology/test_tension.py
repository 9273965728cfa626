"""Tension between data sets, against the closed forms for Gaussian likelihoods in a wide prior."""

import json
import math

import numpy as np
import pytest
import scipy.stats as st
from typer.testing import CliRunner

import qbs
from qbs.cli import app
from qbs.inference.results.summary import render
from qbs.models.cosmology import Analysis
from qbs.models.cosmology.results import ModelResult
from qbs.models.cosmology.tensions import Comparison, _Moments, tension, tension_table

SEED = 20240229
WIDTH = 40.0  # of the uniform prior of each parameter: far wider than every posterior
NAMES = ("x", "y", "z")


class Gaussian:
    """A likelihood exp(-(t - mean)^T precision (t - mean) / 2 + peak) within a box."""

    def __init__(self, mean, covariance, peak=0.0):
        self.mean, self.covariance, self.peak = np.asarray(mean), np.asarray(covariance), peak

    @property
    def dim(self):
        return len(self.mean)

    def log_likelihood(self, points):
        deviations = points - self.mean
        return self.peak - 0.5 * np.einsum(
            "ni,ij,nj->n", deviations, np.linalg.inv(self.covariance), deviations
        )

    def log_evidence(self):
        volume = self.dim * math.log(WIDTH)
        return self.peak + 0.5 * np.linalg.slogdet(2 * np.pi * self.covariance)[1] - volume

    def draws(self, rng, count):
        return rng.multivariate_normal(self.mean, self.covariance, count)

    def times(self, other):
        precisions = [np.linalg.inv(part.covariance) for part in (self, other)]
        covariance = np.linalg.inv(sum(precisions))
        mean = covariance @ (precisions[0] @ self.mean + precisions[1] @ other.mean)
        shift = self.mean - other.mean
        chi2 = shift @ np.linalg.solve(self.covariance + other.covariance, shift)
        return Gaussian(mean, covariance, self.peak + other.peak - 0.5 * chi2)


def posterior_of(gaussian, rng, *, count=20_000, is_weighted=False):
    names = NAMES[: gaussian.dim]
    wide = Gaussian(gaussian.mean, 1.5 * gaussian.covariance)
    points = (wide if is_weighted else gaussian).draws(rng, count)
    log_likelihood = gaussian.log_likelihood(points)
    log_weights = (log_likelihood - wide.log_likelihood(points))[None] if is_weighted else None
    return qbs.Posterior(
        {name: column[None] for name, column in zip(names, points.T, strict=True)},
        log_weights,
        gaussian.log_evidence(),
        0.01,
        stats={"log_likelihood": log_likelihood[None]},
    )


@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("distance", [0.0, 2.0, 6.0])
def test_gaussians_in_three_dimensions(distance, is_weighted):
    rng = np.random.default_rng(SEED)
    root = rng.normal(size=(2, 3, 3))
    covariances = root @ root.transpose(0, 2, 1) / 10 + 0.05 * np.eye(3)
    total = covariances.sum(axis=0)
    direction = np.linalg.cholesky(total) @ [0.6, 0.8, 0.0]
    first, second = (
        Gaussian(np.zeros(3), covariances[0], 3.0),
        Gaussian(distance * direction, covariances[1], -7.0),
    )
    runs = [posterior_of(part, rng, is_weighted=is_weighted) for part in (first.times(second), first, second)]
    found = tension(*runs)

    # Handley & Lemos (2019), arXiv:1902.04029, section III: the chi-squared of the shift is distance^2.
    log_suspiciousness = 1.5 - 0.5 * distance**2
    half_log_det = 0.5 * np.linalg.slogdet(2 * np.pi * total)[1]
    log_bayes_ratio = 3 * math.log(WIDTH) - half_log_det - 0.5 * distance**2
    log_information_ratio = 3 * math.log(WIDTH) - half_log_det - 1.5
    assert found.log_bayes_ratio == pytest.approx(log_bayes_ratio, abs=1e-9)
    assert found.log_bayes_ratio_error == pytest.approx(0.01 * math.sqrt(3))
    assert abs(found.log_suspiciousness - log_suspiciousness) < 4 * found.log_suspiciousness_error
    assert abs(found.log_information_ratio - log_information_ratio) < 4 * found.log_information_ratio_error
    assert abs(found.dimensionality - 3) < 4 * found.dimensionality_error
    assert found.log_bayes_ratio == pytest.approx(found.log_information_ratio + found.log_suspiciousness)
    assert found.log_suspiciousness_error < 0.03
    assert found.dimensionality_error < 0.15
    divergences = np.array(found.divergences)
    assert divergences[1] + divergences[2] - divergences[0] == pytest.approx(found.log_information_ratio)
    expected = 3 * math.log(WIDTH) - 0.5 * np.linalg.slogdet(2 * np.pi * covariances[0])[1] - 1.5
    assert divergences[1] == pytest.approx(expected, abs=4 * found.log_suspiciousness_error)
    p_value = st.chi2.sf(distance**2, 3)
    assert found.p_value == pytest.approx(p_value, rel=0.2, abs=1e-3)
    assert found.sigma == pytest.approx(abs(st.norm.ppf(p_value / 2)), abs=0.15)
    assert found.problems == []


def test_in_one_dimension_sigma_is_the_distance_in_errors():
    rng = np.random.default_rng(SEED)
    first, second = Gaussian([0.0], [[0.09]]), Gaussian([1.5], [[0.16]])  # 3 sigma apart
    found = tension(
        *(posterior_of(part, rng, count=100_000) for part in (first.times(second), first, second))
    )
    assert found.sigma == pytest.approx(3.0, abs=0.05)
    assert found.log_suspiciousness == pytest.approx(0.5 - 4.5, abs=0.03)


@pytest.mark.parametrize("is_weighted", [False, True])
def test_the_errors_are_as_large_as_they_say(is_weighted):
    """Of the mean log likelihood and the dimensionality, over 60 samples."""
    first, second = Gaussian(np.zeros(2), np.eye(2)), Gaussian([1.0, 0.5], 0.5 * np.eye(2))
    scores = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        runs = [
            posterior_of(part, rng, count=2000, is_weighted=is_weighted)
            for part in (first.times(second), first, second)
        ]
        found = tension(*runs)
        truth = 1.0 - 0.5 * (1.25 / 1.5)
        scores.append(
            [
                (found.log_suspiciousness - truth) / found.log_suspiciousness_error,
                (found.dimensionality - 2.0) / found.dimensionality_error,
            ]
        )
    # The standard deviation of 60 normal numbers is within 0.37 of 1, four standard errors, their mean
    # within 0.52 of 0.
    spread = np.std(scores, axis=0)
    assert np.all(np.abs(spread - 1) < 0.37), spread
    assert np.all(np.abs(np.mean(scores, axis=0)) < 0.52)


@pytest.mark.parametrize("dim", [1, 4])
def test_the_errors_of_nested_sampling_know_that_volumes_are_guessed(dim):
    """Ideal nested sampling of a Gaussian in a ball: each shell is an exponential number over 100."""
    rng = np.random.default_rng(SEED)
    scores = []
    for _ in range(100):
        log_volumes = -np.cumsum(rng.exponential(size=4000)) / 100
        log_likelihood = -0.5 * (30.0 * np.exp(log_volumes / dim)) ** 2
        log_weights = log_likelihood - np.arange(1, 4001) / 100
        run = qbs.Posterior(
            {"x": log_likelihood[None]}, log_weights[None], stats={"log_likelihood": log_likelihood[None]}
        )
        found = _Moments.of("run", run)
        scores.append(
            [
                (found.mean + dim / 2) / found.mean_error,
                (found.dimensionality - dim) / found.dimensionality_error,
            ]
        )
    # Four standard errors of the spread and the mean of 100 numbers; the estimates are biased by O(1/100).
    spread = np.std(scores, axis=0)
    assert np.all(np.abs(spread - 1) < 0.29), spread
    assert np.all(np.abs(np.mean(scores, axis=0)) < 0.5)


def test_only_what_both_constrain_counts():
    """The first knows x and y, the second y alone: d is 1, and a shift of y shows as in one dimension."""
    rng = np.random.default_rng(SEED)
    count = 100_000
    first = Gaussian(np.zeros(2), np.diag([0.04, 0.09]))
    narrow = Gaussian([2.0], [[0.16]])
    both = Gaussian([0.0, 2.0 * 0.09 / 0.25], np.diag([0.04, 1 / (1 / 0.09 + 1 / 0.16)]), -0.5 * 4.0 / 0.25)
    second = posterior_of(narrow, rng, count=count)
    second = qbs.Posterior({"y": second.samples["x"]}, stats=second.stats)
    found = tension(posterior_of(both, rng, count=count), posterior_of(first, rng, count=count), second)
    assert abs(found.dimensionality - 1.0) < 4 * found.dimensionality_error
    assert found.sigma == pytest.approx(4.0, abs=0.05)
    # Without an evidence for one of them, what needs evidences is not there.
    assert found.log_bayes_ratio is None
    assert found.log_information_ratio is None
    assert found.divergences is None
    assert math.isfinite(found.log_suspiciousness)


def test_data_that_share_nothing_are_told():
    rng = np.random.default_rng(SEED)
    first, second = Gaussian([0.0], [[0.04]]), Gaussian([1.0], [[0.09]])
    both = Gaussian([0.0, 1.0], np.diag([0.04, 0.09]))
    other = posterior_of(second, rng)
    other = qbs.Posterior({"y": other.samples["x"]}, stats=other.stats)
    found = tension(posterior_of(both, rng), posterior_of(first, rng), other)
    assert abs(found.dimensionality) < 4 * found.dimensionality_error
    assert [text for text in found.problems if "the p value means little" in text]


def test_chains_count_by_their_effective_size():
    """A chain that repeats each draw ten times knows no more than the draws."""
    rng = np.random.default_rng(SEED)
    first = Gaussian(np.zeros(2), np.eye(2))
    plain = posterior_of(first, rng, count=1000)
    slow = qbs.Posterior(
        {name: np.repeat(values, 10, axis=1) for name, values in plain.samples.items()},
        stats={name: np.repeat(values, 10, axis=1) for name, values in plain.stats.items()},
    )
    errors = [tension(run, run, run).log_suspiciousness_error for run in (plain, slow)]
    assert errors[1] == pytest.approx(errors[0], rel=0.25)


def test_what_cannot_be_compared_is_refused():
    rng = np.random.default_rng(SEED)
    good = posterior_of(Gaussian(np.zeros(2), np.eye(2)), rng, count=50)
    bare = qbs.Posterior(good.samples)
    with pytest.raises(
        ValueError, match=r"the second posterior kept no log likelihoods; give a .*ModelResult"
    ):
        tension(good, good, bare)
    more = qbs.Posterior({**good.samples, "mnu": good.samples["x"]}, stats=good.stats)
    with pytest.raises(ValueError, match="the first fit has mnu, which the joint fit lacks"):
        tension(good, more, good)
    # A derived quantity that only one fit has is no parameter.
    derived = qbs.Posterior({**good.samples, "age": good.samples["x"]}, derived=("age",), stats=good.stats)
    assert tension(good, derived, good).dimensionality == pytest.approx(good_dimensionality(good))
    values = good.stats["log_likelihood"].copy()
    values[0, 3] = -np.inf
    with pytest.raises(ValueError, match="the joint posterior has draws whose log likelihood is not finite"):
        tension(qbs.Posterior(good.samples, stats={"log_likelihood": values}), good, good)
    # A draw without weight may be impossible.
    log_weights = np.zeros((1, 50))
    log_weights[0, 3] = -np.inf
    dead = qbs.Posterior(good.samples, log_weights, stats={"log_likelihood": values})
    assert math.isfinite(tension(dead, good, good).log_suspiciousness)


def good_dimensionality(posterior):
    return 2.0 * np.var(posterior.stats["log_likelihood"])


def test_a_model_result_brings_its_likelihood():
    """Draws without log likelihoods, as of NUTS: those of the analysis are the ones."""
    rng = np.random.default_rng(SEED)
    analysis = Analysis("LCDM", ["bbn", "h0"])
    samples = {
        "Om": rng.uniform(0.1, 0.5, (2, 200)),
        "Obh2": rng.normal(0.02218, 0.00055, (2, 200)),
        "h": rng.normal(0.7304, 0.0104, (2, 200)),
    }
    result = ModelResult("LCDM", analysis, qbs.Posterior(samples))
    chi2 = ((samples["Obh2"] - 0.02218) / 0.00055) ** 2 + ((samples["h"] - 0.7304) / 0.0104) ** 2
    np.testing.assert_allclose(result.log_likelihoods, -0.5 * chi2, rtol=1e-6, atol=1e-9)
    found = tension(result, result, result)
    assert found.dimensionality == pytest.approx(2 * np.var(-0.5 * chi2), rel=1e-5)


def test_the_table_names_both_sides():
    rng = np.random.default_rng(SEED)
    run = posterior_of(Gaussian(np.zeros(1), np.eye(1)), rng, count=500)
    found = Comparison("LCDM", ("desi_dr2", "bbn"), ("union3",), tension(run, run, run))
    text = render(tension_table([found]))
    for words in ("LCDM", "desi_dr2", "bbn", "union3", "ln R", "ln S", "sigma"):
        assert words in text
    assert json.loads(json.dumps(found.as_dict()))["first"] == ["desi_dr2", "bbn"]


RUN_FILE = """\
models: [LCDM]
data: [desi_dr2, union3]
sound_horizon: free
tension: [[desi_dr2, union3]]
method: {{name: dynesty, num_live: 60, dlogz: 0.1}}
seed: 1
figures: [svg]
output: {output}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tension")
    run_file = folder / "run.yaml"
    run_file.write_text(RUN_FILE.format(output=folder / "out"))
    done = CliRunner().invoke(app, ["cosmology", str(run_file)])
    assert done.exit_code == 0, done.output
    return folder / "out", done


def test_a_run_file_with_a_tension(finished):
    """DESI DR2 and Union3 in LCDM: Om 0.2975 +- 0.0086 and 0.356 +- 0.027, 2.1 sigma apart."""
    output, done = finished
    assert "Tension between data sets" in done.output
    contents = json.loads((output / "results.json").read_text())
    (found,) = contents["tension"]
    assert (found["model"], found["first"], found["second"]) == ("LCDM", ["desi_dr2"], ["union3"])
    # In one shared dimension: ln S is 1/2 - distance^2/2, as far as the posteriors are Gaussian.
    distance = (0.356 - 0.2975) / math.hypot(0.0086, 0.027)
    assert (
        abs(found["log_suspiciousness"] - 0.5 * (1 - distance**2))
        < 4 * found["log_suspiciousness_error"] + 0.2
    )
    assert abs(found["dimensionality"] - 1) < 4 * found["dimensionality_error"]
    evidences = [qbs.load(output / f"LCDM{name}.qbs").log_evidence for name in ("", ".desi_dr2", ".union3")]
    assert found["log_bayes_ratio"] == pytest.approx(evidences[0] - evidences[1] - evidences[2])
    assert "union3" in (output / "tension.txt").read_text()
    assert "ln Z" in (output / "models.txt").read_text()
    assert contents["provenance"]["tension"] == [[["desi_dr2"], ["union3"]]]
    # The joint fit is the model's own: it is not made twice.
    assert sorted(path.name for path in output.glob("*.qbs")) == [
        "LCDM.desi_dr2.qbs",
        "LCDM.qbs",
        "LCDM.union3.qbs",
    ]


def test_getdist_and_arviz_read_weighted_draws(finished):
    getdist = pytest.importorskip("getdist")
    arviz_stats = pytest.importorskip("arviz_stats")
    output, _ = finished
    posterior = qbs.load(output / "LCDM.qbs")
    assert posterior.log_weights is not None
    chains = getdist.loadMCSamples(str(output / "LCDM"), settings={"ignore_rows": 0})
    summary = arviz_stats.summary(posterior.to_datatree(), round_to="none")
    for name in ("Om", "hrd", "q0"):
        mean, sd = float(posterior.mean(name)), float(posterior.sd(name))
        assert chains.mean(name) == pytest.approx(mean, rel=1e-6)
        assert chains.std(name) == pytest.approx(sd, rel=1e-4)
        # ArviZ has equally weighted draws: as many as the effective sample size.
        assert abs(float(summary.loc[name, "mean"]) - mean) < 4 * sd / math.sqrt(posterior.ess)
