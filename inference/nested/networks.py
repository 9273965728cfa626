"""Small neural networks as a smooth function of whitened points, and how far several of them disagree."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]
from jaxtyping import Array, Bool, Float

from qbs.inference.method import require_positive
from qbs.inference.nested.surrogate import Surrogate

_MULTIPLE = 64  # what the numbers of points are padded to, so that refits do not compile again
_ACTIVATIONS: dict[str, Callable] = {"silu": jax.nn.silu, "tanh": jnp.tanh, "relu": jax.nn.relu}


class NetworkEnsemble(Surrogate):
    """Settings of several small networks, each trained on its own part of the points.

    All members are trained together, in float32, by one compiled program. Each stops where the points that it
    was not trained on are predicted best.

    Attributes:
        num_members: Networks.
        width: Units of a hidden layer.
        num_layers: Hidden layers.
        activation: `"silu"`, `"tanh"` or `"relu"`.
        learning_rate: Of Adam at first; it falls to nothing as a cosine.
        num_steps: Greatest number of steps, each over all points.
        patience: Stop after so many steps in which no member got better.
        held_out: Share of the points that a member is not trained on.

    References:
        Lakshminarayanan, Pritzel & Blundell (2017), "Deep ensembles", arXiv:1612.01474.
    """

    num_members: int = eqx.field(static=True, default=5)
    width: int = eqx.field(static=True, default=64)
    num_layers: int = eqx.field(static=True, default=2)
    activation: str = eqx.field(static=True, default="silu")
    learning_rate: float = eqx.field(static=True, default=0.01)
    num_steps: int = eqx.field(static=True, default=2000)
    patience: int = eqx.field(static=True, default=300)
    held_out: float = eqx.field(static=True, default=0.15)

    def __check_init__(self) -> None:
        require_positive(self, "learning_rate", "held_out")
        require_positive(self, "num_members", "width", "num_layers", "num_steps", "patience", whole=True)
        if self.held_out >= 1:
            raise ValueError(f"NetworkEnsemble: held_out must be a share below 1, not {self.held_out!r}")
        if self.activation not in _ACTIVATIONS:
            raise ValueError(
                "NetworkEnsemble: activation must be one of "
                f"{', '.join(_ACTIVATIONS)}, not {self.activation!r}"
            )

    def fit(
        self,
        white_points: Float[np.ndarray, "num_points dim"],
        residuals: Float[np.ndarray, " num_points"],
        before: "Networks | None" = None,
        *,
        key: Array | None = None,
    ) -> "Networks":
        """Return networks that are trained to give values at points.

        Args:
            white_points: In coordinates in which the function varies over distances of about one.
            residuals: Values there, in any unit.
            before: Networks of the same settings and dimension from which to go on.
            key: A typed JAX key for the starts and for what is held out; by default always the same.

        Raises:
            ValueError: If there are fewer than four points, one is not finite, or shapes do not match.
        """
        points, values = np.asarray(white_points), np.asarray(residuals)
        num_points, dim = points.shape
        key = jax.random.key(0) if key is None else key
        if num_points < 4:
            raise ValueError(f"networks need four points or more, not {num_points}")
        if not (np.isfinite(points).all() and np.isfinite(values).all()):
            raise ValueError("points and residuals must be finite; leave out what is not")
        scale = Scale(float(values.mean()), float(values.std()) or 1.0)
        padded_points = _padded(points.astype(np.float32))
        padded_values = _padded(((values - scale.mean) / scale.deviation).astype(np.float32))
        is_trained = self._bags(num_points, len(padded_points))
        shape = dim, self.width, self.num_layers, self.activation
        if before is None:
            members = _started(jax.random.split(key, self.num_members), *shape)
        elif before.shape != (self.num_members, *shape):
            raise ValueError(
                f"before has (members, dim, width, layers, activation) = {before.shape}; "
                f"here they are {(self.num_members, *shape)}"
            )
        else:
            members = _rescaled(before.members, before.scale, scale)
        is_point = np.arange(len(padded_points)) < num_points
        pace = np.float32(self.learning_rate), np.int32(self.num_steps), np.int32(self.patience)
        members = _trained(members, padded_points, padded_values, is_trained, is_point & ~is_trained, pace)
        return Networks(members, scale, (self.num_members, *shape))

    def _bags(self, num_points: int, num_padded: int) -> Bool[np.ndarray, "members num_padded"]:
        """Choose what each member is trained on: all but one part of the points, of as many as there are.

        A point is in the same part however many come after it, so that a member that goes on is still judged
        by points that it has not seen.
        """
        num_parts = min(max(round(1 / self.held_out), 2), num_points)
        rng = np.random.default_rng(0)
        num_blocks = -(-num_points // num_parts)
        part = np.concatenate([rng.permutation(num_parts) for _ in range(num_blocks)])[:num_points]
        is_trained = np.zeros((self.num_members, num_padded), bool)
        is_trained[:, :num_points] = part != np.arange(self.num_members)[:, None] % num_parts
        return is_trained


class Scale(NamedTuple):
    """How values are scaled for the networks.

    Attributes:
        mean: Of the values.
        deviation: Their standard deviation.
    """

    mean: float
    deviation: float


class Networks(NamedTuple):
    """Networks that are trained.

    Attributes:
        members: Their weights, with a leading axis member.
        scale: Of the values.
        shape: Number of members, dimension, width, hidden layers, activation.
    """

    members: Any
    scale: Scale
    shape: tuple[int, int, int, int, str]

    def __call__(
        self, white_points: Float[np.ndarray, "num_points dim"]
    ) -> tuple[Float[np.ndarray, " num_points"], Float[np.ndarray, " num_points"]]:
        """Return mean and standard deviation over the members at whitened points, in float64."""
        outputs = self.scale.deviation * self._outputs(white_points)
        return self.scale.mean + outputs.mean(axis=0), outputs.std(axis=0)

    def _outputs(self, points: np.ndarray) -> np.ndarray:
        padded = _padded(np.asarray(points, dtype=np.float32), is_power=True)
        outputs = _predicted(self.members, padded)
        return np.asarray(outputs, dtype=np.float64)[:, : len(points)]


def _padded(array: np.ndarray, *, is_power: bool = False) -> np.ndarray:
    """Return an array with zeros after it, up to a multiple of 64, or a power of 2 from 64 on."""
    num_blocks = max(-(-len(array) // _MULTIPLE), 1)
    if is_power:
        num_blocks = 1 << (num_blocks - 1).bit_length()
    more = num_blocks * _MULTIPLE - len(array)
    return np.concatenate([array, np.zeros((more, *array.shape[1:]), array.dtype)])


@eqx.filter_jit
def _started(keys: Array, dim: int, width: int, num_layers: int, activation: str) -> Any:
    def member(key: Array) -> eqx.nn.MLP:
        return eqx.nn.MLP(
            dim, "scalar", width, num_layers, _ACTIVATIONS[activation], dtype=jnp.float32, key=key
        )

    return eqx.filter_vmap(member)(keys)


def _rescaled(members: Any, old: Scale, new: Scale) -> Any:
    """Return members whose last layer gives the old values in the new scale."""
    ratio = np.float32(old.deviation / new.deviation)
    shift = np.float32((old.mean - new.mean) / new.deviation)

    def last(members: Any) -> tuple[Any, Any]:
        return members.layers[-1].weight, members.layers[-1].bias

    weight, bias = map(np.asarray, last(members))  # in NumPy, which compiles nothing
    return eqx.tree_at(last, members, jax.device_put((weight * ratio, bias * ratio + shift)))


class _Course(NamedTuple):
    """How far the training of a member is: weights, state of Adam, the best so far, and when that was."""

    weights: Any
    state: Any
    best: Any
    least: Array
    best_step: Array
    step: Array


@eqx.filter_jit
def _trained(members: Any, points: Any, values: Any, is_trained: Any, is_held_out: Any, pace: tuple) -> Any:
    """Return the members at the step at which each predicts the points held out from it best."""
    learning_rate, num_steps, patience = pace
    adam = optax.scale_by_adam()

    def one(member: Any, in_bag: Array, out_of_bag: Array) -> Any:
        weights, fixed = eqx.partition(member, eqx.is_inexact_array)

        def losses(weights: Any) -> tuple[Array, Array]:
            errors = (jax.vmap(eqx.combine(weights, fixed))(points) - values) ** 2
            inside = jnp.sum(jnp.where(in_bag, errors, 0.0)) / in_bag.sum()
            return inside, jnp.sum(jnp.where(out_of_bag, errors, 0.0)) / out_of_bag.sum()

        def step(course: _Course) -> _Course:
            (_, outside), slope = jax.value_and_grad(losses, has_aux=True)(course.weights)
            is_best = outside < course.least
            best = jax.tree.map(lambda new, old: jnp.where(is_best, new, old), course.weights, course.best)
            moves, state = adam.update(slope, course.state)
            share = course.step.astype(jnp.float32) / num_steps
            rate = learning_rate * 0.5 * (1.0 + jnp.cos(jnp.pi * share))
            moved = jax.tree.map(lambda weight, move: weight - rate * move, course.weights, moves)
            best_step = jnp.where(is_best, course.step, course.best_step)
            return _Course(moved, state, best, jnp.minimum(outside, course.least), best_step, course.step + 1)

        def is_going(course: _Course) -> Array:
            return (course.step < num_steps) & (course.step - course.best_step < patience)

        start = _Course(
            weights,
            adam.init(weights),
            weights,
            jnp.asarray(jnp.inf, jnp.float32),
            jnp.int32(0),
            jnp.int32(0),
        )
        return eqx.combine(jax.lax.while_loop(is_going, step, start).best, fixed)

    return eqx.filter_vmap(one, in_axes=(eqx.if_array(0), 0, 0))(members, is_trained, is_held_out)


@eqx.filter_jit
def _predicted(members: Any, points: Any) -> Array:
    return eqx.filter_vmap(lambda member: jax.vmap(member)(points))(members)
