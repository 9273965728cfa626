"""Roll the equal steps of a Python loop into one scan, so that they are compiled once.

A loop over T observations traces to T segments, each up to a score. What picks data (`y[t]` for all t) is
taken out in front, so that what is left of the segments differs only in values: equal
neighbours become a `lax.scan` over these. What a step reads of those before it is carried.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from qbs.effects import note_p, sample_p, score_p, unused
from qbs.hashing import is_hashable
from qbs.jaxprs import (
    Jaxpr,
    all_names,
    bind_equation,
    has_effects,
    inner_jaxprs,
    is_literal,
    open_jaxpr,
    variables,
)
from qbs.program import Staged

_MIN_STEPS = 4
_PICKING = frozenset({"slice", "dynamic_slice", "gather", "squeeze"})
_MAX_PERIOD = 8  # scores in one step of a loop


class Rolled(NamedTuple):
    """A program with its equal steps rolled.

    Attributes:
        staged: The program.
        points: The names of the scores that were asked for, the new ones among them.
        names: The old names of each new one, in the order of the steps.
    """

    staged: Staged
    points: frozenset[str] | None
    names: dict[str, list[str]]


class _Loop(NamedTuple):
    """Equal steps: the equations of each, and where each operand of a step comes from.

    A source is `("back", lag, equation, output)` for a value of this or an earlier step, else `None`.
    """

    steps: list[list[Any]]
    sources: list[list[tuple | None]]


def rolled(staged: Staged, points: frozenset[str] | None) -> Rolled:
    """Return a program with the same meaning whose equal steps are scans."""
    jaxpr, consts = open_jaxpr(staged.jaxpr)
    before, steps = _split(jaxpr)
    parts = _find_loops(steps, points)
    loops = [part for part in parts if isinstance(part, _Loop)]
    if not loops:
        return Rolled(staged, points, {})
    taken, names, old = all_names(jaxpr), {}, {}
    for loop in loops:
        for position, equation in enumerate(loop.steps[0]):
            if equation.primitive in (sample_p, score_p, note_p):
                own = [step[position].params["name"] for step in loop.steps]
                names[own[0]] = unused(f"{own[0]}..{own[-1]}", taken)
                old[names[own[0]]] = own
    found = [new for name, new in names.items() if points is not None and name in points]

    def evaluate(*operands: Any) -> list:
        env = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, operands, strict=True))
        for equation in before:
            _evaluate(equation, env)
        needed = _needed_after(parts, jaxpr)
        for part, wanted in zip(parts, needed, strict=True):
            if isinstance(part, _Loop):
                _run(part, env, wanted, names)
            else:
                _evaluate(part, env)
        return [_read(v, env) for v in jaxpr.outvars]

    closed = jax.make_jaxpr(evaluate)(*staged.operands)
    return Rolled(staged._replace(jaxpr=closed), None if points is None else points.union(found), old)


def _split(jaxpr: Jaxpr) -> tuple[list, list[list]]:
    """Return what picks elements of the data, and all other equations in segments that end with scores.

    Equations that nothing needs are dropped.
    """
    used = {v for v in jaxpr.outvars if not is_literal(v)}
    kept = []
    for equation in reversed(jaxpr.eqns):
        if has_effects(equation) or not used.isdisjoint(equation.outvars):
            kept.append(equation)
            used.update(variables(equation))
    random: set[Any] = set()
    for equation in reversed(kept):
        if has_effects(equation) or not random.isdisjoint(variables(equation)):
            random.update(equation.outvars)
    early: set[Any] = set()  # what the picking needs
    before: list[Any] = []
    segments: list[list[Any]] = [[]]
    for equation in kept:
        is_pick = equation.primitive.name in _PICKING or not early.isdisjoint(equation.outvars)
        if is_pick and random.isdisjoint(equation.outvars):
            early.update(variables(equation))
            before.append(equation)
    front = {id(equation) for equation in before}
    for equation in reversed(kept):
        if id(equation) not in front:
            segments[-1].append(equation)
            if equation.primitive is score_p:
                segments.append([])
    return before[::-1], segments


def _signature(equation: Any, points: frozenset[str] | None, texts: dict[int, Any]) -> tuple:
    """Return what makes two equations do the same, apart from names and operands."""
    is_point = points is not None and equation.params.get("name") in points
    if equation.primitive not in (sample_p, score_p, note_p) and has_effects(equation):
        return (id(equation),)  # sites inside keep their names
    settings: list[Any] = [equation.primitive.name, is_point]
    for key, value in sorted(equation.params.items()):
        if key == "name" and equation.primitive in (sample_p, score_p, note_p):
            continue
        if callable(value) and list(inner_jaxprs(equation)):
            continue  # rules of derivatives, made anew for each call of the jaxpr that is compared
        settings.append((key, _text(value, texts)))
    settings.append(tuple((v.aval.shape, v.aval.dtype) for v in (*equation.invars, *equation.outvars)))
    return tuple(settings)


def _text(value: Any, texts: dict[int, Any]) -> Any:
    if not hasattr(value, "eqns") and not hasattr(value, "jaxpr"):
        return value if is_hashable(value) else repr(value)
    if id(value) not in texts:
        texts[id(value)] = (value, str(value))  # kept, so that the id stays its own
    return texts[id(value)][1]


def _find_loops(segments: list[list], points: frozenset[str] | None) -> list:
    """Return the equations in order, with the equal neighbours among the segments as loops."""
    texts: dict[int, Any] = {}
    signatures = [tuple(_signature(e, points, texts) for e in segment) for segment in segments]
    parts: list[Any] = []
    start = 0
    while start < len(segments):
        loop, used = None, 0
        for period in range(1, _MAX_PERIOD + 1):
            count = 1
            while (
                signatures[start : start + period]
                == signatures[start + count * period : start + (count + 1) * period]
            ):
                count += 1
            if count >= _MIN_STEPS and count * period > used and all(segments[start : start + period]):
                starts = range(start, start + count * period, period)
                steps = [[e for segment in segments[i : i + period] for e in segment] for i in starts]
                found, skipped = _wire(steps)
                if found is not None:
                    loop, used = (skipped, found, steps), count * period
        if loop is None:
            parts += segments[start]
            start += 1
            continue
        skipped, found, steps = loop
        parts += [equation for step in steps[:skipped] for equation in step]
        parts.append(found)
        parts += [equation for step in steps[skipped + len(found.steps) :] for equation in step]
        start += used
    return parts


def _wire(steps: list[list]) -> tuple[_Loop | None, int]:
    """Return the longest loop of steps that read alike, and how many steps stand before it."""
    made = {
        v: (number, i, o)
        for number, step in enumerate(steps)
        for i, equation in enumerate(step)
        for o, v in enumerate(equation.outvars)
    }

    def sources(number: int) -> list[list[tuple | None]]:
        found = []
        for equation in steps[number]:
            row: list[tuple | None] = []
            for v in equation.invars:
                where = None if is_literal(v) else made.get(v)
                row.append(None if where is None else ("back", number - where[0], *where[1:]))
            found.append(row)
        return found

    middle = len(steps) // 2
    pattern = sources(middle)
    first, last = middle, middle
    while last + 1 < len(steps) and sources(last + 1) == pattern:
        last += 1
    while first > 0 and sources(first - 1) == pattern:
        first -= 1
    if first > 0 and _may_start(sources(first - 1), pattern):
        first -= 1
    loop = _Loop(steps[first : last + 1], pattern)
    if len(loop.steps) < _MIN_STEPS or not _reads_from_outside(loop) or not _starts_alike(loop):
        return None, 0
    return loop, first


def _may_start(own: list[list], pattern: list[list]) -> bool:
    """Whether a step can be the first of a loop: what the others read from before may come from anywhere."""
    pairs = [
        (a, b) for row, wanted in zip(own, pattern, strict=True) for a, b in zip(row, wanted, strict=True)
    ]
    return all(a == b or (b is not None and b[1] > 0 and (a is None or a[1] > 0)) for a, b in pairs)


def _reads_from_outside(loop: _Loop) -> bool:
    """Whether all that has no source in the loop is made outside of it."""
    made = {v for step in loop.steps for equation in step for v in equation.outvars}
    outside = [(i, k) for i, row in enumerate(loop.sources) for k, source in enumerate(row) if source is None]
    found = [step[i].invars[k] for step in loop.steps for i, k in outside]
    return all(is_literal(v) or v not in made for v in found)


def _starts_alike(loop: _Loop) -> bool:
    """Whether the first steps read one value wherever the pattern has one."""
    read: dict[tuple, Any] = {}
    for number, step in enumerate(loop.steps):
        for i, row in enumerate(loop.sources):
            for k, source in enumerate(row):
                if source is not None and source[1] > number:
                    v = step[i].invars[k]
                    first = read.setdefault((*source[2:], source[1] - number), v)
                    if first is not v and not (
                        is_literal(v) and is_literal(first) and _all_equal([v.val, first.val])
                    ):
                        return False
    return True


def _needed_after(parts: list, jaxpr: Jaxpr) -> list[set]:
    """Return for each part the variables that something later reads."""
    needed, later = [], {v for v in jaxpr.outvars if not is_literal(v)}
    for part in reversed(parts):
        needed.append(set(later))
        for equation in (e for step in part.steps for e in step) if isinstance(part, _Loop) else (part,):
            later.update(variables(equation))
    return needed[::-1]


def _run(loop: _Loop, env: dict, needed: set, names: dict[str, str]) -> None:
    """Evaluate a loop as one scan."""
    template, count = loop.steps[0], len(loop.steps)
    lags: dict[tuple, int] = {}  # how far back each value is read
    for row in loop.sources:
        for source in row:
            if source is not None and source[1] > 0:
                lags[source[2:]] = max(source[1], lags.get(source[2:], 0))
    emitted, kept = [], []
    for i, equation in enumerate(template):
        for o in range(len(equation.outvars)):
            wanted = [n for n, step in enumerate(loop.steps) if step[i].outvars[o] in needed]
            if wanted and wanted != [count - 1]:
                emitted.append((i, o))
            elif wanted:
                kept.append((i, o))
                lags.setdefault((i, o), 1)
    start = {
        where: [_before(loop, where, lag, env) for lag in range(1, far + 1)] for where, far in lags.items()
    }
    outside = [(i, k) for i, row in enumerate(loop.sources) for k, source in enumerate(row) if source is None]
    same, stacked = {}, {}
    for i, k in outside:
        values = [_read(step[i].invars[k], env) for step in loop.steps]
        if _all_equal(values):
            same[i, k] = values[0]
        else:
            stacked[i, k] = _stack(values, template[i].invars[k].aval.dtype)

    def body(past: dict, own: dict) -> tuple[dict, list]:
        values: dict[tuple, Any] = {}
        for i, equation in enumerate(template):
            operands = []
            for k, source in enumerate(loop.sources[i]):
                if source is None:
                    operands.append(same[i, k] if (i, k) in same else own[i, k])
                else:
                    lag, where = source[1], source[2:]
                    operands.append(past[where][lag - 1] if lag else values[where])
            renamed = {}
            if equation.primitive in (sample_p, score_p, note_p):
                renamed["name"] = names[equation.params["name"]]
            for o, output in enumerate(bind_equation(equation, operands, **renamed)):
                values[i, o] = output
        after = {where: [values[where], *earlier[:-1]] for where, earlier in past.items()}
        return after, [values[where] for where in emitted]

    past, history = lax.scan(body, start, stacked, length=count)
    for i, o in kept:
        env[loop.steps[-1][i].outvars[o]] = past[i, o][0]
    for (i, o), values in zip(emitted, history, strict=True):
        for number, step in enumerate(loop.steps):
            if step[i].outvars[o] in needed:
                env[step[i].outvars[o]] = values[number]


def _before(loop: _Loop, where: tuple, lag: int, env: dict) -> Any:
    """Return the value that the first steps read from before the loop, `lag` steps before its first."""
    for number in range(lag):  # step `number` reads it with a lag of `lag + number`
        for i, row in enumerate(loop.sources):
            for k, source in enumerate(row):
                if source == ("back", lag + number, *where):
                    return _read(loop.steps[number][i].invars[k], env)
    aval = loop.steps[0][where[0]].outvars[where[1]].aval
    return jnp.zeros(aval.shape, aval.dtype)


def _all_equal(values: list) -> bool:
    if any(isinstance(value, jax.core.Tracer) for value in values):
        return all(value is values[0] for value in values)
    return all(np.array_equal(value, values[0]) for value in values)


def _stack(values: list, dtype: Any) -> Any:
    if any(isinstance(value, jax.core.Tracer) for value in values):
        return jnp.stack([jnp.asarray(value, dtype) for value in values])
    return jnp.asarray(np.stack([np.asarray(value, dtype) for value in values]))


def _evaluate(equation: Any, env: dict) -> None:
    outputs = bind_equation(equation, [_read(v, env) for v in equation.invars])
    env.update(zip(equation.outvars, outputs, strict=True))


def _read(variable: Any, env: dict) -> Any:
    return variable.val if is_literal(variable) else env[variable]
