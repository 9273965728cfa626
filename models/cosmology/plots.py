"""Figures of a run: parameter constraints; H(z), BAO and supernovae with posterior bands and data."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from qbs.errors import MissingExtraError
from qbs.inference.results.atomic import replacing
from qbs.models.cosmology.background import (
    distance_modulus,
    hubble,
    hubble_distance,
    transverse_comoving_distance,
    volume_averaged_distance,
)
from qbs.models.cosmology.likelihoods import BAO, Chronometers, Likelihood, Supernovae
from qbs.models.cosmology.parameters import DERIVED, PARAMETERS
from qbs.models.cosmology.results import ModelResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's colours, told apart by people who see colours differently: one for each of `MODELS`.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
_BAND_DRAWS = 400
_LEAST_WEIGHT = 1e-5  # lighter draws of nested sampling only stretch the axes
_LEAST_DRAWS = 50  # fewer make no contour: a run that was interrupted early
_LEVELS = (2.5, 16.0, 50.0, 84.0, 97.5)
# One style for each data set of a figure.
_MARKERS = (("o", "black"), ("s", "#666666"), ("^", "#882255"), ("D", "#999933"), ("v", "#56B4E9"))
_MOST_ERROR_BARS = 100  # more supernovae than this are drawn as dots, with the means of bins
_BIN_SIZE = 80
_LARGEST_ERROR = 1.0  # [mag]; a supernova with a larger one is a likely contaminant and is not drawn


def write_figures(results: Mapping[str, ModelResult], folder: Path, formats: tuple[str, ...]) -> list[Path]:
    """Draw the figures that the data of the run call for, and return the files written.

    Raises:
        MissingExtraError: If Matplotlib or GetDist are not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError("figures need Matplotlib: pip install 'qbs-jax[cosmology]'") from error
    written = []
    with matplotlib.rc_context({"backend": "agg", "font.size": 10, "axes.linewidth": 0.8}):
        figures = {}
        if drawable := {
            name: result for name, result in results.items() if _heavy(result).sum() >= _LEAST_DRAWS
        }:
            figures["corner"] = corner_figure(drawable)
        likelihoods = next(iter(results.values())).analysis.likelihoods.values()
        kinds: tuple[tuple[str, type[Likelihood], Callable], ...] = (
            ("hubble", Chronometers, hubble_figure),
            ("bao", BAO, bao_figure),
            ("supernovae", Supernovae, supernova_figure),
        )
        for name, kind, draw in kinds:
            if data := [likelihood for likelihood in likelihoods if isinstance(likelihood, kind)]:
                figures[name] = draw(results, *data)
        for name, figure in figures.items():
            for suffix in formats:
                written.append(_save(figure, folder / f"{name}.{suffix}"))
            _close(figure)
    return written


def _save(figure: "Figure", path: Path) -> Path:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=160, bbox_inches="tight")
    return path


def _close(figure: "Figure") -> None:
    from matplotlib import pyplot

    pyplot.close(figure)


def _heavy(result: ModelResult) -> np.ndarray:
    """Return which draws weigh enough to be seen."""
    weights = result.posterior.weights.ravel()
    return weights > _LEAST_WEIGHT * weights.max()


def corner_figure(results: Mapping[str, ModelResult]) -> "Figure":
    """Return GetDist's triangle plot of the sampled parameters, all models over one another."""
    try:
        import getdist
    except ImportError as error:
        raise MissingExtraError("the corner plot needs GetDist: pip install 'qbs-jax[cosmology]'") from error
    with _without_asides(getdist.chains):
        return _triangle(results)


@contextlib.contextmanager
def _without_asides(chains: Any) -> Iterator[None]:
    """Keep GetDist from printing and logging what is normal for the weights of nested sampling."""
    loud, disabled = chains.print_load_details, logging.root.manager.disable
    chains.print_load_details = False
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        chains.print_load_details = loud
        logging.disable(disabled)


def _triangle(results: Mapping[str, ModelResult]) -> "Figure":
    from getdist import plots

    sampled = {name for result in results.values() for name in result.analysis.parameters}
    shown = [name for name in PARAMETERS if name in sampled]
    chains = [
        _chain(result, [name for name in shown if name in result.posterior.samples])
        for result in results.values()
    ]
    plotter = plots.get_subplot_plotter(width_inch=max(4.0, 1.9 * len(shown)))
    plotter.settings.axes_fontsize = 9
    plotter.settings.axes_labelsize = 12
    plotter.settings.legend_fontsize = 12
    plotter.triangle_plot(
        chains[::-1],  # the first model, often the tightest, on top
        shown,
        filled=True,
        contour_colors=list(_COLOURS[: len(chains)])[::-1],
        legend_labels=list(results)[::-1],
        legend_loc="upper right",
    )
    return plotter.fig


def _chain(result: ModelResult, names: list[str]) -> Any:
    from getdist import MCSamples

    heavy = _heavy(result)
    return MCSamples(
        samples=np.column_stack([result.posterior.samples[name].ravel()[heavy] for name in names]),
        weights=result.posterior.weights.ravel()[heavy],
        names=names,
        labels=[PARAMETERS[name].label + _unit_latex(name) for name in names],
        ranges={name: result.analysis.prior_range(name) for name in names},
        label=result.name,
        settings={"mult_bias_correction_order": 1, "smooth_scale_2D": -1},
    )


