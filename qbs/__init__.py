"""Bayesian inference and structure learning in JAX; names are found on first use: importing is quick."""

import difflib
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

try:
    __version__ = version("qbs-jax")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"

__all__ = [
    "Calls",
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
    "fit_unnormalized",
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
    "reweight",
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
    from qbs.inference.calls import Calls as Calls
    from qbs.inference.checkpoint import Checkpoint as Checkpoint
    from qbs.inference.fitting import fit as fit
    from qbs.inference.results.comparison import compare as compare
    from qbs.inference.results.pointwise import log_likelihood as log_likelihood
    from qbs.inference.results.pointwise import loo as loo
    from qbs.inference.results.posterior import Posterior as Posterior
    from qbs.inference.results.reweighting import reweight as reweight
    from qbs.inference.results.storage import load as load
    from qbs.inference.target import Target as Target
    from qbs.inference.transform.composition import bind as bind
    from qbs.inference.transform.composition import map as map  # noqa: A004
    from qbs.inference.transform.composition import mixture as mixture
    from qbs.inference.transform.composition import product as product
    from qbs.inference.transform.conditional import conditional as conditional
    from qbs.inference.transform.importance import importance as importance
    from qbs.inference.transform.metropolis import metropolis as metropolis
    from qbs.inference.transform.metropolis import random_walk as random_walk
    from qbs.inference.transform.population import Particles as Particles
    from qbs.inference.transform.population import collapse as collapse
    from qbs.inference.transform.population import population as population
    from qbs.inference.transform.rejuvenation import rejuvenate as rejuvenate
    from qbs.inference.transform.replay import traced as traced
    from qbs.inference.transform.tempering import tempered as tempered
    from qbs.inference.unnormalized.unnormalized_fitting import fit_unnormalized as fit_unnormalized
    from qbs.program import Program as Program
    from qbs.program import reify as reify
    from qbs.semantics.density import log_density as log_density
    from qbs.semantics.enumeration import enumerate as enumerate  # noqa: A004
    from qbs.semantics.quadrature import integrate as integrate
    from qbs.semantics.render import render as render
    from qbs.semantics.run import run as run
else:
    # Public name -> the module that defines it; a submodule stands for itself.
    _HOMES = {
        "Calls": "qbs.inference.calls",
        "Checkpoint": "qbs.inference.checkpoint",
        "Particles": "qbs.inference.transform.population",
        "Posterior": "qbs.inference.results.posterior",
        "Program": "qbs.program",
        "Target": "qbs.inference.target",
        "bind": "qbs.inference.transform.composition",
        "collapse": "qbs.inference.transform.population",
        "compare": "qbs.inference.results.comparison",
        "conditional": "qbs.inference.transform.conditional",
        "enumerate": "qbs.semantics.enumeration",
        "fit": "qbs.inference.fitting",
        "fit_unnormalized": "qbs.inference.unnormalized.unnormalized_fitting",
        "importance": "qbs.inference.transform.importance",
        "integrate": "qbs.semantics.quadrature",
        "load": "qbs.inference.results.storage",
        "log_density": "qbs.semantics.density",
        "log_likelihood": "qbs.inference.results.pointwise",
        "loo": "qbs.inference.results.pointwise",
        "map": "qbs.inference.transform.composition",
        "metropolis": "qbs.inference.transform.metropolis",
        "mixture": "qbs.inference.transform.composition",
        "population": "qbs.inference.transform.population",
        "product": "qbs.inference.transform.composition",
        "random_walk": "qbs.inference.transform.metropolis",
        "reify": "qbs.program",
        "rejuvenate": "qbs.inference.transform.rejuvenation",
        "render": "qbs.semantics.render",
        "reweight": "qbs.inference.results.reweighting",
        "run": "qbs.semantics.run",
        "sample": "qbs.effects",
        "score": "qbs.effects",
        "tempered": "qbs.inference.transform.tempering",
        "traced": "qbs.inference.transform.replay",
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
