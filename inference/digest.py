"""A fingerprint of a traced program: what compiled code is kept for."""

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.extend as jex
import numpy as np

from qbs.jaxprs import inner_jaxprs, open_jaxpr

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def digest(traced: jex.core.ClosedJaxpr) -> str:
    """Return a SHA-256 over a jaxpr, the constants in it included."""
    found = hashlib.sha256(_ADDRESS.sub("", str(traced.jaxpr)).encode())
    for constant in _constants(traced):
        if jax.dtypes.issubdtype(getattr(constant, "dtype", None), jax.dtypes.prng_key):
            constant = jax.random.key_data(constant)
        values = np.ascontiguousarray(constant)
        found.update(f"{values.dtype.str}{values.shape}".encode())
        found.update(values.tobytes())
    return found.hexdigest()


def _constants(traced: Any) -> Iterator[Any]:
    """Yield the constants of a jaxpr and of those inside it, and the arrays that stand in it as literals."""
    jaxpr, constants = open_jaxpr(traced)
    yield from constants
    for equation in jaxpr.eqns:
        for operand in equation.invars:
            if isinstance(operand, jex.core.Literal) and np.ndim(operand.val) > 0:
                yield operand.val
        for inner in inner_jaxprs(equation):
            yield from _constants(inner)
