"""Score matching: the constant falls out of the gradient of the log density in the data."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from qbs.inference.method import require_positive
from qbs.inference.unnormalized.noise import Noise
from qbs.inference.unnormalized.training_method import (
    Direction,
    Info,
    LogDensities,
    NoiseState,
    TrainingMethod,
    require_real,
)

KINDS = ("exact", "sliced", "denoising")


class ScoreMatching(TrainingMethod):
    r"""Score matching: \(E[\tfrac12 |\nabla_x f|^2 + \Delta_x f]\) is least for the model of the data.

    For smooth densities on all of space. It sees no difference in the weights of modes that are far apart.

    Attributes:
        num_steps: Steps of the optimizer.
        batch_size: Rows of the data in a step.
        learning_rate: Of Adam, in the first half of the steps; then it falls to zero along a line.
        kind: `"exact"`, with the whole Laplacian, whose cost grows with the dimension; `"sliced"`, with a
            random direction for each row in its place; or `"denoising"`, which fits the data with normal
            noise added and needs no second derivative.
        noise_sd: Standard deviation of the noise that `"denoising"` adds, in units of the data.

    References:
        Hyvärinen (2005), "Estimation of non-normalized statistical models by score matching"; Song, Garg,
        Shi & Ermon (2019), "Sliced score matching"; Vincent (2011), "A connection between score matching and
        denoising autoencoders".
    """

    kind: str = eqx.field(static=True, default="exact")
    noise_sd: float = eqx.field(static=True, default=0.1)

    def __check_init__(self) -> None:
        """Refuse settings that cannot be."""
        require_positive(self, "noise_sd")
        if self.kind not in KINDS:
            raise ValueError(f"ScoreMatching: kind must be one of {', '.join(KINDS)}, not {self.kind!r}")

    def init(self, _params: Any, noise: Noise) -> NoiseState:
        """Return the state, which is the noise that log Z is estimated from afterwards."""
        return NoiseState(noise)

    def direction(
        self,
        key: Array,
        params: Any,
        state: NoiseState,
        batch: Shaped[Array, "num_rows ..."],
        densities: LogDensities,
    ) -> Direction:
        """Return the gradient of the loss."""
        require_real(self, batch)
        shape = batch.shape[1:]
        rows = jnp.reshape(batch, (len(batch), -1))
        directions = jax.random.normal(key, rows.shape, rows.dtype)

        def score(own: Any, row: Array) -> Array:
            return jax.grad(lambda x: densities(own, jnp.reshape(x, (1, *shape)))[0])(row)

        def curvature(own: Any, row: Array, direction: Array) -> Array:
            return direction @ jax.jvp(lambda x: score(own, x), (row,), (direction,))[1]

        def of_row(own: Any, row: Array, direction: Array) -> Array:
            if self.kind == "denoising":
                off = score(own, row + self.noise_sd * direction) + direction / self.noise_sd
                return 0.5 * jnp.sum(off**2)
            if self.kind == "sliced":
                laplacian = curvature(own, row, direction)
            else:
                laplacian = jnp.sum(jax.vmap(lambda axis: curvature(own, row, axis))(jnp.eye(len(row))))
            return 0.5 * jnp.sum(score(own, row) ** 2) + laplacian

        def loss(own: Any) -> Array:
            return jnp.mean(jax.vmap(of_row, (None, 0, 0))(own, rows, directions))

        value, gradient = jax.value_and_grad(loss)(params)
        nothing = jnp.full((), jnp.nan)
        return Direction(gradient, state, Info(value, nothing, nothing), densities(params, batch))
