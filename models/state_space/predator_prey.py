"""Predators and prey: the equations of Lotka and Volterra, seen once a year through log-normal noise."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Num
from numpyro import handlers

from qbs.models.state_space._series import ambient, is_known, parameter, series

HUDSON_BAY: tuple[tuple[int, float, float], ...] = (
    (1900, 30.0, 4.0),
    (1901, 47.2, 6.1),
    (1902, 70.2, 9.8),
    (1903, 77.4, 35.2),
    (1904, 36.3, 59.4),
    (1905, 20.6, 41.7),
    (1906, 18.1, 19.0),
    (1907, 21.4, 13.0),
    (1908, 22.0, 8.3),
    (1909, 25.4, 9.1),
    (1910, 27.1, 7.4),
    (1911, 40.3, 8.0),
    (1912, 57.0, 12.3),
    (1913, 76.6, 19.5),
    (1914, 52.3, 45.7),
    (1915, 19.5, 51.1),
    (1916, 11.2, 29.7),
    (1917, 7.6, 15.8),
    (1918, 14.6, 9.7),
    (1919, 16.2, 10.1),
    (1920, 24.7, 8.6),
)
"""Year, and thousands of pelts of snowshoe hares and of lynxes that the Hudson's Bay Company collected.

Hewitt (1921), "The conservation of the wild life of Canada", in the numbers of Howard (2009), "Modeling
basics", that Carpenter (2018) uses.
"""

_NUM_SUBSTEPS = 10
"""Runge-Kutta steps between two times: relative error 4e-6 over the yearly times of `HUDSON_BAY`."""

_LIMIT = 60.0
"""Log populations are held in [-60, 60], so that absurd rates give impossible data and not NaN."""


def solve_lotka_volterra(
    rates: Num[ArrayLike, "4"], initial: Num[ArrayLike, "2"], times: Num[ArrayLike, " num_times"]
) -> Float[Array, "num_times 2"]:
    r"""Return the populations at given times.

    \(u' = (\alpha - \beta v) u, \quad v' = (-\gamma + \delta u) v,\)

    integrated in \(\log u\) and \(\log v\), which keeps them positive, by the classical fourth-order
    Runge-Kutta method in 10 equal steps from each time to the next.

    Args:
        rates: \(\alpha, \beta, \gamma, \delta\): growth of the prey, its loss to a predator, decline of the
            predators, and their growth from a prey.
        initial: Prey and predators at the first time, above 0.
        times: The times, increasing.

    Returns:
        Prey and predators at each time; held in [e^-60, e^60].

    Raises:
        ValueError: If the populations are not above 0, or the times do not increase, where they are known.
    """
    start = parameter(initial, "initial")
    if is_known(start) and np.any(np.asarray(start) <= 0):
        raise ValueError(f"initial must be above 0, not {start}")
    given = ambient(parameter(rates, "rates"))
    gaps = _gaps(_times(times, None))
    return jnp.exp(lax.scan(lambda z, gap: (_move(z, given, gap),) * 2, jnp.log(ambient(start)), gaps)[1])


def lotka_volterra(
    populations: Num[ArrayLike, "..."] | None = None, times: Num[ArrayLike, " num_times"] | None = None
) -> Float[Array, "2"]:
    r"""Run the NumPyro model of predators and prey with unknown rates.

    The sites are the rates of `solve_lotka_volterra`, \(\alpha\) `"prey_growth"` and \(\gamma\)
    `"predator_decline"` with priors N(1, 0.5^2), \(\beta\) `"predation"` and \(\delta\)
    `"predator_growth"` with N(0.05, 0.05^2), all cut at 0; the populations at the first time, `"initial"`,
    log-normal around 10 with a spread of 1; and the spread of the noise of each, `"noise"`, log-normal
    around e^-1 with a spread of 1. Then, in a `jax.lax.scan` over time, the observation `"population"`,
    log-normal around the solution.

    Args:
        populations: Prey and predators at each time, of shape `(num_times, 2)`, above 0; NaN where one is
            missing. `None` draws them.
        times: The times, increasing; 0, 1, 2, ... by default.

    Returns:
        The populations at the last time, without noise.

    Raises:
        ValueError: If the populations are empty, of another shape or not above 0, or the times do not
            increase, or neither is given.

    References:
        Carpenter (2018), "Predator-prey population dynamics: the Lotka-Volterra model in Stan".
    """
    observed = None if populations is None else _observed(populations)
    if times is None and observed is None:
        raise ValueError("give populations, or times to draw them at")
    times = _times(times, None if observed is None else len(observed[0]))
    growth, decline = (_positive(name, 1.0, 0.5) for name in ("prey_growth", "predator_decline"))
    predation, gain = (_positive(name, 0.05, 0.05) for name in ("predation", "predator_growth"))
    rates = jnp.stack([growth, predation, decline, gain])
    log_ten = jnp.log(10.0)
    initial = numpyro.sample("initial", dist.LogNormal(log_ten, 1.0).expand([2]).to_event(1))
    noise = numpyro.sample("noise", dist.LogNormal(-1.0, 1.0).expand([2]).to_event(1))

    def step(z: Array, now: Any) -> tuple[Array, None]:
        gap, observed = now
        z = _move(z, rates, gap)
        if observed is None:
            numpyro.sample("population", dist.LogNormal(z, noise))
        else:
            y, is_observed = observed
            with handlers.mask(mask=is_observed):
                numpyro.sample("population", dist.LogNormal(z, noise), obs=y)
        return z, None

    return jnp.exp(lax.scan(step, jnp.log(initial), (_gaps(times), observed))[0])


def _positive(name: str, mean: float, spread: float) -> Array:
    return numpyro.sample(name, dist.TruncatedNormal(mean, spread, low=0.0))


def _observed(populations: Any) -> tuple[Array, Array]:
    """Return populations without NaN, and which of them are observed."""
    values = series(populations, (2,), "populations").astype(float)
    if is_known(values) and np.any(np.asarray(values) <= 0):
        raise ValueError("populations must be above 0, or NaN where one is missing")
    is_observed = ~jnp.isnan(values)
    return jnp.where(is_observed, values, 1.0), is_observed


def _times(times: Any, num_times: int | None) -> Array:
    values = np.arange(num_times or 0.0) if times is None else parameter(times, "times")
    if values.ndim != 1 or values.size == 0 or num_times not in (None, len(values)):
        wanted = "a vector of at least one time" if num_times is None else f"{num_times} times"
        raise ValueError(f"times must be {wanted}, not an array of shape {values.shape}")
    if is_known(values) and np.any(np.diff(np.asarray(values)) <= 0):
        raise ValueError(f"times must increase, not {values}")
    return ambient(values)


def _gaps(times: Array) -> Array:
    return jnp.diff(times, prepend=times[:1])


def _move(z: Array, rates: Array, gap: Array) -> Array:
    """Return log populations after a time."""
    growth, predation, decline, gain = rates
    step = gap / _NUM_SUBSTEPS

    def slope(z: Array) -> Array:
        prey, predators = jnp.exp(jnp.clip(z, -_LIMIT, _LIMIT))
        return jnp.stack([growth - predation * predators, gain * prey - decline])

    def substep(z: Array, _: None) -> tuple[Array, None]:
        first = slope(z)
        second = slope(z + 0.5 * step * first)
        third = slope(z + 0.5 * step * second)
        fourth = slope(z + step * third)
        moved = z + step / 6 * (first + 2 * second + 2 * third + fourth)
        return jnp.clip(moved, -_LIMIT, _LIMIT), None

    return lax.scan(substep, z, None, length=_NUM_SUBSTEPS)[0]
