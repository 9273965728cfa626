"""The training loop: compiled blocks of steps, between which it is looked at and kept."""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]
from jaxtyping import Array, Bool, Float, Int, Shaped

from qbs.errors import LikelihoodError
from qbs.inference.checkpoint import Keeper, Saved, pack, unpack
from qbs.inference.method import Pacer
from qbs.inference.progress import Pace, ProgressLine
from qbs.inference.unnormalized.batches import Batches
from qbs.inference.unnormalized.densities import Densities
from qbs.inference.unnormalized.training_method import Info, TrainingMethod

_ROOM = 64  # steps of a block
_RECORDS = 200  # of a run
_SECTION = "training"
_OF_HISTORY = (*Info._fields, "gradient_norm")


class Program(eqx.Module):
    """What is compiled.

    Attributes:
        densities: Of the model.
        method: Says which way to go.
        optimizer: Goes there.
    """

    densities: Densities
    method: TrainingMethod
    optimizer: optax.GradientTransformation


class Carry(NamedTuple):
    """What a step needs.

    Attributes:
        numbers: The parameters.
        optimizer: Its state.
        state: The method's.
        step: How many were made.
        is_bad: Whether the next step cannot be made.
    """

    numbers: Any
    optimizer: Any
    state: Any
    step: Int[Array, ""]
    is_bad: Bool[Array, ""]


class Trained(NamedTuple):
    """How training ended.

    Attributes:
        numbers: The parameters.
        state: The method's last state.
        history: Values of some steps, by name, and `step`, the numbers of these.
    """

    numbers: Any
    state: Any
    history: dict[str, np.ndarray]


def train(
    program: Program,
    numbers: Any,
    noise: Any,
    batches: Batches,
    key: Array,
    line: ProgressLine,
    keeper: Keeper,
) -> Trained:
    """Return the parameters after all steps.

    Args:
        program: What to do in a step.
        numbers: Where to start.
        noise: What the method begins with.
        batches: The data.
        key: Of the noise draws; each step's are its own.
        line: Where to show progress.
        keeper: Keeps the state between blocks.

    Raises:
        LikelihoodError: If a log density is NaN or `+inf`, or its gradient is; the error has the batch.
    """
    carry, history = _start(program, numbers, noise, keeper)
    num_steps, pacer, pace = program.method.num_steps, Pacer(_ROOM), Pace()
    while (step := int(carry.step)) < num_steps:
        count = pacer.next_length(num_steps - step)
        block = batches.take(step, count, _ROOM)
        try:
            carry, found = _block(program, carry, block, jnp.asarray(count), key)
            jax.block_until_ready(carry.step)
        except KeyboardInterrupt:
            keeper.keep(_SECTION, functools.partial(_saved, carry, history), at_once=True)
            raise
        pacer.finish()
        done = int(carry.step)
        _record(history, found, step, done, num_steps)
        if carry.is_bad:
            raise _failure(program, carry, np.asarray(block[done - step]), done)
        pace.note(done)
        keeper.keep(_SECTION, functools.partial(_saved, carry, history), at_once=done == num_steps)
        line.update(_told(history, done, num_steps), done / num_steps, pace.seconds_for(num_steps - done))
    return Trained(carry.numbers, carry.state, history)


def _start(program: Program, numbers: Any, noise: Any, keeper: Keeper) -> tuple[Carry, dict[str, np.ndarray]]:
    zero = jnp.zeros((), int)
    state = program.method.init(numbers, noise)
    carry = Carry(numbers, program.optimizer.init(numbers), state, zero, jnp.zeros((), bool))
    carry = jax.tree.map(jnp.asarray, carry)
    num_records = min(_RECORDS, program.method.num_steps)
    history = {name: np.full(num_records, np.nan) for name in (*_OF_HISTORY, "step")}
    if (saved := keeper.found(_SECTION)) is not None:
        carry = unpack(saved.arrays, carry, "carry")
        history = {name: saved.arrays[f"history/{name}"].copy() for name in history}
    return carry, history


