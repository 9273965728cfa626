"""Transformations of programs, the methods of `qbs.fit` and their results, and checks of all of it.

Subpackages are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["mcmc", "nested", "results", "smc", "transform", "unnormalized", "validate"]

if TYPE_CHECKING:
    from qbs.inference import mcmc as mcmc
    from qbs.inference import nested as nested
    from qbs.inference import results as results
    from qbs.inference import smc as smc
    from qbs.inference import transform as transform
    from qbs.inference import unnormalized as unnormalized
    from qbs.inference import validate as validate
else:

    def __getattr__(name: str) -> Any:
        if name in __all__:
            return import_module(f"qbs.inference.{name}")
        raise AttributeError(
            f"module 'qbs.inference' has no attribute {name!r}; it has {', '.join(__all__)}", name=name
        )

    def __dir__() -> list[str]:
        return sorted(set(globals()) | set(__all__))
