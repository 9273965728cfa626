"""Causal graphs: their edges, exports that other programs read back, and what the pictures show."""

import io
import json
import re
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qbs.errors import MissingExtraError
from qbs.models.structural.export import (
    CONFIDENCE_COLOURS,
    UNKNOWN_COLOUR,
    confidence_colour,
    from_json,
    to_dot,
    to_gml,
    to_graphml,
    to_json,
    to_networkx,
)
from qbs.models.structural.graph import CausalGraph
from qbs.models.structural.plot import plot_confidence, plot_graph
from qbs.models.structural.simulation import causal_order, simulate_dag

ODD_NAMES = (
    "two words",
    'a "quoted" name',
    "naïve Ω 数 😀",
    "line\nbreak",
    "back\\slash",
    "ends with \\",
    "&amp; &#955; <b>",
    "tab\tand\rreturn",
    "",
    "[0] # x; y -> z {}",
    "$x^2$",
)


def random_graph(num_nodes, num_edges, *, seed=0, names=None, with_confidence=True):
    rng = np.random.default_rng(seed)
    weights = simulate_dag(num_nodes, num_edges, seed=seed)
    confidence = rng.uniform(0.01, 1, weights.shape) * (1 - np.eye(num_nodes))
    confidence[rng.random(weights.shape) < 0.4] = 0
    return CausalGraph(
        names=tuple(names or (f"column {node}" for node in range(num_nodes))),
        weights=weights,
        confidence=confidence if with_confidence else None,
        is_compelled=rng.random(weights.shape) < 0.5,
    )


def odd_graph(**settings):
    return random_graph(len(ODD_NAMES), 17, names=ODD_NAMES, **settings)


EMPTY = CausalGraph((), np.zeros((0, 0)), None, np.zeros((0, 0), bool))
SINGLE = CausalGraph(("alone",), np.zeros((1, 1)), np.zeros((1, 1)), np.zeros((1, 1), bool))


# The graph.


def test_edges_by_hand():
    weights = np.array([[0, 2.0, -0.5], [0, 0, 1.0], [0, 0, 0]])
    confidence = np.array([[0, 0.9, 0.6], [0.1, 0, 0.6], [0.25, np.nan, 0]])
    is_compelled = np.array([[1, 1, 1], [1, 1, 0], [0, 0, 0]], bool)
    assert CausalGraph(("a", "b", "c"), weights, confidence, is_compelled).edges() == [
        ("a", "b", 2.0, 0.9, 0.1, "equivalence class"),
        ("b", "c", 1.0, 0.6, None, "assumption"),
        ("a", "c", -0.5, 0.6, 0.25, "equivalence class"),
    ]


def test_edges_without_confidence_are_by_weight():
    graph = random_graph(9, 15, with_confidence=False)
    edges = graph.edges()
    sizes = [abs(edge.weight) for edge in edges]
    assert len(edges) == 15
    assert sizes == sorted(sizes, reverse=True)
    assert {(edge.confidence, edge.confidence_turned) for edge in edges} == {(None, None)}


def test_no_edges():
    assert EMPTY.edges() == SINGLE.edges() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ("a", "b", "a")}, r"names must differ; given twice or more: \['a'\]"),
        ({"names": ("a", "b")}, r"weights must be of shape \(2, 2\) for 2 names, not \(3, 3\)"),
        ({"confidence": np.zeros((2, 2))}, "confidence must be of shape"),
        ({"is_compelled": np.zeros((2, 2), bool)}, "is_compelled must be of shape"),
        ({"is_known": np.zeros((2, 2), bool)}, "is_known must be of shape"),
        ({"weights": np.diag([0.0, 1.0, 0.0])}, "'b' causes itself"),
        ({"weights": np.where(np.eye(3, k=1), np.nan, 0.0)}, "finite, not nan of 'a' -> 'b'"),
        ({"confidence": np.full((3, 3), 1.5)}, r"confidence must be in \[0, 1\]"),
    ],
)
def test_wrong_graphs_are_refused(changes, message):
    right = CausalGraph(("a", "b", "c"), np.eye(3, k=1), np.zeros((3, 3)), np.zeros((3, 3), bool))
    right.check()
    with pytest.raises(ValueError, match=message):
        right._replace(**changes).edges()


# Exports.


def same_edges(read, graph):
    """Whether a networkx graph has the edges of a causal graph with all fields that are known."""
    wanted = {}
    for edge in graph.edges():
        fields = edge._asdict()
        pair = fields.pop("cause"), fields.pop("effect")
        wanted[pair] = {name: value for name, value in fields.items() if value is not None}
    return {(cause, effect): fields for cause, effect, fields in read.edges(data=True)} == wanted


