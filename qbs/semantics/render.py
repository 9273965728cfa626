"""The program as a graph, for people to look at."""

import io
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from qbs.batches import bare
from qbs.effects import note_p, sample_p, score_p
from qbs.errors import MissingExtraError, ProgramError
from qbs.jaxprs import CALLS, effect_names, has_effects, inner_jaxprs, is_literal, open_jaxpr, scan_layout
from qbs.program import Program


class Node(NamedTuple):
    """A site, score or note.

    Attributes:
        id: Its name; where a name comes again, with a number.
        kind: "sample", "choice" (a draw of an algorithm, such as resampling), "score" or "note".
        detail: The distribution and shape, as shown.
        box: The position in `boxes` of the innermost box around it; -1 outside of all.
    """

    id: str
    kind: str
    detail: str
    box: int


class Edge(NamedTuple):
    """A dependence: "direct", "carried" from the previous step of a scan, or "chooses" between branches."""

    source: str
    target: str
    kind: str


class Box(NamedTuple):
    """A scan or a branch; `parent` is the position of the box around it, -1 if there is none."""

    label: str
    parent: int


@dataclass(frozen=True)
class Rendering:
    """A program as a graph; notebooks show it as a picture.

    White ellipses are draws (with a grey outline those of an algorithm), grey ones scores, where a
    population may suspend (marked with two bars), dashed boxes notes. A dashed edge comes from the previous
    step of a scan, a dotted one from what decides between branches.

    Attributes:
        name: The program's name.
        nodes: Sites, scores and notes, in the program's order.
        edges: Which depends on which, not through another node.
        boxes: Scans and branches.
    """

    name: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    boxes: tuple[Box, ...]

    @property
    def dot(self) -> str:
        """The graph in the language of Graphviz."""
        numbers = {node.id: f"n{i}" for i, node in enumerate(self.nodes)}

        def inside(box: int) -> list[str]:
            lines = [
                f"{numbers[node.id]} [label={_quoted(node.id, node.detail)}, {_NODES[node.kind][-1]}];"
                for node in self.nodes
                if node.box == box
            ]
            for i, inner in enumerate(self.boxes):
                if inner.parent == box:
                    lines += [f"subgraph cluster_{i} {{ label={_quoted(inner.label)};", *inside(i), "}"]
            return lines

        arrows = [
            f"{numbers[edge.source]} -> {numbers[edge.target]} [{_EDGES[edge.kind][-1]}];"
            for edge in self.edges
        ]
        fonts = 'graph [fontname="Helvetica", style=rounded, color=gray60]; node [fontname="Helvetica"];'
        return "\n".join([f"digraph {_quoted(self.name)} {{", fonts, *inside(-1), *arrows, "}\n"])

    def svg(self) -> str:
        """Return a picture: by Graphviz where `dot` is installed, else by Matplotlib.

        Raises:
            MissingExtraError: If neither is installed.
        """
        return self._picture("svg").decode()

    _repr_svg_ = svg  # how notebooks ask for it

    def save(self, path: Any) -> None:
        """Write the graph to a file.

        Args:
            path: Its suffix says in which form: .dot, .svg or .png.

        Raises:
            ValueError: If the suffix is another one.
            MissingExtraError: If a picture is wanted, and neither Graphviz nor Matplotlib is installed.
        """
        suffix = Path(path).suffix
        if suffix not in (".dot", ".svg", ".png"):
            raise ValueError(f"path must end with .dot, .svg or .png, not {str(path)!r}")
        content = self.dot.encode() if suffix == ".dot" else self._picture(suffix[1:])
        Path(path).write_bytes(content)

    def _picture(self, form: str) -> bytes:
        if program := shutil.which("dot"):
            call = [program, f"-T{form}"]
            return subprocess.run(call, input=self.dot.encode(), capture_output=True, check=True).stdout
        try:
            return _draw(self, form)
        except ImportError as error:
            raise MissingExtraError("pictures need Graphviz, or: pip install 'qbs-jax[plots]'") from error


def render(program: Program, *args: Any) -> Rendering:
    """Return a program as a graph of its sites, scores and notes.

    Args:
        program: The program.
        *args: Its arguments; only their shapes matter.

    Raises:
        ProgramError: If a site stands where no program can be run, as in a `lax.while_loop`.
    """
    staged, builder = program.stage(*args), _Builder()
    builder.walk(staged.jaxpr, [frozenset()] * len(staged.operands), (), -1, frozenset())
    nodes, boxes = tuple(builder.nodes.values()), tuple(builder.boxes.values())
    return Rendering(program.name, nodes, tuple(builder.edges), boxes)


_DRAWN = (sample_p, score_p, note_p)
_Sources = frozenset[tuple[str, str]]  # nodes that a value depends on, and the kind of the edges from them


