"""Data that a model reads from outside its arguments: globals, closures, defaults, helper functions.

Two things go wrong with it if nobody looks. Compiled code keeps the values it was traced with, so a model
function that reads a global `y` would go on with the old `y` after a notebook cell sets a new one. And JAX
(0.10 to 0.12) remembers the first form that a captured NumPy array took: traced once in float32, the array
is float32 in a later float64 trace as well, or the trace fails.

So each binding gives the model its own views of what it captured (`own_constants`), and keys compiled code
by what the trace really contains (`qbs.inference.digest`).
"""

import copy
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpyro.primitives import Messenger

# Functions of these packages hold no data of the user.
_LIBRARIES = {"equinox", "jax", "jaxlib", "numpy", "numpyro", "optax", "qbs", "scipy"}


def own_constants(function: Callable) -> Callable:
    """Return the same function with views of its own in place of the NumPy arrays that it captured.

    Follows closures, globals, defaults, `functools.partial`, NumPyro handlers, dictionaries, lists and
    tuples, and other Python functions that the function calls by name. Arrays in modules and in objects
    of other classes stay as they are.
    """
    return _own(function, {})


def _own(value: Any, seen: dict[int, Any]) -> Any:
    if id(value) in seen:
        return seen[id(value)]
    if type(value) is np.ndarray:
        return seen.setdefault(id(value), value.view())
    if type(value) is types.FunctionType:
        return _own_function(value, seen)
    if type(value) is types.MethodType:
        return types.MethodType(_own(value.__func__, seen), value.__self__)
    if type(value) in (list, tuple):
        return type(value)(_own(item, seen) for item in value)
    if type(value) is dict:
        return {key: _own(item, seen) for key, item in value.items()}
    if type(value) is functools.partial:
        return functools.partial(
            _own(value.func, seen), *_own(value.args, seen), **_own(dict(value.keywords), seen)
        )
    if isinstance(value, Messenger):
        own = copy.copy(value)
        own.__dict__.update({name: _own(item, seen) for name, item in vars(value).items()})
        return own
    return value


def _own_function(function: types.FunctionType, seen: dict[int, Any]) -> Callable:
    if (function.__module__ or "").split(".")[0] in _LIBRARIES:
        return function
    cells = tuple(types.CellType() for _ in function.__closure__ or ())
    names = dict(function.__globals__)
    own = types.FunctionType(function.__code__, names, function.__name__, None, cells or None)
    seen[id(function)] = own  # before going deeper, for functions that call themselves
    functools.update_wrapper(own, function)
    own.__defaults__ = _own(function.__defaults__, seen)
    own.__kwdefaults__ = _own(function.__kwdefaults__, seen)
    for cell, original in zip(cells, function.__closure__ or (), strict=True):
        try:
            cell.cell_contents = _own(original.cell_contents, seen)
        except ValueError:  # a variable of the enclosing function that is not set yet
            continue
    for name in _global_names(function.__code__):
        if name in names:
            names[name] = _own(names[name], seen)
    return own


def _global_names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)
