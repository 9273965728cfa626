"""Graphs of resampled data: how often each edge comes back."""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from qbs.errors import DataError
from qbs.inference.dag.equivalence import completed_graph
from qbs.inference.dag.grow_shrink import grow_shrink
from qbs.inference.dag.learning import Settings, learn_graph
from qbs.inference.dag.orders import OF_MOMENTS
from qbs.inference.dag.parents import penalty
from qbs.inference.dag.rules import Rules
from qbs.inference.dag.sample import Sample, sample_of_rows, with_ridge
from qbs.inference.dag.search import search
from qbs.inference.dag.starts import top_down_order

# Covariance, with divisor the number of rows, and that number.
Moments = tuple[Float[np.ndarray, "num_nodes num_nodes"], int]
Draw = Callable[[np.random.Generator], Moments]

_CHUNK = 20  # replicates that are learned together
_MOST_DRAWS = 100
_MOST_COMPILED = 128  # nodes
_LEAST_RIDGE = 1e-12  # few rows can leave a column without two different values


def edges_of_replicates(
    sample: Sample,
    rules: Rules,
    settings: Settings,
    num_replicates: int,
    *,
    draw: Draw | None = None,
    seed: int = 0,
) -> Iterator[tuple[Float[np.ndarray, "num_nodes num_nodes"], int]]:
    """Yield, for some replicates at a time, how many of them have each edge, and how many they are.

    Args:
        sample: The table, or its moments.
        rules: What all graphs keep.
        settings: How they are learned; without restarts.
        num_replicates: How many.
        draw: Draws the moments of a replicate; by default, of rows drawn with replacement.
        seed: Of the random numbers.
    """
    rng = np.random.default_rng(seed)
    draw = partial(_moments_of_rows, sample) if draw is None else draw
    is_compiled = (
        settings.score == "equal-variance"
        and settings.neighbourhood != "kkt"
        and settings.pruning.kind == "ebic"
        and rules.is_order_alone
        and sample.num_nodes <= _MOST_COMPILED
    )
    size = _CHUNK if is_compiled else 1
    for first in range(0, num_replicates, size):
        count = min(size, num_replicates - first)
        if is_compiled:
            yield _learned_together([draw(rng) for _ in range(count)], sample, rules, settings), count
        elif settings.score in OF_MOMENTS:
            yield _learned(_resampled_moments(sample, draw(rng)), rules, settings), count
        else:
            yield _learned(_resampled_rows(sample, rng), rules, settings), count


def _moments_of_rows(sample: Sample, rng: np.random.Generator) -> Moments:
    values, num_rows = sample.values, sample.num_rows
    if values is None:
        raise ValueError("bootstraps need the rows of the table, or a way to draw moments")
    counts = np.bincount(rng.integers(0, num_rows, num_rows), minlength=num_rows)
    centred = values - counts @ values / num_rows
    return centred.T @ (counts[:, None] * centred) / num_rows, num_rows


def _resampled_rows(sample: Sample, rng: np.random.Generator) -> Sample:
    """Return rows drawn with replacement, in which no column is constant."""
    values = sample.values
    assert values is not None  # or there would be no score
    for _ in range(_MOST_DRAWS):
        rows = values[rng.integers(0, len(values), len(values))]
        if np.all(np.ptp(rows, axis=0) > 0):
            return sample_of_rows(rows, sample.kinds)
    raise DataError(
        "bootstraps: some column has so few values unlike the others that resampled rows have none of them; "
        "leave it out, or set bootstraps=0"
    )


def _resampled_moments(sample: Sample, moments: Moments) -> Sample:
    covariance, num_rows = moments
    return sample._replace(covariance=_ridged(covariance, sample), num_rows=num_rows, values=None)


def _learned(sample: Sample, rules: Rules, settings: Settings) -> np.ndarray:
    is_edge = learn_graph(sample, rules, settings).is_edge
    if settings.score != "bic":
        return is_edge.astype(float)
    # A direction that the score does not tell counts half for each.
    is_possible = completed_graph(is_edge, is_known=rules.known_arrows)
    return is_possible / (1.0 + (is_possible & is_possible.T))


def _ridged(covariance: np.ndarray, sample: Sample) -> np.ndarray:
    return with_ridge(covariance, sample.ridge) + _LEAST_RIDGE * np.diag(np.diagonal(sample.covariance))


def _learned_together(moments: list[Moments], sample: Sample, rules: Rules, settings: Settings) -> np.ndarray:
    covariances = np.array([_ridged(covariance, sample) for covariance, _ in moments])
    prices = [penalty(rows, sample.num_nodes - 1, settings.pruning.gamma) for _, rows in moments]
    most = [max(rows - 2, 0) for _, rows in moments]
    # As many at every call, so that one is compiled.
    fill = np.arange(_CHUNK) % len(moments)
    with jax.enable_x64(True):
        rules_ = tuple(map(jnp.asarray, rules))
        room = min(32, sample.num_nodes)
        while True:
            arrays = covariances[fill], np.array(prices)[fill], np.array(most)[fill]
            edges, is_full = _edges(*map(jnp.asarray, arrays), *rules_, room=room)
            if not is_full.any():
                return np.asarray(edges[: len(moments)]).sum(0).astype(float)
            room = min(2 * room, sample.num_nodes)


@partial(jax.jit, static_argnames="room")
def _edges(
    covariances: Float[Array, "batch num_nodes num_nodes"],
    prices: Float[Array, " batch"],
    most: Int[Array, " batch"],
    before: Bool[Array, "num_nodes num_nodes"],
    required: Bool[Array, "num_nodes num_nodes"],
    forbidden: Bool[Array, "num_nodes num_nodes"],
    *,
    room: int,
) -> tuple[Bool[Array, "batch num_nodes num_nodes"], Bool[Array, " batch"]]:
    """Return the edges of row -> column of each graph, and whether `room` did not suffice."""
    nodes = jnp.arange(covariances.shape[-1])

    def learn(task: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        covariance, price, most = task
        order = search(covariance, top_down_order(covariance, before), before).order
        places = jnp.argsort(order)
        candidates = (places[None, :] < places[:, None]) & ~forbidden.T
        chosen = grow_shrink(covariance, nodes, candidates, required.T, price, most, room=room)
        return chosen.is_parent.T, chosen.is_full.any()

    return lax.map(learn, (covariances, prices, most))