class _Builder:
    """Collects the graph of a jaxpr; a place is the path of equation numbers that leads to an equation."""

    def __init__(self) -> None:
        self.nodes: dict[tuple[int, ...], Node] = {}
        self.boxes: dict[tuple[int, ...], Box] = {}
        self.edges: dict[Edge, None] = {}

    def walk(self, jaxpr: Any, operands: list, place: tuple, box: int, chosen: frozenset[str]) -> list:
        """Return what the outputs of a jaxpr depend on, from what its operands depend on."""
        opened, _ = open_jaxpr(jaxpr)
        env: dict[Any, _Sources] = dict(zip(opened.invars, operands, strict=True))
        draws: set[Any] = set()

        def read(variable: Any) -> _Sources:
            return frozenset() if is_literal(variable) else env.get(variable, frozenset())

        for position, equation in enumerate(opened.eqns):
            values = [read(variable) for variable in equation.invars]
            outputs = self._visit(equation, values, (*place, position), box, chosen)
            env.update(zip(equation.outvars, outputs, strict=True))
            if equation.primitive is sample_p:
                draws.update(equation.outvars)
            elif equation.primitive is note_p:  # what is computed from it from now on comes through the note
                env.update((v, outputs[0]) for v in equation.invars if not is_literal(v) and v not in draws)
        return [read(variable) for variable in opened.outvars]

    def _visit(self, equation: Any, values: list, place: tuple, box: int, chosen: frozenset[str]) -> list:
        primitive, everything = equation.primitive, frozenset().union(*values)
        if primitive in _DRAWN:
            node = self.nodes.get(place) or self._new_node(equation, place, box)
            self.edges.update({Edge(source, node.id, kind): None for source, kind in sorted(everything)})
            self.edges.update({Edge(source, node.id, "chooses"): None for source in sorted(chosen)})
            return values if primitive is score_p else [frozenset({(node.id, "direct")})]
        if primitive.name in CALLS:
            return self.walk(next(inner_jaxprs(equation)), values, place, box, chosen)
        if primitive.name == "scan" and has_effects(equation):
            return self._scan(equation, values, place, box, chosen)
        if primitive.name == "cond" and has_effects(equation):
            return self._cond(equation, values, place, box, chosen)
        if names := ", ".join(map(repr, effect_names(equation, _DRAWN))):
            raise ProgramError(f"qbs cannot draw the JAX primitive {primitive.name!r} around {names}")
        return [everything] * len(equation.outvars)

    def _new_node(self, equation: Any, place: tuple, box: int) -> Node:
        settings, primitive = equation.params, equation.primitive
        taken = {node.id for node in self.nodes.values()}
        name, number = settings["name"], 2
        while name in taken:
            name, number = f"{settings['name']} ({number})", number + 1
        shape = ", ".join(map(str, equation.outvars[0].aval.shape))
        detail = "‖ score" if primitive is score_p else f"[{shape}]" if shape else ""
        kind = {score_p: "score", note_p: "note"}.get(primitive, "sample")
        if primitive is sample_p:
            detail = _family(settings["structure"]) + (f" [{shape}]" if shape else "")
            kind = "sample" if settings.get("is_recorded", True) else "choice"
        return self.nodes.setdefault(place, Node(name, kind, detail, box))

    def _box(self, place: tuple, label: str, parent: int) -> int:
        self.boxes.setdefault(place, Box(label, parent))
        return list(self.boxes).index(place)

    def _scan(self, equation: Any, values: list, place: tuple, box: int, chosen: frozenset[str]) -> list:
        num_consts, num_carry = scan_layout(equation)
        before, after = values[:num_consts], values[num_consts + num_carry :]
        carry = values[num_consts : num_consts + num_carry]
        inside = self._box(place, f"scan, {equation.params['length']} steps", box)

        def retold(sources: _Sources, kind: str) -> _Sources:
            return frozenset((source, kind if source in own else old) for source, old in sources)

        while True:  # until what the carry depends on does not grow any more
            outputs = self.walk(equation.params["jaxpr"], [*before, *carry, *after], place, inside, chosen)
            own = {node.id for where, node in self.nodes.items() if where[: len(place)] == place}
            grown = [old | retold(new, "carried") for old, new in zip(carry, outputs, strict=False)]
            if grown == carry:
                return [retold(sources, "direct") for sources in outputs]
            carry = grown

    def _cond(self, equation: Any, values: list, place: tuple, box: int, chosen: frozenset[str]) -> list:
        index, *operands = values
        branches, deciders = equation.params["branches"], chosen | {source for source, _ in index}
        results = [[index] * len(equation.outvars)]
        for i, branch in enumerate(branches):
            is_empty = not any(has_effects(inner) for inner in open_jaxpr(branch)[0].eqns)
            label = ("if false", "if true")[i] if len(branches) == 2 else f"case {i}"
            inside = box if is_empty else self._box((*place, i), label, box)
            results.append(self.walk(branch, operands, (*place, i), inside, deciders))
        return [frozenset().union(*sources) for sources in zip(*results, strict=True)]


