"""Structural models: effects, interventions and predictions against algebra, and the hand-over to DoWhy."""

import sys
import types
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from qbs.errors import DataError, MissingExtraError
from qbs.inference.dag.equations import LinearEquation
from qbs.models.structural.dowhy import to_dowhy
from qbs.models.structural.graph import CausalGraph
from qbs.models.structural.simulation import causal_order, simulate_dag
from qbs.models.structural.structural_model import StructuralModel

SEEDS = (0, 1, 2, 3, 4)


class SquareEquation(NamedTuple):
    """A sum of squares of the parents, and standard Gaussian noise."""

    node: int
    parents: np.ndarray
    weights: np.ndarray
    noise_variance: float = 1.0

    def mean(self, values):
        return values[:, self.parents] ** 2 @ self.weights

    def draw(self, rng, values):
        return self.mean(values) + rng.normal(size=len(values))


class CoinEquation(NamedTuple):
    """0 or 1, with a weighted sum of the parents as the log odds."""

    node: int
    parents: np.ndarray
    weights: np.ndarray
    noise_variance: float = float("nan")

    def mean(self, values):
        return 1 / (1 + np.exp(-(values[:, self.parents] @ self.weights)))

    def draw(self, rng, values):
        return (rng.uniform(size=len(values)) < self.mean(values)).astype(float)


def numbers(*items):
    return np.array(items, int)


def linear_model(weights, *, seed=0, names=None, residuals=None):
    rng = np.random.default_rng(seed)
    equations = []
    for node in range(len(weights)):
        parents = np.flatnonzero(weights[:, node])
        noise, intercept = float(rng.uniform(0.5, 2)), float(rng.normal())
        equations.append(LinearEquation(node, parents, weights[parents, node], noise, intercept, residuals))
    names = tuple(names or (f"v{node}" for node in range(len(weights))))
    return StructuralModel(names, tuple(equations), causal_order(weights))


def moments(model, forced=()):
    """Return mean and covariance of a linear model from (I - W)^-1, columns of forced nodes cut."""
    weights, size = model.weights, len(model.names)
    shift = np.array([equation.intercept for equation in model.equations])
    noise = np.array([equation.noise_variance for equation in model.equations])
    for node, value in dict(forced).items():
        weights[:, node], shift[node], noise[node] = 0.0, value, 0.0
    solved = np.linalg.inv(np.eye(size) - weights)
    return shift @ solved, solved.T @ np.diag(noise) @ solved


def path_sum(weights, cause, effect):
    """Return the sum over all directed paths of the products of their weights, path by path."""
    others = [node for node in causal_order(weights) if node not in (cause, effect)]
    total = 0.0
    for length in range(len(others) + 1):
        for middle in combinations(others, length):
            total += np.prod([weights[edge] for edge in pairwise((cause, *middle, effect))])
    return total


# a -> b -> c with squares, a coin that depends on a, and a sum of both at the end.
MIXED = StructuralModel(
    ("end", "coin", "square", "a"),
    (
        LinearEquation(0, numbers(1, 2), np.array([3.0, 0.5]), 1.0, 0.0),
        CoinEquation(1, numbers(3), np.array([0.8])),
        SquareEquation(2, numbers(3), np.array([1.0])),
        LinearEquation(3, numbers(), np.zeros(0), 1.0, 2.0),
    ),
    numbers(3, 1, 2, 0),
)


# Total effects.


@pytest.mark.parametrize("seed", SEEDS)
def test_total_effects_are_sums_over_paths(seed):
    weights = simulate_dag(6, 10, seed=seed)
    model = linear_model(weights, seed=seed)
    effects = model.total_effects()
    assert list(effects.index) == list(effects.columns) == list(model.names)
    by_hand = [[path_sum(weights, i, j) if i != j else 0.0 for j in range(6)] for i in range(6)]
    np.testing.assert_allclose(effects, by_hand, atol=1e-12)
    np.testing.assert_allclose(effects, np.linalg.inv(np.eye(6) - weights) - np.eye(6), atol=1e-12)
    order = causal_order(weights)
    assert not np.any(np.tril(effects.to_numpy()[np.ix_(order, order)]))  # exact zeros, also on the diagonal
    deviations = np.sqrt(np.diag(moments(model)[1]))
    np.testing.assert_allclose(
        model.total_effects(per="deviation"), effects.to_numpy() * deviations[:, None], atol=1e-12
    )


