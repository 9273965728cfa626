"""The data tables: small ones ship with qbs, Pantheon+ is read from a folder or fetched from its release.

Nothing is read at import. Each function returns the same frozen table every time; its arrays are read-only.
"""

import functools
import hashlib
import os
import zipfile
import zlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from jaxtyping import Float

from qbs.errors import DataError, MissingExtraError

_RELEASE = (
    "https://raw.githubusercontent.com/PantheonPlusSH0ES/DataRelease/"
    "c447f0fea703fcd0fff57de5000947b5ca81286b/Pantheon%2B_Data/4_DISTANCES_AND_COVAR/"
)
_NUM_SUPERNOVAE = 1701
_TABLE = "Pantheon+SH0ES.dat"
_TABLE_SHA256 = "1cb0fc379ef066afdc2ffd1857681cc478024570d8a3eba284fb645775198cf8"
_COVARIANCE_TEXT = "Pantheon+SH0ES_STAT+SYS.cov"
_COVARIANCE_COMPACT = "pantheonplus_statsys_cov_int32_1e-8.npz"
# Of the numbers: the row-major upper triangle in counts of 1e-8, as little-endian int32.
_COVARIANCE_SHA256 = "37865b43e113eb3c9ce71eb9d8cbba164874f405d47140443e45e14ee684eff0"
_ADVICE = (
    f"Give the folder that holds {_TABLE} and {_COVARIANCE_TEXT} (or {_COVARIANCE_COMPACT}) as data_path or "
    "in QBS_DATA_PATH; the release is Pantheon+_Data/4_DISTANCES_AND_COVAR of "
    "https://github.com/PantheonPlusSH0ES/DataRelease."
)


@dataclass(frozen=True, eq=False)
class CosmicChronometerTable:
    """H(z) from the ages of passive galaxies, with the budget of its systematic error.

    Attributes:
        redshifts: Redshifts.
        hubble: H(z) [km/s/Mpc].
        errors: Statistical and metallicity error of H [km/s/Mpc].
        systematic_redshifts: Redshifts of the systematic budget.
        systematic_percent: Columns IMF, stellar library, SPS model, SPS model with the odd one out removed
            [per cent of H].
        description: What the table is.
        citation: Where it was published.
    """

    redshifts: Float[np.ndarray, " num_points"]
    hubble: Float[np.ndarray, " num_points"]
    errors: Float[np.ndarray, " num_points"]
    systematic_redshifts: Float[np.ndarray, " num_systematics"]
    systematic_percent: Float[np.ndarray, "num_systematics 4"]
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


@dataclass(frozen=True, eq=False)
class SupernovaTable:
    """Standardised magnitudes of type Ia supernovae, with statistical and systematic covariance.

    Attributes:
        redshifts: zHD: CMB frame, corrected for peculiar velocity.
        heliocentric_redshifts: zHEL.
        magnitudes: m_b_corr [mag].
        magnitude_errors: Square root of the covariance's diagonal as tabulated, for plots only [mag].
        is_calibrator: Whether the host has a Cepheid distance.
        covariance: Covariance of the magnitudes [mag^2].
        description: What the table is.
        citation: Where it was published.
    """

    redshifts: Float[np.ndarray, " num_points"]
    heliocentric_redshifts: Float[np.ndarray, " num_points"]
    magnitudes: Float[np.ndarray, " num_points"]
    magnitude_errors: Float[np.ndarray, " num_points"]
    is_calibrator: np.ndarray
    covariance: Float[np.ndarray, "num_points num_points"]
    description: str
    citation: str


def _frozen(array: np.ndarray) -> np.ndarray:
    array = np.ascontiguousarray(array)
    array.setflags(write=False)
    return array


def _shipped_rows(name: str, num_columns: int) -> list[list[str]]:
    """Return the rows of a table that ships with qbs, as text."""
    source = resources.files("qbs.models.cosmology") / "data" / name
    try:
        text = source.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"the table {source} that ships with qbs is missing: reinstall qbs-jax") from error
    rows = [line.split(",") for line in text.splitlines() if line and not line.startswith("#")]
    if not rows or any(len(row) != num_columns for row in rows):
        raise DataError(f"the table {source} must have {num_columns} columns in each row: reinstall qbs-jax")
    return rows


