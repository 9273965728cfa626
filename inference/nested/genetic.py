"""Global search of the unit cube for where a likelihood is high: evolution, of which every call is kept."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qbs.errors import LikelihoodError, MissingExtraError
from qbs.inference.method import require_positive
from qbs.inference.nested.known import Evaluate, Known
from qbs.inference.nested.unit_cube import LEAST, MOST
from qbs.inference.seeds import numpy_generator

_MAX_FIRST_DRAWS = 10_000


class Genetic(eqx.Module):
    """Settings of a search for the highest likelihood by evolution; it needs no gradient.

    A search tells where to begin, and no more: its points are no draws from prior or posterior.

    Attributes:
        strategy: `"genetic"`, which keeps several peaks in sight, or `"cma"` (CMA-ES), which follows long
            curved valleys and ends on one peak.
        population: Points of a generation; by default eight for each dimension, and no fewer than 20.
        generations: Greatest number of generations after the first, which is drawn from the prior.
        patience: Stop after so many generations that raise the greatest log likelihood by less than
            `tolerance`; `None` never stops before the last.
        tolerance: In nats.
        num_elites: Best points, of all so far, that stay in the population of the genetic strategy; by
            default a tenth of it. They are not evaluated again.
        crossover_rate: Share of coordinates that a child takes from its second parent, genetic strategy.
        mutation_scale: Standard deviation of the steps at first, in units of the cube.
        mutation_decay: What it is multiplied by in each generation, genetic strategy; `"cma"` adapts it.

    References:
        Such et al. (2017), arXiv:1712.06567, for the genetic strategy, and Hansen (2016), arXiv:1604.00772,
        for CMA-ES; both as in evosax, Lange (2022), arXiv:2212.04180.
    """

    strategy: str = eqx.field(static=True, default="genetic")
    population: int | None = eqx.field(static=True, default=None)
    generations: int = eqx.field(static=True, default=100)
    patience: int | None = eqx.field(static=True, default=20)
    tolerance: float = eqx.field(static=True, default=0.1)
    num_elites: int | None = eqx.field(static=True, default=None)
    crossover_rate: float = eqx.field(static=True, default=0.5)
    mutation_scale: float = eqx.field(static=True, default=0.2)
    mutation_decay: float = eqx.field(static=True, default=0.85)

    def __check_init__(self) -> None:
        if self.strategy not in ("genetic", "cma"):
            raise ValueError(f"Genetic: strategy must be 'genetic' or 'cma', not {self.strategy!r}")
        require_positive(self, "mutation_scale", "mutation_decay", "tolerance")
        require_positive(self, "generations", whole=True)
        for name in ("population", "patience", "num_elites"):
            if getattr(self, name) is not None:
                require_positive(self, name, whole=True)
        if self.population is not None and self.population < 4:
            raise ValueError(f"Genetic: population must be 4 or more, not {self.population}")
        if not 0 <= self.crossover_rate <= 1:
            raise ValueError(f"Genetic: crossover_rate must be from 0 to 1, not {self.crossover_rate!r}")
        if self.mutation_decay > 1:
            raise ValueError(f"Genetic: mutation_decay must be 1 or less, not {self.mutation_decay!r}")

    def search(self, evaluate: Evaluate, dim: int, key: Array) -> Known:
        """Return the calls of a search of the unit cube.

        Steps that leave the cube are reflected at its faces. The same key gives the same calls.

        Args:
            evaluate: From points, shape (n, dim), to log likelihoods, shape (n,), that may be `-inf`.
            dim: Of the cube.
            key: A typed JAX key.

        Raises:
            MissingExtraError: If evosax is not installed.
            LikelihoodError: If the log likelihood is `-inf` at all first draws, or NaN or `+inf` anywhere.
        """
        population = max(20, 8 * dim) if self.population is None else self.population
        step = _cma if self.strategy == "cma" else _genetic
        with jax.enable_x64(True):
            return _Evolution(self, evaluate, dim, population).run(step, key)


class _Evolution:
    """A search that is under way."""

    def __init__(self, settings: Genetic, evaluate: Evaluate, dim: int, population: int):
        self.settings, self._evaluate, self.dim, self.population = settings, evaluate, dim, population
        self._points: list[np.ndarray] = []
        self._values: list[np.ndarray] = []

    def run(self, step: Callable, key: Array) -> Known:
        first, *keys = jax.random.split(key, self.settings.generations + 1)
        self._begin(first)
        generate = step(self, keys[0])
        best, num_idle = self.best, 0
        for number, own in enumerate(keys):
            generate(number, own)
            num_idle = 0 if self.best > best + self.settings.tolerance else num_idle + 1
            best = max(best, self.best) if num_idle == 0 else best
            if self.settings.patience is not None and num_idle >= self.settings.patience:
                break
        return self.calls

    def _begin(self, key: Array) -> None:
        """Draw from the prior until a point is possible."""
        rng = numpy_generator(key)
        for _ in range(-(-_MAX_FIRST_DRAWS // self.population)):
            self.values(rng.uniform(size=(self.population, self.dim)))
            if self.best > -np.inf:
                return
        raise LikelihoodError(
            f"the log likelihood is -inf at all of {len(self.calls.points):,} draws from the prior: there is "
            "nothing to search for"
        )

    @property
    def calls(self) -> Known:
        return Known(np.concatenate(self._points), np.concatenate(self._values))

    @property
    def best(self) -> float:
        return max(float(values.max()) for values in self._values)

    def values(self, points: np.ndarray) -> np.ndarray:
        """Return log likelihoods at points that may lie outside the cube, at their mirror images in it."""
        images = reflected(points)
        values = np.asarray(self._evaluate(images), dtype=np.float64)
        if values.shape != (len(points),):
            raise ValueError(
                f"evaluate must return {len(points)} log likelihoods for as many points, shape "
                f"({len(points)},); it returned shape {values.shape}"
            )
        if not np.all(values < np.inf):
            worst = int(np.flatnonzero(~(values < np.inf))[0])
            raise LikelihoodError(f"the log likelihood is {values[worst]} at {images[worst]} in the cube")
        self._points.append(images)
        self._values.append(values)
        return values

    def fittest(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the best points so far, and their log likelihoods."""
        points, values = self.calls
        order = np.argsort(-values, kind="stable")[:count]
        return points[order], values[order]


