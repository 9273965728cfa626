"""The measure of a program of a few continuous choices, by quadrature: the ground truth of tests.

Every continuous site gets nodes, and what is left is an enumeration. The nodes are those of the trapezoid
rule in t, where `center + scale sinh(t)` is a coordinate u in which tails fall off exponentially: NumPyro's
`biject_to` maps u to the support, and where that is the real line the value is sinh(u). For analytic
integrands the rule converges exponentially. Center, scale and range come from a search on coarser
grids, so that a posterior much narrower than its prior is found.
"""

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
from qbs.program import Program
from qbs.semantics.enumeration import (
    CHUNK,
    Choice,
    FiniteMeasure,
    Law,
    evaluate,
    find_choices,
    finite_law,
    indices,
)

_FIRST_POINTS, _SEARCH_POINTS = 1 << 18, 1 << 22  # about so many points to search with, at first and at most
_FURTHEST = 350.0  # squares of exp of this are the end of float64
_FURTHEST_GAIN = 1e4  # nats
_NEGLIGIBLE = 45.0  # nats below the top


class _Node(NamedTuple):
    """A node of each element of a continuous site: its number, where u is there, and its log weight."""

    number: Array
    position: Array
    log_weight: Array


class _Grid(NamedTuple):
    """Where the nodes lie: one number for each continuous element of the program."""

    center: Any
    scale: Any
    low: Any
    high: Any

    def coordinates(self, num_nodes: int) -> np.ndarray:
        """Return u at the nodes of one element."""
        return self.center + self.scale * np.sinh(np.linspace(self.low, self.high, num_nodes))


def integrate(
    program: Program, *, tolerance: float = 1e-8, max_points: int = 2**26
) -> Callable[..., FiniteMeasure]:
    """Return the function `(*args) -> FiniteMeasure` that integrates over all outcomes of a program.

    For programs of one to three continuous scalar choices, and finite discrete ones. Runs in float64. The
    number of nodes of each continuous choice doubles until the total mass stays the same. Convergence is
    slow where the integrand has jumps, and where one choice is the scale of another and may be next to
    zero. Not found are peaks far apart that are each much narrower than the first grid (4097 nodes for one
    choice, 513 each for two, 65 for three); and lost is the mass nearer to a bound other than 0 than
    rounding: 1e-8 of it where the density goes with distance to the power -1/2.

    Args:
        program: The program.
        tolerance: The largest relative change of the total mass at the last doubling.
        max_points: The largest number of points, roughly.

    Returns:
        A function of the program's arguments. The measure's atoms are the program's values at the points
        that carry mass, with repetitions; `error` is the relative change of the total mass.

    Raises:
        ProgramError: If a site is neither scalar nor finite, or the total mass has not converged.

    References:
        Takahasi & Mori (1974), "Double exponential formulas for numerical integration".
        Trefethen & Weideman (2014), "The exponentially convergent trapezoidal rule", SIAM Review.
    """
    return partial(_integrate, program, tolerance, max_points)


