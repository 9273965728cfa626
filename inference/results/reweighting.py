"""From the posterior of a finished fit to that of another likelihood, with the draws at hand."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float

from qbs.captured import own_constants
from qbs.errors import LikelihoodError, ModelError
from qbs.inference.binding import BoundModel, bind, model_name, require_latents
from qbs.inference.black_box import BlackBox, Outcome, describe
from qbs.inference.calls import Caller, as_calls
from qbs.inference.progress import ProgressLine
from qbs.inference.results.diagnostics import (
    LARGEST_PARETO_K,
    is_constant,
    pareto_k,
    weight_problems,
)
from qbs.inference.results.posterior import Posterior
from qbs.inference.results.provenance import data_fingerprint
from qbs.inference.sites import walk
from qbs.inference.target import Target, require_scalar
from qbs.precision import Precision, precision_context
from qbs.program import Program


def reweight(
    posterior: Posterior,
    log_likelihood: Callable | Target | Program,
    *data: Any,
    old: Float[np.ndarray, "num_chains num_draws"] | None = None,
    executor: Any = None,
    progress: bool | None = None,
) -> Posterior:
    r"""Return the posterior under another likelihood and the same priors, from the draws of a finished fit.

    With \(\Delta_i\) the new log likelihood of draw i minus the old one, log weights grow by \(\Delta_i\),
    and the log evidence by \(\ln \sum_i w_i e^{\Delta_i}\), where the \(w_i\) are the old weights. The
    variance of the result has two parts: that of the old evidence, and that of the sum,
    \(\sum_i (w'_i - w_i)^2\) with the new weights \(w'_i\). For chains the second is the Monte Carlo
    variance of the mean of \(e^{\Delta_i}\), which knows of their autocorrelation.

    It works where the new posterior lies within the old one: draws cannot go where the old posterior was not.
    The effective sample size and the Pareto k of the weights tell, in `problems`, when they do not suffice.

    Args:
        posterior: The finished fit.
        log_likelihood: The new likelihood: a function `log_likelihood(parameters, *data)` in JAX or in any
            other Python, a `qbs.Target`, of which only that function is used, or a NumPyro model as a
            program, `qbs.reify(model)`. The priors must be those of the fit.
        *data: What the likelihood is called with.
        old: The log likelihood of each draw in the fit, in nats; by default what the fit recorded.
        executor: Who calls a likelihood in plain Python; as in `qbs.fit`. Calls that fail give a draw the
            weight zero, and are told in `problems`.
        progress: Whether to show progress; by default on a terminal or in a notebook.

    Returns:
        The same draws and derived quantities with new weights; those whose weight is zero stay. The
        statistics `log_likelihood`, and `log_density` where there is one, are the new ones.
        `provenance["reweighted"]` has `log_evidence_ratio`, new over old, with `log_evidence_ratio_error`,
        also for a fit without an evidence, and `pareto_k`.

    Raises:
        ValueError: If the fit recorded no log likelihood and `old` is not given, or has another shape, NaN,
            or an infinite value at a draw with weight.
        LikelihoodError: If the new log likelihood is `-inf` at all draws; if a compiled one is NaN or `+inf`;
            if one in plain Python fails at the draw of the highest weight, or at too many.
        ModelError: If there is an executor for a compiled likelihood, or the parameters are not those of the
            fit.
        ExecutorError: As for `qbs.fit`.

    References:
        Vehtari, Simpson, Gelman, Yao & Gabry (2024), "Pareto smoothed importance sampling", JMLR 25(72).
    """
    before = _old_log_likelihood(posterior, old)
    name = log_likelihood.name if isinstance(log_likelihood, Target | Program) else model_name(log_likelihood)
    with precision_context(_precision(posterior)):
        fingerprint = data_fingerprint(bind(_any_model, data).arrays)
        with ProgressLine(f"{name} reweight", show=progress) as line:
            values, problems = _new_log_likelihood(posterior, log_likelihood, name, data, executor, line)
    after = values.reshape(posterior.shape)
    if not np.any(np.isfinite(after)):
        raise LikelihoodError(f"the log likelihood of {name!r} is -inf at all {after.size:,} draws")

    log_weights = np.full(posterior.shape, -math.log(after.size))
    if posterior.log_weights is not None:
        log_weights = posterior.log_weights - np.logaddexp.reduce(posterior.log_weights, axis=None)
    is_there = np.isfinite(log_weights) & np.isfinite(after)
    if not np.any(is_there):
        raise LikelihoodError(f"the log likelihood of {name!r} is -inf at all draws with weight")
    change = np.full(posterior.shape, -np.inf)
    change[is_there] = after[is_there] - before[is_there]
    log_ratio = float(np.logaddexp.reduce(log_weights + change, axis=None))
    new_log_weights = log_weights + change - log_ratio
    error = _ratio_error(posterior, log_weights, change - log_ratio)
    k = pareto_k(new_log_weights)
    problems += [*_tail_problems(k, after.size), *weight_problems(new_log_weights)]
    problems += [f"Of the fit before: {problem}" for problem in posterior.problems]

    stats = dict(posterior.stats) | {"log_likelihood": after}
    if "log_density" in stats:
        with np.errstate(invalid="ignore"):  # where the old one has no weight
            stats["log_density"] = stats["log_density"] - before + after
    evidence, old_error = posterior.log_evidence, posterior.log_evidence_error
    reweighted = {
        "log_evidence_ratio": log_ratio,
        "log_evidence_ratio_error": error,
        "pareto_k": k,
        "model_before": posterior.provenance.get("model"),
    }
    return dataclasses.replace(
        posterior,
        log_weights=new_log_weights,
        log_evidence=None if evidence is None else evidence + log_ratio,
        log_evidence_error=None if evidence is None or old_error is None else math.hypot(old_error, error),
        num_likelihood_calls=after.size,
        problems=problems,
        stats=stats,
        provenance=posterior.provenance
        | {"model": name, "data_sha256": fingerprint, "reweighted": reweighted},
    )


def _any_model(*_data: Any) -> None:
    """Stands for a model where only the arrays among its arguments are asked for."""
    numpyro.sample("x", dist.Normal(0.0, 1.0))


def _old_log_likelihood(posterior: Posterior, old: np.ndarray | None) -> np.ndarray:
    if old is None and "log_likelihood" not in posterior.stats:
        raise ValueError(
            "the posterior recorded no log likelihood of its draws: give them as old=, an array of shape "
            f"{posterior.shape}, or fit by a method that records them, such as qbs.inference.nested.Dynesty()"
        )
    found = np.asarray(posterior.stats["log_likelihood"] if old is None else old, dtype=np.float64)
    if found.shape != posterior.shape:
        raise ValueError(f"old must have shape {posterior.shape}, like the draws, not {found.shape}")
    is_weighted = np.ones(found.shape, bool) if posterior.log_weights is None else posterior.weights > 0
    if count := int(np.sum(~np.isfinite(found[is_weighted]))):
        raise ValueError(
            f"the old log likelihood is NaN or infinite at {count} draws that have a weight: it cannot be "
            "that of this fit"
        )
    return found


def _precision(posterior: Posterior) -> Precision:
    is_single = any(values.dtype == np.float32 for values in posterior.samples.values())
    return "float32" if is_single else "float64"


def _new_log_likelihood(
    posterior: Posterior,
    log_likelihood: Callable | Target | Program,
    name: str,
    data: tuple,
    executor: Any,
    line: ProgressLine,
) -> tuple[np.ndarray, list[str]]:
    """Return the new log likelihoods, shape (num_chains * num_draws,), and what went wrong."""
    count = int(np.prod(posterior.shape))
    names = [name for name in posterior.samples if name not in posterior.derived]
    draws = {
        name: posterior.samples[name].reshape(count, *posterior.samples[name].shape[2:]) for name in names
    }
    compiled = _compiled(log_likelihood, name, data, draws)
    if compiled is None:
        function = log_likelihood.log_likelihood if isinstance(log_likelihood, Target) else log_likelihood
        is_float64 = jnp.result_type(float) == jnp.float64
        order = np.argsort(-posterior.weights.ravel(), kind="stable")
        return _python(BlackBox(function, data, name, is_float64), draws, order, executor, line)
    if executor is not None:
        raise ModelError(
            f"executor= serves likelihoods in plain Python; that of {name!r} is written in JAX and compiled: "
            "it needs none"
        )
    values = np.asarray(compiled, dtype=np.float64)
    invalid = np.flatnonzero(np.isnan(values) | np.isposinf(values))
    if invalid.size:
        first = {name: column[invalid[0]] for name, column in draws.items()}
        raise LikelihoodError(
            f"the log likelihood of {name!r} is {values[invalid[0]]} at {describe(first)}, and NaN or +inf "
            f"at {invalid.size:,} of {count:,} draws"
        )
    return values, []


def _compiled(
    log_likelihood: Callable | Target | Program, name: str, data: tuple, draws: Mapping[str, np.ndarray]
) -> Array | None:
    """Return the log likelihoods of all draws, or `None` where JAX cannot trace the function."""
    given = {name: jnp.asarray(values) for name, values in draws.items()}
    if isinstance(log_likelihood, Program):
        bound = bind(log_likelihood, data)
        _require_model(bound, draws)
        return _scores(bound, given)
    if isinstance(log_likelihood, Target):
        if differing := set(log_likelihood.priors) ^ set(draws):
            raise ModelError(
                f"the parameters of {name!r} and of the fit differ: {', '.join(sorted(differing))}"
            )
        if log_likelihood.in_jax is False:
            return None
        log_likelihood = log_likelihood.log_likelihood
    function = own_constants(log_likelihood)

    def of_one(draw: dict[str, Array]) -> Array:
        value = jnp.asarray(function(draw, *data))
        require_scalar(value.shape, name)
        return value

    first = {name: values[0] for name, values in given.items()}
    try:
        jax.eval_shape(of_one, first)
    except Exception:  # it is not in JAX, or wrong, which a call with numbers tells
        return None
    return jax.jit(lambda draws: jax.lax.map(of_one, draws))(given)


def _require_model(bound: BoundModel, draws: Mapping[str, np.ndarray]) -> None:
    require_latents(bound)
    if differing := set(bound.latent) ^ set(draws):
        raise ModelError(
            f"the latent sites of {bound.name!r} and of the fit differ: {', '.join(sorted(differing))}"
        )
    if not bound.scored:
        raise ModelError(f"the model {bound.name!r} observes nothing: is an obs= argument None?")


@jax.jit
def _scores(bound: BoundModel, draws: dict[str, Array]) -> Array:
    def of_one(draw: dict[str, Array]) -> Array:
        found = walk(bound.program, bound.arrays, jax.random.key(0), draw).log_probs
        return sum((found[name] for name in bound.scored), start=jnp.zeros(()))

    return jax.lax.map(of_one, draws)


def _python(
    likelihood: BlackBox,
    draws: Mapping[str, np.ndarray],
    order: np.ndarray,
    executor: Any,
    line: ProgressLine,
) -> tuple[np.ndarray, list[str]]:
    """Make the calls in an order, so that those that matter most tell first whether too many fail."""
    count = len(next(iter(draws.values())))
    tasks = [{name: np.asarray(values[i])[()] for name, values in draws.items()} for i in range(count)]
    try:
        likelihood(tasks[order[0]])
    except LikelihoodError as error:
        raise LikelihoodError(
            f"{error}. (A NumPyro model is given as a program, qbs.reify(model).)"
        ) from error
    values = np.full(count, -np.inf)

    def keep(place: int, outcome: Outcome) -> None:
        values[order[place]] = outcome.value

    with Caller(likelihood, as_calls(executor), line) as caller:
        caller.make([tasks[i] for i in order], range(count), keep)
    return values, caller.failures.problems


def _ratio_error(posterior: Posterior, log_weights: np.ndarray, log_change: np.ndarray) -> float:
    """Return the standard error of the log of the mean change, by the delta method.

    Args:
        posterior: The draws.
        log_weights: The old normalised log weights.
        log_change: Log of the new over the old normalised weight of each draw.
    """
    change = np.exp(log_change)
    if posterior.log_weights is not None:
        return float(np.sqrt(np.sum((np.exp(log_weights) * (change - 1)) ** 2)))
    if is_constant(change):
        return 0.0
    if change.shape[1] < 4:
        return float(np.std(change) / math.sqrt(change.size))
    from arviz_stats.base import array_stats

    return float(array_stats.mcse(change, method="mean", chain_axis=0, draw_axis=1))


def _tail_problems(k: float | None, num_draws: int) -> list[str]:
    limit = min(1 - 1 / math.log10(max(num_draws, 11)), LARGEST_PARETO_K)
    if k is None or k <= limit:
        return []
    return [
        f"The Pareto k of the new weights is {k:.2f}, above {limit:.2f}: the draws hardly reach the "
        "new posterior, and neither it nor its evidence can be trusted; fit anew."
    ]
