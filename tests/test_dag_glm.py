"""Scores by generalized linear models: against scikit-learn, by numbers, and on data of known graphs."""

import itertools

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from qbs.inference.dag.equations import LinearEquation
from qbs.inference.dag.equivalence import completed_graph
from qbs.inference.dag.local_search import local_search
from qbs.inference.dag.parents import choose_parents, penalty
from qbs.inference.dag.scores.discrete_equations import (
    CategoricalEquation,
    GroupedLinearEquation,
    LogisticEquation,
)
from qbs.inference.dag.scores.logistic import LogisticScore
from qbs.inference.dag.scores.mixed import MixedScore
from qbs.inference.dag.scores.score import Pruning
from qbs.inference.dag.starts import random_order
from qbs.models.structural.comparison import compare_graphs
from qbs.models.structural.simulation import causal_order, simulate_dag, simulate_sem

NUM_NODES = 10
NONE = Pruning("none")


@pytest.fixture(scope="module")
def truth():
    return simulate_dag(NUM_NODES, 2 * NUM_NODES, seed=0)


@pytest.fixture(scope="module")
def binary(truth):
    return simulate_sem(truth, 1000, equations="logistic", seed=100)


def some_asks(count, num_nodes=NUM_NODES, seed=0):
    rng = np.random.default_rng(seed)
    nodes = np.arange(count) % num_nodes
    candidates = rng.uniform(size=(count, num_nodes)) < 0.6
    candidates[np.arange(count), nodes] = False
    return nodes, candidates


def reference(regressors, classes, l1=0.0):
    """Return coefficients, intercepts and loss of scikit-learn's fit."""
    settings = {"l1_ratio": 1.0, "solver": "saga"} if l1 else {"solver": "newton-cholesky"}
    strength = 1 / (l1 * len(classes)) if l1 else np.inf
    model = LogisticRegression(C=strength, tol=1e-10, max_iter=20_000, random_state=0, **settings)
    model.fit(regressors, classes)
    logs = model.predict_log_proba(regressors)[np.arange(len(classes)), classes.astype(int)]
    return model.coef_, model.intercept_, -logs.mean()


def log_likelihood_loss(values, node, coefficients, intercept=0.0):
    log_odds = intercept + values @ coefficients
    return np.mean(np.logaddexp(0, log_odds) - values[:, node] * log_odds)


def all_before(order):
    """Return who is before each node of an order."""
    return np.array([np.isin(np.arange(len(order)), order[:place]) for place in range(len(order))])


def graph_along(score, order, pruning):
    weights, is_before = np.zeros((len(order),) * 2), np.zeros(len(order), bool)
    for node in map(int, order):
        equation = score.equation(node, is_before, np.zeros(len(order), bool), pruning)
        weights[equation.parents, node] = equation.weights
        is_before[node] = True
    return weights


def test_fits_are_those_of_scikit_learn(binary):
    nodes, candidates = some_asks(20)
    fits = LogisticScore(binary).fits(nodes, candidates)
    for at, (node, mask) in enumerate(zip(nodes, candidates, strict=True)):
        coefficients, _, loss = reference(binary[:, mask], binary[:, node])
        np.testing.assert_allclose(fits.weights[at, mask], coefficients[0], atol=1e-5)
        assert np.all(fits.weights[at, ~mask] == 0)
        assert fits.scores[at] == pytest.approx(loss, abs=1e-10)


def test_fits_with_a_penalty_are_those_of_scikit_learn(binary):
    nodes, candidates = some_asks(3)
    fits = LogisticScore(binary, l1=0.004).fits(nodes, candidates)
    for at, (node, mask) in enumerate(zip(nodes, candidates, strict=True)):
        coefficients, _, loss = reference(binary[:, mask], binary[:, node], l1=0.004)
        np.testing.assert_allclose(fits.weights[at, mask], coefficients[0], atol=1e-5)
        assert fits.scores[at] == pytest.approx(loss + 0.004 * np.abs(coefficients).sum(), abs=1e-8)


def test_fits_with_a_penalty_keep_the_conditions_of_a_minimum(binary):
    nodes, candidates = some_asks(8, seed=1)
    fits = LogisticScore(binary, l1=0.02).fits(nodes, candidates)
    is_zero = candidates & (fits.weights == 0)
    assert is_zero.any()
    assert np.all(np.abs(fits.gradients[is_zero]) <= 0.02 + 1e-8)
    other = candidates & ~is_zero
    np.testing.assert_allclose(fits.gradients[other], -0.02 * np.sign(fits.weights[other]), atol=1e-8)


