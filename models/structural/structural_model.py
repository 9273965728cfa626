"""A causal graph with its equations: data under interventions, predictions, total effects."""

import numbers
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from qbs.errors import DataError, MissingExtraError
from qbs.inference.dag.equations import Equation, LinearEquation
from qbs.models.structural.column_checks import distinct_names
from qbs.models.structural.columns import opened_table

try:
    import narwhals as nw
    import pandas as pd
except ImportError as error:
    raise MissingExtraError(
        "StructuralModel needs pandas and narwhals: pip install 'qbs-jax[frames]'"
    ) from error

Per = Literal["unit", "deviation"]


@dataclass(frozen=True, eq=False)
class StructuralModel:
    """How each node of a causal graph comes about from its parents.

    Every answer is of this graph and these equations: nothing here accounts for an arrow that is wrong, nor
    for the error of estimated coefficients.

    The noise of a node depends on the seed and on the node alone. So two samples of one seed, under different
    interventions, differ only by what the interventions do, row by row.

    Attributes:
        names: Of the nodes, all different.
        equations: An `Equation` for each node, in the order of their numbers.
        order: Numbers of the nodes, causes first.
        categorical: Names of nodes that are codes 0, 1, ... of three levels or more. As differences of such
            codes mean nothing, effects of them and on them are NaN.

    Raises:
        ValueError: If a name is there twice, the lengths differ, an equation is of another node, or a parent
            does not come before its child in the order.
    """

    names: tuple[str, ...]
    equations: tuple[Equation, ...]
    order: Int[np.ndarray, " num_nodes"]
    categorical: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        size = len(self.names)
        if repeated := [name for name, count in Counter(self.names).items() if count > 1]:
            raise ValueError(f"StructuralModel: names must differ; given twice or more: {repeated}")
        if len(self.equations) != size or sorted(self.order) != list(range(size)):
            raise ValueError(
                f"StructuralModel: {size} names need {size} equations and an order of 0 ... {size - 1}, not "
                f"{len(self.equations)} equations and {list(map(int, self.order))}"
            )
        for name in self.categorical:
            self._node(name, "categorical")
        places = np.argsort(self.order)
        for node, equation in enumerate(self.equations):
            if equation.node != node:
                raise ValueError(f"StructuralModel: equations[{node}] is of node {equation.node}")
            for parent in equation.parents:
                if not 0 <= parent < size or places[parent] >= places[node]:
                    parent_name = self.names[parent] if 0 <= parent < size else int(parent)
                    raise ValueError(
                        f"StructuralModel: {parent_name!r}, a parent of {self.names[node]!r}, does not come "
                        "before it in the order"
                    )

    @property
    def weights(self) -> Float[np.ndarray, "num_nodes num_nodes"]:
        """Weights of row -> column, zero where there is no edge."""
        weights = np.zeros((len(self.names),) * 2)
        for node, equation in enumerate(self.equations):
            weights[equation.parents, node] = equation.weights
        return weights

    @property
    def is_linear(self) -> bool:
        """Whether all equations are weighted sums, so that total effects are exact."""
        return all(isinstance(equation, LinearEquation) for equation in self.equations)

    def sample(self, num_rows: int, *, do: Mapping[str, Any] | None = None, seed: int = 0) -> "pd.DataFrame":
        """Return rows drawn from the model, under interventions if there are any.

        Args:
            num_rows: Number of rows.
            do: Values that nodes are set to, by name: a number, or one for each row. They replace the node's
                equation: its parents no longer matter to it, and its children come about from the value.
            seed: Of the random numbers.

        Raises:
            ValueError: If a name is not known, or a value is no number, not finite, or not of `num_rows`
                numbers.
        """
        _check_rows(num_rows)
        forced = self._forced({} if do is None else do, num_rows)
        return pd.DataFrame(self._drawn(num_rows, seed, forced), columns=list(self.names))

    def do(
        self, interventions: Mapping[str, Any], *, num_rows: int = 10_000, seed: int = 0
    ) -> "pd.DataFrame":
        """Return rows drawn under interventions: `sample` with `do`, for reading as a sentence.

        Raises:
            ValueError: See `sample`.
        """
        return self.sample(num_rows, do=interventions, seed=seed)

    def predict(
        self, frame: Any, target: str | None = None, *, levels: Mapping[str, tuple] | None = None
    ) -> "pd.DataFrame | pd.Series":
        """Return the expectation of nodes given their parents, for each row of a table.

        It is not the expectation given all other columns: what the children of a node tell of it is not used.
        So it stays right when the parents are set from outside, and is less sharp than a regression on
        everything. A categorical node gets its likeliest code. Where a parent is missing, NaN is what is
        expected.

        Args:
            frame: Values of the parents: a pandas or polars data frame, an arrow table, a dict of columns, or
                an array whose columns are called `"x0"`, `"x1"`, ... Other columns are not read.
            target: Name of the node; None for all.
            levels: What the codes of a column stand for, by name, where the frame has these in their place.

        Returns:
            A series for one target, a data frame for all, with the index of a pandas frame.

        Raises:
            DataError: If a parent is not in the frame, or holds values that are infinite, or no numbers; the
                message names it.
            ValueError: If the target is not known.
        """
        nodes = range(len(self.names)) if target is None else [self._node(target, "predict: target")]
        own_names, num_rows, series = opened_table(frame, "predict")
        columns = dict(zip(distinct_names(own_names), series, strict=True))
        read: dict[int, np.ndarray] = {}
        for node in nodes:
            names = [self.names[parent] for parent in self.equations[node].parents]
            if lacking := [name for name in names if name not in columns]:
                raise DataError(
                    f"predict: {self.names[node]!r} needs its parents {names}, and the frame has no column "
                    f"{', '.join(map(repr, lacking))}"
                )
            for parent, name in zip(self.equations[node].parents, names, strict=True):
                if parent not in read:
                    read[parent] = _numbers(columns[name], name, (levels or {}).get(name))
        values = np.zeros((num_rows, len(self.names)))
        for node, column in read.items():
            values[:, node] = column
        means = {self.names[node]: self._mean(node, values) for node in nodes}
        result = pd.DataFrame(
            means, index=getattr(frame, "index", None), columns=[self.names[node] for node in nodes]
        )
        return result if target is None else result[target]

    def _mean(self, node: int, values: np.ndarray) -> np.ndarray:
        equation = self.equations[node]
        is_missing = np.isnan(values[:, equation.parents]).any(axis=1)
        return np.where(is_missing, np.nan, equation.mean(values))

    def total_effects(self, *, per: Per = "unit", num_rows: int = 10_000, seed: int = 0) -> "pd.DataFrame":
        r"""Return the change of each node (column) for a change of each other (row), over all paths.

        In a linear model these are the sums over directed paths of the products of weights,
        \((I - W)^{-1} - I\), exactly. In others they are mean changes over simulated rows, where the cause is
        what it comes to be by itself and is then raised by one unit; `effects_of` has their standard errors.
        There, a cause that is 0 or 1 is set from 0 to 1 in all rows.

        Args:
            per: What the cause is raised by: `"unit"`, or `"deviation"` for its standard deviation in the
                model. Causes that are 0 or 1 in a model that is not linear go from 0 to 1 with either.
            num_rows: Simulated rows, where the model is not linear.
            seed: Of the random numbers.

        Returns:
            Row -> column; 0 where the row is no ancestor of the column, and on the diagonal.

        Raises:
            ValueError: If a setting cannot be used.
        """
        if per not in get_args(Per):
            raise ValueError(f"total_effects: per must be 'unit' or 'deviation', not {per!r}")
        _check_rows(num_rows)
        size = len(self.names)
        if self.is_linear:
            effects = self._path_sums()
            noises = np.array([equation.noise_variance for equation in self.equations])
            deviations = np.sqrt(noises @ (effects + np.eye(size)) ** 2)
            effects = effects * deviations[:, None] if per == "deviation" else effects
        else:
            drawn = self._drawn(num_rows, seed, {})
            deviations = drawn.std(0) if per == "deviation" else np.ones(size)
            effects = np.zeros((size, size))
            for node in set(range(size)) - {self.names.index(name) for name in self.categorical}:
                low, high = _contrast(drawn[:, node], float(deviations[node]))
                effects[node] = self._changes(drawn, seed, node, low, high).mean(0)
                effects[node, node] = 0.0
        for name in self.categorical:
            effects[self.names.index(name), :] = effects[:, self.names.index(name)] = np.nan
        return pd.DataFrame(effects, index=list(self.names), columns=list(self.names))

    def effects_of(
        self,
        cause: str,
        *,
        values: tuple[float | int, float | int] | None = None,
        num_rows: int = 10_000,
        seed: int = 0,
    ) -> "pd.DataFrame":
        """Return the mean change of all other nodes when a cause is changed, with standard errors.

        Args:
            cause: Its name.
            values: The cause is set from the first to the second in all rows. None raises it by one unit, as
                in `total_effects`; a categorical cause needs values.
            num_rows: Simulated rows, where the model is not linear.
            seed: Of the random numbers.

        Returns:
            Columns `change` and `standard_error`: of the simulation, 0 in a linear model.

        Raises:
            ValueError: If the name is not known, a value is not finite, or values are needed.
        """
        node = self._node(cause, "effects_of: cause")
        _check_rows(num_rows)
        if values is None and cause in self.categorical:
            raise ValueError(f"effects_of: {cause!r} is categorical: give values=(from, to)")
        if values is not None and not np.isfinite(values).all():
            raise ValueError(f"effects_of: values of {cause!r} must be finite, not {values}")
        if self.is_linear:
            step = 1.0 if values is None else values[1] - values[0]
            change, error = step * self._path_sums()[node], np.zeros(len(self.names))
        else:
            drawn = self._drawn(num_rows, seed, {})
            low, high = (
                _contrast(drawn[:, node], 1.0)
                if values is None
                else (np.full(num_rows, float(value)) for value in values)
            )
            changes = self._changes(drawn, seed, node, low, high)
            change = changes.mean(0)
            error = (
                changes.std(0, ddof=1) / np.sqrt(num_rows) if num_rows > 1 else np.full(change.shape, np.nan)
            )
        result = pd.DataFrame({"change": change, "standard_error": error}, index=list(self.names))
        result.loc[list(self.categorical)] = np.nan
        return result.drop(index=cause)

    def _path_sums(self) -> np.ndarray:
        """Return the sums over paths of row -> column: those to the parents, times the last weight."""
        effects = np.zeros((len(self.names),) * 2)
        for node in self.order:
            equation = self.equations[node]
            effects[:, node] = effects[:, equation.parents] @ equation.weights
            effects[equation.parents, node] += equation.weights
        return effects

    def _drawn(
        self, num_rows: int, seed: int, forced: Mapping[int, np.ndarray], like: np.ndarray | None = None
    ) -> np.ndarray:
        """Return values of all nodes; of `like`, drawn with this seed, those that nothing forced changes."""
        streams = np.random.default_rng(seed).spawn(len(self.names))
        values = np.zeros((num_rows, len(self.names))) if like is None else like.copy()
        changed = set(forced)
        for node in map(int, self.order):
            if node in forced:
                values[:, node] = forced[node]
            elif like is None or not changed.isdisjoint(map(int, self.equations[node].parents)):
                values[:, node] = self.equations[node].draw(streams[node], values)
                changed.add(node)
        return values

    def _changes(
        self, drawn: np.ndarray, seed: int, node: int, low: np.ndarray, high: np.ndarray
    ) -> np.ndarray:
        """Return what changes, row by row, when a node goes from low to high."""
        first = drawn
        if not np.array_equal(low, drawn[:, node]):
            first = self._drawn(len(drawn), seed, {node: low}, like=drawn)
        return self._drawn(len(drawn), seed, {node: high}, like=drawn) - first

    def _forced(self, interventions: Mapping[str, Any], num_rows: int) -> dict[int, np.ndarray]:
        forced = {}
        for name, value in interventions.items():
            node, array = self._node(name, "do"), np.asarray(value)
            if array.dtype.kind not in "biuf":
                raise ValueError(f"do: {name!r} must be set to numbers, not {value!r}")
            if array.shape not in ((), (num_rows,)):
                raise ValueError(
                    f"do: {name!r} must be set to one number or to {num_rows}, one for each row, not to an "
                    f"array of shape {array.shape}"
                )
            if not np.isfinite(array).all():
                raise ValueError(f"do: {name!r} must be set to finite numbers")
            forced[node] = np.broadcast_to(array.astype(float), (num_rows,))
        return forced

    def _node(self, name: str, where: str) -> int:
        if name not in self.names:
            raise ValueError(f"{where}: there is no node {name!r}, but {', '.join(map(repr, self.names))}")
        return self.names.index(name)


