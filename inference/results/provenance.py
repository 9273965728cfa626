"""Where a result comes from: versions, settings, seed, times and the data's fingerprint."""

import contextlib
import hashlib
import platform
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from typing import Any

import equinox as eqx
import jax
import numpy as np

from qbs.inference.seeds import seed_words

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_PACKAGES = ("qbs-jax", "jax", "jaxlib", "numpyro", "dynesty", "equinox", "numpy")


@dataclass
class Stopwatch:
    """Seconds of a run: all of it, and the part spent tracing and compiling."""

    wall: float = 0.0
    compiling: float = 0.0


class _CompileClock:
    """Adds up what JAX reports of its own tracing and compiling; listens once, from the first run on."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._is_listening = False

    def listen(self) -> None:
        if not self._is_listening:
            jax.monitoring.register_event_duration_secs_listener(self._hear)
            self._is_listening = True

    def _hear(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event.startswith("/jax/core/compile"):
            self.seconds += duration_secs


_clock = _CompileClock()


@contextlib.contextmanager
def stopwatch() -> Iterator[Stopwatch]:
    """Time the body, compilation apart; the result is filled in as the body ends."""
    _clock.listen()
    watch, start, compiled = Stopwatch(), time.perf_counter(), _clock.seconds
    try:
        yield watch
    finally:
        watch.wall = time.perf_counter() - start
        watch.compiling = _clock.seconds - compiled


def data_fingerprint(arrays: tuple[Any, ...]) -> str:
    """Return a SHA-256 over shapes, dtypes and bytes of the data arrays, or `""` without data."""
    if not arrays:
        return ""
    digest = hashlib.sha256()
    for array in arrays:
        values = np.asarray(array)
        digest.update(f"{values.dtype.str}{values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages a result depends on."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def provenance(method: eqx.Module, name: str, key: jax.Array, arrays: tuple[Any, ...]) -> dict[str, Any]:
    """Return the record of a run that is known before it starts."""
    return {
        "model": name,
        "method": type(method).__name__,
        "settings": settings(method),
        "seed": seed_words(key),
        "key_type": str(jax.random.key_impl(key)),
        "data_sha256": data_fingerprint(arrays),
        "versions": versions(),
        "device": jax.default_backend(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def settings(method: eqx.Module) -> dict[str, Any]:
    """Return the fields of a method as plain values."""
    return {name: _plain(value) for name, value in vars(method).items()}


def _plain(value: Any) -> Any:
    """Return a setting as plain values that are the same in every process."""
    if isinstance(value, eqx.Module):
        return {"type": type(value).__name__, **settings(value)}
    if isinstance(value, bool | int | float | str | type(None)):
        return value
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return np.asarray(value).tolist()
    return getattr(value, "__qualname__", _ADDRESS.sub("", repr(value)))
