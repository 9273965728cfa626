"""Baryon acoustic oscillations: distances over the sound horizon, of DESI and SDSS."""

import abc
import functools
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Num

from qbs.models.cosmology import tables
from qbs.models.cosmology._cubic_table import CubicTable
from qbs.models.cosmology._likelihood import (
    DataPath,
    Likelihood,
    is_positive,
    resolve_sound_horizon,
    whitening,
)
from qbs.models.cosmology.background import Cosmology, LineOfSight, ambient_array


class BAO(Likelihood):
    """D_V/r_d, D_M/r_d and D_H/r_d at effective redshifts: what the classes below share.

    They depend on h and r_d through the product hrd alone (radiation aside).
    """

    line_of_sight: eqx.AbstractVar[LineOfSight]
    quantities: eqx.AbstractVar[tuple[str, ...]]

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
        return self.line_of_sight.is_physical(cosmology) & is_positive(sound_horizon)


class GaussianBAO(BAO):
    """BAO distances with Gaussian errors and one covariance: what the DESI classes share."""

    data: Float[np.ndarray, " num_points"]
    errors: Float[np.ndarray, " num_points"]
    covariance: Float[np.ndarray, "num_points num_points"]
    whitening: Float[np.ndarray, "num_points num_points"]
    line_of_sight: LineOfSight
    quantities: tuple[str, ...] = eqx.field(static=True)

    @classmethod
    def load(cls, data_path: DataPath = None) -> "GaussianBAO":
        """Return the likelihood of the published table; `data_path` is not read."""
        del data_path
        return _built(cls, cls._table())

    @staticmethod
    @abc.abstractmethod
    def _table() -> tables.BAOTable:
        """Return the published table."""

    @classmethod
    def from_table(cls, table: tables.BAOTable) -> "GaussianBAO":
        """Return the likelihood of a table."""
        return cls(
            data=table.values,
            errors=np.sqrt(np.diag(table.covariance)),
            covariance=table.covariance,
            whitening=whitening(table.covariance),
            line_of_sight=LineOfSight.from_redshifts(table.redshifts),
            quantities=table.quantities,
        )

    def _chi2(self, cosmology: Cosmology, sound_horizon: Array) -> Float[Array, ""]:
        residuals = ambient_array(self.data) - self.theory(cosmology, sound_horizon)
        return jnp.sum((ambient_array(self.whitening) @ residuals) ** 2)


class DesiBAO(GaussianBAO):
    """D_V/r_d, D_M/r_d and D_H/r_d of DESI DR2, 13 values with their covariance.

    They depend on h and r_d through the product hrd alone (radiation aside).

    References:
        DESI Collaboration (2025), arXiv:2503.14738.
    """

    name: ClassVar[str] = "desi_dr2"
    label: ClassVar[str] = "DESI DR2"
    citation: ClassVar[str] = "DESI Collaboration (2025), arXiv:2503.14738"
    parameters: ClassVar[tuple[str, ...]] = ("Om", "hrd")

    _table = staticmethod(tables.desi_dr2_bao)


class DesiDR1BAO(GaussianBAO):
    """D_V/r_d, D_M/r_d and D_H/r_d of DESI DR1, 12 values with their covariance.

    References:
        DESI Collaboration (2024), arXiv:2404.03002.
    """

    name: ClassVar[str] = "desi_dr1"
    label: ClassVar[str] = "DESI DR1"
    citation: ClassVar[str] = "DESI Collaboration (2024), arXiv:2404.03002"
    parameters: ClassVar[tuple[str, ...]] = ("Om", "hrd")

    _table = staticmethod(tables.desi_dr1_bao)


class SdssBAO(BAO):
    r"""D_V/r_d, D_M/r_d and D_H/r_d of SDSS DR7, BOSS DR12 and eBOSS DR16: 14 values at 7 redshifts.

    Eight have Gaussian errors. The main galaxies (z = 0.15), the emission-line galaxies (0.845) and the two
    correlations of Lyman-alpha forests (2.334) enter with their tabulated likelihoods: \(-2\ln L\) is the
    cubic spline through the values at the nodes, relative to the largest of them. Beyond a grid it is that
    of the nearest point of the grid: what was not tabulated counts neither for nor against a cosmology.
    `data` and `errors` of these six values are the most likely ones and their 68 per cent, for plots only.

    References:
        Alam et al. (2021), arXiv:2007.08991, for the combination; `tables.sdss_bao` has the rest.
    """

    name: ClassVar[str] = "sdss"
    label: ClassVar[str] = "SDSS"
    citation: ClassVar[str] = (
        "Alam et al. (2021), arXiv:2007.08991; Ross et al. (2015), arXiv:1409.3242; "
        "Alam et al. (2017), arXiv:1607.03155"
    )
    parameters: ClassVar[tuple[str, ...]] = ("Om", "hrd")

    data: Float[np.ndarray, " num_points"]
    errors: Float[np.ndarray, " num_points"]
    whitening: Float[np.ndarray, "num_gaussian num_gaussian"]
    splines: tuple[CubicTable, ...]
    line_of_sight: LineOfSight
    quantities: tuple[str, ...] = eqx.field(static=True)

    @classmethod
    def load(cls, data_path: DataPath = None) -> "SdssBAO":
        """Return the likelihood of `tables.sdss_bao`; `data_path` is not read."""
        del data_path
        return _sdss(tables.sdss_bao())

    @classmethod
    def from_table(cls, table: tables.SdssBAOTable) -> "SdssBAO":
        """Return the likelihood of a table: Gaussian values first, then the tabulated ones in their order."""
        summaries = [tabulated.best_and_error() for tabulated in table.tabulated]
        redshifts = [np.full(len(item.quantities), item.redshift) for item in table.tabulated]
        return cls(
            data=np.concatenate([table.values, *(best for best, _ in summaries)]),
            errors=np.concatenate([np.sqrt(np.diag(table.covariance)), *(error for _, error in summaries)]),
            whitening=whitening(table.covariance),
            splines=tuple(
                CubicTable.from_values(item.axes, -2.0 * item.log_likelihood) for item in table.tabulated
            ),
            line_of_sight=LineOfSight.from_redshifts(np.concatenate([table.redshifts, *redshifts])),
            quantities=sum((item.quantities for item in table.tabulated), table.quantities),
        )

    def _chi2(self, cosmology: Cosmology, sound_horizon: Array) -> Float[Array, ""]:
        theory = self.theory(cosmology, sound_horizon)
        start = len(self.whitening)
        residuals = ambient_array(self.data[:start]) - theory[:start]
        chi2 = jnp.sum((ambient_array(self.whitening) @ residuals) ** 2)
        for spline in self.splines:
            end = start + spline.lower.size
            chi2 = chi2 + spline(theory[start:end])
            start = end
        return chi2


@functools.lru_cache(maxsize=8)
def _built(kind: type[GaussianBAO], table: tables.BAOTable) -> GaussianBAO:
    return kind.from_table(table)


_sdss = functools.lru_cache(maxsize=2)(SdssBAO.from_table)
