"""A likelihood that a network stands in for while it is trusted: the switch of the in-loop method."""

from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool

from qbs.inference.nested.network_tuning import LARGEST, Tuned, tuned
from qbs.inference.nested.problem import Cube
from qbs.inference.nested.scaled_network import Recipe, ScaledNetwork, train
from qbs.inference.seeds import numpy_generator, seed_words

_SIZES = (1, 8, 32, 128)  # batches that a compiled likelihood is called with; larger ones are multiples
_FEWEST = 10  # finite points to train on
_LEAST = -1e290  # dynesty puts -1e300 for a likelihood of zero


class Switching(NamedTuple):
    """When a network is trained, trusted and dropped; see `InLoop` for each."""

    start_iterations: int
    start_dlogz: float
    num_random: int
    max_validation_loss: float
    update_interval: int
    tolerance: float
    num_monitored: int
    max_calls_per_point: int


class Training(NamedTuple):
    """How a network is trained; see `InLoop` for each. `population` is None where nothing is tuned."""

    recipe: Recipe
    share: float
    patience: int
    population: int | None
    generations: int


class LearnedLikelihood:
    """Answers with the truth until a network is trusted, then with the network until it is dropped.

    Attributes:
        dim: Dimension of the unit cube.
        is_compiled: Whether the truth is.
        version: Grows whenever network and truth take turns.
        num_calls: Of the truth.
        num_finite: How many of them were finite.
        num_network_calls: Of networks.
        num_trained: Networks trained.
        num_accepted: How many of them were trusted.
        num_dropped: How many of those were dropped.

    Args:
        cube: The truth.
        switching: When to train, trust and drop.
        training: How to train.
        key: A typed JAX key.
        num_replaced: Points that one iteration replaces.
        max_calls: Of the truth, after which there are no more iterations; `None` for no limit.
    """

    def __init__(
        self,
        cube: Cube,
        switching: Switching,
        training: Training,
        key: Array,
        *,
        num_replaced: int = 1,
        max_calls: int | None = None,
    ):
        self._cube, self._switching, self._training, self._key = cube, switching, training, key
        self._num_replaced, self._max_calls = num_replaced, max_calls
        self.dim, self.is_compiled, self.version = cube.dim, cube.is_compiled, 0
        self.num_calls = self.num_finite = self.num_network_calls = 0
        self.num_trained = self.num_accepted = self.num_dropped = 0
        self._network: ScaledNetwork | None = None
        self._recipe = training.recipe
        self._by_network: set[int] = set()  # hashes of the points
        self._calls_since = 0  # the last iteration
        self._iteration = self._trusted = self._waited = 0

    @property
    def is_over(self) -> bool:
        """Whether the truth was called as often as it may be."""
        return self._max_calls is not None and self.num_calls >= self._max_calls

    @property
    def facts(self) -> dict[str, Any]:
        """What the run did with networks, as plain values."""
        names = ("num_network_calls", "num_trained", "num_accepted", "num_dropped")
        return {name: getattr(self, name) for name in names} | {"network": self._recipe._asdict()}

    def log_likelihood(self, points: np.ndarray) -> np.ndarray:
        """Return log likelihoods of points, or what the network says of them, shape (n,)."""
        self._calls_since += len(points)
        if self._calls_since > self._switching.max_calls_per_point * self._num_replaced:
            self._drop()
        if self._network is None:
            return self.truth(points)
        self.num_network_calls += len(points)
        self._by_network.update(hash(point.tobytes()) for point in np.ascontiguousarray(points))
        return self._network(points)

    def truth(self, points: np.ndarray) -> np.ndarray:
        """Return log likelihoods of points, whatever the network says."""
        count = len(points)
        if self.is_compiled:  # few shapes, so that little is compiled
            size = next((size for size in _SIZES if size >= count), -(-count // _SIZES[-1]) * _SIZES[-1])
            points = np.concatenate([points, np.full((size - count, self.dim), 0.5)])
        values = self._cube.log_likelihood(points)[:count]
        self.num_calls += count
        self.num_finite += int(np.sum(np.isfinite(values)))
        return values

    def impossible(self) -> Exception:
        """Return the error for a likelihood that is zero wherever it was tried."""
        return self._cube.impossible()

    def is_by_network(self, points: np.ndarray) -> Bool[np.ndarray, " num_points"]:
        """Return which of some points a network was asked about, not the truth."""
        rows = np.ascontiguousarray(points)
        return np.array([hash(point.tobytes()) in self._by_network for point in rows], dtype=bool)

    def after(self, iteration: int, remaining: float, points: np.ndarray, values: np.ndarray) -> bool:
        """Train, trust or drop a network as the run goes on, and return whether it may.

        Args:
            iteration: Points that died so far.
            remaining: Nats that the live points may add to the log evidence.
            points: The live points.
            values: Their log likelihoods, true or not.
        """
        passed = iteration - self._iteration
        self._iteration, self._calls_since = iteration, 0
        switching = self._switching
        if self._network is not None:
            before, self._trusted = self._trusted, self._trusted + passed
            if before // switching.update_interval != self._trusted // switching.update_interval:
                self._monitor(points, values)
        elif iteration >= switching.start_iterations or remaining <= switching.start_dlogz:
            self._waited += passed
            if not self.num_trained or self._waited >= switching.update_interval:
                self._train(points, values)
        return not self.is_over

    def _train(self, points: np.ndarray, values: np.ndarray) -> None:
        """Train a network on the live points and some around the best of them, and trust it if it is good."""
        key = jax.random.fold_in(self._key, self.num_trained)
        drawing, tuning, training = jax.random.split(key, 3)
        best = points[np.argmax(values)]
        rng = numpy_generator(drawing)
        around = rng.normal(best, points.std(axis=0) / 4, (self._switching.num_random, self.dim))
        around = around[np.all((around > 0) & (around < 1), axis=1)]
        points = np.concatenate([points, around])
        values = np.concatenate([values, self.truth(around)]) if len(around) else values
        is_possible = values > _LEAST
        self._waited = 0
        if is_possible.sum() < _FEWEST:
            return
        learn = partial(
            train,
            points[is_possible],
            values[is_possible],
            training_share=self._training.share,
            patience=self._training.patience,
        )
        if self._training.population is not None and not self.num_trained:
            self._recipe = self._tuned(learn, tuning).recipe
        limits = None if self._training.population is None else LARGEST
        network = learn(self._recipe, training, limits=limits)
        self.num_trained += 1
        if network.validation_loss < self._switching.max_validation_loss:
            self._network, self._trusted = network, 0
            self.num_accepted += 1
            self.version += 1

    def _tuned(self, learn: Any, key: Array) -> Tuned:
        def loss_of(recipe: Recipe, key: Array) -> float:
            return learn(recipe, key, limits=LARGEST).validation_loss

        population = self._training.population
        assert population is not None
        return tuned(loss_of, key, population=population, generations=self._training.generations)

    def _monitor(self, points: np.ndarray, values: np.ndarray) -> None:
        """Drop the network if it is wrong at some live points that it was asked about."""
        places = np.flatnonzero(self.is_by_network(points))
        if not places.size:
            return
        rng = np.random.default_rng([*seed_words(self._key), self._iteration])
        chosen = rng.permutation(places)[: self._switching.num_monitored]
        truth = self.truth(points[chosen])
        error = np.mean(np.abs(truth - values[chosen]))
        if not error <= self._switching.tolerance * np.min(np.abs(truth)):
            self._drop()

    def _drop(self) -> None:
        if self._network is not None:
            self._network, self._waited = None, 0
            self.num_dropped += 1
            self.version += 1
