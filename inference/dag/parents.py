"""The parents of nodes among candidates, by the extended Bayesian information criterion."""

import math
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from qbs.inference.dag.grow_shrink import Chosen, grow_shrink

_TINY = 1e-10  # of its variance: least that parents leave
_ROOM = 32  # for parents, at first
_BLOCK = 2**23  # numbers worked on at a time


class Regression(NamedTuple):
    """A node on its parents.

    Attributes:
        parents: Their numbers, ascending.
        weights: Their coefficients.
        variance: Of what they leave.
        criterion: Extended Bayesian information criterion, per observation; lower is better.
    """

    parents: Int[np.ndarray, " num_parents"]
    weights: Float[np.ndarray, " num_parents"]
    variance: float
    criterion: float


def penalty(num_observations: float | int, num_candidates: int, gamma: float | int) -> float:
    r"""Return what a parent must gain, in units of the log of the variance.

    \((\log n + 2 \gamma \log p) / n\) for \(p\) candidates: with \(\gamma = 0\) the Bayesian information
    criterion; larger keeps out more of what many candidates offer by chance.

    References:
        Chen & Chen (2008), "Extended Bayesian information criteria for model selection".
    """
    return (math.log(num_observations) + 2 * gamma * math.log(max(num_candidates, 1))) / num_observations


def choose_parents(
    covariance: Float[np.ndarray, "num_nodes num_nodes"],
    node: int,
    candidates: Bool[np.ndarray, " num_nodes"],
    num_observations: float | int,
    *,
    gamma: float | int = 1.0,
    required: Bool[np.ndarray, " num_nodes"] | None = None,
) -> Regression:
    """Return the parents that growing and then shrinking finds; see `grow_shrink`.

    Args:
        covariance: Of the nodes.
        node: The child.
        candidates: Who may be a parent.
        num_observations: How many the covariance comes from.
        gamma: See `penalty`.
        required: Candidates that must be parents.
    """
    must_be = np.zeros_like(candidates) if required is None else required
    found = choose_all_parents(
        covariance, np.array([node]), candidates[None], must_be[None], num_observations, gamma=gamma
    )
    parents, variance = np.flatnonzero(found.is_parent[0]), float(found.variances[0])
    price = penalty(num_observations, len(covariance) - 1, gamma)
    criterion = math.log(variance) + price * len(parents)
    return Regression(parents, np.asarray(found.weights[0][parents]), variance, criterion)


def choose_all_parents(
    covariance: Float[np.ndarray, "num_nodes num_nodes"],
    nodes: Int[np.ndarray, " batch"],
    candidates: Bool[np.ndarray, "batch num_nodes"],
    required: Bool[np.ndarray, "batch num_nodes"],
    num_observations: float | int,
    *,
    gamma: float | int = 1.0,
) -> Chosen:
    """Return the parents of many nodes, as arrays of NumPy; see `choose_parents`."""
    num_nodes, most = len(covariance), max(int(num_observations) - 2, 0)
    # All other nodes, also where only some come before: there are as many sets of edges to be misled by.
    price = penalty(num_observations, num_nodes - 1, gamma)

    def choose(rows: np.ndarray, room: int) -> Chosen:
        # Few sizes, so that few are compiled; what fills them up has no candidates, and is done at once.
        size = min(num_nodes, max(1, _BLOCK // (room * num_nodes)))
        padded = np.concatenate([rows, np.full(-len(rows) % size, -1)])
        is_there = (padded >= 0)[:, None]
        tasks = nodes[padded], candidates[padded] & is_there, required[padded]
        found = [
            grow_shrink(shared, *(jnp.asarray(field[at : at + size]) for field in tasks), *limits, room)
            for at in range(0, len(padded), size)
        ]
        return Chosen(*(cast(Any, np.concatenate(field)[: len(rows)]) for field in zip(*found, strict=True)))

    with jax.enable_x64(True):
        shared, limits = jnp.asarray(covariance), (jnp.asarray(price), jnp.asarray(most))
        room = min(_ROOM, num_nodes)
        found = choose(np.arange(len(nodes)), room)
        while found.is_full.any():
            again, room = np.flatnonzero(found.is_full), min(2 * room, num_nodes)
            for field, new in zip(found, choose(again, room), strict=True):
                field[again] = new
    return found


def regress(
    covariance: Float[np.ndarray, "num_nodes num_nodes"], node: int, parents: Int[np.ndarray, " num_parents"]
) -> tuple[Float[np.ndarray, " num_parents"], float]:
    """Return the coefficients of a node on parents, and the variance that they leave."""
    with_node = covariance[parents, node]
    weights = np.linalg.lstsq(covariance[np.ix_(parents, parents)], with_node, rcond=None)[0]
    left = covariance[node, node] - with_node @ weights
    return weights, float(max(left, _TINY * covariance[node, node]))
