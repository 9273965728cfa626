"""What a method of `qbs.fit` is given: a bound model, or a black-box likelihood with its priors."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np

from qbs.captured import own_constants
from qbs.errors import LikelihoodError, ModelError
from qbs.inference.binding import BoundModel, bind, require_latents
from qbs.inference.sites import Site, walk
from qbs.inference.target import Target, require_scalar

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Problem:
    """A model with its data, checked and ready for a method.

    Attributes:
        bound: The model with its data; for a black box, its priors alone.
        black_box: Log likelihood of one dictionary of NumPy values, or `None` where the bound model
            contains the likelihood.
        derive: Derived quantities of one dictionary of NumPy values, for a black box.
        is_prior: Whether nothing in the model is observed.
        probe: Log likelihood of a black box at one draw from the priors.
    """

    bound: BoundModel
    black_box: Callable[[dict[str, Any]], float] | None = None
    derive: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None
    is_prior: bool = False
    probe: float | None = None

    @property
    def name(self) -> str:
        """What messages and results call it."""
        return self.bound.name

    @property
    def latent(self) -> dict[str, Site]:
        """The latent sites by name."""
        return self.bound.latent

    @property
    def is_continuous(self) -> bool:
        """Whether every latent site is continuous."""
        return not self.discrete

    @property
    def discrete(self) -> list[str]:
        """The names of the discrete latent sites."""
        return [name for name, site in self.latent.items() if site.is_discrete]

    def in_order(self, values: Mapping[str, T]) -> tuple[dict[str, T], tuple[str, ...]]:
        """Sort named values: latent sites in the order of the model, then the rest, whose names follow."""
        derived = tuple(name for name in values if name not in self.latent)
        return {name: values[name] for name in (*self.latent, *derived)}, derived


def pose(model: Any, data: tuple, kwargs: Mapping[str, Any] | None = None, *, name: str = "") -> Problem:
    """Bind a NumPyro model or a `Target` to its data and check it.

    Raises:
        ModelError: If the model cannot be run, has no latent sites, or uses a name twice; or if a
            target's function of derived quantities raises or returns no dictionary.
        LikelihoodError: If a target's log likelihood raises, or does not return one number.
    """
    if isinstance(model, Target):
        return _pose_target(model, data, name or model.name)
    bound = bind(model, data, kwargs, name=name)
    require_latents(bound)
    return Problem(bound, is_prior=not bound.scored)


def _pose_target(target: Target, data: tuple, name: str) -> Problem:
    own = dataclasses.replace(
        target,
        log_likelihood=own_constants(target.log_likelihood),
        derived=own_constants(target.derived) if target.derived else None,
    )
    try:
        bound = bind(own.as_model, data, name=name, identity=target)
    except ModelError:
        return _as_black_box(target, data, name)  # calls it on numbers, and reports the error if there is one
    return Problem(bound)


def _as_black_box(target: Target, data: tuple, name: str) -> Problem:
    bound = bind(target.sample_priors, data, name=name, identity=target)
    draw = walk(bound.program, bound.arrays, jax.random.key(0), {}).trace
    first = {name: np.asarray(draw[name])[()] for name in bound.latent}

    def log_likelihood(parameters: dict[str, Any]) -> float:
        try:
            result = target.log_likelihood(parameters, *data)
            value = np.asarray(result, dtype=np.float64)
        except Exception as error:
            raise LikelihoodError(
                f"log_likelihood of {target.name!r} raised {type(error).__name__}: {error}; the parameters "
                f"were {describe(parameters)}"
            ) from error
        if result is None:
            raise LikelihoodError(f"log_likelihood of {target.name!r} returned None: its return is missing")
        require_scalar(value.shape, target.name)
        return float(value)

    probe = log_likelihood(first)
    if target.derived is not None:
        _check_derived(target, target.derived, first)
    return Problem(bound, log_likelihood, target.derived, probe=probe)


def _check_derived(target: Target, derive: Callable[..., Any], parameters: dict[str, Any]) -> None:
    """Call the function of derived quantities before the run, which calls it last."""
    try:
        names = set(dict(derive(parameters)))
    except Exception as error:
        raise ModelError(
            f"derived of {target.name!r} must return a dictionary, and raised {type(error).__name__}: "
            f"{error}; the parameters were {describe(parameters)}"
        ) from error
    if twice := sorted(names & set(target.priors)):
        raise ModelError(f"derived of {target.name!r} returns {twice}, which are names of parameters")


def describe(parameters: Mapping[str, Any]) -> str:
    """Return parameter values as a short text for messages."""
    parts = []
    for name, value in parameters.items():
        array = np.asarray(value)
        text = f"{array:.6g}" if array.ndim == 0 else np.array2string(array, precision=4, threshold=6)
        parts.append(f"{name} = {text}")
    return ", ".join(parts)


def require_continuous(problem: Problem, method: str) -> None:
    """Raise `ModelError` where a gradient method meets a discrete site or a black box."""
    if problem.black_box is not None:
        raise ModelError(
            f"{method} needs gradients, and log_likelihood of {problem.name!r} is not written in JAX: use "
            "jax.numpy in it, or method=qbs.inference.nested.Dynesty()"
        )
    if not problem.is_continuous:
        raise ModelError(
            f"{method} needs continuous latent sites, and {', '.join(map(repr, problem.discrete))} of "
            f"{problem.name!r} is discrete: sum it out, or use method=qbs.inference.nested.Dynesty()"
        )
    if optional := [name for name, site in problem.latent.items() if site.is_optional]:
        raise ModelError(
            f"{method} needs latent sites that are always there, and a branch of a cond in {problem.name!r} "
            f"passes by {', '.join(map(repr, optional))}: draw before the cond and use the value inside, or "
            "use method=qbs.inference.nested.Dynesty()"
        )


def nonfinite_data(bound: BoundModel) -> list[str]:
    """Say which data arrays hold NaN or infinite values, to explain a log density that is not finite."""
    said = []
    for index, array in enumerate(bound.arrays):
        values = np.asarray(array)
        if values.dtype.kind == "f" and (count := int(np.sum(~np.isfinite(values)))):
            said.append(f"data array {index} of shape {values.shape} holds {count} NaN or infinite values")
    return said
