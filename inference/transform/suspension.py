"""Walk a program with its continuation in hand.

What is left of the past at a score is what the rest of the program still reads: the live variables of this
jaxpr, and of those around it (`frames`). A transformation that resamples or moves replaces all of them.

References:
    Scibior et al. (2018), "Denotational validation of higher-order Bayesian inference", section 5.2.
"""

import abc
import copy
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from qbs.effects import note_p, resampled_p, sample_p, score_p
from qbs.errors import ProgramError
from qbs.jaxprs import (
    CALLS,
    bind_equation,
    effect_names,
    has_effects,
    inner_jaxprs,
    is_literal,
    open_jaxpr,
    scan_layout,
)


class Value(NamedTuple):
    """A value in a walk.

    Attributes:
        array: The value; where there is a path, which particles it is that of.
        moves: Whether it moves with the continuation: the rest does not depend on draws.
        path: Puts together the value of some particles, where that is put off until it is read.
    """

    array: Any
    moves: bool
    path: Callable[[Array], Array] | None = None

    def read(self) -> "Value":
        """Return the value itself."""
        return self if self.path is None else Value(self.path(self.array), moves=True)


class Place(NamedTuple):
    """Where a walk stands in one jaxpr: the equation, its live variables, and which values of a scan move."""

    jaxpr: Any
    position: int
    live: tuple
    moves: tuple = ()


class History:
    """What the steps of a scan put out while the past may be replaced: here, buffers that move along.

    Attributes:
        kinds: Shape and type of what one step puts out.
        length: The number of steps.
        is_backwards: Whether the last step is taken first.
    """

    def __init__(self, kinds: list[jax.ShapeDtypeStruct], length: int, *, is_backwards: bool):
        self.kinds, self.length, self.is_backwards = kinds, length, is_backwards

    def start(self) -> tuple[list[Array], Any]:
        """Return what moves with the continuation, and what is only carried from step to step."""
        return [jnp.zeros((self.length, *kind.shape), kind.dtype) for kind in self.kinds], ()

    def record(
        self, moving: list[Array], carried: Any, step: Array, outputs: list[Array]
    ) -> tuple[list[Array], Any, Any]:
        """Return both after a step, and what is stacked of it."""
        return [b.at[step].set(y) for b, y in zip(moving, outputs, strict=True)], carried, ()

    def values(self, moving: list[Array], carried: Any, stacked: Any) -> list[Value]:  # noqa: ARG002
        """Return the outputs of all steps."""
        return [Value(buffer, moves=True) for buffer in moving]


