"""Hamiltonian kernels, NumPyro's: a trajectory of fixed length, or one that ends at a U-turn."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpyro.infer.hmc import HMCState, hmc
from numpyro.infer.util import ParamInfo

from qbs.inference.mcmc.kernel import Info, Kernel, State, Target, draw_key, report


class HMC(Kernel):
    """Hamiltonian Monte Carlo with a fixed number of leapfrog steps.

    Attributes:
        num_steps: Leapfrog steps of a trajectory.
        step_size: Of the integrator, before adaptation.
        num_warmup: The number of first steps that adapt the step size and the mass matrix.
        target_accept: Mean probability of acceptance to adapt to.
        dense_mass: Adapt a full mass matrix instead of its diagonal.

    References:
        Neal (2011), "MCMC using Hamiltonian dynamics"; the kernel is NumPyro's.
    """

    num_steps: int = eqx.field(static=True, default=10)
    step_size: Float[Array, ""] = eqx.field(converter=lambda size: jnp.asarray(size, float), default=0.1)
    num_warmup: int = eqx.field(static=True, default=0)
    target_accept: float = 0.8
    dense_mass: bool = eqx.field(static=True, default=False)

    def begin(self, position: Any, target: Target) -> State:
        """Return the state at a position; see `Kernel.begin`."""
        return _begin("HMC", self, {"num_steps": self.num_steps, "trajectory_length": None}, position, target)

    def renew(self, state: State, target: Target) -> State:
        """Take the gradient anew; see `Kernel.renew`."""
        return _renew(state, target)

    def move(self, state: State, target: Target, name: str = "step") -> tuple[State, Info]:
        """Make one step; see `Kernel.move`."""
        settings = {"num_steps": self.num_steps, "trajectory_length": None}
        return _move("HMC", self, settings, state, target, name)


class NoUTurn(Kernel):
    """The No-U-Turn sampler as a kernel; `qbs.inference.mcmc.NUTS` is the method that runs chains of it.

    Attributes:
        step_size: Of the integrator, before adaptation.
        num_warmup: The number of first steps that adapt the step size and the mass matrix.
        target_accept: Mean probability of acceptance to adapt to.
        dense_mass: Adapt a full mass matrix instead of its diagonal.
        max_tree_depth: A trajectory has at most `2 ** max_tree_depth` steps.

    References:
        Hoffman & Gelman (2014), "The No-U-Turn sampler"; the kernel is NumPyro's.
    """

    step_size: Float[Array, ""] = eqx.field(converter=lambda size: jnp.asarray(size, float), default=0.1)
    num_warmup: int = eqx.field(static=True, default=0)
    target_accept: float = 0.8
    dense_mass: bool = eqx.field(static=True, default=False)
    max_tree_depth: int = eqx.field(static=True, default=10)

    def begin(self, position: Any, target: Target) -> State:
        """Return the state at a position; see `Kernel.begin`."""
        return _begin("NUTS", self, {"max_tree_depth": self.max_tree_depth}, position, target)

    def renew(self, state: State, target: Target) -> State:
        """Take the gradient anew; see `Kernel.renew`."""
        return _renew(state, target)

    def move(self, state: State, target: Target, name: str = "step") -> tuple[State, Info]:
        """Make one step; see `Kernel.move`."""
        return _move("NUTS", self, {"max_tree_depth": self.max_tree_depth}, state, target, name)


def _begin(algorithm: str, kernel: Any, settings: dict[str, Any], position: Any, target: Target) -> State:
    position = jax.tree.map(jnp.asarray, position)
    init, _ = hmc(partial(_energy, target), algo=algorithm)
    state = init(*_initial(kernel, position, target), **_adaptation(kernel), **settings)
    return State(position, -state.potential_energy, state)


def _move(
    algorithm: str, kernel: Any, settings: dict[str, Any], state: State, target: Target, name: str
) -> tuple[State, Info]:
    init, step = hmc(partial(_energy, target), algo=algorithm)
    # NumPyro's step reads the adaptation schedule that `init` leaves behind; its result is not used.
    init(*_initial(kernel, state.position, target), **_adaptation(kernel), **settings)
    moved: HMCState = step(state.inner._replace(rng_key=draw_key(name)))
    is_bad = jnp.isnan(moved.accept_prob)
    info = report(
        jnp.where(is_bad, 0.0, moved.accept_prob), moved.num_steps, is_bad, is_divergent=moved.diverging
    )
    moved = jax.tree.map(_of_type, moved._replace(rng_key=state.inner.rng_key), state.inner)
    return State(moved.z, -moved.potential_energy, moved), info


def _of_type(new: Any, old: Array) -> Array:
    """Return a value in the type that it had, so that a loop can carry it."""
    return new if jnp.issubdtype(old.dtype, jax.dtypes.prng_key) else jnp.asarray(new, old.dtype)


def _renew(state: State, target: Target) -> State:
    energy, gradient = jax.value_and_grad(partial(_energy, target))(state.position)
    inner = state.inner._replace(z=state.position, potential_energy=energy, z_grad=gradient)
    return state._replace(inner=inner)


def _energy(target: Target, position: Any) -> Array:
    return -target(position)


def _initial(kernel: Any, position: Any, target: Target) -> tuple[ParamInfo, int]:
    energy, gradient = jax.value_and_grad(partial(_energy, target))(position)
    return ParamInfo(position, energy, gradient), kernel.num_warmup


def _adaptation(kernel: Any) -> dict[str, Any]:
    return {
        "step_size": kernel.step_size,
        "adapt_step_size": kernel.num_warmup > 0,
        "adapt_mass_matrix": kernel.num_warmup > 0,
        "dense_mass": kernel.dense_mass,
        "target_accept_prob": kernel.target_accept,
        "rng_key": jax.random.key(0),  # each step brings its own
    }
