"""Split a program into its parameters, and the rest given them.

`p = prior >>= rest`: the parameters are drawn first, and what follows weighs them. A particle filter of the
rest then estimates the likelihood of the parameters, and a chain or a population around moves them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from qbs.effects import sample, sample_p, score
from qbs.errors import ModelError
from qbs.inference.problem import Problem
from qbs.inference.transform.replay import traced
from qbs.interpreter import Semantics, interpret
from qbs.jaxprs import Jaxpr, cut, effect_names, find_sites, has_effects, open_jaxpr, variables
from qbs.program import Program


class Split(NamedTuple):
    """A program in two parts.

    Attributes:
        prior: Draws the parameters alone; a program of the arguments, whose value is a dictionary by name.
        rest: Draws all other sites and scores, given that dictionary and the arguments; its value is the
            trace: all sites and deterministic values by name.
    """

    prior: Program
    rest: Program


def split(program: Program, parameters: Sequence[str], *, nan_is_impossible: bool = False) -> Split:
    """Return the programs of the parameters, and of the rest given them.

    Staging `prior` raises `ModelError` where a parameter depends on a site that is not one.

    Args:
        program: The program.
        parameters: The names of sites outside of scans and branches.
        nan_is_impossible: Whether a score of the rest that is NaN or `+inf` becomes `-inf`: for a kernel
            whose weights nobody sees.
    """

    def draw_parameters(*args: Any) -> dict[str, Array]:
        staged = traced(program).stage(*args)
        jaxpr, consts = open_jaxpr(staged.jaxpr)
        part = _needed(jaxpr, staged.unflatten(jaxpr.outvars)[1], parameters, program.name)
        walked = interpret(part, consts, staged.operands, _Given(nan_is_impossible=False), (), {})
        return dict(zip(parameters, walked.outputs, strict=True))

    def draw_rest(given: dict[str, Array], *args: Any) -> dict[str, Array]:
        own = {name: given[name] for name in parameters}
        staged = program.stage(*args)
        jaxpr, consts = open_jaxpr(staged.jaxpr)
        return interpret(
            jaxpr, consts, staged.operands, _Given(nan_is_impossible=nan_is_impossible), (), own
        ).trace

    prior = Program(draw_parameters, f"parameters of {program.name}")
    return Split(prior, Program(draw_rest, f"{program.name} given its parameters"))


class _Given(Semantics):
    """Take given values; draw and score as effects of the program around, adding nothing up.

    A sum over the steps would be a past that matters, and ancestor sampling wants a Markov program.
    """

    def __init__(self, *, nan_is_impossible: bool):
        self._nan_is_impossible = nan_is_impossible

    def sample(self, state: Any, name: str, distribution: Any, given: Any) -> tuple[Array, Any]:
        return (sample(name, distribution) if given is None else given), state

    def score(self, state: Any, name: str, log_weight: Any) -> Any:
        if self._nan_is_impossible:
            is_bad = jnp.isnan(log_weight) | (log_weight == jnp.inf)
            log_weight = jnp.where(is_bad, -jnp.inf, log_weight)
        score(log_weight, name=name)
        return state


def _needed(jaxpr: Jaxpr, trace: dict[str, Any], parameters: Sequence[str], program: str) -> Jaxpr:
    """Return the part of a jaxpr that the parameters need, with their values as outputs."""
    wanted = [trace[name] for name in parameters]
    needed, kept = set(wanted), []
    for equation in reversed(jaxpr.eqns):
        if needed.isdisjoint(equation.outvars):
            continue
        if has_effects(equation):
            names = set(effect_names(equation, (sample_p,)))
            if foreign := sorted(names.difference(parameters)):
                later = [name for name in parameters if trace[name] in _made_after(jaxpr, equation)]
                raise ModelError(
                    f"a parameter of {program!r}, one of {', '.join(map(repr, later))}, depends on "
                    f"{', '.join(map(repr, foreign))}, which is not among parameters={tuple(parameters)}: "
                    "name it too, or leave the other out"
                )
        kept.append(equation)
        needed.update(variables(equation))
    return cut(jaxpr.replace(eqns=kept[::-1]), len(kept), wanted)


def _made_after(jaxpr: Jaxpr, start: Any) -> set:
    """Return the variables that depend on the outputs of an equation."""
    made = set(start.outvars)
    for equation in jaxpr.eqns:
        if not made.isdisjoint(variables(equation)):
            made.update(equation.outvars)
    return made


def find_parameters(problem: Problem, wanted: Sequence[str] | None, method: str) -> tuple[str, ...]:
    """Return the names of the parameters of a problem: the sites outside of scans, or those that are wanted.

    Raises:
        ModelError: If a wanted site is not there, is discrete, or stands in a scan or a branch; if there are
            no parameters or no states; or if a parameter depends on a state.
    """
    bound, name = problem.bound, problem.name
    sites = find_sites(bound.program.stage(*bound.arrays).jaxpr)
    outside = tuple(site for site in bound.latent if sites[site].num_scans == 0)
    if wanted is not None:
        if unknown := sorted(set(wanted).difference(sites)):
            raise ModelError(f"{method}: parameters names {unknown}; the sites of {name!r} are {list(sites)}")
        if inside := sorted(set(wanted).difference(outside)):
            raise ModelError(f"{method}: parameters names {inside}, drawn at each step of a scan in {name!r}")
    chosen = outside if wanted is None else tuple(site for site in bound.latent if site in wanted)
    if not chosen:
        raise ModelError(
            f"{method} moves parameters, and every site of {name!r} stands in a scan: where nothing is "
            "unknown but states, use method=qbs.inference.smc.ParticleFilter()"
        )
    if len(chosen) == len(sites):
        raise ModelError(
            f"{method} is for parameters and states, and no site of {name!r} is a state, drawn in a scan: "
            "where time is a Python loop, name the parameters by parameters=(...); for a model without "
            "states use method=qbs.inference.mcmc.NUTS() or qbs.inference.nested.Dynesty()"
        )
    if branched := [site for site in chosen if sites[site].in_branch]:
        raise ModelError(f"{method}: parameter {branched[0]!r} of {name!r} stands in a branch of a lax.cond")
    if discrete := [site for site in chosen if site in problem.discrete]:
        raise ModelError(
            f"{method} moves continuous parameters, and {', '.join(map(repr, discrete))} of {name!r} is "
            "discrete: leave it out of parameters=(...), and the particles draw it, or sum it out"
        )
    split(bound.program, chosen).prior.stage(*bound.arrays)
    return chosen
