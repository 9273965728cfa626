"""Nested sampling by slices: live points replaced in batches, in one compiled program."""

import math
from functools import partial
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from qbs.inference.checkpoint import Keeper, Saved, pack, unpack
from qbs.inference.method import Method, Pacer, require_positive
from qbs.inference.nested.contours import Weighed, weighed
from qbs.inference.nested.depth import remaining_depth
from qbs.inference.nested.insertion import insertion_test
from qbs.inference.nested.live_points import Live, first_live, is_over
from qbs.inference.nested.passes import (
    CAPACITY,
    Block,
    Pattern,
    compiled_block,
    python_iteration,
    spread,
)
from qbs.inference.nested.problem import CubeProblem
from qbs.inference.nested.unit_cube import unit_cube
from qbs.inference.problem import Problem
from qbs.inference.progress import Pace, ProgressLine
from qbs.inference.results.diagnostics import kish_ess, weight_problems
from qbs.inference.results.posterior import Posterior
from qbs.precision import Precision

_SECTION = "slice"
_LEAST_P_VALUE = 0.003  # of the insertion-rank test
_LEFT_BELOW = 0.001  # share of the posterior below the bound from which more points are drawn
_MAX_FIRST_DRAWS = {True: 200_000, False: 10_000}  # compiled, Python


