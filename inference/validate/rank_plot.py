"""Figures of simulation-based calibration."""

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from qbs.errors import MissingExtraError
from qbs.inference.validate.uniformity import uniform_band

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLUE, _RED = "#0072B2", "#D55E00"  # of Okabe & Ito, told apart by people who see colours differently


def draw_ranks(report: Any, names: list[str]) -> "Figure":
    """Draw a row of two panels for each quantity of a `CalibrationReport`."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise MissingExtraError("the plot needs Matplotlib: pip install 'qbs-jax[plots]'") from error
    count, size = len(report.ranks[names[0]]), report.num_draws + 1
    edges = np.unique(np.linspace(0, size, min(size, 20) + 1).round().astype(int))
    least, most = stats.binom.ppf([[0.005], [0.995]], count, np.diff(edges) / size)
    shares = np.arange(size + 1) / size
    bands = [(risk, uniform_band(count, size, risk)) for risk in (report.level, 0.05)]
    figure, axes = pyplot.subplots(len(names), 2, squeeze=False, layout="constrained")
    figure.set_size_inches(9, 2.3 * len(names) + 0.7)
    for (left, right), name in zip(axes, names, strict=True):
        ranks, p_value = report.ranks[name], report.p_values[name]
        colour = _BLUE if p_value > report.level else _RED
        left.stairs(most, edges, baseline=least, fill=True, color="0.8", label="99% of each bar, if uniform")
        left.stairs(np.histogram(ranks, edges)[0], edges, color=colour, linewidth=1.5)
        left.set(title=name, xlabel=f"rank among {size - 1} draws", ylabel="datasets", ylim=(0, None))
        for (risk, band), grey in zip(bands, ("0.9", "0.75"), strict=True):
            sides = [np.append(0, side) / count - shares for side in band]
            right.fill_between(
                shares, *sides, color=grey, label=f"{100 * (1 - risk):.5g}% of curves, if uniform"
            )
        found = np.append(0, np.cumsum(np.bincount(ranks, minlength=size)))
        right.plot(shares, found / count - shares, color=colour, linewidth=1.5)
        right.axhline(0, color="0.4", linewidth=0.6)
        right.set(title=f"{name}: p = {p_value:.2g}", xlabel="(rank + 1) / (draws + 1)", xlim=(0, 1))
        right.set_ylabel("ECDF - uniform")
    handles = [handle for axis in axes[0] for handle in axis.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize="small")
    return figure
