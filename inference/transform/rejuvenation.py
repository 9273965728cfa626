"""`rejuvenate`: move the trace so far by Metropolis-Hastings, after each score.

The kernel leaves the partial posterior as it is: the priors of the sites so far times the scores so far. To
move is to run the program again up to the score where it stands, with new values, and to go on from there if
they are accepted. In a population this is resample-move; where the program holds a population itself, SMC^2.

References:
    Gilks & Berzuini (2001), "Following a moving target". Chopin (2002), "A sequential particle filter
    method for static models". Chopin, Jacob & Papaspiliopoulos (2013), "SMC^2".
"""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from qbs.batches import batched_distribution
from qbs.effects import resampled, score, unused
from qbs.inference.transform.metropolis import Moved, Proposal, move
from qbs.inference.transform.population import require_count, require_scores
from qbs.inference.transform.replay import Replay, Weights, log_prob_inside, movable_sites
from qbs.inference.transform.suspension import Place, Value, Walk, evaluate_plain
from qbs.interpreter import interpret
from qbs.jaxprs import (
    all_names,
    bind_equation,
    cut,
    effect_names,
    inner_jaxprs,
    is_literal,
    open_jaxpr,
    scan_layout,
)
from qbs.program import Program, Staged


def rejuvenate(
    program: Program,
    proposal: Proposal,
    num_steps: int = 1,
    *,
    sites: Collection[str] | None = None,
    at: Collection[str] | None = None,
    only_resampled: bool = False,
) -> Program:
    """Return the program that moves its trace after each score, with the same meaning.

    `population(rejuvenate(program, random_walk(0.1)), 1000)` is resample-move.

    Args:
        program: The program.
        proposal: From the values of the traced sites to distributions of new ones, such as
            `random_walk(0.1)`. Sites in scans have a leading time axis, of which only the steps so far are
            moved: over it, the proposal must be independent.
        num_steps: Number of moves each time.
        sites: The traced sites; all but those in branches by default. Other sites are drawn afresh in each
            move.
        at: The names of the scores to move after; all by default. Scores in branches have no moves.
        only_resampled: In a population with a threshold, move only after resampling. That saves most moves,
            and the evidence is no longer unbiased, though consistent: whether a particle is moved then
            depends on where it is.

    Returns:
        A program with the value and the measure of `program`.

    Raises:
        ProgramError: If a site is not there, or the proposal names one that is not traced.
        ValueError: If `at` names no score of the program.
    """
    require_count(num_steps, "num_steps")

    def run_all(*args: Any) -> Any:
        staged = program.stage(*args)
        if at is not None:
            require_scores(staged, at)
        mover = _Mover(staged, proposal, num_steps, sites, at, only_resampled)
        outputs = mover.walk(*open_jaxpr(staged.jaxpr), [Value(o, moves=False) for o in staged.operands])
        return staged.unflatten([output.array for output in outputs])

    return Program(run_all, program.name)


class _Mover(Walk):
    """A run that can be moved; the state is the traced sites, their log density, and what of them exists."""

    def __init__(
        self,
        staged: Staged,
        proposal: Proposal,
        num_steps: int,
        sites: Collection[str] | None,
        at: Collection[str] | None,
        only_resampled: bool,  # noqa: FBT001
    ):
        shapes = movable_sites(staged, sites)
        trace = {name: jnp.zeros(site.shape, site.dtype) for name, site in shapes.items()}
        filled = {name: jnp.zeros(site.shape[: site.num_scans], bool) for name, site in shapes.items()}
        super().__init__((trace, jnp.zeros(()), filled))
        self.staged, self.proposal, self.num_steps, self.at = staged, proposal, num_steps, at
        self.taken = all_names(staged.jaxpr)
        self.is_free, self.only_resampled = True, only_resampled

    def suspends(self, name: str) -> bool:
        """Whether the trace is moved after a score."""
        return self.is_free and (self.at is None or name in self.at)

    def resampled(self, name: str) -> Value:
        """Leave the question to the population around."""
        return Value(resampled(name), moves=False)

    def evaluate(self, equation: Any, values: list[Value]) -> list[Value]:
        """Evaluate as it is."""
        return evaluate_plain(equation, values)

    def sample(self, equation: Any, values: list[Value]) -> Value:
        """Draw, and record the sites that are traced."""
        settings, arrays = equation.params, [value.array for value in values]
        (drawn,) = bind_equation(equation, arrays)
        trace, log_target, filled = self.state
        name, steps = settings["name"], tuple(self.steps)
        if name in trace:
            distribution = batched_distribution(arrays, settings["structure"], settings["axes"])
            log_target += log_prob_inside(distribution, drawn)
            trace = trace | {name: trace[name].at[steps].set(drawn)}
            filled = filled | {name: filled[name].at[steps].set(True)}
        self.state = (trace, log_target, filled)
        return Value(drawn, moves=True)

    def score(self, name: str, value: Value, live: list[Array]) -> list[Array]:
        """Score, and move."""
        score(value.array, name=name)
        trace, log_target, filled = self.state
        log_target = log_target + value.array
        self.state = (trace, log_target, filled)
        if not self.suspends(name):
            return live
        start = Moved(trace, log_target, [*self.frames, live])

        def rename(wanted: str) -> str:
            return unused(f"{wanted}_at_{name}", self.taken)

        def rerun(trace: dict[str, Array]) -> tuple[Array, list]:
            frames, state = _prefix(
                self.places,
                self.steps,
                open_jaxpr(self.staged.jaxpr)[1],
                self.staged.operands,
                lambda site: rename(f"{site}_redrawn"),
                Weights.zero(),
                trace,
            )
            return state.log_prob + state.log_score, frames

        def step(current: Moved, _: None) -> tuple[Moved, None]:
            return move(current, self.proposal, rerun, rename, filled), None

        def moved(current: Moved) -> Moved:
            return lax.scan(step, current, None, length=self.num_steps)[0]

        if self.only_resampled:
            last = lax.cond(resampled(name), moved, lambda current: current, start)
        else:
            last = moved(start)
        self.state = (last.trace, last.log_target, filled)
        *self.frames, live = last.kept
        return live

    def branch(self, equation: Any, values: list[Value]) -> list[Value]:
        """Walk the branch that is taken, without moves in it."""
        index, *operands = values

        def take(branch: Any) -> Any:
            def taken(state: Any, arrays: list[Array]) -> Any:
                inside = self.inside(state, [])
                inside.is_free = False
                own = [Value(a, moves=v.moves) for a, v in zip(arrays, operands, strict=True)]
                outputs = inside.walk(*open_jaxpr(branch), own)
                return inside.state, [output.array for output in outputs]

            return taken

        branches = [take(branch) for branch in equation.params["branches"]]
        arrays = [value.array for value in operands]
        self.state, outputs = lax.switch(index.array, branches, self.state, arrays)
        return [Value(output, moves=True) for output in outputs]


