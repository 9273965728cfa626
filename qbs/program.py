"""Programs: values that denote measures, and how a NumPyro model becomes one."""

import contextlib
import copy
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.extend as jex
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array
from numpyro import handlers
from numpyro.distributions.util import is_identically_one
from numpyro.ops.pytree import PytreeTrace
from numpyro.primitives import Messenger

from qbs.captured import own_constants
from qbs.effects import note, note_p, sample, sample_p, score
from qbs.errors import ProgramError
from qbs.interpreter import inner_jaxprs, open_jaxpr
from qbs.model import unmasked


class Staged(NamedTuple):
    """A program traced for arguments of certain shapes.

    Attributes:
        jaxpr: The program as a jaxpr, constants included.
        operands: The arrays among the arguments, in the order of the jaxpr's inputs.
        structure: The tree structure of the value.
    """

    jaxpr: jex.core.ClosedJaxpr
    operands: list[Array]
    structure: Any

    def unflatten(self, outputs: list) -> Any:
        """Return the program's value from the outputs of its jaxpr."""
        return jax.tree.unflatten(self.structure, outputs)


class Program(eqx.Module):
    """A function whose random choices are `qbs.sample` and whose weights are `qbs.score`.

    A program denotes a measure: `m(A) = E[exp(log_weight) 1(value in A)]`. It does nothing by itself;
    `qbs.run`, `qbs.log_density` and `qbs.enumerate` give it a meaning. Called inside another program, it
    becomes part of that one.

    Attributes:
        function: Called with the program's arguments while it is traced.
        name: What messages call it.
    """

    function: Callable = eqx.field(static=True)
    name: str = eqx.field(static=True, default="program")

    def __call__(self, *args: Any) -> Any:
        """Run the program as part of the program that is being traced."""
        return self.function(*args)

    def stage(self, *args: Any) -> Staged:
        """Trace the program for arguments of these shapes.

        Arrays among the arguments become inputs of the jaxpr; everything else is part of it.

        Raises:
            ProgramError: If a site name appears twice, or a site stands in a loop without a bound.
        """
        dynamic, static = eqx.partition(args, _is_data)
        leaves, structure = jax.tree.flatten(dynamic)

        def traced(leaves: list[Array]) -> Any:
            return self.function(*eqx.combine(jax.tree.unflatten(structure, leaves), static))

        jaxpr, shape = jax.make_jaxpr(traced, return_shape=True)([jnp.asarray(leaf) for leaf in leaves])
        _require_unique(jaxpr.jaxpr, set(), self.name)
        return Staged(jaxpr, [jnp.asarray(leaf) for leaf in leaves], jax.tree.structure(shape))


def _is_data(leaf: Any) -> bool:
    return eqx.is_array_like(leaf) and not isinstance(leaf, bool | int)


def _require_unique(jaxpr: Any, seen: set[str], program: str) -> None:
    for equation in jaxpr.eqns:
        if equation.primitive in (sample_p, note_p):
            name = equation.params["name"]
            if name in seen:
                raise ProgramError(
                    f"the site name {name!r} appears twice in {program!r}: names must be unique"
                )
            seen.add(name)
        elif equation.primitive.name == "cond":  # one branch runs, so branches may share names
            found = [set(seen) for _ in equation.params["branches"]]
            for branch, names in zip(equation.params["branches"], found, strict=True):
                _require_unique(open_jaxpr(branch)[0], names, program)
            seen.update(*found)
        else:
            for inner in inner_jaxprs(equation):
                _require_unique(open_jaxpr(inner)[0], seen, program)


def reify(model: Callable) -> Program:
    """Return the program of a NumPyro model.

    Latent sites become `qbs.sample`, observed sites and factors `qbs.score`, deterministic sites names in the
    trace. Handlers, plates and `numpyro.contrib.control_flow` keep their meaning; `jax.lax.scan`,
    `jax.lax.cond`, `jax.vmap` and `jax.jit` around sample statements work too.

    Args:
        model: A NumPyro model.

    References:
        Scibior et al. (2018), "Denotational validation of higher-order Bayesian inference", POPL.
    """
    own = own_constants(model)

    def program(*args: Any) -> Any:
        with _Reify():
            return own(*args)

    return Program(program, getattr(model, "__name__", type(model).__name__))


class _Reify(Messenger):
    """Stands below all other handlers, and turns what reaches it into effects."""

    def process_message(self, msg: dict[str, Any]) -> None:
        kind = msg["type"]
        if kind == "sample":
            _reify_site(msg)
        elif kind == "deterministic":
            msg["value"] = note(msg["name"], msg["value"])
        elif kind == "plate":
            _reify_plate(msg)
        elif kind == "control_flow":
            _reify_control_flow(msg)
        elif kind == "prng_key":
            raise ProgramError("numpyro.prng_key has no meaning in a program: draw with numpyro.sample")
        else:
            return
        msg["stop"] = True  # a program inside a program: the outer one must not see the site again


