"""The exact measure of a program whose random choices are finite."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array

from qbs.errors import ProgramError
from qbs.interpreter import Interpreted, Semantics, interpret
from qbs.program import Program, Staged

CHUNK = 1 << 15  # outcomes evaluated in one compiled call
_LIMIT = 1 << 26


class Law(NamedTuple):
    """What the elements of a site can be.

    Attributes:
        num_outcomes: How many atoms each element has; 0 leaves that to the caller.
        first: What says "the first atom" of every element; its first leaf holds indices.
        at: Returns the site's value and the log mass of each element, at one atom of each.
    """

    num_outcomes: int
    first: Any
    at: Callable[[Any], tuple[Array, Array]]


class Choice(NamedTuple):
    """A site: how many outcomes each of its elements has (0: not fixed), and the elements' shape."""

    name: str
    num_outcomes: int
    shape: tuple[int, ...]


LawOf = Callable[[str, Any], Law]


class FiniteMeasure:
    """A measure with finitely many atoms.

    Attributes:
        values: The atoms, a tree of NumPy arrays with a leading axis.
        masses: Mass of each atom, in float64; not normalised.
        log_total_mass: Log of the mass of everything, in nats, also where the masses are beyond float64.
        error: Estimated relative error of the total mass; 0 for an enumeration, which is exact.
    """

    def __init__(self, values: Any, log_masses: np.ndarray, *, error: float = 0.0):
        top = np.max(log_masses, initial=-np.inf)
        self._log_scale = float(top) if np.isfinite(top) else 0.0
        self._weights = np.exp(log_masses - self._log_scale)
        self.values, self.error = values, error

    @property
    def masses(self) -> np.ndarray:  # noqa: D102 (an attribute to its users)
        return self._weights * np.exp(self._log_scale)

    @property
    def total_mass(self) -> float:
        """The mass of everything: the evidence."""
        return float(np.exp(self.log_total_mass))

    @property
    def log_total_mass(self) -> float:  # noqa: D102
        total = float(self._weights.sum())
        return self._log_scale + math.log(total) if total else -math.inf

    def items(self) -> Iterator[tuple[Any, float]]:
        """Yield each atom as Python values (arrays become nested tuples), with its mass."""
        for i, mass in zip(range(len(self._weights)), self.masses.tolist(), strict=True):
            yield jax.tree.map(lambda leaf, i=i: _plain(leaf[i]), self.values), mass

    def expect(self, function: Callable[[Any], Any]) -> np.ndarray:
        """Return the integral of a function of one atom over the measure, divided by the total mass.

        The function is evaluated on all atoms at once where JAX can trace it, one by one where it cannot.

        Raises:
            ProgramError: If the total mass is zero.
        """
        if not self._weights.any():
            raise ProgramError("the total mass of the measure is zero: there is nothing to average over")
        weights = self._weights / self._weights.sum()
        try:
            with jax.enable_x64(True):
                images = np.asarray(jax.vmap(function)(self.values), dtype=float)
        except (jax.errors.JAXTypeError, jax.errors.JAXIndexError, TypeError, AttributeError):
            atoms = [jax.tree.map(lambda leaf, i=i: leaf[i], self.values) for i in range(len(weights))]
            images = np.stack([np.asarray(function(atom), dtype=float) for atom in atoms])
        return np.asarray(np.tensordot(weights, images, axes=1))


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
        choices = find_choices(staged, finite_law)
        total = math.prod(choice.num_outcomes ** math.prod(choice.shape) for choice in choices)
        if total > _LIMIT:
            raise ProgramError(f"{program.name!r} has {total:,} outcomes, more than {_LIMIT:,}")
        at_outcomes = jax.jit(partial(evaluate, staged, finite_law, partial(indices, choices)))
        chunk = min(CHUNK, total)
        parts = [at_outcomes(jnp.arange(chunk) + start, total) for start in range(0, total, chunk)]
        outputs, log_masses = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        return _gather(staged, outputs, log_masses)


def finite_law(name: str, distribution: Any) -> Law:
    """Return the law of a site with finite support.

    A distribution may have a method `finite_law()` that returns its atoms and their log masses, with a
    leading axis over atoms in front of its batch shape; otherwise its support must be enumerable.

    Raises:
        ProgramError: If the site has no finite support that is known while tracing.
    """
    if isinstance(distribution, dist.Independent):  # a choice for each element
        return finite_law(name, distribution.base_dist)
    first = jnp.zeros(distribution.batch_shape, int)
    if hasattr(distribution, "finite_law"):
        atoms, log_masses = distribution.finite_law()

        def pick(index: Array) -> tuple[Array, Array]:
            value, log_mass = (jnp.take_along_axis(x, index[None], 0)[0] for x in (atoms, log_masses))
            return value, log_mass

        return Law(log_masses.shape[0], first, pick)
    support = _support(name, distribution)

    def at(index: Array) -> tuple[Array, Array]:
        value = support[index]
        return value, jnp.where(distribution.support(value), distribution.log_prob(value), -jnp.inf)

    return Law(support.shape[0], first, at)


