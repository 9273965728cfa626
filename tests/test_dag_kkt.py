"""The search by conditions of optimality, its scores and its functions of acyclicity: against brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qbs.inference.dag import order_fits
from qbs.inference.dag.acyclicity import (
    ACYCLICITIES,
    is_in_domain,
    log_determinant,
    log_determinant_gradient,
)
from qbs.inference.dag.kkt import kkt_search
from qbs.inference.dag.parents import regress
from qbs.inference.dag.scores.least_squares import LeastSquares
from qbs.inference.dag.search import search
from qbs.models.structural.simulation import causal_order, simulate_dag, simulate_sem


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def some_data(num_nodes, seed, num_rows=200):
    rng = np.random.default_rng(seed)
    data = rng.normal(size=(num_rows, num_nodes)) @ rng.normal(size=(num_nodes, num_nodes))
    data = data / data.std(axis=0) * rng.uniform(0.5, 2, num_nodes)
    return data - data.mean(axis=0)


def some_covariance(num_nodes, seed):
    return np.cov(some_data(num_nodes, seed).T, bias=True)


def some_sizes(num_nodes, seed, radius=0.6):
    sizes = np.abs(np.random.default_rng(seed).normal(size=(num_nodes, num_nodes)))
    np.fill_diagonal(sizes, 0.0)
    return sizes * radius / np.abs(np.linalg.eigvals(sizes)).max()


def walks_of(is_edge):
    """Return whether there is a directed walk from row to column, of one step or more."""
    steps = is_edge.astype(int)
    powers = [np.linalg.matrix_power(steps, length) > 0 for length in range(1, len(steps) + 1)]
    return np.any(powers, axis=0)


def total_of(score, order):
    """Return the score of an order."""
    at = np.argsort(order)
    return float(score.scores(np.arange(len(order)), at[None, :] < at[:, None]).sum())


def totals_of(score, orders):
    """Return the scores of many orders."""
    at = np.argsort(orders, axis=1)
    is_before = (at[:, None, :] < at[:, :, None]).reshape(-1, at.shape[1])
    asked = np.column_stack([np.tile(np.arange(at.shape[1]), len(at)), is_before])
    each, where = np.unique(asked, axis=0, return_inverse=True)
    values = score.scores(each[:, 0], each[:, 1:].astype(bool))
    return values[where.ravel()].reshape(at.shape).sum(axis=1)


# The functions of acyclicity


@pytest.mark.parametrize("name", ACYCLICITIES)
def test_gradients_of_acyclicity_are_derivatives(name):
    function, sizes = ACYCLICITIES[name], jnp.asarray(some_sizes(6, 0))
    slopes = jax.grad(function.value)(sizes)
    np.testing.assert_allclose(function.gradient(sizes), slopes, rtol=1e-12, atol=1e-12)
    for kind, exact in ((function.value, function.value(sizes)), (function.gradient, slopes)):
        single = kind(sizes.astype(np.float32))
        assert single.dtype == np.float32
        np.testing.assert_allclose(single, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (0.1, 3.0)])
def test_acyclicity_of_two_nodes_by_hand(a, b):
    sizes = jnp.asarray([[0.0, a], [b, 0.0]])
    values = {name: float(function.value(sizes)) for name, function in ACYCLICITIES.items()}
    assert values["log-determinant"] == pytest.approx(-np.log(1 - a * b))
    assert values["exponential"] == pytest.approx(2 * np.cosh(np.sqrt(a * b)) - 2)
    assert values["polynomial"] == pytest.approx(a * b / 2)
    assert float(log_determinant(sizes, 2.0)) == pytest.approx(-np.log(4 - a * b) + 2 * np.log(2))


@pytest.mark.parametrize("name", ACYCLICITIES)
@pytest.mark.parametrize("seed", range(3))
def test_acyclicity_is_zero_on_acyclic_graphs_alone(name, seed):
    function, sizes = ACYCLICITIES[name], np.abs(simulate_dag(6, 7, seed=seed))
    walks = walks_of(sizes > 0)
    gradient = np.asarray(function.gradient(jnp.asarray(sizes)))
    assert float(function.value(jnp.asarray(sizes))) == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_array_equal(gradient > 1e-12, walks.T | np.eye(6, dtype=bool))
    if name == "log-determinant":
        np.testing.assert_allclose(gradient, np.linalg.inv(np.eye(6) - sizes).T, atol=1e-12)
    start, end = np.argwhere(walks)[0]
    sizes[end, start] = 1e-3
    assert float(function.value(jnp.asarray(sizes))) > 1e-6


def test_zeros_of_gradients_are_exact_along_an_order():
    sizes = np.abs(simulate_dag(6, 8, seed=3))
    order = causal_order(sizes)
    sizes = sizes[np.ix_(order, order)]
    for function in ACYCLICITIES.values():
        gradient = np.asarray(function.gradient(jnp.asarray(sizes)))
        np.testing.assert_array_equal(gradient > 0, walks_of(sizes > 0).T | np.eye(6, dtype=bool))


def test_the_log_determinant_is_infinite_outside_its_domain():
    # Of the last, the determinant is positive: its sign does not tell.
    for radius, s in ((0.999, 1.0), (1.001, 1.0), (1.5, 2.0), (3.0, 2.0)):
        sizes = jnp.asarray(some_sizes(6, 1, radius))
        assert bool(is_in_domain(sizes, s)) == (radius < s) == bool(np.isfinite(log_determinant(sizes, s)))
        assert bool(jnp.isfinite(log_determinant_gradient(sizes, s)).all()) == (radius < s)
    twice = np.zeros((6, 6))
    twice[[0, 1, 2, 3], [1, 0, 3, 2]] = 2.0
    twice = jnp.asarray(twice)
    assert np.linalg.det(np.eye(6) - twice) > 0
    assert np.isinf(log_determinant(twice))
    assert not np.isnan(jax.grad(log_determinant)(twice)).any()


def test_the_exponential_is_that_of_scipy():
    linalg = pytest.importorskip("scipy.linalg")
    for sizes in (some_sizes(6, 4, 0.01), some_sizes(6, 4, 30.0), 300 * np.abs(simulate_dag(6, 12, seed=1))):
        gradient = ACYCLICITIES["exponential"].gradient(jnp.asarray(sizes))
        np.testing.assert_allclose(gradient, linalg.expm(sizes).T, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ACYCLICITIES)
def test_acyclicity_of_a_batch(name):
    function = ACYCLICITIES[name]
    batch = np.stack([some_sizes(6, seed) for seed in range(3)])
    for kind in (function.value, function.gradient):
        found = jax.jit(jax.vmap(kind))(jnp.asarray(batch))
        np.testing.assert_allclose(found, [kind(jnp.asarray(sizes)) for sizes in batch], rtol=1e-12)


# The score of least squares


def some_tasks(num_nodes, count, seed):
    rng = np.random.default_rng(seed)
    nodes = rng.integers(0, num_nodes, count)
    candidates = rng.uniform(size=(count, num_nodes)) < rng.uniform(size=(count, 1))
    candidates[np.arange(count), nodes] = False
    return nodes, candidates


def test_least_squares_is_that_of_numpy():
    data = some_data(6, 0)
    covariance = data.T @ data / len(data)
    nodes, candidates = some_tasks(6, 40, 0)
    fits = LeastSquares(covariance).fits(nodes, candidates)
    for node, may_be, score, weights, gradient in zip(nodes, candidates, *fits, strict=True):
        own, _, _, _ = np.linalg.lstsq(data[:, may_be], data[:, node])
        left = data[:, node] - data[:, may_be] @ own
        np.testing.assert_allclose(weights[may_be], own, atol=1e-10)
        assert score == pytest.approx(np.mean(left**2) / 2, abs=1e-12)
        assert not weights[~may_be].any()
        slope = -data.T @ left / len(data)
        slope[node] = 0.0
        np.testing.assert_allclose(gradient, slope, atol=1e-12)


def test_penalized_least_squares_is_that_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    data = some_data(6, 1)
    covariance, l1 = data.T @ data / len(data), 0.1
    nodes, candidates = some_tasks(6, 40, 1)
    candidates[:, 5] |= nodes != 5
    candidates[nodes == 5, 0] = True
    fits = LeastSquares(covariance, l1).fits(nodes, candidates)
    assert np.any(fits.weights[candidates] == 0)
    for node, may_be, score, weights in zip(nodes, candidates, fits.scores, fits.weights, strict=True):
        peer = linear_model.Lasso(l1, fit_intercept=False, tol=1e-12, max_iter=100_000)
        peer.fit(data[:, may_be], data[:, node])
        np.testing.assert_allclose(weights[may_be], peer.coef_, atol=1e-7)
        left = np.mean((data[:, node] - data @ weights) ** 2) / 2
        assert score == pytest.approx(left + l1 * np.abs(weights).sum(), abs=1e-12)


@pytest.mark.parametrize("l1", [1e-3, 0.05, 1.0])
def test_penalized_fits_are_optimal_where_nodes_are_much_alike(l1):
    rng = np.random.default_rng(2)
    data = rng.normal(size=(100, 1)) + 0.01 * rng.normal(size=(100, 6)) * [1, 1, 1, 10, 10, 100]
    covariance = np.cov(data.T, bias=True)
    nodes, candidates = some_tasks(6, 600, 2)  # more than one batch
    fits = LeastSquares(covariance, l1).fits(nodes, candidates)
    at_zero = np.maximum(np.abs(fits.gradients) - l1, 0.0)
    excess = np.where(fits.weights == 0, at_zero, np.abs(fits.gradients + l1 * np.sign(fits.weights)))
    assert np.max(excess[candidates]) < 1e-9
    again = LeastSquares(covariance, l1).fits(nodes[:1], candidates[:1])
    np.testing.assert_allclose(again.weights[0], fits.weights[0], atol=1e-8)


def test_batches_of_all_sizes_are_compiled_twice_at_most(compile_events):
    nodes, candidates = some_tasks(6, 40, 3)
    for count in (1, 40):
        LeastSquares(some_covariance(6, 3), 0.1).fits(nodes[:count], candidates[:count])
    with compile_events() as events:
        for count, seed in itertools.product((2, 31, 39), (4, 5)):
            LeastSquares(some_covariance(6, seed), 0.2).fits(nodes[:count], candidates[:count])
    assert not events


@pytest.mark.parametrize("l1", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_the_end_is_a_local_minimum(l1, seed):
    """No order that the graph of the end allows, of all there are, has a lower score."""
    score = LeastSquares(some_covariance(6, seed), l1)
    start = np.random.default_rng(seed).permutation(6)
    found = kkt_search(score, start, l1=l1, small=2, large=2, num_enlargements=0)
    assert found.num_violations == 0
    assert found.score == pytest.approx(total_of(score, found.order), abs=1e-10)
    orders = np.array(list(itertools.permutations(range(6))))
    at = np.argsort(orders, axis=1)
    is_allowed = np.all((at[:, :, None] < at[:, None, :]) | (found.weights == 0), axis=(1, 2))
    assert (is_allowed.sum() > 1) == (l1 > 0)
    assert np.min(totals_of(score, orders[is_allowed])) > found.score - 1e-10


@pytest.mark.parametrize("name", ACYCLICITIES)
@pytest.mark.parametrize("l1", [0.0, 0.1])
def test_the_conditions_hold_at_the_end(name, l1):
    covariance = some_covariance(6, 7)
    found = kkt_search(LeastSquares(covariance, l1), np.arange(6), l1=l1, acyclicity=name)
    weights = found.weights
    gradient = -(covariance - covariance @ weights)
    at_zero = np.maximum(np.abs(gradient) - l1, 0.0)
    excess = np.where(weights == 0, at_zero, np.abs(gradient + l1 * np.sign(weights)))
    is_free = ~(walks_of(weights != 0).T | np.eye(6, dtype=bool))
    assert not np.diagonal(walks_of(weights != 0)).any()
    assert np.max(excess[is_free]) < 1e-9
    assert found.num_violations == 0
    assert found.largest_violation == pytest.approx(np.max(excess[is_free]), abs=1e-12)
    assert found.h == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("l1", [0.0, 0.1])
def test_the_certificate_is_that_of_brute_force(l1):
    score = LeastSquares(some_covariance(6, 3), l1)
    for settings_ in ({"max_sweeps": 0}, {"max_sweeps": 1}, {"small": 15}):
        found = kkt_search(score, np.arange(6), l1=l1, certify="all", **settings_)
        swapped = np.tile(found.order, (15, 1))
        for order, (p, q) in zip(swapped, itertools.combinations(range(6), 2), strict=True):
            order[[p, q]] = order[[q, p]]
        least = np.min(totals_of(score, swapped)) - found.score
        assert found.num_swaps == 15
        assert found.best_change == pytest.approx(least, abs=1e-10)
        assert found.is_swap_optimal == (least > -1e-10)
    assert found.is_swap_optimal
    assert not kkt_search(score, np.arange(6), l1=l1, max_sweeps=0).is_swap_optimal


@pytest.mark.parametrize("l1", [0.0, 0.1])
def test_the_score_falls_in_every_sweep(l1):
    score, seen = LeastSquares(some_covariance(6, 2), l1), []
    start = np.array([3, 1, 5, 0, 2, 4])
    found = kkt_search(score, start, l1=l1, watch=lambda number, value: seen.append((number, value)))
    numbers, values = zip(*seen, strict=True)
    assert list(numbers) == list(range(1, found.num_sweeps + 1))
    assert np.all(np.diff([total_of(score, start), *values[:-1]]) < 0)
    assert values[-1] == values[-2] == found.score


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("degree", [1, 2])
def test_equal_variance_data_from_a_random_start(seed, degree):
    """The loss is no larger than the true order's, and close to that of the search over all moves.

    The conditions promise neither; with this many rows both hold.
    """
    truth = simulate_dag(10, 10 * degree, seed=seed)
    covariance = np.cov(simulate_sem(truth, 1000, seed=seed + 100).T, bias=True)
    score, start = LeastSquares(covariance), np.random.default_rng(seed).permutation(10)
    found = kkt_search(score, start, large=45, certify="all")
    assert found.is_swap_optimal
    assert found.num_violations == 0
    assert found.score <= total_of(score, causal_order(truth)) + 1e-9
    best = search(jnp.asarray(covariance), jnp.asarray(start), jnp.zeros((10, 10), bool))
    assert found.score == pytest.approx(float(best.loss), rel=1e-3)
    np.testing.assert_array_equal(kkt_search(score, found.order).order, found.order)


def test_an_edge_is_made_possible_where_no_swap_helps():
    """Of the order 0, 1, 2 with the edges 2 -> 0 -> 1, any swap turns an edge against what is allowed."""
    weights = np.zeros((3, 3))
    weights[2, 0], weights[0, 1] = 0.3, 3.0
    total = np.linalg.inv(np.eye(3) - weights)
    score = LeastSquares(total.T @ total)
    forbidden = weights == 0
    found = kkt_search(score, np.array([0, 1, 2]), forbidden=forbidden, certify="all", max_sweeps=0)
    assert found.is_swap_optimal
    assert found.num_violations == 1
    assert found.largest_violation == pytest.approx(0.3)  # the covariance of 0 with 2
    found = kkt_search(score, np.array([0, 1, 2]), forbidden=forbidden)
    np.testing.assert_array_equal(found.order, [2, 0, 1])
    np.testing.assert_allclose(found.weights, weights, atol=1e-12)
    assert found.score == pytest.approx(1.5)
    assert found.num_violations == 0


class Recorded:
    """A score that notes what it was asked for."""

    def __init__(self, score):
        self.score, self.asked = score, []

    def scores(self, nodes, candidates):
        return self.fits(nodes, candidates).scores

    def fits(self, nodes, candidates):
        self.asked += [(int(node), tuple(may_be)) for node, may_be in zip(nodes, candidates, strict=True)]
        return self.score.fits(nodes, candidates)


def test_no_node_is_fitted_twice_to_the_same(monkeypatch):
    score, start = Recorded(LeastSquares(some_covariance(10, 1))), np.random.default_rng(0).permutation(10)
    found = kkt_search(score, start, large=45, certify="all")
    assert len(set(score.asked)) == len(score.asked) == found.num_solves
    monkeypatch.setattr(order_fits, "_MEMORY", 16 * 10 * 20)
    forgetful = kkt_search(score, start, large=45, certify="all")
    np.testing.assert_array_equal(forgetful.order, found.order)
    assert forgetful.num_solves >= found.num_solves


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.0, 0.6), st.sampled_from([0.0, 0.1]))
def test_rules_are_kept_within_the_search(seed, share, l1):
    rng, num_nodes = np.random.default_rng(seed), 6
    hidden = rng.permutation(num_nodes)
    places = np.argsort(hidden)
    required = (places[:, None] < places) & (rng.uniform(size=(num_nodes, num_nodes)) < share / 2)
    forbidden = rng.uniform(size=(num_nodes, num_nodes)) < share
    before = walks_of(required)
    score, watched = Recorded(LeastSquares(some_covariance(num_nodes, seed), l1)), []
    found = kkt_search(
        score, hidden, before=before, forbidden=forbidden, l1=l1, watch=lambda _, value: watched.append(value)
    )
    at = np.argsort(found.order)
    assert np.all(at[:, None] < at, where=before | (found.weights != 0))
    assert not np.any((found.weights != 0) & forbidden)
    for node, may_be in score.asked:
        assert not np.any(np.array(may_be) & (forbidden[:, node] | before[node]))
    assert np.all(np.diff(watched[:-1]) < 0)
    # What the rules do not keep apart is optimal.
    is_tied = walks_of(before | (found.weights != 0)).T | np.eye(num_nodes, dtype=bool)
    covariance = some_covariance(num_nodes, seed)
    gradient = np.abs(covariance - covariance @ found.weights)
    excess = np.maximum(gradient - l1, 0.0)[(found.weights == 0) & ~is_tied & ~forbidden]
    assert np.max(excess, initial=0.0) < 1e-5
    assert found.num_violations == 0


def test_it_improves_what_another_method_found():
    truth = simulate_dag(10, 20, seed=5)
    data = simulate_sem(truth, 1000, seed=6)
    covariance = np.cov(data.T, bias=True)
    score, by_variance = LeastSquares(covariance), np.argsort(np.diag(covariance))
    found = kkt_search(score, by_variance)
    assert found.score < total_of(score, by_variance)
    for node in range(10):
        predecessors = found.order[: list(found.order).index(node)]
        own, _ = regress(covariance, node, predecessors)
        np.testing.assert_allclose(found.weights[predecessors, node], own, atol=1e-8)


@pytest.mark.parametrize("num_nodes", [1, 2])
def test_few_nodes(num_nodes):
    covariance = np.diag([2.0, 1.0])[:num_nodes, :num_nodes]
    found = kkt_search(LeastSquares(covariance), np.arange(num_nodes), certify="all")
    assert found.score == pytest.approx(np.trace(covariance) / 2)
    assert found.is_swap_optimal
    assert found.num_violations == 0


def starting(order=(0, 1, 2), **named):
    return lambda: kkt_search(LeastSquares(some_covariance(3, 0)), np.array(order), **named)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (starting((0, 1, 1)), "order must have each of 0 ... 2 once"),
        (starting(before=np.eye(3, k=-1, dtype=bool)), "1 must come before 0"),
        (starting(acyclicity="trace"), "acyclicity must be one of 'log-determinant'"),
        (starting(certify="none"), "certify"),
        (starting(small=0), "small must be 1 or more"),
        (starting(small=3, large=2), "large must be 3 or more"),
        (starting(num_enlargements=-1), "num_enlargements"),
        (starting(max_sweeps=-1), "max_sweeps"),
        (starting(l1=-0.1), "l1"),
        (starting(least_gradient=float("nan")), "least_gradient"),
        (starting(tolerance=-1e-3), "tolerance"),
        (lambda: LeastSquares(np.eye(2), -1.0), "l1"),
        (lambda: LeastSquares(np.array([[1.0, 2.0], [0.0, 1.0]])), "symmetric"),
        (lambda: LeastSquares(np.diag([1.0, 0.0])), r"positive diagonal, and has none at \[1\]"),
        (lambda: LeastSquares(np.ones((2, 2))), "positive definite"),
    ],
)
def test_settings_that_are_not_as_said(call, words):
    with pytest.raises(ValueError, match=words):
        call()
