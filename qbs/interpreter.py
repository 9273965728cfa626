"""Walk the jaxpr of a program, giving its `sample` and `score` equations a meaning.

A semantics is an object with the methods `sample`, `score` and `untaken`, and a state that is threaded
through the program: through scans, branches and nested calls. Values that belong to single sites (a given
trace on the way in, the recorded trace on the way out) are dictionaries by site name; inside a scan they
have a leading time axis. Equations without effects are evaluated as they are. What cannot be interpreted is
an error, never a wrong answer.
"""

import abc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from qbs.batches import batched_distribution
from qbs.effects import note_p, resampled_p, sample_p, score_p
from qbs.errors import ProgramError
from qbs.jaxprs import (
    CALLS,
    Jaxpr,
    bind_equation,
    effect_names,
    has_effects,
    inner_jaxprs,
    is_literal,
    open_jaxpr,
    scan_layout,
)

Values = dict[str, Any]


class Semantics(abc.ABC):
    """What gives the effects of a program a meaning."""

    @abc.abstractmethod
    def sample(self, state: Any, name: str, distribution: Any, given: Any) -> tuple[Array, Any]:
        """Return the value of a site, and the state after it."""

    @abc.abstractmethod
    def score(self, state: Any, name: str, log_weight: Any) -> Any:
        """Return the state after a score."""

    def untaken(self, state: Any, name: str, given: Any) -> Any:  # noqa: ARG002
        """Return the state after a branch that passes by a site which stands in another branch."""
        return state


class Interpreted(NamedTuple):
    """The result of a walk: output values, the state, and the values of sites and notes by name."""

    outputs: list[Any]
    state: Any
    trace: Values


def interpret(
    jaxpr: Jaxpr, consts: list, operands: list, semantics: Semantics, state: Any, given: Values
) -> Interpreted:
    """Evaluate a jaxpr under a semantics.

    Args:
        jaxpr: The program.
        consts: Values of its constants.
        operands: Values of its inputs.
        semantics: The meaning of `sample` and `score`.
        state: What the semantics threads through the program; a pytree of arrays.
        given: Values by site name, handed to `semantics.sample`.

    Raises:
        ProgramError: If an equation with effects inside cannot be interpreted; it names the primitive.
    """
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, operands, strict=True))
    trace: Values = {}

    def read(variable: Any) -> Any:
        return variable.val if is_literal(variable) else env[variable]

    for equation in jaxpr.eqns:
        values = [read(variable) for variable in equation.invars]
        outputs, state, emitted = _evaluate(equation, values, semantics, state, given)
        trace.update(emitted)
        env.update(zip(equation.outvars, outputs, strict=True))
    return Interpreted([read(variable) for variable in jaxpr.outvars], state, trace)


def _evaluate(
    equation: Any, values: list, semantics: Semantics, state: Any, given: Values
) -> tuple[list, Any, dict[str, Any]]:
    primitive, settings = equation.primitive, equation.params
    if primitive is sample_p:
        name = settings["name"]
        distribution = batched_distribution(values, settings["structure"], settings["axes"])
        value, state = semantics.sample(state, name, distribution, given.get(name))
        require_shape(name, equation.outvars[0].aval.shape, value)
        value = _as_site(value, equation.outvars[0].aval.dtype)
        return [value], state, {name: value}
    if primitive is score_p:
        return values, semantics.score(state, settings["name"], values[0]), {}
    if primitive is note_p:
        return values, state, {settings["name"]: values[0]}
    if primitive is resampled_p:
        return [jnp.ones((), bool)], state, {}
    if not has_effects(equation):
        return bind_equation(equation, values), state, {}
    rule = _RULES.get(primitive.name)
    if rule is None:
        names = ", ".join(repr(name) for name in effect_names(equation))
        raise ProgramError(
            f"qbs cannot interpret the JAX primitive {primitive.name!r} around {names}: draw and score "
            "outside of it, or use lax.scan, lax.cond, jax.vmap or jax.jit"
        )
    inside = {name: given[name] for name in effect_names(equation, (sample_p,)) if name in given}
    return rule(equation, values, semantics, state, inside)


