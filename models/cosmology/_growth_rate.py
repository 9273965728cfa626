"""Growth of structure: f sigma8 from redshift-space distortions, table and likelihood."""

import functools
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Num

from qbs.models.cosmology._likelihood import DataPath, Likelihood, is_positive, whitening
from qbs.models.cosmology._table_files import frozen_array, shipped_numbers
from qbs.models.cosmology.background import Cosmology, LineOfSight, ambient_array
from qbs.models.cosmology.expansion import cold_density
from qbs.models.cosmology.growth import is_expanding, predict_growth_rate_sigma8

_WIGGLEZ_ROWS = (12, 13, 14)
_SDSS_ROWS = (18, 19, 20, 21)


@dataclass(frozen=True, eq=False)
class GrowthRateTable:
    """Growth rates f sigma8 with their covariance.

    Attributes:
        redshifts: Effective redshifts.
        values: f sigma8 as published.
        covariance: Covariance of the values.
        fiducial_products: H D_A of the cosmology in which the survey measured distances [km/s].
        description: What the table is.
        citation: Where it was published.
    """

    redshifts: Float[np.ndarray, " num_points"]
    values: Float[np.ndarray, " num_points"]
    covariance: Float[np.ndarray, "num_points num_points"]
    fiducial_products: Float[np.ndarray, " num_points"]
    description: str
    citation: str


@functools.cache
def growth_rates() -> GrowthRateTable:
    """Return the 22 growth rates of the compilation "Gold-2018".

    The three WiggleZ values and the four of SDSS-IV quasars are correlated, the others independent.

    Returns:
        The table.

    Raises:
        DataError: If a file that ships with qbs is missing or damaged.

    References:
        Sagredo, Nesseris & Sapone (2018), arXiv:1806.10822.
    """
    table = shipped_numbers("fsigma8_gold2018.csv", 4)
    covariance = np.diag(table[:, 2] ** 2)
    covariance[np.ix_(_WIGGLEZ_ROWS, _WIGGLEZ_ROWS)] = shipped_numbers("fsigma8_gold2018_wigglez.csv", 3)
    covariance[np.ix_(_SDSS_ROWS, _SDSS_ROWS)] = shipped_numbers("fsigma8_gold2018_sdss.csv", 4)
    return GrowthRateTable(
        redshifts=frozen_array(table[:, 0]),
        values=frozen_array(table[:, 1]),
        covariance=frozen_array(0.5 * (covariance + covariance.T)),
        fiducial_products=frozen_array(table[:, 3]),
        description="22 growth rates f sigma8 from redshift-space distortions",
        citation=GrowthRate.citation,
    )


class GrowthRate(Likelihood):
    r"""f sigma8 at 22 redshifts, corrected for the cosmology in which each survey measured distances.

    A survey that takes wrong distances sees distortions that are not of velocities (Alcock & Paczynski). To
    first order its value is that of the true cosmology divided by
    \(q(z) = H(z) D_A(z) / [H_{fid}(z) D_{A,fid}(z)]\) (Macaulay, Wehus & Eriksen 2013, arXiv:1303.6583). So
    \(\chi^2 = V^T C^{-1} V\) with \(V_i = f\sigma_{8,i} - f\sigma_8(z_i)/q(z_i)\), as in Sagredo, Nesseris &
    Sapone (2018) and their public likelihood. It does not depend on h, radiation aside.
    `growth_rate_sigma8` has the prediction.

    References:
        Sagredo, Nesseris & Sapone (2018), arXiv:1806.10822; for the covariances, Blake et al. (2012),
        arXiv:1204.3674, and Zhao et al. (2019), arXiv:1801.03043.
    """

    name: ClassVar[str] = "fsigma8"
    label: ClassVar[str] = "RSD"
    citation: ClassVar[str] = "Sagredo, Nesseris & Sapone (2018), arXiv:1806.10822"
    parameters: ClassVar[tuple[str, ...]] = ("Om", "sigma8")

    data: Float[np.ndarray, " num_points"]
    errors: Float[np.ndarray, " num_points"]
    covariance: Float[np.ndarray, "num_points num_points"]
    whitening: Float[np.ndarray, "num_points num_points"]
    line_of_sight: LineOfSight
    fiducial_products: Float[np.ndarray, " num_points"]

    @classmethod
    def load(cls, data_path: DataPath = None) -> "GrowthRate":
        """Return the likelihood of `growth_rates`; `data_path` is not read."""
        del data_path
        return _growth_rate(growth_rates())

    @classmethod
    def from_table(cls, table: GrowthRateTable) -> "GrowthRate":
        """Return the likelihood of a table."""
        return cls(
            data=table.values,
            errors=np.sqrt(np.diag(table.covariance)),
            covariance=table.covariance,
            whitening=whitening(table.covariance),
            line_of_sight=LineOfSight.from_redshifts(table.redshifts),
            fiducial_products=table.fiducial_products,
        )

    @property
    def redshifts(self) -> Float[np.ndarray, " num_points"]:
        """Redshifts of the data."""
        return self.line_of_sight.redshifts

    def theory(
        self, cosmology: Cosmology, sound_horizon: Num[ArrayLike, ""] | None = None
    ) -> Float[Array, " num_points"]:
        """Return f sigma8 over q, as the surveys would see it; the sound horizon is not read."""
        del sound_horizon
        z = ambient_array(self.redshifts)
        rate = 100.0 * cosmology.h * self.line_of_sight.expansion_rate(cosmology)
        product = rate * self.line_of_sight.transverse_comoving_distance(cosmology) / (1.0 + z)
        return predict_growth_rate_sigma8(cosmology, z) * ambient_array(self.fiducial_products) / product

    def _is_physical(self, cosmology: Cosmology, sound_horizon: Array) -> Bool[Array, ""]:
        del sound_horizon
        return (
            self.line_of_sight.is_physical(cosmology)
            & is_expanding(cosmology)
            & is_positive(cosmology.sigma8)
            & is_positive(cold_density(cosmology))
        )

    def _chi2(self, cosmology: Cosmology, sound_horizon: Array) -> Float[Array, ""]:
        residuals = ambient_array(self.data) - self.theory(cosmology, sound_horizon)
        return jnp.sum((ambient_array(self.whitening) @ residuals) ** 2)


_growth_rate = functools.lru_cache(maxsize=2)(GrowthRate.from_table)
