"""Classes of graphs and distances between graphs, against enumeration and the effects of linear models."""

import itertools

import jaxtyping
import numpy as np
import pytest

from qbs.inference.dag.equivalence import completed_graph, topological_order
from qbs.models.structural.comparison import compare_graphs
from qbs.models.structural.simulation import simulate_dag

SEED = 20240229


def arrows(num_nodes, *edges):
    is_edge = np.zeros((num_nodes, num_nodes), bool)
    for cause, effect in edges:
        is_edge[cause, effect] = True
    return is_edge


def equivalent(is_edge):
    """Return all acyclic graphs with the same edges, directions aside, and the same v-structures."""
    ends = np.argwhere(is_edge)
    ways = np.array(list(itertools.product((0, 1), repeat=len(ends))), int).reshape(2 ** len(ends), -1)
    graphs = np.zeros((len(ways), *is_edge.shape), bool)
    edges = np.arange(len(ends))
    graphs[np.arange(len(ways))[:, None], ends[edges, ways], ends[edges, 1 - ways]] = True
    is_acyclic = ~np.linalg.matrix_power(graphs.astype(int), len(is_edge)).any((1, 2))
    is_same = (v_structures(graphs) == v_structures(is_edge)).all((1, 2, 3))
    return graphs[is_acyclic & is_same]


def v_structures(graphs):
    """Return whether i -> k <- j with i, j not adjacent, at [..., i, j, k]."""
    is_apart = ~(graphs | np.swapaxes(graphs, -1, -2) | np.eye(graphs.shape[-1], dtype=bool))
    return graphs[..., :, None, :] & graphs[..., None, :, :] & is_apart[..., None]


@pytest.fixture(scope="module")
def graphs_of_four():
    """All acyclic graphs of four nodes."""
    pairs, graphs = list(itertools.combinations(range(4), 2)), []
    for ways in itertools.product((0, 1, -1), repeat=len(pairs)):
        is_edge = arrows(4, *(pair[::way] for pair, way in zip(pairs, ways, strict=True) if way))
        if not np.linalg.matrix_power(is_edge.astype(int), 4).any():
            graphs.append(is_edge)
    assert len(graphs) == 543  # Robinson (1973)
    return graphs


def test_completed_graph_is_what_all_of_a_class_agree_on(graphs_of_four):
    completed = set()
    for is_edge in graphs_of_four:
        found = completed_graph(is_edge)
        np.testing.assert_array_equal(found, equivalent(is_edge).any(0))
        completed.add(found.tobytes())
    assert len(completed) == 185  # Gillispie & Perlman (2001)


def test_known_arrows_leave_what_all_that_have_them_agree_on(graphs_of_four):
    rng, num_followed = np.random.default_rng(SEED), 0
    graphs_of_five = [simulate_dag(5, int(rng.integers(5, 11)), seed=seed) != 0 for seed in range(200)]
    for is_edge in graphs_of_four + graphs_of_five:
        members = equivalent(is_edge)
        for share in (0.15, 0.3, 0.5):
            is_known = is_edge & (rng.uniform(size=is_edge.shape) < share)
            agreed = members[(members & is_known == is_known).all((1, 2))].any(0)
            np.testing.assert_array_equal(completed_graph(is_edge, is_known=is_known), agreed)
            num_followed += np.any(agreed & ~agreed.T & ~is_known & members.any(0).T)
    assert num_followed > 100


def test_known_tiers_are_passed_over_where_there_is_no_edge():
    chain = arrows(4, (0, 1), (1, 2), (2, 3))
    tier = np.array([0, 1, 1, 1])
    is_known = tier[:, None] < tier
    np.testing.assert_array_equal(completed_graph(chain, is_known=is_known), chain)
    np.testing.assert_array_equal(completed_graph(chain), chain | chain.T)


def test_reversing_covered_edges_leaves_the_completed_graph():
    """Chickering (1995), Lemma 1: an edge is covered if its ends have the same other parents."""
    rng = np.random.default_rng(SEED)
    for seed in range(5):
        is_edge = simulate_dag(30, 60, seed=seed) != 0
        completed, num_turned = completed_graph(is_edge), 0
        for _ in range(30):
            edges = np.argwhere(is_edge)
            is_covered = [not np.any(np.delete(is_edge[:, i] ^ is_edge[:, j], i)) for i, j in edges]
            if not any(is_covered):
                break
            cause, effect = rng.choice(edges[is_covered])
            is_edge[cause, effect], is_edge[effect, cause] = False, True
            num_turned += 1
            np.testing.assert_array_equal(completed_graph(is_edge), completed)
        assert num_turned > 0


