"""The data tables: small ones ship with qbs, large ones are read from a folder or fetched from their release.

Nothing is read at import. Each function returns the same frozen table every time; its arrays are read-only.
"""

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from qbs.models.cosmology._plik_lite import CMBSpectraTable as CMBSpectraTable
from qbs.models.cosmology._plik_lite import planck_lite as planck_lite
from qbs.models.cosmology._sdss_tables import SdssBAOTable as SdssBAOTable
from qbs.models.cosmology._sdss_tables import TabulatedLikelihood as TabulatedLikelihood
from qbs.models.cosmology._sdss_tables import sdss_bao as sdss_bao
from qbs.models.cosmology._supernova_tables import SupernovaTable as SupernovaTable
from qbs.models.cosmology._supernova_tables import des_sn5yr as des_sn5yr
from qbs.models.cosmology._supernova_tables import pantheon_plus as pantheon_plus
from qbs.models.cosmology._supernova_tables import union3 as union3
from qbs.models.cosmology._table_files import frozen_array as _frozen
from qbs.models.cosmology._table_files import shipped_numbers as _shipped_numbers
from qbs.models.cosmology._table_files import shipped_rows as _shipped_rows


@dataclass(frozen=True, eq=False)
class CosmicChronometerTable:
    """H(z) from the ages of passive galaxies, with the budget of its systematic error.

    Attributes:
        redshifts: Redshifts.
        hubble: H(z) [km/s/Mpc].
        errors: Error of H [km/s/Mpc].
        systematic_redshifts: Redshifts of the systematic budget.
        systematic_percent: Columns IMF, stellar library, SPS model, SPS model with the odd one out removed
            [per cent of H].
        shares_systematics: Whether the point has the systematic errors of the budget, as all others that do.
        has_total_errors: Whether `errors` contains them already; else it is statistics and metallicity.
        description: What the table is.
        citation: Where it was published.
    """

    redshifts: Float[np.ndarray, " num_points"]
    hubble: Float[np.ndarray, " num_points"]
    errors: Float[np.ndarray, " num_points"]
    systematic_redshifts: Float[np.ndarray, " num_systematics"]
    systematic_percent: Float[np.ndarray, "num_systematics 4"]
    shares_systematics: Bool[np.ndarray, " num_points"]
    has_total_errors: bool
    description: str
    citation: str


@dataclass(frozen=True, eq=False)
class BAOTable:
    """Baryon acoustic oscillations: distances over the sound horizon, with their covariance.

    Attributes:
        redshifts: Effective redshifts.
        quantities: "DV", "DM" or "DH" of each row.
        values: The distance over r_d, dimensionless.
        covariance: Covariance of the values.
        description: What the table is.
        citation: Where it was published.
    """

    redshifts: Float[np.ndarray, " num_points"]
    quantities: tuple[str, ...]
    values: Float[np.ndarray, " num_points"]
    covariance: Float[np.ndarray, "num_points num_points"]
    description: str
    citation: str


@dataclass(frozen=True, eq=False)
class GaussianMeasurement:
    """One number with a Gaussian error.

    Attributes:
        value: The measured value, in the unit that the description gives.
        error: Its standard deviation, in the same unit.
        description: What was measured.
        citation: Where it was published.
    """

    value: float
    error: float
    description: str
    citation: str


@functools.cache
def cosmic_chronometers() -> CosmicChronometerTable:
    """Return the 15 cosmic chronometers of Moresco et al. with their systematic budget.

    Returns:
        The table, H in km/s/Mpc.

    References:
        Moresco et al. (2020), arXiv:2003.07362.
    """
    table = _shipped_numbers("cosmic_chronometers.csv", 5)
    return _chronometers(
        table,
        shares_systematics=np.ones(len(table), dtype=bool),
        description="15 cosmic chronometers H(z) [km/s/Mpc], BC03 models",
        citation="Moresco et al. (2012, 2015, 2016), arXiv:1201.3609, 1503.01116, 1601.01701; "
        "covariance: Moresco et al. (2020), arXiv:2003.07362",
    )


@functools.cache
def cosmic_chronometers_31() -> CosmicChronometerTable:
    """Return the compilation of 31 cosmic chronometers of arXiv:1802.01505, with independent errors.

    Returns:
        The table, H in km/s/Mpc.

    References:
        Gomez-Valent & Amendola (2018), arXiv:1802.01505.
    """
    table = _shipped_numbers("cosmic_chronometers_31.csv", 3)
    return _chronometers(
        table,
        shares_systematics=np.zeros(len(table), dtype=bool),
        description="31 cosmic chronometers H(z) [km/s/Mpc], errors taken as independent",
        citation="Gomez-Valent & Amendola (2018), arXiv:1802.01505, and references therein",
    )