def test_simulated_effects_of_a_linear_model_are_exact():
    weights = simulate_dag(7, 12, seed=3)
    model = linear_model(weights)

    # Not of the class, so the model does not know that they are linear.
    disguised = [types.SimpleNamespace(**e._asdict(), mean=e.mean, draw=e.draw) for e in model.equations]
    simulated = StructuralModel(model.names, tuple(disguised), model.order)
    assert model.is_linear
    assert not simulated.is_linear
    # With common noise the difference of two rows is the effect itself.
    np.testing.assert_allclose(simulated.total_effects(num_rows=3), model.total_effects(), atol=1e-10)
    for name in ("v0", "v3"):
        there = simulated.effects_of(name, values=(1.0, 3.0), num_rows=5)
        here = model.effects_of(name, values=(1.0, 3.0))
        np.testing.assert_allclose(there, here, atol=1e-10)
        np.testing.assert_allclose(here["change"], 2 * model.total_effects().loc[name].drop(name))


def test_effects_that_are_not_linear():
    # a ~ N(2, 1): the square grows by (a + 1)^2 - a^2 = 2 a + 1, of mean 5 and variance 4.
    of_a = MIXED.effects_of("a", num_rows=20_000)
    change, error = of_a.loc["square"]
    assert error == pytest.approx(2 / 20_000**0.5, rel=0.03)
    assert abs(change - 5) < 4 * error
    grid, chances = np.polynomial.hermite_e.hermegauss(60)
    chances = chances / chances.sum()

    def coin(a):
        return 1 / (1 + np.exp(-0.8 * a))

    tossed = chances @ (coin(grid + 3) - coin(grid + 2))
    assert abs(of_a.loc["coin", "change"] - tossed) < 4 * of_a.loc["coin", "standard_error"]
    change, error = of_a.loc["end"]
    assert abs(change - (3 * tossed + 0.5 * 5)) < 4 * error
    effects = MIXED.total_effects(num_rows=20_000)
    np.testing.assert_allclose(effects.loc["a", of_a.index], of_a["change"])
    # A coin goes from 0 to 1, whatever it was; by exactly as much in each row.
    assert effects.loc["coin", "end"] == pytest.approx(3.0, abs=1e-12)
    assert MIXED.effects_of("coin").loc["end", "standard_error"] < 1e-12
    np.testing.assert_array_equal(effects.loc["end"], 0.0)
    np.testing.assert_array_equal(np.diag(effects), 0.0)
    scaled = MIXED.total_effects(per="deviation", num_rows=20_000)
    deviation = MIXED.sample(20_000)["square"].std(ddof=0)
    assert scaled.loc["square", "end"] == pytest.approx(0.5 * deviation)
    assert scaled.loc["coin", "end"] == effects.loc["coin", "end"]
    # From 0 to 2, the square grows by 4 in every row.
    assert MIXED.effects_of("a", values=(0, 2)).loc["square", "change"] == pytest.approx(4.0)


def test_effects_of_codes_are_left_open():
    model = StructuralModel(MIXED.names, MIXED.equations, MIXED.order, categorical=("square",))
    effects = model.total_effects(num_rows=50)
    assert effects.loc["square"].isna().all()
    assert effects["square"].isna().all()
    assert effects.drop(index="square", columns="square").notna().all(axis=None)
    assert model.effects_of("a", num_rows=50)["change"].isna().to_dict() == {
        "end": False,
        "coin": False,
        "square": True,
    }
    assert model.effects_of("square", values=(0, 2), num_rows=50).loc["end", "change"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="'square' is categorical: give values"):
        model.effects_of("square")


# Samples and interventions.


def assert_moments(drawn, mean, covariance):
    """Four standard errors of Gaussian means and covariances."""
    num_rows, variances = len(drawn), np.diag(covariance)
    slack = 1e-12
    assert np.all(np.abs(drawn.mean(0) - mean) <= 4 * np.sqrt(variances / num_rows) + slack)
    errors = np.sqrt((np.outer(variances, variances) + covariance**2) / num_rows)
    assert np.all(np.abs(np.cov(drawn.T, ddof=0) - covariance) <= 4 * errors + slack)


