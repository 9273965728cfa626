"""What a method of `qbs.fit` is given: a bound model, or a black-box likelihood with its priors."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from qbs.captured import own_constants
from qbs.errors import LikelihoodError, ModelError
from qbs.inference.binding import BoundModel, bind, require_latents
from qbs.inference.black_box import BlackBox
from qbs.inference.black_box import describe as describe
from qbs.inference.calls import Caller
from qbs.inference.sites import Site, walk
from qbs.inference.target import Target

T = TypeVar("T")
_NUM_PROBES = 4  # a likelihood may fail at one draw from the priors and still be of use


@dataclass(frozen=True, eq=False)
class Problem:
    """A model with its data, checked and ready for a method.

    Attributes:
        bound: The model with its data; for a black box, its priors alone.
        black_box: Log likelihood of one dictionary of NumPy values, or `None` where the bound model
            contains the likelihood.
        caller: Makes the calls of a black box; in this process where it is `None`.
        derive: Derived quantities of one dictionary of NumPy values, for a black box.
        is_prior: Whether nothing in the model is observed.
        probe: Log likelihood of a black box at one draw from the priors.
    """

    bound: BoundModel
    black_box: BlackBox | None = None
    caller: Caller | None = None
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
        LikelihoodError: If a target's log likelihood in plain Python raises, or does not return one number,
            at each of four draws from the priors.
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
    if target.in_jax is False:
        return _as_black_box(target, data, name)
    try:
        bound = bind(own.as_model, data, name=name, identity=target)
    except ModelError:
        if target.in_jax:
            raise
        return _as_black_box(target, data, name)  # calls it on numbers, and reports the error if there is one
    return Problem(bound)


def _as_black_box(target: Target, data: tuple, name: str) -> Problem:
    bound = bind(target.sample_priors, data, name=name, identity=target)
    is_float64 = jnp.result_type(float) == jnp.float64
    black_box = BlackBox(target.log_likelihood, data, target.name, is_float64)
    parameters, probe = _probed(bound, black_box)
    if target.derived is not None:
        _check_derived(target, target.derived, parameters)
    return Problem(bound, black_box, derive=target.derived, probe=probe)


def _probed(bound: BoundModel, black_box: BlackBox) -> tuple[dict[str, Any], float]:
    """Call a black box once, at the first of a few draws from the priors where it does not fail.

    Raises:
        LikelihoodError: If it fails at all of them, with what it said at the first.
    """
    first: LikelihoodError | None = None
    for seed in range(_NUM_PROBES):
        draw = walk(bound.program, bound.arrays, jax.random.key(seed), {}).trace
        parameters = {name: np.asarray(draw[name])[()] for name in bound.latent}
        try:
            return parameters, black_box(parameters)
        except LikelihoodError as error:
            first = first or error
    assert first is not None
    raise first


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