def _integrate(program: Program, tolerance: float, max_points: int, *args: Any) -> FiniteMeasure:
    with jax.enable_x64(True):
        staged = program.stage(*args)
        choices = find_choices(staged, _law)
        elements = [choice for choice in choices for _ in range(math.prod(choice.shape))]
        axes = [axis for axis, choice in enumerate(elements) if not choice.num_outcomes]

        @jax.jit
        def at_points(grid: _Grid, num_nodes: Any, points: Any, total: Any) -> Any:
            return evaluate(staged, _law, partial(_nodes, choices, grid, num_nodes), points, total)

        def walk(grid: _Grid, num_nodes: int) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
            total = math.prod(choice.num_outcomes or num_nodes for choice in elements)
            for start in range(0, total, CHUNK):
                points = np.arange(start, start + CHUNK)
                outputs, log_masses = jax.tree.map(np.asarray, at_points(grid, num_nodes, points, total))
                if np.any(np.isnan(log_masses)):
                    raise ProgramError("a log weight or log probability of the program is NaN")
                yield outputs, log_masses

        def table(grid: _Grid, num_nodes: int) -> np.ndarray:  # the first element varies fastest
            shape = [choice.num_outcomes or num_nodes for choice in elements]
            log_masses = np.concatenate([found for _, found in walk(grid, num_nodes)])
            return log_masses[: math.prod(shape)].reshape(shape[::-1]).transpose()

        num_discrete = math.prod(choice.num_outcomes or 1 for choice in elements)

        def most_nodes(points: int) -> int:
            share = (points / num_discrete) ** (1 / max(1, len(axes)))
            return 2 ** int(math.log2(max(share, 1) + 1e-9)) + 1

        first, last = max(17, min(4097, most_nodes(_FIRST_POINTS))), most_nodes(max_points)
        if first > last:
            raise ProgramError(f"{program.name!r} needs more than {max_points:,} points to integrate")
        names = {axis: elements[axis].name for axis in axes}
        grid, num_nodes, top = _search(table, names, first, min(last, most_nodes(_SEARCH_POINTS)))
        before, num_nodes = math.nan, num_nodes // 2 + 1
        while True:
            mass, parts = 0.0, []
            for outputs, log_masses in walk(grid, num_nodes):
                mass += float(np.exp(log_masses - top).sum())
                kept = log_masses > top - _NEGLIGIBLE
                parts.append(([leaf[kept] for leaf in outputs], log_masses[kept]))
            error = abs(before - mass) / mass if mass else math.inf
            if error <= tolerance:
                break
            if num_nodes >= last:
                raise ProgramError(
                    f"the total mass of {program.name!r} has not converged: with {num_nodes:,} nodes for "
                    f"each of {len(axes)} continuous choices it changed by {error:.1e} of itself, more than "
                    f"{tolerance:.1e}; the next doubling needs more than {max_points:,} points"
                )
            before, num_nodes = mass, 2 * num_nodes - 1
        outputs, log_masses = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        return FiniteMeasure(staged.unflatten(outputs), log_masses, error=error)


def _law(name: str, distribution: Any) -> Law:
    """Return the law of a site: finite, or continuous with nodes for atoms."""
    if isinstance(distribution, dist.Independent):
        return _law(name, distribution.base_dist)
    support = distribution.support
    if hasattr(distribution, "finite_law") or support is None or support.is_discrete:
        return finite_law(name, distribution)
    if distribution.event_dim:
        raise ProgramError(f"the values of site {name!r} are not scalars: qbs.integrate cannot take them")

    def at(node: _Node) -> tuple[Array, Array]:
        if isinstance(support, type(dist.constraints.real)):
            value, log_stretch = jnp.sinh(node.position), jnp.log(jnp.cosh(node.position))
        else:
            transform = dist.biject_to(support)
            value = transform(node.position)
            log_stretch = transform.log_abs_det_jacobian(node.position, value)
        return value, distribution.log_prob(value) + log_stretch + node.log_weight

    zeros = jnp.zeros(distribution.batch_shape)
    return Law(0, _Node(zeros, zeros, zeros), at)


def _nodes(choices: list[Choice], grid: _Grid, num_nodes: Any, point: Any) -> dict[str, Any]:
    """Return the atom of every element at a point, from its number."""
    given: dict[str, Any] = dict(indices(choices, point, num_nodes))
    done = 0
    for choice in choices:
        if not choice.num_outcomes:
            number, size = given[choice.name], math.prod(choice.shape)
            own = [jnp.asarray(leaf)[done : done + size].reshape(choice.shape) for leaf in grid]
            center, scale, low, high = own
            step, done = (high - low) / (num_nodes - 1), done + size
            t = low + step * number
            log_weight = jnp.log(scale * step) + jnp.log(jnp.cosh(t))
            given[choice.name] = _Node(number, center + scale * jnp.sinh(t), log_weight)
    return given


