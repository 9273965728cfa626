"""Files of tables: those that ship with qbs, and public releases, looked for in a folder or fetched once."""

import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TypeVar

import numpy as np

from qbs.errors import DataError, MissingExtraError

T = TypeVar("T")


def frozen_array(array: np.ndarray) -> np.ndarray:
    """Return the array, contiguous and read-only."""
    array = np.ascontiguousarray(array)
    array.setflags(write=False)
    return array


def shipped_rows(name: str, num_columns: int) -> list[list[str]]:
    """Return the rows of a text table that ships with qbs, as text."""
    source = resources.files("qbs.models.cosmology") / "data" / name
    try:
        text = source.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"the table {source} that ships with qbs is missing: reinstall qbs-jax") from error
    rows = [line.split(",") for line in text.splitlines() if line and not line.startswith("#")]
    if not rows or any(len(row) != num_columns for row in rows):
        raise DataError(f"the table {source} must have {num_columns} columns in each row: reinstall qbs-jax")
    return rows


def shipped_numbers(name: str, num_columns: int) -> np.ndarray:
    """Return a text table that ships with qbs, as numbers."""
    return frozen_array(np.array(shipped_rows(name, num_columns), dtype=np.float64))


def shipped_arrays(name: str, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return arrays of an npz file that ships with qbs."""
    source = resources.files("qbs.models.cosmology") / "data" / name
    try:
        with resources.as_file(source) as path:
            return {key: frozen_array(array) for key, array in read_npz(path, keys).items()}
    except (OSError, DataError) as error:
        raise DataError(
            f"the table {source} that ships with qbs is missing or damaged: reinstall qbs-jax"
        ) from error


def read_npz(path: Path, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return arrays of an npz file.

    Raises:
        DataError: If the file is not an npz file or lacks an array.
        OSError: If it cannot be read.
    """
    try:
        with path.open("rb") as file, np.load(file) as archive:
            return {key: archive[key] for key in keys}
    except (KeyError, EOFError, ValueError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error):
        raise DataError(f"{path} is not an npz file with {', '.join(keys)}") from None


@dataclass(frozen=True)
class Release:
    """The files of a public release that are too large to ship.

    Attributes:
        name: What messages call it.
        contents: What the files are, in words.
        subfolder: The folder below a given one that may hold the files.
        cache_folder: The folder below the user's cache to which they are fetched.
        files: For each file needed, the names that it may have, the preferred one first.
        urls: For each file to be fetched, where it is.
        checksums: For each file to be fetched, its SHA-256; None where the reader verifies the numbers.
        advice: How to get the files, a sentence that ends error messages.
    """

    name: str
    contents: str
    subfolder: str
    cache_folder: str
    files: tuple[tuple[str, ...], ...]
    urls: Mapping[str, str]
    checksums: Mapping[str, str | None]
    advice: str

    def read(
        self,
        folder: str | os.PathLike[str] | None,
        reader: Callable[[tuple[Path, ...], tuple[int, ...]], T],
    ) -> T:
        """Find the files and return what `reader` makes of them.

        They are looked for in `folder`, else in the one that QBS_DATA_PATH names, else in the user's cache,
        to which they are fetched if they are not there. Damaged copies in the cache are removed.

        Args:
            folder: The folder with the files, or one with them in `subfolder`.
            reader: A function of the paths, in the order of `files`, and of their time stamps, by which a
                cached reader notices a changed file.

        Returns:
            The result of the reader.

        Raises:
            DataError: If a file is missing, damaged or cannot be fetched.
            MissingExtraError: If the files have to be fetched and pooch is not installed.
        """
        given = folder if folder is not None else os.environ.get("QBS_DATA_PATH") or None
        paths = self._fetched() if given is None else self._given(Path(given).expanduser())
        stamps = tuple(path.stat().st_mtime_ns for path in paths)
        try:
            return reader(paths, stamps)
        except DataError:
            if given is None:  # A damaged copy in the cache would be found again for ever.
                for path in paths:
                    path.unlink(missing_ok=True)
            raise

    def _given(self, given: Path) -> tuple[Path, ...]:
        for folder in (given / self.subfolder, given):
            if (paths := self._in_folder(folder)) is not None:
                return paths
        raise DataError(
            f"no {self.name} {self.contents} in {given} or {given / self.subfolder}. {self.advice}"
        )

    def _in_folder(self, folder: Path) -> tuple[Path, ...] | None:
        """Return the paths of all files in a folder, or None when one is not there."""
        folder = folder.resolve()
        found = [next((name for name in names if (folder / name).is_file()), None) for names in self.files]
        return None if None in found else tuple(folder / name for name in found if name is not None)

    def _fetched(self) -> tuple[Path, ...]:
        """Return the files in the cache, fetched if they are not there."""
        try:
            import pooch
        except ImportError as error:
            raise MissingExtraError(
                f"fetching {self.name} needs pooch: pip install 'qbs-jax[cosmology]', or give the files' "
                "folder as data_path or in QBS_DATA_PATH"
            ) from error
        folder = Path(pooch.os_cache("qbs")) / self.cache_folder
        fetcher = pooch.create(
            path=folder,
            base_url="",
            registry={
                name: None if checksum is None else f"sha256:{checksum}"
                for name, checksum in self.checksums.items()
            },
            urls=dict(self.urls),
        )
        for name in self.urls:
            try:
                fetcher.fetch(name)
            except (OSError, ValueError) as error:  # requests' are OSErrors; a wrong hash is a ValueError
                reason = type(error).__name__ if isinstance(error, OSError) else "its checksum differs"
                raise DataError(
                    f"cannot fetch {name} of {self.name} into {folder} ({reason}). {self.advice}"
                ) from None
        paths = self._in_folder(folder)
        if paths is None:
            raise DataError(f"{folder} lacks a file of {self.name} after fetching it. {self.advice}")
        return paths
