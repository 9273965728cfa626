"""Kernels of the kind of Metropolis and Hastings: random walk, independence, single sites of a trace."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array, Float, Int

from qbs.effects import sample
from qbs.inference.mcmc.kernel import (
    Info,
    Kernel,
    State,
    Target,
    accept,
    finite_or_impossible,
    report,
)
from qbs.inference.mcmc.trace_target import TraceTarget
from qbs.inference.mcmc.vectors import as_vector

Proposal = Callable[[dict[str, Array]], Mapping[str, dist.Distribution]]
"""From the sites to the distribution of the new value of each that moves, independent of one another."""


class MetropolisHastings(Kernel):
    """Proposes new values of some sites, given the present ones, and accepts by Hastings's ratio.

    Attributes:
        proposal: From a dictionary of sites to the distribution of the new value of each site that moves.

    References:
        Hastings (1970), "Monte Carlo sampling methods using Markov chains and their applications".
    """

    proposal: Proposal = eqx.field(static=True)

    def move(self, state: State, target: Target, name: str = "step") -> tuple[State, Info]:
        """Make one step; see `Kernel.move`."""
        return propose(self.proposal, state, target, name)


class Independence(Kernel):
    """Proposes sites from fixed distributions, whatever the present values are.

    Attributes:
        distributions: Of the new value of each site that moves.
    """

    distributions: Mapping[str, dist.Distribution]

    def move(self, state: State, target: Target, name: str = "step") -> tuple[State, Info]:
        """Make one step; see `Kernel.move`."""
        return propose(lambda _: self.distributions, state, target, name)


def propose(proposal: Proposal, state: State, target: Target, name: str) -> tuple[State, Info]:
    """Make a step with a proposal.

    Raises:
        ValueError: If the proposal names a site that is not there, or is of another shape.
    """
    there = proposal(state.position)
    new = dict(state.position)
    for site, distribution in there.items():
        if site not in new:
            raise ValueError(f"the proposal moves {site!r}, which is not among the sites {sorted(new)}")
        if distribution.shape() != jnp.shape(new[site]):
            raise ValueError(
                f"the proposal of {site!r} has shape {distribution.shape()}, the site {jnp.shape(new[site])}"
            )
        new[site] = sample(f"{name}: {site}", distribution).astype(state.position[site].dtype)
    back = proposal(new)
    log_density, is_bad = finite_or_impossible(target(new))
    log_ratio = log_density - state.log_density
    for site in there:
        log_ratio += _total(back[site], state.position[site]) - _total(there[site], new[site])
    (position, log_density), acceptance = accept(
        log_ratio, (new, log_density), (state.position, state.log_density), name
    )
    return State(position, log_density, state.inner), report(acceptance, 1, is_bad)


def _total(distribution: dist.Distribution, value: Array) -> Array:
    inside = distribution.support(value) if distribution.support is not None else True
    return jnp.sum(jnp.where(inside, distribution.log_prob(value), -jnp.inf))


class Walked(NamedTuple):
    """What a random walk has learnt: steps so far, moments of where it was, log of its scale."""

    num_steps: Int[Array, ""]
    mean: Float[Array, " dim"]
    covariance: Float[Array, "dim dim"]
    log_scale: Float[Array, ""]


class RandomWalk(Kernel):
    r"""Random-walk Metropolis on all floating-point numbers of the position at once.

    With `num_warmup` steps of warm-up it learns the covariance of its steps, and a scale that gives an
    acceptance of `target_accept`, as a stochastic approximation with steps \(n^{-0.6}\).

    Attributes:
        scale: Standard deviation of a step in each coordinate, before adaptation: a number, or one for each.
        num_warmup: The number of first steps that adapt.
        target_accept: Mean probability of acceptance to adapt to: 0.234, or 0.44 in one dimension, if `None`.
        noise: The distribution of a step in each coordinate before scaling; symmetric about zero.

    References:
        Haario, Saksman & Tamminen (2001), "An adaptive Metropolis algorithm". Andrieu & Thoms (2008), "A
        tutorial on adaptive MCMC", algorithm 4. Roberts, Gelman & Gilks (1997) for 0.234.
    """

    scale: Float[Array, "..."] = eqx.field(converter=lambda scale: jnp.asarray(scale, float), default=0.1)
    num_warmup: int = eqx.field(static=True, default=0)
    target_accept: float | None = None
    noise: dist.Distribution = eqx.field(default_factory=lambda: dist.Normal(0.0, 1.0))

    def begin(self, position: Any, target: Target) -> State:
        """Return the state at a position; see `Kernel.begin`."""
        state = super().begin(position, target)
        if not self.num_warmup:
            return state
        flat = as_vector(state.position)[0]
        variances = jnp.broadcast_to(self.scale, flat.shape) ** 2
        return state._replace(inner=Walked(jnp.zeros((), int), flat, jnp.diag(variances), jnp.zeros(())))

    def move(self, state: State, target: Target, name: str = "step") -> tuple[State, Info]:
        """Make one step; see `Kernel.move`."""
        flat, unravel = as_vector(state.position)
        noise = sample(f"{name}: noise", self.noise.expand(flat.shape)).astype(flat.dtype)
        if self.num_warmup:
            learnt: Walked = state.inner
            root = jnp.linalg.cholesky(learnt.covariance)
            jump = jnp.exp(learnt.log_scale) * (root @ noise)
        else:
            jump = jnp.broadcast_to(self.scale, flat.shape) * noise
        new = unravel(flat + jump)
        log_density, is_bad = finite_or_impossible(target(new))
        (position, log_density), acceptance = accept(
            log_density - state.log_density, (new, log_density), (state.position, state.log_density), name
        )
        inner = (
            self._learn(state.inner, as_vector(position)[0], acceptance) if self.num_warmup else state.inner
        )
        return State(position, log_density, inner), report(acceptance, 1, is_bad)

    def _learn(self, learnt: Walked, flat: Array, acceptance: Array) -> Walked:
        wanted = self.target_accept or (0.44 if flat.size == 1 else 0.234)
        rate = (learnt.num_steps + 2.0) ** -0.6
        gap = flat - learnt.mean
        floor = 1e-10 * jnp.diag(jnp.broadcast_to(self.scale, flat.shape) ** 2)
        after = Walked(
            learnt.num_steps + 1,
            learnt.mean + rate * gap,
            learnt.covariance + rate * (jnp.outer(gap, gap) - learnt.covariance) + rate * floor,
            learnt.log_scale + rate * (acceptance - wanted),
        )
        is_over = learnt.num_steps >= self.num_warmup
        return jax.tree.map(lambda old, new: jnp.where(is_over, old, new), learnt, after)


class TraceMH(Kernel):
    """Draws one site of a program anew, from its distribution given the sites before it, and accepts or not.

    The target must be a `TraceTarget`: a program with its arguments. It works for sites of any kind.

    References:
        Wingate, Stuhlmueller & Goodman (2011), "Lightweight implementations of probabilistic programming
        languages via transformational compilation"; Scibior et al. (2018), section 4.3.
    """

    def move(self, state: State, target: Target, name: str = "step") -> tuple[State, Info]:
        """Make one step; see `Kernel.move`."""
        if not isinstance(target, TraceTarget):
            raise TypeError("TraceMH needs a TraceTarget, a program with its arguments, as its target")
        sites = sorted(state.position)

        def redraw(site: str) -> Any:
            def taken(position: dict[str, Array]) -> tuple[dict[str, Array], Array, Array]:
                value, rest = target.redraw(position, site, f"{name}: {site}")
                new = {**position, site: value}
                return new, rest, target.without(position, site)

            return taken

        index = sample(f"{name}: site", dist.DiscreteUniform(0, len(sites) - 1))
        new, there, here = lax.switch(index, [redraw(site) for site in sites], state.position)
        there, is_bad = finite_or_impossible(there)
        log_density, _ = finite_or_impossible(target(new))
        (position, log_density), acceptance = accept(
            there - here, (new, log_density), (state.position, state.log_density), name
        )
        return State(position, log_density, state.inner), report(acceptance, 3, is_bad)
