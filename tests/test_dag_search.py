"""Orders and their moves: against brute force, and on data of known graphs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qbs.inference.dag.learning import Settings, learn_graph
from qbs.inference.dag.local_search import local_search
from qbs.inference.dag.moves import all_changes, best_moves, forbid, near_swap_changes, swap_changes
from qbs.inference.dag.order_factor import equal_variance_loss, factorize
from qbs.inference.dag.orders import best_order, make_score
from qbs.inference.dag.parents import choose_parents, regress
from qbs.inference.dag.rules import Rules
from qbs.inference.dag.sample import sample_of_moments, sample_of_rows
from qbs.inference.dag.starts import random_order, top_down_order
from qbs.inference.dag.threshold_path import threshold_path
from qbs.models.structural.comparison import compare_graphs
from qbs.models.structural.simulation import causal_order, simulate_dag, simulate_sem


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def some_covariance(num_nodes, seed):
    rng = np.random.default_rng(seed)
    data = rng.normal(size=(3 * num_nodes, num_nodes)) @ rng.normal(size=(num_nodes, num_nodes))
    covariance = data.T @ data / len(data)
    return covariance / np.trace(covariance) * num_nodes


def loss_of(covariance, order):
    return 0.5 * np.sum(np.diag(np.linalg.cholesky(covariance[np.ix_(order, order)])) ** 2)


@jax.jit
def changes_of(covariance, order):
    return all_changes(factorize(covariance, order))


def changes_at(covariance, order):
    """Return the changes of the loss by all moves, as arrays of NumPy."""
    return jax.tree.map(np.asarray, changes_of(jnp.asarray(covariance), jnp.asarray(order)))


def free(num_nodes):
    none = np.zeros((num_nodes, num_nodes), bool)
    return Rules(none, none, none)


def learned(covariance, rules, num_rows=1000, **settings):
    num_nodes = len(covariance)
    sample = sample_of_moments(covariance, np.zeros(num_nodes), num_rows, ("continuous",) * num_nodes)
    return learn_graph(sample, rules, Settings(**settings))


def moved(order, kind, p, q):
    order = list(order)
    if kind == "up":
        order.insert(p, order.pop(q))
    elif kind == "down":
        order.insert(q, order.pop(p))
    else:
        order[p], order[q] = order[q], order[p]
    return order


@pytest.mark.parametrize("num_nodes", [2, 9, 30])
def test_changes_are_those_of_brute_force(num_nodes):
    for seed in range(50 if num_nodes == 9 else 5):
        covariance = some_covariance(num_nodes, seed)
        order = np.random.default_rng(seed).permutation(num_nodes)
        changes = changes_at(covariance, order)
        here = loss_of(covariance, order)
        for p, q in itertools.combinations(range(num_nodes), 2):
            for kind, values in changes._asdict().items():
                there = loss_of(covariance, moved(order, kind, p, q))
                assert values[p, q] == pytest.approx(there - here, abs=1e-10)


@pytest.mark.parametrize(("num_nodes", "window"), [(2, 1), (9, 3), (70, 7), (150, 64)])
def test_swaps_within_a_window_are_the_swaps(num_nodes, window):
    factors = factorize(jnp.asarray(some_covariance(num_nodes, 0)), jnp.arange(num_nodes))
    near = np.asarray(jax.jit(near_swap_changes, static_argnums=1)(factors, window))
    every = np.asarray(jax.jit(swap_changes)(factors))
    gaps = np.arange(num_nodes) - np.arange(num_nodes)[:, None]
    np.testing.assert_array_equal(np.isfinite(near), (gaps > 0) & (gaps <= window))
    np.testing.assert_allclose(near[np.isfinite(near)], every[np.isfinite(near)], atol=1e-10)


@pytest.mark.parametrize("num_nodes", [2, 5, 40])
def test_the_best_set_of_moves_changes_the_loss_by_what_it_says(num_nodes):
    covariance, order = some_covariance(num_nodes, 1), np.arange(num_nodes)
    changes = changes_at(covariance, order)
    sources, gain = jax.jit(best_moves)(changes)
    assert sorted(np.asarray(sources)) == list(range(num_nodes))
    there = loss_of(covariance, np.asarray(sources))
    assert there - loss_of(covariance, order) == pytest.approx(float(gain), abs=1e-10)
    assert float(gain) <= min(np.min(values) for values in changes) + 1e-12


def test_the_best_set_of_moves_is_the_best_of_all_sets():
    covariance = some_covariance(5, 3)
    changes = changes_at(covariance, np.arange(5))
    gains = np.min(np.stack(changes), axis=0)

    def best(first):
        """Return the least total of disjoint moves among the positions from one on."""
        if first >= 5:
            return 0.0
        ends = [gains[first, q] + best(q + 1) for q in range(first + 1, 5)]
        return min([best(first + 1), *ends])

    assert float(jax.jit(best_moves)(changes)[1]) == pytest.approx(best(0), abs=1e-12)


def test_full_weights_are_regressions():
    covariance, order = some_covariance(8, 2), np.random.default_rng(0).permutation(8)
    factors = factorize(jnp.asarray(covariance), jnp.asarray(order))
    weights = threshold_path(covariance, order, 100).weights
    for place, node in enumerate(order):
        own, variance = regress(covariance, int(node), order[:place])
        np.testing.assert_allclose(weights[order[:place], node], own, atol=1e-9)
        assert variance == pytest.approx(float(factors.factor[place, place]) ** 2)
    assert float(equal_variance_loss(factors.factor)) == pytest.approx(loss_of(covariance, order))


def test_the_search_finds_the_best_of_all_orders():
    for seed in range(10):
        covariance = some_covariance(6, seed)
        best = min(loss_of(covariance, list(order)) for order in itertools.permutations(range(6)))
        found = learned(covariance, free(6), num_restarts=20, seed=seed).ordered
        assert found.loss == pytest.approx(best, abs=1e-10)
        assert found.is_optimal


@pytest.mark.parametrize(("neighbourhood", "num_nodes"), [("all", 40), ("windowed", 80)])
def test_no_move_improves_what_the_search_returns(neighbourhood, num_nodes):
    covariance = some_covariance(num_nodes, 4)
    found = learned(covariance, free(num_nodes), neighbourhood=neighbourhood).ordered
    changes = changes_at(covariance, found.order)
    assert min(np.min(values) for values in changes) > -1e-8
    assert found.loss == pytest.approx(loss_of(covariance, found.order), abs=1e-9)


def criterion_of(covariance, weights, num_rows=1000):
    """Return the extended Bayesian information criterion of a graph of equal noise variances, per row."""
    num_nodes = len(covariance)
    parents = [np.flatnonzero(weights[:, node]) for node in range(num_nodes)]
    total = sum(regress(covariance, node, own)[1] for node, own in enumerate(parents))
    price = (np.log(num_rows) + 2 * np.log(num_nodes)) / num_rows
    return num_nodes * np.log(total / num_nodes) + price * np.count_nonzero(weights)


CELLS = [
    pytest.param(num_nodes, degree, graph, seed, marks=pytest.mark.slow if num_nodes > 20 else ())
    for num_nodes in (10, 20, 50, 100)
    for degree, graph in ((2, "ER"), (4, "ER"), (4, "SF"))
    for seed in range(3)
]


@pytest.mark.parametrize(("num_nodes", "degree", "graph", "seed"), CELLS)
def test_equal_variance_data(num_nodes, degree, graph, seed):
    """The loss is no larger than the true order's, and the graph within one edge of the truth."""
    truth = simulate_dag(num_nodes, degree * num_nodes, graph, seed=seed)
    data = simulate_sem(truth, 1000, seed=seed + 100)
    covariance = np.cov(data.T, bias=True)
    model = learned(covariance, free(num_nodes), len(data), num_restarts=3, seed=seed)
    assert model.ordered.loss <= loss_of(covariance, causal_order(truth)) + 1e-9
    distance = compare_graphs(model.weights, truth).shd
    # Where chance makes another graph the better one, the criterion cannot tell.
    is_misled = criterion_of(covariance, model.weights) <= criterion_of(covariance, truth)
    assert distance <= (2 if is_misled else 1)


