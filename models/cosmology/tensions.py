r"""Do two data sets agree within a model? Bayes ratio, information and suspiciousness of three fits.

\(Z\) and \(\mathcal L\) are evidence and likelihood of a fit, and \(\langle\cdot\rangle\) is a mean over its
posterior. With \(D = \langle\ln \mathcal L\rangle - \ln Z\), the Kullback-Leibler divergence of the posterior
from the prior,

\[\ln R = \ln Z_{AB} - \ln Z_A - \ln Z_B,\quad \ln I = D_A + D_B - D_{AB},\quad
\ln S = \ln R - \ln I = \langle\ln \mathcal L_{AB}\rangle - \langle\ln \mathcal L_A\rangle
- \langle\ln \mathcal L_B\rangle.\]

R grows with the width of the prior that the data share, S does not. If all posteriors are Gaussian and the
data agree, \(d - 2\ln S\) is distributed as \(\chi^2_d\), with \(d = d_A + d_B - d_{AB}\) the number of
parameters that both constrain, counted by the Bayesian model dimensionality
\(d = 2\,\mathrm{var}(\ln \mathcal L)\) of each fit.

References:
    Handley & Lemos (2019), "Quantifying tensions in cosmological parameters: Interpreting the DES evidence
    ratio", arXiv:1902.04029; (2019), "Quantifying dimensionality: Bayesian cosmological model complexities",
    arXiv:1903.06682.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from rich.table import Table

from qbs.inference.results.posterior import Posterior
from qbs.models.cosmology._mean_errors import mean_error
from qbs.models.cosmology.results import ModelResult

_SURE = 2.0  # d must be so many of its errors above zero for a p value to mean something


@dataclass(frozen=True)
class Tension:
    """How two data sets agree within a model. Errors are Monte Carlo errors; logarithms are natural.

    Attributes:
        log_bayes_ratio: ln R; None where a fit has no evidence. Above 0 the data make each other more
            probable, the more so the wider the prior.
        log_bayes_ratio_error: Its error.
        log_information_ratio: ln I, how much of ln R is due to the width of the prior; None without
            evidences.
        log_information_ratio_error: Its error.
        log_suspiciousness: ln S, whatever the width of the prior: 0 on average for data that agree, at most
            d/2, and negative for data that do not.
        log_suspiciousness_error: Its error.
        dimensionality: d, how many parameters both data sets constrain.
        dimensionality_error: Its error.
        p_value: Probability that data that agree are as discordant as these; None where d is not positive.
        sigma: The same as two-sided standard deviations of a Gaussian.
        divergences: D of the joint, the first and the second fit [nats], where there are evidences.
        dimensionalities: d of the joint, the first and the second fit.
        problems: What a reader must know before trusting the numbers; empty is good.
    """

    log_bayes_ratio: float | None
    log_bayes_ratio_error: float | None
    log_information_ratio: float | None
    log_information_ratio_error: float | None
    log_suspiciousness: float
    log_suspiciousness_error: float
    dimensionality: float
    dimensionality_error: float
    p_value: float | None
    sigma: float | None
    divergences: tuple[float, float, float] | None
    dimensionalities: tuple[float, float, float]
    problems: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON-ready values."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }


def tension(
    joint: Posterior | ModelResult, first: Posterior | ModelResult, second: Posterior | ModelResult
) -> Tension:
    """Return how well two data sets agree, from fits of one model to both and to each.

    The three fits must have the same priors for the parameters that they share, and the likelihoods of the
    two must multiply to that of the joint fit. Without evidences, as from NUTS, ln R and ln I are None.

    Args:
        joint: The fit to both data sets.
        first: The fit to the first alone.
        second: The fit to the second alone.

    Returns:
        The numbers, with their errors.

    Raises:
        ValueError: If a posterior has no log likelihoods (give a `ModelResult`, which computes them), or if a
            fit has a parameter that the joint fit lacks.

    References:
        Handley & Lemos (2019), arXiv:1902.04029 for R, I, S and p, arXiv:1903.06682 for the dimensionality.
    """
    from scipy.special import erfcinv
    from scipy.stats import chi2

    runs = {"joint": joint, "first": first, "second": second}
    posteriors = {name: run.posterior if isinstance(run, ModelResult) else run for name, run in runs.items()}
    _check_parameters(posteriors)
    moments = {name: _Moments.of(name, run) for name, run in runs.items()}
    both, one, other = moments.values()
    log_suspiciousness = both.mean - one.mean - other.mean
    log_suspiciousness_error = math.hypot(both.mean_error, one.mean_error, other.mean_error)
    dimensionality = one.dimensionality + other.dimensionality - both.dimensionality
    dimensionality_error = math.hypot(*(m.dimensionality_error for m in moments.values()))

    problems = [f"{name}: {text}" for name, posterior in posteriors.items() for text in posterior.problems]
    p_value = sigma = None
    if dimensionality > 0:
        p_value = float(chi2.sf(dimensionality - 2.0 * log_suspiciousness, dimensionality))
        sigma = float(math.sqrt(2.0) * erfcinv(p_value))
    if dimensionality < _SURE * dimensionality_error:
        problems.append(
            f"Both constrain {dimensionality:.2f} +- {dimensionality_error:.2f} parameters, which may be "
            "none: the p value means little. Draw more, or compare data that constrain the same."
        )

    evidences = [p.log_evidence for p in posteriors.values() if p.log_evidence is not None]
    log_ratio = ratio_error = log_information = information_error = divergences = None
    if len(evidences) == len(posteriors):
        log_ratio = evidences[0] - evidences[1] - evidences[2]
        ratio_error = math.hypot(*(p.log_evidence_error or 0.0 for p in posteriors.values()))
        divergences = (both.mean - evidences[0], one.mean - evidences[1], other.mean - evidences[2])
        log_information = log_ratio - log_suspiciousness
        information_error = math.hypot(ratio_error, log_suspiciousness_error)
    return Tension(
        log_bayes_ratio=log_ratio,
        log_bayes_ratio_error=ratio_error,
        log_information_ratio=log_information,
        log_information_ratio_error=information_error,
        log_suspiciousness=log_suspiciousness,
        log_suspiciousness_error=log_suspiciousness_error,
        dimensionality=dimensionality,
        dimensionality_error=dimensionality_error,
        p_value=p_value,
        sigma=sigma,
        divergences=divergences,
        dimensionalities=(both.dimensionality, one.dimensionality, other.dimensionality),
        problems=problems,
    )


def _check_parameters(posteriors: dict[str, Posterior]) -> None:
    sampled = {name: set(p.samples) - set(p.derived) for name, p in posteriors.items()}
    for name in ("first", "second"):
        if missing := sorted(sampled[name] - sampled["joint"]):
            raise ValueError(
                f"tension: the {name} fit has {', '.join(missing)}, which the joint fit lacks: they are not "
                "fits of one model to parts of the same data"
            )


@dataclass(frozen=True)
class _Moments:
    """Mean of the log likelihood over a posterior, and the dimensionality of that, with errors."""

    mean: float
    mean_error: float
    dimensionality: float
    dimensionality_error: float

    @classmethod
    def of(cls, name: str, run: Posterior | ModelResult) -> "_Moments":
        if isinstance(run, ModelResult):
            posterior, values = run.posterior, run.log_likelihoods
        elif "log_likelihood" in run.stats:
            posterior, values = run, run.stats["log_likelihood"]
        else:
            raise ValueError(
                f"tension: the {name} posterior kept no log likelihoods; give a "
                "qbs.models.cosmology.results.ModelResult, which computes them"
            )
        values = np.asarray(values, dtype=float)
        weights = posterior.weights
        if not np.all(np.isfinite(values[weights > 0])):
            raise ValueError(f"tension: the {name} posterior has draws whose log likelihood is not finite")
        values = np.where(weights > 0, values, 0.0)
        mean = float(np.sum(weights * values))
        dimensions = 2.0 * (values - mean) ** 2
        given = None if posterior.log_weights is None else weights
        return cls(
            mean,
            mean_error(values, given, values),
            float(np.sum(weights * dimensions)),
            mean_error(dimensions, given, values),
        )


@dataclass(frozen=True)
class Comparison:
    """The tension of two sides within a model.

    Attributes:
        model: The model.
        first: The data sets on the one side.
        second: Those on the other.
        tension: The numbers.
    """

    model: str
    first: tuple[str, ...]
    second: tuple[str, ...]
    tension: Tension

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON-ready values."""
        sides = {"model": self.model, "first": list(self.first), "second": list(self.second)}
        return sides | self.tension.as_dict()


