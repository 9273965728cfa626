"""Figures of a run: parameter constraints, H(z) and BAO distances with posterior bands and data."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from qbs.errors import MissingExtraError
from qbs.models.cosmology.background import (
    hubble,
    hubble_distance,
    transverse_comoving_distance,
    volume_averaged_distance,
)
from qbs.models.cosmology.likelihoods import CosmicChronometers, DesiBAO
from qbs.models.cosmology.parameters import DERIVED, PARAMETERS
from qbs.models.cosmology.results import ModelResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's colours, told apart by people who see colours differently.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
_BAND_DRAWS = 400
_LEAST_WEIGHT = 1e-5  # lighter draws of nested sampling only stretch the axes
_LEAST_DRAWS = 50  # fewer make no contour: a run that was interrupted early
_LEVELS = (2.5, 16.0, 50.0, 84.0, 97.5)


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
        for likelihood in next(iter(results.values())).analysis.likelihoods.values():
            if isinstance(likelihood, CosmicChronometers):
                figures["hubble"] = hubble_figure(results, likelihood)
            if isinstance(likelihood, DesiBAO):
                figures["bao"] = bao_figure(results, likelihood)
        for name, figure in figures.items():
            for suffix in formats:
                written.append(_save(figure, folder / f"{name}.{suffix}"))
            _close(figure)
    return written


def _save(figure: "Figure", path: Path) -> Path:
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    figure.savefig(temporary, dpi=160, bbox_inches="tight")
    os.replace(temporary, path)
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
        from getdist import MCSamples, chains, plots
    except ImportError as error:
        raise MissingExtraError("the corner plot needs GetDist: pip install 'qbs-jax[cosmology]'") from error
    sampled = {name for result in results.values() for name in result.analysis.parameters}
    shown = [name for name in PARAMETERS if name in sampled]
    chains.print_load_details = False
    overlaid = []
    for name, result in results.items():
        posterior = result.posterior
        heavy = _heavy(result)
        keys = [key for key in shown if key in posterior.samples]
        overlaid.append(
            MCSamples(
                samples=np.column_stack([posterior.samples[key].ravel()[heavy] for key in keys]),
                weights=posterior.weights.ravel()[heavy],
                names=keys,
                labels=[PARAMETERS[key].label + _unit_latex(key) for key in keys],
                ranges={key: _prior_range(result, key) for key in keys},
                label=name,
                settings={"mult_bias_correction_order": 1, "smooth_scale_2D": -1},
            )
        )
    plotter = plots.get_subplot_plotter(width_inch=max(4.0, 1.9 * len(shown)))
    plotter.settings.axes_fontsize = 9
    plotter.settings.axes_labelsize = 12
    plotter.settings.legend_fontsize = 12
    plotter.triangle_plot(
        overlaid[::-1],  # the first model, often the tightest, on top
        shown,
        filled=True,
        contour_colors=list(_COLOURS[: len(overlaid)])[::-1],
        legend_labels=list(results)[::-1],
        legend_loc="upper right",
    )
    return plotter.fig


def hubble_figure(results: Mapping[str, ModelResult], data: CosmicChronometers) -> "Figure":
    """Return H(z)/(1+z) with the chronometers and the posterior bands."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.2))
    redshifts = np.linspace(0.0, 1.05 * float(np.max(data.redshifts)), 120)

    def scaled_hubble(cosmology: Any, _: Any) -> Any:
        return hubble(cosmology, redshifts) / (1 + redshifts)

    for (name, result), colour in zip(results.items(), _COLOURS, strict=False):
        _band(axes, redshifts, _draws_of(result, scaled_hubble), name, colour)
    factor = 1 / (1 + data.redshifts)
    _points(axes, data.redshifts, data.data * factor, data.errors * factor, data.label)
    axes.set_xlabel("redshift $z$")
    axes.set_ylabel("$H(z)/(1+z)$  [km s$^{-1}$ Mpc$^{-1}$]")
    axes.set_xlim(redshifts[0], redshifts[-1])
    axes.legend(frameon=False, loc="upper left")
    return figure


def bao_figure(results: Mapping[str, ModelResult], data: DesiBAO) -> "Figure":
    """Return the three kinds of BAO distance, relative to the best fit of the first model."""
    from matplotlib import pyplot

    panels: dict[str, tuple[str, Callable]] = {
        "DM": (r"$D_M/r_d$", transverse_comoving_distance),
        "DH": (r"$D_H/r_d$", hubble_distance),
        "DV": (r"$D_V/r_d$", volume_averaged_distance),
    }
    first, reference = next(iter(results.items()))
    redshifts = np.geomspace(0.1, 1.1 * float(np.max(data.redshifts)), 120)
    figure, all_axes = pyplot.subplots(len(panels), 1, figsize=(6.4, 8.0), sharex=True)
    for axes, (quantity, (label, distance)) in zip(all_axes, panels.items(), strict=True):

        def over_rd(cosmology: Any, rd: Any, z: Any = redshifts, distance: Callable = distance) -> Any:
            return distance(cosmology, z) / rd

        best = _at_best_fit(reference, partial(over_rd, z=redshifts))
        for (name, result), colour in zip(results.items(), _COLOURS, strict=False):
            _band(axes, redshifts, _draws_of(result, over_rd) / best, name, colour)
        chosen = np.array([item == quantity for item in data.quantities])
        z = data.redshifts[chosen]
        best = _at_best_fit(reference, partial(over_rd, z=z))
        _points(axes, z, data.data[chosen] / best, data.errors[chosen] / best, data.label)
        axes.set_ylabel(f"{label}  relative to best {first}")
    all_axes[-1].set_xlabel("redshift $z$")
    all_axes[-1].set_xlim(0.0, redshifts[-1])
    all_axes[0].legend(frameon=False, ncols=2)
    figure.align_ylabels()
    figure.subplots_adjust(hspace=0.06)
    return figure


def _at_best_fit(result: ModelResult, function: Callable) -> np.ndarray:
    """Evaluate a function of (cosmology, r_d in Mpc) at the best fit of a model."""
    with jax.enable_x64(True):
        analysis = result.analysis
        evaluate = jax.jit(lambda best: function(analysis.cosmology(best), analysis.rd(best)))
        return np.asarray(evaluate(result.best_fit))


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


def _points(axes: "Axes", x: np.ndarray, y: np.ndarray, errors: np.ndarray, label: str) -> None:
    axes.errorbar(
        x, y, yerr=errors, fmt="o", color="black", markersize=3.5, linewidth=1, label=label, zorder=5
    )


def _unit_latex(name: str) -> str:
    unit = {**DERIVED, **PARAMETERS}[name].unit
    return rf"\;[\mathrm{{{unit}}}]" if unit else ""


def _prior_range(result: ModelResult, name: str) -> tuple[float | None, float | None]:
    support = result.analysis.priors[name].support
    low, high = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
    return (None if low is None else float(low), None if high is None else float(high))
