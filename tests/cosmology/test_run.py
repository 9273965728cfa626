"""`qbs cosmology` from run file to results, and its behaviour on bad input, interrupts and resumption."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import qbs
from qbs.cli import app
from qbs.models.cosmology.results import jeffreys_label

RUN_FILE = """\
models: [LCDM, wCDM]
data: [desi_dr2]
sound_horizon: free
method: {{name: dynesty, num_live: 150, dlogz: 0.1}}
seed: 1
figures: [png, pdf]
output: {output}
"""


def _invoke(*arguments):
    return CliRunner().invoke(app, ["cosmology", *map(str, arguments)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run with all its output; the tests below look at it."""
    folder = tmp_path_factory.mktemp("run")
    run_file = folder / "run.yaml"
    run_file.write_text(RUN_FILE.format(output=folder / "out"))
    done = _invoke(run_file)
    assert done.exit_code == 0, done.output
    return run_file, folder / "out", done


def test_published_desi_result(finished):
    """DESI DR2 BAO alone in flat LCDM (arXiv:2503.14738): Om 0.2975 +- 0.0086, h r_d 101.54 +- 0.73 Mpc."""
    _, output, _ = finished
    results = json.loads((output / "results.json").read_text())["models"]["LCDM"]
    ess = qbs.load(output / "LCDM.qbs").ess
    for name, mean, sd in (("Om", 0.2975, 0.0086), ("hrd", 101.54, 0.73)):
        found = results["parameters"][name]
        # The published value is rounded to its last digit; the rest is Monte Carlo error of weighted draws.
        rounding = 0.5 * 10 ** -(4 if name == "Om" else 2)
        assert abs(found["mean"] - mean) < 4 * sd / math.sqrt(ess) + rounding
        assert abs(found["sd"] - sd) < 4 * sd / math.sqrt(2 * ess) + rounding


def test_results_are_complete(finished):
    _, output, _ = finished
    results = json.loads((output / "results.json").read_text())
    assert results["provenance"]["seed"] == 1
    assert results["provenance"]["versions"]["jax"]
    for name, result in results["models"].items():
        assert set(result["parameters"]["Om"]) == {"mean", "sd", "q05", "q50", "q95"}
        assert (
            result["parameters"]["Om"]["q05"]
            < result["parameters"]["Om"]["q50"]
            < result["parameters"]["Om"]["q95"]
        )
        assert result["num_likelihood_calls"] > 500
        assert result["log_evidence_error"] > 0
        assert result["problems"] == []
        assert result["chi2_total"] == pytest.approx(sum(result["chi2"].values()))
        num_parameters = 2 if name == "LCDM" else 3
        assert result["aic"] == pytest.approx(result["chi2_total"] + 2 * num_parameters)
        assert result["num_points"] == 13
        assert result["bic"] == pytest.approx(result["chi2_total"] + num_parameters * math.log(13))
        # The data constrain all parameters, so that p_D counts them, and the DIC is near the AIC.
        assert result["num_effective_parameters"] == pytest.approx(num_parameters, abs=0.5)
        assert result["dic"] == pytest.approx(result["aic"], abs=0.8)
        # Chi-squared of the best fit is below that of every draw.
        posterior = qbs.load(output / f"{name}.qbs")
        assert result["chi2_total"] <= -2 * posterior.stats["log_likelihood"].max() + 1e-9
    assert results["models"]["LCDM"]["log_bayes_factor"] == 0
    wcdm = results["models"]["wCDM"]
    difference = wcdm["log_evidence"] - results["models"]["LCDM"]["log_evidence"]
    assert wcdm["log_bayes_factor"] == pytest.approx(difference)
    assert wcdm["jeffreys"] == jeffreys_label(difference)


def test_the_table_names_what_it_shows(finished):
    _, _, done = finished
    for word in (
        "ln Z",
        "ln B against LCDM",
        "chi2 desi_dr2",
        "AIC",
        "BIC",
        "DIC",
        "p_D",
        "hrd [Mpc]",
        "best fit Om",
        "likelihood calls",
    ):
        assert word in done.output
    assert "ln B against LCDM" in (finished[1] / "models.txt").read_text()
    table = [line for line in done.output.splitlines() if line.startswith(("┏", "┃", "│", "├", "└"))]
    assert len(table) > 15
    assert max(map(len, table)) <= 120


@pytest.mark.parametrize(
    ("end", "label"), [(0.3, "inconclusive"), (-2.0, "weak"), (3.0, "moderate"), (-9.0, "strong")]
)
def test_jeffreys_scale(end, label):
    assert jeffreys_label(end) == label


def test_getdist_reads_the_chains(finished):
    getdist = pytest.importorskip("getdist")
    _, output, _ = finished
    chains = getdist.loadMCSamples(str(output / "wCDM"), settings={"ignore_rows": 0})
    posterior = qbs.load(output / "wCDM.qbs")
    for name in ("Om", "hrd", "w"):
        assert chains.mean(name) == pytest.approx(float(posterior.mean(name)), rel=1e-6)
    assert chains.paramNames.parWithName("hrd").label == r"h r_\mathrm{d}"
    assert chains.ranges.getLower("w") == -3.0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["{name: slice, num_live: 200, dlogz: 0.1}", "{name: corrected}"])
