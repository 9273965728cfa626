"""Run a program: one weighted draw from the measure that it denotes."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qbs.interpreter import Semantics, interpret
from qbs.program import Program


class Weighted(NamedTuple):
    """A weighted draw.

    Attributes:
        value: What the program returned.
        log_weight: Log of the product of all scores, in nats.
        trace: Value of every site and note by name; sites in a scan have a leading time axis.
    """

    value: Any
    log_weight: Float[Array, ""]
    trace: dict[str, Array]


class _Forward(Semantics):
    """Draw each site from its distribution; add up the scores."""

    def sample(self, state: Any, name: str, distribution: Any, given: Any) -> tuple[Array, Any]:
        key, log_weight = state
        key, own = jax.random.split(key)
        return distribution.sample(own), (key, log_weight)

    def score(self, state: Any, name: str, log_weight: Any) -> Any:
        key, total = state
        return key, total + log_weight


def run(program: Program) -> Callable[..., Weighted]:
    """Return the function `(key, *args) -> Weighted` that runs a program once.

    The expectation of `exp(log_weight) f(value)` is the integral of f under the measure of the program.
    Composes with `jax.jit`, `jax.vmap` and `jax.grad`.

    Args:
        program: The program.

    Returns:
        A function of a typed key and the program's arguments.
    """
    return partial(_run, program)


def _run(program: Program, key: Array, *args: Any) -> Weighted:
    staged = program.stage(*args)
    walked = interpret(
        staged.jaxpr.jaxpr, staged.jaxpr.consts, staged.operands, _Forward(), (key, jnp.zeros(())), {}
    )
    return Weighted(staged.unflatten(walked.outputs), walked.state[1], walked.trace)
