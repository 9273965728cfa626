"""A score for smooth nonlinear equations: a small network for each node, and noises of equal variance."""

import math
import zlib
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]
from jax import lax
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Bool, Float, Int

from qbs.inference.dag.parents import penalty
from qbs.inference.dag.scores.network_equation import NetworkEquation
from qbs.inference.dag.scores.score import Fits, Pruning

_BATCH = 32  # fits in one call: one shape, so that it is compiled once; none is made for those not asked for
_LEAST_RIDGE = 1e-6  # of standardized weights: with less, the output weights of units alike were not told
_LEAST_LEFT = 1e-10  # of a standardized node: less is not told from nothing
_PATIENCE = 10  # steps that gain next to nothing
_NOTHING = 1e-9  # of the loss


class _Networks(NamedTuple):
    """Networks of standardized nodes; a batch of them has one more axis in front.

    Attributes:
        first: Weights from each node to each hidden unit; zero for those that are not candidates.
        biases: Of the hidden units.
        second: Weights from the hidden units to the node.
        mean_square: Of the residuals.
        loss: Half of it and the penalty.
        gradients: Norm of the derivative of the loss in each row of `first`.
        num_steps: Of the optimizer.
    """

    first: Float[Array, "*batch num_nodes num_hidden"]
    biases: Float[Array, "*batch num_hidden"]
    second: Float[Array, "*batch num_hidden"]
    mean_square: Float[Array, "*batch"]
    loss: Float[Array, "*batch"]
    gradients: Float[Array, "*batch num_nodes"]
    num_steps: Int[Array, "*batch"]


