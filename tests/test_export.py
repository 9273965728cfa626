"""ArviZ and GetDist read back what is written for them."""

import json
import logging

import numpy as np
import pytest
import scipy.stats as st

import qbs

SEED = 20240229


def _chains(**extra):
    rng = np.random.default_rng(SEED)
    x = rng.normal(3, 2, (4, 300))
    samples = {"x": x, "v": rng.normal(size=(4, 300, 2)), "double": 2 * x}
    stats = {
        "log_density": st.norm(3, 2).logpdf(x),
        "log_likelihood": -(x**2),
        "diverging": rng.uniform(size=(4, 300)) < 0.01,
    }
    return qbs.Posterior(samples, derived=("double",), stats=stats, **extra)


def _weighted(num_draws=4000):
    x = np.random.default_rng(SEED).normal(0, 2, (1, num_draws))
    log_weights = st.norm(1, 1).logpdf(x) - st.norm(0, 2).logpdf(x)
    log_weights[0, :5] = -np.inf
    stats = {"log_likelihood": st.norm(1, 1).logpdf(x)}
    return qbs.Posterior({"x": x, "square": x**2}, log_weights, -3.5, 0.1, derived=("square",), stats=stats)


# ArviZ


def test_datatree_of_chains_holds_every_draw():
    posterior = _chains(num_likelihood_calls=77, problems=["one"], provenance={"seed": [1, 2]})
    tree = posterior.to_datatree()
    for name, values in posterior.samples.items():
        np.testing.assert_array_equal(tree["posterior"][name].to_numpy(), values)
    assert tree["posterior"]["v"].dims[:2] == ("chain", "draw")
    np.testing.assert_array_equal(tree["sample_stats"]["lp"].to_numpy(), posterior.stats["log_density"])
    np.testing.assert_array_equal(tree["sample_stats"]["diverging"].to_numpy(), posterior.stats["diverging"])
    facts = tree["posterior"].attrs
    assert facts["inference_library"] == "qbs"
    assert facts["num_likelihood_calls"] == 77
    assert json.loads(facts["problems"]) == ["one"]
    assert json.loads(facts["provenance"]) == {"seed": [1, 2]}
    assert "log_evidence" not in facts


def test_arviz_summarises_the_tree():
    import arviz
    import arviz_stats

    posterior = _chains()
    tree = posterior.to_datatree()
    new = arviz_stats.summary(tree, round_to="none")
    if arviz.__version__.startswith("0."):
        tree = arviz.InferenceData(posterior=tree["posterior"].to_dataset())
    old = arviz.summary(tree, round_to="none")
    for table in (new, old):
        assert list(table.index) == ["x", "v[0]", "v[1]", "double"]
        np.testing.assert_allclose(float(table.loc["x", "mean"]), posterior.mean("x"), rtol=1e-10)
        np.testing.assert_allclose(float(table.loc["v[1]", "mean"]), posterior.mean("v")[1], rtol=1e-10)


def test_datatree_of_weighted_draws_is_resampled():
    posterior = _weighted()
    tree = posterior.to_datatree()
    x = tree["posterior"]["x"].to_numpy()
    assert x.shape == (1, int(posterior.ess))
    assert set(x[0]) <= set(posterior.samples["x"][0, 5:])
    np.testing.assert_array_equal(tree["posterior"]["square"].to_numpy(), x**2)
    assert tree["posterior"].attrs["log_evidence"] == -3.5
    assert tree["posterior"].attrs["log_evidence_error"] == 0.1
    # N(1, 1), by at least as many effective draws as there are.
    assert abs(x.mean() - 1) < 4 / np.sqrt(posterior.ess) + 4 * posterior.sd("x") / np.sqrt(posterior.ess)
    assert "sample_stats" not in tree.children


def test_a_scoped_name_is_no_path():
    posterior = qbs.Posterior({"outer/inner": np.zeros((2, 5))}, stats={"a/b": np.zeros((2, 5))})
    tree = posterior.to_datatree()
    assert list(tree["posterior"].data_vars) == ["outer.inner"]
    assert list(tree["sample_stats"].data_vars) == ["a.b"]


def test_the_tree_can_be_written_and_read(tmp_path):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    posterior = _chains(problems=["Größe"])
    posterior.to_datatree().to_netcdf(tmp_path / "tree.nc", engine="h5netcdf")
    with xarray.open_datatree(tmp_path / "tree.nc", engine="h5netcdf") as tree:
        np.testing.assert_array_equal(tree["posterior"]["v"].to_numpy(), posterior.samples["v"])
        assert json.loads(tree["posterior"].attrs["problems"]) == ["Größe"]


# GetDist


@pytest.fixture
def read():
    """Read chains back with GetDist itself, keeping every row."""
    getdist = pytest.importorskip("getdist")
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    getdist.chains.print_load_details = False
    return lambda root: getdist.loadMCSamples(str(root), settings={"ignore_rows": 0}, no_cache=True)


