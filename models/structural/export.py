"""Causal graphs as networkx graphs, and in the DOT, GML, GraphML and JSON formats."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from qbs.errors import MissingExtraError
from qbs.models.structural.graph import CausalGraph, Edge, OrientedBy

if TYPE_CHECKING:
    from networkx import DiGraph

# Confidence 0 ... 1: ever darker, from warm to cold, so that it can be read in grey and by any eye.
CONFIDENCE_COLOURS = ("#f4b860", "#e8735a", "#c2417c", "#8a3fa8", "#3348b0", "#0b1d51")
UNKNOWN_COLOUR = "#3d4756"  # of arrows without a confidence

_KIND, _VERSION = "qbs causal graph", 1
_LEAST_WIDTH, _MOST_WIDTH = 0.8, 3.2
_STYLES: dict[OrientedBy, str] = {
    "equivalence class": "solid",
    "knowledge": "dotted",
    "assumption": "dashed",
    "nothing": "dashed",
}
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_networkx(graph: CausalGraph) -> "DiGraph":
    """Return the graph as a `networkx.DiGraph`.

    Edges have the fields of `Edge` as attributes; a confidence that is not known is left out, since the
    writers of networkx refuse None.

    Raises:
        ValueError: If the graph is not valid; see `CausalGraph.check`.
        MissingExtraError: If networkx is not installed.
    """
    result = _networkx().DiGraph()
    edges = graph.edges()
    result.add_nodes_from(graph.names)
    for edge in edges:
        fields = edge._asdict()
        ends = fields.pop("cause"), fields.pop("effect")
        result.add_edge(*ends, **{name: value for name, value in fields.items() if value is not None})
    return result


def to_gml(graph: CausalGraph) -> str:
    """Return the graph in the GML format, in ASCII: what `networkx.read_gml` reads back, names and all.

    Raises:
        ValueError: If the graph is not valid; see `CausalGraph.check`.
        MissingExtraError: If networkx is not installed.
    """
    return "\n".join(_networkx().generate_gml(to_networkx(graph))) + "\n"


def to_graphml(graph: CausalGraph) -> str:
    r"""Return the graph in the GraphML format, in ASCII: what `networkx.read_graphml` reads back.

    Control characters in names, which XML does not allow, become escapes such as `\x0b`.

    Raises:
        ValueError: If the graph is not valid; see `CausalGraph.check`.
        MissingExtraError: If networkx is not installed.
    """
    names = tuple(_NOT_IN_XML.sub(lambda found: ascii(found.group())[1:-1], name) for name in graph.names)
    return "\n".join(_networkx().generate_graphml(to_networkx(graph._replace(names=names)))) + "\n"


def to_dot(graph: CausalGraph) -> str:
    """Return the graph in the DOT language, for Graphviz and for DoWhy.

    Arrows are coloured by confidence and as wide as the size of their weight says; dashed where the direction
    rests on the assumption alone, dotted where on what was known before, with an empty head where the weight
    is negative.

    Raises:
        ValueError: If the graph is not valid; see `CausalGraph.check`.
    """
    edges = graph.edges()
    largest = max((abs(edge.weight) for edge in edges), default=1.0)
    lines = [f"{_quoted(name)} [label={_quoted(name, is_label=True)}];" for name in graph.names]
    for edge in edges:
        width = _LEAST_WIDTH + (_MOST_WIDTH - _LEAST_WIDTH) * abs(edge.weight) / largest
        settings = [
            f'color="{confidence_colour(edge.confidence)}"',
            f"penwidth={width:.2f}",
            f"style={_STYLES[edge.oriented_by]}",
            f"arrowhead={'empty' if edge.weight < 0 else 'normal'}",
            f"tooltip={_quoted(_in_words(edge), is_label=True)}",
        ]
        lines.append(f"{_quoted(edge.cause)} -> {_quoted(edge.effect)} [{', '.join(settings)}];")
    look = 'shape=box, style="rounded,filled", fillcolor="#f4f6fa", color="#7b8794", fontname="Helvetica"'
    head = ["rankdir=LR;", f"node [{look}];"]
    return "\n".join(["digraph {", *("  " + line for line in head + lines), "}", ""])


def to_json(graph: CausalGraph) -> dict[str, Any]:
    """Return the graph as lists, dictionaries, strings, numbers and None, ready for `json.dumps`.

    Returns:
        `nodes`, each with its `name`; `edges`, each with the fields of `Edge`, in the order of
        `CausalGraph.edges`; `has_confidence`, False without bootstraps; and `absent_edges`, those which are
        not in the graph but in some bootstrap, with their `confidence`.

    Raises:
        ValueError: If the graph is not valid; see `CausalGraph.check`.
    """
    edges, absent = graph.edges(), []
    if graph.confidence is not None:
        for row, column in np.argwhere((graph.weights == 0) & (graph.confidence != 0)):
            share = float(graph.confidence[row, column])
            pair = {"cause": graph.names[row], "effect": graph.names[column]}
            absent.append({**pair, "confidence": None if np.isnan(share) else share})
    return {
        "kind": _KIND,
        "version": _VERSION,
        "has_confidence": graph.confidence is not None,
        "nodes": [{"name": name} for name in graph.names],
        "edges": [edge._asdict() for edge in edges],
        "absent_edges": absent,
    }


def from_json(document: Mapping[str, Any]) -> CausalGraph:
    """Return the graph that `to_json` wrote.

    Args:
        document: What `to_json` returned, or `json.loads` of it.

    Raises:
        ValueError: If it is something else, of a newer version, or names a node that it does not list.
    """
    found = {key: document.get(key) for key in ("kind", "version")}
    if found != {"kind": _KIND, "version": _VERSION}:
        raise ValueError(f"from_json: expected kind {_KIND!r} of version {_VERSION}, not {found}")
    try:
        names = tuple(node["name"] for node in document["nodes"])
        numbers = {name: number for number, name in enumerate(names)}
        weights, confidence = np.zeros((len(names), len(names))), np.zeros((len(names), len(names)))
        is_compelled, is_known = np.zeros((2, *weights.shape), bool)
        otherwise: OrientedBy = "assumption"
        for edge in document["edges"]:
            pair = numbers[edge["cause"]], numbers[edge["effect"]]
            weights[pair] = edge["weight"]
            confidence[pair] = _number(edge["confidence"])
            is_compelled[pair] = edge["oriented_by"] == "equivalence class"
            is_known[pair] = edge["oriented_by"] == "knowledge"
            if not (is_compelled[pair] or is_known[pair]):
                otherwise = edge["oriented_by"]
        for edge in document["absent_edges"]:
            confidence[numbers[edge["cause"]], numbers[edge["effect"]]] = _number(edge["confidence"])
        known = confidence if document["has_confidence"] else None
        graph = CausalGraph(
            names, weights, known, is_compelled, otherwise, is_known if is_known.any() else None
        )
    except KeyError as error:
        raise ValueError(f"from_json: {error} is missing, or is not the name of a node") from error
    graph.check()
    return graph


def confidence_colour(confidence: float | None) -> str:
    """Return the colour of an arrow, as `#rrggbb`."""
    if confidence is None:
        return UNKNOWN_COLOUR
    stops = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in CONFIDENCE_COLOURS])
    place = np.linspace(0, 1, len(stops))
    return "#" + "".join(f"{round(np.interp(confidence, place, part)):02x}" for part in stops.T)


def _number(share: float | None) -> float:
    return np.nan if share is None else share


def _in_words(edge: Edge) -> str:
    words = f"{edge.cause} -> {edge.effect}: weight {edge.weight:.4g}"
    if edge.confidence is not None:
        words += f", confidence {edge.confidence:.0%}"
    if edge.confidence_turned is not None:
        words += f" ({edge.confidence_turned:.0%} turned)"
    is_one = edge.oriented_by in ("equivalence class", "assumption")
    return f"{words}, oriented by {'the ' if is_one else ''}{edge.oriented_by}"


def _quoted(text: str, *, is_label: bool = False) -> str:
    """Return a string of the DOT language; in labels, Graphviz reads `&...;` and breaks lines."""
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("\0", "\\0")
    if is_label:
        text = text.replace("&", "&amp;").replace("\r\n", "\n").replace("\r", "\n")
    return '"' + text.replace("\n", "\\n") + '"'


def _networkx() -> Any:
    try:
        import networkx
    except ImportError as error:
        raise MissingExtraError("this export needs networkx: pip install 'qbs-jax[frames]'") from error
    return networkx
