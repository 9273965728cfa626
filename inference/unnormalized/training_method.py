"""What the training loop asks of a method that fits a model known up to a constant."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax  # type: ignore[import-untyped]
from jaxtyping import Array, Float, Shaped

from qbs.inference.method import require_positive
from qbs.inference.unnormalized.noise import Noise

# Of parameters and many rows: unnormalized log densities, in nats.
LogDensities = Callable[[Any, Shaped[Array, "num_rows ..."]], Float[Array, " num_rows"]]
T = TypeVar("T")


class Info(NamedTuple):
    """What a person reads of a step.

    Attributes:
        objective: What is made small, in nats where it is a likelihood; of this batch.
        log_partition: The running estimate of the log of the constant; NaN where the method has none.
        effective_size: Of the noise draws of the step, under the model; NaN where there are none.
    """

    objective: Float[Array, ""]
    log_partition: Float[Array, ""]
    effective_size: Float[Array, ""]


class Direction(NamedTuple):
    """What a method makes of a batch.

    Attributes:
        gradient: Of the objective in the parameters.
        state: The method's, for the next step.
        info: For people.
        log_densities: Of the rows of the model that were looked at, to be held against NaN and infinities.
    """

    gradient: Any
    state: Any
    info: Info
    log_densities: Float[Array, " num_rows"]


class TrainingMethod(eqx.Module):
    """Settings of a way to fit, given to `qbs.fit_unnormalized` as `method=`.

    Attributes:
        num_steps: Steps of the optimizer.
        batch_size: Rows of the data in a step.
        learning_rate: Of Adam, in the first half of the steps; then it falls to zero along a line.
    """

    num_steps: int = eqx.field(static=True, default=3000)
    batch_size: int = eqx.field(static=True, default=128)
    learning_rate: float = eqx.field(static=True, default=0.01)

    def __check_init__(self) -> None:
        """Refuse settings that cannot be."""
        require_positive(self, "num_steps", "batch_size", whole=True)
        require_positive(self, "learning_rate")

    def init(self, params: Any, noise: Noise) -> Any:
        """Return the state before the first step; its attribute `noise` is what the method ends with."""
        raise NotImplementedError

    def direction(
        self,
        key: Array,
        params: Any,
        state: Any,
        batch: Shaped[Array, "num_rows ..."],
        densities: LogDensities,
    ) -> Direction:
        """Return which way to go, from one batch."""
        raise NotImplementedError

    def trouble(self, _state: Any) -> list[str]:
        """Return what in the last state speaks against the result, as plain sentences."""
        return []


class NoiseState(NamedTuple):
    """The state of a method that needs nothing but its noise.

    Attributes:
        noise: As it was given.
    """

    noise: Noise


def require_real(method: TrainingMethod, batch: Array) -> None:
    """Raise `TypeError` unless the data are real numbers."""
    if not jnp.issubdtype(batch.dtype, jnp.floating):
        raise TypeError(f"{type(method).__name__} needs data of real numbers, not of {batch.dtype}")


@functools.lru_cache(maxsize=32)  # the same optimizer is not compiled again
def default_optimizer(learning_rate: float, num_steps: int) -> optax.GradientTransformation:
    """Return Adam at a rate that falls to zero along a line in the second half."""
    half = num_steps // 2
    return optax.adam(optax.linear_schedule(learning_rate, 0.0, max(num_steps - half, 1), half))


def effective_size(log_weights: Float[Array, " num_draws"]) -> Float[Array, ""]:
    """Return Kish's effective sample size of log weights; 0 where all are `-inf`."""
    weights = jax.nn.softmax(log_weights)
    return jnp.where(jnp.isfinite(jnp.max(log_weights)), 1 / jnp.sum(weights**2), 0.0)


def tree_dot(first: Any, second: Any) -> Float[Array, ""]:
    """Return the sum of the products of the entries of two trees."""
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), first, second)
    return sum(jax.tree.leaves(products), jnp.zeros(()))
