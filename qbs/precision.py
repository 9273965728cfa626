"""The precision policy of qbs, in one place.

qbs never changes the user's global `jax_enable_x64` flag. What needs float64 computes in it at its own
boundary and hands back the caller's precision:

* A method that reports an evidence runs in float64 (`qbs.fit` enters `jax.enable_x64` around it).
* MCMC runs in the caller's precision, unless `qbs.fit(..., precision="float64")` asks for more.
* A function marked `in_float64` (cosmological integrals, Cholesky factors of near-singular matrices)
  computes in float64 whatever the flag, also inside the caller's `jit`, `grad` and `vmap`.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, ParamSpec, TypeVar

import jax
import jax.numpy as jnp

Precision = Literal["float32", "float64"]

P = ParamSpec("P")
T = TypeVar("T")


@contextmanager
def precision_context(precision: Precision | None) -> Iterator[None]:
    """Run the body in the given precision; `None` keeps the caller's."""
    if precision not in (None, "float32", "float64"):
        raise ValueError(f"precision must be 'float32', 'float64' or None, not {precision!r}")
    if precision is None:
        yield
        return
    with jax.enable_x64(precision == "float64"):
        yield


def _cast_floats(tree: Any, dtype: Any) -> Any:
    def cast(leaf: Any) -> Any:
        if isinstance(leaf, bool | int) or not (isinstance(leaf, float) or hasattr(leaf, "dtype")):
            return leaf
        array = jnp.asarray(leaf)
        return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array

    return jax.tree.map(cast, tree)


def in_float64(function: Callable[P, T]) -> Callable[P, T]:
    """Return `function` computing in float64 and returning floats of the caller's default precision.

    Floating-point leaves of the arguments are raised to float64 on the way in, and leaves of the result
    are lowered to the caller's default float type on the way out. Works under `jit`, `grad` and `vmap`
    whatever the global x64 flag says.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        outside = jnp.result_type(float)
        with jax.enable_x64(True):
            args, kwargs = _cast_floats((args, kwargs), jnp.float64)
            return _cast_floats(function(*args, **kwargs), outside)

    return wrapper
