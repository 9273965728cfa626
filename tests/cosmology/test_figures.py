"""Figures with several data sets of a kind: what is drawn, where, and that it is what was measured."""

import jax
import numpy as np
import pytest

import qbs
from qbs.models.cosmology import Analysis, plots
from qbs.models.cosmology.parameters import MODELS
from qbs.models.cosmology.results import ModelResult

DATA = ("cc", "cc_31", "desi_dr1", "sdss", "union3", "pantheon_plus_sh0es")


@pytest.fixture(scope="module")
def results(data_path):
    """A posterior by hand around the best fit: figures do not ask where draws come from."""
    pytest.importorskip("matplotlib")
    analysis = Analysis("LCDM", DATA, sound_horizon="free", data_path=data_path)
    rng = np.random.default_rng(0)
    truth = {"Om": (0.31, 0.01), "h": (0.72, 0.01), "hrd": (101.0, 1.0)}
    samples = {name: rng.normal(mean, sd, (1, 200)) for name, (mean, sd) in truth.items()}
    result = ModelResult("LCDM", analysis, qbs.Posterior(samples))
    # The best fit is cached: the tests here are not about finding it.
    result.__dict__["best_fit"] = {"Om": 0.31, "h": 0.72, "hrd": 101.0, "H0": 72.0, "rd": 101.0 / 0.72}
    return {"LCDM": result}


def _labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def _error_bars(axes):
    """Return x and y of each set of points that is drawn with error bars."""
    return [container.lines[0].get_xydata() for container in axes.containers]


def test_every_kind_has_its_figure(results, tmp_path):
    pytest.importorskip("getdist")
    image = pytest.importorskip("matplotlib.image")
    written = plots.write_figures(results, tmp_path, ("png",))
    assert sorted(path.name for path in written) == ["bao.png", "corner.png", "hubble.png", "supernovae.png"]
    for path in written:
        pixels = image.imread(path)
        assert min(pixels.shape[:2]) > 500
        assert np.ptp(pixels[..., :3]) > 0.9


def test_all_models_have_a_colour():
    assert len(set(plots._COLOURS)) >= len(MODELS)


def test_chronometers_of_two_compilations(results):
    likelihoods = results["LCDM"].analysis.likelihoods
    figure = plots.hubble_figure(results, likelihoods["cc"], likelihoods["cc_31"])
    (axes,) = figure.axes
    assert _labels(axes)[-2:] == ["CC", "CC (31)"]
    for name, points in zip(("cc", "cc_31"), _error_bars(axes), strict=True):
        data = likelihoods[name]
        np.testing.assert_allclose(
            points, np.column_stack([data.redshifts, data.data / (1 + data.redshifts)])
        )
    plots._close(figure)


def test_bao_of_two_surveys(results):
    likelihoods = results["LCDM"].analysis.likelihoods
    figure = plots.bao_figure(results, likelihoods["desi_dr1"], likelihoods["sdss"])
    assert _labels(figure.axes[0])[-2:] == ["DESI DR1", "SDSS"]
    # D_M, D_H, D_V: SDSS has 6, 6 and 2 values, DESI DR1 has 5, 5 and 2.
    sizes = [[len(points) for points in _error_bars(axes)] for axes in figure.axes]
    assert sizes == [[5, 6], [5, 6], [2, 2]]
    for axes in figure.axes:
        for points in _error_bars(axes):
            assert np.all(np.abs(points[:, 1] - 1) < 0.2)  # relative to a model near the data
    plots._close(figure)


def test_supernovae_and_their_residuals(results):
    likelihoods = results["LCDM"].analysis.likelihoods
    union3, pantheon = likelihoods["union3"], likelihoods["pantheon_plus_sh0es"]
    figure = plots.supernova_figure(results, union3, pantheon)
    top, first, second = figure.axes
    assert _labels(top) == ["best LCDM", "Union3", "Pantheon+ & SH0ES"]
    assert _labels(second)[-2:] == ["Pantheon+ & SH0ES, means of bins", "Cepheid hosts, means of bins"]
    with jax.enable_x64(True):
        cosmology = results["LCDM"].analysis.cosmology(results["LCDM"].best_fit)
        expected = union3.data - union3.theory(cosmology) - union3.absolute_magnitude(cosmology)
    (points,) = _error_bars(first)
    np.testing.assert_allclose(points, np.column_stack([union3.redshifts, expected]), atol=1e-9)
    flow, hosts = _error_bars(second)
    assert len(flow) == round(1580 / 80)
    assert len(hosts) == 1
    # The means of all bins, equal in number and similar in weight, nearly cancel with the right zero point.
    assert abs(np.mean(flow[:, 1])) < 0.02
    for axes, points in ((first, _error_bars(first)), (second, _error_bars(second))):
        low, high = axes.get_ylim()
        assert all(np.all((low < part[:, 1]) & (part[:, 1] < high)) for part in points)
    plots._close(figure)


def test_the_bins_are_weighted_means():
    z, y, error = np.arange(160.0), np.repeat([1.0, 3.0], 80), np.full(160, 0.5)
    y[0], error[0] = 100.0, 1e6  # no weight
    middle, mean, spread = plots._bins(z, y, error)
    np.testing.assert_allclose(middle, [39.5, 119.5])
    np.testing.assert_allclose(mean, [1.0, 3.0], atol=1e-8)
    np.testing.assert_allclose(spread, [0.5 / np.sqrt(79), 0.5 / np.sqrt(80)])
