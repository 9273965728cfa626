"""Planck plik_lite: its likelihood against dense algebra, quadrature, and Cobaya; a run that is killed."""

import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import numpyro.distributions as dist
import planck_calls
import psutil
import pytest
from scipy.integrate import quad

from qbs.errors import DataError, MissingExtraError
from qbs.inference.nested import read_calls
from qbs.models.cosmology import planck, tables
from qbs.models.cosmology.camb_spectra import CambSettings, camb_parameters, lensed_spectra
from qbs.models.cosmology.planck import PlanckLite, planck_lite_target

FILES = ("cl_cmb_plik_v22.dat", "c_matrix_plik_v22.dat", "blmin.dat", "blmax.dat", "bweight.dat")
# The best fits of Planck 2018. Their chi2 below, of plik_lite, are those to which Cobaya tests the likelihood
# of Planck itself, with CAMB (its tests/test_cosmo_planck_2018.py).
BEST_FIT = {
    "Obh2": 0.022383,
    "Och2": 0.12011,
    "theta_MC_100": 1.040909,
    "logA": 3.0448,
    "ns": 0.96605,
    "tau": 0.0543,
}
BEST_FIT_TT = {
    "Obh2": 0.0224,
    "Och2": 0.1172,
    "theta_MC_100": 1.04117,
    "logA": 3.1,
    "ns": 0.9733,
    "tau": 0.0862,
}


@pytest.fixture(scope="session")
def folder(data_path):
    found = data_path / "cmb_plik_lite"
    if not found.is_dir():
        pytest.skip(f"no plik_lite in {data_path}")
    return found


@pytest.fixture(scope="session")
def table(folder):
    return tables.planck_lite(folder)


@pytest.fixture(scope="session")
def raw(folder):
    """The files as NumPy reads them: values, covariance, and (first, last, weights) of each bin."""
    values = np.loadtxt(folder / FILES[0])
    record = np.fromfile(folder / FILES[1], dtype=np.uint8)
    assert record[:4].view("<i4")[0] == record[-4:].view("<i4")[0] == 613 * 613 * 8
    matrix = record[4:-4].view("<f8").reshape(613, 613)
    covariance = matrix + matrix.T - np.diag(np.diag(matrix))
    first, last, weights = (np.loadtxt(folder / name) for name in FILES[2:])
    bins = [(int(a), int(b), weights[int(a) : int(b) + 1]) for a, b in zip(first, last, strict=True)]
    return values, covariance, bins


def wavy(seed):
    """Spectra of about the right size, with structure on all scales."""
    rng = np.random.default_rng(seed)
    multipole = np.arange(2600.0)
    decay = 6000.0 * np.exp(-((multipole / 1100) ** 1.2)) / (multipole * (multipole + 1) + 1)
    return {
        kind: size * decay * (1 + 0.3 * np.cos(multipole / 97) + 0.05 * rng.normal(size=multipole.size))
        for kind, size in (("TT", 1.0), ("TE", 0.05), ("EE", 0.02))
    }


def binned(raw, theory):
    """Bins by a loop over the raw bins, of which the files have 215 for each spectrum in turn."""
    found = []
    for number, (kind, count) in enumerate((("TT", 215), ("TE", 199), ("EE", 199))):
        for first, last, weights in raw[2][215 * number : 215 * number + count]:
            start, end = (edge - 2479 * number + 30 for edge in (first, last))
            found.append(sum(w * c for w, c in zip(weights, theory[kind][start : end + 1], strict=True)))
    return np.array(found)


# The files.


def test_the_table_is_the_released_one(table, raw):
    values, covariance, bins = raw
    assert [table.kinds.count(kind) for kind in ("TT", "TE", "EE")] == [215, 199, 199]
    np.testing.assert_array_equal(np.column_stack([table.multipoles, table.values, table.errors]), values)
    np.testing.assert_array_equal(table.covariance, covariance)
    np.testing.assert_allclose(np.sqrt(np.diag(table.covariance)), table.errors, rtol=1e-13)
    assert table.bin_starts[0] == 30
    assert bins[214][1] + 30 == 2508
    # The bins are five wide up to l = 99, and nine, seventeen and thirty-three farther on (arXiv:1907.12875).
    assert set(np.diff(table.bin_starts).tolist()) == {5, 9, 17, 33}
    assert "arXiv:" in table.citation
    assert not any(array.flags.writeable for array in vars(table).values() if isinstance(array, np.ndarray))


