"""Run a program: one weighted draw from the measure that it denotes."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qbs.effects import score_p
from qbs.errors import ProgramError
from qbs.interpreter import Semantics, interpret
from qbs.jaxprs import effect_names, inner_names
from qbs.program import Program


class Weighted(eqx.Module):
    """A weighted draw; unpacks to value, log weight and trace.

    Attributes:
        value: What the program returned.
        log_weight: Log of the product of all scores, in nats.
        trace: Value of every site and note by name; sites in a scan have a leading time axis. What a
            population draws for its particles is not in it.
        first_zero: Position in `scores` of the score that made the weight zero; -1 if it is not.
        scores: The names of the program's scores.
    """

    value: Any
    log_weight: Float[Array, "..."]
    trace: dict[str, Array]
    first_zero: Int[Array, "..."]
    scores: tuple[str, ...] = eqx.field(static=True)

    @property
    def impossible_at(self) -> list[str]:
        """The names of the scores that made weights zero, the most frequent first."""
        found = np.asarray(self.first_zero).ravel()
        counts = np.bincount(found[found >= 0], minlength=len(self.scores))
        return [self.scores[i] for i in np.argsort(-counts, kind="stable") if counts[i]]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.value, self.log_weight, self.trace))


class _State(NamedTuple):
    key: Array
    log_weight: Array
    first_zero: Array
    first_bad: Array


class _Forward(Semantics):
    """Draw each site from its distribution; add up the scores, and note where they go wrong."""

    def __init__(self, scores: tuple[str, ...]):
        self.scores = scores

    def sample(self, state: _State, name: str, distribution: Any, given: Any) -> tuple[Array, _State]:
        key, own = jax.random.split(state.key)
        try:
            return distribution.sample(own), state._replace(key=key)
        except NotImplementedError as error:
            raise ProgramError(f"NumPyro cannot draw from the distribution of site {name!r}") from error

    def score(self, state: _State, name: str, log_weight: Any) -> _State:
        code = self.scores.index(name)
        total = state.log_weight + log_weight
        is_bad = jnp.isnan(log_weight) | (log_weight == jnp.inf)
        return _State(
            state.key,
            total,
            jnp.where((state.first_zero < 0) & (total == -jnp.inf), code, state.first_zero),
            jnp.where((state.first_bad < 0) & is_bad, code, state.first_bad),
        )


def run(program: Program) -> Callable[..., Weighted]:
    """Return the function `(key, *args) -> Weighted` that runs a program once.

    The expectation of `exp(log_weight) f(value)` is the integral of f under the measure of the program.
    It is compiled, and composes with `jax.jit`, `jax.vmap` and `jax.grad`.

    Args:
        program: The program.

    Returns:
        A function of a typed key and the program's arguments.

    Raises:
        EquinoxRuntimeError: If a score is NaN or infinite; it names the score. It is raised by compiled
            code too.
    """

    def run_once(key: Array, *args: Any) -> Weighted:
        # Python numbers with a point are data: a new one does not compile again.
        args = jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, float) else leaf, args)
        return _run(program, key, *args)

    return run_once


@eqx.filter_jit
def _run(program: Program, key: Array, *args: Any) -> Weighted:
    staged = program.stage(*args)
    found = [name for e in staged.jaxpr.jaxpr.eqns for name in effect_names(e, (score_p,))]
    scores = tuple(dict.fromkeys(found))
    none = jnp.full((), -1, jnp.int32)
    start = _State(key, jnp.zeros(()), none, none)
    walked = interpret(staged.jaxpr.jaxpr, staged.jaxpr.consts, staged.operands, _Forward(scores), start, {})
    state, log_weight = walked.state, walked.state.log_weight
    if scores:
        messages = [f"the score {name!r} of {program.name!r} is NaN or infinite" for name in scores]
        log_weight = eqx.branched_error_if(
            log_weight, state.first_bad >= 0, jnp.maximum(state.first_bad, 0), messages
        )
    inner = inner_names(staged.jaxpr)
    trace = {name: value for name, value in walked.trace.items() if name not in inner}
    return Weighted(staged.unflatten(walked.outputs), log_weight, trace, state.first_zero, scores)
