"""Noise: distributions of known density that a model known up to a constant is held against."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, Shaped

_WIDER = 1.2  # variances of a fitted Gaussian over those of the draws, so that tails are covered
_LEAST_SD = 1e-6  # of the largest standard deviation
_FEWEST, _EACH = 10, 5  # effective draws that a refit needs, and more of them for each dimension
_TEMPERATURES = 32


class Noise(eqx.Module):
    """A distribution that can be drawn from and whose normalized log density is known."""

    def sample(self, key: Array, num_draws: int) -> Shaped[Array, "num_draws ..."]:
        """Return independent draws."""
        raise NotImplementedError

    def log_prob(self, draws: Shaped[Array, "num_draws ..."]) -> Float[Array, " num_draws"]:
        """Return normalized log densities, in nats."""
        raise NotImplementedError

    def as_distribution(self) -> dist.Distribution:
        """Return it as a NumPyro distribution of one draw."""
        raise NotImplementedError


class GaussianNoise(Noise):
    """A Gaussian of any covariance, of vectors; draws of other shapes are taken apart into them.

    Attributes:
        mean: Of the entries in turn.
        scale_tril: Lower Cholesky factor of the covariance.
        shape: Of a draw.
    """

    mean: Float[Array, " dim"]
    scale_tril: Float[Array, "dim dim"]
    shape: tuple[int, ...] = eqx.field(static=True)

    @staticmethod
    def of_data(data: Shaped[Array, "num_rows ..."]) -> "GaussianNoise":
        """Return the Gaussian of the mean and 1.2 times the covariance of a table."""
        rows = jnp.reshape(data, (len(data), -1))
        even = jnp.full(len(rows), 1 / len(rows))
        return GaussianNoise(*_moments(rows, even), data.shape[1:])

    def sample(self, key: Array, num_draws: int) -> Float[Array, "num_draws ..."]:
        """Return independent draws."""
        normal = jax.random.normal(key, (num_draws, self.mean.size), self.mean.dtype)
        return jnp.reshape(self.mean + normal @ self.scale_tril.T, (num_draws, *self.shape))

    def log_prob(self, draws: Float[Array, "num_draws ..."]) -> Float[Array, " num_draws"]:
        """Return normalized log densities, in nats."""
        away = jnp.reshape(draws, (len(draws), -1)) - self.mean
        white = solve_triangular(self.scale_tril, away.T, lower=True)
        log_scale = jnp.sum(jnp.log(jnp.diagonal(self.scale_tril)))
        return -0.5 * jnp.sum(white**2, axis=0) - log_scale - 0.5 * self.mean.size * jnp.log(2 * jnp.pi)

    def as_distribution(self) -> dist.Distribution:
        """Return it as a NumPyro distribution of one draw."""
        flat = dist.MultivariateNormal(self.mean, scale_tril=self.scale_tril)
        if self.shape == (self.mean.size,):
            return flat
        reshaped = dist.transforms.ReshapeTransform(self.shape, (self.mean.size,))
        return dist.TransformedDistribution(flat, reshaped)

    def towards(
        self, draws: Float[Array, "num_draws ..."], log_weights: Float[Array, " num_draws"], share: float
    ) -> "GaussianNoise":
        """Return the Gaussian after a step towards weighted draws.

        The weights are tempered, so far as it takes for enough draws to count: from a Gaussian far away the
        first steps go in the right direction, and none collapses to a draw.

        Args:
            draws: Draws of this Gaussian.
            log_weights: Their unnormalized log weights; `-inf` counts nothing.
            share: Of the new moments, in (0, 1].
        """
        rows = jnp.reshape(draws, (len(draws), -1))
        weights = _tempered(log_weights, float(min(_FEWEST + _EACH * self.mean.size, len(rows) / 4)))
        mean, scale_tril = _moments(rows, weights)
        covariance = scale_tril @ scale_tril.T
        old = self.scale_tril @ self.scale_tril.T
        mixed = jnp.linalg.cholesky((1 - share) * old + share * covariance)
        is_usable = jnp.all(jnp.isfinite(mixed)) & jnp.all(jnp.isfinite(mean))
        return GaussianNoise(
            jnp.where(is_usable, (1 - share) * self.mean + share * mean, self.mean),
            jnp.where(is_usable, mixed, self.scale_tril),
            self.shape,
        )


def _moments(rows: Array, weights: Array) -> tuple[Array, Array]:
    mean = weights @ rows
    away = rows - mean
    covariance = _WIDER * (away * weights[:, None]).T @ away
    floor = (_LEAST_SD**2 * jnp.max(jnp.diagonal(covariance))) + jnp.finfo(rows.dtype).tiny
    return mean, jnp.linalg.cholesky(covariance + floor * jnp.eye(len(mean)))


def _tempered(log_weights: Array, enough: float) -> Array:
    """Return normalized weights to the greatest power up to 1 that leaves an effective size of `enough`."""
    powers = jnp.linspace(0, 1, _TEMPERATURES + 1)[1:]
    of_powers = jax.nn.softmax(powers[:, None] * log_weights, axis=1)
    sizes = 1 / jnp.sum(of_powers**2, axis=1)
    return of_powers[jnp.max(jnp.where(sizes >= enough, jnp.arange(_TEMPERATURES), 0))]


class MarginalNoise(Noise):
    """Independent columns of whole numbers from 0 up, each with the frequencies of its own.

    Attributes:
        log_shares: Log probability of each value of each entry.
        shape: Of a draw.
    """

    log_shares: Float[Array, "dim num_values"]
    shape: tuple[int, ...] = eqx.field(static=True)

    @staticmethod
    def of_data(data: Shaped[np.ndarray, "num_rows ..."]) -> "MarginalNoise":
        """Return the frequencies of a table, each value counted once more often than it is there."""
        rows = np.reshape(data, (len(data), -1)).astype(int)
        if rows.min() < 0:
            raise ValueError("noise='marginals' is for whole numbers from 0 up, and there are some below")
        counts = 1.0 + np.stack([np.bincount(column, minlength=rows.max() + 1) for column in rows.T])
        return MarginalNoise(
            jnp.log(jnp.asarray(counts / counts.sum(1, keepdims=True), float)), data.shape[1:]
        )

    def sample(self, key: Array, num_draws: int) -> Shaped[Array, "num_draws ..."]:
        """Return independent draws."""
        drawn = jax.random.categorical(key, self.log_shares, shape=(num_draws, len(self.log_shares)))
        return jnp.reshape(drawn, (num_draws, *self.shape))

    def log_prob(self, draws: Shaped[Array, "num_draws ..."]) -> Float[Array, " num_draws"]:
        """Return log probabilities, in nats."""
        rows = jnp.reshape(draws, (len(draws), -1)).astype(int)
        return jnp.sum(jnp.take_along_axis(self.log_shares.T, rows, axis=0), axis=1)

    def as_distribution(self) -> dist.Distribution:
        """Return it as a NumPyro distribution of one draw."""
        log_shares = jnp.reshape(self.log_shares, (*self.shape, -1))
        return dist.Categorical(logits=log_shares).to_event(len(self.shape))


class GivenNoise(Noise):
    """A distribution of NumPyro or flowjax, or anything else that has their `sample` and `log_prob`.

    Attributes:
        given: The distribution, of one draw.
    """

    given: Any

    def sample(self, key: Array, num_draws: int) -> Shaped[Array, "num_draws ..."]:
        """Return independent draws."""
        return self.given.sample(key, (num_draws,))

    def log_prob(self, draws: Shaped[Array, "num_draws ..."]) -> Float[Array, " num_draws"]:
        """Return normalized log densities, in nats."""
        return self.given.log_prob(draws)

    def as_distribution(self) -> dist.Distribution:
        """Return it as it was given."""
        return self.given


def as_noise(noise: Any, data: Shaped[np.ndarray, "num_rows ..."]) -> Noise:
    """Return what `noise=` names.

    Args:
        noise: None or a name, a `Noise`, or a distribution.
        data: Rows that a named one is fitted to.

    Raises:
        ValueError: If the name is none, or the distribution is not of one row of the data.
        TypeError: If it is something else.
    """
    if noise is None:
        noise = "gaussian" if np.issubdtype(data.dtype, np.floating) else "marginals"
    if noise == "gaussian":
        return GaussianNoise.of_data(jnp.asarray(data, float))
    if noise == "marginals":
        return MarginalNoise.of_data(data)
    if isinstance(noise, str):
        raise ValueError(f"noise must be 'gaussian', 'marginals' or a distribution, not {noise!r}")
    if not isinstance(noise, Noise):
        if not (hasattr(noise, "sample") and hasattr(noise, "log_prob")):
            raise TypeError(
                "noise must be 'gaussian', 'marginals' or something with sample and log_prob, such as a "
                f"NumPyro distribution, not {type(noise).__name__}"
            )
        noise = GivenNoise(noise)
    drawn = jax.eval_shape(lambda: noise.sample(jax.random.key(0), 2))
    if drawn.shape[1:] != data.shape[1:]:
        raise ValueError(
            f"a draw of the noise must have the shape of a row of the data, {data.shape[1:]}, not "
            f"{drawn.shape[1:]}; a NumPyro distribution of independent entries needs .to_event()"
        )
    support = getattr(getattr(noise, "given", None), "support", None)
    if support is not None and not (is_inside := np.asarray(support(jnp.asarray(data)))).all():
        at = int(np.argmin(is_inside))
        raise ValueError(
            f"the noise has no density at {np.sum(~is_inside)} of {len(data)} rows of the data, the first "
            f"of them {data[at]}: its support must be that of the model"
        )
    return noise
