"""Independent populations, islands: what their evidences say together, and how far they agree."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from qbs.effects import score_p
from qbs.errors import LikelihoodError, ModelError
from qbs.inference.checkpoint import Keeper, Saved
from qbs.inference.problem import Problem, nonfinite_data
from qbs.inference.progress import Pace, ProgressLine
from qbs.inference.results.posterior import to_numpy
from qbs.jaxprs import inner_jaxprs, open_jaxpr
from qbs.semantics.run import Weighted

_SECTION, _LABELS, _TRACE = "islands", "labels", "trace/"
MAX_SPREAD = 0.5  # relative standard deviation of the evidences of islands that still agree


class Islands(NamedTuple):
    """The runs of all islands.

    Attributes:
        labels: A number for each draw, shape (islands, draws): draws of the same number are not independent.
        trace: Values of the draws by name, with the same leading axes.
        log_evidences: Log evidence of each, in nats.
        is_interrupted: Whether some are missing.
    """

    labels: np.ndarray
    trace: dict[str, np.ndarray]
    log_evidences: np.ndarray
    is_interrupted: bool


class _Island(NamedTuple):
    values: dict[str, np.ndarray]  # "labels", and "trace/NAME"
    log_evidence: float
    impossible_at: list[str]


def run_islands(
    problem: Problem,
    keys: Array,
    line: ProgressLine,
    keeper: Keeper,
    run_one: Callable[[Array], Weighted],
) -> Islands:
    """Run one island after another; after Ctrl-C, return those that are done if there are two.

    Args:
        problem: What messages are about.
        keys: A key for each island.
        line: Where to show progress.
        keeper: Keeps the islands that are done.
        run_one: Runs an island; its value is the pair of labels and trace.

    Raises:
        LikelihoodError: If a score is NaN or infinite, or the weights are zero on every island; it names the
            score.
    """
    done, pace = _restored(keeper), Pace()
    is_interrupted = False
    try:
        while (number := len(done)) < len(keys):
            done = (*done, _as_island(jax.block_until_ready(run_one(keys[number]))))
            keeper.keep(_SECTION, partial(_saved, done))
            pace.note(number + 1)
            if line.is_due:
                left = len(keys) - number - 1
                words = f"island {number + 1} of {len(keys)}"
                line.update(words, (number + 1) / len(keys), pace.seconds_for(left))
    except KeyboardInterrupt:
        if len(done) < 2:
            keeper.keep(_SECTION, partial(_saved, done), at_once=True)
            raise
        is_interrupted = True
    except eqx.EquinoxRuntimeError as error:
        raise LikelihoodError(_said(problem, error)) from None
    keeper.keep(_SECTION, partial(_saved, done), at_once=True)
    log_evidences = np.array([island.log_evidence for island in done])
    if not np.any(np.isfinite(log_evidences)):
        raise _impossible(problem, done)
    values = {name: np.stack([island.values[name] for island in done]) for name in done[0].values}
    labels = values.pop(_LABELS)
    trace = {name.removeprefix(_TRACE): value for name, value in values.items()}
    return Islands(labels, trace, log_evidences, is_interrupted)


def _as_island(run: Weighted) -> _Island:
    labels, trace = to_numpy(run.value)
    values = {_LABELS: labels, **{f"{_TRACE}{name}": value for name, value in trace.items()}}
    return _Island(values, float(run.log_weight), list(run.impossible_at))


def _saved(islands: tuple[_Island, ...]) -> Saved:
    facts = {
        "log_evidences": [island.log_evidence for island in islands],
        "impossible_at": [island.impossible_at for island in islands],
    }
    arrays = {
        f"{number}/{name}": value
        for number, island in enumerate(islands)
        for name, value in island.values.items()
    }
    return Saved(facts, arrays)


def _restored(keeper: Keeper) -> tuple[_Island, ...]:
    saved = keeper.found(_SECTION)
    if saved is None:
        return ()
    pairs = zip(saved.facts["log_evidences"], saved.facts["impossible_at"], strict=True)
    return tuple(
        _Island(saved.group(f"{number}/"), log_evidence, impossible_at)
        for number, (log_evidence, impossible_at) in enumerate(pairs)
    )


def _said(problem: Problem, error: Exception) -> str:
    sentence = next((text for text in str(error).splitlines() if "is NaN or infinite" in text), str(error))
    sentence = sentence[sentence.find("the score") :].strip()
    return "; ".join([sentence, *nonfinite_data(problem.bound)])


def _impossible(problem: Problem, runs: tuple[_Island, ...]) -> LikelihoodError:
    names = list(dict.fromkeys(name for run in runs for name in run.impossible_at))
    causes = "; ".join(nonfinite_data(problem.bound)) or (
        "the priors and the data exclude each other there, or more particles are needed"
    )
    return LikelihoodError(
        f"all particles of {problem.name!r} had zero weight on each of {len(runs)} islands, at the score "
        f"{', '.join(map(repr, names))}: {causes}"
    )


def combined_evidence(log_evidences: np.ndarray) -> tuple[float, float]:
    """Return log evidence of independent islands together, and its standard error in nats.

    The mean of their evidences is unbiased; the error is that of the mean, by its logarithm's derivative.
    """
    highest = float(np.max(log_evidences))
    ratios = np.exp(log_evidences - highest)
    mean = float(np.mean(ratios))
    return highest + math.log(mean), float(np.std(ratios, ddof=1) / mean / math.sqrt(len(ratios)))


def path_log_weights(log_evidences: np.ndarray, num_paths: int) -> np.ndarray:
    """Return the log weights of equally weighted draws of islands, shape (islands, draws), of sum 1."""
    total = np.logaddexp.reduce(log_evidences)
    return np.repeat((log_evidences - total - math.log(num_paths))[:, None], num_paths, axis=1)


def island_problems(islands: Islands, wanted: int, remedy: str) -> list[str]:
    """Say where islands are missing, or disagree."""
    found, values = [], islands.log_evidences
    if islands.is_interrupted:
        found.append(f"Interrupted after {len(values)} of {wanted} islands: those are kept here.")
    if dead := int(np.sum(np.isneginf(values))):
        found.append(f"On {dead} of {len(values)} islands all particles died out: {remedy}.")
    spread = combined_evidence(values)[1] * math.sqrt(len(values))
    if spread > MAX_SPREAD:
        alive = values[np.isfinite(values)]
        found.append(
            f"The islands disagree: their log evidences run from {alive.min():.2f} to {alive.max():.2f}, so "
            f"the evidence, its error and the weights are rough: {remedy}."
        )
    return found


def effective_number(labels: np.ndarray, log_weights: np.ndarray) -> float:
    """Return the effective number of distinct labels under the weights of their draws."""
    _, which = np.unique(labels, return_inverse=True)
    shares = np.bincount(which.ravel(), np.exp(log_weights).ravel())
    return float(shares.sum() ** 2 / (shares**2).sum())


def count_scores(jaxpr: Any) -> int:
    """Return how many scores a run meets, the steps of scans counted; of branches, the most."""
    total = 0
    for equation in open_jaxpr(jaxpr)[0].eqns:
        if equation.primitive is score_p:
            total += 1
            continue
        counts = [count_scores(inner) for inner in inner_jaxprs(equation)]
        if equation.primitive.name == "scan":
            total += equation.params["length"] * sum(counts)
        elif counts:
            total += max(counts) if equation.primitive.name == "cond" else sum(counts)
    return total


def require_scores(problem: Problem, method: str) -> int:
    """Return how many scores a run of the model meets.

    Raises:
        ModelError: If there is none, or the likelihood is a Python function, or a prior cannot be drawn from.
    """
    if problem.black_box is not None:
        raise ModelError(
            f"{method} weighs particles in compiled code, and log_likelihood of {problem.name!r} is not "
            "written in JAX: use jax.numpy in it, or method=qbs.inference.nested.Dynesty()"
        )
    bound = problem.bound
    if problem.is_prior:
        raise ModelError(
            f"{method} weighs particles by what is observed, and {problem.name!r} observes nothing: is an "
            "obs= argument None, or an argument left out?"
        )
    return count_scores(bound.program.stage(*bound.arrays).jaxpr)
