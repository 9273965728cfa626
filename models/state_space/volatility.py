"""Stochastic volatility: returns whose spread drifts, with the priors of Kim, Shephard & Chib (1998)."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Key, Num
from numpyro import handlers

from qbs.models.state_space._series import (
    ambient,
    is_known,
    length_of,
    parameter,
    require_shape,
    require_steps,
    series,
    split_missing,
)


class StochasticVolatility(eqx.Module):
    r"""Returns of zero mean whose log variance is a stationary autoregression, with known parameters.

    \(h_1 \sim N(\mu, \sigma^2 / (1 - \phi^2)), \quad h_{t+1} \sim N(\mu + \phi (h_t - \mu), \sigma^2), \quad
    y_t \sim N(0, e^{h_t}).\)

    Called with a series it is a NumPyro model: a `jax.lax.scan` over time with the sites `"log_volatility"`
    and `"return"`, which returns the last log volatility. NaN is a missing return: it is skipped.

    Its likelihood has no closed form. A particle filter estimates it without bias.

    Attributes:
        mu: The mean of the log variance.
        phi: Its persistence, in (-1, 1).
        sigma: The standard deviation of its shocks, above 0.

    Raises:
        ValueError: If one of them is not a number, or is out of its range where it is known.

    References:
        Kim, Shephard & Chib (1998), "Stochastic volatility: likelihood inference and comparison with ARCH
        models", Review of Economic Studies 65, equation 1 with beta = 1.
    """

    mu: Float[Array | np.ndarray, ""]
    phi: Float[Array | np.ndarray, ""]
    sigma: Float[Array | np.ndarray, ""]

    def __init__(self, *, mu: ArrayLike, phi: ArrayLike, sigma: ArrayLike):
        self.mu, self.phi, self.sigma = parameter(mu, "mu"), parameter(phi, "phi"), parameter(sigma, "sigma")
        for name in ("mu", "phi", "sigma"):
            require_shape(getattr(self, name), (), name, "one number")
        if is_known(self.phi) and not abs(np.asarray(self.phi)) < 1:
            raise ValueError(f"phi must lie in (-1, 1), or there is no stationary start, not {self.phi}")
        if is_known(self.sigma) and not np.asarray(self.sigma) > 0:
            raise ValueError(f"sigma must be above 0, not {self.sigma}")

    def __call__(
        self, returns: Num[ArrayLike, "..."] | None = None, num_steps: int | None = None
    ) -> Float[Array, ""]:
        """Run the NumPyro model.

        Args:
            returns: The returns, of shape `(num_steps,)`; NaN where one is missing. `None` draws them.
            num_steps: The number of steps where the returns are drawn.

        Returns:
            The last log volatility.

        Raises:
            ValueError: If the series is empty or of another shape, or if both arguments are given, or none.
        """
        mu, phi, sigma = ambient((self.mu, self.phi, self.sigma))
        observed = None if returns is None else split_missing(series(returns, (), "returns").astype(float))
        num_steps = length_of(None if observed is None else observed[0], num_steps, "returns")

        def step(h: Array, now: Any) -> tuple[Array, None]:
            scale, observed = now
            h = numpyro.sample("log_volatility", dist.Normal(mu + phi * (h - mu), scale))
            spread = dist.Normal(0.0, jnp.exp(0.5 * h))
            if observed is None:
                numpyro.sample("return", spread)
            else:
                y, is_observed = observed
                with handlers.mask(mask=is_observed):
                    numpyro.sample("return", spread, obs=y)
            return h, None

        scales = jnp.full(num_steps, sigma).at[0].set(sigma / jnp.sqrt(1 - phi**2))
        return lax.scan(step, mu, (scales, observed))[0]

    def simulate(
        self, key: Key[Array, ""], num_steps: int
    ) -> tuple[Float[Array, " num_steps"], Float[Array, " num_steps"]]:
        """Draw a series and its log volatilities.

        Args:
            key: A JAX key.
            num_steps: The number of returns.

        Returns:
            The log volatilities, and the returns.

        Raises:
            ValueError: If `num_steps` is not a whole number above 0.
        """
        return _simulate(self, key, require_steps(num_steps))


def stochastic_volatility(
    returns: Num[ArrayLike, "..."] | None = None, num_steps: int | None = None
) -> Float[Array, ""]:
    r"""Run the NumPyro model of returns with unknown parameters.

    \(\mu \sim N(0, 10), \quad (\phi + 1) / 2 \sim \mathrm{Beta}(20, 1.5), \quad
    \sigma^2 \sim \mathrm{InverseGamma}(2.5, 0.025),\)

    the sites `"mu"`, `"phi"` and `"sigma_squared"`, and then `StochasticVolatility` with its sites. Returns
    are in percent in the paper, and the prior of `mu` is meant for such.

    Args:
        returns: The returns, of shape `(num_steps,)`; NaN where one is missing. `None` draws them.
        num_steps: The number of steps where the returns are drawn.

    Returns:
        The last log volatility.

    Raises:
        ValueError: If the series is empty or of another shape, or if both arguments are given, or none.

    References:
        Kim, Shephard & Chib (1998), Review of Economic Studies 65, section 2.
    """
    mu = numpyro.sample("mu", dist.Normal(0.0, jnp.sqrt(10.0)))
    stretch = dist.transforms.AffineTransform(-1.0, 2.0, domain=dist.constraints.unit_interval)
    phi = numpyro.sample("phi", dist.TransformedDistribution(dist.Beta(20.0, 1.5), stretch))
    sigma_squared = numpyro.sample("sigma_squared", dist.InverseGamma(2.5, 0.025))
    return StochasticVolatility(mu=mu, phi=phi, sigma=jnp.sqrt(sigma_squared))(returns, num_steps)


@eqx.filter_jit
def _simulate(model: StochasticVolatility, key: Array, num_steps: int) -> tuple[Array, Array]:
    mu, phi, sigma = ambient((model.mu, model.phi, model.sigma))
    of_shocks, of_noise = jax.random.split(key)
    shocks = sigma * jax.random.normal(of_shocks, (num_steps,))

    def step(h: Array, shock: Array) -> tuple[Array, Array]:
        h = mu + phi * (h - mu) + shock
        return h, h

    first = mu + shocks[0] / jnp.sqrt(1 - phi**2)
    h = jnp.concatenate([first[None], lax.scan(step, first, shocks[1:])[1]])
    return h, jnp.exp(0.5 * h) * jax.random.normal(of_noise, (num_steps,))
