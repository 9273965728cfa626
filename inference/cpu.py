"""Loops of chains on a CPU: compiled into one kernel, where XLA would start a kernel for each operation.

A step of a chain is some fifty operations on a few numbers. XLA's CPU runtime takes about as long to start
one as to compute it, and hands some to other threads; a loop compiled as a whole does neither. XLA does so
itself with the smallest loops: here larger ones are marked as it marks those. What XLA cannot compile in this
way (calls of LAPACK, sorting, callbacks), and what has arrays long enough to keep several cores busy, is left
to the usual way, and everything is on other devices.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache, partial, wraps
from typing import Any

import equinox as eqx
import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata

from qbs.jaxprs import inner_jaxprs, open_jaxpr, variables

# How XLA marks a call that becomes a kernel of its own. Fusions of its newer emitters cannot be part of one.
_ONE_KERNEL = {"inlineable": "false", "xla_cpu_small_call": "true"}
_LIGHT = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 1}
_LONG = 100_000  # numbers in an array, above which a kernel's start is nothing beside its work

# Primitives that become calls into a library, or need what only the runtime has.
_OUTSIDE = frozenset(
    {
        "approx_top_k",
        "cholesky",
        "cholesky_update",
        "conv_general_dilated",
        "custom_partitioning",
        "debug_callback",
        "debug_print",
        "eig",
        "eigh",
        "fft",
        "ffi_call",
        "geqp3",
        "geqrf",
        "hessenberg",
        "householder_product",
        "io_callback",
        "lu",
        "lu_pivots_to_permutation",
        "ormqr",
        "pure_callback",
        "qr",
        "schur",
        "sort",
        "svd",
        "top_k",
        "triangular_solve",
        "tridiagonal",
        "tridiagonal_solve",
    }
)
# Primitives that are loops, or become loops.
_LOOPS = frozenset(
    {
        "betainc",
        "cond",
        "igamma",
        "igamma_grad_a",
        "igammac",
        "random_gamma",
        "regularized_incomplete_beta",
        "scan",
        "while",
    }
)
_IN_PLACE = ("dynamic_update_slice", "scatter")  # which write a part of an array that may be long

Mapped = Callable[[Callable], Callable]


def is_straight(function: Callable, *args: Any) -> bool:
    """Whether a function has no control flow of its own and calls nothing outside.

    XLA aborts on some loops within loops that are to be one kernel, and an abort cannot be caught. The loops
    of a sampler are known and tested; those of a model are not, so that it must have none.
    """
    names = {equation.primitive.name for equation in _equations(jax.make_jaxpr(function)(*args).jaxpr)}
    return names.isdisjoint(_OUTSIDE | _LOOPS)


def chains_in_one_kernel(function: Callable[..., Any]) -> Callable:
    """Compile a loop of chains, as `equinox.filter_jit` does; on a CPU into one kernel, where it pays.

    Such a kernel runs on one core. The compiler is told to optimize less, which takes half the time; the code
    is as fast. Inside, chains run one after the other: side by side they would wait for each other, and the
    last bits of a number would depend on where it stands among them.

    Args:
        function: Called as `function(mapped, *args)`. It applies `mapped`, a `jax.vmap` or what gives the
            same, to what one chain does. Of `args`, what is no array is part of the program. It returns a
            pytree of arrays; one array of numbers at least.

    Returns:
        A function of `args`, which does as usual with `is_possible=False`.
    """

    @lru_cache(maxsize=64)
    def kernel(structure: Any, kinds: tuple, fixed: tuple, _precision: Any) -> _OneKernel:
        def in_turn(arrays: Any) -> Any:
            return function(_in_turn, *eqx.combine(arrays, jax.tree.unflatten(*fixed)))

        arguments = [jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in kinds]
        traced = jax.jit(in_turn).trace(jax.tree.unflatten(structure, arguments))
        return _OneKernel(_marked(traced) if _pays(traced.jaxpr.jaxpr) else None)

    usual = eqx.filter_jit(partial(function, jax.vmap))

    @wraps(function)
    def call(*args: Any, is_possible: bool = True) -> Any:
        if not is_possible or jax.default_backend() != "cpu" or not _knows_options():
            return usual(*args)
        arrays, rest = eqx.partition(args, eqx.is_array)
        leaves, structure = jax.tree.flatten(arrays)
        fixed, frame = jax.tree.flatten(rest)
        kinds = tuple(map(jax.typeof, leaves))
        one = kernel(structure, kinds, (frame, tuple(fixed)), jnp.result_type(float))
        if one.run is not None:
            try:
                return one.run(arrays)
            except jax.errors.JaxRuntimeError:
                one.run = None  # an operation that cannot be compiled in this way; other errors come again
        return usual(*args)

    return call


def _in_turn(function: Callable) -> Callable:
    """Return a function that does what that of `jax.vmap` does, one after the other."""
    return lambda *args: jax.lax.map(lambda each: function(*each), args)


@dataclass
class _OneKernel:
    """What runs for arguments of some shapes; `None` where they run as usual."""

    run: Callable | None


def light_jit(function: Callable) -> Callable:
    """Compile a function as `equinox.filter_jit` does; on a CPU with less optimization, in half the time."""
    jit: Any = eqx.filter_jit  # whose types leave out the arguments that it hands on to `jax.jit`
    usual, light = jit(function), jit(function, compiler_options=_LIGHT)

    @wraps(function)
    def call(*args: Any) -> Any:
        return (light if jax.default_backend() == "cpu" and _knows_options() else usual)(*args)

    return call


def _marked(traced: jax.stages.Traced) -> Callable:
    """Return what was traced, as a call that is compiled into one kernel."""
    kinds, structure = jax.tree.flatten(traced.out_info)
    mark = next(i for i, kind in enumerate(kinds) if not jnp.issubdtype(kind.dtype, jax.dtypes.prng_key))
    inner = jax.jit(jex.core.jaxpr_as_fun(traced.jaxpr))

    def outer(arrays: Any) -> Any:
        results = inner(*jax.tree.leaves(arrays))
        results[mark] = set_xla_metadata(results[mark], **_ONE_KERNEL)
        return jax.tree.unflatten(structure, results)

    return jax.jit(outer, compiler_options=_LIGHT)


def _pays(jaxpr: Any) -> bool:
    """Whether a computation can be one kernel, as far as can be told before compiling, and runs faster so."""
    return all(
        equation.primitive.name not in _OUTSIDE
        and (equation.primitive.name in _IN_PLACE or _longest(equation) <= _LONG)
        for equation in _operations(jaxpr)
    )


def _longest(equation: Any) -> int:
    """Return how many numbers the longest array has that an operation reads or writes."""
    arrays = [*variables(equation), *equation.outvars]
    return max((math.prod(variable.aval.shape) for variable in arrays), default=0)


def _operations(jaxpr: Any) -> Iterator[Any]:
    """Yield the equations of a computation that call no other, at any depth."""
    for equation in _equations(jaxpr):
        if equation.primitive.name in _OUTSIDE or not any(True for _ in inner_jaxprs(equation)):
            yield equation


def _equations(jaxpr: Any) -> Iterator[Any]:
    """Yield the equations of a computation, at any depth."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in inner_jaxprs(equation):
            yield from _equations(open_jaxpr(inner)[0])


@cache
def _knows_options() -> bool:
    """Whether this version's compiler takes the options that are asked for here."""
    try:
        jax.jit(lambda x: x, compiler_options=_LIGHT)(np.float32(0))
    except jax.errors.JaxRuntimeError:
        return False
    return True
