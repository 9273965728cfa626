"""Comparison of models that were fitted to the same data: by evidence, and by leave-one-out prediction."""

import itertools
import math
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from rich.table import Table
from rich.text import Text

from qbs.errors import MissingExtraError
from qbs.inference.results.pointwise import LOO_COLUMNS, compare_loo
from qbs.inference.results.posterior import Posterior
from qbs.inference.results.summary import render

if TYPE_CHECKING:
    import pandas
    from arviz_stats import ELPDData
    from matplotlib.axes import Axes

T = TypeVar("T")
Rows = dict[str, dict[str, Any]]

# Lower ends of |ln B| and what they are called: Kass & Raftery (1995), p. 777, in 2 ln B there.
_STRENGTHS = ((5.0, "very strong"), (3.0, "strong"), (1.0, "positive"), (0.0, "bare mention"))
_DECIDED = 2.0  # standard errors that |ln B| must be away from zero
_NAN = float("nan")
_EVIDENCE = (
    "log_evidence",
    "log_evidence_error",
    "log_bayes_factor",
    "log_bayes_factor_error",
    "prior",
    "probability",
    "probability_error",
    "strength",
)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Models side by side, best first; prints as a table, and `Comparison.frame` is a data frame.

    Attributes:
        rows: Model name to column name to value. NaN, and `""` for words, where a fit does not tell.
            Where a fit has an evidence: `log_evidence` and `log_evidence_error`; `log_bayes_factor`
            against the model of the highest evidence, not above zero, and `log_bayes_factor_error`;
            `prior`, `probability` and `probability_error` of the model; `strength`, in words, of the
            evidence for the best model against this one. Where `loo` was given: `elpd_loo` and its
            standard error `se`; `elpd_diff` to the best `elpd_loo`, not above zero, and its standard error
            `dse`; `p_loo`, the effective number of parameters; `num_bad_k`, observations of which the
            Pareto k is too high. Everything in nats but the probabilities, `p_loo` and `num_bad_k`.
        problems: What a reader must know before trusting the comparison, in plain sentences; those of a
            fit begin with the name of the model. Empty is good.
    """

    rows: Rows
    problems: list[str] = field(default_factory=list)

    @property
    def frame(self) -> "pandas.DataFrame":
        """The comparison as a data frame, one row per model, best first."""
        import pandas

        return pandas.DataFrame.from_dict(self.rows, orient="index")

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """Draw the log evidence of each model with an error bar of one standard error, the best on top.

        Models without an evidence are left out; where none has one, `elpd_loo` is drawn instead.

        Args:
            axes: Matplotlib axes to draw on; new ones by default.

        Raises:
            MissingExtraError: If Matplotlib is not installed.
        """
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise MissingExtraError("the plot needs Matplotlib: pip install 'qbs-jax[plots]'") from error
        value, bar, label = "elpd_loo", "se", "elpd_loo [nats]"
        if self._has("log_evidence"):
            value, bar, label = "log_evidence", "log_evidence_error", "log evidence [nats]"
        shown = {name: row for name, row in self.rows.items() if math.isfinite(row[value])}
        if axes is None:
            _, axes = pyplot.subplots(figsize=(6.4, 0.4 * len(shown) + 1.2), layout="constrained")
        places = np.arange(len(shown))[::-1]
        axes.errorbar(
            [row[value] for row in shown.values()],
            places,
            xerr=[row[bar] if math.isfinite(row[bar]) else 0.0 for row in shown.values()],
            fmt="o",
            markersize=4,
            color="#0072B2",
            capsize=3,
        )
        axes.axvline(max(row[value] for row in shown.values()), color="0.7", linewidth=0.8, zorder=0)
        axes.set_yticks(places, labels=list(shown))
        axes.set(xlabel=label, ylim=(-0.6, len(shown) - 0.4))
        axes.ticklabel_format(axis="x", useOffset=False)
        return axes

    def _has(self, column: str) -> bool:
        return any(column in row for row in self.rows.values())

    def _tables(self) -> list[Table]:
        tables = []
        if self._has("log_evidence"):
            columns = ("log evidence", "log Bayes factor", "probability", "evidence against it")
            tables.append(_table("Models by evidence", columns, self.rows, _evidence_cells))
        if self._has("elpd_loo"):
            columns = ("elpd_loo", "elpd_diff", "p_loo", "bad k")
            ordered = dict(sorted(self.rows.items(), key=lambda item: _descending(item[1]["elpd_loo"])))
            tables.append(_table("Models by leave-one-out prediction", columns, ordered, _loo_cells))
        return tables

    def __repr__(self) -> str:
        lines = [render(table) for table in self._tables()]
        for problem in self.problems:
            lines += textwrap.wrap(f"! {problem}", 120, subsequent_indent="  ")
        return "\n".join(lines if self.problems else [*lines, "no problems found"])

    def _repr_html_(self) -> str:
        return self.frame.to_html(float_format=lambda value: f"{value:.4g}", na_rep="-")


def compare(
    fits: Mapping[str, Posterior] | Sequence[Posterior],
    *,
    prior: Mapping[str, float] | Sequence[float] | None = None,
    loo: "Mapping[str, ELPDData] | Sequence[ELPDData] | None" = None,
    check_data: bool = True,
) -> Comparison:
    r"""Compare models that were fitted to the same data, best first.

    By evidence: the log Bayes factor of model \(i\) against that of the highest evidence is the
    difference of their log evidences, and its standard error the root of the sum of their squared
    errors \(\sigma\). With prior weights \(w_i\) the probability of a model is
    \(p_i = w_i Z_i / \sum_j w_j Z_j\), with the error of first order (delta method)
    \(p_i \sqrt{(1 - p_i)^2 \sigma_i^2 + \sum_{j \ne i} p_j^2 \sigma_j^2}\): rough where a \(\sigma\) is
    above about one nat. Errors of the evidences are taken as independent, so give each fit its own key.

    The strength of the evidence for the best model against another is named on the scale of Kass &
    Raftery (1995) for \(\ln B\): bare mention below 1, positive from 1, strong from 3, very strong from 5;
    and "undecided" where \(\ln B\) is below two of its standard errors.

    Args:
        fits: Model name to posterior; or posteriors alone, which are named by their models.
        prior: Prior weight of each model, positive, by name or in the order of `fits`; normalised. Equal
            by default. A fit without an evidence keeps its prior; probabilities are among the others.
        loo: What `qbs.loo` returned for each model, by name or in the order of `fits`.
        check_data: Whether to refuse fits to different data, by the fingerprints of the arrays that were
            given to `qbs.fit`. `False` where the arrays differ and the observations do not, as with other
            covariates.

    Returns:
        The comparison; it prints as a table. Read its `problems` before trusting it.

    Raises:
        TypeError: If a fit is not a `qbs.Posterior`, or a member of `loo` not an `ELPDData`.
        ValueError: If there are fewer than two fits, a name comes twice, data differ, no fit has an
            evidence and `loo` is not given, or `prior` or `loo` does not match the fits.

    References:
        Kass & Raftery (1995), "Bayes factors", JASA 90, 773; Vehtari, Gelman & Gabry (2017), "Practical
        Bayesian model evaluation using leave-one-out cross-validation and WAIC".
    """
    named = _named(fits)
    problems = _data_problems(named, check_data=check_data)
    weights = _prior(prior, list(named))
    rows: Rows = {name: {} for name in named}
    missing = {name: why for name, fit in named.items() if (why := _why_no_evidence(fit))}
    if len(missing) < len(named):
        rows = _by_evidence({name: fit for name, fit in named.items() if name not in missing}, weights)
        problems += [
            f"{name!r} has no evidence: {why}. Its cells are empty." for name, why in missing.items()
        ]
        problems += [
            f"{name!r} gives no error of its log evidence: what follows from that is missing."
            for name, row in rows.items()
            if name not in missing and math.isnan(row["log_evidence_error"])
        ]
        if len(missing) == len(named) - 1:
            problems.append("Only one model has an evidence: there is none to compare it with.")
    elif loo is None:
        reasons = "; ".join(f"{name!r}: {why}" for name, why in missing.items())
        raise ValueError(
            f"none of the fits has an evidence ({reasons}): fit by a method that gives one, such as "
            "qbs.inference.nested.Dynesty(), or give loo="
        )
    if loo is not None:
        scores, found = compare_loo(_matched("loo", loo, list(named)))
        rows = {name: row | scores.get(name, dict.fromkeys(LOO_COLUMNS, _NAN)) for name, row in rows.items()}
        problems += found
        if left_out := named.keys() - scores.keys():
            problems.append(f"loo was not given for {_listed(named, left_out)}: the cells are empty.")
    problems += [f"{name}: {problem}" for name, fit in named.items() for problem in fit.problems]
    return Comparison(dict(sorted(rows.items(), key=_rank)), problems)


def _named(fits: Mapping[str, Posterior] | Sequence[Posterior]) -> dict[str, Posterior]:
    """Return the fits by name, checked."""
    if isinstance(fits, Posterior) or not isinstance(fits, Mapping | Sequence):
        raise TypeError(
            f"fits must be a list of qbs.Posterior, or a mapping to them, not {type(fits).__name__}"
        )
    by_number = ((_name_of(fit, number), fit) for number, fit in enumerate(fits, start=1))
    pairs: list[Any] = list(fits.items() if isinstance(fits, Mapping) else by_number)
    for name, fit in pairs:
        if not isinstance(name, str) or not isinstance(fit, Posterior):
            raise TypeError(
                f"fits must map names to qbs.Posterior; at {name!r} there is a {type(fit).__name__}"
            )
    if len(pairs) < 2:
        raise ValueError(f"a comparison needs at least two fits, not {len(pairs)}")
    names = [name for name, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"several fits are of a model named {twice[0]!r}: give a mapping from names to fits, such as "
            "{'narrow prior': fit1, 'wide prior': fit2}"
        )
    return dict(pairs)


def _name_of(fit: Any, number: int) -> str:
    model = fit.provenance.get("model") if isinstance(fit, Posterior) else None
    return str(model) if model else f"model {number}"


def _data_problems(fits: Mapping[str, Posterior], *, check_data: bool) -> list[str]:
    """Refuse fits to different data, and say where that could not be seen."""
    known = {name: fit for name, fit in fits.items() if fit.provenance.get("data_sha256")}
    differ: set[str] = set()
    unclear: set[str] = set()
    for (a, one), (b, other) in itertools.combinations(known.items(), 2):
        if one.provenance["data_sha256"] == other.provenance["data_sha256"]:
            continue
        # The fingerprint is of the arrays in the precision of the run.
        if one.provenance.get("precision") != other.provenance.get("precision"):
            unclear |= {a, b}
        elif check_data:
            raise ValueError(
                f"{a!r} and {b!r} were fitted to different data (the fingerprints of the arrays given to "
                "qbs.fit differ), which makes their evidences and predictions incomparable; where only "
                "other arguments of the models differ and the observations are the same, say "
                "check_data=False"
            )
        else:
            differ |= {a, b}
    found = []
    if differ:
        found.append(
            f"{_listed(fits, differ)} were given different arrays, and check_data=False says that their "
            "observations are the same."
        )
    if not check_data:
        return found
    if unclear:
        found.append(
            f"{_listed(fits, unclear)} ran in different precisions, on which the fingerprint of the data "
            "depends: whether the data is the same is not known."
        )
    if unknown := fits.keys() - known.keys():
        found.append(
            f"There is no fingerprint of the data of {_listed(fits, unknown)} (no array was an argument of "
            "the fit): whether the data is the same is not known."
        )
    return found


def _matched(what: str, given: Mapping[str, T] | Sequence[T], names: list[str]) -> dict[str, T]:
    """Return values by model name, given by name or in order."""
    if isinstance(given, Mapping):
        if unknown := [name for name in given if name not in names]:
            raise ValueError(f"{what} names {unknown}, which are not among the fits: {names}")
        return dict(given)
    if len(given) != len(names):
        raise ValueError(f"{what} has {len(given)} members, and there are {len(names)} fits: {names}")
    return dict(zip(names, given, strict=True))


def _prior(given: Mapping[str, float] | Sequence[float] | None, names: list[str]) -> dict[str, float]:
    """Return the normalised prior weights."""
    weights = dict.fromkeys(names, 1.0) if given is None else _matched("prior", given, names)
    if missing := set(names) - weights.keys():
        raise ValueError(f"prior lacks the weight of {_listed(names, missing)}")
    for name, weight in weights.items():
        if not (weight > 0 and math.isfinite(weight)):
            raise ValueError(f"prior weights must be positive numbers, and that of {name!r} is {weight!r}")
    total = math.fsum(weights.values())
    return {name: weights[name] / total for name in names}


def _why_no_evidence(fit: Posterior) -> str:
    """Return why a fit has no evidence, or nothing where it has one."""
    if fit.log_evidence is None:
        method = fit.provenance.get("method")
        return f"{method} gives none" if method else "the fit gives none"
    return "" if math.isfinite(fit.log_evidence) else f"its log evidence is {fit.log_evidence}"


def _by_evidence(fits: Mapping[str, Posterior], prior: Mapping[str, float]) -> Rows:
    """Return the columns that follow from the evidences of these fits, for all names in `prior`."""
    names = list(fits)
    log_evidences = np.array([float(fits[name].log_evidence or 0.0) for name in names])
    errors = np.array([_error(fits[name]) for name in names])
    best = int(np.argmax(log_evidences))
    joint = log_evidences + np.log([prior[name] for name in names])
    probabilities = np.exp(joint - np.logaddexp.reduce(joint))
    rows: Rows = {
        name: dict.fromkeys(_EVIDENCE, _NAN) | {"prior": prior[name], "strength": ""} for name in prior
    }
    for i, name in enumerate(names):
        log_bayes_factor = float(log_evidences[i] - log_evidences[best])
        error = 0.0 if i == best else math.hypot(errors[i], errors[best])
        rows[name] |= {
            "log_evidence": float(log_evidences[i]),
            "log_evidence_error": float(errors[i]),
            "log_bayes_factor": log_bayes_factor,
            "log_bayes_factor_error": error,
            "strength": "" if i == best else _strength(log_bayes_factor, error),
        }
        if len(names) > 1:
            slopes = probabilities[i] * ((np.arange(len(names)) == i) - probabilities)
            rows[name]["probability"] = float(probabilities[i])
            rows[name]["probability_error"] = float(np.sqrt(np.sum((slopes * errors) ** 2)))
    return rows


def _error(fit: Posterior) -> float:
    error = fit.log_evidence_error
    return float(error) if error is not None and 0 <= error < math.inf else _NAN


def _strength(log_bayes_factor: float, error: float) -> str:
    """Return in words how strong the evidence of a log Bayes factor is, or nothing without its error."""
    if math.isnan(error):
        return ""
    if abs(log_bayes_factor) < _DECIDED * error:
        return "undecided"
    return next(word for end, word in _STRENGTHS if abs(log_bayes_factor) >= end)


def _rank(item: tuple[str, dict[str, Any]]) -> list[tuple[bool, float]]:
    """Return what sorts models by evidence, then by `elpd_loo`, the best first and those without last."""
    return [_descending(item[1].get(column, _NAN)) for column in ("log_evidence", "elpd_loo")]


def _descending(value: float) -> tuple[bool, float]:
    return math.isnan(value), 0.0 if math.isnan(value) else -value


def _table(
    title: str, columns: Sequence[str], rows: Rows, cells: Callable[[dict[str, Any]], list[str]]
) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("model", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for name, row in rows.items():
        table.add_row(Text(name), *cells(row))
    return table


def _evidence_cells(row: dict[str, Any]) -> list[str]:
    is_best = row["log_bayes_factor"] == 0 and row["log_bayes_factor_error"] == 0
    form = ".1e" if 0 < row["probability"] < 0.001 else ".3f"
    return [
        _with_error(row["log_evidence"], row["log_evidence_error"], ".3f"),
        "0" if is_best else _with_error(row["log_bayes_factor"], row["log_bayes_factor_error"], ".3f"),
        _with_error(row["probability"], row["probability_error"], form),
        row["strength"] or "-",
    ]


def _loo_cells(row: dict[str, Any]) -> list[str]:
    is_best = row["elpd_diff"] == 0 and row["dse"] == 0
    return [
        _with_error(row["elpd_loo"], row["se"], ".2f"),
        "0" if is_best else _with_error(row["elpd_diff"], row["dse"], ".2f"),
        "-" if math.isnan(row["p_loo"]) else f"{row['p_loo']:.1f}",
        "-" if math.isnan(row["num_bad_k"]) else f"{row['num_bad_k']:.0f}",
    ]


def _with_error(value: float, error: float, form: str) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:{form}}" + ("" if math.isnan(error) else f" +- {error:{form}}")


def _listed(names: Iterable[str], chosen: Collection[str]) -> str:
    """Return the chosen names as a phrase, in their order."""
    *others, last = (repr(name) for name in names if name in chosen)
    return f"{', '.join(others)} and {last}" if others else last
