"""What the models ask of their parameters and of a series, and how both come into traced code."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Shaped


def parameter(value: Any, name: str) -> Any:
    """Return a parameter to store: a float64 NumPy array, or the JAX array that it is.

    What NumPy stores keeps its digits whatever the precision is that it is used in.

    Raises:
        ValueError: If it is not made of real numbers, or holds NaN or infinity, where its values are known.
    """
    if isinstance(value, jax.Array):
        array: Any = value if jnp.issubdtype(value.dtype, jnp.floating) else value.astype(float)
    else:
        try:
            array = np.asarray(value, dtype=float)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} must be made of real numbers, not {value!r}") from error
    if is_known(array) and not np.all(np.isfinite(array)):
        raise ValueError(f"{name} must be finite, not {np.asarray(array)}")
    return array


def is_known(array: Any) -> bool:
    """Whether the values of an array are known, so that they can be checked: not while it is traced."""
    return not isinstance(array, jax.core.Tracer)


def ambient(tree: Any) -> Any:
    """Return a tree with its arrays as JAX arrays of the default float type of the moment."""
    dtype = jnp.result_type(float)
    is_array = (np.ndarray, jax.Array)
    return jax.tree.map(lambda x: jnp.asarray(x, dtype=dtype) if isinstance(x, is_array) else x, tree)


def require_shape(array: Any, shape: tuple[int, ...], name: str, why: str) -> None:
    """Raise `ValueError` unless an array has a shape."""
    if np.shape(array) != shape:
        raise ValueError(f"{name} must have shape {shape}, {why}, not {np.shape(array)}")


def series(ys: Any, event_shape: tuple[int, ...] | None, name: str = "ys") -> Array:
    """Return a series as an array with time in front; floats in the default float type of the moment.

    Args:
        ys: The series. For an event of shape `(1,)` the last axis may be left out.
        event_shape: The shape of one observation; any if `None`.
        name: What messages call it.

    Raises:
        ValueError: If it is empty, has another shape, or holds infinity where its values are known.
    """
    try:
        array = jnp.asarray(ys)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of real numbers, not {type(ys).__name__}") from error
    if not jnp.issubdtype(array.dtype, jnp.integer):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name} must be made of real numbers, not of {array.dtype}")
        array = jnp.asarray(ys, dtype=jnp.result_type(float))
    if event_shape == (1,) and array.ndim == 1:
        array = array[:, None]
    if array.ndim == 0 or (event_shape is not None and array.shape[1:] != event_shape):
        wanted = "num_steps, ..." if event_shape is None else ", ".join(["num_steps", *map(str, event_shape)])
        raise ValueError(f"{name} must have shape ({wanted}), not {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name} is empty: it must have at least one step")
    if is_known(array) and np.any(np.isinf(array)):
        raise ValueError(f"{name} must be finite, or NaN where an observation is missing")
    return array


@jax.jit
def split_missing(ys: Shaped[Array, "num_steps ..."]) -> tuple[Array, Bool[Array, " num_steps"]]:
    """Return a series without NaN, and which steps are observed: those where no number is NaN.

    In the place of a step that is not, the first observed one stands: a value that the observation may take,
    so that its density, which is not counted, has a gradient.
    """
    is_missing = jnp.isnan(ys) if jnp.issubdtype(ys.dtype, jnp.floating) else jnp.zeros(ys.shape, bool)
    is_observed = ~jnp.any(is_missing.reshape(len(ys), -1), axis=1)
    stand_in = jnp.nan_to_num(ys[jnp.argmax(is_observed)])
    return jnp.where(is_observed.reshape(-1, *[1] * (ys.ndim - 1)), ys, stand_in), is_observed


def length_of(ys: Array | None, num_steps: int | None, name: str = "ys") -> int:
    """Return the number of steps of a series, or that which is to be drawn in its place.

    Raises:
        ValueError: If both are given, or neither, or the number is not a whole number above 0.
    """
    if (ys is None) == (num_steps is None):
        raise ValueError(f"give {name}, or num_steps to draw it: one of the two")
    return len(ys) if ys is not None else require_steps(num_steps)


def require_steps(num_steps: Any) -> int:
    """Return a number of steps.

    Raises:
        ValueError: If it is not a whole number above 0.
    """
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"num_steps must be a whole number above 0, not {num_steps!r}")
    return num_steps
