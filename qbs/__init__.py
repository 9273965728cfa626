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

__all__ = [
    "Particles",
    "Posterior",
    "Program",
    "Target",
    "__version__",
    "collapse",
    "enumerate",
    "errors",
    "fit",
    "inference",
    "load",
    "log_density",
    "models",
    "population",
    "reify",
    "run",
    "sample",
    "score",
    "validate",
]

if TYPE_CHECKING:
    from qbs import errors as errors
    from qbs import inference as inference
    from qbs import models as models
    from qbs import validate as validate
    from qbs.effects import sample as sample
    from qbs.effects import score as score
    from qbs.inference.fitting import fit as fit
    from qbs.posterior import Posterior as Posterior
    from qbs.program import Program as Program
    from qbs.program import reify as reify
    from qbs.semantics.density import log_density as log_density
    from qbs.semantics.enumeration import enumerate as enumerate  # noqa: A004
    from qbs.semantics.run import run as run
    from qbs.storage import load as load
    from qbs.target import Target as Target
    from qbs.transform.population import Particles as Particles
    from qbs.transform.population import collapse as collapse
    from qbs.transform.population import population as population
else:
    # Public name -> the module that defines it; a submodule stands for itself.
    _HOMES = {
        "Particles": "qbs.transform.population",
        "Posterior": "qbs.posterior",
        "Program": "qbs.program",
        "Target": "qbs.target",
        "collapse": "qbs.transform.population",
        "enumerate": "qbs.semantics.enumeration",
        "fit": "qbs.inference.fitting",
        "load": "qbs.storage",
        "log_density": "qbs.semantics.density",
        "population": "qbs.transform.population",
        "reify": "qbs.program",
        "run": "qbs.semantics.run",
        "sample": "qbs.effects",
        "score": "qbs.effects",
    }
    _SUBMODULES = ("errors", "inference", "models", "validate")

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
