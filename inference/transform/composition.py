"""Programs from programs: the monad of measures.

References:
    Scibior et al. (2018), section 2: `m(bind(p, f)) = integral of m(f(x)) m(p)(dx)`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax

from qbs.effects import sample
from qbs.program import Program


def bind(program: Program, function: Callable[[Any], Any]) -> Program:
    """Return the program that runs one program, and then what a function makes of its value.

    Args:
        program: The first program.
        function: Called with the value of the first; it may draw and score, so a `Program` of one argument
            will do. Its site names must not be those of the first.
    """
    return Program(lambda *args: function(program(*args)), program.name)


def map(program: Program, function: Callable[[Any], Any]) -> Program:  # noqa: A001 (the term of the field)
    """Return the program whose value is a function of another's: the image measure."""
    return Program(lambda *args: function(program(*args)), program.name)


def product(*programs: Program) -> Program:
    """Return the program that runs independent programs on the same arguments; its value is their tuple.

    Raises:
        ProgramError: When it is staged, if two of them share a site name.
    """
    name = " and ".join(program.name for program in programs)
    return Program(lambda *args: tuple(program(*args) for program in programs), name)


def mixture(weights: Any, programs: Sequence[Program], *, name: str = "component") -> Program:
    """Return the program that runs one of several, drawn by weight.

    Args:
        weights: One number for each, not negative; they are divided by their sum, so that `m` is the weighted
            mean of the measures.
        programs: Programs of the same arguments, whose values have the same structure.
        name: The site that says which.

    Raises:
        ValueError: If the numbers of weights and programs differ.
    """
    probs = jnp.asarray(weights, dtype=float)
    if probs.shape != (len(programs),):
        raise ValueError(f"weights must be {len(programs)} numbers, one for each program, not {weights!r}")

    def run_one(*args: Any) -> Any:
        which = sample(name, dist.Categorical(probs=probs / jnp.sum(probs)))
        return lax.switch(which, [lambda _, own=program: own(*args) for program in programs], None)

    return Program(run_one, f"mixture of {len(programs)}")
