"""Gibbs: discrete sites drawn by trying all their values, others from conditionals that the user knows."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array

from qbs.batches import mask_of
from qbs.effects import sample
from qbs.inference.mcmc.kernel import Info, Kernel, State, Target, finite_or_impossible, report
from qbs.program import unmasked


class Gibbs(Kernel):
    """Draws each number of discrete sites in turn, given everything else.

    A sweep evaluates the target as often as there are numbers times values; the values of one number are
    evaluated together.

    Attributes:
        values: By site name: the values that each number of the site may take, an array of one axis.
    """

    values: Mapping[str, Array] = eqx.field(
        converter=lambda values: {name: jnp.asarray(each) for name, each in values.items()}
    )

    def __check_init__(self) -> None:
        if not self.values:
            raise ValueError("Gibbs needs the values of at least one site")
        for name, values in self.values.items():
            if values.ndim != 1 or values.size == 0:
                raise ValueError(f"Gibbs: the values of {name!r} must be a list of numbers, not {values}")

    def move(self, state: State, target: Target, name: str = "step") -> tuple[State, Info]:
        """Make one sweep; see `Kernel.move`."""
        num_evaluations, num_bad = 0, jnp.zeros((), int)
        for site, values in self.values.items():
            if site not in state.position:
                raise ValueError(
                    f"Gibbs: there is no site named {site!r}; there are {sorted(state.position)}"
                )
            state, bad = _sweep(state, site, values, target, f"{name}: {site}")
            num_bad += bad
            num_evaluations += values.size * state.position[site].size
        return state, report(1.0, num_evaluations, num_bad)


def _sweep(state: State, site: str, values: Array, target: Target, name: str) -> tuple[State, Array]:
    shape, dtype = state.position[site].shape, state.position[site].dtype
    rest = {other: value for other, value in state.position.items() if other != site}

    def turn(carry: Any, index: Array) -> tuple[Any, Array]:
        flat, _ = carry

        def at(value: Array) -> Array:
            return target({**rest, site: flat.at[index].set(value.astype(dtype)).reshape(shape)})

        log_densities, is_bad = finite_or_impossible(jax.vmap(at)(values))
        chosen = sample(name, dist.Categorical(logits=log_densities))
        return (flat.at[index].set(values[chosen].astype(dtype)), log_densities[chosen]), jnp.sum(is_bad)

    flat = state.position[site].reshape(-1)
    (flat, log_density), bad = lax.scan(turn, (flat, state.log_density), jnp.arange(flat.size))
    return State({**rest, site: flat.reshape(shape)}, log_density, state.inner), jnp.sum(bad)


class Conditional(Kernel):
    """Draws sites from their distribution given everything else, as the user knows it.

    It is believed: a wrong one leaves another law invariant. On a small discrete version of the model
    `qbs.validate.invariant` tells; on any, `qbs.validate.joint`.

    Attributes:
        draw: From a dictionary of sites to the distributions of those to be drawn, together, given the
            others. Where a distribution is masked, the numbers stay as they are.
    """

    draw: Callable[[dict[str, Array]], Mapping[str, dist.Distribution]] = eqx.field(static=True)

    def move(self, state: State, target: Target, name: str = "step") -> tuple[State, Info]:
        """Draw; see `Kernel.move`."""
        new = dict(state.position)
        for site, law in self.draw(dict(state.position)).items():
            if site not in new or law.shape() != jnp.shape(new[site]):
                raise ValueError(
                    f"Conditional: the distribution of {site!r} has shape {law.shape()}; there are sites of "
                    f"shapes { {name: jnp.shape(value) for name, value in state.position.items()} }"
                )
            drawn = sample(f"{name}: {site}", unmasked(law)).astype(new[site].dtype)
            mask = mask_of(law)
            new[site] = drawn if mask is None else jnp.where(mask, drawn, new[site])
        log_density, is_bad = finite_or_impossible(target(new))
        return State(new, log_density, state.inner), report(1.0, 1, is_bad)
