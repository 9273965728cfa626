"""The non-Gaussian score: entropies against known ones, orders against known graphs."""

import math

import numpy as np
import pytest

from qbs.inference.dag.local_search import local_search
from qbs.inference.dag.parents import choose_parents
from qbs.inference.dag.scores.lingam import LingamScore, gaussian_doubts, gaussianity
from qbs.models.structural.comparison import compare_graphs
from qbs.models.structural.simulation import causal_order, simulate_dag, simulate_sem

GAUSSIAN = 0.5 * math.log(2 * math.pi * math.e)
LAWS = {  # draws, quantiles, and entropies
    "uniform": (lambda rng, size: rng.uniform(-0.5, 0.5, size), lambda p: p - 0.5, 0.0),
    "laplace": (
        lambda rng, size: rng.laplace(size=size),
        lambda p: np.sign(p - 0.5) * -np.log1p(-2 * np.abs(p - 0.5)),
        1 + math.log(2),
    ),
    "exponential": (lambda rng, size: rng.exponential(size=size), lambda p: -np.log1p(-p), 1.0),
    "gumbel": (lambda rng, size: rng.gumbel(size=size), lambda p: -np.log(-np.log(p)), 1 + np.euler_gamma),
    "logistic": (lambda rng, size: rng.logistic(size=size), lambda p: np.log(p) - np.log1p(-p), 2.0),
}


def alone(values):
    """Return the entropies of independent columns."""
    num_nodes = values.shape[1]
    return LingamScore(values).scores(np.arange(num_nodes), np.zeros((num_nodes, num_nodes), bool))


def unequal_data(noise, seed, *, num_nodes=10, num_rows=2000):
    """Return a graph and data with noises of unequal variances, in units of all sizes."""
    rng = np.random.default_rng(seed)
    truth = simulate_dag(num_nodes, 2 * num_nodes, seed=seed)
    scale = rng.uniform(0.5, 2.0, num_nodes)
    data = simulate_sem(truth, num_rows, noise, noise_scale=scale, seed=seed + 100)
    return truth, data * 10 ** rng.uniform(-2, 2, num_nodes)


def pruned(data, order):
    """Return the graph along an order, and the residuals."""
    num_nodes, covariance = len(order), np.cov(data.T, bias=True)
    weights, residuals = np.zeros((num_nodes, num_nodes)), []
    for place, node in enumerate(map(int, order)):
        candidates = np.isin(np.arange(num_nodes), order[:place])
        found = choose_parents(covariance, node, candidates, len(data))
        weights[found.parents, node] = found.weights
        residuals.append(data[:, node] - data[:, found.parents] @ found.weights)
    return weights, np.stack(residuals, axis=1)


def test_the_entropy_of_a_gaussian_is_exact():
    data = 3.0 * np.random.default_rng(0).normal(size=(200_000, 2))
    # Of the log of a standard deviation, and of a chi-square law with two degrees over twice the rows.
    np.testing.assert_allclose(alone(data), GAUSSIAN + math.log(3), atol=5 / math.sqrt(2 * 200_000))


@pytest.mark.parametrize("law", LAWS)
def test_entropies_are_near_the_known_ones(law):
    """What is lacking of a Gaussian's entropy: that of the formula, and right within a factor of four."""
    draw, quantile, known = LAWS[law]
    data = draw(np.random.default_rng(1), (200_000, 1))
    found = GAUSSIAN + math.log(data.std()) - float(alone(data)[0])
    values = quantile((np.arange(1_000_000) + 0.5) / 1_000_000)  # of equal chance
    values = (values - values.mean()) / values.std()
    even, odd = np.log(np.cosh(values)).mean(), (values * np.exp(-(values**2) / 2)).mean()
    formula = 79.0156 * (even - 0.374567) ** 2 + 36 / (8 * math.sqrt(3) - 9) * odd**2
    # Of the root, which is a mean over rows, but for the standard deviation.
    assert math.sqrt(found) == pytest.approx(math.sqrt(formula), abs=10 / math.sqrt(200_000))
    assert 0.25 < formula / (GAUSSIAN + math.log(draw(np.random.default_rng(2), 10**6).std()) - known) < 4


def test_a_score_is_that_of_the_residual_of_least_squares():
    rng = np.random.default_rng(2)
    data = rng.exponential(size=(1500, 6)) @ rng.normal(size=(6, 6)) + [1, 2, 3, 4, 5, 6]
    score = LingamScore(data)
    nodes = rng.integers(0, 6, 90)  # two sizes of batches
    candidates = rng.uniform(size=(90, 6)) < 0.5
    candidates[np.arange(90), nodes] = False
    found = score.scores(nodes, candidates)
    for node, may_be, value in zip(nodes, candidates, found, strict=True):
        design = np.column_stack([np.ones(1500), data[:, may_be]])
        residual = data[:, node] - design @ np.linalg.lstsq(design, data[:, node], rcond=None)[0]
        lacking = gaussianity(residual[:, None]).negentropies[0]
        assert value == pytest.approx(GAUSSIAN + math.log(residual.std()) - lacking, abs=1e-7)
    candidates[np.arange(90), nodes] = True  # a node is no parent of itself
    np.testing.assert_array_equal(score.scores(nodes, candidates), found)


