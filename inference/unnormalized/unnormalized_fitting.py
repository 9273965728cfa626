"""`qbs.fit_unnormalized`: one way to fit a model that is known up to its normalizing constant."""

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]
from jaxtyping import Array

from qbs.errors import DataError
from qbs.inference.checkpoint import Checkpoint, Keeper, pack
from qbs.inference.digest import digest
from qbs.inference.fitting import require_key
from qbs.inference.progress import ProgressLine
from qbs.inference.results.provenance import data_fingerprint, provenance, stopwatch
from qbs.inference.unnormalized.batches import Batches, StreamBatches, TableBatches, as_rows
from qbs.inference.unnormalized.compositional import Compositional
from qbs.inference.unnormalized.densities import Densities, take_apart
from qbs.inference.unnormalized.fit_result import UnnormalizedFit
from qbs.inference.unnormalized.log_partition import (
    NUM_DRAWS,
    LogPartition,
    log_ratios,
    mean_of_ratios,
    noise_ratios,
)
from qbs.inference.unnormalized.noise import Noise, as_noise
from qbs.inference.unnormalized.training import Program, train
from qbs.inference.unnormalized.training_method import TrainingMethod, default_optimizer
from qbs.precision import Precision, precision_context

_UNSEEN = 0.02  # of the data: more of them where no noise draw is as heavy is a part that the noise misses
_MOST_ROWS = 20_000  # of the data that are held against the noise


def fit_unnormalized(
    log_density: Callable[..., Any],
    params: Any,
    data: Any,
    *,
    method: TrainingMethod | None = None,
    noise: Any = None,
    optimizer: optax.GradientTransformation | None = None,
    key: Array,
    name: str = "",
    precision: Precision | None = None,
    progress: bool | None = None,
    checkpoint: str | Path | Checkpoint | None = None,
) -> UnnormalizedFit:
    """Fit a model whose density is known up to its normalizing constant, and find the constant.

    ```python
    fit = qbs.fit_unnormalized(log_density, params, data, key=jax.random.key(0))
    ```

    Args:
        log_density: Called as `log_density(params, x)` with one row of the data; returns one number, in
            nats, to which any constant may be added. `-inf` means impossible.
        params: Where to start: any tree with arrays of real numbers in it, an equinox module for example.
        data: An array or a data frame, one row for each observation; or an iterator of batches of them, one
            for each step, for data that do not fit into memory.
        method: For example `qbs.inference.unnormalized.Compositional()`, the default.
        noise: A distribution whose density is known, for the methods that need one and for the constant:
            `"gaussian"`, fitted to the data, the default for real numbers; `"marginals"`, independent
            columns of whole numbers, the default for these; or a distribution of NumPyro or flowjax. Of an
            iterator the first batch is what is fitted.
        optimizer: Of optax; by default Adam at the method's `learning_rate`, which falls to zero along a
            line in the second half.
        key: A typed JAX key, `jax.random.key(seed)`. The same key gives the same result.
        name: What progress and messages call the model; its function's name by default.
        precision: `"float32"` or `"float64"`; by default JAX's current setting, which is never changed for
            the caller.
        progress: Whether to show progress; by default on a terminal or in a notebook.
        checkpoint: A file that keeps the state of the run, every half minute or as a `qbs.Checkpoint` says.
            Where it exists, the run goes on from it, to the same bits; an iterator is asked for all its
            batches again.

    Returns:
        The fit. Read its `problems` before trusting it.

    Raises:
        ModelError: If there is nothing to fit in `params`, or `log_density` is not one real number.
        DataError: If the data are empty, not numbers, constant in a column, or have NaN or infinities in
            them.
        LikelihoodError: If `log_density` is NaN or `+inf`; the error has the batch and the parameters.
        CheckpointError: If the checkpoint is of another run (the message says what differs) or damaged.
        TypeError: If `key`, `method` or `noise` is something else.
    """
    require_key(key)
    method = Compositional() if method is None else method
    if not isinstance(method, TrainingMethod):
        raise TypeError(f"method must be a method such as Compositional(), not {type(method).__name__}")
    with precision_context(precision), stopwatch() as watch:
        for_data, for_training, for_constant = jax.random.split(key, 3)
        batches = _batches(data, method, for_data)
        rows = batches.sample
        numbers, densities = take_apart(log_density, params, jax.ShapeDtypeStruct(rows.shape[1:], rows.dtype))
        _require_spread(rows, noise)
        first = as_noise(noise, rows)
        _require_start(densities, numbers, rows)
        title = name or getattr(log_density, "__name__", type(log_density).__name__)
        is_table = isinstance(batches, TableBatches)
        record = provenance(method, title, key, (rows,) if is_table else ())
        record |= {"row_shape": list(rows.shape[1:]), "row_type": str(rows.dtype)}
        record["precision"] = str(jnp.result_type(float))
        program = Program(
            densities, method, optimizer or default_optimizer(method.learning_rate, method.num_steps)
        )
        keeper = _keeper(checkpoint, program, numbers, first, rows, record)
        with (
            ProgressLine(f"{title} {type(method).__name__}", show=progress) as line,
            _promising(keeper, title),
        ):
            trained = train(program, numbers, first, batches, for_training, line, keeper)
        found = noise_ratios(densities, trained.numbers, trained.state.noise, for_constant, NUM_DRAWS)
        constant = mean_of_ratios(found)
        problems = [*method.trouble(trained.state), *constant.problems, *keeper.problems]
        problems += _unseen(densities, trained.numbers, trained.state.noise, rows, found)
    record |= {"wall_seconds": watch.wall, "compile_seconds": watch.compiling}
    return _result(densities, trained, constant, problems, record)