@pytest.mark.parametrize("seed", SEEDS)
def test_moments_under_interventions(seed):
    model = linear_model(simulate_dag(5, 7, seed=seed), seed=seed)
    assert_moments(model.sample(20_000, seed=seed).to_numpy(), *moments(model))
    middle = int(model.order[2])
    drawn = model.do({model.names[middle]: 2.0}, num_rows=20_000, seed=seed)
    assert_moments(drawn.to_numpy(), *moments(model, {middle: 2.0}))
    first = int(model.order[0])
    drawn = model.do({f"v{middle}": -1, f"v{first}": 3.0}, num_rows=20_000, seed=seed)
    assert_moments(drawn.to_numpy(), *moments(model, {middle: -1.0, first: 3.0}))


def test_an_intervention_cuts_the_parents_and_leaves_the_rest():
    model = linear_model(simulate_dag(6, 10, seed=1))
    plain, node = model.sample(500), int(model.order[3])
    name = model.names[node]
    values = np.linspace(-1, 1, 500)
    forced = model.sample(500, do={name: values})
    np.testing.assert_array_equal(forced[name], values)
    effects = model.total_effects().loc[name]
    # Same seed, same noise: what comes after moves by the effect, all else stays to the last bit.
    for other in model.names:
        if effects[other] == 0 and other != name:
            np.testing.assert_array_equal(forced[other], plain[other])
        elif other != name:
            moved = effects[other] * (values - plain[name])
            np.testing.assert_allclose(forced[other] - plain[other], moved, atol=1e-9)
    pd.testing.assert_frame_equal(model.do({name: values}, num_rows=500), forced)
    assert not model.sample(500, seed=1).equals(plain)
    pd.testing.assert_frame_equal(model.sample(500), plain)


def test_a_coin_under_interventions():
    drawn = MIXED.do({"a": 1.0}, num_rows=20_000)
    assert set(drawn["coin"]) == {0.0, 1.0}
    chance = 1 / (1 + np.exp(-0.8))
    assert abs(drawn["coin"].mean() - chance) < 4 * np.sqrt(chance * (1 - chance) / 20_000)
    # end = 3 coin + square / 2 + noise, with square = 1 + noise.
    spread = np.sqrt((9 * chance * (1 - chance) + 0.25 + 1) / 20_000)
    assert abs(drawn["end"].mean() - (3 * chance + 0.5)) < 4 * spread


def test_noise_from_residuals():
    residuals = np.array([-1.0, 0.25, 0.75])
    model = linear_model(np.array([[0.0, 2.0], [0.0, 0.0]]), residuals=residuals)
    drawn = model.sample(200)
    second = model.equations[1]
    noise = drawn["v1"] - second.intercept - 2 * drawn["v0"]
    assert set(np.round(noise, 9)) == set(residuals)


# Predictions.


def test_predictions_are_linear_algebra():
    weights = simulate_dag(6, 9, seed=2)
    model = linear_model(weights)
    frame = model.sample(40, seed=5).set_index(pd.Index(range(100, 140)))
    intercepts = [equation.intercept for equation in model.equations]
    by_hand = frame.to_numpy() @ weights + intercepts
    predicted = model.predict(frame)
    np.testing.assert_allclose(predicted, by_hand, atol=1e-12)
    assert list(predicted.columns) == list(model.names)
    assert predicted.index.equals(frame.index)
    # The true conditional mean given the parents, from the joint covariance.
    mean, covariance = moments(model)
    node = int(model.order[-1])
    parents = np.flatnonzero(weights[:, node])
    slopes = np.linalg.solve(covariance[np.ix_(parents, parents)], covariance[parents, node])
    given = mean[node] + (frame.to_numpy()[:, parents] - mean[parents]) @ slopes
    one = model.predict(frame.iloc[:, parents], model.names[node])
    np.testing.assert_allclose(one, given, atol=1e-10)
    assert one.name == model.names[node]
    nested = MIXED.predict({"a": [0.0, 1.0]}, "coin")
    np.testing.assert_allclose(nested, [0.5, 1 / (1 + np.exp(-0.8))])


def test_where_a_parent_is_missing_nothing_is_expected():
    predicted = MIXED.predict(pd.DataFrame({"a": pd.array([1, None], dtype="Int64")}), "coin")
    assert predicted.isna().tolist() == [False, True]


