"""The results of a run over several models: best fits, the model table and `results.json`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from qbs.inference.results.diagnostics import scalars
from qbs.inference.results.posterior import Posterior
from qbs.inference.results.summary import moments
from qbs.models.cosmology.analysis import Analysis
from qbs.models.cosmology.parameters import DERIVED, PARAMETERS

# Upper ends of |ln B| and what they are called: Trotta (2008), arXiv:0803.4089, table 1.
_JEFFREYS = ((1.0, "inconclusive"), (2.5, "weak"), (5.0, "moderate"), (math.inf, "strong"))


def jeffreys_label(log_bayes_factor: float) -> str:
    """Return the strength of evidence of a log Bayes factor on the Jeffreys scale.

    References:
        Trotta (2008), "Bayes in the sky", arXiv:0803.4089, table 1.
    """
    return next(label for end, label in _JEFFREYS if abs(log_bayes_factor) < end or end == math.inf)


@dataclass(frozen=True, eq=False)
class ModelResult:
    """One model of a run: its analysis, its posterior, and its best fit.

    Attributes:
        name: The model.
        analysis: Likelihood and priors.
        posterior: Draws, and evidence where the method gives one.
    """

    name: str
    analysis: Analysis
    posterior: Posterior

    @cached_property
    def best_fit(self) -> dict[str, float]:
        """Parameters of the highest likelihood within the priors, derived ones included."""
        return _best_fit(self.analysis, self.posterior)

    @cached_property
    def chi2(self) -> dict[str, float]:
        """Chi-squared of each data set at the best fit."""
        with jax.enable_x64(True):
            values = jax.jit(self.analysis.chi2)(self._best_sampled())
            return {name: float(values[name]) for name in self.analysis.data}

    @property
    def aic(self) -> float:
        """Akaike's criterion, the least total chi-squared plus twice the number of parameters."""
        return sum(self.chi2.values()) + 2 * len(self.analysis.parameters)

    @property
    def num_points(self) -> int:
        """The number of measured values in all data sets together."""
        return sum(likelihood.num_points for likelihood in self.analysis.likelihoods.values())

    @property
    def bic(self) -> float:
        """Schwarz's criterion, the least total chi-squared plus parameters times the log of `num_points`."""
        return sum(self.chi2.values()) + len(self.analysis.parameters) * math.log(self.num_points)

    @cached_property
    def log_likelihoods(self) -> np.ndarray:
        """Log likelihood of each draw, shape (chain, draw): of the run, or computed where it kept none."""
        if "log_likelihood" in self.posterior.stats:
            return np.asarray(self.posterior.stats["log_likelihood"])
        return _log_likelihoods(self.analysis, self.posterior)

    @cached_property
    def num_effective_parameters(self) -> float | None:
        r"""\(p_D\): how much lower chi-squared is at the posterior mean than on average; None if not finite.

        References:
            Spiegelhalter, Best, Carlin & van der Linde (2002), "Bayesian measures of model complexity and
            fit".
        """
        value = self._mean_chi2 - self._chi2_at_mean
        return value if math.isfinite(value) else None

    @property
    def dic(self) -> float | None:
        """Deviance information criterion: chi-squared at the posterior mean plus twice its p_D.

        None where the posterior mean is a cosmology that does not exist.

        References:
            Spiegelhalter, Best, Carlin & van der Linde (2002), "Bayesian measures of model complexity and
            fit".
        """
        if self.num_effective_parameters is None:
            return None
        return self._chi2_at_mean + 2.0 * self.num_effective_parameters

    @cached_property
    def _mean_chi2(self) -> float:
        weights = self.posterior.weights
        counted = weights > 0
        return float(-2.0 * weights[counted] @ self.log_likelihoods[counted])

    @cached_property
    def _chi2_at_mean(self) -> float:
        mean = {name: float(self.posterior.mean(name)) for name in self.analysis.parameters}
        with jax.enable_x64(True):
            return float(-2.0 * jax.jit(self.analysis.log_likelihood)(mean))

    def _best_sampled(self) -> dict[str, float]:
        return {name: self.best_fit[name] for name in self.analysis.parameters}

    def as_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""
        posterior = self.posterior
        flat = scalars(posterior.samples)
        return {
            "log_evidence": posterior.log_evidence,
            "log_evidence_error": posterior.log_evidence_error,
            "num_likelihood_calls": posterior.num_likelihood_calls,
            "parameters": {name: moments(draws, posterior.log_weights) for name, draws in flat.items()},
            "derived": list(posterior.derived),
            "best_fit": self.best_fit,
            "chi2": self.chi2,
            "chi2_total": sum(self.chi2.values()),
            "num_points": self.num_points,
            "aic": self.aic,
            "bic": self.bic,
            "num_effective_parameters": self.num_effective_parameters,
            "dic": self.dic,
            "problems": posterior.problems,
            "provenance": posterior.provenance,
        }


def _log_likelihoods(analysis: Analysis, posterior: Posterior) -> np.ndarray:
    draws = {name: posterior.samples[name].ravel() for name in analysis.parameters}
    with jax.enable_x64(True):
        values = jax.jit(lambda points: jax.lax.map(analysis.log_likelihood, points, batch_size=256))(draws)
        return np.asarray(values).reshape(posterior.shape)