def _result(
    densities: Densities, trained: Any, constant: LogPartition, problems: list[str], record: dict[str, Any]
) -> UnnormalizedFit:
    return UnnormalizedFit(
        params=densities.params(trained.numbers),
        log_partition=constant.value,
        log_partition_error=constant.error,
        problems=problems,
        noise=trained.state.noise,
        densities=densities,
        numbers=trained.numbers,
        history=trained.history,
        provenance=record,
    )


def _batches(data: Any, method: TrainingMethod, key: Array) -> Batches:
    is_table = hasattr(data, "shape") or hasattr(data, "to_numpy") or isinstance(data, list | tuple)
    if is_table:
        return TableBatches(as_rows(data), method.batch_size, key)
    if isinstance(data, Iterable):
        return StreamBatches(data)
    raise TypeError(
        f"data must be an array, a data frame or an iterator of batches, not {type(data).__name__}"
    )


def _require_spread(rows: np.ndarray, noise: Any) -> None:
    """Raise `DataError` where noise cannot be fitted to the data."""
    if noise not in (None, "gaussian") or not np.issubdtype(rows.dtype, np.floating):
        return
    if len(rows) < 2:
        raise DataError("data has one row, and noise cannot be fitted to that: give more, or noise=")
    flat = rows.reshape(len(rows), -1)
    if (constant := np.flatnonzero(np.ptp(flat, axis=0) == 0)).size:
        raise DataError(
            f"data is constant in column {', '.join(map(str, constant[:10]))}: a density has no meaning "
            "there. Leave it out, or give noise= that covers it"
        )


def _require_start(densities: Densities, numbers: Any, rows: np.ndarray) -> None:
    """Raise an error where the model cannot be trained from where it starts."""
    values = np.asarray(densities(numbers, jnp.asarray(rows[:256])))
    if (bad := ~np.isfinite(values)).any():
        at = int(np.argmax(bad))
        raise DataError(
            f"log_density is {values[at]} at row {at} of the data, {rows[at]}, with the parameters to start "
            "at: every row must be possible"
        )


def _unseen(
    densities: Densities, numbers: Any, noise: Noise, rows: np.ndarray, found: np.ndarray
) -> list[str]:
    """Say so where data lie in a part of the model that no noise draw is from."""
    of_data = log_ratios(densities, numbers, noise, rows[:_MOST_ROWS])
    share = float(np.mean(of_data > found.max()))
    if share <= _UNSEEN:
        return []
    return [
        f"{share:.0%} of the data lie where the model's density over that of the noise is higher than at "
        f"any of {len(found):,} noise draws: the noise misses a part of the model, so that neither the "
        "parameters nor log Z can be trusted. Give wider noise."
    ]


def _keeper(
    checkpoint: str | Path | Checkpoint | None,
    program: Program,
    numbers: Any,
    noise: Noise,
    rows: np.ndarray,
    record: dict[str, Any],
) -> Keeper:
    if checkpoint is None:
        return Keeper()
    names = (
        "model",
        "method",
        "settings",
        "seed",
        "key_type",
        "data_sha256",
        "precision",
        "versions",
        "device",
    )
    identity = {name: record[name] for name in names}
    identity["start_sha256"] = data_fingerprint(tuple(pack(numbers).values()))
    identity["noise_sha256"] = data_fingerprint(tuple(pack(noise).values()))
    identity["program_sha256"] = digest(jax.make_jaxpr(program.densities)(numbers, jnp.asarray(rows[:2])))
    return Keeper(checkpoint, identity)


@contextlib.contextmanager
def _promising(keeper: Keeper, title: str) -> Any:
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the fit of {title} was interrupted.{keeper.promise}") from None
