"""The method that runs chains of any kernel on a model."""

from functools import partial
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Int

from qbs.errors import LikelihoodError, ModelError
from qbs.inference.binding import BoundModel
from qbs.inference.blocks import Converged, Kept, Plan, Run, run_blocks, run_problems
from qbs.inference.checkpoint import Keeper
from qbs.inference.mcmc.combinators import steps_to_adapt
from qbs.inference.mcmc.kernel import Info, Kernel, State
from qbs.inference.mcmc.trace_target import TraceTarget
from qbs.inference.method import Method, require_positive
from qbs.inference.problem import Problem
from qbs.inference.progress import ProgressLine
from qbs.inference.results.diagnostics import chain_problems
from qbs.inference.results.posterior import Posterior, to_numpy
from qbs.inference.sites import walk
from qbs.inference.unconstrained import constrain, potential
from qbs.semantics.density import unconstrain

_CAPACITY = 1000  # steps a compiled block can hold
_MAX_STARTS = 100


class Chains(Method):
    """Chains of any kernel, side by side.

    ```python
    kernel = mcmc.cycle(mcmc.on_sites(mcmc.Slice(), ["scale"]), mcmc.Gibbs({"z": [0, 1]}))
    posterior = qbs.fit(model, y, method=mcmc.Chains(kernel), key=key)
    ```

    Each chain starts at a draw from the prior. Where every site has a gradient, `NUTS` is the better choice.

    Attributes:
        kernel: What makes a step. A kernel that adapts must be done with it in the chains' `num_warmup`.
        num_chains: Number of chains; four or more let R-hat judge them.
        num_warmup: Steps of each chain that are not kept.
        num_draws: Draws kept from each chain.
        thinning: Steps for each draw that is kept.
        is_unconstrained: Whether the kernel moves continuous sites on the whole real line, by NumPyro's
            transforms, or on their own supports. Reversible jump wants the latter.
        until: When to stop before `num_draws`, for example `Converged(ess=1000, r_hat=1.01)`.
    """

    extensible: ClassVar[tuple[str, ...]] = ("num_draws", "until")

    kernel: Kernel
    num_chains: int = eqx.field(static=True, default=4)
    num_warmup: int = eqx.field(static=True, default=1000)
    num_draws: int = eqx.field(static=True, default=1000)
    thinning: int = eqx.field(static=True, default=1)
    is_unconstrained: bool = eqx.field(static=True, default=True)
    until: Converged | None = None

    def __check_init__(self) -> None:
        if not isinstance(self.kernel, Kernel):
            raise TypeError(f"Chains: kernel must be a kernel, not {type(self.kernel).__name__}")
        require_positive(self, "num_chains", "num_draws", "thinning", whole=True)
        if isinstance(self.num_warmup, bool) or not isinstance(self.num_warmup, int) or self.num_warmup < 0:
            raise ValueError(f"Chains: num_warmup must be a whole number from 0 up, not {self.num_warmup!r}")
        if (least := steps_to_adapt(self.kernel)) > self.num_warmup:
            raise ValueError(
                f"Chains: num_warmup must be {least} or more, not {self.num_warmup}: the kernel adapts so "
                "long, and draws of a chain that still adapts are not from the posterior"
            )

    def run(self, problem: Problem, key: Array, line: ProgressLine, keeper: Keeper) -> Posterior:
        """Run all chains; see `Method.run`."""
        if problem.black_box is not None:
            raise ModelError(
                f"Chains needs a likelihood written in JAX, and that of {problem.name!r} is not: use "
                "method=qbs.inference.nested.Dynesty()"
            )
        space = _Space(problem.bound, self.is_unconstrained)
        start_key, init_key, run_key = jax.random.split(key, 3)
        positions, is_valid = _find_starts(space, jax.random.split(start_key, self.num_chains))
        if not np.all(is_valid):
            raise LikelihoodError(
                f"the log density of {problem.name!r} is not finite at any of {_MAX_STARTS} draws from its "
                "prior"
            )
        state = _init(space, self.kernel, jax.random.split(init_key, self.num_chains), positions)
        keys = jax.random.split(run_key, self.num_chains)

        def advance(state: State, done: Array, length: Array) -> tuple[State, _Block]:
            return _advance(space, self.kernel, state, keys, done, length)

        plan = Plan("Chains", self.num_warmup, self.num_draws, _CAPACITY, self.thinning, self.until)
        run = run_blocks(plan, state, advance, partial(_read, space), _said, line, keeper)
        samples, derived = problem.in_order(run.draws()[0])
        stats = run.draws()[1]
        problems = [*run_problems(plan, run), *chain_problems(samples, stats)]
        if num_bad := run.counts["nonfinite"]:
            problems.append(
                f"The log density was NaN or infinite at {num_bad:,} of {run.counts['evaluations']:,} points "
                "tried: they were rejected, as if impossible."
            )
        return Posterior(
            samples=samples,
            num_likelihood_calls=run.counts["evaluations"],
            problems=problems,
            derived=derived,
            stats=stats,
            provenance={"is_interrupted": run.is_interrupted},
        )


