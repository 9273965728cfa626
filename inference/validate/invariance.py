"""Whether a Markov kernel leaves a finite target invariant, by its whole transition matrix."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from qbs.effects import sample
from qbs.inference.validate.exactness import flat_values
from qbs.program import Program
from qbs.semantics.enumeration import enumerate as enumerate_program


@dataclass(frozen=True, repr=False)
class InvarianceReport:
    r"""What a kernel K does to a target \(\pi\).

    Attributes:
        max_difference: The largest \(|(\pi K - \pi)_j|\), states that the target does not have included.
        detailed_balance: The largest \(|\pi_i K_{ij} - \pi_j K_{ji}|\); zero for reversible kernels only.
        worst: The state of the largest difference.
        matrix: K, from each state of the target (row) to each of `states` (column).
        states: Tuples of numbers: the states of the target, then others that the kernel reaches.
        probabilities: Of `states` under the target, normalised.
        ok: Whether the largest difference is within the tolerance, and every row of K sums to 1 as well.
    """

    max_difference: float
    detailed_balance: float
    worst: tuple
    matrix: np.ndarray
    states: list[tuple]
    probabilities: np.ndarray
    ok: bool

    def __repr__(self) -> str:
        sums = self.matrix.sum(1)
        return (
            f"{'' if self.ok else 'NOT '}invariant: largest change of probability {self.max_difference:.3g} "
            f"at {self.worst}; row sums from {sums.min():.10g} to {sums.max():.10g}; detailed balance to "
            f"{self.detailed_balance:.3g} ({len(sums)} states)"
        )


def invariant(
    kernel: Callable[[Any], Any], target: Program, *args: Any, tolerance: float = 1e-12
) -> InvarianceReport:
    """Compare a finite target with itself after one step of a kernel, exactly, in float64.

    Args:
        kernel: A function or program from a state to a new state, with finite random choices drawn by
            `qbs.sample`: an acceptance is a Bernoulli draw.
        target: A finite program whose value is the state; it need not be normalised.
        *args: The target's arguments.
        tolerance: The largest change of a probability that passes.

    Raises:
        ProgramError: If a site of either has no finite support.
        ValueError: If the target has no mass, or the kernel changes the structure of the state.
    """
    measure = enumerate_program(target)(*args)
    count, start_from = len(measure.masses), dist.Categorical(logits=np.zeros(len(measure.masses)))
    if not measure.total_mass > 0:
        raise ValueError(f"target {target.name!r} has no mass")

    def transition() -> Any:
        start = sample("start of the transition", start_from)
        return start, kernel(jax.tree.map(lambda leaf: jnp.asarray(leaf)[start], measure.values))

    moved = enumerate_program(Program(transition, "transition"))()
    starts, ends = moved.values
    like: Any = jax.tree.structure(measure.values)
    if like != jax.tree.structure(ends):
        raise ValueError(f"kernel must return a state like {like}, not {jax.tree.structure(ends)}")
    reached = flat_values(ends, len(moved.masses))
    states = list(dict.fromkeys([*flat_values(measure.values, count), *reached]))
    place = {state: i for i, state in enumerate(states)}
    matrix = np.zeros((count, len(states)))
    np.add.at(matrix, (starts, [place[state] for state in reached]), moved.masses * count)
    probabilities = np.zeros(len(states))
    probabilities[:count] = measure.masses / measure.total_mass
    flow = np.zeros((len(states), len(states)))
    flow[:count] = probabilities[:count, None] * matrix
    change = np.abs(flow.sum(0) - probabilities)
    is_ok = max(change.max(), np.abs(matrix.sum(1) - 1).max()) <= tolerance
    balance, worst = float(np.abs(flow - flow.T).max()), states[int(change.argmax())]
    return InvarianceReport(float(change.max()), balance, worst, matrix, states, probabilities, bool(is_ok))
