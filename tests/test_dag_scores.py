"""The estimator with each of its scores, on data that suit them, and what it says where they do not."""

import networkx
import numpy as np
import pandas as pd
import pytest
from sklearn.utils.estimator_checks import check_estimator

from qbs.inference.dag.equivalence import completed_graph
from qbs.models.structural import GraphWarning, TopologicalDAG, compare_graphs, simulate_dag, simulate_sem
from qbs.models.structural.streaming import stream_gram

pytestmark = pytest.mark.filterwarnings("ignore::qbs.models.structural.GraphWarning")


def frame_of(data):
    return pd.DataFrame(data, columns=[f"v{number}" for number in range(data.shape[1])])


def unequal(num_nodes, seed, noise="gaussian", num_rows=1000):
    """Return the weights of a graph and data of it: noises of unequal variance, columns in any units."""
    weights, rng = simulate_dag(num_nodes, 2 * num_nodes, seed=seed), np.random.default_rng(seed + 100)
    scales = rng.uniform(0.5, 2.0, num_nodes)
    data = simulate_sem(weights, num_rows, noise, noise_scale=scales, seed=seed)
    return weights, frame_of(data * 10 ** rng.uniform(-2, 2, num_nodes))


def pairs_that_differ(found, truth):
    return int(np.sum(np.triu((found != truth) | (found.T != truth.T), 1)))


@pytest.mark.parametrize("seed", range(3))
def test_bic_finds_the_equivalence_class(seed):
    truth, frame = unequal(10, seed, num_rows=5000)
    found = TopologicalDAG(score="bic", bootstraps=0).fit(frame)
    assert pairs_that_differ(found.cpdag_.to_numpy() == 1, completed_graph(truth != 0)) == 0
    assert set(found.edges_["oriented_by"]) <= {"equivalence class", "nothing"}
    assert found.problems_ == []
    turned = TopologicalDAG(score="bic", bootstraps=0).fit(frame[frame.columns[::-1]])
    pd.testing.assert_frame_equal(turned.cpdag_.loc[frame.columns, frame.columns], found.cpdag_)


def test_bic_shares_the_confidence_of_what_has_no_direction():
    """Of a chain, Gaussian data of any variances tell the edges and not their directions."""
    weights = np.diag([1.0, 1.0], 1)
    found = TopologicalDAG(score="bic", bootstraps=10).fit(frame_of(simulate_sem(weights, 500, seed=0)))
    np.testing.assert_array_equal(found.confidence_.to_numpy(), 0.5 * (weights + weights.T))


@pytest.mark.parametrize("noise", ["exponential", "gumbel", "uniform"])
def test_lingam_finds_directions_whatever_the_variances(noise):
    truth, frame = unequal(8, 1, noise, 2000)
    found = TopologicalDAG(score="lingam", bootstraps=3).fit(frame)
    assert compare_graphs(found.adjacency_.to_numpy(), truth).shd == 0
    assert found.problems_ == []
    assert found.edges_["confidence"].min() > 0.6
    assert found.model_.equations[0].residuals is not None


def test_lingam_says_that_gaussian_noises_tell_nothing():
    _, frame = unequal(8, 1)
    with pytest.warns(GraphWarning, match="Gaussian"):
        TopologicalDAG(score="lingam", bootstraps=0).fit(frame)


def test_the_score_that_would_suit_is_named():
    for noise, other in (("exponential", "lingam"), ("gaussian", "bic")):
        _, frame = unequal(8, 1, noise, 2000)
        problems = TopologicalDAG(bootstraps=0).fit(frame).problems_
        assert any(f'score="{other}"' in problem for problem in problems)
    coins = frame_of(simulate_sem(simulate_dag(6, 9, seed=0), 1000, equations="logistic", seed=0))
    problems = TopologicalDAG(bootstraps=0).fit(coins).problems_
    assert any('score="logistic"' in problem for problem in problems)


