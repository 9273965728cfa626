"""Importance nested sampling: evidence and posterior by mixtures that close in on the posterior."""

import math
from typing import ClassVar, NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float
from scipy.optimize import brentq
from scipy.special import logsumexp

from qbs.inference.checkpoint import Keeper
from qbs.inference.method import Method, require_positive
from qbs.inference.nested.estimate import Estimate
from qbs.inference.nested.known import Known
from qbs.inference.nested.problem import CubeProblem
from qbs.inference.nested.proposals import FreeProposal, around, in_cube, normalized, of_mixture
from qbs.inference.nested.student_mixture import fit_mixture
from qbs.inference.nested.training import depth_of
from qbs.inference.nested.whitening import of_cube
from qbs.inference.problem import Problem
from qbs.inference.progress import Pace, ProgressLine
from qbs.inference.results.diagnostics import kish_ess
from qbs.inference.results.posterior import Posterior
from qbs.inference.seeds import numpy_generator
from qbs.precision import Precision

_MAX_FIRST_DRAWS = {True: 50_000, False: 10_000}  # compiled, Python
_NUM_COMPONENTS = 24
_WIDE_SHARE = 0.2  # of draws from the mixture twice as wide
_ENOUGH = 100  # effective draws for each dimension and one more, for a mixture to be fitted to
_IMPROVEMENT = 1.1  # of the efficiency, for another mixture to be worth a batch
_MOST_LOG_TEMPERATURE = 80.0
_HALF = 0.5


class Importance(Method):
    """Importance nested sampling: draws from a mixture that closed in on the posterior.

    Batches of points are drawn from mixtures of t distributions, each fitted to all points before, weighted
    by the mixture of all proposals: at first to the likelihood to a small power, then to the posterior. Once
    a mixture is no better than the one before, it is kept, and draws from it give the evidence without bias.
    Runs in float64 on the unit cube of the model's priors; for posteriors of some peaks or bends in a few
    dimensions.

    Attributes:
        max_error: Batches are added until the standard error of the log evidence is below this, in nats,
        min_ess: and until the draws have this effective sample size.
        batch_size: Points drawn, and called, together.
        max_calls: Stop after about this many likelihood calls, with the result so far; by default 100,000.

    References:
        Feroz, Hobson, Cameron & Pettitt (2019), "Importance nested sampling and the MultiNest algorithm",
        arXiv:1306.2144; Lange (2023), "nautilus", arXiv:2306.16923; Cornuet, Marin, Mira & Robert (2012),
        "Adaptive multiple importance sampling", arXiv:0907.1254.
    """

    precision: ClassVar[Precision | None] = "float64"

    max_error: float = eqx.field(static=True, default=0.03)
    min_ess: int = eqx.field(static=True, default=1000)
    batch_size: int = eqx.field(static=True, default=200)
    max_calls: int = eqx.field(static=True, default=100_000)

    def __check_init__(self) -> None:
        require_positive(self, "max_error")
        require_positive(self, "min_ess", "batch_size", "max_calls", whole=True)

    def run(self, problem: Problem, key: Array, line: ProgressLine, keeper: Keeper) -> Posterior:
        """Run until the evidence is accurate; see `Method.run`."""
        cube = CubeProblem(problem, keeper)
        with cube.calls.kept():
            return self.explore(cube, key, line)

    def explore(
        self, cube: CubeProblem, key: Array, line: ProgressLine, known: Known | None = None
    ) -> Posterior:
        """Run on the unit cube; see `Method.run`.

        Args:
            cube: The problem.
            key: A typed JAX key.
            line: Where to show progress.
            known: Points where the likelihood is known already, from which the first mixture is made.
        """
        return _Run(self, cube, key, line, known).posterior()


