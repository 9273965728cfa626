"""A likelihood written as a plain Python function, with its priors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array

from qbs.errors import LikelihoodError, ModelError
from qbs.inference.black_box import not_scalar


@dataclass(frozen=True, eq=False)
class Target:
    """A log likelihood, the priors of its parameters, and optionally quantities derived from them.

    The function may be written in JAX (then it is compiled, batched and differentiated) or in any other
    Python (then nested sampling calls it point by point with NumPy numbers); qbs finds out which.

    ```python
    target = qbs.Target(
        log_likelihood=lambda p: -0.5 * ((p["x"] - 1) / 0.1) ** 2,
        priors={"x": dist.Uniform(-5, 5)},
        derived=lambda p: {"x_squared": p["x"] ** 2},
    )
    posterior = qbs.fit(target, key=jax.random.key(0))
    ```

    Attributes:
        log_likelihood: Called as `log_likelihood(parameters, *data)`, where `parameters` is a dictionary
            from name to value and `data` is what is passed to `qbs.fit` after the target. Returns one
            number, in nats; `-inf` means impossible. NaN is an error where the function is compiled, and a
            failed call where it is not; see `qbs.Calls`.
        priors: A NumPyro distribution for each parameter, independent of one another. For dependent
            priors write a NumPyro model.
        derived: Called as `derived(parameters)`; returns a dictionary of further quantities, which are
            reported with the posterior and do not enter the fit.
        name: What tables and messages call the problem; the function's name by default.
        in_jax: Whether the function is written in JAX: `True` raises what keeps JAX from tracing it, `False`
            calls it point by point although JAX could trace it, as where it waits or writes; by default qbs
            finds out.

    Raises:
        ModelError: If there is no prior, or one is not a NumPyro distribution.
    """

    log_likelihood: Callable[..., Any]
    priors: Mapping[str, dist.Distribution]
    derived: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None
    name: str = field(default="")
    in_jax: bool | None = None

    def __post_init__(self) -> None:
        if not callable(self.log_likelihood):
            kind = type(self.log_likelihood).__name__
            raise ModelError(f"log_likelihood must be a function of a dictionary of parameters, not {kind}")
        if not isinstance(self.priors, Mapping) or not self.priors:
            raise ModelError("priors must be a dictionary from parameter name to a NumPyro distribution")
        for name, prior in self.priors.items():
            if not isinstance(prior, dist.Distribution):
                raise ModelError(
                    f"the prior of {name!r} must be a NumPyro distribution such as dist.Uniform(0, 1), "
                    f"not {type(prior).__name__}"
                )
        if not self.name:
            name = getattr(self.log_likelihood, "__name__", "target")
            object.__setattr__(self, "name", "target" if name == "<lambda>" else name)

    def sample_priors(self, *_data: Any) -> dict[str, Array]:
        """The priors alone, as a NumPyro model."""
        return {name: numpyro.sample(name, prior) for name, prior in self.priors.items()}

    def as_model(self, *data: Any) -> None:
        """The whole target as a NumPyro model; needs a likelihood written in JAX."""
        parameters = self.sample_priors()
        value = jnp.asarray(self.log_likelihood(parameters, *data))
        require_scalar(value.shape, self.name)
        numpyro.factor(f"log likelihood of {self.name}", value)
        for name, value in (self.derived(parameters) if self.derived else {}).items():
            numpyro.deterministic(name, value)


def require_scalar(shape: tuple[int, ...], name: str) -> None:
    """Raise `LikelihoodError` unless a log likelihood is one number."""
    if shape != ():
        raise LikelihoodError(f"log_likelihood of {name!r} {not_scalar(shape)}")
