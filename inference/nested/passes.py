"""Passes of nested sampling, from the prior or from a bound within a run, to where nothing is left."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from qbs.inference.binding import BoundModel
from qbs.inference.nested.constrained import Course, Walks, are_under_way, begin, judged, proposed
from qbs.inference.nested.known import Evaluate
from qbs.inference.nested.live_points import (
    Dead,
    Live,
    Vacancies,
    births,
    counted,
    course,
    deaths,
    is_over,
    vacancies,
)
from qbs.inference.nested.unit_cube import UnitCube, cube_log_likelihood

CAPACITY = 32  # iterations that a compiled block can hold

Walk = Callable[[Array, Array, Live, Vacancies], Walks]


class Pattern(NamedTuple):
    """What fixes the shapes of a pass.

    Attributes:
        batch: Points replaced at a time.
        num_steps: Of the walk to a new point.
        chunk_size: Walks made together; None for all of a batch.
    """

    batch: int
    num_steps: int
    chunk_size: int | None = None


@runtime_checkable
class LivePoints(Protocol):
    """Settings that say how many live points there are, and how many are replaced at a time."""

    num_live: int
    batch: int | None


def require_batch(settings: LivePoints) -> None:
    """Raise `ValueError` where no point is left for walks to start at."""
    if settings.batch is not None and settings.batch >= settings.num_live:
        raise ValueError(
            f"{type(settings).__name__}: batch is {settings.batch}; it must be below num_live, "
            f"{settings.num_live}, since walks start at the points that are left"
        )


def pattern_of(
    settings: LivePoints, dim: int, num_steps: int | None = None, chunk_size: int | None = None
) -> Pattern:
    """Return the shapes of a pass in so many dimensions, by default of five steps for each.

    Raises:
        ValueError: If there are too few live points for their covariance to be known.
    """
    if settings.num_live <= 2 * dim:
        raise ValueError(
            f"{type(settings).__name__}: num_live is {settings.num_live}; in {dim} dimensions it must be "
            f"above {2 * dim}"
        )
    batch = max(settings.num_live // 10, 1) if settings.batch is None else settings.batch
    return Pattern(batch, 5 * dim if num_steps is None else num_steps, chunk_size)


class Block(NamedTuple):
    """What some iterations gave, with leading axes iteration and place in the batch.

    Attributes:
        dead: Those who died.
        ranks: Of new points among those there before; NaN where there is none.
        num_trials: Evaluations of the likelihood, in each iteration.
        num_invalid: How many of them were NaN or `+inf`.
        invalid: The last such point of each iteration.
    """

    dead: Dead
    ranks: Array
    num_trials: Array
    num_invalid: Array
    invalid: Array


class _Keys(NamedTuple):
    vacancies: Array
    course: Array
    walks: Array
    births: Array


def _keys(key: Array, live: Live) -> _Keys:
    return _Keys(*jax.random.split(jax.random.fold_in(key, live.num_iterations), 4))


def _nothing(live: Live, pattern: Pattern) -> Block:
    dim, batch = live.points.shape[1], pattern.batch
    zero = jnp.zeros((), int)
    dead = Dead(jnp.zeros((batch, dim)), jnp.zeros(batch), jnp.zeros(batch), jnp.zeros(batch, bool))
    return Block(dead, jnp.full(batch, jnp.nan), zero, zero, jnp.zeros(dim))


@eqx.filter_jit
def compiled_block(
    bound: BoundModel,
    cube: UnitCube,
    key: Array,
    live: Live,
    length: Array,
    dlogz: Array,
    pattern: Pattern,
) -> tuple[Live, Block]:
    """Return the live points after up to `length` iterations, and what these gave."""
    likelihood = jax.vmap(partial(cube_log_likelihood, bound, cube))

    def iteration(live: Live) -> tuple[Live, Block]:
        keys = _keys(key, live)
        live, dead = deaths(live, pattern.batch)
        vacant = vacancies(keys.vacancies, live, pattern.batch)

        def fill(live: Live) -> tuple[Live, Block]:
            along = course(keys.course, live, pattern.batch, pattern.num_steps)
            start = live.points[vacant.starts], live.log_likelihoods[vacant.starts]
            walks = _walked(likelihood, keys.walks, *start, along, pattern.chunk_size)
            live, ranks = births(keys.births, live, vacant, walks)
            return live, Block(dead, ranks, walks.num_trials, walks.num_invalid, walks.invalid)

        live, block = jax.lax.cond(
            vacant.is_vacant.any(),
            fill,
            lambda live: (live, _nothing(live, pattern)._replace(dead=dead)),
            live,
        )
        return counted(live), block

    def step(live: Live, number: Array) -> tuple[Live, Block]:
        is_idle = (number >= length) | is_over(live, dlogz)
        return jax.lax.cond(is_idle, lambda live: (live, _nothing(live, pattern)), iteration, live)

    return jax.lax.scan(step, live, jnp.arange(CAPACITY))


def _walked(
    likelihood: Callable[[Array], Array],
    key: Array,
    points: Array,
    values: Array,
    along: Course,
    chunk_size: int | None,
) -> Walks:
    """Return the ends of all walks, some at a time."""
    size = len(points) if chunk_size is None else min(chunk_size, len(points))

    def some(part: tuple[Array, Array, Array, Array, Array]) -> Walks:
        number, points, values, directions, places = part
        way = Course(directions, places, along.width, along.bound)

        def trial(walks: Walks) -> Walks:
            tried, distances = proposed(walks, way)
            return judged(walks, way, tried, distances, likelihood(tried))

        start = begin(jax.random.fold_in(key, number), points, values, way)
        return jax.lax.while_loop(lambda walks: are_under_way(walks, way).any(), trial, start)

    def cut(array: Array) -> Array:
        more = -len(array) % size
        padded = jnp.concatenate([array, jnp.repeat(array[-1:], more, axis=0)])
        return padded.reshape(-1, size, *array.shape[1:])

    parts = tuple(map(cut, (points, values, along.directions, along.places)))
    found = jax.lax.map(some, (jnp.arange(len(parts[0])), *parts))

    def joined(array: Array) -> Array:
        return array.reshape(-1, *array.shape[2:])[: len(points)]

    return Walks(
        points=joined(found.points),
        log_likelihoods=joined(found.log_likelihoods),
        steps=joined(found.steps),
        left=joined(found.left),
        right=joined(found.right),
        num_trials=found.num_trials.sum(),
        num_invalid=found.num_invalid.sum(),
        invalid=found.invalid[jnp.argmax(found.num_invalid)],
        key=key,
    )


_deaths = jax.jit(deaths, static_argnums=1)
_vacancies = jax.jit(vacancies, static_argnums=2)
_course = jax.jit(course, static_argnums=(2, 3))
_begin, _proposed, _judged, _births = (jax.jit(part) for part in (begin, proposed, judged, births))


def python_iteration(evaluate: Evaluate, key: Array, live: Live, pattern: Pattern) -> tuple[Live, Block]:
    """Return the live points after one iteration of a likelihood that is called from Python."""
    return iteration(partial(python_walks, evaluate, pattern), key, live, pattern)


def iteration(walk: Walk, key: Array, live: Live, pattern: Pattern) -> tuple[Live, Block]:
    """Return the live points after one iteration, in Python.

    Args:
        walk: Returns walks to new points: from two keys, the live points and the vacancies.
        key: A typed JAX key.
        live: The live points.
        pattern: The shapes of the pass.
    """
    keys = _keys(key, live)
    live, dead = _deaths(live, pattern.batch)
    vacant = _vacancies(keys.vacancies, live, pattern.batch)
    block = _nothing(live, pattern)._replace(dead=dead)
    if bool(vacant.is_vacant.any()):
        walks = walk(keys.course, keys.walks, live, vacant)
        live, ranks = _births(keys.births, live, vacant, walks)
        block = block._replace(ranks=ranks, num_trials=walks.num_trials)
    return counted(live), jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], block)


def python_walks(
    evaluate: Evaluate, pattern: Pattern, of_course: Array, of_walks: Array, live: Live, vacant: Vacancies
) -> Walks:
    """Return walks by slices to new points, from live points, of a likelihood that is called from Python."""
    along = _course(of_course, live, pattern.batch, pattern.num_steps)
    start = live.points[vacant.starts], live.log_likelihoods[vacant.starts]
    return _walked_in_python(evaluate, of_walks, *start, along, vacant.is_vacant)


def _walked_in_python(
    evaluate: Evaluate, key: Array, points: Array, values: Array, along: Course, is_wanted: Array
) -> Walks:
    walks = _begin(key, points, values, along)
    walks = walks._replace(steps=jnp.where(is_wanted, walks.steps, along.places.shape[1]))
    while (is_going := np.asarray(are_under_way(walks, along))).any():
        tried, distances = _proposed(walks, along)
        found = np.full(len(is_going), -math.inf)
        found[is_going] = evaluate(np.asarray(tried)[is_going])
        walks = _judged(walks, along, tried, distances, found)
    return walks


def spread(
    bound: BoundModel, cube: UnitCube, key: Array, live: Live, pattern: Pattern, evaluate: Evaluate | None
) -> tuple[Live, Block]:
    """Return live points that walks from the given ones, which may be there twice, lead to.

    Args:
        bound: The model.
        cube: Its unit cube.
        key: A typed JAX key.
        live: Points above the bound, all alive.
        pattern: The shapes of the pass.
        evaluate: The likelihood, where it is called from Python.
    """
    of_course, of_walks = jax.random.split(key)
    along = _course(of_course, live, len(live.points), pattern.num_steps)
    if evaluate is None:
        size = pattern.chunk_size or pattern.batch
        walks = _compiled_walks(bound, cube, of_walks, live.points, live.log_likelihoods, along, size)
    else:
        walks = _walked_in_python(evaluate, of_walks, live.points, live.log_likelihoods, along, live.is_alive)
    moved = live._replace(points=walks.points, log_likelihoods=walks.log_likelihoods)
    block = _nothing(live, pattern)._replace(
        num_trials=walks.num_trials, num_invalid=walks.num_invalid, invalid=walks.invalid
    )
    return moved, jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], block)


@eqx.filter_jit
def _compiled_walks(
    bound: BoundModel, cube: UnitCube, key: Array, points: Array, values: Array, along: Course, size: int
) -> Walks:
    likelihood = jax.vmap(partial(cube_log_likelihood, bound, cube))
    return _walked(likelihood, key, points, values, along, size)
