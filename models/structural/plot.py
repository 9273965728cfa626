"""Pictures of a causal graph: in layers with coloured arrows, and the confidence of all pairs."""

import re
import warnings
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from qbs.errors import MissingExtraError
from qbs.models.structural.export import CONFIDENCE_COLOURS, confidence_colour
from qbs.models.structural.graph import CausalGraph, Edge, OrientedBy
from qbs.models.structural.simulation import causal_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Lengths are in points; where the picture is made smaller to fit, all of them are.
_LONGEST = 20  # characters of a name
_STUB, _PORT = 10.0, 7.0  # the straight end of an arrow, which holds the head; between arrows at a node
_MARGIN, _STRIP, _TITLE = 12.0, 74.0, 26.0
_LEAST_ACROSS, _MOST_ACROSS = 430.0, 60 * 72.0
_PAGE, _MANY_EDGES, _SWEEPS = 1.5, 150, 24  # width / height that the picture should come near to
_MOST_NAMED, _MOST_NUMBERED = 40, 14  # nodes, in the heat map
_Chains = dict[tuple[int, int], list[int]]  # of each edge, the places it goes through; nodes are the first
_DIRECTIONS: dict[OrientedBy, tuple[str, tuple[float, ...]]] = {  # in words; lengths of dashes and gaps
    "equivalence class": ("direction follows from the equivalence class", ()),
    "knowledge": ("direction follows from what was known", (1.3, 1.7)),
    "assumption": ("direction rests on the assumption", (5.0, 2.6)),
    "nothing": ("direction unknown", (5.0, 2.6)),
}


def plot_graph(graph: CausalGraph, *, ax: "Axes | None" = None, title: str | None = None) -> "Figure":
    """Draw the graph in layers, causes before effects: rightwards, or downwards where that fits better.

    Arrows are coloured by confidence and as wide as the size of their weight says. Dashed ones are directed
    by the assumption alone, dotted ones by what was known before; an empty head is for a negative weight.
    Nodes without arrows are below. More than some 60 nodes or 150 edges are hard to follow in any picture;
    see `plot_confidence`.

    Args:
        graph: The graph.
        ax: Matplotlib axes to draw on, which the picture is scaled to fit; a new figure by default, as large
            as the graph needs.
        title: Written above.

    Returns:
        The figure, apart from pyplot where it is new: nothing has to be closed. `figure.savefig` writes it.

    Raises:
        ValueError: If the graph has a cycle or is not valid; see `CausalGraph.check`.
        MissingExtraError: If Matplotlib is not installed.
    """
    figure_class, _ = _matplotlib()
    edges = sorted(graph.edges(), key=lambda edge: (edge.confidence or 0.0, abs(edge.weight)))
    font = float(np.interp(len(graph.names), [12, 30, 100], [11, 9.5, 7.5]))
    labels = [_shortened(name) for name in graph.names]
    sizes = np.array([_size_of(label, font) for label in labels]).reshape(-1, 2)
    picture = _arrange(graph.weights != 0, sizes)
    width, height = max(picture.extent[0], _LEAST_ACROSS), picture.extent[1]
    strip = _STRIP if edges else 0.0
    span = np.array([width + 2 * _MARGIN, height + strip + 2 * _MARGIN])
    if ax is None:
        top = _TITLE if title else 0.0
        zoom = min(1.0, _MOST_ACROSS / (span.max() + top))
        figure = figure_class(figsize=(zoom * span[0] / 72, zoom * (span[1] + top) / 72))
        ax = figure.add_axes((0.0, 0.0, 1.0, span[1] / (span[1] + top)))
    else:
        figure, box = ax.figure.canvas.figure, ax.get_window_extent()
        zoom = min(box.width / span[0], box.height / span[1]) * 72 / figure.dpi
    left = (width - picture.extent[0]) / 2
    ax.set(xlim=(-left - _MARGIN, width - left + _MARGIN), ylim=(height + strip + _MARGIN, -_MARGIN))
    ax.set_aspect("equal")
    ax.axis("off")
    if title:
        ax.set_title(title, fontsize=12 * zoom, parse_math=False)
    largest = max((abs(edge.weight) for edge in edges), default=1.0)
    widest, head = (1.5 * zoom, 5.5) if len(edges) > _MANY_EDGES else (3.0 * zoom, 8.0)
    for level, edge in enumerate(edges):
        route = picture.routes[graph.names.index(edge.cause), graph.names.index(edge.effect)]
        line = widest * (0.23 + 0.77 * abs(edge.weight) / largest)
        _draw_edge(ax, edge, route, line, head=head, zorder=2 + level / len(edges))
    for label, centre, size in zip(labels, picture.centres, picture.sizes, strict=True):
        _draw_node(ax, label, centre, size, font * zoom)
    if edges:
        _draw_key(ax, edges, (-left, height + 18.0), widest, zoom)
    return figure


