"""The parameters of a homogeneous universe, and its expansion rate: what all of cosmology here is built on.

The functions compute in the precision they are called in; `background` has their public forms in float64.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Num

from qbs.models.cosmology import neutrinos

SPEED_OF_LIGHT = 299792.458
"""Speed of light [km/s]."""

RADIATION_DENSITY = 4.184e-5
"""Omega_r h^2: photons at 2.7255 K and 3.046 species of massless neutrinos."""

PHOTON_DENSITY = RADIATION_DENSITY / (1.0 + neutrinos.NEUTRINOS_PER_PHOTONS)
"""Omega_gamma h^2, the photons of `RADIATION_DENSITY`."""

NEUTRINO_DENSITY = RADIATION_DENSITY - PHOTON_DENSITY
"""Omega_nu h^2 of the massless neutrinos of `RADIATION_DENSITY`."""


def ambient_array(array: np.ndarray) -> Array:
    """Return a float64 NumPy constant as a JAX array of the ambient precision.

    Always use it to bring a stored NumPy array into traced code. jax 0.10 remembers the precision that an
    array object was first traced in: after a float32 trace, `jnp.asarray(array)` is float32 under x64 too.

    Args:
        array: A NumPy array of floats.

    Returns:
        The same numbers in the default float type of the moment.
    """
    return jnp.asarray(array, dtype=jnp.result_type(float))


class Cosmology(eqx.Module):
    r"""The parameters of a background cosmology.

    \(E^2 = \Omega_m (1+z)^3 + \Omega_r (1+z)^4 + \Omega_k (1+z)^2 + \Omega_1 (1+z) + \Omega_2 (1+z)^2
    + \Omega_0 f(z)\). Dark energy is a density \(f(z) = (1+z)^{3(1+w+w_a)} e^{-3 w_a z/(1+z)}\), with
    \(w(a) = w + w_a (1 - a)\) (Chevallier-Polarski-Linder), and the terms \(\Omega_1\) and \(\Omega_2\); for
    w = -1 it is the quadratic polynomial in 1+z of the model PolyCDM. Radiation is fixed by `h`
    (`RADIATION_DENSITY`). \(\Omega_0\) closes the budget: E = 1 today.

    With `mnu`, some of the three neutrinos of the radiation have mass (see `neutrinos`). `Om` then contains
    their number density times their mass; all is continuous in `mnu` down to 0.

    Attributes:
        Om: Matter density today over the critical density.
        h: Hubble constant in units of 100 km/s/Mpc.
        w: Dark-energy equation of state today; -1 is a cosmological constant.
        wa: Minus its derivative with respect to the scale factor.
        Ok: Curvature density today over the critical density; 0 is flat, negative is closed.
        Obh2: Physical baryon density Omega_b h^2. The background does not depend on it; the sound horizon and
            the nucleosynthesis likelihood do. The default is the pivot of the sound-horizon formula.
        Om1: Density today over the critical density of a dark-energy term that grows as 1+z.
        Om2: The same of one that grows as (1+z)^2 and does not curve space.
        mnu: Sum of the neutrino masses [eV], >= 0; None is no mass: the same as 0, faster.
        sigma8: Standard deviation of linear matter fluctuations today in spheres of 8 Mpc/h. The background
            does not depend on it.
        num_massive: How many neutrinos share `mnu` equally: 1, 2 or 3.

    References:
        Chevallier & Polarski (2001), arXiv:gr-qc/0009008; Linder (2003), arXiv:astro-ph/0208512. PolyCDM:
        Aubourg et al. (2015), arXiv:1411.1074; the form is that of github.com/ja-vazquez/SimpleMC since 2023.
    """

    Om: Num[ArrayLike, ""]
    h: Num[ArrayLike, ""]
    w: Num[ArrayLike, ""] = -1.0
    wa: Num[ArrayLike, ""] = 0.0
    Ok: Num[ArrayLike, ""] = 0.0
    Obh2: Num[ArrayLike, ""] = 0.02236
    Om1: Num[ArrayLike, ""] = 0.0
    Om2: Num[ArrayLike, ""] = 0.0
    mnu: Num[ArrayLike, ""] | None = None
    sigma8: Num[ArrayLike, ""] = 0.81
    num_massive: int = eqx.field(static=True, default=1)

    def __check_init__(self) -> None:
        if self.num_massive not in (1, 2, 3):
            raise ValueError(f"num_massive must be 1, 2 or 3, not {self.num_massive!r}")


def sqrt_or_nan(x: Array) -> Array:
    """Return the square root where `x > 0` and NaN, with a zero gradient, elsewhere."""
    is_positive = x > 0
    return jnp.where(is_positive, jnp.sqrt(jnp.where(is_positive, x, 1.0)), jnp.nan)


def cold_density(cosmology: Cosmology) -> Num[ArrayLike, ""]:
    """Return the density of baryons and cold dark matter today over the critical density."""
    if cosmology.mnu is None:
        return cosmology.Om
    return cosmology.Om - neutrinos.rest_mass_density(cosmology.mnu, NEUTRINO_DENSITY) / cosmology.h**2


def expansion_squared(cosmology: Cosmology, x: Array) -> Float[Array, "*shape"]:
    """Return E^2 = (H/H0)^2 in the ambient precision.

    Args:
        cosmology: The background.
        x: ln(1+z).

    Returns:
        E^2, not guarded: it may be negative, infinite or NaN, and is NaN for a negative `mnu`.
    """
    w, wa, Ok = cosmology.w, cosmology.wa, cosmology.Ok
    # rho_DE / rho_DE(today) for CPL: (1+z)^(3(1+w+wa)) exp(-3 wa z/(1+z)), with z/(1+z) = 1 - exp(-x).
    dark_energy = jnp.exp(3.0 * ((1.0 + w + wa) * x + wa * jnp.expm1(-x)))
    rest, today = _matter_and_radiation(cosmology, x)
    Ode = 1.0 - cosmology.Om - Ok - today - cosmology.Om1 - cosmology.Om2
    squared = rest + Ok * jnp.exp(2.0 * x) + Ode * dark_energy
    return jnp.asarray(squared + (cosmology.Om1 * jnp.exp(x) + cosmology.Om2 * jnp.exp(2.0 * x)))


def dark_energy_density(cosmology: Cosmology) -> Float[Array, ""]:
    """Return the density of dark energy today over the critical density, with its polynomial terms."""
    _, today = _matter_and_radiation(cosmology, jnp.asarray(0.0))
    return jnp.asarray(1.0 - cosmology.Om - cosmology.Ok - today)


def _matter_and_radiation(cosmology: Cosmology, x: Array) -> tuple[Array, Array]:
    """Return what matter and radiation add to E^2 at x, and what they are today beyond `Om`."""
    if cosmology.mnu is None:
        Or = jnp.asarray(RADIATION_DENSITY / cosmology.h**2)
        return Or * jnp.exp(4.0 * x) + cosmology.Om * jnp.exp(3.0 * x), Or
    num = cosmology.num_massive
    mnu = jnp.where(jnp.asarray(cosmology.mnu) >= 0, cosmology.mnu, jnp.nan)
    mass = mnu / (num * neutrinos.NEUTRINO_TEMPERATURE)
    rest_mass = neutrinos.rest_mass_density(mnu, NEUTRINO_DENSITY)

    def relativistic(mass: Array) -> Array:
        """Return Omega h^2 (1+z)^-4 of photons and neutrinos."""
        share = (num * neutrinos.relative_density(mass) + (3 - num)) / 3.0
        return PHOTON_DENSITY + NEUTRINO_DENSITY * share

    radiation = relativistic(mass * jnp.exp(-x)) / cosmology.h**2
    today = (relativistic(mass) - rest_mass) / cosmology.h**2
    return radiation * jnp.exp(4.0 * x) + cold_density(cosmology) * jnp.exp(3.0 * x), today
