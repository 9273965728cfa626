"""Logistic regressions of many nodes at once, binary or of several classes, by Newton's method."""

from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from qbs.inference.dag.scores.glm_design import Design, round_number

RIDGE = 1e-9  # on half the squares of all coefficients, intercepts included, in nats per row

_TOLERANCE = 1e-9  # of the derivatives, or of the conditions of Karush, Kuhn and Tucker
_BATCHES = (8, 32, 64)
_ROWS = 4096  # looked at together
_FIRST_STEPS, _STEPS = 9, 300  # after the first, only those go on that have not yet converged
_LEAST_STEP = 1e-8  # of Newton's: rounding errors are in its way
_LONGEST = 10.0  # any one coefficient's change in a step
_STEEP = 4.0  # sum of the sizes of coefficients that are guessed at


_Array = TypeVar("_Array", Array, np.ndarray)


class Data(NamedTuple):
    """A design on the device, in blocks of rows.

    Attributes:
        columns: Of the design.
        row_weights: Shares of the data.
        moments: Mean products of columns.
    """

    columns: Float[Array, "num_blocks num_columns block"]
    row_weights: Float[Array, "num_blocks block"]
    moments: Float[np.ndarray, "num_columns num_columns"]


class SoftmaxFits(NamedTuple):
    """Fitted regressions; the log odds are against the first class, and there is one logit for each other.

    Attributes:
        coefficients: Of columns, zero for those that may not be used.
        losses: Mean negative log-likelihood, in nats per row, without ridge and l1.
        gradients: Derivatives of the losses, also for columns that may not be used.
        curvatures: Second derivatives of the losses, see `unpacked`.
    """

    coefficients: Float[np.ndarray, "batch num_logits num_columns"]
    losses: Float[np.ndarray, " batch"]
    gradients: Float[np.ndarray, "batch num_logits num_columns"]
    curvatures: Float[np.ndarray, "batch num_logit_pairs num_column_pairs"]


