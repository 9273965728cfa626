"""Monte Carlo errors of means over a posterior: of nested sampling, of importance sampling, of chains."""

import math

import numpy as np
from jaxtyping import Float

from qbs.inference.results.diagnostics import chain_statistics


def mean_error(
    values: Float[np.ndarray, "num_chains num_draws"],
    weights: Float[np.ndarray, "num_chains num_draws"] | None,
    log_likelihoods: Float[np.ndarray, "num_chains num_draws"],
) -> float:
    r"""Return the standard error of a mean over posterior draws.

    Chains: the standard deviation over the root of the effective sample size. Weighted draws:
    \(\sqrt{\sum w_i^2 (f_i - \bar f)^2}\). Draws of nested sampling are told by likelihoods that only rise.
    The logarithm of their volume is a random walk, whose steps have as standard deviation the share \(r_i\)
    of the volume that lies between one draw and the next; that adds \(\sum_i r_i^2 S_i^2\) to the square,
    with \(S_i\) the sum of \(w (f - \bar f)\) from i on.

    Args:
        values: f of each draw.
        weights: Normalised weights; None for chains.
        log_likelihoods: Log likelihood of each draw; -inf only where the weight is zero.

    Returns:
        The error, 0 for values that are all the same.
    """
    if weights is None:
        size = chain_statistics(values, with_mcse=False)["ess_bulk"]
        return float(np.std(values)) / math.sqrt(size if math.isfinite(size) else 1.0)
    counted = weights > 0
    w, f, rising = weights[counted], values[counted], log_likelihoods[counted]
    deviations = w * (f - w @ f)
    variance = float(np.sum(deviations**2))
    if np.all(np.diff(rising) >= 0):
        log_shells = np.log(w) - rising
        log_volumes = np.logaddexp.accumulate(log_shells[::-1])[::-1]
        ahead = np.cumsum(deviations[::-1])[::-1]
        variance += float(np.sum((np.exp(log_shells - log_volumes) * ahead) ** 2))
    return math.sqrt(variance)