def _family(structure: Any) -> str:
    found = bare(jax.tree.unflatten(structure, [0.0] * structure.num_leaves))
    return type(found).__name__.removesuffix("Probs").removesuffix("Logits").strip("_")


def _quoted(*lines: str) -> str:  # a string of the DOT language
    text = "\n".join(line for line in lines if line).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + text.replace("\n", "\\n") + '"'


# Color, fill and line for Matplotlib; attributes for Graphviz.
_NODES = {
    "sample": ("#222222", "white", "-", "shape=ellipse"),
    "choice": ("#808080", "white", "-", "shape=ellipse, color=gray60, fontcolor=gray40"),
    "score": ("#222222", "#d5d5d5", "-", "shape=ellipse, style=filled, fillcolor=gray85"),
    "note": ("#222222", "white", "--", "shape=box, style=dashed"),
}
_EDGES = {
    "direct": ("#444444", "", "-", "style=solid"),
    "carried": ("#2b6cb0", "", "--", "style=dashed, constraint=false"),
    "chooses": ("#a0522d", "", ":", "style=dotted"),
}
_GAP, _LINE, _PAD = 34.0, 40.0, 14.0  # between neighbours, between layers, inside boxes; in points


def _draw(graph: Rendering, form: str) -> bytes:
    from matplotlib import figure, patches

    def rounded(x: float, y: float, w: float, h: float, radius: int) -> Any:
        style = f"round,pad=0,rounding_size={radius}"
        return patches.FancyBboxPatch((x - w / 2, y - h / 2), w, h, boxstyle=style)

    places, (width, height) = _layout(graph)
    paper = figure.Figure(figsize=((width + 2 * _PAD) / 72, (height + 2 * _PAD) / 72))
    axes = paper.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-_PAD, width + _PAD), ylim=(height + _PAD, -_PAD))
    axes.axis("off")
    for i, box in enumerate(graph.boxes):
        x, y, w, h = places.get(i, (0.0, 0.0, 0.0, 0.0))
        axes.add_patch(rounded(x, y, w, h, 8)).set(facecolor=(0.35, 0.5, 0.7, 0.07), edgecolor="#8a9bb0")
        title = axes.text(x - w / 2 + 8, y - h / 2 + 6, box.label, fontsize=8, color="#4a5b70", zorder=3)
        title.set(va="top", bbox={"facecolor": "#f3f6f9", "edgecolor": "none", "pad": 1})
    shapes = {}
    for node in graph.nodes:
        x, y, w, h = places[node.id]
        (color, fill, line, _), lift = _NODES[node.kind], 6 if node.detail else 0
        shape = rounded(x, y, w, h, 4) if node.kind == "note" else patches.Ellipse((x, y), w, h)
        shapes[node.id] = axes.add_patch(shape)
        shape.set(facecolor=fill, edgecolor=color, linestyle=line, zorder=4)
        for text, dy, size, ink in ((node.id, -lift, 10, color), (node.detail, lift + 1, 7.5, "#666666")):
            axes.text(x, y + dy, text, fontsize=size, color=ink, ha="center", va="center", zorder=5)
    used: set[tuple] = set()
    for edge in graph.edges:
        (color, _, line, _), (x, y, w, h) = _EDGES[edge.kind], places[edge.source]
        ends: list[Any] = [(x, y), places[edge.target][:2]]
        if edge.source == edge.target:  # from one point of the border to another
            ends = [(x + 0.42 * w, y + 0.28 * h), (x + 0.42 * w, y - 0.28 * h)]
        arrow = patches.FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=9, shrinkA=0, shrinkB=0.5)
        if edge.source == edge.target:
            arrow.set_connectionstyle("arc3", rad=1.8)
        else:
            arrow.set_connectionstyle("arc3", rad=_bend(edge, graph.nodes, places, used))
            arrow.set_patchA(shapes[edge.source])
            arrow.set_patchB(shapes[edge.target])
        axes.add_patch(arrow).set(color=color, linestyle=line, zorder=2)
    buffer = io.BytesIO()
    paper.savefig(buffer, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
    return buffer.getvalue()


def _bend(edge: Edge, nodes: tuple[Node, ...], places: dict, used: set) -> float:
    """Return the curvature with which an edge passes fewest other nodes, and on top of no other edge."""
    pair = sorted((edge.source, edge.target))
    start, end = (np.array(places[node][:2]) for node in pair)
    aside = np.array([start[1] - end[1], end[0] - start[0]])  # y grows downwards
    t = np.linspace(0.02, 0.98, 60)[:, None, None]
    others = np.array([places[node.id] for node in nodes if node.id not in pair]).reshape(-1, 4)

    def cost(bend: float) -> float:
        points = (1 - t) ** 2 * start + t**2 * end + 2 * t * (1 - t) * ((start + end) / 2 + bend * aside)
        away = (points - others[:, :2]) / (others[:, 2:] / 2 + 5)
        return abs(bend) + 100 * ((*pair, bend) in used) + int((np.sum(away**2, axis=-1) < 1).sum())

    best = min((sign * size for size in np.linspace(0, 0.9, 13) for sign in (1, -1)), key=cost)
    used.add((*pair, best))
    return best if edge.source == pair[0] else -best


def _layout(graph: Rendering) -> tuple[dict[Any, tuple[float, ...]], tuple[float, float]]:
    """Return center and size of each node (by name) and box (by number), and the size of the whole."""
    homes = {node.id: node.box for node in graph.nodes}
    sizes: dict[Any, tuple[float, float]] = {
        node.id: (max(6.4 * len(node.id), 4.8 * len(node.detail)) + 16 + 14 * (node.kind != "note"), 36.0)
        for node in graph.nodes
    }

    def item_in(box: int, node: str) -> Any:
        """Return the node, or the box just inside a box that holds it, or None where it is elsewhere."""
        item, home = cast(Any, node), homes[node]
        while home not in (box, -1):
            item, home = home, graph.boxes[home].parent
        return item if home == box else None

    def arrange(box: int) -> tuple[dict, tuple[float, float]]:
        items = list(dict.fromkeys(item for node in homes if (item := item_in(box, node)) is not None))
        inner = {item: arrange(item) for item in items if isinstance(item, int)}
        sizes.update({item: size for item, (_, size) in inner.items()})
        pairs = [(item_in(box, e.source), item_in(box, e.target)) for e in graph.edges if e.kind != "carried"]
        links = {(a, b) for a, b in pairs if a is not None and b is not None and a != b}
        layers = _layers(items, links)
        x = _columns(layers, links, {item: sizes[item][0] for item in items})
        left = min(x[item] - sizes[item][0] / 2 for item in items)
        right = max(x[item] + sizes[item][0] / 2 for item in items)
        pad, top = (_PAD, _PAD + 10) if box >= 0 else (0.0, 0.0)
        title = 4.4 * len(graph.boxes[box].label) if box >= 0 else 0.0
        left, width = min(left, (left + right - title) / 2), max(right - left, title) + 2 * pad
        places = {}
        for layer in layers:
            tallest = max(sizes[item][1] for item in layer)
            for item in layer:
                cx, cy, (w, h) = pad + x[item] - left, top + tallest / 2, sizes[item]
                places[item] = (cx, cy, w, h)
                for deeper, (dx, dy, *size) in inner.get(item, ({},))[0].items():
                    places[deeper] = (cx - w / 2 + dx, cy - h / 2 + dy, *size)
            top += tallest + _LINE
        return places, (width, top - _LINE + pad)

    return arrange(-1) if homes else ({}, (0.0, 0.0))


def _layers(items: list, links: set) -> list[list]:
    """Return items in layers, by the longest path to each; items come in an order that links follow."""
    depth: dict[Any, int] = {}
    for item in items:
        depth[item] = max((depth[a] + 1 for a, b in links if b == item), default=0)
    for item in reversed(items):  # what nothing leads to stands right above what it leads to
        below = [depth[b] for a, b in links if a == item]
        if below and not any(b == item for _, b in links):
            depth[item] = min(below) - 1
    return [[item for item in items if depth[item] == level] for level in range(max(depth.values()) + 1)]


def _columns(layers: list[list], links: set, widths: dict) -> dict:
    """Return horizontal positions: each item near the mean of those linked to it, and none overlapping."""
    x = {item: 0.0 for layer in layers for item in layer}
    for sweep in range(12):
        for layer in layers if sweep % 2 == 0 else layers[::-1]:
            wanted = {}
            for item in layer:
                near = [x[a] for a, b in links if b == item] + [x[b] for a, b in links if a == item]
                wanted[item] = sum(near) / len(near) if near else x[item]
            right, spots = -np.inf, {}
            for item in sorted(layer, key=wanted.__getitem__):
                spots[item] = max(wanted[item], right + _GAP + widths[item] / 2)
                right = spots[item] + widths[item] / 2
            shift = sum(wanted[item] - spots[item] for item in layer) / len(layer)
            x.update({item: spot + shift for item, spot in spots.items()})
    return x
