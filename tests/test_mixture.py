"""Mixtures of an unknown number: against sums over the prior, the prior, and the published galaxies."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import qbs
from qbs.inference import mcmc
from qbs.inference.results.diagnostics import chain_statistics
from qbs.models.mixture import (
    GALAXY_COUNTS,
    GALAXY_VELOCITIES,
    Mixture,
    _merge,
    _split,
    components,
    count_table,
    density,
)


def require_probabilities(count, values, probabilities, errors=0.0):
    """Compare with the truth, whose own errors may be given, to within four standard errors."""
    for value, probability, error in zip(values, probabilities, errors + np.zeros(len(values)), strict=True):
        ess = chain_statistics((count == value).astype(float))["ess_bulk"]
        own = probability * (1 - probability) / ess
        assert abs(np.mean(count == value) - probability) < 4 * np.sqrt(own + error**2)


def test_the_data_are_those_of_roeder():
    assert len(GALAXY_VELOCITIES) == 82
    assert list(GALAXY_VELOCITIES) == sorted(GALAXY_VELOCITIES)
    assert GALAXY_VELOCITIES[0] == 9.172
    assert GALAXY_VELOCITIES[77] == 26.960
    assert GALAXY_VELOCITIES[-1] == 34.279
    assert sum(GALAXY_COUNTS) == pytest.approx(0.995)


def test_sites_are_those_of_the_paper():
    """The density of a state against its terms, by SciPy; slots that do not exist do not count."""
    y = np.array([-1.0, 0.5, 2.0])
    weight, mean, precision = np.array([0.4, 1.2, 9.0]), np.array([-1.0, 1.0, 5.0]), np.array([2.0, 0.5, 3.0])
    sites = {"count": 2, "rate": 0.3, "weight": weight, "mean": mean, "precision": precision}
    found = qbs.log_density(qbs.reify(Mixture(max_count=3)))(
        {name: jnp.asarray(value) for name, value in sites.items()}, y
    )
    law = weight[:2] / 1.6 * scipy.stats.norm(mean[:2], precision[:2] ** -0.5).pdf(y[:, None])
    wanted = -np.log(3) + scipy.stats.gamma(0.2, scale=9 / 10).logpdf(0.3)
    wanted += -weight[:2].sum() + scipy.stats.norm(0.5, 3).logpdf(mean[:2]).sum()
    wanted += scipy.stats.gamma(2, scale=1 / 0.3).logpdf(precision[:2]).sum() + np.log(law.sum(1)).sum()
    assert float(found) == pytest.approx(wanted, rel=1e-5)


def test_a_split_keeps_moments_and_a_merger_undoes_it():
    one = {"weight": jnp.asarray(1.7), "mean": jnp.asarray(-0.4), "precision": jnp.asarray(2.5)}
    for drawn in (
        {"share": 0.2, "apart": 0.7, "variance": 0.6},
        {"share": 0.9, "apart": -0.3, "variance": 0.1},
    ):
        a, b = _split(one, {name: jnp.asarray(value) for name, value in drawn.items()})
        weights, means = np.array([a["weight"], b["weight"]]), np.array([a["mean"], b["mean"]])
        squares = means**2 + 1 / np.array([a["precision"], b["precision"]])
        assert weights.sum() == pytest.approx(1.7)
        assert weights @ means / 1.7 == pytest.approx(-0.4, rel=1e-5)
        assert weights @ squares / 1.7 == pytest.approx(0.4**2 + 1 / 2.5, rel=1e-5)
        merged, found = _merge(a, b)
        for name, value in {**one, **drawn}.items():
            assert float({**merged, **found}[name]) == pytest.approx(float(value), rel=1e-5)


@pytest.mark.slow
def test_few_observations(key):
    """Probabilities of the number against averages of the likelihood over the prior, drawn by NumPy."""
    y, rng = np.array([-0.9, -0.8, 1.1]), np.random.default_rng(3)
    likelihood = np.zeros((3, 400_000))
    for count in (1, 2, 3):
        shape = (likelihood.shape[1], count)
        rate = rng.gamma(0.2, 4 / 10, (shape[0], 1))
        precision, mean = rng.gamma(2, 1 / np.maximum(rate, 1e-30), shape), rng.normal(0, 2, shape)
        product = 1.0
        weight = rng.dirichlet(np.ones(count), shape[0])
        for one in y:
            terms = weight * np.sqrt(precision / (2 * np.pi)) * np.exp(-0.5 * precision * (one - mean) ** 2)
            product = product * terms.sum(1)
        likelihood[count - 1] = product
    evidence = likelihood.mean(1)
    probabilities = evidence / evidence.sum()
    relative = likelihood.std(1) / np.sqrt(likelihood.shape[1]) / evidence
    errors = probabilities * np.sqrt(relative**2 + np.sum((probabilities * relative) ** 2))

    model = Mixture(max_count=3, middle=0.0, width=2.0)
    method = mcmc.Chains(model.kernel(y), num_warmup=200, num_draws=1000, is_unconstrained=False)
    posterior = qbs.fit(model, y, method=method, key=key, progress=False)
    count = posterior.samples["count"]
    assert chain_statistics(count)["r_hat"] < 1.01
    require_probabilities(count, [1, 2, 3], probabilities, errors)
    table = count_table(posterior)
    np.testing.assert_allclose(table.probabilities, [np.mean(count == k) for k in (1, 2, 3)])


@pytest.mark.slow
def test_without_observations_the_prior_comes_back(key):
    model = Mixture(max_count=5, middle=1.0, width=2.0)
    none = np.zeros(0)
    method = mcmc.Chains(model.kernel(none), num_draws=5000, is_unconstrained=False)
    draws = qbs.fit(model, none, method=method, key=key, progress=False).samples
    require_probabilities(draws["count"], range(1, 6), np.full(5, 0.2))
    laws = {
        "rate": scipy.stats.gamma(0.2, scale=4 / 10),
        "mean": scipy.stats.norm(1, 2),
        "weight": scipy.stats.expon(),
    }
    for name, law in laws.items():
        values = draws[name] if name == "rate" else draws[name][:, :, 0]
        for level in (0.1, 0.5, 0.9):
            require_probabilities(values < law.ppf(level), [True], [level])
    scaled = draws["precision"][:, :, 0] * draws["rate"]  # of no rate
    for level in (0.1, 0.5, 0.9):
        require_probabilities(scaled < scipy.stats.gamma(2).ppf(level), [True], [level])


@pytest.mark.slow
def test_the_galaxies_as_published(key):
    """Four chains; the errors of the published table, itself from chains, are not known."""
    y = np.array(GALAXY_VELOCITIES)
    model = Mixture()
    method = mcmc.Chains(model.kernel(y), num_draws=5000, thinning=8, is_unconstrained=False)
    posterior = qbs.fit(model, y, method=method, key=key, progress=False)
    count = posterior.samples["count"]
    assert count.shape[0] == 4
    assert chain_statistics(count)["r_hat"] < 1.01
    found = np.bincount(count.ravel(), minlength=31)[1:] / count.size
    distance = 0.5 * np.abs(found - np.append(GALAXY_COUNTS, np.zeros(16))).sum()
    assert distance <= 0.03
    grid = np.linspace(-20, 65, 1701)
    assert np.trapezoid(density(posterior, grid), grid) == pytest.approx(1, abs=0.01)


def made_up():
    """Two draws, of two and of three components."""
    return qbs.Posterior(
        samples={
            "count": np.array([[2, 3]]),
            "weight": np.array([[[3.0, 1.0, 1.0], [1.0, 2.0, 1.0]]]),
            "mean": np.array([[[5.0, 1.0, 0.0], [2.0, 7.0, 4.0]]]),
            "precision": np.array([[[4.0, 1.0, 1.0], [1.0, 0.25, 1.0]]]),
        }
    )


def test_density_is_the_mean_over_draws():
    grid = np.linspace(-3.0, 12.0, 7)
    normal = scipy.stats.norm.pdf
    two = 0.75 * normal(grid, 5, 0.5) + 0.25 * normal(grid, 1, 1)
    three = 0.25 * normal(grid, 2, 1) + 0.5 * normal(grid, 7, 2) + 0.25 * normal(grid, 4, 1)
    np.testing.assert_allclose(density(made_up(), grid), (two + three) / 2, rtol=1e-5)
    np.testing.assert_allclose(density(made_up(), grid, count=3), three, rtol=1e-5)
    with pytest.raises(ValueError, match=r"no draw has 4 components; there are \[2, 3\]"):
        density(made_up(), grid, count=4)


def test_components_come_in_the_order_of_their_means():
    found = components(made_up(), 3)
    np.testing.assert_allclose(found["mean"], [[2, 4, 7]])
    np.testing.assert_allclose(found["sd"], [[1, 1, 2]])
    np.testing.assert_allclose(found["weight"], [[0.25, 0.25, 0.5]])


def test_the_table_prints_its_numbers():
    lines = repr(count_table(made_up())).splitlines()
    assert lines[0].split() == ["count", "probability", "error"]
    assert [line.split()[:2] for line in lines[1:]] == [["2", "0.5000"], ["3", "0.5000"]]


@pytest.mark.parametrize(
    ("y", "message"), [(np.zeros((3, 4)), "not an array of shape"), (np.zeros(1), "two observations")]
)
def test_observations_that_do_not_fit_are_refused(y, message):
    with pytest.raises(qbs.errors.ModelError, match=message):
        Mixture().kernel(y)


@pytest.mark.parametrize(
    "settings", [{"max_count": 1}, {"width": 0.0}, {"shape": -1.0}, {"rate_scale": np.inf}]
)
def test_wrong_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Mixture(**settings)