def test_gradients_are_derivatives(binary):
    nodes, candidates = some_asks(6, seed=2)
    score = LogisticScore(binary, l1=0.01)
    fits = score.fits(nodes, candidates)
    for at, node in enumerate(nodes):
        # The intercept is where its own derivative is zero: found here by bisection.
        low, high = -30.0, 30.0
        for _ in range(80):
            middle = (low + high) / 2
            chances = 1 / (1 + np.exp(-middle - binary @ fits.weights[at]))
            low, high = (middle, high) if chances.mean() < binary[:, node].mean() else (low, middle)
        for other in range(NUM_NODES):
            step = 1e-5 * (np.arange(NUM_NODES) == other)
            up, down = (
                log_likelihood_loss(binary, node, fits.weights[at] + sign * step, low) for sign in (1, -1)
            )
            slope = 0.0 if other == node else (up - down) / 2e-5
            assert fits.gradients[at, other] == pytest.approx(slope, abs=1e-7)


def test_answers_do_not_depend_on_what_is_asked_together(binary):
    nodes, candidates = some_asks(140, seed=3)  # more than one batch
    together = LogisticScore(binary).fits(nodes, candidates)
    score = LogisticScore(binary)
    for at in (0, 77, 139):
        alone = score.fits(nodes[[at]], candidates[[at]])
        np.testing.assert_allclose(alone.weights[0], together.weights[at], atol=1e-7)
    assert score.num_fits == 3
    score.fits(nodes[[0]], candidates[[0]])
    assert score.num_fits == 3
    assert score.scores(nodes[:0], candidates[:0]).shape == (0,)


def test_more_fits_are_not_compiled_again(binary, compile_events):
    nodes, candidates = some_asks(20, seed=4)
    LogisticScore(binary).scores(nodes, candidates)
    with compile_events() as events:
        LogisticScore(binary[::-1]).scores(nodes[:13], candidates[::-1][:13])
    assert not events


def test_complete_separation_stays_finite():
    rng = np.random.default_rng(0)
    first, other = rng.integers(0, 2, (2, 300)).astype(float)
    rare = np.zeros(300)
    rare[:2] = 1
    values = np.stack([first, first, other, 1 - first, rare, np.zeros(300), np.ones(300)], axis=1)
    score = LogisticScore(values)
    full = ~np.eye(7, dtype=bool)
    fits = score.fits(np.arange(7), full)
    assert all(np.isfinite(array).all() for array in fits)
    assert np.abs(fits.weights).max() < 50
    assert fits.scores[[0, 1, 3]].max() < 1e-6
    assert np.all(np.abs(fits.scores[[5, 6]]) < 1e-6)  # constant nodes
    entropy = -np.mean(other) * np.log(np.mean(other)) - np.mean(1 - other) * np.log(np.mean(1 - other))
    assert 0.9 * entropy < fits.scores[2] <= entropy
    equation = score.equation(0, full[0], np.zeros(7, bool), Pruning())
    assert list(equation.parents) in ([1], [3])
    assert np.isfinite(equation.weights).all()
    mixed = MixedScore(values, ["binary"] * 7).scores(np.arange(7), full)
    assert np.isfinite(mixed).all()


def test_a_column_constant_where_another_is_one():
    rng = np.random.default_rng(1)
    cause = rng.integers(0, 2, 400).astype(float)
    effect = np.where(cause == 1, 1.0, rng.integers(0, 2, 400))
    fits = LogisticScore(np.stack([cause, effect], 1)).fits(np.array([1]), np.array([[True, False]]))
    share = effect[cause == 0].mean()
    entropy = -share * np.log(share) - (1 - share) * np.log(1 - share)
    assert fits.scores[0] == pytest.approx(np.mean(cause == 0) * entropy, abs=1e-6)
    assert 10 < fits.weights[0, 0] < 50


def test_many_rows_are_looked_at_in_blocks():
    """More rows than one block, none alike: numbers tell them apart."""
    rng = np.random.default_rng(2)
    number = rng.normal(3.0, 2.0, 9000)
    label = (rng.uniform(size=9000) < 1 / (1 + np.exp(3 - number))).astype(float)
    score = MixedScore(np.stack([number, label], 1), ["continuous", "binary"])
    equation = score.equation(1, np.array([True, False]), np.zeros(2, bool), NONE)
    coefficients, intercept, _ = reference(number[:, None], label)
    assert equation.weights[0] == pytest.approx(coefficients[0, 0], abs=1e-5)
    assert equation.intercept == pytest.approx(intercept[0], abs=1e-5)


