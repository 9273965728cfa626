"""Whether a function is its own inverse, and its log-determinant that of its Jacobian."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from qbs.precision import in_float64


@dataclass(frozen=True, repr=False)
class InvolutionReport:
    """How far a function is from an involution.

    Attributes:
        max_difference: The largest `|f(f(x)) - x| / (1 + |x|)` of any coordinate; infinite where NaN.
        log_det_error: The largest error of the log-determinant, over 1 + its size; `None` if none is given.
        worst: The point where the larger of both is.
        ok: Whether both are within the tolerance.
    """

    max_difference: float
    log_det_error: float | None
    worst: Any
    ok: bool

    def __repr__(self) -> str:
        log_det = "" if self.log_det_error is None else f", log-determinant off by {self.log_det_error:.3g}"
        gap = f"f(f(x)) off x by {self.max_difference:.3g}"
        return f"{'' if self.ok else 'NOT '}an involution: {gap}{log_det}; worst at {self.worst}"


def involution(function: Callable[[Any], Any], points: Any, *, tolerance: float = 1e-9) -> InvolutionReport:
    """Check at given points that a function is its own inverse, in float64.

    Args:
        function: From a point to a point of the same structure; or to that and the log of the absolute
            determinant of the Jacobian of its floating-point coordinates, which is compared with automatic
            differentiation.
        points: A point (an array, or a tree of them) with a leading axis over the points.
        tolerance: The largest relative error that passes.

    Raises:
        ValueError: If the function returns something else.

    References:
        Green (1995), "Reversible jump Markov chain Monte Carlo computation and Bayesian model determination".
    """
    errors = in_float64(jax.jit(jax.vmap(lambda point: _errors(function, point))))(points)
    errors = [np.where(np.isnan(error), np.inf, error) for error in errors]
    largest = np.max(errors, axis=0)
    worst = jax.tree.map(lambda leaf: np.asarray(leaf[largest.argmax()]).tolist(), points)
    log_det_error = float(errors[1].max()) if len(errors) > 1 else None
    return InvolutionReport(float(errors[0].max()), log_det_error, worst, bool(largest.max() <= tolerance))


def _errors(function: Callable, point: Any) -> tuple[Array, ...]:
    image, log_det = _apply(function, point)
    back, _ = _apply(function, image)
    gaps = jax.tree.map(lambda x, y: jnp.max(jnp.abs(1.0 * y - x) / (1 + jnp.abs(x))), point, back)
    gap = jnp.max(jnp.stack(jax.tree.leaves(gaps)))
    if log_det is None:
        return (gap,)
    floats, rest = eqx.partition(point, eqx.is_inexact_array)
    flat, unravel = ravel_pytree(floats)

    def move(flat: Array) -> Array:
        moved, _ = _apply(function, eqx.combine(unravel(flat), rest))
        return ravel_pytree(eqx.filter(moved, eqx.is_inexact_array))[0]

    true = jnp.linalg.slogdet(jax.jacfwd(move)(flat))[1]
    return gap, jnp.abs(log_det - true) / (1 + jnp.abs(true))


def _apply(function: Callable, point: Any) -> tuple[Any, Any]:
    like: Any = jax.tree.structure(point)
    result, log_det = function(point), None
    if like != jax.tree.structure(result) and isinstance(result, tuple) and len(result) == 2:
        result, log_det = result
    if like != jax.tree.structure(result):
        raise ValueError(f"function must return a point like {like}, or that and a log-determinant")
    return jax.tree.map(lambda y, x: jnp.asarray(y, x.dtype), result, point), log_det