def test_units_add_a_constant():
    _, data = unequal_data("gumbel", 3)
    factors = 10.0 ** np.linspace(-6, 6, 10)
    rng = np.random.default_rng(3)
    nodes, candidates = rng.integers(0, 10, 40), rng.uniform(size=(40, 10)) < 0.5
    first, second = LingamScore(data), LingamScore(data * factors - 7.0)
    changes = second.scores(nodes, candidates) - first.scores(nodes, candidates)
    np.testing.assert_allclose(changes, np.log(factors)[nodes], atol=1e-6)
    np.testing.assert_array_equal(first.top_down_order(), second.top_down_order())


@pytest.mark.parametrize("noise", ["exponential", "gumbel", "uniform"])
@pytest.mark.parametrize("seed", range(3))
def test_graphs_are_found_whatever_the_variances_and_units(noise, seed):
    truth, data = unequal_data(noise, seed)
    score = LingamScore(data)
    start = score.top_down_order()
    found = local_search(score.scores, start, np.zeros((10, 10), bool))
    places = np.argsort(causal_order(truth))
    known = score.scores(np.arange(10), places < places[:, None]).sum()
    assert found.score <= known + 1e-9
    weights, residuals = pruned(data, found.order)
    assert compare_graphs(weights, truth).shd <= 1
    assert gaussian_doubts(residuals) == []


def test_gaussian_noise_is_not_oriented_and_said():
    truth, data = unequal_data("gaussian", 0)
    score = LingamScore(data)
    rng, bounds = np.random.default_rng(0), []
    for order in (causal_order(truth), rng.permutation(10), rng.permutation(10)):
        places = np.argsort(order)
        bounds.append(score.scores(np.arange(10), places < places[:, None]).sum())
    # Twice the rows times what all lack has a chi-square law of 20 degrees of freedom.
    assert np.ptp(bounds) < (20 + 5 * math.sqrt(40)) / (2 * 2000)
    (sentence,) = gaussian_doubts(pruned(data, score.top_down_order())[1])
    assert "directions mean nothing" in sentence


def test_the_test_of_gaussianity_holds_its_level():
    for law in ("normal", "exponential"):
        p_values = gaussianity(getattr(np.random.default_rng(5), law)(size=(200, 4000))).p_values
        for level in (0.01, 0.1, 0.5):
            share = np.mean(p_values < level)
            if law == "normal":
                # A tenth for rows being few, and what chance does.
                assert share == pytest.approx(level, abs=0.1 * level + 4 * math.sqrt(level / 4000))
            else:
                assert share > 0.99


def test_doubts_of_some_residuals():
    rng = np.random.default_rng(6)
    data = np.column_stack([rng.normal(size=(1000, 2)), rng.exponential(size=(1000, 3))])
    (sentence,) = gaussian_doubts(data)
    assert "2 of 5" in sentence
    assert gaussian_doubts(data[:, 1:]) == []  # one may be Gaussian
    assert gaussian_doubts(data[:, :1]) == []  # nothing to orient
    assert "With 20 rows" in gaussian_doubts(data[:20])[0]
    assert gaussianity(np.ones((30, 1))).p_values == [1.0]


def test_the_start_keeps_the_rules():
    truth, data = unequal_data("exponential", 4)
    order = causal_order(truth)
    before = np.zeros((10, 10), bool)
    before[np.ix_(order[5:], order[:5])] = True  # against the truth
    places = np.argsort(LingamScore(data).top_down_order(before))
    assert np.all(places[:, None] < places, where=before)


def test_columns_that_others_tell_and_few_compilations(compile_events):
    rng = np.random.default_rng(8)
    data = rng.exponential(size=(500, 5))
    data = np.column_stack([data, data[:, 0], data[:, 1] + data[:, 2]])
    score = LingamScore(data)
    every = ~np.eye(7, dtype=bool)
    assert np.all(np.isfinite(score.scores(np.arange(7), every)))
    assert sorted(score.top_down_order()) == list(range(7))
    with compile_events() as events:
        score.scores(np.arange(7), np.zeros((7, 7), bool))
        score.scores(np.array([3]), every[:1])
        other = LingamScore(data * rng.uniform(1, 2, 7))
        other.scores(np.arange(5), every[:5])
        other.top_down_order()
    assert events == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.eye(5), "at least 7 rows for 5 columns"),
        (np.array([[1.0], [2.0], [np.nan], [4.0]]), "finite"),
        (np.column_stack([np.arange(9.0), np.full(9, 1 / 3)]), r"\[1\] are constant"),
    ],
)
def test_what_cannot_be_scored(values, words):
    with pytest.raises(ValueError, match=words):
        LingamScore(values)
