r"""Where a log likelihood is above a bound, as a surrogate has it, and walks there that cost no calls.

The surrogate \(s\) is of the log likelihood on a scale that has its zero at a bound, and that is drawn
together far above and far below: how likely points are there hardly matters. Walks are those of Metropolis,
for the density \(g = \mathrm{sigmoid}((s - s^*) / \tau)\) on the cube, which is near 1 where the surrogate is
above the bound \(s^*\), falls off over \(\tau\), and is nowhere zero.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from qbs.inference.nested import whitening
from qbs.inference.nested.concave import ConcaveForm, fit_concave
from qbs.inference.nested.live_points import Live, course
from qbs.inference.nested.surrogate import Surrogate
from qbs.inference.nested.unit_cube import LEAST, MOST

_REACH = 4.0  # heights up to about this many are not drawn together
_LEAST = -8.0  # of drawn heights; also of parameters that are impossible
_SHARE_ABOVE = 0.6  # of the points of a fit
_SHARE_RECENT = 0.125  # those that were called last, and are below
_SMALLEST = 0.05  # of the steps of a walk, to the largest


class Heights(NamedTuple):
    """A scale of log likelihoods, with its zero at a bound: about linear there, drawn together elsewhere.

    Attributes:
        bound: On the log likelihood.
        unit: In nats.
    """

    bound: float
    unit: float

    def __call__(self, log_likelihoods: Float[np.ndarray, " num"]) -> Float[np.ndarray, " num"]:
        """Return the heights of log likelihoods; `-inf` is low."""
        heights = (np.asarray(log_likelihoods) - self.bound) / self.unit
        drawn = 2 * (np.sqrt(_REACH * np.abs(heights) + _REACH**2) - _REACH)
        return np.maximum(np.where(heights < 0, -drawn, drawn), _LEAST)


def heights_above(bound: float, log_likelihoods: Float[np.ndarray, " num"]) -> Heights:
    """Return the scale whose unit is the median of points above a bound."""
    above = log_likelihoods[log_likelihoods > bound] - bound
    return Heights(bound, float(np.median(above)) if len(above) else 1.0)


class LearnedBound(NamedTuple):
    """A surrogate of heights.

    Attributes:
        heights: What it was fitted to.
        space: Whitened coordinates of the cube.
        unmixing: Takes centred points to whitened ones.
        top: The greatest height.
        form: Heights less the top, roughly.
        rest: What the form leaves; its method `mean` can be traced.
    """

    heights: Heights
    space: whitening.Whitening
    unmixing: Float[np.ndarray, "dim dim"]
    top: float
    form: ConcaveForm
    rest: Any

    def level(self, points: Float[Array, "num_points dim"]) -> Float[Array, " num_points"]:
        """Return the expected heights of points of the cube, in code that JAX can trace."""
        white = (points - jnp.asarray(self.space.centre)) @ jnp.asarray(self.unmixing)
        return self.top + self.form(white) + self.rest.mean(white)


def learn_bound(
    settings: Surrogate,
    points: Float[np.ndarray, "num_points dim"],
    log_likelihoods: Float[np.ndarray, " num_points"],
    heights: Heights,
    live_points: Float[np.ndarray, "num_live dim"],
    before: LearnedBound | None = None,
) -> LearnedBound:
    """Return a surrogate of heights that are known at some points.

    Args:
        settings: Of what is fitted to what a concave form leaves.
        points: In the unit cube.
        log_likelihoods: There.
        heights: The scale.
        live_points: Which the coordinates are whitened by.
        before: A surrogate in like coordinates, whose settings may be kept.

    Raises:
        ValueError: If what is fitted has no mean that JAX can trace.
    """
    count = len(live_points)
    space = whitening.of_points(live_points, np.full(count, 1.0 / count))
    white, values = space(points), heights(log_likelihoods)
    top = float(values.max())
    form = fit_concave(white, values - top, 4.0 * max(top - float(values.min()), 1.0))
    rest = settings.fit(white, values - top - form(white), before and before.rest)
    if not hasattr(rest, "mean"):
        raise ValueError(
            f"Verified: {type(settings).__name__} fits nothing that walks can follow in a compiled program "
            "(a method `mean`); use GaussianProcess()"
        )
    return LearnedBound(heights, space, np.linalg.inv(space.factor).T, top, form, rest)


def instructive(
    log_likelihoods: Float[np.ndarray, " num_points"], bound: float, count: int
) -> Int[np.ndarray, " num_chosen"]:
    """Return which points tell most of where the log likelihood is above a bound.

    They are some of those above, evenly by their order; the last ones below, which a surrogate may have taken
    for points above; and the nearest below.

    Args:
        log_likelihoods: In the order of the calls.
        bound: On them.
        count: How many are returned, if there are as many.
    """
    order = np.argsort(log_likelihoods, kind="stable")
    is_above = log_likelihoods[order] > bound
    above, below = order[is_above], order[~is_above][::-1]
    num_above = min(len(above), max(int(_SHARE_ABOVE * count), count - len(below)))
    spaced = np.linspace(0, len(above) - 1, num_above).astype(int) if num_above else np.zeros(0, int)
    recent = np.sort(below)[::-1][: int(_SHARE_RECENT * count)]
    nearest = below[~np.isin(below, recent)][: count - num_above - len(recent)]
    return np.concatenate([above[spaced], recent, nearest])


class Ends(NamedTuple):
    """Where walks on a surrogate end.

    Attributes:
        points: In the unit cube.
        levels: The surrogate's, there.
        log_ratios: Of the density of the walks: at the start, to that at the end.
        has_moved: Whether the end is not the start.
    """

    points: Float[Array, "num_walks dim"]
    levels: Float[Array, " num_walks"]
    log_ratios: Float[Array, " num_walks"]
    has_moved: Array


@partial(jax.jit, static_argnames="num_steps")
def wander(
    key: Array,
    live: Live,
    starts: Float[Array, "num_walks dim"],
    learned: LearnedBound,
    threshold: ArrayLike,
    tau: ArrayLike,
    num_steps: int,
) -> Ends:
    """Return the ends of walks on a surrogate; as likely from there to the start, but for the ratio.

    Args:
        key: A typed JAX key.
        live: What directions are taken from, as those of slices.
        starts: Where walks start, in the unit cube.
        learned: The surrogate.
        threshold: The height of the bound.
        tau: Over which the density falls off, in units of the heights.
        num_steps: Of each walk.
    """
    of_course, of_sizes, of_choices = jax.random.split(key, 3)
    along = course(of_course, live, len(starts), num_steps)
    # Half of the steps are as large as the live points are spread, others as small as a twentieth.
    which, sizes = jax.random.uniform(of_sizes, (2, *along.places.shape))
    sizes = jnp.where(which < 0.5, 1.0, _SMALLEST**sizes)
    moves = ((2 * along.places - 1) * sizes)[..., None] * along.directions
    log_shares = jnp.log(jax.random.uniform(of_choices, along.places.shape, minval=LEAST))

    def log_density(levels: Array) -> Array:
        return -jax.nn.softplus((threshold - levels) / tau)

    def step(at: tuple[Array, Array], drawn: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        points, levels = at
        move, log_share = drawn
        tried = points + move
        is_inside = jnp.all((tried > LEAST) & (tried < MOST), axis=1)
        found = learned.level(jnp.clip(tried, LEAST, MOST))
        is_taken = is_inside & (log_share < log_density(found) - log_density(levels))
        return (jnp.where(is_taken[:, None], tried, points), jnp.where(is_taken, found, levels)), None

    before = learned.level(starts)
    drawn = jnp.swapaxes(moves, 0, 1), log_shares.T
    (points, levels), _ = jax.lax.scan(step, (starts, before), drawn)
    ratios = log_density(before) - log_density(levels)
    return Ends(points, levels, ratios, jnp.any(points != starts, axis=1))