def _support(name: str, distribution: Any) -> Array:
    """Return all values that some element of a site can take."""
    if not distribution.has_enumerate_support or distribution.event_dim:
        raise ProgramError(f"site {name!r} has no finite support: its values cannot be enumerated")
    if not isinstance(distribution.support, dist.constraints.integer_interval):
        return distribution.enumerate_support(expand=False).reshape(-1)
    low, high = distribution.support.lower_bound, distribution.support.upper_bound
    if isinstance(low, jax.core.Tracer) or isinstance(high, jax.core.Tracer):
        raise ProgramError(f"the support of site {name!r} depends on values that are known only in a run")
    return jnp.arange(np.min(low), np.max(high) + 1)


class _Discover(Semantics):
    """Finds out the number of outcomes of each site; the values do not matter."""

    def __init__(self, law_of: LawOf) -> None:
        self.law_of = law_of
        self.found: dict[str, int] = {}

    def sample(self, state: Any, name: str, distribution: Any, given: Any) -> tuple[Array, Any]:
        law = self.law_of(name, distribution)
        self.found[name] = max(self.found.get(name, 0), law.num_outcomes)  # branches may share a name
        return law.at(law.first)[0], state

    def score(self, state: Any, name: str, log_weight: Any) -> Any:
        return state


class _AtOutcome(Semantics):
    """Take each site's value at one of its atoms; add up log masses and scores."""

    def __init__(self, law_of: LawOf):
        self._law_of = law_of

    def sample(self, state: Array, name: str, distribution: Any, given: Any) -> tuple[Array, Array]:
        law = self._law_of(name, distribution)
        if not law.num_outcomes:
            value, log_mass = law.at(given)
        else:  # a site of the same name in another branch may have more outcomes
            value, log_mass = law.at(jnp.minimum(given, law.num_outcomes - 1))
            log_mass = jnp.where(given < law.num_outcomes, log_mass, -jnp.inf)
        return value, _plus(state, jnp.sum(log_mass))

    def score(self, state: Array, name: str, log_weight: Any) -> Array:
        return _plus(state, log_weight)

    def untaken(self, state: Array, name: str, given: Any) -> Array:
        # What a site that is passed by would be does not matter: all of its mass is on the first atom.
        index = 0 if given is None else jax.tree.leaves(given)[0]
        return jnp.where(jnp.all(index == 0), state, -jnp.inf)


def _plus(log_mass: Array, increment: Any) -> Array:
    """Add to a log mass; where there is next to no mass, what comes after does not matter, NaN included."""
    total = log_mass + increment
    return jnp.where(jnp.isnan(total) & (log_mass < -1e4), -jnp.inf, total)


def find_choices(staged: Staged, law_of: LawOf) -> list[Choice]:
    """Return the choices of a program, in the order of their sites."""
    discover = _Discover(law_of)
    traced = jax.eval_shape(lambda operands: _walk(staged, operands, discover, {}).trace, staged.operands)
    return [Choice(name, size, traced[name].shape) for name, size in discover.found.items()]


def indices(choices: list[Choice], outcome: Any, size: Any = 0) -> dict[str, Array]:
    """Return the index of the atom of every element, from the number of an outcome.

    The first element of the first choice varies fastest; `size` is the number of outcomes where a choice
    does not fix it.
    """
    found = {}
    for choice in choices:
        digits = []
        for _ in range(math.prod(choice.shape)):
            digits.append(outcome % (choice.num_outcomes or size))
            outcome = outcome // (choice.num_outcomes or size)
        found[choice.name] = jnp.array(digits, dtype=int).reshape(choice.shape)
    return found


def evaluate(
    staged: Staged, law_of: LawOf, given_of: Callable[[Array], dict[str, Any]], outcomes: Array, total: Any
) -> tuple[list[Array], Array]:
    """Return the outputs of a program, and the log mass, at each of some outcomes.

    Args:
        staged: The program.
        law_of: From a site's name and distribution to its law.
        given_of: From the number of an outcome to the atoms of every site.
        outcomes: Numbers of outcomes.
        total: How many there are; beyond, the log mass is `-inf`.
    """

    def one(outcome: Array) -> tuple[list[Array], Array]:
        walked = _walk(staged, staged.operands, _AtOutcome(law_of), given_of(outcome))
        return walked.outputs, walked.state

    outputs, log_masses = jax.vmap(one)(outcomes)
    return outputs, jnp.where(outcomes < total, log_masses, -jnp.inf)


def _walk(staged: Staged, operands: list[Array], semantics: Semantics, given: dict[str, Any]) -> Interpreted:
    return interpret(staged.jaxpr.jaxpr, staged.jaxpr.consts, operands, semantics, jnp.zeros(()), given)


def _gather(staged: Staged, outputs: list, log_masses: np.ndarray) -> FiniteMeasure:
    """Add up the masses of equal values."""
    if np.any(np.isnan(log_masses)):
        raise ProgramError("a log weight or log probability of the program is NaN")
    top = np.max(log_masses, initial=-np.inf)
    kept = log_masses > top - 700  # the rest is 0 in float64
    weights, outputs = np.exp(log_masses[kept] - top), [leaf[kept] for leaf in outputs]
    columns = [leaf.reshape(len(weights), math.prod(leaf.shape[1:])) for leaf in outputs]
    rows = np.concatenate([np.zeros((len(weights), 1)), *columns], axis=1)
    _, first, which = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    totals = np.bincount(which.ravel(), weights=weights, minlength=len(first))
    return FiniteMeasure(staged.unflatten([leaf[first] for leaf in outputs]), top + np.log(totals))