def test_completed_graph_of_nothing():
    for num_nodes in (0, 1, 3):
        assert not completed_graph(np.zeros((num_nodes, num_nodes), bool)).any()


def test_topological_order_leaves_out_what_has_no_place():
    assert topological_order(arrows(4, (3, 0), (0, 1))).tolist() == [2, 3, 0, 1]
    assert topological_order(arrows(5, (0, 1), (1, 2), (2, 1), (2, 3))).tolist() == [0, 4]


def test_completed_graph_says_what_came():
    with pytest.raises(ValueError, match=r"cycle (1 -> 2 -> 3 -> 1|2 -> 3 -> 1 -> 2|3 -> 1 -> 2 -> 3)$"):
        completed_graph(arrows(5, (0, 1), (1, 2), (2, 3), (3, 1), (3, 4)))
    with pytest.raises(ValueError, match=r"cycle 2 -> 2$"):
        completed_graph(arrows(3, (0, 1), (2, 2)))
    chain = arrows(3, (0, 1), (1, 2))
    with pytest.raises(ValueError, match="2 -> 1 is known, but the graph has 1 -> 2"):
        completed_graph(chain, is_known=chain.T & arrows(3, (2, 1)))
    with pytest.raises(ValueError, match="1 -> 0 is known"):
        completed_graph(chain, is_known=chain | chain.T)
    # Under test the types are looked at first.
    wrong = (ValueError, jaxtyping.TypeCheckError)
    for is_edge in (np.zeros((2, 3), bool), np.zeros(3, bool), np.zeros((3, 3))):
        with pytest.raises(wrong):
            completed_graph(is_edge)
    with pytest.raises(wrong):
        completed_graph(chain, is_known=np.zeros((2, 2), bool))


def test_distances_of_the_example_of_peters_and_buehlmann():
    """Peters & Bühlmann (2015): two causes of three effects; an edge more does no harm, one turned much."""
    truth = arrows(5, (0, 1), *itertools.product((0, 1), (2, 3, 4)))
    more = compare_graphs(truth | arrows(5, (2, 3)), truth)
    assert (more.shd, more.sid, more.num_extra) == (1, 0, 1)
    turned = compare_graphs(truth ^ arrows(5, (0, 1), (1, 0)), truth)
    assert (turned.shd, turned.sid, turned.num_turned) == (1, 8, 1)


def test_distances_of_small_graphs():
    # Wrong: 0 on 1 (said to be nothing) and 1 on 0.
    assert compare_graphs(arrows(2, (1, 0)), arrows(2, (0, 1))).sid == 2
    # Wrong: 1 on 0; that of 0 on 1 needs no adjustment.
    assert compare_graphs(arrows(2), arrows(2, (0, 1))).sid == 1
    # Wrong: 1 and 2 on 0 and on each other, all by the common cause.
    assert compare_graphs(arrows(3), arrows(3, (0, 1), (0, 2))).sid == 4
    # Wrong: 0 on 1 (said to be nothing), 0 on 2 (adjusted for what it acts through), and 1 on 0.
    assert compare_graphs(arrows(3, (1, 0), (1, 2)), arrows(3, (0, 1), (1, 2)))[:2] == (1, 3)
    # Wrong: 0 on 1 (tied once their common effect is given), 0 on 2 (said to be nothing), and 2 on both.
    assert compare_graphs(arrows(3, (2, 0)), arrows(3, (0, 2), (1, 2))).sid == 4
    # Wrong: 0 on 1 and 2 (said to be nothing), 1 on 0, and 2 on all; 1 blocks the path from 0 to 3.
    assert compare_graphs(arrows(4, (1, 0), (2, 0)), arrows(4, (0, 1), (1, 2), (3, 2))).sid == 6


def effects_are_right(found, truth, rng):
    """Return which effects the parents found give right, in linear models with random weights."""
    num_nodes, is_right = len(truth), np.ones(truth.shape, bool)
    for _ in range(3):
        weights = np.where(truth, rng.uniform(0.5, 2, truth.shape) * rng.choice([-1, 1], truth.shape), 0)
        effects = np.linalg.inv(np.eye(num_nodes) - weights)
        covariance = effects.T @ np.diag(rng.uniform(0.5, 2, num_nodes)) @ effects
        for i, j in itertools.permutations(range(num_nodes), 2):
            given = np.append(i, np.flatnonzero(found[:, i]))
            told = np.linalg.solve(covariance[np.ix_(given, given)], covariance[given, j])[0]
            is_right[i, j] &= np.isclose(0.0 if found[j, i] else told, effects[i, j], atol=1e-8)
    return is_right


