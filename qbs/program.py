"""Programs: values that denote measures, and how a NumPyro model becomes one."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array
from numpyro import handlers
from numpyro.distributions.util import is_identically_one
from numpyro.ops.pytree import PytreeTrace
from numpyro.primitives import _PYRO_STACK, Messenger

from qbs.captured import own_constants
from qbs.effects import note, note_p, sample, sample_p, score, score_p
from qbs.errors import ProgramError
from qbs.jaxprs import Jaxpr, has_effects, inner_jaxprs, is_literal, open_jaxpr, refusing_batched_branches

# JAX keeps the jaxprs of jitted functions and loop bodies by function, and knows nothing of the handlers that
# stand around them. With a value of its own for each staging, none is taken over from another.
_staging = jax.make_user_context(None)


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
    becomes part of that one, and NumPyro's handlers around the call act on it.

    Attributes:
        function: Called with the program's arguments while it is traced.
        name: What messages call it.
    """

    function: Callable = eqx.field(static=True)
    name: str = eqx.field(static=True, default="program")

    def __call__(self, *args: Any) -> Any:
        """Run the program as part of the program that is being traced."""
        with _reifying():
            return self.function(*args)

    def stage(self, *args: Any) -> Staged:
        """Trace the program for arguments of these shapes.

        Arrays among the arguments become inputs of the jaxpr; everything else is part of it.

        Raises:
            ProgramError: If a site name appears twice, or the function cannot be traced.
        """
        dynamic, static = eqx.partition(args, _is_data)
        leaves, structure = jax.tree.flatten(dynamic)
        operands = [jnp.asarray(leaf) for leaf in leaves]

        def traced(leaves: list[Array]) -> Any:
            return self.function(*eqx.combine(jax.tree.unflatten(structure, leaves), static))

        with _reifying() as sites, _staging(object()), refusing_batched_branches():
            before = len(sites.observed)
            try:
                jaxpr, shape = jax.make_jaxpr(traced, return_shape=True)(operands)
            except (TypeError, jax.errors.JAXIndexError, NotImplementedError) as error:
                raise ProgramError(_why_not_traced(self.name, sites.reached, error)) from error
            observed = frozenset(sites.observed[before:])
            del sites.observed[before:]
        jaxpr = jaxpr.replace(jaxpr=_without_dead_equations(jaxpr.jaxpr))
        _require_unique(jaxpr.jaxpr, set(), observed, self.name)
        return Staged(jaxpr, operands, jax.tree.structure(shape))


def _is_data(leaf: Any) -> bool:
    """Whether an argument is an array of numbers; Python's numbers may decide shapes and branches."""
    return isinstance(leaf, jax.Array) or (isinstance(leaf, np.ndarray) and leaf.dtype.kind not in "OSUMm")


def _why_not_traced(program: str, reached: list[str], error: Exception) -> str:
    where = f"at or after site {reached[-1]!r}" if reached else "before its first site"
    what = f"{type(error).__name__}: {error}".splitlines()[0]
    if any(word in what.lower() for word in ("trace", "concrete")):
        what += "; shapes and Python branches must not depend on what is drawn, nor on array arguments"
    return f"{program!r} cannot be traced {where}: {what}"


def _without_dead_equations(jaxpr: Jaxpr) -> Jaxpr:
    """Return a jaxpr without the equations that nothing reads, as those of NumPyro's checks of parameters."""
    needed = {variable for variable in jaxpr.outvars if not is_literal(variable)}
    kept = []
    for equation in reversed(jaxpr.eqns):
        if has_effects(equation):
            equation = equation.replace(params={k: _pruned(v) for k, v in equation.params.items()})
        elif not equation.effects and needed.isdisjoint(equation.outvars):
            continue
        kept.append(equation)
        needed.update(variable for variable in equation.invars if not is_literal(variable))
    return jaxpr.replace(eqns=kept[::-1])


