"""A causal graph of the columns of a data frame, learned by swaps of a topological order."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from qbs.errors import MissingExtraError
from qbs.inference.dag.equivalence import completed_graph
from qbs.inference.dag.honesty import doubts, honesty
from qbs.inference.dag.learning import (
    LinearGraph,
    Ordered,
    Rules,
    equal_variance_order,
    prune,
    regularized,
)
from qbs.inference.progress import Pace, ProgressLine
from qbs.models.structural.columns import Columns, Missing, read_columns
from qbs.models.structural.graph import CausalGraph
from qbs.models.structural.knowledge import read_knowledge

try:
    import pandas as pd
    from sklearn.base import BaseEstimator
except ImportError as error:
    raise MissingExtraError(
        "TopologicalDAG needs pandas and scikit-learn: pip install 'qbs-jax[frames]'"
    ) from error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DOUBTFUL = 0.5  # confidence below which an arrow is doubtful


class GraphWarning(UserWarning):
    """Something that speaks against trusting a graph."""


class TopologicalDAG(BaseEstimator):
    """Learn a directed acyclic graph from the columns of a data frame.

    The score `"equal-variance"` is least squares: it is right for linear equations whose noises have the same
    variance in the columns' own units (Loh & Bühlmann 2014; Peters & Bühlmann 2014). Orders are improved by
    the best set of insertions and swaps of nodes until none is left (Deng et al. 2023), and the parents of
    each node are then chosen among those before it.

    Args:
        score: What orders are compared by.
        neighbourhood: `"all"`: all swaps at every step. `"windowed"`: swaps over up to 64 positions until
            nothing is left, then all; for 500 columns and more.
        start: Names in the order to start at; the top-down order by default.
        num_restarts: Random orders to start at as well; the best end counts.
        pruning: How to choose parents: `"ebic"` by the extended Bayesian information criterion,
            `"threshold"` by the size of their weights, `"none"` keeps all predecessors.
        gamma: Of the extended criterion; larger means fewer edges, 0 is the usual criterion.
        threshold: For `pruning="threshold"`, in units of the effect for one unit of the cause.
        tiers: Lists of names, causes first, or the number of the tier by name: no edge goes to an earlier
            tier.
        required: Pairs of cause and effect that must be edges.
        forbidden: Pairs of cause and effect that must not be.
        bootstraps: How many times to learn the graph again from resampled rows, for the confidence; 0 for
            none.
        missing: `"drop"` leaves out rows with missing values, `"mean"` fills them, `"raise"` refuses them.
        seed: Of the random numbers.
        progress: Whether to show progress; on a terminal by default.

    Attributes:
        adjacency_: Weights of row -> column, a pandas data frame.
        edges_: A row for each edge: cause, effect, weight, confidence, confidence_turned, oriented_by.
        confidence_: Share of bootstraps with row -> column, or None.
        cpdag_: What data can tell if noises are Gaussian of any variances: both entries are 1 for an edge of
            unknown direction.
        loss_: Half the sum of the residual variances along the order, all predecessors being parents.
        order_: Names, causes first.
        noise_variances_: Of each column, given its parents.
        honesty_: What speaks for or against the directions; see `Honesty`.
        problems_: What a reader must know, as sentences.
        graph_: The graph for pictures and files; see `plot` and `qbs.models.structural.export`.
        feature_names_in_: Names of the columns of the graph.
        n_features_in_: Their number.

    References:
        Deng, Bello, Aragam & Ravikumar (2023), "Optimizing NOTEARS objectives via topological swaps"; Loh &
        Bühlmann (2014), "High-dimensional learning of linear causal networks via inverse covariance
        estimation"; Peters & Bühlmann (2014), "Identifiability of Gaussian structural equation models with
        equal error variances"; Chen & Chen (2008), "Extended Bayesian information criteria".
    """

    def __init__(
        self,
        *,
        score: str = "equal-variance",
        neighbourhood: str = "all",
        start: Sequence[str] | None = None,
        num_restarts: int = 0,
        pruning: str = "ebic",
        gamma: float | int = 1.0,
        threshold: float | int = 0.3,
        tiers: Mapping[str, int] | Sequence[Sequence[str]] | None = None,
        required: Iterable[Any] = (),
        forbidden: Iterable[Any] = (),
        bootstraps: int = 200,
        missing: str = "drop",
        seed: int = 0,
        progress: bool | None = None,
    ):
        self.score = score
        self.neighbourhood = neighbourhood
        self.start = start
        self.num_restarts = num_restarts
        self.pruning = pruning
        self.gamma = gamma
        self.threshold = threshold
        self.tiers = tiers
        self.required = required
        self.forbidden = forbidden
        self.bootstraps = bootstraps
        self.missing = missing
        self.seed = seed
        self.progress = progress

    def fit(self, X: Any, y: Any = None) -> "TopologicalDAG":
        """Learn the graph of a data frame: pandas, polars, arrow, a dict of columns or a 2-d array.

        Args:
            X: The data, a row for each observation.
            y: Ignored.

        Raises:
            ValueError: If a setting or a value in the data cannot be used; the message names it.
            TypeError: If a column holds text or dates.
        """
        del y
        self._check_settings()
        columns = read_columns(X, missing=cast(Missing, self.missing))
        self._require_numbers(columns)
        values = columns.values - columns.values.mean(0)
        rules = self._rules(columns)
        covariance, said = regularized(values.T @ values / len(values), len(values))
        problems = [*columns.problems, *([said] if said else [])]
        ordered = self._ordered(covariance, rules, self._start(columns))
        model = self._pruned(covariance, ordered, rules, len(values))
        is_edge = model.weights != 0
        self.honesty_ = honesty(covariance, is_edge, model.variances, ordered.top_down)
        confidence, is_cut = self._confidence(values, rules)
        if is_cut:
            problems.append(is_cut)
        if len(values) > len(covariance):
            problems += doubts(self.honesty_)
        self._tell(columns, ordered, model, rules, confidence)
        self.problems_ = problems
        for problem in problems:
            warnings.warn(problem, GraphWarning, stacklevel=2)
        return self

    def _check_settings(self) -> None:
        choices = {
            "score": ("equal-variance",),
            "neighbourhood": ("all", "windowed"),
            "pruning": ("ebic", "threshold", "none"),
            "missing": ("drop", "mean", "raise"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"TopologicalDAG: {name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}"
                )
        for name in ("bootstraps", "num_restarts"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
                raise ValueError(f"TopologicalDAG: {name} must be a whole number, 0 or more, not {value!r}")
        for name in ("gamma", "threshold"):
            if not getattr(self, name) >= 0 or math.isinf(getattr(self, name)):
                raise ValueError(
                    f"TopologicalDAG: {name} must be a number, 0 or more, not {getattr(self, name)!r}"
                )

    def _require_numbers(self, columns: Columns) -> None:
        for name, kind in zip(columns.names, columns.kinds, strict=True):
            if kind == "categorical":
                raise ValueError(
                    f"column {name!r} is categorical with {len(columns.levels[name])} levels, and score="
                    f'"{self.score}" takes numbers and columns of two values: encode it, or leave it out'
                )

    def _rules(self, columns: Columns) -> Rules:
        return read_knowledge(columns.names, self.tiers, self.required, self.forbidden, columns.dropped)

    def _start(self, columns: Columns) -> np.ndarray | None:
        if self.start is None:
            return None
        names = [name for name in self.start if name not in columns.dropped]
        if sorted(names) != sorted(columns.names):
            raise ValueError(f"start: must name every column once, {', '.join(columns.names)}; not {names}")
        return np.array([columns.names.index(name) for name in names])

    def _ordered(self, covariance: np.ndarray, rules: Rules, start: np.ndarray | None) -> Ordered:
        if start is not None and np.any(rules.before[np.ix_(start, start)] & np.tri(len(start), dtype=bool)):
            raise ValueError("start: breaks the tiers or the required edges")
        return equal_variance_order(
            covariance,
            rules,
            neighbourhood=self.neighbourhood,
            start=start,
            num_restarts=self.num_restarts,
            seed=self.seed,
        )

    def _pruned(self, covariance: np.ndarray, ordered: Ordered, rules: Rules, num_rows: int) -> LinearGraph:
        return prune(
            covariance,
            ordered.order,
            rules,
            num_rows,
            pruning=self.pruning,
            gamma=self.gamma,
            threshold=self.threshold,
        )

    def _confidence(self, values: np.ndarray, rules: Rules) -> tuple[np.ndarray | None, str]:
        """Return how often each edge was there in graphs of resampled rows; and what cut them short."""
        if not self.bootstraps:
            return None, ""
        rng, pace = np.random.default_rng(self.seed), Pace()
        num_rows, counts, done = len(values), np.zeros((values.shape[1],) * 2), 0
        chances = np.full(num_rows, 1 / num_rows)
        try:
            with ProgressLine("bootstrap", show=self.progress) as line:
                for done in range(self.bootstraps):
                    pace.note(done)
                    line.update(
                        f"{done}/{self.bootstraps}",
                        done / self.bootstraps,
                        pace.seconds_for(self.bootstraps - done),
                    )
                    counts += self._replicate(values, rules, rng.multinomial(num_rows, chances))
                done = self.bootstraps
        except KeyboardInterrupt:
            if not done:
                raise
            return (
                counts / done,
                f"Interrupted: confidences come from {done} of {self.bootstraps} bootstraps.",
            )
        return counts / done, ""

    def _replicate(self, values: np.ndarray, rules: Rules, counts: np.ndarray) -> np.ndarray:
        """Return where the edges are in the graph of resampled rows."""
        num_rows = len(values)
        means = counts @ values / num_rows
        covariance = (values * counts[:, None]).T @ values / num_rows - np.outer(means, means)
        # Few rows can leave a column without two different values.
        covariance += np.diag(1e-12 * np.mean(values**2, axis=0))
        covariance, _ = regularized(covariance, num_rows)
        ordered = self._ordered(covariance, rules, None)
        return self._pruned(covariance, ordered, rules, num_rows).weights != 0

    def _tell(
        self,
        columns: Columns,
        ordered: Ordered,
        model: LinearGraph,
        rules: Rules,
        confidence: np.ndarray | None,
    ) -> None:
        names, is_edge = list(columns.names), model.weights != 0
        is_possible = completed_graph(is_edge, is_known=rules.known_arrows)
        is_compelled = is_possible & ~is_possible.T
        self.graph_ = CausalGraph(columns.names, model.weights, confidence, is_compelled)

        def frame(matrix: np.ndarray) -> pd.DataFrame:
            return pd.DataFrame(matrix, index=names, columns=names)

        self.adjacency_ = frame(model.weights)
        self.confidence_ = None if confidence is None else frame(confidence)
        self.cpdag_ = frame(is_possible.astype(int))
        fields = ["cause", "effect", "weight", "confidence", "confidence_turned", "oriented_by"]
        self.edges_ = pd.DataFrame(self.graph_.edges(), columns=fields)
        self.noise_variances_ = pd.Series(model.variances, index=names)
        self.loss_ = ordered.loss
        self.order_ = [names[node] for node in ordered.order]
        self.num_sweeps_ = ordered.num_sweeps
        self.is_swap_optimal_ = ordered.is_optimal
        self.levels_ = dict(columns.levels)
        self.feature_names_in_ = np.array(names, dtype=object)
        self.n_features_in_ = len(names)

    def plot(self, **settings: Any) -> "Figure":
        """Return the picture of the graph; see `qbs.models.structural.plot.plot_graph`."""
        from qbs.models.structural.plot import plot_graph

        return plot_graph(self.graph_, **settings)
