"""A NumPyro model as a joint distribution of parameters and data, for checks that must know the truth."""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from qbs.effects import score_p
from qbs.inference.sites import walk
from qbs.jaxprs import all_names, find_sites
from qbs.program import reify

LIKELIHOOD = "log likelihood"
Observed = str | Collection[str] | Mapping[str, str]


class Simulator(NamedTuple):
    """A model with its arguments, `None` in the place of data, and the observed sites' places among them."""

    model: Callable
    arguments: tuple
    places: dict[str, int]

    def draw(self, key: Array, parameters: Mapping[str, Any]) -> tuple[dict, dict]:
        """Draw parameters from the prior, but for those that are given, and data from the likelihood."""
        program = reify(self.model)
        jaxpr = program.stage(*self.arguments).jaxpr
        sites = list(find_sites(jaxpr))
        if fixed := sorted(all_names(jaxpr, (score_p,)).difference(sites)):
            raise ValueError(f"the model observes {fixed} without data: data cannot be drawn from it")
        if missing := [name for name in self.places if name not in sites]:
            raise ValueError(f"observed names {missing}; the model's sites are {', '.join(sites)}")
        trace = walk(program, self.arguments, key, parameters).trace
        data = {name: trace[name] for name in self.places}
        return {name: trace[name] for name in sites if name not in data}, data

    def with_data(self, data: Mapping[str, Any]) -> tuple:
        """Return the model's arguments, the data among them."""
        found = {place: data[name] for name, place in self.places.items()}
        return tuple(found.get(i, argument) for i, argument in enumerate(self.arguments))

    def log_likelihood(self, parameters: Mapping[str, Any], data: Mapping[str, Any]) -> Array:
        """Return the log density of the data given all parameters."""
        log_probs = walk(reify(self.model), self.with_data(data), jax.random.key(0), parameters).log_probs
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