@pytest.mark.parametrize("graph", [odd_graph(), odd_graph(with_confidence=False), EMPTY, SINGLE])
def test_networkx_reads_back(graph):
    networkx = pytest.importorskip("networkx")
    through = {
        "direct": to_networkx(graph),
        "gml": networkx.read_gml(io.BytesIO(to_gml(graph).encode("ascii"))),
        "graphml": networkx.read_graphml(io.BytesIO(to_graphml(graph).encode("ascii"))),
    }
    for read in through.values():
        assert read.is_directed()
        assert tuple(read) == graph.names
        assert same_edges(read, graph)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(st.lists(st.text(max_size=8), min_size=2, max_size=5, unique=True))
def test_any_name_is_read_back(names):
    networkx = pytest.importorskip("networkx")
    weights = np.triu(np.ones((len(names), len(names))), 1)
    graph = CausalGraph(tuple(names), weights, None, weights > 0)
    again = from_json(json.loads(json.dumps(to_json(graph))))
    assert again.names == graph.names
    assert dot_names(to_dot(graph)) == list(graph.names)
    if not {"()", "[]"} & set(names):  # networkx reads these two as a tuple and a list
        read = networkx.read_gml(io.BytesIO(to_gml(graph).encode("ascii")))
        assert tuple(read) == graph.names
        assert same_edges(read, graph)
    read = networkx.read_graphml(io.BytesIO(to_graphml(graph).encode("ascii")))
    assert len(read) == len(names)
    assert read.number_of_edges() == len(graph.edges())


def test_graphml_spells_out_what_xml_forbids():
    networkx = pytest.importorskip("networkx")
    graph = CausalGraph(("a\x0bb", "\x1f", "c"), np.eye(3, k=1), None, np.zeros((3, 3), bool))
    read = networkx.read_graphml(io.BytesIO(to_graphml(graph).encode("ascii")))
    assert list(read) == ["a\\x0bb", "\\x1f", "c"]