class _Space(eqx.Module):
    """Where the chains move, and the log density there."""

    bound: BoundModel
    is_unconstrained: bool = eqx.field(static=True)

    def target(self) -> Any:
        """Return the log density."""
        if self.is_unconstrained:
            return lambda position: -potential(self.bound, position)
        return TraceTarget(self.bound.program, self.bound.arrays)

    def draw(self, key: Array) -> Any:
        """Return a draw from the prior as a position."""
        trace = walk(self.bound.program, self.bound.arrays, key, {}).trace
        trace = {name: trace[name] for name in self.bound.latent}
        return unconstrain(self.bound.program)(trace, *self.bound.arrays) if self.is_unconstrained else trace

    def values(self, position: Any) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return sites, deterministic sites, and log densities at a position."""
        if self.is_unconstrained:
            return constrain(self.bound, position)
        found = walk(self.bound.program, self.bound.arrays, jax.random.key(0), position)
        zero = jnp.zeros(())
        observed = sum((found.log_probs[name] for name in self.bound.scored), start=zero)
        return found.trace, {
            "log_likelihood": observed,
            "log_density": sum(found.log_probs.values(), start=zero),
        }


@eqx.filter_jit
def _find_starts(space: _Space, keys: Array) -> tuple[Any, Bool[Array, " num_chains"]]:
    target = space.target()

    def find(key: Array) -> tuple[Any, Array]:
        def is_next(carry: Any) -> Array:
            index, _, is_valid = carry
            return (index < _MAX_STARTS) & ~is_valid

        def turn(carry: Any) -> Any:
            index, _, _ = carry
            position = space.draw(jax.random.fold_in(key, index))
            return index + 1, position, jnp.isfinite(target(position))

        shapes = jax.eval_shape(space.draw, key)
        nowhere = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.while_loop(is_next, turn, (0, nowhere, jnp.zeros((), bool)))[1:]

    return jax.vmap(find)(keys)


@eqx.filter_jit
def _init(space: _Space, kernel: Kernel, keys: Array, positions: Any) -> State:
    target = space.target()
    return jax.vmap(lambda key, position: kernel.init(key, position, target))(keys, positions)


class _Block(NamedTuple):
    position: Any
    info: Info


@eqx.filter_jit
def _advance(
    space: _Space,
    kernel: Kernel,
    state: State,
    keys: Array,
    done: Int[ArrayLike, ""],
    length: Int[ArrayLike, ""],
) -> tuple[State, _Block]:
    """Make a number of steps, at most `_CAPACITY`; the number is traced, so one program does all blocks."""
    target = space.target()

    def run_chain(key: Array, state: State) -> tuple[State, _Block]:
        def turn(index: Array, carry: tuple[State, _Block]) -> tuple[State, _Block]:
            state, block = carry
            state, info = kernel.step(jax.random.fold_in(key, done + index), state, target)
            put = partial(jax.tree.map, lambda all_, new: all_.at[index].set(new))
            return state, put(block, _Block(state.position, info))

        shapes = jax.eval_shape(lambda: kernel.step(key, state, target))
        empty = jax.tree.map(
            lambda leaf: jnp.zeros((_CAPACITY, *leaf.shape), leaf.dtype),
            _Block(shapes[0].position, shapes[1]),
        )
        return jax.lax.fori_loop(0, length, turn, (state, empty))

    return jax.vmap(run_chain)(keys, state)


@eqx.filter_jit
def _values(space: _Space, positions: Any) -> tuple[dict[str, Array], dict[str, Array]]:
    return jax.vmap(jax.vmap(space.values))(positions)


def _read(space: _Space, block: _Block, length: int, kept: np.ndarray) -> Kept:
    """Count a block of steps, and take its draws."""
    info: Info = jax.tree.map(lambda leaf: leaf[:, :length], to_numpy(block.info))
    counts = {"evaluations": int(info.num_evaluations.sum()), "nonfinite": int(info.num_nonfinite.sum())}
    if not kept.size:
        return Kept({}, {}, counts)
    samples, densities = to_numpy(_values(space, block.position))
    stats = {
        **jax.tree.map(lambda leaf: leaf[:, kept], densities),
        "acceptance_rate": info.acceptance[:, kept],
        "diverging": info.is_divergent[:, kept],
    }
    return Kept(jax.tree.map(lambda leaf: leaf[:, kept], samples), stats, counts)


def _said(run: Run, last: Kept) -> str:
    words = f"{run.counts['evaluations']:,} evaluations"
    return f"{words}, acceptance {last.stats['acceptance_rate'].mean():.2f}" if last.stats else words
