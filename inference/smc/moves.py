r"""Moves of a cloud of particles that leave a tempered posterior invariant, whatever its scale.

Two kinds. `glide` is Hamiltonian: it leans on gradients and on the covariance of the cloud, and each particle
takes a step size of its own, drawn from a grid over three orders of magnitude whose shares follow what moved
the cloud well. `slide` is slice sampling along lines, of the whole cloud, of one site or of one coordinate:
it finds the scale of each particle by itself, at more evaluations. Scales that differ from particle to
particle, as they do on the way from a wide prior to a narrow posterior, are met by both, and by no shared
step size.

References:
    Neal (2011), "MCMC using Hamiltonian dynamics"; Neal (2003), "Slice sampling"; Buchholz, Chopin & Jacob
    (2021), "Adaptive tuning of Hamiltonian Monte Carlo within sequential Monte Carlo", for random step sizes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from qbs.inference.binding import BoundModel
from qbs.inference.smc.apart import Parts, parts

NUM_SCALES = 11
_NUM_LEAPS = 8
_NUM_GLIDES = 2
_NUM_SLIDES = 6
_WIDTH = 5.0  # of the first interval of a slice, in standard deviations of the cloud
_FLOOR = 0.2  # share of the step sizes that is drawn from all alike
_MAX_SHRINKS = 400
_FAR = 20.0  # nats of log prior below the least likely particle


class Cloud(NamedTuple):
    """Particles on unconstrained space.

    Attributes:
        points: The sites of each particle as a vector.
        parts: Log prior and log likelihood of each.
    """

    points: Float[Array, "num_particles dim"]
    parts: Parts


class Moved(NamedTuple):
    """What a round of moves did.

    Attributes:
        cloud: The particles after it.
        num_evaluations: Evaluations of the likelihood, gradients included, for each particle.
        num_bad: How many of all points had a NaN likelihood.
        gains: For each step size, how far it moved particles in all; zero for slides.
        uses: For each step size, how many particles took it.
    """

    cloud: Cloud
    num_evaluations: Int[Array, ""]
    num_bad: Int[Array, ""]
    gains: Float[Array, " num_scales"]
    uses: Float[Array, " num_scales"]


class Shape(NamedTuple):
    """How sites stand in the vector of a particle.

    Attributes:
        unravel: From the vector to the sites.
        sites: For each coordinate, the number of its site.
        num_portions: In how many portions the likelihood is taken.
    """

    unravel: Callable[[Array], dict[str, Array]]
    sites: np.ndarray
    num_portions: int = 1


def shape_of(position: Any, num_portions: int) -> Shape:
    """Return how the sites of a position stand in its vector."""
    names = sorted(position)  # the order of JAX's trees
    like = {name: jnp.zeros(position[name].shape, position[name].dtype) for name in names}
    sites = np.repeat(np.arange(len(names)), [position[n].size for n in names])
    return Shape(ravel_pytree(like)[1], sites, num_portions)


def evaluate(bound: BoundModel, shape: Shape, points: Array, chunk_size: int | None) -> Parts:
    """Return log prior and log likelihood of all particles, some at a time."""

    def one(point: Array) -> Parts:
        return parts(bound, shape.unravel(point), shape.num_portions)

    return lax.map(one, points, batch_size=chunk_size or points.shape[0])


def spread(points: Float[Array, "num_particles dim"]) -> Float[Array, "dim dim"]:
    """Return the Cholesky factor of the covariance of a cloud, kept away from singular."""
    num_particles, dim = points.shape
    gaps = points - points.mean(0)
    covariance = gaps.T @ gaps / (num_particles - 1)
    variances = jnp.diagonal(covariance)
    tiny = 1e-9 * variances + 1e-24
    # With few particles for the dimension the correlations are mostly noise.
    share = dim / (dim + num_particles)
    covariance = (1 - share) * covariance + share * jnp.diag(variances)
    return jnp.linalg.cholesky(covariance + jnp.diag(tiny))


def glide(
    bound: BoundModel,
    shape: Shape,
    key: Array,
    cloud: Cloud,
    stage: Array,
    shares: Float[Array, " num_scales"],
    chunk_size: int | None,
) -> Moved:
    """Move all particles along Hamiltonian trajectories, with a step size for each.

    Those of one half of the cloud in units of the covariance of the other: in units of their own, which they
    move with, the evidence comes out too small.
    """

    def glide_half(key: Array, half: Cloud, others: Array) -> Moved:
        return _glide_half(bound, shape, key, half, others, stage, shares, chunk_size)

    return _by_halves(key, cloud, glide_half)


def _by_halves(
    key: Array, cloud: Cloud, move: Callable[[Array, Cloud, Float[Array, "num_others dim"]], Moved]
) -> Moved:
    """Move one half of the cloud by what the other half is like, and then the other."""
    num_particles = cloud.points.shape[0]
    order_key, *keys = jax.random.split(key, 3)
    order = jax.random.permutation(order_key, num_particles)
    halves = order[: num_particles // 2], order[num_particles // 2 :]
    moves = []
    for own, (mine, others) in zip(keys, (halves, halves[::-1]), strict=True):
        half = jax.tree.map(lambda leaf, mine=mine: leaf[mine], cloud)
        moved = move(own, half, cloud.points[others])
        cloud = jax.tree.map(lambda leaf, new, mine=mine: leaf.at[mine].set(new), cloud, moved.cloud)
        moves.append(moved)
    first, second = moves
    return Moved(
        cloud,
        (first.num_evaluations + second.num_evaluations) // 2,
        first.num_bad + second.num_bad,
        first.gains + second.gains,
        first.uses + second.uses,
    )


def _glide_half(
    bound: BoundModel,
    shape: Shape,
    key: Array,
    cloud: Cloud,
    others: Array,
    stage: Array,
    shares: Float[Array, " num_scales"],
    chunk_size: int | None,
) -> Moved:
    num_particles, dim = cloud.points.shape
    root = spread(others)
    sizes = 1.2 * dim**-0.25 * 2.0 ** -jnp.arange(NUM_SCALES)
    log_shares = jnp.log((1 - _FLOOR) * shares + _FLOOR / NUM_SCALES)

    def value(point: Array) -> tuple[Array, Parts]:
        found = parts(bound, shape.unravel(point), shape.num_portions)
        return found.log_density(stage), found

    def pull(points: Array) -> tuple[Array, Parts, Array]:
        """Return the density, its parts, and its gradient in units of the cloud."""
        (density, found), gradient = lax.map(
            jax.value_and_grad(value, has_aux=True), points, batch_size=chunk_size or num_particles
        )
        return density, found, jnp.where(jnp.isfinite(gradient), gradient, 0.0) @ root

    def leap(carry: Any, _: None) -> tuple[Any, None]:
        points, momentum, force, size, _, _ = carry
        momentum = momentum + 0.5 * size[:, None] * force
        points = points + size[:, None] * (momentum @ root.T)
        density, found, force = pull(points)
        momentum = momentum + 0.5 * size[:, None] * force
        return (points, momentum, force, size, density, found), None

    deviations = jnp.maximum(others.std(0), 1e-300)

    def turn(carry: Any, key: Array) -> tuple[Any, Any]:
        points, force, density, found = carry
        scale_key, jitter_key, momentum_key, accept_key = jax.random.split(key, 4)
        scales = jax.random.categorical(scale_key, log_shares, shape=(num_particles,))
        jitter = jax.random.uniform(jitter_key, (num_particles,), minval=0.8, maxval=1.2)
        momentum = jax.random.normal(momentum_key, (num_particles, dim))
        start = (points, momentum, force, sizes[scales] * jitter, density, found)
        (new, end, new_force, _, new_density, new_found), _ = lax.scan(leap, start, None, length=_NUM_LEAPS)
        log_ratio = new_density - density + 0.5 * jnp.sum(momentum**2 - end**2, axis=1)
        log_ratio = jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio)
        is_accepted = jnp.log(jax.random.uniform(accept_key, (num_particles,))) < log_ratio
        # A good step moves the particle, in units of the cloud, or at least its density.
        jump = jnp.mean(((new - points) / deviations) ** 2, axis=1)
        jump += jnp.where(jnp.isfinite(new_density), new_density - density, 0.0) ** 2 / dim
        gain = jnp.where(log_ratio > -jnp.inf, jnp.exp(jnp.minimum(log_ratio, 0.0)) * jump, 0.0)
        gain = jnp.where(jnp.isfinite(gain), gain, 0.0)
        kept = _choose(is_accepted, (new, new_force, new_density, new_found), (points, force, density, found))
        taken = jax.nn.one_hot(scales, NUM_SCALES)
        return kept, (gain @ taken, taken.sum(0), jnp.sum(_is_bad(new_found, cloud)))

    density, found, force = pull(cloud.points)
    start = (cloud.points, force, density, found)
    (points, _, _, found), (gains, uses, bad) = lax.scan(turn, start, jax.random.split(key, _NUM_GLIDES))
    count = jnp.asarray(1 + _NUM_GLIDES * _NUM_LEAPS)
    return Moved(Cloud(points, found), count, bad.sum(), gains.sum(0), uses.sum(0))


class _Line(NamedTuple):
    """Where each particle slides: the line, the interval left of it, and the level of the slice."""

    direction: Float[Array, "num_particles dim"]
    low: Float[Array, " num_particles"]
    high: Float[Array, " num_particles"]
    level: Float[Array, " num_particles"]


def slide(
    bound: BoundModel,
    shape: Shape,
    key: Array,
    cloud: Cloud,
    stage: Array,
    chunk_size: int | None,
) -> Moved:
    """Move each particle along six lines by slice sampling.

    Lines follow the covariance of the other half of the cloud: of all coordinates, of one site, or of one
    coordinate. A particle that has found its point goes on to its next line while others still look, so
    that few evaluations are idle.
    """

    def slide_half(key: Array, half: Cloud, others: Array) -> Moved:
        return _slide_half(bound, shape, key, half, others, stage, chunk_size)

    return _by_halves(key, cloud, slide_half)


def _slide_half(
    bound: BoundModel,
    shape: Shape,
    key: Array,
    cloud: Cloud,
    others: Array,
    stage: Array,
    chunk_size: int | None,
) -> Moved:
    num_particles = cloud.points.shape[0]
    draw_direction = _directions(others, shape.sites)

    def draw_lines(key: Array, density: Array) -> _Line:
        direction_key, place_key, level_key = jax.random.split(key, 3)
        directions = jax.vmap(draw_direction)(jax.random.split(direction_key, num_particles))
        place = _WIDTH * jax.random.uniform(place_key, (num_particles,))
        level = density - jax.random.exponential(level_key, (num_particles,))
        return _Line(directions, -place, _WIDTH - place, level)

    def goes_on(carry: Any) -> Bool[Array, ""]:
        *_, num_done, count, _ = carry
        return jnp.any(num_done < _NUM_SLIDES) & (count < _NUM_SLIDES * _MAX_SHRINKS)

    def turn(carry: Any) -> Any:
        cloud, line, num_done, count, bad = carry
        point_key, line_key = jax.random.split(jax.random.fold_in(key, count))
        t = line.low + (line.high - line.low) * jax.random.uniform(point_key, (num_particles,))
        points = cloud.points + t[:, None] * line.direction
        found = evaluate(bound, shape, points, chunk_size)
        is_at_work = num_done < _NUM_SLIDES
        is_found = (found.log_density(stage) > line.level) & is_at_work
        cloud = _choose(is_found, Cloud(points, found), cloud)
        shrunk = line._replace(low=jnp.where(t < 0, t, line.low), high=jnp.where(t < 0, line.high, t))
        line = _choose(is_found, draw_lines(line_key, cloud.parts.log_density(stage)), shrunk)
        bad += jnp.sum(_is_bad(found, cloud) & is_at_work)
        return cloud, line, num_done + is_found, count + 1, bad

    start_key = jax.random.fold_in(key, _NUM_SLIDES * _MAX_SHRINKS)
    none = jnp.zeros((), int)
    line = draw_lines(start_key, cloud.parts.log_density(stage))
    start = (cloud, line, jnp.zeros(num_particles, int), none, none)
    cloud, _, _, count, bad = lax.while_loop(goes_on, turn, start)
    return Moved(cloud, count, bad, jnp.zeros(NUM_SCALES), jnp.zeros(NUM_SCALES))


def _directions(others: Array, sites: np.ndarray) -> Callable[[Array], Array]:
    """Return what draws the direction of a line, about as long as the cloud is wide along it."""
    root = spread(others)
    within = sites[:, None] == sites
    covariance = root @ root.T
    blocks = jnp.linalg.cholesky(jnp.where(within, covariance, 0.0))
    deviations = jnp.sqrt(jnp.diagonal(covariance))
    num_sites, dim = int(sites.max()) + 1, len(sites)

    def draw(key: Array) -> Array:
        kind_key, site_key, noise_key, coordinate_key = jax.random.split(key, 4)
        kind = jax.random.categorical(kind_key, jnp.log(jnp.array([0.4, 0.3, 0.3])))
        own = jnp.asarray(sites) == jax.random.randint(site_key, (), 0, num_sites)
        noise = jax.random.normal(noise_key, (dim,))
        in_site = jnp.where(own, noise, 0.0)
        whole = root @ (noise / jnp.linalg.norm(noise)) * jnp.sqrt(1.0 * dim)
        block = blocks @ (in_site / jnp.linalg.norm(in_site)) * jnp.sqrt(1.0 * own.sum())
        coordinate = jax.random.categorical(coordinate_key, jnp.where(own, 0.0, -jnp.inf))
        single = jnp.zeros(dim).at[coordinate].set(deviations[coordinate])
        return jnp.where(kind == 0, whole, jnp.where(kind == 1, block, single))

    return draw


def _is_bad(found: Parts, cloud: Cloud) -> Bool[Array, " num_particles"]:
    """Where the likelihood is NaN, far out apart, where a number overflows and no particle would be."""
    is_near = found.log_prior > jnp.min(cloud.parts.log_prior) - _FAR
    return jnp.any(jnp.isnan(found.portions), -1) & is_near


def _choose(is_chosen: Array, new: Any, old: Any) -> Any:
    """Return some particles of one cloud and the others of another."""

    def choose(a: Array, b: Array) -> Array:
        return jnp.where(is_chosen.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, new, old)
