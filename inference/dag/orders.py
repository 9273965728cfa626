"""Search for the order of a graph: which search serves which score, and where it starts."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from qbs.inference.dag.honesty import explained
from qbs.inference.dag.kkt import KKTFound, kkt_search
from qbs.inference.dag.local_search import TOLERANCE, KnownScores, local_search
from qbs.inference.dag.rules import Rules
from qbs.inference.dag.sample import Sample
from qbs.inference.dag.scores.bic import BICScore
from qbs.inference.dag.scores.least_squares import LeastSquares
from qbs.inference.dag.scores.lingam import LingamScore
from qbs.inference.dag.scores.logistic import LogisticScore
from qbs.inference.dag.scores.mixed import MixedScore
from qbs.inference.dag.scores.mlp import MLPScore
from qbs.inference.dag.scores.score import FittingScore, Score
from qbs.inference.dag.search import search
from qbs.inference.dag.starts import random_order, sorted_order, top_down_order

SCORES = ("equal-variance", "bic", "lingam", "logistic", "mixed", "mlp")
LINEAR = ("equal-variance", "bic", "lingam")
OF_MOMENTS = ("equal-variance", "bic")  # scores that need no rows
PENALIZED = ("equal-variance", "logistic")  # scores that can have an l1 penalty
FITTING = ("equal-variance", "logistic", "mlp")  # scores that `neighbourhood="kkt"` can use

_WINDOW = 64

Watch = Callable[[int, float], None]


class Ordered(NamedTuple):
    """An order that was searched for.

    Attributes:
        order: The nodes, causes first.
        loss: The score of the order, per row; lower is better.
        num_sweeps: Of the search that found it.
        is_optimal: Whether no move that was looked at improves it: insertions and swaps of two nodes for
            equal variances; for other scores, and where edges are forbidden, insertions.
        report: What the search by KKT conditions says of its end, if it was used.
    """

    order: Int[np.ndarray, " num_nodes"]
    loss: float
    num_sweeps: int
    is_optimal: bool
    report: KKTFound | None = None


def make_score(name: str, sample: Sample, *, gamma: float = 1.0, l1: float = 0.0, seed: int = 0) -> Score:
    """Return a score by its name.

    Raises:
        ValueError: If it needs rows, and there are none.
    """
    if name == "equal-variance":
        return LeastSquares(sample.covariance, l1)
    if name == "bic":
        return BICScore(sample.covariance, sample.num_rows, gamma=gamma)
    if sample.values is None:
        raise ValueError(f"the score {name!r} needs the rows of the table, and only their moments are there")
    if name == "lingam":
        return LingamScore(sample.values)
    if name == "logistic":
        return LogisticScore(sample.values, l1)
    if name == "mixed":
        return MixedScore(sample.values, sample.kinds, gamma=gamma)
    return MLPScore(sample.values, seed=seed)


def first_order(
    name: str, score: Score | None, sample: Sample, rules: Rules
) -> Int[np.ndarray, " num_nodes"]:
    """Return the order that a search starts at; it does not depend on that of the columns, but for ties."""
    if isinstance(score, LingamScore | MLPScore):
        return score.top_down_order(rules.before)
    if name in ("bic", "mixed"):
        # Units mean nothing to these scores.
        return sorted_order(explained(sample.covariance), rules.before)
    return top_down(sample, rules)


def top_down(sample: Sample, rules: Rules) -> Int[np.ndarray, " num_nodes"]:
    """Return the top-down order; see `starts.top_down_order`."""
    with jax.enable_x64(True):
        return np.asarray(top_down_order(jnp.asarray(sample.covariance), jnp.asarray(rules.before)))


def best_order(
    sample: Sample,
    rules: Rules,
    name: str,
    *,
    neighbourhood: str = "all",
    start: Int[np.ndarray, " num_nodes"] | None = None,
    num_restarts: int = 0,
    score: Score | None = None,
    l1: float = 0.0,
    seed: int = 0,
    watch: Watch = lambda *_: None,
) -> Ordered:
    """Return the best order that is found from the score's own start, or one given, and random ones.

    Args:
        sample: What the graph is learned from.
        rules: What the order and the edges must keep.
        name: Of the score.
        neighbourhood: `"all"` looks at all insertions, and once nothing is left to gain by them at all swaps
            as well; `"windowed"`, before that, at swaps over up to 64 positions too; `"kkt"` looks at swaps
            that the conditions of optimality suggest.
        start: An order to start at instead; it must keep the rules.
        num_restarts: How many random orders to start at as well.
        score: What orders are compared by; None for equal variances and all swaps at once.
        l1: Penalty that the score contains, for `"kkt"`.
        seed: Of the random orders.
        watch: Told the number of each sweep, and the score after it.
    """
    rng = np.random.default_rng(seed)
    first = first_order(name, score, sample, rules) if start is None else start
    starts = [first, *(random_order(rng, rules.before, first) for _ in range(num_restarts))]

    # Searches from several starts ask for many of the same scores.
    known = None if score is None else KnownScores(partial(_scores_kept, score, rules))

    def find(order: np.ndarray) -> Ordered:
        if score is None or known is None:
            return _by_swaps(sample, order, rules, neighbourhood)
        if neighbourhood == "kkt":
            return _by_conditions(score, order, rules, l1, watch)
        return _by_insertions(known, order, rules, watch)

    # An equally good one of a later start differs by rounding, which is not to choose.
    best = find(starts[0])
    for other in map(find, starts[1:]):
        best = other if other.loss < best.loss - TOLERANCE * abs(best.loss) else best
    return best


def _by_swaps(sample: Sample, start: np.ndarray, rules: Rules, neighbourhood: str) -> Ordered:
    window = _WINDOW if neighbourhood == "windowed" else 0
    with jax.enable_x64(True):
        covariance, before = jnp.asarray(sample.covariance), jnp.asarray(rules.before)
        found = search(covariance, jnp.asarray(start), before, window=window)
    loss = float(found.loss)
    is_optimal = float(found.best_change) >= -1e-9 * loss
    return Ordered(np.asarray(found.order), loss, int(found.num_sweeps), is_optimal)


def _scores_kept(score: Score, rules: Rules, nodes: np.ndarray, is_before: np.ndarray) -> np.ndarray:
    """Return scores of nodes whose parents may be those before them that the rules allow."""
    return score.scores(nodes, rules.allowed(nodes, is_before))


def _by_insertions(known: KnownScores, start: np.ndarray, rules: Rules, watch: Watch) -> Ordered:
    found = local_search(known, start, rules.before, watch=watch)
    return Ordered(found.order, found.score, found.num_sweeps, found.is_optimal)


def _by_conditions(score: Score, start: np.ndarray, rules: Rules, l1: float, watch: Watch) -> Ordered:
    fitting = cast(FittingScore, score)
    # Networks stop short of a minimum, and what is left of their gradients is no violation.
    tolerance = 1e-3 if isinstance(score, MLPScore) else 1e-6
    found = kkt_search(
        fitting,
        start,
        before=rules.before,
        forbidden=rules.forbidden,
        l1=l1,
        tolerance=tolerance,
        watch=watch,
    )
    return Ordered(found.order, found.score, found.num_sweeps, found.is_swap_optimal, found)