def test_binary_columns():
    truth = simulate_dag(5, 5, seed=3)
    frame = frame_of(simulate_sem(truth, 2000, equations="logistic", seed=3)).astype(bool)
    for score in ("logistic", "mixed"):
        found = TopologicalDAG(score=score).fit(frame)
        skeleton = found.adjacency_.to_numpy() != 0
        assert np.sum(np.triu((skeleton | skeleton.T) != ((truth != 0) | (truth.T != 0)))) <= 1
        assert found.confidence_ is None  # seconds each: asked for by number only
        assert found.noise_variances_.isna().all()
        drawn = found.model_.sample(50)
        assert np.isin(drawn.to_numpy(), (0, 1)).all()
    with pytest.raises(ValueError, match=r"'v0' is continuous, and score=\"logistic\""):
        TopologicalDAG(score="logistic").fit(frame.astype(float).assign(v0=np.linspace(0, 1, 2000)))


def test_categories():
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 3, 2000)
    size = np.array([0.0, 2.0, -1.0])[colour] + rng.normal(size=2000)
    is_sold = rng.uniform(size=2000) < 1 / (1 + np.exp(-2 * size))
    names = pd.Categorical.from_codes(colour, ["red", "green", "blue"])
    frame = pd.DataFrame({"colour": names, "size": size, "is_sold": is_sold})
    found = TopologicalDAG(score="mixed", bootstraps=2, tiers=[["colour"]]).fit(frame)
    arrows = {(edge.cause, edge.effect) for edge in found.graph_.edges()}
    assert {tuple(sorted(arrow)) for arrow in arrows} == {("colour", "size"), ("is_sold", "size")}
    assert found.predict(frame).shape == frame.shape


def test_networks():
    rng = np.random.default_rng(0)
    cause = rng.normal(size=400)
    effect = 2 * np.cos(2 * cause) + rng.normal(size=400)
    found = TopologicalDAG(score="mlp").fit(pd.DataFrame({"effect": effect, "cause": cause}))
    assert found.order_ == ["cause", "effect"]
    assert list(found.edges_["cause"]) == ["cause"]
    # Of a mean over 2,000 rows of a difference of at most four.
    change = found.model_.effects_of("cause", values=(0.0, np.pi / 2), num_rows=2000)
    assert change.loc["effect", "change"] == pytest.approx(-4.0, abs=0.5)


def test_conditions_of_optimality():
    truth = simulate_dag(8, 12, seed=2)
    frame = frame_of(simulate_sem(truth, 1000, seed=2))
    found = TopologicalDAG(neighbourhood="kkt", bootstraps=0).fit(frame)
    assert compare_graphs(found.adjacency_.to_numpy(), truth).shd == 0
    assert found.kkt_.num_violations == 0
    assert found.kkt_.h == pytest.approx(0.0, abs=1e-8)
    assert found.kkt_.is_swap_optimal
    penalized = TopologicalDAG(neighbourhood="kkt", l1=0.05, bootstraps=0).fit(frame)
    assert penalized.kkt_.num_violations == 0
    assert penalized.loss_ > found.loss_


def test_another_methods_graph_is_a_start():
    truth = simulate_dag(6, 9, seed=2)
    frame = frame_of(simulate_sem(truth, 500, seed=2))
    other = simulate_dag(6, 6, seed=9)
    names = list(frame.columns)
    weights = pd.DataFrame(other, index=names, columns=names)
    numbered = networkx.from_numpy_array(other, create_using=networkx.DiGraph)
    graph = networkx.relabel_nodes(numbered, dict(enumerate(names)))
    for start in (weights, graph, TopologicalDAG(bootstraps=0).fit(frame).graph_):
        found = TopologicalDAG(start=start, bootstraps=0).fit(frame)
        assert compare_graphs(found.adjacency_.to_numpy(), truth).shd == 0
    with pytest.raises(ValueError, match="cycle"):
        TopologicalDAG(start=weights + weights.T, bootstraps=0).fit(frame)


