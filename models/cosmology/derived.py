"""Numbers that a background implies: its age, its deceleration today and the onset of acceleration."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Num

from qbs.models.cosmology.expansion import Cosmology, expansion_squared, sqrt_or_nan
from qbs.models.cosmology.expansion import dark_energy_density as _dark_energy_density
from qbs.precision import in_float64

HUBBLE_TIME = 977.7922216807891
"""Mpc/(km/s) in Gyr: the Hubble time of h = 0.01. A year has 365.25 days."""

MAX_TRANSITION = 1000.0
"""The largest redshift at which `transition_redshift` looks for the onset of acceleration."""

_NUM_QUADRATURE = 32
_NUM_BRACKETS = 256
_NUM_BISECTIONS = 40


@in_float64
def age(cosmology: Cosmology) -> Float[Array, ""]:
    r"""Return the age of the universe [Gyr].

    Computes \(t_0 = \int_0^1 da/(a H)\) by 32 Gauss-Legendre nodes in the square root of a, to 1e-9.

    Args:
        cosmology: The background.

    Returns:
        The time since a = 0 [Gyr]; NaN if E^2 <= 0 at a node, for then there was no beginning.
    """
    nodes, weights = np.polynomial.legendre.leggauss(_NUM_QUADRATURE)
    root = 0.5 * (1.0 + nodes)
    rate = sqrt_or_nan(expansion_squared(cosmology, -2.0 * jnp.log(root)))
    return jnp.asarray(HUBBLE_TIME / (100.0 * cosmology.h)) * jnp.sum(weights / root / rate)


def _deceleration(cosmology: Cosmology, x: Array) -> Array:
    """Return q at x = ln(1+z)."""
    squared, slope = jax.jvp(lambda x: expansion_squared(cosmology, x), (x,), (jnp.ones_like(x),))
    return 0.5 * slope / squared - 1.0


@in_float64
def deceleration(cosmology: Cosmology, z: Num[ArrayLike, "*shape"] = 0.0) -> Float[Array, "*shape"]:
    r"""Return the deceleration parameter \(q = -\ddot a\,a/\dot a^2 = \frac12 d\ln E^2/d\ln(1+z) - 1\).

    Args:
        cosmology: The background.
        z: Redshifts, > -1.

    Returns:
        q at each redshift: 1/2 in matter, -1 in de Sitter space, negative where the expansion accelerates.
    """
    return _deceleration(cosmology, jnp.log1p(jnp.asarray(z, dtype=float)))


@in_float64
def transition_redshift(cosmology: Cosmology) -> Float[Array, ""]:
    r"""Return the redshift at which the present phase of acceleration began.

    Looks for the first sign change of q on 256 intervals of ln(1+z), 0.027 wide, up to z = 1000, and bisects;
    a phase of deceleration shorter than that is not seen.

    Args:
        cosmology: The background.

    Returns:
        The redshift, with its gradient. It is 0 when the expansion does not accelerate today, and
        `MAX_TRANSITION` when it has done so since then. Never NaN for finite parameters with E^2 > 0.
    """
    limit = float(np.log1p(MAX_TRANSITION))
    grid = jnp.linspace(0.0, limit, _NUM_BRACKETS + 1)
    still = jax.lax.stop_gradient(cosmology)
    is_decelerating = _deceleration(still, grid) >= 0.0

    def halve(_: ArrayLike, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        is_before = _deceleration(still, middle) < 0.0
        return jnp.where(is_before, middle, low), jnp.where(is_before, high, middle)

    # Not argmax: jax 0.10 cannot lower it in float64 outside an x64 context.
    end = jnp.min(jnp.where(is_decelerating, grid, limit))
    ends = (end - limit / _NUM_BRACKETS, end)
    root = jax.lax.fori_loop(0, _NUM_BISECTIONS, halve, ends)[1]
    # One Newton step from the converged root: it moves nothing, and carries the gradient.
    slope = jax.grad(lambda x: _deceleration(still, x))(root)
    is_onset = jnp.any(is_decelerating) & ~is_decelerating[0] & (slope > 0.0)
    step = jnp.where(is_onset, _deceleration(cosmology, root), 0.0) / jnp.where(is_onset, slope, 1.0)
    began = jnp.where(jnp.any(is_decelerating), jnp.expm1(root - step), MAX_TRANSITION)
    return jnp.where(is_decelerating[0], 0.0, began)


@in_float64
def dark_energy_density(cosmology: Cosmology) -> Float[Array, ""]:
    """Return the density of dark energy today over the critical density, all its terms together.

    Args:
        cosmology: The background.

    Returns:
        1 - Om - Ok less radiation.
    """
    return _dark_energy_density(cosmology)
