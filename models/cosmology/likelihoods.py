r"""Gaussian likelihoods of background data: one small frozen module per data set.

Each compares `theory(cosmology, sound_horizon)` with `data` and gives \(\chi^2\) and
\(\ln L = -\chi^2/2\), without normalising constants. They are plain JAX and run in the ambient precision;
the matrices are float64 NumPy constants prepared once. A cosmology that does not exist (NaN, E^2 <= 0,
D_M <= 0 on the way to the data) has a chi2 of inf and a log likelihood of -inf, with a zero gradient.
"""

import abc
import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Num

from qbs.models.cosmology import tables
from qbs.models.cosmology._likelihood import DataPath, resolve_sound_horizon
from qbs.models.cosmology._likelihood import Likelihood as Likelihood
from qbs.models.cosmology._pantheon_plus import PantheonPlus as PantheonPlus
from qbs.models.cosmology.background import Cosmology, LineOfSight, ambient_array


def _whitening(covariance: np.ndarray) -> np.ndarray:
    """Return W with W^T W the inverse of the covariance."""
    return np.linalg.inv(np.linalg.cholesky(covariance))


def _is_positive(x: ArrayLike) -> Bool[Array, ""]:
    return (jnp.asarray(x) > 0) & (jnp.asarray(x) < jnp.inf)