def test_the_files_are_found_in_every_place(folder, table, monkeypatch):
    assert tables.planck_lite(str(folder.parent)) is table
    monkeypatch.setenv("QBS_DATA_PATH", str(folder.parent))
    assert tables.planck_lite() is table


def test_the_files_are_fetched(folder, table, monkeypatch, tmp_path):
    pooch = pytest.importorskip("pooch")
    monkeypatch.delenv("QBS_DATA_PATH", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / name)
    cache, fetched = tmp_path / "qbs" / "planck_2018_plik_lite", []

    def fetch(self, name):
        fetched.append(self.get_url(name))
        cache.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, cache / name)
        assert pooch.hashes.hash_matches(cache / name, self.registry[name])
        return str(cache / name)

    monkeypatch.setattr(pooch.Pooch, "fetch", fetch)
    np.testing.assert_array_equal(tables.planck_lite().covariance, table.covariance)
    assert [url.rpartition("/")[2] for url in fetched] == list(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_or_missing_file_is_named(name, folder, tmp_path):
    for file in FILES:
        shutil.copyfile(folder / file, tmp_path / file)
    content = bytearray((tmp_path / name).read_bytes())
    content[len(content) // 2] ^= 1
    for damaged in (content, content[:-100], b""):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(DataError, match=f"{name} is damaged or not the released file"):
            tables.planck_lite(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(
        DataError, match=r"no Planck 2018 plik_lite spectra, covariance and bins in .*data_path"
    ):
        tables.planck_lite(tmp_path)


def test_other_line_ends_are_read(folder, table, tmp_path):
    for file in FILES:
        content = (folder / file).read_bytes()
        (tmp_path / file).write_bytes(content if "matrix" in file else content.replace(b"\n", b"\r\n"))
    np.testing.assert_array_equal(tables.planck_lite(tmp_path).weights, table.weights)


def test_the_low_bins_are_the_published_ones(table, folder):
    low = folder / "low_ell"
    if not low.is_dir():
        pytest.skip(f"no low multipoles in {folder}")
    _, values, errors = np.loadtxt(low / "CTT_bin_low_ell_2018.dat", unpack=True)
    np.testing.assert_allclose([table.low_values, table.low_errors], [values, errors], rtol=1e-15)
    first, last, weights = (np.loadtxt(low / f"{name}_low_ell.dat") for name in ("blmin", "blmax", "bweight"))
    spectrum = wavy(0)["TT"]
    for place, (start, end) in enumerate(zip(first.astype(int), last.astype(int), strict=True)):
        expected = weights[start : end + 1] @ spectrum[start + 2 : end + 3]
        assert table.binned_low(spectrum)[place] == pytest.approx(expected, rel=1e-12)


# The likelihood of spectra.


@pytest.mark.parametrize("seed", range(2))
def test_chi2_is_that_of_dense_algebra(seed, table, raw):
    theory = wavy(seed)
    values, covariance, _ = raw
    mean = binned(raw, theory)
    found = np.concatenate([table.binned(kind, theory[kind]) for kind in ("TT", "TE", "EE")])
    np.testing.assert_allclose(found, mean, rtol=1e-12)
    places = {"TTTEEE": slice(0, 613), "TT": slice(0, 215), "TE": slice(215, 414), "EE": slice(414, 613)}
    for spectra, place in places.items():
        likelihood = PlanckLite.from_table(table, spectra)
        assert likelihood.num_points == values[place].shape[0]
        for calibration in (1, 0.99, 1.003):
            residual = values[place, 1] - mean[place] / calibration**2
            expected = residual @ np.linalg.solve(covariance[place, place], residual)
            assert likelihood.chi2(theory, calibration) == pytest.approx(expected, rel=1e-9)
            if place.start == 0:
                low = table.low_values - table.binned_low(theory["TT"]) / calibration**2
                expected += np.sum((low / table.low_errors) ** 2)
                both = PlanckLite.from_table(table, spectra, low_multipoles=True)
                assert both.num_points == likelihood.num_points + 2
                assert both.chi2(theory, calibration) == pytest.approx(expected, rel=1e-9)


def near(table, factor, seed=0):
    """Spectra whose bins scatter about the data, times a factor: constant within each bin."""
    draw = np.random.default_rng(seed).multivariate_normal(table.values, table.covariance)
    edges = np.append(table.bin_starts, 2509)
    theory = {}
    for kind in ("TT", "TE", "EE"):
        own = draw[[this == kind for this in table.kinds]]
        steps = np.zeros(2509)
        for value, start, end in zip(own, edges, edges[1:], strict=False):
            steps[start:end] = value / np.sum(table.weights[start - 30 : end - 30])
        theory[kind] = factor * steps
    return theory


@pytest.mark.parametrize("spectra", ["TTTEEE", "EE"])
@pytest.mark.parametrize("factor", [1.0, 0.995, 1.01, 0.9, 1.2])
def test_the_calibration_is_integrated_out(factor, spectra, table):
    likelihood = PlanckLite.from_table(table, spectra)
    theory = near(table, factor)
    whitened = likelihood._whitened(theory)
    assert likelihood.chi2(theory) == pytest.approx(np.sum((likelihood.whitened_data - whitened) ** 2))

    def log_density(a):
        chi2 = np.sum((likelihood.whitened_data - whitened / a**2) ** 2)
        return -0.5 * chi2 - 0.5 * ((a - 1) / 0.0025) ** 2 - math.log(0.0025 * math.sqrt(2 * math.pi))

    grid = np.linspace(0.8, 1.25, 4001)
    values = [log_density(a) for a in grid]
    peak, highest = grid[np.argmax(values)], max(values)

    def density(a):
        return math.exp(log_density(a) - highest)

    integral, error = quad(
        density, peak - 0.02, peak + 0.02, points=[peak], epsabs=0, epsrel=1e-10, limit=200
    )
    assert error < 1e-8 * integral
    # chi2 of up to 1e5 is summed to 1e-11 or so.
    assert likelihood.log_likelihood(theory) == pytest.approx(
        highest + math.log(integral), abs=2e-8, rel=1e-10
    )


def test_spectra_that_cannot_be_are_told(table):
    likelihood = PlanckLite.from_table(table)
    theory = wavy(0)
    with pytest.raises(ValueError, match="at least 2508; it has 2508 values"):
        likelihood.chi2({kind: values[:2508] for kind, values in theory.items()})
    with pytest.raises(ValueError, match="kind must be one of TT, TE, EE, not 'BB'"):
        table.binned("BB", theory["TT"])
    with pytest.raises(ValueError, match="spectra must be one of TTTEEE, TT, TE, EE, not 'TEEE'"):
        PlanckLite.from_table(table, "TEEE")
    with pytest.raises(ValueError, match="low_multipoles are of the temperature, and spectra is 'EE'"):
        PlanckLite.from_table(table, "EE", low_multipoles=True)
    assert math.isnan(likelihood.log_likelihood(theory | {"EE": np.full(2509, np.nan)}))
    negative = {kind: -values for kind, values in near(table, 1.0).items()}
    assert likelihood.log_likelihood(negative) == -math.inf


# With CAMB.


@pytest.fixture(scope="session")
def camb():
    return pytest.importorskip("camb")


@pytest.fixture(scope="module")
def best_spectra(camb):
    return lensed_spectra(BEST_FIT)


def test_the_best_fit_of_planck(table, raw, best_spectra):
    assert [values.size for values in best_spectra.values()] == [2509] * 3
    likelihood = PlanckLite.from_table(table)
    # Cobaya allows CLASS to be 0.35 off. CAMB 1.6.0 gives 584.61 here, and 2.0.5 gives 584.36.
    assert likelihood.chi2(best_spectra, 1.00044) == pytest.approx(584.64, abs=0.4)
    derived = planck.CambLikelihood(likelihood, CambSettings()).derived(BEST_FIT)
    assert derived["H0"] == pytest.approx(67.32, abs=0.02)  # the angle is rounded to 5e-7
    assert derived["Om"] == pytest.approx(0.3158, abs=0.0002)
    # The calibration as a template in the covariance, with 1/A^2 = 1 - 2 (A - 1), which is good to 1e-5 here.
    _, covariance, _ = raw
    mean = binned(raw, best_spectra)
    wider = covariance + np.outer(2 * 0.0025 * mean, 2 * 0.0025 * mean)
    residual = table.values - mean
    logdets = [np.linalg.slogdet(matrix)[1] for matrix in (wider, covariance)]
    expected = -0.5 * (residual @ np.linalg.solve(wider, residual) + logdets[0] - logdets[1])
    assert likelihood.log_likelihood(best_spectra) == pytest.approx(expected, abs=0.02)


def test_the_best_fit_of_the_temperature(table, camb):
    likelihood = PlanckLite.from_table(table, "TT")
    assert likelihood.chi2(lensed_spectra(BEST_FIT_TT), 1.00008) == pytest.approx(204.57, abs=0.4)


def test_h_or_the_angle(camb):
    by_angle = camb_parameters(BEST_FIT, CambSettings())
    by_h = camb_parameters(
        {name: value for name, value in BEST_FIT.items() if name != "theta_MC_100"}
        | {"h": by_angle.H0 / 100},
        CambSettings(),
    )
    background = camb.get_background(by_h)
    # What is asked for, to a fifteenth of Planck's error.
    assert 100 * background.cosmomc_theta() == pytest.approx(1.040909, abs=2e-5)
    assert by_h.H0 == by_angle.H0
    assert by_h.omnuh2 == pytest.approx(0.06 / 93.14, rel=2e-3)
    with pytest.raises(ValueError, match="need the parameters tau, theta_MC_100 or h"):
        camb_parameters({"Obh2": 0.022, "Och2": 0.12, "logA": 3.0, "ns": 0.97}, CambSettings())


def test_a_universe_that_is_not_there_is_impossible(table, camb):
    likelihood = planck.CambLikelihood(PlanckLite.from_table(table), CambSettings())
    beyond = BEST_FIT | {"theta_MC_100": 1.4}
    assert likelihood(beyond) == -math.inf
    assert all(math.isnan(value) for value in likelihood.derived(beyond).values())


def test_the_target(folder, camb):
    target = planck_lite_target("TT", data_path=folder)
    assert list(target.priors) == ["Obh2", "Och2", "theta_MC_100", "tau", "logA", "ns"]
    assert target.in_jax is False
    assert target.name == "planck_lite_TT"
    target = planck_lite_target(
        low_multipoles=True,
        priors={"h": dist.Uniform(0.6, 0.8), "ns": dist.Normal(0.96, 0.01)},
        calibration="sampled",
        data_path=folder.parent,
    )
    assert list(target.priors) == ["Obh2", "Och2", "h", "tau", "logA", "ns", "A_planck"]
    assert isinstance(target.priors["ns"], dist.Normal)
    assert target.name == "planck_lite_TTTEEE_low"
    copy = pickle.loads(pickle.dumps(target.log_likelihood))
    np.testing.assert_array_equal(copy.planck.whitening, target.log_likelihood.planck.whitening)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"priors": {"omega": dist.Normal(0, 1)}}, "there is no parameter omega; there are Obh2, .* and h"),
        ({"priors": {"A_planck": dist.Normal(1, 0.01)}}, "there is no parameter A_planck"),
        ({"priors": {"h": dist.Uniform(0, 1), "theta_MC_100": dist.Uniform(1, 2)}}, "not both"),
        ({"calibration": "fixed"}, "calibration must be 'marginalised' or 'sampled', not 'fixed'"),
        ({"spectra": "BB"}, "spectra must be one of"),
    ],
)
def test_a_target_that_cannot_be_is_told(arguments, words, folder, camb):
    with pytest.raises(ValueError, match=words):
        planck_lite_target(**arguments, data_path=folder)


