"""The score of linear models with non-Gaussian noises, LiNGAM, and whether noises are non-Gaussian enough."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Array, Bool, Float, Int

# Of two functions of a standardized variable: what a Gaussian expects, and the half of the inverse of the
# variance that its mean over rows has, times the rows, once the first two moments are made to agree.
_EVEN_OF_GAUSSIAN = 0.3745672074883472  # of log cosh
_EVEN_WEIGHT = 79.01556725063121
_ODD_WEIGHT = 36 / (8 * 3**0.5 - 9)
# Of Python, whose numbers take the precision of the arrays that they meet.
_GAUSSIAN_ENTROPY = 0.5 * (1 + math.log(2 * math.pi))
_LOG_TWO = math.log(2.0)

_BATCHES = (256, 64, 16)  # of nodes with their candidates: few shapes, so that little is compiled
_BATCH_BYTES = 2**26  # of the equations of a batch
_BLOCK = 1024  # rows at once
_PAIR_BLOCK = 128  # rows at once of the residuals of all pairs of columns
_TINY = 1e-10  # of a variance: less is left of a node that others tell all about

_LEVEL = 0.01  # of the test of all residuals together
_FEWEST = 50  # rows from which the test holds its level


class LingamScore:
    r"""Score nodes by the entropy of what least squares on their candidates leaves.

    If noises are independent and not Gaussian, the sum over nodes, each given all before it, is least at
    causal orders: it is minus the likelihood per row, maximized over the laws of the noises. It is the
    log of the standard deviation plus the entropy of the standardized residual \(u\), which is approximated
    near a Gaussian by the law of most entropy for two expectations:

    \(H(u) = \tfrac12 \log 2 \pi e - k_1 (E \log\cosh u - \gamma)^2 - k_2 (E\, u e^{-u^2/2})^2\).

    The two functions are bounded or grow slowly, so that outliers decide little. What is lacking of the
    entropy of a Gaussian is right in sign more than in size: 0.057 for 0.176 of a uniform law, 0.104 for
    0.072 of Laplace's, 0.331 for 0.419 of an exponential. Units do not matter: they
    add a constant. For Gaussian noises all orders score the same. Computes in float64, the start aside.

    References:
        Hyvärinen (1998), "New approximations of differential entropy for independent component analysis and
        projection pursuit", for the approximation; its 79.047 is 79.016 to more digits. Shimizu, Inazumi,
        Sogawa, Hyvärinen, Kawahara, Washio, Hoyer & Bollen (2011), "DirectLiNGAM". Hyvärinen & Smith (2013),
        "Pairwise likelihood ratios for estimation of non-Gaussian structural equation models".
    """

    def __init__(self, values: Float[np.ndarray, "num_rows num_nodes"]):
        """Take the columns of a table.

        Args:
            values: Finite; more rows than columns; no column is constant.

        Raises:
            ValueError: If they are not so.
        """
        self._num_rows, num_nodes = values.shape
        if self._num_rows <= num_nodes + 1:
            raise ValueError(
                f"LingamScore: values must have at least {num_nodes + 2} rows for {num_nodes} columns, not "
                f"{self._num_rows}: regression on all others leaves nothing whose law could be seen"
            )
        if not np.all(np.isfinite(values)):
            raise ValueError("LingamScore: values must be finite")
        means, scales = values.mean(0), values.std(0)
        is_constant = scales <= 1e-12 * np.abs(means)
        if is_constant.any():
            raise ValueError(f"LingamScore: columns {np.flatnonzero(is_constant).tolist()} are constant")
        self._log_scales = np.log(scales)
        self._standardized = (values - means) / scales
        self._correlation = self._standardized.T @ self._standardized / self._num_rows
        most = max(_BATCHES[-1], _BATCH_BYTES // (8 * num_nodes**2))
        self._batches = [size for size in _BATCHES if size <= most]
        with jax.enable_x64(True):
            self._blocks = _in_blocks(self._standardized, _BLOCK)

    def scores(
        self, nodes: Int[np.ndarray, " batch"], candidates: Bool[np.ndarray, "batch num_nodes"]
    ) -> Float[np.ndarray, " batch"]:
        """Return the entropies of residuals, in nats per row; see `score.Score.scores`."""
        found = np.empty(len(nodes))
        with jax.enable_x64(True):
            start = 0
            while start < len(nodes):
                left = len(nodes) - start
                size = next((size for size in self._batches if size <= left), self._batches[-1])
                count = min(size, left)
                rows = np.minimum(np.arange(start, start + size), len(nodes) - 1)
                own = _entropies_given(
                    self._blocks, self._num_rows, self._correlation, nodes[rows], candidates[rows]
                )
                found[start : start + count] = np.asarray(own)[:count]
                start += count
        return found + self._log_scales[nodes]

    def top_down_order(
        self, before: Bool[np.ndarray, "num_nodes num_nodes"] | None = None
    ) -> Int[np.ndarray, " num_nodes"]:
        """Return the order in which each next node is least likely an effect of any that come later.

        That is DirectLiNGAM with likelihood ratios of pairs: the residuals, given those before, of two nodes
        are regressed on each other both ways, and the ratios that speak against a node are squared and
        summed. A good start for a search, which then minimizes the sum of `scores`.

        Args:
            before: Whether row must come before column; transitive, without a cycle.
        """
        num_nodes = len(self._correlation)
        if before is None:
            before = np.zeros((num_nodes, num_nodes), bool)
        left, order = np.arange(num_nodes), []
        columns = self._standardized
        while len(left) > 1:
            correlation = columns.T @ columns / self._num_rows
            left_over = np.sqrt(np.maximum(1 - correlation**2, _TINY))
            against = np.sum(np.minimum(self._ratios(columns, correlation, left_over), 0.0) ** 2, axis=1)
            against[np.any(before[np.ix_(left, left)], axis=0)] = np.inf
            first = int(np.argmin(against))
            order.append(left[first])
            others = np.arange(len(left)) != first
            columns = columns[:, others] - np.outer(columns[:, first], correlation[first, others])
            columns, left = columns / left_over[first, others], left[others]
        return np.array([*order, *left], int)

    def _ratios(self, columns: np.ndarray, correlation: np.ndarray, left_over: np.ndarray) -> np.ndarray:
        """Return the ratio for row -> column against the reverse, in nats per row."""
        count, num_nodes = len(correlation), len(self._correlation)
        step = max(8, -(-num_nodes // 8))  # few shapes, so that little is compiled
        more = min(-(-count // step) * step, num_nodes) - count
        padded = np.pad(columns, ((0, 0), (0, more)))
        square = ((0, more), (0, more))
        ratios = _likelihood_ratios(
            # Single precision takes a fifth of the time, and only a start rests on it.
            _in_blocks(padded.astype(np.float32), _PAIR_BLOCK),
            np.float32(self._num_rows),
            np.pad(correlation, square).astype(np.float32),
            np.pad(left_over, square, constant_values=1.0).astype(np.float32),
        )
        return np.asarray(ratios)[:count, :count]


class Gaussianity(NamedTuple):
    r"""How far residuals are from Gaussian, as the score sees it.

    Attributes:
        negentropies: What each standardized residual lacks of the entropy of a Gaussian, in nats per row; the
            directions of arrows rest on it.
        p_values: Chance of as much in as many rows of Gaussian noise: \(2 n J\) has then a chi-square law
            with two degrees of freedom, as \(J\) is a weighted sum of squares of two means.
        is_told: Whether each is told from a Gaussian: below 1 % over the square of the number of columns, as
            each of them is the most telling one that a search found for its place.
    """

    negentropies: Float[np.ndarray, " num_nodes"]
    p_values: Float[np.ndarray, " num_nodes"]
    is_told: Bool[np.ndarray, " num_nodes"]


def gaussianity(residuals: Float[np.ndarray, "num_rows num_nodes"]) -> Gaussianity:
    """Test whether columns of residuals are Gaussian.

    Args:
        residuals: Rows must be independent. The law of the test is of many rows: with fewer than 50 it
            rejects too rarely. A constant column is not told from a Gaussian.
    """
    centred = residuals - residuals.mean(0)
    scales = centred.std(0)
    is_constant = scales <= 1e-12 * np.abs(residuals).max(0, initial=0.0)
    standardized = centred / np.where(is_constant, 1.0, scales)
    even = np.logaddexp(standardized, -standardized).mean(0) - _LOG_TWO
    odd = (standardized * np.exp(-0.5 * standardized**2)).mean(0)
    found = _EVEN_WEIGHT * (even - _EVEN_OF_GAUSSIAN) ** 2 + _ODD_WEIGHT * odd**2
    negentropies = np.where(is_constant, 0.0, found)
    p_values = np.exp(-len(residuals) * negentropies)
    return Gaussianity(negentropies, p_values, p_values < _LEVEL / max(residuals.shape[1], 1) ** 2)


def gaussian_doubts(residuals: Float[np.ndarray, "num_rows num_nodes"]) -> list[str]:
    """Return what a reader must know of the noises, as sentences; empty where all is well.

    One Gaussian noise is in order: the others tell its directions.

    Args:
        residuals: Of all nodes, from their equations.
    """
    num_rows, num_nodes = residuals.shape
    num_gaussian = num_nodes - int(gaussianity(residuals).is_told.sum())
    if num_nodes < 2 or num_gaussian < 2:
        return []
    few = f" With {num_rows} rows, little could be told." if num_rows < _FEWEST else ""
    if num_gaussian == num_nodes:
        return [
            "No residual can be told from Gaussian noise: the non-Gaussian score cannot tell causes from "
            f"effects then, and directions mean nothing; only cpdag_ does.{few}"
        ]
    return [
        f"{num_gaussian} of {num_nodes} residuals cannot be told from Gaussian noise: the directions of "
        f"arrows between those nodes may be wrong; cpdag_ has those that do not rest on it.{few}"
    ]


def _in_blocks(values: np.ndarray, rows: int) -> Array:
    """Return blocks of rows; the last is filled with zeros, which add nothing to the sums below."""
    rows = min(rows, len(values))
    num_blocks = -(-len(values) // rows)
    padded = np.pad(values, ((0, num_blocks * rows - len(values)), (0, 0)))
    return jnp.asarray(padded.reshape(num_blocks, rows, values.shape[1]))


@jax.jit
def _entropies_given(
    blocks: Float[Array, "num_blocks num_rows num_nodes"],
    num_rows: Array | int,
    correlation: Float[Array, "num_nodes num_nodes"],
    nodes: Int[Array, " batch"],
    candidates: Bool[Array, "batch num_nodes"],
) -> Float[Array, " batch"]:
    """Return the entropies of nodes given candidates, all columns being standardized."""
    contrasts, variances = jax.vmap(_contrast, (None, 0, 0))(correlation, nodes, candidates)
    contrasts = contrasts / jnp.sqrt(variances)[:, None]

    def add(sums: tuple[Array, Array], block: Array) -> tuple[tuple[Array, Array], None]:
        even, odd = _moments(block @ contrasts.T)
        return (sums[0] + even, sums[1] + odd), None

    zeros = jnp.zeros(len(nodes))
    (even, odd), _ = lax.scan(add, (zeros, zeros), blocks)
    return 0.5 * jnp.log(variances) + _standardized_entropy(even / num_rows, odd / num_rows)


def _contrast(correlation: Array, node: Array, may_be: Array) -> tuple[Array, Array]:
    """Return the weights of all columns in the residual of a node, and its variance."""
    may_be = may_be & (jnp.arange(len(correlation)) != node)
    among = jnp.where(may_be[:, None] & may_be, correlation, 0.0)
    factor = cho_factor(among + jnp.diag(jnp.where(may_be, _TINY, 1.0)), lower=True)
    contrast = -cho_solve(factor, jnp.where(may_be, correlation[node], 0.0))
    contrast = contrast.at[node].set(1.0)
    return contrast, jnp.maximum(contrast @ correlation @ contrast, _TINY)


@jax.jit
def _likelihood_ratios(
    blocks: Float[Array, "num_blocks num_rows num_columns"],
    num_rows: Float[Array, ""] | np.float32,
    correlation: Float[Array, "num_columns num_columns"],
    left_over: Float[Array, "num_columns num_columns"],
) -> Float[Array, "num_columns num_columns"]:
    """Return the ratio for row -> column against the reverse, in nats per row."""

    def add(sums: Any, block: Array) -> tuple[Any, None]:
        given = (block[:, :, None] - correlation * block[:, None, :]) / left_over  # of row given column
        return tuple(map(jnp.add, sums, (*_moments(block), *_moments(given)))), None

    single, pair = jnp.zeros_like(blocks[0, 0]), jnp.zeros_like(correlation)
    sums, _ = lax.scan(add, (single, single, pair, pair), blocks)
    even, odd, even_given, odd_given = (total / num_rows for total in sums)
    own, given = _standardized_entropy(even, odd), _standardized_entropy(even_given, odd_given)
    # The variances of both factorizations have the same product.
    return (own[None, :] + given) - (own[:, None] + given.T)


def _moments(values: Array) -> tuple[Array, Array]:
    """Return the sums over the first axis of log cosh u and u exp(-u^2 / 2)."""
    sizes = jnp.abs(values)
    even = sizes + jnp.log1p(jnp.exp(-2 * sizes)) - _LOG_TWO
    return even.sum(0), (values * jnp.exp(-0.5 * values**2)).sum(0)


def _standardized_entropy(even: Array, odd: Array) -> Array:
    return _GAUSSIAN_ENTROPY - _EVEN_WEIGHT * (even - _EVEN_OF_GAUSSIAN) ** 2 - _ODD_WEIGHT * odd**2