def test_intervention_distance_counts_the_effects_that_come_out_wrong():
    rng, distances = np.random.default_rng(SEED), []
    for seed in range(200):
        num_nodes = 4 + seed % 2
        counts = rng.integers(0, num_nodes * (num_nodes - 1) // 2 + 1, 2)
        found, truth = (
            simulate_dag(num_nodes, int(count), seed=2 * seed + at) != 0 for at, count in enumerate(counts)
        )
        distances.append(compare_graphs(found, truth).sid)
        assert distances[-1] == np.count_nonzero(~effects_are_right(found, truth, rng)), (found, truth)
    assert min(distances) == 0
    assert max(distances) >= 18


def test_intervention_distance_of_more_edges_is_zero():
    """Peters & Bühlmann (2015): the distance is zero just if all edges of the truth were found."""
    full = simulate_dag(40, 40 * 39 // 2, seed=SEED) != 0
    truth = full & (np.random.default_rng(SEED).uniform(size=full.shape) < 0.1)
    assert compare_graphs(full, truth).sid == 0
    assert compare_graphs(truth, full).sid > 0


def test_comparison_counts_by_hand():
    truth = np.zeros((6, 6))
    truth[[0, 1, 2, 3, 1], [1, 2, 3, 4, 4]] = [0.5, -1.0, 2.0, 1.0, 1.0]
    found = np.zeros((6, 6), int)
    # Two right, one turned, one undirected, one missing, two extra.
    found[[0, 2, 2, 3, 4, 0, 5], [1, 3, 1, 4, 3, 5, 2]] = 1
    comparison = compare_graphs(found, truth)
    assert (comparison.num_missing, comparison.num_extra, comparison.num_turned) == (1, 2, 2)
    assert comparison.shd == 5
    assert comparison.sid is None
    assert (comparison.precision, comparison.recall) == (2 / 5, 2 / 5)
    assert (comparison.skeleton_precision, comparison.skeleton_recall) == (4 / 6, 4 / 5)
    assert {type(value) for value in comparison} == {int, float, type(None)}


def test_comparison_of_completed_graphs():
    chain, fork, collider = (
        arrows(3, *edges) for edges in ([(0, 1), (1, 2)], [(1, 0), (1, 2)], [(0, 1), (2, 1)])
    )
    same = compare_graphs(completed_graph(chain), completed_graph(fork))
    assert (same.shd, same.sid) == (0, None)
    other = compare_graphs(completed_graph(chain), completed_graph(collider))
    assert (other.shd, other.num_turned) == (2, 2)
    assert (other.precision, other.recall, other.skeleton_recall) == (1.0, 0.0, 1.0)


def test_comparison_with_no_edges():
    nothing, chain = arrows(3), arrows(3, (0, 1), (1, 2))
    assert compare_graphs(nothing, nothing) == (0, 0, 1.0, 1.0, 1.0, 1.0, 0, 0, 0)
    assert compare_graphs(nothing, chain)[2:6] == (1.0, 0.0, 1.0, 0.0)
    assert compare_graphs(chain, nothing)[2:6] == (0.0, 1.0, 0.0, 1.0)
    assert compare_graphs(np.zeros((0, 0)), np.zeros((0, 0))).shd == 0


@pytest.mark.parametrize(
    ("found", "truth", "words"),
    [
        (np.zeros((2, 3)), np.zeros((2, 2)), r"found must be a square array, not of shape \(2, 3\)"),
        (np.zeros((2, 2)), np.zeros(4), r"truth must be a square array, not of shape \(4,\)"),
        (np.zeros((2, 2)), np.zeros((3, 3)), r"of one shape, not \(2, 2\) and \(3, 3\)"),
        (
            np.array([[0, 1], [np.nan, 0]]),
            np.zeros((2, 2)),
            r"found must have no NaN, but has 1, .* \[1, 0\]",
        ),
        (
            np.zeros((2, 2)),
            np.diag([0, 1]),
            r"truth must have no edge from a node to itself, but has at \[1\]",
        ),
        (np.full((2, 2), "a"), np.zeros((2, 2)), "found must be an array of numbers, not of <U1"),
    ],
)
def test_comparison_says_what_came(found, truth, words):
    with pytest.raises(ValueError, match=words):
        compare_graphs(found, truth)