def _pruned(parameter: Any) -> Any:
    if isinstance(parameter, tuple | list):
        return type(parameter)(map(_pruned, parameter))
    if isinstance(parameter, jex.core.ClosedJaxpr):
        return parameter.replace(jaxpr=_without_dead_equations(parameter.jaxpr))
    return _without_dead_equations(parameter) if isinstance(parameter, Jaxpr) else parameter


def _require_unique(jaxpr: Any, seen: set[str], observed: frozenset[str], program: str) -> None:
    for equation in jaxpr.eqns:
        if equation.primitive in (sample_p, note_p, score_p):
            name = equation.params["name"]
            if equation.primitive is score_p and name not in observed:
                continue
            if name in seen:
                raise ProgramError(
                    f"the site name {name!r} appears twice in {program!r}: names must be unique"
                )
            seen.add(name)
        elif equation.primitive.name == "cond":  # one branch runs, so branches may share names
            found = [set(seen) for _ in equation.params["branches"]]
            for branch, names in zip(equation.params["branches"], found, strict=True):
                _require_unique(open_jaxpr(branch)[0], names, observed, program)
            seen.update(*found)
        else:
            for inner in inner_jaxprs(equation):
                _require_unique(open_jaxpr(inner)[0], seen, observed, program)


def reify(model: Callable) -> Program:
    """Return the program of a NumPyro model.

    Latent sites become `qbs.sample`, observed sites and factors `qbs.score`, deterministic sites names in the
    trace; a `numpyro.param` is its initial value. Handlers, plates and `numpyro.contrib.control_flow` keep
    their meaning; `jax.lax.scan`, `jax.lax.cond`, `jax.vmap` and `jax.jit` around sample statements work too.

    Args:
        model: A NumPyro model. A program has positional arguments only: give others with `functools.partial`.

    References:
        Scibior et al. (2018), "Denotational validation of higher-order Bayesian inference", POPL.
    """
    named = model
    while isinstance(named, partial):
        named = named.func
    own = own_constants(model)

    def program(*args: Any) -> Any:
        return own_constants(own)(*args)  # views of its own for each staging, in its own precision

    return Program(program, getattr(named, "__name__", type(named).__name__))


@contextlib.contextmanager
def _reifying() -> Iterator["_Reify"]:
    """Give NumPyro's statements their meaning in a program, as the program around does if there is one."""
    around = next((handler for handler in _PYRO_STACK if isinstance(handler, _Reify)), None)
    if around is not None:
        yield around
        return
    with (handler := _Reify()):
        yield handler


