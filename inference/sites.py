"""The sites of a program: what they are, and the log probability of each."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from qbs.batches import bare
from qbs.effects import sample_p, score_p
from qbs.interpreter import Semantics, interpret
from qbs.jaxprs import effect_names
from qbs.program import Program


class Site(NamedTuple):
    """What is known of a latent site without running the model.

    Attributes:
        shape: Shape of its value; sites in a loop or a `vmap` have leading axes.
        is_discrete: Whether the values are integers.
        is_optional: Whether a branch of a `cond` passes it by.
    """

    shape: tuple[int, ...]
    is_discrete: bool
    is_optional: bool = False


class Walked(NamedTuple):
    """What a walk through a program found.

    Attributes:
        trace: Values of sites and deterministic sites by name.
        log_probs: Log probability, in nats, of each latent site and each score, summed under its name.
    """

    trace: dict[str, Array]
    log_probs: dict[str, Array]


def walk(
    program: Program,
    args: tuple,
    key: Array,
    given: Mapping[str, Any],
    watch: Callable[[str, dist.Distribution | None], None] = lambda *_: None,
) -> Walked:
    """Walk through a program with given values of its sites; draw the others from their distributions.

    Those of an improper prior are drawn near zero on unconstrained space.

    Args:
        program: The program.
        args: Its arguments.
        key: For the draws; not used where all values are given.
        given: Values by site name; other names are ignored.
        watch: Called with the name and the distribution of each site, in the order of the program, and with
            `None` for one that a branch passes by. In a loop the distribution is that of one step.
    """
    staged = program.stage(*args)
    # In the order of the program, and not of a set, whose own would change sums in the last bit.
    names = [name for equation in staged.jaxpr.eqns for name in effect_names(equation, {sample_p, score_p})]
    state = key, dict.fromkeys(names, jnp.zeros(()))
    found = interpret(
        staged.jaxpr.jaxpr, staged.jaxpr.consts, staged.operands, _BySite(watch), state, dict(given)
    )
    return Walked(found.trace, found.state[1])


class _BySite(Semantics):
    def __init__(self, watch: Callable[[str, dist.Distribution | None], None]):
        self._watch = watch

    def sample(self, state: Any, name: str, distribution: dist.Distribution, given: Any) -> tuple[Array, Any]:
        self._watch(name, distribution)
        key, log_probs = state
        if given is None:
            key, own = jax.random.split(key)
            given = _draw(distribution, own)
        value = jnp.asarray(given)
        added = log_probs[name] + jnp.sum(distribution.log_prob(value))
        return value, (key, log_probs | {name: added})

    def score(self, state: Any, name: str, log_weight: Any) -> Any:
        key, log_probs = state
        return key, log_probs | {name: log_probs[name] + log_weight}

    def untaken(self, state: Any, name: str, given: Any) -> Any:  # noqa: ARG002
        self._watch(name, None)
        return state


def _draw(distribution: dist.Distribution, key: Array) -> Array:
    if not is_improper(distribution):
        return jnp.asarray(distribution.sample(key))
    transform = dist.biject_to(distribution.support)
    shape = transform.inverse_shape(distribution.shape())
    return transform(jax.random.uniform(key, shape, minval=-2.0, maxval=2.0))


def is_improper(distribution: dist.Distribution) -> bool:
    """Whether a distribution cannot be normalised, nor drawn from."""
    return isinstance(bare(distribution), dist.ImproperUniform)
