"""Posterior and evidence from hundreds of likelihood calls: a surrogate, corrected by the truth."""

import math
from dataclasses import replace
from functools import partial
from typing import ClassVar

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from qbs.inference.checkpoint import Keeper
from qbs.inference.method import Method, require_positive
from qbs.inference.nested.correction import Round, combined, follow, make_round
from qbs.inference.nested.estimate import Estimate
from qbs.inference.nested.gaussian_process import GaussianProcess
from qbs.inference.nested.genetic import Genetic
from qbs.inference.nested.importance import Importance
from qbs.inference.nested.known import Known
from qbs.inference.nested.peaks import hunt
from qbs.inference.nested.problem import CubeProblem
from qbs.inference.nested.proposals import Spread
from qbs.inference.nested.straightening import coordinates
from qbs.inference.nested.surrogate import Surrogate, fit_surrogate
from qbs.inference.nested.training import (
    Stage,
    Trained,
    agreement,
    depth_of,
    first_points,
    train,
)
from qbs.inference.problem import Problem, describe
from qbs.inference.progress import Pace, ProgressLine
from qbs.inference.results.posterior import Posterior
from qbs.inference.seeds import numpy_generator
from qbs.precision import Precision

_MAX_FIRST_DRAWS = {True: 50_000, False: 2_000}  # compiled, Python
_LEAST_EFFICIENCY = 0.3  # effective draws for each, in the rounds that count
_LEAST_AGREEMENT = 0.8  # of a surrogate and the one before, to be drawn from
_MOST_CHECKS = 3  # batches of calls until they do, before a round is made all the same
_MAX_ROUNDS = 16
_FIRST_SHARE = 0.6  # of the draws of others, in the first round
_MOST_PEAKS = 3  # that are learned after the first
_FREE_DRAWS = 20_000, 1_000_000  # at least, at most


class Corrected(Method):
    """Evidence and posterior of a slow likelihood from hundreds of calls, not biased by the surrogate.

    A surrogate is learned from batches of calls until it predicts new ones. Then points are drawn near it in
    rounds, and the truth there corrects it: its evidence, and the weight of each draw. Between rounds the
    surrogate learns from them. Runs in float64 on the unit cube of the model's priors; for posteriors with
    one or a few smooth peaks in up to some ten dimensions.

    Attributes:
        max_error: Rounds are added until the standard error of the log evidence is below this, in nats,
        min_ess: and until the draws have this effective sample size.
        surrogate: What is fitted to what a concave quadratic form leaves: a `GaussianProcess()`, or a
            `NetworkEnsemble()` where calls are too many for one.
        search: A `Genetic()` search to begin with, whose calls the surrogate learns from too; by default
            none, as the surrogate finds the way by itself where there is one peak.
        fallback: What to go on with, from all calls, where the surrogate fails: an `Importance()`; by default
            the result says that it failed.
        batch_size: Calls made at a time while the surrogate is learned.
        round_size: Calls made at a time to correct it.
        max_training: Give up when the surrogate has not learned the likelihood after so many calls, those
            of a search apart; by default 200, and 100 for each dimension.
        max_calls: Stop after about this many likelihood calls, with the result so far; by default, after
            sixteen rounds.

    References:
        Veach & Guibas (1995), "Optimally combining sampling techniques", for the weights; Owen & Zhou (2000),
        "Safe and effective importance sampling", for the control variate.
    """

    precision: ClassVar[Precision | None] = "float64"

    max_error: float = eqx.field(static=True, default=0.03)
    min_ess: int = eqx.field(static=True, default=100)
    surrogate: Surrogate = GaussianProcess()
    search: Genetic | None = None
    fallback: Importance | None = None
    batch_size: int = eqx.field(static=True, default=8)
    round_size: int = eqx.field(static=True, default=40)
    max_training: int | None = eqx.field(static=True, default=None)
    max_calls: int | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        require_positive(self, "max_error")
        require_positive(self, "min_ess", "batch_size", "round_size", whole=True)
        for name in ("max_training", "max_calls"):
            if getattr(self, name) is not None:
                require_positive(self, name, whole=True)
        if self.round_size < 10:
            raise ValueError(f"Corrected: round_size is {self.round_size}; it must be 10 or more")
        if not isinstance(self.surrogate, Surrogate):
            raise ValueError(
                f"Corrected: surrogate must be GaussianProcess() or NetworkEnsemble(), not {self.surrogate!r}"
            )

    def run(self, problem: Problem, key: Array, line: ProgressLine, keeper: Keeper) -> Posterior:
        """Run until the evidence is accurate; see `Method.run`."""
        cube = CubeProblem(problem, keeper)
        with cube.calls.kept():
            return _Run(self, cube, key, line).posterior()


