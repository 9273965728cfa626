"""The exact measure of a program whose random choices are finite."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from qbs.errors import ProgramError
from qbs.interpreter import Semantics, interpret
from qbs.program import Program, Staged

_CHUNK = 1 << 15  # outcomes evaluated in one compiled call
_LIMIT = 1 << 26


class Choice(eqx.Module):
    """A site of a finite program: how many outcomes each of its elements has, and the elements' shape."""

    name: str = eqx.field(static=True)
    num_outcomes: int = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)


class FiniteMeasure:
    """A measure with finitely many atoms.

    Attributes:
        values: The atoms, a tree of NumPy arrays with a leading axis; no atom appears twice.
        masses: Mass of each atom, in float64; not normalised.
    """

    def __init__(self, values: Any, masses: np.ndarray):
        self.values, self.masses = values, masses

    @property
    def total_mass(self) -> float:
        """The mass of everything: the evidence."""
        return float(self.masses.sum())

    def items(self) -> Iterator[tuple[Any, float]]:
        """Yield each atom as Python values (arrays become nested tuples), with its mass."""
        for i in range(len(self.masses)):
            yield jax.tree.map(lambda leaf, i=i: _plain(leaf[i]), self.values), float(self.masses[i])

    def expect(self, function: Callable[[Any], Any]) -> np.ndarray:
        """Return the integral of a function over the measure, divided by the total mass."""
        atoms = [jax.tree.map(lambda leaf, i=i: leaf[i], self.values) for i in range(len(self.masses))]
        images = np.stack([np.asarray(function(atom), dtype=float) for atom in atoms])
        return np.asarray(np.tensordot(self.masses, images, axes=1) / self.total_mass)


def _plain(value: Any) -> Any:
    return value.item() if np.ndim(value) == 0 else tuple(map(_plain, value))


def enumerate(program: Program) -> Callable[..., FiniteMeasure]:  # noqa: A001 (the term of the field)
    """Return the function `(*args) -> FiniteMeasure` that sums over all outcomes of a program.

    Runs in float64, in compiled batches.

    Args:
        program: A program whose sites all have finite support.

    Returns:
        A function of the program's arguments.

    Raises:
        ProgramError: If a site has no finite support, or there are more than 2^26 outcomes.
    """
    return partial(_enumerate, program)


def _enumerate(program: Program, *args: Any) -> FiniteMeasure:
    with jax.enable_x64(True):
        staged = program.stage(*args)
        choices = _choices(staged)
        total = math.prod(c.num_outcomes ** math.prod(c.shape) for c in choices)
        if total > _LIMIT:
            raise ProgramError(f"{program.name!r} has {total:,} outcomes, more than {_LIMIT:,}")
        evaluate = jax.jit(partial(_evaluate, staged, tuple(choices)))
        chunk = min(_CHUNK, total)
        parts = []
        for start in range(0, total, chunk):
            outcomes = jnp.arange(start, start + chunk)
            parts.append(jax.tree.map(np.asarray, evaluate(outcomes, outcomes < total)))
        outputs, log_masses = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        return _gather(staged, outputs, np.exp(log_masses))


class _Discover(Semantics):
    """Finds out the number of outcomes of each site; the values do not matter."""

    def __init__(self) -> None:
        self.num_outcomes: dict[str, int] = {}

    def sample(self, state: Any, name: str, distribution: Any, given: Any) -> tuple[Array, Any]:
        support = _support(name, distribution)
        self.num_outcomes[name] = support.shape[0]
        return jnp.broadcast_to(support[0], distribution.batch_shape), state

    def score(self, state: Any, name: str, log_weight: Any) -> Any:
        return state


class _AtOutcome(Semantics):
    """Take each site's value by its index in the support; add up log probabilities and scores."""

    def __init__(self, choices: tuple[Choice, ...]):
        self._log_sizes = {choice.name: math.log(choice.num_outcomes) for choice in choices}

    def sample(self, state: Array, name: str, distribution: Any, given: Any) -> tuple[Array, Array]:
        value = _support(name, distribution)[given]
        return value, state + jnp.sum(distribution.log_prob(value))

    def score(self, state: Array, name: str, log_weight: Any) -> Array:
        return state + log_weight

    def untaken(self, state: Array, name: str, given: Any) -> Array:
        # Every outcome of a site that is passed by counts; together they must weigh one.
        return state if given is None else state - self._log_sizes[name] * given.size


def _support(name: str, distribution: Any) -> Array:
    if not distribution.has_enumerate_support or distribution.event_dim:
        raise ProgramError(f"site {name!r} has no finite support, so the program cannot be enumerated")
    return distribution.enumerate_support(expand=False).reshape(-1)


def _choices(staged: Staged) -> list[Choice]:
    found = _Discover()

    def walk(operands: list[Array]) -> dict[str, Array]:
        return interpret(staged.jaxpr.jaxpr, staged.jaxpr.consts, operands, found, (), {}).trace

    shapes = jax.eval_shape(walk, staged.operands)
    return [Choice(name, size, shapes[name].shape) for name, size in found.num_outcomes.items()]


def _evaluate(staged: Staged, choices: tuple[Choice, ...], outcomes: Array, is_valid: Array) -> Any:
    def one(outcome: Array) -> tuple[list[Array], Array]:
        given = {}
        for choice in choices:
            digits = []
            for _ in range(math.prod(choice.shape)):
                digits.append(outcome % choice.num_outcomes)
                outcome = outcome // choice.num_outcomes
            given[choice.name] = (
                jnp.stack(digits).reshape(choice.shape) if digits else jnp.zeros(choice.shape, int)
            )
        walked = interpret(
            staged.jaxpr.jaxpr,
            staged.jaxpr.consts,
            staged.operands,
            _AtOutcome(choices),
            jnp.zeros(()),
            given,
        )
        return walked.outputs, walked.state

    outputs, log_mass = jax.vmap(one)(outcomes)
    return outputs, jnp.where(is_valid, log_mass, -jnp.inf)


def _gather(staged: Staged, outputs: list, masses: np.ndarray) -> FiniteMeasure:
    """Add up the masses of equal values."""
    if np.any(np.isnan(masses)):
        raise ProgramError("a log weight or log probability of the program is NaN")
    kept = masses > 0
    masses, outputs = masses[kept], [leaf[kept] for leaf in outputs]
    if not outputs:
        return FiniteMeasure(staged.unflatten([]), np.array([masses.sum()]))
    rows = np.concatenate([leaf.reshape(len(masses), -1).astype(np.float64) for leaf in outputs], axis=1)
    _, first, which = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    total = np.bincount(which.ravel(), weights=masses, minlength=len(first))
    return FiniteMeasure(staged.unflatten([leaf[first] for leaf in outputs]), total)