def _prefix(
    places: list[Place], steps: list, consts: Any, operands: list, rename: Any, state: Any, given: dict
) -> tuple[list, Any]:
    """Run a program up to the score where a walk stands; return frames, live values, and the state there."""
    place, *deeper = places
    equation = place.jaxpr.eqns[place.position]
    variables = [v for v in equation.invars if not is_literal(v)] if deeper else []
    length = place.position if deeper else place.position + 1
    part = cut(place.jaxpr, length, [*place.live, *variables])
    walked = interpret(part, consts, operands, Replay(rename), state, given)
    live, found = walked.outputs[: len(place.live)], iter(walked.outputs[len(place.live) :])
    if not deeper:
        return [live], walked.state
    values = [v.val if is_literal(v) else next(found) for v in equation.invars]
    if equation.primitive.name == "scan":
        inside = _prefix_of_scan(place, deeper, steps, values, rename, walked.state, given)
    else:
        inner = next(iter(inner_jaxprs(equation)))
        inside = _prefix(deeper, steps, open_jaxpr(inner)[1], values, rename, walked.state, given)
    return [live, *inside[0]], inside[1]


def _prefix_of_scan(
    place: Place, deeper: list[Place], steps: list, values: list, rename: Any, state: Any, given: dict
) -> tuple[list, Any]:
    equation = place.jaxpr.eqns[place.position]
    settings, (flags, out_moves), (now, *inner_steps) = equation.params, place.moves, steps
    num_consts, num_carry = scan_layout(equation)
    consts, carry = values[:num_consts], values[num_consts : num_consts + num_carry]
    xs = values[num_consts + num_carry :]
    jaxpr, own_consts = open_jaxpr(settings["jaxpr"])
    sites = set(effect_names(equation))
    own = {name: value for name, value in given.items() if name in sites}
    ys_moves = out_moves[num_carry:]
    avals = [v.aval for v, moves in zip(equation.outvars[num_carry:], ys_moves, strict=True) if moves]

    def body(loop: Any, inputs: Any) -> Any:
        step, x, here = inputs

        def run(state: Any, carry: list, history: list) -> Any:
            walked = interpret(jaxpr, own_consts, [*consts, *carry, *x], Replay(rename), state, here)
            ys = [y for y, moves in zip(walked.outputs[num_carry:], ys_moves, strict=True) if moves]
            history = [buffer.at[step].set(y) for buffer, y in zip(history, ys, strict=True)]
            return walked.state, walked.outputs[:num_carry], history

        is_before = step > now if settings["reverse"] else step < now
        return lax.cond(is_before, run, lambda *same: same, *loop), None

    history = [jnp.zeros(aval.shape, aval.dtype) for aval in avals]
    start = (state, carry, history)
    (state, carry, history), _ = lax.scan(
        body,
        start,
        (jnp.arange(settings["length"]), xs, own),
        length=settings["length"],
        reverse=settings["reverse"],
    )
    x, here = jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, now, keepdims=False), (xs, own))
    # The step that stands still draws under names of its own.
    inside, state = _prefix(
        deeper,
        inner_steps,
        own_consts,
        [*consts, *carry, *x],
        lambda site: f"{rename(site)}_now",
        state,
        given | here,
    )
    moving = [flags[i] for i in (*range(num_consts), *range(num_consts + num_carry, len(flags)))]
    held = [value for value, moves in zip([*consts, *xs], moving, strict=True) if moves]
    return [held, history, *inside], state
