"""Chains over parameters and paths, for PMMH and particle Gibbs: started, adapted and run in blocks."""

import abc
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from qbs.errors import LikelihoodError
from qbs.inference.binding import BoundModel
from qbs.inference.blocks import Kept, Plan, Run, run_blocks
from qbs.inference.checkpoint import Keeper
from qbs.inference.problem import Problem, nonfinite_data
from qbs.inference.progress import ProgressLine
from qbs.inference.results.posterior import to_numpy
from qbs.inference.sites import walk
from qbs.inference.smc.draws import Draw, draw
from qbs.inference.smc.random_walk import Walking
from qbs.inference.smc.split import Split, split
from qbs.inference.transform.population import population
from qbs.program import Program
from qbs.semantics.density import constrain, log_density, unconstrain

NUM_STARTS = 20  # draws from the prior that a chain chooses its start among
CAPACITY = 50  # steps a compiled block can hold


class Chain(NamedTuple):
    """Where a chain is.

    Attributes:
        position: The parameters on unconstrained space, as one vector.
        log_likelihood: Of the parameters, or an estimate of it.
        path: Values by name of all sites, or of the states alone.
    """

    position: Float[Array, " dim"]
    log_likelihood: Float[Array, ""]
    path: dict[str, Array]


class Info(NamedTuple):
    """What a step did.

    Attributes:
        accept_prob: Mean acceptance probability of its moves.
        num_bad: How many log densities were NaN or `+inf`.
    """

    accept_prob: Float[Array, ""]
    num_bad: Int[Array, ""]


class Space(eqx.Module):
    """The parameters and the rest of a bound model.

    Attributes:
        bound: The model with its data.
        parameters: The names of the parameters.
    """

    bound: BoundModel
    parameters: tuple[str, ...] = eqx.field(static=True)

    @property
    def split(self) -> Split:
        """The programs of the parameters, and of the rest."""
        return split(self.bound.program, self.parameters)

    def prior_draw(self, key: Array) -> Float[Array, " dim"]:
        """Draw parameters from the prior; return them on unconstrained space."""
        return ravel_pytree(self._free_draw(key))[0]

    def _free_draw(self, key: Array) -> dict[str, Array]:
        prior, arrays = self.split.prior, self.bound.arrays
        return unconstrain(prior)(walk(prior, arrays, key, {}).trace, *arrays)

    def by_name(self, position: Float[Array, " dim"]) -> dict[str, Array]:
        """Return the numbers of a position by site name."""
        shapes = jax.eval_shape(self._free_draw, jax.random.key(0))
        return ravel_pytree(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))[1](position)

    def values(self, position: Float[Array, " dim"]) -> tuple[dict[str, Array], Float[Array, ""]]:
        """Return the parameters at a position, and their log density with that of the change of variables."""
        free = self.by_name(position)
        prior, arrays = self.split.prior, self.bound.arrays
        found = constrain(prior)(free, *arrays)
        log_prob = log_density(prior, unconstrained=True)(free, *arrays)
        return {name: found[name] for name in self.parameters}, log_prob

    def filtered(self, key: Array, values: dict[str, Array], num_particles: int) -> Draw:
        """Estimate the likelihood of parameters by a particle filter, and draw a path of the rest."""
        particles = population(self.split.rest, num_particles, num_returned=1)
        run = Program(
            lambda *args: jax.tree.map(lambda leaf: leaf[0], particles(*args).value), self.bound.name
        )
        return draw(run, key, values, *self.bound.arrays)