class CosmicChronometers(Likelihood):
    r"""H(z) [km/s/Mpc] of 15 passive-galaxy samples, with correlated systematic errors.

    The covariance is \(\mathrm{diag}(\sigma^2) + f f^T + g g^T\): f and g are the fractional errors of the
    initial mass function and of the stellar population models (the estimate with the odd one out removed),
    interpolated in z (constant beyond the table) and times H.

    References:
        Moresco et al. (2020), arXiv:2003.07362, section 4.
    """

    name: ClassVar[str] = "cc"
    label: ClassVar[str] = "CC"
    citation: ClassVar[str] = (
        "Moresco et al. (2012, 2015, 2016), arXiv:1201.3609, 1503.01116, 1601.01701; arXiv:2003.07362"
    )
    parameters: ClassVar[tuple[str, ...]] = ("Om", "h")

    data: Float[np.ndarray, " num_points"]
    errors: Float[np.ndarray, " num_points"]
    covariance: Float[np.ndarray, "num_points num_points"]
    whitening: Float[np.ndarray, "num_points num_points"]
    line_of_sight: LineOfSight

    @classmethod
    def load(cls, data_path: DataPath = None) -> "CosmicChronometers":
        """Return the likelihood of `tables.cosmic_chronometers`; `data_path` is not read."""
        del data_path
        return _cosmic_chronometers(tables.cosmic_chronometers())

    @classmethod
    def from_table(cls, table: tables.CosmicChronometerTable) -> "CosmicChronometers":
        """Return the likelihood of a table."""
        covariance = np.diag(table.errors**2)
        for column in (0, 3):  # IMF; SPS model, odd one out removed
            percent = np.interp(
                table.redshifts, table.systematic_redshifts, table.systematic_percent[:, column]
            )
            systematic = percent / 100.0 * table.hubble
            covariance = covariance + np.outer(systematic, systematic)
        return cls(
            data=table.hubble,
            errors=np.sqrt(np.diag(covariance)),
            covariance=covariance,
            whitening=_whitening(covariance),
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


class DesiBAO(Likelihood):
    """D_V/r_d, D_M/r_d and D_H/r_d of DESI DR2, 13 values with their covariance.

    They depend on h and r_d through the product hrd alone (radiation aside).

    References:
        DESI Collaboration (2025), arXiv:2503.14738.
    """

    name: ClassVar[str] = "desi_dr2"
    label: ClassVar[str] = "DESI DR2"
    citation: ClassVar[str] = "DESI Collaboration (2025), arXiv:2503.14738"
    parameters: ClassVar[tuple[str, ...]] = ("Om", "hrd")

    data: Float[np.ndarray, " num_points"]
    errors: Float[np.ndarray, " num_points"]
    covariance: Float[np.ndarray, "num_points num_points"]
    whitening: Float[np.ndarray, "num_points num_points"]
    line_of_sight: LineOfSight
    quantities: tuple[str, ...] = eqx.field(static=True)

    @classmethod
    def load(cls, data_path: DataPath = None) -> "DesiBAO":
        """Return the likelihood of `tables.desi_dr2_bao`; `data_path` is not read."""
        del data_path
        return _desi_bao(tables.desi_dr2_bao())

    @classmethod
    def from_table(cls, table: tables.BAOTable) -> "DesiBAO":
        """Return the likelihood of a table."""
        return cls(
            data=table.values,
            errors=np.sqrt(np.diag(table.covariance)),
            covariance=table.covariance,
            whitening=_whitening(table.covariance),
            line_of_sight=LineOfSight.from_redshifts(table.redshifts),
            quantities=table.quantities,
        )

    @property
    def redshifts(self) -> Float[np.ndarray, " num_points"]:
        """Redshifts of the data."""
        return self.line_of_sight.redshifts

    def theory(
        self, cosmology: Cosmology, sound_horizon: Num[ArrayLike, ""] | None = None
    ) -> Float[Array, " num_points"]:
        """Return the distances over r_d, dimensionless, in the order of `quantities`."""
        transverse = self.line_of_sight.transverse_comoving_distance(cosmology)
        radial = self.line_of_sight.hubble_distance(cosmology)
        averaged = jnp.cbrt(ambient_array(self.redshifts) * transverse**2 * radial)
        quantities = np.array(self.quantities)
        distances = jnp.where(quantities == "DV", averaged, jnp.where(quantities == "DM", transverse, radial))
        return distances / resolve_sound_horizon(cosmology, sound_horizon)

    def _is_physical(self, cosmology: Cosmology, sound_horizon: Array) -> Bool[Array, ""]:
        return self.line_of_sight.is_physical(cosmology) & _is_positive(sound_horizon)

    def _chi2(self, cosmology: Cosmology, sound_horizon: Array) -> Float[Array, ""]:
        residuals = ambient_array(self.data) - self.theory(cosmology, sound_horizon)
        return jnp.sum((ambient_array(self.whitening) @ residuals) ** 2)


class _MeasuredNumber(Likelihood):
    """Gaussian constraint on one positive number: what the classes below share."""

    data: Float[np.ndarray, " num_points"]
    errors: Float[np.ndarray, " num_points"]

    @classmethod
    def load(cls, data_path: DataPath = None) -> "_MeasuredNumber":
        """Return the likelihood of the published value; `data_path` is not read."""
        del data_path
        table = cls._table()
        return cls(data=np.array([table.value]), errors=np.array([table.error]))

    @staticmethod
    @abc.abstractmethod
    def _table() -> tables.GaussianMeasurement:
        """Return the measured value."""

    def _is_physical(self, cosmology: Cosmology, sound_horizon: Array) -> Bool[Array, ""]:
        return _is_positive(self.theory(cosmology, sound_horizon)[0])

    def _chi2(self, cosmology: Cosmology, sound_horizon: Array) -> Float[Array, ""]:
        residuals = self.theory(cosmology, sound_horizon) - ambient_array(self.data)
        return jnp.sum((residuals / ambient_array(self.errors)) ** 2)


class BBN(_MeasuredNumber):
    """Gaussian constraint on Obh2 from primordial abundances.

    References:
        Schoneberg (2024), arXiv:2401.15054.
    """

    name: ClassVar[str] = "bbn"
    label: ClassVar[str] = "BBN"
    citation: ClassVar[str] = "Schoneberg (2024), arXiv:2401.15054"
    parameters: ClassVar[tuple[str, ...]] = ("Obh2",)

    _table = staticmethod(tables.bbn)

    def theory(
        self, cosmology: Cosmology, sound_horizon: Num[ArrayLike, ""] | None = None
    ) -> Float[Array, " num_points"]:
        """Return Obh2; the sound horizon is not read."""
        del sound_horizon
        return jnp.asarray(cosmology.Obh2)[None]


class LocalH0(_MeasuredNumber):
    """Gaussian constraint on H0 = 100 h [km/s/Mpc] from the SH0ES distance ladder.

    References:
        Riess et al. (2022), arXiv:2112.04510.
    """

    name: ClassVar[str] = "h0"
    label: ClassVar[str] = "SH0ES"
    citation: ClassVar[str] = "Riess et al. (2022), arXiv:2112.04510"
    parameters: ClassVar[tuple[str, ...]] = ("h",)

    _table = staticmethod(tables.sh0es)

    def theory(
        self, cosmology: Cosmology, sound_horizon: Num[ArrayLike, ""] | None = None
    ) -> Float[Array, " num_points"]:
        """Return H0 [km/s/Mpc]; the sound horizon is not read."""
        del sound_horizon
        return jnp.asarray(100.0 * cosmology.h)[None]


_cosmic_chronometers = functools.lru_cache(maxsize=2)(CosmicChronometers.from_table)
_desi_bao = functools.lru_cache(maxsize=2)(DesiBAO.from_table)

DATA_SETS: Mapping[str, type[Likelihood]] = MappingProxyType(
    {kind.name: kind for kind in (CosmicChronometers, DesiBAO, BBN, LocalH0, PantheonPlus)}
)
"""The data sets by name; `DATA_SETS[name].load(data_path)` builds one."""