def _best_fit(analysis: Analysis, posterior: Posterior) -> dict[str, float]:
    """Climb from the best draw to the maximum of the likelihood within the range of the priors."""
    from scipy.optimize import minimize

    names = analysis.parameters
    start = np.array([float(posterior.best_fit()[name]) for name in names])
    scale = np.array([float(posterior.sd(name)) or 1.0 for name in names])
    with jax.enable_x64(True):
        limits = [
            tuple(None if end is None else (end - s) / w for end in analysis.prior_range(name))
            for name, s, w in zip(names, start, scale, strict=True)
        ]

        def minus_log_likelihood(steps: Any) -> Any:
            values = jnp.asarray(start) + jnp.asarray(scale) * steps
            return -analysis.log_likelihood(dict(zip(names, values, strict=True)))

        objective = jax.jit(jax.value_and_grad(minus_log_likelihood))
        found = minimize(
            lambda steps: [np.asarray(part, dtype=float) for part in objective(steps)],
            np.zeros(len(names)),
            jac=True,
            method="L-BFGS-B",
            bounds=limits,
        )
        improved = found.fun <= float(objective(np.zeros(len(names)))[0])
        values = start + scale * (found.x if improved else 0.0)
        best = dict(zip(names, map(float, values), strict=True))
        return best | {name: float(value) for name, value in jax.jit(analysis.derived)(best).items()}


def log_bayes_factors(results: Mapping[str, ModelResult]) -> dict[str, tuple[float, float]]:
    """Return ln B of each model against the first, with its error, where both have an evidence."""
    first = next(iter(results.values())).posterior
    factors = {}
    for name, result in results.items():
        own = result.posterior
        if own.log_evidence is None or first.log_evidence is None:
            continue
        error = math.hypot(own.log_evidence_error or 0.0, first.log_evidence_error or 0.0)
        factors[name] = (own.log_evidence - first.log_evidence, 0.0 if own is first else error)
    return factors


def results_as_dict(results: Mapping[str, ModelResult], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the contents of `results.json`, tensions aside."""
    factors = log_bayes_factors(results)
    models = {}
    for name, result in results.items():
        models[name] = result.as_dict()
        if name in factors:
            log_bayes_factor, error = factors[name]
            models[name] |= {
                "log_bayes_factor": log_bayes_factor,
                "log_bayes_factor_error": error,
                "jeffreys": jeffreys_label(log_bayes_factor),
            }
    return {"models": models, "provenance": dict(provenance)}


def model_table(results: Mapping[str, ModelResult]) -> Table:
    """Return the comparison of the models, one column each."""
    first = next(iter(results))
    factors = log_bayes_factors(results)
    table = Table(title="Models", title_justify="left")
    table.add_column("")
    for name in results:
        table.add_column(name, justify="right")

    def row(label: str, cells: Any) -> None:
        table.add_row(label, *cells)

    if factors:
        row(
            "ln Z",
            [_with_error(r.posterior.log_evidence, r.posterior.log_evidence_error) for r in results.values()],
        )
        row(f"ln B against {first}", [_factor(name, first, factors) for name in results])
        row("", [_verdict(name, first, factors) for name in results])
        table.add_section()
    for data_set in next(iter(results.values())).chi2:
        row(f"chi2 {data_set}", [f"{result.chi2[data_set]:.2f}" for result in results.values()])
    row("chi2 total", [f"{sum(result.chi2.values()):.2f}" for result in results.values()])
    row("data points", [f"{result.num_points:,}" for result in results.values()])
    row("parameters", [str(len(result.analysis.parameters)) for result in results.values()])
    row("p_D", [_or_nothing(result.num_effective_parameters) for result in results.values()])
    row("AIC", [f"{result.aic:.2f}" for result in results.values()])
    row("BIC", [f"{result.bic:.2f}" for result in results.values()])
    row("DIC", [_or_nothing(result.dic) for result in results.values()])
    table.add_section()
    for name in _all_parameters(results):
        row(_with_unit(name), [_estimate(result, name) for result in results.values()])
    table.add_section()
    for name in _all_parameters(results):
        cells = [f"{r.best_fit[name]:.4f}" if name in r.best_fit else "" for r in results.values()]
        row(f"best fit {name}", cells)
    table.add_section()
    row("likelihood calls", [f"{result.posterior.num_likelihood_calls:,}" for result in results.values()])
    return table


def _all_parameters(results: Mapping[str, ModelResult]) -> list[str]:
    used = {name for result in results.values() for name in result.posterior.samples}
    return [name for name in {**PARAMETERS, **DERIVED} if name in used]


def _with_unit(name: str) -> str:
    unit = {**DERIVED, **PARAMETERS}[name].unit
    return f"{name} [{unit}]" if unit else name


def _with_error(value: float | None, error: float | None) -> str:
    return "" if value is None else f"{value:.3f} +- {error or 0.0:.3f}"


def _or_nothing(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _factor(name: str, first: str, factors: Mapping[str, tuple[float, float]]) -> str:
    if name not in factors or name == first:
        return "0" if name == first else ""
    value, error = factors[name]
    return f"{value:+.3f} +- {error:.3f}"


def _verdict(name: str, first: str, factors: Mapping[str, tuple[float, float]]) -> str:
    if name not in factors or name == first:
        return ""
    value = factors[name][0]
    label = jeffreys_label(value)
    return label if label == "inconclusive" else f"{label} for {name if value > 0 else first}"


def _estimate(result: ModelResult, name: str) -> str:
    if name not in result.posterior.samples:
        return ""
    mean, sd = float(result.posterior.mean(name)), float(result.posterior.sd(name))
    decimals = max(0, 1 - math.floor(math.log10(sd))) if sd > 0 else 4
    return f"{mean:.{decimals}f} +- {sd:.{decimals}f}"
