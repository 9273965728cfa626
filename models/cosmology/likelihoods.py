r"""Likelihoods of background data: one small frozen module per data set, and all of them by name.

Each compares `theory(cosmology, sound_horizon)` with `data` and gives \(\chi^2\) and
\(\ln L = -\chi^2/2\), without normalising constants. They are plain JAX and run in the ambient precision;
the matrices are float64 NumPy constants prepared once. A cosmology that does not exist (NaN, E^2 <= 0,
D_M <= 0 on the way to the data) has a chi2 of inf and a log likelihood of -inf, with a zero gradient.
"""

import abc
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Num

from qbs.models.cosmology import tables
from qbs.models.cosmology._bao import BAO as BAO
from qbs.models.cosmology._bao import DesiBAO as DesiBAO
from qbs.models.cosmology._bao import DesiDR1BAO as DesiDR1BAO
from qbs.models.cosmology._bao import SdssBAO as SdssBAO
from qbs.models.cosmology._chronometers import Chronometers as Chronometers
from qbs.models.cosmology._chronometers import CosmicChronometers as CosmicChronometers
from qbs.models.cosmology._chronometers import CosmicChronometers31 as CosmicChronometers31
from qbs.models.cosmology._chronometers import CosmicChronometers32 as CosmicChronometers32
from qbs.models.cosmology._compressed_cmb import CMBAcousticAngle as CMBAcousticAngle
from qbs.models.cosmology._compressed_cmb import CMBDistancePriors as CMBDistancePriors
from qbs.models.cosmology._growth_rate import GrowthRate as GrowthRate
from qbs.models.cosmology._likelihood import DataPath, is_positive
from qbs.models.cosmology._likelihood import Likelihood as Likelihood
from qbs.models.cosmology._supernovae import DESSN5YR as DESSN5YR
from qbs.models.cosmology._supernovae import PantheonPlus as PantheonPlus
from qbs.models.cosmology._supernovae import PantheonPlusSH0ES as PantheonPlusSH0ES
from qbs.models.cosmology._supernovae import Supernovae as Supernovae
from qbs.models.cosmology._supernovae import Union3 as Union3
from qbs.models.cosmology.background import Cosmology, ambient_array


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
        return is_positive(self.theory(cosmology, sound_horizon)[0])

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


DATA_SETS: Mapping[str, type[Likelihood]] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            CosmicChronometers,
            DesiBAO,
            BBN,
            LocalH0,
            PantheonPlus,
            CosmicChronometers31,
            CosmicChronometers32,
            DesiDR1BAO,
            SdssBAO,
            PantheonPlusSH0ES,
            Union3,
            DESSN5YR,
            GrowthRate,
            CMBDistancePriors,
            CMBAcousticAngle,
        )
    }
)
"""The data sets by name; `DATA_SETS[name].load(data_path)` builds one."""
