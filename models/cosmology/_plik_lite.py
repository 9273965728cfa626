"""The binned CMB spectra of Planck 2018 with their covariance: the files of its likelihood plik_lite."""

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from qbs.errors import DataError
from qbs.models.cosmology._table_files import Release, frozen_array

FIRST_MULTIPOLE, LAST_MULTIPOLE = 30, 2508
"""What the bins of the temperature cover; those of TE and EE end at 1996."""

NUM_BINS = {"TT": 215, "TE": 199, "EE": 199}
"""The bins of each spectrum, in the order of the files."""

LOW_BINS = ((2, 15), (16, 29))
"""First and last multipole of the two bins of the temperature below those of plik_lite."""

# Their mean C_l and its error [muK^2], from planck2018_low_ell of planck-lite-py; arXiv:1909.05869.
_LOW_VALUES = (53.439462664156274, 9.695704299702811)
_LOW_ERRORS = (4.922908075728335, 0.5879677993874475)
_NUM_MULTIPOLES = LAST_MULTIPOLE - FIRST_MULTIPOLE + 1
_NUM_VALUES = sum(NUM_BINS.values())
_VALUES, _COVARIANCE = "cl_cmb_plik_v22.dat", "c_matrix_plik_v22.dat"
_CHECKSUMS = {
    _VALUES: "dac0d9d493213e77c940a10a968cf0da3c5730bae60e1356c4cd8bcff96377ff",
    _COVARIANCE: "ad90378c50bd67841764179c90ae6711fa4317c649966ab2b0712143b31e0a32",
    "blmin.dat": "325b351cbf8f694556bb13e98f285344e8d66811bb8eef18bcdcf1626518719d",
    "blmax.dat": "c28ade0fa5270c7e87ba07bdcb68aef8783b132b352bfaa36c04d17694ab4014",
    "bweight.dat": "8afcbd8bad769e2de96bacd80177e6543f96b2b406e6c2da1fd0d26718c9e415",
}
_URL = (
    "https://raw.githubusercontent.com/heatherprince/planck-lite-py/"
    "2c0d0f67e59ce781654cf62dd7fb10757b0e60be/data/planck2018_plik_lite/"
)
_RELEASE = Release(
    name="Planck 2018 plik_lite",
    contents="spectra, covariance and bins",
    subfolder="cmb_plik_lite",
    cache_folder="planck_2018_plik_lite",
    files=tuple((name,) for name in _CHECKSUMS),
    urls={name: _URL + name for name in _CHECKSUMS},
    checksums=_CHECKSUMS,
    advice=(
        f"Give the folder that holds {', '.join(_CHECKSUMS)} as data_path or in QBS_DATA_PATH; they are in "
        "the Planck Legacy Archive (baseline likelihood of PR3, plik_lite_v22_TTTEEE.clik) and in "
        "data/planck2018_plik_lite of https://github.com/heatherprince/planck-lite-py."
    ),
)


@dataclass(frozen=True, eq=False)
class CMBSpectraTable:
    """Binned power spectra of the CMB, foregrounds marginalised, with their covariance.

    Attributes:
        kinds: "TT", "TE" or "EE" of each value.
        multipoles: The effective multipole of each value.
        values: The mean C_l of each bin [muK^2], not multiplied by l(l+1).
        errors: Their standard errors [muK^2].
        covariance: Their covariance [muK^4].
        bin_starts: The first multipole of each bin of the temperature; TE and EE have the first 199 of them,
            and a bin ends where the next one starts.
        weights: The weight of each multipole from 30 to 2508 in its bin.
        low_values: The mean C_l of the temperature in two bins below, l = 2 to 15 and 16 to 29 [muK^2].
        low_errors: Their errors, independent of one another and of all else [muK^2].
        description: What the table is.
        citation: Where it was published.
    """

    kinds: tuple[str, ...]
    multipoles: Float[np.ndarray, " num_values"]
    values: Float[np.ndarray, " num_values"]
    errors: Float[np.ndarray, " num_values"]
    covariance: Float[np.ndarray, "num_values num_values"]
    bin_starts: Int[np.ndarray, " num_bins"]
    weights: Float[np.ndarray, " num_multipoles"]
    low_values: Float[np.ndarray, " 2"]
    low_errors: Float[np.ndarray, " 2"]
    description: str
    citation: str

    def binned(
        self, kind: str, spectrum: Float[np.ndarray, " num_all"]
    ) -> Float[np.ndarray, " num_own_bins"]:
        """Return a spectrum in the bins of the table.

        Args:
            kind: "TT", "TE" or "EE".
            spectrum: C_l [muK^2] from l = 0 to at least 2508.

        Returns:
            The weighted means of the bins [muK^2], 215 for TT and 199 for TE and EE.

        Raises:
            ValueError: If the kind is another one, or the spectrum ends too soon.
        """
        if kind not in NUM_BINS:
            raise ValueError(f"kind must be one of {', '.join(NUM_BINS)}, not {kind!r}")
        if spectrum.size <= LAST_MULTIPOLE:
            raise ValueError(
                f"the spectrum must have C_l from l = 0 to at least {LAST_MULTIPOLE}; it has {spectrum.size} "
                "values"
            )
        weighted = self.weights * spectrum[FIRST_MULTIPOLE : LAST_MULTIPOLE + 1]
        return np.add.reduceat(weighted, self.bin_starts - FIRST_MULTIPOLE)[: NUM_BINS[kind]]

    def binned_low(self, spectrum: Float[np.ndarray, " num_all"]) -> Float[np.ndarray, " 2"]:
        """Return a spectrum of the temperature in the two bins below l = 30.

        Args:
            spectrum: C_l [muK^2] from l = 0.

        Returns:
            The means of the bins with weights l(l+1) [muK^2].
        """
        multipole = np.arange(LOW_BINS[-1][1] + 1)
        weights = multipole * (multipole + 1.0)
        parts = [slice(first, last + 1) for first, last in LOW_BINS]
        return np.array([np.average(spectrum[part], weights=weights[part]) for part in parts])


