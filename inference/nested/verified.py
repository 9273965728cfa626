"""Nested sampling in which a surrogate proposes new points, and the likelihood decides on each."""

import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from qbs.inference.checkpoint import Keeper
from qbs.inference.method import Method, require_positive
from qbs.inference.nested.constrained import Walks
from qbs.inference.nested.gaussian_process import GaussianProcess
from qbs.inference.nested.learned_bound import (
    LearnedBound,
    heights_above,
    instructive,
    learn_bound,
    wander,
)
from qbs.inference.nested.live_points import Live, Vacancies
from qbs.inference.nested.passes import Block, iteration, pattern_of, python_walks, require_batch
from qbs.inference.nested.problem import CubeProblem
from qbs.inference.nested.shrinking import Goals, Run
from qbs.inference.nested.surrogate import Surrogate
from qbs.inference.problem import Problem
from qbs.inference.progress import ProgressLine
from qbs.inference.results.posterior import Posterior
from qbs.precision import Precision

_MOST_FITTED = 384  # points
_MEMORY = 20  # times as many, of the last calls, are looked at
_CHOOSE_EVERY = 8  # fits, anew, the settings of the surrogate
_DUPLICATES = 0.05  # share of new points that may be where the walk began
_MOST_PROPOSALS = 30  # for each point
_LEAST_ACCEPTANCE = 0.1  # or the surrogate is not used for a while
_EXPECTED_ACCEPTANCE, _EXPECTED_FROM = 0.3, 10.0  # of a surrogate that was not tried, as if of so many
_FORGETTING = 0.8  # of earlier proposals, an iteration
_MOST_PATIENCE = 8  # times the interval of fits
_NUM_ERRORS = 200  # of predictions, which tau is taken from
_TAUS = 0.02, 1.0  # at least, at most, in units of the heights
_DOUBTFUL_DUPLICATES = 0.2


class Verified(Method):
    """Nested sampling in which a surrogate proposes and the likelihood decides: exact, with fewer calls.

    The nested sampling of `Slice`, where only the way to a new point differs: a walk of many steps on a
    surrogate of the likelihood, which cost nothing, ends with one call of the likelihood. The end is taken
    where it is above the bound, and with the probability that makes up for the surrogate's error. A surrogate
    that is wrong makes the run slower, and its evidence no worse. Runs in float64 on the unit cube of the
    model's priors; calls are made a batch at a time, which an `executor` of `qbs.fit` shares out.

    Attributes:
        num_live: Live points. The evidence error falls as `1 / sqrt(num_live)`, the cost grows with it.
        batch: Points replaced at a time; by default a tenth of the live points.
        dlogz: Stop when the live points can add less than this to the log evidence, in nats.
        surrogate: What is fitted to what a concave quadratic form leaves.
        tau: How much below the bound, in nats, walks on the surrogate may go; by default it follows from the
            surrogate's last errors.
        num_steps: Of a walk on the surrogate; by default twenty for each dimension.
        num_proposals: Such walks for each new point, one after the other, with one call each. There are more
            where many are refused.
        max_calls: Stop after about this many likelihood calls, with the result so far; no limit by default.

    References:
        Skilling (2006), "Nested sampling for general Bayesian computation"; Christen & Fox (2005), "Markov
        chain Monte Carlo using an approximation", for walks whose end the likelihood decides on.
    """

    precision: ClassVar[Precision | None] = "float64"

    num_live: int = eqx.field(static=True, default=200)
    batch: int | None = eqx.field(static=True, default=None)
    dlogz: float = eqx.field(static=True, default=0.01)
    surrogate: Surrogate = GaussianProcess()
    tau: float | None = eqx.field(static=True, default=None)
    num_steps: int | None = eqx.field(static=True, default=None)
    num_proposals: int = eqx.field(static=True, default=3)
    max_calls: int | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        require_positive(self, "dlogz", *(["tau"] if self.tau is not None else []))
        require_positive(self, "num_live", "num_proposals", whole=True)
        for name in ("batch", "num_steps", "max_calls"):
            if getattr(self, name) is not None:
                require_positive(self, name, whole=True)
        if self.num_proposals > _MOST_PROPOSALS:
            raise ValueError(
                f"Verified: num_proposals is {self.num_proposals}; it must be at most {_MOST_PROPOSALS}"
            )
        require_batch(self)
        if not isinstance(self.surrogate, Surrogate):
            raise ValueError(f"Verified: surrogate must be GaussianProcess(), not {self.surrogate!r}")

    def run(self, problem: Problem, key: Array, line: ProgressLine, keeper: Keeper) -> Posterior:
        """Run until the evidence is accurate; see `Method.run`."""
        cube = CubeProblem(problem, keeper)
        goals = Goals(self.num_live, self.dlogz, self.max_calls)
        return Run(goals, cube, _Proposals(self, cube), key, line, keeper).posterior()