class Walk(abc.ABC):
    """A walk through jaxprs that stops at scores.

    Attributes:
        state: What is threaded through the walk; a pytree of arrays.
        frames: What moves in the jaxprs around the present one, outermost first.
        places: Where the walk stands in each of them.
        steps: The present step of each scan around.
        lead: Number of axes in front of what moves: one where it is a population.
        history: How the outputs of the steps of a scan are kept.
    """

    lead = 0
    history: Callable[..., History] = History

    def __init__(self, state: Any):
        self.state = state
        self.frames: list[list[Array]] = []
        self.places: list[Place] = []
        self.steps: list[Array] = []

    @abc.abstractmethod
    def sample(self, equation: Any, values: list[Value]) -> Value:
        """Return the value of a site."""

    @abc.abstractmethod
    def evaluate(self, equation: Any, values: list[Value]) -> list[Value]:
        """Return the outputs of an equation without effects."""

    @abc.abstractmethod
    def score(self, name: str, value: Value, live: list[Array]) -> list[Array]:
        """Weigh, and return the live values after it; `self.frames` may be replaced as well."""

    @abc.abstractmethod
    def resampled(self, name: str) -> Value:
        """Return whether the last suspension point resampled."""

    @abc.abstractmethod
    def branch(self, equation: Any, values: list[Value]) -> list[Value]:
        """Walk a `cond` with effects inside."""

    @abc.abstractmethod
    def suspends(self, name: str) -> bool:
        """Whether something may be replaced at a score."""

    def spread(self, value: Value) -> Array:
        """Return a value in the form of one that moves."""
        return jnp.asarray(value.array)

    def walk(
        self, jaxpr: Any, consts: Iterable, operands: list[Value], *, is_put_off: bool = False
    ) -> list[Value]:
        """Evaluate a jaxpr, and return its outputs; paths among them are read, unless that is put off."""
        env = {v: Value(c, moves=False) for v, c in zip(jaxpr.constvars, consts, strict=True)}
        env.update(zip(jaxpr.invars, operands, strict=True))
        last = _last_uses(jaxpr)
        position = 0
        while position < len(jaxpr.eqns):
            equation = jaxpr.eqns[position]
            end = position
            while end < len(jaxpr.eqns) and _is_plain(jaxpr.eqns[end]):
                end += 1
            if end > position:
                self.evaluate_all(jaxpr.eqns[position:end], env, last, end)
                position = end
                continue
            if equation.primitive is sample_p:
                self.arrive(jaxpr, position, env)
                outputs = [self.sample(equation, read_all(equation.invars, env))]
            elif equation.primitive is resampled_p:
                outputs = [self.resampled(equation.params["name"])]
            else:
                outputs = self._suspend(jaxpr, position, env, last)
            env.update(zip(equation.outvars, outputs, strict=True))
            position += 1
        if is_put_off:
            return [Value(v.val, moves=False) if is_literal(v) else env[v] for v in jaxpr.outvars]
        return read_all(jaxpr.outvars, env)

    def evaluate_all(self, equations: list, env: dict[Any, Value], last: dict[Any, int], end: int) -> None:  # noqa: ARG002
        """Evaluate equations without effects into `env`; what is last read before `end` may be left out."""
        for equation in equations:
            outputs = self.evaluate(equation, read_all(equation.invars, env))
            env.update(zip(equation.outvars, outputs, strict=True))

    def _suspend(self, jaxpr: Any, position: int, env: dict[Any, Value], last: dict) -> list[Value]:
        """Do an equation in which the continuation may be replaced."""
        equation = jaxpr.eqns[position]
        values = read_all(equation.invars, env)
        for v in [v for v in env if last.get(v, -1) <= position]:
            del env[v]
        live = [v for v in env if env[v].moves]
        self.places.append(Place(jaxpr, position, tuple(live)))
        moving = [env[v].array for v in live]
        if equation.primitive is score_p:
            moving, outputs = self.score(equation.params["name"], values[0], moving), values
        else:
            self.frames.append(moving)
            outputs = self._enter(equation, values)
            moving = self.frames.pop()
        self.places.pop()
        env.update({v: env[v]._replace(array=array) for v, array in zip(live, moving, strict=True)})
        return outputs

    def arrive(self, jaxpr: Any, position: int, env: dict[Any, Value]) -> None:  # noqa: ARG002
        """Be told of the site that comes next; what moves in `env` may be replaced."""
        return

    def inside(self, state: Any, frames: list) -> Any:
        """Return a walk that goes on from here inside a loop or a branch."""
        other = copy.copy(self)
        other.state, other.frames = state, list(frames)
        other.places, other.steps = list(self.places), list(self.steps)
        return other

    def _enter(self, equation: Any, values: list[Value]) -> list[Value]:
        name = equation.primitive.name
        if name == "scan":
            return self._scan(equation, values)
        if name == "cond":
            return self.branch(equation, values)
        if name in CALLS:
            return self.walk(*open_jaxpr(next(iter(inner_jaxprs(equation)))), values)
        sites = ", ".join(map(repr, effect_names(equation)))
        raise ProgramError(f"qbs cannot transform the JAX primitive {name!r} around {sites}")

    def _scan(self, equation: Any, values: list[Value]) -> list[Value]:
        settings, lead = equation.params, self.lead
        num_consts, num_carry = scan_layout(equation)
        flags = tuple(value.moves for value in values)
        out_moves = _moving_in_scan(equation, flags)
        carry_moves, ys_moves = out_moves[:num_carry], out_moves[num_carry:]
        jaxpr, jaxpr_consts = open_jaxpr(settings["jaxpr"])
        fixed = [*values[:num_consts], *values[num_consts + num_carry :]]  # what the steps read from outside
        suspends = any(self.suspends(name) for name in effect_names(equation, (score_p,)))
        place = self.places[-1]._replace(moves=(flags, out_moves))
        self.places[-1] = place
        kinds = [
            jax.ShapeDtypeStruct(v.aval.shape[1:], v.aval.dtype)
            for v, moves in zip(equation.outvars[num_carry:], ys_moves, strict=True)
            if moves and suspends
        ]
        history = self.history(kinds, settings["length"], is_backwards=settings["reverse"])
        recorded, carried = history.start() if kinds else ([], ())
        self.frames = [*self.frames, [f.array for f in fixed if f.moves], recorded]
        steps = jnp.arange(settings["length"])
        plain = [value.array for value in values[num_consts + num_carry :] if not value.moves]

        def body(loop: Any, inputs: Any) -> Any:
            state, frames, carried, carry = loop
            step, plain = inputs
            inside = self.inside(state, frames)
            inside.steps.append(step)
            held, plain = iter(frames[-2]), iter(plain)
            operands = [Value(next(held), moves=True) if c.moves else c for c in values[:num_consts]]
            operands += [Value(c, moves=moves) for c, moves in zip(carry, carry_moves, strict=True)]
            for x in values[num_consts + num_carry :]:
                own = (
                    lax.dynamic_index_in_dim(next(held), step, lead, keepdims=False)
                    if x.moves
                    else next(plain)
                )
                operands.append(Value(own, moves=x.moves))
            outputs = inside.walk(jaxpr, jaxpr_consts, operands)
            outputs = [inside.spread(o) if m else o.array for o, m in zip(outputs, out_moves, strict=True)]
            carry, ys = outputs[:num_carry], outputs[num_carry:]
            stacked: Any = ()
            if kinds:
                moving = [y for y, moves in zip(ys, ys_moves, strict=True) if moves]
                inside.frames[-1], carried, stacked = history.record(inside.frames[-1], carried, step, moving)
                ys = [y for y, moves in zip(ys, ys_moves, strict=True) if not moves]
            return (inside.state, inside.frames, carried, carry), (ys, stacked)

        first = values[num_consts : num_consts + num_carry]
        start = [self.spread(c) if m else c.array for c, m in zip(first, carry_moves, strict=True)]
        (self.state, frames, carried, carry), (ys, stacked) = lax.scan(
            body,
            (self.state, self.frames, carried, start),
            (steps, plain),
            length=settings["length"],
            reverse=settings["reverse"],
            unroll=settings["unroll"],
        )
        *self.frames, _, recorded = frames
        ends = [Value(c, moves=moves) for c, moves in zip(carry, carry_moves, strict=True)]
        if not kinds:
            ys = [jnp.moveaxis(y, 0, lead) if moves else y for y, moves in zip(ys, ys_moves, strict=True)]
            return [*ends, *[Value(y, moves=moves) for y, moves in zip(ys, ys_moves, strict=True)]]
        kept, plain = iter(history.values(recorded, carried, stacked)), iter(ys)
        return [*ends, *[next(kept) if moves else Value(next(plain), moves=False) for moves in ys_moves]]


