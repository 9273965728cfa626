"""The tables of SDSS baryon acoustic oscillations: Gaussian ones, and likelihoods tabulated on grids."""

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from qbs.models.cosmology._table_files import frozen_array, shipped_arrays, shipped_numbers, shipped_rows

_CITATION = (
    "Alam et al. (2021), arXiv:2007.08991; Ross et al. (2015), arXiv:1409.3242; "
    "Alam et al. (2017), arXiv:1607.03155"
)
_MAIN_GALAXIES_FIDUCIAL = 638.9518 / 148.69  # D_V [Mpc] and r_d [Mpc] at z = 0.15
_MAIN_GALAXIES_ALPHA = (0.8005, 1.1985)


@dataclass(frozen=True, eq=False)
class TabulatedLikelihood:
    """The likelihood of one or two distances at one redshift, on a grid.

    Attributes:
        redshift: The effective redshift.
        quantities: "DV", "DM" or "DH" of each axis.
        axes: The distances over r_d of the nodes along each axis, equally spaced.
        log_likelihood: The log likelihood at the nodes, relative to the largest.
    """

    redshift: float
    quantities: tuple[str, ...]
    axes: tuple[Float[np.ndarray, " num_nodes"], ...]
    log_likelihood: np.ndarray

    def best_and_error(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the most likely distances, nodes of the grid, and their errors.

        An error is half the range over which the profile likelihood is above e^(-1/2) of the largest.
        """
        best = np.unravel_index(np.argmax(self.log_likelihood), self.log_likelihood.shape)
        errors = []
        for dimension, axis in enumerate(self.axes):
            others = tuple(other for other in range(len(self.axes)) if other != dimension)
            drop = self.log_likelihood.max() - self.log_likelihood.max(axis=others)
            peak = best[dimension]
            below, above = (
                _first_crossing(drop[peak::-1], axis[peak::-1]),
                _first_crossing(drop[peak:], axis[peak:]),
            )
            errors.append(0.5 * (above - below))
        return np.array([axis[index] for axis, index in zip(self.axes, best, strict=True)]), np.array(errors)


def _first_crossing(drop: np.ndarray, axis: np.ndarray) -> float:
    """Return where a function that starts at 0 first exceeds 1/2, by linear interpolation, or the end."""
    beyond = np.flatnonzero(drop > 0.5)
    if beyond.size == 0:
        return float(axis[-1])
    last = beyond[0]
    return float(np.interp(0.5, drop[last - 1 : last + 1], axis[last - 1 : last + 1]))


@dataclass(frozen=True, eq=False)
class SdssBAOTable:
    """BAO of the SDSS surveys.

    Attributes:
        redshifts: Effective redshifts of the values with Gaussian errors.
        quantities: "DM" or "DH" of each of these values.
        values: The distance over r_d, dimensionless.
        covariance: Covariance of the values.
        tabulated: The measurements whose likelihood is not Gaussian, independent of one another.
        description: What the table is.
        citation: Where it was published.
    """

    redshifts: Float[np.ndarray, " num_points"]
    quantities: tuple[str, ...]
    values: Float[np.ndarray, " num_points"]
    covariance: Float[np.ndarray, "num_points num_points"]
    tabulated: tuple[TabulatedLikelihood, ...]
    description: str
    citation: str


@functools.cache
def sdss_bao() -> SdssBAOTable:
    """Return the BAO distances over the sound horizon of SDSS, the combination of arXiv:2007.08991.

    Gaussian are BOSS DR12 galaxies at z = 0.38 and 0.51, eBOSS DR16 luminous red galaxies at 0.698 and
    quasars at 1.48. Tabulated are the DR7 main galaxy sample at 0.15 and eBOSS DR16 emission-line galaxies at
    0.845 (D_V), and the DR16 Lyman-alpha forests at 2.334, in autocorrelation and correlated with quasars
    (D_M and D_H). The BOSS galaxies above z = 0.6 are part of the luminous red galaxies.

    Returns:
        The table, dimensionless.

    References:
        Alam et al. (2021), arXiv:2007.08991. MGS: Ross et al. (2015), arXiv:1409.3242. DR12: Alam et
        al. (2017), arXiv:1607.03155. LRG: Bautista et al. (2021), arXiv:2007.08993; Gil-Marin et al. (2020),
        arXiv:2007.08994. ELG: Raichoor et al. (2021), arXiv:2007.09007; de Mattia et al. (2021),
        arXiv:2007.09008. QSO: Neveux et al. (2020), arXiv:2007.08999; Hou et al. (2021), arXiv:2007.08998.
        Lyman alpha: du Mas des Bourboux et al. (2020), arXiv:2007.08995.
    """
    rows = shipped_rows("sdss_bao.csv", 3)
    main_galaxies = shipped_numbers("sdss_main_galaxies.csv", 1)[:, 0]
    alpha = np.linspace(*_MAIN_GALAXIES_ALPHA, main_galaxies.size)
    emission_line = shipped_numbers("sdss_emission_line_galaxies.csv", 2)
    forests = shipped_arrays("sdss_lyman_alpha.npz", ("transverse", "radial", "auto", "cross"))
    tabulated = [
        TabulatedLikelihood(
            redshift=0.15,
            quantities=("DV",),
            axes=(frozen_array(alpha * _MAIN_GALAXIES_FIDUCIAL),),
            log_likelihood=frozen_array(-0.5 * main_galaxies),
        ),
        TabulatedLikelihood(
            redshift=0.845,
            quantities=("DV",),
            axes=(frozen_array(emission_line[:, 0]),),
            log_likelihood=frozen_array(np.log(emission_line[:, 1])),
        ),
    ]
    tabulated += [
        TabulatedLikelihood(
            redshift=2.334,
            quantities=("DM", "DH"),
            axes=(forests["transverse"], forests["radial"]),
            log_likelihood=frozen_array(np.log(forests[correlation])),
        )
        for correlation in ("auto", "cross")
    ]
    return SdssBAOTable(
        redshifts=frozen_array(np.array([float(row[0]) for row in rows])),
        quantities=tuple(row[2].removesuffix("_over_rs") for row in rows),
        values=frozen_array(np.array([float(row[1]) for row in rows])),
        covariance=shipped_numbers("sdss_bao_covariance.csv", len(rows)),
        tabulated=tuple(tabulated),
        description="BAO distances over r_d from SDSS DR7, BOSS DR12 and eBOSS DR16",
        citation=_CITATION,
    )
