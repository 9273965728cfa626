"""Cosmic chronometers: H(z) from the ages of passive galaxies, in three compilations."""

import functools
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Num

from qbs.models.cosmology import tables
from qbs.models.cosmology._likelihood import DataPath, Likelihood, whitening
from qbs.models.cosmology.background import Cosmology, LineOfSight, ambient_array


class Chronometers(Likelihood):
    r"""H(z) [km/s/Mpc] of passive galaxies: what the classes below share.

    The covariance is \(\mathrm{diag}(\sigma^2) + f f^T + g g^T\): f and g are the fractional errors of the
    initial mass function and of the stellar population models (the estimate with the odd one out removed),
    interpolated in z (constant beyond the table) and times H. They are zero for points that do not share
    them. Where the tabulated error contains them already, they are taken out of the diagonal, so that its
    square root is the tabulated error.

    References:
        Moresco et al. (2020), arXiv:2003.07362, section 4.
    """

    data: Float[np.ndarray, " num_points"]
    errors: Float[np.ndarray, " num_points"]
    covariance: Float[np.ndarray, "num_points num_points"]
    whitening: Float[np.ndarray, "num_points num_points"]
    line_of_sight: LineOfSight

    @classmethod
    def from_table(cls, table: tables.CosmicChronometerTable) -> "Chronometers":
        """Return the likelihood of a table."""
        covariance = np.diag(table.errors**2)
        for column in (0, 3):  # IMF; SPS model, odd one out removed
            percent = np.interp(
                table.redshifts, table.systematic_redshifts, table.systematic_percent[:, column]
            )
            systematic = np.where(table.shares_systematics, percent / 100.0 * table.hubble, 0.0)
            covariance = covariance + np.outer(systematic, systematic)
            if table.has_total_errors:
                covariance = covariance - np.diag(systematic**2)
        return cls(
            data=table.hubble,
            errors=np.sqrt(np.diag(covariance)),
            covariance=covariance,
            whitening=whitening(covariance),
            line_of_sight=LineOfSight.from_redshifts(table.redshifts),
        )

    @property
    def redshifts(self) -> Float[np.ndarray, " num_points"]:
        """Redshifts of the data."""
        return self.line_of_sight.redshifts

    def theory(
        self, cosmology: Cosmology, sound_horizon: Num[ArrayLike, ""] | None = None
    ) -> Float[Array, " num_points"]:
        """Return H [km/s/Mpc] at the redshifts; the sound horizon is not read."""
        del sound_horizon
        return jnp.asarray(100.0 * cosmology.h) * self.line_of_sight.expansion_rate(cosmology)

    def _is_physical(self, cosmology: Cosmology, sound_horizon: Array) -> Bool[Array, ""]:
        del sound_horizon
        return self.line_of_sight.is_physical(cosmology)

    def _chi2(self, cosmology: Cosmology, sound_horizon: Array) -> Float[Array, ""]:
        residuals = ambient_array(self.data) - self.theory(cosmology, sound_horizon)
        return jnp.sum((ambient_array(self.whitening) @ residuals) ** 2)


class CosmicChronometers(Chronometers):
    """H(z) [km/s/Mpc] of 15 passive-galaxy samples, with the covariance of their systematic errors.

    References:
        Moresco et al. (2020), arXiv:2003.07362, section 4.
    """

    name: ClassVar[str] = "cc"
    label: ClassVar[str] = "CC"
    citation: ClassVar[str] = (
        "Moresco et al. (2012, 2015, 2016), arXiv:1201.3609, 1503.01116, 1601.01701; arXiv:2003.07362"
    )
    parameters: ClassVar[tuple[str, ...]] = ("Om", "h")

    @classmethod
    def load(cls, data_path: DataPath = None) -> "Chronometers":
        """Return the likelihood of `tables.cosmic_chronometers`; `data_path` is not read."""
        del data_path
        return _built(cls, tables.cosmic_chronometers())


class CosmicChronometers31(Chronometers):
    """H(z) [km/s/Mpc] of 31 passive-galaxy samples from several groups, errors taken as independent.

    The 15 points of `cc` are among them, rounded as first published. Their common systematic errors are not
    accounted for: `cc` and `cc_32` do that.

    References:
        Gomez-Valent & Amendola (2018), arXiv:1802.01505, for the list.
    """

    name: ClassVar[str] = "cc_31"
    label: ClassVar[str] = "CC (31)"
    citation: ClassVar[str] = "Gomez-Valent & Amendola (2018), arXiv:1802.01505, and references therein"
    parameters: ClassVar[tuple[str, ...]] = ("Om", "h")

    @classmethod
    def load(cls, data_path: DataPath = None) -> "Chronometers":
        """Return the likelihood of `tables.cosmic_chronometers_31`; `data_path` is not read."""
        del data_path
        return _built(cls, tables.cosmic_chronometers_31())


class CosmicChronometers32(Chronometers):
    """H(z) [km/s/Mpc] of 32 passive-galaxy samples; those of Moresco et al. share systematic errors.

    The 15 points that share them are means over two stellar population models, with total errors; the
    other 17 are independent.

    References:
        Favale, Gomez-Valent & Migliaccio (2023), arXiv:2301.09591; Moresco et al. (2020), arXiv:2003.07362.
    """

    name: ClassVar[str] = "cc_32"
    label: ClassVar[str] = "CC (32)"
    citation: ClassVar[str] = (
        "Favale, Gomez-Valent & Migliaccio (2023), arXiv:2301.09591, and references therein; arXiv:2003.07362"
    )
    parameters: ClassVar[tuple[str, ...]] = ("Om", "h")

    @classmethod
    def load(cls, data_path: DataPath = None) -> "Chronometers":
        """Return the likelihood of `tables.cosmic_chronometers_32`; `data_path` is not read."""
        del data_path
        return _built(cls, tables.cosmic_chronometers_32())


@functools.lru_cache(maxsize=8)
def _built(kind: type[Chronometers], table: tables.CosmicChronometerTable) -> Chronometers:
    return kind.from_table(table)
