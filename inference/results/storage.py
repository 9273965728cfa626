"""A posterior as one file."""

from pathlib import Path

import numpy as np

from qbs.errors import PosteriorFileError
from qbs.inference.results import archive
from qbs.inference.results.posterior import Posterior

FORMAT_VERSION = 1
_KIND = archive.Kind("qbs posterior", FORMAT_VERSION, "a saved posterior", PosteriorFileError)
_PLAIN = ("log_evidence", "log_evidence_error", "num_likelihood_calls", "problems", "provenance")


def save(posterior: Posterior, path: Path) -> Path:
    """Write a posterior to one file; see `archive.write`.

    Raises:
        OSError: If the folder does not exist or the disk is full.
        TypeError: If something in the provenance is neither text, a number, a list nor a dictionary.
    """
    arrays = {f"samples/{name}": values for name, values in posterior.samples.items()}
    arrays |= {f"stats/{name}": values for name, values in posterior.stats.items()}
    if posterior.log_weights is not None:
        arrays["log_weights"] = posterior.log_weights
    header = {name: getattr(posterior, name) for name in _PLAIN} | {"derived": list(posterior.derived)}
    archive.write(path, _KIND, header, arrays)
    return path


def load(path: str | Path) -> Posterior:
    """Read a posterior that `Posterior.save` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        PosteriorFileError: If the file is something else, is damaged or truncated, or was written by a
            newer version of qbs.
    """
    path = Path(path)
    header, arrays = archive.read(path, _KIND)

    def group(prefix: str) -> dict[str, np.ndarray]:
        return {n.removeprefix(prefix): values for n, values in arrays.items() if n.startswith(prefix)}

    try:
        return Posterior(
            samples=group("samples/"),
            log_weights=arrays.get("log_weights"),
            stats=group("stats/"),
            derived=tuple(header["derived"]),
            **{name: header[name] for name in _PLAIN},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise PosteriorFileError(f"{path} is damaged: {type(error).__name__}: {error}") from error
