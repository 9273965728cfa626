"""The log density of a program at a trace."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from qbs.errors import ProgramError
from qbs.interpreter import Semantics, interpret
from qbs.program import Program


class _AtTrace(Semantics):
    """Take each site's value from a trace; add up log probabilities and scores."""

    def sample(self, state: Array, name: str, distribution: Any, given: Any) -> tuple[Array, Array]:
        if given is None:
            raise ProgramError(f"the trace has no value for site {name!r}")
        value = jnp.asarray(given)
        return value, state + jnp.sum(distribution.log_prob(value))

    def score(self, state: Array, name: str, log_weight: Any) -> Array:
        return state + log_weight


def log_density(program: Program) -> Callable[..., Float[Array, ""]]:
    """Return the function `(trace, *args) -> log density` of a program.

    The joint log density of all sites, scores included, as `numpyro.infer.util.log_density` has it.

    Args:
        program: The program.

    Returns:
        A function of a trace (site name to value) and the program's arguments. Names in the trace that
        are no sites are ignored.

    Raises:
        ProgramError: If the trace lacks a site, or a value has the wrong shape.
    """
    return partial(_log_density, program)


def _log_density(program: Program, trace: Mapping[str, Any], *args: Any) -> Float[Array, ""]:
    staged = program.stage(*args)
    walked = interpret(
        staged.jaxpr.jaxpr, staged.jaxpr.consts, staged.operands, _AtTrace(), jnp.zeros(()), dict(trace)
    )
    return walked.state
