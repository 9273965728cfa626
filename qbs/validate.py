"""Checks that a transformation keeps the meaning of programs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from qbs.program import Program
from qbs.semantics.enumeration import FiniteMeasure
from qbs.semantics.enumeration import enumerate as enumerate_program
from qbs.transform.population import Particles

TOLERANCE = 1e-10


@dataclass(frozen=True)
class ExactReport:
    """How far two measures are apart.

    Attributes:
        max_difference: The largest difference of mass on one value.
        worst: The value where it is.
        before: Mass of each value under the program.
        after: The same under the transformed program.
        ok: Whether the largest difference is within the tolerance.
    """

    max_difference: float
    worst: Any
    before: dict[Any, float]
    after: dict[Any, float]
    ok: bool

    def __repr__(self) -> str:
        verdict = "the same measure" if self.ok else "NOT the same measure"
        return (
            f"{verdict}: largest difference {self.max_difference:.3g} at {self.worst}, "
            f"{self.before.get(self.worst, 0.0):.10g} before, {self.after.get(self.worst, 0.0):.10g} after "
            f"({len(self.before)} values)"
        )


def exact(
    transformation: Callable[[Program], Program], program: Program, *args: Any, tolerance: float = TOLERANCE
) -> ExactReport:
    """Compare the measure of a finite program before and after a transformation, exactly.

    Both programs are enumerated over all outcomes of all their random choices, the transformation's own
    included, in float64. A population counts as the expected weighted average of its particles.

    Args:
        transformation: From program to program, such as
            `lambda program: qbs.population(program, num_particles=2, resample="multinomial")`.
        program: A program whose sites have finite support.
        *args: Its arguments.
        tolerance: The largest difference that passes.

    Returns:
        A report with `max_difference` and `ok`.

    Raises:
        ProgramError: If a site of either program has no finite support.
    """
    before = _masses(enumerate_program(program)(*args))
    after = _masses(enumerate_program(transformation(program))(*args))
    differences = {value: abs(before.get(value, 0.0) - after.get(value, 0.0)) for value in before | after}
    worst = max(differences, key=differences.__getitem__, default=())
    largest = differences.get(worst, 0.0)
    return ExactReport(largest, worst, before, after, bool(largest <= tolerance))


def _masses(measure: FiniteMeasure) -> dict[tuple, float]:
    """Return mass by value, flattened to a tuple of numbers; particles count by their weights."""
    values, masses = measure.values, measure.masses
    if isinstance(values, Particles):
        weights = np.exp(values.log_weights) / values.log_weights.shape[1]
        masses = (masses[:, None] * weights).ravel()
        values = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), values.value)
    rows = [leaf.reshape(len(masses), -1) for leaf in jax.tree.leaves(values)]
    found: dict[tuple, float] = {}
    for i, mass in enumerate(masses):
        key = tuple(number for row in rows for number in row[i].tolist())
        found[key] = found.get(key, 0.0) + float(mass)
    return found
