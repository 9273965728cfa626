"""The tables of type Ia supernovae: Pantheon+ with its calibrators, Union3, DES-SN5YR."""

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from qbs.errors import DataError
from qbs.models.cosmology._table_files import Release, frozen_array, read_npz, shipped_numbers

_NUM_PANTHEON = 1701
_PANTHEON_TABLE = "Pantheon+SH0ES.dat"
_PANTHEON_TABLE_SHA256 = "1cb0fc379ef066afdc2ffd1857681cc478024570d8a3eba284fb645775198cf8"
_PANTHEON_TEXT = "Pantheon+SH0ES_STAT+SYS.cov"
_PANTHEON_COMPACT = "pantheonplus_statsys_cov_int32_1e-8.npz"
# Of the numbers: the row-major upper triangle in counts of 1e-8, as little-endian int32.
_PANTHEON_COVARIANCE_SHA256 = "37865b43e113eb3c9ce71eb9d8cbba164874f405d47140443e45e14ee684eff0"
_PANTHEON_URL = (
    "https://raw.githubusercontent.com/PantheonPlusSH0ES/DataRelease/"
    "c447f0fea703fcd0fff57de5000947b5ca81286b/Pantheon%2B_Data/4_DISTANCES_AND_COVAR/"
)
_PANTHEON = Release(
    name="Pantheon+",
    contents="table and covariance",
    subfolder="sn_pantheonplus",
    cache_folder="pantheon_plus",
    files=((_PANTHEON_TABLE,), (_PANTHEON_COMPACT, _PANTHEON_TEXT)),
    urls={name: _PANTHEON_URL + name.replace("+", "%2B") for name in (_PANTHEON_TABLE, _PANTHEON_TEXT)},
    checksums={_PANTHEON_TABLE: _PANTHEON_TABLE_SHA256, _PANTHEON_TEXT: None},
    advice=(
        f"Give the folder that holds {_PANTHEON_TABLE} and {_PANTHEON_TEXT} (or {_PANTHEON_COMPACT}) as "
        "data_path or in QBS_DATA_PATH; the release is Pantheon+_Data/4_DISTANCES_AND_COVAR of "
        "https://github.com/PantheonPlusSH0ES/DataRelease."
    ),
)

_NUM_DES = 1820
_DES_TABLE = "DES-Dovekie_HD.csv"
# Of the numbers: zHD, zHEL, MU and MUERR of each row, as little-endian float64.
_DES_TABLE_SHA256 = "f37a62457328fd2e6585838bcd245a6af45d79be8ba587d5fb0d3ef6e0e15f7e"
_DES_RELEASED = "STAT+SYS.npz"
_DES_RENAMED = "DES-Dovekie_STAT+SYS_inverse_cov_upper_f32.npz"
# Of the numbers: the row-major upper triangle, as little-endian float32.
_DES_INVERSE_SHA256 = "5fb986531a54d9e748e439a5bd318dc4a87027890aa59c4c59a0215cafe41312"
_DES_URL = (
    "https://raw.githubusercontent.com/des-science/DES-SN5YR/"
    "442c24841b55c3d629ed7177c09763dc237ba8e1/4_DISTANCES_COVMAT/"
)
_DES = Release(
    name="DES-SN5YR",
    contents="table and inverse covariance",
    subfolder="sn_des5yr",
    cache_folder="des_sn5yr",
    files=((_DES_TABLE,), (_DES_RENAMED, _DES_RELEASED)),
    urls={name: _DES_URL + name.replace("+", "%2B") for name in (_DES_TABLE, _DES_RELEASED)},
    checksums={_DES_TABLE: None, _DES_RELEASED: None},
    advice=(
        f"Give the folder that holds {_DES_TABLE} and {_DES_RELEASED} (or {_DES_RENAMED}) of DES-Dovekie as "
        "data_path or in QBS_DATA_PATH; the release is 4_DISTANCES_COVMAT of "
        "https://github.com/des-science/DES-SN5YR."
    ),
)


