r"""Linear growth of structure: the growing mode \(D\), its rate \(f = d\ln D/d\ln a\), and \(f\sigma_8\).

Cold matter clusters on scales far below the horizon, and dark energy, radiation and massive neutrinos do not:

\[f' + f^2 + \left(2 + \frac{d\ln H}{d\ln a}\right) f = \frac{3}{2}\,\frac{\Omega_{cb}\,a^{-3}}{E^2},\]

with a prime for \(d/d\ln a\) and \(\Omega_{cb}\) for baryons and cold dark matter (Linder & Jenkins 2003,
arXiv:astro-ph/0305286, and Bond, Efstathiou & Silk 1980 for the neutrinos). The equation holds in curved
space too. It is solved by 128 Runge-Kutta steps of fourth order in ln a from z = 1000, where the growing mode
in matter and radiation is known (Meszaros 1974): D is proportional to \(1 + \frac{3}{2} a/a_{eq}\). It lacks
that neutrinos cluster on large scales and that baryons lag behind at first.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Num

from qbs.models.cosmology.expansion import (
    RADIATION_DENSITY,
    Cosmology,
    ambient_array,
    cold_density,
    expansion_squared,
)
from qbs.precision import in_float64

_START = float(np.log(1001.0))
"""ln(1+z) at which the integration starts."""

_NUM_STEPS = 128


def _coefficients(cosmology: Cosmology) -> tuple[Array, Array]:
    """Return friction and source at the ends and the middles of the steps."""
    x = ambient_array(np.linspace(_START, 0.0, 2 * _NUM_STEPS + 1))
    squared, slope = jax.jvp(lambda x: expansion_squared(cosmology, x), (x,), (jnp.ones_like(x),))
    return 2.0 - 0.5 * slope / squared, 1.5 * cold_density(cosmology) * jnp.exp(3.0 * x) / squared


def is_expanding(cosmology: Cosmology) -> Bool[Array, ""]:
    """Return whether 0 < E^2 < inf at all steps from z = 1000 to today, in the ambient precision.

    Args:
        cosmology: The background.
    """
    x = ambient_array(np.linspace(_START, 0.0, 2 * _NUM_STEPS + 1))
    squared = expansion_squared(cosmology, x)
    return jnp.all((squared > 0) & (squared < jnp.inf))


def solve_growth(
    cosmology: Cosmology, z: Num[ArrayLike, "*shape"]
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Return D(z)/D(0) and f(z) in the ambient precision.

    Between steps, ln D and f are cubic polynomials with the slopes of the equation at the ends.

    Args:
        cosmology: The background.
        z: Redshifts, 0 <= z <= 1000.

    Returns:
        The growth factor over that of today, and the growth rate; NaN outside the range of redshifts, and
        everywhere if E^2 = 0 at a step.
    """
    friction, source = _coefficients(cosmology)
    step = _START / _NUM_STEPS

    def slope(f: Array, at: tuple[Array, Array]) -> Array:
        return at[1] - f * (f + at[0])

    def advance(state: Any, at: Any) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        log_factor, f = state
        start, middle, end = ((at[0][i], at[1][i]) for i in range(3))
        k1 = slope(f, start)
        f2 = f + 0.5 * step * k1
        k2 = slope(f2, middle)
        f3 = f + 0.5 * step * k2
        k3 = slope(f3, middle)
        f4 = f + step * k3
        k4 = slope(f4, end)
        log_factor = log_factor + step / 6.0 * (f + 2.0 * f2 + 2.0 * f3 + f4)
        f = f + step / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
        return (log_factor, f), (log_factor, f)

    equality = jnp.asarray(RADIATION_DENSITY / cosmology.h**2 / cold_density(cosmology))
    ratio = 1.5 * np.exp(-_START) / equality
    first = (jnp.zeros_like(ratio), ratio / (1.0 + ratio))
    windows = [jnp.stack([c[:-2:2], c[1::2], c[2::2]], axis=-1) for c in (friction, source)]
    _, rest = jax.lax.scan(advance, first, tuple(windows))
    log_factor, f = (jnp.concatenate([a[None], b]) for a, b in zip(first, rest, strict=True))

    place = (_START - jnp.log1p(jnp.asarray(z))) / step
    f_slope = slope(f, (friction[::2], source[::2]))
    log_ratio = _interpolate(place, log_factor - log_factor[-1], step * f)
    is_inside = (place >= 0) & (place <= _NUM_STEPS)
    return (
        jnp.where(is_inside, jnp.exp(log_ratio), jnp.nan),
        jnp.where(is_inside, _interpolate(place, f, step * f_slope), jnp.nan),
    )


def _interpolate(place: Array, values: Array, slopes: Array) -> Array:
    """Return the piecewise cubic through values with slopes at 0, 1, 2, ...

    As a sum over all nodes: jax 0.10 cannot transpose indexing in float64 outside an x64 context.
    """
    offset = place[..., None] - np.arange(_NUM_STEPS + 1)
    distance = jnp.minimum(jnp.abs(offset), 1.0)
    near = (1.0 - distance) ** 2
    return jnp.sum(near * ((1.0 + 2.0 * distance) * values + offset * slopes), axis=-1)


@in_float64
def growth_factor(cosmology: Cosmology, z: Num[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    """Return the linear growth factor D(z)/D(0).

    Args:
        cosmology: The background.
        z: Redshifts, 0 <= z <= 1000.

    Returns:
        D over its value today; NaN outside the range of redshifts.

    References:
        Linder & Jenkins (2003), arXiv:astro-ph/0305286.
    """
    return solve_growth(cosmology, z)[0]


@in_float64
def growth_rate(cosmology: Cosmology, z: Num[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    """Return the linear growth rate f = d ln D/d ln a.

    Args:
        cosmology: The background.
        z: Redshifts, 0 <= z <= 1000.

    Returns:
        f at each redshift; NaN outside the range of redshifts.

    References:
        Linder & Jenkins (2003), arXiv:astro-ph/0305286.
    """
    return solve_growth(cosmology, z)[1]


@in_float64
def growth_rate_sigma8(cosmology: Cosmology, z: Num[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    r"""Return \(f\sigma_8(z) = f(z)\,\sigma_8\,D(z)/D(0)\), what redshift-space distortions measure.

    `sigma8` is that of all matter. What moves is cold, and massive neutrinos do not cluster at 8 Mpc/h: its
    fluctuations are larger by 1/(1 - f_nu), with f_nu the part of neutrinos in matter.

    Args:
        cosmology: The background, with its `sigma8` today.
        z: Redshifts, 0 <= z <= 1000.

    Returns:
        f sigma8 at each redshift. For z <= 2 CAMB's is the same to 1.1e-4 without neutrino masses and to 3e-4
        at 0.06 eV; at 0.3 eV to 3e-3 when three share it and to 8e-3 when one has all (tests/cosmology).
    """
    return predict_growth_rate_sigma8(cosmology, z)


def predict_growth_rate_sigma8(cosmology: Cosmology, z: Num[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    """Return what `growth_rate_sigma8` does, in the ambient precision.

    Args:
        cosmology: The background, with its `sigma8` today.
        z: Redshifts, 0 <= z <= 1000.
    """
    factor, rate = solve_growth(cosmology, z)
    cold_sigma8 = cosmology.sigma8 * cosmology.Om / cold_density(cosmology)
    return jnp.asarray(cold_sigma8 * factor * rate)