class Mover(eqx.Module):
    """A step of a chain over parameters and paths.

    Attributes:
        space: Where the chains move.
        num_particles: Particles of the filter in it.
    """

    space: Space
    num_particles: int = eqx.field(static=True)

    @abc.abstractmethod
    def prepared(self, chains: Chain) -> Chain:
        """Return chains that start where a particle filter ended."""

    @abc.abstractmethod
    def move(self, key: Array, chain: Chain, factor: Float[Array, "dim dim"]) -> tuple[Chain, Info]:
        """Make a step; `factor` makes a step of the random walk of normal numbers."""

    @abc.abstractmethod
    def record(self, chain: Chain) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return the values by name at a chain, and its statistics."""


class State(NamedTuple):
    """All chains, and what they have learned."""

    chains: Chain
    walking: Walking


class _Block(NamedTuple):
    samples: dict[str, Array]
    stats: dict[str, Array]
    num_bad: Array


@eqx.filter_jit
def _prior_positions(space: Space, keys: Array) -> Float[Array, "num_chains num_starts dim"]:
    return jax.vmap(jax.vmap(space.prior_draw))(keys)


@eqx.filter_jit
def _estimates(mover: Mover, keys: Array, positions: Float[Array, "num_chains num_starts dim"]) -> Chain:
    def estimate(key: Array, position: Array) -> Chain:
        values, _ = mover.space.values(position)
        path, log_likelihood = mover.space.filtered(key, values, mover.num_particles)
        return Chain(position, log_likelihood, path)

    swapped = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), (keys, positions))
    found = lax.map(lambda pair: jax.vmap(estimate)(*pair), swapped)
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), found)


def estimate_likelihoods(mover: Mover, key: Array, positions: Array) -> Chain:
    """Run `NUM_STARTS` particle filters for each chain, each at a position.

    Args:
        mover: What has the particles.
        key: A typed key.
        positions: One position for each chain and filter; the axis of the filters may be of size 1.
    """
    num_chains, _, dim = positions.shape
    keys = jax.random.split(key, (num_chains, NUM_STARTS))
    return _estimates(mover, keys, jnp.broadcast_to(positions, (num_chains, NUM_STARTS, dim)))


def _start(problem: Problem, mover: Mover, how: "Walk", key: Array) -> tuple[State, int]:
    """Start each chain at the likeliest of some prior draws; count estimates that are NaN or `+inf`."""
    keys = jax.random.split(key, 3)
    positions = _prior_positions(mover.space, jax.random.split(keys[0], (how.num_chains, NUM_STARTS)))
    found = estimate_likelihoods(mover, keys[1], positions)
    estimates = np.asarray(found.log_likelihood)
    is_good = np.isfinite(estimates)
    num_bad = int(np.sum(np.isnan(estimates) | np.isposinf(estimates)))
    if not np.all(np.any(is_good, axis=1)):
        raise _no_start(problem, num_bad)
    best = np.argmax(np.where(is_good, estimates, -np.inf), axis=1)
    rows = np.arange(how.num_chains)
    chosen = jax.tree.map(lambda leaf: leaf[rows, best], found)
    # The highest of some estimates is too high: the chain would stay there.
    again = jax.tree.map(
        lambda leaf: leaf[:, 0], estimate_likelihoods(mover, keys[2], chosen.position[:, None])
    )
    is_finite = jnp.isfinite(again.log_likelihood)
    chains = jax.tree.map(lambda new, old: jax.vmap(jnp.where)(is_finite, new, old), again, chosen)
    dim = positions.shape[-1]
    if how.scale is None:
        walking = Walking.start(positions.reshape(-1, dim))
    else:
        walking = Walking.fixed(jnp.asarray(how.scale, float), dim)
    state = State(mover.prepared(chains), walking)
    # No weak types, so that the block compiled for the start serves all others.
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype), state), num_bad


@eqx.filter_jit
def _advance_block(
    mover: Mover,
    state: State,
    keys: Array,
    done: Int[ArrayLike, ""],
    length: Int[ArrayLike, ""],
    learns: Bool[ArrayLike, ""],
    target: Float[Array, ""],
) -> tuple[State, _Block]:
    """Make a number of steps, at most `CAPACITY`; the number is traced, so one program does all blocks."""

    def step(index: Array, state: State) -> tuple[State, _Block]:
        own = jax.vmap(lambda key: jax.random.fold_in(key, done + index))(keys)
        factor = state.walking.factor()
        chains, info = jax.vmap(lambda key, chain: mover.move(key, chain, factor))(own, state.chains)
        after = state.walking.learned(chains.position, info.accept_prob, target)
        walking = jax.tree.map(lambda new, old: jnp.where(learns, new, old), after, state.walking)
        samples, stats = jax.vmap(mover.record)(chains)
        stats = stats | {"acceptance_rate": info.accept_prob}
        return State(chains, walking), _Block(samples, stats, info.num_bad)

    def turn(index: Array, carry: tuple[State, _Block]) -> tuple[State, _Block]:
        state, new = step(index, carry[0])
        return state, jax.tree.map(lambda all_, one: all_.at[:, index].set(one), carry[1], new)

    shapes = jax.eval_shape(step, jnp.zeros((), int), state)[1]
    empty = jax.tree.map(
        lambda leaf: jnp.zeros((leaf.shape[0], CAPACITY, *leaf.shape[1:]), leaf.dtype), shapes
    )
    return lax.fori_loop(0, length, turn, (state, empty))


class Walk(NamedTuple):
    """How the random walk over the parameters steps: fixed or learned, and the acceptance that it aims at."""

    num_chains: int
    scale: float | None
    target_accept: float


def run_chains(
    problem: Problem, mover: Mover, how: Walk, plan: Plan, key: Array, line: ProgressLine, keeper: Keeper
) -> Run:
    """Start all chains, adapt them, and draw.

    Raises:
        LikelihoodError: If a chain finds no start where the likelihood is finite.
    """
    start_key, run_key = jax.random.split(key)
    state, num_bad = _start(problem, mover, how, start_key)
    keys, target = jax.random.split(run_key, how.num_chains), jnp.asarray(how.target_accept)

    def advance(state: State, done: Array, length: Array) -> tuple[State, _Block]:
        learns = jnp.asarray(how.scale is None and int(done) < plan.num_warmup)
        return _advance_block(mover, state, keys, done, length, learns, target)

    run = run_blocks(plan, state, advance, _read, _said, line, keeper)
    return run._replace(counts={**run.counts, "nonfinite": run.counts["nonfinite"] + num_bad})


def _read(block: _Block, length: int, kept: np.ndarray) -> Kept:
    """Count a block of steps, and take its draws."""
    counts = {"nonfinite": int(np.asarray(block.num_bad)[:, :length].sum())}
    if not kept.size:
        return Kept({}, {}, counts)
    samples, stats = jax.tree.map(lambda leaf: leaf[:, kept], to_numpy((block.samples, block.stats)))
    return Kept(samples, stats, counts)


def _said(run: Run, last: Kept) -> str:
    rate = f"acceptance {last.stats['acceptance_rate'].mean():.2f}, " if last.stats else ""
    return f"{rate}{run.counts['nonfinite']:,} not finite"


def nonfinite_problems(run: Run) -> list[str]:
    """Say where likelihoods were not numbers."""
    if num_bad := run.counts["nonfinite"]:
        return [
            f"The log likelihood was NaN or +inf {num_bad:,} times at parameters that were tried: they were "
            "rejected, as if impossible."
        ]
    return []


def _no_start(problem: Problem, num_bad: int) -> LikelihoodError:
    said = [f"it was NaN or +inf {num_bad} times"] if num_bad else []
    said += nonfinite_data(problem.bound)
    cause = (
        "; ".join(said)
        if said
        else "it was -inf: all particles died out; use more of them, or tighter priors"
    )
    return LikelihoodError(
        f"the estimated log likelihood of {problem.name!r} is not finite at any of {NUM_STARTS} draws of the "
        f"parameters from the prior, for one chain at least: {cause}"
    )
