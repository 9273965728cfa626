"""Learn a graph from a sample: an order by its score, and the equations along it."""

from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from qbs.inference.dag.equations import Equation
from qbs.inference.dag.linear_equations import linear_equations
from qbs.inference.dag.orders import LINEAR, Ordered, Watch, best_order, make_score
from qbs.inference.dag.rules import Rules
from qbs.inference.dag.sample import Sample
from qbs.inference.dag.scores.score import EquationScore, Pruning
from qbs.inference.dag.search import turning_cost


class Settings(NamedTuple):
    """How a graph is learned.

    Attributes:
        score: Its name, one of `orders.SCORES`.
        neighbourhood: `"all"`, `"windowed"` or `"kkt"`, see `orders.best_order`.
        pruning: How parents are chosen along the order.
        num_restarts: Random orders to start at as well.
        l1: Penalty of the sizes of weights, for scores that fit all of a node's candidates.
        seed: Of the random numbers.
    """

    score: str = "equal-variance"
    neighbourhood: str = "all"
    pruning: Pruning = Pruning()
    num_restarts: int = 0
    l1: float = 0.0
    seed: int = 0


class Learned(NamedTuple):
    """A graph that was learned.

    Attributes:
        ordered: Its order, and how the search for it ended.
        equations: Of each node, in the order of their numbers.
    """

    ordered: Ordered
    equations: tuple[Equation, ...]

    @property
    def weights(self) -> Float[np.ndarray, "num_nodes num_nodes"]:
        """Weights of row -> column."""
        weights = np.zeros((len(self.equations),) * 2)
        for equation in self.equations:
            weights[equation.parents, equation.node] = equation.weights
        return weights

    @property
    def is_edge(self) -> Bool[np.ndarray, "num_nodes num_nodes"]:
        """Whether there is an edge row -> column."""
        return self.weights != 0


def learn_graph(
    sample: Sample,
    rules: Rules,
    settings: Settings,
    *,
    start: Int[np.ndarray, " num_nodes"] | None = None,
    watch: Watch = lambda *_: None,
) -> Learned:
    """Return the graph of a sample.

    Args:
        sample: The table, or its moments.
        rules: What the graph must keep.
        settings: How to learn.
        start: An order to start at, in place of the score's own; it must keep the rules.
        watch: Told the number of each sweep of the search, and the score after it.
    """
    name, pruning, neighbourhood = settings.score, settings.pruning, settings.neighbourhood
    # All changes of least squares at once, where all predecessors may be parents.
    is_by_swaps = name == "equal-variance" and neighbourhood != "kkt" and not settings.l1
    score = None
    if not (is_by_swaps and rules.is_order_alone):
        score = make_score(name, sample, gamma=pruning.gamma, l1=settings.l1, seed=settings.seed)
    ordered = best_order(
        sample,
        rules,
        name,
        neighbourhood=neighbourhood,
        start=start,
        num_restarts=settings.num_restarts,
        score=score,
        l1=settings.l1,
        seed=settings.seed,
        watch=watch,
    )
    equations: tuple[Equation, ...]
    if name in LINEAR:
        equations = linear_equations(sample, ordered.order, rules, pruning, with_residuals=name == "lingam")
    else:
        own = cast(EquationScore, score)
        candidates = rules.candidates(ordered.order)
        required = rules.required.T & candidates
        equations = tuple(
            own.equation(node, candidates[node], required[node], pruning) for node in range(sample.num_nodes)
        )
    return Learned(ordered, equations)


def equal_variance_margin(sample: Sample, learned: Learned, rules: Rules) -> float:
    r"""Return what the best move that turns an edge round costs, in nats of the likelihood.

    Of all insertions that reverse an edge of the graph, neighbours' swaps among them, the one of least loss
    \(\ell'\), against the order's own \(\ell\): \(\tfrac{nd}{2} \log (\ell' / \ell)\), the common variance of
    the noises being fitted. Infinite if there is no such move.
    """
    arrays = sample.covariance, learned.ordered.order, rules.before, learned.is_edge
    with jax.enable_x64(True):
        loss, cost = turning_cost(*map(jnp.asarray, arrays))
    return 0.5 * sample.num_rows * sample.num_nodes * float(np.log1p(float(cost) / float(loss)))
