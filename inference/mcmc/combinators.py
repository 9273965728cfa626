"""Kernels made of kernels: one after another, one of several, repeated, on some of the sites."""

from collections.abc import Collection, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array

from qbs.effects import sample
from qbs.inference.mcmc.kernel import Info, Kernel, State, Target


def cycle(*kernels: Kernel) -> Kernel:
    """Return the kernel that makes a step of each kernel in turn.

    Raises:
        ValueError: If there is none.
    """
    return _Cycle(_require_kernels("cycle", kernels))


def mixture(*kernels: Kernel, probabilities: Sequence[float] | None = None) -> Kernel:
    """Return the kernel that makes a step of one of several, chosen at random.

    Args:
        *kernels: The kernels.
        probabilities: Of each; positive, normalised to a sum of 1. Equal by default.

    Raises:
        ValueError: If there is no kernel, or the probabilities do not fit.
    """
    kernels = _require_kernels("mixture", kernels)
    weights = np.ones(len(kernels)) if probabilities is None else np.asarray(probabilities, dtype=float)
    if weights.shape != (len(kernels),) or not np.all((weights > 0) & np.isfinite(weights)):
        raise ValueError(f"probabilities must be {len(kernels)} positive numbers, not {probabilities!r}")
    return _Mixture(kernels, tuple(map(float, weights)))


def repeat(kernel: Kernel, num_steps: int) -> Kernel:
    """Return the kernel that makes a number of steps of another.

    Raises:
        ValueError: If the number is not a whole number above 0.
    """
    _require_kernels("repeat", (kernel,))
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"num_steps must be a whole number above 0, not {num_steps!r}")
    return _Repeat(kernel, num_steps)


def on_sites(kernel: Kernel, sites: Collection[str]) -> Kernel:
    """Return the kernel that moves some sites of a dictionary of them, the others held: a Gibbs block.

    Args:
        kernel: Moves the dictionary of the named sites alone.
        sites: Their names.

    Raises:
        ValueError: If no site is named, or, in a step, one is not there.
    """
    _require_kernels("on_sites", (kernel,))
    if isinstance(sites, str):
        raise ValueError(f"sites must be a list of names, such as [{sites!r}]")
    if not sites:
        raise ValueError("on_sites needs at least one site")
    return _OnSites(kernel, tuple(dict.fromkeys(sites)))