def _least_rounds(dim: int) -> int:
    """Return how many rounds are made at the least, of which the first does not count."""
    return 3 + math.ceil(dim / 5)


class _Run:
    """A run of the corrected surrogate."""

    def __init__(self, method: Corrected, cube: CubeProblem, key: Array, line: ProgressLine):
        self._method, self._cube, self._line = method, cube, line
        self._rng = numpy_generator(key)
        self._search_key, self._fallback_key = jax.random.split(key)
        self._pace = Pace()
        self._rounds: list[Round] = []
        self._estimated: tuple[int, Estimate] | None = None
        self._num_trained = self._num_searched = 0
        self._least_rounds = _least_rounds(cube.dim)

    def posterior(self) -> Posterior:
        problems: list[str] = []
        is_interrupted = False
        try:
            trained, problems = self._learned()
            known = trained.known
            if not problems or self._method.fallback is None:
                known = self._correct(trained)
                problems += self._wanting()
            if problems and self._method.fallback is not None:
                return self._fallen_back(self._method.fallback, known, problems)
        except KeyboardInterrupt:
            if not self._rounds:
                raise
            is_interrupted = True
            problems = [
                f"Interrupted after {len(self._rounds)} rounds: their draws are kept here.",
                *problems,
            ]
        return self._result(problems, is_interrupted=is_interrupted)

    def _fallen_back(self, fallback: Importance, known: Known, reasons: list[str]) -> Posterior:
        found = fallback.explore(self._cube, self._fallback_key, self._line, known)
        return replace(found, provenance=dict(found.provenance) | {"fell_back": reasons})

    def _not_learned(self, trained: Trained) -> str:
        return (
            f"The surrogate had not learned the likelihood after {self._num_trained:,} calls (its last "
            f"error was {trained.error:.2g} nats): the posterior may have more peaks or edges than it can "
            "follow, or other parameters would make it rounder."
        )

    def _another(self, peak: np.ndarray, below: float) -> str:
        where = describe(self._cube.parameters(peak[None])[0])
        return (
            f"There is another peak at {where}, {below:.2g} nats below the top, that the surrogate "
            "does not know of: the evidence may lack its share, and that of others."
        )

    def _learned(self) -> tuple[Trained, list[str]]:
        """Learn the likelihood, and again where another peak is found; return what stays unknown of it."""
        trained = self._trained(self._first())
        for num_peaks in range(_MOST_PEAKS + 1):
            if not trained.is_right:
                return trained, [self._not_learned(trained)]
            known, peak, below = hunt(self._cube.log_likelihood, trained.surrogate, trained.known)
            trained = trained._replace(known=known)
            if peak is None:
                break
            if num_peaks == _MOST_PEAKS:
                return trained, [self._another(peak, below)]
            proposal = trained.proposal.reaching(peak)
            trained = self._trained(known, trained._replace(proposal=proposal))
        return trained, []

    def _trained(self, known: Known, start: Trained | None = None) -> Trained:
        method = self._method
        limit = self._num_searched + (method.max_training or 200 + 100 * self._cube.dim)
        limit = min(limit, method.max_calls or limit)
        trained = train(
            method.surrogate,
            self._cube.log_likelihood,
            self._rng,
            known,
            method.batch_size,
            limit,
            self._tell_stage,
            start,
        )
        self._num_trained = self._cube.num_calls
        return trained

    def _first(self) -> Known:
        """Return points spread over the prior, more of them until enough are possible."""
        dim, count = self._cube.dim, max(6 * self._cube.dim, 16)
        points = first_points(self._rng, dim, count)
        known = Known(points, self._cube.log_likelihood(points))
        if self._method.search is not None:
            searched = self._method.search.search(self._cube.log_likelihood, dim, self._search_key)
            self._num_searched = len(searched[0])
            known = known.with_new(*searched)
        while np.isfinite(known.log_likelihoods).sum() < dim + 2:
            if (
                self._cube.num_finite == 0
                and self._cube.num_calls >= _MAX_FIRST_DRAWS[self._cube.is_compiled]
            ):
                raise self._cube.impossible()
            points = self._rng.uniform(1e-12, 1, size=(len(known.points), dim))
            known = known.with_new(points, self._cube.log_likelihood(points))
        return known

    def _correct(self, trained: Trained) -> Known:
        """Make rounds until the evidence is accurate, or calls run out; return all points."""
        method, rng, cube = self._method, self._rng, self._cube
        limit = method.max_calls or self._num_trained + _MAX_ROUNDS * method.round_size
        num_free = int(np.clip(16 / method.max_error**2, *_FREE_DRAWS))
        fit = partial(fit_surrogate, method.surrogate, depth=depth_of(cube.dim))
        known, surrogate, free, space = trained.known, trained.surrogate, trained.proposal, trained.whitening
        agrees, num_checks = True, 0
        while not self._rounds or (cube.num_calls < limit and self._wanting()):
            before, surrogate = surrogate, fit(*known, space, before=surrogate if agrees else None)
            near, drawn = follow(rng, surrogate, free)
            agrees = not self._rounds or agreement(before, surrogate, drawn) > _LEAST_AGREEMENT
            if not agrees and num_checks < _MOST_CHECKS:
                num_checks += 1
                points = drawn.chosen(rng, method.batch_size)
                known = known.with_new(points, cube.log_likelihood(points))
                continue
            num_checks = 0
            if drawn.is_enough:
                space = coordinates(drawn, known, depth_of(cube.dim))
                free = near._replace(spread=Spread(space))
            size = method.round_size if self._rounds else math.ceil(_FIRST_SHARE * method.round_size)
            made = make_round(cube.log_likelihood, rng, surrogate, free, size, num_free)
            self._rounds.append(made)
            known = known.with_new(*Known(made.points, made.log_likelihoods).possible)
            self._tell_round(limit)
        return known

    @property
    def _counted(self) -> list[Round]:
        """The rounds but the first, made while least was known: of its draws no evidence is taken."""
        return self._rounds[1:] or self._rounds

    def _estimate(self) -> Estimate:
        """Return what the counted rounds say, computed once for each number of them."""
        if self._estimated is None or self._estimated[0] != len(self._rounds):
            self._estimated = len(self._rounds), combined(self._rounds, self._counted)
        return self._estimated[1]

    def _wanting(self) -> list[str]:
        """Return what the rounds so far lack, as plain sentences."""
        method = self._method
        if len(self._rounds) < self._least_rounds:
            return [f"Only {len(self._rounds)} of at least {self._least_rounds} rounds were made."]
        lacks = self._estimate().lacks(method.max_error, method.min_ess, "the surrogate")
        efficiency = min(each.efficiency for each in self._rounds[-2:])
        if efficiency < _LEAST_EFFICIENCY:
            lacks.append(
                f"Of the draws of a round only {efficiency:.0%} were effective (at least "
                f"{_LEAST_EFFICIENCY:.0%} are expected): the surrogate is not near the posterior."
            )
        return lacks

    def _result(self, problems: list[str], *, is_interrupted: bool) -> Posterior:
        found = self._estimate()
        if not len(found.points):
            raise self._cube.impossible()
        provenance = {
            "exactness": "a surrogate, corrected by the likelihood at each draw",
            "num_training_calls": self._num_trained,
            "num_rounds": len(self._rounds),
            "is_interrupted": is_interrupted,
        }
        min_ess = float(min(100, self._method.min_ess))
        return found.finished(problems, provenance, min_ess).posterior(self._cube)

    def _tell_stage(self, stage: Stage) -> None:
        calls = self._cube.num_calls
        self._pace.note(calls)
        expected = max(40 * self._cube.dim, calls + 4 * self._method.batch_size) + self._least_rounds * (
            self._method.round_size
        )
        where = "" if stage.temperature == 1 else f" at temperature {stage.temperature:.3g}"
        self._line.update(
            f"learning the likelihood{where}: {calls:,} calls, the last predicted to {stage.error:.2g} nats",
            calls / expected,
            self._pace.seconds_for(expected - calls),
        )

    def _tell_round(self, limit: int) -> None:
        if not self._line.is_due:
            return
        calls, method, size = self._cube.num_calls, self._method, self._method.round_size
        self._pace.note(calls)
        found = self._estimate()
        num_counted = len(self._counted)
        needed = max(
            num_counted * (found.log_evidence_error / method.max_error) ** 2,
            len(self._rounds) * method.min_ess / max(found.ess, 1.0) - 1,
            self._least_rounds - 1,
        )
        left = min(size * max(math.ceil(needed) + 1 - len(self._rounds), 0), max(limit - calls, 0))
        self._line.update(
            f"round {len(self._rounds)}, {calls:,} calls, ln Z {found.log_evidence:.3f} +- "
            f"{found.log_evidence_error:.2g} (stop at {method.max_error:g}), "
            f"{found.ess:.0f} effective draws (stop at {method.min_ess})",
            calls / (calls + left),
            self._pace.seconds_for(left),
        )
