"""What is known of a graph before the data: tiers, edges that must be, and edges that must not."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from qbs.errors import DataError
from qbs.inference.dag.equivalence import topological_order
from qbs.inference.dag.rules import Rules


def read_knowledge(
    names: Sequence[str],
    tiers: Mapping[str, int] | Sequence[Sequence[str]] | None = None,
    required: Iterable[Any] = (),
    forbidden: Iterable[Any] = (),
    dropped: Iterable[str] = (),
) -> Rules:
    """Return the rules that a person wrote with names.

    Args:
        names: Of the nodes.
        tiers: Lists of names, causes first, or the number of the tier by name: no edge goes to an earlier
            tier. A column in no tier may stand anywhere.
        required: Pairs of cause and effect that are edges.
        forbidden: Pairs of cause and effect that are none.
        dropped: Names that stand for nothing any more, such as constant columns: rules of them are left out.

    Raises:
        DataError: If a name is not that of a column, a column is in two tiers, an edge is both required and
            forbidden or goes back a tier, or the required edges and tiers make a cycle.
    """
    known, gone = {name: number for number, name in enumerate(names)}, set(dropped)

    def number(name: Any, where: str) -> int | None:
        if name in gone:
            return None
        if name not in known:
            raise DataError(f"{where}: there is no column {name!r}; there are {', '.join(map(str, names))}")
        return known[name]

    def edges(pairs: Iterable[Any], where: str) -> np.ndarray:
        is_edge = np.zeros((len(names), len(names)), bool)
        for pair in pairs:
            if isinstance(pair, str) or len(pair) != 2:
                raise DataError(f"{where}: each is a pair of cause and effect, not {pair!r}")
            cause, effect = number(pair[0], where), number(pair[1], where)
            if cause is None or effect is None:
                continue
            if cause == effect:
                raise DataError(f"{where}: {pair[0]!r} cannot be its own cause")
            is_edge[cause, effect] = True
        return is_edge

    must, may_not = edges(required, "required"), edges(forbidden, "forbidden")
    earlier = _tier_order(names, tiers, number)
    for rule, said in ((may_not, "forbidden"), (earlier.T, "against the tiers")):
        if (both := np.argwhere(must & rule)).size:
            first, second = (int(at) for at in both[0])
            raise DataError(f"required: the edge {names[first]!r} -> {names[second]!r} is {said} as well")
    before = _closed(must | earlier)
    if (cycle := np.flatnonzero(np.diagonal(before))).size:
        who = ", ".join(repr(names[int(at)]) for at in cycle)
        raise DataError(f"the required edges and the tiers make a cycle among {who}")
    return Rules(before, must, may_not)


def read_start(
    start: Any, names: Sequence[str], dropped: Iterable[str], rules: Rules
) -> Int[np.ndarray, " num_nodes"]:
    """Return the order that a person gave, or that of a graph that another method found.

    Args:
        start: Names in order, causes first; or a graph: a square data frame of weights of row -> column, a
            `CausalGraph`, or a networkx graph.
        names: Of the nodes.
        dropped: Names that stand for nothing any more.
        rules: What the order must keep.

    Raises:
        DataError: If the names are not those of the columns, the graph has a cycle, or a rule is broken.
    """
    if hasattr(start, "to_numpy") and getattr(start, "ndim", 1) == 2:
        given, weights = list(start.columns), start.to_numpy()
        if list(start.index) != given:
            raise DataError("start: a data frame must have the same names in its rows and its columns")
    elif hasattr(start, "weights") and hasattr(start, "names"):
        given, weights = list(start.names), start.weights
    elif hasattr(start, "nodes") and hasattr(start, "edges"):
        given = list(start.nodes)
        weights = np.zeros((len(given), len(given)))
        for cause, effect in start.edges():
            weights[given.index(cause), given.index(effect)] = 1.0
    else:
        given, weights = list(start), None
    gone = set(dropped)
    kept = [at for at, name in enumerate(given) if name not in gone]
    if sorted(str(given[at]) for at in kept) != sorted(map(str, names)):
        own = [given[at] for at in kept]
        raise DataError(f"start: must name every column once, {', '.join(map(str, names))}; not {own}")
    if weights is not None:
        among = topological_order(np.asarray(weights)[np.ix_(kept, kept)] != 0)
        if len(among) < len(kept):
            raise DataError("start: the graph has a cycle")
        kept = [kept[at] for at in among]
    order = np.array([list(names).index(given[at]) for at in kept], int)
    if not rules.kept_by(order):
        raise DataError("start: breaks the tiers or the required edges")
    return order


def _tier_order(names: Sequence[str], tiers: Any, number: Any) -> np.ndarray:
    """Return whether the row's tier is earlier than the column's."""
    levels = np.full(len(names), np.nan)
    if tiers is None:
        pairs: list[tuple[str, float]] = []
    elif isinstance(tiers, Mapping):
        pairs = [(name, float(level)) for name, level in tiers.items()]
    else:
        if any(isinstance(tier, str) for tier in tiers):
            raise DataError(f"tiers: each tier is a list of names, not {tiers!r}")
        pairs = [(name, float(level)) for level, tier in enumerate(tiers) for name in tier]
    for name, level in pairs:
        at = number(name, "tiers")
        if at is None:
            continue
        if not np.isnan(levels[at]):
            raise DataError(f"tiers: {name!r} is in two tiers")
        levels[at] = level
    return levels[:, None] < levels[None, :]


def _closed(relation: np.ndarray) -> np.ndarray:
    """Return the transitive closure."""
    closed = relation.copy()
    for middle in range(len(closed)):
        closed |= closed[:, middle, None] & closed[middle]
    return closed