class _Proposals:
    """Finds new points by walks on a surrogate, each with one call at its end; see `shrinking.Finder`."""

    is_compiled = False

    def __init__(self, method: Verified, cube: CubeProblem):
        self._method, self._cube = method, cube
        self.remedy = f"num_proposals, now {method.num_proposals}"
        self._pattern = pattern_of(method, cube.dim)  # the steps are those of slices, without a surrogate
        self._num_steps = 20 * cube.dim if method.num_steps is None else method.num_steps
        self._interval = max(method.num_live // 4, 1)
        self._num_fitted = min(max(2 * method.num_live, 64), _MOST_FITTED)
        self._points, self._values = np.zeros((0, cube.dim)), np.zeros(0)  # of the last calls
        self._learned: LearnedBound | None = None
        self._num_fits = self._num_since = 0  # fits; new points since the last
        self._left_plain, self._patience = 0, 1  # new points to be found without the surrogate
        self._errors = np.zeros(0)
        self._expect()
        self._num_proposed = self._num_taken = 0
        self._num_new = self._num_duplicates = self._num_plain = 0

    def advanced(self, key: Array, live: Live, _length: int) -> tuple[Live, Block]:
        if self._left_plain > 0:
            found = iteration(self._by_slices, key, live, self._pattern)
            if self._left_plain <= 0:
                self._learned = None
            return found
        if self._learned is None or self._num_since >= self._interval:
            self._learn(live)
        after, block = iteration(self._by_proposals, key, live, self._pattern)
        self._review()
        # The length of the slices is not adapted to walks that have none.
        return after._replace(width=live.width), block

    def spread(self, key: Array, live: Live) -> tuple[Live, Block]:
        raise NotImplementedError("Verified makes one pass")

    def problems(self) -> list[str]:
        share = self._num_duplicates / max(self._num_new, 1)
        if share <= _DOUBTFUL_DUPLICATES:
            return []
        return [
            f"{share:.0%} of the new points are where their walks began (at most {_DOUBTFUL_DUPLICATES:.0%} "
            "are expected): the surrogate is far from the likelihood, and the error of the evidence may be "
            "too small. Raise num_proposals, or use Slice."
        ]

    def provenance(self) -> dict[str, Any]:
        return {
            "exactness": "true likelihood above every bound; the surrogate only proposes",
            "acceptance": self._num_taken / max(self._num_proposed, 1),
            "share_of_duplicates": self._num_duplicates / max(self._num_new, 1),
            "share_without_surrogate": self._num_plain / max(self._num_new, 1),
            "num_surrogate_fits": self._num_fits,
        }

    def _expect(self) -> None:
        """Forget how proposals were received."""
        self._tried, self._taken = _EXPECTED_FROM, _EXPECTED_FROM * _EXPECTED_ACCEPTANCE

    @property
    def _acceptance(self) -> float:
        return self._taken / self._tried

    def _evaluate(self, points: np.ndarray) -> np.ndarray:
        """Return log likelihoods, and remember them."""
        parts, start = [], 0
        while start < len(points):
            left = len(points) - start
            # Compiled likelihoods are compiled for few sizes of a batch.
            size = 1 << (left.bit_length() - 1) if self._cube.is_compiled else left
            parts.append(self._cube.log_likelihood(points[start : start + size]))
            start += size
        values = np.concatenate([*parts, np.zeros(0)])
        most = _MEMORY * self._num_fitted
        self._points = np.concatenate([self._points, points])[-most:]
        self._values = np.concatenate([self._values, values])[-most:]
        return values

    def _learn(self, live: Live) -> None:
        """Fit the surrogate to the calls so far, for the bound that is next."""
        is_alive = np.asarray(live.is_alive)
        points, values = np.asarray(live.points)[is_alive], np.asarray(live.log_likelihoods)[is_alive]
        if not len(self._points):
            self._points, self._values = points, values
        place = min(self._pattern.batch, len(values)) - 1
        bound = max(float(np.partition(values, place)[place]), float(live.bound))
        chosen = instructive(self._values, bound, self._num_fitted)
        before = self._learned if self._num_fits % _CHOOSE_EVERY else None
        self._learned = learn_bound(
            self._method.surrogate,
            self._points[chosen],
            self._values[chosen],
            heights_above(bound, values),
            points,
            before,
        )
        self._num_fits += 1
        self._num_since = 0

    def _by_slices(self, of_course: Array, of_walks: Array, live: Live, vacant: Vacancies) -> Walks:
        walks = python_walks(self._evaluate, self._pattern, of_course, of_walks, live, vacant)
        count = int(vacant.is_vacant.sum())
        self._left_plain -= count
        self._num_plain += count
        self._num_new += count
        return walks

    def _by_proposals(self, of_course: Array, of_walks: Array, live: Live, vacant: Vacancies) -> Walks:
        """Return walks whose steps are proposals of the surrogate."""
        learned = self._learned
        assert learned is not None
        bound, is_wanted = float(live.bound), np.asarray(vacant.is_vacant)
        threshold, tau = float(learned.heights(np.array([bound]))[0]), self._tau(learned)
        points = np.array(live.points[vacant.starts])
        values = np.array(live.log_likelihoods[vacant.starts])
        has_moved = np.zeros(len(points), bool)
        for number in range(self._num_proposals):
            key = jax.random.fold_in(of_course, number)
            ends = wander(key, live, points, learned, threshold, tau, self._num_steps)
            shares = np.asarray(jax.random.uniform(jax.random.fold_in(of_walks, number), (len(points),)))
            # The surrogate's part of the decision comes first, as it needs no call.
            is_called = np.asarray(ends.has_moved) & is_wanted
            is_called &= np.log(np.maximum(shares, 1e-300)) < np.asarray(ends.log_ratios)
            found = np.full(len(points), -math.inf)
            found[is_called] = self._evaluate(np.asarray(ends.points)[is_called])
            self._note(learned.heights(found[is_called]), np.asarray(ends.levels)[is_called])
            is_taken = found > bound
            points[is_taken], values[is_taken] = np.asarray(ends.points)[is_taken], found[is_taken]
            has_moved |= is_taken
            self._count(int(is_wanted.sum()), int(is_taken.sum()))
        count = int(is_wanted.sum())
        self._num_since += count
        self._num_new += count
        self._num_duplicates += int((is_wanted & ~has_moved).sum())
        nothing = jnp.zeros(len(points))
        zero = jnp.zeros((), int)
        steps = jnp.zeros(len(points), int)
        found_points = jnp.asarray(points)
        return Walks(
            found_points, jnp.asarray(values), steps, nothing, nothing, zero, zero, found_points[0], of_walks
        )

    @property
    def _num_proposals(self) -> int:
        """How many proposals leave few points where they are."""
        refused = min(max(1.0 - self._acceptance, 1e-9), 1.0 - 1e-9)
        needed = math.ceil(math.log(_DUPLICATES) / math.log(refused))
        return min(max(needed, self._method.num_proposals), _MOST_PROPOSALS)

    def _tau(self, learned: LearnedBound) -> float:
        if self._method.tau is not None:
            return float(self._method.tau / learned.heights.unit)
        if not len(self._errors):
            return 0.3
        return float(np.clip(np.sqrt(np.mean(self._errors**2)), *_TAUS))

    def _note(self, heights: np.ndarray, levels: np.ndarray) -> None:
        """Remember the errors of predictions near the bound."""
        is_near = np.abs(heights) < 2.0
        errors = np.clip(heights[is_near] - levels[is_near], -2.0, 2.0)
        self._errors = np.concatenate([self._errors, errors])[-_NUM_ERRORS:]

    def _count(self, num_proposed: int, num_taken: int) -> None:
        self._num_proposed += num_proposed
        self._num_taken += num_taken
        self._tried = _FORGETTING * self._tried + num_proposed
        self._taken = _FORGETTING * self._taken + num_taken

    def _review(self) -> None:
        """Do without the surrogate for a while where it is bad, the longer the more often it was."""
        if self._acceptance >= _LEAST_ACCEPTANCE:
            if self._num_since >= self._interval:
                self._patience = 1
            return
        self._left_plain = self._patience * self._interval
        self._patience = min(2 * self._patience, _MOST_PATIENCE)
        self._learned = None
        self._expect()
