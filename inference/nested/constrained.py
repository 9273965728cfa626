r"""Points of the unit cube above a bound on the likelihood, by slices along random directions.

Many walks are made at once. Each step of a walk draws a direction and a stretch of it, of fixed length, that
holds the present point at a random place; points of the stretch are tried, which is cut at those below the
bound, until one is above. It leaves the uniform distribution above the bound as it is: the stretch is as
probable from the new point as from the old (Neal 2003, "Slice sampling", without stepping out, sections 4.1
and 4.3). One trial of every walk is one batch of the likelihood, whatever step each walk is at, so that none
waits for another.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qbs.inference.nested.unit_cube import LEAST, MOST


class Course(NamedTuple):
    """What walks are made along, drawn before they begin.

    Attributes:
        directions: Of each step; the unit of length along a stretch.
        places: Of the point within its stretch, as a share of its length.
        width: Length of all stretches.
        bound: What the log likelihood must be above.
    """

    directions: Float[Array, "num_walks num_steps dim"]
    places: Float[Array, "num_walks num_steps"]
    width: Float[Array, ""]
    bound: Float[Array, ""]


class Walks(NamedTuple):
    """Where some walks are.

    Attributes:
        points: In the unit cube.
        log_likelihoods: There, above the bound.
        steps: Done by each.
        left: Start of what is left of the stretch, from the point, in units of the direction.
        right: Its end.
        num_trials: Points tried by all walks that were under way.
        num_invalid: How many of them had a log likelihood of NaN or `+inf`.
        invalid: The last such point.
        key: Of the random numbers.
    """

    points: Float[Array, "num_walks dim"]
    log_likelihoods: Float[Array, " num_walks"]
    steps: Int[Array, " num_walks"]
    left: Float[Array, " num_walks"]
    right: Float[Array, " num_walks"]
    num_trials: Int[Array, ""]
    num_invalid: Int[Array, ""]
    invalid: Float[Array, " dim"]
    key: Array


def begin(
    key: Array,
    points: Float[Array, "num_walks dim"],
    log_likelihoods: Float[Array, " num_walks"],
    course: Course,
) -> Walks:
    """Return walks that start at points above the bound."""
    zero = jnp.zeros((), int)
    steps = jnp.zeros(len(points), int)
    left, right = _stretch(points, steps, course)
    return Walks(points, log_likelihoods, steps, left, right, zero, zero, points[0], key)


def are_under_way(walks: Walks, course: Course) -> Bool[Array, " num_walks"]:
    """Return which walks have steps to do."""
    return walks.steps < course.places.shape[1]


def proposed(
    walks: Walks, course: Course
) -> tuple[Float[Array, "num_walks dim"], Float[Array, " num_walks"]]:
    """Return the points that walks try next, and how far along their directions they are."""
    shares = jax.random.uniform(jax.random.fold_in(walks.key, walks.num_trials), walks.left.shape)
    along = walks.left + shares * (walks.right - walks.left)
    points = walks.points + along[:, None] * _directions(walks.steps, course)
    return jnp.clip(points, LEAST, MOST), along


def judged(
    walks: Walks,
    course: Course,
    points: Float[Array, "num_walks dim"],
    along: Float[Array, " num_walks"],
    log_likelihoods: Float[Array, " num_walks"],
) -> Walks:
    """Return walks after the log likelihoods of the points they tried are known."""
    is_going = are_under_way(walks, course)
    is_invalid = is_going & (jnp.isnan(log_likelihoods) | jnp.isposinf(log_likelihoods))
    is_above = (log_likelihoods > course.bound) & ~is_invalid
    # A stretch that has shrunk to nothing is the point itself.
    is_stuck = walks.right - walks.left <= 1e-15
    is_new = is_going & is_above
    is_done = is_new | (is_going & is_stuck)
    moved = jnp.where(is_new[:, None], points, walks.points)
    steps = walks.steps + is_done
    fresh = _stretch(moved, steps, course)
    cut = (
        jnp.where(is_going & (along < 0), along, walks.left),
        jnp.where(is_going & (along >= 0), along, walks.right),
    )
    left, right = (jnp.where(is_done, new, old) for new, old in zip(fresh, cut, strict=True))
    worst = jnp.argmax(is_invalid)
    return Walks(
        moved,
        jnp.where(is_new, log_likelihoods, walks.log_likelihoods),
        steps,
        left,
        right,
        walks.num_trials + is_going.sum(),
        walks.num_invalid + is_invalid.sum(),
        jnp.where(is_invalid.any(), points[worst], walks.invalid),
        walks.key,
    )


def _directions(steps: Array, course: Course) -> Array:
    last = course.places.shape[1] - 1
    return jnp.take_along_axis(course.directions, jnp.minimum(steps, last)[:, None, None], axis=1)[:, 0]


def _stretch(points: Array, steps: Array, course: Course) -> tuple[Array, Array]:
    """Return the stretch of a step, cut where it leaves the unit cube."""
    last = course.places.shape[1] - 1
    places = jnp.take_along_axis(course.places, jnp.minimum(steps, last)[:, None], axis=1)[:, 0]
    directions = _directions(steps, course)
    is_flat = jnp.abs(directions) < 1e-300
    safe = jnp.where(is_flat, 1.0, directions)
    ends = jnp.stack([-points / safe, (1.0 - points) / safe])
    first = jnp.where(is_flat, -jnp.inf, ends.min(0)).max(1)
    second = jnp.where(is_flat, jnp.inf, ends.max(0)).min(1)
    start = -places * course.width
    return jnp.maximum(start, first), jnp.minimum(start + course.width, second)
