r"""Search for an order by swaps that the conditions of optimality suggest: the algorithm TOPO.

The problem is \(\min_W Q(W)\) subject to \(h(|W|) = 0\), where \(h\) is zero on acyclic graphs alone. For an
order, each node is fitted to all those before it. \(W_{ij}\) is of the edge \(i \to j\), and "\(j\) before
\(i\)" means earlier in the order, where causes come first: the edge is against the order, and not there. A
point meets the conditions of Karush, Kuhn and Tucker if

- where \(\nabla h_{ij} > 0\), that is, there is a directed walk from \(j\) to \(i\): \(W_{ij} = 0\);
- elsewhere \(\nabla Q_{ij} = 0\), or with an l1 penalty \(\lambda\): \(|\nabla Q_{ij}| \le \lambda\) at
  \(W_{ij} = 0\), and \(\nabla Q_{ij} = -\lambda\, \mathrm{sign}(W_{ij})\) where it is not.

The pairs \(Y(W, \tau, \xi) = \{(i, j) : j \text{ before } i,\ \nabla h_{ij} \le \tau,\ |\nabla Q_{ij}| >
\lambda + \xi\}\) are swapped on trial. Those of \(Y(W, 0, 0)\) violate the conditions: the edge would help
and close no cycle. For convex \(Q\) a point without them is a local minimum.

References:
    Deng, Bello, Aragam & Ravikumar (2023), "Optimizing NOTEARS objectives via topological swaps"; Wei, Gao &
    Yu (2020), "DAGs with No Fears", for the conditions.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from qbs.inference.dag.acyclicity import ACYCLICITIES, Acyclicity
from qbs.inference.dag.order_fits import FittedOrder, KnownFits, Move
from qbs.inference.dag.scores.score import FittingScore


class KKTFound(NamedTuple):
    """Where a search by the conditions of optimality ended.

    Attributes:
        order: The nodes, causes first.
        score: The sum of the scores of all nodes; lower is better.
        weights: Of row -> column, each node fitted to all before it that may be its parents.
        h: The function of acyclicity there, zero but for rounding.
        num_violations: Pairs at which the conditions do not hold, see `tolerance`.
        largest_violation: By how much they fail at most, in units of the gradient, whatever the tolerance.
        is_swap_optimal: Whether no swap of two nodes improves the score, of those looked at in the end.
        best_change: Least change of the score by any of these; infinite if there are none.
        num_swaps: How many these are.
        num_solves: How many fits of a node to those before it were made.
        num_sweeps: How many times pairs were chosen, the last in vain included.
    """

    order: Int[np.ndarray, " num_nodes"]
    score: float
    weights: Float[np.ndarray, "num_nodes num_nodes"]
    h: float
    num_violations: int
    largest_violation: float
    is_swap_optimal: bool
    best_change: float
    num_swaps: int
    num_solves: int
    num_sweeps: int


def kkt_search(
    score: FittingScore,
    order: Int[np.ndarray, " num_nodes"],
    *,
    before: Bool[np.ndarray, "num_nodes num_nodes"] | None = None,
    forbidden: Bool[np.ndarray, "num_nodes num_nodes"] | None = None,
    l1: float | int = 0.0,
    acyclicity: str = "log-determinant",
    small: int | None = None,
    large: int | None = None,
    num_enlargements: int = 10,
    least_gradient: float | int = 0.0,
    tolerance: float | int = 1e-6,
    max_sweeps: int = 10_000,
    certify: str = "searched",
    watch: Callable[[int, float], None] = lambda *_: None,
) -> KKTFound:
    r"""Return an order, and the weights along it, that meet the conditions of optimality.

    In each sweep the `small` pairs of least \(\nabla h\) are swapped on trial, which sets \(\tau\); of those
    that improve the score and whose positions do not overlap, all are taken, best first. If there are none,
    an edge that violates the conditions is made possible: its tail, with those of its ancestors that are in
    between, goes before its head. All weights may stay as they are and one is free to leave zero, so that
    this improves a convex score for certain; a swap, after which edges from and to those in between may be
    against the order, need not. At a point without violations, up to `num_enlargements` times in all, the
    `large` pairs of least \(\nabla h\) are looked at. No node is fitted twice to the same others.

    Args:
        score: Fits nodes to those before them.
        order: The order to start at: random, top-down, or of the graph that another method found. It must
            keep `before`.
        before: Whether row must come before column; transitive.
        forbidden: Edges of row -> column that must not be there.
        l1: The weight of the l1 penalty that the score contains.
        acyclicity: `"log-determinant"`, `"exponential"` or `"polynomial"`, see `acyclicity`. It ranks the
            pairs; whether a gradient is zero does not depend on it.
        small: Pairs to look at first; twice the number of nodes if not given.
        large: Pairs to look at when these give nothing; half of all if not given.
        num_enlargements: Most times to look at so many.
        least_gradient: \(\xi\).
        tolerance: A gradient of less than this share of the largest is zero; a swap must gain this share,
            squared, of the score.
        max_sweeps: Most sweeps.
        certify: Which swaps `is_swap_optimal` is about: `"searched"`, as many as were looked at last;
            `"all"`, all that `before` allows, which are tried once at the end.
        watch: Told the number of each sweep, and the score after it.

    Raises:
        ValueError: If a setting is not as said.
    """
    num_nodes = len(order)
    most = num_nodes * (num_nodes - 1) // 2
    none = np.zeros((num_nodes, num_nodes), bool)
    before, forbidden = none if before is None else before, none if forbidden is None else forbidden
    small = max(min(2 * num_nodes, most), 1) if small is None else small
    large = max(small, most // 2) if large is None else large
    _check_order(order, before)
    if acyclicity not in ACYCLICITIES:
        names = ", ".join(map(repr, ACYCLICITIES))
        raise ValueError(f"kkt_search: acyclicity must be one of {names}, not {acyclicity!r}")
    if certify not in ("searched", "all"):
        raise ValueError(f"kkt_search: certify must be 'searched' or 'all', not {certify!r}")
    numbers: tuple[tuple[str, float, float], ...] = (
        ("small", small, 1),
        ("large", large, small),
        ("num_enlargements", num_enlargements, 0),
        ("max_sweeps", max_sweeps, 0),
        ("l1", l1, 0),
        ("least_gradient", least_gradient, 0),
        ("tolerance", tolerance, 0),
    )
    for name, value, lowest in numbers:
        if not lowest <= value < np.inf:
            raise ValueError(f"kkt_search: {name} must be {lowest} or more, not {value}")

    known = KnownFits(score, forbidden)
    rules = _Conditions(ACYCLICITIES[acyclicity], before, forbidden, float(l1), float(tolerance))
    here = known.fitted(np.asarray(order, int))
    num_sweeps, num_enlarged, num_looked = 0, 0, small
    is_over = False
    while num_sweeps < max_sweeps and not is_over:
        swaps = rules.swaps(here, float(least_gradient))
        least, num_looked = tolerance**2 * abs(here.total), small
        new = _best_apart(known, here, swaps[:small], least)
        if new is None:
            new = _first(known, here, rules.openings(here), least)
        if new is None and num_enlarged < num_enlargements and len(swaps) > small:
            num_enlarged, num_looked = num_enlarged + 1, large
            new = _best_apart(known, here, swaps[:large], least)
        num_sweeps, is_over = num_sweeps + 1, new is None
        here = here if new is None else new
        watch(num_sweeps, here.total)

    if certify == "all":
        looked = rules.all_swaps(here)
    else:
        looked = rules.swaps(here, float(least_gradient))[:num_looked]
    best_change = float(np.min(known.changes(here, looked), initial=np.inf))
    violations = rules.violations(here)
    return KKTFound(
        here.order,
        here.total,
        here.weights,
        rules.h(here),
        num_violations=int(np.sum(violations > rules.allowance(here))),
        largest_violation=float(np.max(violations, initial=0.0)),
        is_swap_optimal=not best_change < -(tolerance**2) * abs(here.total),
        best_change=best_change,
        num_swaps=len(looked),
        num_solves=known.num_solves,
        num_sweeps=num_sweeps,
    )


def _check_order(order: np.ndarray, before: np.ndarray) -> None:
    if sorted(order.tolist()) != list(range(len(order))):
        raise ValueError(f"kkt_search: order must have each of 0 ... {len(order) - 1} once, not {order}")
    at = np.argsort(order)
    broken = np.argwhere(before & ~(at[:, None] < at))
    if len(broken):
        first, second = map(int, broken[0])
        raise ValueError(f"kkt_search: order must keep before: {first} must come before {second}")


def _best_apart(known: KnownFits, here: FittedOrder, moves: list[Move], least: float) -> FittedOrder | None:
    """Return the order after all moves that improve it, the best first, and do not overlap a better one."""
    changes = known.changes(here, moves)
    order, is_free = here.order.copy(), np.ones(len(here.order), bool)
    for at in np.argsort(changes, kind="stable"):
        if not changes[at] < -least:
            break
        first, nodes = moves[at]
        span = slice(first, first + len(nodes))
        if is_free[span].all():
            order[span], is_free[span] = nodes, False
    return None if is_free.all() else known.fitted(order)


def _first(known: KnownFits, here: FittedOrder, moves: Iterable[Move], least: float) -> FittedOrder | None:
    """Return the order after the first move that improves it."""
    for move in moves:
        if known.changes(here, [move])[0] < -least:
            return known.fitted(move.applied(here.order))
    return None


class _Conditions(NamedTuple):
    """The conditions of optimality, and the moves that they suggest."""

    acyclicity: Acyclicity
    before: np.ndarray
    forbidden: np.ndarray
    l1: float
    tolerance: float

    def h(self, here: FittedOrder) -> float:
        with jax.enable_x64(True):
            return float(self.acyclicity.value(jnp.asarray(np.abs(here.along(here.weights)))))

    def violations(self, here: FittedOrder) -> np.ndarray:
        """Return by how much the conditions fail, at each edge of row -> column."""
        sizes = np.abs(here.gradients)
        excess = np.where(here.weights != 0, np.abs(sizes - self.l1), np.maximum(sizes - self.l1, 0.0))
        return np.where(self._walks(here).T | self._never(), 0.0, excess)

    def allowance(self, here: FittedOrder) -> float:
        """Return what violation is taken for rounding."""
        return self.tolerance * float(np.max(np.abs(here.gradients), initial=0.0))

    def openings(self, here: FittedOrder) -> Iterator[Move]:
        """Give moves that make an edge possible that violates the conditions, the worst violation first."""
        at, walks, violations = np.argsort(here.order), self._walks(here), self.violations(here)
        is_open = (at[:, None] > at) & (violations > self.allowance(here))
        tails, heads = np.nonzero(is_open)
        for k in np.argsort(-violations[tails, heads], kind="stable"):
            first, last = at[heads[k]], at[tails[k]]
            between = here.order[first : last + 1]
            is_early = walks[between, tails[k]] | (between == tails[k])
            yield Move(int(first), np.concatenate([between[is_early], between[~is_early]]))

    def swaps(self, here: FittedOrder, least_gradient: float) -> list[Move]:
        """Return the swaps of candidates, those of least gradient of the function of acyclicity first."""
        with jax.enable_x64(True):
            sizes = jnp.asarray(np.abs(here.along(here.weights)))
            closing = np.asarray(self.acyclicity.gradient(sizes))
        excess = here.along(np.where(self._never(), 0.0, np.abs(here.gradients) - self.l1))
        later, earlier = np.nonzero(self._may_swap(here).T & (excess > least_gradient))
        ranks = np.lexsort((-excess[later, earlier], closing[later, earlier]))
        return [here.swap(int(earlier[k]), int(later[k])) for k in ranks]

    def all_swaps(self, here: FittedOrder) -> list[Move]:
        """Return all swaps that the rules allow."""
        return [here.swap(int(p), int(q)) for p, q in np.argwhere(self._may_swap(here))]

    def _never(self) -> np.ndarray:
        """Return which edges are against the rules, whatever the order."""
        return self.forbidden | self.before.T | np.eye(len(self.before), dtype=bool)

    def _walks(self, here: FittedOrder) -> np.ndarray:
        """Return whether row must come before column, for the edges that are there and the rules."""
        is_tied = (here.weights != 0) | self.before
        walks = np.zeros_like(is_tied)
        for node in here.order[::-1]:
            walks[node] = is_tied[node] | walks[is_tied[node]].any(axis=0)
        return walks

    def _may_swap(self, here: FittedOrder) -> np.ndarray:
        """Return whether the rules allow to swap who is at two positions, the row being the earlier."""
        bound = here.along(self.before)
        is_first_held = np.cumsum(bound, axis=1) > 0
        is_last_held = np.cumsum(bound[::-1], axis=0)[::-1] > 0
        return np.triu(~(is_first_held | is_last_held), 1)
