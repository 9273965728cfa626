"""The way of a population from prior to posterior, from place to place.

A place stands between two rounds of moves, and has all that the next needs, so that a run can stop at any.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int
from scipy.stats import rankdata

from qbs.inference.binding import BoundModel
from qbs.inference.checkpoint import Saved, pack, unpack
from qbs.inference.sites import walk
from qbs.inference.smc.islands import combined_evidence
from qbs.inference.smc.moves import NUM_SCALES, Cloud, Shape, glide, shape_of, slide
from qbs.inference.smc.reweighing import Arrays, reweigh
from qbs.semantics.density import unconstrain

_ORIGIN = "origin"  # of names of arrays in a checkpoint
_FEW_ROUNDS = 6  # enough after a long step, or it was too long
_SHORTER = 10  # how many times, by the share of the particles that a reweighting costs
_DRIFTING = 2.0  # standard errors
_GRADIENT = 3  # evaluations that cost about as much as a gradient
_LEAPS = {"hop": 1, "short glide": 5, "long glide": 15}  # of a trajectory, by kind of move
# At first: what is zero is tried where the first is slow.
_RATES = (("hop", math.inf), ("short glide", math.inf), ("slide", 0.0), ("long glide", 0.0))

T = TypeVar("T")


@runtime_checkable
class Settings(Protocol):
    """What the way depends on, of a method."""

    num_particles: int
    num_islands: int
    ess: float
    max_correlation: float
    max_rounds: int
    chain_length: int | None
    chunk_size: int | None


class Here(NamedTuple):
    """A place on the way: between two rounds of moves at a stage.

    Attributes:
        arrays: The particles, and what goes with them.
        origin: The same before the last step.
        num_steps: Steps from stage to stage so far, with those that were taken back.
        stages: Stages reached: inverse temperatures, or numbers of scores.
        are_short: Whether the step to each was a short one.
        rounds: Rounds of moves made at each.
        correlations: Correlation of the log likelihood with its value before them, at each.
        needed: How many rounds there are to be at this stage.
        is_strict: Whether likelihoods have drifted in moves, or a step's weights had a heavy tail, so far.
        rates: Fall of the log correlation for the cost of an evaluation, by kind of move.
        num_calls: Evaluations of the likelihood.
        num_bad: How many of them were NaN.
    """

    arrays: Arrays
    origin: Arrays
    num_steps: int = 0
    stages: tuple[float, ...] = ()
    are_short: tuple[bool, ...] = ()
    rounds: tuple[int, ...] = ()
    correlations: tuple[float, ...] = ()
    needed: int = 0
    is_strict: bool = False
    rates: tuple[tuple[str, float], ...] = _RATES
    num_calls: int = 0
    num_bad: int = 0

    @property
    def stage(self) -> float:
        """Where the particles are."""
        return self.stages[-1] if self.stages else 0.0

    @property
    def sizes(self) -> list[float]:
        """How far each step went, in long steps."""
        return [1 / _SHORTER if is_short else 1.0 for is_short in self.are_short]

    @property
    def is_short(self) -> bool:
        """Whether the last step was a short one, after which there is no way back."""
        return bool(self.are_short) and self.are_short[-1]

    @property
    def is_moved(self) -> bool:
        """Whether the particles have been moved enough at this stage."""
        return not self.rounds or self.rounds[-1] >= self.needed


def is_open(method: Settings, here: Here) -> bool:
    """Whether it cannot be told yet how many rounds there must be at a stage."""
    return here.needed == method.max_rounds and method.chain_length is None


class Journey:
    """The way through the stages: what comes after each place on it."""

    def __init__(self, bound: BoundModel, method: Settings, num_portions: int, key: Array):
        self._bound, self._method, self._num_portions, self._key = bound, method, num_portions, key

    def is_over(self, here: Here) -> bool:
        """Whether a place is the posterior."""
        return here.stage >= self._num_portions and here.is_moved

    def next(self, here: Here) -> Here:
        """Return the place after one more reweighting, or one more round of moves."""
        if here.is_moved:
            return self._reweighed(here, is_short=here.is_short and self._is_slow(here))
        return self._taken_back(here) if self._is_too_far(here) else self._moved(here)

    def _is_slow(self, here: Here) -> bool:
        """Whether moves after the last step took long to forget, or have not yet."""
        return here.rounds[-1] > _FEW_ROUNDS or here.correlations[-1] > self._method.max_correlation

    def _is_too_far(self, here: Here) -> bool:
        """Whether the last step was a long one to where moves are slow.

        Moves that forget slowly on the whole hardly move some of the particles. What a long step asks of
        those they do not make up for with any number of rounds, and the evidence comes out too small.
        """
        return here.rounds[-1] >= _FEW_ROUNDS and is_open(self._method, here) and not here.is_short

    def _taken_back(self, here: Here) -> Here:
        """Return the place after a shorter step than the last, from where that one went."""
        before = here._replace(
            arrays=here.origin,
            stages=here.stages[:-1],
            are_short=here.are_short[:-1],
            rounds=here.rounds[:-1],
            correlations=here.correlations[:-1],
        )
        return self._reweighed(before, is_short=True)

    def _share(self, *, is_short: bool) -> float:
        """Return the effective sample size of a reweighting, as a share of the particles."""
        return 1 - (1 - self._method.ess) / (_SHORTER if is_short else 1)

    def _reweighed(self, here: Here, *, is_short: bool) -> Here:
        method, number = self._method, np.asarray(here.num_steps)
        share = self._share(is_short=is_short)
        length, old = method.chain_length or 1, (here.arrays, np.asarray(here.stage), np.asarray(share))
        arrays, stage, is_heavy = reweigh(self._key, number, *old, method.num_islands, length)
        return here._replace(
            arrays=arrays,
            origin=here.arrays,
            num_steps=here.num_steps + 1,
            stages=(*here.stages, float(stage)),
            are_short=(*here.are_short, is_short),
            rounds=(*here.rounds, 0),
            correlations=(*here.correlations, 1.0),
            needed=method.max_rounds if method.chain_length is None else length - 1,
            is_strict=here.is_strict or bool(is_heavy),
        )

    def _moved(self, here: Here) -> Here:
        method, rates, done = self._method, dict(here.rates), here.rounds[-1]
        # Mostly the kind that has worked better; now and then another, for it may have changed, and because
        # what one kind leaves behind, such as particles of small scale, another may move.
        kind = max(rates, key=lambda kind: rates[kind])
        if done % 4 == 3:
            others = [other for other in rates if other != kind]
            kind = others[done // 4 % len(others)]
        place = np.asarray(here.num_steps), np.asarray(done), np.asarray(here.stage)
        arrays, told = _round(
            self._bound,
            self._key,
            *place,
            here.arrays,
            "slide" if kind == "slide" else "glide",
            np.asarray(_LEAPS.get(kind, 0)),
            self._num_portions,
            (method.num_islands, method.chain_length),
            method.chunk_size,
        )
        before, count = here.correlations[-1], int(told.num_evaluations)
        correlation = _correlation(told.before, told.after)
        if before > 2 * method.max_correlation:  # what is left of less is mostly noise
            cost = count if kind == "slide" else _GRADIENT * count
            rate = math.log(before / max(correlation, 0.01)) / cost
            rates[kind] = rate if math.isinf(rates[kind]) else 0.5 * (rates[kind] + rate)
        here = here._replace(
            arrays=arrays,
            rounds=(*here.rounds[:-1], done + 1),
            correlations=(*here.correlations[:-1], correlation),
            rates=tuple(rates.items()),
            num_calls=here.num_calls + count * told.after.size,
            num_bad=here.num_bad + int(told.num_bad),
        )
        return self._judged(here, told) if is_open(self._method, here) else here

    def _judged(self, here: Here, told: "Told") -> Here:
        """Return the place with the number of rounds that it needs, if that can be told.

        They go on until the likelihood is forgotten, and half as long again, for other things may mix more
        slowly. Where that is slow, half of it must do after a long step, if the particles stood where they
        should before the moves: then these only mix, and likelihoods do not drift. Not so once they have, or
        a heavy tail has told that some are missing.
        """
        limit, done, correlation = self._method.max_correlation, here.rounds[-1], here.correlations[-1]
        if correlation <= limit:
            pace = math.log(max(correlation, 1e-3)) / math.log(limit)
            return here._replace(needed=min(round(done * max(1.0, 1.5 / pace)), self._method.max_rounds))
        if here.is_strict or here.is_short or done < _FEW_ROUNDS or correlation > limit**0.5:
            return here
        is_drifting = abs(_drift(told.before, told.after, self._share(is_short=False))) > _DRIFTING
        return here._replace(is_strict=True) if is_drifting else here._replace(needed=done)

    def said(self, here: Here) -> str:
        """Return how far it is, in words."""
        log_evidence = combined_evidence(np.asarray(here.arrays.log_evidences))[0]
        where = (
            f"temperature {here.stage:.3g}"
            if self._num_portions == 1
            else f"score {here.stage:.1f}/{self._num_portions}"
        )
        return f"{where}, round {here.rounds[-1]}, {here.num_calls:,} calls, ln Z {log_evidence:.2f}"

    def saved(self, here: Here) -> Saved:
        """Return a place as a section of a checkpoint."""
        facts = here._asdict()
        arrays, origin = facts.pop("arrays"), facts.pop("origin")
        return Saved(facts, pack(arrays) | ({} if here.is_short else pack(origin, _ORIGIN)))

    def restored(self, saved: Saved | None, cloud: Cloud) -> Here:
        """Return the place that a section of a checkpoint tells of, or the start."""
        num_islands = self._method.num_islands
        start = Arrays(
            cloud,
            jnp.zeros(cloud.points.shape[0]),
            jnp.ones(NUM_SCALES) / NUM_SCALES,
            jnp.zeros(num_islands),
            jnp.zeros((num_islands, self._num_portions)),
        )
        if saved is None:
            return Here(start, start, num_calls=self._method.num_particles)
        facts = {name: _as_tuple(value) for name, value in saved.facts.items()}
        here = Here(unpack(saved.arrays, start), start, **facts)
        return here if here.is_short else here._replace(origin=unpack(saved.arrays, start, _ORIGIN))


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def draw_sites(
    bound: BoundModel, key: Array, watch: Callable[[str, Any], None] = lambda *_: None
) -> dict[str, Array]:
    """Draw the sites from the prior, unconstrained; `watch` is told of each site, see `walk`."""
    trace = walk(bound.program, bound.arrays, key, {}, watch).trace
    return unconstrain(bound.program)(trace, *bound.arrays)


def particle_shape(bound: BoundModel, num_portions: int) -> Shape:
    """Return how sites stand in the vector of a particle."""
    return shape_of(jax.eval_shape(partial(draw_sites, bound), jax.random.key(0)), num_portions)


class Told(NamedTuple):
    """What a round of moves told of itself: see `Moved`, and log likelihoods before all rounds, and after."""

    before: Float[Array, " num_moved"]
    after: Float[Array, " num_moved"]
    num_evaluations: Int[Array, ""]
    num_bad: Int[Array, ""]


@eqx.filter_jit
def _round(
    bound: BoundModel,
    key: Array,
    number: ArrayLike,
    done: ArrayLike,
    stage: ArrayLike,
    arrays: Arrays,
    kind: str,
    num_leaps: ArrayLike,
    num_portions: int,
    chains: tuple[int, int | None],
    chunk_size: int | None,
) -> tuple[Arrays, Told]:
    """Move all particles, or make a new link of each chain."""
    key = jax.random.fold_in(jax.random.fold_in(key, number), done)
    shape, stage = particle_shape(bound, num_portions), jnp.asarray(stage)
    cloud, shares = _link(arrays.cloud, done, *chains), arrays.shares
    if kind == "slide":
        moved = slide(bound, shape, key, cloud, stage, chunk_size)
    else:
        moved = glide(bound, shape, key, cloud, stage, shares, num_leaps, chunk_size)
        gains = moved.gains / jnp.maximum(moved.uses, 1.0)
        shares = jnp.where(gains.sum() > 0, gains / gains.sum(), 1 / NUM_SCALES)
    before, after = _link(arrays.before, done, *chains), moved.cloud.parts.log_likelihood(stage)
    cloud = _linked(arrays.cloud, done, moved.cloud, *chains)
    told = Told(before, after, moved.num_evaluations, moved.num_bad)
    return arrays._replace(cloud=cloud, shares=shares), told


def _link(particles: T, number: ArrayLike, num_islands: int, length: int | None) -> T:
    """Return the link of each chain that a round starts from: all particles, where none is kept."""

    def take(leaf: Array) -> Array:
        chains = leaf.reshape(num_islands, length, -1, *leaf.shape[1:])
        return chains[:, number].reshape(-1, *leaf.shape[1:])

    return particles if length is None else jax.tree.map(take, particles)


def _linked(particles: Cloud, number: ArrayLike, link: Cloud, num_islands: int, length: int | None) -> Cloud:
    """Return the particles with the link of each chain that comes after one of some number."""

    def put(leaf: Array, new: Array) -> Array:
        chains = leaf.reshape(num_islands, length, -1, *leaf.shape[1:])
        new = new.reshape(num_islands, -1, *leaf.shape[1:])
        return chains.at[:, number + 1].set(new).reshape(leaf.shape)

    return link if length is None else jax.tree.map(put, particles, link)


def _correlation(before: Array, after: Array) -> float:
    """Return the correlation of the log likelihoods of the particles before and after, by rank."""
    first, second = (rankdata(values) - 0.5 * (len(values) + 1) for values in (before, after))
    size = math.sqrt(float(first @ first) * float(second @ second))
    return abs(float(first @ second)) / size if size else 0.0


def _drift(before: Array, after: Array, share: float) -> float:
    """Return how far log likelihoods drifted by rank, in standard errors.

    Args:
        before: Of the particles before the moves.
        after: Of the same after them.
        share: Effective sample size of the reweighting before the moves, as a share of the particles.
    """
    first, second = np.split(rankdata(np.concatenate([before, after])), 2)
    gains = second - first
    return float(gains.mean() / max(gains.std(), 1.0) * math.sqrt(share * gains.size))
