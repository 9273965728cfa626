"""A run of nested sampling, whatever finds the new points: deaths, records, limits and the result."""

from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from qbs.inference.checkpoint import Keeper, Saved, pack, unpack
from qbs.inference.method import Pacer
from qbs.inference.nested.contours import Weighed
from qbs.inference.nested.depth import remaining_depth
from qbs.inference.nested.finished import cut_short
from qbs.inference.nested.insertion import insertion_test
from qbs.inference.nested.live_points import Live, first_live, is_over
from qbs.inference.nested.passes import CAPACITY, Block
from qbs.inference.nested.problem import CubeProblem
from qbs.inference.nested.records import (
    Draws,
    Records,
    finished,
    first_draws,
    insertion_problems,
    weighed_by,
)
from qbs.inference.progress import Pace, ProgressLine
from qbs.inference.results.diagnostics import kish_ess
from qbs.inference.results.posterior import Posterior

_SECTION = "slice"
_LEFT_BELOW = 0.001  # share of the posterior below the bound from which more points are drawn


class Goals(NamedTuple):
    """When a run is over; see `Slice` for each.

    Attributes:
        num_live: Live points.
        dlogz: In nats.
        max_calls: Of the likelihood.
        min_ess: Of the draws.
    """

    num_live: int
    dlogz: float
    max_calls: int | None = None
    min_ess: int | None = None


@runtime_checkable
class Finder(Protocol):
    """What makes iterations: the least likely live points die, and new ones are found above them.

    Attributes:
        is_compiled: Whether calls are made in compiled blocks, and counted there; the state of the run is
            then kept. The calls of others go through the log of the `CubeProblem`.
        remedy: What to do where new points stand too near to old ones, as words after "Raise".
    """

    is_compiled: bool
    remedy: str

    def advanced(self, key: Array, live: Live, length: int, /) -> tuple[Live, Block]:
        """Return the live points after up to so many iterations, and what these gave."""

    def spread(self, key: Array, live: Live) -> tuple[Live, Block]:
        """Return live points that walks from the given ones, which may be there twice, lead to."""

    def problems(self) -> list[str]:
        """Return what in the search for points speaks against the result, as plain sentences."""

    def provenance(self) -> dict[str, Any]:
        """Return facts of the search for the result."""


