"""Causal graphs and their data for DoWhy, which identifies, estimates and refutes effects."""

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from qbs.errors import DataError, MissingExtraError
from qbs.models.structural.column_checks import distinct_names
from qbs.models.structural.graph import CausalGraph
from qbs.models.structural.simulation import causal_order
from qbs.models.structural.structural_model import StructuralModel


def to_dowhy(graph: CausalGraph | StructuralModel, frame: Any, *, treatment: str, outcome: str) -> Any:
    """Return a `dowhy.CausalModel` of a graph and the data that it is of.

    DoWhy takes the graph for the truth: its estimates and refutations do not know that it was learned. It
    gets the arrows alone, as a `networkx.DiGraph`; weights, confidences and equations stay here.

    Args:
        graph: The graph; it must have no cycle.
        frame: The data: a pandas or polars data frame, an arrow table or a dict of columns. Columns that are
            no node of the graph are left out; those which are stay as they are, levels and all.
        treatment: Name of the node whose effect is asked for.
        outcome: Name of the node on which.

    Returns:
        The model, to go on with `identify_effect`.

    Raises:
        ValueError: If a name is not known, both are the same, or the graph has a cycle.
        DataError: If the frame has no column for a node: DoWhy would take the node for unobserved.
        MissingExtraError: If DoWhy or networkx is not installed.

    References:
        Sharma & Kiciman (2020), "DoWhy: an end-to-end library for causal inference".
    """
    for role, name in (("treatment", treatment), ("outcome", outcome)):
        if name not in graph.names:
            known = ", ".join(map(repr, graph.names))
            raise ValueError(f"to_dowhy: {role} must be a node of the graph, not {name!r}: {known}")
    if treatment == outcome:
        raise ValueError(f"to_dowhy: treatment and outcome are both {treatment!r}")
    weights = graph.weights
    causal_order(weights)
    data = _pandas(frame)
    if lacking := [name for name in graph.names if name not in data.columns]:
        raise DataError(f"to_dowhy: the frame has no column {', '.join(map(repr, lacking))}")
    networkx, dowhy = _module("networkx", "'qbs-jax[frames]'"), _module("dowhy", "dowhy")
    arrows = networkx.DiGraph()
    arrows.add_nodes_from(graph.names)
    arrows.add_edges_from((graph.names[row], graph.names[column]) for row, column in np.argwhere(weights))
    return dowhy.CausalModel(data=data[list(graph.names)], treatment=treatment, outcome=outcome, graph=arrows)


def _pandas(frame: Any) -> Any:
    """Return a table as a pandas frame whose columns are called by text."""
    pd, nw = _module("pandas", "'qbs-jax[frames]'"), _module("narwhals", "'qbs-jax[frames]'")
    if isinstance(frame, Mapping):
        frame = pd.DataFrame(frame)
    is_pandas = isinstance(frame, pd.DataFrame)
    data = frame if is_pandas else nw.from_native(frame, eager_only=True).to_pandas()
    return data.set_axis(distinct_names(list(data.columns)), axis=1)


def _module(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(f"to_dowhy needs {name}: pip install {package}") from error
