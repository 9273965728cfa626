"""Last scattering: its redshift, the sound horizon then, and the angles that the CMB measures."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Num

from qbs.models.cosmology.background import transverse_comoving_distance
from qbs.models.cosmology.expansion import (
    PHOTON_DENSITY,
    RADIATION_DENSITY,
    SPEED_OF_LIGHT,
    Cosmology,
    cold_density,
    expansion_squared,
    sqrt_or_nan,
)
from qbs.models.cosmology.neutrinos import CMB_TEMPERATURE
from qbs.precision import in_float64

_NUM_QUADRATURE = 32


@in_float64
def hu_sugiyama_redshift(
    Obh2: Num[ArrayLike, "*shape"], Ombch2: Num[ArrayLike, "*shape"]
) -> Float[Array, "*shape"]:
    r"""Return the redshift of last scattering by the fitting formula of Hu and Sugiyama.

    \(z_* = 1048\,(1 + 0.00124\,\omega_b^{-0.738})(1 + g_1 \omega_m^{g_2})\) with
    \(g_1 = 0.0783\,\omega_b^{-0.238}/(1 + 39.5\,\omega_b^{0.763})\) and
    \(g_2 = 0.560/(1 + 21.1\,\omega_b^{1.81})\). Today's codes give 1.9 less: see `last_scattering_redshift`.

    Args:
        Obh2: Physical density of baryons, > 0.
        Ombch2: Physical density of baryons and cold dark matter, > 0.

    Returns:
        The redshift; NaN where a density is negative.

    References:
        Hu & Sugiyama (1996), arXiv:astro-ph/9510117, equation E-1.
    """
    b, m = jnp.asarray(Obh2), jnp.asarray(Ombch2)
    g1 = 0.0783 * b**-0.238 / (1.0 + 39.5 * b**0.763)
    g2 = 0.560 / (1.0 + 21.1 * b**1.81)
    return 1048.0 * (1.0 + 0.00124 * b**-0.738) * (1.0 + g1 * m**g2)


@in_float64
def last_scattering_redshift(cosmology: Cosmology) -> Float[Array, ""]:
    """Return the redshift at which the optical depth, reionization aside, is 1.

    It is the formula of Hu and Sugiyama less a quadratic polynomial in the logarithms of both densities. That
    was fitted for qbs to CAMB 2.0.5, with helium from nucleosynthesis, on 63 points with
    0.018 <= Obh2 <= 0.027 and baryons and cold dark matter of 0.08 <= Omega h^2 <= 0.25. The largest
    difference there is 0.03; masses of 0.3 eV and dark energy that is not negligible at z = 1090 add up to
    0.15 (tests/cosmology).

    Args:
        cosmology: The background; its densities of baryons and of cold dark matter matter.

    Returns:
        The redshift; NaN where a density is negative.
    """
    Obh2 = jnp.asarray(cosmology.Obh2)
    Ombch2 = jnp.asarray(cold_density(cosmology) * cosmology.h**2)
    b, m = jnp.log(Obh2 / 0.0224), jnp.log(Ombch2 / 0.143)
    excess = 1.944 - 2.202 * b - 0.0873 * m - 1.770 * b**2 + 0.604 * b * m + 0.137 * m**2
    return hu_sugiyama_redshift(Obh2, Ombch2) - excess


@in_float64
def comoving_sound_horizon(cosmology: Cosmology, z: Num[ArrayLike, ""]) -> Float[Array, ""]:
    r"""Return how far sound came in the plasma of baryons and photons until a redshift [Mpc].

    \(r_s = \int_0^{1/(1+z)} \frac{c\,da}{a^2 H \sqrt{3(1 + R)}}\) with
    \(R = 3\rho_b/4\rho_\gamma\), by 32 Gauss-Legendre nodes: to rounding where matter and radiation dominate.

    Args:
        cosmology: The background and its baryons.
        z: The redshift, before last scattering or about it.

    Returns:
        The comoving distance [Mpc]; NaN if E^2 <= 0 at a node.

    References:
        Hu & Sugiyama (1996), arXiv:astro-ph/9510117, equation B6.
    """
    return _sound_horizon(cosmology, jnp.asarray(z), 0.0, 0.75 / PHOTON_DENSITY)


def _sound_horizon(cosmology: Cosmology, z: Array, more_radiation: ArrayLike, baryon_loading: float) -> Array:
    """Return r_s with more radiation [Omega h^2] than the cosmology has, and R = loading * Obh2 * a."""
    nodes, weights = np.polynomial.legendre.leggauss(_NUM_QUADRATURE)
    half = 0.5 / (1.0 + z)
    a = half * (1.0 + nodes)
    flatness = a**4 * expansion_squared(cosmology, -jnp.log(a)) + more_radiation / cosmology.h**2
    loading = jnp.asarray(1.0 + baryon_loading * cosmology.Obh2 * a)
    integral = half * jnp.sum(weights / sqrt_or_nan(jnp.asarray(3.0 * loading * flatness)))
    return jnp.asarray(SPEED_OF_LIGHT / (100.0 * cosmology.h)) * integral


@in_float64
def acoustic_angle(cosmology: Cosmology) -> Float[Array, ""]:
    r"""Return \(\theta_* = r_s(z_*)/D_M(z_*)\), the angle of the sound horizon at last scattering [rad].

    Args:
        cosmology: The background and its baryons.

    Returns:
        The angle; NaN if E^2 <= 0 at a node. That of CAMB is the same to 2e-5 of it for masses up to 0.06 eV
        and dark energy that is negligible at z = 1090, else to 1e-4 (tests/cosmology).
    """
    z = last_scattering_redshift(cosmology)
    return comoving_sound_horizon(cosmology, z) / transverse_comoving_distance(cosmology, z)


@in_float64
def distance_priors(cosmology: Cosmology) -> Float[Array, " two"]:
    r"""Return the shift parameter R and the acoustic scale l_A, as Chen, Huang & Wang (2019) define them.

    \(R = \sqrt{\Omega_m}\,H_0 D_M(z_*)/c\) and \(l_A = \pi D_M(z_*)/r_s(z_*)\). Their sound horizon has the
    radiation of \(z_{eq} = 2.5\times 10^4\,\Omega_m h^2\,(T/2.7\,\mathrm{K})^{-4}\) (0.8 per cent less than
    `RADIATION_DENSITY`), all matter of today, and \(R = 31500\,\Omega_b h^2 (T/2.7\,\mathrm{K})^{-4} a\).

    At Planck's mean (Om = 0.3166, h = 0.6727, Obh2 = 0.02236) this gives l_A = 301.42, and 301.49 with
    0.06 eV, where they have 301.471 +- 0.090. With the redshift of Hu and Sugiyama it would be 301.8, and
    \(\pi/\theta_*\) of Planck is 301.76: 3 to 4 standard deviations off, a biased prior. So here \(z_*\) is
    that of `last_scattering_redshift`.

    Args:
        cosmology: The background and its baryons.

    Returns:
        R and l_A, dimensionless; NaN if E^2 <= 0 at a node.

    References:
        Chen, Huang & Wang (2019), arXiv:1808.05724, section 2.
    """
    z = last_scattering_redshift(cosmology)
    distance = transverse_comoving_distance(cosmology, z)
    temperature = (CMB_TEMPERATURE / 2.7) ** -4
    radiation = cosmology.Om * cosmology.h**2 / (1.0 + 2.5e4 * cosmology.Om * cosmology.h**2 * temperature)
    massless = dataclasses.replace(cosmology, mnu=None)
    horizon = _sound_horizon(massless, z, radiation - RADIATION_DENSITY, 31500.0 * temperature)
    shift = jnp.sqrt(cosmology.Om) * (100.0 * cosmology.h / SPEED_OF_LIGHT) * distance
    return jnp.stack([jnp.asarray(shift), jnp.pi * distance / horizon])
