"""Slice sampling: along coordinates, along random directions, and along ellipses through a Gaussian."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from qbs.inference.mcmc.kernel import (
    Info,
    Kernel,
    State,
    Target,
    draw_key,
    finite_or_impossible,
    report,
)
from qbs.inference.mcmc.vectors import as_vector

_MAX_SHRINKS = 200  # the interval is then below the spacing of numbers


class Widths(NamedTuple):
    """What a slice sampler has learnt: steps so far, and the width of the slice along each coordinate."""

    num_steps: Int[Array, ""]
    widths: Float[Array, " dim"]


class _Line(NamedTuple):
    """The result of one update along a line."""

    step: Array
    log_density: Array
    num_evaluations: Array
    num_bad: Array


class Slice(Kernel):
    """Slice sampling of one coordinate after another, with stepping out and shrinkage.

    With `num_warmup` it learns the width of each coordinate. No other setting needs tuning.

    Attributes:
        width: First width of the interval, in the units of the coordinate: a number, or one for each.
        max_steps_out: Most widths that the interval grows by.
        num_warmup: The number of first steps that adapt the widths.

    References:
        Neal (2003), "Slice sampling", figures 3 and 5.
    """

    width: Float[Array, "..."] = eqx.field(converter=lambda width: jnp.asarray(width, float), default=1.0)
    max_steps_out: int = eqx.field(static=True, default=10)
    num_warmup: int = eqx.field(static=True, default=0)

    def begin(self, position: Any, target: Target) -> State:
        """Return the state at a position; see `Kernel.begin`."""
        return _with_widths(super().begin(position, target), self.width)

    def move(self, state: State, target: Target, name: str = "step") -> tuple[State, Info]:
        """Make one sweep over the coordinates; see `Kernel.move`."""
        flat, unravel = as_vector(state.position)
        learnt: Widths = state.inner

        def update(carry: Any, inputs: Any) -> tuple[Any, Any]:
            flat, log_density = carry
            index, key = inputs
            line = _along(
                lambda t: target(unravel(flat.at[index].add(t))),
                log_density,
                learnt.widths[index],
                self.max_steps_out,
                key,
            )
            return (flat.at[index].add(line.step), line.log_density), line

        keys = jax.random.split(draw_key(name), flat.size)
        (new, log_density), lines = lax.scan(update, (flat, state.log_density), (jnp.arange(flat.size), keys))
        inner = _learn(learnt, jnp.abs(lines.step), self.num_warmup)
        info = report(1.0, lines.num_evaluations.sum(), lines.num_bad.sum())
        return State(unravel(new), log_density, inner), info


class HitAndRun(Kernel):
    """Slice sampling along one random direction a step.

    Attributes:
        width: First width of the interval in each coordinate: a number, or one for each. Directions are
            isotropic in units of it.
        max_steps_out: Most widths that the interval grows by.
        num_warmup: The number of first steps that adapt the widths.

    References:
        Neal (2003), "Slice sampling"; Smith (1984), "Efficient Monte Carlo procedures for generating points
        uniformly distributed over bounded regions".
    """

    width: Float[Array, "..."] = eqx.field(converter=lambda width: jnp.asarray(width, float), default=1.0)
    max_steps_out: int = eqx.field(static=True, default=10)
    num_warmup: int = eqx.field(static=True, default=0)

    def begin(self, position: Any, target: Target) -> State:
        """Return the state at a position; see `Kernel.begin`."""
        return _with_widths(super().begin(position, target), self.width)

    def move(self, state: State, target: Target, name: str = "step") -> tuple[State, Info]:
        """Make one step; see `Kernel.move`."""
        flat, unravel = as_vector(state.position)
        learnt: Widths = state.inner
        direction_key, line_key = jax.random.split(draw_key(name))
        noise = jax.random.normal(direction_key, flat.shape, flat.dtype)
        direction = learnt.widths * noise / jnp.linalg.norm(noise)
        line = _along(
            lambda t: target(unravel(flat + t * direction)),
            state.log_density,
            jnp.sqrt(jnp.asarray(flat.size, flat.dtype)),
            self.max_steps_out,
            line_key,
        )
        moved = jnp.abs(line.step * direction) * jnp.sqrt(jnp.asarray(flat.size, flat.dtype))
        inner = _learn(learnt, moved, self.num_warmup)
        state = State(unravel(flat + line.step * direction), line.log_density, inner)
        return state, report(1.0, line.num_evaluations, line.num_bad)


class EllipticalSlice(Kernel):
    """Slice sampling along an ellipse through the position and a draw from a Gaussian.

    For targets that are a Gaussian prior times a likelihood; of any other target it leaves the law
    invariant too, and moves well where the Gaussian is near it. It has nothing to tune.

    Attributes:
        mean: Of the Gaussian, over the floating-point numbers of the position in their order.
        covariance: Of the Gaussian, positive definite.

    References:
        Murray, Adams & MacKay (2010), "Elliptical slice sampling".
    """

    mean: Float[Array, " dim"] = eqx.field(converter=lambda mean: jnp.asarray(mean, float))
    covariance: Float[Array, "dim dim"] = eqx.field(converter=lambda cov: jnp.asarray(cov, float))

    def move(self, state: State, target: Target, name: str = "step") -> tuple[State, Info]:
        """Make one step; see `Kernel.move`."""
        flat, unravel = as_vector(state.position)
        if self.mean.shape != flat.shape or self.covariance.shape != (flat.size, flat.size):
            raise ValueError(
                f"EllipticalSlice: mean and covariance are for {self.mean.shape} and "
                f"{self.covariance.shape}; the position has {flat.size} numbers"
            )
        root = jnp.linalg.cholesky(self.covariance)

        def log_gaussian(flat: Array) -> Array:
            whitened = jax.scipy.linalg.solve_triangular(root, flat - self.mean, lower=True)
            return -0.5 * jnp.sum(whitened**2)

        noise_key, angle_key, line_key = jax.random.split(draw_key(name), 3)
        gap = flat - self.mean
        other = root @ jax.random.normal(noise_key, flat.shape, flat.dtype)

        def at(angle: Array) -> Array:
            return self.mean + gap * jnp.cos(angle) + other * jnp.sin(angle)

        def log_likelihood(angle: Array) -> Array:
            return target(unravel(at(angle))) - log_gaussian(at(angle))

        here = state.log_density - log_gaussian(flat)
        level_key, line_key = jax.random.split(line_key)
        level = here - jax.random.exponential(level_key, dtype=flat.dtype)
        high = jax.random.uniform(angle_key, dtype=flat.dtype, maxval=2 * jnp.pi)
        line = _shrink(log_likelihood, level, high - 2 * jnp.pi, high, here, line_key)
        position = unravel(at(line.step))
        log_density = jnp.where(
            line.step == 0, state.log_density, line.log_density + log_gaussian(at(line.step))
        )
        return State(position, log_density, state.inner), report(1.0, line.num_evaluations, line.num_bad)


def _with_widths(state: State, width: Array) -> State:
    flat, _ = as_vector(state.position)
    widths = jnp.broadcast_to(width, flat.shape).astype(flat.dtype)
    return state._replace(inner=Widths(jnp.zeros((), int), widths))


def _learn(learnt: Widths, moved: Array, num_warmup: int) -> Widths:
    """Move the widths towards three times the mean distance moved: about the width of the slice."""
    if not num_warmup:
        return learnt
    rate = (learnt.num_steps + 2.0) ** -0.6
    widths = jnp.maximum(learnt.widths + rate * (3 * moved - learnt.widths), 1e-3 * learnt.widths)
    is_over = learnt.num_steps >= num_warmup
    return Widths(learnt.num_steps + 1, jnp.where(is_over, learnt.widths, widths))


def _along(
    log_density: Callable[[Array], Array], here: Array, width: Array, max_steps_out: int, key: Array
) -> _Line:
    """Update along a line, from its point 0."""
    level_key, place_key, split_key, shrink_key = jax.random.split(key, 4)
    level = here - jax.random.exponential(level_key, dtype=here.dtype)
    low = -width * jax.random.uniform(place_key, dtype=here.dtype)
    num_left = jax.random.randint(split_key, (), 0, max_steps_out + 1)

    def is_inside(t: Array) -> tuple[Array, Array]:
        value, is_bad = finite_or_impossible(log_density(t))
        return value > level, is_bad

    def step_out(start: Array, step: Array, most: Array) -> tuple[Array, Array, Array]:
        def goes_on(carry: Any) -> Array:
            _, left, inside, _, _ = carry
            return inside & (left > 0)

        def turn(carry: Any) -> Any:
            end, left, _, count, bad = carry
            inside, is_bad = is_inside(end)
            return jnp.where(inside, end + step, end), left - 1, inside, count + 1, bad + is_bad

        none = jnp.zeros((), int)
        end, _, _, count, bad = lax.while_loop(goes_on, turn, (start, most, jnp.ones((), bool), none, none))
        return end, count, bad

    left, left_count, left_bad = step_out(low, -width, num_left)
    right, right_count, right_bad = step_out(low + width, width, max_steps_out - num_left)
    line = _shrink(log_density, level, left, right, here, shrink_key)
    return line._replace(
        num_evaluations=line.num_evaluations + left_count + right_count,
        num_bad=line.num_bad + left_bad + right_bad,
    )


def _shrink(
    log_density: Callable[[Array], Array], level: Array, low: Array, high: Array, here: Array, key: Array
) -> _Line:
    """Draw from an interval until a point lies above the level, shrinking it towards 0 each time."""

    def goes_on(carry: Any) -> Array:
        _, _, _, _, count, _, is_found = carry
        return ~is_found & (count < _MAX_SHRINKS)

    def turn(carry: Any) -> Any:
        low, high, _, _, count, bad, _ = carry
        t = jax.random.uniform(jax.random.fold_in(key, count), dtype=low.dtype, minval=low, maxval=high)
        value, is_bad = finite_or_impossible(log_density(t))
        shrunk = jnp.where(t < 0, t, low), jnp.where(t < 0, high, t)
        return *shrunk, t, value, count + 1, bad + is_bad, value > level

    none = jnp.zeros((), int)
    start = (low, high, jnp.zeros_like(low), here, none, none, jnp.zeros((), bool))
    _, _, t, value, count, bad, is_found = lax.while_loop(goes_on, turn, start)
    return _Line(jnp.where(is_found, t, 0.0), jnp.where(is_found, value, here), count, bad)
