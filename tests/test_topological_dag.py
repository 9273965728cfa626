"""The estimator: what it learns, what it says against it, and what it does with bad input."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from qbs.cli import app
from qbs.errors import DataError
from qbs.models.structural import GraphWarning, TopologicalDAG, compare_graphs, simulate_dag, simulate_sem

pytestmark = pytest.mark.filterwarnings("ignore::qbs.models.structural.GraphWarning")

TRUTH = simulate_dag(8, 12, seed=2)


def frame_of(data):
    return pd.DataFrame(data, columns=[f"v{number}" for number in range(data.shape[1])])


@pytest.fixture(scope="module")
def frame():
    return frame_of(simulate_sem(TRUTH, 1000, seed=2))


@pytest.fixture(scope="module")
def found(frame):
    return TopologicalDAG(bootstraps=20).fit(frame)


def test_the_graph_is_found(found, frame):
    assert compare_graphs(found.adjacency_.to_numpy(), TRUTH).shd == 0
    assert list(found.adjacency_.index) == list(found.adjacency_.columns) == list(frame.columns)
    errors = (found.adjacency_.to_numpy() - TRUTH)[TRUTH != 0]
    # The noise has variance one, and so have, at least, the causes given each other.
    assert np.max(np.abs(errors)) < 5 / 1000**0.5
    assert found.problems_ == []
    places = {name: place for place, name in enumerate(found.order_)}
    arrows = found.edges_[["cause", "effect"]].to_numpy()
    assert all(places[cause] < places[effect] for cause, effect in arrows)


def test_confidences_are_shares(found):
    confidence = found.confidence_.to_numpy()
    assert np.all((confidence >= 0) & (confidence <= 1))
    assert np.all(confidence + confidence.T <= 1)
    assert found.edges_["confidence"].min() > 0.5


def test_the_cpdag_has_the_edges_of_the_graph(found):
    is_edge, possible = found.adjacency_.to_numpy() != 0, found.cpdag_.to_numpy()
    np.testing.assert_array_equal((possible | possible.T) == 1, is_edge | is_edge.T)
    assert np.all(possible[is_edge] == 1)


def test_the_same_whatever_holds_the_table_and_in_whatever_order(frame):
    polars = pytest.importorskip("polars")
    here = TopologicalDAG(bootstraps=5).fit(frame)
    there = TopologicalDAG(bootstraps=5).fit(polars.DataFrame(frame.to_dict("list")))
    pd.testing.assert_frame_equal(here.adjacency_, there.adjacency_)
    pd.testing.assert_frame_equal(here.confidence_, there.confidence_)
    turned = TopologicalDAG(bootstraps=0).fit(frame[frame.columns[::-1]])
    pd.testing.assert_frame_equal(turned.adjacency_.loc[frame.columns, frame.columns], here.adjacency_)


@pytest.mark.parametrize("seed", range(5))
def test_standardized_and_unequal_noises_are_warned_of_and_equal_ones_are_not(seed):
    weights = simulate_dag(10, 20, seed=seed)
    scales = np.random.default_rng(seed).uniform(0.5, 2.0, 10)
    equal = frame_of(simulate_sem(weights, 500, seed=seed))
    unequal = frame_of(simulate_sem(weights, 500, noise_scale=scales, seed=seed))
    method = TopologicalDAG(bootstraps=0)
    assert method.fit(equal).problems_ == []
    standard = (equal - equal.mean()) / equal.std()
    for data, words in ((unequal, "residual variances differ"), (standard, "same variance")):
        with pytest.warns(GraphWarning, match=words):
            method.fit(data)
        assert any(words in problem for problem in method.problems_)


def test_tiers_required_and_forbidden(frame):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tiers = [["v0", "v1"], ["v2", "v3", "v4", "v5", "v6", "v7"]]
        forbidden, required = [("v2", "v3"), ("v0", "v5")], [("v6", "v7")]
        found = TopologicalDAG(bootstraps=3, tiers=tiers, forbidden=forbidden, required=required).fit(frame)
    for share in (found.adjacency_, found.confidence_):
        assert np.all(share.loc[tiers[1], tiers[0]] == 0)
        assert all(share.loc[edge] == 0 for edge in forbidden)
        assert all(share.loc[edge] != 0 for edge in required)


def test_what_directs_an_arrow():
    """Nothing tells the directions of a chain but the assumption; one that is known tells all others."""
    chain = simulate_sem(np.diag([1.5, -1.5, 1.5], 1), 2000, seed=0)
    columns = pd.DataFrame(chain, columns=list("abcd"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        free, tied = (
            TopologicalDAG(bootstraps=0, **known).fit(columns)
            for known in ({}, {"tiers": [["a"], ["b", "c", "d"]]})
        )
    for found, reason in ((free, "assumption"), (tied, "knowledge")):
        assert {edge[:2] for edge in found.graph_.edges()} == {("a", "b"), ("b", "c"), ("c", "d")}
        assert set(found.edges_["oriented_by"]) == {reason}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tiers": [["v0"], ["v0"]]}, "in two tiers"),
        ({"tiers": [["w"]]}, "no column 'w'"),
        ({"required": [("v0", "v1"), ("v1", "v0")]}, "cycle"),
        ({"required": [("v0", "v1")], "forbidden": [("v0", "v1")]}, "forbidden as well"),
        ({"required": [("v1", "v0")], "tiers": [["v0"], ["v1"]]}, "against the tiers as well"),
        ({"forbidden": [("v0", "v0")]}, "its own cause"),
        ({"forbidden": ["v0"]}, "pair of cause and effect"),
        ({"start": ["v0"]}, "every column once"),
        ({"start": [f"v{n}" for n in range(8)], "required": [("v7", "v0")]}, "breaks the tiers"),
        ({"score": "magic"}, "score must be one of"),
        ({"bootstraps": -1}, "bootstraps must be"),
        ({"gamma": float("nan")}, "gamma must be"),
    ],
)
def test_settings_that_cannot_be(frame, settings, words):
    with pytest.raises(ValueError, match=words):
        TopologicalDAG(**{"bootstraps": 0, **settings}).fit(frame)


def test_tables_that_are_hard(frame):
    method = TopologicalDAG(bootstraps=3)
    assert list(method.fit(frame[["v0"]]).adjacency_.to_numpy().ravel()) == [0.0]
    assert len(method.fit(frame[["v0", "v1"]]).order_) == 2
    assert any("ridge" in problem for problem in method.fit(frame.head(6)).problems_)
    doubled = frame.assign(again=frame["v0"])
    assert any("ridge" in problem for problem in method.fit(doubled).problems_)
    constant = method.fit(frame.assign(same=1.0))
    assert "same" not in constant.adjacency_.columns
    gaps = frame.mask(np.random.default_rng(0).uniform(size=frame.shape) < 0.01)
    assert any("missing" in problem for problem in method.fit(gaps).problems_)
    with pytest.raises(DataError, match="infinite"):
        method.fit(frame.replace(frame.iloc[0, 0], np.inf))
    with pytest.raises(ValueError, match="one row"):
        method.fit(frame.head(1))
    colours = pd.Categorical(["red", "green", "blue", "red"] * 250)
    with pytest.raises(ValueError, match="'colour' is categorical with 3 levels"):
        method.fit(frame.assign(colour=colours))
    with pytest.raises(TypeError, match="text"):
        method.fit(frame.assign(word="a"))


def test_the_command_line(frame, tmp_path):
    frame.to_csv(tmp_path / "data.csv", index=False)
    out = tmp_path / "out"
    options = ["--bootstraps", "2", "--tiers", "v0;v1", "--out", str(out), "--json"]
    arguments = ["dag", str(tmp_path / "data.csv"), *options]
    result = CliRunner().invoke(app, arguments)
    document = json.loads(result.stdout)
    assert document == json.loads((out / "graph.json").read_text())
    assert len(document["edges"]) == len(pd.read_csv(out / "edges.csv"))
    assert (out / "graph.svg").read_text().startswith("<?xml")
    assert result.exit_code == (3 if document["problems"] else 0)


@pytest.mark.parametrize(
    ("name", "text", "more", "words"),
    [
        ("data.txt", "a,b\n1,2\n", [], ".csv or .parquet"),
        ("data.csv", "", [], "cannot be read"),
        ("data.csv", "a,b\n1,x\n2,y\n", [], "text"),
        ("data.csv", "a,b\n1,2\n2,1\n", ["--forbid", "a,b"], "cause->effect"),
        ("data.csv", "a,b\n1,2\n2,1\n", ["--score", "magic"], "score must be one of"),
    ],
)
def test_the_command_line_says_what_is_wrong(tmp_path, name, text, more, words):
    (tmp_path / name).write_text(text)
    result = CliRunner().invoke(app, ["dag", str(tmp_path / name), *more])
    assert result.exit_code == 2
    assert words in result.stderr


def test_the_command_line_of_a_large_file(frame, tmp_path, monkeypatch):
    monkeypatch.setattr("qbs.models.structural.report.is_large", lambda _: True)
    path = tmp_path / "data.parquet"
    frame.to_parquet(path)
    result = CliRunner().invoke(app, ["dag", str(path), "--bootstraps", "2"])
    assert result.exit_code == 0
    assert "How far to trust the directions" in result.stdout
    for option, value in (("--score", "lingam"), ("--missing", "mean")):
        result = CliRunner().invoke(app, ["dag", str(path), option, value])
        assert result.exit_code == 2
        assert f"{option[2:]}='{value}' needs its rows" in result.stderr


@pytest.mark.slow
def test_who_is_warned_in_a_hundred_cases():
    """Of equal variances nobody; of others, and of standardized columns, at least 95 of 100."""
    method, counts = TopologicalDAG(bootstraps=0), {"equal": 0, "unequal": 0, "standardized": 0}
    for seed in range(100):
        rng = np.random.default_rng(seed)
        num_nodes, num_rows = int(rng.choice([5, 10, 20, 30])), int(rng.integers(500, 2001))
        weights = simulate_dag(num_nodes, min(2 * num_nodes, num_nodes * (num_nodes - 1) // 2), seed=seed)
        scales = rng.uniform(0.5, 2.0, num_nodes)
        equal = simulate_sem(weights, num_rows, seed=seed)
        kinds = {
            "equal": equal,
            "unequal": simulate_sem(weights, num_rows, noise_scale=scales, seed=seed),
            "standardized": (equal - equal.mean(0)) / equal.std(0),
        }
        for kind, data in kinds.items():
            counts[kind] += bool(method.fit(frame_of(data)).problems_)
    assert counts["equal"] == 0
    assert min(counts["unequal"], counts["standardized"]) >= 95
