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
    "Checkpoint",
    "Particles",
    "Posterior",
    "Program",
    "Target",
    "__version__",
    "bind",
    "collapse",
    "compare",
    "conditional",
    "enumerate",
    "errors",
    "fit",
    "importance",
    "inference",
    "integrate",
    "load",
    "log_density",
    "log_likelihood",
    "loo",
    "map",
    "metropolis",
    "mixture",
    "models",
    "population",
    "product",
    "random_walk",
    "reify",
    "rejuvenate",
    "render",
    "run",
    "sample",
    "score",
    "tempered",
    "traced",
    "validate",
]

if TYPE_CHECKING:
    from qbs import errors as errors
    from qbs import inference as inference
    from qbs import models as models
    from qbs import validate as validate
    from qbs.effects import sample as sample
    from qbs.effects import score as score
    from qbs.inference.checkpoint import Checkpoint as Checkpoint
    from qbs.inference.fitting import fit as fit
    from qbs.inference.results.comparison import compare as compare
    from qbs.inference.results.pointwise import log_likelihood as log_likelihood
    from qbs.inference.results.pointwise import loo as loo
    from qbs.inference.results.posterior import Posterior as Posterior
    from qbs.inference.results.storage import load as load
    from qbs.inference.target import Target as Target
    from qbs.program import Program as Program
    from qbs.program import reify as reify
    from qbs.semantics.density import log_density as log_density
    from qbs.semantics.enumeration import enumerate as enumerate  # noqa: A004
    from qbs.semantics.quadrature import integrate as integrate
    from qbs.semantics.render import render as render
    from qbs.semantics.run import run as run
    from qbs.transform.composition import bind as bind
    from qbs.transform.composition import map as map  # noqa: A004
    from qbs.transform.composition import mixture as mixture
    from qbs.transform.composition import product as product
    from qbs.transform.conditional import conditional as conditional
    from qbs.transform.importance import importance as importance
    from qbs.transform.metropolis import metropolis as metropolis
    from qbs.transform.metropolis import random_walk as random_walk
    from qbs.transform.population import Particles as Particles
    from qbs.transform.population import collapse as collapse
    from qbs.transform.population import population as population
    from qbs.transform.rejuvenation import rejuvenate as rejuvenate
    from qbs.transform.replay import traced as traced
    from qbs.transform.tempering import tempered as tempered
else:
    # Public name -> the module that defines it; a submodule stands for itself.
    _HOMES = {
        "Checkpoint": "qbs.inference.checkpoint",
        "Particles": "qbs.transform.population",
        "Posterior": "qbs.inference.results.posterior",
        "Program": "qbs.program",
        "Target": "qbs.inference.target",
        "bind": "qbs.transform.composition",
        "collapse": "qbs.transform.population",
        "compare": "qbs.inference.results.comparison",
        "conditional": "qbs.transform.conditional",
        "enumerate": "qbs.semantics.enumeration",
        "fit": "qbs.inference.fitting",
        "importance": "qbs.transform.importance",
        "integrate": "qbs.semantics.quadrature",
        "load": "qbs.inference.results.storage",
        "log_density": "qbs.semantics.density",
        "log_likelihood": "qbs.inference.results.pointwise",
        "loo": "qbs.inference.results.pointwise",
        "map": "qbs.transform.composition",
        "metropolis": "qbs.transform.metropolis",
        "mixture": "qbs.transform.composition",
        "population": "qbs.transform.population",
        "product": "qbs.transform.composition",
        "random_walk": "qbs.transform.metropolis",
        "reify": "qbs.program",
        "rejuvenate": "qbs.transform.rejuvenation",
        "render": "qbs.semantics.render",
        "run": "qbs.semantics.run",
        "sample": "qbs.effects",
        "score": "qbs.effects",
        "tempered": "qbs.transform.tempering",
        "traced": "qbs.transform.replay",
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