def test_any_table_predicts():
    polars, pyarrow = pytest.importorskip("polars"), pytest.importorskip("pyarrow")
    model = linear_model(simulate_dag(4, 5, seed=0), names=("x0", "x1", "x2", "x3"))
    frame = model.sample(10)
    wanted = model.predict(frame)
    columns = frame.to_dict("list")
    tables = [polars.DataFrame(columns), pyarrow.table(columns), columns, frame.to_numpy()]
    for table in [*tables, frame.astype("Float64")]:
        pd.testing.assert_frame_equal(model.predict(table), wanted)


def test_levels_stand_for_codes():
    levels = {"a": ("no", "yes")}
    wanted = MIXED.predict({"a": [0, 1, 1]}, "coin")
    for column in (["no", "yes", "yes"], pd.Categorical(["no", "yes", "yes"])):
        frame = pd.DataFrame({"a": column})
        pd.testing.assert_series_equal(MIXED.predict(frame, "coin", levels=levels), wanted)
    pd.testing.assert_series_equal(MIXED.predict({"a": [False, True, True]}, "coin"), wanted)
    is_true = {"a": (False, True)}
    pd.testing.assert_series_equal(
        MIXED.predict({"a": np.eye(3)[2] > 2}, "coin", levels=is_true), wanted * 0 + 0.5
    )


BAD_COLUMNS = [
    ({"a": [1.0, np.inf]}, {}, "column 'a' has 1 infinite"),
    ({"a": ["1", "2"]}, {}, "column 'a' must hold numbers"),
    ({"a": pd.Categorical([5, 6])}, {}, "column 'a' is categorical"),
    ({"a": ["no", "maybe"]}, {"a": ("no", "yes")}, "'a' holds 'maybe', which is none of"),
    ({"b": [1.0, 2.0]}, {}, r"'coin' needs its parents \['a'\], and the frame has no column 'a'"),
]


@pytest.mark.parametrize(("columns", "levels", "words"), BAD_COLUMNS)
def test_tables_that_cannot_be_predicted_from(columns, levels, words):
    with pytest.raises(DataError, match=words):
        MIXED.predict(pd.DataFrame(columns), "coin", levels=levels)


def test_other_tables_that_cannot_be_predicted_from():
    with pytest.raises(DataError, match="no column 'coin', 'square'"):
        MIXED.predict({"a": [1.0]})
    with pytest.raises(DataError, match="one length"):
        MIXED.predict({"a": [1.0], "b": [1.0, 2.0]})
    with pytest.raises(DataError, match="rows by columns"):
        MIXED.predict(np.zeros(3))
    with pytest.raises(DataError, match="names must differ"):
        MIXED.predict(pd.DataFrame(np.zeros((2, 2)), columns=["a", "a"]))


# Errors.


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda model: model.sample(5, do={"z": 1.0}), "do: there is no node 'z'"),
        (lambda model: model.sample(5, do={"a": float("nan")}), "'a' must be set to finite numbers"),
        (lambda model: model.sample(5, do={"a": [1.0, 2.0]}), "'a' must be set to one number or to 5"),
        (lambda model: model.sample(5, do={"a": "2"}), "'a' must be set to numbers"),
        (lambda model: model.sample(0), "num_rows must be"),
        (lambda model: model.do({"a": None}), "'a' must be set to numbers"),
        (lambda model: model.predict({"a": [1.0]}, "z"), "predict: target: there is no node 'z'"),
        (lambda model: model.effects_of("z"), "effects_of: cause: there is no node 'z'"),
        (lambda model: model.effects_of("a", values=(0.0, np.inf)), "values of 'a' must be finite"),
        (lambda model: model.total_effects(num_rows=-1), "num_rows must be"),
    ],
)
def test_questions_that_cannot_be_answered(ask, words):
    with pytest.raises(ValueError, match=words):
        ask(MIXED)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"names": ("a", "b", "a", "c")}, r"names must differ; given twice or more: \['a'\]"),
        ({"names": ("a", "b")}, "2 names need 2 equations"),
        ({"order": numbers(3, 1, 2, 2)}, r"an order of 0 ... 3, not 4 equations and \[3, 1, 2, 2\]"),
        ({"order": numbers(3, 1, 0, 2)}, "'square', a parent of 'end', does not come before it"),
        ({"equations": MIXED.equations[::-1]}, r"equations\[0\] is of node 3"),
        ({"categorical": ("z",)}, "categorical: there is no node 'z'"),
    ],
)
def test_models_that_cannot_be(changes, words):
    fields = {"names": MIXED.names, "equations": MIXED.equations, "order": MIXED.order}
    with pytest.raises(ValueError, match=words):
        StructuralModel(**{**fields, **changes})


