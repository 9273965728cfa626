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
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from qbs.inference.binding import BoundModel
from qbs.inference.smc.apart import Parts, parts

NUM_SCALES = 11
_NUM_GLIDES = 4
_NUM_SLIDES = 6
_WIDTH = 5.0  # of the first interval of a slice, in standard deviations of the cloud
_FLOOR = 0.2  # share of the step sizes that is drawn from all alike
_MAX_SHRINKS = 400
_FAR = 20.0  # nats of log prior below the least likely particle

T = TypeVar("T")


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

    return _for_all(one, points, chunk_size)


def _for_all(function: Callable[[Array], T], points: Array, chunk_size: int | None) -> T:
    if chunk_size is None:
        return jax.vmap(function)(points)
    return lax.map(function, points, batch_size=chunk_size)


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
    num_leaps: ArrayLike,
    chunk_size: int | None,
) -> Moved:
    """Move all particles along Hamiltonian trajectories of some leaps, with a step size for each particle.

    Those of one half of the cloud in units of the covariance of the other: in units of their own, which they
    move with, the evidence comes out too small.
    """

    def glide_half(key: Array, half: Cloud, others: Array) -> Moved:
        return _glide_half(bound, shape, key, half, others, stage, shares, num_leaps, chunk_size)

    return _by_halves(key, cloud, glide_half)


