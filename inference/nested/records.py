"""What a run of nested sampling leaves: those who died, and the draws from the prior that it began with."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from qbs.inference.nested.contours import Weighed, weighed
from qbs.inference.nested.finished import Finished
from qbs.inference.nested.live_points import Live
from qbs.inference.nested.passes import Block
from qbs.inference.nested.problem import MAX_FIRST_DRAWS, Cube
from qbs.inference.nested.unit_cube import LEAST
from qbs.inference.progress import ProgressLine
from qbs.inference.results.diagnostics import weight_problems

_LEAST_P_VALUE = 0.003  # of the insertion-rank test


class Records(NamedTuple):
    """Samples in the order of their death, and ranks of new points in the order of birth."""

    points: np.ndarray
    log_likelihoods: np.ndarray
    births: np.ndarray
    ranks: np.ndarray

    @classmethod
    def joined(cls, parts: list["Records"]) -> "Records":
        """Return some one after the other."""
        points, log_likelihoods, births, ranks = map(np.concatenate, zip(*parts, strict=True))
        return cls(points, log_likelihoods, births, ranks)

    @classmethod
    def of_block(cls, block: Block) -> "Records":
        """Return those who died in some iterations."""
        is_dead, ranks = np.asarray(block.dead.is_dead), np.asarray(block.ranks)
        points, log_likelihoods, births = (np.asarray(part)[is_dead] for part in block.dead[:3])
        return cls(points, log_likelihoods, births, ranks[~np.isnan(ranks)])

    @classmethod
    def of_live(cls, live: Live) -> "Records":
        """Return those who are alive, as if they died now."""
        is_alive = np.asarray(live.is_alive)
        parts = (live.points, live.log_likelihoods, live.births)
        points, log_likelihoods, births = (np.asarray(part)[is_alive] for part in parts)
        return cls(points, log_likelihoods, births, np.zeros(0))


class Draws(NamedTuple):
    """The draws from the prior with which a run begins.

    Attributes:
        points: Those that are possible.
        log_likelihoods: There.
        num_impossible: Those that are not.
    """

    points: np.ndarray
    log_likelihoods: np.ndarray
    num_impossible: int


def first_draws(cube: Cube, num_live: int, key: Array, line: ProgressLine) -> Draws:
    """Draw from the prior until there are enough possible points."""
    points: list[np.ndarray] = []
    values: list[np.ndarray] = []
    rounds = 0
    while (num_found := sum(map(len, points))) < num_live:
        uniforms = jax.random.uniform(jax.random.fold_in(key, rounds), (num_live, cube.dim), minval=LEAST)
        new = np.asarray(uniforms)
        found = cube.log_likelihood(new)
        is_possible = found > -math.inf
        points, values = [*points, new[is_possible]], [*values, found[is_possible]]
        rounds += 1
        if not num_found and cube.num_calls >= MAX_FIRST_DRAWS[cube.is_compiled]:
            raise cube.impossible()
        line.update(f"{num_found:,} of {num_live:,} live points, {cube.num_calls:,} draws")
    possible = np.concatenate(points)
    return Draws(possible, np.concatenate(values), rounds * num_live - len(possible))


def insertion_problems(p_values: tuple[float, float], advice: str = "") -> list[str]:
    """Return what the insertion-rank test speaks against the result, as plain sentences."""
    if (p_value := min(p_values)) >= _LEAST_P_VALUE:
        return []
    return [
        "New live points do not stand among the others as draws from the prior above the bound would "
        f"(the insertion-rank test has p = {p_value:.1g}): evidence and posterior may be biased.{advice}"
    ]


def finished(records: Records, found: Weighed, problems: list[str], provenance: dict[str, Any]) -> Finished:
    """Return weighed records as the result of a run, without those that weigh nothing."""
    is_kept = found.log_weights > -700
    chosen, log_weights = found.order[is_kept], found.log_weights[is_kept]
    log_weights = log_weights - np.logaddexp.reduce(log_weights)
    return Finished(
        records.points[chosen],
        records.log_likelihoods[chosen],
        log_weights,
        found.log_evidence,
        found.log_evidence_error,
        [*problems, *weight_problems(log_weights)],
        provenance,
    )


def weighed_by(draws: Draws, records: Records) -> Weighed:
    """Return what records weigh, beside the share of the prior that is possible."""
    return weighed(
        records.births,
        records.log_likelihoods,
        num_possible=len(draws.points),
        num_impossible=draws.num_impossible,
    )