@dataclass(frozen=True, eq=False)
class SupernovaTable:
    """Standardised magnitudes of type Ia supernovae, with statistical and systematic covariance.

    Attributes:
        redshifts: zHD: CMB frame, corrected for peculiar velocity.
        heliocentric_redshifts: zHEL.
        magnitudes: m_b_corr [mag], or a distance modulus with an arbitrary zero point.
        magnitude_errors: Errors as tabulated, for plots only [mag].
        is_calibrator: Whether the host has a Cepheid distance.
        covariance: Covariance of the magnitudes [mag^2].
        description: What the table is.
        citation: Where it was published.
        cepheid_moduli: Distance modulus of the host from Cepheids [mag], NaN where there is none. Its error
            is in the covariance. None for a sample without calibrators.
        inverse_covariance: The inverse of the covariance [mag^-2] where that was released, else None.
    """

    redshifts: Float[np.ndarray, " num_points"]
    heliocentric_redshifts: Float[np.ndarray, " num_points"]
    magnitudes: Float[np.ndarray, " num_points"]
    magnitude_errors: Float[np.ndarray, " num_points"]
    is_calibrator: Bool[np.ndarray, " num_points"]
    covariance: Float[np.ndarray, "num_points num_points"]
    description: str
    citation: str
    cepheid_moduli: Float[np.ndarray, " num_points"] | None = None
    inverse_covariance: Float[np.ndarray, "num_points num_points"] | None = None