def some_mixed(num_rows, seed=0):
    """Return data of x0 -> x2 <- x1, x2 -> x3 -> x4, x2 -> x4 absent; x1 categorical, x2 and x4 numbers."""
    rng = np.random.default_rng(seed)
    number = rng.normal(2.0, 1.5, num_rows)
    category = rng.choice(3, num_rows, p=[0.5, 0.3, 0.2])
    effect = 1.2 * number + np.array([0.0, 2.0, -2.0])[category] + rng.normal(size=num_rows)
    label = (rng.uniform(size=num_rows) < 1 / (1 + np.exp(2.4 - effect))).astype(float)
    odds = np.exp(np.stack([np.zeros(num_rows), 2.5 * label - 1, 1 - 2.5 * label], 1))
    upper = np.cumsum(odds / odds.sum(1, keepdims=True), 1)
    last = (rng.uniform(size=(num_rows, 1)) > upper).sum(1)
    values = np.stack([number, category, effect, label, last], 1).astype(float)
    is_edge = np.zeros((5, 5), bool)
    is_edge[[0, 1, 2, 3], [2, 2, 3, 4]] = True
    return values, ("continuous", "categorical", "continuous", "binary", "categorical"), is_edge


def test_regressions_of_categories_are_those_of_scikit_learn():
    values, kinds, _ = some_mixed(2000)
    score = MixedScore(values, kinds)
    required = np.zeros(5, bool)
    dummies = np.stack([values[:, 1] == 1, values[:, 1] == 2], 1)
    regressors = np.concatenate([values[:, [0]], dummies, values[:, [2, 3]]], 1)
    equation = score.equation(4, np.arange(5) < 4, required, NONE)
    coefficients, intercepts, _ = reference(regressors, values[:, 4])
    assert isinstance(equation, CategoricalEquation)
    np.testing.assert_allclose(equation.coefficients, coefficients[1:] - coefficients[0], atol=1e-5)
    np.testing.assert_allclose(equation.intercepts, intercepts[1:] - intercepts[0], atol=1e-5)
    assert equation.weights[1] == pytest.approx(np.linalg.norm(equation.coefficients[:, 1:3]))
    binary = score.equation(3, np.arange(5) < 3, required, NONE)
    coefficients, intercepts, _ = reference(regressors[:, :4], values[:, 3])
    assert isinstance(binary, LogisticEquation)
    np.testing.assert_allclose(binary.coefficients, coefficients[0], atol=1e-5)
    linear = score.equation(2, np.arange(5) < 2, required, NONE)
    own = np.linalg.lstsq(np.column_stack([np.ones(2000), regressors[:, :3]]), values[:, 2], rcond=None)[0]
    assert isinstance(linear, GroupedLinearEquation)
    np.testing.assert_allclose([linear.intercept, *linear.coefficients], own, atol=1e-7)
    assert linear.noise_variance == pytest.approx(np.var(values[:, 2] - linear.mean(values)))
    plain = score.equation(2, np.arange(5) == 0, required, NONE)
    assert isinstance(plain, LinearEquation)
    assert plain.weights[0] == pytest.approx(np.polyfit(values[:, 0], values[:, 2], 1)[0])


def test_scores_of_numbers_are_those_of_the_gaussian_criterion():
    rng = np.random.default_rng(5)
    values = rng.normal(size=(500, 8)) @ (np.eye(8) + np.triu(rng.normal(size=(8, 8)), 1) / 2) + 3.0
    covariance = np.cov(values.T, bias=True)
    nodes, candidates = some_asks(40, 8, seed=6)
    score = MixedScore(values, ["continuous"] * 8, gamma=0.5)
    found = score.scores(nodes, candidates)
    for node, mask, value in zip(nodes, candidates, found, strict=True):
        known = choose_parents(covariance, int(node), mask, 500, gamma=0.5)
        assert value == pytest.approx((known.criterion + np.log(2 * np.pi) + 1) / 2, abs=1e-8)
        parents = score.equation(int(node), mask, np.zeros(8, bool), Pruning("ebic", 0.5)).parents
        assert list(parents) == list(known.parents)


def test_scores_are_the_least_criteria_of_all_sets():
    values, kinds, _ = some_mixed(2000, seed=1)
    score = MixedScore(values, kinds)
    sizes = np.array([1, 2, 1, 1, 2])
    price = penalty(2000, 4, 1.0) / 2
    regressors = [values[:, [0]], values[:, [1]] == [1, 2], values[:, [2]], values[:, [3]]]

    def criterion(chosen):
        columns = np.concatenate([regressors[parent] for parent in chosen], 1)
        return reference(columns, values[:, 4])[2] + price * 2 * sizes[list(chosen)].sum()

    every = [chosen for size in range(1, 5) for chosen in itertools.combinations(range(4), size)]
    best = min(criterion(chosen) for chosen in every)
    found = score.scores(np.array([4]), np.arange(5)[None] < 4)
    assert found[0] == pytest.approx(best, abs=1e-7)