def test_small_models():
    empty = StructuralModel((), (), numbers())
    assert empty.total_effects().shape == (0, 0)
    assert empty.sample(3).shape == (3, 0)
    single = StructuralModel(("x",), (CoinEquation(0, numbers(), np.zeros(0)),), numbers(0))
    assert single.total_effects(num_rows=4).to_numpy().tolist() == [[0.0]]
    assert single.effects_of("x", num_rows=1).empty
    assert np.isnan(MIXED.effects_of("a", num_rows=1)["standard_error"]).all()


# DoWhy.


@pytest.fixture
def fake_dowhy(monkeypatch):
    """Stand in for DoWhy, whose dependencies are many: what its CausalModel is given."""
    fake = types.ModuleType("dowhy")
    fake.CausalModel = lambda data, treatment, outcome, graph: (data, treatment, outcome, graph)
    monkeypatch.setitem(sys.modules, "dowhy", fake)


def test_dowhy_gets_the_graph_and_its_data(fake_dowhy):
    networkx = pytest.importorskip("networkx")
    frame = MIXED.sample(6).assign(extra=1.0)
    graph = CausalGraph(MIXED.names, MIXED.weights, None, MIXED.weights != 0)
    for source, table in ((MIXED, frame), (graph, frame), (graph, frame.to_dict("list"))):
        data, treatment, outcome, arrows = to_dowhy(source, table, treatment="a", outcome="end")
        assert (treatment, outcome) == ("a", "end")
        assert isinstance(arrows, networkx.DiGraph)
        assert set(arrows.edges) == {("a", "coin"), ("a", "square"), ("coin", "end"), ("square", "end")}
        pd.testing.assert_frame_equal(data, frame[list(MIXED.names)])
    lonely = graph._replace(weights=np.zeros((4, 4)))
    assert set(to_dowhy(lonely, frame, treatment="a", outcome="end")[3]) == set(MIXED.names)


def test_what_dowhy_is_not_given(fake_dowhy):
    frame = MIXED.sample(6)
    with pytest.raises(ValueError, match="treatment must be a node of the graph, not 'z'"):
        to_dowhy(MIXED, frame, treatment="z", outcome="end")
    with pytest.raises(ValueError, match="both 'a'"):
        to_dowhy(MIXED, frame, treatment="a", outcome="a")
    with pytest.raises(DataError, match="names must differ"):
        to_dowhy(MIXED, pd.concat([frame, frame], axis=1), treatment="a", outcome="end")
    with pytest.raises(DataError, match="no column 'coin'"):
        to_dowhy(MIXED, frame.drop(columns="coin"), treatment="a", outcome="end")
    cyclic = CausalGraph(("a", "b"), np.ones((2, 2)) - np.eye(2), None, np.zeros((2, 2), bool))
    with pytest.raises(ValueError, match="cycle"):
        to_dowhy(cyclic, frame, treatment="a", outcome="b")


def test_dowhy_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "dowhy", None)
    with pytest.raises(MissingExtraError, match="pip install dowhy"):
        to_dowhy(MIXED, MIXED.sample(6), treatment="a", outcome="end")


@pytest.mark.filterwarnings("ignore")  # of what DoWhy stands on
def test_the_real_dowhy_estimates_the_effect():
    """Run where DoWhy is installed."""
    pytest.importorskip("dowhy")
    weights = np.array([[0.0, 1.5, 1.0], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    model = linear_model(weights, names=("z", "two words, and a comma", "y"))
    frame = model.sample(2000)
    handed = to_dowhy(model, frame, treatment=model.names[1], outcome="y")
    estimand = handed.identify_effect(proceed_when_unidentifiable=True)
    found = handed.estimate_effect(estimand, method_name="backdoor.linear_regression")
    assert found.value == pytest.approx(2.0, abs=0.2)
