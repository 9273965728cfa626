"""The loop that all chains share: blocks of steps, with progress, interrupts, checkpoints and early stops."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from qbs.inference.checkpoint import Keeper, Saved, pack, unpack
from qbs.inference.method import Pacer
from qbs.inference.progress import Pace, ProgressLine
from qbs.inference.results.diagnostics import chain_statistics, is_constant, scalars


class Converged(eqx.Module):
    """When chains may stop before their last draw: all of these hold for every number in the draws.

    They are looked at after 100 draws, and again whenever there are a fifth more: in the same places on each
    machine, so that the result does not depend on its speed.

    Attributes:
        ess: Least effective sample size, in bulk and in the tails, of all chains together.
        r_hat: Greatest R-hat.
    """

    ess: float | int | None = eqx.field(static=True, default=None)
    r_hat: float | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        if self.ess is None and self.r_hat is None:
            raise ValueError("Converged: give ess, r_hat or both")
        if self.ess is not None and not self.ess > 0:
            raise ValueError(f"Converged: ess must be above 0, not {self.ess!r}")
        if self.r_hat is not None and not self.r_hat > 1:
            raise ValueError(f"Converged: r_hat must be above 1, not {self.r_hat!r}")

    def is_met(self, samples: dict[str, np.ndarray]) -> bool:
        """Whether draws with leading axes chain and draw are enough."""
        for draws in scalars(samples).values():
            if is_constant(draws):
                continue
            found = chain_statistics(draws, with_mcse=False)
            is_enough = self.ess is None or min(found["ess_bulk"], found["ess_tail"]) >= self.ess
            if not (is_enough and (self.r_hat is None or found["r_hat"] <= self.r_hat)):
                return False
        return True

    def __str__(self) -> str:
        parts = {"ESS >=": self.ess, "R-hat <=": self.r_hat}
        return " and ".join(f"{name} {value:g}" for name, value in parts.items() if value is not None)


class Plan(NamedTuple):
    """How much to run.

    Attributes:
        method: What messages call the run.
        num_warmup: Steps of each chain that are not kept.
        num_draws: Draws to keep of each chain, at most.
        capacity: Steps that a compiled block can hold.
        thinning: Steps for each draw.
        until: When to stop before.
        is_all: Whether the method is done with it, so that it knows how much is left.
    """

    method: str
    num_warmup: int
    num_draws: int
    capacity: int
    thinning: int = 1
    until: Converged | None = None
    is_all: bool = True

    @property
    def num_steps(self) -> int:
        """Steps of each chain in all."""
        return self.num_warmup + self.num_draws * self.thinning


class Kept(NamedTuple):
    """What a block gave.

    Attributes:
        samples: Draws by name, with leading axes chain and draw.
        stats: Statistics with the same axes.
        counts: Numbers that add up over blocks, of all steps, kept or not.
    """

    samples: dict[str, np.ndarray]
    stats: dict[str, np.ndarray]
    counts: dict[str, int]


class Run(NamedTuple):
    """How far a run is. It is replaced as a whole, so that an interrupt never finds half of a block.

    Attributes:
        state: What the next step needs.
        counts: Numbers that add up, by name.
        num_steps: Steps done by each chain.
        parts: What the blocks after warm-up gave.
        is_converged: Whether it may stop.
        is_interrupted: Whether it was stopped before its end.
    """

    state: Any
    counts: dict[str, int]
    num_steps: int = 0
    parts: tuple[Kept, ...] = ()
    is_converged: bool = False
    is_interrupted: bool = False

    @property
    def num_kept(self) -> int:
        """Draws kept of each chain."""
        return sum(_length(part) for part in self.parts)

    def after(self, state: Any, length: int, kept: Kept) -> "Run":
        """Return the run after one more block."""
        added = {name: self.counts.get(name, 0) + number for name, number in kept.counts.items()}
        counts = {**self.counts, **added}
        parts = (*self.parts, kept) if _length(kept) else self.parts
        return self._replace(state=state, num_steps=self.num_steps + length, parts=parts, counts=counts)

    def draws(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Return all draws and statistics, with leading axes chain and draw."""
        return _joined([part.samples for part in self.parts]), _joined([part.stats for part in self.parts])


