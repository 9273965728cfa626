"""What a sampler on the unit cube has found, and the posterior that it makes."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from qbs.inference.nested.problem import CubeProblem
from qbs.inference.results.posterior import Posterior


class Finished(NamedTuple):
    """What a sampler has found.

    Attributes:
        points: Weighted draws, in the unit cube.
        log_likelihoods: There.
        log_weights: Normalized to a total weight of 1.
        log_evidence: In nats.
        log_evidence_error: Its standard error.
        problems: What a reader must know.
        provenance: How it went.
    """

    points: Float[np.ndarray, "num_draws dim"]
    log_likelihoods: Float[np.ndarray, " num_draws"]
    log_weights: Float[np.ndarray, " num_draws"]
    log_evidence: float
    log_evidence_error: float
    problems: list[str]
    provenance: dict[str, Any]

    def posterior(self, cube: CubeProblem, num_calls: int | None = None, **stats: np.ndarray) -> Posterior:
        """Return draws of the model's sites.

        Args:
            cube: The problem.
            num_calls: Of the likelihood; by default those that the problem counted.
            **stats: Of each draw, besides its log likelihood.
        """
        samples, derived = cube.values(self.points)
        return Posterior(
            samples={name: values[None] for name, values in samples.items()},
            log_weights=self.log_weights[None],
            log_evidence=self.log_evidence,
            log_evidence_error=self.log_evidence_error,
            num_likelihood_calls=cube.num_calls if num_calls is None else num_calls,
            problems=self.problems,
            derived=derived,
            stats={"log_likelihood": self.log_likelihoods[None]}
            | {name: values[None] for name, values in stats.items()},
            provenance=self.provenance,
        )


def cut_short(what: str, num_iterations: int, remaining: float, dlogz: float) -> str:
    """Return the sentence on a run of nested sampling that ended before its time.

    Args:
        what: Ended it.
        num_iterations: Until then.
        remaining: Nats of log evidence that the live points may add.
        dlogz: At which the run would have been over.
    """
    return (
        f"{what} after {num_iterations:,} iterations, with up to {remaining:.2g} nats of log evidence left "
        f"to find (dlogz = {dlogz}): the draws so far are kept here; the evidence counts the live points, "
        "and its error is too small."
    )
