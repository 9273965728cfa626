"""A bound model seen from the unit cube: what nested sampling explores.

Each latent site is the image of its share of the cube under the inverse CDF of its prior, in the order
in which the model draws them, so a prior may depend on the sites before it.
"""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.infer.util import compute_log_probs

from qbs.errors import ModelError
from qbs.inverse_cdf import cube_shape, from_uniforms
from qbs.model import BoundModel, require_latents, seeded, trace_sites, unmasked


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
    latent, _ = trace_sites(bound)
    require_latents(latent, bound.name)
    shapes: list[tuple[str, tuple[int, ...]]] = []

    def record(key: Array, arrays: tuple[Array, ...]) -> Array:
        args, kwargs = eqx.tree_at(lambda b: b.arrays, bound, arrays).arguments()
        trace = handlers.trace(seeded(bound.function, key)).get_trace(*args, **kwargs)
        for name, site in latent.items():
            batch = site.shape[: len(site.shape) - site.event_dim]
            try:
                shapes.append((name, batch + cube_shape(trace[name]["fn"])))
            except ModelError as error:
                raise ModelError(f"site {name!r}: {error}") from None
        return jnp.zeros(())

    jax.eval_shape(lambda key, arrays: record(key, arrays), jax.random.key(0), bound.arrays)
    return UnitCube(tuple(shapes))


def _substitute(uniforms: dict[str, Array], site: dict[str, Any]) -> Array | None:
    name = site["name"]
    if site["type"] != "sample" or name not in uniforms:
        return None
    fn, share = site["fn"], uniforms[name]
    step = site["infer"].get("_scan_current_index")  # inside numpyro.contrib.control_flow.scan
    if step is not None and share.ndim > len(fn.batch_shape) + len(cube_shape(fn)):
        share = share[step]
    return from_uniforms(fn, share)


def _model_at(bound: BoundModel, cube: UnitCube, point: Float[Array, " dim"]) -> Any:
    return handlers.substitute(bound.function, substitute_fn=partial(_substitute, cube.split(point)))


def cube_log_likelihood(bound: BoundModel, cube: UnitCube, point: Float[Array, " dim"]) -> Float[Array, ""]:
    """Return the log likelihood at a point of the unit cube.

    All observed sites and factors, plus what a `scale` or `mask` handler around a latent site adds to
    or takes from its prior.
    """
    args, kwargs = bound.arguments()
    log_probs, trace = compute_log_probs(_model_at(bound, cube, point), args, kwargs, {})
    latent = dict(cube.shapes)
    total = jnp.zeros(())
    for name, log_prob in log_probs.items():
        if name not in latent:
            total = total + log_prob
            continue
        site = trace[name]
        prior = unmasked(site["fn"])
        if site["scale"] is not None or prior is not site["fn"]:
            total = total + log_prob - jnp.sum(prior.log_prob(site["value"]))
    return total


def cube_values(bound: BoundModel, cube: UnitCube, point: Float[Array, " dim"]) -> dict[str, Array]:
    """Return the latent and deterministic values of the model at a point of the unit cube."""
    args, kwargs = bound.arguments()
    trace = handlers.trace(_model_at(bound, cube, point)).get_trace(*args, **kwargs)
    return {
        name: site["value"]
        for name, site in trace.items()
        if site["type"] == "deterministic" or (site["type"] == "sample" and not site["is_observed"])
    }
