"""The reference problem with the full Pantheon+ table, by the command and over seeds.

`benchmarks/reference_evidences.py` gives the evidences, by millions of importance samples of the likelihood.
"""

import json
import math

import jax
import numpy as np
import pytest
from nested_problems import DATA, REFERENCE
from typer.testing import CliRunner

import qbs
from qbs.cli import app
from qbs.inference.nested import Corrected, Genetic
from qbs.models.cosmology import Analysis

pytestmark = pytest.mark.slow


def _run(folder, data_path, settings):
    run_file = folder / "run.yaml"
    lines = [f"data_path: {data_path}", f"output: {folder / 'out'}", "figures: [png]", "seed: 1", settings]
    run_file.write_text("\n".join(lines))
    done = CliRunner().invoke(app, ["cosmology", str(run_file), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)["models"]


def test_evidences_of_the_reference_problem(tmp_path, data_path):
    """CC, DESI DR2, BBN and Pantheon+."""
    models = _run(tmp_path, data_path, "models: [LCDM, CPL]\ndata: [cc, desi_dr2, bbn, pantheon_plus]")
    for name in ("LCDM", "CPL"):
        result, (truth, truth_error) = models[name], REFERENCE[name]
        assert abs(result["log_evidence"] - truth) < 3 * result["log_evidence_error"] + truth_error
        assert result["log_evidence_error"] < 0.2
        assert result["problems"] == []
    found = models["LCDM"]["parameters"]
    for name, mean, sd in (("Om", 0.3045, 0.0079), ("h", 0.6861, 0.0053)):
        assert abs(found[name]["mean"] - mean) < 0.2 * sd  # over 1,000 effective draws: 6 standard errors
        assert abs(found[name]["sd"] / sd - 1) < 0.15
    assert models["CPL"]["jeffreys"] in ("weak", "moderate")


def test_supernovae_alone(tmp_path, data_path):
    """Pantheon+ beyond z = 0.01: Om 0.332 +- 0.018 (Brout et al. 2022, arXiv:2202.04077: 0.334 +- 0.018)."""
    found = _run(tmp_path, data_path, "models: [LCDM]\ndata: [pantheon_plus]")["LCDM"]["parameters"]["Om"]
    assert abs(found["mean"] - 0.332) < 0.2 * 0.018
    assert abs(found["sd"] / 0.018 - 1) < 0.15


@pytest.mark.parametrize(
    ("model", "most_calls", "most_error"),
    [("LCDM", 250, 0.02), ("CPL", 500, 0.03), ("oCPL", 800, 0.05)],
)
def test_corrected_over_seeds(model, most_calls, most_error, data_path):
    """Of 20 seeds 19 meet the bars on calls and error; others are told of, or right within their errors."""
    analysis = Analysis(model, DATA, data_path=data_path)
    truth, truth_error = REFERENCE[model]
    found = [
        qbs.fit(analysis.numpyro_model, method=Corrected(), key=jax.random.key(seed), progress=False)
        for seed in range(20)
    ]
    errors = np.array([each.log_evidence - truth for each in found])
    told = np.array([math.hypot(each.log_evidence_error, truth_error) for each in found])
    calls = np.array([each.num_likelihood_calls for each in found])
    is_sure = np.array([not each.problems for each in found])
    is_met = is_sure & (calls <= most_calls) & (np.abs(errors) <= most_error)
    assert is_met.sum() >= 19, list(zip(calls, errors.round(4), is_sure, strict=True))
    assert np.all(np.abs(errors / told)[is_sure] < 4)
    mean_error = math.hypot(np.sqrt(np.mean(told[is_sure] ** 2) / is_sure.sum()), truth_error)
    assert abs(errors[is_sure].mean()) < 3 * mean_error


@pytest.mark.parametrize("model", ["LCDM", "CPL"])
@pytest.mark.parametrize("strategy", ["genetic", "cma"])
def test_a_search_to_begin_with_does_not_change_the_evidence(model, strategy, data_path):
    """The truth is that of draws from the prior, to 0.002 nats."""
    analysis = Analysis(model, DATA, data_path=data_path)
    method = Corrected(search=Genetic(strategy=strategy))
    found = qbs.fit(analysis.numpyro_model, method=method, key=jax.random.key(0), progress=False)
    assert found.problems == []
    truth, _ = REFERENCE[model]
    assert abs(found.log_evidence - truth) < min(4 * found.log_evidence_error, 0.1)
