"""Geweke's joint distribution test of a kernel that should leave posteriors invariant."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from qbs.inference.validate.means import MeansReport, compare_means
from qbs.inference.validate.simulator import LIKELIHOOD, Observed, scalars, simulator


def joint(
    model: Callable,
    kernel: Callable[..., Mapping[str, Any]],
    *args: Any,
    key: Array,
    observed: Observed,
    tests: Mapping[str, Callable[[Any, Any], Any]] | None = None,
    num_chains: int = 5000,
    num_sweeps: int = 5,
    family_error: float = 1e-3,
    batch_size: int = 5000,
) -> MeansReport:
    """Check that a kernel leaves the posteriors of a model invariant, by Geweke's joint distribution test.

    Every chain starts with parameters and data drawn from the model, and sweeps: new data given the
    parameters, then the kernel given the data. If the kernel is right, parameters and data have their
    joint law after every sweep, exactly. So the mean change of a test function from start to end must be
    0, over independent chains: no autocorrelation to estimate.

    Args:
        model: A NumPyro model that draws its data where they are `None`.
        kernel: A function of a key, the parameters by site, and the model's arguments, data included, in
            JAX, which returns new parameters.
        *args: The model's arguments in order, the data left out.
        key: A typed JAX key.
        observed: The sites that are data, named like their arguments; or site to name of the argument.
        tests: Name to a function of parameters and data, of finite variance; by default each number of each
            latent site, its square, and the log likelihood.
        num_chains: How many chains.
        num_sweeps: How many sweeps each makes; the effects of an error add up over them.
        family_error: The probability that any test fails where all is right.
        batch_size: How many chains are computed at once.

    Raises:
        ValueError: If data cannot be drawn from the model, or the kernel does not keep sites and shapes.

    References:
        Geweke (2004), "Getting it right: joint distribution tests of posterior simulators", JASA 99, 799.
    """
    if num_sweeps < 1:
        raise ValueError(f"num_sweeps must be 1 or more, not {num_sweeps}")
    law = simulator(model, args, observed)

    def evaluate(parameters: Any, data: Any) -> dict[str, Array]:
        if tests is not None:
            return {name: jnp.asarray(test(parameters, data), float) for name, test in tests.items()}
        squares = {f"{name}^2": jnp.square(value) for name, value in parameters.items()}
        return {**parameters, **squares, LIKELIHOOD: law.log_likelihood(parameters, data)}

    def sweep(state: Any, key: Array) -> Any:
        parameters, key_data, key_kernel = state[0], *jax.random.split(key)
        _, data = law.draw(key_data, parameters)
        moved = dict(kernel(key_kernel, parameters, *law.with_data(data)))
        before, after = ({n: np.shape(v) for n, v in side.items()} for side in (parameters, moved))
        if before != after:
            raise ValueError(f"kernel must keep sites and shapes, {before}, and returned {after}")
        return ({name: jnp.asarray(moved[name], x.dtype) for name, x in parameters.items()}, data), None

    def chain(key: Array) -> Any:
        start, *sweeps = jax.random.split(key, num_sweeps + 1)
        first = law.draw(start, {})
        last, _ = lax.scan(sweep, first, jnp.stack(sweeps))
        return evaluate(*first), evaluate(*last)

    run_all = jax.jit(lambda keys: lax.map(chain, keys, batch_size=batch_size))
    before, after = (dict(scalars(side, 1)) for side in run_all(jax.random.split(key, num_chains)))
    changes = {f"change of {name}": after[name] - before[name] for name in before}
    truths, weights = dict.fromkeys(changes, 0.0), np.ones(num_chains)
    eps = float(jnp.finfo(float).eps)
    return compare_means("the joint law is {}kept", changes, truths, weights, family_error, eps)