@pytest.mark.parametrize(
    "setting",
    [{"accuracy": 0.0}, {"neutrino_mass": -0.1}, {"num_threads": 0}, {"lens_potential_accuracy": math.nan}],
)
def test_settings_of_camb_name_themselves(setting):
    with pytest.raises(ValueError, match=f"CambSettings: {next(iter(setting))} must be"):
        CambSettings(**setting)


def test_without_camb_the_extra_is_named(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "camb", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'qbs-jax\[camb\]'"):
        planck_lite_target(data_path=folder)
    with pytest.raises(MissingExtraError, match="CAMB"):
        lensed_spectra(BEST_FIT)


def test_a_new_call_leaves_the_threads_of_camb(camb, best_spectra):
    assert camb.config.ThreadNum == 0


# Mean and error, arXiv:1807.06209, table 2, TT,TE,EE+lowE; the error of tau is the mean of its two sides.
PUBLISHED = {
    "Obh2": (0.02236, 0.00015),
    "Och2": (0.1202, 0.0014),
    "theta_MC_100": (1.04090, 0.00031),
    "tau": (0.0544, 0.0076),
    "logA": (3.045, 0.016),
    "ns": (0.9649, 0.0044),
}


@pytest.mark.slow
def test_the_posterior_of_planck(table, camb):
    likelihood = PlanckLite.from_table(table, low_multipoles=True)
    means, errors = np.array(list(PUBLISHED.values())).T

    def whitened(offset):  # in published errors
        return likelihood._whitened(
            lensed_spectra(dict(zip(PUBLISHED, means + offset * errors, strict=True)))
        )

    # One step of Gauss and Newton from the published means, with the calibration as a seventh parameter.
    centre = whitened(np.zeros(6))
    columns = [(whitened(offset) - whitened(-offset)) / 2 for offset in np.eye(6)]
    slopes = np.column_stack([*columns, -2 * 0.0025 * centre])
    information, gradient = slopes.T @ slopes, slopes.T @ (likelihood.whitened_data - centre)
    tau, tau_error = PUBLISHED["tau"]
    information[3, 3] += (tau_error / 0.0086) ** 2
    gradient[3] += (0.0506 - tau) * tau_error / 0.0086**2
    information[6, 6] += 1
    covariance = np.linalg.inv(information)
    # 0.3 is the bar for published values. That large angles are a Gaussian in tau here tells in tau and logA.
    assert np.all(np.abs((covariance @ gradient)[:6]) < 0.3)
    ratios = np.sqrt(np.diag(covariance)[:6])
    assert np.all(np.abs(ratios - 1) < 0.1), ratios


# End to end.


@pytest.mark.slow
@pytest.mark.serial
def test_a_run_killed_with_9_loses_no_call(folder, camb, tmp_path):
    lines, path = tmp_path / "lines", tmp_path / "planck"
    lines.mkdir()

    def made():
        return [line for file in sorted(lines.iterdir()) for line in file.read_text().splitlines()]

    environment = dict(os.environ)
    environment.pop("JAX_DISABLE_MOST_OPTIMIZATIONS", None)
    process = subprocess.Popen(
        [sys.executable, planck_calls.__file__, str(folder), str(lines), str(path)], env=environment
    )
    while not path.with_suffix(".calls").exists() or len(read_calls(path).points) < 9:
        assert process.poll() is None
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert psutil.wait_procs(children, timeout=60)[1] == []  # workers end with it, also within a call
    kept, num_before = read_calls(path), len(made())
    num_kept = len(kept.points)
    assert num_kept >= 9
    assert num_kept <= num_before - 1 <= num_kept + 2  # one call was to try it; two workers had one each

    found = planck_calls.fit(folder, lines, path)
    calls = read_calls(path)
    num_calls = len(calls.points)
    assert num_calls == found.num_likelihood_calls >= planck_calls.MAX_CALLS
    np.testing.assert_array_equal(calls.points[:num_kept], kept.points)
    np.testing.assert_array_equal(calls.log_likelihood[:num_kept], kept.log_likelihood)
    # None twice: each point is once in the log, and as many calls were made as are new in it, and one to try.
    assert len(np.unique(calls.points, axis=0)) == num_calls
    assert found.provenance["num_new_calls"] == num_calls - num_kept
    assert len(made()) - num_before - 1 == num_calls - num_kept
    # What the log has is what the likelihood gave.
    gave = {float(line.split(" ", 1)[0]) for line in made()}
    assert set(calls.log_likelihood.tolist()) <= gave
    assert set(calls.status.tolist()) == {0}
    assert list(calls.parameters) == list(planck.planck_lite_priors())
    best = np.argmax(calls.log_likelihood)
    assert calls.log_likelihood[best] > np.median(calls.log_likelihood)
    assert found.derived == ("H0", "Om")
    assert np.all((found.samples["H0"] > 40) & (found.samples["H0"] < 100))

    again = planck_calls.fit(folder, lines, path)
    assert again.provenance["num_new_calls"] == 0
    assert again.log_evidence == found.log_evidence
    np.testing.assert_array_equal(again.log_weights, found.log_weights)