def test_top_down_order_takes_the_least_variance_given_those_before():
    covariance = some_covariance(7, 5)
    order = list(np.asarray(top_down_order(jnp.asarray(covariance), jnp.zeros((7, 7), bool))))
    for place in range(7):
        given = np.array(order[:place], int)
        variances = {int(node): regress(covariance, int(node), given)[1] for node in order[place:]}
        assert min(variances, key=variances.get) == order[place]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.0, 0.6))
def test_rules_are_kept(seed, share):
    """Whatever the tiers, required and forbidden edges, no result breaks them."""
    rng, num_nodes = np.random.default_rng(seed), 6
    hidden = rng.permutation(num_nodes)
    places = np.argsort(hidden)
    forward = places[:, None] < places
    required = forward & (rng.uniform(size=(num_nodes, num_nodes)) < share / 2)
    forbidden = ~required & (rng.uniform(size=(num_nodes, num_nodes)) < share)
    before = required.copy()
    for middle in range(num_nodes):
        before |= before[:, middle, None] & before[middle]
    rules = Rules(before, required, forbidden & ~np.eye(num_nodes, dtype=bool))
    covariance = some_covariance(num_nodes, seed)
    found = learned(covariance, rules, 100, num_restarts=1, seed=seed)
    at, is_edge = np.argsort(found.ordered.order), found.is_edge
    assert np.all(at[:, None] < at, where=before)
    assert np.all(is_edge[required])
    assert not np.any(is_edge & rules.forbidden)
    assert np.all(at[:, None] < at, where=is_edge)


