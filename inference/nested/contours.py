r"""Evidence and weights of nested samples, from the bounds above which they were born, and their deaths.

A point is born above a bound on the likelihood, uniformly in the prior volume \(X\) there, and dies at its
own likelihood. Of \(n\) points that are alive when one of them dies, the least likely, the volume shrinks by
a factor distributed as the largest of \(n\) uniform numbers: \(\log X\) falls by \(1/n\) in the mean. Runs of
any kind, and several of them together, are told by births and deaths alone.

References:
    Skilling (2006), "Nested sampling for general Bayesian computation"; Higson, Handley, Hobson & Lasenby
    (2019), "Dynamic nested sampling"; Fowlie, Handley & Su (2021), "Nested sampling with plateaus": points
    that tie die one after the other, and none is born in between.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import logsumexp

_NUM_SIMULATED = 400


class Weighed(NamedTuple):
    """Nested samples with their weights, in the order of their likelihood.

    Attributes:
        order: Of the samples: their numbers.
        num_alive: Points alive when each died.
        log_weights: Normalized to a total weight of 1.
        log_evidence: In nats.
        log_evidence_error: Standard deviation of the log evidence, as volumes are random.
        information: Of the posterior over the prior, in nats.
    """

    order: Int[np.ndarray, " num_samples"]
    num_alive: Int[np.ndarray, " num_samples"]
    log_weights: Float[np.ndarray, " num_samples"]
    log_evidence: float
    log_evidence_error: float
    information: float


def weighed(
    births: Float[np.ndarray, " num_samples"],
    deaths: Float[np.ndarray, " num_samples"],
    *,
    num_possible: int,
    num_impossible: int = 0,
    seed: int = 0,
) -> Weighed:
    """Return weights and evidence of samples.

    Args:
        births: The bound on the log likelihood that each was born above; `-inf` for those of the prior.
        deaths: Their own log likelihoods, which they died at.
        num_possible: Of all draws from the prior with which the run began, those of a positive likelihood.
        num_impossible: Those of likelihood zero, which are not among the samples.
        seed: Of the simulated volumes.
    """
    order = np.argsort(deaths, kind="stable")
    died = deaths[order]
    alive = np.searchsorted(np.sort(births), died, side="left") - np.arange(len(died))
    log_share = np.log(num_possible) - np.log(num_possible + num_impossible)
    log_terms = died + _log_shells(-1.0 / alive) + log_share
    log_evidence = float(logsumexp(log_terms))
    log_weights = log_terms - log_evidence
    rng = np.random.default_rng(seed)
    simulated = np.zeros(_NUM_SIMULATED)
    for number in range(_NUM_SIMULATED):
        shrinkage = np.log(rng.uniform(size=len(died))) / alive
        share = np.log(rng.beta(num_possible, num_impossible)) if num_impossible else 0.0
        simulated[number] = logsumexp(died + _log_shells(shrinkage)) + share
    weights = np.exp(log_weights)
    information = float(np.sum(weights * died) - log_evidence)
    return Weighed(order, alive, log_weights, log_evidence, float(simulated.std()), information)


def _log_shells(log_shrinkages: np.ndarray) -> np.ndarray:
    """Return logs of the volumes between one death and the next; the last has all that is left."""
    before = np.concatenate([[0.0], np.cumsum(log_shrinkages)[:-1]])
    shares = -np.expm1(log_shrinkages)
    shares[-1] = 1.0
    return before + np.log(shares)