class _Reify(Messenger):
    """Stands below all other handlers, and turns what reaches it into effects.

    Attributes:
        reached: The names of the sites so far.
        observed: The names of the observed sites and factors so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reached: list[str] = []
        self.observed: list[str] = []

    def process_message(self, msg: dict[str, Any]) -> None:
        kind = msg["type"]
        if kind == "sample":
            self.reached.append(msg["name"])
            if msg["value"] is not None:
                self.observed.append(msg["name"])
            _reify_site(msg)
        elif kind == "deterministic":
            _reify_deterministic(msg["name"], msg["value"])
        elif kind == "plate" and msg["value"] is None:
            msg["value"] = sample(msg["name"], _Subsample(*msg["args"]))
        elif kind == "control_flow":
            self._reify_control_flow(msg)
        elif kind == "prng_key" and msg["kwargs"]["rng_key"] is None:
            self._require_no_key()
        msg["stop"] = True  # what lies below the program must not see the site again

    def _require_no_key(self) -> None:
        if any(isinstance(handler, handlers.uncondition) for handler in _PYRO_STACK):
            return  # it asks for a key that nobody uses
        where = f"after site {self.reached[-1]!r}" if self.reached else "before the first site"
        raise ProgramError(
            f"numpyro.prng_key, {where}, has no meaning in a program: draw with numpyro.sample. "
            "numpyro.handlers.block calls it for a latent site or loop that it hides, and numpyro.param for "
            "an initial value that is a function"
        )

    def _reify_control_flow(self, msg: dict[str, Any]) -> None:
        """Run NumPyro's scan and cond as JAX's, with the handlers that stand around them inside."""
        if msg["kwargs"].get("enum"):
            raise ProgramError(
                "NumPyro's enumeration around numpyro.contrib.control_flow has no meaning in a program: "
                "give the values of discrete sites in the trace, or use qbs.enumerate"
            )
        around = [h for h in _PYRO_STACK[_PYRO_STACK.index(self) + 1 :] if not isinstance(h, _NOT_CARRIED)]

        def inside(function: Callable, replace: Callable) -> Callable:
            def body(*args: Any) -> Any:
                with contextlib.ExitStack() as entered:
                    for handler in (self, *around):
                        entered.enter_context(copy.copy(handler))
                    own = function
                    for kind, values in msg["kwargs"]["substitute_stack"]:
                        give = handlers.condition if kind == "condition" else handlers.substitute
                        own = give(own, **{f"{give.__name__}_fn": partial(replace, kind, values)})
                    return own(*args)

            return body

        if msg["fn"].__name__ == "scan_wrapper":
            function, init, xs, length, reverse = msg["args"]
            if length is None:
                length = jnp.shape(jax.tree.leaves(xs)[0])[0]
            steps = jnp.arange(length)

            def body(carry: Any, step_and_x: tuple[Array, Any]) -> Any:
                step, x = step_and_x
                return inside(function, partial(_value_at_step, step, length))(carry, x)

            xs = (steps[::-1] if reverse else steps, xs)  # NumPyro counts steps in the order of execution
            carry, ys = lax.scan(body, init, xs, length=length, reverse=reverse)
            msg["value"] = (length, None, carry), (PytreeTrace({}), ys)
        else:
            pred, true_fn, false_fn, operand = msg["args"]
            value = lax.cond(pred, inside(true_fn, _value), inside(false_fn, _value), operand)
            msg["value"] = value, PytreeTrace({})


# Handlers that do not go with the others into the functions of a scan or cond: NumPyro hands on the values of
# the first three, step by step; a key is of no use there; a trace would keep values that exist only inside.
_NOT_CARRIED = (handlers.substitute, handlers.condition, handlers.replay, handlers.seed, handlers.trace)


def _value(kind: str, values: Any, site: dict[str, Any]) -> Any:
    """Return what a handler around a scan or cond gives to a site inside."""
    if callable(values):
        return values(site)
    if kind != "replay":
        return values.get(site["name"])
    is_given = site["type"] == "sample" and not site["is_observed"] and site["name"] in values
    return values[site["name"]]["value"] if is_given else None


def _value_at_step(step: Array, length: int, kind: str, values: Any, site: dict[str, Any]) -> Any:
    """Return what a handler around a scan gives to a site in a step of it: its own value, or that of all."""
    value = _value(kind, values, site) if site["type"] == "sample" else None
    if value is None:
        return None
    shape = tuple(site["kwargs"]["sample_shape"]) + site["fn"].shape()
    if jnp.ndim(value) == len(shape):
        return value
    if jnp.shape(value)[0] == length and jnp.ndim(value) == len(shape) + 1:
        return jnp.asarray(value)[step]
    raise ProgramError(
        f"numpyro.handlers.{kind} around a scan of length {length} gives site {site['name']!r}, of shape "
        f"{shape}, a value of shape {jnp.shape(value)}: give one for a step, or one for each"
    )


def _reify_site(msg: dict[str, Any]) -> None:
    name, fn, scale = msg["name"], msg["fn"], msg["scale"]
    scaled = scale is not None and not is_identically_one(scale)
    if msg["value"] is not None:
        log_prob = fn.log_prob(msg["value"])
        score(jnp.sum(scale * log_prob if scaled else log_prob), name=name)
        return
    shape = tuple(msg["kwargs"]["sample_shape"])
    plain = unmasked(fn)
    msg["value"] = _draw(name, _with_its_support(plain.expand_by(list(shape)) if shape else plain))
    if scaled or plain is not fn:  # what the handler adds to the prior that the value is drawn from
        log_prob, prior = fn.log_prob(msg["value"]), jnp.sum(plain.log_prob(msg["value"]))
        wanted = jnp.sum(scale * log_prob if scaled else log_prob)
        score(jnp.where(prior == -jnp.inf, 0.0, wanted - prior), name=name)


def _draw(name: str, fn: dist.Distribution) -> Array:
    try:
        return sample(name, fn)
    except NotImplementedError:  # an improper prior: it has a density and a shape, but cannot be drawn
        leaves, structure = jax.tree.flatten(fn)
        dtype = jnp.result_type(int if fn.support.is_discrete else float)
        leaves = [jnp.asarray(leaf) for leaf in leaves]
        return sample_p.bind(
            *leaves, structure=structure, name=name, shape=fn.shape(), dtype=dtype, axes=(), is_recorded=True
        )
    except AttributeError as error:
        raise ProgramError(
            f"site {name!r}: {type(fn).__name__} has lost a part of itself as a JAX tree ({error}); name its "
            "arrays in pytree_data_fields, and all else that it needs in pytree_aux_fields"
        ) from error


def _with_its_support(fn: dist.Distribution) -> dist.Distribution:
    """Return a distribution that keeps its support as a JAX tree, if NumPyro's validation is on.

    In NumPyro it is validation that makes the density zero outside of the support, and a distribution that
    has been taken apart and put together forgets that it has the default.
    """
    own = copy.copy(fn)
    inner = {k: _with_its_support(v) for k, v in vars(fn).items() if isinstance(v, dist.Distribution)}
    # NumPyro's Levy forgets its support as well.
    keeps = fn._validate_args and jax.tree.map(lambda leaf: leaf, fn).support is not None
    vars(own).update(inner, _validate_args=keeps)
    return own


def _reify_deterministic(name: str, value: Any) -> None:
    leaves, _ = jax.tree_util.tree_flatten_with_path(value)
    for path, leaf in leaves:
        if isinstance(leaf, Array | np.ndarray | np.generic | float | int | complex):
            note(name + jax.tree_util.keystr(path), jnp.asarray(leaf))


def unmasked(fn: dist.Distribution) -> dist.Distribution:
    """Return the distribution that draws come from, where a mask changes only its density."""
    if isinstance(fn, dist.MaskedDistribution):
        return unmasked(fn.base_dist)
    if isinstance(fn, dist.Independent):
        inner = unmasked(fn.base_dist)
        return fn if inner is fn.base_dist else inner.to_event(fn.event_dim - inner.event_dim)
    if isinstance(fn, dist.ExpandedDistribution):
        inner = unmasked(fn.base_dist)
        return fn if inner is fn.base_dist else inner.expand(fn.batch_shape)
    return fn


class _Subsample(dist.Distribution):
    """A uniform draw of some of the integers below a size, without replacement, in random order."""

    arg_constraints = {"population": dist.constraints.real_vector}  # noqa: RUF012 (NumPyro's form)
    pytree_aux_fields = ("size",)

    def __init__(self, size: int, subsample_size: int):
        self.size, self.population = size, jnp.arange(size)
        super().__init__(batch_shape=(), event_shape=(subsample_size,))

    @property
    def support(self) -> dist.constraints.Constraint:
        """Vectors of integers below the size."""
        return dist.constraints.independent(dist.constraints.integer_interval(0, self.size - 1), 1)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draw the integers."""
        population = jnp.broadcast_to(self.population, (*sample_shape, *self.population.shape))
        shuffled = jax.random.permutation(key, population, axis=-1, independent=True)
        return shuffled[..., : self.event_shape[0]]

    def log_prob(self, value: Array) -> Array:
        """Return zeros: like NumPyro, count relative to the law of the draw."""
        return jnp.zeros(jnp.shape(value)[:-1])