def test_rules_of_an_order_within_the_search():
    rng = np.random.default_rng(0)
    before = np.zeros((12, 12), bool)
    before[np.ix_(range(4, 12), range(4))] = True  # the later half of the numbers is the earlier tier
    covariance = some_covariance(12, 0)
    order = random_order(rng, before)
    changes = changes_at(covariance, order)
    kept = jax.jit(forbid)(changes, jnp.asarray(before), jnp.asarray(order))
    for kind, values in kept._asdict().items():
        for p, q in itertools.combinations(range(12), 2):
            at = np.argsort([order[place] for place in moved(range(12), kind, p, q)])
            assert np.isfinite(float(values[p, q])) == np.all(at[:, None] < at, where=before)


def test_a_local_search_agrees_with_all_orders():
    covariance = some_covariance(6, 8)

    def scores(nodes, is_before):
        pairs = zip(map(int, nodes), is_before, strict=True)
        return np.array([0.5 * regress(covariance, node, np.flatnonzero(mask))[1] for node, mask in pairs])

    none = np.zeros((6, 6), bool)
    rng = np.random.default_rng(0)
    starts = [random_order(rng, none) for _ in range(20)]
    found = min((local_search(scores, start, none) for start in starts), key=lambda found: found.score)
    best = min(loss_of(covariance, list(order)) for order in itertools.permutations(range(6)))
    assert found.score == pytest.approx(best, abs=1e-10)


@pytest.mark.parametrize("name", ["bic", "equal-variance"])
def test_rounding_does_not_choose_the_order(name):
    """Orders of equivalent graphs have the same score, but for rounding."""
    rng = np.random.default_rng(3)
    for seed in range(8):
        covariance = np.cov(simulate_sem(simulate_dag(7, 9, seed=seed), 500, seed=seed), rowvar=False)
        found = []
        for turn in [np.arange(7), *(rng.permutation(7) for _ in range(3))]:
            noise = 1e-15 * rng.normal(size=(7, 7))
            rounded = (covariance * (1 + noise + noise.T))[np.ix_(turn, turn)]
            sample = sample_of_moments(rounded, np.zeros(7), 500, ("continuous",) * 7)
            score = None if name == "equal-variance" else make_score(name, sample)
            found.append(turn[best_order(sample, free(7), name, num_restarts=3, score=score).order].tolist())
        assert found == [found[0]] * 4


