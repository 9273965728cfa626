"""A causal graph of the columns of a data frame, learned by swaps of a topological order."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from qbs.errors import MissingExtraError
from qbs.inference.dag.bootstrap import Draw, edges_of_replicates
from qbs.inference.dag.equivalence import completed_graph
from qbs.inference.dag.learning import Learned, Settings, learn_graph
from qbs.inference.dag.orders import FITTING, LINEAR, OF_MOMENTS, PENALIZED, SCORES
from qbs.inference.dag.rules import Rules
from qbs.inference.dag.sample import Sample, sample_of_moments, sample_of_rows
from qbs.inference.dag.scores.score import Pruning, PruningKind
from qbs.inference.dag.threshold_path import ThresholdPath, threshold_path
from qbs.inference.progress import Pace, ProgressLine
from qbs.models.structural.columns import Columns, Kind, Missing, read_columns
from qbs.models.structural.doubts import assess
from qbs.models.structural.gram_blocks import few_blocks_sentence
from qbs.models.structural.graph import CausalGraph
from qbs.models.structural.knowledge import read_knowledge, read_start
from qbs.models.structural.streaming import Gram

try:
    import pandas as pd
    from sklearn.base import BaseEstimator
    from sklearn.utils.validation import check_is_fitted

    from qbs.models.structural.structural_model import StructuralModel
except ImportError as error:
    raise MissingExtraError(
        "TopologicalDAG needs pandas and scikit-learn: pip install 'qbs-jax[frames]'"
    ) from error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_QUICK_BOOTSTRAPS = 200
_RESTARTS = 20
_RESTART_COST = 3000  # number of columns, squared, of all restarts
_RUGGED = ("bic", "logistic", "mixed")  # scores whose searches can end apart
_SLOW = ("logistic", "mixed", "mlp")  # scores of which a replicate takes seconds


class GraphWarning(UserWarning):
    """Something that speaks against trusting a graph."""


class TopologicalDAG(BaseEstimator):
    """Learn a directed acyclic graph from the columns of a data frame.

    The order of the columns is searched for that has the best score, causes first, and the parents of each
    column are then chosen among those before it. The scores, and what each takes for granted:

    * `"equal-variance"`: linear equations whose noises have the same variance in the columns' own units (Loh
      & Bühlmann 2014; Peters & Bühlmann 2014). All insertions and swaps are compared at once (Deng et al.
      2023).
    * `"bic"`: linear equations with Gaussian noises of any variance. Units do not matter; directions are told
      up to the equivalence class, `cpdag_`.
    * `"lingam"`: linear equations with noises that are not Gaussian, of any variance (Shimizu et al. 2011).
    * `"logistic"`: columns of two values, log odds linear in the parents.
    * `"mixed"`: generalized linear equations by the kind of column: numbers, two values, categories.
    * `"mlp"`: a small network for each column, and noises of the same variance.

    Args:
        score: What orders are compared by.
        neighbourhood: `"all"`: all insertions of a node elsewhere, and all swaps of two once those give
            nothing. `"windowed"`: swaps over up to 64 positions before all; for 500 columns and more.
            `"kkt"`: swaps that the conditions of optimality suggest, as Deng et al. (2023) do; for equal
            variances, logistic and networks.
        start: Where the search starts: names in order, causes first, or the graph of another method, as a
            square data frame of weights of row -> column, a `CausalGraph` or a networkx graph. By default the
            score's own start.
        num_restarts: Random orders to start at as well; the best end counts. By default none, but for the
            scores `"bic"`, `"logistic"` and `"mixed"`, whose searches can end apart: 20 of up to 12 columns,
            fewer of more, 3 of 30.
        l1: Penalty of the sizes of weights in the search, for equal variances and logistic; in units of the
            score per unit of the weight.
        pruning: How to choose parents: `"ebic"` by the extended Bayesian information criterion,
            `"adaptive-lasso"` by the same along a path of penalties (linear scores), `"threshold"` by the
            size of their weights, `"none"` keeps all predecessors.
        gamma: Of the extended criterion; larger means fewer edges, 0 is the usual criterion.
        threshold: For `pruning="threshold"`, in units of the effect for one unit of the cause.
        tiers: Lists of names, causes first, or the number of the tier by name: no edge goes to an earlier
            tier.
        required: Pairs of cause and effect that must be edges.
        forbidden: Pairs of cause and effect that must not be.
        bootstraps: How many times to learn the graph again from resampled rows, for the confidence; 0 for
            none. By default 200, or none for the scores `"logistic"`, `"mixed"` and `"mlp"`, which take
            seconds for each.
        missing: `"drop"` leaves out rows with missing values, `"mean"` fills them, `"raise"` refuses them.
        seed: Of the random numbers.
        progress: Whether to show progress; on a terminal by default.

    Attributes:
        adjacency_: Weights of row -> column, a pandas data frame. Where a parent has several coefficients,
            as in a network, their norm.
        edges_: A row for each edge: cause, effect, weight, confidence, confidence_turned, oriented_by.
        confidence_: Share of bootstraps with row -> column, or None. An edge that the score `"bic"` does not
            direct counts half each way.
        cpdag_: What data can tell if noises are Gaussian of any variances: both entries are 1 for an edge of
            unknown direction.
        loss_: The score of the order, per row; for equal variances half the sum of the residual variances,
            all predecessors being parents.
        order_: Names, causes first.
        noise_variances_: Of each column, given its parents; NaN where noise is not additive.
        model_: The equations, a `StructuralModel`: total effects, interventions, predictions.
        honesty_: What speaks for or against the directions; see `Honesty`.
        kkt_: How the search by KKT conditions ended, see `KKTFound`; None for other neighbourhoods.
        problems_: What a reader must know, as sentences.
        graph_: The graph for pictures and files; see `plot` and `qbs.models.structural.export`.
        num_sweeps_: Of the search.
        is_swap_optimal_: Whether no move that was looked at improves the order.
        levels_: What the codes of boolean and categorical columns stand for.
        feature_names_in_: Names of the columns of the graph.
        n_features_in_: How many columns were given.

    References:
        Deng, Bello, Aragam & Ravikumar (2023), "Optimizing NOTEARS objectives via topological swaps"; Loh &
        Bühlmann (2014), "High-dimensional learning of linear causal networks via inverse covariance
        estimation"; Peters & Bühlmann (2014), "Identifiability of Gaussian structural equation models with
        equal error variances"; Shimizu et al. (2011), "DirectLiNGAM"; Chen & Chen (2008), "Extended Bayesian
        information criteria".
    """

    def __init__(
        self,
        *,
        score: str = "equal-variance",
        neighbourhood: str = "all",
        start: Any = None,
        num_restarts: int | None = None,
        l1: float | int = 0.0,
        pruning: str = "ebic",
        gamma: float | int = 1.0,
        threshold: float | int = 0.3,
        tiers: Mapping[str, int] | Sequence[Sequence[str]] | None = None,
        required: Iterable[Any] = (),
        forbidden: Iterable[Any] = (),
        bootstraps: int | None = None,
        missing: str = "drop",
        seed: int = 0,
        progress: bool | None = None,
    ):
        self.score = score
        self.neighbourhood = neighbourhood
        self.start = start
        self.num_restarts = num_restarts
        self.l1 = l1
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
        self._check_kinds(columns)
        self._fit(sample_of_rows(columns.values, columns.kinds), columns, None)
        return self

    def fit_gram(self, gram: Gram) -> "TopologicalDAG":
        """Learn the graph of a table of which only the moments are there; see `stream_gram`.

        Args:
            gram: Means and covariance, and those of blocks of rows, for the bootstraps.

        Raises:
            ValueError: If a setting cannot be used, or the score needs rows: only `"equal-variance"` and
                `"bic"` do not.
        """
        self._check_settings()
        if self.score not in OF_MOMENTS:
            raise ValueError(
                f"fit_gram: score={self.score!r} needs the rows of the table; of moments alone, the scores "
                f"are {', '.join(OF_MOMENTS)}"
            )
        kinds: tuple[Kind, ...] = tuple("continuous" for _ in gram.names)
        sample = sample_of_moments(gram.covariance, gram.means, gram.num_rows, kinds)
        problems = [*gram.problems, *(few_blocks_sentence(gram.blocks) if self._num_bootstraps() else ())]
        columns = Columns(gram.names, gram.sample, kinds, {}, gram.dropped, problems)
        self._fit(sample, columns, gram.resampled)
        return self

    def _fit(self, sample: Sample, columns: Columns, draw: Draw | None) -> None:
        rules = read_knowledge(columns.names, self.tiers, self.required, self.forbidden, columns.dropped)
        settings = Settings(
            self.score,
            self.neighbourhood,
            Pruning(cast(PruningKind, self.pruning), float(self.gamma), float(self.threshold)),
            self._num_restarts(sample.num_nodes),
            float(self.l1),
            int(self.seed),
        )
        start = None if self.start is None else read_start(self.start, columns.names, columns.dropped, rules)
        with ProgressLine("search", show=self.progress) as line:

            def watch(sweep: int, score: float) -> None:
                line.update(f"sweep {sweep}, score {score:.6g}")

            learned = learn_graph(sample, rules, settings, start=start, watch=watch)
        self.honesty_, doubts = assess(self.score, sample, learned, rules)
        # Where the search needs restarts, a replicate starts where they ended instead.
        first = learned.ordered.order if self.score in _RUGGED else None
        confidence, is_cut = self._confidence(sample, rules, settings._replace(num_restarts=0), first, draw)
        self._sample, self._rules = sample._replace(values=None), rules
        self._tell(columns, learned, rules, confidence)
        self.problems_ = [
            said for said in (*columns.problems, sample.ridge_sentence, is_cut, *doubts) if said
        ]
        for problem in self.problems_:
            warnings.warn(problem, GraphWarning, stacklevel=3)

    def _check_settings(self) -> None:
        choices = {
            "score": SCORES,
            "neighbourhood": ("all", "windowed", "kkt"),
            "pruning": ("ebic", "adaptive-lasso", "threshold", "none"),
            "missing": ("drop", "mean", "raise"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"TopologicalDAG: {name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}"
                )
        for setting, able in {"kkt": FITTING, "adaptive-lasso": LINEAR}.items():
            if setting in (self.neighbourhood, self.pruning) and self.score not in able:
                raise ValueError(
                    f"TopologicalDAG: {setting!r} is for the scores {', '.join(able)}, not {self.score!r}"
                )
        for name in ("bootstraps", "num_restarts"):
            value = getattr(self, name)
            is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            if value is not None and not (is_whole and value >= 0):
                raise ValueError(f"TopologicalDAG: {name} must be a whole number, 0 or more, not {value!r}")
        for name in ("gamma", "threshold", "l1"):
            if not getattr(self, name) >= 0 or math.isinf(getattr(self, name)):
                raise ValueError(
                    f"TopologicalDAG: {name} must be a number, 0 or more, not {getattr(self, name)!r}"
                )
        if self.l1 and self.score not in PENALIZED:
            scores = ", ".join(PENALIZED)
            raise ValueError(f"TopologicalDAG: l1 is for the scores {scores}, not {self.score!r}")

    def _check_kinds(self, columns: Columns) -> None:
        for name, kind in zip(columns.names, columns.kinds, strict=True):
            if self.score == "logistic" and kind != "binary":
                raise ValueError(
                    f'column {name!r} is {kind}, and score="logistic" takes columns of two values only: '
                    'score="mixed" takes all kinds'
                )
            if kind == "categorical" and self.score != "mixed":
                raise ValueError(
                    f"column {name!r} is categorical with {len(columns.levels[name])} levels, and score="
                    f'"{self.score}" takes numbers and columns of two values: encode it, leave it out, or '
                    'use score="mixed"'
                )

    def _num_restarts(self, num_columns: int) -> int:
        if self.num_restarts is not None:
            return int(self.num_restarts)
        return min(_RESTARTS, _RESTART_COST // num_columns**2) if self.score in _RUGGED else 0

    def _num_bootstraps(self) -> int:
        if self.bootstraps is None:
            return 0 if self.score in _SLOW else _QUICK_BOOTSTRAPS
        return int(self.bootstraps)

    def _confidence(
        self, sample: Sample, rules: Rules, settings: Settings, start: np.ndarray | None, draw: Draw | None
    ) -> tuple[np.ndarray | None, str]:
        """Return how often each edge was there in graphs of resampled rows; and what cut them short."""
        wanted, done = self._num_bootstraps(), 0
        if not wanted:
            return None, ""
        counts, pace = np.zeros((sample.num_nodes,) * 2), Pace()
        try:
            with ProgressLine("bootstrap", show=self.progress) as line:
                replicates = edges_of_replicates(
                    sample, rules, settings, wanted, start=start, draw=draw, seed=int(self.seed)
                )
                pace.note(0)
                for edges in replicates:
                    counts, done = counts + edges, done + 1
                    pace.note(done)
                    line.update(f"{done}/{wanted}", done / wanted, pace.seconds_for(wanted - done))
        except KeyboardInterrupt:
            if not done:
                raise
            return counts / done, f"Interrupted: confidences come from {done} of {wanted} bootstraps."
        return counts / done, ""

    def _tell(self, columns: Columns, learned: Learned, rules: Rules, confidence: np.ndarray | None) -> None:
        names, ordered = list(columns.names), learned.ordered
        is_possible = completed_graph(learned.is_edge, is_known=rules.known_arrows)
        is_equivalent = completed_graph(learned.is_edge)
        self.graph_ = CausalGraph(
            columns.names,
            learned.weights,
            confidence,
            is_equivalent & ~is_equivalent.T,
            "nothing" if self.score == "bic" else "assumption",
            is_possible & ~is_possible.T,
        )
        categorical = tuple(
            name for name, kind in zip(names, columns.kinds, strict=True) if kind == "categorical"
        )
        self.model_ = StructuralModel(columns.names, learned.equations, ordered.order, categorical)

        def frame(matrix: np.ndarray) -> pd.DataFrame:
            return pd.DataFrame(matrix, index=names, columns=names)

        self.adjacency_ = frame(learned.weights)
        self.confidence_ = None if confidence is None else frame(confidence)
        self.cpdag_ = frame(is_possible.astype(int))
        fields = ["cause", "effect", "weight", "confidence", "confidence_turned", "oriented_by"]
        self.edges_ = pd.DataFrame(self.graph_.edges(), columns=fields)
        self.noise_variances_ = pd.Series([item.noise_variance for item in learned.equations], index=names)
        self.loss_ = ordered.loss
        self.order_ = [names[node] for node in ordered.order]
        self.num_sweeps_ = ordered.num_sweeps
        self.is_swap_optimal_ = ordered.is_optimal
        self.kkt_ = ordered.report
        self.levels_ = dict(columns.levels)
        self.feature_names_in_ = np.array(names, dtype=object)
        self.n_features_in_ = len(names) + len(columns.dropped)

    def predict(self, X: Any) -> pd.DataFrame:
        """Return the expectation of each column given its parents, for each row of a table.

        Args:
            X: A table with the columns of the graph.

        Raises:
            ValueError: If the graph has not been learned yet, or a parent's column is not there.
        """
        check_is_fitted(self)
        if isinstance(X, np.ndarray) and X.ndim == 2 and X.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {X.shape[1]} features, but TopologicalDAG is expecting {self.n_features_in_} "
                "features as input"
            )
        predicted = self.model_.predict(X, levels=self.levels_)
        return cast(pd.DataFrame, predicted)

    def threshold_path(self) -> ThresholdPath:
        """Return the graphs of all thresholds along the order, for the linear scores.

        Raises:
            ValueError: If the score is not linear.
        """
        check_is_fitted(self)
        if self.score not in LINEAR:
            raise ValueError(f"threshold_path: is for the scores {', '.join(LINEAR)}, not {self.score!r}")
        order = np.array([list(self.feature_names_in_).index(name) for name in self.order_])
        return threshold_path(
            self._sample.covariance,
            order,
            self._sample.num_rows,
            may_be=~self._rules.forbidden,
            required=self._rules.required,
            gamma=self.gamma,
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.missing != "raise"
        tags.input_tags.categorical = True
        return tags

    def plot(self, **settings: Any) -> "Figure":
        """Return the picture of the graph; see `qbs.models.structural.plot.plot_graph`."""
        from qbs.models.structural.plot import plot_graph

        return plot_graph(self.graph_, **settings)