def on_device(design: Design) -> Data:
    """Return a design in float64 on the device."""
    num_columns, num_rows = design.columns.shape
    num_blocks = round_number(-(-num_rows // _ROWS)) if num_rows > _ROWS else 1
    block = _ROWS if num_blocks > 1 else num_rows
    more = num_blocks * block - num_rows
    columns = np.pad(design.columns, ((0, 0), (0, more))).reshape(num_columns, num_blocks, block)
    weights = np.pad(design.row_weights, (0, more)).reshape(num_blocks, block)
    with jax.enable_x64(True):
        return Data(jnp.asarray(columns.swapaxes(0, 1)), jnp.asarray(weights), design.moments)


def fit_softmax(
    data: Data,
    outcomes: Int[np.ndarray, "batch num_logits"],
    is_free: Bool[np.ndarray, "batch num_columns"],
    *,
    l1: float | int = 0.0,
) -> SoftmaxFits:
    """Return logistic regressions, in float64.

    A ridge of `RIDGE` keeps coefficients finite where columns tell the classes apart without error (they end
    where log odds are about 20), where a class is empty, and where columns are linear functions of others.

    Args:
        data: Where the columns are.
        outcomes: The columns that are one for each class but the first.
        is_free: Which columns may be used; the first, the intercept, always is.
        l1: Penalty on the sizes of coefficients, intercepts aside, in nats per row.
    """
    is_free = is_free.copy()
    is_free[:, 0] = True
    start = _guessed(data.moments, outcomes, is_free)
    if l1:
        start[:, :, 1:] = 0
    parts = []
    for first in range(0, len(outcomes), _BATCHES[-1]):
        at = slice(first, first + _BATCHES[-1])
        parts.append(_converged(data, outcomes[at], is_free[at], start[at], l1))
    return SoftmaxFits(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def unpacked(curvatures: _Array, num_logits: int, num_columns: int) -> _Array:
    """Return matrices over logits and columns, columns fastest, from the different entries of each."""
    logits, columns = _pair_numbers(num_logits), _pair_numbers(num_columns)
    size = num_logits * num_columns
    full = curvatures[..., logits[:, None, :, None], columns[None, :, None, :]]
    return full.reshape(*curvatures.shape[:-2], size, size)


def _pair_numbers(count: int) -> np.ndarray:
    first, second = np.triu_indices(count)
    numbers = np.zeros((count, count), int)
    numbers[first, second] = numbers[second, first] = np.arange(len(first))
    return numbers


def _guessed(moments: np.ndarray, outcomes: np.ndarray, is_free: np.ndarray) -> np.ndarray:
    """Return one step of Newton's from the frequencies of the classes: least squares, in effect."""
    shares = np.clip(moments[0, outcomes], 1e-6, 1.0)
    rest = np.clip(1 - shares.sum(1, keepdims=True), 1e-6, 1.0)
    both = is_free[:, :, None] & is_free[:, None]
    products = np.where(both, moments, 0.0) + 1e-6 * np.eye(len(moments))
    left = moments[:, outcomes].transpose(1, 0, 2) - moments[:, :1] * shares[:, None]
    slopes = np.linalg.solve(products + np.eye(len(moments)) * ~is_free[:, None], left * is_free[:, :, None])
    # The inverse of diag(p) - p p' is diag(1/p) + 1/p0.
    steps = (slopes / shares[:, None] + slopes.sum(2, keepdims=True) / rest[:, None]).transpose(0, 2, 1)
    steps *= np.minimum(1.0, _STEEP / np.maximum(np.abs(steps).sum(2, keepdims=True), _STEEP))
    steps[:, :, 0] += np.log(shares / rest)
    return steps


def _converged(
    data: Data, outcomes: np.ndarray, is_free: np.ndarray, start: np.ndarray, l1: float | int
) -> SoftmaxFits:
    fits, is_going = _padded(data, outcomes, is_free, start, l1, _FIRST_STEPS)
    at = np.flatnonzero(is_going)
    if not len(at):
        return fits
    more, _ = _padded(data, outcomes[at], is_free[at], fits.coefficients[at], l1, _STEPS)
    fits = SoftmaxFits(*(array.copy() for array in fits))
    for array, new in zip(fits, more, strict=True):
        array[at] = new
    return fits


class _Walk(NamedTuple):
    position: Array
    loss: Array
    gradient: Array
    curvature: Array
    objective: Array
    direction: Array
    slope: Array
    step: Array
    is_going: Array
    num_steps: Array


def _padded(
    data: Data, outcomes: np.ndarray, is_free: np.ndarray, start: np.ndarray, l1: float | int, most: int
) -> tuple[SoftmaxFits, np.ndarray]:
    """Return fits after some steps, and whether each should go on, from a batch of one of a few sizes."""
    count = len(outcomes)
    more = min(size for size in _BATCHES if size >= count) - count
    with jax.enable_x64(True):
        walks = _walks(
            data.columns,
            data.row_weights,
            np.pad(outcomes, ((0, more), (0, 0)), mode="edge"),
            np.pad(is_free, ((0, more), (0, 0))),
            np.pad(start, ((0, more), (0, 0), (0, 0))),
            np.float64(l1),
            most,
            is_sparse=l1 > 0,
        )
    found = (walks.position, walks.loss, walks.gradient, walks.curvature)
    return SoftmaxFits(*(np.asarray(array)[:count] for array in found)), np.asarray(walks.is_going)[:count]


@partial(jax.jit, static_argnames="is_sparse")
def _walks(
    columns: Array,
    row_weights: Array,
    outcomes: Array,
    is_free: Array,
    start: Array,
    l1: Array,
    most: Array,
    *,
    is_sparse: bool,
) -> _Walk:
    def one(outcome: Array, free: Array, first: Array) -> _Walk:
        return _walk(columns, row_weights, outcome, free, first, l1, most, is_sparse=is_sparse)

    return jax.vmap(one)(outcomes, is_free, start)


def _walk(
    columns: Array,
    row_weights: Array,
    outcome: Array,
    is_free: Array,
    start: Array,
    l1: Array,
    most: Array,
    *,
    is_sparse: bool,
) -> _Walk:
    """Return where Newton's method with steps halved until the objective falls enough ends."""
    shape = start.shape
    free = jnp.broadcast_to(is_free, shape).ravel()
    prices = jnp.broadcast_to(l1 * (jnp.arange(shape[1]) > 0), shape).ravel()

    def going(walk: _Walk) -> Array:
        return walk.is_going & (walk.num_steps < most)

    def stepped(walk: _Walk) -> _Walk:
        position = walk.position + walk.step * walk.direction
        loss, gradient, curvature = _derivatives(columns, row_weights, outcome, position)
        flat = position.ravel()
        objective = loss + RIDGE / 2 * flat @ flat + prices @ jnp.abs(flat)
        enough = walk.objective + 1e-4 * walk.step * walk.slope + 1e-13 * jnp.abs(walk.objective)
        is_taken = objective <= enough
        pull = jnp.where(free, gradient.ravel() + RIDGE * flat, 0.0)
        hessian = jnp.where(free[:, None] & free, unpacked(curvature, *shape), 0.0)
        hessian = hessian + jnp.diag(jnp.where(free, RIDGE, 1.0))
        if is_sparse:
            size = jnp.where(flat != 0, jnp.abs(pull + prices * jnp.sign(flat)), jnp.abs(pull) - prices)
            there = _sparse_minimum(hessian, pull, flat, prices)
        else:
            size = jnp.abs(pull)
            there = flat - jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(hessian), pull)
        direction = there - flat
        direction = direction * jnp.minimum(1.0, _LONGEST / jnp.maximum(jnp.abs(direction).max(), 1e-30))
        slope = pull @ direction + prices @ (jnp.abs(flat + direction) - jnp.abs(flat))
        taken = _Walk(
            position,
            loss,
            gradient,
            curvature,
            objective,
            direction.reshape(shape),
            slope,
            jnp.ones_like(loss),
            size.max() > _TOLERANCE,
            walk.num_steps,
        )
        shorter = walk._replace(step=walk.step / 2, is_going=walk.step > _LEAST_STEP)
        chosen = jax.tree.map(lambda new, old: jnp.where(is_taken, new, old), taken, shorter)
        return chosen._replace(num_steps=walk.num_steps + 1)

    zero, one = jnp.zeros((), start.dtype), jnp.ones((), start.dtype)
    pairs = tuple(count * (count + 1) // 2 for count in shape)
    nothing = jnp.zeros_like(start)
    first = _Walk(
        start,
        zero,
        nothing,
        jnp.zeros(pairs, start.dtype),
        jnp.inf * one,
        nothing,
        zero,
        one,
        jnp.ones((), bool),
        jnp.zeros((), int),
    )
    return lax.while_loop(going, stepped, first)


def _derivatives(
    columns: Array, row_weights: Array, outcome: Array, coefficients: Array
) -> tuple[Array, Array, Array]:
    """Return the mean negative log-likelihood, its gradient, and the different second derivatives."""
    first, second = np.triu_indices(columns.shape[1])
    upper, lower = np.triu_indices(len(coefficients))
    is_same = jnp.asarray((upper == lower).astype(float))[:, None]

    def block(so_far: tuple[Array, Array, Array], rows: tuple[Array, Array]) -> tuple[tuple, None]:
        seen, shares = rows
        logits = coefficients @ seen
        classes = seen[outcome]
        most = jnp.maximum(logits.max(0), 0.0)
        odds = jnp.exp(logits - most)
        total = jnp.exp(-most) + odds.sum(0)
        chances = odds / total
        loss = shares @ (most + jnp.log(total) - (classes * logits).sum(0))
        gradient = (shares * (chances - classes)) @ seen.T
        # Products of columns are the same for all fits: for all together, a product of two matrices.
        spreads = shares * chances[upper] * (is_same - chances[lower])
        curvature = spreads @ (seen[first] * seen[second]).T
        return jax.tree.map(jnp.add, so_far, (loss, gradient, curvature)), None

    zero = (
        jnp.zeros((), coefficients.dtype),
        jnp.zeros_like(coefficients),
        jnp.zeros((len(upper), len(first)), coefficients.dtype),
    )
    return lax.scan(block, zero, (columns, row_weights))[0]


def _sparse_minimum(hessian: Array, gradient: Array, position: Array, prices: Array) -> Array:
    """Return the minimum of a quadratic form and the prices of sizes, by one coordinate after another."""
    diagonal = jnp.diagonal(hessian)

    def coordinate(at: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        here, pull = carry
        pushed = diagonal[at] * here[at] - pull[at]
        new = jnp.sign(pushed) * jnp.maximum(jnp.abs(pushed) - prices[at], 0.0) / diagonal[at]
        return here.at[at].set(new), pull + hessian[:, at] * (new - here[at])

    def sweep(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        here, pull, _, count = carry
        there, pull = lax.fori_loop(0, len(here), coordinate, (here, pull))
        return there, pull, jnp.abs(there - here).max(), count + 1

    def going(carry: tuple[Array, Array, Array, Array]) -> Array:
        return (carry[2] > 1e-11) & (carry[3] < 200)

    start = (position, gradient, jnp.full((), jnp.inf, position.dtype), jnp.zeros((), int))
    return lax.while_loop(going, sweep, start)[0]
