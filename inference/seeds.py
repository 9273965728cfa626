"""From JAX keys to the random generators of NumPy."""

import jax
import numpy as np
from jaxtyping import Array


def seed_words(key: Array) -> list[int]:
    """Return the words of a typed JAX key, as whole numbers."""
    return [int(word) for word in np.ravel(np.asarray(jax.random.key_data(key)))]


def numpy_generator(key: Array) -> np.random.Generator:
    """Return the generator that a typed JAX key seeds."""
    return np.random.default_rng(seed_words(key))
