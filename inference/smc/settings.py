"""Checks of settings that several methods share."""

from typing import Any


def require_islands(method: Any) -> None:
    """Raise `ValueError` for a single island: there would be no error."""
    if method.num_islands < 2:
        raise ValueError(
            f"{type(method).__name__}: num_islands must be at least 2, not {method.num_islands!r}: the error "
            "of the evidence is read off their spread"
        )


def require_threshold(method: Any) -> None:
    """Raise `ValueError` unless a threshold is a share."""
    value = method.threshold
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{type(method).__name__}: threshold must lie in [0, 1], not {value!r}")


def require_names(method: Any) -> None:
    """Raise `ValueError` unless `parameters` is `None` or a tuple of names."""
    names = method.parameters
    if names is not None and not (
        isinstance(names, tuple) and names and all(isinstance(n, str) for n in names)
    ):
        raise ValueError(f"{type(method).__name__}: parameters must be a tuple of site names, not {names!r}")


def require_warmup(method: Any) -> None:
    """Raise `ValueError` unless `num_warmup` is a whole number from 0 up."""
    value = method.num_warmup
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(
            f"{type(method).__name__}: num_warmup must be a whole number from 0 up, not {value!r}"
        )
