"""Walk a program with its continuation in hand.

What is left of the past at a score is what the rest of the program still reads: the live variables of this
jaxpr, and of those around it (`frames`). A transformation that resamples or moves replaces all of them.

References:
    Scibior et al. (2018), "Denotational validation of higher-order Bayesian inference", section 5.2.
"""

import abc
import copy
from collections.abc import Iterable
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
    """A value in a walk, and whether it moves with the continuation: the rest does not depend on draws."""

    array: Any
    moves: bool


class Place(NamedTuple):
    """Where a walk stands in one jaxpr: the equation, its live variables, and which values of a scan move."""

    jaxpr: Any
    position: int
    live: tuple
    moves: tuple = ()


class Walk(abc.ABC):
    """A walk through jaxprs that stops at scores.

    Attributes:
        state: What is threaded through the walk; a pytree of arrays.
        frames: What moves in the jaxprs around the present one, outermost first.
        places: Where the walk stands in each of them.
        steps: The present step of each scan around.
        lead: Number of axes in front of what moves: one where it is a population.
        keeps_lineage: Whether the past of a scan is put together in the end, by ancestors, and not moved
            along as it grows.
    """

    lead = 0
    keeps_lineage = False

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

    def walk(self, jaxpr: Any, consts: Iterable, operands: list[Value]) -> list[Value]:
        """Evaluate a jaxpr, and return its outputs."""
        env = {v: Value(c, moves=False) for v, c in zip(jaxpr.constvars, consts, strict=True)}
        env.update(zip(jaxpr.invars, operands, strict=True))
        last = _last_uses(jaxpr)

        def read(variable: Any) -> Value:
            if is_literal(variable):
                return Value(variable.val, moves=False)
            return env[variable]

        for position, equation in enumerate(jaxpr.eqns):
            values = [read(variable) for variable in equation.invars]
            if equation.primitive is sample_p:
                if self.arrive(jaxpr, position, env):
                    values = [read(variable) for variable in equation.invars]
                outputs = [self.sample(equation, values)]
            elif equation.primitive is resampled_p:
                outputs = [self.resampled(equation.params["name"])]
            elif equation.primitive is note_p or not has_effects(equation):
                outputs = self.evaluate(equation, values)
            else:
                env = {v: value for v, value in env.items() if last.get(v, -1) > position}
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
                env.update({v: Value(array, moves=True) for v, array in zip(live, moving, strict=True)})
            env.update(zip(equation.outvars, outputs, strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def arrive(self, jaxpr: Any, position: int, env: dict[Any, Value]) -> bool:  # noqa: ARG002
        """Be told of the site that comes next; return whether what moves in `env` was replaced."""
        return False

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
        avals = [v.aval for v, moves in zip(equation.outvars[num_carry:], ys_moves, strict=True) if moves]
        slots = [jnp.arange(self.spread(Value(0, moves=False)).size)] if self.keeps_lineage else []
        # Per-step outputs: their ancestry, or buffers that move along.
        history = slots if self.keeps_lineage else [jnp.zeros(aval.shape, aval.dtype) for aval in avals]
        if not suspends or not avals:
            history = []
        self.frames = [*self.frames, [f.array for f in fixed if f.moves], history]
        steps = jnp.arange(settings["length"])
        plain = [value.array for value in values[num_consts + num_carry :] if not value.moves]

        def body(loop: Any, inputs: Any) -> Any:
            state, frames, carry = loop
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
            ancestors: list[Array] = []
            if history and self.keeps_lineage:
                ancestors, inside.frames[-1] = inside.frames[-1], slots
            elif history:
                moving = [y for y, moves in zip(ys, ys_moves, strict=True) if moves]
                inside.frames[-1] = [
                    b.at[step].set(y) for b, y in zip(inside.frames[-1], moving, strict=True)
                ]
            return (inside.state, inside.frames, carry), (ys, ancestors)

        first = values[num_consts : num_consts + num_carry]
        start = [self.spread(c) if m else c.array for c, m in zip(first, carry_moves, strict=True)]
        backwards = settings["reverse"]
        (self.state, frames, carry), (ys, ancestors) = lax.scan(
            body,
            (self.state, self.frames, start),
            (steps, plain),
            length=settings["length"],
            reverse=backwards,
            unroll=settings["unroll"],
        )
        *frames, _, history = frames
        self.frames = frames
        if ancestors:
            _, lineage = lax.scan(
                lambda later, own: (own[later], later), slots[0], ancestors[0], reverse=not backwards
            )
            take = jax.vmap(lambda y, line: y[line])
            ys = [take(y, lineage) if moves else y for y, moves in zip(ys, ys_moves, strict=True)]
        elif history:
            own = iter(history)
            ys = [next(own) if moves else y for y, moves in zip(ys, ys_moves, strict=True)]
        ys = [jnp.moveaxis(y, 0, lead) if moves else y for y, moves in zip(ys, ys_moves, strict=True)]
        return [Value(o, moves=moves) for o, moves in zip([*carry, *ys], out_moves, strict=True)]


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


def _last_uses(jaxpr: Any) -> dict[Any, int]:
    last = {}
    for position, equation in enumerate(jaxpr.eqns):
        last.update({v: position for v in equation.invars if not is_literal(v)})
    last.update({v: len(jaxpr.eqns) for v in jaxpr.outvars if not is_literal(v)})
    return last