@pytest.mark.parametrize("pruning", ["adaptive-lasso", "threshold", "none"])
def test_other_ways_to_prune(pruning):
    truth = simulate_dag(8, 12, seed=2)
    found = TopologicalDAG(pruning=pruning, bootstraps=2).fit(frame_of(simulate_sem(truth, 1000, seed=2)))
    distance = compare_graphs(found.adjacency_.to_numpy(), truth).shd
    assert distance == {"adaptive-lasso": 0, "threshold": 0, "none": 8 * 7 // 2 - 12}[pruning]
    path = found.threshold_path()
    assert path.num_edges[0] == 8 * 7 // 2
    assert 12 in path.num_edges


def test_the_margin_is_the_likelihood_ratio_of_the_next_best_direction():
    """Of two nodes: turning the arrow is the other order, whose loss has a closed form."""
    frame = frame_of(simulate_sem(np.array([[0.0, 0.3], [0.0, 0.0]]), 300, seed=1))
    found = TopologicalDAG(bootstraps=0).fit(frame)
    covariance = np.cov(frame.to_numpy().T, bias=True)
    losses = []
    for first, second in ((0, 1), (1, 0)):
        left = covariance[second, second] - covariance[0, 1] ** 2 / covariance[first, first]
        losses.append(0.5 * (covariance[first, first] + left))
    ratio = 300 * abs(np.log(losses[0] / losses[1]))
    assert found.loss_ == pytest.approx(min(losses))
    assert found.honesty_.margin == pytest.approx(ratio)


def test_moments_alone(tmp_path):
    truth = simulate_dag(8, 12, seed=2)
    frame = frame_of(simulate_sem(truth, 3000, seed=2) + 5.0)
    frame.to_parquet(tmp_path / "data.parquet")
    gram = stream_gram(tmp_path / "data.parquet")
    for score, bootstraps in (("equal-variance", 40), ("bic", 20)):
        whole = TopologicalDAG(score=score, bootstraps=bootstraps).fit(frame)
        found = TopologicalDAG(score=score, bootstraps=bootstraps).fit_gram(gram)
        pd.testing.assert_frame_equal(found.adjacency_, whole.adjacency_)
        pd.testing.assert_frame_equal(found.predict(frame), whole.predict(frame))
        # Shares of two sets of replicates: each within four standard errors of its mean.
        apart = (found.confidence_ - whole.confidence_).to_numpy()
        assert np.max(np.abs(apart)) < 4 * 0.5 * (2 / bootstraps) ** 0.5
    with pytest.raises(ValueError, match="needs the rows"):
        TopologicalDAG(score="lingam").fit_gram(gram)


@pytest.mark.slow
def test_scikit_learn_knows_it():
    """All checks of scikit-learn but those that call a method `score`, here the name of a setting."""
    reason = "`score` is a setting: what orders are compared by"
    named = dict.fromkeys(
        ("check_fit_score_takes_y", "check_pipeline_consistency", "check_n_features_in_after_fitting"), reason
    )
    named["check_do_not_raise_errors_in_init_or_set_params"] = "tests check types as well"
    named["check_dtype_object"] = "a dict in a column is refused in words of our own"
    results = check_estimator(
        TopologicalDAG(bootstraps=0, progress=False), expected_failed_checks=named, on_skip=None
    )
    assert {result["status"] for result in results} <= {"passed", "xfail", "skipped"}
    assert sum(result["status"] == "passed" for result in results) >= 30


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"score": "bic", "neighbourhood": "kkt"}, "'kkt' is for the scores"),
        ({"score": "mlp", "pruning": "adaptive-lasso"}, "'adaptive-lasso' is for the scores"),
        ({"score": "lingam", "l1": 0.1}, "l1 is for the scores"),
        ({"l1": -1.0}, "l1 must be"),
        ({"num_restarts": 1.5}, "num_restarts must be"),
    ],
)
def test_settings_that_do_not_go_together(settings, words):
    frame = frame_of(simulate_sem(simulate_dag(3, 2, seed=0), 50, seed=0))
    with pytest.raises(ValueError, match=words):
        TopologicalDAG(bootstraps=0).set_params(**settings).fit(frame)