@pytest.mark.parametrize("write", [to_networkx, to_gml, to_graphml])
def test_networkx_is_missing(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "networkx", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'qbs-jax\[frames\]'"):
        write(SINGLE)
    assert to_dot(SINGLE)
    assert to_json(SINGLE)


@pytest.mark.parametrize(
    "graph", [odd_graph(), odd_graph(with_confidence=False), EMPTY, SINGLE, random_graph(30, 60)]
)
def test_json_reads_back(graph):
    text = json.dumps(to_json(graph), allow_nan=False)
    read = from_json(json.loads(text))
    assert read.names == graph.names
    np.testing.assert_array_equal(read.weights, graph.weights)
    np.testing.assert_array_equal(read.is_compelled, graph.is_compelled & (graph.weights != 0))
    assert (read.confidence is None) == (graph.confidence is None)
    if graph.confidence is not None:
        np.testing.assert_array_equal(read.confidence, graph.confidence)
    assert read.edges() == graph.edges()
    assert to_json(read) == json.loads(text)


def test_json_by_hand():
    confidence = np.array([[0, np.nan, 0], [0.5, 0, 0], [0, 0, 0]], np.float32)
    weights = np.array([[0, -1.5, 0], [0, 0, 0], [0, 0, 0]], np.float32)
    document = to_json(CausalGraph(("a", "b", "c"), weights, confidence, np.zeros((3, 3), bool)))
    assert document["nodes"] == [{"name": "a"}, {"name": "b"}, {"name": "c"}]
    assert document["edges"] == [
        {
            "cause": "a",
            "effect": "b",
            "weight": -1.5,
            "confidence": None,
            "confidence_turned": 0.5,
            "oriented_by": "assumption",
        }
    ]
    assert document["absent_edges"] == [{"cause": "b", "effect": "a", "confidence": 0.5}]
    assert type(document["edges"][0]["weight"]) is float
    assert np.isnan(from_json(document).confidence[0, 1])


def test_json_of_something_else_is_refused():
    document = to_json(random_graph(4, 3))
    with pytest.raises(ValueError, match="expected kind 'qbs causal graph' of version 1, not"):
        from_json({})
    with pytest.raises(ValueError, match="'version': 2"):
        from_json({**document, "version": 2})
    with pytest.raises(ValueError, match="'column 3' is missing, or is not the name of a node"):
        from_json({**document, "nodes": document["nodes"][:3], "edges": [edge_to("column 3")]})
    with pytest.raises(ValueError, match="'edges' is missing"):
        from_json({key: value for key, value in document.items() if key != "edges"})


def edge_to(effect):
    return {
        "cause": "column 0",
        "effect": effect,
        "weight": 1.0,
        "confidence": None,
        "oriented_by": "assumption",
    }


DOT_STRING = r'"((?:[^"\\]|\\.)*)"'


def dot_names(text):
    """The names of the nodes of a DOT text, by its rules for strings."""
    ids = re.findall(rf"^  {DOT_STRING} \[label=", text, re.DOTALL | re.MULTILINE)
    return [
        re.sub(r"\\(.)", lambda found: {"n": "\n", "0": "\0"}.get(found[1], found[1]), name) for name in ids
    ]


def test_dot_names():
    text = to_dot(odd_graph())
    assert dot_names(text) == list(ODD_NAMES)
    # Without its strings, what is left is braces, brackets and words: no quote was left open.
    rest = re.sub(DOT_STRING, "S", text, flags=re.DOTALL)
    assert '"' not in rest
    assert rest.count("S -> S [") == 17
    assert rest.startswith("digraph {\n  rankdir=LR;\n")
    assert rest.endswith("\n}\n")


def test_dot_edges():
    weights = np.array([[0, 2.0, -1.0], [0, 0, 0], [0, 0, 0]])
    confidence = np.array([[0, 1.0, 0], [0, 0, 0], [0.5, 0, 0]])
    is_compelled = np.array([[0, 1, 0], [0, 0, 0], [0, 0, 0]], bool)
    lines = to_dot(CausalGraph(("a", "b", "c & d"), weights, confidence, is_compelled)).splitlines()
    assert lines[-5:] == [
        '  "b" [label="b"];',
        '  "c & d" [label="c &amp; d"];',
        f'  "a" -> "b" [color="{CONFIDENCE_COLOURS[-1]}", penwidth=3.20, style=solid, arrowhead=normal, '
        'tooltip="a -> b: weight 2, confidence 100% (0% turned), oriented by the equivalence class"];',
        f'  "a" -> "c & d" [color="{CONFIDENCE_COLOURS[0]}", penwidth=2.00, style=dashed, arrowhead=empty, '
        'tooltip="a -> c &amp; d: weight -1, confidence 0% (50% turned), oriented by the assumption"];',
        "}",
    ]


def test_dot_of_no_nodes():
    assert "->" not in to_dot(EMPTY)
    assert dot_names(to_dot(EMPTY)) == []
    assert dot_names(to_dot(SINGLE)) == ["alone"]


def test_colours_darken_with_confidence():
    def lightness(share):
        red, green, blue = (int(confidence_colour(share)[i : i + 2], 16) for i in (1, 3, 5))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    shades = [lightness(share) for share in np.linspace(0, 1, 21)]
    assert all(b < a for a, b in pairwise(shades))
    assert confidence_colour(None) == UNKNOWN_COLOUR


# Pictures.


class Picture:
    """What a figure of `plot_graph` shows, in the order of drawing."""

    def __init__(self, figure):
        patches = pytest.importorskip("matplotlib.patches")
        self.ax = figure.axes[0]
        drawn = self.ax.patches
        self.arrows = [patch for patch in drawn if isinstance(patch, patches.FancyArrowPatch)]
        self.heads = [patch for patch in drawn if isinstance(patch, patches.Polygon)]
        self.boxes = [patch for patch in drawn if isinstance(patch, patches.FancyBboxPatch)]
        self.labels = [text.get_text() for text in self.ax.texts]
        self.legend = [text.get_text() for text in self.ax.get_legend().get_texts()] if self.arrows else []

    def borders(self):
        """Left, top, right and bottom of the nodes; y grows downwards."""
        return np.array(
            [
                (b.get_x(), b.get_y(), b.get_x() + b.get_width(), b.get_y() + b.get_height())
                for b in self.boxes
            ]
        )

    def ends(self):
        """Numbers of the nodes at whose borders each arrow starts and ends."""
        borders, found = self.borders(), []
        for arrow, head in zip(self.arrows, self.heads, strict=True):
            pair = []
            for x, y in (arrow.get_path().vertices[0], head.get_xy()[0]):
                left, top, right, bottom = borders.T
                inside = (x > left - 0.1) & (x < right + 0.1) & (y > top - 0.1) & (y < bottom + 0.1)
                pair.append(int(np.flatnonzero(inside)[0]))
                assert inside.sum() == 1
            found.append(tuple(pair))
        return found


@pytest.mark.parametrize(("num_nodes", "num_edges"), [(1, 0), (2, 1), (5, 6), (11, 17), (30, 60), (100, 160)])
def test_picture(num_nodes, num_edges):
    graph = random_graph(num_nodes, num_edges, seed=3)
    picture = Picture(plot_graph(graph))
    # Each node is there once, each arrow joins its cause to its effect.
    assert sorted(picture.labels) == sorted(graph.names)
    assert len(picture.boxes) == num_nodes
    assert len(picture.arrows) == len(picture.heads) == num_edges
    assert set(picture.ends()) == {(int(i), int(j)) for i, j in np.argwhere(graph.weights)}
    # No two nodes overlap or touch.
    left, top, right, bottom = picture.borders().T
    apart = (left[:, None] > right + 4) | (right[:, None] < left - 4)
    apart |= (top[:, None] > bottom + 4) | (bottom[:, None] < top - 4)
    assert (apart | np.eye(num_nodes, dtype=bool)).all()
    # All arrows go one way, rightwards or downwards, and never back.
    steps = [np.diff(arrow.get_path().vertices, axis=0) for arrow in picture.arrows]
    assert num_edges == 0 or any(min(step[:, axis].min() for step in steps) > -1e-6 for axis in (0, 1))
    # None of them runs through a node.
    share = np.linspace(0.02, 0.98, 25)[:, None]
    for arrow in picture.arrows:
        vertices = arrow.get_path().vertices
        for a, b, c, d in zip(
            vertices[:-3:3], vertices[1:-2:3], vertices[2:-1:3], vertices[3::3], strict=True
        ):
            lower, upper = (1 - share) ** 3 * a + 3 * share * (1 - share) ** 2 * b, share**2
            x, y = (lower + 3 * upper * (1 - share) * c + upper * share * d).T[..., None]
            assert not ((x > left) & (x < right) & (y > top) & (y < bottom)).any()


@pytest.mark.parametrize("num_nodes", [5, 30])
def test_labels_fit_their_nodes(num_nodes):
    figure = plot_graph(random_graph(num_nodes, 2 * num_nodes))
    figure.draw_without_rendering()
    picture = Picture(figure)
    for box, text in zip(picture.boxes, picture.ax.texts, strict=True):
        frame, words = box.get_window_extent(), text.get_window_extent()
        assert frame.x0 < words.x0 < words.x1 < frame.x1
        assert frame.y0 < words.y0 < words.y1 < frame.y1
    canvas = figure.bbox
    shown = [*picture.boxes, picture.ax.get_legend(), picture.ax.child_axes[0].xaxis.label]
    for artist in shown:
        extent = artist.get_window_extent()
        assert min(extent.x0, extent.y0) > 0
        assert extent.x1 < canvas.x1
        assert extent.y1 < canvas.y1


def test_arrows_say_what_is_known():
    colors = pytest.importorskip("matplotlib.colors")
    weights = np.zeros((4, 4))
    weights[0, 1], weights[0, 2], weights[1, 3] = 1.0, -2.0, 0.5
    confidence = np.where(weights == 1.0, 1.0, np.where(weights == -2.0, 0.0, 0.4))
    graph = CausalGraph(
        ("a", "b", "c", "d"),
        weights,
        confidence,
        weights == 1.0,
        is_known=(weights == 1.0) | (weights == 0.5),
    )
    assert {edge.weight: edge.oriented_by for edge in graph.edges()} == {
        1.0: "equivalence class",
        0.5: "knowledge",
        -2.0: "assumption",
    }
    picture = Picture(plot_graph(graph))
    looks = {
        pair: (
            arrow.get_linestyle() in ("-", "solid"),
            head.get_facecolor()[:3] == (1.0, 1.0, 1.0),
            colors.to_hex(arrow.get_edgecolor()),
            arrow.get_linewidth(),
        )
        for pair, arrow, head in zip(picture.ends(), picture.arrows, picture.heads, strict=True)
    }
    wide = looks[0, 2][3]
    assert looks == {
        (0, 1): (True, False, confidence_colour(1.0), pytest.approx(wide * (0.23 + 0.77 / 2))),
        (0, 2): (False, True, confidence_colour(0.0), wide),
        (1, 3): (False, False, confidence_colour(0.4), pytest.approx(wide * (0.23 + 0.77 / 4))),
    }
    assert picture.legend == [
        "positive weight",
        "negative weight",
        "direction follows from the equivalence class",
        "direction follows from what was known",
        "direction rests on the assumption",
        "width: size of the weight, up to 2",
    ]
    (bar,) = picture.ax.child_axes
    assert bar.get_xlabel() == "confidence: share of bootstraps"
    assert bar.get_xlim() == (0, 1)


def test_picture_without_confidence():
    weights = np.eye(4, k=1)
    picture = Picture(plot_graph(CausalGraph(("a", "b", "c", "d"), weights, None, weights > 0)))
    assert picture.ax.child_axes == []
    assert picture.legend == [
        "positive weight",
        "direction follows from the equivalence class",
        "width: size of the weight, up to 1",
    ]


def test_many_edges_are_thin():
    few, many = (Picture(plot_graph(random_graph(40, count))) for count in (100, 151))
    widest = [max(arrow.get_linewidth() for arrow in picture.arrows) for picture in (few, many)]
    assert widest[1] == pytest.approx(widest[0] / 2)


def test_no_edges_is_a_grid():
    picture = Picture(plot_graph(random_graph(50, 0)))
    assert len({(box.get_x(), box.get_y()) for box in picture.boxes}) == 50
    assert len({box.get_y() for box in picture.boxes}) > 3
    assert picture.ax.get_legend() is None
    assert Picture(plot_graph(EMPTY)).boxes == []


@pytest.mark.filterwarnings("ignore:Glyph")
def test_names_in_the_picture():
    names = ("x" * 30 + "_first", "x" * 30 + "_last", *ODD_NAMES)
    picture = Picture(plot_graph(random_graph(len(names), 12, names=names), title="cost in $ and $"))
    assert picture.labels[:2] == ["xxxxxxxxx…xxxx_first", "xxxxxxxxx…xxxxx_last"]
    assert picture.labels[5] == "line break"
    assert picture.labels[10] == "(blank)"
    assert picture.labels[12] == "$x^2$"
    assert not any(text.get_parse_math() for text in picture.ax.texts)
    assert picture.ax.get_title() == "cost in $ and $"


def test_picture_on_given_axes():
    figure_module = pytest.importorskip("matplotlib.figure")
    figure = figure_module.Figure(figsize=(8, 3))
    left, right = figure.subplots(1, 2)
    graph = random_graph(8, 10)
    assert plot_graph(graph, ax=right, title="right") is figure
    assert right.get_title() == "right"
    assert not left.texts
    figure.draw_without_rendering()
    for text in right.texts:
        assert right.bbox.contains(*text.get_window_extent().get_points().mean(0))


@pytest.mark.parametrize(("form", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_formats(form, start):
    for figure in (plot_graph(random_graph(8, 12)), plot_confidence(random_graph(8, 12))):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=form)
        assert buffer.getvalue().startswith(start)


def test_no_global_state():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before = pyplot.get_fignums(), dict(pyplot.rcParams)
    plot_graph(random_graph(5, 5))
    plot_confidence(random_graph(5, 5))
    assert (pyplot.get_fignums(), dict(pyplot.rcParams)) == before


def test_cycles_are_not_drawn():
    weights = np.array([[0, 1.0], [1.0, 0]])
    graph = CausalGraph(("a", "b"), weights, weights / 2, np.zeros((2, 2), bool))
    for draw in (plot_graph, plot_confidence):
        with pytest.raises(ValueError, match="cycle"):
            draw(graph)


@pytest.mark.parametrize("draw", [plot_graph, plot_confidence])
def test_matplotlib_is_missing(draw, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'qbs-jax\[plots\]'"):
        draw(random_graph(3, 2))


@pytest.mark.parametrize("num_nodes", [1, 11, 40, 41])
def test_confidence_of_all_pairs(num_nodes):
    graph = random_graph(num_nodes, min(num_nodes * (num_nodes - 1) // 2, 2 * num_nodes))
    ax, bar = plot_confidence(graph, title="all").axes
    order = causal_order(graph.weights)
    np.testing.assert_array_equal(ax.images[0].get_array(), graph.confidence[np.ix_(order, order)])
    names = [graph.names[node] for node in order] if num_nodes <= 40 else []
    assert [label.get_text() for label in ax.get_xticklabels()] == names
    assert [label.get_text() for label in ax.get_yticklabels()] == names
    framed = {(round(frame.get_y() + 0.5), round(frame.get_x() + 0.5)) for frame in ax.patches}
    assert framed == {(int(i), int(j)) for i, j in np.argwhere(graph.weights[np.ix_(order, order)])}
    assert all(row < column for row, column in framed)
    shown = int((graph.confidence > 0).sum()) if num_nodes == 11 else 0
    assert len(ax.texts) == shown
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("effect", "cause", "all")
    assert bar.get_ylabel() == "confidence: share of bootstraps"


def test_no_confidence_to_draw():
    with pytest.raises(ValueError, match="made without bootstraps"):
        plot_confidence(random_graph(3, 2, with_confidence=False))