def _reify_site(msg: dict[str, Any]) -> None:
    name, fn, scale = msg["name"], msg["fn"], msg["scale"]
    scaled = scale is not None and not is_identically_one(scale)
    if msg["value"] is not None:
        log_prob = fn.log_prob(msg["value"])
        score(jnp.sum(scale * log_prob if scaled else log_prob), name=name)
        return
    shape = tuple(msg["kwargs"].get("sample_shape", ()))
    plain = unmasked(fn)
    msg["value"] = sample(name, plain.expand_by(list(shape)) if shape else plain)
    if scaled or plain is not fn:  # what the handler adds to the prior that the value is drawn from
        log_prob = fn.log_prob(msg["value"])
        wanted = scale * log_prob if scaled else log_prob
        score(jnp.sum(wanted) - jnp.sum(plain.log_prob(msg["value"])), name=name)


def _reify_plate(msg: dict[str, Any]) -> None:
    size, subsample_size = msg["args"]
    if subsample_size not in (None, size):
        msg["value"] = sample(f"{msg['name']}_subsample", _Subsample(size, subsample_size))


class _Subsample(dist.Distribution):
    """A uniform draw of some of the integers below a size, without replacement, in random order."""

    pytree_aux_fields = ("size", "subsample_size")

    def __init__(self, size: int, subsample_size: int):
        self.size, self.subsample_size = size, subsample_size
        super().__init__(batch_shape=(), event_shape=(subsample_size,))

    @property
    def support(self) -> dist.constraints.Constraint:
        """Vectors of integers below the size."""
        return dist.constraints.independent(dist.constraints.integer_interval(0, self.size - 1), 1)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draw the integers."""
        draw = partial(jax.random.permutation, x=self.size)
        keys = jax.random.split(key, sample_shape) if sample_shape else key
        for _ in sample_shape:
            draw = jax.vmap(draw)
        return draw(keys)[..., : self.subsample_size]

    def log_prob(self, value: Array) -> Array:
        """Return minus the log of the number of ordered draws."""
        count = jnp.sum(jnp.log(jnp.arange(self.size - self.subsample_size + 1, self.size + 1)))
        return jnp.broadcast_to(-count, jnp.shape(value)[:-1])


def _reify_control_flow(msg: dict[str, Any]) -> None:
    """Run NumPyro's scan and cond as JAX's, with the handlers that stand around them inside."""
    stack = msg["kwargs"]["substitute_stack"]
    around = [h for h in numpyro.primitives._PYRO_STACK if isinstance(h, handlers.scale | handlers.mask)]

    def inside(function: Callable, step: Array | None) -> Callable:
        def body(*args: Any) -> Any:
            with handlers.block(), _Reify():
                own = function
                for kind, values in stack:
                    replace = handlers.condition if kind == "condition" else handlers.substitute
                    own = replace(own, **{f"{kind}_fn": partial(_value_at, values, step)})
                with contextlib.ExitStack() as entered:
                    for handler in around:
                        entered.enter_context(copy.copy(handler))
                    return own(*args)

        return body

    if msg["fn"].__name__ == "scan_wrapper":
        function, init, xs, length, reverse = msg["args"]
        if length is None:
            length = jnp.shape(jax.tree.leaves(xs)[0])[0]
        steps = jnp.arange(length)

        def body(carry: Any, step_and_x: tuple[Array, Any]) -> Any:
            step, x = step_and_x
            return inside(function, step)(carry, x)

        carry, ys = lax.scan(body, init, (steps, xs), length=length, reverse=reverse)
        msg["value"] = (length, None, carry), (PytreeTrace({}), ys)
    else:
        pred, true_fn, false_fn, operand = msg["args"]
        value = lax.cond(pred, inside(true_fn, None), inside(false_fn, None), operand)
        msg["value"] = value, PytreeTrace({})


def _value_at(values: Any, step: Array | None, site: dict[str, Any]) -> Array | None:
    """Return what a substitute or condition handler around a loop gives to a site in step `step` of it."""
    if site["type"] != "sample":
        return None
    value = values(site) if callable(values) else values.get(site["name"])
    if value is None or step is None:
        return value
    shape = tuple(site["kwargs"].get("sample_shape", ())) + site["fn"].shape()
    return jnp.asarray(value)[step] if jnp.ndim(value) > len(shape) else value