def plot_confidence(graph: CausalGraph, *, title: str | None = None) -> "Figure":
    """Draw the confidence of all pairs, row -> column, in the causal order of the graph.

    Framed pairs are the edges of the graph; white ones are in no bootstrap. What is below the diagonal goes
    against the order. Names are left out where there are more than 40.

    Args:
        graph: The graph.
        title: Written above.

    Raises:
        ValueError: If the graph has no confidence, has a cycle or is not valid; see `CausalGraph.check`.
        MissingExtraError: If Matplotlib is not installed.
    """
    figure_class, rectangle_class = _matplotlib()
    graph.check()
    if graph.confidence is None:
        raise ValueError("plot_confidence: this graph has no confidence; it was made without bootstraps")
    order, count = causal_order(graph.weights), len(graph.names)
    shares = graph.confidence[np.ix_(order, order)]
    side = float(np.clip(0.34 * count, 2.4, 11.0))
    figure = figure_class(figsize=(side + 2.2, side + 1.2), layout="compressed")
    ax = figure.add_subplot()
    image = ax.imshow(shares, cmap=_colour_map(is_fading=True), vmin=0, vmax=1)
    figure.colorbar(image, ax=ax, label="confidence: share of bootstraps", shrink=min(1.0, 5 / side))
    ax.plot([-0.5, count - 0.5], [-0.5, count - 0.5], color="0.75", linewidth=0.8)
    ax.set(xlabel="effect", ylabel="cause", xticks=[], yticks=[])
    if title:
        ax.set_title(title, parse_math=False)
    if count <= _MOST_NAMED:
        labels, font = [_shortened(graph.names[node]) for node in order], 9 if count <= 25 else 7
        ax.set_xticks(range(count), labels, rotation=90, fontsize=font, parse_math=False)
        ax.set_yticks(range(count), labels, fontsize=font, parse_math=False)
        ax.tick_params(length=0)
    for row, column in np.argwhere(graph.weights[np.ix_(order, order)]):
        frame = rectangle_class((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="black")
        ax.add_artist(frame).set_linewidth(1.3 if count <= _MOST_NAMED else 0.5)
    if count <= _MOST_NUMBERED:
        for row, column in np.argwhere(shares > 0):
            words = f"{shares[row, column]:.0%}" if shares[row, column] >= 0.005 else "<1%"
            ink = "white" if shares[row, column] > 0.45 else "black"
            ax.text(column, row, words, color=ink, fontsize=6.5, ha="center", va="center")
    return figure


def _draw_edge(ax: "Axes", edge: Edge, route: np.ndarray, line: float, *, head: float, zorder: float) -> None:
    from matplotlib.patches import FancyArrowPatch, Polygon
    from matplotlib.path import Path

    tip, colour = route[-1], confidence_colour(edge.confidence)
    along = (tip - route[-2]) / np.linalg.norm(tip - route[-2])
    aside = 0.42 * head * along[::-1]
    points, codes = [route[0]], [Path.MOVETO]
    for start, end in pairwise([*route[:-1], tip - 0.8 * head * along]):
        lead = 0.42 * (end - start) * np.abs(along)  # leaves and arrives along the layers' direction
        points += [start + lead, end - lead, end]
        codes += [Path.CURVE4] * 3
    curve = FancyArrowPatch(path=Path(points, codes), arrowstyle="-", **_line(edge.oriented_by, line))
    curve.set(color=colour, fill=False, zorder=zorder, capstyle="butt")
    ax.add_artist(curve)
    corners = [tip, tip - head * along + aside, tip - head * along - aside]
    fill = "white" if edge.weight < 0 else colour
    ax.add_artist(Polygon(corners, edgecolor=colour, facecolor=fill, linewidth=min(line, 1.0), zorder=3.5))


def _line(by: OrientedBy, width: float) -> dict[str, Any]:
    """Return the look of an arrow; dashes are of the same length for lines of any width."""
    dashes = tuple(length / width for length in _DIRECTIONS[by][1])
    return {"linewidth": width, "linestyle": (0, dashes) if dashes else "solid"}


def _draw_node(ax: "Axes", label: str, centre: np.ndarray, size: np.ndarray, font: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    (x, y), (width, height) = centre - size / 2, size
    box = FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=4", zorder=4)
    ax.add_artist(box).set(facecolor="#f4f6fa", edgecolor="#7b8794", linewidth=0.8)
    text = ax.text(centre[0], centre[1], label, fontsize=font, color="#1b2330", zorder=5)
    text.set(ha="center", va="center", parse_math=False)


def _draw_key(ax: "Axes", edges: list[Edge], corner: tuple[float, float], widest: float, zoom: float) -> None:
    """Draw the legend and the colour bar below the graph."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.lines import Line2D

    by, signs, line = {edge.oriented_by for edge in edges}, {edge.weight > 0 for edge in edges}, 1.2 * zoom
    width = f"width: size of the weight, up to {max(abs(edge.weight) for edge in edges):.3g}"
    entries: list[tuple[str, bool, dict[str, Any]]] = [
        ("positive weight", True in signs, {"marker": ">"}),
        ("negative weight", False in signs, {"marker": ">", "markerfacecolor": "white"}),
        *((label, which in by, _line(which, line)) for which, (label, _) in _DIRECTIONS.items()),
        (width, True, {"linewidth": widest}),
    ]
    basic: dict[str, Any] = {"color": "#333c4a", "linewidth": line, "markersize": 5.5 * zoom}
    handles = [Line2D([], [], label=label, **basic | look) for label, is_there, look in entries if is_there]
    spaces = {"borderpad": 0.0, "borderaxespad": 0.0, "handlelength": 2.8, "labelspacing": 0.35}
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": corner, "bbox_transform": ax.transData}
    ax.legend(handles=handles, fontsize=8 * zoom, frameon=False, **place, **spaces)
    if all(edge.confidence is None for edge in edges):
        return
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    x, y = (corner[0] + 240.0 - left) / (right - left), (corner[1] + 14.0 - bottom) / (top - bottom)
    inset = ax.inset_axes((x, y, 170.0 / (right - left), 9.0 / (bottom - top)))
    bar = ax.figure.colorbar(ScalarMappable(cmap=_colour_map()), cax=inset, orientation="horizontal")
    bar.set_label("confidence: share of bootstraps", fontsize=8 * zoom)
    bar.set_ticks([0, 0.25, 0.5, 0.75, 1], labels=["0", "0.25", "0.5", "0.75", "1"])
    bar.ax.tick_params(labelsize=7.5 * zoom, length=2.5 * zoom, width=0.6 * zoom)
    inset.spines[:].set_linewidth(0.0)


def _colour_map(*, is_fading: bool = False) -> Any:
    """Return the colours of confidence; if fading, white at 0 and the same from 1/5 on."""
    from matplotlib.colors import LinearSegmentedColormap

    colours = ["#ffffff", *CONFIDENCE_COLOURS[1:]] if is_fading else CONFIDENCE_COLOURS
    return LinearSegmentedColormap.from_list("confidence", colours)


def _shortened(name: str) -> str:
    """Return a name on one line, without its middle where it is long, since ends tell columns apart."""
    name = re.sub(r"[\s\x00-\x1f\x7f]+", " ", name).strip() or "(blank)"
    head = (_LONGEST - 1) // 2
    return name if len(name) <= _LONGEST else f"{name[:head]}…{name[head + 1 - _LONGEST :]}"


def _size_of(label: str, font: float) -> tuple[float, float]:
    """Return width and height of a node."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    with warnings.catch_warnings():  # of a letter that the font lacks; it is said when the figure is drawn
        warnings.simplefilter("ignore")
        across = TextToPath().get_text_width_height_descent(label, FontProperties(size=font), ismath=False)[0]
    return max(across, font) + 1.3 * font, 1.9 * font


def _matplotlib() -> Any:
    try:
        import matplotlib.patches

        from qbs.models.structural.notebook_figure import NotebookFigure
    except ImportError as error:
        raise MissingExtraError("the plot needs Matplotlib: pip install 'qbs-jax[plots]'") from error
    return NotebookFigure, matplotlib.patches.Rectangle


class _Picture(NamedTuple):
    """Places of a picture, in points; y grows downwards, and the left upper corner is (0, 0)."""

    centres: np.ndarray
    sizes: np.ndarray
    routes: dict[tuple[int, int], np.ndarray]  # of each edge; points
    extent: np.ndarray


def _arrange(is_edge: np.ndarray, sizes: np.ndarray) -> _Picture:
    """Return the picture, downwards or to the right, whichever is smaller on a page; lone nodes below."""
    linked = np.flatnonzero(is_edge.any(0) | is_edge.any(1))
    centres, sizes, extent = np.zeros(sizes.shape), sizes.copy(), np.zeros(2)
    routes: dict[tuple[int, int], np.ndarray] = {}
    if len(linked):
        found, structure = [], _layered(is_edge[np.ix_(linked, linked)])
        for axes in ([1, 0], [0, 1]):
            drawn = _placed(*structure, sizes[linked][:, axes])
            turned = {tuple(linked[[*pair]].tolist()): route[:, axes] for pair, route in drawn.routes.items()}
            found.append(_Picture(drawn.centres[:, axes], drawn.sizes[:, axes], turned, drawn.extent[axes]))
        best = min(found, key=lambda drawn: max(max(drawn.extent[0], _LEAST_ACROSS) / _PAGE, drawn.extent[1]))
        centres[linked], sizes[linked], routes, extent = best
    lone = np.setdiff1d(np.arange(len(sizes)), linked)
    limit = max(extent[0], _LEAST_ACROSS, np.sqrt(_PAGE * np.prod(sizes[lone] + 14.0, 1).sum()))
    x, y = 0.0, extent[1] + (24.0 if len(linked) else 0.0)
    for node in lone:
        if x > 0 and x + sizes[node, 0] > limit:
            x, y = 0.0, y + sizes[node, 1] + 10.0
        centres[node] = (x, y) + sizes[node] / 2
        extent = np.maximum(extent, (x, y) + sizes[node])
        x += sizes[node, 0] + 14.0
    return _Picture(centres, sizes, routes, extent)


def _layered(is_edge: np.ndarray) -> tuple[list[np.ndarray], _Chains]:
    """Return the layers (of Sugiyama et al. 1981) and the places of each edge, one in each that it passes."""
    order, depths = causal_order(is_edge.astype(float)), np.zeros(len(is_edge), int)
    for node in order:
        depths[node] = max((depths[is_edge[:, node]] + 1).tolist(), default=0)
    pull = is_edge.sum(1) - is_edge.sum(0)
    for _ in range(6):  # as far towards most of its edges as they let each node go
        for node in order[::-1]:
            if pull[node] > 0:
                depths[node] = depths[is_edge[node]].min() - 1
            elif pull[node] < 0:
                depths[node] = depths[is_edge[:, node]].max() + 1
    depths = np.unique(depths, return_inverse=True)[1]
    chains, levels = {}, depths.tolist()
    for i, j in np.argwhere(is_edge).tolist():
        start = len(levels)
        levels += range(depths[i] + 1, depths[j])
        chains[i, j] = [i, *range(start, len(levels)), j]
    layers = [np.flatnonzero(np.array(levels) == level) for level in range(depths.max() + 1)]
    return _ordered(layers, _links(chains)), chains


def _links(chains: _Chains) -> np.ndarray:
    """Return the pairs of places that follow one another on an edge; shape (2, pairs)."""
    return np.array([pair for chain in chains.values() for pair in pairwise(chain)]).T


def _ordered(layers: list[np.ndarray], links: np.ndarray) -> list[np.ndarray]:
    """Return the layers, each in an order in which few edges cross: by barycentres, then swaps."""
    count = sum(map(len, layers))
    place, near = np.zeros(count), [[links[1 - k, links[k] == item] for item in range(count)] for k in (1, 0)]
    gaps = [links[:, np.isin(links[0], layer)] for layer in layers[:-1]]

    def settle(layer: np.ndarray) -> None:
        place[layer] = (np.arange(len(layer)) + 0.5) / len(layer)

    def crossings(pair: np.ndarray) -> int:  # of edges of two places, the first left of the second
        first, second = pair
        return sum(int(np.sum(place[side[first]][:, None] > place[side[second]])) for side in near)

    best, fewest, layers = layers, len(links[0]) ** 2, list(layers)
    for layer in layers:
        settle(layer)
    for sweep in range(_SWEEPS):
        steps = list(zip(range(1, len(layers)), gaps, strict=True))
        for level, gap in steps if sweep % 2 == 0 else [(level - 1, gap[::-1]) for level, gap in steps[::-1]]:
            degrees = np.bincount(gap[1], minlength=count)
            means = np.bincount(gap[1], place[gap[0]], count) / np.maximum(degrees, 1)
            wanted = np.where(degrees > 0, means, place)[layers[level]]
            layers[level] = layers[level][np.argsort(wanted, kind="stable")]
            settle(layers[level])
        ends = [(place[upper], place[lower]) for upper, lower in gaps]
        total = sum(int(np.sum((a[:, None] < a) & (b[:, None] > b))) for a, b in ends)
        if total < fewest:
            best, fewest = list(layers), total
    for layer in best:
        settle(layer)
    for _ in range(_SWEEPS // 3):
        for layer in best:
            for k in range(len(layer) - 1):
                pair = layer[k : k + 2].copy()
                if crossings(pair) > crossings(pair[::-1]):
                    layer[k : k + 2], place[pair] = pair[::-1], place[pair[::-1]]
    return best


def _columns(layers: list[np.ndarray], links: np.ndarray, widths: np.ndarray, count: int) -> np.ndarray:
    """Return horizontal places: linked ones near one another, long edges straight, and none overlapping."""
    owner, other = np.hstack([links, links[::-1]])
    pull = np.array([1.0, 2.0, 8.0])[(owner >= count).astype(int) + (other >= count)]
    x, index, steps = np.zeros(len(widths)), np.zeros(len(widths), int), []
    for layer in layers:
        passing = (layer >= count).astype(int)
        gaps = np.array([16.0, 11.0, 8.0])[passing[:-1] + passing[1:]]
        rooms = np.append(0.0, np.cumsum(gaps + (widths[layer[:-1]] + widths[layer[1:]]) / 2))
        x[layer], index[layer] = rooms - rooms[-1] / 2, np.arange(len(layer))
        mine = np.isin(owner, layer)
        steps.append((layer, rooms, index[owner[mine]], other[mine], pull[mine]))
    for sweep in range(4 * _SWEEPS):
        for layer, rooms, mine, others, pulls in steps[:: 1 if sweep % 2 == 0 else -1]:
            weights = np.bincount(mine, pulls)
            x[layer] = rooms + _rising(np.bincount(mine, pulls * x[others]) / weights - rooms, weights)
    return x - min(x - widths / 2)


def _rising(wanted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the numbers nearest to those wanted that never fall: those that would are pooled."""
    pools: list[tuple[float, float, int]] = []  # mean, weight, how many
    for mean, weight in zip(wanted.tolist(), weights.tolist(), strict=True):
        size = 1
        while pools and pools[-1][0] > mean:
            before, heavy, many = pools.pop()
            mean = (before * heavy + mean * weight) / (heavy + weight)
            weight, size = heavy + weight, many + size
        pools.append((mean, weight, size))
    return np.repeat([pool[0] for pool in pools], [pool[2] for pool in pools])


def _placed(layers: list[np.ndarray], chains: _Chains, sizes: np.ndarray) -> _Picture:
    """Return the picture downwards, of layers in their order."""
    count, links, sizes = len(sizes), _links(chains), sizes.copy()
    for side in np.array(list(chains)).T:
        needed = _PORT * (np.bincount(side, minlength=count) - 1) + 12.0
        sizes[:, 0] = np.maximum(sizes[:, 0], needed)
    widths = np.append(sizes[:, 0], np.zeros(sum(map(len, layers)) - count))
    x, levels = _columns(layers, links, widths, count), np.zeros(len(widths), int)
    for level, layer in enumerate(layers):
        levels[layer] = level
    leaps, tall = np.zeros(len(layers)), np.zeros(len(layers))
    np.maximum.at(leaps, levels[links[0]], np.abs(x[links[0]] - x[links[1]]))
    np.maximum.at(tall, levels[:count], sizes[:, 1])
    bands = tall + 2 * _STUB  # of the layers; edges pass them straight
    tops = np.append(0.0, np.cumsum(bands + np.clip(0.22 * leaps, 24.0, 150.0))[:-1]) - _STUB
    centres = np.stack([x[:count], (tops + bands / 2)[levels[:count]]], 1)
    ends = {}  # where on a node an edge enters or leaves, in the order of where it comes from or goes
    for side, step in ((1, -2), (0, 1)):
        for node in range(count):
            pairs = sorted((p for p in chains if p[side] == node), key=lambda p: x[chains[p][step]])
            apart = min(2 * _PORT, (sizes[node, 0] - 10.0) / max(len(pairs) - 1, 1))
            for place, pair in enumerate(pairs):
                ends[side, pair] = x[node] + apart * (place - (len(pairs) - 1) / 2)
    routes = {}
    for (i, j), chain in chains.items():
        across = np.repeat([ends[0, (i, j)], *x[chain[1:-1]], ends[1, (i, j)]], 2)
        along = np.ravel([(tops[level], tops[level] + bands[level]) for level in levels[chain]])
        along[[0, -1]] = centres[i, 1] + sizes[i, 1] / 2, centres[j, 1] - sizes[j, 1] / 2
        routes[i, j] = np.stack([across, along], 1)
    return _Picture(centres, sizes, routes, np.array([max(x + widths / 2), tops[-1] + bands[-1] - _STUB]))
