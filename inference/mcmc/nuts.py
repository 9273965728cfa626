"""The No-U-Turn sampler: NumPyro's kernel, run for all chains in compiled blocks."""

from functools import partial
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Bool, Int
from numpyro.infer.hmc import HMCState, hmc
from numpyro.infer.util import ParamInfo

from qbs.errors import LikelihoodError
from qbs.inference.binding import BoundModel
from qbs.inference.blocks import Converged, Kept, Plan, Run, run_blocks, run_problems
from qbs.inference.checkpoint import Keeper
from qbs.inference.cpu import Mapped, chains_in_one_kernel, is_straight
from qbs.inference.method import Method, require_positive
from qbs.inference.problem import Problem, nonfinite_data, require_continuous
from qbs.inference.progress import ProgressLine
from qbs.inference.results.diagnostics import chain_problems
from qbs.inference.results.posterior import Posterior, to_numpy
from qbs.inference.unconstrained import constrain, coordinates, potential, site_log_probs, starting_point

_CAPACITY = 100  # draws a compiled block can hold
_PRIOR_DRAWS = 20  # looked at to explain why no chain can start


class NUTS(Method):
    """The No-U-Turn sampler with adapted step size and mass matrix.

    Use it for continuous latent sites and a log density with gradients; it gives no evidence. Chains run
    side by side as one vectorised program; on a CPU, where the model has no loops, one after the other in one
    compiled loop, which is faster there.

    Attributes:
        num_chains: Number of chains; four or more let R-hat judge them.
        num_warmup: Steps of adaptation in each chain, not kept.
        num_draws: Draws kept from each chain.
        target_accept: Acceptance probability that the step size is adapted to, in (0, 1). Higher means
            smaller steps: slower, fewer divergences.
        max_tree_depth: A trajectory has at most `2 ** max_tree_depth` steps.
        dense_mass: Adapt a full mass matrix instead of its diagonal: for strongly correlated posteriors
            of up to some hundred dimensions.
        until: When to stop before `num_draws`, for example `Converged(ess=1000, r_hat=1.01)`.

    References:
        Hoffman & Gelman (2014), "The No-U-Turn sampler"; Betancourt (2017), arXiv:1701.02434; the kernel
        is NumPyro's (Phan, Pradhan & Jankowiak 2019, arXiv:1912.11554).
    """

    extensible: ClassVar[tuple[str, ...]] = ("num_draws", "until")

    num_chains: int = eqx.field(static=True, default=4)
    num_warmup: int = eqx.field(static=True, default=1000)
    num_draws: int = eqx.field(static=True, default=1000)
    target_accept: float = 0.8
    max_tree_depth: int = eqx.field(static=True, default=10)
    dense_mass: bool = eqx.field(static=True, default=False)
    until: Converged | None = None

    def __check_init__(self) -> None:
        require_positive(self, "num_chains", "num_draws", "max_tree_depth", whole=True)
        require_positive(self, "target_accept")
        if isinstance(self.num_warmup, bool) or not isinstance(self.num_warmup, int) or self.num_warmup < 0:
            raise ValueError(f"NUTS: num_warmup must be a whole number from 0 up, not {self.num_warmup!r}")
        if self.target_accept >= 1:
            raise ValueError(f"NUTS: target_accept must lie between 0 and 1, not {self.target_accept!r}")

    def run(self, problem: Problem, key: Array, line: ProgressLine, keeper: Keeper) -> Posterior:
        """Run all chains; see `Method.run`."""
        require_continuous(problem, "NUTS")
        bound = problem.bound
        kernel = _Kernel(
            self.num_warmup, self.max_tree_depth, self.dense_mass, jnp.asarray(self.target_accept)
        )
        straight = _is_straight(bound)
        state, is_valid = _start(bound, kernel, jax.random.split(key, self.num_chains), is_possible=straight)
        if not np.all(is_valid):
            raise _no_start(problem, key)

        def advance(state: HMCState, _done: Array, length: Array) -> tuple[HMCState, _Draw]:
            return _advance_block(bound, kernel, state, length, is_possible=straight)

        plan = Plan("NUTS", self.num_warmup, self.num_draws, _CAPACITY, until=self.until)
        run = run_blocks(plan, state, advance, partial(_read, bound, straight=straight), _said, line, keeper)
        draws, stats = run.draws()
        samples, derived = problem.in_order(draws)
        stats["reached_max_depth"] = stats["num_steps"] >= 2**self.max_tree_depth - 1
        return Posterior(
            samples=samples,
            num_likelihood_calls=run.counts["gradients"],
            problems=[*run_problems(plan, run), *chain_problems(samples, stats)],
            derived=derived,
            stats=stats,
            provenance={"is_interrupted": run.is_interrupted},
        )


class _Kernel(eqx.Module):
    """The settings that shape the compiled step."""

    num_warmup: int = eqx.field(static=True)
    max_tree_depth: int = eqx.field(static=True)
    dense_mass: bool = eqx.field(static=True)
    target_accept: Array

    def functions(self, bound: BoundModel) -> tuple[Any, Any]:
        """Return `init(position, energy, gradient, key) -> state` and `step(state) -> state`.

        Positions are vectors: the kernel has a good deal to do with them beside the gradient, and for each
        site anew where they are trees.
        """
        unravel = coordinates(bound)[1]
        init_kernel, sample_kernel = hmc(lambda position: potential(bound, unravel(position)), algo="NUTS")

        def init(position: Array, energy: Array, gradient: Array, key: Array) -> HMCState:
            return init_kernel(
                ParamInfo(position, energy, gradient),
                self.num_warmup,
                dense_mass=self.dense_mass,
                target_accept_prob=self.target_accept,
                max_tree_depth=self.max_tree_depth,
                trajectory_length=None,
                rng_key=key,
            )

        return init, sample_kernel


