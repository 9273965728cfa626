"""Resample-move: from prior to posterior by one observation after the other, with the evidence on the way."""

from typing import ClassVar

import equinox as eqx
import numpy as np
from jaxtyping import Array

from qbs.errors import ModelError
from qbs.inference.checkpoint import Keeper
from qbs.inference.method import Method
from qbs.inference.problem import Problem, require_continuous
from qbs.inference.progress import ProgressLine
from qbs.inference.results.posterior import Posterior
from qbs.inference.smc.islands import combined_evidence, require_scores
from qbs.inference.smc.travel import require_journey, travel
from qbs.precision import Precision


class ResampleMove(Method):
    """Resample-move: posterior, evidence, and the evidence after each observation, in their order.

    Particles drawn from the prior take in the scores of the program one after the other, such as the steps
    of a scan over the data. When the effective sample size has fallen to `ess` of them, within a score too,
    they are resampled, and moved as in `Tempered`. For static models this is iterated batch importance
    sampling. Continuous sites only; an array of observations in one statement is one score.

    `provenance["log_evidence_by_score"]` has the log evidence of the first score, of the first two, and so
    on: their differences are log predictive densities of each score given those before.

    Attributes:
        num_particles: Number of particles in all; a multiple of `num_islands`. The evidence error falls
            with its square root.
        num_islands: Islands; two or more.
        ess: Effective sample size at which to resample and move, as a share of the particles, in (0, 1).
        max_correlation: Correlation of the log likelihood with its value before the moves at which they end.
        max_rounds: Most rounds of moves at a time; where they are used up, a problem says so.
        chain_length: Waste-free: resample one particle in so many, move it so often but once, and let all
            links of these chains be particles. By default all particles are resampled and moved.
        chunk_size: How many particles to evaluate at a time: less memory. All by default.

    References:
        Gilks & Berzuini (2001), "Following a moving target"; Chopin (2002), "A sequential particle filter
        method for static models"; Dau & Chopin (2022), "Waste-free sequential Monte Carlo".
    """

    precision: ClassVar[Precision | None] = "float64"

    num_particles: int = eqx.field(static=True, default=2048)
    num_islands: int = eqx.field(static=True, default=8)
    ess: float = 0.5
    max_correlation: float = 0.1
    max_rounds: int = eqx.field(static=True, default=500)
    chain_length: int | None = eqx.field(static=True, default=None)
    chunk_size: int | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        require_journey(self)

    def run(self, problem: Problem, key: Array, line: ProgressLine, keeper: Keeper) -> Posterior:
        """Run through the scores; see `Method.run`."""
        num_scores = require_scores(problem, "ResampleMove")
        require_continuous(problem, "ResampleMove")
        if num_scores == 1:
            raise ModelError(
                f"ResampleMove takes in one score after the other, and {problem.name!r} has one: draw the "
                "observations in a scan or a loop, or use method=qbs.inference.smc.Tempered()"
            )
        posterior, here = travel(problem, self, num_scores, key, line, keeper)
        by_score = np.asarray(here.arrays.by_portion)
        posterior.provenance["log_evidence_by_score"] = [combined_evidence(v)[0] for v in by_score.T]
        posterior.provenance["resampled_at"] = list(here.stages)
        return posterior
