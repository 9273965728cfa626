"""The log likelihood of each observation at each draw, and leave-one-out cross-validation from it."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.primitives import Messenger

from qbs.batches import bare
from qbs.effects import note
from qbs.errors import LikelihoodError, ModelError
from qbs.inference.binding import BoundModel, bind, model_name, require_latents
from qbs.inference.results.diagnostics import is_constant, scalars
from qbs.inference.results.posterior import Posterior
from qbs.inference.results.provenance import data_fingerprint
from qbs.inference.sites import walk
from qbs.inference.target import Target
from qbs.precision import Precision, precision_context
from qbs.program import Program

if TYPE_CHECKING:
    from arviz_stats import ELPDData

LOO_COLUMNS = ("elpd_loo", "se", "elpd_diff", "dse", "p_loo", "num_bad_k")
_NOTE = "pointwise log likelihood of "
_LEAST_DRAWS = 100  # fewer leave PSIS no tail to fit a Pareto distribution to


def log_likelihood(
    posterior: Posterior, model: Callable, *data: Any, model_kwargs: Mapping[str, Any] | None = None
) -> dict[str, np.ndarray]:
    """Return the log likelihood of each observation at each draw of a posterior.

    Sums over observations are the log likelihood of the fit: what a mask hides is 0, and what a `scale`
    handler multiplies is multiplied (`numpyro.infer.log_likelihood` leaves the scale out). Values are
    computed draw by draw, in the precision of the draws.

    Args:
        posterior: The draws; weighted draws stay as they are, weights apart.
        model: The model that was fitted, or one with the same latent sites.
        *data: Its arguments, observations included: those of the fit, or new ones for the density of data
            that were held out.
        model_kwargs: Its keyword arguments.

    Returns:
        Name of each observed site to an array of shape (chain, draw, then the batch shape of the site), in
        nats. A site with an event, such as a multivariate normal, has one value for the event. A site in a
        scan or a `vmap` has further axes in front; one that a branch of a `cond` passes by is 0.

    Raises:
        ModelError: If the model has a factor, a `qbs.score` or a `qbs.Target`'s likelihood, which are no
            sums over observations that qbs could take apart; if it observes nothing; or if its latent
            sites are not those of the posterior.
        LikelihoodError: If a value is NaN.
    """
    with precision_context(_precision(posterior)):
        bound = _bind(posterior, model, data, model_kwargs)
        return _values(bound, posterior)


def loo(
    posterior: Posterior,
    model: Callable,
    *data: Any,
    model_kwargs: Mapping[str, Any] | None = None,
    site: str | None = None,
) -> "ELPDData":
    """Estimate how well a model predicts each observation from all the others (PSIS-LOO).

    The log predictive density of each observation, had it been left out of the fit, is estimated from the
    draws of the one fit by Pareto-smoothed importance sampling; arviz-stats computes it. Weighted draws
    are resampled to equal weights first.

    Every number of `log_likelihood` is one observation, those of several observed sites in one row. What
    is left out must be independent of the rest given the parameters; it is not for time series. An
    observation whose log likelihood is 0 at every draw, as where it is masked, is left out of the count.

    Args:
        posterior: The posterior of the model and the data.
        model: The model that was fitted.
        *data: Its arguments in the fit.
        model_kwargs: Its keyword arguments.
        site: The observed site whose observations are left out in turn; all of them by default.

    Returns:
        The `ELPDData` of arviz-stats: `elpd` and its standard error `se` in nats, the effective number of
        parameters `p`, and for each observation `elpd_i` and `pareto_k`, labelled like `y[3]`. Where
        `pareto_k` is above `good_k` the estimate for that observation is not to be trusted; arviz-stats
        warns.

    Raises:
        ModelError: As for `log_likelihood`.
        LikelihoodError: If an observation has a log likelihood that is NaN or infinite at a draw.
        ValueError: If the posterior was fitted to other data, there is no such site, there are fewer than
            two observations, or the draws are worth less than 100.

    References:
        Vehtari, Gelman & Gabry (2017), "Practical Bayesian model evaluation using leave-one-out
        cross-validation and WAIC", Statistics and Computing 27, 1413; Vehtari, Simpson, Gelman, Yao &
        Gabry (2024), "Pareto smoothed importance sampling", JMLR 25(72).
    """
    import arviz_stats
    import xarray

    equal = _equally_weighted(posterior)
    if (num_draws := int(np.prod(equal.shape))) < _LEAST_DRAWS:
        raise ValueError(
            f"loo needs {_LEAST_DRAWS} draws of equal weight; the posterior is worth {num_draws}"
        )
    with precision_context(_precision(equal)):
        bound = _bind(equal, model, data, model_kwargs)
        _require_same_data(bound, posterior)
        values = _values(bound, equal)
    if site is not None and site not in values:
        raise ValueError(f"site must be an observed site, {', '.join(map(repr, values))}, not {site!r}")
    labelled = _observations(values if site is None else {site: values[site]}, bound.name)
    stacked = np.stack(list(labelled.values()), axis=-1, dtype=np.float64)
    group = xarray.Dataset(
        {"log_likelihood": (("chain", "draw", "observation"), stacked)},
        coords={
            "chain": np.arange(equal.shape[0]),
            "draw": np.arange(equal.shape[1]),
            "observation": list(labelled),
        },
    )
    tree = xarray.DataTree.from_dict({"log_likelihood": group})
    return arviz_stats.loo(tree, pointwise=True, reff=_relative_efficiency(equal))


def compare_loo(scores: "Mapping[str, ELPDData]") -> tuple[dict[str, dict[str, float]], list[str]]:
    """Return the columns of `qbs.compare` that follow from what `loo` returned, and what is wrong with them.

    Raises:
        TypeError: If a score is not an `ELPDData`.
        ValueError: If there is none, one is not of PSIS-LOO with pointwise values, or they are of different
            numbers of observations.
    """
    import arviz_stats

    _require_comparable(scores)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = arviz_stats.compare(dict(scores), method="pseudo-bma")
    said = [warning.message for warning in caught if issubclass(warning.category, UserWarning)]
    problems = [f"arviz-stats: {message}" for message in said]
    rows = {}
    for name, score in scores.items():
        num_bad = int(np.sum(np.asarray(score.pareto_k) > score.good_k))
        lost, error = float(table.loc[name, "elpd_diff"]), float(table.loc[name, "dse"])
        values = (float(score.elpd), float(score.se), 0.0 - lost, error, float(score.p), num_bad)
        rows[name] = dict(zip(LOO_COLUMNS, values, strict=True))
        if num_bad:
            problems.append(
                f"{name}: the Pareto k of {num_bad} of {score.n_data_points} observations is above "
                f"{score.good_k:.2f}: importance sampling fails for them, and elpd_loo may be off; fit again "
                "without them, or use a model with heavier tails."
            )
    return rows, problems


def _require_comparable(scores: "Mapping[str, ELPDData]") -> None:
    from arviz_stats import ELPDData

    if not scores:
        raise ValueError("loo is empty: give what qbs.loo returned for the models, or leave it out")
    for name, score in scores.items():
        if not isinstance(score, ELPDData):
            raise TypeError(f"loo of {name!r} must be what qbs.loo returned, not {type(score).__name__}")
        if score.kind != "loo" or score.elpd_i is None or score.pareto_k is None:
            raise ValueError(
                f"loo of {name!r} must be PSIS-LOO with values for each observation: use qbs.loo"
            )
    counts = {name: int(score.n_data_points) for name, score in scores.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"loo is of different numbers of observations, {counts}: it cannot be compared")


class _Pointwise(Messenger):
    """Stands around a model and notes the log likelihood of its observations, as they are scored.

    Attributes:
        observed: The names of observed sites.
        unobserved: The names of other sites: latent ones, and those to which a handler gave a value.
    """

    def __init__(self, model: Callable):
        super().__init__(model)
        self.observed: set[str] = set()
        self.unobserved: set[str] = set()

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] != "sample" or isinstance(bare(msg["fn"]), dist.Unit):
            return
        if not msg["is_observed"]:
            self.unobserved.add(msg["name"])
            return
        self.observed.add(msg["name"])
        log_prob = msg["fn"].log_prob(msg["value"])
        note(_NOTE + msg["name"], log_prob if msg["scale"] is None else msg["scale"] * log_prob)


def _bind(posterior: Posterior, model: Callable, data: tuple, kwargs: Mapping[str, Any] | None) -> BoundModel:
    """Bind a model that notes its pointwise log likelihoods, and check that it has them."""
    if isinstance(model, Target):
        raise ModelError(
            f"the log likelihood of the target {model.name!r} is one number, with no values for single "
            "observations: write it as a NumPyro model with observed sites"
        )
    function = model.function if isinstance(model, Program) else model
    if not callable(function):
        raise ModelError(f"the model must be a NumPyro model (a function), not {type(model).__name__}")
    name = model_name(model)
    pointwise = _Pointwise(function)
    bound = bind(pointwise, data, kwargs, name=name, identity=function)
    require_latents(bound)
    _require_sites(bound, posterior)
    if summed := [n for n in bound.scored if n not in pointwise.observed | pointwise.unobserved]:
        raise ModelError(
            f"{summed[0]!r} in {name!r} is a factor or a score: one number, with no values for single "
            "observations. Write it as an observed site; a factor that belongs to the prior can be hidden, "
            f"numpyro.handlers.block(model, hide=[{summed[0]!r}])"
        )
    if not pointwise.observed:
        raise ModelError(f"the model {name!r} observes nothing: is an obs= argument None?")
    return bound


def _require_sites(bound: BoundModel, posterior: Posterior) -> None:
    missing = [name for name in bound.latent if name not in posterior.samples]
    if missing:
        raise ModelError(
            f"the model {bound.name!r} has the latent sites {missing}, which the posterior lacks: give the "
            "model that was fitted, with its observations"
        )
    known = {*bound.latent, *posterior.derived}
    if unknown := [name for name in posterior.samples if name not in known]:
        raise ModelError(
            f"the posterior has {unknown}, which are no latent sites of the model {bound.name!r}: give the "
            "model that was fitted"
        )


def _require_same_data(bound: BoundModel, posterior: Posterior) -> None:
    fitted, given = posterior.provenance.get("data_sha256"), data_fingerprint(bound.arrays)
    if fitted and given and fitted != given:
        raise ValueError(
            f"the posterior was not fitted to this data (the fingerprints of the arrays given to "
            f"{bound.name!r} differ): loo needs the data of the fit"
        )


def _values(bound: BoundModel, posterior: Posterior) -> dict[str, np.ndarray]:
    """Evaluate a bound model at all draws."""
    chains, draws = posterior.shape
    given = {}
    for name in bound.latent:
        values = posterior.samples[name]
        given[name] = jnp.asarray(values.reshape(chains * draws, *values.shape[2:]))
    found = _evaluate(bound, given)
    shaped = {}
    for name in (name for name in bound.scored if name in found):
        values = np.asarray(found[name])
        shaped[name] = values.reshape(chains, draws, *values.shape[1:])
        if count := int(np.sum(np.isnan(values))):
            raise LikelihoodError(
                f"{count} of {values.size} log likelihoods of site {name!r} are NaN: is there NaN in the "
                "data, or a parameter out of its range?"
            )
    return shaped


@jax.jit
def _evaluate(bound: BoundModel, draws: dict[str, Array]) -> dict[str, Array]:
    def of_one(draw: dict[str, Array]) -> dict[str, Array]:
        trace = walk(bound.program, bound.arrays, jax.random.key(0), draw).trace
        return {n.removeprefix(_NOTE): values for n, values in trace.items() if n.startswith(_NOTE)}

    return jax.lax.map(of_one, draws)


def _precision(posterior: Posterior) -> Precision:
    is_single = any(values.dtype == np.float32 for values in posterior.samples.values())
    return "float32" if is_single else "float64"


def _equally_weighted(posterior: Posterior) -> Posterior:
    if posterior.log_weights is None:
        return posterior
    samples = {name: values[None] for name, values in posterior.resample().items()}
    return dataclasses.replace(posterior, samples=samples, log_weights=None, stats={})


def _relative_efficiency(posterior: Posterior) -> float:
    """Return the effective size of the mean over the number of draws, averaged over all parameters."""
    from arviz_stats.base import array_stats

    sizes = [
        array_stats.ess(np.asarray(draws, dtype=np.float64), chain_axis=0, draw_axis=1, method="mean")
        for draws in scalars(posterior.samples).values()
        if posterior.shape[1] >= 4 and np.all(np.isfinite(draws)) and not is_constant(draws)
    ]
    return float(np.mean(sizes)) / float(np.prod(posterior.shape)) if sizes else 1.0


def _observations(values: dict[str, np.ndarray], model: str) -> dict[str, np.ndarray]:
    """Return the log likelihoods by label of the observation, those that are 0 throughout apart."""
    labelled = {label: draws for label, draws in scalars(values).items() if np.any(draws != 0)}
    for label, draws in labelled.items():
        if not np.all(np.isfinite(draws)):
            raise LikelihoodError(
                f"the observation {label} of {model!r} has an infinite log likelihood at "
                f"{int(np.sum(~np.isfinite(draws)))} of {draws.size} draws: leaving it out cannot be judged"
            )
    if len(labelled) < 2:
        raise ValueError(
            f"loo leaves out one observation of several, and {model!r} has {len(labelled)}; the numbers "
            "within one event, as of a multivariate normal, are one observation"
        )
    return labelled
