"""Evidence and weighted draws by importance sampling, and what they lack."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from qbs.inference.nested.finished import Finished
from qbs.inference.results.diagnostics import LARGEST_PARETO_K, kish_ess, pareto_k, weight_problems

_LARGEST_SHARE = 0.1  # of one draw
_HALF = 0.5  # where more of the draws are effective, a tail has no weight


class Estimate(NamedTuple):
    """What draws from proposals say.

    Attributes:
        log_evidence: In nats; `-inf` where nothing was found.
        log_evidence_error: Its standard error.
        points: In the unit cube, those that are possible.
        log_likelihoods: There.
        log_weights: Not normalized.
        num_draws: That the effective ones are a share of.
    """

    log_evidence: float
    log_evidence_error: float
    points: Float[np.ndarray, "num_possible dim"]
    log_likelihoods: Float[np.ndarray, " num_possible"]
    log_weights: Float[np.ndarray, " num_possible"]
    num_draws: int

    @property
    def ess(self) -> float:
        """Effective sample size of the draws."""
        return kish_ess(self.log_weights) if len(self.log_weights) else 0.0

    def lacks(self, max_error: float, min_ess: int, proposer: str) -> list[str]:
        """Return what is missing to a result, as plain sentences.

        Args:
            max_error: That the standard error of the log evidence may have, in nats.
            min_ess: That the effective sample size must have.
            proposer: What the proposals are made by, as the beginning of a sentence.
        """
        found = []
        if not self.log_evidence_error <= max_error:
            found.append(
                f"The standard error of the log evidence is {self.log_evidence_error:.2g}, above max_error "
                f"= {max_error:g}."
            )
        if self.ess < min_ess:
            found.append(f"The effective sample size is {self.ess:.0f}, below min_ess = {min_ess}.")
        if len(self.log_weights):
            share = float(np.exp(np.max(self.log_weights) - logsumexp(self.log_weights)))
            if share > _LARGEST_SHARE:
                found.append(f"One draw has {share:.0%} of the weight: {proposer} missed what it stands for.")
        return found

    def finished(self, problems: list[str], provenance: dict[str, Any], min_ess: float = 100.0) -> Finished:
        """Return the result, with what in the weights speaks against it.

        Args:
            problems: That are known.
            provenance: How it went.
            min_ess: Below which means and quantiles are said to be rough.
        """
        k = pareto_k(self.log_weights)
        tail = []
        if k is not None and k > LARGEST_PARETO_K and self.ess < _HALF * self.num_draws:
            tail.append(
                f"The tail of the weights is heavy (Pareto k {k:.2f}, at most {LARGEST_PARETO_K:g} is "
                "expected): the error of the evidence may be too small."
            )
        return Finished(
            self.points,
            self.log_likelihoods,
            self.log_weights - logsumexp(self.log_weights),
            self.log_evidence,
            self.log_evidence_error,
            [*problems, *tail, *weight_problems(self.log_weights, min_ess=min_ess)],
            provenance,
        )
