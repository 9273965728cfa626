"""All scores keep what is known, whatever it is, and do not look at how the table is held."""

import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qbs.inference.dag.equivalence import topological_order
from qbs.models.structural import TopologicalDAG, simulate_dag, simulate_sem

pytestmark = pytest.mark.filterwarnings("ignore::qbs.models.structural.GraphWarning")

NUM_NODES = 5
NAMES = [f"v{number}" for number in range(NUM_NODES)]
TRUTH = simulate_dag(NUM_NODES, 6, seed=4)
BINARY = {"equations": "logistic"}
# How data are made on which a score is at home, and how long a fit takes against the others.
SCORES: dict[str, tuple[dict, str]] = {
    "equal-variance": ({}, "quick"),
    "bic": ({"noise_scale": np.linspace(2.0, 0.5, NUM_NODES)}, "quick"),
    "lingam": ({"noise": "exponential", "noise_scale": np.linspace(2.0, 0.5, NUM_NODES)}, "quick"),
    "logistic": (BINARY, "quick"),
    "mixed": (BINARY, "quick"),
    "mlp": ({"equations": "mlp"}, "slow"),
}


def of_pace(*paces):
    return [score for score, (_, pace) in SCORES.items() if pace in paces]


def frame_for(score, num_rows):
    return pd.DataFrame(simulate_sem(TRUTH, num_rows, seed=7, **SCORES[score][0]), columns=NAMES)


def learned(frame, score, **known):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return TopologicalDAG(score=score, bootstraps=0, num_restarts=1, **known).fit(frame)


@st.composite
def knowledge(draw):
    """Tiers, required and forbidden edges that do not contradict each other, of some of the columns."""
    hidden = draw(st.permutations(NAMES))
    cuts = sorted(draw(st.sets(st.integers(1, NUM_NODES - 1), max_size=2)))
    bounds = [0, *cuts, NUM_NODES]
    tiers = [list(hidden[first:last]) for first, last in itertools.pairwise(bounds)]
    in_none = draw(st.sets(st.sampled_from(NAMES), max_size=2))
    pairs = [(cause, effect) for at, cause in enumerate(hidden) for effect in hidden[at + 1 :]]
    required = draw(st.lists(st.sampled_from(pairs), max_size=3, unique=True))
    every = [(cause, effect) for cause in NAMES for effect in NAMES if cause != effect]
    forbidden = draw(st.lists(st.sampled_from(every), max_size=10, unique=True))
    return {
        "tiers": [[name for name in tier if name not in in_none] for tier in tiers],
        "required": required,
        "forbidden": [pair for pair in forbidden if pair not in required],
    }


def check_rules(found, known):
    is_edge = found.adjacency_.to_numpy() != 0
    order = [NAMES[node] for node in topological_order(is_edge)]  # an error if there is a cycle
    assert sorted(order) == NAMES
    at = {name: place for place, name in enumerate(found.order_)}
    edges = {
        (cause, effect) for cause, effect in zip(found.edges_["cause"], found.edges_["effect"], strict=True)
    }
    assert all(at[cause] < at[effect] for cause, effect in edges)
    assert edges >= set(known["required"])
    assert not edges & set(known["forbidden"])
    tier = {name: number for number, names in enumerate(known["tiers"]) for name in names}
    assert all(tier[cause] <= tier[effect] for cause, effect in edges if cause in tier and effect in tier)


@pytest.mark.parametrize("score", of_pace("quick"))
@settings(max_examples=25, deadline=None, derandomize=True)
@given(known=knowledge())
def test_rules_are_kept(score, known):
    check_rules(learned(frame_for(score, 150), score, **known), known)


@pytest.mark.slow
@settings(max_examples=10, deadline=None, derandomize=True)
@given(known=knowledge())
def test_rules_are_kept_by_networks(known):
    check_rules(learned(frame_for("mlp", 150), "mlp", **known), known)


@pytest.mark.parametrize("score", ["equal-variance", "logistic"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(known=knowledge())
def test_rules_are_kept_by_conditions_of_optimality(score, known):
    check_rules(learned(frame_for(score, 150), score, neighbourhood="kkt", **known), known)


@pytest.mark.parametrize(
    "score", [*of_pace("quick"), *(pytest.param(score, marks=pytest.mark.slow) for score in of_pace("slow"))]
)
def test_the_same_whatever_holds_the_table_and_in_whatever_order(score):
    polars = pytest.importorskip("polars")
    frame = frame_for(score, 600)
    here = learned(frame, score)
    there = learned(polars.DataFrame(frame.to_dict("list")), score)
    pd.testing.assert_frame_equal(here.adjacency_, there.adjacency_)
    for names in (NAMES[::-1], ["v2", "v4", "v0", "v3", "v1"]):
        turned = learned(frame[names], score)
        pd.testing.assert_frame_equal(turned.adjacency_.loc[NAMES, NAMES], here.adjacency_, rtol=1e-6)
        assert turned.loss_ == pytest.approx(here.loss_, rel=1e-6)