def _genetic(search: _Evolution, key: Array) -> Callable[[int, Array], None]:
    """Return a function that makes one more generation: children of the better half, and the elites."""
    settings, count = search.settings, search.population
    num_elites = max(count // 10, 1) if settings.num_elites is None else min(settings.num_elites, count)
    algorithm = _simple_ga(count, search.dim, settings.mutation_scale, settings.mutation_decay)
    params = algorithm.default_params.replace(crossover_rate=settings.crossover_rate)
    points, values = search.fittest(count)
    state = algorithm.init(key, jnp.asarray(points), jnp.asarray(-values), params)

    def generate(_number: int, key: Array) -> None:
        nonlocal state
        asked, told = jax.random.split(key)
        elites, their_values = search.fittest(num_elites)
        children, state = algorithm.ask(asked, state, params)
        images = reflected(np.asarray(children))
        values = np.concatenate([search.values(images), their_values])
        order = np.argsort(-values, kind="stable")[:count]
        chosen = np.concatenate([images, elites])[order]
        state, _ = algorithm.tell(told, jnp.asarray(chosen), jnp.asarray(-values[order]), state, params)

    return generate


def _cma(search: _Evolution, key: Array) -> Callable[[int, Array], None]:
    """Return a function that makes one more generation of CMA-ES, on the cube with its mirror images."""
    algorithm = _cma_es(search.population, search.dim)
    params = algorithm.default_params.replace(std_init=jnp.asarray(search.settings.mutation_scale))
    state = algorithm.init(key, jnp.asarray(search.fittest(1)[0][0]), params)

    def generate(_number: int, key: Array) -> None:
        nonlocal state
        asked, told = jax.random.split(key)
        children, drawn = algorithm.ask(asked, state, params)
        values = search.values(np.asarray(children))
        if values.max() > -np.inf:  # where all are impossible there is nothing to learn
            ranks = np.argsort(np.argsort(-values, kind="stable")).astype(float)
            state, _ = algorithm.tell(told, children, jnp.asarray(ranks), drawn, params)

    return generate


def reflected(points: Float[np.ndarray, "num_points dim"]) -> Float[np.ndarray, "num_points dim"]:
    """Return points folded into the open unit cube at its faces, as often as it takes."""
    folded = np.abs(np.mod(points + 1.0, 2.0) - 1.0)
    return np.clip(folded, LEAST, MOST)


@functools.lru_cache(maxsize=16)  # compiled code belongs to the object
def _simple_ga(population: int, dim: int, scale: float, decay: float) -> Any:
    algorithms = _evosax()
    return algorithms.SimpleGA(
        population, jnp.zeros(dim), std_schedule=lambda generation: scale * decay**generation
    )


@functools.lru_cache(maxsize=16)
def _cma_es(population: int, dim: int) -> Any:
    return _evosax().CMA_ES(population, jnp.zeros(dim))


def _evosax() -> Any:
    try:
        from evosax import algorithms
    except ImportError as error:
        raise MissingExtraError("a genetic search needs evosax: pip install 'qbs-jax[surrogates]'") from error
    return algorithms
