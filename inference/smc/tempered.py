"""Tempered sequential Monte Carlo: from prior to posterior by powers of the likelihood, with evidence."""

from typing import ClassVar

import equinox as eqx
from jaxtyping import Array

from qbs.inference.checkpoint import Keeper
from qbs.inference.method import Method
from qbs.inference.problem import Problem, require_continuous
from qbs.inference.progress import ProgressLine
from qbs.inference.results.posterior import Posterior
from qbs.inference.smc.travel import require_journey, travel
from qbs.precision import Precision


class Tempered(Method):
    r"""Tempered sequential Monte Carlo: posterior and evidence of any model with continuous sites.

    Particles drawn from the prior follow the densities \(p(\theta) L(\theta)^\beta\) from \(\beta = 0\)
    to 1. Each next \(\beta\) is chosen such that the effective sample size of the reweighting is `ess` of the
    particles, or more where their weights have a heavy tail; they are resampled, and moved until what they
    remember of their likelihood, as a correlation over the particles, is below `max_correlation` or, where
    that is slow and nothing drifts, its square root. Moves need no tuning: see `qbs.inference.smc.moves`. The
    particles are split into islands that are resampled apart, and the spread of their evidences is the error.

    Attributes:
        num_particles: Number of particles in all; a multiple of `num_islands`. The evidence error falls
            with its square root.
        num_islands: Islands; two or more.
        ess: Effective sample size of a reweighting, as a share of the particles, in (0, 1).
        max_correlation: Correlation of the log likelihood with its value before the moves at which they end.
        max_rounds: Most rounds of moves at a temperature; where they are used up, a problem says so.
        chain_length: Waste-free: resample one particle in so many, move it so often but once, and let all
            links of these chains be particles. By default all particles are resampled and moved.
        chunk_size: How many particles to evaluate at a time: less memory. All by default.

    References:
        Del Moral, Doucet & Jasra (2006), "Sequential Monte Carlo samplers"; Jasra et al. (2011), "Inference
        for Levy-driven stochastic volatility models via adaptive sequential Monte Carlo", for the
        temperatures; Zhou, Johansen & Aston (2016), "Toward automatic model comparison", for the evidence;
        Dau & Chopin (2022), "Waste-free sequential Monte Carlo"; Hill (1975), "A simple general approach to
        inference about the tail of a distribution".
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
        """Run through the temperatures; see `Method.run`."""
        require_continuous(problem, "Tempered")
        posterior, here = travel(problem, self, 1, key, line, keeper)
        posterior.provenance["temperatures"] = list(here.stages)
        return posterior
