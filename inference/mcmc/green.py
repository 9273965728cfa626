r"""Metropolis-Hastings-Green: a kernel from an auxiliary program and an involution, and nothing else.

A step draws the auxiliary variables u from their program, given the position x; applies the involution,
\((x', u') = f(x, u)\); and accepts with the probability min(1, r), where r is a Radon-Nikodym derivative:

\[\log r = \log a(x') + \log q(u'|x') - \log a(x) - \log q(u|x) + \log |\det \partial f / \partial(x, u)|.\]

The determinant is over the floating-point coordinates that are active. All of Metropolis and Hastings,
Hamiltonian Monte Carlo and reversible jump are of this form.

References:
    Green (1995), "Reversible jump Markov chain Monte Carlo computation and Bayesian model determination".
    Tierney (1998), "A note on Metropolis-Hastings kernels for general state spaces". Scibior et al. (2018),
    section 4.3.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool

from qbs.batches import mask_of
from qbs.inference.mcmc.kernel import Info, Kernel, State, Target, accept, finite_or_impossible, report
from qbs.inference.mcmc.trace_target import TraceTarget
from qbs.inference.transform.replay import Replay, replay
from qbs.interpreter import Semantics, interpret
from qbs.jaxprs import open_jaxpr
from qbs.program import Program, unmasked
from qbs.semantics.run import run

Auxiliary = Callable[[Any], Any]
"""Draws by `qbs.sample`, given the position; what it returns is not used."""

Involution = Callable[[Any, dict[str, Array]], tuple]
"""From position and auxiliary variables by name to the same; also, if wanted, the log of its determinant."""

Exists = Callable[[Any], Any]
"""From the position to a tree of booleans of the same form: which of its numbers exist."""

_CHECKED = 32  # proposals that are checked before a run
_TOLERANCE = {4: 1e-3, 8: 1e-8}  # of f(f(z)) - z, relative, by bytes of a number

_FAULTS = (
    "the map is not an involution: applied twice, it does not give back the position and the auxiliary "
    "variables that exist",
    "the dimensions do not match: the map takes in another number of existing floating-point numbers than it "
    "gives out",
    "the map changes numbers that exist neither before nor after it, or does not leave them as they are",
    "the log determinant that the map gives is not that of its derivative",
)


def green(
    auxiliary: Auxiliary,
    involution: Involution,
    exists: Exists | None = None,
    reference: Callable[[Any], Any] | None = None,
) -> "Green":
    """Return the Metropolis-Hastings-Green kernel of an auxiliary program and an involution.

    ```python
    def auxiliary(x):  # what to draw, given where we are
        qbs.sample("jump", dist.Normal(0.0, 1.0))

    random_walk = green(auxiliary, lambda x, u: (x + u["jump"], {"jump": -u["jump"]}))
    ```

    Positions of varying dimension are trees of arrays of the largest size, of which `exists` says which
    numbers exist. Those that do not are kept at a reference, and the target must not weigh them. An auxiliary
    variable exists where its distribution is not masked: `dist.Normal(0, 1).mask(is_needed)`.

    Args:
        auxiliary: A function or program of the position that draws by `qbs.sample`.
        involution: From the position and a dictionary of what was drawn to new ones, such that a second
            application gives back the first; integers are mapped as well. It may return the log of the
            absolute determinant of its derivative as a third result, which is checked and then believed;
            else it comes from automatic differentiation, at a cost of the cube of the dimension.
        exists: From the position to a tree of booleans: which of its numbers exist. All by default.
        reference: From the position to a tree of what numbers are that do not exist; zeros by default.

    Raises:
        TypeError: If one of them is not a function.
    """
    for name, function in (("auxiliary", auxiliary), ("involution", involution)):
        if not callable(function):
            raise TypeError(f"{name} must be a function, not {type(function).__name__}")
    return Green(auxiliary, involution, exists, reference)


class _Point(NamedTuple):
    position: Any
    auxiliary: dict[str, Array]


class Green(Kernel):
    """The Metropolis-Hastings-Green kernel; see `green`."""

    auxiliary: Auxiliary = eqx.field(static=True)
    involution: Involution = eqx.field(static=True)
    exists: Exists | None = eqx.field(static=True, default=None)
    reference: Callable[[Any], Any] | None = eqx.field(static=True, default=None)

    def init(self, key: Array, position: Any, target: Target) -> State:
        """Return the state that a chain starts from; see `Kernel.init`.

        The map is tried on draws there, and on draws where they lead.

        Raises:
            EquinoxRuntimeError: If the map is not an involution, the dimensions do not match, or it changes
                numbers that do not exist.
        """
        state = super().init(key, self._reset(jax.tree.map(jnp.asarray, position)), target)
        fault = self._check(key, state.position, target)
        checked = eqx.branched_error_if(state.log_density, fault >= 0, jnp.maximum(fault, 0), list(_FAULTS))
        return state._replace(log_density=checked)

    def move(self, state: State, target: Target, name: str = "step") -> tuple[State, Info]:
        """Make one step; see `Kernel.move`."""
        here = _Point(state.position, self._draw(state.position, name))
        there, log_det = self._apply(here, self._existing(here))
        new = self._reset(there.position)
        log_density, is_bad = finite_or_impossible(target(new))
        log_ratio = log_density - state.log_density + log_det
        log_ratio += self._log_prob(there._replace(position=new)) - self._log_prob(here)
        (position, log_density), acceptance = accept(
            log_ratio, (new, log_density), (state.position, state.log_density), name
        )
        return State(position, log_density, state.inner), report(acceptance, 1, is_bad)

    def _draw(self, position: Any, name: str) -> dict[str, Array]:
        staged = Program(self.auxiliary).stage(position)
        return replay(staged, _Drawn(lambda site: f"{name}: {site}"), {}).trace

    def _log_prob(self, point: _Point) -> Array:
        return TraceTarget(Program(self.auxiliary), (point.position,))(point.auxiliary)

    def _existing(self, point: _Point) -> _Point:
        """Return which numbers of a point exist, as booleans of their shapes."""
        staged = Program(self.auxiliary).stage(point.position)
        jaxpr, consts = open_jaxpr(staged.jaxpr)
        masks = interpret(jaxpr, consts, staged.operands, _Masks(), {}, point.auxiliary).state
        auxiliary = {name: jnp.ones(jnp.shape(x), bool) for name, x in point.auxiliary.items()} | masks
        return _Point(self._present(point.position), auxiliary)

    def _present(self, position: Any) -> Any:
        everything = jax.tree.map(lambda leaf: jnp.ones(jnp.shape(leaf), bool), position)
        if self.exists is None:
            return everything
        return jax.tree.map(
            lambda all_, own: jnp.broadcast_to(own, all_.shape), everything, self.exists(position)
        )

    def _reset(self, position: Any) -> Any:
        """Return a position with the reference where no number exists."""
        if self.exists is None:
            return position
        there = self._present(position)
        empty = jax.tree.map(lambda _: 0, position) if self.reference is None else self.reference(position)
        return jax.tree.map(
            lambda leaf, own, other: jnp.where(own, leaf, jnp.asarray(other, leaf.dtype)),
            position,
            there,
            empty,
        )

    def _apply(self, point: _Point, exists: _Point) -> tuple[_Point, Array]:
        image, log_det = self._image(point)
        return image, self._log_det(point, exists) if log_det is None else log_det

    def _image(self, point: _Point) -> tuple[_Point, Array | None]:
        result = tuple(self.involution(point.position, dict(point.auxiliary)))
        image, log_det = _Point(*result[:2]), result[2] if len(result) == 3 else None
        like: Any = jax.tree.structure(point)
        if like != jax.tree.structure(image):
            raise ValueError(
                f"the involution must return position and auxiliary variables like "
                f"{jax.tree.structure(tuple(point))}, not {jax.tree.structure(tuple(image))}"
            )
        return jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), image, point), log_det

    def _log_det(self, point: _Point, exists: _Point) -> Array:
        """Return the log-determinant over the numbers that exist, by automatic differentiation.

        The others are paired in their order and given unit entries, which leave the determinant as it is.
        NaN where not as many exist before as after.
        """
        floats, rest = eqx.partition(point, eqx.is_inexact_array)
        flat, unravel = ravel_pytree(floats)
        if not flat.size:
            return jnp.zeros(())

        def move(flat: Array) -> tuple[Array, _Point]:
            image, _ = self._image(eqx.combine(unravel(flat), rest))
            return ravel_pytree(eqx.filter(image, eqx.is_inexact_array))[0], image

        derivative, image = jax.jacfwd(move, has_aux=True)(flat)
        before, after = _flags(exists, floats), _flags(self._existing(image), floats)
        pairs = ~after[:, None] & ~before & (jnp.cumsum(~after)[:, None] == jnp.cumsum(~before))
        matrix = jnp.where(after[:, None] & before, derivative, pairs.astype(derivative.dtype))
        log_det = jnp.linalg.slogdet(matrix)[1]
        return jnp.where(before.sum() == after.sum(), log_det, jnp.nan)

    def _check(self, key: Array, position: Any, target: Target) -> Array:
        """Return the place in `_FAULTS` of a fault found on proposals, from one to the next; -1 if none."""

        def turn(position: Any, key: Array) -> tuple[Any, Array]:
            drawn = run(Program(lambda: self._draw(position, "check")))(key).value
            here = _Point(position, drawn)
            there, fault = self._fault_at(here)
            new = self._reset(there.position)
            is_possible = jnp.isfinite(target(new)) & (fault < 0)
            return jax.tree.map(lambda a, b: jnp.where(is_possible, a, b), new, position), fault

        _, faults = jax.lax.scan(turn, position, jax.random.split(key, _CHECKED))
        return jnp.max(faults)

    def _fault_at(self, here: _Point) -> tuple[_Point, Array]:
        exists = self._existing(here)
        there, given = self._image(here)
        exists_there = self._existing(there)
        reset = there._replace(position=self._reset(there.position))
        back, _ = self._image(reset)
        tolerance = _TOLERANCE[jnp.zeros(()).dtype.itemsize]
        is_own_inverse = _agree(here, back, exists, tolerance)
        floats = eqx.filter(here, eqx.is_inexact_array)
        matches = _flags(exists, floats).sum() == _flags(exists_there, floats).sum()
        nowhere = jax.tree.map(lambda a, b: ~a & ~b, exists.position, exists_there.position)
        is_left = _agree(here.position, there.position, nowhere, tolerance)
        is_det_right = jnp.ones((), bool)
        if given is not None:
            true = self._log_det(here, exists)
            is_det_right = jnp.abs(given - true) <= 10 * tolerance * (1 + jnp.abs(true))
        # Proposals that are impossible under their own law are rejected whatever the map does there.
        is_proposed = jnp.isfinite(self._log_prob(reset))
        is_wrong = jnp.stack([~is_own_inverse, ~matches, ~is_left, ~is_det_right]) & is_proposed
        return there, jnp.where(is_wrong.any(), jnp.argmax(is_wrong), -1)


class _Drawn(Replay):
    """Draw the sites, masked ones too, from their distributions without masks."""

    def sample(self, state: Any, name: str, distribution: Any, given: Any) -> tuple[Array, Any]:
        return super().sample(state, name, unmasked(distribution), given)


class _Masks(Semantics):
    """Collect where the distributions of sites are not masked, as booleans by name."""

    def sample(self, state: Any, name: str, distribution: Any, given: Any) -> tuple[Array, Any]:
        mask = mask_of(distribution)
        return given, state if mask is None else {**state, name: mask}

    def score(self, state: Any, name: str, log_weight: Any) -> Any:  # noqa: ARG002
        return state


def _flags(exists: _Point, floats: _Point) -> Bool[Array, " dim"]:
    """Return which of the floating-point numbers exist, in their order."""
    chosen = jax.tree.map(
        lambda leaf, own: own if leaf is not None else None, floats, exists, is_leaf=lambda x: x is None
    )
    return ravel_pytree(chosen)[0].astype(bool)


def _agree(a: Any, b: Any, where: Any, tolerance: float) -> Array:
    """Whether two trees agree where they are looked at."""

    def same(x: Array, y: Array, here: Array) -> Array:
        gap = jnp.abs(1.0 * y - x) / (1 + jnp.abs(1.0 * x))
        return jnp.all(~here | (gap <= tolerance))

    return jnp.all(jnp.stack(jax.tree.leaves(jax.tree.map(same, a, b, where))))
