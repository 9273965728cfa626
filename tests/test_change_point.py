"""Change-points of unknown number against dynamic programming, and that against the published table."""

import jax.numpy as jnp
import numpy as np
import pytest

import qbs
from qbs.inference import mcmc
from qbs.inference.results.diagnostics import chain_statistics
from qbs.models.change_point import COAL_MINING_DISASTERS, COAL_MINING_YEARS, ChangePoint

COUNTS = np.array(COAL_MINING_DISASTERS)


def test_the_data_are_those_of_jarrett():
    assert len(COUNTS) == len(COAL_MINING_YEARS) == 112
    assert COUNTS.sum() == 191


def test_dynamic_programming():
    """Values computed by an independent program, of the coal-mining series."""
    exact = ChangePoint().exact(COUNTS)
    wanted = [-206.7375, -177.7953, -176.3043, -176.1247, -176.0238, -176.0397, -176.1423, -176.3022]
    np.testing.assert_allclose(exact.log_evidences[:8], wanted, atol=6e-5)
    np.testing.assert_allclose(exact.log_evidences[8:], [-176.5009, -176.727, -176.973], atol=6e-5)
    assert exact.log_evidence == pytest.approx(-176.33513987, abs=1e-6)
    assert COAL_MINING_YEARS[int(exact.places[1].argmax())] == 1892
    assert exact.places[1].max() == pytest.approx(0.245, abs=5e-4)
    np.testing.assert_allclose(exact.places.sum(1), np.arange(11), atol=1e-10)


@pytest.mark.parametrize("num_draws", [300, pytest.param(3000, marks=pytest.mark.slow)])
def test_reversible_jump_finds_the_posterior_of_the_number(num_draws, key):
    model = ChangePoint()
    method = mcmc.Chains(
        model.kernel(COUNTS), num_warmup=1000, num_draws=num_draws, thinning=10, is_unconstrained=False
    )
    posterior = qbs.fit(model, COUNTS, method=method, key=key, progress=False)
    count, exact = posterior.samples["count"], model.exact(COUNTS).probabilities
    statistics = chain_statistics(count)
    for number, probability in enumerate(exact):
        found = chain_statistics((count == number).astype(float))
        if found["ess_bulk"] > 100:
            gap = abs(np.mean(count == number) - probability)
            assert gap < 4 * np.sqrt(probability * (1 - probability) / found["ess_bulk"])
    distance = 0.5 * np.abs(np.bincount(count.ravel(), minlength=11) / count.size - exact).sum()
    errors = np.sqrt(exact * (1 - exact) / statistics["ess_bulk"])
    assert distance < 4 * 0.5 * errors.sum()
    if num_draws == 3000:
        assert statistics["r_hat"] < 1.01
        assert distance < 0.03


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (np.zeros((3, 4), int), "not an array of shape"),
        (np.zeros(5, int), "more than 11 counts"),
        (np.zeros(50), "whole numbers"),
    ],
)
def test_series_that_do_not_fit_are_refused(counts, message):
    with pytest.raises(qbs.errors.ModelError, match=message):
        ChangePoint().exact(counts)
    with pytest.raises(qbs.errors.ModelError, match=message):
        ChangePoint().kernel(jnp.asarray(counts))


@pytest.mark.parametrize(
    "settings", [{"max_count": 0}, {"prior_mean": -1.0}, {"shape": np.inf}, {"scale": 0.0}]
)
def test_wrong_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        ChangePoint(**settings)
