"""Whether a transformation keeps the measure of finite programs, exactly."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from qbs.inference.transform.population import Particles
from qbs.inference.validate.zoo import zoo
from qbs.program import Program
from qbs.semantics.enumeration import FiniteMeasure
from qbs.semantics.enumeration import enumerate as enumerate_program


@dataclass(frozen=True, repr=False)
class ExactReport:
    """How far two measures are apart.

    Attributes:
        program: The name of the program.
        max_difference: The largest difference of mass on one value; infinite where one is NaN.
        worst: The value where it is.
        before: Mass of each value under the program.
        after: The same under the transformed program.
        ok: Whether the largest difference is within the tolerance.
    """

    program: str
    max_difference: float
    worst: Any
    before: dict[Any, float]
    after: dict[Any, float]
    ok: bool

    def __repr__(self) -> str:
        verdict = "the same measure" if self.ok else "NOT the same measure"
        before, after = self.before.get(self.worst, 0.0), self.after.get(self.worst, 0.0)
        return (
            f"{self.program!r}: {verdict}: largest difference {self.max_difference:.3g} at {self.worst}, "
            f"{before:.10g} before, {after:.10g} after ({len(self.before)} values)"
        )


def exact(
    transformation: Callable[[Program], Program],
    program: Program | None = None,
    *args: Any,
    tolerance: float = 1e-10,
) -> ExactReport:
    """Compare the measure of a finite program before and after a transformation, exactly.

    Both programs are enumerated over all outcomes of all their random choices, the transformation's own
    included, in float64. A population counts as the expected weighted average of its particles.

    Args:
        transformation: From program to program, such as
            `lambda program: qbs.population(program, num_particles=2, resample="multinomial")`.
        program: A program whose sites have finite support; by default all of the `zoo`, and the report is
            that of the worst.
        *args: Its arguments.
        tolerance: The largest difference that passes.

    Raises:
        ProgramError: If a site of either program has no finite support.
    """
    if program is None:
        reports = [exact(transformation, member, tolerance=tolerance) for member in zoo().values()]
        return max(reports, key=lambda report: report.max_difference)
    try:
        before = _before(program, *args)
        after = _masses(enumerate_program(transformation(program))(*args))
    except Exception as error:
        error.add_note(f"The program is {program.name!r}.")
        raise
    differences = {value: abs(before.get(value, 0.0) - after.get(value, 0.0)) for value in before | after}
    differences = {value: np.inf if np.isnan(gap) else gap for value, gap in differences.items()}
    worst = max(differences, key=differences.__getitem__, default=())
    largest = differences.get(worst, 0.0)
    return ExactReport(program.name, largest, worst, before, after, largest <= tolerance)


def _before(program: Program, *args: Any) -> dict[tuple, float]:
    member = zoo().get(program.name)
    if member is None or member.function is not program.function:
        return _masses(enumerate_program(program)(*args))
    return dict(_zoo_masses(program.name))


@lru_cache
def _zoo_masses(name: str) -> dict[tuple, float]:
    return _masses(enumerate_program(zoo()[name])())


def _masses(measure: FiniteMeasure) -> dict[tuple, float]:
    """Return mass by value; particles count by their weights."""
    values, masses = measure.values, measure.masses
    if isinstance(values, Particles):
        weights = np.exp(values.log_weights) / values.log_weights.shape[1]
        masses = (masses[:, None] * weights).ravel()
        values = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), values.value)
    found: dict[tuple, float] = {}
    for value, mass in zip(flat_values(values, len(masses)), masses.tolist(), strict=True):
        found[value] = found.get(value, 0.0) + mass
    return found


def flat_values(values: Any, count: int) -> list[tuple]:
    """Return each of a number of values as a tuple of numbers."""
    rows = [np.reshape(leaf, (count, -1)).tolist() for leaf in jax.tree.leaves(values)]
    return [tuple(number for row in rows for number in row[i]) for i in range(count)]
