"""A NumPyro model as a joint distribution of parameters and data, for checks that must know the truth."""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro import handlers
from numpyro.infer.util import compute_log_probs

LIKELIHOOD = "log likelihood"
Observed = str | Collection[str] | Mapping[str, str]


class Simulator(NamedTuple):
    """A model with its arguments, `None` in the place of data, and the observed sites' places among them."""

    model: Callable
    arguments: tuple
    places: dict[str, int]

    def draw(self, key: Array, parameters: Mapping[str, Any]) -> tuple[dict, dict]:
        """Draw parameters from the prior, but for those that are given, and data from the likelihood."""
        model = handlers.seed(handlers.substitute(self.model, dict(parameters)), key)
        sites = handlers.trace(model).get_trace(*self.arguments)
        values = {name: site["value"] for name, site in sites.items() if site["type"] == "sample"}
        if fixed := [name for name in values if sites[name]["is_observed"]]:
            raise ValueError(f"the model observes {fixed} without data: data cannot be drawn from it")
        if missing := [name for name in self.places if name not in values]:
            raise ValueError(f"observed names {missing}; the model's sites are {', '.join(values)}")
        data = {name: values.pop(name) for name in self.places}
        return values, data

    def with_data(self, data: Mapping[str, Any]) -> tuple:
        """Return the model's arguments, the data among them."""
        found = {place: data[name] for name, place in self.places.items()}
        return tuple(found.get(i, argument) for i, argument in enumerate(self.arguments))

    def log_likelihood(self, parameters: Mapping[str, Any], data: Mapping[str, Any]) -> Array:
        """Return the log density of the data given all parameters."""
        log_probs, _ = compute_log_probs(self.model, self.with_data(data), {}, dict(parameters))
        return jnp.sum(jnp.stack([log_probs[name] for name in self.places]))


def simulator(model: Callable, args: tuple, observed: Observed) -> Simulator:
    """Return the simulator of a model, from its arguments without the data.

    Raises:
        ValueError: If the arguments do not fit the model, or no site is observed.
    """
    named = [observed] if isinstance(observed, str) else observed
    holders = dict(named) if isinstance(named, Mapping) else {name: name for name in named}
    parameters = inspect.signature(model).parameters.values()
    positional = {p.name: p for p in parameters if p.kind <= p.POSITIONAL_OR_KEYWORD}
    if not holders or not set(holders.values()) <= set(positional):
        raise ValueError(f"observed must name arguments of the model, {list(positional)}, not {observed!r}")
    rest = inspect.Signature([p for p in positional.values() if p.name not in holders.values()])
    try:
        bound = rest.bind(*args)
    except TypeError as error:
        raise ValueError(f"the model takes {rest} beside its data: {error}") from error
    bound.apply_defaults()
    arguments, order = tuple(bound.arguments.get(name) for name in positional), list(positional)
    return Simulator(model, arguments, {site: order.index(name) for site, name in holders.items()})


def scalars(values: Mapping[str, Any], num_leading: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each number of named arrays, called like `theta[0]`, as a float64 array of the leading axes."""
    for name, value in values.items():
        array = np.asarray(value, float)
        for index in np.ndindex(array.shape[num_leading:]):
            yield f"{name}[{', '.join(map(str, index))}]" if index else name, array[(..., *index)]
