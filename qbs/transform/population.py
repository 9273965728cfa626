"""`population`: a program of X becomes a program of n weighted particles of X, with the same meaning.

Wherever the program scores, the particles gain weight. At suspension points the evidence so far is pushed
into the outer score and the particles are resampled: all values that a particle still needs, in this jaxpr
and in those around it, follow their ancestors. The live variables of the jaxpr are the continuation.

References:
    Scibior et al. (2018), "Denotational validation of higher-order Bayesian inference", sections 4 and 5.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.extend as jex
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from qbs.effects import note_p, sample_p, score, score_p
from qbs.errors import ProgramError
from qbs.interpreter import effect_names, has_effects, inner_jaxprs, open_jaxpr, scan_layout
from qbs.program import Program
from qbs.transform.resampling import SCHEMES, Scheme


class Particles(NamedTuple):
    """The value of a population.

    Attributes:
        value: The program's value, with a leading axis over particles.
        log_weights: Log weight of each particle; the mean weight is 1, for the evidence has been scored.
    """

    value: Any
    log_weights: Float[Array, " num_particles"]


def population(
    program: Program,
    num_particles: int,
    *,
    resample: str | Scheme = "systematic",
    threshold: float = 1.0,
    at: Collection[str] | None = None,
) -> Program:
    """Return the program that runs a number of copies of a program side by side, resampling on the way.

    Its value is `Particles`, and the expected weighted average over them is the measure of the program:
    sequential Monte Carlo. Populations nest: inside a program that draws parameters, a population is a
    particle filter whose evidence weighs the parameters.

    Args:
        program: The program.
        num_particles: How many copies.
        resample: `"multinomial"`, `"stratified"`, `"systematic"`, or a scheme of the same form.
        threshold: Resample when the effective sample size is below this share of `num_particles`; 1 means
            always.
        at: The names of the scores (observed sites, factors) to resample at; all by default.

    Returns:
        A program whose value is `Particles`.

    Raises:
        ValueError: If a setting is not valid.
    """
    scheme = SCHEMES.get(resample) if isinstance(resample, str) else resample
    if scheme is None:
        raise ValueError(f"resample must be one of {', '.join(SCHEMES)} or a function, not {resample!r}")
    if isinstance(num_particles, bool) or not isinstance(num_particles, int) or num_particles < 1:
        raise ValueError(f"num_particles must be a whole number above 0, not {num_particles!r}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [0, 1], not {threshold!r}")
    points = None if at is None else frozenset(at)

    def run_all(*args: Any) -> Particles:
        staged = program.stage(*args)
        taken = frozenset(name for equation in staged.jaxpr.jaxpr.eqns for name in effect_names(equation))
        settings = _Settings(num_particles, scheme, float(threshold), points, taken)
        cloud = _Cloud(settings, jnp.zeros(num_particles))
        operands = [_Value(operand, is_particle=False) for operand in staged.operands]
        outputs = _walk(*open_jaxpr(staged.jaxpr), operands, cloud)
        return Particles(staged.unflatten([cloud.spread(output) for output in outputs]), cloud.log_weights)

    return Program(run_all, f"population of {program.name}")


def collapse(particles_program: Program) -> Program:
    """Return the program that draws one particle of a population by weight: an ordinary program again."""

    def draw_one(*args: Any) -> Any:
        particles = particles_program(*args)
        index = SCHEMES["multinomial"](f"one of {particles_program.name}", particles.log_weights, 1)[0]
        return jax.tree.map(lambda leaf: leaf[index], particles.value)

    return Program(draw_one, f"one of {particles_program.name}")


class _Settings(NamedTuple):
    num_particles: int
    scheme: Scheme
    threshold: float
    at: frozenset[str] | None
    taken: frozenset[str]

    def ancestors_of(self, name: str) -> str:
        """Return a name for the choice of ancestors at a score, apart from those of populations inside."""
        number, wanted = 1, f"{name}_ancestors"
        while wanted in self.taken:
            number, wanted = number + 1, f"{name}_ancestors_{number + 1}"
        return wanted

    def suspends(self, name: str) -> bool:
        return self.threshold > 0 and (self.at is None or name in self.at)


class _Value(NamedTuple):
    """A value in the walk, and whether its leading axis is over particles."""

    array: Any
    is_particle: bool


@dataclass
class _Cloud:
    """The particles at a point of the walk.

    `frames` holds what particles still need in the jaxprs around the present one; resampling permutes it.
    """

    settings: _Settings
    log_weights: Array
    frames: list[list[Array]] = field(default_factory=list)

    def spread(self, value: _Value) -> Array:
        """Return a value with a leading axis over particles."""
        if value.is_particle:
            return value.array
        return jnp.broadcast_to(value.array, (self.settings.num_particles, *jnp.shape(value.array)))

    def weigh(self, name: str, increments: Array) -> None:
        """Add log weights, and push the evidence that they bring into the outer score."""
        log_weights = self.log_weights + increments
        evidence = jax.nn.logsumexp(log_weights) - jnp.log(self.settings.num_particles)
        score(evidence, name=name)
        self.log_weights = jnp.where(evidence == -jnp.inf, 0.0, log_weights - evidence)

    def select(self, name: str, live: list[Array]) -> list[Array]:
        """Resample if it is time to, and return the live values of the survivors."""
        moving = (live, self.frames)
        threshold, size = self.settings.threshold, self.settings.num_particles

        def resampled(log_weights: Array, moving: Any) -> Any:
            ancestors = self.settings.scheme(self.settings.ancestors_of(name), log_weights, size)
            return jnp.zeros(size), jax.tree.map(lambda leaf: leaf[ancestors], moving)

        if threshold >= 1:
            self.log_weights, (live, self.frames) = resampled(self.log_weights, moving)
        else:
            doubled = jax.nn.logsumexp(2 * self.log_weights)
            ess = jnp.exp(2 * jax.nn.logsumexp(self.log_weights) - doubled)
            self.log_weights, (live, self.frames) = lax.cond(
                ess < threshold * size, resampled, lambda *same: same, self.log_weights, moving
            )
        return live


def _walk(jaxpr: Any, consts: list, operands: list[_Value], cloud: _Cloud) -> list[_Value]:
    env: dict[Any, _Value] = {
        v: _Value(c, is_particle=False) for v, c in zip(jaxpr.constvars, consts, strict=True)
    }
    env.update(zip(jaxpr.invars, operands, strict=True))
    last = _last_uses(jaxpr)

    def read(variable: Any) -> _Value:
        if isinstance(variable, jex.core.Literal):
            return _Value(variable.val, is_particle=False)
        return env[variable]

    for position, equation in enumerate(jaxpr.eqns):
        values = [read(variable) for variable in equation.invars]
        live = [v for v in env if env[v].is_particle and last.get(v, -1) > position]
        if equation.primitive is score_p:
            name = equation.params["name"]
            cloud.weigh(name, cloud.spread(values[0]))
            if cloud.settings.suspends(name):
                kept = cloud.select(name, [env[v].array for v in live])
                env.update({v: _Value(array, is_particle=True) for v, array in zip(live, kept, strict=True)})
            outputs = values
        elif has_effects(equation) and equation.primitive not in (sample_p, note_p):
            cloud.frames.append([env[v].array for v in live])
            outputs = _enter(equation, values, cloud)
            kept = cloud.frames.pop()
            env.update({v: _Value(array, is_particle=True) for v, array in zip(live, kept, strict=True)})
        else:
            outputs = _batched(equation, values, cloud.settings.num_particles)
        env.update(zip(equation.outvars, outputs, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _last_uses(jaxpr: Any) -> dict[Any, int]:
    last = {}
    for position, equation in enumerate(jaxpr.eqns):
        last.update({v: position for v in equation.invars if not isinstance(v, jex.core.Literal)})
    last.update({v: len(jaxpr.eqns) for v in jaxpr.outvars if not isinstance(v, jex.core.Literal)})
    return last


def _batched(equation: Any, values: list[_Value], num_particles: int) -> list[_Value]:
    """Evaluate an equation for all particles; once for all where no operand differs among them."""
    primitive = equation.primitive
    evaluate = partial(primitive.bind, **primitive.get_bind_params(equation.params))
    is_particle = any(value.is_particle for value in values)
    arrays = [value.array for value in values]
    if primitive is sample_p:  # independent draws, also where nothing that they depend on differs
        axes = tuple(0 if value.is_particle else None for value in values)
        settings = {**equation.params, "axes": ((num_particles, axes), *equation.params["axes"])}
        return [_Value(sample_p.bind(*arrays, **settings), is_particle=True)]
    if is_particle:
        axes = tuple(0 if value.is_particle else None for value in values)
        results = jax.vmap(evaluate, in_axes=axes, axis_size=num_particles)(*arrays)
    else:
        results = evaluate(*arrays)
    results = results if primitive.multiple_results else [results]
    return [_Value(result, is_particle=is_particle) for result in results]


def _enter(equation: Any, values: list[_Value], cloud: _Cloud) -> list[_Value]:
    """Walk into an equation that has effects inside; `cloud.frames` already holds what lives around it."""
    name = equation.primitive.name
    if name == "scan":
        return _scan(equation, values, cloud)
    if name == "cond":
        return _cond(equation, values, cloud)
    if name in (
        "jit",
        "pjit",
        "closed_call",
        "core_call",
        "checkpoint",
        "remat2",
        "custom_jvp_call",
        "custom_vjp_call",
    ):
        inner = next(iter(inner_jaxprs(equation)))
        return _walk(*open_jaxpr(inner), values, cloud)
    sites = ", ".join(map(repr, effect_names(equation)))
    raise ProgramError(f"qbs cannot run a population through the JAX primitive {name!r} around {sites}")


def _scan(equation: Any, values: list[_Value], cloud: _Cloud) -> list[_Value]:
    settings = equation.params
    num_consts, num_carry = scan_layout(equation)
    consts, carry = values[:num_consts], values[num_consts : num_consts + num_carry]
    xs = values[num_consts + num_carry :]
    # Constants that differ among particles must follow their ancestors, step by step.
    cloud.frames.append([value.array for value in consts if value.is_particle])
    # The time axis of inputs comes first; that of particles second.
    inputs = [jnp.moveaxis(x.array, 0, 1) if x.is_particle else x.array for x in xs]
    per_step = [x.is_particle for x in xs]
    if any(per_step):
        raise ProgramError(
            "a scan over values that differ among particles is not supported inside a population"
        )

    slots = jnp.arange(cloud.settings.num_particles)

    def body(loop: Any, step: list[Array]) -> Any:
        log_weights, frames, state = loop
        inside = _Cloud(cloud.settings, log_weights, [*frames, [slots]])
        moving = iter(frames[-1])
        own = [_Value(next(moving), is_particle=True) if c.is_particle else c for c in consts]
        operands = [
            *own,
            *[_Value(array, is_particle=True) for array in state],
            *[_Value(array, is_particle=False) for array in step],
        ]
        outputs = [inside.spread(value) for value in _walk(*open_jaxpr(settings["jaxpr"]), operands, inside)]
        *frames, (ancestors,) = inside.frames
        return (inside.log_weights, frames, outputs[:num_carry]), (outputs[num_carry:], ancestors)

    start = (cloud.log_weights, cloud.frames, [cloud.spread(value) for value in carry])
    backwards = settings["reverse"]
    (cloud.log_weights, cloud.frames, state), (ys, ancestors) = lax.scan(
        body, start, inputs, length=settings["length"], reverse=backwards
    )
    cloud.frames.pop()
    if ys:  # the history of the survivors: each step's outputs, by ancestor
        _, lineage = lax.scan(lambda later, own: (own[later], later), slots, ancestors, reverse=not backwards)
        ys = [jax.vmap(lambda y, line: y[line], out_axes=1)(y, lineage) for y in ys]
    return [_Value(output, is_particle=True) for output in [*state, *ys]]


def _cond(equation: Any, values: list[_Value], cloud: _Cloud) -> list[_Value]:
    index, *operands = values
    if index.is_particle:
        raise ProgramError(
            "a lax.cond with scores whose predicate differs among particles is not supported yet"
        )

    def take(branch: Any) -> Callable:
        def taken(log_weights: Array, frames: Any, arrays: list[Array]) -> Any:
            inside = _Cloud(cloud.settings, log_weights, list(frames))
            own = [_Value(a, is_particle=v.is_particle) for a, v in zip(arrays, operands, strict=True)]
            outputs = _walk(*open_jaxpr(branch), own, inside)
            return inside.log_weights, inside.frames, [inside.spread(value) for value in outputs]

        return taken

    branches = [take(branch) for branch in equation.params["branches"]]
    cloud.log_weights, cloud.frames, outputs = lax.switch(
        index.array, branches, cloud.log_weights, cloud.frames, [value.array for value in operands]
    )
    return [_Value(output, is_particle=True) for output in outputs]