def run_blocks(
    plan: Plan,
    state: Any,
    advance: Callable[[Any, Array, Array], tuple[Any, Any]],
    read: Callable[[Any, int, np.ndarray], Kept],
    say: Callable[[Run, Kept], str],
    line: ProgressLine,
    keeper: Keeper,
) -> Run:
    """Run all steps of some chains, or go on where a checkpoint says.

    Args:
        plan: How much to run.
        state: Where the chains start.
        advance: From a state, the number of steps done and the number to do, at most the capacity, to the
            state after them, and a block of what they gave. Its result may not depend on how steps are cut
            into blocks.
        read: From a block, its length and the indices of the steps that are kept, to what there is to keep.
        say: From the run and its last block to a few words for the line of progress.
        line: Where to show progress.
        keeper: Where to keep the state.

    Raises:
        KeyboardInterrupt: If the run is interrupted before two draws are kept.
    """
    section = plan.method
    saved, most = keeper.found(section), plan.num_draws
    run = Run(state, {}) if saved is None else _restored(saved, state)
    if (look := _met_at(plan, run)) is not None:
        run, most = run._replace(is_converged=True), look
    pacer, pace = Pacer(plan.capacity), Pace()
    try:
        while run.num_steps < plan.num_steps and not run.is_converged:
            length = pacer.next_length(_next_stop(plan, run) - run.num_steps)
            state, block = jax.block_until_ready(
                advance(run.state, jnp.asarray(run.num_steps), jnp.asarray(length))
            )
            pacer.finish()
            kept = read(block, length, _kept_steps(plan, run.num_steps, length))
            run = _judged(plan, run.after(state, length, kept))
            pace.note(run.num_steps)
            keeper.keep(section, partial(_saved, run))
            if line.is_due:
                words = f"{_phase(plan, run)}, {say(run, kept)}"
                left = plan.num_steps - run.num_steps
                known = (run.num_steps / plan.num_steps, pace.seconds_for(left)) if plan.is_all else ()
                line.update(words, *known)
    except KeyboardInterrupt:
        keeper.keep(section, partial(_saved, run), at_once=True)
        if run.num_kept < 2:
            raise KeyboardInterrupt(
                f"{plan.method} was interrupted before it kept a draw: nothing to return"
            ) from None
        return run._replace(is_interrupted=True)
    keeper.keep(section, partial(_saved, run), at_once=True)
    return _cut(run, most)


def run_problems(plan: Plan, run: Run) -> list[str]:
    """Say where draws are missing, as sentences that stand first."""
    if run.is_interrupted:
        return [
            f"Interrupted after {run.num_kept:,} of {plan.num_draws:,} draws per chain: those draws are kept "
            "here and are valid draws after a complete warm-up, only fewer."
        ]
    if plan.until is not None and not run.is_converged:
        return [f"{plan.num_draws:,} draws per chain did not reach {plan.until}: draw longer."]
    return []


def _phase(plan: Plan, run: Run) -> str:
    if run.num_steps <= plan.num_warmup:
        return f"warm-up {run.num_steps:,}/{plan.num_warmup:,} steps"
    return f"sampling {run.num_kept:,}/{plan.num_draws:,} draws"


def _kept_steps(plan: Plan, done: int, length: int) -> np.ndarray:
    """Return the indices in a block of the steps that are draws."""
    number = done + 1 + np.arange(length) - plan.num_warmup  # of each step after warm-up, from 1
    return np.flatnonzero((number > 0) & (number % plan.thinning == 0))


def _next_stop(plan: Plan, run: Run) -> int:
    """Return the step at which the next block ends at the latest: the end of warm-up, a look, or the end."""
    if run.num_steps < plan.num_warmup:
        return plan.num_warmup
    if plan.until is None:
        return plan.num_steps
    return min(plan.num_warmup + _next_look(run.num_kept) * plan.thinning, plan.num_steps)


def _next_look(num_kept: int) -> int:
    look = 100
    while look <= num_kept:
        look = max(look + 1, math.ceil(1.2 * look))
    return look


def _judged(plan: Plan, run: Run) -> Run:
    kept = run.num_kept
    is_look = kept > 0 and (_next_look(kept - 1) == kept or run.num_steps == plan.num_steps)
    if plan.until is None or not is_look:
        return run
    return run._replace(is_converged=plan.until.is_met(run.draws()[0]))


def _met_at(plan: Plan, run: Run) -> int | None:
    """Return after how many of the draws of a checkpoint the run would have stopped, if it would."""
    if plan.until is None or not run.parts:
        return None
    samples, num_kept, look = run.draws()[0], min(run.num_kept, plan.num_draws), 0
    while look < num_kept:
        look = min(_next_look(look), plan.num_draws)
        if look <= num_kept and plan.until.is_met({name: v[:, :look] for name, v in samples.items()}):
            return look
    return None


def _saved(run: Run) -> Saved:
    samples, stats = run.draws() if run.parts else ({}, {})
    arrays = pack(run.state)
    arrays |= {f"samples/{name}": values for name, values in samples.items()}
    arrays |= {f"stats/{name}": values for name, values in stats.items()}
    return Saved({"num_steps": run.num_steps, "counts": run.counts}, arrays)


def _restored(saved: Saved, like: Any) -> Run:
    kept = Kept(saved.group("samples/"), saved.group("stats/"), {})
    parts = (kept,) if kept.samples else ()
    return Run(unpack(saved.arrays, like), saved.facts["counts"], saved.facts["num_steps"], parts)


def _cut(run: Run, num_draws: int) -> Run:
    """Leave out draws beyond those that are wanted, which a checkpoint of a longer run has."""
    if run.num_kept <= num_draws:
        return run
    samples, stats = jax.tree.map(lambda leaf: leaf[:, :num_draws], run.draws())
    return run._replace(parts=(Kept(samples, stats, {}),))


def _length(kept: Kept) -> int:
    return next((values.shape[1] for values in kept.samples.values()), 0)


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