def test_the_search_finds_as_good_an_order_as_the_true_one(truth, binary, record_property):
    score = LogisticScore(binary)
    none = np.zeros((NUM_NODES, NUM_NODES), bool)
    rng = np.random.default_rng(0)
    starts = [random_order(rng, none) for _ in range(3)]
    found = min((local_search(score.scores, start, none) for start in starts), key=lambda found: found.score)
    order = causal_order(truth)
    assert found.score <= score.scores(order, all_before(order)).sum()
    distance = compare_graphs(graph_along(score, found.order, Pruning()), truth).shd
    record_property("shd", distance)
    assert distance <= 12  # the score says little about directions
    assert compare_graphs(graph_along(score, order, Pruning()), truth).shd <= 1


def test_mixed_data_give_the_graph():
    values, kinds, is_edge = some_mixed(2000)
    score = MixedScore(values, kinds)
    none = np.zeros((5, 5), bool)
    rng = np.random.default_rng(0)
    starts = [random_order(rng, none) for _ in range(6)]
    found = min((local_search(score.scores, start, none) for start in starts), key=lambda found: found.score)
    graph = graph_along(score, found.order, Pruning()) != 0
    np.testing.assert_array_equal(graph | graph.T, is_edge | is_edge.T)
    compelled = completed_graph(is_edge)
    compelled &= ~compelled.T
    assert compelled.any()
    assert np.all(graph[compelled])


def test_parents_by_threshold_and_required_ones(truth, binary):
    order = causal_order(truth)
    node = int(order[-1])
    candidates = np.arange(NUM_NODES) != node
    score = LogisticScore(binary)
    weights = score.fits(np.array([node]), candidates[None]).weights[0]
    equation = score.equation(node, candidates, np.zeros(NUM_NODES, bool), Pruning("threshold"))
    np.testing.assert_array_equal(equation.parents, np.flatnonzero(np.abs(weights) > 0.3))
    weakest = int(np.argmin(np.where(candidates, np.abs(weights), np.inf)))
    required = np.arange(NUM_NODES) == weakest
    for pruning in (Pruning(), Pruning("threshold"), NONE):
        assert weakest in score.equation(node, candidates, required, pruning).parents
    assert len(score.equation(node, candidates, required, NONE).parents) == NUM_NODES - 1
    mixed = MixedScore(binary, ["binary"] * NUM_NODES)
    again = mixed.equation(node, candidates, required, Pruning("threshold"))
    assert set(again.parents) == set(equation.parents) | {weakest}


def test_equations_draw_what_they_expect():
    values, kinds, _ = some_mixed(20_000, seed=3)
    score = MixedScore(values[:2000], kinds)
    rng = np.random.default_rng(0)
    no = np.zeros(5, bool)
    label = score.equation(3, np.arange(5) < 3, no, Pruning())
    drawn, chances = label.draw(rng, values), label.mean(values)
    assert set(np.unique(drawn)) == {0.0, 1.0}
    assert drawn.mean() == pytest.approx(chances.mean(), abs=5 * 0.5 / 20_000**0.5)
    assert np.isnan(label.noise_variance)
    last = score.equation(4, np.arange(5) < 4, no, Pruning())
    assert list(last.parents) == [3]
    drawn, chances = last.draw(rng, values), last.chances(values)
    for code in range(3):
        share = np.mean(drawn == code)
        assert share == pytest.approx(chances[:, code].mean(), abs=5 * 0.5 / 20_000**0.5)
    np.testing.assert_array_equal(last.mean(values), chances.argmax(1))
    assert np.isnan(last.noise_variance)
    number = score.equation(2, np.arange(5) < 2, no, Pruning())
    noise = number.draw(rng, values) - number.mean(values)
    assert noise.var() == pytest.approx(number.noise_variance, rel=5 * (2 / 20_000) ** 0.5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: LogisticScore(np.array([[0.0, 1.0], [1.0, 2.0]])), "LogisticScore: column 1 .* not 2"),
        (lambda: LogisticScore(np.array([[0.0, np.nan], [1.0, 1.0]])), "LogisticScore: column 1 .* finite"),
        (lambda: LogisticScore(np.eye(3), l1=-1.0), "l1"),
        (lambda: LogisticScore(np.zeros((1, 3))), "two rows"),
        (lambda: MixedScore(np.eye(3), ["binary"] * 2), "2 kinds for 3"),
        (lambda: MixedScore(np.eye(2), ["binary", "text"]), "column 1: the kind .* 'text'"),
        (lambda: MixedScore(-np.eye(2), ["continuous", "categorical"]), "column 1 must hold codes .* -1"),
        (lambda: MixedScore(np.eye(2) / 2, ["binary", "continuous"]), "column 0 must hold 0 and 1"),
    ],
)
def test_what_cannot_be_scored(call, words):
    with pytest.raises(ValueError, match=words):
        call()
