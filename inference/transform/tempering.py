"""`tempered`: split the scores of a program into powers, so that a static model has suspension points.

References:
    Neal (2001), "Annealed importance sampling". Del Moral, Doucet & Jasra (2006), "Sequential Monte Carlo
    samplers".
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from qbs.effects import score
from qbs.inference.transform.replay import Replay, replay
from qbs.program import Program


def tempered(program: Program, betas: Any, *, name: str = "temperature") -> Program:
    """Return the program that draws all its sites first, and then scores the likelihood in powers.

    The total score L of the program becomes the scores `(betas[k] - betas[k-1]) L`, in one scan, each a
    suspension point of its own: `population(rejuvenate(tempered(program, betas), proposal), n)` is tempered
    sequential Monte Carlo.

    Args:
        program: The program.
        betas: Inverse temperatures: increasing numbers above 0, the last of which is 1.
        name: The name of the scores.

    Returns:
        A program with the value and the measure of `program`.

    Raises:
        ValueError: If the temperatures do not increase from above 0 to 1.
    """
    powers = np.asarray(betas, dtype=float)
    if powers.ndim != 1 or powers.size == 0 or powers[-1] != 1 or np.any(np.diff(powers, prepend=0.0) <= 0):
        raise ValueError(f"betas must increase from above 0 to 1, not {betas!r}")

    def run_all(*args: Any) -> Any:
        staged = program.stage(*args)
        walked = replay(staged, Replay(), {})
        log_likelihood = walked.state.log_score

        def step(carry: None, increment: Any) -> tuple[None, None]:
            score(increment * log_likelihood, name=name)
            return carry, None

        lax.scan(step, None, jnp.asarray(np.diff(powers, prepend=0.0)))
        return staged.unflatten(walked.outputs)

    return Program(run_all, program.name)
