"""Reversible jump on states of slots: birth and death, split and merge.

A state is a dictionary with a count and, for each property of a component, an array whose first axis has a
slot for each component that there may be. The first `count` slots exist; the others hold a reference. The
target is the density of the list of components, such as that of independent draws, and must not weigh the
others. Moves put components into the list at places drawn at random, so that no order is ever preferred.

References:
    Green (1995), "Reversible jump Markov chain Monte Carlo computation and Bayesian model determination".
    Richardson & Green (1997), "On Bayesian analysis of mixtures with an unknown number of components".
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from qbs.effects import sample
from qbs.inference.mcmc.combinators import mixture
from qbs.inference.mcmc.green import Green, green
from qbs.inference.mcmc.kernel import Kernel

Laws = Mapping[str, dist.Distribution]

# Names of the moves' own random choices, which no property of a component has.
_GOES_UP, _PLACE, _OTHER_PLACE = _OWN = ("jump: goes up", "jump: place", "jump: other place")


class Birth(NamedTuple):
    """A pair of moves: a component is born, or one dies.

    Attributes:
        propose: From the state, without the component, to the distribution of each of its properties.
    """

    propose: Callable[[dict[str, Array]], Laws]


class Split(NamedTuple):
    """A pair of moves: a component splits into two, or two merge into one.

    Attributes:
        propose: From the component that splits, by property, to the distributions of the further numbers
            that the split needs.
        split: From the component and those numbers to the two components.
        merge: The inverse: from two components to one and the numbers.
    """

    propose: Callable[[dict[str, Array]], Laws]
    split: Callable[[dict[str, Array], dict[str, Array]], tuple[dict[str, Array], dict[str, Array]]]
    merge: Callable[[dict[str, Array], dict[str, Array]], tuple[dict[str, Array], dict[str, Array]]]


def reversible_jump(
    *moves: Birth | Split,
    slots: Sequence[str],
    count: str = "count",
    min_count: int = 0,
    reference: Mapping[str, Any] | None = None,
    probabilities: Sequence[float] | None = None,
) -> Kernel:
    """Return the kernel that changes the number of components by one.

    ```python
    jumps = reversible_jump(Birth(lambda state: {"place": dist.Uniform(0, 1)}), slots=["place"])
    ```

    Other kernels move the components that there are: `cycle(jumps, on_sites(RandomWalk(), ["place"]))`,
    for a target that does not weigh the slots that do not exist.

    Args:
        *moves: The pairs of moves; one of them is chosen in each step.
        slots: The names of the properties of a component. Those in `count` and `slots` are read and
            changed; everything else in the state is kept.
        count: The name of the number of components.
        min_count: The least number of components.
        reference: What slots hold that do not exist, by name; zero by default. It must lie in the support
            of the site where the target is a NumPyro model.
        probabilities: Of the pairs of moves; equal by default.

    Raises:
        ValueError: If there are no moves or slots, or, in a step, the moves do not fit the state.
    """
    if not moves:
        raise ValueError("reversible_jump needs at least one pair of moves, a Birth or a Split")
    if isinstance(slots, str) or not slots:
        raise ValueError("slots must be a list of the names of the properties of a component")
    layout = _Layout(tuple(slots), count, min_count, dict(reference or {}))
    kernels: list[Kernel] = []
    for pair in moves:
        if isinstance(pair, Birth):
            kernels.append(_birth(layout, pair))
        elif isinstance(pair, Split):
            kernels.append(_split(layout, pair))
        else:
            raise TypeError(f"reversible_jump takes Birth and Split, not {type(pair).__name__}")
    return kernels[0] if len(kernels) == 1 else mixture(*kernels, probabilities=probabilities)


@dataclass(frozen=True)
class _Layout:
    """Where the components are in a state."""

    slots: tuple[str, ...]
    count: str
    min_count: int
    reference: dict[str, Any]

    def size(self, state: dict[str, Array]) -> int:
        """Return how many slots there are."""
        if missing := [name for name in (self.count, *self.slots) if name not in state]:
            raise ValueError(f"reversible_jump: the state has no {missing}; it has {sorted(state)}")
        if not jnp.issubdtype(state[self.count].dtype, jnp.integer) or state[self.count].shape:
            raise ValueError(f"reversible_jump: {self.count!r} must be an integer without axes")
        sizes = {name: (*jnp.shape(state[name]), 0)[0] for name in self.slots}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"reversible_jump: the slots must be as many for each property, not {sizes}")
        return next(iter(sizes.values()))

    def exists(self, state: dict[str, Array]) -> dict[str, Array]:
        """Return which numbers of a state exist."""
        there = jnp.arange(self.size(state)) < state[self.count]
        return {
            name: there.reshape(-1, *[1] * (jnp.ndim(value) - 1))
            if name in self.slots
            else jnp.ones((), bool)
            for name, value in state.items()
        }

    def empty(self, state: dict[str, Array]) -> dict[str, Any]:
        """Return what numbers are where they do not exist."""
        return {name: self.reference.get(name, 0) for name in state}

    def component(self, state: dict[str, Array], index: Array) -> dict[str, Array]:
        """Return one component."""
        return {name: state[name][index] for name in self.slots}

    def inserted(
        self, state: dict[str, Array], index: Array, component: dict[str, Array]
    ) -> dict[str, Array]:
        """Return the state with one more component, at a place among the others."""
        places = jnp.arange(self.size(state))
        source = jnp.where(places > index, places - 1, places)
        new = {name: state[name][source].at[index].set(component[name]) for name in self.slots}
        return {**state, **new, self.count: state[self.count] + 1}

    def removed(self, state: dict[str, Array], index: Array) -> dict[str, Array]:
        """Return the state without the component at a place."""
        size = self.size(state)
        places = jnp.arange(size)
        source = jnp.minimum(jnp.where(places >= index, places + 1, places), size - 1)
        new = {name: state[name][source] for name in self.slots}
        return {**state, **new, self.count: state[self.count] - 1}

    def replaced(
        self, state: dict[str, Array], index: Array, component: dict[str, Array]
    ) -> dict[str, Array]:
        """Return the state with another component at a place."""
        new = {name: state[name].at[index].set(component[name]) for name in self.slots}
        return {**state, **new}

    def draw_direction(self, state: dict[str, Array], least: int) -> Array:
        """Draw whether the number goes up: surely at the least number, never at the greatest."""
        number, size = state[self.count], self.size(state)
        probability = jnp.where(number <= least, 1.0, jnp.where(number >= size, 0.0, 0.5))
        return sample(_GOES_UP, dist.Bernoulli(probs=probability)) == 1

    def draw_place(self, name: str, state: dict[str, Array], number: Array) -> Array:
        """Draw a place among the first of a number of slots."""
        is_there = jnp.arange(self.size(state)) < jnp.maximum(number, 1)
        return sample(name, dist.Categorical(logits=jnp.where(is_there, 0.0, -jnp.inf)))


def _birth(layout: _Layout, moves: Birth) -> Green:
    def auxiliary(state: dict[str, Array]) -> None:
        goes_up = layout.draw_direction(state, layout.min_count)
        layout.draw_place(_PLACE, state, state[layout.count] + goes_up)
        for name, law in _laws(moves.propose(state), layout.slots).items():
            sample(name, law.mask(goes_up))

    def involution(state: dict[str, Array], drawn: dict[str, Array]) -> tuple:
        goes_up, place = drawn[_GOES_UP] == 1, drawn[_PLACE]
        born = {name: drawn[name] for name in layout.slots}
        up = layout.inserted(state, place, {name: born[name].astype(state[name].dtype) for name in born})
        down, dead = layout.removed(state, place), layout.component(state, place)
        moved = jax.tree.map(lambda a, b: jnp.where(goes_up, a, b), up, down)
        back = {name: jnp.where(goes_up, 0, dead[name]).astype(drawn[name].dtype) for name in born}
        return moved, {**back, _GOES_UP: 1 - drawn[_GOES_UP], _PLACE: place}, jnp.zeros(())

    return green(auxiliary, involution, layout.exists, layout.empty)


def _split(layout: _Layout, moves: Split) -> Green:
    least = max(layout.min_count, 1)

    def auxiliary(state: dict[str, Array]) -> None:
        goes_up = layout.draw_direction(state, least)
        lower = state[layout.count] - ~goes_up  # of the two numbers of components, the lower one
        place = layout.draw_place(_PLACE, state, lower)
        layout.draw_place(_OTHER_PLACE, state, lower + 1)
        for name, law in moves.propose(layout.component(state, place)).items():
            sample(name, law.mask(goes_up))

    def involution(state: dict[str, Array], drawn: dict[str, Array]) -> tuple:
        goes_up, place, other = drawn[_GOES_UP] == 1, drawn[_PLACE], drawn[_OTHER_PLACE]
        further = {name: value for name, value in drawn.items() if name not in _OWN}
        one = layout.component(state, place)
        first, second = moves.split(one, further)
        up = layout.inserted(layout.replaced(state, place, first), other, second)
        without = layout.removed(state, other)
        merged, found = moves.merge(layout.component(without, place), layout.component(state, other))
        down = layout.replaced(without, place, merged)
        growth = jnp.where(
            goes_up, _log_growth(moves, one, further), -_log_growth(moves, merged, {**further, **found})
        )
        back = {name: jnp.where(goes_up, 0, found[name]).astype(drawn[name].dtype) for name in further}
        moved = jax.tree.map(lambda a, b: jnp.where(goes_up, a, b), up, down)
        return moved, {**drawn, **back, _GOES_UP: 1 - drawn[_GOES_UP]}, growth

    return green(auxiliary, involution, layout.exists, layout.empty)


def _log_growth(moves: Split, one: dict[str, Array], further: dict[str, Array]) -> Array:
    """Return the log of how much a split stretches volume: of the determinant of its derivative."""
    floats, rest = eqx.partition((one, further), eqx.is_inexact_array)
    flat, unravel = ravel_pytree(floats)

    def split(flat: Array) -> Array:
        pair = moves.split(*eqx.combine(unravel(flat), rest))
        return ravel_pytree(eqx.filter(pair, eqx.is_inexact_array))[0]

    size = jax.eval_shape(split, flat).size
    if size != flat.size:
        raise ValueError(
            f"Split: the dimensions do not match: one component and what is proposed are {flat.size} "
            f"floating-point numbers, the two components {size}"
        )
    return jnp.linalg.slogdet(jax.jacfwd(split)(flat))[1]


def _laws(laws: Laws, slots: Sequence[str]) -> Laws:
    if set(laws) != set(slots):
        raise ValueError(f"Birth: propose must give the properties {sorted(slots)}, not {sorted(laws)}")
    return laws
