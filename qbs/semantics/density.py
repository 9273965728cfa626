"""The log density of a program at a trace, constrained or not.

Unconstrained values are what gradient methods move in: those of a continuous site fill a real space, and
NumPyro's `biject_to` maps them to the site's support as it is at that point of the program.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpyro.distributions import Distribution, biject_to
from numpyro.distributions.transforms import Transform

from qbs.effects import note
from qbs.errors import ProgramError
from qbs.interpreter import Interpreted, Semantics, interpret, require_shape
from qbs.program import Program

# From a site's name, distribution and given value to its value and log density.
_Read = Callable[[str, Distribution, Array], tuple[Array, Array]]


class _AtTrace(Semantics):
    """Take each site's value from a trace; add up log densities and scores."""

    def __init__(self, read: _Read):
        self._read = read

    def sample(self, state: Array, name: str, distribution: Any, given: Any) -> tuple[Array, Array]:
        if given is None:
            raise ProgramError(f"the trace has no value for site {name!r}")
        value, log_density = self._read(name, distribution, jnp.asarray(given))
        return value, state + log_density

    def score(self, state: Array, name: str, log_weight: Any) -> Array:
        return state + log_weight


def log_density(program: Program, *, unconstrained: bool = False) -> Callable[..., Float[Array, ""]]:
    """Return the function `(trace, *args) -> log density` of a program.

    The joint log density of all sites, scores included, as `numpyro.infer.util.log_density` has it.

    Args:
        program: The program.
        unconstrained: Take unconstrained values of the continuous sites, and add the log of the absolute
            Jacobian determinant of the map to their supports; discrete sites are taken as they are. That of a
            site in a branch that is not taken does not count. A `scale` or `mask` handler acts on the density
            of a site alone, not on its Jacobian as in NumPyro: the change of variables is then exact.

    Returns:
        A function of a trace (site name to value) and the program's arguments. Names in the trace that
        are no sites are ignored.

    Raises:
        ProgramError: If the trace lacks a site, or a value has the wrong shape.
    """
    return partial(_log_density, program, from_unconstrained if unconstrained else _as_it_is)


def constrain(program: Program) -> Callable[..., dict[str, Array]]:
    """Return the function `(unconstrained trace, *args) -> trace`, notes included.

    Args:
        program: The program.

    Returns:
        A function of unconstrained values by site name and the program's arguments.

    Raises:
        ProgramError: If the trace lacks a site, or a value has the wrong shape.
    """
    return partial(_constrain, program)


def unconstrain(program: Program) -> Callable[..., dict[str, Array]]:
    """Return the function `(trace, *args) -> unconstrained trace`: the inverse of `constrain`.

    A site in a branch that is not taken gets zeros.

    Args:
        program: The program.

    Returns:
        A function of values by site name and the program's arguments; names that are no sites are ignored.

    Raises:
        ProgramError: If the trace lacks a site, or a value has the wrong shape.
    """
    return partial(_unconstrain, program)


def _log_density(program: Program, read: _Read, trace: Mapping[str, Any], *args: Any) -> Float[Array, ""]:
    return _walk(program, read, args, trace).state


def _constrain(program: Program, trace: Mapping[str, Any], *args: Any) -> dict[str, Array]:
    return _walk(program, from_unconstrained, args, trace).trace


def _unconstrain(program: Program, trace: Mapping[str, Any], *args: Any) -> dict[str, Array]:
    # The walk that notes the unconstrained values is itself a program, and they are its trace.
    noted = jax.make_jaxpr(lambda trace: _walk(program, _to_unconstrained, args, trace).state)(dict(trace))
    operands = jax.tree.leaves(dict(trace))
    return interpret(noted.jaxpr, noted.consts, operands, _AtTrace(_as_it_is), jnp.zeros(()), {}).trace


def _walk(program: Program, read: _Read, args: Any, trace: Mapping[str, Any]) -> Interpreted:
    staged = program.stage(*args)
    return interpret(
        staged.jaxpr.jaxpr, staged.jaxpr.consts, staged.operands, _AtTrace(read), jnp.zeros(()), dict(trace)
    )


def _as_it_is(name: str, distribution: Distribution, given: Array) -> tuple[Array, Array]:
    require_shape(name, distribution.shape(), given)
    return given, jnp.sum(distribution.log_prob(given))


def from_unconstrained(name: str, distribution: Distribution, given: Array) -> tuple[Array, Array]:
    """Return a site's value from its unconstrained one, and its log density there, Jacobian included."""
    transform = _transform(name, distribution)
    if transform is None:
        return _as_it_is(name, distribution, given)
    expected = transform.inverse_shape(distribution.shape())
    if given.shape != expected:
        raise ProgramError(
            f"site {name!r} has unconstrained shape {expected}; the value given has {given.shape}"
        )
    value = transform(given)
    return value, jnp.sum(distribution.log_prob(value)) + jnp.sum(
        transform.log_abs_det_jacobian(given, value)
    )


def _to_unconstrained(name: str, distribution: Distribution, given: Array) -> tuple[Array, Array]:
    transform = _transform(name, distribution)
    note(name, given if transform is None else transform.inv(given))
    return given, jnp.zeros(())


def _transform(name: str, distribution: Distribution) -> Transform | None:
    """Return the map from a real space to the support of a site; `None` where the support is discrete."""
    if distribution.support is not None and distribution.support.is_discrete:
        return None
    try:
        return biject_to(distribution.support)
    except NotImplementedError as error:
        raise ProgramError(f"NumPyro has no map from a real space to the support of site {name!r}") from error
