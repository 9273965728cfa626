"""A NumPyro model bound to its data: what every method of `qbs.fit` is given.

Binding separates the arrays (traced, so that new data of the same shape does not compile again) from
everything else (part of the structure of the computation), and reads the model's sites by running it
once on abstract values: no number is computed.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro import handlers
from numpyro.infer.initialization import init_to_uniform
from numpyro.infer.util import compute_log_probs

from qbs.captured import own_constants, trace_digest
from qbs.errors import ModelError, QbsError


class _ArrayHere:
    """Marks, among the static leaves of a call, the place of an array."""


# What JAX raises when Python code needs the value of a traced array.
_NEEDS_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


class Site(eqx.Module):
    """What is known of a latent site without running the model.

    Attributes:
        name: The name of the `numpyro.sample` statement.
        shape: Shape of one value.
        event_dim: How many trailing axes of the value are one event of the distribution.
        is_discrete: Whether the values are integers.
        family: The distribution's class name, for messages.
    """

    name: str = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)
    event_dim: int = eqx.field(static=True)
    is_discrete: bool = eqx.field(static=True)
    family: str = eqx.field(static=True)


class BoundModel(eqx.Module):
    """A NumPyro model and the arguments that it is called with.

    A pytree whose leaves are the data arrays; the function, Python scalars and strings are structure.
    Two bindings of the same function to arrays of the same shapes therefore share compiled code.
    """

    function: Callable = eqx.field(static=True)
    name: str = eqx.field(static=True)
    arrays: tuple[Array, ...]
    static_leaves: tuple = eqx.field(static=True)  # with their types, because 1 == True
    structure: Any = eqx.field(static=True)

    @property
    def digest(self) -> str:
        """SHA-256 of the program that the model traces to, with the data that it captured."""
        return getattr(self.function, "digest", "")

    def arguments(self) -> tuple[tuple, dict]:
        """Return the positional and keyword arguments of the model."""
        arrays = iter(self.arrays)
        leaves = [next(arrays) if kind is _ArrayHere else leaf for kind, leaf in self.static_leaves]
        return jax.tree.unflatten(self.structure, leaves)


class KeyedModel:
    """A model that equals another where both come from the same function and trace to the same program.

    Attributes:
        digest: SHA-256 of the program, with the data that the function captured.
    """

    def __init__(self, function: Callable, identity: Any, digest: str):
        self._function, self._key = function, (identity, digest)
        self.digest = digest

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        return self._function(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeyedModel) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


class _WithConstants:
    """A model with its arguments baked in, for models that need the values of their data."""

    def __init__(self, function: Callable, args: tuple, kwargs: Mapping[str, Any]):
        self._call = function, args, kwargs

    def __call__(self) -> Any:
        function, args, kwargs = self._call
        return function(*args, **kwargs)


def model_name(function: Callable) -> str:
    """Return the name that messages and results use for a model."""
    return getattr(function, "__name__", None) or type(function).__name__


def _as_leaf(leaf: Any) -> Any:
    """Return a model argument as an array of the default precision where it is numeric data."""
    if leaf is None or isinstance(leaf, bool | int | str | bytes | np.integer | np.bool_):
        return leaf.item() if isinstance(leaf, np.generic) else leaf
    if isinstance(leaf, jax.Array):
        return leaf.astype(float) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
    if hasattr(leaf, "columns"):  # a whole data frame, from which the model takes columns by name
        return leaf
    if isinstance(leaf, float | complex) or hasattr(leaf, "__array__"):
        array = np.asarray(leaf)
        if array.dtype.kind in "iu":
            _require_fitting(array)
        if array.dtype.kind in "biufc":
            return jnp.asarray(array, dtype=float if array.dtype.kind == "f" else None)
        return array
    return leaf


def _require_fitting(array: np.ndarray) -> None:
    """Raise where JAX would cut integers off to 32 bits without a word."""
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    range_ = np.iinfo(dtype)
    if array.size and (array.min() < range_.min or array.max() > range_.max):
        raise ModelError(
            f"an argument of the model holds the integer {array.flat[np.argmax(np.abs(array))]}, which does "
            f"not fit into {dtype.name}: pass it as float, or fit with precision='float64'"
        )


def _as_numpy(leaf: Any) -> Any:
    is_data = isinstance(leaf, jax.Array) and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(leaf) if is_data else leaf


def bind(
    function: Callable,
    args: tuple = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    name: str = "",
    identity: Any = None,
) -> BoundModel:
    """Bind a NumPyro model to its arguments.

    Args:
        function: The model.
        args: Positional arguments. Arrays, floats and data-frame columns become JAX arrays in the ambient
            precision; integers, strings, `None`, whole data frames and other objects stay as they are.
        kwargs: Keyword arguments, treated alike.
        name: What messages call the model; the function's name by default.
        identity: What compiled code is kept for; the function by default.

    Returns:
        The bound model, reading its own views of NumPy arrays that the function captured. Compiled code is
        kept while the function and what it captured stay the same. Where the model needs the values of its
        data while it runs (`len(np.unique(x))`, `int(x.max())`, an `if` on data), the data is baked in and
        each new data set compiles anew.

    Raises:
        ModelError: If the model cannot be run on values of its own prior, a site name appears twice, a
            plate subsamples, or an integer in the data does not fit the ambient precision.
    """
    if not callable(function):
        raise ModelError(
            f"the model must be a NumPyro model (a function) or a qbs.Target, not {type(function).__name__}"
        )
    call = jax.tree.map(_as_leaf, (tuple(args), dict(kwargs or {})), is_leaf=lambda leaf: leaf is None)
    leaves, structure = jax.tree.flatten(call, is_leaf=lambda leaf: leaf is None)
    name = name or model_name(function)
    arrays = tuple(leaf for leaf in leaves if isinstance(leaf, jax.Array))
    static = tuple(
        (_ArrayHere, None) if isinstance(leaf, jax.Array) else (type(leaf), leaf) for leaf in leaves
    )
    own = own_constants(function)
    ways = [BoundModel(own, name, arrays, static, structure)] if _is_hashable((own, static)) else []
    # Under tracing, JAX stages out what is computed from a baked-in JAX array, but not from a NumPy array.
    for baked in (call, jax.tree.map(_as_numpy, call)):
        ways.append(BoundModel(_WithConstants(own, *baked), name, (), (), jax.tree.structure(((), {}))))
    for bound in ways:
        try:
            trace_sites(bound)
        except ModelError as error:
            if bound is ways[-1] or not isinstance(error.__cause__, _NEEDS_VALUES):
                raise
        else:
            break
    identity = function if identity is None else identity
    if not _is_hashable(identity):
        identity = id(identity)
    return dataclasses.replace(bound, function=KeyedModel(bound.function, identity, _digest(bound)))


def _digest(bound: BoundModel) -> str:
    def log_probs(key: Array, arrays: tuple[Array, ...]) -> dict[str, Array]:
        args, kwargs = eqx.tree_at(lambda b: b.arrays, bound, arrays).arguments()
        return compute_log_probs(seeded(bound.function, key), args, kwargs, {}, sum_log_prob=False)[0]

    return trace_digest(log_probs, jax.random.key(0), bound.arrays)


def seeded(function: Callable, key: Array) -> Callable:
    """Return the model drawing its own latent values; those of an improper prior are drawn near zero."""

    def draw_improper(site: dict[str, Any]) -> Array | None:
        is_latent = site["type"] == "sample" and not site["is_observed"]
        return init_to_uniform(site) if is_latent and is_improper(site["fn"]) else None

    return handlers.substitute(handlers.seed(function, key), substitute_fn=draw_improper)


def trace_sites(bound: BoundModel) -> tuple[dict[str, Site], dict[str, str]]:
    """Run the model on abstract values and return its sites.

    Returns:
        The latent sites by name, and the kind of every other site by name: `"observed"`,
        `"deterministic"` or `"param"`.

    Raises:
        ModelError: If a name appears twice, a plate subsamples, or the model raises while it runs.
    """
    latent: dict[str, Site] = {}
    others: dict[str, str] = {}

    def record(key: Array, arrays: tuple[Array, ...]) -> Array:
        args, kwargs = eqx.tree_at(lambda b: b.arrays, bound, arrays).arguments()
        trace = handlers.trace(seeded(bound.function, key)).get_trace(*args, **kwargs)
        for name, site in trace.items():
            if site["type"] == "sample" and not site["is_observed"]:
                fn = site["fn"]
                latent[name] = Site(
                    name,
                    tuple(np.shape(site["value"])),
                    len(fn.event_shape),
                    bool(fn.support.is_discrete),
                    type(_innermost(fn)).__name__,
                )
            elif site["type"] == "plate":
                _require_whole(name, *site["args"])
            elif site["type"] in ("sample", "deterministic", "param"):
                others[name] = "observed" if site["type"] == "sample" else site["type"]
        return jnp.zeros(())

    name = bound.name
    try:
        # A fresh closure, so that JAX runs the model every time it is asked.
        jax.eval_shape(lambda key, arrays: record(key, arrays), jax.random.key(0), bound.arrays)
    except _NEEDS_VALUES as error:
        raise ModelError(
            f"the model {name!r} needs the value of a latent site while it is traced (a Python `if`, `int()` "
            f"or NumPy call on it): use jax.numpy and jax.lax.cond instead. JAX said: {error.args[0]}"
        ) from error
    except AssertionError as error:
        if "unique names" not in str(error):
            raise ModelError(f"the model {name!r} raised AssertionError: {error}") from error
        site_name = str(error).split("`")[1] if "`" in str(error) else "?"
        raise ModelError(
            f"the site name {site_name!r} appears twice in the model {name!r}: give every "
            "numpyro.sample, numpyro.deterministic and numpyro.factor statement a name of its own"
        ) from error
    except QbsError:
        raise
    except Exception as error:
        raise ModelError(
            f"the model {name!r} cannot be run on draws from its prior: it raised "
            f"{type(error).__name__}: {error}"
        ) from error
    return latent, others


def _require_whole(name: str, size: int, subsample_size: int | None) -> None:
    if subsample_size not in (None, size):
        raise ModelError(
            f"the plate {name!r} takes {subsample_size} of {size} at random, and the log density must not be "
            "random: leave subsample_size out"
        )


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def is_improper(fn: dist.Distribution) -> bool:
    """Whether a distribution cannot be normalised, nor drawn from."""
    return isinstance(_innermost(fn), dist.ImproperUniform)


def _innermost(fn: dist.Distribution) -> dist.Distribution:
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        fn = fn.base_dist
    return fn


def require_latents(latent: Mapping[str, Site], name: str) -> None:
    """Raise `ModelError` when there is nothing to infer."""
    if not latent:
        raise ModelError(
            f"the model {name!r} has no latent sites: every numpyro.sample statement is observed, "
            "so there is nothing to infer (is an obs= argument passed that should be None?)"
        )


def unmasked(fn: dist.Distribution) -> dist.Distribution:
    """Return the distribution that draws come from, where a mask changes only its density."""
    if isinstance(fn, dist.MaskedDistribution):
        return unmasked(fn.base_dist)
    if isinstance(fn, dist.Independent):
        inner = unmasked(fn.base_dist)
        return fn if inner is fn.base_dist else inner.to_event(fn.event_dim - inner.event_dim)
    if isinstance(fn, dist.ExpandedDistribution):
        inner = unmasked(fn.base_dist)
        return fn if inner is fn.base_dist else inner.expand(fn.batch_shape)
    return fn