def test_getdist_reads_chains(tmp_path, read):
    posterior = _chains()
    root = tmp_path / "new folder" / "run"
    written = posterior.to_getdist(
        root,
        labels={"x": r"\xi", "v[0]": "v_0"},
        ranges={"x": (None, 40.0), "v[1]": (-50.0, None), "other": (0.0, 1.0)},
    )
    names = [*(f"run_{i}.txt" for i in range(1, 5)), "run.paramnames", "run.ranges"]
    assert [path.name for path in written] == names
    assert all(path.is_file() for path in written)
    samples = read(root)
    assert samples.getParamNames().list() == ["x", "v[0]", "v[1]", "double"]
    assert samples.getParamNames().labels() == [r"\xi", "v_0", "v[1]", "double"]
    assert [name.isDerived for name in samples.getParamNames().names] == [False, False, False, True]
    assert samples.numrows == 1200
    for index, name in enumerate(["x", "v[0]", "v[1]", "double"]):
        flat = posterior.samples[name.split("[")[0]].reshape(1200, -1)[:, int(name[-2]) if "[" in name else 0]
        np.testing.assert_allclose(samples.samples[:, index], flat, rtol=1e-7)
        np.testing.assert_allclose(samples.getMeans()[index], flat.mean(), rtol=1e-6)
    np.testing.assert_allclose(samples.loglikes, -posterior.stats["log_density"].ravel(), rtol=1e-7)
    assert samples.ranges.getUpper("x") == 40
    assert samples.ranges.getLower("x") is None
    assert samples.ranges.getLower("v[1]") == -50
    assert len(samples.getSeparateChains()) == 4
    np.testing.assert_allclose(
        samples.confidence("x", 0.05), np.quantile(posterior.samples["x"], 0.05), atol=0.05
    )


def test_getdist_reads_weights(tmp_path, read):
    posterior = _weighted()
    posterior.to_getdist(tmp_path / "run")
    samples = read(tmp_path / "run")
    assert samples.numrows == np.sum(posterior.weights > posterior.weights.max() * 1e-320)
    means = [posterior.mean("x"), posterior.mean("square")]
    np.testing.assert_allclose(samples.getMeans(), means, rtol=1e-6)
    np.testing.assert_allclose(samples.std("x"), posterior.sd("x"), rtol=1e-6)
    np.testing.assert_allclose(samples.getEffectiveSamples() > 0, True)
    np.testing.assert_allclose(samples.weights.max(), 1)
    ratio = samples.weights / np.exp(-samples.loglikes - st.norm(0, 2).logpdf(samples.samples[:, 0]))
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)


def test_chains_of_an_earlier_run_are_not_read_too(tmp_path, read):
    _chains().to_getdist(tmp_path / "run")
    (tmp_path / "run_by_hand.txt").write_text("mine")
    (tmp_path / "running_3.txt").write_text("mine")
    _weighted().to_getdist(tmp_path / "run")
    assert not (tmp_path / "run_2.txt").exists()
    assert not (tmp_path / "run_4.txt").exists()
    assert (tmp_path / "run_by_hand.txt").exists()
    assert (tmp_path / "running_3.txt").exists()
    assert read(tmp_path / "run").getParamNames().list() == ["x", "square"]


def test_names_that_getdist_would_cut(tmp_path, read):
    rng = np.random.default_rng(SEED)
    names = ["two words", "tab\there", "outer/inner", "Größe", "theta_a_b"]
    posterior = qbs.Posterior({name: rng.normal(size=(1, 50)) for name in names}, derived=("two words",))
    posterior.to_getdist(tmp_path / "run", ranges={"tab\there": (-90.0, None)})
    samples = read(tmp_path / "run")
    assert samples.getParamNames().list() == ["tab_here", "outer/inner", "Größe", "theta_a_b", "two_words"]
    assert samples.getParamNames().parWithName("two_words").isDerived
    assert samples.ranges.getLower("tab_here") == -90
    np.testing.assert_allclose(samples.samples[:, 4], posterior.samples["two words"][0], rtol=1e-7)


def test_default_labels_can_be_typeset(tmp_path):
    mathtext = pytest.importorskip("matplotlib.mathtext")
    qbs.Posterior({"x_1_2": np.zeros((1, 3))}).to_getdist(tmp_path / "run")
    label = (tmp_path / "run.paramnames").read_text().split(" ", 1)[1].strip()
    mathtext.MathTextParser("path").parse(f"${label}$")
    assert label.replace("\\", "") == "x_1_2"


def test_no_density_recorded(tmp_path, read):
    qbs.Posterior({"x": np.random.default_rng(0).normal(size=(1, 30))}).to_getdist(tmp_path / "run")
    np.testing.assert_array_equal(read(tmp_path / "run").loglikes, 0)
