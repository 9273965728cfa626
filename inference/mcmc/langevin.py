"""MALA: a step along the gradient with noise, corrected by Metropolis."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int

from qbs.effects import sample
from qbs.inference.mcmc.kernel import Info, Kernel, State, Target, accept, finite_or_impossible, report
from qbs.inference.mcmc.vectors import as_vector


class Drift(NamedTuple):
    """What MALA remembers: the gradient where it is, steps so far, and the log of its step size."""

    gradient: Float[Array, " dim"]
    num_steps: Int[Array, ""]
    log_step_size: Float[Array, ""]


class MALA(Kernel):
    r"""The Metropolis-adjusted Langevin algorithm, on the floating-point numbers of the position.

    Proposes \(x + \frac{1}{2} \epsilon^2 s^2 \nabla \log \pi(x) + \epsilon s \xi\) with normal
    \(\xi\) and the scales s of the coordinates. With `num_warmup` it adapts \(\epsilon\) to an acceptance
    of `target_accept`.

    Attributes:
        step_size: \(\epsilon\), before adaptation.
        scale: Of each coordinate: a number, or one for each; about its posterior standard deviation.
        num_warmup: The number of first steps that adapt.
        target_accept: Mean probability of acceptance to adapt to.

    References:
        Roberts & Tweedie (1996), "Exponential convergence of Langevin distributions"; Roberts & Rosenthal
        (1998) for 0.574.
    """

    step_size: Float[Array, ""] = eqx.field(converter=lambda size: jnp.asarray(size, float), default=0.1)
    scale: Float[Array, "..."] = eqx.field(converter=lambda scale: jnp.asarray(scale, float), default=1.0)
    num_warmup: int = eqx.field(static=True, default=0)
    target_accept: float = 0.574

    def begin(self, position: Any, target: Target) -> State:
        """Return the state at a position; see `Kernel.begin`."""
        state = super().begin(position, target)
        log_density, gradient = _with_gradient(target, state.position)
        return State(
            state.position, log_density, Drift(gradient, jnp.zeros((), int), jnp.log(self.step_size))
        )

    def renew(self, state: State, target: Target) -> State:
        """Take the gradient anew; see `Kernel.renew`."""
        _, gradient = _with_gradient(target, state.position)
        return state._replace(inner=state.inner._replace(gradient=gradient))

    def move(self, state: State, target: Target, name: str = "step") -> tuple[State, Info]:
        """Make one step; see `Kernel.move`."""
        flat, unravel = as_vector(state.position)
        drift: Drift = state.inner
        scale = jnp.exp(drift.log_step_size) * jnp.broadcast_to(self.scale, flat.shape)

        def law(flat: Array, gradient: Array) -> dist.Distribution:
            return dist.Normal(flat + 0.5 * scale**2 * gradient, scale)

        there = law(flat, drift.gradient)
        new = sample(f"{name}: position", there)
        log_density, gradient = _with_gradient(target, unravel(new))
        log_density, is_bad = finite_or_impossible(log_density)
        is_bad |= ~jnp.all(jnp.isfinite(gradient))
        back = law(new, jnp.where(is_bad, 0.0, gradient))
        log_ratio = log_density - state.log_density
        log_ratio += jnp.sum(back.log_prob(flat)) - jnp.sum(there.log_prob(new))
        (new, log_density, gradient), acceptance = accept(
            jnp.where(is_bad, -jnp.inf, log_ratio),
            (new, log_density, gradient),
            (flat, state.log_density, drift.gradient),
            name,
        )
        rate = jnp.where(drift.num_steps < self.num_warmup, (drift.num_steps + 2.0) ** -0.6, 0.0)
        log_step_size = drift.log_step_size + rate * (acceptance - self.target_accept)
        after = Drift(gradient, drift.num_steps + 1, log_step_size)
        return State(unravel(new), log_density, after), report(acceptance, 1, is_bad)


def _with_gradient(target: Target, position: Any) -> tuple[Array, Array]:
    flat, unravel = as_vector(position)
    return jax.value_and_grad(lambda flat: target(unravel(flat)))(flat)
