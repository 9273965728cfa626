"""The classic nested sampler, dynesty, driven with batches of compiled likelihood calls."""

import math
import warnings
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import numpy as np
from dynesty import NestedSampler
from dynesty.internal_samplers import SamplerReturn, UniformBoundSampler
from dynesty.utils import LoglOutput, unitcheck
from jaxtyping import Array

from qbs.inference.checkpoint import Keeper
from qbs.inference.method import Method, require_positive
from qbs.inference.nested.depth import remaining_depth
from qbs.inference.nested.finished import Finished, cut_short
from qbs.inference.nested.problem import MAX_FIRST_DRAWS, Cube, CubeProblem
from qbs.inference.problem import Problem
from qbs.inference.progress import Pace, ProgressLine
from qbs.inference.results.diagnostics import weight_problems
from qbs.inference.results.posterior import Posterior
from qbs.inference.seeds import numpy_generator
from qbs.precision import Precision

# Uniform draws from the bounding ellipsoids need no chain, so whole batches can be drawn ahead.
# dynesty itself prefers chains from ten dimensions on.
_MAX_UNIFORM_DIM = 9
# Warnings of dynesty that a run is slow, or was stopped: the one is no reason to doubt it, the other is said.
_NO_PROBLEM = ("inefficient", "stopped short")
_CALLS_IN_BOUNDS = 2.5  # for an iteration, by uniform draws from ellipsoids: a guess for before there are any


# Called after each iteration with its number, the nats that may be left to find, and the live points with
# their log likelihoods; whether to go on.
After = Callable[[int, float, np.ndarray, np.ndarray], bool]


