"""Results kept by arguments, which may hold settings that cannot be hashed."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any


def is_hashable(value: Any) -> bool:
    """Whether a value can be a key."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


def kept(function: Callable) -> Callable:
    """Return the function that keeps its last few thousand results, where the arguments can be hashed."""
    keeping = lru_cache(maxsize=4096)(function)

    @wraps(function)
    def call(*args: Any) -> Any:
        return keeping(*args) if is_hashable(args) else function(*args)

    return call
