"""Parents by the adaptive lasso, and all thresholds: against scikit-learn and brute force."""

import itertools
import math

import numpy as np
import pytest

from qbs.inference.dag.adaptive_lasso import lasso_parents, lasso_path
from qbs.inference.dag.parents import choose_parents, penalty, regress
from qbs.inference.dag.threshold_path import threshold_path
from qbs.models.structural.comparison import compare_graphs
from qbs.models.structural.simulation import causal_order, simulate_dag, simulate_sem


def correlated(num_rows, num_columns, seed):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(num_columns, num_columns)) + 2 * np.eye(num_columns)
    data = rng.normal(size=(num_rows, num_columns)) @ mixing
    return data - data.mean(0)


def simulated(num_nodes, seed, num_rows=1000):
    truth = simulate_dag(num_nodes, 2 * num_nodes, seed=seed)
    return truth, np.cov(simulate_sem(truth, num_rows, seed=seed).T, bias=True)


def test_the_path_is_that_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    for seed in range(4):
        data = correlated(60, 9, seed)
        design, target = data[:, :8], data[:, 8]
        knots = list(lasso_path(design.T @ design / 60, design.T @ target / 60))
        levels = np.array([knot.penalty for knot in knots])
        assert np.all(np.diff(levels) <= 0)
        for level in levels[0] * np.array([0.9, 0.5, 0.1, 0.02, 0.003]):
            after = int(np.argmax(levels <= level))
            share = (levels[after - 1] - level) / (levels[after - 1] - levels[after])
            found = (1 - share) * knots[after - 1].coefficients + share * knots[after].coefficients
            known = linear_model.Lasso(level, fit_intercept=False, tol=1e-12, max_iter=100_000)
            np.testing.assert_allclose(found, known.fit(design, target).coef_, atol=1e-6)


