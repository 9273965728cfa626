"""The log of the normalizing constant, with its error."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped
from scipy.special import logsumexp

from qbs.errors import LikelihoodError, ModelError
from qbs.inference.fitting import fit
from qbs.inference.results.diagnostics import LARGEST_PARETO_K, kish_ess, pareto_k
from qbs.inference.results.posterior import Posterior
from qbs.inference.smc.tempered import Tempered
from qbs.inference.target import Target
from qbs.inference.unnormalized.densities import Densities
from qbs.inference.unnormalized.noise import Noise

METHODS = ("importance", "smc", "bridge")
NUM_DRAWS = 20_000
_CHUNK = 4096
_FEWEST = 200.0  # effective draws
_ITERATIONS, _TOLERANCE = 1000, 1e-10


class LogPartition(NamedTuple):
    """The log of a normalizing constant.

    Attributes:
        value: In nats.
        error: Its standard error.
        method: How it was found.
        problems: What speaks against it.
    """

    value: float
    error: float
    method: str
    problems: tuple[str, ...] = ()


def log_partition(
    model: Any,
    *,
    method: str = "importance",
    key: Array,
    noise: Noise | None = None,
    num_draws: int = NUM_DRAWS,
) -> LogPartition:
    r"""Return the log of the normalizing constant of a fitted model.

    Args:
        model: What `qbs.fit_unnormalized` returned.
        method: `"importance"`: the mean of the model over the noise, at draws of the noise; `"smc"`: tempered
            sequential Monte Carlo from the noise to the model; `"bridge"`: draws of both, the model's by the
            same way. The last two are for real numbers, and need no noise that covers the model.
        key: A typed JAX key.
        noise: What to draw from; by default the noise that the fit ended with.
        num_draws: Of the noise; for `"smc"`, particles are a fifth as many.

    Raises:
        ValueError: If there is no such method.
        LikelihoodError: If a log density is NaN or `+inf` at a draw.

    References:
        Meng & Wong (1996), "Simulating ratios of normalizing constants via a simple identity"; Del Moral,
        Doucet & Jasra (2006), "Sequential Monte Carlo samplers"; Vehtari, Simpson, Gelman, Yao & Gabry
        (2024), "Pareto smoothed importance sampling", for the diagnostic.
    """
    if method not in METHODS:
        raise ValueError(f"log_partition: method must be one of {', '.join(METHODS)}, not {method!r}")
    noise = model.noise if noise is None else noise
    if method == "importance":
        return mean_of_ratios(noise_ratios(model.densities, model.numbers, noise, key, num_draws))
    sampled = sampled_by_smc(model.densities, model.numbers, noise, key, max(num_draws // 5, 512))
    if method == "smc":
        value, error = sampled.log_evidence, sampled.log_evidence_error
        assert value is not None
        assert error is not None
        return LogPartition(value, error, "smc", tuple(sampled.problems))
    return _by_bridge(model.densities, model.numbers, noise, sampled, key, num_draws)


@eqx.filter_jit
def _log_ratios(
    densities: Densities, numbers: Any, noise: Noise, draws: Shaped[Array, "num_draws ..."]
) -> Float[Array, " num_draws"]:
    return densities(numbers, draws) - noise.log_prob(draws)


@eqx.filter_jit
def _fresh_ratios(densities: Densities, numbers: Any, noise: Noise, key: Array) -> Float[Array, " num_draws"]:
    return _log_ratios(densities, numbers, noise, noise.sample(key, _CHUNK))


def log_ratios(densities: Densities, numbers: Any, noise: Noise, rows: np.ndarray) -> np.ndarray:
    """Return the log density of the model over that of the noise, at rows of any number."""
    parts = []
    for first in range(0, len(rows), _CHUNK):
        part = rows[first : first + _CHUNK]
        padded = np.concatenate([part, np.repeat(part[-1:], -len(part) % _CHUNK, axis=0)])
        parts.append(
            np.asarray(_log_ratios(densities, numbers, noise, jnp.asarray(padded)), float)[: len(part)]
        )
    return _checked(np.concatenate(parts))


def noise_ratios(densities: Densities, numbers: Any, noise: Noise, key: Array, num_draws: int) -> np.ndarray:
    """Return the same at draws of the noise."""
    keys = jax.random.split(key, -(-num_draws // _CHUNK))
    found = [np.asarray(_fresh_ratios(densities, numbers, noise, own), float) for own in keys]
    return _checked(np.concatenate(found)[:num_draws])


def _checked(values: np.ndarray) -> np.ndarray:
    if bad := int(np.sum(np.isnan(values) | np.isposinf(values))):
        raise LikelihoodError(
            f"the log density of the model over that of the noise is NaN or +inf at {bad} of {len(values)} "
            "draws: a log_density that is NaN, or noise that has no density there"
        )
    return values


def mean_of_ratios(ratios: np.ndarray) -> LogPartition:
    """Return the log of the mean of exponentials, and what in their tail speaks against it."""
    if not np.isfinite(ratios).any():
        why = "The density of the model is zero at all draws of the noise."
        return LogPartition(-math.inf, math.inf, "importance", (why,))
    value = float(logsumexp(ratios) - math.log(len(ratios)))
    weights = np.exp(ratios - value)
    error = float(np.std(weights) / math.sqrt(len(weights)))
    size, k, problems = kish_ess(ratios), pareto_k(ratios), []
    if k is not None and k > LARGEST_PARETO_K:
        problems.append(
            f"log Z: the tail of the noise draws' weights is heavy (Pareto k {k:.2f}, at most "
            f"{LARGEST_PARETO_K} is expected): its error is not to be trusted; method='smc' of "
            "log_partition needs no noise that covers the model."
        )
    if size < _FEWEST:
        problems.append(
            f"log Z rests on {size:.0f} effective draws of the noise ({_FEWEST:.0f} are expected)."
        )
    return LogPartition(value, error, "importance", tuple(problems))


def sampled_by_smc(
    densities: Densities, numbers: Any, noise: Noise, key: Array, num_particles: int
) -> Posterior:
    """Return draws of the model and its log Z, by tempering from the noise to it."""
    given = noise.as_distribution()
    if getattr(given, "support", None) is not None and given.support.is_discrete:
        raise ModelError("sampling by 'smc' is for real numbers: the noise is discrete")

    def log_ratio(sites: dict[str, Array]) -> Array:
        row = sites["x"]
        return densities(numbers, row[None])[0] - noise.log_prob(row[None])[0]

    target = Target(log_ratio, {"x": given}, name="model")
    islands = 8
    method = Tempered(num_particles=num_particles // islands * islands)
    return fit(target, method=method, key=key, progress=False)


def _by_bridge(
    densities: Densities, numbers: Any, noise: Noise, sampled: Posterior, key: Array, num_draws: int
) -> LogPartition:
    """Return log Z by the optimal bridge between draws of the noise and of the model."""
    weights = np.ravel(sampled.weights)
    rows = np.reshape(np.asarray(sampled.samples["x"]), (len(weights), *np.shape(sampled.samples["x"])[2:]))
    upper = log_ratios(densities, numbers, noise, rows.astype(np.result_type(jnp.result_type(float))))
    lower = noise_ratios(densities, numbers, noise, jax.random.fold_in(key, 1), num_draws)
    value, error = bridge(lower, upper, weights, float(sampled.ess))
    return LogPartition(value, error, "bridge", tuple(sampled.problems))


def bridge(
    lower: Float[np.ndarray, " num_noise"],
    upper: Float[np.ndarray, " num_model"],
    weights: Float[np.ndarray, " num_model"],
    num_effective: float,
) -> tuple[float, float]:
    """Return log Z, and its standard error, from log ratios of the model and the noise.

    Args:
        lower: At draws of the noise.
        upper: At draws of the model.
        weights: Of the latter, which sum to 1.
        num_effective: How many independent ones they are worth.

    References:
        Meng & Wong (1996), equation 4.1, for the iteration; Frühwirth-Schnatter (2004), "Estimating marginal
        likelihoods for mixture and Markov switching models using bridge sampling techniques", for the error.
    """
    shares = num_effective / (num_effective + len(lower)), len(lower) / (num_effective + len(lower))

    def halves(value: float) -> tuple[np.ndarray, np.ndarray]:
        log_both = [
            np.logaddexp(math.log(shares[0]) + r - value, math.log(shares[1])) for r in (lower, upper)
        ]
        return lower - value - log_both[0], -log_both[1]

    value = float(logsumexp(lower) - math.log(len(lower)))
    for _ in range(_ITERATIONS):
        first, second = halves(value)
        step = float(logsumexp(first) - math.log(len(first)) - logsumexp(second, b=weights))
        value += step
        if abs(step) < _TOLERANCE:
            break
    first, second = (np.exp(half) for half in halves(value))
    mean = float(weights @ second)
    of_noise = float(np.var(first) / np.mean(first) ** 2) / len(first)
    of_model = float(weights @ (second - mean) ** 2) / mean**2 / num_effective
    return value, math.sqrt(of_noise + of_model)