class Population(NamedTuple):
    """Points in the cube and the proposals that they were drawn from.

    Attributes:
        proposals: In order.
        counts: Draws from each, those outside of the cube included.
        points: Those in the cube.
        log_likelihoods: There.
        densities: Log densities of each proposal at all points.
    """

    proposals: tuple[FreeProposal, ...]
    counts: tuple[int, ...]
    points: Float[np.ndarray, "num_points dim"]
    log_likelihoods: Float[np.ndarray, " num_points"]
    densities: Float[np.ndarray, "num_proposals num_points"]

    @property
    def is_any(self) -> bool:
        """Whether any point is possible."""
        return bool(np.isfinite(self.log_likelihoods).any())

    @property
    def log_volumes(self) -> Float[np.ndarray, " num_points"]:
        """Log of the prior's share that each point stands for."""
        return -logsumexp(self.densities, axis=0, b=np.array(self.counts)[:, None])

    @property
    def log_weights(self) -> Float[np.ndarray, " num_points"]:
        """Log of the evidence's share, not normalized: they sum to the evidence."""
        return self.log_likelihoods + self.log_volumes

    def with_batch(
        self, proposal: FreeProposal, count: int, points: np.ndarray, log_likelihoods: np.ndarray
    ) -> "Population":
        """Return this and draws from another proposal."""
        everywhere = np.concatenate([self.points, points])
        values = np.concatenate([self.log_likelihoods, log_likelihoods])
        old = [
            np.concatenate([row, each.log_density(points)])
            for row, each in zip(self.densities, self.proposals, strict=True)
        ]
        if self.proposals and proposal is self.proposals[-1]:
            counts = (*self.counts[:-1], self.counts[-1] + count)
            return Population(self.proposals, counts, everywhere, values, np.array(old))
        return Population(
            (*self.proposals, proposal),
            (*self.counts, count),
            everywhere,
            values,
            np.array([*old, proposal.log_density(everywhere)]),
        )


def no_points(dim: int) -> Population:
    """Return a population of none."""
    return Population((), (), np.zeros((0, dim)), np.zeros(0), np.zeros((0, 0)))


def estimated(population: Population) -> Estimate:
    """Return what a population says of the evidence, and its possible points as draws."""
    weights, total = population.log_weights, sum(population.counts)
    is_possible = np.isfinite(weights)
    log_evidence, error = -math.inf, math.inf
    if is_possible.any():
        log_evidence = float(logsumexp(weights))
        shares = np.exp(weights - log_evidence)  # those outside of the cube are zero
        error = math.sqrt(max(float(np.sum(shares**2)) - 1 / total, 0.0))
    return Estimate(
        log_evidence,
        error,
        population.points[is_possible],
        population.log_likelihoods[is_possible],
        weights[is_possible],
        int(is_possible.sum()),
    )