def _contrast(drawn: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Return what a cause goes from and to in each row."""
    if np.isin(drawn, (0.0, 1.0)).all():
        return np.zeros(len(drawn)), np.ones(len(drawn))
    return drawn, drawn + step


def _check_rows(num_rows: int) -> None:
    if isinstance(num_rows, bool) or num_rows < 1:
        raise ValueError(f"num_rows must be a whole number, 1 or more, not {num_rows!r}")


def _numbers(column: Any, name: str, levels: tuple | None) -> np.ndarray:
    """Return a column of numbers; of the codes of its levels, if it has any."""
    is_series = isinstance(column, nw.Series)
    if is_series and column.dtype.is_numeric():  # where null is no number
        column = column.cast(nw.Float64)
    array = np.asarray(column.to_numpy() if is_series else column)
    if levels is not None:
        codes = {level: float(code) for code, level in enumerate(levels)}
        if strange := [item for item in pd.unique(pd.Series(array)) if item not in codes]:
            raise DataError(f"predict: column {name!r} holds {strange[0]!r}, which is none of {list(levels)}")
        return np.array([codes[item] for item in array])
    if is_series and column.dtype in (nw.Categorical, nw.Enum):
        raise DataError(f"predict: column {name!r} is categorical: give its codes, or its levels")
    if array.dtype.kind not in "biuf" and not all(isinstance(item, numbers.Real) for item in array):
        raise DataError(f"predict: column {name!r} must hold numbers, not {array.dtype}")
    values: np.ndarray = array.astype(float)
    if count := int(np.isinf(values).sum()):
        raise DataError(f"predict: column {name!r} has {count} infinite values")
    return values
