"""A posterior as one file: a zip archive of NumPy arrays with a JSON header and a checksum of each."""

import hashlib
import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from qbs.errors import PosteriorFileError
from qbs.inference.results.atomic import replacing
from qbs.inference.results.posterior import Posterior

FORMAT = "qbs posterior"
FORMAT_VERSION = 1
_HEADER = "header.json"


def save(posterior: Posterior, path: Path) -> Path:
    """Write a posterior to one file.

    The file appears under its name only when it is complete, so that a full disk or a killed process
    never leaves half of one, nor harms the file that was there.

    Raises:
        OSError: If the folder does not exist or the disk is full.
        TypeError: If something in the provenance is neither text, a number, a list nor a dictionary.
    """
    arrays = {f"samples/{name}": values for name, values in posterior.samples.items()}
    arrays |= {f"stats/{name}": values for name, values in posterior.stats.items()}
    if posterior.log_weights is not None:
        arrays["log_weights"] = posterior.log_weights
    packed = [_pack(array) for array in arrays.values()]
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "arrays": [
            {"name": name, "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in zip(arrays, packed, strict=True)
        ],
        "log_evidence": posterior.log_evidence,
        "log_evidence_error": posterior.log_evidence_error,
        "num_likelihood_calls": posterior.num_likelihood_calls,
        "problems": posterior.problems,
        "derived": list(posterior.derived),
        "provenance": posterior.provenance,
    }
    text = json.dumps(header, indent=1, default=_plain_number)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot save {path}: there is no folder {path.parent}")
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_HEADER, text)
        for index, data in enumerate(packed):
            archive.writestr(f"{index}.npy", data)
    return path


def load(path: str | Path) -> Posterior:
    """Read a posterior that `Posterior.save` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        PosteriorFileError: If the file is something else, is damaged or truncated, or was written by a
            newer version of qbs.
    """
    path = Path(path)
    if path.is_dir():
        raise PosteriorFileError(f"{path} is a folder, not a saved posterior")
    with path.open("rb") as file:
        try:
            return _read(file, path)
        except (PosteriorFileError, MemoryError):
            raise
        except (zipfile.BadZipFile, zlib.error):
            raise PosteriorFileError(
                f"{path} is not a saved posterior, or it was cut short while it was written or copied"
            ) from None
        except Exception as error:  # a damaged archive makes zipfile raise almost anything
            raise PosteriorFileError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def _read(file: BinaryIO, path: Path) -> Posterior:
    with zipfile.ZipFile(file) as archive:
        header = _read_header(archive, path)
        arrays = {
            entry["name"]: _unpack(archive.read(f"{index}.npy"), entry, path)
            for index, entry in enumerate(header["arrays"])
        }

    def group(prefix: str) -> dict[str, np.ndarray]:
        return {n.removeprefix(prefix): values for n, values in arrays.items() if n.startswith(prefix)}

    return Posterior(
        samples=group("samples/"),
        log_weights=arrays.get("log_weights"),
        stats=group("stats/"),
        derived=tuple(header["derived"]),
        **{
            name: header[name]
            for name in (
                "log_evidence",
                "log_evidence_error",
                "num_likelihood_calls",
                "problems",
                "provenance",
            )
        },
    )


def _read_header(archive: zipfile.ZipFile, path: Path) -> dict[str, Any]:
    if _HEADER not in archive.namelist():
        raise PosteriorFileError(f"{path} is not a saved posterior: it is an archive of something else")
    header = json.loads(archive.read(_HEADER))
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise PosteriorFileError(f"{path} is not a saved posterior: its header is of another program")
    if header["format_version"] > FORMAT_VERSION:
        raise PosteriorFileError(
            f"{path} has format version {header['format_version']}; this qbs reads up to {FORMAT_VERSION}: "
            "update qbs to open it"
        )
    return header


def _plain_number(value: Any) -> Any:
    """Return a NumPy or JAX number as Python's, which is what JSON can hold."""
    if hasattr(value, "dtype") and np.ndim(value) == 0:
        return value.item()
    raise TypeError(f"cannot save a {type(value).__name__} in the header of a posterior: {value!r}")


def _pack(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array), allow_pickle=False)
    return buffer.getvalue()


def _unpack(data: bytes, entry: dict[str, str], path: Path) -> np.ndarray:
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise PosteriorFileError(f"{path} is damaged: the checksum of {entry['name']!r} does not match")
    return np.load(io.BytesIO(data), allow_pickle=False)
