r"""Least squares of each node on those before it, with or without an l1 penalty, from a covariance alone.

With one variance for the noise of all nodes, the sum over the nodes is the score of NOTEARS and TOPO.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from qbs.inference.dag.scores.score import Fits

_NEAR_SINGULAR = 1e-12  # least eigenvalue of the correlation matrix
_TOLERANCE = 1e-10  # of the conditions of optimality, nodes having unit variance
_SWEEPS, _ROUNDS = 20, 1000  # along the coordinates first; most systems to solve then
_BATCHES = (32, 512)  # sizes that are compiled; a batch is filled up to one of them


class LeastSquares:
    r"""Half the residual variance of a node, and `l1` times the sum of the sizes of its weights.

    \(\tfrac{1}{2} (S_{jj} - 2 w^T S_{\cdot j} + w^T S w) + \lambda \sum_k |w_k|\) for the covariance \(S\);
    the derivative of its smooth part in \(W\) is \(-(S - S W)\). It computes in float64, whatever the
    precision elsewhere.

    Attributes:
        covariance: Of the nodes.
        l1: The penalty, in units of a covariance.
    """

    def __init__(
        self,
        covariance: Float[np.ndarray, "num_nodes num_nodes"],
        l1: float | int = 0.0,
    ):
        """Keep the settings.

        Args:
            covariance: Of the nodes; positive definite unless there is a penalty.
            l1: The penalty, not negative.

        Raises:
            ValueError: If a setting is not as said.
        """
        variances = np.diagonal(covariance)
        if not (np.isfinite(covariance).all() and np.allclose(covariance, covariance.T)):
            raise ValueError("LeastSquares: covariance must be finite and symmetric")
        if not np.all(variances > 0):
            none = [int(node) for node in np.flatnonzero(~(variances > 0))]
            raise ValueError(
                f"LeastSquares: covariance must have a positive diagonal, and has none at {none}"
            )
        if not 0 <= l1 < np.inf:
            raise ValueError(f"LeastSquares: l1 must be a number of 0 or more, not {l1}")
        self.covariance, self.l1 = covariance, float(l1)
        self._deviations = np.sqrt(variances)
        self._correlations = covariance / np.outer(self._deviations, self._deviations)
        if not l1 and not np.linalg.eigvalsh(self._correlations)[0] > _NEAR_SINGULAR:
            raise ValueError("LeastSquares: covariance must be positive definite where l1 is 0; add a ridge")

    def scores(
        self, nodes: Int[np.ndarray, " batch"], candidates: Bool[np.ndarray, "batch num_nodes"]
    ) -> Float[np.ndarray, " batch"]:
        """Return half the residual variances, and the penalties."""
        return self.fits(nodes, candidates).scores

    def fits(self, nodes: Int[np.ndarray, " batch"], candidates: Bool[np.ndarray, "batch num_nodes"]) -> Fits:
        """Return the fits of nodes to all of their candidates."""
        own = self._deviations[nodes, None]
        targets = self._correlations[nodes]
        if self.l1:
            penalties = self.l1 / (own * self._deviations)
            scaled = _penalized(self._correlations, targets, candidates, penalties)
        else:
            scaled = _solved(self._correlations, targets, candidates)
        left = targets - scaled @ self._correlations
        # The residual's covariance with the node and with what predicts it: the sum of squares of the
        # residual, also where rounding leaves some of the latter.
        shares = left[np.arange(len(nodes)), nodes] - np.sum(scaled * left, axis=1)
        weights = scaled * own / self._deviations
        gradients = -left * own * self._deviations
        gradients[np.arange(len(nodes)), nodes] = 0.0
        penalties = self.l1 * np.sum(np.abs(weights), axis=1)
        return Fits(0.5 * own[:, 0] ** 2 * np.maximum(shares, 0.0) + penalties, weights, gradients)


def _solved(correlations: np.ndarray, targets: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Return the weights of least squares, for nodes of unit variance."""
    both = candidates[:, :, None] & candidates[:, None, :]
    systems = np.where(both, correlations, np.eye(len(correlations)))
    return np.linalg.solve(systems, np.where(candidates, targets, 0.0)[..., None])[..., 0]