def pantheon_plus(path: str | os.PathLike[str] | None = None) -> SupernovaTable:
    """Return the 1701 light curves of Pantheon+, with their STAT+SYS covariance and Cepheid distances.

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
    return _PANTHEON.read(path, _read_pantheon)


@functools.lru_cache(maxsize=2)
def _read_pantheon(paths: tuple[Path, ...], _stamps: tuple[int, ...]) -> SupernovaTable:
    """Read and verify the files; the time stamps make a changed file be read again."""
    path, covariance_path = paths
    content = path.read_bytes().replace(b"\r\n", b"\n")
    if hashlib.sha256(content).hexdigest() != _PANTHEON_TABLE_SHA256:
        raise DataError(
            f"{path} is damaged or not the released table (its SHA-256 differs). {_PANTHEON.advice}"
        )
    header, *lines = content.decode("ascii").splitlines()
    names = header.split()
    columns = dict(zip(names, zip(*(line.split() for line in lines), strict=True), strict=True))

    def numbers(name: str) -> np.ndarray:
        return frozen_array(np.array(columns[name], dtype=np.float64))

    is_calibrator = frozen_array(numbers("IS_CALIBRATOR") == 1.0)
    return SupernovaTable(
        redshifts=numbers("zHD"),
        heliocentric_redshifts=numbers("zHEL"),
        magnitudes=numbers("m_b_corr"),
        magnitude_errors=numbers("m_b_corr_err_DIAG"),
        is_calibrator=is_calibrator,
        cepheid_moduli=frozen_array(np.where(is_calibrator, numbers("CEPH_DIST"), np.nan)),
        covariance=_read_pantheon_covariance(covariance_path),
        description="1701 type Ia supernova light curves, statistical and systematic covariance",
        citation="Scolnic et al. (2022), arXiv:2112.03863; Brout et al. (2022), arXiv:2202.04077",
    )


def _read_pantheon_covariance(path: Path) -> np.ndarray:
    """Return the symmetric covariance [mag^2] from either form of the file, verified."""
    n = _NUM_PANTHEON
    rows, columns = np.triu_indices(n)
    try:
        if path.name == _PANTHEON_COMPACT:
            counts = read_npz(path, ("upper_int32",))["upper_int32"]
        else:
            values = np.array(path.read_bytes().split(), dtype=np.float64)
            if values.size != n * n + 1:
                raise ValueError(f"{values.size} numbers where {n * n + 1} were expected")
            counts = np.rint(values[1:].reshape(n, n)[rows, columns] * 1e8)
        counts = np.ascontiguousarray(counts, dtype="<i4")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is damaged: it is not the Pantheon+ covariance ({error}). {_PANTHEON.advice}"
        ) from None
    if counts.shape != rows.shape or _digest(counts) != _PANTHEON_COVARIANCE_SHA256:
        raise DataError(
            f"{path} is damaged or not the released covariance (its numbers differ). {_PANTHEON.advice}"
        )
    covariance = np.empty((n, n))
    covariance[rows, columns] = covariance[columns, rows] = counts / 1e8
    return frozen_array(covariance)


def _digest(numbers: np.ndarray) -> str:
    return hashlib.sha256(numbers.tobytes()).hexdigest()


@functools.cache
def union3() -> SupernovaTable:
    """Return the 22 distance moduli to which Union3 compresses 2,087 supernovae, with their covariance.

    The zero point is arbitrary, and its error, about 0.09 mag, is common to all values.

    Returns:
        The table, moduli in mag.

    References:
        Rubin et al. (2025), arXiv:2311.12098.
    """
    table = shipped_numbers("union3.csv", 2)
    covariance = shipped_numbers("union3_covariance.csv", len(table))
    redshifts = frozen_array(table[:, 0])
    return SupernovaTable(
        redshifts=redshifts,
        heliocentric_redshifts=redshifts,
        magnitudes=frozen_array(table[:, 1]),
        magnitude_errors=frozen_array(np.sqrt(np.diag(covariance))),
        is_calibrator=frozen_array(np.zeros(len(table), dtype=bool)),
        covariance=covariance,
        description="22 distance moduli of a spline through 2,087 type Ia supernovae, with their covariance",
        citation="Rubin et al. (2025), arXiv:2311.12098",
    )


def des_sn5yr(path: str | os.PathLike[str] | None = None) -> SupernovaTable:
    """Return the 1820 supernovae of DES-SN5YR in the calibration Dovekie, with their STAT+SYS covariance.

    Files are looked for, fetched and verified as by `pantheon_plus` (6 MB). The table is read in the form of
    its release and with commas. What is released is the inverse of the covariance, in single precision; it
    includes the statistical errors, among them those of likely contaminants, which exceed 100 mag.

    Args:
        path: The folder with `DES-Dovekie_HD.csv` and its inverse covariance, or one with them in
            `sn_des5yr/`.

    Returns:
        The table; the magnitudes are the column MU [mag], whose zero point is arbitrary.

    Raises:
        DataError: If a file is missing, damaged or cannot be fetched; the message says how to get it.
        MissingExtraError: If the files have to be fetched and pooch is not installed.

    References:
        DES Collaboration (2024), arXiv:2401.02929; Popovic et al. (2025), arXiv:2511.07517.
    """
    return _DES.read(path, _read_des)


@functools.lru_cache(maxsize=2)
def _read_des(paths: tuple[Path, ...], _stamps: tuple[int, ...]) -> SupernovaTable:
    """Read and verify the files; the time stamps make a changed file be read again."""
    redshifts, heliocentric, moduli, errors = _read_des_table(paths[0])
    inverse = _read_des_inverse(paths[1])
    return SupernovaTable(
        redshifts=redshifts,
        heliocentric_redshifts=heliocentric,
        magnitudes=moduli,
        magnitude_errors=errors,
        is_calibrator=frozen_array(np.zeros(_NUM_DES, dtype=bool)),
        covariance=frozen_array(np.linalg.inv(inverse)),
        inverse_covariance=inverse,
        description="1820 type Ia supernovae of DES-SN5YR (Dovekie), statistical and systematic covariance",
        citation="DES Collaboration (2024), arXiv:2401.02929; Popovic et al. (2025), arXiv:2511.07517",
    )


def _read_des_table(path: Path) -> list[np.ndarray]:
    """Return zHD, zHEL, MU and MUERR from either form of the table, verified."""
    try:
        lines = [line for line in path.read_text(encoding="ascii").splitlines() if line[:1] not in ("", "#")]
        header, *rows = [line.split("," if "," in lines[0] else None) for line in lines]
        chosen = [header.index(name) for name in ("zHD", "zHEL", "MU", "MUERR")]
        numbers = np.array([[row[column] for column in chosen] for row in rows], dtype="<f8")
    except (OSError, ValueError, IndexError) as error:
        raise DataError(
            f"{path} is damaged: it is not the table of DES-Dovekie ({error}). {_DES.advice}"
        ) from None
    if _digest(numbers) != _DES_TABLE_SHA256:
        raise DataError(f"{path} is damaged or not the released table (its numbers differ). {_DES.advice}")
    return [frozen_array(column) for column in numbers.T]


def _read_des_inverse(path: Path) -> np.ndarray:
    """Return the symmetric inverse covariance [mag^-2], verified."""
    try:
        upper = np.ascontiguousarray(read_npz(path, ("cov",))["cov"], dtype="<f4")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is damaged: it is not the inverse covariance of DES-Dovekie ({error}). {_DES.advice}"
        ) from None
    rows, columns = np.triu_indices(_NUM_DES)
    if upper.shape != rows.shape or _digest(upper) != _DES_INVERSE_SHA256:
        raise DataError(
            f"{path} is damaged or not the released inverse covariance (its numbers differ). {_DES.advice}"
        )
    inverse = np.empty((_NUM_DES, _NUM_DES))
    inverse[rows, columns] = inverse[columns, rows] = upper
    return frozen_array(inverse)
