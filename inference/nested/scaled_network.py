"""A network trained on points and log likelihoods scaled to (0.1, 1), as published for the in-loop method.

All shapes of networks that a search tries run through one compiled program: units and layers beyond those
of a network are masked.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]
from jaxtyping import Array, Float

from qbs.inference.seeds import numpy_generator

ACTIVATIONS = ("relu", "sigmoid", "tanh")
_LOW, _HIGH = 0.1, 1.0  # what inputs and outputs are scaled to
_MULTIPLE = 64  # what the numbers of points are padded to, so that refits do not compile again

# Weights and biases: of the first layer, of all hidden ones after it, of the last.
Weights = tuple[tuple[Any, Any], tuple[Any, Any], tuple[Any, Any]]


class Recipe(NamedTuple):
    """The shape of a network, and how it is trained.

    Attributes:
        num_layers: Hidden layers.
        width: Units of each.
        activation: `"relu"`, `"sigmoid"` or `"tanh"`.
        batch_size: Points of a step.
        learning_rate: Of Adam.
        num_epochs: Greatest number of passes over the points.
    """

    num_layers: int
    width: int
    activation: str
    batch_size: int
    learning_rate: float
    num_epochs: int


class Limits(NamedTuple):
    """The largest network that a compiled program trains."""

    num_layers: int
    width: int
    batch_size: int


class Scaling(NamedTuple):
    """How a column of numbers is scaled: its least and its greatest."""

    least: np.ndarray
    greatest: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> "Scaling":
        """Return the scaling that takes the least value to 0.1 and the greatest to 1."""
        return cls(values.min(axis=0), values.max(axis=0))

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """Return values scaled to (0.1, 1)."""
        return _LOW + (_HIGH - _LOW) * (values - self.least) / self._range

    def unscaled(self, values: np.ndarray) -> np.ndarray:
        """Return values as they were before they were scaled."""
        return self.least + self._range * (values - _LOW) / (_HIGH - _LOW)

    @property
    def _range(self) -> np.ndarray:
        found = self.greatest - self.least
        return np.where(found > 0, found, 1.0)


class ScaledNetwork(NamedTuple):
    """A trained network.

    Attributes:
        weights: In float64.
        recipe: How it was made.
        of_points: How inputs are scaled.
        of_values: How outputs are scaled.
        validation_loss: Mean squared error, in scaled units, at points that it was not trained on; those also
            told when to stop.
    """

    weights: Weights
    recipe: Recipe
    of_points: Scaling
    of_values: Scaling
    validation_loss: float

    def __call__(self, points: Float[np.ndarray, "num_points dim"]) -> Float[np.ndarray, " num_points"]:
        """Return what the network says of the log likelihoods at points of the unit cube."""
        act = _IN_NUMPY[self.recipe.activation]
        (first, shift), (hidden, shifts), (last, offset) = self.weights
        level = act(self.of_points.scaled(points) @ first + shift)
        for weight, bias in zip(hidden, shifts, strict=True):
            level = act(level @ weight + bias)
        return self.of_values.unscaled(level @ last + offset)


def train(
    points: Float[np.ndarray, "num_points dim"],
    log_likelihoods: Float[np.ndarray, " num_points"],
    recipe: Recipe,
    key: Array,
    *,
    training_share: float,
    patience: int,
    limits: Limits | None = None,
) -> ScaledNetwork:
    """Return a network trained on points of the unit cube.

    Args:
        points: In the unit cube, four or more.
        log_likelihoods: There, finite.
        recipe: Shape and training.
        key: A typed JAX key.
        training_share: Share of the points that it is trained on; the rest validates.
        patience: Stop after so many epochs that bring no lower validation loss.
        limits: The largest network that comes; by default this one.
    """
    num_points = len(points)
    num_trained = min(max(int(training_share * num_points), 1), num_points - 1)
    shuffle, start, course = jax.random.split(key, 3)
    order = numpy_generator(shuffle).permutation(num_points)
    of_points, of_values = Scaling.of(points), Scaling.of(log_likelihoods)
    limits = limits or Limits(recipe.num_layers, recipe.width, recipe.batch_size)
    weights, loss = _trained(
        _first_weights(start, points.shape[1], recipe, limits),
        _padded(of_points.scaled(points)[order]),
        _padded(of_values.scaled(log_likelihoods)[order]),
        jax.random.key_data(course),
        {
            "num_trained": np.int32(num_trained),
            "num_points": np.int32(num_points),
            "num_layers": np.int32(recipe.num_layers),
            "width": np.int32(recipe.width),
            "activation": np.int32(ACTIVATIONS.index(recipe.activation)),
            "batch_size": np.int32(recipe.batch_size),
            "learning_rate": np.float32(recipe.learning_rate),
            "num_epochs": np.int32(recipe.num_epochs),
            "patience": np.int32(patience),
        },
        limits.batch_size,
    )
    kept = _cut(jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), weights), recipe)
    return ScaledNetwork(kept, recipe, of_points, of_values, float(loss))


def _padded(array: np.ndarray) -> np.ndarray:
    more = -len(array) % _MULTIPLE
    return np.concatenate([array, np.zeros((more, *array.shape[1:]))]).astype(np.float32)


def _first_weights(key: Array, dim: int, recipe: Recipe, limits: Limits) -> Weights:
    """Return normal weights as wide as Glorot & Bengio (2010) say, and biases of zero, padded with zeros."""
    rng = numpy_generator(key)
    width, widest = recipe.width, limits.width

    def drawn(fan_in: int, fan_out: int) -> np.ndarray:
        return rng.normal(size=(fan_in, fan_out)) * np.sqrt(2 / (fan_in + fan_out))

    first, last = np.zeros((dim, widest)), np.zeros(widest)
    hidden = np.zeros((limits.num_layers - 1, widest, widest))
    first[:, :width], last[:width] = drawn(dim, width), drawn(width, 1)[:, 0]
    for layer in hidden[: recipe.num_layers - 1]:
        layer[:width, :width] = drawn(width, width)
    zeros = np.zeros(widest), np.zeros((limits.num_layers - 1, widest)), np.zeros(())
    parts = tuple(zip((first, hidden, last), zeros, strict=True))
    return jax.tree.map(lambda leaf: leaf.astype(np.float32), parts)


def _cut(weights: Weights, recipe: Recipe) -> Weights:
    """Return the weights of the units and layers that a network has."""
    (first, shift), (hidden, shifts), (last, offset) = weights
    width, more = recipe.width, recipe.num_layers - 1
    return (
        (first[:, :width], shift[:width]),
        (hidden[:more, :width, :width], shifts[:more, :width]),
        (last[:width], offset),
    )


def _output(weights: Weights, points: Array, how: dict[str, Array]) -> Array:
    (first, shift), (hidden, shifts), (last, offset) = weights
    is_unit = jnp.arange(first.shape[1]) < how["width"]

    def act(level: Array) -> Array:
        branches = (jax.nn.relu, jax.nn.sigmoid, jnp.tanh)
        return jnp.where(is_unit, jax.lax.switch(how["activation"], branches, level), 0.0)

    level = act(points @ first + shift)
    for number in range(hidden.shape[0]):
        deeper = act(level @ hidden[number] + shifts[number])
        level = jnp.where(number + 1 < how["num_layers"], deeper, level)
    return level @ last + offset


class _Course(NamedTuple):
    """How far a training is: weights, state of Adam, the best weights, their loss and epoch, this epoch."""

    weights: Any
    state: Any
    best: Any
    least: Array
    best_epoch: Array
    epoch: Array


def _train(
    weights: Weights, points: Array, values: Array, key_data: Array, how: dict[str, Array], largest: int
) -> tuple[Weights, Array]:
    adam, key = optax.scale_by_adam(), jax.random.wrap_key_data(key_data)
    places = jnp.arange(len(points))
    is_validating = (places >= how["num_trained"]) & (places < how["num_points"])
    num_steps = -(-how["num_trained"] // how["batch_size"])

    def loss(weights: Weights, chosen: Array, is_there: Array) -> Array:
        errors = (_output(weights, points[chosen], how) - values[chosen]) ** 2
        return jnp.sum(jnp.where(is_there, errors, 0.0)) / is_there.sum()

    def epoch(course: _Course) -> _Course:
        numbers = jax.random.uniform(jax.random.fold_in(key, course.epoch), (len(points),), jnp.float32)
        order = jnp.argsort(jnp.where(places < how["num_trained"], numbers, 2.0))
        order = jnp.concatenate([order, jnp.zeros(largest, order.dtype)])

        def step(number: Array, carried: tuple[Weights, Any]) -> tuple[Weights, Any]:
            weights, state = carried
            start = number * how["batch_size"]
            within = jnp.arange(largest, dtype=jnp.int32)
            is_there = (within < how["batch_size"]) & (start + within < how["num_trained"])
            chosen = jax.lax.dynamic_slice_in_dim(order, start, largest)
            moves, state = adam.update(jax.grad(loss)(weights, chosen, is_there), state)
            moved = jax.tree.map(lambda leaf, move: leaf - how["learning_rate"] * move, weights, moves)
            return moved, state

        moved, state = jax.lax.fori_loop(jnp.int32(0), num_steps, step, (course.weights, course.state))
        found = loss(moved, places, is_validating)
        is_best = found < course.least
        best = jax.tree.map(lambda new, old: jnp.where(is_best, new, old), moved, course.best)
        best_epoch = jnp.where(is_best, course.epoch, course.best_epoch)
        return _Course(
            moved, state, best, jnp.minimum(found, course.least), best_epoch, course.epoch + jnp.int32(1)
        )

    def is_going(course: _Course) -> Array:
        return (course.epoch < how["num_epochs"]) & (course.epoch - course.best_epoch <= how["patience"])

    none = jnp.int32(0)
    start = _Course(weights, adam.init(weights), weights, jnp.float32(jnp.inf), none, none)
    found = jax.lax.while_loop(is_going, epoch, start)
    return found.best, found.least


_trained = jax.jit(_train, static_argnums=5)


def _sigmoid(level: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * level))


_IN_NUMPY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda level: np.maximum(level, 0.0),
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
}