def test_getdist_and_arviz_read_the_output_of_other_methods(method, tmp_path):
    getdist, arviz_stats = pytest.importorskip("getdist"), pytest.importorskip("arviz_stats")
    run_file = tmp_path / "run.yaml"
    text = RUN_FILE.format(output=tmp_path / "out").replace(
        "{name: dynesty, num_live: 150, dlogz: 0.1}", method
    )
    run_file.write_text(text)
    done = _invoke(run_file)
    assert done.exit_code == 0, done.output
    chains = getdist.loadMCSamples(str(tmp_path / "out" / "wCDM"), settings={"ignore_rows": 0})
    posterior = qbs.load(tmp_path / "out" / "wCDM.qbs")
    # ArviZ has no weights: it reads draws that were chosen by them, at a standard error of the mean.
    table = arviz_stats.summary(posterior.to_datatree(), round_to="none")
    for name in ("Om", "hrd", "w"):
        mean = float(posterior.mean(name))
        assert chains.mean(name) == pytest.approx(mean, rel=1e-6)
        error = float(posterior.sd(name)) / math.sqrt(posterior.ess)
        assert table.loc[name, "mean"] == pytest.approx(mean, abs=4 * error)


def test_figures_are_pictures(finished):
    _, output, _ = finished
    image = pytest.importorskip("matplotlib.image")
    for name in ("corner", "bao"):
        pixels = image.imread(output / f"{name}.png")
        assert min(pixels.shape[:2]) > 500
        assert np.ptp(pixels[..., :3]) > 0.9
        assert (output / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert not (output / "hubble.png").exists()  # no chronometers in this run
    assert not [path for path in output.iterdir() if ".part" in path.name or path.name.startswith(".")]


def test_a_second_run_reads_what_is_finished(finished):
    run_file, output, _ = finished
    before = (output / "LCDM.qbs").read_bytes()
    again = _invoke(run_file, "--json")
    assert again.exit_code == 0
    assert json.loads(again.stdout) == json.loads((output / "results.json").read_text())
    assert (output / "LCDM.qbs").read_bytes() == before


def test_changed_settings_are_fitted_again(finished, tmp_path):
    run_file, output, _ = finished
    other = tmp_path / "other.yaml"
    other.write_text(run_file.read_text().replace("seed: 1", "seed: 2").replace("[LCDM, wCDM]", "[LCDM]"))
    before = qbs.load(output / "LCDM.qbs").log_evidence
    told = _invoke(other)
    assert "already fitted" not in told.output
    assert qbs.load(output / "LCDM.qbs").log_evidence != before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models: [LCDM]\ndata: [nope]\n", "line 2: unknown data set 'nope'; accepted: cc"),
        ("models: [LCDM]\ndata: [cc]\npriors: {w: [-2, 0]}\n", "w is not a parameter of LCDM"),
        ("models: [LCDM]\ndata: [cc]\npriors: {Om: [1, 0]}\n", "line 3: the prior of Om"),
        ("models: [LCDM]\ndata: [pantheon_plus]\ndata_path: EMPTY\n", "Pantheon"),
        ("models: [LCDM]\ndata: [cc, cc_31]\n", "line 2: cc and cc_31 overlap"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_written(text, words, tmp_path):
    (tmp_path / "empty").mkdir()
    run_file = tmp_path / "run.yaml"
    run_file.write_text(text.replace("EMPTY", str(tmp_path / "empty")) + f"output: {tmp_path / 'out'}\n")
    done = _invoke(run_file)
    assert done.exit_code == 2
    assert words in done.stderr
    assert done.stderr.startswith("qbs: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


def test_example_and_missing_argument():
    example = _invoke("--example")
    assert example.exit_code == 0
    assert "models: [LCDM, CPL]" in example.stdout
    assert _invoke("--example", "all_keys").stdout == example.stdout
    assert "data: [desi_dr2, cmb_thetastar, union3]" in _invoke("--example", "desi_cmb_union3").stdout
    unknown = _invoke("--example", "desi_smb")
    assert unknown.exit_code == 2
    assert "desi_cmb_pantheon_plus" in " ".join(unknown.stderr.split())
    assert _invoke().exit_code == 2


@pytest.mark.serial
def test_ctrl_c_keeps_what_was_done_and_the_next_run_goes_on(tmp_path):
    """A real interrupt of a real process, during the second model."""
    run_file = tmp_path / "run.yaml"
    text = RUN_FILE.format(output=tmp_path / "out").replace("[png, pdf]", "[png]")
    text = text.replace("[desi_dr2]", "[cc, desi_dr2, bbn]").replace("free", "formula")
    run_file.write_text(text.replace("wCDM", "CPL").replace("num_live: 150", "num_live: 300"))
    command = [sys.executable, "-c", "from qbs.cli import main; main()", "cosmology", str(run_file)]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path
    )
    deadline = time.monotonic() + 240
    while not (tmp_path / "out" / "LCDM.qbs").exists():
        assert time.monotonic() < deadline, "the first model was never finished"
        assert running.poll() is None, running.stdout.read()
        time.sleep(0.1)
    time.sleep(8)  # into the second model, past its compilation
    os.kill(running.pid, signal.SIGINT)
    output, _ = running.communicate(timeout=240)
    assert running.returncode == 130, output
    if Path(tmp_path / "out" / "CPL.qbs").exists():
        partial = qbs.load(tmp_path / "out" / "CPL.qbs")
        assert partial.problems[0].startswith("Interrupted after")
        assert "interrupted; what was done is kept in" in output
        assert json.loads((tmp_path / "out" / "results.json").read_text())["models"]["CPL"]["problems"]
    has_begun = bool(list((tmp_path / "out").glob("CPL.*.checkpoint")))
    again = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert "LCDM: already fitted with these settings" in again.stdout
    assert ("CPL: going on from" in again.stdout) == has_begun
    assert again.returncode == 0, again.stdout + again.stderr
    assert not list((tmp_path / "out").glob("*.checkpoint"))
