"""The command on the reference problem with the full Pantheon+ table: evidences known to 0.005 nats."""

import json

import pytest
from typer.testing import CliRunner

from qbs.cli import app

pytestmark = pytest.mark.slow


def _run(folder, data_path, settings):
    run_file = folder / "run.yaml"
    lines = [f"data_path: {data_path}", f"output: {folder / 'out'}", "figures: [png]", "seed: 1", settings]
    run_file.write_text("\n".join(lines))
    done = CliRunner().invoke(app, ["cosmology", str(run_file), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)["models"]


def test_evidences_of_the_reference_problem(tmp_path, data_path):
    """CC, DESI DR2, BBN and Pantheon+; importance sampling of the exact likelihood gives these evidences."""
    models = _run(tmp_path, data_path, "models: [LCDM, CPL]\ndata: [cc, desi_dr2, bbn, pantheon_plus]")
    for name, truth, truth_error in (("LCDM", -719.5607, 0.0052), ("CPL", -722.5059, 0.0052)):
        result = models[name]
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
