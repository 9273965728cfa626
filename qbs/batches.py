"""Distributions with batch axes in front: what `jax.vmap` means around a `sample` statement.

Where a family of NumPyro broadcasts its parameters, it serves as it is, and one key draws everything. All
others are drawn and evaluated element by element, by `jax.vmap` of the single distribution.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.distributions import constraints, transforms
from numpyro.distributions.batch_util import promote_batch_shape

from qbs.hashing import kept

Axes = tuple[tuple[int, tuple[int | None, ...]], ...]


def batched_distribution(leaves: list, structure: Any, axes: Axes) -> dist.Distribution:
    """Rebuild the distribution of a sample equation, its batch axes in front of its own.

    Args:
        leaves: The operands of the equation.
        structure: How they make a distribution.
        axes: The batch axes, outermost first: a size, and for each leaf the position of that axis in the
            leaf that is left when the axes before it are taken away.
    """
    if not axes:
        return jax.tree.unflatten(structure, leaves)
    if _is_repeated(axes[0]):
        repeated = batched_distribution(leaves, structure, axes[1:])
        if isinstance(repeated, ElementWise):
            return ElementWise(leaves, structure, axes)
        return repeated.expand((axes[0][0], *repeated.batch_shape))
    # Constants, such as the total count of a binomial, are known while JAX is tracing, and stay so.
    known = {i: leaf for i, leaf in enumerate(map(_known, leaves)) if leaf is not None}
    kinds = tuple(jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    values = tuple((i, tuple(leaf.ravel().tolist())) for i, leaf in known.items())
    if _broadcasts(structure, kinds, axes, values, jnp.result_type(float)):
        return _broadcast([known.get(i, leaf) for i, leaf in enumerate(leaves)], structure, axes)
    return ElementWise(leaves, structure, axes)


def _is_repeated(axis: tuple[int, tuple[int | None, ...]]) -> bool:
    """Whether an axis is one of independent draws from one distribution."""
    return all(position is None for position in axis[1])


def _known(leaf: Any) -> np.ndarray | None:
    """Return an integer parameter that is not traced."""
    if isinstance(leaf, jax.core.Tracer) or not jnp.issubdtype(jnp.result_type(leaf), jnp.integer):
        return None
    return np.asarray(leaf) if np.size(leaf) <= 64 else None


@kept
def _broadcasts(structure: Any, kinds: tuple, axes: Axes, values: tuple, precision: Any) -> bool:  # noqa: ARG001
    """Whether a family draws and evaluates whole batches, as far as shapes tell."""
    if _is_built_on_another(jax.tree.unflatten(structure, [0.0] * structure.num_leaves)):
        return False
    known = {i: np.array(own, kinds[i].dtype).reshape(kinds[i].shape) for i, own in values}

    def shapes(make: Callable[[list, Any, Axes], dist.Distribution]) -> tuple:
        own = []

        def use(*traced: Any) -> Any:
            batch = make([known.get(i, leaf) for i, leaf in enumerate(traced)], structure, axes)
            own.append((batch.batch_shape, batch.event_shape))
            drawn = batch.sample(jax.random.key(0))
            try:
                return drawn, batch.log_prob(drawn)
            except NotImplementedError:
                return drawn, None

        return jax.eval_shape(use, *kinds), own

    try:
        return shapes(_broadcast) == shapes(ElementWise)
    except Exception:  # whatever NumPyro says of a batch that it does not broadcast
        return False


def mask_of(distribution: dist.Distribution) -> Array | None:
    """Return which numbers of a draw a mask lets count, in the shape of the draw; `None` without a mask."""
    inner: Any = distribution
    while inner is not None and not isinstance(inner, dist.MaskedDistribution):
        inner = getattr(inner, "base_dist", None)
    if inner is None:
        return None
    mask, shape = jnp.asarray(inner._mask), distribution.shape()
    if mask.ndim:
        mask = mask.reshape(*mask.shape, *[1] * (len(shape) - mask.ndim))
    return jnp.broadcast_to(mask, shape)


def bare(distribution: Any) -> Any:
    """Return what is expanded, masked, or of which several make an event."""
    while isinstance(distribution, dist.ExpandedDistribution | dist.Independent | dist.MaskedDistribution):
        distribution = distribution.base_dist
    return distribution


def _is_built_on_another(distribution: Any) -> bool:
    """Whether a distribution is made from others; a private one is only what NumPyro draws with."""
    return any(name[0] != "_" for name in _inner(bare(distribution)))


def _inner(distribution: Any) -> dict[str, dist.Distribution]:
    return {k: v for k, v in vars(distribution).items() if isinstance(v, dist.Distribution)}


def _broadcast(leaves: list, structure: Any, axes: Axes) -> dist.Distribution:
    """Rebuild a distribution with the batch axes in front of its parameters."""
    for depth, (size, where) in enumerate(axes):
        leaves = [
            _numpy(leaf).expand_dims(leaf, depth)
            if position is None
            else jnp.moveaxis(leaf, position + depth, depth)
            for leaf, position in zip(leaves, where, strict=True)
        ]
        if _is_repeated((size, where)):
            leaves = [_numpy(leaf).repeat(leaf, size, depth) for leaf in leaves]
    return _promoted(jax.tree.unflatten(structure, leaves), len(axes))


def _numpy(leaf: Any) -> Any:
    """Return NumPy itself for what is known, so that it stays known."""
    return np if isinstance(leaf, np.ndarray) else jnp


def _promoted(rebuilt: dist.Distribution, depth: int) -> dist.Distribution:
    """Return a distribution whose batch shape has the `depth` axes that stand in front in its parameters."""
    if isinstance(rebuilt, dist.ExpandedDistribution):
        added = range(depth, depth + len(rebuilt.batch_shape) - len(rebuilt.base_dist.batch_shape))
        base = jax.tree.map(lambda x: _numpy(x).expand_dims(x, tuple(added)), rebuilt.base_dist)
        base = _promoted(base, depth)
        return base.expand((*base.batch_shape[:depth], *rebuilt.batch_shape))
    if isinstance(rebuilt, dist.Independent):
        return _promoted(rebuilt.base_dist, depth).to_event(rebuilt.reinterpreted_batch_ndims)
    promoted = promote_batch_shape(rebuilt)
    # NumPyro leaves what it draws with inside as it was.
    vars(promoted).update({name: _promoted(inner, depth) for name, inner in _inner(rebuilt).items()})
    return promoted


class ElementWise(dist.Distribution):
    """A distribution for each element of some batch axes, by `jax.vmap`.

    Attributes:
        leaves, structure, axes: See `batched_distribution`.
    """

    pytree_data_fields = ("leaves",)
    pytree_aux_fields = ("structure", "axes")

    def __init__(self, leaves: list, structure: Any, axes: Axes):
        self.leaves, self.structure, self.axes = leaves, structure, axes
        shapes = []

        def look(single: dist.Distribution) -> tuple:
            shapes.append((single.batch_shape, single.event_shape))
            return ()

        jax.eval_shape(self.each(look))
        ((batch_shape, event_shape),) = shapes
        super().__init__((*[size for size, _ in axes], *batch_shape), event_shape, validate_args=False)

    def each(self, function: Callable) -> Callable:
        """Return a function of arrays that applies `function(single, *elements)` along the batch axes.

        Without arrays, axes of independent draws from one distribution are left out.
        """

        def of_one(leaves: list, *elements: Array) -> Any:
            return function(jax.tree.unflatten(self.structure, leaves), *elements)

        def of_all(*arrays: Array) -> Any:
            mapped = of_one
            for size, where in reversed(self.axes):
                if arrays or not _is_repeated((size, where)):
                    mapped = jax.vmap(mapped, in_axes=(list(where), *[0] * len(arrays)), axis_size=size)
            return mapped(self.leaves, *arrays)

        return of_all

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draw; what is transformed is drawn before it is, which may need but one key."""
        if sample_shape:
            more = tuple((size, (None,) * len(self.leaves)) for size in sample_shape)
            return ElementWise(self.leaves, self.structure, (*more, *self.axes)).sample(key)
        structures = []

        def part(single: dist.Distribution) -> list:
            leaves, structure = jax.tree.flatten(_before(single))
            structures.append(structure)
            return leaves

        single: Any = jax.tree.unflatten(self.structure, self.leaves)
        if not isinstance(bare(single), dist.TransformedDistribution):
            sizes = tuple(size for size, _ in self.axes)
            return self.each(lambda single, key: single.sample(key))(jax.random.split(key, sizes))
        leaves = self.each(part)()
        axes = tuple((a[0], (None if _is_repeated(a) else 0,) * len(leaves)) for a in self.axes)
        drawn = batched_distribution(leaves, structures[0], axes).sample(key)
        return self.each(_transformed)(drawn)

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:  # noqa: ARG002
        """Evaluate."""
        return self.each(lambda single, own: single.log_prob(own))(value)

    def cdf(self, value: Array) -> Array:
        """Evaluate."""
        return self.each(lambda single, own: single.cdf(own))(value)

    def icdf(self, q: Array) -> Array:
        """Evaluate."""
        return self.each(lambda single, own: single.icdf(own))(q)

    @property
    def support(self) -> constraints.Constraint:
        """That of the single distribution, where it is the same for all."""
        single: Any = jax.tree.unflatten(self.structure, self.leaves).support
        return single if not jax.tree.leaves(single) else _Support(self, single)


