"""Bayesian inference and structure learning in JAX.

Public names are found on first use, so that `import qbs` is quick and touches no device.
"""

import difflib
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

try:
    __version__ = version("qbs-jax")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"

__all__ = ["Posterior", "Target", "__version__", "errors", "fit", "inference", "load", "models"]

if TYPE_CHECKING:
    from qbs import errors as errors
    from qbs import inference as inference
    from qbs import models as models
    from qbs.inference.fitting import fit as fit
    from qbs.posterior import Posterior as Posterior
    from qbs.storage import load as load
    from qbs.target import Target as Target
else:
    # Public name -> the module that defines it; a submodule stands for itself.
    _HOMES = {
        "Posterior": "qbs.posterior",
        "Target": "qbs.target",
        "fit": "qbs.inference.fitting",
        "load": "qbs.storage",
    }
    _SUBMODULES = ("errors", "inference", "models")

    def __getattr__(name: str) -> Any:
        if name in _SUBMODULES:
            return import_module(f"qbs.{name}")
        if name in _HOMES:
            value = getattr(import_module(_HOMES[name]), name)
            globals()[name] = value
            return value
        near = difflib.get_close_matches(name, __all__, n=1)
        hint = f"did you mean 'qbs.{near[0]}'?" if near else f"it has {', '.join(__all__)}"
        raise AttributeError(f"module 'qbs' has no attribute {name!r}; {hint}", name=name)

    def __dir__() -> list[str]:
        return sorted(set(globals()) | set(__all__))