def hubble_figure(results: Mapping[str, ModelResult], *data: Chronometers) -> "Figure":
    """Return H(z)/(1+z) with the chronometers and the posterior bands."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.2))
    redshifts = np.linspace(0.0, 1.05 * _largest_redshift(data), 120)

    def scaled_hubble(cosmology: Any, _: Any) -> Any:
        return hubble(cosmology, redshifts) / (1 + redshifts)

    for (name, result), colour in zip(results.items(), _COLOURS, strict=False):
        _band(axes, redshifts, _draws_of(result, scaled_hubble), name, colour)
    for item, style in zip(data, cycle(_MARKERS), strict=False):
        factor = 1 / (1 + item.redshifts)
        _points(axes, item.redshifts, item.data * factor, item.errors * factor, item.label, style)
    axes.set_xlabel("redshift $z$")
    axes.set_ylabel("$H(z)/(1+z)$  [km s$^{-1}$ Mpc$^{-1}$]")
    axes.set_xlim(redshifts[0], redshifts[-1])
    axes.legend(framealpha=0.8, edgecolor="none", loc="upper left", ncols=1 if len(data) == 1 else 2)
    return figure


def bao_figure(results: Mapping[str, ModelResult], *data: BAO) -> "Figure":
    """Return the three kinds of BAO distance, relative to the best fit of the first model."""
    from matplotlib import pyplot

    panels: dict[str, tuple[str, Callable]] = {
        "DM": (r"$D_M/r_d$", transverse_comoving_distance),
        "DH": (r"$D_H/r_d$", hubble_distance),
        "DV": (r"$D_V/r_d$", volume_averaged_distance),
    }
    first, reference = next(iter(results.items()))
    redshifts = np.geomspace(0.1, 1.1 * _largest_redshift(data), 120)
    figure, all_axes = pyplot.subplots(len(panels), 1, figsize=(6.4, 8.0), sharex=True)
    for axes, (quantity, (label, distance)) in zip(all_axes, panels.items(), strict=True):

        def over_rd(cosmology: Any, rd: Any, z: Any = redshifts, distance: Callable = distance) -> Any:
            return distance(cosmology, z) / rd

        best = _at_best_fit(reference, partial(over_rd, z=redshifts))
        for (name, result), colour in zip(results.items(), _COLOURS, strict=False):
            _band(axes, redshifts, _draws_of(result, over_rd) / best, name, colour)
        for item, style in zip(data, cycle(_MARKERS), strict=False):
            chosen = np.array([entry == quantity for entry in item.quantities])
            z = item.redshifts[chosen]
            best = _at_best_fit(reference, partial(over_rd, z=z))
            _points(axes, z, item.data[chosen] / best, item.errors[chosen] / best, item.label, style)
        axes.set_ylabel(f"{label}  relative to best {first}")
    all_axes[-1].set_xlabel("redshift $z$")
    all_axes[-1].set_xlim(0.0, redshifts[-1])
    all_axes[0].legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    figure.align_ylabels()
    figure.subplots_adjust(hspace=0.06)
    return figure


def supernova_figure(results: Mapping[str, ModelResult], *data: Supernovae) -> "Figure":
    """Return the Hubble diagram, and residuals from the best fit of the first model for each data set.

    The absolute magnitude is the one that fits best in each cosmology. Large samples are drawn as dots, with
    means of bins weighted by the inverse squares of their errors; correlations are left out of these.
    """
    from matplotlib import pyplot

    first, reference = next(iter(results.items()))
    figure, (top, *lower) = pyplot.subplots(
        1 + len(data),
        1,
        figsize=(6.4, 3.0 + 2.0 * len(data)),
        sharex=True,
        height_ratios=[1.6, *(1.0 for _ in data)],
    )
    least = min(float(np.min(item.redshifts)) for item in data)
    redshifts = np.geomspace(0.9 * least, 1.1 * _largest_redshift(data), 150)
    top.plot(
        redshifts,
        _at_best_fit(reference, lambda cosmology, _: distance_modulus(cosmology, redshifts)),
        color=_COLOURS[0],
        linewidth=1.3,
        label=f"best {first}",
    )
    for axes, item, style in zip(lower, data, cycle(_MARKERS), strict=False):

        def magnitudes(cosmology: Any, _: Any, item: Supernovae = item) -> Any:
            return distance_modulus(cosmology, redshifts) + item.absolute_magnitude(cosmology)

        def predicted(cosmology: Any, _: Any, item: Supernovae = item) -> Any:
            return item.theory(cosmology), item.absolute_magnitude(cosmology)

        best = _at_best_fit(reference, magnitudes)
        for (name, result), colour in zip(results.items(), _COLOURS, strict=False):
            _band(axes, redshifts, _draws_of(result, magnitudes) - best, name, colour)
        moduli, offset = _at_best_fit(reference, predicted)
        drawn = item.errors < _LARGEST_ERROR
        top.plot(
            item.redshifts[drawn],
            (item.data - offset)[drawn],
            linestyle="none",
            marker=".",
            markersize=2 if item.num_points > _MOST_ERROR_BARS else 6,
            color=style[1],
            alpha=0.5,
            label=item.label,
        )
        _residuals(axes, item, item.data - offset - moduli, style)
        axes.set_ylabel(r"$\Delta\mu$  [mag]")
        axes.legend(loc="upper left", ncols=2, fontsize=8, framealpha=0.8, edgecolor="none")
    top.set_ylabel(r"$m - M_B$  [mag]")
    top.legend(frameon=False, loc="upper left")
    lower[-1].set_xlabel("redshift $z$")
    lower[-1].set_xscale("log")
    lower[-1].set_xlim(redshifts[0], redshifts[-1])
    figure.align_ylabels()
    figure.subplots_adjust(hspace=0.06)
    return figure


def _residuals(axes: "Axes", item: Supernovae, residuals: np.ndarray, style: tuple[str, str]) -> None:
    """Draw magnitudes minus prediction: all with errors, or as dots with the means of bins."""
    is_host = np.isfinite(item.host_moduli)
    # The common error of the zero point is not seen in residuals from the best M_B.
    errors = np.sqrt(np.maximum(item.errors**2 - float(item.magnitude_error) ** 2, 0.0))
    chosen = np.flatnonzero((item.errors < _LARGEST_ERROR) & ~is_host)
    groups = [(chosen, style, item.label)]
    if is_host.any():
        groups.append((np.flatnonzero(is_host), ("s", "#D55E00"), "Cepheid hosts"))
    half_height = 0.12
    for rows, group_style, label in groups:
        z, y, error = item.redshifts[rows], residuals[rows], errors[rows]
        if len(rows) > _MOST_ERROR_BARS or label != item.label:
            axes.plot(z, y, linestyle="none", marker=".", markersize=2, color=group_style[1], alpha=0.25)
            z, y, error = _bins(z, y, error)
            label = f"{label}, means of bins"
        _points(axes, z, y, error, label, group_style)
        # All values are seen, and nearly all of their errors.
        half_height = max(half_height, np.max(np.abs(y)), np.percentile(np.abs(y) + error, 90.0))
    axes.set_ylim(-1.2 * half_height, 1.8 * half_height)


def _bins(z: np.ndarray, y: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean redshift, weighted mean and its error in bins of about `_BIN_SIZE` values."""
    order = np.argsort(z)
    rows = np.array_split(order, max(1, round(z.size / _BIN_SIZE)))
    weights = [1.0 / error[row] ** 2 for row in rows]
    means = [np.average(y[row], weights=weight) for row, weight in zip(rows, weights, strict=True)]
    return (
        np.array([z[row].mean() for row in rows]),
        np.array(means),
        np.array([weight.sum() ** -0.5 for weight in weights]),
    )