def _before(single: Any) -> dist.Distribution:
    """Return what a transformed distribution transforms, in the same batch shape."""
    if isinstance(single, dist.TransformedDistribution):
        return single.base_dist
    inner = _before(single.base_dist)
    if isinstance(single, dist.ExpandedDistribution):
        return inner.expand((*single.batch_shape, *inner.batch_shape[len(single.base_dist.batch_shape) :]))
    return inner


def _transformed(single: Any, value: Array) -> Array:
    for transform in bare(single).transforms:
        value = transform(value)
    return value


class _Support(constraints.Constraint):
    """A support whose bounds differ among the elements."""

    def __init__(self, batch: ElementWise, single: Any):
        self.batch, self.event_dim, self.is_discrete = batch, single.event_dim, single.is_discrete

    def __call__(self, value: Array) -> Array:
        return self.batch.each(lambda single, own: single.support(own))(value)

    def feasible_like(self, prototype: Array) -> Array:
        return self.batch.each(lambda single, own: single.support.feasible_like(own))(prototype)

    def tree_flatten(self) -> tuple:
        return (self.batch,), (("batch",), {"event_dim": self.event_dim, "is_discrete": self.is_discrete})


class _Bijection(transforms.Transform):
    """Onto such a support, from all real numbers."""

    def __init__(self, support: _Support):
        self.batch, self._support = support.batch, support

    @property
    def codomain(self) -> constraints.Constraint:
        return self._support

    @property
    def domain(self) -> constraints.Constraint:
        return dist.biject_to(jax.tree.unflatten(self.batch.structure, self.batch.leaves).support).domain

    def __call__(self, x: Array) -> Array:
        return self.batch.each(lambda single, own: dist.biject_to(single.support)(own))(x)

    def _inverse(self, y: Array) -> Array:
        return self.batch.each(lambda single, own: dist.biject_to(single.support).inv(own))(y)

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Array:  # noqa: ARG002
        return self.batch.each(
            lambda single, before, after: dist.biject_to(single.support).log_abs_det_jacobian(before, after)
        )(x, y)

    def tree_flatten(self) -> tuple:
        return (self.batch, self._support), (("batch", "_support"), {})


dist.biject_to.register(_Support)(_Bijection)