class MLPScore:
    r"""Scores nodes by what a network of their candidates leaves: TOPO's score for nonlinear equations.

    A node is a network with one layer of `num_hidden` hyperbolic tangents of all of its candidates, plus
    noise; its score is half the mean square of the residuals, in the units of the data, plus

    \(\tfrac12 \lambda \sigma^2 (\lVert A \rVert^2 + \lVert w \rVert^2)\)

    for weights \(A, w\) of standardized columns; biases are free. \(\lambda\) is `l2`, and \(\sigma^2\) the
    least variance of a column: if noises have one variance, as this score assumes, it is that of a node
    without parents. So a fit is as smooth whatever the variance of the node, and a common scale of all
    columns does not matter. \(\lambda \sigma^2\) is never less than a millionth of the node's variance.

    Output weights are computed from the others (variable projection), and L-BFGS finds these, from weights
    that depend on the seed and the columns' own numbers alone: a fit is the same, to the last bit, whoever
    else is fitted and wherever the columns stand. Networks have local minima; scores of another seed differ,
    by a few per cent where many candidates act.

    All is float64, so that gradients can be made as small as a search by KKT conditions may ask; float32
    would take two thirds of the time.

    References:
        Zheng, Dan, Aragam, Ravikumar & Xing (2020), "Learning sparse nonparametric DAGs", for the norms of
        groups; Deng, Bello, Aragam & Ravikumar (2023), "Optimizing NOTEARS objectives via topological swaps";
        Golub & Pereyra (1973), "The differentiation of pseudo-inverses and nonlinear least squares problems
        whose variables separate".
    """

    def __init__(
        self,
        values: Float[np.ndarray, "num_rows num_nodes"],
        *,
        num_hidden: int = 10,
        l2: float | int = 1e-3,
        noise: str = "gaussian",
        tolerance: float | int = 1e-4,
        max_steps: int = 300,
        seed: int = 0,
    ):
        """Check the data.

        Args:
            values: Of the nodes, finite.
            num_hidden: Hidden units of each network, 1 or more.
            l2: Weight of the penalty: as a Gaussian prior on weights, of the variance 1 / (`l2` * rows).
            noise: What an equation draws its noise from: `"gaussian"`, or `"residuals"`.
            tolerance: A fit has converged when the norm of the derivative is less, all being standardized.
            max_steps: Most steps of a fit.
            seed: Of the initial weights.

        Raises:
            ValueError: If a setting or the data are not as said.
        """
        if values.ndim != 2 or len(values) < 2:
            raise ValueError(f"MLPScore: values must be two rows or more by columns, not {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError("MLPScore: values must be finite")
        if num_hidden < 1 or max_steps < 1:
            raise ValueError(
                f"MLPScore: num_hidden and max_steps must be 1 or more, not {num_hidden} and {max_steps}"
            )
        if not (0 <= l2 < math.inf and 0 <= tolerance < math.inf):
            raise ValueError(f"MLPScore: l2 and tolerance must be 0 or more, not {l2} and {tolerance}")
        if noise not in ("gaussian", "residuals"):
            raise ValueError(f"MLPScore: noise must be 'gaussian' or 'residuals', not {noise!r}")
        self._values, self._is_resampled = np.asarray(values, float), noise == "residuals"
        self._means = self._values.mean(0)
        scales = self._values.std(0)
        is_constant = scales <= 1e-12 * np.abs(self._means)
        self._scales = np.where(is_constant, 1.0, scales)
        least = np.min(scales[~is_constant], initial=np.inf)
        ridges = l2 * (least / self._scales) ** 2 if np.isfinite(least) else np.zeros_like(scales)
        standardized = ((self._values - self._means) / self._scales).T
        names = [zlib.crc32(np.sort(column).tobytes()) for column in self._values.T]
        # Networks see the columns in an order of their numbers: sums round in the same way then.
        self._seen = np.argsort(names, kind="stable")
        self._settings = np.maximum(ridges, _LEAST_RIDGE)[self._seen], float(tolerance), int(max_steps)
        firsts = [np.random.default_rng([seed, names[at]]).normal(size=num_hidden) for at in self._seen]
        with jax.enable_x64(True):
            self._inputs = jnp.asarray(standardized[self._seen])
            self._start = (
                jnp.asarray(firsts),
                jnp.asarray(np.random.default_rng(seed).normal(size=num_hidden)),
            )
        self._known: dict[tuple[int, bytes], _Networks] = {}

    @property
    def num_fits(self) -> int:
        """How many networks have been fitted."""
        return len(self._known)

    def scores(
        self, nodes: Int[np.ndarray, " batch"], candidates: Bool[np.ndarray, "batch num_nodes"]
    ) -> Float[np.ndarray, " batch"]:
        """Return scores in the units of the data, squared; lower is better."""
        return self.fits(nodes, candidates).scores

    def fits(self, nodes: Int[np.ndarray, " batch"], candidates: Bool[np.ndarray, "batch num_nodes"]) -> Fits:
        """Return scores, and norms of groups of first weights and of derivatives, in units of the data."""
        if not len(nodes):
            none = np.zeros((0, len(self._scales)))
            return Fits(none[:, 0], none, none)
        fitted = self._fitted(nodes, candidates)
        variances = self._scales[nodes] ** 2
        return Fits(
            variances * fitted.loss,
            np.linalg.norm(fitted.first, axis=2) / self._scales,
            variances[:, None] * self._scales * fitted.gradients,
        )

    def top_down_order(
        self, before: Bool[np.ndarray, "num_nodes num_nodes"] | None = None
    ) -> Int[np.ndarray, " num_nodes"]:
        """Return the order in which each next node has the least score given those before: a start.

        Args:
            before: Whether row must come before column; transitive, without a cycle.
        """
        num_nodes = len(self._scales)
        before = np.zeros((num_nodes, num_nodes), bool) if before is None else before
        is_taken, order = np.zeros(num_nodes, bool), []
        for _ in range(num_nodes):
            free = np.flatnonzero(~is_taken & ~np.any(before & ~is_taken[:, None], axis=0))
            scores = self.scores(free, np.tile(is_taken, (len(free), 1)))
            order.append(int(free[np.argmin(scores)]))
            is_taken[order[-1]] = True
        return np.array(order, int)

    def equation(
        self,
        node: int,
        candidates: Bool[np.ndarray, " num_nodes"],
        required: Bool[np.ndarray, " num_nodes"],
        pruning: Pruning,
    ) -> NetworkEquation:
        """Return the equation of a node, fitted anew with the parents chosen.

        `"ebic"` counts a parent as `num_hidden` parameters, and lets go the one missed least while the
        extended Bayesian information criterion falls. `"threshold"` compares the norms of the groups of first
        weights, in the inverse units of the parents; the penalty does not make them zero.

        Raises:
            ValueError: If the pruning is for linear equations only.
        """
        chosen = candidates.copy()
        chosen[node] = False
        if pruning.kind == "ebic":
            chosen = self._eliminated(node, chosen, required, pruning.gamma)
        elif pruning.kind == "threshold":
            weights = self.fits(np.array([node]), chosen[None]).weights[0]
            chosen &= (weights > pruning.threshold) | required
        elif pruning.kind != "none":
            raise ValueError(f"MLPScore: pruning must be 'ebic', 'threshold' or 'none', not {pruning.kind!r}")
        return self._equation(node, chosen)

    def _eliminated(self, node: int, chosen: np.ndarray, required: np.ndarray, gamma: float) -> np.ndarray:
        num_rows, num_nodes = self._values.shape
        price = self._start[1].size * math.log(num_rows) / num_rows
        price += penalty(num_rows, num_nodes - 1, gamma) - penalty(num_rows, num_nodes - 1, 0)
        left = float(self._fitted(np.array([node]), chosen[None]).mean_square[0])
        while (free := np.flatnonzero(chosen & ~required)).size:
            fewer = np.tile(chosen, (len(free), 1))
            fewer[np.arange(len(free)), free] = False
            without = self._fitted(np.full(len(free), node), fewer).mean_square
            least = int(np.argmin(without))
            # No more is asked where next to nothing is left: rounding errors decide there.
            if math.log(max(float(without[least]), _LEAST_LEFT) / max(left, _LEAST_LEFT)) >= price:
                break
            chosen, left = fewer[least], float(without[least])
        return chosen

    def _equation(self, node: int, is_parent: np.ndarray) -> NetworkEquation:
        fitted = self._fitted(np.array([node]), is_parent[None])
        parents, scale = np.flatnonzero(is_parent), self._scales[node]
        first = np.asarray(fitted.first[0, parents]) / self._scales[parents, None]
        biases = fitted.biases[0] - self._means[parents] @ first
        second = scale * fitted.second[0]
        hidden = np.tanh(self._values[:, parents] @ first + biases)
        intercept = float(self._means[node] - hidden.mean(0) @ second)
        residuals = self._values[:, node] - intercept - hidden @ second
        return NetworkEquation(
            node,
            parents,
            np.linalg.norm(first, axis=1),
            float(scale**2 * fitted.mean_square[0]),
            first,
            np.asarray(biases),
            np.asarray(second),
            intercept,
            residuals if self._is_resampled else None,
        )

    def _fitted(self, nodes: np.ndarray, candidates: np.ndarray) -> _Networks:
        """Return networks of standardized columns, as arrays of NumPy."""
        candidates = candidates & (np.arange(len(self._scales)) != nodes[:, None])
        names = [(int(node), mask.tobytes()) for node, mask in zip(nodes, candidates, strict=True)]
        new = {name: at for at, name in enumerate(names) if name not in self._known}
        at = np.array(list(new.values()), int)
        keys, places = list(new), np.argsort(self._seen)
        for start in range(0, len(at), _BATCH):
            rows = at[start : start + _BATCH]
            padded = np.pad(rows, (0, _BATCH - len(rows)), mode="edge")
            with jax.enable_x64(True):
                found = _fit_batch(
                    self._inputs,
                    self._start,
                    places[nodes[padded]],
                    candidates[padded][:, self._seen],
                    np.arange(_BATCH) < len(rows),
                    *self._settings,
                    num_together=None if jax.default_backend() == "cpu" else _BATCH,
                )
            found = jax.tree.map(np.asarray, found)
            found = found._replace(first=found.first[:, places], gradients=found.gradients[:, places])
            for place, key in enumerate(keys[start : start + _BATCH]):
                self._known[key] = jax.tree.map(lambda array, place=place: array[place], found)
        return jax.tree.map(lambda *arrays: np.stack(arrays), *[self._known[name] for name in names])


@partial(jax.jit, static_argnames="num_together")
def _fit_batch(
    inputs: Array,
    start: tuple[Array, Array],
    nodes: Array,
    candidates: Array,
    is_asked: Array,
    ridges: Array,
    tolerance: Array,
    max_steps: Array,
    num_together: int | None,
) -> _Networks:
    """Return networks; those not asked for stay as they start.

    On a CPU one after the other: each ends as soon as it may, and does not depend on the others.
    """

    def fit(asked: tuple[Array, Array, Array]) -> _Networks:
        node, is_candidate, is_asked = asked
        most = jnp.where(is_asked, max_steps, 0)
        return _fit(inputs, start, node, is_candidate, ridges[node], tolerance, most)

    return lax.map(fit, (nodes, candidates, is_asked), batch_size=num_together)


def _fit(
    inputs: Array,
    start: tuple[Array, Array],
    node: Array,
    is_candidate: Array,
    ridge: Array,
    tolerance: Array,
    max_steps: Array,
) -> _Networks:
    """Return the network that L-BFGS ends at."""
    outputs, is_free = inputs[node], is_candidate[:, None]

    # What the optimizer and its line search differentiate, with the derivative that comes with the value.
    @jax.custom_jvp
    def loss_at(weights: tuple[Array, Array]) -> Array:
        return _projected(inputs, outputs, ridge, weights).loss

    @loss_at.defjvp
    def _loss_and_change(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
        here = _projected(inputs, outputs, ridge, primals[0])
        first, biases = tangents[0]
        return here.loss, jnp.sum(here.by_first * is_free * first) + here.by_biases @ biases

    optimizer = optax.lbfgs(linesearch=optax.scale_by_zoom_linesearch(max_linesearch_steps=15))
    value_and_grad = optax.value_and_grad_from_state(loss_at)

    def step(carry: tuple) -> tuple:
        weights, state, best, least, num_steps, num_calm, _ = carry
        loss, gradient = value_and_grad(weights, state=state)
        updates, state = optimizer.update(
            gradient, state, weights, value=loss, grad=gradient, value_fn=loss_at
        )
        new = optax.apply_updates(weights, updates)
        value, slope = optax.tree.get(state, "value"), optax.tree.norm(optax.tree.get(state, "grad"))
        num_calm = jnp.where(value < least - _NOTHING * least, 0, num_calm + 1)
        best = jax.tree.map(lambda old, own: jnp.where(value < least, own, old), best, new)
        return new, state, best, jnp.fmin(least, value), num_steps + 1, num_calm, slope

    def goes_on(carry: tuple) -> Array:
        *_, num_steps, num_calm, slope = carry
        return (num_steps < max_steps) & (num_calm < _PATIENCE) & ~(slope <= tolerance)

    spread = 1 / jnp.sqrt(jnp.maximum(is_candidate.sum(), 1).astype(inputs.dtype))
    weights = jnp.where(is_free, spread * start[0], 0.0), start[1]
    begin = loss_at(weights)
    zero = jnp.asarray(0)
    carry = (weights, optimizer.init(weights), weights, begin, zero, zero, jnp.full_like(begin, jnp.inf))
    _, _, best, _, num_steps, *_ = lax.while_loop(goes_on, step, carry)
    end = _projected(inputs, outputs, ridge, best)
    gradients = jnp.where(jnp.arange(len(inputs)) == node, 0.0, jnp.linalg.norm(end.by_first, axis=1))
    return _Networks(*best, end.second, end.mean_square, end.loss, gradients, num_steps)


class _Projected(NamedTuple):
    """A loss, with the output weights that make it least, and derivatives in the other weights."""

    loss: Array
    mean_square: Array
    second: Array
    by_first: Array
    by_biases: Array


def _projected(inputs: Array, outputs: Array, ridge: Array, weights: tuple[Array, Array]) -> _Projected:
    first, biases = weights
    num_hidden, num_rows = first.shape[1], inputs.shape[1]
    hidden = jnp.tanh(first.T @ inputs + biases[:, None])
    centred = hidden - hidden.mean(1, keepdims=True)
    moments = centred @ centred.T / num_rows + ridge * jnp.eye(num_hidden)
    second = cho_solve((jnp.linalg.cholesky(moments), True), centred @ outputs / num_rows)
    residuals = outputs - second @ centred
    # The output weights are at their optimum, so that what they would change does not count.
    by_hidden = -(1 - hidden**2) * (second[:, None] * residuals) / num_rows
    mean_square = jnp.mean(residuals**2)
    loss = 0.5 * (mean_square + ridge * (jnp.sum(first**2) + jnp.sum(second**2)))
    return _Projected(
        loss, mean_square, second, inputs @ by_hidden.T + ridge * first, jnp.sum(by_hidden, axis=1)
    )