def _by_halves(
    key: Array, cloud: Cloud, move: Callable[[Array, Cloud, Float[Array, "num_others dim"]], Moved]
) -> Moved:
    """Move one half of the cloud by what the other half is like, and then the other.

    Halves are of islands, which know nothing of each other.
    """
    middle = cloud.points.shape[0] // 2
    first = jax.tree.map(lambda leaf: leaf[:middle], cloud)
    second = jax.tree.map(lambda leaf: leaf[middle:], cloud)
    keys = jax.random.split(key)

    def move_half(others: Array, inputs: tuple[Array, Cloud]) -> tuple[Array, Moved]:
        moved = move(*inputs, others)
        return moved.cloud.points, moved

    if 2 * middle == cloud.points.shape[0]:
        # A scan, so that there is one copy of the model to compile.
        halves = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, second)
        _, moved = lax.scan(move_half, second.points, (keys, halves))
        whole = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), moved.cloud)
        told = moved[1:]
    else:
        others, one = move_half(second.points, (keys[0], first))
        _, other = move_half(others, (keys[1], second))
        whole = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), one.cloud, other.cloud)
        told = jax.tree.map(lambda *leaves: jnp.stack(leaves), one[1:], other[1:])
    count, bad, gains, uses = told
    return Moved(whole, count.sum() // 2, bad.sum(), gains.sum(0), uses.sum(0))


def _glide_half(
    bound: BoundModel,
    shape: Shape,
    key: Array,
    cloud: Cloud,
    others: Array,
    stage: Array,
    shares: Float[Array, " num_scales"],
    num_leaps: ArrayLike,
    chunk_size: int | None,
) -> Moved:
    num_particles, dim = cloud.points.shape
    root = spread(others)
    sizes = 1.2 * dim**-0.25 * 2.0 ** -jnp.arange(NUM_SCALES)
    bounds = jnp.cumsum((1 - _FLOOR) * shares + _FLOOR / NUM_SCALES)
    deviations = jnp.maximum(others.std(0), 1e-300)

    def value(point: Array) -> tuple[Array, Parts]:
        found = parts(bound, shape.unravel(point), shape.num_portions)
        return found.log_density(stage), found

    def leap(_: Array, carry: _Flight) -> _Flight:
        momentum = carry.momentum + 0.5 * carry.size * carry.force
        points = carry.points + carry.size * (momentum @ root.T)
        (density, found), gradient = _for_all(jax.value_and_grad(value, has_aux=True), points, chunk_size)
        force = jnp.where(jnp.isfinite(gradient), gradient, 0.0) @ root
        return _Flight(points, momentum + 0.5 * carry.size * force, force, carry.size, density, found)

    def turn(
        carry: tuple[Cloud, Array], inputs: tuple[Array, Array, Array, Array]
    ) -> tuple[tuple[Cloud, Array], Any]:
        cloud, force = carry
        size, momentum, log_threshold, is_start = inputs
        momentum = momentum.reshape(cloud.points.shape)
        density = cloud.parts.log_density(stage)
        start = _Flight(cloud.points, momentum, force, size, density, cloud.parts)
        end = lax.fori_loop(0, jnp.where(is_start, 1, num_leaps), leap, start)
        log_ratio = end.density - density + 0.5 * jnp.sum(momentum**2 - end.momentum**2, axis=1)
        log_ratio = jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio)
        is_accepted = (log_threshold < log_ratio) & ~is_start
        # A good step moves the particle, in units of the cloud, or at least its density.
        jump = jnp.mean(((end.points - cloud.points) / deviations) ** 2, axis=1)
        jump += jnp.where(jnp.isfinite(end.density), end.density - density, 0.0) ** 2 / dim
        gain = jnp.where(log_ratio > -jnp.inf, jnp.exp(jnp.minimum(log_ratio, 0.0)) * jump, 0.0)
        gain = jnp.where(jnp.isfinite(gain), gain, 0.0)
        bad = jnp.where(is_start, 0, jnp.sum(_is_bad(end.parts, cloud)))
        cloud = _choose(is_accepted, Cloud(end.points, end.parts), cloud)
        return (cloud, _choose(is_accepted | is_start, end.force, force)), (gain, bad)

    uniform_key, momentum_key = jax.random.split(key)
    which, jitter, threshold = _uniform(uniform_key, (3, _NUM_GLIDES, num_particles))
    scales = jnp.searchsorted(bounds, which * bounds[-1], method="compare_all")
    scales = jnp.minimum(scales, NUM_SCALES - 1)
    sizes = (sizes[scales] * (0.8 + 0.4 * jitter))[..., None]
    # In long rows: XLA's loops over short ones take four times as long on a CPU.
    momenta = _normal(momentum_key, (_NUM_GLIDES, num_particles * dim))

    def with_start(leaf: Array) -> Array:
        """Put a turn before the others that goes nowhere, and finds the force."""
        return jnp.concatenate([jnp.zeros_like(leaf[:1]), leaf])

    is_start = jnp.arange(1 + _NUM_GLIDES) == 0
    inputs = with_start(sizes), with_start(momenta), with_start(jnp.log(threshold)), is_start
    (cloud, _), (gains, bad) = lax.scan(turn, (cloud, jnp.zeros_like(cloud.points)), inputs)
    taken = jax.nn.one_hot(scales.reshape(-1), NUM_SCALES)
    num_evaluations = 1 + _NUM_GLIDES * jnp.asarray(num_leaps)
    return Moved(cloud, num_evaluations, bad.sum(), gains[1:].reshape(-1) @ taken, taken.sum(0))


class _Flight(NamedTuple):
    """Particles on trajectories, with their momentum and force in units of the cloud."""

    points: Float[Array, "num_particles dim"]
    momentum: Float[Array, "num_particles dim"]
    force: Float[Array, "num_particles dim"]
    size: Float[Array, "num_particles 1"]
    density: Float[Array, " num_particles"]
    parts: Parts


