"""`qbs.fit`: one way to fit any model by any method."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from qbs.errors import ModelError
from qbs.inference.binding import REUSED
from qbs.inference.calls import Caller, Calls, as_calls
from qbs.inference.checkpoint import LOG_PROBS, Checkpoint, Keeper
from qbs.inference.mcmc.nuts import NUTS
from qbs.inference.method import Method
from qbs.inference.nested.dynesty import Dynesty
from qbs.inference.problem import Problem, pose
from qbs.inference.progress import ProgressLine
from qbs.inference.results.posterior import Posterior
from qbs.inference.results.provenance import provenance, stopwatch
from qbs.inference.target import Target
from qbs.inference.unconstrained import site_log_probs
from qbs.precision import Precision, precision_context

_NOTHING_OBSERVED = (
    "The model observes nothing, so this is its prior: is an obs= argument None, or an argument left out?"
)


def fit(
    model: Callable | Target,
    *data: Any,
    method: Method | None = None,
    key: Array,
    model_kwargs: Mapping[str, Any] | None = None,
    name: str = "",
    precision: Precision | None = None,
    progress: bool | None = None,
    checkpoint: str | Path | Checkpoint | None = None,
    executor: Any = None,
) -> Posterior:
    """Fit a model to data: draws from its posterior, and its evidence where the method gives one.

    ```python
    posterior = qbs.fit(model, x, y, key=jax.random.key(0))
    ```

    A second call with the same model and data of the same shapes does not compile again.

    Args:
        model: A NumPyro model, a `qbs.Program`, or a `qbs.Target`.
        *data: The model's positional arguments. Arrays may change between calls without a new
            compilation; Python integers, strings and `None` are part of the compiled program.
        method: For example `qbs.inference.mcmc.NUTS()` or `qbs.inference.nested.Dynesty()`. By default
            NUTS where every latent site is continuous and has a gradient, else Dynesty; the choice is
            printed.
        key: A typed JAX key, `jax.random.key(seed)`. The same key gives the same result.
        model_kwargs: The model's keyword arguments.
        name: What progress, messages and tables call the model; its function's name by default.
        precision: `"float32"` or `"float64"`. By default what the method needs: float64 for methods that
            report an evidence, else JAX's current setting, which is never changed for the caller.
        progress: Whether to show progress; by default on a terminal or in a notebook.
        checkpoint: A file that keeps the state of the run, every half minute or as a `qbs.Checkpoint` says.
            Where it exists, the run goes on from it, to the numbers of a run in one go; a run that is done
            is returned at once. Nothing is kept by default. The calls of a likelihood in plain Python are
            logged beside it, in `NAME.calls`, each as it is made; see `qbs.inference.nested.read_calls`.
        executor: Who calls a likelihood in plain Python: a number of worker processes, an executor such as a
            `concurrent.futures.ProcessPoolExecutor`, or `qbs.Calls` to say more. By default this process, one
            call after another. The result does not depend on it.

    Returns:
        The posterior. Read its `problems` before trusting it. Interrupted by Ctrl-C, the draws so far,
        with a problem that says so.

    Raises:
        ModelError: If the model cannot be run, has no latent sites, uses a name twice, or does not suit
            the method (the message names the site); or if there is an executor for a compiled likelihood.
        LikelihoodError: If a compiled log density is NaN or `+inf`; if it is `-inf` wherever it was tried; if
            a likelihood in plain Python fails at first, or at more calls than `qbs.Calls` allows.
        ExecutorError: If workers cannot be given the likelihood, do not start, or are gone.
        CheckpointError: If the checkpoint is of another run (the message says what differs) or damaged.
        TypeError: If `key`, `method` or `executor` is something else.
    """
    require_key(key)
    calls = as_calls(executor)
    if method is None:
        with precision_context(precision):
            method = _choose(pose(model, data, model_kwargs, name=name))
    elif not isinstance(method, Method):
        raise TypeError(f"method must be a method such as qbs.inference.mcmc.NUTS(), not {method!r}")
    chosen = precision or type(method).precision
    with precision_context(chosen), stopwatch() as watch:
        problem = pose(model, data, model_kwargs, name=name)
        if executor is not None:
            _require_black_box(problem)
        record = provenance(method, problem.name, key, problem.bound.arrays)
        record["program_sha256"] = problem.bound.digest
        record["precision"] = str(jnp.result_type(float))
        title = f"{problem.name} {type(method).__name__}"
        with (
            ProgressLine(title, show=progress) as line,
            _mixed_precision_explained(),
            _with_caller(problem, calls, line) as problem,
        ):
            keeper = _keeper(checkpoint, problem, method, record)
            try:
                posterior = method.run(problem, key, line, keeper)
            except KeyboardInterrupt as interrupt:
                if not keeper.promise:
                    raise
                said = str(interrupt) or f"{title} was interrupted: nothing to return"
                raise KeyboardInterrupt(f"{said}.{keeper.promise}") from None
    if problem.caller is not None:
        posterior.problems.extend(problem.caller.failures.problems)
        record |= problem.caller.record
    posterior.problems.extend(keeper.problems)
    if problem.is_prior:
        posterior.problems.append(_NOTHING_OBSERVED)
    if posterior.provenance.get("is_interrupted"):
        print(f"qbs.fit: {problem.name!r}: {posterior.problems[0]}{keeper.promise}", file=sys.stderr)
    record |= {"wall_seconds": watch.wall, "compile_seconds": watch.compiling}
    return dataclasses.replace(posterior, provenance=record | posterior.provenance)


def _choose(problem: Problem) -> Method:
    method: Method
    if problem.black_box is None and problem.is_continuous:
        method, reason = NUTS(), "every latent site is continuous and has a gradient; no evidence"
    elif problem.black_box is None:
        method, reason = Dynesty(), f"discrete: {', '.join(map(repr, problem.discrete))}"
    else:
        method, reason = Dynesty(), "its likelihood is not written in JAX"
    print(f"qbs.fit: {problem.name!r} is fitted by {type(method).__name__} ({reason})", file=sys.stderr)
    return method


def _keeper(
    checkpoint: str | Path | Checkpoint | None, problem: Problem, method: Method, record: dict[str, Any]
) -> Keeper:
    """Return what keeps the state of a run, for a file that names the run it is of."""
    if checkpoint is None:
        return Keeper()
    names = ("model", "method", "seed", "key_type", "data_sha256", "precision", "versions", "device")
    identity = {name: record[name] for name in names}
    identity["settings"] = {n: v for n, v in record["settings"].items() if n not in method.extensible}
    log_probs = [site_log_probs(problem.bound, jax.random.key(seed)) for seed in range(2)]
    identity[LOG_PROBS] = {name: [float(found[name]) for found in log_probs] for name in log_probs[0]}
    identity[LOG_PROBS]["log_likelihood"] = problem.probe
    return Keeper(checkpoint, identity)


@contextlib.contextmanager
def _with_caller(problem: Problem, calls: Calls, line: ProgressLine) -> Iterator[Problem]:
    """Give a black box what makes its calls, and end the workers with the body."""
    if problem.black_box is None:
        yield problem
        return
    with Caller(problem.black_box, calls, line) as caller:
        yield dataclasses.replace(problem, caller=caller)


def _require_black_box(problem: Problem) -> None:
    if problem.black_box is None:
        raise ModelError(
            f"executor= serves likelihoods in plain Python; that of {problem.name!r} is written in JAX, "
            "compiled, and evaluated in batches: it needs none. (qbs.Target(..., in_jax=False) has it called "
            "point by point.)"
        )


@contextlib.contextmanager
def _mixed_precision_explained() -> Iterator[None]:
    """Explain what JAX says when it re-uses the float32 form of an array that `qbs.captured` cannot reach."""
    try:
        yield
    except ValueError as error:
        if "verifier errors" not in str(error):
            raise
        raise ModelError(REUSED) from error


def require_key(key: Any) -> None:
    """Raise `TypeError` unless it is one typed JAX key."""
    if not isinstance(key, jax.Array) or not jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise TypeError(f"key must be a typed JAX key, jax.random.key(seed), not {type(key).__name__}")
    if key.shape != ():
        raise TypeError(f"key must be one key, not an array of keys of shape {key.shape}")
