"""Draws from a NumPyro distribution as a deterministic function of uniform numbers.

Nested sampling lives on the unit cube: each latent site needs a map from uniforms on (0, 1) to a draw
of its prior. Where NumPyro has the inverse CDF it is used; a CDF without an inverse is inverted by
bisection; vector distributions are built from scalars.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import betainc, ndtri
from jaxtyping import Array
from numpyro.distributions import constraints

from qbs.errors import ModelError

_BISECTIONS = 100
_LOG_RANGE = 700.0  # exp and sinh of this are still finite in float64
_MAX_COUNT = 2.0**52

_WRAPPERS = (dist.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)
_TRUNCATED = (
    dist.LeftTruncatedDistribution,
    dist.RightTruncatedDistribution,
    dist.TwoSidedTruncatedDistribution,
)


def cube_shape(fn: dist.Distribution) -> tuple[int, ...]:
    """Return how many uniforms, in which shape, one event of the distribution takes.

    Raises:
        ModelError: If no map from uniforms is known for the distribution.
    """
    if isinstance(fn, dist.Independent):
        inner = fn.base_dist
        own = fn.event_dim - inner.event_dim
        return tuple(inner.batch_shape[len(inner.batch_shape) - own :]) + cube_shape(inner)
    if isinstance(fn, dist.ExpandedDistribution | dist.MaskedDistribution | dist.TransformedDistribution):
        return cube_shape(fn.base_dist)
    if isinstance(fn, dist.MultivariateNormal | dist.GaussianRandomWalk):
        return tuple(fn.event_shape)
    if isinstance(fn, dist.Dirichlet):
        return (fn.event_shape[0] - 1,)
    if isinstance(fn, dist.Delta):
        return (0,)
    if isinstance(fn, dist.ImproperUniform):
        raise ModelError(
            "its prior is improper, so the evidence does not exist: give it a proper prior, for example "
            "dist.Normal(0, 10) or dist.Uniform(low, high)"
        )
    if fn.event_dim or _scalar_inverse(fn) is None:
        instead = "" if fn.support.is_discrete else ", or fit with mcmc.NUTS"
        raise ModelError(
            f"qbs knows no map from the unit cube for {type(fn).__name__}: write the prior with scalar "
            f"distributions, dist.MultivariateNormal or dist.Dirichlet{instead}"
        )
    return ()


def from_uniforms(fn: dist.Distribution, uniforms: Array) -> Array:
    """Map uniforms on (0, 1) to a draw from the distribution.

    Args:
        fn: A NumPyro distribution of batch shape `B`.
        uniforms: Shape `B + cube_shape(fn)`.

    Returns:
        A value of shape `B + event_shape`; distributed as `fn` when the uniforms are independent.
    """
    if isinstance(fn, _WRAPPERS):
        return from_uniforms(fn.base_dist, uniforms)
    if isinstance(fn, dist.TransformedDistribution):
        value = from_uniforms(fn.base_dist, uniforms)
        for transform in fn.transforms:
            value = transform(value)
        return value
    if isinstance(fn, dist.MultivariateNormal):
        return fn.loc + jnp.einsum("...ij,...j->...i", fn.scale_tril, ndtri(uniforms))
    if isinstance(fn, dist.GaussianRandomWalk):
        return jnp.cumsum(ndtri(uniforms) * fn.scale[..., None], axis=-1)
    if isinstance(fn, dist.Dirichlet):
        return _stick_breaking(fn.concentration, uniforms)
    if isinstance(fn, dist.Delta):
        return jnp.broadcast_to(fn.v, uniforms.shape[:-1] + fn.event_shape)
    inverse = _scalar_inverse(fn)
    assert inverse is not None, "cube_shape refuses what has no inverse"
    return inverse(uniforms)


def _scalar_inverse(fn: dist.Distribution) -> Callable[[Array], Array] | None:
    if fn.support.is_discrete:
        return _discrete_inverse(fn)
    parent = fn.base_dist if isinstance(fn, _TRUNCATED) else fn
    if isinstance(parent, dist.Gamma | dist.Beta | dist.StudentT):
        # NumPyro's own inverses of these and their truncations need tensorflow_probability.
        return lambda uniforms: _invert(fn.cdf, uniforms, fn.support)
    if isinstance(fn, dist.Weibull):
        return lambda uniforms: fn.scale * (-jnp.log1p(-uniforms)) ** (1 / fn.concentration)
    if isinstance(fn, dist.Kumaraswamy):
        return lambda uniforms: _kumaraswamy(fn, uniforms)
    if type(fn).icdf is not dist.Distribution.icdf:
        return fn.icdf
    if type(fn).cdf is not dist.Distribution.cdf:
        return lambda uniforms: _invert(fn.cdf, uniforms, fn.support)
    return None


def _kumaraswamy(fn: dist.Kumaraswamy, uniforms: Array) -> Array:
    power = jnp.log1p(-uniforms) / fn.concentration0
    return (-jnp.expm1(power)) ** (1 / fn.concentration1)


def _discrete_inverse(fn: dist.Distribution) -> Callable[[Array], Array] | None:
    if isinstance(fn, dist.DiscreteUniform):
        return lambda uniforms: _discrete_uniform(fn, uniforms)
    if isinstance(fn, dist.BinomialProbs | dist.BinomialLogits):
        return lambda uniforms: _invert_counts(partial(_binomial_cdf, fn), uniforms)
    if isinstance(fn, dist.GeometricProbs | dist.GeometricLogits):
        return lambda uniforms: _geometric(jnp.asarray(fn.probs), uniforms)
    if fn.has_enumerate_support:
        return partial(_by_table, fn) if _can_enumerate(fn) else None
    if type(fn).cdf is not dist.Distribution.cdf:
        return lambda uniforms: _invert_counts(fn.cdf, uniforms)
    return None


def _discrete_uniform(fn: dist.DiscreteUniform, uniforms: Array) -> Array:
    steps = jnp.ceil(uniforms * (fn.high - fn.low + 1)) - 1
    return fn.low + jnp.maximum(steps, 0).astype(int)


def _can_enumerate(fn: dist.Distribution) -> bool:
    try:
        fn.enumerate_support(expand=False)
    except (NotImplementedError, jax.errors.ConcretizationTypeError):
        # A support that differs between the members of a batch, or that is computed by the model.
        return False
    return True


def _by_table(fn: dist.Distribution, uniforms: Array) -> Array:
    support = fn.enumerate_support(expand=True)
    cumulative = jnp.cumsum(jnp.exp(fn.log_prob(support)), axis=0)
    shape = jnp.broadcast_shapes(uniforms.shape, fn.batch_shape)
    lifted = (-1, *[1] * (len(shape) - len(fn.batch_shape)), *fn.batch_shape)
    index = jnp.sum(uniforms > cumulative[:-1].reshape(lifted), axis=0)
    table = jnp.broadcast_to(support.reshape(lifted), (len(support), *shape))
    return jnp.take_along_axis(table, index[None], axis=0)[0]


def _binomial_cdf(fn: dist.Distribution, count: Array) -> Array:
    left = fn.total_count - count
    return jnp.where(left > 0, betainc(jnp.maximum(left, 1.0), count + 1.0, 1 - fn.probs), 1.0)


def _geometric(probs: Array, uniforms: Array) -> Array:
    """Return the number of failures before the first success."""
    trials = jnp.ceil(jnp.log1p(-uniforms) / jnp.log1p(-probs))
    return jnp.maximum(trials - 1, 0).astype(int)


def _invert_counts(cdf: Callable[[Array], Array], uniforms: Array) -> Array:
    """Return the smallest count whose CDF reaches each uniform, by bisection."""

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds  # cdf(low) < uniform <= cdf(high)
        middle = jnp.floor((low + high) / 2)
        reaches = (middle > low) & (cdf(middle) >= uniforms)
        return jnp.where(reaches, low, middle), jnp.where(reaches, middle, high)

    start = jnp.full(uniforms.shape, -1.0), jnp.full(uniforms.shape, _MAX_COUNT)
    return jax.lax.fori_loop(0, 54, halve, start)[1].astype(jnp.result_type(int))


def _invert(cdf: Callable[[Array], Array], uniforms: Array, support: constraints.Constraint) -> Array:
    """Invert a continuous CDF by bisection on an unbounded scale of its support."""
    to_support, bound = _unbounded_scale(support)

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        below = cdf(to_support(middle)) < uniforms
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    start = jnp.full(uniforms.shape, -bound), jnp.full(uniforms.shape, bound)
    low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, start)
    return to_support((low + high) / 2)


def _unbounded_scale(support: constraints.Constraint) -> tuple[Callable[[Array], Array], float]:
    if isinstance(support, type(constraints.real)):
        return jnp.sinh, _LOG_RANGE
    if isinstance(support, type(constraints.unit_interval)):
        return jax.nn.sigmoid, _LOG_RANGE
    if isinstance(support, type(constraints.less_than(0.0))):  # where biject_to decreases
        return lambda x: support.upper_bound - jnp.exp(-x), _LOG_RANGE
    to_support = dist.biject_to(support)
    if isinstance(to_support, dist.transforms.ExpTransform):
        return jnp.exp, _LOG_RANGE
    return to_support, _LOG_RANGE


def _stick_breaking(concentration: Array, uniforms: Array) -> Array:
    """Return a Dirichlet draw: fractions of the remaining stick are independent Betas (Sethuraman 1994)."""
    rest = jnp.cumsum(concentration[..., ::-1], axis=-1)[..., ::-1][..., 1:]
    first = concentration[..., :-1]
    shape = jnp.broadcast_shapes(uniforms.shape, first.shape)
    fraction = _invert(
        lambda x: betainc(first, rest, x), jnp.broadcast_to(uniforms, shape), constraints.unit_interval
    )
    left = jnp.cumprod(1 - fraction, axis=-1)
    ones = jnp.ones((*shape[:-1], 1))
    return jnp.concatenate([fraction, ones], -1) * jnp.concatenate([ones, left], -1)
