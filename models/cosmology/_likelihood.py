"""What every data set offers: prediction, chi2 and log likelihood, guarded against impossible cosmologies."""

import abc
import dataclasses
import os

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Num

from qbs.models.cosmology.background import Cosmology, sound_horizon
from qbs.models.cosmology.expansion import cold_density

DataPath = str | os.PathLike[str] | None

_FIDUCIAL = Cosmology(Om=0.3, h=0.68)


class Likelihood(eqx.Module):
    """What every data set offers.

    A subclass brings its NumPy constants into its methods by `background.ambient_array`.

    Attributes:
        name: The name in run files and of the NumPyro factor.
        label: The name in plots and tables.
        citation: Where the data were published.
        parameters: The parameters of `qbs.models.cosmology.parameters` that the data constrain, dark energy
            and curvature aside.
        data: The measured vector.
        errors: Square root of the diagonal of its covariance, for plots.
    """

    name: eqx.AbstractClassVar[str]
    label: eqx.AbstractClassVar[str]
    citation: eqx.AbstractClassVar[str]
    parameters: eqx.AbstractClassVar[tuple[str, ...]]
    data: eqx.AbstractVar[Float[np.ndarray, " num_points"]]
    errors: eqx.AbstractVar[Float[np.ndarray, " num_points"]]

    @classmethod
    @abc.abstractmethod
    def load(cls, data_path: DataPath = None) -> "Likelihood":
        """Return the likelihood of the published data.

        Args:
            data_path: Where to look for tables too large to ship; see `tables.pantheon_plus`. The data sets
                that ship with qbs do not read it.

        Returns:
            The likelihood, built once for each table.

        Raises:
            DataError: If the table is missing or damaged.
        """

    @abc.abstractmethod
    def theory(
        self, cosmology: Cosmology, sound_horizon: Num[ArrayLike, ""] | None = None
    ) -> Float[Array, " num_points"]:
        """Return what the cosmology predicts for `data`, in its unit; not guarded against NaN.

        Args:
            cosmology: The background.
            sound_horizon: r_d [Mpc]; None is the fitting formula. Only BAO depends on it.

        Returns:
            The prediction.
        """

    @abc.abstractmethod
    def _is_physical(self, cosmology: Cosmology, sound_horizon: Array) -> Bool[Array, ""]:
        """Return whether the prediction exists."""

    @abc.abstractmethod
    def _chi2(self, cosmology: Cosmology, sound_horizon: Array) -> Float[Array, ""]:
        """Return chi2 for a cosmology that is physical."""

    @property
    def num_points(self) -> int:
        """The number of measured values."""
        return self.data.size

    def chi2(self, cosmology: Cosmology, sound_horizon: Num[ArrayLike, ""] | None = None) -> Float[Array, ""]:
        """Return chi squared.

        Args:
            cosmology: The background.
            sound_horizon: r_d [Mpc]; None is the fitting formula. Only BAO depends on it.

        Returns:
            A number >= 0, or inf, with a zero gradient, when the cosmology is not physical.
        """
        horizon = resolve_sound_horizon(cosmology, sound_horizon)
        is_physical = self._is_physical(cosmology, horizon)
        # The double where: what is differentiated never sees the bad values.
        cosmology = jax.tree.map(lambda x, safe: jnp.where(is_physical, x, safe), cosmology, _safe(cosmology))
        value = self._chi2(cosmology, jnp.where(is_physical, horizon, 147.05))
        return jnp.where(is_physical & jnp.isfinite(value), value, jnp.inf)

    def log_likelihood(
        self, cosmology: Cosmology, sound_horizon: Num[ArrayLike, ""] | None = None
    ) -> Float[Array, ""]:
        """Return -chi2/2, without normalising constants.

        Args:
            cosmology: The background.
            sound_horizon: r_d [Mpc]; None is the fitting formula. Only BAO depends on it.

        Returns:
            The log likelihood; -inf, with a zero gradient, when the cosmology is not physical.
        """
        return -0.5 * self.chi2(cosmology, sound_horizon)


def _safe(cosmology: Cosmology) -> Cosmology:
    """Return a possible cosmology with neutrinos as in the given one."""
    mnu = None if cosmology.mnu is None else 0.06
    return dataclasses.replace(_FIDUCIAL, mnu=mnu, num_massive=cosmology.num_massive)


def resolve_sound_horizon(cosmology: Cosmology, given: ArrayLike | None) -> Array:
    """Return the given r_d [Mpc], or the fitting formula's when it is None."""
    if given is not None:
        return jnp.asarray(given)
    return sound_horizon(cold_density(cosmology), cosmology.h, cosmology.Obh2)


def whitening(covariance: np.ndarray) -> np.ndarray:
    """Return W with W^T W the inverse of the covariance."""
    return np.linalg.inv(np.linalg.cholesky(covariance))


def is_positive(x: ArrayLike) -> Bool[Array, ""]:
    """Return whether a number is positive and finite."""
    return (jnp.asarray(x) > 0) & (jnp.asarray(x) < jnp.inf)
