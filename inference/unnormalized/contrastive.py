"""Noise-contrastive estimation: tell data from noise, by the ratio of the model and the noise."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax  # type: ignore[import-untyped]
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Shaped

from qbs.inference.method import require_positive
from qbs.inference.unnormalized.noise import Noise
from qbs.inference.unnormalized.training_method import (
    Direction,
    Info,
    LogDensities,
    TrainingMethod,
    default_optimizer,
    effective_size,
)

LOSSES = ("binary", "exponential", "ranking")


class Learned(NamedTuple):
    """The state of `NoiseContrastive`.

    Attributes:
        noise: As it was given.
        log_partition: The constant, as learned so far.
        optimizer: The state of its optimizer.
    """

    noise: Noise
    log_partition: Float[Array, ""]
    optimizer: Any


class NoiseContrastive(TrainingMethod):
    """Noise-contrastive estimation.

    A logistic regression tells data from noise, whose log odds are the model's log density over the noise's;
    the log of the constant is one more parameter.

    Attributes:
        num_steps: Steps of the optimizer.
        batch_size: Rows of the data in a step.
        learning_rate: Of Adam, in the first half of the steps; then it falls to zero along a line.
        num_noise: Noise draws in a step; by default as many as rows.
        loss: `"binary"`, the logistic loss; `"exponential"`, with normalized gradients (eNCE); or
            `"ranking"`, in which each row is told from its own share of the draws, and no constant is
            learned.

    References:
        Gutmann & Hyvärinen (2012), "Noise-contrastive estimation of unnormalized statistical models, with
        applications to natural image statistics", for the logistic loss; Liu, Rosenfeld, Ravikumar & Risteski
        (2022), "Analyzing and improving the optimization landscape of noise-contrastive estimation", for
        eNCE; Ma & Collins (2018), "Noise contrastive estimation and negative sampling for conditional
        models", for ranking.
    """

    num_noise: int | None = eqx.field(static=True, default=None)
    loss: str = eqx.field(static=True, default="binary")

    def __check_init__(self) -> None:
        """Refuse settings that cannot be."""
        if self.num_noise is not None:
            require_positive(self, "num_noise", whole=True)
        if self.loss not in LOSSES:
            raise ValueError(f"NoiseContrastive: loss must be one of {', '.join(LOSSES)}, not {self.loss!r}")
        if self.loss == "ranking" and (self.num_noise or self.batch_size) < self.batch_size:
            raise ValueError(
                f"NoiseContrastive: num_noise must be batch_size, {self.batch_size}, or more where each row "
                "has its own"
            )

    @property
    def _optimizer(self) -> optax.GradientTransformation:
        return default_optimizer(self.learning_rate, self.num_steps)

    def init(self, _params: Any, noise: Noise) -> Learned:
        """Return the state before the first step."""
        constant = jnp.zeros(())
        return Learned(noise, constant, self._optimizer.init(constant))

    def direction(
        self,
        key: Array,
        params: Any,
        state: Learned,
        batch: Shaped[Array, "num_rows ..."],
        densities: LogDensities,
    ) -> Direction:
        """Return the gradient of the loss."""
        noise, num_noise = state.noise, self.num_noise or len(batch)
        draws = jax.lax.stop_gradient(noise.sample(key, num_noise))
        of_noise = noise.log_prob(batch), noise.log_prob(draws)

        def loss(own: Any, log_partition: Array) -> tuple[Array, tuple[Array, Array]]:
            rows, others = densities(own, batch), densities(own, draws)
            ratios = rows - of_noise[0] - log_partition, others - of_noise[1] - log_partition
            return _LOSS[self.loss](*ratios), (jnp.concatenate([rows, others]), ratios[1])

        both = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        (value, (found, log_weights)), slopes = both(params, state.log_partition)
        size = effective_size(log_weights)
        if self.loss == "exponential":
            # Its gradients vanish in places and explode in others: only their direction is used.
            norm = optax.tree.norm(slopes) + 1e-30
            slopes = jax.tree.map(lambda leaf: leaf / norm, slopes)
        gradient, slope = slopes
        if self.loss == "ranking":  # the constant cancels
            return Direction(gradient, state, Info(value, jnp.full((), jnp.nan), size), found)
        update, optimizer = self._optimizer.update(slope, state.optimizer, state.log_partition)
        learned = Learned(noise, state.log_partition + update, optimizer)
        return Direction(gradient, learned, Info(value, state.log_partition, size), found)


def _binary(rows: Array, draws: Array) -> Array:
    odds = math.log(len(draws) / len(rows))
    apart = jnp.sum(jax.nn.softplus(odds - rows)) + jnp.sum(jax.nn.softplus(draws - odds))
    return apart / len(rows)


def _exponential(rows: Array, draws: Array) -> Array:
    """Return the log of the exponential loss, whose gradient has the same direction."""
    halves = jnp.concatenate([-0.5 * rows - math.log(len(rows)), 0.5 * draws - math.log(len(draws))])
    return logsumexp(halves)


def _ranking(rows: Array, draws: Array) -> Array:
    each = len(draws) // len(rows)
    own = jnp.reshape(draws[: each * len(rows)], (len(rows), each))
    return jnp.mean(logsumexp(jnp.concatenate([rows[:, None], own], axis=1), axis=1) - rows)


_LOSS = {"binary": _binary, "exponential": _exponential, "ranking": _ranking}