def require_shape(name: str, shape: tuple[int, ...], value: Any) -> None:
    """Raise `ProgramError` unless a value has the shape of its site."""
    if jnp.shape(value) != shape:
        raise ProgramError(f"site {name!r} has shape {shape}; the value given for it has {jnp.shape(value)}")


def _as_site(value: Any, dtype: Any) -> Array:
    """Return a value in the type that the program was traced with, unless that would lose digits."""
    value = jnp.asarray(value)
    is_exact = not jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.floating)
    return value.astype(dtype) if is_exact else value


def _call(equation: Any, values: list, semantics: Semantics, state: Any, given: Values) -> Any:
    inner = next(iter(inner_jaxprs(equation)))
    return interpret(*open_jaxpr(inner), values, semantics, state, given)


def _with_own_derivative(equation: Any, values: list, semantics: Semantics, state: Any, given: Values) -> Any:
    """Walk what has a derivative rule of its own: that knows nothing of sites and scores."""

    @jax.custom_jvp
    def walk(values: list, state: Any, given: Values) -> Any:
        return tuple(_call(equation, values, semantics, state, given))

    @walk.defjvp
    def refuse(*_: Any) -> Any:
        names = ", ".join(map(repr, effect_names(equation)))
        raise ProgramError(f"there is no derivative through the custom derivative rule around {names}")

    return walk(values, state, given)


def _scan(equation: Any, values: list, semantics: Semantics, state: Any, given: Values) -> Any:
    settings = equation.params
    num_consts, num_carry = scan_layout(equation)
    consts, carry, xs = (
        values[:num_consts],
        values[num_consts : num_consts + num_carry],
        values[num_consts + num_carry :],
    )
    for name, value in given.items():
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(value)]
        if any(shape[:1] != (settings["length"],) for shape in shapes):
            raise ProgramError(
                f"site {name!r} is drawn at each of {settings['length']} steps, the first axis of its shape; "
                f"the value given for it has shape {shapes[0]}"
            )

    def body(loop: tuple[Any, list], inputs: tuple[list, Values]) -> Any:
        state, carry = loop
        step, step_given = inputs
        walked = interpret(
            *open_jaxpr(settings["jaxpr"]), [*consts, *carry, *step], semantics, state, step_given
        )
        outputs = walked.outputs
        return (walked.state, outputs[:num_carry]), (outputs[num_carry:], walked.trace)

    (state, carry), (ys, trace) = lax.scan(
        body,
        (state, carry),
        (xs, given),
        length=settings["length"],
        reverse=settings["reverse"],
        unroll=settings["unroll"],
    )
    return [*carry, *ys], state, trace


def _cond(equation: Any, values: list, semantics: Semantics, state: Any, given: Values) -> Any:
    index, *operands = values
    branches = equation.params["branches"]

    def walk(branch: Any, state: Any, operands: list, given: Values) -> Interpreted:
        return interpret(*open_jaxpr(branch), operands, semantics, state, given)

    shapes: dict[str, Any] = {}
    for branch in branches:
        for name, found in jax.eval_shape(
            lambda *a, b=branch: walk(b, *a), state, operands, given
        ).trace.items():
            if shapes.setdefault(name, found) != found:
                raise ProgramError(f"site {name!r} has different shapes in the branches of a lax.cond")

    def take(branch: Any) -> Any:
        def taken(state: Any, operands: list, given: Values) -> Any:
            walked = walk(branch, state, operands, given)
            absent = {n: jnp.zeros(s.shape, s.dtype) for n, s in shapes.items() if n not in walked.trace}
            state = walked.state
            for name in absent:
                state = semantics.untaken(state, name, given.get(name))
            return walked.outputs, state, walked.trace | absent

        return taken

    return lax.switch(index, [take(branch) for branch in branches], state, operands, given)


_RULES = {
    "scan": _scan,
    "cond": _cond,
    **dict.fromkeys(CALLS, _call),
    **dict.fromkeys(("custom_jvp_call", "custom_vjp_call"), _with_own_derivative),
}
