"""A genetic search over the shapes of networks and how they are trained, in the manner of nnogada."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from qbs.inference.nested.scaled_network import ACTIVATIONS, Limits, Recipe
from qbs.inference.seeds import numpy_generator

# What genes choose from, in the order of the fields of a recipe.
CHOICES: dict[str, tuple] = {
    "num_layers": (2, 3, 4),
    "width": (50, 100, 200),
    "activation": ACTIVATIONS,
    "batch_size": (16, 32, 64),
    "learning_rate": (1e-2, 1e-3, 1e-4),
    "num_epochs": (50, 100, 200),
}
LARGEST = Limits(*(int(max(CHOICES[name])) for name in Limits._fields))
_BITS = 2  # for each choice
_CROSSOVER, _MUTATION, _FLIP = 0.5, 0.5, 0.11  # of a pair, of a child, of a bit of a child that mutates


class Tuned(NamedTuple):
    """What a search has found.

    Attributes:
        recipe: The best.
        loss: Its validation loss.
        num_trained: Different networks that were trained.
    """

    recipe: Recipe
    loss: float
    num_trained: int


def tuned(
    loss_of: Callable[[Recipe, Array], float], key: Array, *, population: int, generations: int
) -> Tuned:
    """Return the recipe with the least validation loss that a genetic search comes across.

    A genome has two bits for each choice. Parents win a tournament of two, pairs exchange half of their bits
    with probability 0.5, a child mutates with probability 0.5, in each bit with probability 0.11, and the
    best genome so far stays in the population. A genome is trained once.

    Args:
        loss_of: Trains a network, from a key, and returns its validation loss.
        key: A typed JAX key.
        population: Genomes in a generation.
        generations: After the first, which is drawn at random.

    References:
        Gomez-Vargas, Briones Andrade & Vazquez (2023), "Neural networks optimized by genetic algorithms in
        cosmology", arXiv:2209.02685.
    """
    drawing, training = jax.random.split(key)
    rng = numpy_generator(drawing)
    losses: dict[bytes, float] = {}

    def fitness(genome: np.ndarray) -> float:
        name = genome.tobytes()
        if name not in losses:
            found = loss_of(decoded(genome), jax.random.fold_in(training, len(losses)))
            losses[name] = found if np.isfinite(found) else np.inf
        return losses[name]

    genomes = rng.integers(0, 2, (population, _BITS * len(CHOICES)), dtype=np.uint8)
    fit = np.array([fitness(genome) for genome in genomes])
    for _ in range(generations):
        best = genomes[np.argmin(fit)].copy()
        rivals = rng.integers(0, population, (population - 1, 2))
        children = genomes[np.where(fit[rivals[:, 0]] <= fit[rivals[:, 1]], rivals[:, 0], rivals[:, 1])]
        for first, second in zip(children[::2], children[1::2], strict=False):
            if rng.uniform() < _CROSSOVER:
                swap = rng.uniform(size=len(first)) < 0.5
                first[swap], second[swap] = second[swap], first[swap]
        flips = rng.uniform(size=children.shape) < _FLIP
        flips &= rng.uniform(size=(len(children), 1)) < _MUTATION
        genomes = np.concatenate([children ^ flips, best[None]])
        fit = np.array([fitness(genome) for genome in genomes])
    place = int(np.argmin(fit))
    return Tuned(decoded(genomes[place]), float(fit[place]), len(losses))


def decoded(genome: np.ndarray) -> Recipe:
    """Return the recipe of a genome; of the four values of two bits, the last is the first again."""
    values = genome.reshape(-1, _BITS) @ (2 ** np.arange(_BITS)[::-1])
    return Recipe(
        *(choices[int(value) % len(choices)] for value, choices in zip(values, CHOICES.values(), strict=True))
    )
