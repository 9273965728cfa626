"""The table of a posterior: moments, quantiles and diagnostics of every number in it."""

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qbs.inference.results.diagnostics import chain_statistics, scalars

if TYPE_CHECKING:
    import pandas

_QUANTILES = {"q05": 0.05, "q50": 0.5, "q95": 0.95}


@dataclass(frozen=True)
class Summary:
    """Rows of statistics by parameter; prints as a table.

    Attributes:
        rows: Parameter name to column name to value. Columns: `mean`, `sd`, `q05`, `q50`, `q95`, and for
            unweighted chains `mcse_mean`, `ess_bulk`, `ess_tail`, `r_hat`.
        title: Heading of the table.
    """

    rows: dict[str, dict[str, float]]
    title: str = ""

    @property
    def frame(self) -> "pandas.DataFrame":
        """The table as a data frame, one row per parameter."""
        import pandas

        return pandas.DataFrame.from_dict(self.rows, orient="index")

    def table(self) -> Table:
        """The table for a rich console."""
        columns = list(next(iter(self.rows.values()), {}))
        table = Table(title=Text(self.title) if self.title else None, title_justify="left")
        table.add_column("parameter", overflow="fold")
        for column in columns:
            table.add_column(column, justify="right", no_wrap=True)
        for name, row in self.rows.items():
            table.add_row(Text(name), *[_cell(column, row) for column in columns])
        return table

    def __repr__(self) -> str:
        return render(self.table())

    def _repr_html_(self) -> str:
        return self.frame.to_html(float_format=lambda value: f"{value:.4g}")


def summarise(samples: dict[str, np.ndarray], log_weights: np.ndarray | None, title: str = "") -> Summary:
    """Return moments, quantiles and diagnostics of draws with leading axes chain and draw."""
    rows = {}
    for name, draws in scalars(samples).items():
        rows[name] = moments(draws, log_weights)
        if log_weights is None:
            rows[name] |= chain_statistics(draws)
    return Summary(rows, title)


def moments(draws: np.ndarray, log_weights: np.ndarray | None) -> dict[str, float]:
    """Return mean, standard deviation and the 5, 50 and 95 % quantiles of (weighted) draws."""
    values = np.asarray(draws, dtype=np.float64).ravel()
    if log_weights is None:
        weights = np.full(values.size, 1 / values.size)
    else:
        weights = np.exp(log_weights - np.max(log_weights)).ravel()
        weights /= weights.sum()
    values, weights = values[weights > 0], weights[weights > 0]
    probabilities = list(_QUANTILES.values())
    with np.errstate(invalid="ignore"):  # infinite draws have no standard deviation
        mean = float(weights @ values)
        sd = float(np.sqrt(weights @ (values - mean) ** 2))
        if log_weights is None:
            quantiles = np.quantile(values, probabilities)
        else:
            quantiles = np.quantile(values, probabilities, weights=weights, method="inverted_cdf")
    return {"mean": mean, "sd": sd, **dict(zip(_QUANTILES, map(float, quantiles), strict=True))}


def render(renderable: Any, *, width: int = 120) -> str:
    """Return what a rich object looks like as plain text."""
    text = io.StringIO()
    # In a notebook rich would show the object itself and write nothing.
    console = Console(file=text, width=width, color_system=None, legacy_windows=False, force_jupyter=False)
    console.print(renderable)
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())


def _cell(column: str, row: dict[str, float]) -> str:
    value = row[column]
    if not np.isfinite(value):
        return "-"
    if column.startswith("ess"):
        return f"{value:.0f}"
    if column == "r_hat":
        return f"{value:.3f}"
    if column == "mcse_mean":
        return f"{value:.1g}"
    return _to_digits(value, row["sd"])


def _to_digits(value: float, scale: float) -> str:
    """Write a value with the digits that its standard deviation makes meaningful."""
    if not scale > 0 or not np.isfinite(scale):
        return f"{value:.4g}"
    decimals = 2 - int(np.floor(np.log10(scale)))
    return f"{value:.{decimals}f}" if 0 <= decimals <= 8 else f"{value:.4g}"