class Slice(Method):
    """Nested sampling with slices: posterior and evidence of any model with proper priors.

    Runs in float64 on the unit cube of the model's priors. In each iteration the `batch` least likely points
    die, and walks from others, all made together, find new ones above them. A model written in JAX runs as
    one compiled program; a Python likelihood is called with all points of a batch at once, which an
    `executor` of `qbs.fit` shares out.

    Attributes:
        num_live: Live points. The evidence error falls as `1 / sqrt(num_live)`, the cost grows with it.
        batch: Points replaced at a time; by default a tenth of the live points. More make better use of a
            GPU or a pool, and cost a little accuracy for each call.
        num_steps: Of the walk to a new point; by default five for each dimension. Too few, and new points
            stay near old ones: the evidence is then biased, and the insertion test may tell.
        dlogz: Stop when the live points can add less than this to the log evidence, in nats.
        min_ess: More points are drawn where the posterior is until its draws have at least this effective
            sample size; by default one pass is made.
        chunk_size: Walks made together, for memory; by default all of a batch.
        max_calls: Stop after about this many likelihood calls, with the result so far; no limit by
            default.

    References:
        Skilling (2006), "Nested sampling for general Bayesian computation"; Handley, Hobson & Lasenby (2015),
        "PolyChord", arXiv:1506.00171, for slices; Neal (2003), "Slice sampling"; Higson, Handley, Hobson &
        Lasenby (2019), "Dynamic nested sampling", arXiv:1704.03459.
    """

    precision: ClassVar[Precision | None] = "float64"

    num_live: int = eqx.field(static=True, default=500)
    batch: int | None = eqx.field(static=True, default=None)
    num_steps: int | None = eqx.field(static=True, default=None)
    dlogz: float = eqx.field(static=True, default=0.01)
    min_ess: int | None = eqx.field(static=True, default=None)
    chunk_size: int | None = eqx.field(static=True, default=None)
    max_calls: int | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        require_positive(self, "dlogz")
        require_positive(self, "num_live", whole=True)
        for name in ("batch", "num_steps", "min_ess", "chunk_size", "max_calls"):
            if getattr(self, name) is not None:
                require_positive(self, name, whole=True)
        if self.batch is not None and self.batch >= self.num_live:
            raise ValueError(
                f"Slice: batch is {self.batch}; it must be below num_live, {self.num_live}, since walks "
                "start at the points that are left"
            )

    def pattern(self, dim: int) -> Pattern:
        """Return the shapes of a run in so many dimensions.

        Raises:
            ValueError: If there are too few live points for their covariance to be known.
        """
        if self.num_live <= 2 * dim:
            raise ValueError(
                f"Slice: num_live is {self.num_live}; in {dim} dimensions it must be above {2 * dim}"
            )
        batch = max(self.num_live // 10, 1) if self.batch is None else self.batch
        return Pattern(batch, 5 * dim if self.num_steps is None else self.num_steps, self.chunk_size)

    def run(self, problem: Problem, key: Array, line: ProgressLine, keeper: Keeper) -> Posterior:
        """Run until the evidence is accurate; see `Method.run`."""
        return _Run(self, problem, key, line, keeper).posterior()


class _Records(NamedTuple):
    """Samples in the order of their death, and ranks of new points in the order of birth."""

    points: np.ndarray
    log_likelihoods: np.ndarray
    births: np.ndarray
    ranks: np.ndarray

    @classmethod
    def joined(cls, parts: list["_Records"]) -> "_Records":
        points, log_likelihoods, births, ranks = map(np.concatenate, zip(*parts, strict=True))
        return cls(points, log_likelihoods, births, ranks)

    @classmethod
    def of_block(cls, block: Block) -> "_Records":
        is_dead, ranks = np.asarray(block.dead.is_dead), np.asarray(block.ranks)
        points, log_likelihoods, births = (np.asarray(part)[is_dead] for part in block.dead[:3])
        return cls(points, log_likelihoods, births, ranks[~np.isnan(ranks)])

    @classmethod
    def of_live(cls, live: Live) -> "_Records":
        is_alive = np.asarray(live.is_alive)
        parts = (live.points, live.log_likelihoods, live.births)
        points, log_likelihoods, births = (np.asarray(part)[is_alive] for part in parts)
        return cls(points, log_likelihoods, births, np.zeros(0))


class _Draws(NamedTuple):
    """The draws from the prior with which a run begins.

    Attributes:
        points: Those that are possible.
        log_likelihoods: There.
        num_impossible: Those that are not.
    """

    points: np.ndarray
    log_likelihoods: np.ndarray
    num_impossible: int


class _Run:
    """A run of nested sampling by slices."""

    def __init__(self, method: Slice, problem: Problem, key: Array, line: ProgressLine, keeper: Keeper):
        self._method, self._problem, self._line, self._keeper = method, problem, line, keeper
        self._cube = CubeProblem(problem, keeper)
        self._unit_cube = unit_cube(problem.bound)
        self._pattern = method.pattern(self._cube.dim)
        self._prior_key, self._pass_key = jax.random.split(key)
        self._num_in_blocks = 0
        self._parts: list[_Records] = []

    def posterior(self) -> Posterior:
        with self._cube.calls.kept():
            return self._run()

    def _run(self) -> Posterior:
        draws = self._first_draws()
        records, problems, is_interrupted = self._first_pass(draws)
        if not problems and self._method.min_ess is not None:
            records, problems, is_interrupted = self._more_passes(draws, records, self._method.min_ess)
        return self._result(draws, records, problems, is_interrupted=is_interrupted)

    @property
    def _num_calls(self) -> int:
        return self._cube.num_calls + self._num_in_blocks

    def _first_draws(self) -> _Draws:
        """Draw from the prior until there are enough possible points."""
        num_live, rounds = self._method.num_live, 0
        points: list[np.ndarray] = []
        values: list[np.ndarray] = []
        while (num_found := sum(map(len, points))) < num_live:
            key = jax.random.fold_in(self._prior_key, rounds)
            new = np.asarray(jax.random.uniform(key, (num_live, self._cube.dim), minval=1e-300))
            found = self._cube.log_likelihood(new)
            is_possible = found > -math.inf
            points, values = [*points, new[is_possible]], [*values, found[is_possible]]
            rounds += 1
            if not num_found and self._num_calls >= _MAX_FIRST_DRAWS[self._cube.is_compiled]:
                raise self._cube.impossible()
            self._line.update(f"{num_found:,} of {num_live:,} live points, {self._num_calls:,} draws")
        possible = np.concatenate(points)
        return _Draws(possible, np.concatenate(values), rounds * num_live - len(possible))

    def _first_pass(self, draws: _Draws) -> tuple[_Records, list[str], bool]:
        # Those drawn beyond the live points only tell of the volume that is possible.
        count = self._method.num_live
        live = first_live(jnp.asarray(draws.points[:count]), jnp.asarray(draws.log_likelihoods[:count]))
        return self._pass(1, live)

    def _more_passes(
        self, draws: _Draws, records: _Records, min_ess: int
    ) -> tuple[_Records, list[str], bool]:
        """Add points where the posterior is, until its draws are enough."""
        number = 1
        while kish_ess((found := _weighed(draws, records)).log_weights) < min_ess:
            number += 1
            own, problems, is_interrupted = self._pass(number, self._within(number, records, found))
            records = _Records.joined([records, own])
            if problems:
                return records, problems, is_interrupted
        return records, [], False

    def _within(self, number: int, records: _Records, found: Weighed) -> Live:
        """Return live points above the bound below which there is next to nothing of the posterior."""
        place = int(np.searchsorted(np.cumsum(np.exp(found.log_weights)), _LEFT_BELOW))
        bound = records.log_likelihoods[found.order[place]]
        is_there = np.flatnonzero((records.births <= bound) & (records.log_likelihoods > bound))
        choice, walking = jax.random.split(jax.random.fold_in(self._pass_key, 2**31 + number))
        count = self._method.num_live
        chosen = is_there[np.asarray(jax.random.randint(choice, (count,), 0, len(is_there)))]
        live = first_live(jnp.asarray(records.points[chosen]), jnp.asarray(records.log_likelihoods[chosen]))
        log_evidence = found.log_evidence + np.logaddexp.reduce(found.log_weights[: place + 1])
        live = live._replace(
            births=jnp.full(count, bound),
            bound=jnp.asarray(bound),
            log_volume=-jnp.sum(1.0 / found.num_alive[: place + 1]),
            log_evidence=jnp.asarray(log_evidence),
        )
        evaluate = None if self._cube.is_compiled else self._cube.log_likelihood
        live, block = spread(self._problem.bound, self._unit_cube, walking, live, self._pattern, evaluate)
        self._checked(block)
        return live

    def _pass(self, number: int, live: Live) -> tuple[_Records, list[str], bool]:
        """Go on until nothing is left to find; return the records, and whether it was stopped before."""
        method, name = self._method, f"pass {number}"
        key, section = jax.random.fold_in(self._pass_key, number), f"{_SECTION} {name}"
        parts: list[_Records] = []
        if self._cube.is_compiled and (saved := self._keeper.found(section)) is not None:
            live = unpack(saved.arrays, live)
            parts = [_Records(*(saved.arrays[field] for field in _Records._fields))]
            self._num_in_blocks = int(saved.facts["num_in_blocks"])
        pacer, pace = Pacer(CAPACITY if self._cube.is_compiled else 1), Pace()
        problems, is_interrupted = [], False
        try:
            while not bool(is_over(live, method.dlogz)):
                if method.max_calls is not None and self._num_calls >= method.max_calls:
                    problems = [self._stopped(live, f"Stopped by max_calls = {method.max_calls:,}")]
                    break
                length = pacer.next_length(CAPACITY)
                live, block = self._advanced(key, live, length)
                pacer.finish()
                self._checked(block)
                parts.append(_Records.of_block(block))
                pace.note(-float(live.log_volume))
                self._keeper.keep(section, partial(self._saved, live, parts))
                self._tell(live, pace, name)
        except KeyboardInterrupt:
            if not parts:
                raise
            problems, is_interrupted = [self._stopped(live, "Interrupted")], True
        if self._cube.is_compiled:
            self._keeper.keep(section, partial(self._saved, live, parts), at_once=True)
        return _Records.joined([*parts, _Records.of_live(live)]), problems, is_interrupted

    def _advanced(self, key: Array, live: Live, length: int) -> tuple[Live, Block]:
        if not self._cube.is_compiled:
            return python_iteration(self._cube.log_likelihood, key, live, self._pattern)
        model = self._problem.bound, self._unit_cube
        return jax.block_until_ready(
            compiled_block(*model, key, live, length, self._method.dlogz, self._pattern)
        )

    def _checked(self, block: Block) -> None:
        """Count the calls of a block that is compiled, and refuse what is no likelihood."""
        if not self._cube.is_compiled:
            return
        self._num_in_blocks += int(block.num_trials.sum())
        for at in np.flatnonzero(np.asarray(block.num_invalid)):
            self._cube.log_likelihood(
                np.asarray(block.invalid[at])[None]
            )  # an error that names the parameters

    def _saved(self, live: Live, parts: list[_Records]) -> Saved:
        none = _Records.of_live(live._replace(is_alive=live.is_alive & False))
        records = _Records.joined([none, *parts])
        return Saved({"num_in_blocks": self._num_in_blocks}, pack(live) | records._asdict())

    def _tell(self, live: Live, pace: Pace, name: str) -> None:
        if not self._line.is_due:
            return
        fallen, remaining = -float(live.log_volume), float(live.remaining)
        left = remaining_depth(
            self._cube.dim,
            remaining,
            float(live.log_evidence),
            float(live.log_volume),
            float(live.bound),
            self._method.dlogz,
        )
        self._line.update(
            f"{name}, {self._num_calls:,} calls, ln Z {float(live.log_evidence):.2f}, "
            f"dlogz {remaining:.3g} (stop at {self._method.dlogz:g})",
            fallen / (fallen + left) if fallen + left > 0 else 0.0,
            pace.seconds_for(left),
        )

    def _stopped(self, live: Live, what: str) -> str:
        return (
            f"{what} after {int(live.num_iterations):,} iterations, with up to {float(live.remaining):.2g} "
            f"nats of log evidence left to find (dlogz = {self._method.dlogz}): the draws so far are kept "
            "here; the evidence counts the live points, and its error is too small."
        )

    def _result(
        self, draws: _Draws, records: _Records, problems: list[str], *, is_interrupted: bool
    ) -> Posterior:
        found = _weighed(draws, records)
        is_kept = found.log_weights > -700
        chosen, log_weights = found.order[is_kept], found.log_weights[is_kept]
        log_weights = log_weights - np.logaddexp.reduce(log_weights)
        samples, derived = self._cube.values(records.points[chosen])
        p_value, worst = insertion_test(records.ranks, self._method.num_live)
        if min(p_value, worst) < _LEAST_P_VALUE:
            problems.append(
                "New live points do not stand among the others as draws from the prior above the bound would "
                f"(the insertion-rank test has p = {min(p_value, worst):.1g}): evidence and posterior may be "
                f"biased. Raise num_steps, now {self._pattern.num_steps}, or num_live."
            )
        return Posterior(
            samples={name: values[None] for name, values in samples.items()},
            log_weights=log_weights[None],
            log_evidence=found.log_evidence,
            log_evidence_error=found.log_evidence_error,
            num_likelihood_calls=self._num_calls,
            problems=[*problems, *weight_problems(log_weights)],
            derived=derived,
            stats={"log_likelihood": records.log_likelihoods[chosen][None]},
            provenance={
                "information": found.information,
                "insertion_p_value": p_value,
                "insertion_p_value_of_worst_part": worst,
                "is_interrupted": is_interrupted,
            },
        )


def _weighed(draws: _Draws, records: _Records) -> Weighed:
    return weighed(
        records.births,
        records.log_likelihoods,
        num_possible=len(draws.points),
        num_impossible=draws.num_impossible,
    )