def _largest_redshift(data: tuple[Any, ...]) -> float:
    return max(float(np.max(item.redshifts)) for item in data)


def _at_best_fit(result: ModelResult, function: Callable) -> Any:
    """Evaluate a function of (cosmology, r_d in Mpc) at the best fit of a model; arrays of NumPy."""
    with jax.enable_x64(True):
        analysis = result.analysis
        evaluate = jax.jit(lambda best: function(analysis.cosmology(best), analysis.rd(best)))
        return jax.tree.map(np.asarray, evaluate(result.best_fit))


def _draws_of(result: ModelResult, function: Any) -> np.ndarray:
    """Evaluate a function of (cosmology, r_d in Mpc) on posterior draws; shape (draws, redshifts)."""
    analysis = result.analysis
    draws = result.posterior.resample(_BAND_DRAWS)
    with jax.enable_x64(True):
        sampled = {name: jnp.asarray(draws[name]) for name in analysis.parameters}

        def one(parameters: dict[str, Any]) -> Any:
            return function(analysis.cosmology(parameters), analysis.rd(parameters))

        return np.asarray(jax.jit(jax.vmap(one))(sampled))


def _band(axes: "Axes", x: np.ndarray, draws: np.ndarray, name: str, colour: str) -> None:
    low2, low1, middle, high1, high2 = np.percentile(draws, _LEVELS, axis=0)
    axes.fill_between(x, low2, high2, color=colour, alpha=0.18, linewidth=0)
    axes.fill_between(x, low1, high1, color=colour, alpha=0.35, linewidth=0)
    axes.plot(x, middle, color=colour, linewidth=1.3, label=f"{name} (68 and 95 %)")


def _points(
    axes: "Axes", x: np.ndarray, y: np.ndarray, errors: np.ndarray, label: str, style: tuple[str, str]
) -> None:
    marker, colour = style
    axes.errorbar(
        x,
        y,
        yerr=errors,
        linestyle="none",
        marker=marker,
        color=colour,
        markersize=3.5,
        elinewidth=1,
        label=label,
        zorder=5,
    )


def _unit_latex(name: str) -> str:
    unit = {**DERIVED, **PARAMETERS}[name].unit
    return rf"\;[\mathrm{{{unit}}}]" if unit else ""
