"""Sets of predictors: against the published analysis of Hald's cements, Student's t, and trying all sets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import qbs
from qbs.inference import mcmc
from qbs.inference.results.diagnostics import chain_statistics
from qbs.models.variable_selection import CEMENT_COMPOSITION, CEMENT_HEAT, VariableSelection

COMPOSITION, HEAT = np.array(CEMENT_COMPOSITION, float), np.array(CEMENT_HEAT)


def simulated(num_predictors):
    """Predictors of which the last two are alike, and responses to the first and the last."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(25, num_predictors))
    x[:, -2] = 0.9 * x[:, -1] + 0.45 * x[:, -2]
    return x, 0.5 + 0.9 * x[:, 0] - 0.5 * x[:, -1] + rng.normal(size=25)


def test_the_published_analysis_of_the_cements():
    """The output of the R package BAS (Clyde), in the demonstration `BAS.hald` of its pages.

    There g is 13 and the sizes are equally probable; log marginal likelihoods are relative to no predictor.
    """
    assert COMPOSITION.shape == (13, 4)
    assert COMPOSITION.sum(1).min() >= 95
    assert COMPOSITION.sum(1).max() <= 99
    exact = VariableSelection().exact(COMPOSITION, HEAT)
    np.testing.assert_allclose(exact.inclusion, [0.9019245, 0.6895830, 0.4652762, 0.6329266], atol=6e-8)
    np.testing.assert_allclose(exact.coefficients, [1.2150, 0.2756, -0.1271, -0.3269], atol=6e-5)
    published = {
        (1, 1, 0, 0): (11.72735, 0.2432, 0.9787),
        (1, 0, 0, 1): (11.3597547, 0.1684, 0.9725),
        (1, 1, 1, 1): (9.31845348, 0.1312, 0.9824),
        (1, 1, 0, 1): (10.6354335, 0.1224, 0.9823),
        (1, 1, 1, 0): (10.6322138, 0.1220, 0.9823),
    }
    for members, (log_bayes_factor, probability, r_squared) in published.items():
        (row,) = np.flatnonzero((exact.included == members).all(1))
        own = exact.log_evidences[row] - exact.log_evidences[0]
        assert own == pytest.approx(log_bayes_factor, abs=6e-6)
        assert exact.probabilities[row] == pytest.approx(probability, abs=6e-5)
        size = sum(members)  # Liang et al. (2008), equation 6
        formula = (12 - size) / 2 * np.log(14) - 6 * np.log1p(13 * (1 - r_squared))
        assert own == pytest.approx(formula, abs=0.005)
    np.testing.assert_allclose(exact.sizes.sum(), 1)


@pytest.mark.parametrize("slab", ["g", "independent"])
def test_evidences_are_those_of_students_t(slab):
    """Contrasts of the responses, free of the intercept, have a multivariate t distribution."""
    x, y = simulated(3)
    model = VariableSelection(inclusion=0.3, slab=slab, variance=2.5, noise_shape=1.5, noise_scale=0.7)
    exact = model.exact(x, y)
    contrasts = np.linalg.svd(np.ones((1, y.size)))[2][1:]
    for included, log_evidence in zip(exact.included, exact.log_evidences, strict=True):
        columns = contrasts @ x[:, included]
        spread = np.linalg.inv(columns.T @ columns) if slab == "g" else np.eye(included.sum())
        shape = 0.7 / 1.5 * (np.eye(y.size - 1) + 2.5 * columns @ spread @ columns.T)
        wanted = scipy.stats.multivariate_t(np.zeros(y.size - 1), shape, df=3).logpdf(contrasts @ y)
        assert log_evidence == pytest.approx(wanted - 0.5 * np.log(y.size), abs=1e-8)
    joint = exact.log_evidences + exact.included.sum(1) * np.log(0.3 / 0.7) + 3 * np.log(0.7)
    assert exact.log_evidence == pytest.approx(np.logaddexp.reduce(joint))

    density = qbs.log_density(qbs.reify(model))
    with jax.enable_x64(True):
        found = [density({"included": jnp.asarray(one, int)}, x, y) for one in exact.included[[0, 5]]]
    np.testing.assert_allclose(found, joint[[0, 5]], rtol=1e-10)