@chains_in_one_kernel
def _start(
    mapped: Mapped, bound: BoundModel, kernel: _Kernel, keys: Array
) -> tuple[HMCState, Bool[Array, " num_chains"]]:
    def start_chain(key: Array) -> tuple[HMCState, Array]:
        start_key, run_key = jax.random.split(key)
        position, energy, gradient, is_valid = starting_point(bound, start_key)
        init, _ = kernel.functions(bound)
        return init(ravel_pytree(position)[0], energy, ravel_pytree(gradient)[0], run_key), is_valid

    return mapped(start_chain)(keys)


_STRAIGHT: dict[str, bool] = {}  # by digest


def _is_straight(bound: BoundModel) -> bool:
    """Whether the model has no loops, so that chains can be one kernel."""
    if bound.digest not in _STRAIGHT:
        origin, unravel = coordinates(bound)
        gradient = jax.grad(lambda position: potential(bound, unravel(position)))
        _STRAIGHT[bound.digest] = is_straight(gradient, origin) and is_straight(
            lambda position: constrain(bound, unravel(position)), origin
        )
    return _STRAIGHT[bound.digest]


class _Draw(NamedTuple):
    position: Any
    num_steps: Array
    diverging: Array
    accept_prob: Array


@chains_in_one_kernel
def _advance_block(
    mapped: Mapped, bound: BoundModel, kernel: _Kernel, state: HMCState, num_steps: Int[ArrayLike, ""]
) -> tuple[HMCState, _Draw]:
    """Run a number of steps, at most `_CAPACITY`; the number is traced, so one program does all blocks."""
    init, step = kernel.functions(bound)
    # NumPyro's step reads the adaptation schedule that `init` leaves behind; its result is not used,
    # and compiled away.
    one = jax.tree.map(lambda leaf: leaf[0], state)
    init(one.z, one.potential_energy, one.z_grad, one.rng_key)

    def record(state: HMCState) -> _Draw:
        return _Draw(state.z, state.num_steps, state.diverging, state.accept_prob)

    def turn(index: Array, carry: tuple[HMCState, _Draw]) -> tuple[HMCState, _Draw]:
        state, block = carry
        state = step(state)
        return state, jax.tree.map(lambda all_, new: all_.at[index].set(new), block, record(state))

    def run_chain(state: HMCState) -> tuple[HMCState, _Draw]:
        empty = jax.tree.map(lambda leaf: jnp.zeros((_CAPACITY, *jnp.shape(leaf)), leaf.dtype), record(state))
        return jax.lax.fori_loop(0, num_steps, turn, (state, empty))

    return mapped(run_chain)(state)


@chains_in_one_kernel
def _constrain_block(
    mapped: Mapped, bound: BoundModel, positions: Array
) -> tuple[dict[str, Array], dict[str, Array]]:
    unravel = coordinates(bound)[1]
    return mapped(mapped(lambda position: constrain(bound, unravel(position))))(positions)


def _read(bound: BoundModel, block: _Draw, length: int, kept: np.ndarray, *, straight: bool) -> Kept:
    """Count a block of steps, and take its draws."""
    steps = jax.tree.map(lambda leaf: leaf[:, :length], to_numpy(block._replace(position=())))
    counts = {"gradients": int(steps.num_steps.sum())}
    if not kept.size:
        return Kept({}, {}, counts)
    samples, densities = to_numpy(_constrain_block(bound, block.position, is_possible=straight))
    counts["divergent"] = int(steps.diverging[:, kept].sum())
    stats = {
        **jax.tree.map(lambda leaf: leaf[:, kept], densities),
        "num_steps": steps.num_steps[:, kept],
        "diverging": steps.diverging[:, kept],
        "acceptance_rate": steps.accept_prob[:, kept],
    }
    return Kept(jax.tree.map(lambda leaf: leaf[:, kept], samples), stats, counts)


def _said(run: Run, _last: Kept) -> str:
    return f"{run.counts['gradients']:,} gradients, {run.counts.get('divergent', 0)} divergent"


def _no_start(problem: Problem, key: Array) -> LikelihoodError:
    """Return the error that explains why no finite log density was found."""
    keys = jax.random.split(key, _PRIOR_DRAWS)
    log_probs = to_numpy(jax.vmap(partial(site_log_probs, problem.bound))(keys))
    said = []
    for name, values in log_probs.items():
        for is_bad, word in ((np.isnan, "NaN"), (np.isposinf, "+inf"), (np.isneginf, "-inf")):
            if count := int(np.sum(is_bad(values))):
                said.append(f"site {name!r} is {word} at {count} of {_PRIOR_DRAWS} draws from the prior")
    said += nonfinite_data(problem.bound)
    cause = "; ".join(said) if said else "each site is finite on its own, but the gradient is not"
    return LikelihoodError(
        f"the log density of {problem.name!r} is not finite at any of 100 starting points: {cause}. "
        "Look for NaN or impossible values in the data, log or sqrt of negative numbers, and supports "
        "that the parameters leave"
    )