def _saved(carry: Carry, history: dict[str, np.ndarray]) -> Saved:
    return Saved({}, pack(carry, "carry") | {f"history/{name}": values for name, values in history.items()})


@eqx.filter_jit
def _block(
    program: Program,
    carry: Carry,
    block: Shaped[Array, "room batch_size ..."],
    count: Int[Array, ""],
    key: Array,
) -> tuple[Carry, Float[Array, "room num_values"]]:
    """Return what is there after some steps, or where one could not be made, and values of each."""

    def goes_on(loop: tuple[Carry, Array, Array]) -> Array:
        carry, _, at = loop
        return (at < count) & ~carry.is_bad

    def step(loop: tuple[Carry, Array, Array]) -> tuple[Carry, Array, Array]:
        carry, values, at = loop
        own = jax.random.fold_in(key, carry.step)
        found = program.method.direction(own, carry.numbers, carry.state, block[at], program.densities)
        updates, optimizer = program.optimizer.update(found.gradient, carry.optimizer, carry.numbers)
        norm = optax.tree.norm(found.gradient)
        is_bad = jnp.any(jnp.isnan(found.log_densities) | jnp.isposinf(found.log_densities)) | ~jnp.isfinite(
            norm
        )
        new = Carry(
            optax.apply_updates(carry.numbers, updates), optimizer, found.state, carry.step + 1, is_bad
        )
        kept = jax.tree.map(
            lambda old, fresh: jnp.where(is_bad, old, fresh), carry._replace(is_bad=is_bad), new
        )
        row = jnp.stack(
            [*(jnp.asarray(value, values.dtype) for value in found.info), norm.astype(values.dtype)]
        )
        return kept, values.at[at].set(row), at + 1

    room = len(block)
    values = jnp.full((room, len(_OF_HISTORY)), jnp.nan)
    carry, values, _ = jax.lax.while_loop(goes_on, step, (carry, values, jnp.zeros((), int)))
    return carry, values


def _record(history: dict[str, np.ndarray], found: Array, first: int, done: int, num_steps: int) -> None:
    """Write down the values of the last step of each stretch of the run."""
    values = np.asarray(found, float)
    for at in range(done - first):
        place = (first + at) * len(history["step"]) // num_steps
        history["step"][place] = first + at + 1
        for name, value in zip(_OF_HISTORY, values[at], strict=True):
            history[name][place] = value


def _told(history: dict[str, np.ndarray], done: int, num_steps: int) -> str:
    place = (done - 1) * len(history["step"]) // num_steps
    said = [f"step {done:,} of {num_steps:,}", f"objective {history['objective'][place]:.4g}"]
    for name, words in (("log_partition", "log Z"), ("effective_size", "effective draws")):
        if np.isfinite(history[name][place]):
            said.append(f"{words} {history[name][place]:.4g}")
    return ", ".join([*said, f"gradient {history['gradient_norm'][place]:.2g}"])


def _failure(program: Program, carry: Carry, batch: np.ndarray, step: int) -> LikelihoodError:
    """Return the error of a step that could not be made, with what is needed to look into it."""
    values = np.asarray(program.densities(carry.numbers, jnp.asarray(batch)))
    bad = np.isnan(values) | np.isposinf(values)
    if bad.any():
        at = int(np.argmax(bad))
        what = f"log_density is {values[at]} at {bad.sum()} rows of the batch, the first of them {batch[at]}"
    else:
        what = "log_density or its gradient is NaN or infinite at draws of the noise, or in the parameters"
    error = LikelihoodError(
        f"step {step}: {what}. The error has the batch and the parameters before the step, as .batch and "
        ".params; a smaller learning_rate may help"
    )
    error.batch, error.params = batch, program.densities.params(carry.numbers)  # type: ignore[attr-defined]
    return error
