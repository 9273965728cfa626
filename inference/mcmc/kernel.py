"""What a Markov kernel is: a value with settings, whose one step is a program.

Because a step draws by `qbs.sample`, it can be run with a key, put into larger programs, and have its whole
transition matrix computed by `qbs.validate.invariant`.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float, Int

from qbs.effects import sample
from qbs.program import Program
from qbs.semantics.run import run

Target = Callable[[Any], Array]
"""From a position, an array or a tree of them, to the log density there, in nats, up to a constant."""

T = TypeVar("T")


class State(NamedTuple):
    """Where a chain is.

    Attributes:
        position: An array or a tree of arrays.
        log_density: Of the target at the position, in nats.
        inner: What the kernel remembers: what it has adapted, a gradient, the states of kernels in it.
    """

    position: Any
    log_density: Float[Array, ""]
    inner: Any = ()


class Info(NamedTuple):
    """What happened in a step.

    Attributes:
        acceptance: Mean probability of acceptance of what was proposed; 1 for kernels that always move.
        num_evaluations: Evaluations of the target, gradients included.
        num_nonfinite: How many of them were NaN or `+inf`; such points are rejected.
        is_divergent: Whether a Hamiltonian trajectory left the region where its integrator is accurate.
    """

    acceptance: Float[Array, ""]
    num_evaluations: Int[Array, ""]
    num_nonfinite: Int[Array, ""]
    is_divergent: Bool[Array, ""]


class Kernel(eqx.Module):
    """A Markov kernel: settings, and pure functions of a state and a target.

    A kernel that adapts does so in its first `num_warmup` steps only, and keeps what it learnt in the state.
    """

    def init(self, key: Array, position: Any, target: Target) -> State:  # noqa: ARG002 (others may draw)
        """Return the state that a chain starts from.

        Args:
            key: A typed JAX key.
            position: Where to start; an array or a tree of arrays.
            target: Its log density.

        Raises:
            EquinoxRuntimeError: If the log density is not finite at the position.
        """
        state = self.begin(position, target)
        log_density = eqx.error_if(
            state.log_density,
            ~jnp.isfinite(state.log_density),
            "a chain must start where the log density is finite",
        )
        return state._replace(log_density=log_density)

    def step(self, key: Array, state: State, target: Target) -> tuple[State, Info]:
        """Make one step with a key; see `move`."""
        return run(_STEP)(key, self, state, target).value

    def begin(self, position: Any, target: Target) -> State:
        """Return the state at a position, with nothing adapted yet."""
        position = jax.tree.map(jnp.asarray, position)
        return State(position, target(position), ())

    def renew(self, state: State, target: Target) -> State:  # noqa: ARG002 (others have what to renew)
        """Return the state after its position was changed from outside, and its log density with it."""
        return state

    @abstractmethod
    def move(self, state: State, target: Target, name: str = "step") -> tuple[State, Info]:
        """Make one step, drawing by `qbs.sample` as part of the program around.

        Args:
            state: Where the chain is.
            target: The log density that the step leaves invariant.
            name: Starts the names of the sites that are drawn.
        """


_STEP = Program(lambda kernel, state, target: kernel.move(state, target), "step of a kernel")


def as_transition(kernel: Kernel, target: Target) -> Callable[[Any], Any]:
    """Return a kernel as a function from position to position, for `qbs.validate.invariant`.

    Args:
        kernel: The kernel; what it has adapted is forgotten between steps.
        target: A log density on a finite set of positions.
    """

    def transition(position: Any) -> Any:
        return kernel.move(kernel.begin(position, target), target)[0].position

    return transition


def finite_or_impossible(log_density: Array) -> tuple[Array, Array]:
    """Return a log density with `-inf` for NaN and `+inf`, and whether it was one of them."""
    is_bad = jnp.isnan(log_density) | (log_density == jnp.inf)
    return jnp.where(is_bad, -jnp.inf, log_density), is_bad


def accept(log_ratio: Array, new: T, old: T, name: str) -> tuple[T, Array]:
    """Return the new state with probability min(1, exp(log_ratio)), else the old one; and that probability.

    Args:
        log_ratio: Log of the ratio of Metropolis, Hastings and Green; NaN rejects.
        new: What is proposed.
        old: What is kept else.
        name: The name of the site that decides.
    """
    probability = jnp.where(jnp.isnan(log_ratio), 0.0, jnp.exp(jnp.minimum(log_ratio, 0.0)))
    is_accepted = sample(f"{name}: is accepted", dist.Bernoulli(probs=probability)) == 1
    return jax.tree.map(lambda a, b: jnp.where(is_accepted, a, b), new, old), probability


def report(
    acceptance: Any = 1.0, num_evaluations: Any = 1, num_nonfinite: Any = 0, *, is_divergent: Any = False
) -> Info:
    """Return what happened in a step, as arrays."""
    return Info(
        jnp.asarray(acceptance, float),
        jnp.asarray(num_evaluations, int),
        jnp.asarray(num_nonfinite, int),
        jnp.asarray(is_divergent, bool),
    )


def draw_key(name: str) -> Array:
    """Return a typed key drawn as a site, for algorithms that draw a number of times not known before."""
    words = sample(f"{name}: key", dist.DiscreteUniform(0, 2**31 - 2).expand([2]))
    return jax.random.fold_in(jax.random.key(words[0]), words[1])