def test_predictors_leave_the_path_and_it_ends_at_least_squares():
    num_left = 0
    for seed in range(20):
        data = correlated(40, 12, seed)
        gram, with_target = data[:, :11].T @ data[:, :11] / 40, data[:, :11].T @ data[:, 11] / 40
        sets = []
        for knot in lasso_path(gram, with_target):
            slopes = with_target - gram @ knot.coefficients
            assert np.max(np.abs(slopes)) <= knot.penalty + 1e-9
            is_in = knot.coefficients != 0
            expected = knot.penalty * np.sign(knot.coefficients[is_in])
            np.testing.assert_allclose(slopes[is_in], expected, atol=1e-9)
            sets.append(is_in)
        num_left += sum(np.any(first & ~second) for first, second in itertools.pairwise(sets))
        np.testing.assert_allclose(knot.coefficients, np.linalg.solve(gram, with_target), atol=1e-7)
    assert num_left > 0


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_adaptive_lasso_is_a_lasso_of_a_reweighted_design(power):
    """All sets of the path of scikit-learn, refitted: the best of them is what is returned."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    for seed in range(5):
        rng = np.random.default_rng(seed)
        data = correlated(400, 9, seed)
        data[:, 8] = data[:, :3] @ [1.0, -0.5, 0.2] + 2 * rng.normal(size=400)
        data = data - data.mean(0)
        covariance = data.T @ data / 400
        scaled = data / data.std(0)
        weights = np.abs(np.linalg.lstsq(scaled[:, :8], scaled[:, 8], rcond=None)[0]) ** power
        _, _, path = linear_model.lars_path(scaled[:, :8] * weights, scaled[:, 8], method="lasso")
        price = penalty(400, 8, 1.0)

        def criterion(parents, covariance=covariance, price=price):
            return math.log(regress(covariance, 8, parents)[1]) + price * len(parents)

        best = min((np.flatnonzero(column) for column in path.T), key=criterion)
        found = lasso_parents(covariance, 8, np.arange(9) < 8, 400, power=power)
        np.testing.assert_array_equal(found.parents, best)
        assert found.criterion == pytest.approx(criterion(best))
        np.testing.assert_allclose(found.weights, regress(covariance, 8, best)[0])
        units = 10.0 ** rng.uniform(-3, 3, 9)
        other = lasso_parents(covariance * np.outer(units, units), 8, np.arange(9) < 8, 400, power=power)
        np.testing.assert_array_equal(other.parents, best)


@pytest.mark.parametrize("seed", range(3))
def test_adaptive_lasso_along_the_true_order(seed):
    truth, covariance = simulated(15, seed)
    order, weights = causal_order(truth), np.zeros_like(truth)
    gap = []
    for place, node in enumerate(map(int, order)):
        candidates = np.isin(np.arange(15), order[:place])
        found = lasso_parents(covariance, node, candidates, 1000)
        weights[found.parents, node] = found.weights
        gap.append(found.criterion - choose_parents(covariance, node, candidates, 1000).criterion)
    assert compare_graphs(weights, truth).shd <= 1
    assert np.max(gap) < penalty(1000, 14, 1.0)


def test_required_parents_stay_and_are_not_shrunken():
    data = correlated(300, 6, 9)
    data[:, 5] = 3 * data[:, 0] + np.random.default_rng(9).normal(size=300)
    covariance = np.cov(data.T, bias=True)
    candidates, required = np.array([True] * 4 + [False] * 2), np.arange(6) == 2
    assert list(lasso_parents(covariance, 5, candidates, 300).parents) == [0]
    found = lasso_parents(covariance, 5, candidates, 300, required=required)
    assert list(found.parents) == [0, 2]
    none = lasso_parents(covariance, 5, np.zeros(6, bool), 300)
    assert len(none.parents) == 0
    assert none.variance == pytest.approx(covariance[5, 5])
    only = lasso_parents(covariance, 5, required, 300, required=required)
    assert list(only.parents) == [2]


def test_one_of_two_equal_candidates_is_taken():
    rng = np.random.default_rng(10)
    cause = rng.normal(size=500)
    data = np.stack([cause, cause, rng.normal(size=500), 2 * cause + rng.normal(size=500)])
    found = lasso_parents(np.cov(data, bias=True), 3, np.arange(4) < 3, 500)
    assert len(found.parents) == 1
    assert found.parents[0] in (0, 1)
    assert found.weights[0] == pytest.approx(2.0, abs=5 / math.sqrt(500))


def brute_force(covariance, is_edge, price):
    """Return the criterion of a graph."""
    logs = [
        math.log(regress(covariance, node, np.flatnonzero(is_edge[:, node]))[1])
        for node in range(len(covariance))
    ]
    return sum(logs) + price * is_edge.sum()


@pytest.mark.parametrize("has_rules", [False, True])
def test_each_graph_of_a_path_is_that_of_its_threshold(has_rules):
    _, covariance = simulated(9, 1)
    order, rng = np.random.default_rng(1).permutation(9), np.random.default_rng(2)
    none = np.zeros((9, 9), bool)
    places = np.argsort(order)
    forward = places[:, None] < places
    forbidden = forward & (rng.uniform(size=(9, 9)) < 0.2) if has_rules else none
    required = forward & ~forbidden & (rng.uniform(size=(9, 9)) < 0.1) if has_rules else none
    rules = {"may_be": ~forbidden, "required": required} if has_rules else {}
    path = threshold_path(covariance, order, 1000, **rules)
    assert path.thresholds[0] == 0.0
    assert path.num_edges[0] == np.sum(forward & ~forbidden)
    assert path.num_edges[-1] == required.sum()
    price = penalty(1000, 8, 1.0)
    for place, threshold in enumerate(path.thresholds):
        is_edge = path.is_edge(threshold)
        assert path.place(float(threshold)) == place
        assert path.num_edges[place] == is_edge.sum()
        assert path.criteria[place] == pytest.approx(brute_force(covariance, is_edge, price), abs=1e-8)
    full = np.zeros((9, 9))
    for node in range(9):
        parents = np.flatnonzero((forward & ~forbidden)[:, node])
        full[parents, node] = regress(covariance, node, parents)[0]
    for threshold in (0.1, 0.3, 1.0):
        known = (np.abs(full) > threshold) | required
        np.testing.assert_array_equal(path.is_edge(threshold), known)
        assert path.num_edges[path.place(threshold)] == known.sum()


def test_the_best_threshold_of_a_path():
    """Along the true order, weights of 0.5 and more: a threshold does, and the criterion finds it."""
    truth, covariance = simulated(10, 3)
    path = threshold_path(covariance, causal_order(truth), 1000)
    assert compare_graphs(path.is_edge(path.best_threshold), truth).shd <= 1
    assert path.place(1e9) == len(path.thresholds) - 1
    with pytest.raises(ValueError, match="zero or more"):
        path.place(-0.1)


def test_a_path_of_one_node_and_of_equal_weights():
    path = threshold_path(np.array([[4.0]]), np.array([0]), 100)
    np.testing.assert_allclose(path.criteria, [math.log(4.0)])
    path = threshold_path(np.eye(3), np.arange(3), 100)  # all weights are zero
    np.testing.assert_array_equal(path.num_edges, [0])
    np.testing.assert_allclose(path.criteria, [0.0], atol=1e-12)


def test_a_path_of_many_nodes():
    truth, covariance = simulated(100, 0)
    path = threshold_path(covariance, causal_order(truth), 1000)
    assert len(path.thresholds) == 100 * 99 // 2 + 1
    assert compare_graphs(path.is_edge(path.best_threshold), truth).shd <= 30
