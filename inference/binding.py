"""A NumPyro model bound to its data: what every method of `qbs.fit` is given.

Binding separates the arrays (traced, so that new data of the same shape does not compile again) from
everything else (part of the structure of the computation), and makes a program of the model by running it
once on abstract values: no number is computed.
"""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.primitives import Messenger

from qbs.captured import own_constants
from qbs.effects import score_p
from qbs.errors import ModelError, ProgramError, QbsError
from qbs.hashing import is_hashable
from qbs.inference.digest import digest
from qbs.inference.sites import Site, walk
from qbs.jaxprs import effect_names
from qbs.program import Program, reify

# What JAX raises when Python code needs the value of a traced array.
_NEEDS_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)

REUSED = (
    "an array that the model reads from outside its arguments was used in float32 earlier in this process, "
    "and JAX would use that form again: pass it as an argument of the model, or fit with precision='float32'"
)


class BoundModel(eqx.Module):
    """A NumPyro model and the data that it is called with.

    A pytree whose leaves are the data arrays. Two bindings of the same model to arrays of the same shapes
    share compiled code.

    Attributes:
        program: The program of the model, a function of the arrays.
        arrays: The arrays among the model's arguments.
        sites: The latent sites by name, as pairs, in the order of the model.
        scored: The names of observed sites and factors.
        digest: SHA-256 of what the program computes, with the data that the model captured.
    """

    program: Program
    arrays: tuple[Array, ...]
    sites: tuple[tuple[str, Site], ...] = eqx.field(static=True)
    scored: tuple[str, ...] = eqx.field(static=True)
    digest: str = eqx.field(static=True)

    @property
    def name(self) -> str:
        """What messages call the model."""
        return self.program.name

    @property
    def latent(self) -> dict[str, Site]:
        """The latent sites by name, in the order of the model."""
        return dict(self.sites)


class _Traced:
    """A traced model. Equals another where both come from the same function and compute the same."""

    def __init__(self, jaxpr: jex.core.ClosedJaxpr, identity: Any, digest: str):
        self._jaxpr, self._key = jaxpr, (identity, digest)

    def __call__(self, *arrays: Array) -> Any:
        return jex.core.jaxpr_as_fun(self._jaxpr)(*arrays)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Traced) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def model_name(function: Callable) -> str:
    """Return the name that messages and results use for a model."""
    if isinstance(function, Program):
        return function.name
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
        function: The model; a `qbs.Program` is one too.
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
    name = name or model_name(function)
    if isinstance(function, Program):
        function = function.function
    call = jax.tree.map(_as_leaf, (tuple(args), dict(kwargs or {})), is_leaf=lambda leaf: leaf is None)
    leaves, structure = jax.tree.flatten(call, is_leaf=lambda leaf: leaf is None)
    own = own_constants(function)

    def run(leaves: list) -> None:
        args, kwargs = jax.tree.unflatten(structure, leaves)
        own(*args, **kwargs)

    def on_arrays(*arrays: Array) -> None:
        rest = iter(arrays)
        run([next(rest) if isinstance(leaf, jax.Array) else leaf for leaf in leaves])

    ways: list[tuple[Callable, tuple]] = [
        (on_arrays, tuple(leaf for leaf in leaves if isinstance(leaf, jax.Array))),
        # JAX stages out what is computed from a baked-in JAX array, but not what NumPy computes.
        (lambda: run(leaves), ()),
        (lambda: run([_as_numpy(leaf) for leaf in leaves]), ()),
    ]
    for way, arrays in ways:
        try:
            jaxpr = _stage(way, arrays, name)
        except ModelError as error:
            if way is ways[-1][0] or not isinstance(error.__cause__, _NEEDS_VALUES):
                raise
        else:
            break
    identity = function if identity is None else identity
    return _read(jaxpr, arrays, identity if is_hashable(identity) else id(identity), name)


def _stage(function: Callable, arrays: tuple[Array, ...], name: str) -> jex.core.ClosedJaxpr:
    """Run a model once on abstract values; return it as a jaxpr with `sample` and `score` equations."""

    def model(*arrays: Array) -> None:
        with _WholePlates():
            function(*arrays)

    try:
        return Program(reify(model).function, name).stage(*arrays).jaxpr
    except Exception as error:
        cause = error.__cause__ if isinstance(error, ProgramError) and error.__cause__ else error
        if isinstance(cause, _NEEDS_VALUES):
            message = (
                f"the model {name!r} needs the value of a latent site while it is traced (a Python `if`, "
                "`int()` or NumPy call on it): use jax.numpy and jax.lax.cond instead. JAX said: "
                f"{cause.args[0]}"
            )
        elif isinstance(cause, ProgramError):
            message = str(cause)
        elif isinstance(cause, QbsError):
            raise
        else:
            message = (
                f"the model {name!r} cannot be run on draws from its prior: it raised "
                f"{type(cause).__name__}: {cause}"
            )
        raise ModelError(message) from cause


def _read(jaxpr: jex.core.ClosedJaxpr, arrays: tuple[Array, ...], identity: Any, name: str) -> BoundModel:
    """Read the sites of a traced model, and what it computes."""
    kinds: dict[str, bool] = {}
    optional: set[str] = set()

    def watch(site: str, distribution: dist.Distribution | None) -> None:
        if distribution is None:
            optional.add(site)
        else:
            support = distribution.support
            kinds[site] = support is not None and bool(support.is_discrete)

    traced = Program(_Traced(jaxpr, identity, ""), name)
    try:
        expanded, found = jax.make_jaxpr(
            lambda key, arrays: walk(traced, arrays, key, {}, watch), return_shape=True
        )(jax.random.key(0), arrays)
    except ProgramError as error:
        if isinstance(error.__cause__, TypeError):  # a constant is not of the type that it was traced with
            raise ModelError(REUSED) from error
        raise ModelError(f"the model {name!r} cannot be fitted: {error}") from error
    scored = dict.fromkeys(n for equation in jaxpr.eqns for n in effect_names(equation, {score_p}))
    sha256 = digest(expanded)
    return BoundModel(
        Program(_Traced(jaxpr, identity, sha256), name),
        arrays,
        tuple((site, Site(found.trace[site].shape, kind, site in optional)) for site, kind in kinds.items()),
        tuple(site for site in scored if site not in kinds),
        sha256,
    )


class _WholePlates(Messenger):
    """Refuses plates that subsample."""

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "plate":
            _require_whole(msg["name"], *msg["args"])


def _require_whole(name: str, size: int, subsample_size: int | None) -> None:
    if subsample_size not in (None, size):
        raise ModelError(
            f"the plate {name!r} takes {subsample_size} of {size} at random, and the log density must not be "
            "random: leave subsample_size out"
        )


def require_latents(bound: BoundModel) -> None:
    """Raise `ModelError` when there is nothing to infer."""
    if not bound.sites:
        raise ModelError(
            f"the model {bound.name!r} has no latent sites: every numpyro.sample statement is observed, "
            "so there is nothing to infer (is an obs= argument passed that should be None?)"
        )