def _search(
    table_on: Callable[[_Grid, int], np.ndarray], sites: dict[int, str], num_nodes: int, most_nodes: int
) -> tuple[_Grid, int, float]:
    """Return a grid that covers what carries mass, its number of nodes, and the largest log mass on it.

    Args:
        table_on: Returns the table of log masses on a grid.
        sites: For the axes of the table that are continuous, the names of the sites.
        num_nodes: How many nodes to begin with.
        most_nodes: How many at most, where peaks are too narrow for fewer.
    """
    end = math.asinh(40.0)  # exp(-40) is next to nothing
    grids = [_Grid(0.0, 1.0, -end, end) for _ in sites]
    for _ in range(40):
        table = table_on(_Grid(*np.array(grids).reshape(-1, 4).T), num_nodes)
        top = float(table.max())
        if top == -np.inf:
            raise ProgramError("no mass was found: the density is zero at every point of the first grid")
        gains = sum(_possible_gain(table, axis) for axis in sites)
        refits = [_refit(table, table + gains, axis, own) for axis, own in zip(sites, grids, strict=True)]
        grids = [own for own, _ in refits]
        unsettled = [name for name, (_, is_good) in zip(sites.values(), refits, strict=True) if not is_good]
        if not unsettled:
            is_coarse = bool(np.any((gains > 1) & (table + gains > top - 25)))
            if not is_coarse or num_nodes >= most_nodes:
                return _Grid(*np.array(grids).reshape(-1, 4).T), num_nodes, top
            num_nodes = 2 * num_nodes - 1
    raise ProgramError(
        f"the mass of site {unsettled[0]!r} does not fall off within the range of float64, or its place "
        "differs too much among the values of other sites"
    )


def _possible_gain(table: np.ndarray, axis: int) -> np.ndarray:
    """Return how much higher than a node that tops its neighbours along an axis the peak beside it is.

    That of the parabola through the three; nothing where that is too far off to tell.
    """
    lines = np.moveaxis(table, axis, 0)
    gains = np.zeros_like(lines)
    with np.errstate(all="ignore"):  # -inf - -inf
        left, right = lines[1:-1] - lines[:-2], lines[1:-1] - lines[2:]
        gain = (left - right) ** 2 / (8 * (left + right))
        gains[1:-1] = np.where((left >= 0) & (right >= 0) & (gain < _FURTHEST_GAIN), gain, 0.0)
    return np.moveaxis(gains, 0, axis)


def _refit(table: np.ndarray, scores: np.ndarray, axis: int, grid: _Grid) -> tuple[_Grid, bool]:
    """Return a better grid for one element, and whether the old one is good enough."""
    lines, scores = (np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1) for array in (table, scores))
    present = np.isfinite(lines[1:]).any(0)  # where a site is passed by, all mass is on node 0
    if not present.any():
        return grid, True
    lines, scores = lines[:, present], scores[:, present]
    t, u = np.linspace(grid.low, grid.high, len(lines)), grid.coordinates(len(lines))
    top = lines.max()
    marginal = np.cumsum(np.exp(np.minimum(scores, top) - top).sum(1))  # what may be a peak counts like one
    low, middle, high = np.searchsorted(marginal, np.array([0.25, 0.5, 0.75]) * marginal[-1])
    center, scale = u[middle], max(u[high] - u[low], np.gradient(u)[middle])
    found = np.flatnonzero((scores >= top - _NEGLIGIBLE).any(1))
    is_cut = scores[[0, -1]].max(1) >= top - 30  # a share of 1e-13 is beyond
    ends = t[found[[0, -1]]] + np.where(is_cut, len(t) / 2, 2) * [-1, 1] * (t[1] - t[0])
    ends = np.clip(grid.center + grid.scale * np.sinh(ends), -_FURTHEST, _FURTHEST)
    is_good = 2 * (found[-1] - found[0]) > len(t) and not is_cut.any() and 0.5 <= scale / grid.scale <= 2
    return _Grid(center, scale, *np.arcsinh((ends - center) / scale)), bool(is_good)
