"""What qbs reads of JAX's programs: all that depends on the form of jaxprs, in one place.

Only `jax.extend.core` is imported, but the parameters of JAX's own primitives are no public interface:
`tests/test_jaxprs.py` fails with a new JAX that changed them.
"""

import contextlib
from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

import jax.extend as jex
from jax import lax
from jax.interpreters import batching

from qbs.effects import EFFECTS, sample_p
from qbs.errors import ProgramError

Jaxpr = jex.core.Jaxpr

# Primitives that only call the one jaxpr that they hold.
CALLS = frozenset(
    {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2", "custom_jvp_call", "custom_vjp_call"}
)


def is_literal(variable: Any) -> bool:
    """Whether an operand is a value instead of a variable."""
    return isinstance(variable, jex.core.Literal)


def bind_equation(equation: Any, values: Iterable, **changed: Any) -> list:
    """Evaluate an equation on values, with some of its parameters changed; return its outputs."""
    primitive = equation.primitive
    result = primitive.bind(*values, **primitive.get_bind_params({**equation.params, **changed}))
    return list(result) if primitive.multiple_results else [result]


def variables(equation: Any) -> list:
    """Return the operands of an equation that are not literals."""
    return [v for v in equation.invars if not is_literal(v)]


def between(jaxpr: Jaxpr, start: int, end: int, operands: list) -> Jaxpr:
    """Return some of the equations of a jaxpr, as one without outputs."""
    info = jaxpr.debug_info._replace(arg_names=("",) * len(operands), result_paths=())
    return jaxpr.replace(
        eqns=jaxpr.eqns[start:end], constvars=[], invars=operands, outvars=[], debug_info=info
    )


def cut(jaxpr: Jaxpr, length: int, outputs: list) -> Jaxpr:
    """Return the first equations of a jaxpr, with other outputs."""
    names = tuple(f"live {i}" for i in range(len(outputs)))
    info = jaxpr.debug_info._replace(result_paths=names)
    return jaxpr.replace(eqns=jaxpr.eqns[:length], outvars=outputs, debug_info=info)


def inner_jaxprs(equation: Any) -> Iterator[Any]:
    """Yield the jaxprs among the parameters of an equation."""
    for parameter in equation.params.values():
        for item in parameter if isinstance(parameter, tuple | list) else (parameter,):
            if isinstance(item, jex.core.ClosedJaxpr | Jaxpr):
                yield item


def effect_names(equation: Any, kinds: Collection[Any] = EFFECTS) -> Iterator[str]:
    """Yield the names of the sites, scores and notes in an equation and all that it calls."""
    if equation.primitive in kinds:
        yield equation.params["name"]
    for inner in inner_jaxprs(equation):
        for deeper in open_jaxpr(inner)[0].eqns:
            yield from effect_names(deeper, kinds)


def all_names(jaxpr: Any, kinds: Collection[Any] = EFFECTS) -> frozenset[str]:
    """Return the names of all sites, scores and notes in a jaxpr."""
    return frozenset(name for equation in open_jaxpr(jaxpr)[0].eqns for name in effect_names(equation, kinds))


def inner_names(jaxpr: Any) -> frozenset[str]:
    """Return the names of the sites that are choices of an algorithm, such as the draws of particles."""
    found: set[str] = set()
    for equation in open_jaxpr(jaxpr)[0].eqns:
        if equation.primitive is sample_p and not equation.params["is_recorded"]:
            found.add(equation.params["name"])
        for inner in inner_jaxprs(equation):
            found |= inner_names(inner)
    return frozenset(found)


@contextlib.contextmanager
def refusing_batched_branches() -> Iterator[None]:
    """Refuse `jax.vmap` of a `lax.cond` with effects whose predicate is batched.

    JAX makes a select of it, after which the scores of both branches would count.
    """
    rules = batching.fancy_primitive_batchers
    original = rules[lax.cond_p]

    def rule(axis: Any, operands: Any, dims: Any, *, branches: Any, **settings: Any) -> Any:
        names = sorted(frozenset().union(*map(all_names, branches)))
        if dims[0] is not None and names:
            raise ProgramError(
                f"jax.vmap around a lax.cond whose predicate is mapped would run all its branches, with "
                f"{', '.join(map(repr, names))} in them: draw and score outside of the lax.cond"
            )
        return original(axis, operands, dims, branches=branches, **settings)

    rules[lax.cond_p] = rule
    try:
        yield
    finally:
        rules[lax.cond_p] = original


def has_effects(equation: Any) -> bool:
    """Whether there is a site, a score or a note in an equation or in what it calls."""
    return next(effect_names(equation), None) is not None


class SiteShape(NamedTuple):
    """What a jaxpr tells of a site.

    Attributes:
        shape: The shape of its value, the axes of the scans around in front.
        dtype: Its type.
        num_scans: How many of the axes are of scans.
        in_branch: Whether it stands in a branch of a `cond`.
    """

    shape: tuple[int, ...]
    dtype: Any
    num_scans: int
    in_branch: bool


def find_sites(jaxpr: Any, scans: tuple[int, ...] = (), *, in_branch: bool = False) -> dict[str, SiteShape]:
    """Return the sites of a jaxpr by name."""
    found: dict[str, SiteShape] = {}
    for equation in open_jaxpr(jaxpr)[0].eqns:
        if equation.primitive is sample_p:
            aval: Any = equation.outvars[0].aval
            found[equation.params["name"]] = SiteShape(
                (*scans, *aval.shape), aval.dtype, len(scans), in_branch
            )
        length = (equation.params["length"],) if equation.primitive.name == "scan" else ()
        for inner in inner_jaxprs(equation):
            branch = in_branch or equation.primitive.name == "cond"
            found.update(find_sites(inner, (*scans, *length), in_branch=branch))
    return found


def scan_layout(equation: Any) -> tuple[int, int]:
    """Return how many operands of a scan are constants, and how many its carry."""
    settings = equation.params
    if "num_consts" in settings:
        return settings["num_consts"], settings["num_carry"]
    # From JAX 0.12 on, a scan keeps the trees of its operands instead of their number.
    consts, carry, xs = (len(part.vals) for part in settings["ft_in"].unpack())
    if consts + carry + xs != len(equation.invars):
        raise ProgramError("qbs cannot read the scans of this version of JAX")
    return consts, carry


def open_jaxpr(jaxpr: Any) -> tuple[Jaxpr, list]:
    """Return a jaxpr and its constants, whether it is closed over them or not."""
    return (jaxpr.jaxpr, list(jaxpr.consts)) if isinstance(jaxpr, jex.core.ClosedJaxpr) else (jaxpr, [])