class Dynesty(Method):
    """Nested sampling with bounding ellipsoids: posterior and evidence of any model with proper priors.

    Runs in float64 on the unit cube of the model's priors. Below ten dimensions live points are replaced
    by uniform draws from the ellipsoids, evaluated in compiled batches; from ten on by dynesty's random
    walks and slices, call by call.

    Attributes:
        num_live: Live points. The evidence error falls as `1 / sqrt(num_live)`, the cost grows with it.
        dlogz: Stop when the live points can add less than this to the log evidence, in nats.
        batch_size: Points evaluated in one compiled call, below ten dimensions.
        bound: dynesty's bounding method: `"multi"`, `"single"`, `"balls"`, `"cubes"` or `"none"`.
        sample: dynesty's way to replace a point: `"auto"`, `"unif"`, `"rwalk"`, `"slice"`, `"rslice"`.
        max_calls: Stop after about this many likelihood calls, with the result so far; no limit by
            default.

    References:
        Skilling (2006), "Nested sampling for general Bayesian computation"; Speagle (2020),
        arXiv:1904.02180; Feroz, Hobson & Bridges (2009), arXiv:0809.3437.
    """

    precision: ClassVar[Precision | None] = "float64"

    num_live: int = eqx.field(static=True, default=500)
    dlogz: float = eqx.field(static=True, default=0.01)
    batch_size: int = eqx.field(static=True, default=32)
    bound: str = eqx.field(static=True, default="multi")
    sample: str = eqx.field(static=True, default="auto")
    max_calls: int | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        require_positive(self, "dlogz")
        require_positive(self, "num_live", "batch_size", whole=True)
        if self.max_calls is not None:
            require_positive(self, "max_calls", whole=True)
        for name, allowed in (
            ("bound", ("multi", "single", "balls", "cubes", "none")),
            ("sample", ("auto", "unif", "rwalk", "slice", "rslice")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"Dynesty: {name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}"
                )

    def run(self, problem: Problem, key: Array, line: ProgressLine, keeper: Keeper) -> Posterior:
        """Run until the evidence is accurate; see `Method.run`."""
        cube = CubeProblem(problem, keeper)
        with cube.calls.kept():
            found = self.drive(cube, key, line)
        return found.posterior(cube)

    def drive(
        self,
        cube: Cube,
        key: Array,
        line: ProgressLine,
        live_points: tuple[np.ndarray, np.ndarray] | None = None,
        after: After | None = None,
    ) -> Finished:
        """Run dynesty on a likelihood on the unit cube.

        Args:
            cube: The likelihood.
            key: A typed JAX key.
            line: Where to show progress.
            live_points: Points to begin with, and their log likelihoods; drawn from the prior by default.
            after: Called after each iteration.
        """
        problems: list[str] = []
        interrupted = is_stopped = False
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sampler = self._sampler(cube, key, live_points)
            reporter = _Reporter(line, cube, sampler, self, after)
            try:
                sampler.run_nested(
                    dlogz=self.dlogz, maxcall=self.max_calls, save_bounds=False, print_func=reporter
                )
            except (KeyboardInterrupt, _StoppedError) as reason:
                is_stopped, interrupted = True, isinstance(reason, KeyboardInterrupt)
                if interrupted and sampler.it <= 2:
                    raise
                sampler.run_nested(maxiter=-1, dlogz=self.dlogz, print_progress=False)  # add the live points
        if is_stopped or (self.max_calls and reporter.remaining > self.dlogz):
            what = "Interrupted" if interrupted else "Stopped by max_calls"
            what += f" = {self.max_calls:,}" if self.max_calls and not interrupted else ""
            problems.append(cut_short(what, sampler.it - 1, reporter.remaining, self.dlogz))
        said = {str(warning.message) for warning in caught}
        problems += sorted(
            f"dynesty: {text}" for text in said if not any(word in text for word in _NO_PROBLEM)
        )
        return _finished(sampler, problems, is_interrupted=interrupted)

    def _sampler(self, cube: Cube, key: Array, live_points: tuple[np.ndarray, np.ndarray] | None) -> Any:
        least = cube.dim + 1
        if self.num_live <= least:
            raise ValueError(
                f"Dynesty: num_live is {self.num_live}; in {cube.dim} dimensions it must be above {least}"
            )
        is_uniform = self.sample == "unif" or (self.sample == "auto" and cube.dim <= _MAX_UNIFORM_DIM)
        evaluator = _Evaluator(cube)
        stream = _Stream(cube, self.batch_size) if is_uniform else None
        try:
            sampler = NestedSampler(
                evaluator.one,
                _identity,
                cube.dim,
                nlive=self.num_live,
                bound=self.bound,
                sample=_BatchedUniform(ndim=cube.dim, stream=stream) if is_uniform else self.sample,
                live_points=None if live_points is None else (live_points[0], *live_points),
                rstate=numpy_generator(key),
                pool=evaluator,
                queue_size=1,
                use_pool={"propose_point": False, "update_bound": False, "prior_transform": False},
            )
        except RuntimeError:
            if cube.num_finite == 0:
                raise cube.impossible() from None
            raise
        if is_uniform:  # batches for the first phase too, which draws from the whole cube
            sampler.internal_sampler = sampler.internal_sampler_next
        return sampler


def _finished(sampler: Any, problems: list[str], *, is_interrupted: bool) -> Finished:
    results = sampler.results
    log_weights = np.asarray(results.logwt) - results.logz[-1]
    kept = np.isfinite(log_weights) & (log_weights > -700)
    log_weights = log_weights[kept] - np.logaddexp.reduce(log_weights[kept])
    return Finished(
        points=np.asarray(results.samples_u)[kept],
        log_likelihoods=np.asarray(results.logl)[kept],
        log_weights=log_weights,
        log_evidence=float(results.logz[-1]),
        log_evidence_error=float(results.logzerr[-1]),
        problems=[*problems, *weight_problems(log_weights)],
        provenance={"num_iterations": int(results.niter), "is_interrupted": is_interrupted},
    )


def _identity(point: np.ndarray) -> np.ndarray:
    return point


class _Evaluator:
    """Stands where dynesty expects a pool of workers, and answers a map over points by one batch."""

    def __init__(self, cube: Cube):
        self._cube = cube

    def one(self, point: np.ndarray) -> float:
        return float(self._cube.log_likelihood(point[None])[0])

    def map(self, _function: Any, points: np.ndarray) -> list[Any]:
        """Evaluate the live points that start a run."""
        values = self._cube.log_likelihood(np.asarray(points))
        limit = MAX_FIRST_DRAWS[self._cube.is_compiled]
        if self._cube.num_finite == 0 and self._cube.num_calls >= limit:
            raise self._cube.impossible()
        return [LoglOutput(float(value), blob_flag=False) for value in values]


class _Stream:
    """Evaluated uniform draws from the current bound, used one after another until the bound changes."""

    def __init__(self, cube: Cube, batch_size: int):
        self._cube, self._batch_size = cube, batch_size
        self._waiting: deque[tuple[np.ndarray, float]] = deque()
        self._version = -1, -1

    def renew(self, bound: int) -> None:
        """Forget the draws from an older bound, and the values of an older likelihood."""
        if (version := (bound, self._cube.version)) != self._version:
            self._version = version
            self._waiting.clear()

    def next(self, bound: Any, nonbounded: Any, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        """Return the next draw inside the cube, and its log likelihood."""
        if not self._waiting:
            points: list[np.ndarray] = []
            while len(points) < self._batch_size:
                drawn = bound.samples(self._batch_size - len(points), rstate=rng)
                points += [point for point in drawn if unitcheck(point, nonbounded)]
            values = self._cube.log_likelihood(np.array(points))
            self._waiting.extend(zip(points, map(float, values), strict=True))
        return self._waiting.popleft()


class _BatchedUniform(UniformBoundSampler):
    """dynesty's uniform sampler, taking its draws from a stream of evaluated batches."""

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.sampler_kwargs["stream"] = settings["stream"]

    def prepare_sampler(self, **arguments: Any) -> Any:
        self.sampler_kwargs["stream"].renew(arguments["nested_sampler"].nbound)
        return super().prepare_sampler(**arguments)

    @staticmethod
    def sample(args: Any) -> SamplerReturn:
        settings, num_calls, value = args.kwargs, 0, -math.inf
        while not value > args.loglstar:
            point, value = settings["stream"].next(settings["bound"], settings["nonbounded"], args.rseed)
            num_calls += 1
        return SamplerReturn(
            u=point,
            v=point,
            logl=LoglOutput(value, blob_flag=False),
            ncalls=num_calls,
            tuning_info=None,
            evaluation_history=[],
            proposal_stats={"n_proposals": num_calls},
        )


class _StoppedError(Exception):
    """Whoever looks after each iteration wants no more of them."""


class _Reporter:
    """Turns dynesty's report of an iteration into a line of progress with an ETA."""

    def __init__(self, line: ProgressLine, cube: Cube, sampler: Any, method: Dynesty, after: After | None):
        self._line, self._cube, self._sampler, self._after = line, cube, sampler, after
        self._num_live, self._dlogz = method.num_live, method.dlogz
        is_uniform = isinstance(sampler.internal_sampler, _BatchedUniform)
        self._calls_in_bounds = _CALLS_IN_BOUNDS if is_uniform else 20 + cube.dim  # dynesty's steps of a walk
        self._by_call, self._in_bounds = Pace(), Pace()
        self._bounded_at: int | None = None  # the iteration
        self.remaining = math.inf  # nats of log evidence that the live points may still add

    def __call__(
        self, result: Any, iteration: int, _calls: int, *, add_live_it: int | None = None, **_: Any
    ) -> None:
        if add_live_it is not None:
            return
        self.remaining = float(result.delta_logz)
        self._by_call.note(self._cube.num_calls)
        live = self._sampler.live_u, self._sampler.live_logl
        if self._after is not None and not self._after(iteration, self.remaining, *live):
            raise _StoppedError
        if not self._sampler.unit_cube_sampling:
            self._in_bounds.note(iteration)
            self._bounded_at = self._bounded_at or iteration
        if self._line.is_due and iteration > 1:  # the first has no evidence to speak of
            left = self._remaining_iterations(result)
            self._line.update(
                f"{iteration:,} iterations, {self._cube.num_calls:,} calls, efficiency {result.eff:.1f} %, "
                f"ln Z {result.logz:.2f}, dlogz {result.delta_logz:.3g} (stop at {self._dlogz:g})",
                iteration / (iteration + left),
                self._seconds_for(iteration, left),
            )

    def _seconds_for(self, iteration: int, left: float) -> float:
        """Estimate the time for so many iterations, from those inside bounds when there are enough."""
        if self._bounded_at is not None and iteration - self._bounded_at > self._num_live:
            return self._in_bounds.seconds_for(left)
        return self._by_call.seconds_for(self._remaining_calls(iteration, left))

    def _remaining_calls(self, iteration: int, left: float) -> float:
        """Estimate how many calls are left while points are still drawn from the whole cube, or just after.

        There, iteration k needs e^(k / num_live) of them. It ends when one call in ten was of use, which is
        after 3.6 num_live iterations, and 36 num_live calls.
        """
        is_over = self._bounded_at is not None
        in_cube = 0.0 if is_over else min(left, max(3.615 * self._num_live - iteration, 0.0))
        ends = [math.exp(k / self._num_live) for k in (iteration, iteration + in_cube)]
        return self._num_live * (ends[1] - ends[0]) + self._calls_in_bounds * (left - in_cube)

    def _remaining_iterations(self, result: Any) -> float:
        """Estimate how many iterations are left; the volume falls by a factor e every `num_live` of them."""
        return self._num_live * remaining_depth(
            self._cube.dim,
            float(result.delta_logz),
            float(result.logz),
            float(result.logvol),
            float(result.loglstar),
            self._dlogz,
        )