def _penalized(
    correlations: np.ndarray, targets: np.ndarray, candidates: np.ndarray, penalties: np.ndarray
) -> np.ndarray:
    """Return the weights with an l1 penalty, for nodes of unit variance, from batches of few sizes."""
    parts = []
    for first in range(0, len(targets), _BATCHES[-1]):
        part = [values[first : first + _BATCHES[-1]] for values in (targets, candidates, penalties)]
        count = len(part[0])
        size = next(size for size in _BATCHES if size >= count)
        filled = [
            np.concatenate([values, np.zeros((size - count, *values.shape[1:]), values.dtype)])
            for values in part
        ]
        with jax.enable_x64(True):
            parts.append(np.asarray(_lasso(correlations, *filled))[:count])
    return np.concatenate(parts)


@jax.jit
def _lasso(
    correlations: Float[Array, "num_nodes num_nodes"],
    targets: Float[Array, "batch num_nodes"],
    candidates: Bool[Array, "batch num_nodes"],
    penalties: Float[Array, "batch num_nodes"],
) -> Float[Array, "batch num_nodes"]:
    """Return the weights of least penalized squares, for nodes of unit variance.

    A few sweeps along the coordinates find most of the weights that are not zero, and their signs. Then those
    are solved for, given the signs; once they are optimal, the weight at which the conditions fail most joins
    them.
    Coordinates alone would take thousands of sweeps where nodes are much alike.

    References:
        Friedman, Hastie & Tibshirani (2010), "Regularization paths for generalized linear models via
        coordinate descent"; Lee, Battle, Raina & Ng (2007), "Efficient sparse coding algorithms".
    """

    def step(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        k = k % len(correlations)
        weights, left = carry
        pull = left[:, k] + weights[:, k]
        new = jnp.sign(pull) * jnp.maximum(jnp.abs(pull) - penalties[:, k], 0.0)
        new = jnp.where(candidates[:, k], new, 0.0)
        return weights.at[:, k].set(new), left - (new - weights[:, k])[:, None] * correlations[k]

    def turn(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        weights, _, rounds = state
        left = targets - weights @ correlations
        signs = jnp.sign(weights)
        off = jnp.max(jnp.abs(left - penalties * signs), axis=1, initial=0.0, where=signs != 0)
        is_settled = off <= _TOLERANCE
        excess = jnp.where(candidates & (signs == 0), jnp.abs(left) - penalties, 0.0)
        worst = jnp.argmax(excess, axis=1)
        joins = (
            is_settled[:, None] & (excess > _TOLERANCE) & (jnp.arange(len(correlations)) == worst[:, None])
        )
        is_over = is_settled & ~jnp.any(joins, axis=1)
        moved = _leap(correlations, targets, penalties, weights, jnp.where(joins, jnp.sign(left), signs))
        return jnp.where(is_over[:, None], weights, moved), is_over, rounds + 1

    zeros = jnp.zeros_like(targets)
    start, _ = lax.fori_loop(0, _SWEEPS * len(correlations), step, (zeros, targets))
    state = start, jnp.zeros(len(targets), bool), jnp.zeros((), int)
    return lax.while_loop(lambda state: ~jnp.all(state[1]) & (state[2] < _ROUNDS), turn, state)[0]


def _leap(correlations: Array, targets: Array, penalties: Array, weights: Array, signs: Array) -> Array:
    """Go towards the best weights of these signs, through as many changes of sign as lower the score."""
    is_on = signs != 0
    systems = jnp.where(is_on[:, :, None] & is_on[:, None, :], correlations, jnp.eye(len(correlations)))
    values = jnp.where(is_on, targets - penalties * signs, 0.0)
    solution = jnp.linalg.solve(systems, values[..., None])[..., 0]
    ahead = jnp.where(is_on & jnp.isfinite(solution), solution - weights, 0.0)
    # Shares of the way at which weights are zero, and the slope of the score just before each.
    zeros = jnp.where(signs * (weights + ahead) < 0, -weights / jnp.where(ahead == 0, 1.0, ahead), jnp.inf)
    stops = jnp.where(jnp.isfinite(zeros), zeros, 0.0)
    is_kept = zeros[:, None, :] >= stops[:, :, None]
    pulls = jnp.sum(jnp.where(is_kept, 1.0, -1.0) * (penalties * signs * ahead)[:, None, :], axis=2)
    pulls += jnp.sum((weights @ correlations - targets) * ahead, axis=1, keepdims=True)
    slopes = pulls + stops * jnp.sum((ahead @ correlations) * ahead, axis=1, keepdims=True)
    farthest = jnp.max(jnp.where(slopes <= 0, stops, 0.0), axis=1, keepdims=True)
    length = jnp.where(jnp.any(jnp.isfinite(zeros), axis=1, keepdims=True), farthest, 1.0)
    return jnp.where(zeros == length, 0.0, weights + length * ahead)