def test_parents_are_those_of_all_sets():
    """Growing and shrinking finds the set of least criterion, where predictors are not too alike."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        data = rng.normal(size=(300, 7))
        data[:, 6] += data[:, :3] @ [1.0, -1.0, 0.3]
        covariance = np.cov(data.T, bias=True)
        candidates = np.arange(7) < 6
        price = (np.log(300) + 2 * np.log(6)) / 300  # six others

        def criterion(parents, covariance=covariance, price=price):
            return np.log(regress(covariance, 6, np.array(parents, int))[1]) + price * len(parents)

        every = [chosen for size in range(7) for chosen in itertools.combinations(range(6), size)]
        best = min(every, key=criterion)
        found = choose_parents(covariance, 6, candidates, 300)
        assert tuple(found.parents) == best
        assert found.criterion == pytest.approx(criterion(best))


def test_parents_that_cancel_each_other_are_found():
    rng = np.random.default_rng(1)
    first = rng.normal(size=1000)
    second = first + 0.1 * rng.normal(size=1000)
    effect = 10 * (first - second) + 0.1 * rng.normal(size=1000)
    covariance = np.cov(np.stack([first, second, effect]), bias=True)
    found = choose_parents(covariance, 2, np.array([True, True, False]), 1000)
    assert list(found.parents) == [0, 1]


@pytest.mark.parametrize("graph", ["ER", "SF"])
def test_simulated_graphs(graph):
    weights = simulate_dag(30, 60, graph, seed=3)
    causal_order(weights)
    sizes = np.abs(weights[weights != 0])
    assert sizes.min() >= 0.5
    assert sizes.max() <= 2.0
    assert len(sizes) == (60 if graph == "ER" else 57)
    np.testing.assert_array_equal(weights, simulate_dag(30, 60, graph, seed=3))


@pytest.mark.parametrize("noise", ["gaussian", "exponential", "gumbel", "uniform"])
def test_simulated_data_have_the_covariance_of_the_model(noise):
    weights = simulate_dag(4, 4, seed=1)
    scales = np.array([0.5, 1.0, 1.5, 2.0])
    data = simulate_sem(weights, 100_000, noise, noise_scale=scales, seed=0)
    total = np.linalg.inv(np.eye(4) - weights)
    covariance = total.T @ np.diag(scales**2) @ total
    # Fourth moments of the noises are below nine: the relative error of a variance is below 3 / sqrt(n).
    size = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    assert np.max(np.abs(np.cov(data.T) - covariance) / size) < 5 * 3 / 100_000**0.5
    assert np.all(np.abs(data.mean(0)) < 5 * np.sqrt(np.diag(covariance) / 100_000))


def test_simulated_logistic_and_mlp_data():
    weights = np.array([[0.0, 2.0], [0.0, 0.0]])
    data = simulate_sem(weights, 50_000, equations="logistic", seed=0)
    assert set(np.unique(data)) == {0.0, 1.0}
    for value, chance in ((0, 0.5), (1, 1 / (1 + np.exp(-2.0)))):
        rows = data[data[:, 0] == value, 1]
        assert rows.mean() == pytest.approx(chance, abs=5 * 0.5 / len(rows) ** 0.5)
    data = simulate_sem(weights, 20_000, equations="mlp", seed=0)
    bins = np.digitize(data[:, 0], np.quantile(data[:, 0], np.linspace(0, 1, 21)[1:-1]))
    within = np.mean([data[bins == number, 1].var() for number in range(20)])
    assert within < 0.9 * data[:, 1].var()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: simulate_dag(3, 4), "0 ... 3"),
        (lambda: simulate_dag(0, 0), "1 or more"),
        (lambda: simulate_dag(3, 2, "tree"), "'ER' or 'SF'"),
        (lambda: simulate_sem(np.array([[0, 1], [1, 0]]), 5), "cycle"),
        (lambda: simulate_sem(np.zeros((2, 3)), 5), "square"),
        (lambda: simulate_sem(np.zeros((2, 2)), 5, "cauchy"), "noise"),
        (lambda: simulate_sem(np.zeros((2, 2)), 5, equations="tree"), "equations"),
    ],
)
def test_what_cannot_be_simulated(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_wide_ranges_of_variances_are_not_taken_for_collinear_columns():
    """Of scale-free graphs, where a ridge of the largest variance would swamp the least."""
    data = simulate_sem(simulate_dag(100, 400, "SF", seed=1), 1000, seed=101)
    sample = sample_of_rows(data, ("continuous",) * 100)
    assert np.ptp(np.log10(np.diag(sample.covariance))) > 8
    assert sample.ridge == 0
    assert sample_of_rows(np.column_stack([data, data[:, :1]]), ("continuous",) * 101).ridge > 0
