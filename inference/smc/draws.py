"""Run a program as part of a compiled step: its value and log score, without errors raised."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from qbs.errors import ProgramError
from qbs.interpreter import Semantics, interpret
from qbs.jaxprs import open_jaxpr
from qbs.program import Program


class Draw(NamedTuple):
    """What a run gave: its value, and the log of its weight, NaN where a score was NaN."""

    value: Any
    log_weight: Array


class _Quiet(Semantics):
    """Draw, and add up the scores; what is not finite is data."""

    def sample(self, state: Any, name: str, distribution: Any, given: Any) -> tuple[Array, Any]:  # noqa: ARG002
        key, own = jax.random.split(state[0])
        try:
            return distribution.sample(own), (key, state[1])
        except NotImplementedError as error:
            raise ProgramError(f"NumPyro cannot draw from the distribution of site {name!r}") from error

    def score(self, state: Any, name: str, log_weight: Any) -> Any:  # noqa: ARG002
        return state[0], state[1] + log_weight


def draw(program: Program, key: Array, *args: Any) -> Draw:
    """Run a program once."""
    staged = program.stage(*args)
    jaxpr, consts = open_jaxpr(staged.jaxpr)
    walked = interpret(jaxpr, consts, staged.operands, _Quiet(), (key, jnp.zeros(())), {})
    return Draw(staged.unflatten(walked.outputs), walked.state[1])