@functools.cache
def cosmic_chronometers_32() -> CosmicChronometerTable:
    """Return the compilation of 32 cosmic chronometers of arXiv:2301.09591.

    The 15 points of Moresco et al. are means over the stellar population models BC03 and MaStro. Their errors
    are total: without the systematic part of arXiv:2003.07362 they are the means of the errors published for
    the two models, to rounding at 14 of the 15 (tests/cosmology).

    Returns:
        The table, H in km/s/Mpc.

    References:
        Favale, Gomez-Valent & Migliaccio (2023), arXiv:2301.09591.
    """
    table = _shipped_numbers("cosmic_chronometers_32.csv", 4)
    return _chronometers(
        table,
        shares_systematics=table[:, 3] == 1.0,
        has_total_errors=True,
        description="32 cosmic chronometers H(z) [km/s/Mpc], 15 of them with common systematic errors",
        citation="Favale, Gomez-Valent & Migliaccio (2023), arXiv:2301.09591, and references therein; "
        "covariance: Moresco et al. (2020), arXiv:2003.07362",
    )


def _chronometers(
    table: np.ndarray,
    *,
    shares_systematics: np.ndarray,
    description: str,
    citation: str,
    has_total_errors: bool = False,
) -> CosmicChronometerTable:
    """Return the table of the columns z, H, error."""
    systematics = _shipped_numbers("cosmic_chronometers_systematics.csv", 5)
    return CosmicChronometerTable(
        redshifts=_frozen(table[:, 0]),
        hubble=_frozen(table[:, 1]),
        errors=_frozen(table[:, 2]),
        systematic_redshifts=_frozen(systematics[:, 0]),
        systematic_percent=_frozen(systematics[:, 1:]),
        shares_systematics=_frozen(shares_systematics),
        has_total_errors=has_total_errors,
        description=description,
        citation=citation,
    )


@functools.cache
def desi_dr1_bao() -> BAOTable:
    """Return the 12 BAO distances of DESI DR1 over the sound horizon.

    Returns:
        The table, dimensionless.

    References:
        DESI Collaboration (2024), arXiv:2404.03002.
    """
    return _desi_bao(
        "desi_dr1_bao",
        description="12 BAO distances over r_d from DESI DR1 galaxies, quasars and the Lyman-alpha forest",
        citation="DESI Collaboration (2024), arXiv:2404.03002",
    )


@functools.cache
def desi_dr2_bao() -> BAOTable:
    """Return the 13 BAO distances of DESI DR2 over the sound horizon.

    Returns:
        The table, dimensionless.

    References:
        DESI Collaboration (2025), arXiv:2503.14738.
    """
    return _desi_bao(
        "desi_dr2_bao",
        description="13 BAO distances over r_d from DESI DR2 galaxies, quasars and the Lyman-alpha forest",
        citation="DESI Collaboration (2025), arXiv:2503.14738",
    )


def _desi_bao(name: str, *, description: str, citation: str) -> BAOTable:
    rows = _shipped_rows(f"{name}.csv", 3)
    return BAOTable(
        redshifts=_frozen(np.array([float(row[0]) for row in rows])),
        quantities=tuple(row[2].removesuffix("_over_rs") for row in rows),
        values=_frozen(np.array([float(row[1]) for row in rows])),
        covariance=_shipped_numbers(f"{name}_covariance.csv", len(rows)),
        description=description,
        citation=citation,
    )


@functools.cache
def bbn() -> GaussianMeasurement:
    """Return the physical baryon density from primordial abundances.

    Returns:
        Omega_b h^2 and its error.

    References:
        Schoneberg (2024), arXiv:2401.15054.
    """
    value, error = _shipped_numbers("bbn.csv", 2)[0].tolist()
    return GaussianMeasurement(
        value=value,
        error=error,
        description="Omega_b h^2 from primordial deuterium and helium",
        citation="Schoneberg (2024), arXiv:2401.15054",
    )


@functools.cache
def sh0es() -> GaussianMeasurement:
    """Return the Hubble constant of the Cepheid distance ladder.

    Returns:
        H0 and its error [km/s/Mpc].

    References:
        Riess et al. (2022), arXiv:2112.04510.
    """
    value, error = _shipped_numbers("sh0es.csv", 2)[0].tolist()
    return GaussianMeasurement(
        value=value,
        error=error,
        description="H0 [km/s/Mpc] from Cepheids and supernovae",
        citation="Riess et al. (2022), arXiv:2112.04510",
    )