class Run:
    """A run of nested sampling.

    Args:
        goals: When it is over.
        cube: The problem.
        finder: What finds new points.
        key: A typed JAX key.
        line: Where to show progress.
        keeper: Where to keep the state.
    """

    def __init__(
        self,
        goals: Goals,
        cube: CubeProblem,
        finder: Finder,
        key: Array,
        line: ProgressLine,
        keeper: Keeper,
    ):
        self._goals, self._cube, self._finder, self._line, self._keeper = goals, cube, finder, line, keeper
        self._prior_key, self._pass_key = jax.random.split(key)
        self._num_in_blocks = 0

    def posterior(self) -> Posterior:
        """Run until nothing is left to find, and return draws and evidence."""
        with self._cube.calls.kept():
            return self._run()

    def _run(self) -> Posterior:
        draws = first_draws(self._cube, self._goals.num_live, self._prior_key, self._line)
        records, problems, is_interrupted = self._first_pass(draws)
        if not problems and self._goals.min_ess is not None:
            records, problems, is_interrupted = self._more_passes(draws, records, self._goals.min_ess)
        return self._result(draws, records, problems, is_interrupted=is_interrupted)

    @property
    def _num_calls(self) -> int:
        return self._cube.num_calls + self._num_in_blocks

    def _first_pass(self, draws: Draws) -> tuple[Records, list[str], bool]:
        # Those drawn beyond the live points only tell of the volume that is possible.
        count = self._goals.num_live
        live = first_live(jnp.asarray(draws.points[:count]), jnp.asarray(draws.log_likelihoods[:count]))
        return self._pass(1, live)

    def _more_passes(self, draws: Draws, records: Records, min_ess: int) -> tuple[Records, list[str], bool]:
        """Add points where the posterior is, until its draws are enough."""
        number = 1
        while kish_ess((found := weighed_by(draws, records)).log_weights) < min_ess:
            number += 1
            own, problems, is_interrupted = self._pass(number, self._within(number, records, found))
            records = Records.joined([records, own])
            if problems:
                return records, problems, is_interrupted
        return records, [], False

    def _within(self, number: int, records: Records, found: Weighed) -> Live:
        """Return live points above the bound below which there is next to nothing of the posterior."""
        place = int(np.searchsorted(np.cumsum(np.exp(found.log_weights)), _LEFT_BELOW))
        bound = records.log_likelihoods[found.order[place]]
        is_there = np.flatnonzero((records.births <= bound) & (records.log_likelihoods > bound))
        choice, walking = jax.random.split(jax.random.fold_in(self._pass_key, 2**31 + number))
        count = self._goals.num_live
        chosen = is_there[np.asarray(jax.random.randint(choice, (count,), 0, len(is_there)))]
        live = first_live(jnp.asarray(records.points[chosen]), jnp.asarray(records.log_likelihoods[chosen]))
        log_evidence = found.log_evidence + np.logaddexp.reduce(found.log_weights[: place + 1])
        live = live._replace(
            births=jnp.full(count, bound),
            bound=jnp.asarray(bound),
            log_volume=-jnp.sum(1.0 / found.num_alive[: place + 1]),
            log_evidence=jnp.asarray(log_evidence),
        )
        live, block = self._finder.spread(walking, live)
        self._checked(block)
        return live

    def _pass(self, number: int, live: Live) -> tuple[Records, list[str], bool]:
        """Go on until nothing is left to find; return the records, and whether it was stopped before."""
        goals, name = self._goals, f"pass {number}"
        key, section = jax.random.fold_in(self._pass_key, number), f"{_SECTION} {name}"
        parts: list[Records] = []
        if self._finder.is_compiled and (saved := self._keeper.found(section)) is not None:
            live = unpack(saved.arrays, live)
            parts = [Records(*(saved.arrays[field] for field in Records._fields))]
            self._num_in_blocks = int(saved.facts["num_in_blocks"])
        pacer, pace = Pacer(CAPACITY if self._finder.is_compiled else 1), Pace()
        problems, is_interrupted = [], False
        try:
            while not bool(is_over(live, goals.dlogz)):
                if goals.max_calls is not None and self._num_calls >= goals.max_calls:
                    problems = [self._stopped(live, f"Stopped by max_calls = {goals.max_calls:,}")]
                    break
                length = pacer.next_length(CAPACITY)
                live, block = self._finder.advanced(key, live, length)
                pacer.finish()
                self._checked(block)
                parts.append(Records.of_block(block))
                pace.note(-float(live.log_volume))
                self._keeper.keep(section, partial(self._saved, live, parts))
                self._tell(live, pace, name)
        except KeyboardInterrupt:
            if not parts:
                raise
            problems, is_interrupted = [self._stopped(live, "Interrupted")], True
        if self._finder.is_compiled:
            self._keeper.keep(section, partial(self._saved, live, parts), at_once=True)
        return Records.joined([*parts, Records.of_live(live)]), problems, is_interrupted

    def _checked(self, block: Block) -> None:
        """Count the calls of a block that is compiled, and refuse what is no likelihood."""
        if not self._finder.is_compiled:
            return
        self._num_in_blocks += int(block.num_trials.sum())
        for at in np.flatnonzero(np.asarray(block.num_invalid)):
            self._cube.log_likelihood(
                np.asarray(block.invalid[at])[None]
            )  # an error that names the parameters

    def _saved(self, live: Live, parts: list[Records]) -> Saved:
        none = Records.of_live(live._replace(is_alive=live.is_alive & False))
        records = Records.joined([none, *parts])
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
            self._goals.dlogz,
        )
        self._line.update(
            f"{name}, {self._num_calls:,} calls, ln Z {float(live.log_evidence):.2f}, "
            f"dlogz {remaining:.3g} (stop at {self._goals.dlogz:g})",
            fallen / (fallen + left) if fallen + left > 0 else 0.0,
            pace.seconds_for(left),
        )

    def _stopped(self, live: Live, what: str) -> str:
        return cut_short(what, int(live.num_iterations), float(live.remaining), self._goals.dlogz)

    def _result(
        self, draws: Draws, records: Records, problems: list[str], *, is_interrupted: bool
    ) -> Posterior:
        p_values = insertion_test(records.ranks, self._goals.num_live)
        found = weighed_by(draws, records)
        problems = [
            *problems,
            *self._finder.problems(),
            *insertion_problems(p_values, f" Raise {self._finder.remedy}, or num_live."),
        ]
        provenance = {
            "information": found.information,
            "insertion_p_value": p_values[0],
            "insertion_p_value_of_worst_part": p_values[1],
            "is_interrupted": is_interrupted,
            **self._finder.provenance(),
        }
        return finished(records, found, problems, provenance).posterior(self._cube, self._num_calls)
