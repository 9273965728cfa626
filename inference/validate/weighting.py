"""Whether the weighted draws of a program have the expectations that they should have."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from qbs.inference.transform.population import Particles
from qbs.inference.validate.means import MeansReport, compare_means
from qbs.program import Program
from qbs.semantics.run import run


def properly_weighted(
    program: Program,
    tests: Mapping[str, tuple[Callable[[Any], Any], float]],
    key: Array,
    *args: Any,
    num_runs: int = 1000,
    family_error: float = 1e-3,
    log_evidence: float = 0.0,
    batch_size: int = 1000,
) -> MeansReport:
    r"""Test \(E[w f(x)]\) over independent runs of a program against truths.

    The value x of a population counts by the weighted average of f over its particles.

    Args:
        program: The program; any sites.
        tests: Name to a function of the value and the truth, the integral of the function over the measure.
            The function 1 with the evidence as truth tests the evidence.
        key: A typed JAX key.
        *args: The program's arguments.
        num_runs: How many runs.
        family_error: The probability that any test fails where all is right.
        log_evidence: Truths are relative to `exp(log_evidence)`, which may be too small for a float.
        batch_size: How many runs are computed at once.

    Raises:
        ValueError: If a log weight is NaN, no weight fits a float, or a test does not return one number.
    """

    def evaluate(name: str, value: Any) -> Array:
        image = jnp.asarray(tests[name][0](value), float)
        if image.shape != ():
            raise ValueError(f"tests[{name!r}] must return one number, not an array of shape {image.shape}")
        return image

    def one(key: Array) -> tuple[Array, dict[str, Array]]:
        value, log_weight, _ = run(program)(key, *args)
        if not isinstance(value, Particles):
            value = Particles(jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], value), jnp.zeros(1))
        shares = jnp.exp(value.log_weights)
        images = {name: jax.vmap(lambda v, n=name: evaluate(n, v))(value.value) for name in tests}
        return log_weight, {n: jnp.mean(jnp.where(shares > 0, shares * x, 0)) for n, x in images.items()}

    keys = jax.random.split(key, num_runs)
    log_weights, images = jax.jit(lambda keys: lax.map(one, keys, batch_size=batch_size))(keys)
    log_weights, eps = np.asarray(log_weights, float), float(jnp.finfo(log_weights.dtype).eps)
    finite = log_weights[np.isfinite(log_weights)]
    with np.errstate(all="ignore"):
        weights = np.exp(log_weights - log_evidence)
        samples = {n: np.where(weights > 0, weights * np.asarray(x, float), 0) for n, x in images.items()}
    if not np.all(np.isfinite(weights)) or (finite.size and not weights.any()):
        raise ValueError(
            f"log weights lie between {log_weights.min():.6g} and {log_weights.max():.6g}: none may be NaN, "
            f"and exp(log weight - log_evidence) must fit a float; log_evidence is {log_evidence:.6g}"
        )
    truths = {name: truth for name, (_, truth) in tests.items()}
    rounding = eps * (1 + float(np.abs(finite).max(initial=0)))
    return compare_means("{}properly weighted", samples, truths, weights, family_error, rounding)
