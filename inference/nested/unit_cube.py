"""A bound model seen from the unit cube: what nested sampling explores.

Each latent site is the image of its share of the cube under the inverse CDF of its prior, in the order
in which the model draws them, so a prior may depend on the sites before it.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from qbs.errors import ModelError
from qbs.inference.binding import BoundModel, require_latents
from qbs.inference.nested.inverse_cdf import cube_shape, from_uniforms
from qbs.inference.sites import walk
from qbs.interpreter import Interpreted, Semantics, interpret

# Inside the cube, where inverse CDFs are finite.
LEAST, MOST = 1e-300, 1.0 - 2.0**-53


class UnitCube(eqx.Module):
    """How the coordinates of the unit cube are shared out among the latent sites.

    Attributes:
        shapes: Site names, in the order of the model, with the shape of their uniforms.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...] = eqx.field(static=True)

    @property
    def dim(self) -> int:
        """The dimension of the cube."""
        return sum(int(np.prod(shape)) for _, shape in self.shapes)

    def split(self, point: Float[Array, " dim"]) -> dict[str, Array]:
        """Return each site's uniforms."""
        parts, start = {}, 0
        for name, shape in self.shapes:
            size = int(np.prod(shape))
            parts[name] = point[start : start + size].reshape(shape)
            start += size
        return parts


def unit_cube(bound: BoundModel) -> UnitCube:
    """Read off a bound model how its priors map to the unit cube.

    Raises:
        ModelError: If the model has no latent sites, or a prior is improper or has no known map; the
            message names the site.
    """
    require_latents(bound)
    steps: dict[str, tuple[int, tuple[int, ...]]] = {}

    def watch(name: str, prior: dist.Distribution | None) -> None:
        if prior is None:
            return
        try:
            steps[name] = len(prior.shape()), prior.batch_shape + cube_shape(prior)
        except ModelError as error:
            raise ModelError(f"site {name!r}: {error}") from None

    jax.eval_shape(
        lambda key, arrays: walk(bound.program, arrays, key, {}, watch), jax.random.key(0), bound.arrays
    )
    shapes = []
    for name, site in bound.sites:
        ndim, share = steps[name]
        shapes.append((name, site.shape[: len(site.shape) - ndim] + share))
    return UnitCube(tuple(shapes))


class _FromUniforms(Semantics):
    """Take each site's value from its uniforms; add up the scores, which hold all of the likelihood."""

    def sample(self, state: Array, _: str, distribution: dist.Distribution, given: Any) -> Any:
        return from_uniforms(distribution, given), state

    def score(self, state: Array, _: str, log_weight: Any) -> Array:
        return state + log_weight


def _at(bound: BoundModel, cube: UnitCube, point: Float[Array, " dim"]) -> Interpreted:
    staged = bound.program.stage(*bound.arrays)
    return interpret(
        staged.jaxpr.jaxpr,
        staged.jaxpr.consts,
        staged.operands,
        _FromUniforms(),
        jnp.zeros(()),
        cube.split(point),
    )


def cube_log_likelihood(bound: BoundModel, cube: UnitCube, point: Float[Array, " dim"]) -> Float[Array, ""]:
    """Return the log likelihood at a point of the unit cube.

    All observed sites and factors, plus what a `scale` or `mask` handler around a latent site adds to
    or takes from its prior.
    """
    return _at(bound, cube, point).state


def cube_values(bound: BoundModel, cube: UnitCube, point: Float[Array, " dim"]) -> dict[str, Array]:
    """Return the latent and deterministic values of the model at a point of the unit cube."""
    return _at(bound, cube, point).trace