def steps_to_adapt(kernel: Kernel) -> int:
    """Return after how many steps no kernel in this one adapts any more.

    Those of a mixture are chosen at random: theirs is the number that suffices but once in a million times.
    """
    if isinstance(kernel, _Cycle):
        return max(map(steps_to_adapt, kernel.kernels))
    if isinstance(kernel, _Mixture):
        shares = np.asarray(kernel.weights) / sum(kernel.weights)
        return max(map(_steps_with, map(steps_to_adapt, kernel.kernels), shares))
    if isinstance(kernel, _Repeat):
        return -(-steps_to_adapt(kernel.kernel) // kernel.num_steps)
    if isinstance(kernel, _OnSites):
        return steps_to_adapt(kernel.kernel)
    return getattr(kernel, "num_warmup", 0)


def _steps_with(number: int, share: float) -> int:
    """Return in how many steps something is done a number of times that happens in a share of them."""
    from scipy import stats

    return number + int(stats.nbinom.isf(1e-6, number, share)) if number and share < 1 else number


def _require_kernels(name: str, kernels: Sequence[Any]) -> tuple[Kernel, ...]:
    if not kernels:
        raise ValueError(f"{name} needs at least one kernel")
    for kernel in kernels:
        if not isinstance(kernel, Kernel):
            raise TypeError(f"{name} takes kernels, not {type(kernel).__name__}")
    return tuple(kernels)


class _Cycle(Kernel):
    kernels: tuple[Kernel, ...]

    def init(self, key: Array, position: Any, target: Target) -> State:
        states: list[State] = []
        for kernel, own in zip(self.kernels, jax.random.split(key, len(self.kernels)), strict=True):
            states.append(kernel.init(own, states[-1].position if states else position, target))
        return _side_by_side(states)

    def begin(self, position: Any, target: Target) -> State:
        return _side_by_side([kernel.begin(position, target) for kernel in self.kernels])

    def move(self, state: State, target: Target, name: str = "step") -> tuple[State, Info]:
        inners, infos = list(state.inner), []
        for i, kernel in enumerate(self.kernels):
            own = kernel.renew(state._replace(inner=inners[i]), target)
            state, info = kernel.move(own, target, f"{name}[{i}]")
            inners[i] = state.inner
            infos.append(info)
        joined = _over_steps(jax.tree.map(lambda *leaves: jnp.stack(leaves), *infos))
        return state._replace(inner=tuple(inners)), joined


class _Mixture(Kernel):
    kernels: tuple[Kernel, ...]
    weights: tuple[float, ...] = eqx.field(static=True)

    def init(self, key: Array, position: Any, target: Target) -> State:
        return _Cycle(self.kernels).init(key, position, target)

    def begin(self, position: Any, target: Target) -> State:
        return _Cycle(self.kernels).begin(position, target)

    def move(self, state: State, target: Target, name: str = "step") -> tuple[State, Info]:
        def branch(i: int) -> Any:
            def taken(state: State) -> tuple[State, Info]:
                kernel, inners = self.kernels[i], state.inner
                own = kernel.renew(state._replace(inner=inners[i]), target)
                moved, info = kernel.move(own, target, f"{name}[{i}]")
                return moved._replace(inner=(*inners[:i], moved.inner, *inners[i + 1 :])), info

            return taken

        index = sample(f"{name}: kernel", dist.Categorical(logits=jnp.log(jnp.asarray(self.weights))))
        return lax.switch(index, [branch(i) for i in range(len(self.kernels))], state)


class _Repeat(Kernel):
    kernel: Kernel
    num_steps: int = eqx.field(static=True)

    def init(self, key: Array, position: Any, target: Target) -> State:
        return self.kernel.init(key, position, target)

    def begin(self, position: Any, target: Target) -> State:
        return self.kernel.begin(position, target)

    def renew(self, state: State, target: Target) -> State:
        return self.kernel.renew(state, target)

    def move(self, state: State, target: Target, name: str = "step") -> tuple[State, Info]:
        def turn(state: State, _: None) -> tuple[State, Info]:
            return self.kernel.move(state, target, name)

        state, infos = lax.scan(turn, state, None, length=self.num_steps)
        return state, _over_steps(infos)


class _OnSites(Kernel):
    kernel: Kernel
    sites: tuple[str, ...] = eqx.field(static=True)

    def init(self, key: Array, position: Any, target: Target) -> State:
        position = jax.tree.map(jnp.asarray, position)
        own = self.kernel.init(key, self._own(position), self._of_part(target, position))
        return own._replace(position={**position, **own.position})

    def begin(self, position: Any, target: Target) -> State:
        position = jax.tree.map(jnp.asarray, position)
        own = self.kernel.begin(self._own(position), self._of_part(target, position))
        return own._replace(position=position)

    def renew(self, state: State, target: Target) -> State:
        own = state._replace(position=self._own(state.position))
        return self.kernel.renew(own, self._of_part(target, state.position))._replace(position=state.position)

    def move(self, state: State, target: Target, name: str = "step") -> tuple[State, Info]:
        own = state._replace(position=self._own(state.position))
        moved, info = self.kernel.move(own, self._of_part(target, state.position), name)
        return moved._replace(position={**state.position, **moved.position}), info

    def _own(self, position: Any) -> dict[str, Array]:
        if not isinstance(position, dict):
            raise TypeError(f"on_sites needs a dictionary of sites, not {type(position).__name__}")
        if missing := [name for name in self.sites if name not in position]:
            raise ValueError(f"on_sites: there is no site named {missing}; there are {sorted(position)}")
        return {name: position[name] for name in self.sites}

    def _of_part(self, target: Target, position: dict[str, Array]) -> Target:
        return lambda part: target({**position, **part})


def _side_by_side(states: Sequence[State]) -> State:
    """Return the state of several kernels from that of each; the last has the position."""
    return states[-1]._replace(inner=tuple(state.inner for state in states))


def _over_steps(infos: Info) -> Info:
    """Return what happened in several steps as of one."""
    return Info(
        infos.acceptance.mean(),
        infos.num_evaluations.sum(),
        infos.num_nonfinite.sum(),
        infos.is_divergent.any(),
    )
