"""One file of named arrays: a zip archive with a JSON header and a checksum of each array, written whole."""

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from qbs.errors import QbsError
from qbs.inference.results.atomic import replacing

_HEADER = "header.json"


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        format: What its header says.
        version: The version that is written; newer ones are not read.
        noun: What messages call it.
        error: What is raised where a file is not one, or is damaged.
    """

    format: str
    version: int
    noun: str
    error: type[QbsError]


def write(
    path: Path,
    kind: Kind,
    header: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    *,
    is_compressed: bool = True,
) -> None:
    """Write a file of named arrays.

    It appears under its name only when it is complete, so that a full disk or a killed process never leaves
    half of one, nor harms the file that was there.

    Raises:
        OSError: If the folder does not exist or the disk is full.
        TypeError: If something in the header is neither text, a number, a list nor a dictionary.
    """
    packed = [_pack(array) for array in arrays.values()]
    said = {
        "format": kind.format,
        "format_version": kind.version,
        "arrays": [
            {"name": name, "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in zip(arrays, packed, strict=True)
        ],
        **header,
    }
    text = json.dumps(said, indent=1, default=_plain_number)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot save {path}: there is no folder {path.parent}")
    how = zipfile.ZIP_DEFLATED if is_compressed else zipfile.ZIP_STORED
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", how) as archive:
        archive.writestr(_HEADER, text)
        for index, data in enumerate(packed):
            archive.writestr(f"{index}.npy", data)


def read(path: Path, kind: Kind) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the header and the arrays of a file that `write` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        QbsError: The kind's own, if the file is something else, is damaged or truncated, or was written by a
            newer version of qbs.
    """
    if path.is_dir():
        raise kind.error(f"{path} is a folder, not {kind.noun}")
    with path.open("rb") as file:
        try:
            return _read(file, path, kind)
        except (kind.error, MemoryError):
            raise
        except (zipfile.BadZipFile, zlib.error):
            raise kind.error(
                f"{path} is not {kind.noun}, or it was cut short while it was written or copied"
            ) from None
        except Exception as error:  # a damaged archive makes zipfile raise almost anything
            raise kind.error(f"{path} is damaged: {type(error).__name__}: {error}") from error


def _read(file: BinaryIO, path: Path, kind: Kind) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with zipfile.ZipFile(file) as archive:
        if _HEADER not in archive.namelist():
            raise kind.error(f"{path} is not {kind.noun}: it is an archive of something else")
        header = json.loads(archive.read(_HEADER))
        if not isinstance(header, dict) or header.get("format") != kind.format:
            raise kind.error(f"{path} is not {kind.noun}: its header is of another program")
        if header["format_version"] > kind.version:
            raise kind.error(
                f"{path} has format version {header['format_version']}; this qbs reads up to {kind.version}: "
                "update qbs to open it"
            )
        arrays = {}
        for index, entry in enumerate(header["arrays"]):
            data = archive.read(f"{index}.npy")
            if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                raise kind.error(f"{path} is damaged: the checksum of {entry['name']!r} does not match")
            arrays[entry["name"]] = np.load(io.BytesIO(data), allow_pickle=False)
    return header, arrays


def _plain_number(value: Any) -> Any:
    """Return a NumPy or JAX number as Python's, which is what JSON can hold."""
    if hasattr(value, "dtype") and np.ndim(value) == 0:
        return value.item()
    raise TypeError(f"cannot save a {type(value).__name__} in the header of a file: {value!r}")


def _pack(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array), allow_pickle=False)
    return buffer.getvalue()