def planck_lite(path: str | os.PathLike[str] | None = None) -> CMBSpectraTable:
    """Return the 613 binned TT, TE and EE spectra of Planck 2018 (plik_lite), with their covariance.

    The files are looked for in `path`, else in the folder that the environment variable QBS_DATA_PATH names,
    else in the user's cache, to which they are fetched on first use (3 MB). Checksums are verified on every
    load.

    Args:
        path: The folder with `cl_cmb_plik_v22.dat`, `c_matrix_plik_v22.dat`, `blmin.dat`, `blmax.dat` and
            `bweight.dat`, or one with them in `cmb_plik_lite/`.

    Returns:
        The table, in muK^2.

    Raises:
        DataError: If a file is missing, damaged or cannot be fetched; the message says how to get it.
        MissingExtraError: If the files have to be fetched and pooch is not installed.

    References:
        Planck Collaboration (2020), arXiv:1907.12875; Prince & Dunkley (2019), arXiv:1909.05869.
    """
    return _RELEASE.read(path, _read)


@functools.lru_cache(maxsize=2)
def _read(paths: tuple[Path, ...], _stamps: tuple[int, ...]) -> CMBSpectraTable:
    """Read and verify the files; the time stamps make a changed file be read again."""
    contents = {path.name: _verified(path) for path in paths}
    multipoles, values, errors = _numbers(contents[_VALUES], 3).T
    starts, weights = (_numbers(contents[name], 1)[:, 0] for name in ("blmin.dat", "bweight.dat"))
    # Bins follow one another without gaps. They are counted from the first multipole, and stand in the files
    # once for each spectrum.
    bin_starts = starts[: NUM_BINS["TT"]].astype(np.int64) + FIRST_MULTIPOLE
    # A Fortran record: its length, a matrix of which one triangle is 0, its length.
    triangle = np.frombuffer(contents[_COVARIANCE][4:-4], dtype="<f8").reshape(_NUM_VALUES, _NUM_VALUES)
    return CMBSpectraTable(
        kinds=tuple(kind for kind, number in NUM_BINS.items() for _ in range(number)),
        multipoles=frozen_array(multipoles),
        values=frozen_array(values),
        errors=frozen_array(errors),
        covariance=frozen_array(triangle + np.tril(triangle, -1).T),
        bin_starts=frozen_array(bin_starts),
        weights=frozen_array(weights[:_NUM_MULTIPOLES]),
        low_values=frozen_array(np.array(_LOW_VALUES)),
        low_errors=frozen_array(np.array(_LOW_ERRORS)),
        description="613 binned TT, TE and EE spectra of Planck 2018, foregrounds marginalised (plik_lite)",
        citation="Planck Collaboration (2020), arXiv:1907.12875",
    )


def _verified(path: Path) -> bytes:
    """Return what is in a file, text with the line ends of its release."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}). {_RELEASE.advice}") from None
    if path.name != _COVARIANCE:
        content = content.replace(b"\r\n", b"\n")
    if hashlib.sha256(content).hexdigest() != _CHECKSUMS[path.name]:
        raise DataError(
            f"{path} is damaged or not the released file (its SHA-256 differs). {_RELEASE.advice}"
        )
    return content


def _numbers(content: bytes, num_columns: int) -> np.ndarray:
    return np.array(content.split(), dtype=np.float64).reshape(-1, num_columns)