class _Run:
    """A run of importance nested sampling."""

    def __init__(
        self, method: Importance, cube: CubeProblem, key: Array, line: ProgressLine, known: Known | None
    ):
        self._method, self._cube, self._line, self._known = method, cube, line, known
        self._rng = numpy_generator(key)
        self._found = no_points(cube.dim)  # since the posterior was reached, or so far
        self._pace = Pace()

    def posterior(self) -> Posterior:
        problems: list[str] = []
        is_interrupted = False
        try:
            self._search()
            self._add()
        except KeyboardInterrupt:
            if not self._found.is_any:
                raise
            is_interrupted = True
            problems = [f"Interrupted after {self._cube.num_calls:,} calls: the draws so far are kept here."]
        return self._result(problems, is_interrupted=is_interrupted)

    def _search(self) -> None:
        """Draw batches until mixtures near the posterior get no better."""
        dim = self._cube.dim
        self._proposal = around(of_cube(dim), _WIDE_SHARE)
        if self._known is not None:  # the better ones above all
            falls = (self._known.log_likelihoods - self._known.top) / (0.25 * depth_of(dim))
            self._proposal = self._near(self._known.points, falls)
        temperature, efficiency = math.inf, 0.0
        while True:
            self._draw(temperature)
            if not self._found.is_any:
                if self._cube.num_calls >= _MAX_FIRST_DRAWS[self._cube.is_compiled]:
                    raise self._cube.impossible()
                self._found = no_points(dim)
                continue
            if self._cube.num_calls >= self._method.max_calls:
                return
            before, efficiency = efficiency, self._last_efficiency()
            if temperature == 1 and efficiency < _IMPROVEMENT * before:
                break
            temperature = self._lowest_temperature()
            self._fit(temperature)
        self._found = no_points(dim)

    def _add(self) -> None:
        """Draw batches from the last mixture, which stays as it is: that makes the evidence unbiased."""
        while self._cube.num_calls < self._method.max_calls:
            self._draw(1.0)
            if self._found.is_any and not self._wanting(estimated(self._found)):
                return

    def _last_efficiency(self) -> float:
        """Return how many draws of the last batch were effective, for each."""
        found, (*_, proposal) = self._found, self._found.proposals
        points = found.points[-self._num_inside :]
        log_weights = found.log_likelihoods[-self._num_inside :] - proposal.log_density(points)
        return kish_ess(log_weights) / self._method.batch_size if np.isfinite(log_weights).any() else 0.0

    def _draw(self, temperature: float) -> None:
        count = self._method.batch_size
        points = self._proposal.draw(self._rng, count)
        points = points[in_cube(points)]
        values = self._cube.log_likelihood(points)
        self._num_inside = len(points)
        self._found = self._found.with_batch(self._proposal, count, points, values)
        self._tell(temperature)

    def _lowest_temperature(self) -> float:
        """Return the lowest temperature from 1 up at which enough draws are effective for a mixture."""
        volumes, values = self._found.log_volumes, self._found.log_likelihoods
        enough = min(
            _ENOUGH * (self._cube.dim + 1.0),
            _HALF * kish_ess(np.where(np.isfinite(values), volumes, -np.inf)),
        )

        def excess(log_temperature: float) -> float:
            return kish_ess(volumes + values * math.exp(-log_temperature)) - enough

        if excess(0.0) >= 0:
            return 1.0
        return math.exp(brentq(excess, 0.0, _MOST_LOG_TEMPERATURE, xtol=0.01))

    def _fit(self, temperature: float) -> None:
        """Fit the next mixture to all draws, by their weights at a temperature."""
        found = self._found
        self._proposal = self._near(found.points, found.log_volumes + found.log_likelihoods / temperature)

    def _near(self, points: np.ndarray, log_weights: np.ndarray) -> FreeProposal:
        weights = normalized(log_weights)
        is_any = weights > 0
        mixture = fit_mixture(self._rng, points[is_any], weights[is_any], _NUM_COMPONENTS)
        return of_mixture(mixture, _WIDE_SHARE)

    def _wanting(self, found: Estimate) -> list[str]:
        """Return what the draws so far lack, as plain sentences."""
        return found.lacks(self._method.max_error, self._method.min_ess, "the mixtures")

    def _tell(self, temperature: float) -> None:
        self._pace.note(self._cube.num_calls)
        if not self._line.is_due or not self._found.is_any:
            return
        method, calls = self._method, self._cube.num_calls
        if temperature > 1:
            self._line.update(
                f"closing in on the posterior at temperature {temperature:.3g}, {calls:,} calls"
            )
            return
        found, counted = estimated(self._found), sum(self._found.counts)
        needed = counted * max((found.log_evidence_error / method.max_error) ** 2, method.min_ess / found.ess)
        left = min(max(needed - counted, 0.0), method.max_calls - calls)
        self._line.update(
            f"{calls:,} calls, ln Z {found.log_evidence:.3f} +- {found.log_evidence_error:.2g} (stop at "
            f"{method.max_error:g}), {found.ess:.0f} effective draws (stop at {method.min_ess})",
            calls / (calls + left),
            self._pace.seconds_for(left),
        )

    def _result(self, problems: list[str], *, is_interrupted: bool) -> Posterior:
        if not self._found.is_any:
            raise self._cube.impossible()
        found = estimated(self._found)
        if not is_interrupted:
            problems = self._wanting(found)
        provenance = {
            "exactness": "importance weights by the likelihood at each draw",
            "num_counted_draws": sum(self._found.counts),
            "is_interrupted": is_interrupted,
        }
        return found.finished(problems, provenance).posterior(self._cube)
