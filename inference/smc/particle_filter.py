"""The particle filter as a method: islands of `population`, with evidence and whole paths."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import numpyro.distributions as dist
from jaxtyping import Array

import qbs.semantics.run as semantics
from qbs.effects import sample, unused
from qbs.inference.binding import BoundModel
from qbs.inference.checkpoint import Keeper
from qbs.inference.method import Method, require_positive
from qbs.inference.problem import Problem
from qbs.inference.progress import ProgressLine
from qbs.inference.results.posterior import Posterior
from qbs.inference.smc.islands import (
    combined_evidence,
    effective_number,
    island_problems,
    path_log_weights,
    require_scores,
    run_islands,
)
from qbs.inference.smc.settings import require_islands, require_threshold
from qbs.inference.transform.population import population
from qbs.inference.transform.replay import traced
from qbs.inference.transform.resampling import SCHEMES
from qbs.inference.transform.rolling import rolled
from qbs.jaxprs import all_names, find_sites
from qbs.precision import Precision
from qbs.program import Program
from qbs.semantics.run import Weighted

MIN_ANCESTORS = 100  # effective number of distinct ancestors, as of draws elsewhere
_REMEDY = "use more particles"


class ParticleFilter(Method):
    """The particle filter: evidence and paths of the states of a time series.

    For models with nothing unknown but states, which are drawn step by step between the observations. Runs
    independent islands, each a `qbs.population` of the model, in float64; their spread is the error of the
    evidence. Draws are whole paths, a chain for each island, weighted by its evidence.

    Attributes:
        num_particles: Particles of each island.
        num_islands: Independent runs; two or more. The evidence error falls with the product of both.
        resample: `"multinomial"`, `"stratified"`, `"systematic"`, `"residual"` or `"ssp"`.
        threshold: Resample when the effective sample size is below this share of the particles, in [0, 1].
        num_paths: Paths returned by each island.

    References:
        Gordon, Salmond & Smith (1993), "Novel approach to nonlinear/non-Gaussian Bayesian state estimation";
        Chopin & Papaspiliopoulos (2020), "An introduction to sequential Monte Carlo", chapter 10.
    """

    precision: ClassVar[Precision | None] = "float64"

    num_particles: int = eqx.field(static=True, default=1000)
    num_islands: int = eqx.field(static=True, default=8)
    resample: str = eqx.field(static=True, default="systematic")
    threshold: float = eqx.field(static=True, default=0.5)
    num_paths: int = eqx.field(static=True, default=100)

    def __check_init__(self) -> None:
        require_positive(self, "num_particles", "num_islands", "num_paths", whole=True)
        require_islands(self)
        require_threshold(self)
        if self.resample not in SCHEMES:
            raise ValueError(
                f"ParticleFilter: resample must be one of {', '.join(SCHEMES)}, not {self.resample!r}"
            )

    def run(self, problem: Problem, key: Array, line: ProgressLine, keeper: Keeper) -> Posterior:
        """Run all islands; see `Method.run`."""
        num_scores = require_scores(problem, "ParticleFilter")
        bound = problem.bound
        keys = jax.random.split(key, self.num_islands)
        islands = run_islands(problem, keys, line, keeper, lambda own: _run_island(self, bound, own))
        log_weights = path_log_weights(islands.log_evidences, self.num_paths)
        log_evidence, error = combined_evidence(islands.log_evidences)
        samples, derived = problem.in_order(islands.trace)
        problems = island_problems(islands, self.num_islands, _REMEDY)
        problems += _degeneracy(bound, effective_number(islands.labels, log_weights))
        num_islands = len(islands.log_evidences)
        return Posterior(
            samples=samples,
            log_weights=log_weights,
            log_evidence=log_evidence,
            log_evidence_error=error,
            num_likelihood_calls=num_islands * self.num_particles * num_scores,
            problems=problems,
            derived=derived,
            provenance={
                "is_interrupted": islands.is_interrupted,
                "log_evidence_of_islands": islands.log_evidences.tolist(),
            },
        )


@eqx.filter_jit
def _run_island(method: ParticleFilter, bound: BoundModel, key: Array) -> Weighted:
    particles = population(
        _labelled(traced(bound.program)),
        method.num_particles,
        resample=method.resample,
        threshold=method.threshold,
        num_returned=method.num_paths,
    )
    return semantics.run(Program(lambda *args: particles(*args).value, bound.name))(key, *bound.arrays)


def _labelled(program: Program) -> Program:
    """Return the program whose value is a label of the run and the trace.

    Particles with the same label descend from one that started.
    """

    def run_all(*args: Any) -> Any:
        taken = all_names(program.stage(*args).jaxpr)
        label = sample(unused("label", taken), dist.Uniform())
        return label, program(*args)[1]

    return Program(run_all, program.name)


def _degeneracy(bound: BoundModel, num_ancestors: float) -> list[str]:
    """Say where the first sites of the paths have too few distinct values."""
    staged = rolled(bound.program.stage(*bound.arrays), None).staged
    sites = find_sites(staged.jaxpr)
    static = [name for name, site in sites.items() if site.num_scans == 0]
    found = []
    if len(static) == len(sites):
        found.append(
            f"The parameters {', '.join(map(repr, static))} are drawn from the prior once and never moved: "
            f"this is importance sampling, with {num_ancestors:.0f} effective draws."
        )
    elif num_ancestors < MIN_ANCESTORS:
        found.append(
            f"The early states come from only {num_ancestors:.0f} distinct ancestors: means over them are "
            "rough, those over the last states and the evidence are not; use ParticleGibbs or more particles."
        )
        if static:
            found.append(
                f"{', '.join(map(repr, static))} is drawn once, outside of the scan, and never moved: if "
                "it is a parameter, use PMMH, SMC2 or ParticleGibbs."
            )
    return found