class _Lines(NamedTuple):
    """Where each particle is to slide: along which lines, from where on them, and how far below it is."""

    directions: Float[Array, "num_lines num_particles dim"]
    places: Float[Array, "num_lines num_particles"]
    depths: Float[Array, "num_lines num_particles"]


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
    line_key, key = jax.random.split(key)
    lines = _draw_lines(line_key, others, shape.sites, num_particles)

    def at(leaf: Array, number: Array) -> Array:
        """Return what each particle has on its line of some number."""
        return leaf[jnp.minimum(number, _NUM_SLIDES - 1), jnp.arange(num_particles)]

    def goes_on(carry: Any) -> Bool[Array, ""]:
        *_, num_done, count, _ = carry
        return jnp.any(num_done < _NUM_SLIDES) & (count < _NUM_SLIDES * _MAX_SHRINKS)

    def turn(carry: Any) -> Any:
        cloud, low, high, level, num_done, count, bad = carry
        t = low + (high - low) * _uniform(jax.random.fold_in(key, count), (num_particles,))
        points = cloud.points + t[:, None] * at(lines.directions, num_done)
        found = evaluate(bound, shape, points, chunk_size)
        density = found.log_density(stage)
        is_at_work = num_done < _NUM_SLIDES
        is_found = (density > level) & is_at_work
        bad += jnp.sum(_is_bad(found, cloud) & is_at_work)
        cloud, num_done = _choose(is_found, Cloud(points, found), cloud), num_done + is_found
        place = at(lines.places, num_done)
        low = jnp.where(is_found, -place, jnp.where(t < 0, t, low))
        high = jnp.where(is_found, _WIDTH - place, jnp.where(t < 0, high, t))
        level = jnp.where(is_found, density - at(lines.depths, num_done), level)
        return cloud, low, high, level, num_done, count + 1, bad

    none = jnp.zeros((), int)
    place, level = lines.places[0], cloud.parts.log_density(stage) - lines.depths[0]
    start = (cloud, -place, _WIDTH - place, level, jnp.zeros(num_particles, int), none, none)
    cloud, *_, count, bad = lax.while_loop(goes_on, turn, start)
    return Moved(cloud, count, bad, jnp.zeros(NUM_SCALES), jnp.zeros(NUM_SCALES))


def _draw_lines(key: Array, others: Array, sites: np.ndarray, num_particles: int) -> _Lines:
    """Return lines whose directions are about as long as the cloud is wide along them."""
    root = spread(others)
    covariance = root @ root.T
    deviations = jnp.sqrt(jnp.diagonal(covariance))
    blocks = jnp.linalg.cholesky(jnp.where(sites[:, None] == sites, covariance, 0.0))
    sizes, dim = np.bincount(sites), len(sites)
    noise_key, uniform_key = jax.random.split(key)
    shape = _NUM_SLIDES, num_particles
    noise = _normal(noise_key, (*shape, dim))
    kind, site, coordinate, place, depth = _uniform(uniform_key, (5, *shape))
    own = jnp.minimum(site * sizes.size, sizes.size - 1).astype(int)
    size = jnp.asarray(sizes)[own]
    first = jnp.asarray(np.cumsum(sizes) - sizes)[own]
    chosen = first + jnp.minimum(coordinate * size, size - 1).astype(int)
    whole = noise @ root.T / _lengths(noise) * dim**0.5
    in_site = jnp.where(own[..., None] == sites, noise, 0.0)
    block = in_site @ blocks.T / _lengths(in_site) * jnp.sqrt(1.0 * size)[..., None]
    single = jnp.where(chosen[..., None] == np.arange(dim), deviations, 0.0)
    kind = kind[..., None]
    directions = jnp.where(kind < 0.4, whole, jnp.where(kind < 0.7, block, single))
    return _Lines(directions, _WIDTH * place, -jnp.log1p(-depth))


def _uniform(key: Array, shape: tuple[int, ...]) -> Array:
    """Return uniform numbers of 23 bits, which cost half of what longer ones do."""
    return jax.random.uniform(key, shape, jnp.float32).astype(float)


def _normal(key: Array, shape: tuple[int, ...]) -> Array:
    return jax.random.normal(key, shape, jnp.float32).astype(float)


def _lengths(vectors: Array) -> Array:
    return jnp.linalg.norm(vectors, axis=-1, keepdims=True)


def _is_bad(found: Parts, cloud: Cloud) -> Bool[Array, " num_particles"]:
    """Where the likelihood is NaN, far out apart, where a number overflows and no particle would be."""
    is_near = found.log_prior > jnp.min(cloud.parts.log_prior) - _FAR
    return jnp.any(jnp.isnan(found.portions), -1) & is_near


def _choose(is_chosen: Array, new: Any, old: Any) -> Any:
    """Return some particles of one cloud and the others of another."""

    def choose(a: Array, b: Array) -> Array:
        return jnp.where(is_chosen.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, new, old)