@pytest.mark.slow
def test_chains_find_what_trying_all_sets_finds(key):
    x, y = simulated(6)
    model = VariableSelection()
    method = mcmc.Chains(model.kernel(x, y), num_warmup=50, num_draws=500, is_unconstrained=False)
    posterior = qbs.fit(model, x, y, method=method, key=key, progress=False)
    exact, included = model.exact(x, y), posterior.samples["included"]
    size = included.sum(2)
    told = chain_statistics(size)
    # Means of four chains of n effective draws each vary as 1/n times a chi-square of 3 degrees, over 3; half
    # of that is what R-hat is above 1.
    chance = scipy.stats.chi2(3).isf(1e-4) / 3 / (2 * told["ess_bulk"] / 4)
    assert told["r_hat"] < 1 + chance < 1.05
    events = [included[:, :, i] for i in range(6)] + [size == k for k in range(7)]
    for event, probability in zip(events, [*exact.inclusion, *exact.sizes], strict=True):
        if 0.001 < probability < 0.999:
            ess = chain_statistics(event.astype(float))["ess_bulk"]
            error = np.sqrt(probability * (1 - probability) / ess)
            assert abs(event.mean() - probability) < 4 * error

    slopes = model.coefficients(key, posterior, x, y)["coefficient"]
    assert np.all((slopes != 0) == (included == 1))
    for i in range(6):
        statistics = chain_statistics(slopes[:, :, i])
        assert abs(slopes[:, :, i].mean() - exact.coefficients[i]) < 4 * statistics["mcse_mean"]


def test_coefficients_of_a_set_are_students_t(key):
    """Given the set, by the formulas of the normal-inverse-gamma distribution."""
    x, y = simulated(3)
    included = np.broadcast_to([1, 0, 1], (1, 4000, 3))
    posterior = qbs.Posterior(samples={"included": included})
    drawn = VariableSelection().coefficients(key, posterior, x, y)
    inside = x[:, [0, 2]] - x[:, [0, 2]].mean(0)
    centred = y - y.mean()
    shrinkage = 25 / 26
    least_squares = np.linalg.solve(inside.T @ inside, inside.T @ centred)
    left = centred @ centred - shrinkage * centred @ inside @ least_squares
    spread = np.sqrt(left / 24 * shrinkage * np.diag(np.linalg.inv(inside.T @ inside)))
    laws = {
        "first": (drawn["coefficient"][0, :, 0], scipy.stats.t(24, shrinkage * least_squares[0], spread[0])),
        "third": (drawn["coefficient"][0, :, 2], scipy.stats.t(24, shrinkage * least_squares[1], spread[1])),
        "noise": (drawn["noise"][0] ** -2, scipy.stats.gamma(12, scale=2 / left)),
        "level": (
            drawn["intercept"][0] + drawn["coefficient"][0] @ x.mean(0),
            scipy.stats.t(24, y.mean(), np.sqrt(left / 24 / 25)),
        ),
    }
    for name, (draws, law) in laws.items():
        assert scipy.stats.kstest(draws, law.cdf).pvalue > 1e-4, name


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros(5), np.zeros(5), "not arrays of shapes"),
        (np.zeros((5, 2)), np.zeros(4), "not arrays of shapes"),
        (np.ones((5, 1)), np.zeros(5), "linearly independent"),
        (np.random.default_rng(0).normal(size=(30, 21)), np.zeros(30), "at most 20"),
    ],
)
def test_data_that_do_not_fit_are_refused(x, y, message):
    with pytest.raises(qbs.errors.ModelError, match=message):
        VariableSelection().exact(x, y)


@pytest.mark.parametrize(
    "settings",
    [{"inclusion": 1.0}, {"slab": "h"}, {"variance": -1.0}, {"noise_shape": 1.0}, {"noise_scale": np.inf}],
)
def test_wrong_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        VariableSelection(**settings)
