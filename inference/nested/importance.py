"""Importance nested sampling: evidence and posterior by mixtures that close in on the posterior."""

import math
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float
from scipy.optimize import brentq
from scipy.special import logsumexp

from qbs.inference.checkpoint import Keeper
from qbs.inference.method import Method, require_positive
from qbs.inference.nested.problem import CubeProblem
from qbs.inference.nested.proposals import FreeProposal, around, in_cube
from qbs.inference.nested.student_mixture import fit_mixture
from qbs.inference.nested.training import Known, depth_of
from qbs.inference.nested.whitening import of_cube
from qbs.inference.problem import Problem
from qbs.inference.progress import Pace, ProgressLine
from qbs.inference.results.diagnostics import LARGEST_PARETO_K, kish_ess, pareto_k, weight_problems
from qbs.inference.results.posterior import Posterior
from qbs.precision import Precision

_MAX_FIRST_DRAWS = {True: 50_000, False: 10_000}  # compiled, Python
_NUM_COMPONENTS = 24
_ENOUGH = 100  # effective draws for each dimension and one more, for a mixture to be fitted to
_IMPROVEMENT = 1.1  # of the efficiency, for another mixture to be worth a batch
_MOST_LOG_TEMPERATURE = 80.0
_HALF = 0.5
_LARGEST_SHARE = 0.1


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


def log_evidence_and_error(population: Population) -> tuple[float, float]:
    """Return the log evidence and its standard error; infinite where nothing was found."""
    weights, total = population.log_weights, sum(population.counts)
    if not np.isfinite(weights).any():
        return -math.inf, math.inf
    log_evidence = float(logsumexp(weights))
    shares = np.exp(weights - log_evidence)  # those outside of the cube are zero
    variance = float(np.sum(shares**2)) - 1 / total
    return log_evidence, math.sqrt(max(variance, 0.0))


class _Run:
    """A run of importance nested sampling."""

    def __init__(
        self, method: Importance, cube: CubeProblem, key: Array, line: ProgressLine, known: Known | None
    ):
        self._method, self._cube, self._line, self._known = method, cube, line, known
        self._rng = np.random.default_rng(
            [int(word) for word in np.ravel(np.asarray(jax.random.key_data(key)))]
        )
        self._found = no_points(cube.dim)  # since the posterior was reached, or so far
        self._pace = Pace()

    def posterior(self) -> Posterior:
        problems: list[str] = []
        is_interrupted = False
        try:
            self._search()
            self._add()
        except KeyboardInterrupt:
            if not np.isfinite(self._found.log_likelihoods).any():
                raise
            is_interrupted = True
            problems = [f"Interrupted after {self._cube.num_calls:,} calls: the draws so far are kept here."]
        return self._result(problems, is_interrupted=is_interrupted)

    def _search(self) -> None:
        """Draw batches until mixtures near the posterior get no better."""
        dim = self._cube.dim
        self._proposal = around(of_cube(dim)) if self._known is None else self._near(self._known)
        temperature, efficiency = math.inf, 0.0
        while True:
            self._draw(temperature)
            if not np.isfinite(self._found.log_likelihoods).any():
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
            if np.isfinite(self._found.log_likelihoods).any() and not self._wanting():
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
        log_weights = self._found.log_volumes + self._found.log_likelihoods / temperature
        weights = np.exp(log_weights - logsumexp(log_weights))
        is_any = weights > 0
        mixture = fit_mixture(self._rng, self._found.points[is_any], weights[is_any], _NUM_COMPONENTS)
        self._proposal = FreeProposal(mixture)

    def _near(self, known: Known) -> FreeProposal:
        """Return a mixture near known points, the better ones above all."""
        log_weights = (known.log_likelihoods - known.top) / (0.25 * depth_of(self._cube.dim))
        weights = np.exp(log_weights - logsumexp(log_weights))
        is_any = weights > 0
        return FreeProposal(fit_mixture(self._rng, known.points[is_any], weights[is_any], _NUM_COMPONENTS))

    def _wanting(self) -> list[str]:
        """Return what the draws so far lack, as plain sentences."""
        method = self._method
        _, error = log_evidence_and_error(self._found)
        weights, lacks = self._found.log_weights, []
        if not error <= method.max_error:
            lacks.append(
                f"The standard error of the log evidence is {error:.2g}, above max_error = "
                f"{method.max_error:g}."
            )
        if (ess := kish_ess(weights)) < method.min_ess:
            lacks.append(f"The effective sample size is {ess:.0f}, below min_ess = {method.min_ess}.")
        share = float(np.exp(weights.max() - logsumexp(weights)))
        if share > _LARGEST_SHARE:
            lacks.append(f"One draw has {share:.0%} of the weight: the mixtures missed what it stands for.")
        return lacks

    def _tell(self, temperature: float) -> None:
        self._pace.note(self._cube.num_calls)
        if not self._line.is_due or not np.isfinite(self._found.log_likelihoods).any():
            return
        method, calls = self._method, self._cube.num_calls
        if temperature > 1:
            self._line.update(
                f"closing in on the posterior at temperature {temperature:.3g}, {calls:,} calls"
            )
            return
        log_evidence, error = log_evidence_and_error(self._found)
        ess, counted = kish_ess(self._found.log_weights), sum(self._found.counts)
        needed = counted * max((error / method.max_error) ** 2, method.min_ess / ess)
        left = min(max(needed - counted, 0.0), method.max_calls - calls)
        self._line.update(
            f"{calls:,} calls, ln Z {log_evidence:.3f} +- {error:.2g} (stop at {method.max_error:g}), "
            f"{ess:.0f} effective draws (stop at {method.min_ess})",
            calls / (calls + left),
            self._pace.seconds_for(left),
        )

    def _result(self, problems: list[str], *, is_interrupted: bool) -> Posterior:
        is_possible = np.isfinite(self._found.log_likelihoods)
        if not is_possible.any():
            raise self._cube.impossible()
        if not is_interrupted:
            problems = [*problems, *self._wanting()]
        weights = self._found.log_weights[is_possible]
        log_evidence, error = log_evidence_and_error(self._found)
        k = pareto_k(weights)
        if k is not None and k > LARGEST_PARETO_K and kish_ess(weights) < _HALF * len(weights):
            problems.append(
                f"The tail of the weights is heavy (Pareto k {k:.2f}, at most {LARGEST_PARETO_K:g} is "
                "expected): the error of the evidence may be too small."
            )
        problems += weight_problems(weights)
        samples, derived = self._cube.values(self._found.points[is_possible])
        return Posterior(
            samples={name: values[None] for name, values in samples.items()},
            log_weights=(weights - logsumexp(weights))[None],
            log_evidence=log_evidence,
            log_evidence_error=error,
            num_likelihood_calls=self._cube.num_calls,
            problems=problems,
            derived=derived,
            stats={"log_likelihood": self._found.log_likelihoods[is_possible][None]},
            provenance={
                "exactness": "importance weights by the likelihood at each draw",
                "num_counted_draws": sum(self._found.counts),
                "is_interrupted": is_interrupted,
            },
        )