def _is_plain(equation: Any) -> bool:
    return equation.primitive is note_p or not has_effects(equation)


def evaluate_plain(equation: Any, values: list[Value]) -> list[Value]:
    """Return the outputs of an equation where nothing has an axis in front."""
    moves = any(value.moves for value in values)
    results = bind_equation(equation, [value.array for value in values])
    return [Value(result, moves=moves) for result in results]


def moving_outputs(jaxpr: Any, flags: Iterable[bool]) -> list[bool]:
    """Return which outputs of a jaxpr move if the flagged inputs do: what depends on them or on a site."""
    env = dict(zip(jaxpr.invars, flags, strict=True))
    for equation in jaxpr.eqns:
        moves = [env.get(v, False) for v in equation.invars if not is_literal(v)]
        flagged = [not is_literal(v) and env.get(v, False) for v in equation.invars]
        name = equation.primitive.name
        if equation.primitive is sample_p:
            outputs = [True]
        elif not has_effects(equation):
            outputs = [any(moves)] * len(equation.outvars)
        elif name == "scan":
            outputs = list(_moving_in_scan(equation, tuple(flagged)))
        elif name == "cond":
            outputs = moving_in_cond(equation, flagged)
        elif name in CALLS:
            outputs = moving_outputs(open_jaxpr(next(iter(inner_jaxprs(equation))))[0], flagged)
        else:
            outputs = [any(moves)] * len(equation.outvars)
        env.update(zip(equation.outvars, outputs, strict=True))
    return [not is_literal(v) and env.get(v, False) for v in jaxpr.outvars]


def moving_in_cond(equation: Any, flags: list[bool]) -> list[bool]:
    """Return which outputs of a `cond` move: all if its index does, else those that do in some branch."""
    found = [moving_outputs(open_jaxpr(branch)[0], flags[1:]) for branch in equation.params["branches"]]
    return [flags[0] or any(output) for output in zip(*found, strict=True)]


def _moving_in_scan(equation: Any, flags: tuple[bool, ...]) -> tuple[bool, ...]:
    num_consts, num_carry = scan_layout(equation)
    jaxpr = open_jaxpr(equation.params["jaxpr"])[0]
    carry = list(flags[num_consts : num_consts + num_carry])
    while True:
        out = moving_outputs(jaxpr, [*flags[:num_consts], *carry, *flags[num_consts + num_carry :]])
        grown = [a or b for a, b in zip(carry, out[:num_carry], strict=True)]
        if grown == carry:
            return (*carry, *out[num_carry:])
        carry = grown


def read_all(variables: Iterable, env: dict[Any, Value]) -> list[Value]:
    """Return the values of variables and literals; paths are put together."""
    found = []
    for v in variables:
        if not is_literal(v):
            env[v] = env[v].read()
        found.append(Value(v.val, moves=False) if is_literal(v) else env[v])
    return found


def _last_uses(jaxpr: Any) -> dict[Any, int]:
    last = {}
    for position, equation in enumerate(jaxpr.eqns):
        last.update({v: position for v in equation.invars if not is_literal(v)})
    last.update({v: len(jaxpr.eqns) for v in jaxpr.outvars if not is_literal(v)})
    return last
