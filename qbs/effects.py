"""The two effects of a program, `sample` and `score`, as JAX primitives.

Tracing a function that calls `sample` and `score` gives a jaxpr in which these calls stand as equations. They
mean nothing by themselves: a semantics (`qbs.run`, `qbs.log_density`, `qbs.enumerate`) interprets them.
Two more primitives change nothing in it: `note` gives a value a name in the trace, and `resampled` asks
whether the population around, if there is one, resampled at a score.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.interpreters import batching, mlir
from jaxtyping import Array, ArrayLike

from qbs.errors import ProgramError
from qbs.hashing import kept

sample_p = jex.core.Primitive("sample")
score_p = jex.core.Primitive("score")
note_p = jex.core.Primitive("note")
resampled_p = jex.core.Primitive("resampled")

_is_recorded = ContextVar("is_recorded", default=True)

EFFECTS = frozenset({sample_p, score_p, note_p, resampled_p})


def sample(name: str, distribution: dist.Distribution) -> Array:
    """Draw a value from a distribution, as an effect of the program that is being traced.

    Args:
        name: The name of the site in the trace; unique in the program.
        distribution: A NumPyro distribution.

    Returns:
        A value of the distribution's batch and event shape.

    Raises:
        ProgramError: If it is called outside a program, or the distribution holds a function that closes over
            values of the program, such as the drift of an `EulerMaruyama`.
    """
    for part in vars(distribution).values():
        cells = getattr(part, "__closure__", None) or ()
        if any(isinstance(leaf, jax.core.Tracer) for cell in cells for leaf in _contents(cell)):
            raise ProgramError(
                f"the distribution of site {name!r} holds a function that closes over values of the program: "
                "qbs cannot take them out of it; write the steps as sites in a scan"
            )
    leaves, structure = jax.tree.flatten(distribution)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    kinds = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    drawn = _drawn(structure, kinds, jnp.result_type(float))
    return sample_p.bind(
        *leaves,
        structure=structure,
        name=name,
        shape=drawn.shape,
        dtype=drawn.dtype,
        axes=(),
        is_recorded=_is_recorded.get(),
    )


def _contents(cell: Any) -> list:
    try:
        return jax.tree.leaves(cell.cell_contents)
    except ValueError:  # nothing was assigned yet
        return []


@contextmanager
def unrecorded() -> Iterator[None]:
    """Keep what is drawn in the body, an algorithm's own choices, out of the traces of `qbs.run`."""
    token = _is_recorded.set(False)
    try:
        yield
    finally:
        _is_recorded.reset(token)


@kept
def _drawn(structure: Any, leaves: tuple, precision: Any) -> Any:  # noqa: ARG001 (types depend on it)
    """Return the shape and type of a draw."""
    key = jax.eval_shape(jax.random.key, 0)
    return jax.eval_shape(lambda key, *own: jax.tree.unflatten(structure, own).sample(key), key, *leaves)


def score(log_weight: ArrayLike, *, name: str = "score") -> None:
    """Multiply the weight of the run by `exp(log_weight)`, as an effect of the program that is being traced.

    Args:
        log_weight: A scalar, in nats; `-inf` rejects the run.
        name: What messages and suspension points call it.

    Raises:
        ProgramError: If it is called outside a program.
        ValueError: If the log weight is not a scalar.
    """
    value = jnp.asarray(log_weight, dtype=float)
    if value.shape != ():
        raise ValueError(
            f"score {name!r}: the log weight must be a scalar, not of shape {value.shape}: sum it"
        )
    score_p.bind(value, name=name)


def note(name: str, value: ArrayLike) -> Array:
    """Give a value a name in the trace of the program that is being traced; the value is unchanged."""
    return note_p.bind(jnp.asarray(value), name=name)


def resampled(name: str) -> Array:
    """Return whether the population around resampled at the score of this name; true where there is none."""
    return resampled_p.bind(name=name)


def unused(wanted: str, taken: Collection[str]) -> str:
    """Return a name for a site that is not taken: the wanted one, or that with a number."""
    number, name = 1, wanted
    while name in taken:
        number, name = number + 1, f"{wanted}_{number + 1}"
    return name


def _outside(primitive: Any, *_: Any, name: str, **__: Any) -> Any:
    raise ProgramError(
        f"{primitive} {name!r} was reached outside a program: give the function to qbs.reify or qbs.Program, "
        "and run that with qbs.run"
    )


def _sample_shape(*_: Any, shape: Any, dtype: Any, axes: Any, **__: Any) -> Any:
    return jax.core.ShapedArray(tuple(size for size, _ in axes) + shape, dtype)


def _batch_sample(operands: Any, dims: Any, *, axes: Any, **settings: Any) -> Any:
    """Add an axis of independent draws: what `jax.vmap` means for a random choice."""
    size = next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)
    where = tuple(None if d is None else d for d in dims)
    return sample_p.bind(*operands, axes=((size, where), *axes), **settings), 0


def _batch_score(operands: Any, dims: Any, *, name: str) -> Any:
    (log_weights,), (axis,) = operands, dims
    score_p.bind(jnp.sum(log_weights, axis), name=name)
    return log_weights, axis


def _batch_note(operands: Any, dims: Any, *, name: str) -> Any:
    (value,), (axis,) = operands, dims
    return note_p.bind(jnp.moveaxis(value, axis, 0), name=name), 0


sample_p.def_abstract_eval(_sample_shape)
score_p.def_abstract_eval(lambda value, **_: value)
note_p.def_abstract_eval(lambda value, **_: value)
resampled_p.def_abstract_eval(lambda **_: jax.core.ShapedArray((), bool))
batching.primitive_batchers[sample_p] = _batch_sample
batching.primitive_batchers[score_p] = _batch_score
batching.primitive_batchers[note_p] = _batch_note
for primitive in EFFECTS:
    primitive.def_impl(partial(_outside, primitive))
    mlir.register_lowering(primitive, partial(_outside, primitive))