def tension_table(comparisons: Sequence[Comparison]) -> Table:
    """Return the tensions, one column each."""
    table = Table(title="Tension between data sets", title_justify="left")
    table.add_column("")
    for comparison in comparisons:
        table.add_column(comparison.model, justify="right", min_width=15, overflow="fold")
    found = [comparison.tension for comparison in comparisons]
    rows = {
        "data": [" ".join(comparison.first) for comparison in comparisons],
        "against": [" ".join(comparison.second) for comparison in comparisons],
        "ln R": [_number(f.log_bayes_ratio, f.log_bayes_ratio_error) for f in found],
        "ln I": [_number(f.log_information_ratio, f.log_information_ratio_error) for f in found],
        "ln S": [_number(f.log_suspiciousness, f.log_suspiciousness_error) for f in found],
        "d": [_number(f.dimensionality, f.dimensionality_error) for f in found],
        "p": ["-" if f.p_value is None else f"{f.p_value:.3g}" for f in found],
        "sigma": ["-" if f.sigma is None else f"{f.sigma:.1f}" for f in found],
    }
    for label, cells in rows.items():
        table.add_row(label, *cells)
    return table


def _number(value: float | None, error: float | None) -> str:
    return "-" if value is None or error is None else f"{value:.2f} +- {error:.2f}"
