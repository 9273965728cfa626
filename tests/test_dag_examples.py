"""The example data: what ships, and that the estimator runs on them and says what is wrong."""

import numpy as np
import pandas as pd
import pytest

from qbs.inference.dag.equivalence import topological_order
from qbs.models.structural import (
    GraphWarning,
    TopologicalDAG,
    compare_graphs,
    load_sachs,
    sachs_edges,
    simulate_dag,
    simulate_sem,
)

NAMES = ["raf", "mek", "plc", "pip2", "pip3", "erk", "akt", "pka", "pkc", "p38", "jnk"]


def test_the_table_is_as_published():
    frame = load_sachs()
    assert frame.shape == (853, 11)
    assert list(frame.columns) == NAMES
    assert all(dtype.kind == "f" for dtype in frame.dtypes)
    assert not frame.isna().any(axis=None)
    assert frame.iloc[0].tolist() == [26.4, 13.2, 8.82, 18.3, 58.8, 6.61, 17.0, 414.0, 17.0, 44.9, 40.0]
    frame.iloc[0, 0] = 0.0
    assert load_sachs().iloc[0, 0] == 26.4


@pytest.mark.parametrize("reference", ["17", "20"])
def test_the_references_are_acyclic(reference):
    adjacency = sachs_edges(reference)
    assert list(adjacency.index) == list(adjacency.columns) == NAMES
    assert adjacency.to_numpy().sum() == int(reference)
    assert set(np.unique(adjacency)) == {0, 1}
    assert len(topological_order(adjacency.to_numpy() != 0)) == 11
    # Directions that all agree on.
    assert adjacency.loc["raf", "mek"] == adjacency.loc["mek", "erk"] == 1


def test_the_references_differ_by_a_reversal_and_three_edges():
    differences = compare_graphs(sachs_edges("20"), sachs_edges("17"))
    assert (differences.num_extra, differences.num_missing, differences.num_turned) == (3, 0, 1)
    assert sachs_edges().equals(sachs_edges("17"))


@pytest.mark.parametrize("reference", ["18", "", "seventeen"])
def test_other_references_are_refused(reference):
    with pytest.raises(ValueError, match=r"reference must be one of 17, 20, not '"):
        sachs_edges(reference)


def test_the_estimator_runs_on_it_and_warns():
    frame = load_sachs()
    with pytest.warns(GraphWarning):
        found = TopologicalDAG(bootstraps=2).fit(frame)
    assert found.problems_
    assert found.adjacency_.shape == found.cpdag_.shape == found.confidence_.shape == (11, 11)
    truth = sachs_edges("17").to_numpy()
    assert compare_graphs(np.zeros((11, 11)), truth).shd == 17


def test_new_figures_show_in_a_notebook():
    pytest.importorskip("matplotlib")
    from qbs.models.structural.plot import plot_confidence

    frame = pd.DataFrame(simulate_sem(simulate_dag(4, 4, seed=1), 300, seed=1), columns=list("abcd"))
    found = TopologicalDAG(bootstraps=2).fit(frame)
    for figure in (found.plot(), plot_confidence(found.graph_)):
        assert figure._repr_png_().startswith(b"\x89PNG")
