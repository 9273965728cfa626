"""`conditional`: a population in which one particle keeps a given path; a kernel on traces.

References:
    Andrieu, Doucet & Holenstein (2010), "Particle Markov chain Monte Carlo methods", section 4.3.
    Lindsten, Jordan & Schon (2014), "Particle Gibbs with ancestor sampling".
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from qbs.effects import note_p, sample, sample_p, score_p, unused
from qbs.errors import ProgramError
from qbs.inference.transform.population import Cloud, Settings, follow, require_count, walk_particles
from qbs.inference.transform.replay import Replay, Weights, traced
from qbs.inference.transform.resampling import SCHEMES
from qbs.inference.transform.rolling import rolled
from qbs.inference.transform.suspension import Value, read_all
from qbs.interpreter import interpret
from qbs.jaxprs import (
    all_names,
    between,
    effect_names,
    find_sites,
    has_effects,
    is_literal,
    scan_layout,
    variables,
)
from qbs.program import Program


def conditional(program: Program, num_particles: int, *, ancestor_sampling: bool = False) -> Program:
    """Return the kernel that runs a population around a given path, and draws a new path from it.

    The kernel leaves the posterior over traces as it is: particle Gibbs. Resampling is multinomial.

    Args:
        program: The program.
        num_particles: How many particles, the one on the given path included; at least 2.
        ancestor_sampling: Draw a new past for the given path at each step, so that it mixes with few
            particles. The program must be Markov: once the sites of a step are given, what follows may not
            depend on anything earlier.

    Returns:
        A program of `(trace, *args)` whose value is a new trace: the value of every site by name.

    Raises:
        ValueError: If there are fewer than two particles.
        ProgramError: If the trace lacks a site; or under ancestor sampling, if the program is not Markov.
    """
    require_count(num_particles, "num_particles")
    if num_particles < 2:
        raise ValueError("num_particles must be at least 2: one of them is on the given path")

    def draw_path(trace: dict[str, Any], *args: Any) -> dict[str, Array]:
        plain = program.stage(*args)
        sites = find_sites(plain.jaxpr)
        path = {}
        for name, site in sites.items():
            if name not in trace or jnp.shape(trace[name]) != site.shape:
                has = f"shape {jnp.shape(trace[name])}" if name in trace else "no value"
                raise ProgramError(f"the trace has {has} for site {name!r}, whose shape is {site.shape}")
            path[name] = jnp.asarray(trace[name], site.dtype)
        staged, _, names = rolled(traced(program).stage(*args), None)
        settings = Settings(num_particles, SCHEMES["multinomial"], all_names(staged.jaxpr))
        stacked = {
            new: jnp.stack([path[name] for name in old]) for new, old in names.items() if old[0] in path
        }
        cloud = _ConditionalCloud(settings, path | stacked, is_sampling_ancestors=ancestor_sampling)
        (_, drawn), _ = walk_particles(cloud, staged, num_returned=1)
        return {name: value[0] for name, value in drawn.items() if name in sites}

    return Program(draw_path, f"conditional {program.name}")


class _ConditionalCloud(Cloud):
    """Particles of which the first is on a given path."""

    def __init__(self, settings: Settings, path: dict[str, Array], *, is_sampling_ancestors: bool):
        super().__init__(settings)
        self.path, self.is_sampling_ancestors = path, is_sampling_ancestors
        self.is_due = False  # whether the past may be chosen anew before the next site

    def _given(self, name: str) -> Array:
        return self.path[name][tuple(self.steps)]

    def sample(self, equation: Any, values: list[Value]) -> Value:
        """Draw for each particle; the first has the given value."""
        drawn = super().sample(equation, values)
        return Value(drawn.array.at[0].set(self._given(equation.params["name"])), moves=True)

    def ancestors(self, name: str, log_weights: Array) -> Array:
        """Draw the ancestors; the first particle is its own."""
        return super().ancestors(name, log_weights).at[0].set(0)

    def score(self, name: str, value: Value, live: list[Array]) -> list[Array]:
        """Weigh and resample; the past of the given path may be chosen anew from here on."""
        self.is_due = True
        return super().score(name, value, live)

    def push(self, name: str, evidence: Array) -> None:
        """Keep the evidence: a kernel has no weight."""

    def inside(self, state: Any, frames: list) -> Any:
        """Go on inside a loop, where there is a past from the second step on."""
        other = super().inside(state, frames)
        other.is_due = True
        return other

    def arrive(self, jaxpr: Any, position: int, env: dict[Any, Value]) -> None:
        """Choose the past of the given path among those of all particles, by what they give to its future.

        After resampling all pasts weigh the same; what is left is the density of the sites and scores up to
        the next suspension point, and the rest of the future does not depend on the past.
        """
        if not (self.is_sampling_ancestors and self.is_due):
            return
        self.is_due = False
        scores = [i for i in range(position, len(jaxpr.eqns)) if jaxpr.eqns[i].primitive is score_p]
        end = scores[0] + 1 if scores else len(jaxpr.eqns)
        ahead = jaxpr.eqns[position:end]
        self._require_markov(jaxpr, position, end, env)
        made = {v for equation in ahead for v in equation.outvars}
        read = dict.fromkeys(v for e in ahead for v in e.invars if not is_literal(v) and v not in made)
        part = between(jaxpr, position, end, list(read))
        names = all_names(part, (sample_p,))
        given = {name: self._given(name) for name in names}

        def weigh(*arrays: Any) -> Array:
            found = interpret(part, [], list(arrays), Replay(), Weights.zero(), given).state
            return found.log_prob + found.log_score

        values = read_all(read, env)
        axes = [0 if value.moves else None for value in values]
        size = self.settings.num_particles
        if not any(value.moves for value in values):
            return
        weights = jax.vmap(weigh, in_axes=axes, axis_size=size)(*[value.array for value in values])
        wanted = unused(f"{min(names)}_past", self.settings.taken)
        chosen = sample(wanted, dist.Categorical(logits=weights))
        # The two change places: the given path's old past goes on as any other's.
        ancestors = jnp.arange(size).at[chosen].set(0).at[0].set(chosen)
        for v, value in env.items():
            if value.moves:
                env[v] = value._replace(array=follow(value.array, ancestors))
        self.frames = jax.tree.map(lambda leaf: follow(leaf, ancestors), self.frames)

    def _require_markov(self, jaxpr: Any, position: int, end: int, env: dict[Any, Value]) -> None:
        """Raise unless the past matters only for the sites and scores up to the next suspension point."""
        past = {v for v, value in env.items() if value.moves}
        for equation in jaxpr.eqns[position:end]:
            if equation.primitive not in (sample_p, score_p) and not past.isdisjoint(variables(equation)):
                if has_effects(equation) and equation.primitive is not note_p:
                    raise _not_markov(equation)
                past.update(equation.outvars)
        for place in [None, *reversed(self.places)]:
            if place is not None:  # one jaxpr further out, behind the equation that was walked into
                equation = place.jaxpr.eqns[place.position]
                flags = [not is_literal(v) and v in past for v in jaxpr.outvars]
                if equation.primitive.name == "scan":
                    num_consts, num_carry = scan_layout(equation)
                    if any(flags[:num_carry]) or any(place.moves[0][:num_consts]):
                        raise _not_markov(equation)
                past = {v for v, flag in zip(equation.outvars, flags, strict=True) if flag} | set(place.live)
                jaxpr, end = place.jaxpr, place.position + 1
            for equation in jaxpr.eqns[end:]:
                if not past.isdisjoint(variables(equation)):
                    if has_effects(equation) and equation.primitive is not note_p:
                        raise _not_markov(equation)
                    past.update(equation.outvars)


def _not_markov(equation: Any) -> ProgramError:
    return ProgramError(
        "ancestor sampling needs a Markov program: here the past before a step still matters after its sites "
        f"are given, at {', '.join(map(repr, effect_names(equation)))}"
    )