def _shipped_numbers(name: str, num_columns: int) -> np.ndarray:
    return _frozen(np.array(_shipped_rows(name, num_columns), dtype=np.float64))


@functools.cache
def cosmic_chronometers() -> CosmicChronometerTable:
    """Return the 15 cosmic chronometers of Moresco et al. with their systematic budget.

    Returns:
        The table, H in km/s/Mpc.

    References:
        Moresco et al. (2020), arXiv:2003.07362.
    """
    table = _shipped_numbers("cosmic_chronometers.csv", 5)
    systematics = _shipped_numbers("cosmic_chronometers_systematics.csv", 5)
    return CosmicChronometerTable(
        redshifts=_frozen(table[:, 0]),
        hubble=_frozen(table[:, 1]),
        errors=_frozen(table[:, 2]),
        systematic_redshifts=_frozen(systematics[:, 0]),
        systematic_percent=_frozen(systematics[:, 1:]),
        description="15 cosmic chronometers H(z) [km/s/Mpc], BC03 models",
        citation="Moresco et al. (2012, 2015, 2016), arXiv:1201.3609, 1503.01116, 1601.01701; "
        "covariance: Moresco et al. (2020), arXiv:2003.07362",
    )


@functools.cache
def desi_dr2_bao() -> BAOTable:
    """Return the 13 BAO distances of DESI DR2 over the sound horizon.

    Returns:
        The table, dimensionless.

    References:
        DESI Collaboration (2025), arXiv:2503.14738.
    """
    rows = _shipped_rows("desi_dr2_bao.csv", 3)
    return BAOTable(
        redshifts=_frozen(np.array([float(row[0]) for row in rows])),
        quantities=tuple(row[2].removesuffix("_over_rs") for row in rows),
        values=_frozen(np.array([float(row[1]) for row in rows])),
        covariance=_shipped_numbers("desi_dr2_bao_covariance.csv", len(rows)),
        description="13 BAO distances over r_d from DESI DR2 galaxies, quasars and the Lyman-alpha forest",
        citation="DESI Collaboration (2025), arXiv:2503.14738",
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


def pantheon_plus(path: str | os.PathLike[str] | None = None) -> SupernovaTable:
    """Return the 1701 light curves of Pantheon+, with their STAT+SYS covariance.

    The files are looked for in `path`, else in the folder that the environment variable QBS_DATA_PATH names,
    else in the user's cache, to which they are fetched from the public release on first use (34 MB).
    Checksums are verified on every load. The lower triangle of the released covariance, which differs from
    the upper by up to 3e-8 mag^2, is dropped.

    Args:
        path: The folder with `Pantheon+SH0ES.dat` and its covariance, or one with them in `sn_pantheonplus/`.

    Returns:
        The table, magnitudes in mag.

    Raises:
        DataError: If a file is missing, damaged or cannot be fetched; the message says how to get it.
        MissingExtraError: If the files have to be fetched and pooch is not installed.

    References:
        Scolnic et al. (2022), arXiv:2112.03863; Brout et al. (2022), arXiv:2202.04077.
    """
    given = path if path is not None else os.environ.get("QBS_DATA_PATH") or None
    is_given = given is not None
    folder = _pantheon_folder(Path(given).expanduser()) if given is not None else _fetch_pantheon()
    names = [_TABLE, next(n for n in (_COVARIANCE_COMPACT, _COVARIANCE_TEXT) if (folder / n).is_file())]
    stamps = tuple((folder / name).stat().st_mtime_ns for name in names)
    try:
        return _read_pantheon(folder.resolve(), names[1], stamps)
    except DataError:
        if not is_given:  # A damaged copy in the cache would be found again for ever.
            for name in names:
                (folder / name).unlink(missing_ok=True)
        raise


def _pantheon_folder(given: Path) -> Path:
    """Return the folder with the table and a covariance: the given one or its `sn_pantheonplus`."""
    for folder in (given / "sn_pantheonplus", given):
        covariances = (folder / _COVARIANCE_COMPACT, folder / _COVARIANCE_TEXT)
        if (folder / _TABLE).is_file() and any(file.is_file() for file in covariances):
            return folder
    raise DataError(f"no Pantheon+ table and covariance in {given} or {given / 'sn_pantheonplus'}. {_ADVICE}")


def _fetch_pantheon() -> Path:
    """Return the cache folder with the release's files, fetched if they are not there."""
    try:
        import pooch
    except ImportError as error:
        raise MissingExtraError(
            "fetching Pantheon+ needs pooch: pip install 'qbs-jax[cosmology]', or give the files' folder as "
            "data_path or in QBS_DATA_PATH"
        ) from error
    folder = Path(pooch.os_cache("qbs")) / "pantheon_plus"
    fetcher = pooch.create(
        path=folder,
        base_url=_RELEASE,
        registry={_TABLE: f"sha256:{_TABLE_SHA256}", _COVARIANCE_TEXT: None},
        urls={name: _RELEASE + name.replace("+", "%2B") for name in (_TABLE, _COVARIANCE_TEXT)},
    )
    for name in (_TABLE, _COVARIANCE_TEXT):
        try:
            fetcher.fetch(name)
        except (OSError, ValueError) as error:  # requests' errors are OSErrors; a wrong hash is a ValueError
            reason = type(error).__name__ if isinstance(error, OSError) else "its checksum differs"
            raise DataError(f"cannot fetch {name} of Pantheon+ into {folder} ({reason}). {_ADVICE}") from None
    return folder


@functools.lru_cache(maxsize=2)
def _read_pantheon(folder: Path, covariance_name: str, _stamps: tuple[int, ...]) -> SupernovaTable:
    """Read and verify the files; the time stamps make a changed file be read again."""
    path = folder / _TABLE
    content = path.read_bytes().replace(b"\r\n", b"\n")
    if hashlib.sha256(content).hexdigest() != _TABLE_SHA256:
        raise DataError(f"{path} is damaged or not the released table (its SHA-256 differs). {_ADVICE}")
    header, *lines = content.decode("ascii").splitlines()
    names = header.split()
    columns = dict(zip(names, zip(*(line.split() for line in lines), strict=True), strict=True))

    def numbers(name: str) -> np.ndarray:
        return _frozen(np.array(columns[name], dtype=np.float64))

    return SupernovaTable(
        redshifts=numbers("zHD"),
        heliocentric_redshifts=numbers("zHEL"),
        magnitudes=numbers("m_b_corr"),
        magnitude_errors=numbers("m_b_corr_err_DIAG"),
        is_calibrator=_frozen(numbers("IS_CALIBRATOR") == 1.0),
        covariance=_read_covariance(folder / covariance_name),
        description="1701 type Ia supernova light curves, statistical and systematic covariance",
        citation="Scolnic et al. (2022), arXiv:2112.03863; Brout et al. (2022), arXiv:2202.04077",
    )


def _read_covariance(path: Path) -> np.ndarray:
    """Return the symmetric covariance [mag^2] from either form of the file, verified."""
    n = _NUM_SUPERNOVAE
    rows, columns = np.triu_indices(n)
    try:
        if path.name == _COVARIANCE_COMPACT:
            with path.open("rb") as file, np.load(file) as archive:
                counts = archive["upper_int32"]
        else:
            values = np.array(path.read_bytes().split(), dtype=np.float64)
            if values.size != n * n + 1:
                raise DataError(
                    f"{path} has {values.size} numbers where {n * n + 1} were expected: it is truncated or "
                    f"damaged. {_ADVICE}"
                )
            counts = np.rint(values[1:].reshape(n, n)[rows, columns] * 1e8)
        counts = np.ascontiguousarray(counts, dtype="<i4")
    except (OSError, KeyError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is damaged: it is not the Pantheon+ covariance. {_ADVICE}") from None
    if counts.shape != rows.shape or hashlib.sha256(counts.tobytes()).hexdigest() != _COVARIANCE_SHA256:
        raise DataError(f"{path} is damaged or not the released covariance (its numbers differ). {_ADVICE}")
    covariance = np.empty((n, n))
    covariance[rows, columns] = covariance[columns, rows] = counts / 1e8
    return _frozen(covariance)
