"""Contrastive divergence: data against draws from short chains of the model."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from qbs.inference.method import require_positive
from qbs.inference.unnormalized.noise import Noise
from qbs.inference.unnormalized.training_method import (
    Direction,
    Info,
    LogDensities,
    TrainingMethod,
    require_real,
)

_WANTED = 0.574  # acceptance of Metropolis-adjusted Langevin steps: Roberts & Rosenthal (1998)
_ADAPT = 0.02


class Persistent(NamedTuple):
    """The state of `ContrastiveDivergence`.

    Attributes:
        noise: As it was given; chains begin at draws from it.
        chains: Where they are.
        log_step: Log of the step of the proposals.
    """

    noise: Noise
    chains: Shaped[Array, "batch_size ..."]
    log_step: Float[Array, ""]


class ContrastiveDivergence(TrainingMethod):
    """Contrastive divergence with Metropolis-adjusted Langevin steps; persistent by default.

    The gradient of the log likelihood with draws from chains of the model in place of the model. Chains that
    do
    not mix make it wrong: a mode that none of them visits is not missed.

    Attributes:
        num_steps: Steps of the optimizer.
        batch_size: Rows of the data in a step, and chains.
        learning_rate: Of Adam, in the first half of the steps; then it falls to zero along a line.
        chain_length: Langevin steps between two steps of the optimizer.
        is_persistent: Whether chains go on from step to step (PCD); else each begins at a row of the batch
            (CD).

    References:
        Hinton (2002), "Training products of experts by minimizing contrastive divergence"; Tieleman (2008),
        "Training restricted Boltzmann machines using approximations to the likelihood gradient".
    """

    chain_length: int = eqx.field(static=True, default=10)
    is_persistent: bool = eqx.field(static=True, default=True)

    def __check_init__(self) -> None:
        """Refuse settings that cannot be."""
        require_positive(self, "chain_length", whole=True)

    def init(self, _params: Any, noise: Noise) -> Persistent:
        """Return chains at draws of the noise."""
        chains = noise.sample(jax.random.key(0), self.batch_size)
        dim = math.prod(chains.shape[1:])
        first = 0.5 * dim ** (-1 / 6) * jnp.std(jnp.asarray(chains, float))
        return Persistent(noise, chains, jnp.log(first))

    def direction(
        self,
        key: Array,
        params: Any,
        state: Persistent,
        batch: Shaped[Array, "num_rows ..."],
        densities: LogDensities,
    ) -> Direction:
        """Return the difference of the mean gradients at the data and at the chains."""
        require_real(self, batch)
        start = state.chains if self.is_persistent else batch[: self.batch_size]
        chains, log_step = self._walked(key, params, start, state.log_step, densities)
        chains = jax.lax.stop_gradient(chains)

        def loss(own: Any) -> tuple[Array, Array]:
            rows, others = densities(own, batch), densities(own, chains)
            return jnp.mean(others) - jnp.mean(rows), jnp.concatenate([rows, others])

        (value, found), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        nothing = jnp.full((), jnp.nan)
        kept = Persistent(state.noise, chains if self.is_persistent else state.chains, log_step)
        return Direction(gradient, kept, Info(value, nothing, nothing), found)

    def _walked(
        self, key: Array, params: Any, start: Array, log_step: Array, densities: LogDensities
    ) -> tuple[Array, Array]:
        def total(points: Array) -> tuple[Array, Array]:
            values = densities(params, points)
            return jnp.sum(values), values

        def at(points: Array) -> tuple[Array, Array]:
            slopes, values = jax.grad(total, has_aux=True)(points)
            return values, slopes

        axes = tuple(range(1, start.ndim))

        def move(carry: tuple[Array, Array, Array, Array], key: Array) -> tuple[Any, None]:
            points, values, slopes, log_step = carry
            step = jnp.exp(log_step)
            for_noise, for_choice = jax.random.split(key)
            normal = jax.random.normal(for_noise, points.shape, points.dtype)
            proposed = points + 0.5 * step**2 * slopes + step * normal
            new_values, new_slopes = at(proposed)
            back = (points - proposed - 0.5 * step**2 * new_slopes) / step
            odds = new_values - values + 0.5 * jnp.sum(normal**2 - back**2, axis=axes)
            odds = jnp.where(jnp.isnan(odds), -jnp.inf, odds)
            is_taken = jnp.log(jax.random.uniform(for_choice, odds.shape)) < odds
            log_step = log_step + _ADAPT * (jnp.mean(jnp.exp(jnp.minimum(odds, 0.0))) - _WANTED)
            wide = jnp.reshape(is_taken, (-1, *(1 for _ in axes)))
            kept = (
                jnp.where(wide, proposed, points),
                jnp.where(is_taken, new_values, values),
                jnp.where(wide, new_slopes, slopes),
            )
            return (*kept, log_step), None

        (points, _, _, log_step), _ = jax.lax.scan(
            move, (start, *at(start), log_step), jax.random.split(key, self.chain_length)
        )
        return points, log_step
